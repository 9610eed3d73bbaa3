"""The steps of the ladder from MViTv2 to Hiera: what each one still has that Hiera leaves out.

A step is a set of choices about positions, token order, pooling and attention; everything else
(stem, widths, blocks, head) is the same in all models. Hiera is the step in which every choice has
its default: `AblationConfig()` is Hiera. The steps follow the paper's Table 1 (arXiv 2306.00989):

    r0   MViTv2: relative positions, overlapping convolutions pool Q, K and V on the whole grid
    r1   absolute positions; units are separated and zero-padded wherever something is pooled
    r2b  the pooling convolutions (and their norms) become max pools
    r2c  max pools of stride 1 are removed
    r3   kernel = stride: pools no longer overlap, so nothing is separated or padded
    r4   no residual from the pooled queries around attention
    r5   attention inside mask units instead of pooled keys and values: Hiera

What the paper does not say is a choice here too: how max pools are padded, the length of the
pooling kernels in time, the strides of K and V, a class token, where the width of a stage doubles,
and in which order the head averages and norms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hiera_video.errors import UserError

_CHOICES: dict[str, tuple[Any, ...]] = {
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
class AblationConfig:
    """The choices in which a step of the ladder may differ from Hiera.

    Raises:
        UserError: a value is not allowed, or choices exclude each other.
    """

    positions: str = "absolute"
    """"absolute": learned, added once after the stem. "relative": a table for each axis in every
    block, added to the attention scores (MViTv2, decomposed)."""
    tokens: str = "unrolled"
    """"unrolled": mask units, in the order in which pooling is a maximum over a leading axis.
    "units": mask units, raster inside. "grid": no units, the whole input in raster order."""
    pool_op: str = "max"
    """"max", or "conv": a depthwise convolution, then a norm over the channels of a head."""
    pool_kernel: int | None = None
    """Side of the pooling kernels; None: as large as their stride, without overlap."""
    pool_kernel_t: int = 3
    """Length in time of kernels of side 3. Units are one step long: there the outer two of the 3
    see padding only."""
    pool_stride1: bool = False
    """Whether there are pools of stride 1."""
    pool_pad: str = "zero"
    """Padding of overlapping max pools inside units: "zero" makes them cut off negative values at
    the borders, as the paper observes. On the grid it is always "-inf"."""
    kv_stride: tuple[int, ...] | None = None
    """Stride in space at which each stage pools keys and values; None: no pooling."""
    q_residual: bool = False
    """Whether the (pooled) queries are added to the result of attention."""
    unit_attn: bool = True
    """Whether early attention stays inside mask units, in the stages of `mask_unit_attn`."""
    cls_token: bool = False
    """A learned token before all others, which is not pooled."""
    expand: str = "attn"
    """Where the width doubles: in the first attention of a stage, or in the MLP before it."""
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
                raise UserError(f"ablation: {name}={value!r} must be one of {listed}")
        if not _are_strides(self.kv_stride):
            raise UserError(
                f"ablation: kv_stride={self.kv_stride!r} must be None or a whole number from 1 "
                "on for each stage"
            )
        for conflict, reason in self._conflicts():
            if conflict:
                raise UserError(f"ablation: {reason}")

    def _conflicts(self) -> list[tuple[bool, str]]:
        """Return what excludes each other: whether it is the case, and the reason."""
        grid, unrolled = self.tokens == "grid", self.tokens == "unrolled"
        overlapping = self.pool_kernel is not None
        return [
            (
                self.positions == "relative" and not grid,
                "positions='relative' belong to a whole grid; they need tokens='grid', which takes "
                "no mask",
            ),
            (
                self.cls_token and not grid,
                "cls_token=True needs tokens='grid': it belongs to no mask unit",
            ),
            (
                self.final == "cls" and not self.cls_token,
                "final='cls' needs cls_token=True",
            ),
            (
                unrolled and self.pool_op == "conv",
                "pool_op='conv' needs tokens='units' or 'grid': unrolled tokens are not in rows",
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


_R0 = AblationConfig(
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

LADDER: dict[str, AblationConfig] = {
    "r0": _R0,
    "r1": _R1,
    "r2b": _R2B,
    "r2c": _R2C,
    "r3": _R3,
    "r4": _R4,
    "r5": AblationConfig(),
}
"""The steps, MViTv2 first; rows base and a to f of the paper's Table 1."""


def as_ablation(
    choices: AblationConfig | Mapping[str, Any] | None, *, base: AblationConfig | None = None
) -> AblationConfig:
    """Return a whole config as it is, or `base` (Hiera) with the given choices, as in YAML.

    Raises:
        UserError: unknown choices, with the known ones; or as `AblationConfig`.
    """
    if isinstance(choices, AblationConfig):
        return choices
    if not isinstance(choices or {}, Mapping):
        raise UserError(
            f"ablation={choices!r} must be an AblationConfig or a mapping of its fields"
        )
    changes = dict(choices or {})
    known = [f.name for f in dataclasses.fields(AblationConfig)]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise UserError(f"ablation has no {', '.join(unknown)}; it has {', '.join(known)}")
    return dataclasses.replace(base or AblationConfig(), **changes)


def require_mask_units(ablation: AblationConfig) -> None:
    """Raise UserError if a model of this config has no mask units, which masks delete."""
    if ablation.tokens == "grid":
        raise UserError(
            "this model has no mask units to delete: its pools overlap on the whole grid "
            "(MViTv2). From ladder_r1 on, models take masks"
        )
