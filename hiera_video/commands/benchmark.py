"""Measure speed and memory; every number is printed with the conditions of its measurement.

    hiera-video benchmark model
    hiera-video benchmark model --names hiera_base_224 --batch best --compile --json out.json
    hiera-video benchmark ladder --size large --input video --batch best
    hiera-video benchmark pretrain --mask-ratio 0.75 0.9
    hiera-video benchmark predict --videos videos/ --weights camera_motion

What is compared takes turns, and each row has its fastest and slowest measurement. Other libraries
(hiera-transformer, timm, PyTorchVideo, transformers) stand beside ours where they are installed.
Pictures go into runs/benchmark/ in the current folder.

Exit codes: 0 done; 1 it failed; 2 wrong use; 130 interrupted: what was measured is printed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from hiera_video import cli
from hiera_video.benchmarks.options import BENCHMARKS
from hiera_video.commands import usage


def main(argv: Sequence[str] | None = None, prog: str = "hiera-video benchmark") -> int:
    """Run one command line; returns the exit code."""
    args = parse(argv, prog)
    # Imported here: torch takes seconds to import, and --help need not wait.
    cli.import_torch()
    module = importlib.import_module(f"hiera_video.benchmarks.{BENCHMARKS[args.command].module}")
    code: int = module.run(args)
    return code


def parse(
    argv: Sequence[str] | None = None, prog: str = "hiera-video benchmark"
) -> argparse.Namespace:
    """Parse a subcommand and its options; `prog` is how it was started."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=usage(__doc__, "benchmark", prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_import_argument(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="WHAT")
    for name, benchmark in BENCHMARKS.items():
        text = benchmark.what[0].upper() + benchmark.what[1:] + "."
        command = commands.add_parser(name, help=benchmark.what, description=text)
        benchmark.add_options(command)
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(words)
    args.command_line = [*prog.split(), *words]  # reports say how their numbers came about
    return args
