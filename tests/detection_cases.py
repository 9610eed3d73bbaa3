"""Random small sets of annotated boxes and detections, in AVA's files."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

SECONDS = 5
ACTIONS = np.arange(1, 15)


class Case(NamedTuple):
    """Paths of the files of one case."""

    truth: Path
    detections: Path
    labels: Path
    excluded: Path


def _box(rng, grid):
    """Corners on a grid: coarse ones give equal overlaps and boxes without area."""
    x, y = np.sort(rng.integers(0, grid + 1, (2, 2))) / grid
    return [x[0], y[0], x[1], y[1]]


def _near(rng, box):
    moved = np.clip(np.array(box) + rng.normal(0, 0.08, 4), 0, 1)
    return [*np.minimum(moved[:2], moved[2:]), *np.maximum(moved[:2], moved[2:])]


def _line(place, box, *rest):
    return ",".join([place, *(f"{corner:.3f}" for corner in box), *map(str, rest)]) + "\n"


def write_case(folder: Path, seed: int) -> Case:
    """Write a case with ties of scores and overlaps, lines that are there twice, excluded seconds,
    seconds without annotated boxes or detections, actions that do not count or have no truth."""
    rng = np.random.default_rng(seed)
    videos, grid, digits = rng.integers(1, 4), rng.choice([4, 10, 1000]), rng.choice([0, 1, 2, 6])
    ids = rng.choice(ACTIONS, rng.integers(1, 7), replace=False)

    def place():
        return f"v{rng.integers(videos)},{902 + rng.integers(SECONDS):04d}"

    annotated = [(place(), _box(rng, grid)) for _ in range(rng.integers(0, 40))]
    with_person = rng.random() < 0.5
    truth = [
        _line(where, box, action, *([rng.integers(0, 9)] if with_person else []))
        for where, box in annotated
        for action in rng.choice(ACTIONS, rng.integers(1, 4))
    ]
    found = []
    for _ in range(rng.integers(0, 80)):
        where, box = place(), _box(rng, grid)
        if annotated and rng.random() < 0.7:
            where, box = annotated[rng.integers(len(annotated))]
            box = _near(rng, box) if rng.random() < 0.5 else box
        for action in ids if rng.random() < 0.5 else rng.choice(ACTIONS, 2):
            for _ in range(1 + (rng.random() < 0.1)):
                found.append(_line(where, box, action, round(rng.random(), digits)))
    files = Case(*(folder / name for name in ("gt.csv", "det.csv", "list.pbtxt", "ex.csv")))
    files.truth.write_text("".join(truth))
    files.detections.write_text("".join(found))
    files.excluded.write_text("".join(f"{place()}\n" for _ in range(rng.integers(0, 4))))
    items = (f'item {{\n  name: "action {number}"\n  id: {number}\n}}\n' for number in ids)
    files.labels.write_text("".join(items))
    return files
