"""From uint8 clips to the float32 clips that a model takes.

Clips travel as uint8, a quarter of the bytes, and are normalised on the device that computes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normalize(frames: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [T, 3, S, S] -> float32 [3, T, S, S]: to [0, 1], minus `mean`, over `std`."""
    return normalize_clips(frames.transpose(0, 1)[None], mean, std)[0]


def normalize_clips(
    clips: Tensor, mean: Sequence[float], std: Sequence[float], *, out: Tensor | None = None
) -> Tensor:
    """`normalize` for clips uint8 [B, 3, T, S, S], on the device where they are: float32, the same
    shape, contiguous or in `out`. The same numbers, bit for bit, for any B and any layout."""
    if out is None:
        out = torch.empty(clips.shape, dtype=torch.float32, device=clips.device)
    # Colour by colour and in place: a third of the time of one broadcast over all three, whose
    # temporaries are as large as the clips. (x / 255 - mean) / std == x * scale + shift.
    for colour, (m, s) in enumerate(zip(mean, std, strict=True)):
        out[:, colour].copy_(clips[:, colour]).mul_(1 / (255 * s)).add_(-m / s)
    return out
