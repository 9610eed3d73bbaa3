"""The records of a run as curves: lines of an SVG, and the numbers under them.

A panel has its own coordinates, WIDTH x HEIGHT, and is stretched over the page; ticks are in
percent. Records are those of metrics.jsonl.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

WIDTH, HEIGHT = 1000, 200

MOST_POINTS = 300
"""Of a line: more records are averaged."""

_NOT_DRAWN = {
    *("_type", "epoch", "iter", "step", "eta", "clips", "failed", "gpu_mem", "RAM"),
    *("dt", "dt_data", "dt_net", "min_top1_err", "n_videos", "n_failed", "n_boxes", "n_classes"),
}

_TITLES = {
    "loss": "Training loss",
    "lr": "Learning rate",
    "top1_err": "Top-1 error, %",
    "top5_err": "Top-5 error, %",
    "mean_class_err": "Mean error per class, %",
    "map": "mAP, %",
    "boxes": "Boxes of a clip",
    "grad_norm": "Norm of the gradient, before clipping",
    "clips_per_s": "Clips per second",
}
"""Key of a record -> title. These come first, in this order, then others under their own name."""


class Point(NamedTuple):
    """A value at a step."""

    step: float
    value: float


class Tick(NamedTuple):
    """A mark of an axis."""

    place: str
    """In percent from the left, or from the top."""
    words: str


@dataclass(frozen=True)
class Line:
    """One curve."""

    name: str
    points: Sequence[Point]
    path: str
    """The `d` of an SVG path."""


@dataclass(frozen=True)
class Panel:
    """Curves that share their axes."""

    title: str
    lines: Sequence[Line]
    across: Sequence[Tick]
    up: Sequence[Tick]
    first: float
    """Step at the left edge."""
    last: float


def panels_of(records: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Return what can be drawn of a run: a panel for each number that its records hold."""
    steps = [r for r in records if r.get("_type") == "train_iter_"]
    checks = [r for r in records if r.get("_type") == "val_epoch"]
    keys = [key for r in (*steps[:1], *steps[-1:], *checks[:1]) for key in r]
    drawn = sorted(set(keys) - _NOT_DRAWN, key=lambda key: (_place(key), key))
    found = []
    for key in drawn:
        named = {"training": _points(steps, key), "validation": _points(checks, key)}
        lines = {name: points for name, points in named.items() if points}
        if lines:
            found.append(_panel(_TITLES.get(key, key), lines))
    return found


def _place(key: str) -> int:
    return list(_TITLES).index(key) if key in _TITLES else len(_TITLES)


def _points(records: Iterable[Mapping[str, Any]], key: str) -> list[Point]:
    """The finite values of a key; neighbours are averaged where there are more than can be seen."""
    found = [
        Point(r["step"], float(r[key]))
        for r in records
        if isinstance(r.get(key), int | float) and math.isfinite(r[key])
    ]
    size = -(-len(found) // MOST_POINTS) or 1
    parts = [found[i : i + size] for i in range(0, len(found), size)]
    return [Point(part[-1].step, sum(p.value for p in part) / len(part)) for part in parts]


def _panel(title: str, named: Mapping[str, Sequence[Point]]) -> Panel:
    every = [point for points in named.values() for point in points]
    first, last = _span([point.step for point in every])
    low, high = _span([point.value for point in every])
    up, low, high = _ticks(low, high)
    across = [tick for tick in _ticks(first, last)[0] if first <= tick <= last]
    lines = []
    for name, points in named.items():
        places = [
            f"{WIDTH * (p.step - first) / (last - first):.1f} "
            f"{HEIGHT * (high - p.value) / (high - low):.1f}"
            for p in points
        ]
        if len(places) == 1:  # a dot: a short line with round ends
            places *= 2
        lines.append(Line(name, points, "M" + "L".join(places)))
    return Panel(
        title=title,
        lines=lines,
        across=[Tick(_percent((t - first) / (last - first)), f"{t:g}") for t in across],
        up=[Tick(_percent((high - t) / (high - low)), f"{t:.4g}") for t in up],
        first=first,
        last=last,
    )


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The least and the greatest, or a little around a single value."""
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) / 2 or 1.0
        return low - margin, high + margin
    return low, high


def _ticks(low: float, high: float) -> tuple[list[float], float, float]:
    """Round numbers over a span, and the span from the first to the last of them."""
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10])
    found = [float(tick) for tick in locator.tick_values(low, high)]
    return found, found[0], found[-1]


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
