"""Turn pictures as a decoder stores them into those that users get."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def upright(stored: Pixels, quarter_turns: int) -> Pixels:
    """uint8 [K, H, W, 3] as stored -> uint8 [K, H', W', 3] turned counter-clockwise.

    No copy where nothing is turned.
    """
    if quarter_turns % 4 == 0:
        return stored
    return np.ascontiguousarray(np.rot90(stored, quarter_turns, axes=(1, 2)))
