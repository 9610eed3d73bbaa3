"""What does pretraining buy on small sets of actions? One table, one command.

    python tools/evidence.py --sets dark_actions scfd --seeds 3 --data ../shared/data
    python tools/evidence.py --rows hand-made frozen --encoders camera_motion runs/mine/last.pyth
    python tools/evidence.py --rows 'frozen *: SVM' --json evidence.json --markdown evidence.md
    python tools/evidence.py --rows fine-tuning --encoders runs/mine/last.pyth --against scratch
    python tools/evidence.py --quick

Rows: hand-made features (one frame, mean of 8 frames, motion energy, optical flow) with a support
vector machine; the stages of frozen encoders, read out by a support vector machine, a linear probe
and nearest neighbours; and, with the real trainer, the recipe of --cfg (`recipe`, and from each
other encoder), its probe alone (`probe`), and fine-tuning without a probe from the same weights and
from random ones (`fine-tuning without probe`, `scratch`): what pretraining is worth at equal steps.
All settings of classifiers are chosen by cross-validation inside the training videos, with whole
scenes or sources held out; of a run the last epoch is tested. Controls change the test clips: one
frame repeated, frames shuffled or reversed, other light. --against ROW compares all rows with one.

What is done is kept in --out: after an interruption the same command goes on, and a further row or
set adds only its own work. Several calls with the same --out share the work: one of them does a
job, and each prints the whole table at its end (OMP_NUM_THREADS=1 gives each a core). A row whose
libraries are not installed is left out, with the command that installs them.

Exit codes: 0 done; 1 none of the sets is here, or a row failed; 2 wrong use, or weights that do not
fit the model of --cfg; 130 or 143 stopped by Ctrl-C or SIGTERM, after the table of what is done.
"""

from __future__ import annotations

import argparse
import fnmatch
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a checkout, too

from hiera_video import cli
from hiera_video.errors import UserError

if TYPE_CHECKING:
    from evidence_rows.action_sets import ActionSet
    from evidence_rows.progress import Progress
    from evidence_rows.rows import Row
    from evidence_rows.tables import Table
    from evidence_rows.work import Work

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "small" / "finetune_folder.yaml"
KINDS = ("hand-made", "frozen", "fine-tuning")


def main(argv: Sequence[str]) -> int:
    """Make the table; returns the exit code."""
    args = arguments().parse_args(argv)
    # Imported here: torch takes seconds to import, and --help and typing errors need not wait.
    from evidence_rows.progress import Progress
    from evidence_rows.results import ResultFiles
    from evidence_rows.work import Work

    progress = Progress()
    rows, left_out = runnable_rows(args, chosen_rows(args, progress))
    sets = read_sets(args)
    if not sets:
        print("error: none of the sets is here", file=sys.stderr)
        return cli.FAILED
    kept = ResultFiles(args.out / "results")
    work = Work(rows, sets, seeds=args.seeds, kept=kept, missing=left_out)
    before = signal.signal(signal.SIGTERM, leave)
    try:
        return work.run(progress)
    finally:
        # however it ends: what is done is worth reading
        signal.signal(signal.SIGTERM, before)
        if work.results:
            report(args, work)


def leave(number: int, _: object) -> NoReturn:
    """At SIGTERM: leave as at Ctrl-C, so that a trainer that was started ends, too."""
    sys.exit(128 + number)


def arguments() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="evidence.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--sets", nargs="+", default=["dark_actions", "scfd"], metavar="SET")
    add("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the sets")
    add("--seeds", type=positive, default=3, metavar="N", help="seeds 0 to N - 1 (default: 3)")
    add(
        "--rows",
        nargs="+",
        default=list(KINDS),
        metavar="ROW",
        help=f"names, patterns in quotes, or kinds: {', '.join(KINDS)} (default: all)",
    )
    add(
        "--against",
        nargs="+",
        default=[],
        metavar="ROW",
        help="rows by name: also print by how many points every other row is better, and the 95 %% "
        "interval of the difference",
    )
    add(
        "--encoders",
        nargs="+",
        metavar="WEIGHTS",
        help="names or files of weights; random: fresh ones of the first other encoder's model "
        "(default: those that come with the package, and random)",
    )
    add(
        "--views",
        default="4x1",
        metavar="KxS",
        help="windows x crops that a frozen encoder sees of a video (default: 4x1)",
    )
    add("--cfg", type=Path, default=CONFIG, metavar="FILE", help="config of the fine-tuning rows")
    add(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY VALUE",
        help="settings of every fine-tuning row, over the config's",
    )
    add("--out", type=Path, default=Path("runs/evidence"), help="what is done is kept there")
    add("--json", type=Path, metavar="FILE", help="write tables and all answers to FILE")
    add("--markdown", type=Path, metavar="FILE", help="write the tables for the docs to FILE")
    add(
        "--quick",
        action="store_true",
        help="one seed, one part of each set, one view, one epoch: to see that all of it runs",
    )
    return parser


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


# ---- what to do ---------------------------------------------------------------------------------


def read_sets(args: argparse.Namespace) -> list[ActionSet]:
    """Read the sets of --sets; one that is not here is left out with a message."""
    from evidence_rows.action_sets import MissingSet, read_set, shortened

    found = []
    for name in dict.fromkeys(args.sets):
        try:
            read = read_set(name, args.data)
        except MissingSet as error:
            print(f"note: {error}", file=sys.stderr)
            continue
        found.append(shortened(read) if args.quick else read)
    return found


def chosen_rows(args: argparse.Namespace, progress: Progress) -> list[Row]:
    """The rows of --rows, in the order of the table. UserError for a name that fits none."""
    from evidence_rows.encoders import RANDOM
    from evidence_rows.feature_files import FeatureStore
    from evidence_rows.finetuning import Trainer, finetuning_rows
    from evidence_rows.rows import frozen_rows, hand_made_rows

    from hiera_video.data.views import parse_views
    from hiera_video.models.weights.resolve import bundled

    overrides = list(args.set)
    if args.quick:
        args.seeds, args.views = 1, "1x1"
        overrides += ["SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0"]
    encoders = list(dict.fromkeys(args.encoders or [*bundled(), RANDOM]))
    store = FeatureStore(args.out / "features", progress)
    trainer = Trainer(args.cfg, tuple(overrides), args.out, progress)
    rows = [
        *hand_made_rows(store),
        *frozen_rows(store, encoders, parse_views(args.views)),
        *finetuning_rows(trainer, encoders),
    ]
    for wanted in args.rows:
        if not any(fits(row, wanted) for row in rows):
            names = ", ".join(row.name for row in rows)
            raise UserError(f"--rows {wanted}: no such row; there are {names}")
    chosen = [row for row in rows if any(fits(row, wanted) for wanted in args.rows)]
    for other in args.against:
        if other not in [row.name for row in chosen]:
            names = ", ".join(row.name for row in chosen)
            raise UserError(f"--against {other}: not a row of this table; there are {names}")
    return chosen


def runnable_rows(args: argparse.Namespace, rows: list[Row]) -> tuple[list[Row], list[str]]:
    """The rows that can run, and sentences about those that are left out: weights that come with
    the package and do not fit the config. UserError for any other row: nothing is begun."""
    from evidence_rows.finetuning import FROM

    runnable, left_out = [], []
    for row in rows:
        try:
            row.check()
        except UserError as error:
            if args.encoders or not row.name.startswith(FROM) or row.name in args.rows:
                raise UserError(
                    f"the row {row.name!r} cannot run with {args.cfg}: {error}\nName a config of "
                    "the same model (--cfg, --set MODEL.KWARGS ...), or other rows (--rows)"
                ) from None
            left_out.append(f"{row.name} is left out: these weights do not fit {args.cfg.name}")
            print(f"note: {left_out[-1]}", file=sys.stderr)
        else:
            runnable.append(row)
    return runnable, left_out


def fits(row: Row, wanted: str) -> bool:
    """Whether a word of --rows means this row."""
    return wanted in (row.kind, row.name) or fnmatch.fnmatchcase(row.name, wanted)


# ---- what comes out -----------------------------------------------------------------------------


def report(args: argparse.Namespace, work: Work) -> None:
    """Print the tables, and write the files of --json and --markdown."""
    from evidence_rows import tables

    made: list[Table] = []
    for action_set in work.sets:
        results = [r for r in work.results if r.action_set == action_set.name]
        if results:
            made.append(tables.table_of(action_set, results, work.missing, args.against))
            print(tables.plain_text(made[-1]), end="\n\n")
    print(tables.how(made))
    command = shlex.join(["python", "tools/evidence.py", *sys.argv[1:]])
    if args.json:
        tables.write_json(args.json, made, work.results, command=command)
    if args.markdown:
        tables.write_markdown(args.markdown, made, command)


if __name__ == "__main__":
    cli.run(main)
