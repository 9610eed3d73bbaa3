"""Attention with pooled queries, keys and values, and its blocks: what Hiera leaves out.

A pool takes tokens [B, U, n, h, d] to [B, U, n', h, d] (h heads, d channels of a head) and comes in
three forms:

* `WindowConv`, `WindowMax`: every unit becomes a small image of its own, padded at its borders, so
  that no value crosses from one unit to another ("separate and pad", paper section 3.2). With the
  whole grid as the only unit they are MViTv2's pools.
* `LeadingMax`: kernel = stride in unrolled order, where the tokens to merge are a leading axis.

The first two copy their input, and that is the cost of the steps that use them; the copies are
those of MViTv2: channels first, heads folded into the batch.

Shapes: B batch, U units, n tokens in a unit, C channels, h heads, d channels of a head.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.errors import UserError
from hiera_video.models.ladder.ablation import AblationConfig
from hiera_video.models.ladder.relative_positions import (
    AXES,
    distance_index,
    relative_bias,
    table_length,
)
from hiera_video.models.layers import LAYER_NORM_EPS, Block, BlockConfig, attend, convolve
from hiera_video.models.tokens import TokenLayout

MAX_POOL: Mapping[int, Callable[..., Tensor]] = {
    1: F.max_pool1d,
    2: F.max_pool2d,
    3: F.max_pool3d,
}


@dataclass(frozen=True)
class Window:
    """A pooling window on units (or on the grid) of one size."""

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
        """Return how many steps in time are pooled one by one, and the window on each.

        A window in space alone needs no 3-D pool, which is much slower than a 2-D one.
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
            x, padding = F.pad(x, self.zeros), (0,) * len(padding)
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
    """Multi-head attention with pooled Q, K and V.

    Parameters have MViTv2's published names: `pool_q.weight`, `norm_q.weight`, `rel_pos_h`.

    Args:
        config: width before and after, heads, and whether attention stays inside units.
        pools: pools of Q, K and V; None for one that is not pooled.
        norm: whether a LayerNorm over the channels of a head follows each pool.
        residual: add the pooled queries to the result.
        cls: the first token is a class token: not pooled, no residual, no position.
        grids: tokens of queries and of keys along each dimension, for relative positions; None
            for attention without them.
    """

    pool_q: nn.Module | None
    pool_k: nn.Module | None
    pool_v: nn.Module | None
    norm_q: nn.Module | None
    norm_k: nn.Module | None
    norm_v: nn.Module | None

    def __init__(
        self,
        config: BlockConfig,
        *,
        pools: Sequence[nn.Module | None],
        norm: bool,
        residual: bool,
        cls: bool = False,
        grids: tuple[Sequence[int], Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.local = config.heads, config.local
        self.residual, self.cls = residual, cls
        self.qkv = nn.Linear(config.dim, 3 * config.dim_out)
        self.proj = nn.Linear(config.dim_out, config.dim_out)
        channels = config.dim_out // config.heads
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
        x = attend(q, k, v, self._bias(q))
        if self.residual:
            x = x + self._without_cls(q)
        mixed = x.transpose(1, 2).reshape(batch, units, -1, x.shape[1] * x.shape[3])
        out: Tensor = self.proj(mixed)
        return out

    def _pooled(self, t: Tensor, pool: nn.Module | None, norm: nn.Module | None) -> Tensor:
        """[B, U, n, h, d] -> [B, U, n', h, d]. A class token is not pooled, but it is normed."""
        if pool is not None:
            t = torch.cat((t[:, :, :1], pool(t[:, :, 1:])), dim=2) if self.cls else pool(t)
        return t if norm is None else norm(t)

    def _bias(self, q: Tensor) -> Tensor | None:
        """Return what relative positions add to the scores, [B', h, Nq, Nk]; None without them."""
        if not self.axes:
            return None
        tables = [getattr(self, f"rel_pos_{axis}") for axis in self.axes]
        indices = [getattr(self, f"index_{axis}") for axis in self.axes]
        return relative_bias(q, tables, indices, cls=self.cls)

    def _without_cls(self, q: Tensor) -> Tensor:
        """Return the queries [B', h, N, d] with zeros for a class token, which has no residual."""
        return F.pad(q[:, :, 1:], (0, 0, 1, 0)) if self.cls else q


class ShortcutPool(nn.Module):
    """Max pool on the skip path, [B, U, n, C]; a class token is not pooled."""

    def __init__(self, pool: nn.Module, *, cls: bool) -> None:
        super().__init__()
        self.pool, self.cls = pool, cls

    def forward(self, x: Tensor) -> Tensor:
        """[B, U, n, C] -> [B, U, n', C]."""
        if not self.cls:
            return self._pooled(x)
        return torch.cat((x[:, :, :1], self._pooled(x[:, :, 1:])), dim=2)

    def _pooled(self, x: Tensor) -> Tensor:
        one_head: Tensor = self.pool(x.unsqueeze(3))
        return one_head.squeeze(3)


class PoolingBlock(Block):
    """A block whose attention or skip path pools in another way than Hiera's.

    Args:
        config: sizes of the block.
        attn: its attention; None for Hiera's.
        shortcut_pool: pool of the skip path; None for Hiera's.
    """

    def __init__(
        self, config: BlockConfig, attn: nn.Module | None, shortcut_pool: nn.Module | None
    ) -> None:
        super().__init__(config, attn)
        self.shortcut_pool = shortcut_pool
        self.local = self.local and shortcut_pool is None  # the pool may work on the whole grid

    def pool_shortcut(self, x: Tensor) -> Tensor:
        """[B, U, n, C] -> [B, U, n', C]."""
        if self.shortcut_pool is None:
            return super().pool_shortcut(x)
        pooled: Tensor = self.shortcut_pool(x)
        return pooled


class MlpExpandBlock(PoolingBlock):
    """A block whose MLP widens, `config.dim` -> `dim_out`, where its attention does not (MViTv2-L).

    The skip path around the MLP projects the normed tokens, as the one around attention does in a
    block whose attention widens.
    """

    def __init__(
        self,
        config: BlockConfig,
        attn: nn.Module | None,
        shortcut_pool: nn.Module | None,
        *,
        dim_out: int,
    ) -> None:
        super().__init__(config, attn, shortcut_pool)
        self.dim_out = dim_out
        self.mlp.fc2 = nn.Linear(self.mlp.fc1.out_features, dim_out)
        self.proj: nn.Linear = nn.Linear(config.dim, dim_out)

    def whole(self, x: Tensor) -> Tensor:
        """[B, U, n, C] -> [B, U, n', C_out]."""
        normed = self.norm1(x)
        x = self.pool_shortcut(x) + self.drop_path(self.attn(normed))
        normed = self.norm2(x)
        out: Tensor = self.proj(normed) + self.drop_path(self.mlp(normed))
        return out


# ---- from an ablation config to modules ----------------------------------------------------------


@dataclass(frozen=True)
class BlockPlace:
    """Where in the network a block is, and what its pools work on."""

    layout: TokenLayout
    pools_before: int
    """Query poolings before the block."""
    kv_stride: int
    """Stride of its keys and values in space."""
    dim_out: int
    """Channels after its MLP; `BlockConfig.dim_out` is after its attention."""


def make_block(ablation: AblationConfig, config: BlockConfig, place: BlockPlace) -> Block:
    """Build a block of a step of the ladder.

    Args:
        ablation: the step.
        config: what Hiera would build there.
        place: where it is.

    Raises:
        UserError: a stride does not fit the unit.
    """
    layout, unrolled = place.layout, ablation.tokens == "unrolled"
    maker = PoolMaker(ablation, place, channels=config.dim_out // config.heads)
    pools_queries = config.q_pool > 1
    q_stride = layout.q_stride if pools_queries else (1,) * layout.dims
    kv_stride = maker.in_space(place.kv_stride)
    pools = [maker.pool(q_stride), maker.pool(kv_stride), maker.pool(kv_stride)]
    attn = None
    # what Hiera's own attention can do is left to it
    if ablation.q_residual or not unrolled or any(pools[1:]):
        relative = ablation.positions == "relative"
        attn = PoolingAttention(
            config,
            pools=pools,
            norm=ablation.pool_op == "conv",
            residual=ablation.q_residual,
            cls=ablation.cls_token,
            grids=maker.grids(q_stride, kv_stride) if relative else None,
        )
    shortcut_pool = maker.shortcut(q_stride) if pools_queries and not unrolled else None
    if not unrolled:
        config = dataclasses.replace(config, q_pool=1)
    if place.dim_out != config.dim_out:
        return MlpExpandBlock(config, attn, shortcut_pool, dim_out=place.dim_out)
    return PoolingBlock(config, attn, shortcut_pool)


class PoolMaker:
    """Builds the pools of one block, whose heads have `channels` channels."""

    def __init__(self, ablation: AblationConfig, place: BlockPlace, *, channels: int) -> None:
        self.ablation, self.place, self.channels = ablation, place, channels
        self.unit = place.layout.unit_shape(place.pools_before)

    def in_space(self, stride: int) -> tuple[int, ...]:
        """Return a stride along the dimensions that queries are pooled along: not along time."""
        return tuple(stride if s > 1 else 1 for s in self.place.layout.q_stride)

    def pool(self, stride: Sequence[int]) -> nn.Module | None:
        """Build the pool of Q, K or V with this stride; None if there is none."""
        ablation = self.ablation
        if math.prod(stride) == 1 and not ablation.pool_stride1:
            return None
        if ablation.tokens == "unrolled":
            return LeadingMax(self._leading(stride))
        window = self.window(stride)
        if ablation.pool_op == "conv":
            return WindowConv(self.channels, window)
        return WindowMax(window, zero_pad=self._zero_pad)

    def shortcut(self, stride: Sequence[int]) -> ShortcutPool:
        """Build the max pool of the skip path; its kernel is 1 in dimensions of stride 1."""
        overlapping = self.ablation.pool_kernel is not None
        kernel = tuple(s + 1 if s > 1 and overlapping else s for s in stride)
        window = self._fitted(kernel, stride)
        return ShortcutPool(WindowMax(window, zero_pad=self._zero_pad), cls=self.ablation.cls_token)

    def window(self, stride: Sequence[int]) -> Window:
        """Return the window of Q, K and V pools with this stride."""
        side = self.ablation.pool_kernel
        if side is None:
            return self._fitted(tuple(stride), stride)
        time = (self.ablation.pool_kernel_t,) if len(stride) == 3 else ()
        return self._fitted((*time, *[side] * (len(stride) - len(time))), stride)

    def grids(
        self, q_stride: Sequence[int], kv_stride: Sequence[int]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the tokens of queries and of keys along each dimension."""
        return self.window(q_stride).pooled, self.window(kv_stride).pooled

    @property
    def _zero_pad(self) -> bool:
        return self.ablation.tokens == "units" and self.ablation.pool_pad == "zero"

    def _fitted(self, kernel: tuple[int, ...], stride: Sequence[int]) -> Window:
        overlapping = self.ablation.pool_kernel is not None
        if not overlapping and any(u % s for u, s in zip(self.unit, stride, strict=True)):
            raise self._misfit(stride)
        padding = tuple(k // 2 if overlapping else 0 for k in kernel)
        return Window(self.unit, kernel, tuple(stride), padding)

    def _leading(self, stride: Sequence[int]) -> int:
        """Return the length of the leading axis of n that a stride merges."""
        layout = self.place.layout
        for levels in range(1, layout.num_pools - self.place.pools_before + 1):
            if tuple(stride) == tuple(s**levels for s in layout.q_stride):
                return math.prod(stride)
        raise self._misfit(stride)

    def _misfit(self, stride: Sequence[int]) -> UserError:
        return UserError(
            f"ablation: a pool of stride {tuple(stride)} does not tile units of {self.unit} tokens"
        )
