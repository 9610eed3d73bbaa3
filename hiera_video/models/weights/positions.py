"""Position embeddings of a checkpoint, resized or converted to those of the model.

The arithmetic is in `models/pos_embed.py`; here it is decided which embedding was learned for which
grid. What cannot be understood is left as it is, and the comparison of shapes reports it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hiera_video.models.pos_embed import (
    abs_win_embedding,
    resize_joint,
    resize_plane,
    resize_spatial,
    resize_temporal,
    split_abs_win,
)
from hiera_video.models.weights.fit import Fit, TokenGrid

POSITIONS = (
    "pos_embed",
    "pos_embed_spatial",
    "pos_embed_temporal",
    "pos_embed_window",
    "decoder_pos_embed",
)


def fit_positions(fit: Fit) -> None:
    """Resize or convert position embeddings that were learned for another size."""
    _fit_relative(fit)
    if fit.grid is None or not all(_is_sound(fit, name) for name in POSITIONS):
        return
    layout = fit.grid.layout
    source, target = _source_grid(fit, fit.grid), tuple(layout.grid)
    if "pos_embed_temporal" in fit.model_state:
        _fit_temporal(fit, target[0])
        _fit_plane(fit, "pos_embed_spatial", source and source[-2:], target[-2:])
    elif len(target) == 2:
        _fit_plane(fit, "pos_embed", source, target)
    else:
        _fit_joint(fit, "pos_embed", source, target)
    if "decoder_pos_embed" in fit.model_state:
        pools = fit.grid.q_pool
        shrink = [stride**pools for stride in layout.q_stride]
        source = source and tuple(g // s for g, s in zip(source, shrink, strict=True))
        _fit_joint(fit, "decoder_pos_embed", source, layout.grid_shape(pools))


def _is_sound(fit: Fit, name: str) -> bool:
    """Whether an embedding, if the checkpoint has it, is of the kind the steps below expect."""
    embed = fit.tensors.get(name)
    if embed is None:
        return True
    dims = (3,) if name in ("pos_embed_temporal", "decoder_pos_embed") else (3, 4)
    return embed.dim() in dims and embed.shape[0] == 1 and embed.numel() > 0


def _source_grid(fit: Fit, grid: TokenGrid) -> tuple[int, ...] | None:
    """Tokens of the checkpoint's input along each dimension; None where that is not known.

    From the input size that the checkpoint records; else, where the number of tokens is the
    model's own, the model's grid; else a square.
    """
    target = tuple(grid.layout.grid)
    frames = fit.tensors.get("pos_embed_temporal")
    time = target[:-2] if frames is None else (frames.shape[1],)
    size = fit.checkpoint.model_kwargs.get("input_size")
    if size is not None and _is_size(size):
        known = [s // p for s, p in zip(size[::-1], grid.patch_stride[::-1], strict=False)][::-1]
        # the size of an inflated image lacks the axis in time that its embedding has by now
        return tuple(known) if len(known) == len(target) else (*time, *known)
    space = fit.tensors.get("pos_embed" if frames is None else "pos_embed_spatial")
    if space is None or space.dim() == 4:  # absolute windows fit any grid
        return *time, *target[-2:]
    tokens, joint = space.shape[1], frames is None and len(target) == 3
    if tokens == math.prod(target if joint else target[-2:]):
        return *time, *target[-2:]
    side = math.isqrt(tokens)
    return None if joint or side * side != tokens else (*time, side, side)


def _is_size(size: object) -> bool:
    """Whether what a file records as its input size is one."""
    return (
        isinstance(size, list | tuple)
        and len(size) in (2, 3)
        and all(isinstance(side, int) and side > 0 for side in size)
    )


def _fit_temporal(fit: Fit, length: int) -> None:
    name = "pos_embed_temporal"
    embed = fit.tensors.get(name)
    if embed is not None and embed.shape[1] != length:
        resize = Resize((embed.shape[1],), (length,), "linear")
        _put(fit, name, resize_temporal(embed, length), resize)


def _fit_plane(fit: Fit, name: str, source: Sequence[int] | None, target: Sequence[int]) -> None:
    """A spatial embedding, in the checkpoint and in the model plain or in absolute windows."""
    embed, window = fit.tensors.get(name), fit.model_state.get("pos_embed_window")
    if embed is None or name not in fit.model_state:
        return
    if embed.dim() == 4 and window is not None:
        before, after = tuple(embed.shape[2:]), tuple(fit.model_state[name].shape[2:])
        if before != after:
            _put(fit, name, resize_plane(embed, after), Resize(before, after, "bicubic"))
    elif embed.dim() == 4:
        _add_windows(fit, name, target)
    elif source is None or embed.shape[1] != math.prod(source):
        return
    elif window is not None:
        _split_windows(fit, name, source, window=tuple(window.shape[2:]))
    elif tuple(source) != tuple(target):
        resize = Resize(source, target, "bicubic")
        _put(fit, name, resize_spatial(embed, source, target), resize)


def _fit_joint(fit: Fit, name: str, source: Sequence[int] | None, target: Sequence[int]) -> None:
    """An embedding over time and space at once; over space alone for images."""
    embed = fit.tensors.get(name)
    if embed is None or source is None or embed.dim() != 3 or embed.shape[1] != math.prod(source):
        return
    if tuple(source) != tuple(target):
        still = (1,) if len(target) == 2 else ()
        resized = resize_joint(embed, (*still, *source), (*still, *target))
        _put(fit, name, resized, Resize(source, target, "linear in time, bicubic in space"))


def _fit_relative(fit: Fit) -> None:
    """Tables of relative positions of another length, in every block."""
    lengths = set()
    for name, wanted in fit.model_state.items():
        table = fit.tensors.get(name)
        if ".rel_pos_" not in name or table is None or not _differs_in_length(table, wanted):
            continue
        lengths.add((table.shape[0], wanted.shape[0]))
        fit.tensors[name] = resize_temporal(table[None], wanted.shape[0])[0]
        fit.resized.append(name)
    if lengths:
        listed = ", ".join(f"{before} to {after}" for before, after in sorted(lengths))
        fit.notes.append(f"tables of relative positions resized from {listed} distances (linear)")


def _differs_in_length(table: Tensor, wanted: Tensor) -> bool:
    """Whether a table differs from the wanted one in nothing but its length."""
    return bool(
        table.is_floating_point()
        and table.dim() == wanted.dim() == 2
        and table.shape[1:] == wanted.shape[1:]
        and 0 < table.shape[0] != wanted.shape[0]
    )


def _add_windows(fit: Fit, name: str, target: Sequence[int]) -> None:
    """Absolute windows for a model with a plain embedding: exact, for the size of the model."""
    window = fit.tensors.get("pos_embed_window")
    if window is None or window.dim() != 4 or window.shape[1] != fit.tensors[name].shape[1]:
        return
    if any(side % step for side, step in zip(target, window.shape[2:], strict=True)):
        return
    fit.tensors[name] = abs_win_embedding(window, fit.tensors[name], target)
    del fit.tensors["pos_embed_window"]
    fit.resized.append(name)
    fit.notes.append(f"{name}: window and global part added up to one of {_by(target)} tokens")


def _split_windows(fit: Fit, name: str, source: Sequence[int], *, window: Sequence[int]) -> None:
    """A plain embedding for a model with absolute windows: an approximate split, and its loss."""
    if any(side % step for side, step in zip(source, window, strict=True)):
        return
    overall = tuple(fit.model_state[name].shape[2:])
    part, rest, lost = split_abs_win(fit.tensors[name], source, window=window, overall=overall)
    fit.tensors[name], fit.tensors["pos_embed_window"] = rest, part
    fit.resized += [name, "pos_embed_window"]
    fit.notes.append(
        f"{name} of {_by(source)} tokens split into a window part ({_by(window)}) and a global "
        f"part ({_by(overall)}): an approximation that loses {lost:.0%} of its variation; "
        "fine-tune before trusting scores"
    )


@dataclass(frozen=True)
class Resize:
    """From which grid to which an embedding was resized, and how."""

    source: Sequence[int]
    target: Sequence[int]
    method: str

    def __str__(self) -> str:
        return f"resized from {_by(self.source)} to {_by(self.target)} tokens ({self.method})"


def _put(fit: Fit, name: str, value: Tensor, resize: Resize) -> None:
    """Replace an embedding of the checkpoint by a resized one, with a note."""
    fit.tensors[name] = value
    fit.resized.append(name)
    fit.notes.append(f"{name} {resize}")


def _by(grid: Sequence[int]) -> str:
    """A grid for a message, such as "8x56x56"."""
    return "x".join(map(str, grid))
