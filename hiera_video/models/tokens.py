"""The token layout: between raster grids and mask units. Hiera's speed rests on this order.

Hiera groups tokens into *mask units*: squares of 8x8 tokens (32x32 pixels) of one time step.
Pretraining deletes whole units, and early attention stays inside a unit. Every model in this
package keeps tokens *unit-major*, as a tensor of four axes

    [B, U, n, C]      batch, units, tokens inside a unit, channels

so that each operation of the network is an index or a view:

* deleting units      = picking entries of axis U;
* attention in a unit = attention over n, with (B, U) folded into the batch;
* global attention    = attention over (U, n) flattened;
* max pooling 2x2     = a maximum over the leading 4 of n.

The last one needs a special order inside the unit. Write a token's row in its unit in binary,
y = 4*y3 + 2*y2 + y1 (and x likewise). The order is

    index = ((y1, x1), (y2, x2), (y3, x3))      first pair slowest

The four tokens that a 2x2 pool merges differ only in (y1, x1), so they are the four slices of the
leading axis; after the maximum the rest is ordered the same way with one pair less, ready for the
next pool. For a 4x4 unit (rows 0-3, two pools) the raster positions in this order are

    0 2 8 10 | 1 3 9 11 | 4 6 12 14 | 5 7 13 15

and the maximum over the four groups pools {0,1,4,5}, {2,3,6,7}, {8,9,12,13}, {10,11,14,15}.

The same holds for 1, 2 or 3 dimensions; a video unit is 1x8x8, so time is never pooled. If a unit
is longer than all pools together, the rest (r) is the last axis of the order.

Hiera's released code stores the same inner order with the *unit* index fastest; the functions
computed are the same (Hiera paper, section 3.1-3.2; ladder of orders in its appendix A).

Shapes: B batch, U units in all, k units kept, n tokens in a unit, C channels, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hiera_video.errors import UserError


class TokenLayout:
    """Sizes of units and grids, and the conversions between raster and unit-major order.

    Args:
        input_size: pixels of the input along each of the D dimensions, e.g. (16, 224, 224).
        patch_stride: stride of the patch embedding, e.g. (2, 4, 4).
        mask_unit_size: tokens of a mask unit along each dimension, e.g. (1, 8, 8).
        q_stride: pooling stride between stages, e.g. (1, 2, 2).
        num_pools: how many poolings the order inside a unit provides for (stages - 1).

    Raises:
        UserError: the sizes do not divide; the message names the sizes that are allowed.
    """

    def __init__(
        self,
        *,
        input_size: Sequence[int],
        patch_stride: Sequence[int],
        mask_unit_size: Sequence[int],
        q_stride: Sequence[int],
        num_pools: int,
    ) -> None:
        dims = len(input_size)
        if not all(len(s) == dims for s in (patch_stride, mask_unit_size, q_stride)):
            raise UserError(
                f"input_size={tuple(input_size)} has {dims} dimensions; patch_stride="
                f"{tuple(patch_stride)}, mask_unit_size={tuple(mask_unit_size)} and q_stride="
                f"{tuple(q_stride)} must have as many"
            )
        self.dims = dims
        self.num_pools = num_pools
        self.q_stride = tuple(q_stride)
        self.unit = self.unit_size(input_size, patch_stride, mask_unit_size)
        self.grid = tuple(i // p for i, p in zip(input_size, patch_stride, strict=True))
        self.unit_grid = tuple(g // m for g, m in zip(self.grid, self.unit, strict=True))
        self.num_units = math.prod(self.unit_grid)
        self.tokens_per_unit = math.prod(self.unit)
        self.pool_factor = math.prod(self.q_stride)

    def unit_size(
        self, input_size: Sequence[int], patch_stride: Sequence[int], mask_unit_size: Sequence[int]
    ) -> tuple[int, ...]:
        """Return the tokens of a unit along each dimension; UserError if sizes do not divide."""
        multiple = tuple(p * m for p, m in zip(patch_stride, mask_unit_size, strict=True))
        check_multiples(input_size, multiple, of="one mask unit")
        pooled = tuple(s**self.num_pools for s in self.q_stride)
        if any(m % p for m, p in zip(mask_unit_size, pooled, strict=True)):
            raise UserError(
                f"mask_unit_size={tuple(mask_unit_size)} must be multiples of {pooled}, for "
                f"{self.num_pools} poolings by {self.q_stride}"
            )
        return tuple(mask_unit_size)

    def unit_shape(self, pools: int) -> tuple[int, ...]:
        """Tokens of a unit along each dimension after `pools` poolings."""
        return tuple(m // s**pools for m, s in zip(self.unit, self.q_stride, strict=True))

    def grid_shape(self, pools: int) -> tuple[int, ...]:
        """Tokens of the whole input along each dimension after `pools` poolings."""
        units = self.unit_shape(pools)
        return tuple(u * n for u, n in zip(self.unit_grid, units, strict=True))

    def to_units(self, raster: Tensor) -> Tensor:
        """Raster tokens [B, *grid, C] -> unit-major [B, U, n, C]; one copy."""
        batch, channels = raster.shape[0], raster.shape[-1]
        blocks = self.axes(pools=0)
        width = len(blocks) + 1  # axes that one dimension is split into: unit, then coarse to fine
        split = [
            size
            for d in range(self.dims)
            for size in (self.unit_grid[d], *(block[d] for block in reversed(blocks)))
        ]
        x = raster.reshape(batch, *split, channels)
        units = [1 + d * width for d in range(self.dims)]
        inner = [
            1 + d * width + len(blocks) - b for b in range(len(blocks)) for d in range(self.dims)
        ]
        x = x.permute(0, *units, *inner, x.dim() - 1)
        return x.reshape(batch, self.num_units, self.tokens_per_unit, channels)

    def to_unit_raster(self, tokens: Tensor, pools: int) -> Tensor:
        """[B, k, n, C] after `pools` poolings -> [B, k, *unit, C], raster inside each unit."""
        batch, units, _, channels = tokens.shape
        blocks = self.axes(pools)
        x = tokens.reshape(batch, units, *(size for block in blocks for size in block), channels)
        coarse_to_fine = range(len(blocks) - 1, -1, -1)
        inner = [2 + b * self.dims + d for d in range(self.dims) for b in coarse_to_fine]
        x = x.permute(0, 1, *inner, x.dim() - 1)
        return x.reshape(batch, units, *self.unit_shape(pools), channels)

    def from_unit_raster(self, x: Tensor) -> Tensor:
        """The inverse of `to_unit_raster` before any pooling: [B, k, *unit, C] -> [B, k, n, C]."""
        batch, units, channels = x.shape[0], x.shape[1], x.shape[-1]
        blocks = self.axes(pools=0)
        split = [block[d] for d in range(self.dims) for block in reversed(blocks)]
        x = x.reshape(batch, units, *split, channels)
        last = len(blocks) - 1
        inner = [
            2 + d * len(blocks) + last - b for b in range(len(blocks)) for d in range(self.dims)
        ]
        x = x.permute(0, 1, *inner, x.dim() - 1)
        return x.reshape(batch, units, self.tokens_per_unit, channels)

    def to_raster(self, tokens: Tensor, pools: int) -> Tensor:
        """[B, U, n, C] of all units after `pools` poolings -> raster tokens [B, *grid, C]."""
        x = self.to_unit_raster(tokens, pools)
        return units_to_raster(x, self.unit_grid)

    def axes(self, pools: int) -> list[tuple[int, ...]]:
        """Return the sizes of the axes that n consists of, slowest first.

        One for each pooling that is still to come, then the rest.
        """
        return [self.q_stride] * (self.num_pools - pools) + [self.unit_shape(self.num_pools)]


def check_multiples(input_size: Sequence[int], multiple: Sequence[int], *, of: str) -> None:
    """Raise UserError unless all sides are positive multiples; `of` says in words of what."""
    if any(size < 1 or size % m for size, m in zip(input_size, multiple, strict=True)):
        raise UserError(
            f"input_size={tuple(input_size)} must be positive multiples of {tuple(multiple)} "
            f"({of}, in frames and pixels)"
        )


def units_to_raster(x: Tensor, unit_grid: Sequence[int]) -> Tensor:
    """[B, U, *unit, C] with every unit present -> [B, *grid, C]."""
    dims, batch, channels = len(unit_grid), x.shape[0], x.shape[-1]
    unit = x.shape[2:-1]
    x = x.reshape(batch, *unit_grid, *unit, channels)
    pairs = [axis for d in range(dims) for axis in (1 + d, 1 + dims + d)]
    x = x.permute(0, *pairs, x.dim() - 1)
    return x.reshape(batch, *(u * m for u, m in zip(unit_grid, unit, strict=True)), channels)


def raster_to_units(x: Tensor, unit_grid: Sequence[int]) -> Tensor:
    """The inverse of `units_to_raster`: [B, *grid, C] -> [B, U, *unit, C]."""
    dims, batch, channels = len(unit_grid), x.shape[0], x.shape[-1]
    unit = tuple(g // u for g, u in zip(x.shape[1:-1], unit_grid, strict=True))
    x = x.reshape(batch, *(s for pair in zip(unit_grid, unit, strict=True) for s in pair), channels)
    x = x.permute(0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2), 2 * dims + 1)
    return x.reshape(batch, math.prod(unit_grid), *unit, channels)


def max_pool(tokens: Tensor, factor: int) -> Tensor:
    """Max pooling as a maximum over the leading `factor` of n: [B, U, n, C] -> [B, U, n/f, C]."""
    return tokens.unflatten(2, (factor, -1)).amax(dim=2)


def num_kept(num_units: int, mask_ratio: float) -> int:
    """Number of units that stay visible: int(U * (1 - ratio)), at least one (39 of 392 at 0.9).

    Raises:
        UserError: if `mask_ratio` is outside [0, 1).
    """
    if not 0.0 <= mask_ratio < 1.0:
        raise UserError(f"mask_ratio={mask_ratio!r} must be at least 0 and below 1")
    return max(1, int(num_units * (1.0 - mask_ratio)))


def keep_from_noise(noise: Tensor, mask_ratio: float) -> Tensor:
    """Noise [B, U] -> keep mask bool [B, U], True = visible: the units of smallest noise."""
    count = num_kept(noise.shape[1], mask_ratio)
    smallest = noise.argsort(dim=1)[:, :count]
    keep = torch.zeros_like(noise, dtype=torch.bool)
    return keep.scatter_(1, smallest, True)


def unit_ids(chosen: Tensor, count: int) -> Tensor:
    """Positions of the `count` True entries of each row of `chosen` [B, U], in the flat (B, U).

    The shape of the result, [B * count], does not depend on the values of the mask: nothing waits
    for the device, and torch.compile needs no graph break.
    """
    # a stable sort of "not chosen" brings the chosen units to the front and keeps their order
    front = (~chosen).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    rows = torch.arange(chosen.shape[0], device=chosen.device).unsqueeze(1) * chosen.shape[1]
    return (front + rows).flatten()


def count_kept(keep: Tensor, *, batch: int, num_units: int, known: int | None = None) -> int:
    """Return the number of units kept per clip, after checking that `keep` is a usable mask.

    Counting waits for the device, and torch.compile recompiles when the number changes. A caller
    that drew the mask gives the number as `known` and avoids both; then the device checks it and
    raises a RuntimeError a little later if a clip keeps another number.

    Raises:
        UserError: `keep` is not bool [B, U], keeps nothing, or keeps unequal numbers per clip.
    """
    if keep.dtype != torch.bool or tuple(keep.shape) != (batch, num_units):
        raise UserError(
            f"keep is {keep.dtype} of shape {tuple(keep.shape)}; it must be torch.bool of shape "
            f"({batch}, {num_units}) = (clips, mask units), True = visible"
        )
    counts = keep.sum(dim=1)
    if known is not None:
        torch._assert_async((counts == known).all(), f"keep must leave {known} units of every clip")
        return known
    least, most = int(counts.min()), int(counts.max())
    if least != most or least == 0:
        raise UserError(
            f"keep leaves between {least} and {most} mask units per clip; every clip of a batch "
            "must keep the same number, at least one"
        )
    return least


def pick_units(tokens: Tensor, ids: Tensor) -> Tensor:
    """[B, U, ...] -> [B, k, ...]: the units at flat positions `ids` [B * k]; contiguous."""
    batch = tokens.shape[0]
    return tokens.flatten(0, 1).index_select(0, ids).unflatten(0, (batch, -1))
