"""What every model says of an input that it cannot take, before PyTorch says it from far inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hiera_video.errors import UserError


def check_clips(clips: Any, shape: tuple[int, ...], *, weight: Tensor, or_more: int = 0) -> None:
    """Raise UserError unless a model can take `clips`: kind, number format, device and shape.

    Args:
        clips: what the caller gave.
        shape: one clip as the model takes it, (C, T, H, W) or (C, H, W).
        weight: a parameter of the stem, whose number format and device the clips must have.
        or_more: the last so many sizes of `shape` are the least that is allowed.
    """
    if not isinstance(clips, Tensor):
        raise UserError(f"clips is a {type(clips).__name__}; a model takes a torch.Tensor")
    if not _same_shape(tuple(clips.shape[1:]), shape, or_more):
        least = len(shape) - or_more
        sizes = [f"{size} or more" if i >= least else str(size) for i, size in enumerate(shape)]
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


def _same_shape(came: tuple[int, ...], wanted: tuple[int, ...], or_more: int) -> bool:
    if len(came) != len(wanted):
        return False
    least = len(wanted) - or_more
    if came[:least] != wanted[:least]:
        return False
    return all(size >= least for size, least in zip(came[least:], wanted[least:], strict=True))


def _converted_by_autocast(clips: Tensor) -> bool:
    """Autocast converts every float format but float64."""
    return clips.dtype != torch.float64 and torch.is_autocast_enabled(clips.device.type)
