"""From results to the table: means, intervals, Markdown and JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evidence_rows.action_sets import ActionSet
from evidence_rows.controls import CONTROLS, PLAIN
from evidence_rows.results import Result
from hiera_video import files
from hiera_video.runtimes.measured import cpu_name, installed_version

RESAMPLES = 2000

HOW = (
    f"top-1 is the mean over seeds and parts; the interval is 95 % of {RESAMPLES} bootstrap means, "
    "each over seeds and, in every part, over test videos drawn with replacement"
)

HOW_AGAINST = (
    "a difference is in points, with the interval of the difference where both rows are drawn with "
    "the same seeds and videos; an interval without 0 tells the two apart"
)


@dataclass(frozen=True)
class Difference:
    """How much better a row is than another one, in points."""

    points: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """One line of a table, in percent."""

    row: str
    top1: float
    low: float
    high: float
    by_part: list[float]
    seeds: int
    controls: dict[str, float]
    """Accuracy on changed clips."""
    against: dict[str, Difference]
    """Another row -> this row minus that one; without rows that lack some seed or part."""


@dataclass(frozen=True)
class Table:
    """The lines of one set."""

    title: str
    parts: list[str]
    lines: list[Line]
    missing: list[str]
    """Sentences about rows that are not here."""


def table_of(
    action_set: ActionSet,
    results: Sequence[Result],
    missing: Sequence[str],
    against: Sequence[str] = (),
) -> Table:
    """The table of a set, with its rows in the order of their first results.

    against: the rows that all others are compared with.
    """
    parts = [part.name for part in action_set.parts if any(r.part == part.name for r in results)]
    videos = sum(len(part.test) for part in action_set.parts if part.name in parts)
    title = (
        f"{action_set.name}: {len(action_set.classes)} classes, chance {action_set.chance:.1f} %, "
        f"{videos} test videos in {len(parts)} part{'s' * (len(parts) != 1)}"
    )
    rows = list(dict.fromkeys(result.row for result in results))
    of_row = {row: [result for result in results if result.row == row] for row in rows}
    others = {row: of_row[row] for row in against if row in of_row}
    lines = [line_of(row, of_row[row], others) for row in rows]
    return Table(title, parts, lines, list(missing))


def line_of(row: str, results: Sequence[Result], others: Mapping[str, Sequence[Result]]) -> Line:
    """One line, from the results of a row on all parts and seeds, and those of rows to compare."""
    by_part = _by_part(results)
    means = [float(np.mean([r.accuracy() for r in some])) for some in by_part.values()]
    low, high = interval([_right(some) for some in by_part.values()])
    controls = {
        control: float(
            np.mean([np.mean([r.accuracy(control) for r in some]) for some in by_part.values()])
        )
        for control in CONTROLS
        if all(control in r.predicted for r in results)
    }
    seeds = len({result.seed for result in results})
    against = {
        other: difference(results, its) for other, its in others.items() if comparable(results, its)
    }
    against.pop(row, None)
    return Line(row, float(np.mean(means)), low, high, means, seeds, controls, against)


def comparable(one: Sequence[Result], other: Sequence[Result]) -> bool:
    """Whether two rows have answered the same videos in the same parts with the same seeds."""
    first, second = ({(r.part, r.seed): r.videos for r in results} for results in (one, other))
    return first == second


def difference(one: Sequence[Result], other: Sequence[Result]) -> Difference:
    """The accuracy of a row minus that of a comparable one, see `HOW_AGAINST`."""
    first, second = _by_part(one), _by_part(other)
    gains = [_right(first[part]) - _right(second[part]) for part in first]
    low, high = interval(gains)
    return Difference(100 * float(np.mean([gain.mean() for gain in gains])), low, high)


def _by_part(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Part -> its results, in the order of their seeds."""
    found: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: result.seed):
        found.setdefault(result.part, []).append(result)
    return found


def _right(results: Sequence[Result]) -> np.ndarray:
    """Int [seeds, videos]: 1 for what was right in one part."""
    return np.array([np.equal(r.predicted[PLAIN], r.labels).astype(int) for r in results])


def interval(right: Sequence[np.ndarray]) -> tuple[float, float]:
    """The 95 % interval of the mean over parts, in percent; see `HOW`.

    right: [seeds, videos] of each part, 1 for right; of a difference from -1 to 1.
    """
    rng = np.random.default_rng(0)
    means = np.zeros(RESAMPLES)
    for part in right:
        seeds, videos = part.shape
        for i in range(RESAMPLES):
            drawn = rng.integers(videos, size=videos)
            some = rng.integers(seeds, size=seeds)
            means[i] += part[some][:, drawn].mean()
    low, high = np.quantile(100 * means / len(right), (0.025, 0.975))
    return float(low), float(high)


# ---- text ---------------------------------------------------------------------------------------


def cells_of(table: Table) -> list[list[str]]:
    """Titles and lines as text."""
    several = len(table.parts) > 1
    controls = [c for c in CONTROLS if any(c in line.controls for line in table.lines)]
    others = list(dict.fromkeys(other for line in table.lines for other in line.against))
    minus = [f"minus {other}" for other in others]
    title = ["row", "top-1", "95 %", *([" / ".join(table.parts)] if several else [])]
    title += [*minus, *controls]
    cells = [title]
    for line in table.lines:
        parts = [" / ".join(f"{value:.0f}" for value in line.by_part)] if several else []
        shown = [f"{line.controls[c]:.1f}" if c in line.controls else "" for c in controls]
        interval_text = f"{line.low:.0f}-{line.high:.0f}"
        compared = [_difference_text(line.against.get(other)) for other in others]
        cells.append([line.row, f"{line.top1:.1f}", interval_text, *parts, *compared, *shown])
    return cells


def _difference_text(found: Difference | None) -> str:
    return "" if found is None else f"{found.points:+.1f} ({found.low:+.1f} to {found.high:+.1f})"


def how(tables: Sequence[Table]) -> str:
    """What the numbers of the tables are."""
    compared = any(line.against for table in tables for line in table.lines)
    return f"{HOW}; {HOW_AGAINST}" if compared else HOW


def plain_text(table: Table) -> str:
    """The table for the terminal."""
    cells = cells_of(table)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    return "\n".join([table.title, *(line.rstrip() for line in lines), *table.missing])


def write_markdown(path: Path, tables: Sequence[Table], command: str) -> None:
    """All tables for the docs, with the conditions of their numbers."""
    facts = ", ".join(f"{key} {value}" for key, value in conditions().items() if value is not None)
    text = how(tables)
    parts = [f"{facts}\n\n```\n{command}\n```\n\n{text[0].upper()}{text[1:]}.\n"]
    for table in tables:
        head, *rows = [f"| {' | '.join(line)} |" for line in cells_of(table)]
        rule = "|---" * len(cells_of(table)[0]) + "|"
        parts.append("\n".join([f"{table.title}\n", head, rule, *rows]) + "\n")
        parts += [f"{sentence}\n" for sentence in table.missing]
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, "\n".join(parts))


def conditions() -> dict[str, Any]:
    """Date, machine and versions."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        **{name: installed_version(name) for name in ("scikit-learn", "opencv-python-headless")},
    }


def write_json(path: Path, tables: Sequence[Table], results: Sequence[Result], **more: Any) -> None:
    """Everything: tables, and the answer for each video, from which confusions can be read."""
    content = {
        **conditions(),
        **more,
        "how": how(tables),
        "tables": [asdict(table) for table in tables],
        "results": [asdict(result) for result in results],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(content, indent=1, default=str) + "\n")
