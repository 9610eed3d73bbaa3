"""Train and test: the one entry.

    hiera-video train --cfg K400/hiera_b_16x4 DATA.PATH_TO_DATA_DIR kinetics/ [KEY VALUE ...]
    hiera-video train small/finetune_folder DATA.PATH_TO_DATA_DIR videos/
    hiera-video train --cfg mine.yaml --probe attentive
    hiera-video train --settings [PATTERN]
    torchrun --nproc-per-node 8 -m hiera_video train --cfg K400/hiera_b_16x4

TRAIN.ENABLE and TEST.ENABLE choose what is done. The same command again goes on where a run
stopped. Exit codes: 0 done, or training stopped by SIGTERM (SIGUSR1, SIGUSR2) with its state saved,
unless --stopped-exit-code names another; 1 the run failed; 2 wrong use; 130 Ctrl-C, the state being
saved; 143 SIGTERM with nothing to save (before the first step, or in a test); 141 the reader of the
output has gone. Of several processes the first that fails ends all of them, with its code, and the
first one (rank 0) says why.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hiera_video.cli import import_torch
from hiera_video.commands import usage
from hiera_video.config import Config
from hiera_video.config.command_line import (
    SettingsParser,
    add_config_arguments,
    config_from_args,
    is_key,
    settings_table,
)
from hiera_video.config.origin import Recipe, read_recipe
from hiera_video.config.recipes import recipe_table
from hiera_video.errors import UserError


def main(argv: Sequence[str] | None = None, prog: str = "hiera-video train") -> int:
    """Run one command line; returns the exit code."""
    return command(argv, prog, usage(__doc__, "train", prog))


def command(
    argv: Sequence[str] | None, prog: str, description: str, always: Sequence[str] = ()
) -> int:
    """Run one command line of this kind; returns the exit code.

    always: settings, KEY VALUE KEY VALUE, that come last.
    """
    words = sys.argv[1:] if argv is None else argv
    args = arguments(prog, description).parse_args(with_probe(with_cfg(words)))
    if args.show_settings is not None:
        print(settings_table(args.show_settings))
        return 0
    if args.recipes:
        print(recipe_table())
        return 0
    if args.export_weights:
        return export(args.export_weights)
    if not args.cfg:
        raise UserError(
            f"name a config file or a recipe: {prog} --cfg K400/hiera_b_16x4 [KEY VALUE ...] "
            f"({prog} --recipes lists them)"
        )
    if args.probe:
        args.settings += ["TRAIN.PROBE", args.probe, *PROBE_ALONE]
    args.settings += always
    cfg = config_from_args(args)
    if args.print_config:
        print(cfg.to_yaml(), end="")
        return 0
    if args.dry_run is None and not (cfg.train.enable or cfg.test.enable):
        raise UserError("nothing to do: TRAIN.ENABLE and TEST.ENABLE are both False")
    recipe = read_recipe(args.cfg)
    return run(cfg, dry_steps=args.dry_run, recipe=recipe, stopped_code=args.stopped_exit_code)


PROBE_ALONE = ("SOLVER.MAX_EPOCH", "0", "SOLVER.MAX_STEPS", "0")
"""What --probe sets besides TRAIN.PROBE."""


def with_cfg(words: Sequence[str]) -> list[str]:
    """Put `--cfg` before a first word that is no setting: the name of a recipe or a config file."""
    words = [str(word) for word in words]
    if not words or words[0].startswith("-") or "--cfg" in words or is_key(words[0]):
        return words
    return ["--cfg", *words]


def with_probe(words: Sequence[str]) -> list[str]:
    """Say `--probe=linear` for a `--probe` that a setting, an option or nothing follows."""
    words = list(words)
    for i, word in enumerate(words):
        after = words[i + 1] if i + 1 < len(words) else "-"
        if word == "--probe" and (after.startswith("-") or is_key(after)):
            words[i] = "--probe=linear"
    return words


def run(
    cfg: Config,
    *,
    dry_steps: int | None = None,
    recipe: Recipe | None = None,
    stopped_code: int = 0,
) -> int:
    """Train, then test, as far as `cfg` asks for them; returns the exit code.

    dry_steps: steps of a dry run instead; None for a real one. recipe: what `cfg` was made of.
    stopped_code: what is returned after a signal that is no Ctrl-C, once the state is saved.
    """
    # torch takes seconds to import: late, so that --help and typing errors are quick
    import_torch()
    import torch

    from hiera_video.engine import distributed, dry_run, evaluate, tasks, train
    from hiera_video.engine.signals import Stop

    objective = tasks.get(cfg.task)
    if dry_steps is None and not cfg.train.enable and not objective.validated:
        raise UserError(
            f"nothing to do: TASK {cfg.task} has no labels to test; set TRAIN.ENABLE True"
        )
    if cfg.num_threads:
        torch.set_num_threads(cfg.num_threads)
    with distributed.init(cfg.device) as world:
        if dry_steps is not None:
            dry_run.run(cfg, world, steps=dry_steps)
            return 0
        stop = Stop(stopped_code)
        code = train.train(cfg, world, stop, recipe) if cfg.train.enable else 0
        if not stop.obeyed and cfg.test.enable and objective.validated:
            code = evaluate.test(cfg, world, stop)
        return code


def arguments(prog: str, description: str) -> SettingsParser:
    """Build the parser of the command line."""
    parser = SettingsParser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser, required=False)
    parser.add_argument(
        "--probe",
        choices=("linear", "attentive"),
        help="fit the head to the frozen weights of TRAIN.CHECKPOINT_FILE_PATH, and no more: a "
        "linear layer (which --probe alone means), or attention over the tokens before it",
    )
    parser.add_argument(
        "--dry-run",
        type=_steps,
        metavar="N",
        help="do N real steps, on generated clips if the data is missing, write nothing, and "
        "print memory, speed and the length of the full schedule",
    )
    parser.add_argument(
        "--settings",
        dest="show_settings",
        nargs="?",
        const="",
        metavar="PATTERN",
        help="print key, default, allowed values and meaning of the settings that match a part of "
        "a key or a shell pattern (LINEAR, 'TRAIN.*'; none: of all) and end",
    )
    parser.add_argument(
        "--stopped-exit-code",
        type=_exit_code,
        default=0,
        metavar="N",
        help="exit code after SIGTERM, SIGUSR1 or SIGUSR2 once the state is saved, for schedulers "
        "that start a job again by its code (default 0)",
    )
    parser.add_argument("--recipes", action="store_true", help="list the recipes and end")
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved settings as YAML and end"
    )
    parser.add_argument(
        "--export-weights",
        nargs=2,
        metavar=("CHECKPOINT", "FILE"),
        help="write a checkpoint's weights in the published layout and end",
    )
    return parser


def export(paths: Sequence[str]) -> int:
    """Write the weights of a checkpoint in the published layout: [CHECKPOINT, FILE]."""
    from hiera_video.engine import checkpoint

    source, target = (Path(path).expanduser() for path in paths)
    if target.is_dir():
        raise UserError(f"{target} is a folder; name the file to write")
    size = checkpoint.export(source, target)
    print(f"wrote {target}, {size / 2**20:.1f} MiB")
    return 0


def _exit_code(text: str) -> int:
    if not text.isdigit() or int(text) > 255:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 0 to 255")
    return int(text)


def _steps(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of steps, at least 1")
    return int(text)
