"""What a classifier reads of chosen stages, in place of the normalised mean of the last one.

`Readout` takes the mean over all tokens and the maximum: what happens in a clip is often in a few
tokens, which the mean hides. More was tried, on generated actions and on real fights that share no
source: cells of the picture, deviation and change over time. With some hundred videos each of them
was as good or worse, since the stages of an encoder of motion tell directions apart by themselves.

`AttentiveReadout` learns where to look: attention with one query over the tokens.

Both work in two steps, so that the first, which has no parameters, is done once for a frozen
encoder: maps -> features (`forward`) -> what norm and head take (`head_input`).

Shapes: B clips, T tokens in time, N tokens of a stage, C channels of a stage, D numbers of a clip,
h heads.
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
        self.dim = self.out_dim = NUMBERS_OF_A_CHANNEL * sum(widths)
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("std", torch.ones(self.dim))

    def forward(self, maps: Iterable[Tensor]) -> Tensor:
        """Maps [B, T, rows, columns, C], one a stage, or [B, rows, columns, C] -> [B, D]."""
        return torch.cat([pooled(one) for one in maps], dim=1)

    def head_input(self, features: Tensor) -> Tensor:
        """Standardise features [B, D] and scale them to unit length, on the average: [B, D].

        The length matters to an optimizer: a step of a given size moves the scores alike, however
        many numbers are read.
        """
        rows = (features - self.mean) / (self.std * math.sqrt(self.dim))
        return rows.to(self.mean.dtype)  # features are float32 in a model of halves too


class AttentiveReadout(nn.Module):
    """Attends to all tokens of stages with one learned query of several heads.

    Such an attention is cheap in another order than the usual one. A head's scores are linear in
    the tokens, so that its query stands for the projection of the keys as well; and values are
    projected after they are summed, not before.

    Args:
        stages: number of tokens and channels of each stage that is read, (N, C).

    `mean` and `std` are those of each channel over the tokens of the training videos, in buffers
    that a probe sets: 0 and 1 leave the tokens as they are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, stages: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self.dim = sum(tokens * channels for tokens, channels in self.stages)
        self.out_dim = self.stages[-1][1]
        self.heads = heads_for(self.out_dim)
        widths = [channels for _, channels in self.stages]
        # with two axes, so that no other readout's statistics have the same shape
        self.register_buffer("mean", torch.zeros(1, sum(widths)))
        self.register_buffer("std", torch.ones(1, sum(widths)))
        self.queries = nn.ModuleList(nn.Linear(c, self.heads, bias=False) for c in widths)
        self.values = nn.ModuleList(nn.Linear(c, self.out_dim, bias=False) for c in widths)

    def forward(self, maps: Iterable[Tensor]) -> Tensor:
        """Maps [B, T, rows, columns, C], one a stage, or [B, rows, columns, C] -> all their tokens,
        float32 [B, D]."""
        return torch.cat([one.flatten(1).float() for one in maps], dim=1)

    def tokens(self, features: Tensor) -> list[Tensor]:
        """Features [B, D] -> the tokens of each stage as they are, [B, N, C]."""
        parts = features.split([tokens * channels for tokens, channels in self.stages], dim=1)
        return [part.unflatten(1, stage) for part, stage in zip(parts, self.stages, strict=True)]

    def head_input(self, features: Tensor) -> Tensor:
        """Features [B, D] -> what the query finds, [B, out_dim]."""
        widths = [channels for _, channels in self.stages]
        mean, std = self.mean.split(widths, dim=1), self.std.split(widths, dim=1)
        tokens = [
            ((part - m) / s).to(self.mean.dtype)
            for part, m, s in zip(self.tokens(features), mean, std, strict=True)
        ]
        scores = [query(part) for query, part in zip(self.queries, tokens, strict=True)]
        weights = torch.cat(scores, dim=1).softmax(dim=1).transpose(1, 2)  # (B, h, N of all stages)
        shares = weights.split([count for count, _ in self.stages], dim=2)
        found = [
            self._project(value, share @ part)
            for value, share, part in zip(self.values, shares, tokens, strict=True)
        ]
        return torch.stack(found).sum(dim=0)

    def _project(self, value: nn.Module, summed: Tensor) -> Tensor:
        """Project what each head has summed up, [B, h, C], to its part of [B, out_dim]."""
        weight = value.get_parameter("weight").unflatten(0, (self.heads, -1))  # (h, d, C)
        # heads come first: with the clips in front, each of them would get a copy of the weight
        return (summed.transpose(0, 1) @ weight.transpose(1, 2)).transpose(0, 1).flatten(1)


def heads_for(width: int) -> int:
    """Return the number of heads for a width: of 64 channels each, or of the next more that fit."""
    return next(heads for heads in range(max(1, width // 64), 0, -1) if width % heads == 0)


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
