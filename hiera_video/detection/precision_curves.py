"""The result of `frame_map` as a picture (precision over recall) and as a table of the actions."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hiera_video.detection.average_precision import Curve, FrameMap
from hiera_video.detection.files import LabelMap
from hiera_video.files import AnyPath, atomic_write
from hiera_video.spreadsheet import csv_file


class ClassRow(NamedTuple):
    """What is known of one action."""

    id: int
    action: str
    truths: int
    """Annotated boxes."""
    detections: int
    right: int
    average_precision: float | None
    """0 to 1; None where nothing is annotated."""


def class_rows(found: FrameMap, labels: LabelMap) -> list[ClassRow]:
    """Return a row for each action that counts, in the order of the label map."""
    rows = []
    for number, name in zip(labels.ids, labels.names, strict=True):
        value, hits = found.per_class[number], found.hits[number]
        known = None if math.isnan(value) else value
        rows.append(ClassRow(number, name, found.truths[number], len(hits), int(hits.sum()), known))
    return rows


def write_per_class(path: AnyPath, found: FrameMap, labels: LabelMap) -> None:
    """Write the table as CSV. Raises RunFailed, which names `path`, if that cannot be done."""
    with csv_file(path, ClassRow._fields) as add:
        for row in class_rows(found, labels):
            value = row.average_precision
            add([*row[:-1], "" if value is None else round(value, 6)])


# ---- the picture --------------------------------------------------------------------------------

_GRID = np.linspace(0, 1, 201)
_MOST_NAMES = 100
"""Bars of more actions would be thinner than their names."""


def draw_curves(found: FrameMap, labels: LabelMap, path: AnyPath) -> None:
    """Draw a PNG: precision over recall of each action and on average; average precisions as bars.

    Precision is the highest at this recall or more, whose area average precision is. Raises
    RunFailed, which names `path`, if it cannot be written.
    """
    # Not through pyplot, which keeps global state and may want a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in class_rows(found, labels) if row.average_precision is not None]
    rows.sort(key=lambda row: row.average_precision or 0)
    height = min(max(4.5, 1.5 + 0.16 * min(len(rows), _MOST_NAMES)), 18)
    figure = Figure(figsize=(13, height), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    curves = [_highest(found.curve(row.id)) for row in rows]
    for curve in curves:
        left.plot(_GRID, curve, color="tab:blue", alpha=0.35, linewidth=0.8)
    if curves:
        mean = np.mean(curves, axis=0)
        left.plot(_GRID, mean, color="black", linewidth=2, label="mean of the actions")
        left.legend(loc="upper right")
    left.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    left.set_title(f"frame mAP {100 * found.mean:.2f} %" if rows else "nothing is annotated")
    left.grid(alpha=0.3)
    right.barh(range(len(rows)), [row.average_precision for row in rows], color="tab:blue")
    # Names are shown as they are: two $ make no formula, invalid UTF-8 is escaped.
    names = [row.action.encode("utf-8", "backslashreplace").decode()[:50] for row in rows]
    if len(rows) <= _MOST_NAMES:
        right.set_yticks(range(len(rows)), names, fontsize=7, parse_math=False)
    else:
        right.set_yticks([])
    right.set(xlim=(0, 1), ylim=(-0.6, max(len(rows), 1) - 0.4), xlabel="average precision")
    right.grid(alpha=0.3, axis="x")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=100)


def _highest(curve: Curve) -> NDArray[np.float64]:
    """The highest precision at each recall of _GRID or more."""
    if not len(curve.recall):
        return np.zeros(len(_GRID))
    highest = np.maximum.accumulate(curve.precision[::-1])[::-1]
    place = np.searchsorted(curve.recall, _GRID - 1e-12)
    return np.append(highest, 0)[place]
