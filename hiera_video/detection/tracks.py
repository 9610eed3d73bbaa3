"""Who is who from key frame to key frame: tracks, by how much boxes overlap.

    tracks = Tracks(step=1.0)
    for second, corners in key_frames:          # ascending, one after the other
        people = tracks.add(second, corners)    # a number for each box, from 1

A box goes to the track whose box it overlaps most, where that track was seen last, or where it
would be now had it gone on as before: two people who pass each other keep their numbers. The pair
that overlaps most is taken first. A track that misses one key frame is still found; one that misses
two has ended.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Corners = NDArray[np.float64]
"""[N, 4]: x1, y1, x2, y2 of boxes."""

LEAST_OVERLAP = 0.1
"""Boxes of one person overlap at least so much (IoU). Who walks across the picture is most of a
width away after a second, so it is far below the 0.5 of the same box in one picture."""

MISSED = 1
"""Key frames that a track may miss."""


@dataclass
class _Track:
    person: int
    time: float
    box: Corners
    speed: Corners
    """Corners a second; 0 until it was seen twice."""


class Tracks:
    """Numbers for the boxes of one video, key frame by key frame.

    Args:
        step: seconds between key frames.
    """

    def __init__(self, step: float) -> None:
        self._longest = (MISSED + 1.5) * step
        self._open: list[_Track] = []
        self.count = 0
        """People so far."""

    def add(self, time: float, corners: Corners) -> list[int]:
        """Return the number of each box of the next key frame; times must ascend."""
        self._open = [track for track in self._open if time - track.time < self._longest]
        overlaps = self._overlaps(time, corners)
        people = [0] * len(corners)
        for row, column in _best_pairs(overlaps):
            track = self._open[row]
            track.speed = (corners[column] - track.box) / (time - track.time)
            track.time, track.box = time, corners[column]
            people[column] = track.person
        for column, person in enumerate(people):
            if not person:
                self.count += 1
                people[column] = self.count
                still = np.zeros(4)
                self._open.append(_Track(self.count, time, corners[column], still))
        return people

    def _overlaps(self, time: float, corners: Corners) -> NDArray[np.float64]:
        """How well each open track (row) fits each box (column)."""
        if not self._open or not len(corners):
            return np.zeros((len(self._open), len(corners)))
        last = np.stack([track.box for track in self._open])
        moved = np.stack([track.box + track.speed * (time - track.time) for track in self._open])
        return np.maximum(overlap(last, corners), overlap(moved, corners))


def overlap(first: Corners, second: Corners) -> NDArray[np.float64]:
    """Intersection over union of each of N boxes with each of M: [N, M]."""
    lower = np.maximum(first[:, None, :2], second[None, :, :2])
    upper = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (upper - lower).clip(min=0).prod(axis=2)
    union = _area(first)[:, None] + _area(second)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _area(corners: Corners) -> NDArray[np.float64]:
    area: NDArray[np.float64] = (corners[:, 2:] - corners[:, :2]).clip(min=0).prod(axis=1)
    return area


def _best_pairs(overlaps: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Rows and columns that belong together, each at most once, the best first."""
    left = overlaps.copy()
    pairs = []
    while left.size and left.max() >= LEAST_OVERLAP:
        row, column = np.unravel_index(int(left.argmax()), left.shape)
        pairs.append((int(row), int(column)))
        left[row, :] = left[:, column] = 0
    return pairs
