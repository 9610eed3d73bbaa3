"""What a classifier reads of several stages, beside the mean of the last one.

The mean over all tokens says neither where in the picture something is nor when. A readout keeps a
little of both: enough to tell sitting down from standing up, which have the same mean.

Shapes: B clips, T tokens in time, C channels of a stage, D numbers of a clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from hiera_video.errors import UserError

CELLS = 2
"""A stage's map is divided into so many rows and columns, whatever its size."""

NUMBERS_OF_A_CHANNEL = CELLS * CELLS * 2 * 3
"""Mean and maximum of each cell; of both the mean, the deviation and the change over time."""

_LEAST_VARIANCE = 1e-6
"""Keeps the gradient of the deviation finite where nothing changes."""


class Readout(nn.Module):
    """Pools the maps of several stages into one vector, and standardises it.

    Args:
        widths: channels of each stage that is read.

    `mean` and `std` are those of the features of the training videos. They are buffers, which a
    probe sets: 0 and 1 leave the features as they are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.dim = NUMBERS_OF_A_CHANNEL * sum(widths)
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("std", torch.ones(self.dim))

    def forward(self, maps: Iterable[Tensor]) -> Tensor:
        """Maps [B, T, rows, columns, C], one a stage, or [B, rows, columns, C] -> [B, D]."""
        return torch.cat([pooled(one) for one in maps], dim=1)

    def standardised(self, features: Tensor) -> Tensor:
        """Standardise features [B, D] and scale them to unit length, on the average.

        The length matters to an optimizer: a step of a given size moves the scores alike, however
        many numbers are read.
        """
        return (features - self.mean) / (self.std * math.sqrt(self.dim))


def pooled(stage: Tensor) -> Tensor:
    """[B, T, rows, columns, C] or [B, rows, columns, C] -> float32 [B, 24 C]."""
    if stage.dim() == 4:
        stage = stage.unsqueeze(1)
    stage = stage.float()  # also under autocast: differences of halves need the digits
    cells = [
        stage[:, :, rows, columns]
        for rows in _parts(stage.shape[2])
        for columns in _parts(stage.shape[3])
    ]
    series = torch.cat([part for c in cells for part in (c.mean((2, 3)), c.amax((2, 3)))], dim=2)
    times = series.shape[1]
    half = (times + 1) // 2  # of an odd number both halves have the middle, of one token all
    change = series[:, times - half :].mean(1) - series[:, :half].mean(1)
    deviation = (series.var(1, correction=0) + _LEAST_VARIANCE).sqrt()
    return torch.cat([series.mean(1), deviation, change], dim=1)


def _parts(length: int) -> list[slice]:
    """CELLS equal parts of a side, as adaptive pooling has them: they overlap where the length does
    not divide."""
    return [
        slice(part * length // CELLS, -(-(part + 1) * length // CELLS)) for part in range(CELLS)
    ]


def check_readout_stages(readout: Sequence[int], count: int) -> None:
    """Raise UserError unless `readout` are ascending numbers of the `count` stages."""
    stages = list(readout)
    numbers = all(isinstance(s, int) and 0 <= s < count for s in stages)
    if not numbers or stages != sorted(set(stages)):
        raise UserError(
            f"readout_stages={tuple(readout)!r} must be ascending numbers of stages, 0 to "
            f"{count - 1}; () for the published head"
        )
