"""The check of a model's input: clear messages, before PyTorch fails in some inner layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hiera_video.errors import UserError


def check_clips(clips: Any, shape: tuple[int, ...], *, weight: Tensor, or_more: int = 0) -> None:
    """Raise UserError unless a model can take `clips`: type, dtype, device and shape.

    Args:
        clips: the caller's input.
        shape: shape of one clip, (C, T, H, W) or (C, H, W).
        weight: a parameter of the stem, whose dtype and device the clips must have.
        or_more: the last `or_more` sizes of `shape` are minima: larger ones are allowed.
    """
    if not isinstance(clips, Tensor):
        raise UserError(f"clips is a {type(clips).__name__}; a model takes a torch.Tensor")
    if not _fits(tuple(clips.shape[1:]), shape, or_more):
        exact = len(shape) - or_more
        sizes = [f"{size} or more" if i >= exact else str(size) for i, size in enumerate(shape)]
        raise UserError(
            f"input of shape {tuple(clips.shape)}; this model takes [B, {', '.join(sizes)}] "
            "(build it with input_size= for another size)"
        )
    if clips.shape[0] == 0:
        raise UserError(f"input of shape {tuple(clips.shape)} holds no clips; at least 1 is needed")
    if not clips.is_floating_point():
        raise UserError(
            f"clips are {clips.dtype}; a model takes normalised floats: "
            "(clips / 255 - mean) / std, with the mean and std of its weights"
        )
    if clips.device != weight.device:
        raise UserError(
            f"clips are on {clips.device} and the model is on {weight.device}; "
            f"move one: clips.to({str(weight.device)!r})"
        )
    if clips.dtype != weight.dtype and not _converted_by_autocast(clips):
        raise UserError(
            f"clips are {clips.dtype} and the model's weights {weight.dtype}; "
            f"convert one: clips.to({weight.dtype}), or run under torch.autocast"
        )


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...], or_more: int) -> bool:
    """Whether a shape is the wanted one, or larger in its last `or_more` sizes."""
    if len(shape) != len(wanted):
        return False
    exact = len(wanted) - or_more
    if shape[:exact] != wanted[:exact]:
        return False
    return all(size >= least for size, least in zip(shape[exact:], wanted[exact:], strict=True))


def _converted_by_autocast(clips: Tensor) -> bool:
    """Whether autocast is on and converts the clips: every float dtype but float64."""
    return clips.dtype != torch.float64 and torch.is_autocast_enabled(clips.device.type)
