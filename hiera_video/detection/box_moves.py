"""Boxes that move with their pictures: crop, mirror, jitter, clip. Corners are float64 [N, 4].

A box is (x1, y1, x2, y2) as shares of the picture's width and height, so that scaling a picture
leaves its boxes as they are. Nothing here clips but `clipped`: what reaches outside of a crop is
below 0 or above 1 until then.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Corners = NDArray[np.float64]
"""[N, 4]: x1, y1, x2, y2."""


class Window(NamedTuple):
    """The part of a picture that a crop shows, in shares of the picture, and whether it is mirrored
    afterwards."""

    left: float
    top: float
    width: float
    height: float
    flip: bool = False

    @classmethod
    def of_pixels(
        cls, place: tuple[int, int, int, int], size: tuple[int, int], *, flip: bool = False
    ) -> Window:
        """The window of a crop (top, left, height, width) of pictures of `size` (height, width)."""
        (top, left, height, width), (rows, columns) = place, size
        return cls(left / columns, top / rows, width / columns, height / rows, flip)


def seen_through(corners: Corners, window: Window) -> Corners:
    """The boxes of a picture in shares of its crop, not clipped."""
    left, top, width, height, flip = window
    moved = (corners - [left, top, left, top]) / [width, height, width, height]
    return mirrored(moved) if flip else moved


def mirrored(corners: Corners) -> Corners:
    """The boxes of a picture after it was mirrored, left for right."""
    x1, y1, x2, y2 = corners.T
    return np.stack([1 - x2, y1, 1 - x1, y2], axis=1)


def clipped(corners: Corners) -> Corners:
    """The part of each box in the picture; outside of it, a line or a point at its edge."""
    return np.clip(corners, 0.0, 1.0)


def jittered(corners: Corners, draws: NDArray[np.float64], share: float) -> Corners:
    """The boxes with each side moved by up to `share` of the box's width or height.

    draws: [N, 4] in [0, 1). Sides that pass each other are swapped.
    """
    size = corners[:, [2, 3]] - corners[:, [0, 1]]
    moved = corners + (2 * draws - 1) * share * np.tile(size, 2)
    low, high = np.minimum(moved[:, :2], moved[:, 2:]), np.maximum(moved[:, :2], moved[:, 2:])
    return np.concatenate([low, high], axis=1)


def areas(corners: Corners) -> NDArray[np.float64]:
    """[N]: the area of each box; 0 of one without width or height."""
    sides = np.maximum(corners[:, 2:] - corners[:, :2], 0.0)
    return sides[:, 0] * sides[:, 1]


def shares_inside(corners: Corners) -> NDArray[np.float64]:
    """[N]: the share of each box's area that lies in the picture; 0 of one without an area."""
    whole = areas(corners)
    return np.divide(areas(clipped(corners)), whole, out=np.zeros(len(whole)), where=whole > 0)


def at_least(corners: Corners, side: float) -> Corners:
    """The boxes in a picture, those narrower or lower than `side` widened to it, inside of it.

    A model reads something even where the crop shows nothing of a box: the edge nearest to it.
    """
    middle = (corners[:, :2] + corners[:, 2:]) / 2
    half = np.maximum(corners[:, 2:] - corners[:, :2], side) / 2
    low = np.clip(middle - half, 0.0, 1.0 - 2 * half)
    return np.concatenate([low, low + 2 * half], axis=1)
