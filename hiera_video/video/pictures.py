"""Pictures made smaller, uint8 [H, W, 3], without torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def at_most(size: tuple[int, int], longest: int) -> tuple[int, int] | None:
    """The size with no side beyond `longest`; None where it is small enough."""
    if max(size) <= longest:
        return None
    width, height = (max(1, round(side * longest / max(size))) for side in size)
    return width, height


def resized(picture: Pixels, size: tuple[int, int]) -> Pixels:
    """A picture scaled to (width, height)."""
    from PIL import Image

    image = Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(image)
