"""Benchmarks, one subcommand each; every number is printed with the conditions of its measurement.

    python tools/benchmark.py model
    python tools/benchmark.py model --names hiera_base_224 --batch best --compile --json out.json
    python tools/benchmark.py ladder --size large --input video --batch best
    python tools/benchmark.py pretrain --mask-ratio 0.75 0.9

What is measured, and how, is in `tools/benchmarks/`; the tables of the last full runs are in
`docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that a checkout is enough

from hiera_video import cli

COMMANDS = {
    "model": ("models", "registered models beside other implementations of them"),
    "ladder": ("ladder", "the rungs from MViTv2 to Hiera, beside the paper's, with a picture"),
    "pretrain": ("pretrain", "one step of masked autoencoding, by part, beside other libraries'"),
    "data": ("data", "decoding, augmenting and loading, by stage and core, beside PyTorchVideo"),
    "generate": ("generate", "drawing clips of body motion, by stage and number of processes"),
    "growth": ("growth", "time and memory against frames, size and videos, with the exponent"),
    "predict": ("predict", "files to labels: cold start, file after file, and where the time goes"),
}
"""Subcommand -> its module in tools/benchmarks/ (with add_arguments and run), and its help."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a subcommand and its options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_import_argument(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (file, text) in COMMANDS.items():
        module = importlib.import_module(f"benchmarks.{file}")
        command = commands.add_parser(name, help=text, description=module.__doc__.splitlines()[0])
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run a subcommand; returns the exit code."""
    args = parse(argv)
    return args.run(args)


if __name__ == "__main__":
    cli.run(main)
