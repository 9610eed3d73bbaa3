"""Turn pictures as a decoder stores them into the tensor that users get."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray


def upright(stored: NDArray[np.uint8], quarter_turns: int) -> torch.Tensor:
    """uint8 [K, H, W, 3] as stored -> uint8 [K, 3, H', W'] turned counter-clockwise.

    Laid out channels-last: no copy where nothing is turned.
    """
    frames = torch.from_numpy(stored)
    if quarter_turns % 4:
        frames = torch.rot90(frames, quarter_turns, dims=(1, 2))
    return frames.permute(0, 3, 1, 2)
