"""The parts of Hiera: patch embedding, attention, transformer block, head.

Shapes: B batch, U units (k of them where some are deleted), n tokens in a unit, C channels,
h heads, d channels of a head. Tokens are unit-major [B, U, n, C]; see `tokens.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pytorchvideo.layers.attention import Mlp
from pytorchvideo.layers.drop_path import DropPath
from torch import Tensor, nn

from hiera_video.models.kernels import as_product, attention, is_stem_a_product
from hiera_video.models.tokens import TokenLayout, max_pool

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVOLUTIONS: Mapping[int, Callable[..., Convolution]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
"""Convolution layers by the number of dimensions."""
LAYER_NORM_EPS = 1e-6

_CONVOLVE: Mapping[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def convolve(
    pixels: Tensor, filters: Tensor, bias: Tensor | None = None, **geometry: Any
) -> Tensor:
    """Convolve in as many dimensions as the filters [C_out, C_in / groups, *kernel] have.

    The input is made contiguous. On a view, PyTorch's CPU kernels can return a wrong weight
    gradient without an error: seen in bfloat16 on a processor with AVX512-BF16, for queries cut out
    of a joint projection.
    """
    return _CONVOLVE[filters.ndim - 2](pixels.contiguous(), filters, bias, **geometry)


class PatchEmbed(nn.Module):
    """Overlapping patch (cube) embedding by one strided convolution, in 1, 2 or 3 dimensions.

    Without a mask it convolves the whole input. With deleted units it convolves each visible unit
    with a halo of pixels around it, deleted pixels set to zero: the same result as zeroing the
    input and convolving all of it (paper, section 3.2), at the cost of the visible units alone.
    With `contrast` they are the nearest pixels of the unit instead, see `_filled`.

    Args:
        in_chans, embed_dim: channels of the input and of the tokens.
        kernel, stride, padding: of the convolution, one number for each dimension.
        contrast: subtract from every filter its mean over the window, for each input channel. The
            stem then sees differences between pixels only, never brightness or colour as such,
            whatever is learned.
    """

    def __init__(
        self,
        in_chans: int,
        embed_dim: int,
        *,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        contrast: bool = False,
    ) -> None:
        super().__init__()
        self.contrast = contrast
        self.stride, self.kernel, self.padding = tuple(stride), tuple(kernel), tuple(padding)
        self.proj = CONVOLUTIONS[len(kernel)](
            in_chans, embed_dim, kernel_size=self.kernel, stride=self.stride, padding=self.padding
        )

    def forward(self, clips: Tensor, layout: TokenLayout) -> Tensor:
        """Clips [B, C_in, *input_size] -> tokens [B, U, n, C]."""
        return layout.to_units(self._convolve(clips, self.padding).movedim(1, -1))

    def visible(self, clips: Tensor, layout: TokenLayout, keep: Tensor, ids: Tensor) -> Tensor:
        """Clips -> tokens of the kept units, [B, k, n, C]; deleted pixels have no influence."""
        mask = pixel_mask(keep, layout, clips)
        windows = self._windows(clips * mask, layout, ids)
        if self.contrast:
            seen = self._windows(mask, layout, ids, outside=1.0) > 0
            windows = self._filled(windows, seen, layout)
        x = self._convolve(windows, padding=0)
        x = x.movedim(1, -1).unflatten(0, (clips.shape[0], -1))  # [B, k, *unit, C]
        return layout.from_unit_raster(x)

    def _convolve(self, pixels: Tensor, padding: int | tuple[int, ...]) -> Tensor:
        filters = self.proj.weight
        if self.contrast:
            filters = filters - filters.mean(dim=tuple(range(2, filters.ndim)), keepdim=True)
        if is_stem_a_product(pixels, filters, self.stride):
            around = (padding,) * len(self.stride) if isinstance(padding, int) else padding
            pixels = F.pad(pixels, [p for pad in reversed(around) for p in (pad, pad)])
            return as_product(pixels, filters, self.proj.bias, self.stride)
        return convolve(pixels, filters, self.proj.bias, stride=self.stride, padding=padding)

    def _filled(self, windows: Tensor, seen: Tensor, layout: TokenLayout) -> Tensor:
        """Windows [B * k, C_in, *window] whose deleted pixels are the nearest pixels of the unit in
        their middle. seen: which are not deleted, bool [B * k, 1, *window].

        Zeros would be edges, as high as the unit is bright. The contrast stem sees nothing but
        edges: an autoencoder then learns to read brightness from them, and its encoder is lost on
        whole clips, which have none (docs/results.md).
        """
        unit = windows
        around: list[int] = []  # of the last dimension first, as F.pad wants it
        for d, (before, step) in enumerate(zip(self.padding, self.stride, strict=True)):
            size = layout.unit[d] * step
            unit = unit.narrow(2 + d, before, size)
            around = [before, windows.shape[2 + d] - before - size, *around]
        return torch.where(seen, windows, F.pad(unit, around, mode="replicate"))

    def _windows(
        self, clips: Tensor, layout: TokenLayout, ids: Tensor, *, outside: float = 0.0
    ) -> Tensor:
        """Return the pixels that the tokens of each kept unit read: [B * k, C_in, *window].

        outside: what is around the clip.
        """
        # the convolution's own padding, then one window per unit with the overlap on both sides
        x = F.pad(clips, [p for pad in reversed(self.padding) for p in (pad, pad)], value=outside)
        for d in range(layout.dims):
            step = layout.unit[d] * self.stride[d]
            x = x.unfold(2 + d, step - self.stride[d] + self.kernel[d], step)
        grid = range(2, 2 + layout.dims)
        x = x.permute(0, *grid, 1, *range(2 + layout.dims, 2 + 2 * layout.dims))
        index = (ids // layout.num_units, *unravel(ids % layout.num_units, layout.unit_grid))
        return x[index]


def unravel(flat: Tensor, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """Flat raster positions -> one index tensor per dimension of `shape`."""
    indices = []
    for size in reversed(shape):
        indices.append(flat % size)
        flat = flat // size
    return tuple(reversed(indices))


def pixel_mask(keep: Tensor, layout: TokenLayout, clips: Tensor) -> Tensor:
    """Keep mask [B, U] -> 1 for visible pixels, 0 for deleted: [B, 1, *input_size]."""
    mask = keep.view(keep.shape[0], 1, *layout.unit_grid)
    for d, units in enumerate(layout.unit_grid):
        mask = mask.repeat_interleave(clips.shape[2 + d] // units, dim=2 + d)
    return mask.to(clips.dtype)


MOST_SEQUENCES: dict[str, int] = {"cuda": 65_535}
"""Kind of device -> sequences that its attention kernels take in one call: CUDA launches one block
for each along a dimension of the grid that ends there. Other devices know no limit."""


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attend, q [B', h, Nq, d], k and v [B', h, Nk, d], bias [B', h, Nq, Nk] -> [B', h, Nq, d].

    A batch of mask units soon has more sequences than a call may have: 168 clips of 392 units do.
    They are then computed in as few calls as possible, each of about the same size.
    """
    most = MOST_SEQUENCES.get(q.device.type)
    if most is None or q.shape[0] <= most:  # no comparison of a size that an exporter leaves open
        return attention(q, k, v, bias)
    calls = -(-q.shape[0] // most)
    pieces = [(None,) * calls if t is None else t.tensor_split(calls) for t in (q, k, v, bias)]
    return torch.cat([attention(*piece) for piece in zip(*pieces, strict=True)])


class MaskUnitAttention(nn.Module):
    """Multi-head attention inside each mask unit (`local`) or over all units, with Q pooling.

    Both run as fused attention on 4-D tensors: local folds (B, U) into the batch and global
    flattens (U, n), each a view of the same projection (paper, section 3.2, "mask unit attention").
    """

    def __init__(self, dim: int, dim_out: int, heads: int, *, q_pool: int, local: bool) -> None:
        super().__init__()
        self.heads, self.q_pool, self.local = heads, q_pool, local
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.proj = nn.Linear(dim_out, dim_out)

    def forward(self, x: Tensor, skip: int = 0) -> Tensor:
        """[B, U, n, C] -> [B, U - skip, n / q_pool, C_out].

        skip: number of units, the first ones, that are attended to but ask nothing themselves.
        """
        batch, units, n, _ = x.shape
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, U, n, 3, h, d)
        q, k, v = qkv.unbind(3)
        q = q[:, skip:]
        if self.q_pool > 1:
            q = q.unflatten(2, (self.q_pool, -1)).amax(dim=2)
        # local: every unit is a sequence of its own; global: one sequence of all units
        fold = (0, 1) if self.local else (1, 2)
        q, k, v = (t.flatten(*fold).transpose(1, 2) for t in (q, k, v))  # (B', h, N, d)
        x = attend(q, k, v).transpose(1, 2)
        return self.proj(x.reshape(batch, units - skip, n // self.q_pool, -1))


class GELU(nn.Module):
    """The exact (erf) GELU. Without gradients it overwrites its input.

    The hidden layer is the largest tensor of a block. Writing the result to new memory costs 4 % of
    a wide block on a CPU and up to 18 % of a narrow one, mostly because the operating system has to
    provide the pages. Under torch.jit.trace it is never in place: the trace with gradients and the
    one without must be the same graph.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        # torch.jit does not list is_tracing in its __all__
        if torch.is_grad_enabled() or torch.jit.is_tracing():  # type: ignore[attr-defined]
            return F.gelu(x)
        overwritten: Tensor = torch.ops.aten.gelu_(x)
        return overwritten


PIECE_BYTES = 2**24
"""Most bytes of an MLP's hidden layer that a CPU computes at once in blocks with local attention.
glibc takes every piece of memory above 32 MiB anew from the operating system, which clears its
pages; smaller ones are used again, and part of them is still in the cache."""


def by_units(f: Callable[[Tensor], Tensor], x: Tensor, *, hidden: int) -> Tensor:
    """Apply `f`, which treats every unit by itself: [B, U, n, C] -> [B, U, n', C'].

    On a CPU without gradients the units go through it in groups, the hidden layer of a group (of
    `hidden` channels) within `PIECE_BYTES`: 6 to 11 % off the local blocks of Hiera-B on a clip,
    and less memory. With gradients everything is kept anyway. A graph that is exported or compiled
    must not depend on the batch.
    """
    # torch.jit does not list is_tracing in its __all__
    graph = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined]
    if graph or torch.is_grad_enabled() or x.device.type != "cpu":
        return f(x)
    batch, units, tokens, _ = x.shape
    pieces = -(-batch * units * tokens * hidden * x.element_size() // PIECE_BYTES)
    groups = min(pieces, batch * units)
    if groups == 1:
        return f(x)
    done = [f(group.unsqueeze(0)).squeeze(0) for group in x.flatten(0, 1).tensor_split(groups)]
    return torch.cat(done).unflatten(0, (batch, units))


@dataclass(frozen=True)
class BlockConfig:
    """Settings of one transformer block."""

    dim: int
    """Channels of the input."""
    dim_out: int
    """Channels of the output."""
    heads: int
    q_pool: int = 1
    """Tokens of a unit that are pooled into one; 1 for none."""
    local: bool = False
    """Whether attention stays inside mask units."""
    mlp_ratio: float = 4.0
    """Width of the MLP's hidden layer over `dim_out`."""
    drop_path: float = 0.0
    """Probability of skipping a residual branch in training."""


class Block(nn.Module):
    """Transformer block; the first one of a stage also widens and pools (paper, section 3).

    The skip path of such a block projects and pools the *normed* input, as the published
    weights expect.

    Args:
        config: sizes of the block.
        attn: used instead of `MaskUnitAttention`, [B, U, n, dim] -> [B, U, n / q_pool, dim_out].
    """

    def __init__(self, config: BlockConfig, attn: nn.Module | None = None) -> None:
        super().__init__()
        dim, dim_out = config.dim, config.dim_out
        self.q_pool, self.dim_out = config.q_pool, dim_out
        self.local = config.local and attn is None
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        if attn is None:
            attn = MaskUnitAttention(
                dim, dim_out, config.heads, q_pool=config.q_pool, local=config.local
            )
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim_out, eps=LAYER_NORM_EPS)
        self.hidden = int(dim_out * config.mlp_ratio)
        self.mlp = Mlp(dim_out, self.hidden, act_layer=GELU)
        self.drop_path = DropPath(config.drop_path) if config.drop_path > 0 else nn.Identity()
        self.proj = nn.Linear(dim, dim_out) if dim != dim_out else None

    def forward(self, x: Tensor, skip: int = 0) -> Tensor:
        """[B, U, n, C] -> [B, U - skip, n / q_pool, C_out].

        skip: number of units, the first ones, whose outputs are not needed and not computed. For a
            global block with Hiera's own attention that neither widens nor pools.
        """
        if skip:
            return self.add(x[:, skip:], self.attn(self.norm1(x), skip))
        return by_units(self.whole, x, hidden=self.hidden) if self.local else self.whole(x)

    def whole(self, x: Tensor) -> Tensor:
        """`forward` of all units at once."""
        normed = self.norm1(x)
        if self.proj is not None:
            x = self.proj(normed)
        return self.add(self.pool_shortcut(x), self.attn(normed))

    def add(self, x: Tensor, attended: Tensor) -> Tensor:
        """Skip path and result of attention, [B, U, n, C] each -> the block's output."""
        x = x + self.drop_path(attended)
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def pool_shortcut(self, x: Tensor) -> Tensor:
        """[B, U, n, C] -> [B, U, n / q_pool, C]."""
        return max_pool(x, self.q_pool) if self.q_pool > 1 else x


class Head(nn.Module):
    """Dropout and one linear layer. Returns logits, in training and in evaluation."""

    def __init__(self, dim: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.projection = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C] -> logits [B, num_classes]."""
        logits: Tensor = self.projection(self.dropout(x))
        return logits
