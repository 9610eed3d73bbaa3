"""What a masked autoencoder predicts: pixels, oriented gradients, or the optical flow of its clips.

A target is a map over a clip, some numbers for every cell of a picture, cut into the tokens that
the decoder predicts:

    target = build_target("hog", grid)
    target.values_per_token             # P, the width of the decoder's last layer
    target.tokens(clips, truth)         # float32 [B, U, n, P]

Everything is computed on the device of the clips, and nothing waits for it.

Shapes: B batch, C channels, T' times that are predicted (those of the tokens), U mask units, n
tokens of a unit, P values of a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hiera_video.errors import UserError
from hiera_video.models.tokens import TokenLayout, units_to_raster

TARGET_EPS = 1e-6
"""Added to the variance of a token's pixels where they are normalised."""


# ---- maps and tokens ----------------------------------------------------------------------


@dataclass(frozen=True)
class TokenGrid:
    """Where the predicted tokens are in a clip: maps are cut into them and put together again."""

    layout: TokenLayout
    pools: int
    """Poolings before the tokens."""
    patch_stride: tuple[int, ...]
    """Stride of the patch embedding."""
    channels: int
    """C of the clips."""

    @property
    def side(self) -> int:
        """Pixels along each side of a token."""
        pooled: int = self.layout.q_stride[-1] ** self.pools
        return self.patch_stride[-1] * pooled

    def patch(self, side: int) -> tuple[int, ...]:
        """Cells of a token along each dimension, for `side` of them in space; one time."""
        dims = self.layout.dims
        return (1, side, side) if dims == 3 else (side,) * dims

    def frames(self, clips: Tensor) -> Tensor:
        """The first frame of each temporal patch ("time-strided" target); images as they are."""
        return clips[:, :, :: self.patch_stride[0]] if self.layout.dims == 3 else clips

    def split(self, maps: Tensor) -> Tensor:
        """Maps [B, C, *size] -> [B, U, n, P], raster in units and in tokens.

        The P values of a token are ordered (row, column, channel) for video and (channel, row,
        column) for images, as the released decoders were trained on pixels.
        """
        layout, dims = self.layout, self.layout.dims
        inner, grid = layout.unit_shape(self.pools), layout.grid_shape(self.pools)
        patch = tuple(size // tokens for size, tokens in zip(maps.shape[2:], grid, strict=True))
        sizes = [s for three in zip(layout.unit_grid, inner, patch, strict=True) for s in three]
        x = maps.reshape(maps.shape[0], maps.shape[1], *sizes)
        units, tokens, cells = (range(2 + i, 2 + 3 * dims, 3) for i in range(3))
        last = (*cells, 1) if dims == 3 else (1, *cells)
        x = x.permute(0, *units, *tokens, *last)
        width = math.prod(patch) * maps.shape[1]
        return x.reshape(maps.shape[0], layout.num_units, math.prod(inner), width)

    def join(self, tokens: Tensor, patch: Sequence[int]) -> Tensor:
        """Invert `split` for tokens of `patch` cells: [B, U, n, P] -> maps [B, C, *size]."""
        layout, dims = self.layout, self.layout.dims
        channels = tokens.shape[-1] // math.prod(patch)
        x = tokens.unflatten(-1, (*patch, channels) if dims == 3 else (channels, *patch))
        if dims != 3:
            x = x.movedim(3, -1)
        x = x.flatten(3).unflatten(2, layout.unit_shape(self.pools))
        x = units_to_raster(x, layout.unit_grid).unflatten(-1, (*patch, channels))
        pairs = [axis for d in range(dims) for axis in (1 + d, 1 + dims + d)]
        x = x.permute(0, x.dim() - 1, *pairs)
        grid = layout.grid_shape(self.pools)
        return x.reshape(x.shape[0], channels, *(g * p for g, p in zip(grid, patch, strict=True)))


# ---- the targets --------------------------------------------------------------------------


class Target:
    """What is predicted of every token. A subclass has a `name`, and says what its `maps` are.

    Args:
        grid: the tokens.
        patch: cells of a token along each dimension.
        channels: numbers of a cell.
    """

    name: ClassVar[str]
    needs_truth: ClassVar[bool] = False
    """Whether the maps are made of what is known of the clips, not of their pixels."""

    def __init__(self, grid: TokenGrid, *, patch: tuple[int, ...], channels: int) -> None:
        self.grid, self.patch = grid, patch
        self.values_per_token = math.prod(patch) * channels

    def maps(self, clips: Tensor, truth: Tensor | None) -> Tensor:
        """What is to be predicted, [B, channels, *size], from normalised clips and their truth."""
        raise NotImplementedError

    def tokens(self, clips: Tensor, truth: Tensor | None = None) -> Tensor:
        """The maps cut into tokens, [B, U, n, P], see `TokenGrid.split`."""
        return self.grid.split(self.maps(clips, truth))

    def normalise(self, tokens: Tensor) -> Tensor:
        """Tokens as predictions are compared with them, float32."""
        return tokens.float()

    def restore(self, pred: Tensor, tokens: Tensor) -> Tensor:
        """Predictions float32 in the units of the maps; `tokens` are the true ones there."""
        return pred

    def join(self, tokens: Tensor) -> Tensor:
        """Invert `tokens`: [B, U, n, P] -> maps."""
        return self.grid.join(tokens, self.patch)


class PixelTarget(Target):
    """The published target: the pixels of a token, normalised over all of them and the colours."""

    name = "pixels"

    def __init__(self, grid: TokenGrid) -> None:
        super().__init__(grid, patch=grid.patch(grid.side), channels=grid.channels)

    def maps(self, clips: Tensor, truth: Tensor | None) -> Tensor:
        """The frames that are predicted."""
        return self.grid.frames(clips)

    def normalise(self, tokens: Tensor) -> Tensor:
        """Each token with mean 0 and variance 1 (unbiased), always in float32."""
        pixels = tokens.float()
        return (pixels - pixels.mean(-1, keepdim=True)) / (
            pixels.var(-1, keepdim=True) + TARGET_EPS
        ).sqrt()

    def restore(self, pred: Tensor, tokens: Tensor) -> Tensor:
        """Predictions with the mean and variance of the true pixels."""
        scale = (tokens.var(-1, keepdim=True) + TARGET_EPS).sqrt()
        return pred * scale + tokens.mean(-1, keepdim=True)


class HogTarget(Target):
    """Histograms of oriented gradients, see `oriented_gradients`; of each colour by itself.

    Table 3 of the Hiera paper compares them with pixels. The frames are those of the pixel target;
    a token of 16x16 pixels has 2x2 cells x 3 colours x 9 bins = 108 values, ordered as pixels are
    (MaskFeat's code has the cells last).
    """

    name = "hog"

    def __init__(self, grid: TokenGrid) -> None:
        if grid.layout.dims == 1 or grid.side % HOG_CELL:
            raise UserError(
                f"target='hog' (HIERA.TARGET) needs tokens of pictures, with a side that is a "
                f"multiple of {HOG_CELL} px; this model predicts {grid.layout.dims}-dimensional "
                f"tokens of {grid.side} px"
            )
        super().__init__(
            grid, patch=grid.patch(grid.side // HOG_CELL), channels=grid.channels * HOG_BINS
        )

    def maps(self, clips: Tensor, truth: Tensor | None) -> Tensor:
        """The histograms [B, 9 C, T', H / 8, W / 8], the bins of a colour side by side."""
        bins = oriented_gradients(self.grid.frames(clips))
        return bins.movedim(-3, 2).flatten(1, 2)


class FlowTarget(Target):
    """The optical flow of generated clips, which comes with them as their `truth`.

    A token has the cells of the truth's grid that it covers.
    """

    name = "flow"
    needs_truth = True

    def __init__(self, grid: TokenGrid) -> None:
        if grid.layout.dims != 3:
            raise UserError(
                "target='flow' (HIERA.TARGET) needs a model of clips: nothing moves in an image"
            )
        self.times, rows, columns = grid.layout.grid_shape(grid.pools)
        if FLOW_CELLS % rows or FLOW_CELLS % columns:
            raise UserError(
                f"target='flow' (HIERA.TARGET) has {FLOW_CELLS} cells along each side of the "
                f"picture, which the {rows} x {columns} tokens of this model do not divide; "
                f"take an input_size (DATA.TRAIN_CROP_SIZE) of {grid.side} px times a power of two"
            )
        patch = (1, FLOW_CELLS // rows, FLOW_CELLS // columns)
        super().__init__(grid, patch=patch, channels=FLOW_NUMBERS)

    def maps(self, clips: Tensor, truth: Tensor | None) -> Tensor:
        """The truth itself, [B, 6, T', 16, 16]."""
        wanted = (clips.shape[0], FLOW_NUMBERS, self.times, FLOW_CELLS, FLOW_CELLS)
        if truth is None or truth.shape != wanted:
            given = "none" if truth is None else f"one of shape {tuple(truth.shape)}"
            raise UserError(
                f"target='flow' (HIERA.TARGET) needs the truth of the clips, {wanted}: the "
                f"displacements of every cell at every predicted time; got {given}"
            )
        return truth.detach().float()


TARGETS: dict[str, type[PixelTarget | HogTarget | FlowTarget]] = {
    kind.name: kind for kind in (PixelTarget, HogTarget, FlowTarget)
}
"""Name, as HIERA.TARGET has it -> class."""


def build_target(name: str, grid: TokenGrid) -> Target:
    """Build the target of that name; UserError for another name, or a model that it cannot fit."""
    if name not in TARGETS:
        raise UserError(f"target={name!r} (HIERA.TARGET) must be one of {', '.join(TARGETS)}")
    return TARGETS[name](grid)


# ---- histograms of oriented gradients -----------------------------------------------------

HOG_BINS = 9
"""Orientations in half a turn: edges that differ only in their sign count as one."""

HOG_CELL = 8
"""Pixels along each side of a cell."""


def oriented_gradients(pictures: Tensor) -> Tensor:
    """Histograms of oriented gradients, [..., H, W] -> float32 [..., 9, H / 8, W / 8].

    As in MaskFeat's released code (arXiv 2112.09133; `HOGLayerC` of SlowFast): Sobel filters on the
    reflected picture; the length of a pixel's gradient goes to the one bin of its direction,
    without interpolation; the bins of a cell are sums over its 8x8 pixels, divided by their
    Euclidean norm. Since each cell is normalised by itself, without neighbours, neither brightness
    nor contrast matters, nor by what mean and deviation clips are normalised. A flat cell is zero.

    Bin k is for directions from 20 k to 20 (k + 1) degrees, counted so that a vertical edge is in
    the middle of bin 4 and a horizontal one is at the beginning of bin 0. In a mirror bin k is
    bin 8 - k (but what is exactly horizontal stays in bin 0, as all is in the outermost columns of
    the picture, where the reflection leaves no difference across).
    """
    *leading, height, width = pictures.shape
    x = pictures.detach().float().reshape(-1, height, width)
    x = F.pad(x, (1, 1, 1, 1), mode="reflect")
    # differences of slices, not convolutions: those lose precision under autocast
    smooth = x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]
    across = smooth[:, :, :-2] - smooth[:, :, 2:]
    smooth = x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]
    down = smooth[:, :-2] - smooth[:, 2:]
    length = (across.square() + down.square()).sqrt()
    direction = torch.atan2(across, down) / math.pi * HOG_BINS
    chosen = direction.floor().remainder(HOG_BINS)
    # one bin after the other: all at once would take the memory of nine clips
    bins = [_cell_sums(torch.where(chosen == k, length, 0.0)) for k in range(HOG_BINS)]
    found = F.normalize(torch.stack(bins, dim=1), dim=1)
    return found.reshape(*leading, *found.shape[1:])


def _cell_sums(x: Tensor) -> Tensor:
    """[N, H, W] -> sums over cells, [N, H / 8, W / 8]."""
    cells = x.unflatten(2, (-1, HOG_CELL)).unflatten(1, (-1, HOG_CELL))
    return cells.sum(dim=(2, 4))


# ---- optical flow -------------------------------------------------------------------------

FLOW_NUMBERS = 6
"""Displacements that are known of a cell of a generated clip: three pairs of x and y."""

FLOW_CELLS = 16
"""Cells along each side of the picture."""
