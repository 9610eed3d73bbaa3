"""Position embeddings of another clip length or frame size, as arithmetic on tensors.

Learned embeddings are lists of tokens in raster order: [1, h*w, C] over space, [1, t, C] over time,
[1, t*h*w, C] over both at once (the autoencoder's decoder). Space is resized by bicubic
interpolation, time by linear interpolation, both with pixel centres at half integers (PyTorch's
align_corners=False), in float32, without antialiasing: what SlowFast and SAM 2 do. An embedding
that has the right size already is returned untouched, bit for bit. MViTv2's tables of relative
positions, [distances, C] for each axis of each block, are resized by linear interpolation too.

The absolute-window form (arXiv 2311.05613) writes the spatial embedding as a sum

    E[y, x] = bicubic(G)[y, x] + W[y mod 8, x mod 8]

of a small global part G, the only one that is ever resized, and a window part W that repeats in
every mask unit. Resizing a plain embedding pulls the pattern that training wrote into each unit out
of step with the units; here it stays in step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from hiera_video.models.ladder.relative_positions import resize_table

if TYPE_CHECKING:
    from hiera_video.models.weights.loading import Fit

Grid = Sequence[int]
"""(rows, columns) in tokens."""

POSITIONS = (
    "pos_embed",
    "pos_embed_spatial",
    "pos_embed_temporal",
    "pos_embed_window",
    "decoder_pos_embed",
)


def resize_spatial(embed: Tensor, source: Grid, target: Grid) -> Tensor:
    """[1, h*w, C] of the grid `source` = (h, w) -> [1, h'*w', C] of `target`, bicubic."""
    if tuple(source) == tuple(target):
        return embed
    plane = embed.transpose(1, 2).unflatten(2, tuple(source))
    return resize_plane(plane, target).flatten(2).transpose(1, 2).contiguous()


def resize_temporal(embed: Tensor, length: int) -> Tensor:
    """[1, t, C] -> [1, length, C], linear."""
    if embed.shape[1] == length:
        return embed
    line = embed.float().transpose(1, 2)
    line = F.interpolate(line, size=length, mode="linear", align_corners=False)
    return line.transpose(1, 2).to(embed.dtype).contiguous()


def resize_joint(embed: Tensor, source: Sequence[int], target: Sequence[int]) -> Tensor:
    """[1, t*h*w, C] of `source` = (t, h, w) -> `target`: linear in time, then bicubic in space."""
    if tuple(source) == tuple(target):
        return embed
    (frames, *plane), (new_frames, *new_plane) = source, target
    channels = embed.shape[-1]
    over_time = embed.reshape(1, frames, -1)
    over_time = resize_temporal(over_time, new_frames).reshape(new_frames, -1, channels)
    steps = [resize_spatial(step[None], tuple(plane), tuple(new_plane)) for step in over_time]
    return torch.cat(steps, dim=1)


def resize_plane(plane: Tensor, size: Grid) -> Tensor:
    """[1, C, h, w] -> [1, C, *size], bicubic."""
    if tuple(plane.shape[2:]) == tuple(size):
        return plane
    resized = F.interpolate(plane.float(), size=tuple(size), mode="bicubic", align_corners=False)
    return resized.to(plane.dtype)


def abs_win_embedding(window: Tensor, overall: Tensor, grid: Grid) -> Tensor:
    """The plain embedding [1, h*w, C] that W [1, C, a, b] and G [1, C, g, f] stand for.

    `grid` is (h, w), each side a multiple of the window's.
    """
    repeats = [side // step for side, step in zip(grid, window.shape[2:], strict=True)]
    plane = resize_plane(overall, grid) + window.tile(1, 1, *repeats)
    return plane.flatten(2).transpose(1, 2)


def split_abs_win(
    embed: Tensor, grid: Grid, *, window: Grid, overall: Grid
) -> tuple[Tensor, Tensor, float]:
    """Approximate a plain embedding by a window and a global part; no exact split exists.

    W is the mean over all windows; G holds each window's mean of what W leaves over.

    Args:
        embed: [1, h*w, C].
        grid: its (h, w), each side a multiple of the window's.
        window: (a, b), the sides of a mask unit in tokens.
        overall: (g, f), the sides of the global part.

    Returns:
        W [1, C, a, b], G [1, C, g, f], and the share of the embedding's variance over positions
        that the two parts together do not give back (0: exact, 1: nothing kept).
    """
    (height, width), (a, b) = grid, window
    full = embed.float()
    blocks = full.reshape(height // a, a, width // b, b, full.shape[-1])
    part = blocks.mean(dim=(0, 2))
    rest = (blocks - part[None, :, None]).mean(dim=(1, 3))
    part, rest = part.permute(2, 0, 1)[None], rest.permute(2, 0, 1)[None]
    rest = resize_plane(rest, overall)
    spread = (full - full.mean(dim=1, keepdim=True)).square().sum()
    missed = (full - abs_win_embedding(part, rest, grid)).square().sum()
    lost = float((missed / spread.clamp_min(1e-12)).clamp(max=1.0))
    return part.to(embed.dtype).contiguous(), rest.to(embed.dtype).contiguous(), lost


# ---- fitting a checkpoint's embeddings to a model ------------------------------------------------


def fit_positions(fit: Fit) -> None:
    """Resize or convert position embeddings that were learned for another size.

    What cannot be understood is left as it is, for the comparison of shapes to name.
    """
    _fit_relative(fit)
    if fit.layout is None or not all(_is_sound(fit, name) for name in POSITIONS):
        return
    source, target = _source_grid(fit), tuple(fit.layout.grid)
    if "pos_embed_temporal" in fit.wanted:
        _fit_temporal(fit, target[0])
        _fit_plane(fit, "pos_embed_spatial", source and source[-2:], target[-2:])
    elif len(target) == 2:
        _fit_plane(fit, "pos_embed", source, target)
    else:
        _fit_joint(fit, "pos_embed", source, target)
    if "decoder_pos_embed" in fit.wanted:
        shrink = [stride**fit.q_pool for stride in fit.layout.q_stride]
        source = source and tuple(g // s for g, s in zip(source, shrink, strict=True))
        _fit_joint(fit, "decoder_pos_embed", source, fit.layout.grid_shape(fit.q_pool))


def _is_sound(fit: Fit, name: str) -> bool:
    """Whether an embedding, if the checkpoint has it, is of the kind the steps below expect."""
    embed = fit.tensors.get(name)
    if embed is None:
        return True
    dims = (3,) if name in ("pos_embed_temporal", "decoder_pos_embed") else (3, 4)
    return embed.dim() in dims and embed.shape[0] == 1 and embed.numel() > 0


def _source_grid(fit: Fit) -> tuple[int, ...] | None:
    """Tokens of the checkpoint's input along each dimension, as far as can be told.

    From the size in the checkpoint's notes; else, where the number of tokens is the model's own,
    the model's grid; else a square. None where none of these holds.
    """
    target = tuple(fit.layout.grid)
    frames = fit.tensors.get("pos_embed_temporal")
    time = target[:-2] if frames is None else (frames.shape[1],)
    size = fit.checkpoint.model_kwargs.get("input_size")
    if _is_size(size):
        known = [s // p for s, p in zip(size[::-1], fit.patch_stride[::-1], strict=False)][::-1]
        # the size of an inflated image lacks the axis that its embedding has by now
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
    """Whether what a file says of its input size is one."""
    return (
        isinstance(size, list | tuple)
        and len(size) in (2, 3)
        and all(isinstance(side, int) and side > 0 for side in size)
    )


def _fit_temporal(fit: Fit, length: int) -> None:
    name = "pos_embed_temporal"
    embed = fit.tensors.get(name)
    if embed is not None and embed.shape[1] != length:
        _put(fit, name, resize_temporal(embed, length), (embed.shape[1],), (length,), "linear")


def _fit_plane(fit: Fit, name: str, source: Sequence[int] | None, target: Sequence[int]) -> None:
    """A spatial embedding: plain or in absolute windows, there and here."""
    embed, window = fit.tensors.get(name), fit.wanted.get("pos_embed_window")
    if embed is None or name not in fit.wanted:
        return
    if embed.dim() == 4 and window is not None:
        before, after = tuple(embed.shape[2:]), tuple(fit.wanted[name].shape[2:])
        if before != after:
            _put(fit, name, resize_plane(embed, after), before, after, "bicubic")
    elif embed.dim() == 4:
        _add_windows(fit, name, target)
    elif source is None or embed.shape[1] != math.prod(source):
        return
    elif window is not None:
        _split_windows(fit, name, source, window=tuple(window.shape[2:]))
    elif tuple(source) != tuple(target):
        _put(fit, name, resize_spatial(embed, source, target), source, target, "bicubic")


def _fit_joint(fit: Fit, name: str, source: Sequence[int] | None, target: Sequence[int]) -> None:
    """An embedding over time and space at once; over space alone for images."""
    embed = fit.tensors.get(name)
    if embed is None or source is None or embed.dim() != 3 or embed.shape[1] != math.prod(source):
        return
    if tuple(source) != tuple(target):
        still = (1,) if len(target) == 2 else ()
        resized = resize_joint(embed, (*still, *source), (*still, *target))
        _put(fit, name, resized, source, target, "linear in time, bicubic in space")


def _fit_relative(fit: Fit) -> None:
    """Tables of relative positions of another length, in every block."""
    lengths = set()
    for name, wanted in fit.wanted.items():
        table = fit.tensors.get(name)
        if ".rel_pos_" not in name or table is None or not _is_longer_or_shorter(table, wanted):
            continue
        lengths.add((table.shape[0], wanted.shape[0]))
        fit.tensors[name] = resize_table(table, wanted.shape[0])
        fit.resized.append(name)
    if lengths:
        listed = ", ".join(f"{before} to {after}" for before, after in sorted(lengths))
        fit.notes.append(f"tables of relative positions resized from {listed} distances (linear)")


def _is_longer_or_shorter(table: Tensor, wanted: Tensor) -> bool:
    """Whether a table is one, and differs from the wanted one in nothing but its length."""
    return (
        table.is_floating_point()
        and table.dim() == wanted.dim()
        and table.shape[1:] == wanted.shape[1:]
        and 0 < table.shape[0] != wanted.shape[0]
    )


def _add_windows(fit: Fit, name: str, target: Sequence[int]) -> None:
    """Absolute windows for a model with a plain embedding: exact, for the model's own size."""
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
    """A plain embedding for a model with absolute windows: the approximate split and its price."""
    if any(side % step for side, step in zip(source, window, strict=True)):
        return
    overall = tuple(fit.wanted[name].shape[2:])
    part, rest, lost = split_abs_win(fit.tensors[name], source, window=window, overall=overall)
    fit.tensors[name], fit.tensors["pos_embed_window"] = rest, part
    fit.resized += [name, "pos_embed_window"]
    fit.notes.append(
        f"{name} of {_by(source)} tokens split into a window part ({_by(window)}) and a global "
        f"part ({_by(overall)}): an approximation that loses {lost:.0%} of its variation; "
        "fine-tune before trusting scores"
    )


def _put(
    fit: Fit, name: str, value: Tensor, source: Sequence[int], target: Sequence[int], how: str
) -> None:
    """Put a resized embedding in the place of the checkpoint's and note it."""
    fit.tensors[name] = value
    fit.resized.append(name)
    fit.notes.append(f"{name} resized from {_by(source)} to {_by(target)} tokens ({how})")


def _by(grid: Sequence[int]) -> str:
    return "x".join(map(str, grid))
