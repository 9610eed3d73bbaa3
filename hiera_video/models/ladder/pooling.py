"""Pooling of queries, keys and values, and the attention around it: what Hiera leaves out.

A pool takes tokens [B, U, n, h, d] to [B, U, n', h, d] (h heads, d channels of a head) and comes in
three forms:

* `WindowConv`, `WindowMax`: every unit is cut out and becomes a small picture, padded at its
  borders, so that no value crosses from one unit to another ("separate and pad", paper section
  3.2). With the whole grid as the only unit they are MViTv2's pools.
* `LeadingMax`: kernel = stride in unrolled order, where the tokens to merge are a leading axis.

The copies around the first two are what those rungs cost; they are kept as they are in MViTv2:
channels first, heads folded into the batch.

Shapes: B batch, U units, n tokens in a unit, C channels, h heads, d channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.errors import UserError
from hiera_video.models.ladder.ablation import Rung
from hiera_video.models.ladder.relative_positions import (
    AXES,
    distance_index,
    relative_bias,
    table_length,
)
from hiera_video.models.layers import LAYER_NORM_EPS, Block, convolve
from hiera_video.models.tokens import TokenLayout

MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


@dataclass(frozen=True)
class Window:
    """One kind of pooling window on units (or on the grid) of one size."""

    unit: tuple[int, ...]
    """Tokens of a unit along each dimension, before pooling."""
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]

    @property
    def pooled(self) -> tuple[int, ...]:
        """Tokens of a unit along each dimension, after pooling."""
        return tuple(
            (u + 2 * p - k) // s + 1
            for u, k, s, p in zip(self.unit, self.kernel, self.stride, self.padding, strict=True)
        )

    def as_pictures(self) -> tuple[int, Window]:
        """Steps in time that a pool works on one by one, and its window on each.

        A window in space alone needs no 3-D pool, which is much slower than one on pictures.
        """
        if len(self.unit) < 3 or (self.kernel[0], self.stride[0]) != (1, 1):
            return 1, self
        plane = Window(self.unit[1:], self.kernel[1:], self.stride[1:], self.padding[1:])
        return self.unit[0], plane


class WindowMax(nn.Module):
    """Max pool inside each unit, padded with zeros or with -inf."""

    def __init__(self, window: Window, *, zero_pad: bool) -> None:
        super().__init__()
        self.steps, self.window = window.as_pictures()
        self.zeros = [p for pad in reversed(self.window.padding) for p in (pad, pad)]
        self.zero_pad = zero_pad and any(self.zeros)

    def forward(self, t: Tensor) -> Tensor:
        """[B, U, n, h, d] -> [B, U, n', h, d]."""
        x, window = to_pictures(t, self.steps, self.window.unit), self.window
        pool, padding = MAX_POOL[len(window.unit)], window.padding
        if self.zero_pad:
            x, padding = F.pad(x, self.zeros), 0
        x = pool(x, window.kernel, stride=window.stride, padding=padding)
        return from_pictures(x, self.steps, like=t)


class WindowConv(nn.Module):
    """Depthwise convolution inside each unit, padded with zeros; all heads share its filters."""

    def __init__(self, channels: int, window: Window) -> None:
        super().__init__()
        self.steps, self.window = window.as_pictures()
        self.weight = nn.Parameter(torch.empty(channels, 1, *window.kernel))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, t: Tensor) -> Tensor:
        """[B, U, n, h, d] -> [B, U, n', h, d]."""
        window = self.window
        x = convolve(
            to_pictures(t, self.steps, window.unit),
            self.weight.view(-1, 1, *window.kernel),
            stride=window.stride,
            padding=window.padding,
            groups=self.weight.shape[0],
        )
        return from_pictures(x, self.steps, like=t)


class LeadingMax(nn.Module):
    """Max over the leading `factor` of n: pooling with kernel = stride in unrolled order."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, t: Tensor) -> Tensor:
        """[B, U, n, h, d] -> [B, U, n / factor, h, d]."""
        return t.unflatten(2, (self.factor, -1)).amax(dim=2)


def to_pictures(t: Tensor, steps: int, unit: Sequence[int]) -> Tensor:
    """[B, U, steps * n, h, d] -> [B * U * steps * h, d, *unit], contiguous."""
    x = t.unflatten(2, (steps, -1)).permute(0, 1, 2, 4, 5, 3)  # (B, U, steps, h, d, n)
    # with one head the reshape alone would be a view with gaps
    return x.reshape(-1, t.shape[-1], *unit).contiguous()


def from_pictures(x: Tensor, steps: int, *, like: Tensor) -> Tensor:
    """[B * U * steps * h, d, *unit] -> [B, U, steps * n', h, d], contiguous for attention."""
    batch, units, _, heads, channels = like.shape
    x = x.reshape(batch, units, steps, heads, channels, -1).permute(0, 1, 2, 5, 3, 4)
    # with one step the reshape alone would be a view, its channels apart
    return x.reshape(batch, units, -1, heads, channels).contiguous()


class PoolingAttention(nn.Module):
    """Multi-head attention with pooled Q, K and V, as far as its pools are there.

    Parameters have MViTv2's published names: `pool_q.weight`, `norm_q.weight`, `rel_pos_h`.

    Args:
        dim, dim_out, heads: width before and after, and heads.
        pools: of Q, K and V; None where there is nothing to pool.
        norm: whether a LayerNorm over a head's channels follows each pool.
        residual: add the pooled queries to the result.
        local: attend inside each unit instead of over all units.
        cls: the first token is a class token: not pooled, no residual, no position.
        grids: tokens of queries and of keys along each dimension where relative positions are
            wanted.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        heads: int,
        *,
        pools: Sequence[nn.Module | None],
        norm: bool,
        residual: bool,
        local: bool = False,
        cls: bool = False,
        grids: tuple[Sequence[int], Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.residual, self.local, self.cls = heads, residual, local, cls
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.proj = nn.Linear(dim_out, dim_out)
        channels = dim_out // heads
        for name, pool in zip("qkv", pools, strict=True):
            normed = norm and pool is not None
            setattr(self, f"pool_{name}", pool)
            setattr(
                self,
                f"norm_{name}",
                nn.LayerNorm(channels, eps=LAYER_NORM_EPS) if normed else None,
            )
        self.axes = AXES[len(grids[0])] if grids else ""
        for axis, queries, keys in zip(self.axes, *(grids or ((), ())), strict=True):
            table = torch.zeros(table_length(queries, keys), channels)
            self.register_parameter(f"rel_pos_{axis}", nn.Parameter(table))
            index = distance_index(queries, keys)
            self.register_buffer(f"index_{axis}", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, U, n, C] -> [B, U, n', C_out]."""
        batch, units = x.shape[:2]
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, U, n, 3, h, d)
        q, k, v = qkv.unbind(3)
        q = self._pooled(q, self.pool_q, self.norm_q)
        k = self._pooled(k, self.pool_k, self.norm_k)
        v = self._pooled(v, self.pool_v, self.norm_v)
        # local: every unit is a sequence of its own; global: one sequence of all units
        fold = (0, 1) if self.local else (1, 2)
        q, k, v = (t.flatten(*fold).transpose(1, 2) for t in (q, k, v))  # (B', h, N, d)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=self._bias(q))
        if self.residual:
            x = x + self._without_cls(q)
        return self.proj(x.transpose(1, 2).reshape(batch, units, -1, x.shape[1] * x.shape[3]))

    def _pooled(self, t: Tensor, pool: nn.Module | None, norm: nn.Module | None) -> Tensor:
        """[B, U, n, h, d] -> [B, U, n', h, d]; a class token skips the pool but not the norm."""
        if pool is not None:
            t = torch.cat((t[:, :, :1], pool(t[:, :, 1:])), dim=2) if self.cls else pool(t)
        return t if norm is None else norm(t)

    def _bias(self, q: Tensor) -> Tensor | None:
        if not self.axes:
            return None
        tables = [getattr(self, f"rel_pos_{axis}") for axis in self.axes]
        indices = [getattr(self, f"index_{axis}") for axis in self.axes]
        return relative_bias(q, tables, indices, cls=self.cls)

    def _without_cls(self, q: Tensor) -> Tensor:
        """Queries [B', h, N, d], the class token's zero: it has no residual."""
        return F.pad(q[:, :, 1:], (0, 0, 1, 0)) if self.cls else q


class ShortcutPool(nn.Module):
    """A window's max pool on the skip path, [B, U, n, C]; a class token passes it by."""

    def __init__(self, pool: nn.Module, *, cls: bool) -> None:
        super().__init__()
        self.pool, self.cls = pool, cls

    def forward(self, x: Tensor) -> Tensor:
        """[B, U, n, C] -> [B, U, n', C]."""
        if not self.cls:
            return self.pool(x.unsqueeze(3)).squeeze(3)
        return torch.cat((x[:, :, :1], self.pool(x[:, :, 1:].unsqueeze(3)).squeeze(3)), dim=2)


class MlpExpandBlock(Block):
    """A block whose MLP widens, C -> C_out, where its attention does not (MViTv2-L).

    The skip path around the MLP projects the normed tokens, as that around attention does in a
    block whose attention widens.
    """

    def __init__(self, dim: int, dim_out: int, heads: int, *, mlp_ratio: float, **kwargs) -> None:
        super().__init__(dim, dim, heads, mlp_ratio=mlp_ratio, **kwargs)
        self.mlp.fc2 = nn.Linear(self.mlp.fc1.out_features, dim_out)
        self.proj = nn.Linear(dim, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, U, n, C] -> [B, U, n', C_out]."""
        normed = self.norm1(x)
        x = self.pool_shortcut(x) + self.drop_path(self.attn(normed))
        normed = self.norm2(x)
        return self.proj(normed) + self.drop_path(self.mlp(normed))


# ---- from choices to modules ----------------------------------------------------------------


def block_for(
    rung: Rung,
    layout: TokenLayout,
    dims: tuple[int, int, int],
    heads: int,
    *,
    pools_before: int,
    pools_queries: bool,
    kv_stride: int,
    local: bool,
    mlp_ratio: float,
    drop_path: float,
) -> Block:
    """The block of a rung at one place of the network.

    Args:
        rung, layout: of the encoder.
        dims: channels before the block, after its attention and after its MLP.
        heads: of its attention.
        pools_before: query poolings before this block.
        pools_queries: whether it is one that pools its queries.
        kv_stride: stride of its keys and values in space.
        local: whether its attention stays inside units.
        mlp_ratio, drop_path: see `Block`.

    Raises:
        UserError: where a stride does not fit the unit.
    """
    dim, dim_attn, dim_out = dims
    places = _Places(rung, layout, pools_before, dim_attn // heads)
    q_stride = layout.q_stride if pools_queries else (1,) * layout.dims
    pools = [places.pool(q_stride), *(places.pool(places.in_space(kv_stride)) for _ in range(2))]
    unrolled = rung.tokens == "unrolled"
    attn = None
    # what Hiera's own attention can do is left to it
    if rung.q_residual or not unrolled or any(pools[1:]):
        attn = PoolingAttention(
            dim,
            dim_attn,
            heads,
            pools=pools,
            norm=rung.pool_op == "conv",
            residual=rung.q_residual,
            local=local,
            cls=rung.cls_token,
            grids=places.grids(q_stride, kv_stride) if rung.positions == "relative" else None,
        )
    arguments = {
        "mlp_ratio": mlp_ratio,
        "drop_path": drop_path,
        "q_pool": layout.pool_factor if pools_queries and unrolled else 1,
        "local": local,
        "attn": attn,
        "shortcut_pool": places.shortcut(q_stride) if pools_queries and not unrolled else None,
    }
    if dim_out != dim_attn:
        return MlpExpandBlock(dim, dim_out, heads, **arguments)
    return Block(dim, dim_attn, heads, **arguments)


class _Places:
    """What pools of a rung look like on units after so many poolings."""

    def __init__(self, rung: Rung, layout: TokenLayout, pools: int, channels: int) -> None:
        self.rung, self.layout, self.pools, self.channels = rung, layout, pools, channels
        self.unit = layout.unit_shape(pools)

    def in_space(self, stride: int) -> tuple[int, ...]:
        """A stride along the dimensions that queries are pooled along: not along time."""
        return tuple(stride if s > 1 else 1 for s in self.layout.q_stride)

    def pool(self, stride: Sequence[int]) -> nn.Module | None:
        """The pool of this stride, None where there is none."""
        rung = self.rung
        if math.prod(stride) == 1 and not rung.pool_stride1:
            return None
        if rung.tokens == "unrolled":
            return LeadingMax(self._leading(stride))
        window = self.window(stride)
        if rung.pool_op == "conv":
            return WindowConv(self.channels, window)
        return WindowMax(window, zero_pad=self._zero_pad)

    def shortcut(self, stride: Sequence[int]) -> ShortcutPool:
        """The skip path's max pool; its kernel does not reach along what it does not stride."""
        kernel = tuple(s + 1 if s > 1 and self.rung.pool_kernel is not None else s for s in stride)
        window = self._fitted(kernel, stride)
        return ShortcutPool(WindowMax(window, zero_pad=self._zero_pad), cls=self.rung.cls_token)

    def window(self, stride: Sequence[int]) -> Window:
        """The window of Q, K and V pools of a stride."""
        side = self.rung.pool_kernel
        if side is None:
            return self._fitted(tuple(stride), stride)
        time = (self.rung.pool_kernel_t,) if len(stride) == 3 else ()
        return self._fitted((*time, *[side] * (len(stride) - len(time))), stride)

    def grids(
        self, q_stride: Sequence[int], kv_stride: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens of queries and of keys along each dimension."""
        return self.window(q_stride).pooled, self.window(self.in_space(kv_stride)).pooled

    @property
    def _zero_pad(self) -> bool:
        return self.rung.tokens == "units" and self.rung.pool_pad == "zero"

    def _fitted(self, kernel: tuple[int, ...], stride: Sequence[int]) -> Window:
        overlapping = self.rung.pool_kernel is not None
        if not overlapping and any(u % s for u, s in zip(self.unit, stride, strict=True)):
            raise self._misfit(stride)
        padding = tuple(k // 2 if overlapping else 0 for k in kernel)
        return Window(self.unit, kernel, tuple(stride), padding)

    def _leading(self, stride: Sequence[int]) -> int:
        """Length of the leading axis of n that a stride merges."""
        for levels in range(1, self.layout.num_pools - self.pools + 1):
            if tuple(stride) == tuple(s**levels for s in self.layout.q_stride):
                return math.prod(stride)
        raise self._misfit(stride)

    def _misfit(self, stride: Sequence[int]) -> UserError:
        return UserError(
            f"rung: a pool of stride {tuple(stride)} does not tile units of {self.unit} tokens"
        )
