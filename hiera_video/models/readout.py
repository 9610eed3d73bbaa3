"""What a classifier reads of chosen stages, in place of the normalised mean of the last one.

The mean over all tokens and the maximum: what happens in a clip is often in a few tokens, which
the mean hides. More was tried, on generated actions and on real fights that share no source: cells
of the picture, deviation and change over time. With some hundred videos each of them was as good or
worse, since the stages of an encoder of motion tell directions apart by themselves.

Shapes: B clips, T tokens in time, C channels of a stage, D numbers of a clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from hiera_video.errors import UserError

NUMBERS_OF_A_CHANNEL = 2
"""Mean and maximum."""


class Readout(nn.Module):
    """Pools the maps of stages into one vector, and standardises it.

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
    """[B, T, rows, columns, C] or [B, rows, columns, C] -> float32 [B, 2 C], means and maxima."""
    tokens = stage.flatten(1, -2).float()  # also under autocast: sums of halves need the digits
    return torch.cat([tokens.mean(1), tokens.amax(1)], dim=1)


def check_readout_stages(readout: Sequence[int], count: int) -> None:
    """Raise UserError unless `readout` are ascending numbers of the `count` stages."""
    stages = list(readout)
    numbers = all(isinstance(s, int) and 0 <= s < count for s in stages)
    if not numbers or stages != sorted(set(stages)):
        raise UserError(
            f"readout_stages={tuple(readout)!r} must be ascending numbers of stages, 0 to "
            f"{count - 1}; () for the published head"
        )
