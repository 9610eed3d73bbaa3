"""Relevance as colours over pictures."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hiera_video.video.crops import Area

Pixels = NDArray[np.uint8]

STRONGEST = 0.75
"""How much of a picture the colour of the most relevant cell covers."""


@dataclass(frozen=True)
class Heat:
    """What speaks for a label, in the picture and over the time of a clip of T frames."""

    times: NDArray[np.float64]
    """[T], seconds from the first frame of the video."""
    strengths: NDArray[np.float32]
    """[T', rows, columns], 0 to 1."""
    area: Area
    """What the clip shows of the picture."""

    def at(self, time: float) -> NDArray[np.float32] | None:
        """Return the strengths [rows, columns] of a moment; None outside the clip."""
        frames = len(self.times)
        step = (self.times[-1] - self.times[0]) / max(frames - 1, 1)
        if not self.times[0] - step / 2 <= time <= self.times[-1] + step / 2:
            return None
        nearest = int(np.abs(self.times - time).argmin())
        found: NDArray[np.float32] = self.strengths[step_of(nearest, frames, len(self.strengths))]
        return found

    def put(self, picture: Pixels, time: float) -> None:
        """Colour a frame [H, W, 3] of the video in place, and frame what the clip shows of it."""
        cells = self.at(time)
        if cells is None:
            return
        height, width = picture.shape[:2]
        left, top, right, bottom = self.area
        columns = slice(round(left * width), round(right * width))
        rows = slice(round(top * height), round(bottom * height))
        part = picture[rows, columns]
        put_heat(part, cells)
        line = max(1, min(height, width) // 240)
        for edge in (part[:line], part[-line:], part[:, :line], part[:, -line:]):
            edge[:] = 255


def step_of(frame: int, frames: int, steps: int) -> int:
    """Return the step in time that a frame of a clip belongs to."""
    return frame * steps // frames


def strengths(cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shares [T', rows, columns] -> 0 to 1, the most relevant cell of the clip 1."""
    highest = float(cells.max(initial=0.0))
    scaled: NDArray[np.float32] = cells / highest if highest > 0 else np.zeros_like(cells)
    return scaled


def put_heat(picture: Pixels, cells: NDArray[np.float32]) -> None:
    """Colour a picture [H, W, 3] in place by strengths [rows, columns], 0 (as it is) to 1."""
    from PIL import Image

    height, width = picture.shape[:2]
    levels = Image.fromarray((255 * np.clip(cells, 0, 1)).astype(np.uint8))
    smooth = np.asarray(levels.resize((width, height), Image.Resampling.BICUBIC))
    colours, covers = _tables()
    cover = covers[smooth][..., None]
    picture[:] = ((256 - cover) * picture.astype(np.uint16) + cover * colours[smooth]) >> 8


@functools.cache
def _tables() -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Level 0 to 255 -> its colour [256, 3], and how much it covers, of 256."""
    from matplotlib import colormaps

    levels = np.arange(256) / 255
    colours = (255 * colormaps["inferno"](0.3 + 0.65 * levels)[:, :3]).astype(np.uint16)
    return colours, (256 * STRONGEST * levels**0.8).astype(np.uint16)
