"""Submit a training run to Slurm, and have it go on where it was interrupted.

    hiera-video slurm --cfg K400/hiera_b_16x4 --nodes 2 --gpus-per-node 8 --time 2-00:00:00 \\
        OUTPUT_DIR runs/k400 DATA.PATH_TO_DATA_DIR kinetics/
    hiera-video slurm --cfg small/finetune_folder --gpus-per-node 1 --time 90 --dry-run
    hiera-video slurm --cfg small/finetune_folder --time 30 --local OUTPUT_DIR runs/here

Starts one process for each GPU. Before the time is over, and when Slurm needs the machines for
another job, the run saves its state, the job is queued again, and the run goes on. A run that fails
is not queued again. The script, the logs and what submitit needs are in OUTPUT_DIR/slurm.

Exit codes: 0 submitted; 1 Slurm refused the job; 2 wrong use, and nothing was submitted.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hiera_video import cli, files
from hiera_video.commands import usage
from hiera_video.config.command_line import (
    SettingsParser,
    add_config_arguments,
    config_from_args,
)
from hiera_video.errors import UserError

if TYPE_CHECKING:
    from hiera_video.config import Config
    from hiera_video.slurm.submission import Resources

OPTIONS = ("partition", "account", "qos", "cpus_per_task", "mem", "constraint")
"""Options of sbatch that have one here of the same name."""


def main(argv: Sequence[str] | None = None, prog: str = "hiera-video slurm") -> int:
    """Run one command line; returns the exit code."""
    args = _arguments(prog).parse_args(argv)
    cfg = config_from_args(args)
    from hiera_video.slurm import submission
    from hiera_video.slurm.job import STOPPED, TrainingJob

    resources = _resources(args)
    _require_fitting_batch(cfg, resources.tasks)
    folder = Path(cfg.output_dir).expanduser().absolute() / "slurm"
    if args.dry_run:
        print(submission.script(folder, resources))
        return cli.DONE
    if not args.local:
        submission.require_slurm()
    elif resources.nodes > 1:
        raise UserError(f"--local is for one machine, and --nodes is {resources.nodes}; leave it")
    _make_folder(folder)
    words = ["--stopped-exit-code", str(STOPPED), "--cfg", _found_anywhere(args.cfg)]
    words += [word for name in args.imports for word in ("--import", name)]
    # last, and whole: a relative folder would move with the working directory
    words += [*args.settings, "OUTPUT_DIR", str(folder.parent)]
    job = TrainingJob(tuple(words), most_requeues=args.max_requeues)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(submission.PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    start = submission.start_here if args.local else submission.submit
    done = start(folder, job, resources)
    many = f"{resources.tasks} process{'es' * (resources.tasks > 1)}"
    print(f"{'started' if args.local else 'submitted'} job {done.number}, {many}")
    print(f"log: {done.log}")
    print(f"cancel: {done.cancel}")
    return cli.DONE


def _arguments(prog: str) -> SettingsParser:
    parser = SettingsParser(
        prog=prog,
        description=usage(__doc__ or "", "slurm", prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_config_arguments(parser, required=True)
    add = parser.add_argument
    add("--time", required=True, metavar="T", help="time limit, as Slurm writes it: 2-00:00:00, 90")
    add("--nodes", type=_count, default=1, metavar="N", help="machines (1)")
    add("--gpus-per-node", type=int, default=0, metavar="G",
        help="GPUs of each, with a process for each (0: one process on the CPU)")  # fmt: skip
    add("--tasks-per-node", type=_count, metavar="N", help="processes of each machine (one a GPU)")
    add("--partition", metavar="P", help="as of sbatch, and so are the next ones")
    add("--account", metavar="A")
    add("--qos", metavar="Q")
    add("--cpus-per-task", type=_count, metavar="N", help="CPUs of each process")
    add("--mem", metavar="SIZE", help="memory of each machine: 64G")
    add("--constraint", metavar="C")
    add("--sbatch", action="append", default=[], metavar="NAME=VALUE",
        help="any other option of sbatch (repeatable): --sbatch exclude=node7")  # fmt: skip
    add("--setup", action="append", default=[], metavar="LINE",
        help="a line of the script before the run (repeatable): 'module load cuda'")  # fmt: skip
    add("--name", default="hiera", metavar="NAME", help="of the job (hiera)")
    add("--warning", type=_count, default=120, metavar="SECONDS",
        help="how long before the end of its time the run is told to save (120)")  # fmt: skip
    add("--max-requeues", type=int, default=100, metavar="N",
        help="how often the job is queued again at most (100)")  # fmt: skip
    add("--dry-run", action="store_true", help="print the script and end")
    add("--local", action="store_true", help="run the job on this machine, in the background")
    return parser


def _resources(args: argparse.Namespace) -> Resources:
    from hiera_video.slurm.submission import Resources, minutes_of

    if args.gpus_per_node < 0 or args.max_requeues < 0:
        raise UserError("--gpus-per-node and --max-requeues must be 0 or more")
    minutes = minutes_of(args.time)
    if args.warning >= 60 * minutes:
        raise UserError(
            f"--warning {args.warning} s is not before the end of --time {args.time}; lower it"
        )
    chosen = {name.replace("_", "-"): getattr(args, name) for name in OPTIONS}
    options: dict[str, str | bool] = {n: str(value) for n, value in chosen.items() if value}
    for text in args.sbatch:
        match = re.fullmatch(r"(?:--)?([a-z][a-z0-9-]*)(?:=(.+))?", text)
        if match is None:
            raise UserError(f"--sbatch {text}: write NAME=VALUE, such as exclude=node7")
        options[match[1]] = True if match[2] is None else match[2]
    return Resources(
        nodes=args.nodes,
        tasks_per_node=args.tasks_per_node or max(1, args.gpus_per_node),
        gpus_per_node=args.gpus_per_node,
        minutes=minutes,
        warning_seconds=args.warning,
        name=args.name,
        options=options,
        setup=tuple(args.setup),
    )


def _require_fitting_batch(cfg: Config, tasks: int) -> None:
    shares = tasks * max(1, cfg.train.grad_accum)
    if cfg.train.enable and cfg.train.batch_size % shares:
        raise UserError(
            f"TRAIN.BATCH_SIZE {cfg.train.batch_size} does not divide by {tasks} processes x "
            f"TRAIN.GRAD_ACCUM {max(1, cfg.train.grad_accum)}; take a multiple of {shares}"
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with files.atomic_write(folder / ".writable", text=True) as file:
            file.write("")
        (folder / ".writable").unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to OUTPUT_DIR {folder.parent}: {error.strerror or error}; choose a "
            "folder that all machines of the cluster see"
        ) from None


def _found_anywhere(name: str) -> str:
    """Return a config file with its whole path; the name of a recipe as it is."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.is_file() else name


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number, at least 1")
    return int(text)
