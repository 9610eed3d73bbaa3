"""Scores over time as a chart: rows of bars, one a label, and a slot for each window.

Everything is a number or a text for the template. Widths are in percent of the chart, so that it
is as wide as the page; a row's path has its own coordinates, WIDTH x HEIGHT, and is stretched.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from hiera_video.prediction import Window

WIDTH, HEIGHT = 10_000, 100

MOST_LABELS = 5
"""Rows of the chart: the labels with the highest scores over all windows."""

LEAST = 0.01
"""Labels that never reach this score have no row, but for the first."""

_MOST_TICKS = 8
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)
"""Seconds between two marks of the time axis."""


class Row(NamedTuple):
    """One label over time."""

    label: str
    highest: float
    path: str
    """Bars, as the `d` of an SVG path; none where the label was not among a window's first."""


class Slot(NamedTuple):
    """One window: what is pointed at and clicked."""

    start: float
    """Seconds."""
    left: str
    width: str
    """Both in percent of the chart."""
    words: str
    """Its times, labels and scores."""


class Tick(NamedTuple):
    """A mark of the time axis."""

    left: str
    words: str


@dataclass(frozen=True)
class Chart:
    """What the template draws."""

    rows: Sequence[Row]
    slots: Sequence[Slot]
    ticks: Sequence[Tick]
    end: float
    """Seconds at the right edge."""


def chart_of(windows: Sequence[Window], duration: float) -> Chart:
    """Return the chart of a timeline, at least one window."""
    end = max(duration, windows[-1].end)
    scores: dict[str, dict[int, float]] = defaultdict(dict)
    for number, window in enumerate(windows):
        for label in window.labels:
            scores[label.label][number] = label.score
    first = sorted(scores, key=lambda name: -sum(scores[name].values()))[:MOST_LABELS]
    rows = [_row(name, scores[name], windows, end) for name in first]
    return Chart(
        rows=[row for row in rows if row is rows[0] or row.highest >= LEAST],
        slots=[_slot(window, end) for window in windows],
        ticks=list(_ticks(end)),
        end=end,
    )


def clock(seconds: float, digits: int = 1) -> str:
    """A time to be read by people: 0:04.5, 12:00.0, 1:02:03.0."""
    rounded = round(seconds, digits)
    minutes, rest = divmod(rounded, 60)
    hours, minutes = divmod(int(minutes), 60)
    last = f"{rest:0{3 + digits if digits else 2}.{digits}f}"
    return f"{hours}:{minutes:02d}:{last}" if hours else f"{minutes}:{last}"


def _row(name: str, scores: dict[int, float], windows: Sequence[Window], end: float) -> Row:
    bars = []
    for number, score in scores.items():
        left, right = (round(WIDTH * t / end) for t in (windows[number].start, windows[number].end))
        top = HEIGHT * (1 - min(max(score, 0.0), 1.0))
        bars.append(f"M{left} {HEIGHT}V{top:.1f}H{right}V{HEIGHT}Z")
    return Row(name, max(scores.values()), "".join(bars))


def _slot(window: Window, end: float) -> Slot:
    labels = ", ".join(f"{label.label} {label.score:.1%}" for label in window.labels[:MOST_LABELS])
    return Slot(
        start=window.start,
        left=_percent(window.start / end),
        width=_percent((window.end - window.start) / end),
        words=f"{clock(window.start)} to {clock(window.end)}: {labels}",
    )


def _ticks(end: float) -> Iterator[Tick]:
    step = next((step for step in _STEPS if end / step <= _MOST_TICKS), end / _MOST_TICKS)
    for number in range(int(end / step) + 1):
        at = number * step
        if at <= 0.95 * end or not number:  # its words would leave the chart
            yield Tick(_percent(at / end), clock(at, 0 if step >= 1 else 1))


def _percent(share: float) -> str:
    return f"{100 * share:.3f}%"
