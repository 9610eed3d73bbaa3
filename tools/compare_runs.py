"""Compare the test results of runs.

    python tools/compare_runs.py runs/a runs/b
    python tools/compare_runs.py runs/a runs/b --names "with pretraining" without

Each run is an OUTPUT_DIR that holds the results.json of a test. Prints a table, and one line with
the results, the training steps and the videos; where those differ, it says so. Exit codes: 0 done;
2 wrong use.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a checkout, too

from hiera_video import cli
from hiera_video.engine.records import read_metrics
from hiera_video.errors import UserError

METRICS = {"top1_acc": "top-1", "map": "mAP"}
"""What is compared, by its key in results.json -> name; the first that a run has."""


@dataclass(frozen=True)
class Run:
    """The test result of a run."""

    name: str
    metric: str
    """Key of METRICS."""
    value: float
    """Percent, over the videos that could be decoded."""
    videos: tuple[str, ...]
    """Paths of the videos of the test, those that could not be decoded too."""
    failed: int
    views: str
    steps: int | None
    """Steps of the training; None where the folder has no record of one."""


def read_run(folder: Path, name: str) -> Run:
    """Read the result of a run's folder; UserError where there is none, or it cannot be read."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name the OUTPUT_DIR of a run that was tested")
    results = _read_results(folder)
    metric = next((key for key in METRICS if isinstance(results.get(key), int | float)), None)
    if metric is None:
        raise UserError(f"{folder / 'results.json'} has none of {', '.join(METRICS)}")
    steps = [r["step"] for r in read_metrics(folder) if str(r.get("_type")).startswith("train_")]
    views = results.get("views", {})
    return Run(
        name=name,
        metric=metric,
        value=results[metric],
        videos=_read_videos(folder / "predictions.csv"),
        failed=results.get("n_failed", 0),
        views=" x ".join(str(views.get(key, "?")) for key in ("temporal", "spatial")),
        steps=max(steps, default=None),
    )


def _read_results(folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(
            f"{folder} has no test result (results.json): test the run first, with "
            "tools/run_net.py --cfg ... TRAIN.ENABLE False TEST.ENABLE True"
        )
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not isinstance(results, dict):
        raise UserError(f"cannot read {path}: it is not the results.json of a test")
    return results


def _read_videos(path: Path) -> tuple[str, ...]:
    """Read the videos of predictions.csv; their number and names tell whether tests are alike."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return tuple(row["video"] for row in csv.DictReader(file))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read {path}, which belongs to the result: {error}") from None


# ---- in words -----------------------------------------------------------------------------------


def table(runs: Sequence[Run]) -> list[str]:
    """Draw the table, a line per run."""
    rows = [["run", METRICS[runs[0].metric], "videos", "views", "training steps"]]
    for run in runs:
        videos = str(len(run.videos)) + (f", {run.failed} not decoded" if run.failed else "")
        steps = "?" if run.steps is None else str(run.steps)
        rows.append([run.name, f"{run.value:.2f} %", videos, run.views, steps])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def sentence(runs: Sequence[Run]) -> str:
    """Say in one line what the runs reach, and whether steps and videos are the same."""
    reached = ", ".join(f"{run.name} {run.value:.1f} %" for run in runs)
    return f"{reached}: {_steps(runs)}, {_videos(runs)}"


def _steps(runs: Sequence[Run]) -> str:
    first = runs[0].steps
    if first is not None and _alike(runs, lambda run: run.steps):
        return f"{_same(runs)}{first} training steps"
    return f"training steps {', '.join('?' if r.steps is None else str(r.steps) for r in runs)}"


def _videos(runs: Sequence[Run]) -> str:
    if _alike(runs, lambda run: (sorted(run.videos), run.failed)):
        return f"{_same(runs)}{len(runs[0].videos)} test videos"
    return "tested on different videos: not to be compared"


def _same(runs: Sequence[Run]) -> str:
    return "same " if len(runs) > 1 else ""


def _alike(runs: Sequence[Run], of: Callable[[Run], Any]) -> bool:
    return all(of(run) == of(runs[0]) for run in runs)


# ---- the command line ---------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    args = arguments().parse_args(argv)
    names = args.names or [str(folder) for folder in args.runs]
    if len(names) != len(args.runs):
        raise UserError(f"--names has {len(names)} names for {len(args.runs)} runs; give one each")
    runs = [read_run(folder, name) for folder, name in zip(args.runs, names, strict=True)]
    if not _alike(runs, lambda run: run.metric):
        raise UserError(
            "these runs have different metrics: "
            + ", ".join(f"{run.name} {METRICS[run.metric]}" for run in runs)
        )
    for line in (*table(runs), "", sentence(runs)):
        print(cli.printable(line))
    return 0


def arguments() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a tested run")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="names of the runs, in order")
    return parser


if __name__ == "__main__":
    cli.run(main)
