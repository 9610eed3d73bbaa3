"""The ladder from MViTv2 to Hiera: what each rung still has that Hiera does without.

A rung is a handful of choices about positions, token order, pooling and attention; everything else
(stem, widths, blocks, head) is the same model. Hiera is what is left when every choice is at its
default, so `Rung()` is Hiera and costs it nothing. The rungs follow the paper's Table 1
(arXiv 2306.00989):

    r0   MViTv2: relative positions, overlapping convolutions pool Q, K and V on the whole grid
    r1   absolute positions; units are cut apart and zero-padded wherever something is pooled
    r2b  the pooling convolutions (and their norms) become max pools
    r2c  max pools of stride 1 are dropped
    r3   kernel = stride: pools no longer overlap, so nothing is cut apart or padded any more
    r4   no residual around the attention from its pooled queries
    r5   attention inside mask units instead of pooled keys and values: Hiera

Where the paper is silent a choice is a field: what a max pool is padded with, how long the pooling
kernels are in time, the strides of K and V, a class token, where a stage's width doubles, in which
order the head averages and norms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hiera_video.errors import UserError

_CHOICES: dict[str, tuple] = {
    "positions": ("absolute", "relative"),
    "tokens": ("unrolled", "units", "grid"),
    "pool_op": ("max", "conv"),
    "pool_kernel": (None, 3),
    "pool_kernel_t": (1, 3),
    "pool_pad": ("zero", "-inf"),
    "expand": ("attn", "mlp"),
    "final": ("mean_norm", "norm_mean", "cls"),
}


@dataclass(frozen=True)
class Rung:
    """The choices in which a rung may differ from Hiera.

    Raises:
        UserError: for a value that is none, or choices that exclude each other.
    """

    positions: str = "absolute"
    """"absolute": learned, added once after the stem. "relative": a table for each axis in every
    block, added to the scores (MViTv2, decomposed)."""
    tokens: str = "unrolled"
    """"unrolled": mask units, in the order in which pooling is a maximum over a leading axis.
    "units": mask units, raster inside. "grid": no units, the whole input in raster order."""
    pool_op: str = "max"
    """"conv": depthwise, followed by a norm over a head's channels."""
    pool_kernel: int | None = None
    """Side of the pooling kernels; None makes them as large as their stride, without overlap."""
    pool_kernel_t: int = 3
    """Length in time of kernels of side 3. In units, which are one step long, 3 sees padding."""
    pool_stride1: bool = False
    """Whether pools whose stride is 1 stay."""
    pool_pad: str = "zero"
    """What overlapping max pools are padded with inside units: "zero" makes them cut off negative
    values at the borders, as the paper observes. On the grid it is always "-inf"."""
    kv_stride: tuple[int, ...] | None = None
    """Stride in space at which each stage pools keys and values; None: not at all."""
    q_residual: bool = False
    """Whether the (pooled) queries are added to what attention returns."""
    unit_attn: bool = True
    """Whether early attention stays inside mask units (where, `mask_unit_attn` says)."""
    cls_token: bool = False
    """A learned token before all others, which is never pooled."""
    expand: str = "attn"
    """Where the width doubles: in a stage's first attention, or in the MLP before it."""
    final: str = "mean_norm"
    """The head's input: norm of the mean over tokens, mean of the normed tokens, or the class
    token."""

    def __post_init__(self) -> None:
        if isinstance(self.kv_stride, list):  # as YAML has it
            object.__setattr__(self, "kv_stride", tuple(self.kv_stride))
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            # 1 == True, and a list is not hashable: compare type and value one by one
            if not any(type(value) is type(other) and value == other for other in allowed):
                listed = ", ".join(repr(other) for other in allowed)
                raise UserError(f"rung: {name}={value!r} must be one of {listed}")
        if not _are_strides(self.kv_stride):
            raise UserError(
                f"rung: kv_stride={self.kv_stride!r} must be None or a whole number from 1 on for "
                "each stage"
            )
        for wrong, reason in self._conflicts():
            if wrong:
                raise UserError(f"rung: {reason}")

    def _conflicts(self) -> list[tuple[bool, str]]:
        grid, unrolled = self.tokens == "grid", self.tokens == "unrolled"
        overlapping = self.pool_kernel is not None
        return [
            (
                self.positions == "relative" and not grid,
                "positions='relative' are those of a whole grid; they need tokens='grid', which "
                "takes no mask",
            ),
            (
                self.cls_token and not grid,
                "cls_token=True needs tokens='grid': mask units have no place for it",
            ),
            (
                self.final == "cls" and not self.cls_token,
                "final='cls' needs cls_token=True",
            ),
            (
                unrolled and self.pool_op == "conv",
                "pool_op='conv' needs tokens='units' or 'grid': unrolled tokens are no picture",
            ),
            (
                unrolled and overlapping,
                f"pool_kernel={self.pool_kernel} overlaps and needs tokens='units' or 'grid'; "
                "unrolled tokens are pooled with pool_kernel=None (kernel = stride)",
            ),
            (
                self.pool_stride1 and not overlapping,
                "pool_stride1=True needs pool_kernel=3: with kernel = stride = 1 nothing is pooled",
            ),
            (
                self.unit_attn and grid,
                "unit_attn=True needs mask units, not tokens='grid'",
            ),
            (
                self.pool_pad != "zero" and not (self.tokens == "units" and overlapping),
                f"pool_pad={self.pool_pad!r} has no effect without tokens='units' and "
                "pool_kernel=3 (the grid is always padded with -inf)",
            ),
        ]


def _are_strides(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, tuple) and all(isinstance(s, int) and s >= 1 for s in value)


_R0 = Rung(
    positions="relative",
    tokens="grid",
    pool_op="conv",
    pool_kernel=3,
    pool_stride1=True,
    kv_stride=(4, 2, 1, 1),
    q_residual=True,
    unit_attn=False,
    final="norm_mean",
)
_R1 = dataclasses.replace(_R0, positions="absolute", tokens="units", final="mean_norm")
_R2B = dataclasses.replace(_R1, pool_op="max")
_R2C = dataclasses.replace(_R2B, pool_stride1=False)
_R3 = dataclasses.replace(_R2C, tokens="unrolled", pool_kernel=None)
_R4 = dataclasses.replace(_R3, q_residual=False)

RUNGS: dict[str, Rung] = {
    "r0": _R0,
    "r1": _R1,
    "r2b": _R2B,
    "r2c": _R2C,
    "r3": _R3,
    "r4": _R4,
    "r5": Rung(),
}
"""The ladder, MViTv2 first; rows base and a to f of the paper's Table 1."""


def as_rung(choices: Rung | Mapping[str, Any] | None, *, base: Rung | None = None) -> Rung:
    """A whole rung, or the choices in which one differs from `base` (Hiera), as a config says them.

    Raises:
        UserError: unknown choices, with the known ones; or as `Rung`.
    """
    if isinstance(choices, Rung):
        return choices
    base = Rung() if base is None else base
    if not isinstance(choices or {}, Mapping):
        raise UserError(f"rung={choices!r} must be a Rung or a mapping of its fields")
    known = [f.name for f in dataclasses.fields(Rung)]
    unknown = sorted(set(choices or {}) - set(known))
    if unknown:
        raise UserError(f"rung has no {', '.join(unknown)}; it has {', '.join(known)}")
    return dataclasses.replace(base, **(choices or {}))
