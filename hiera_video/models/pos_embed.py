"""Position embeddings of another clip length or frame size, as arithmetic on tensors.

Learned embeddings are lists of tokens in raster order: [1, h*w, C] over space, [1, t, C] over time,
[1, t*h*w, C] over both at once (the autoencoder's decoder). Space is resized by bicubic
interpolation, time by linear interpolation, both with pixel centres at half integers (PyTorch's
align_corners=False), in float32, without antialiasing, as SlowFast and SAM 2 do. An embedding that
has the right size already is returned unchanged, bit for bit. MViTv2's tables of relative
positions, [distances, C] for each axis of each block, are resized by linear interpolation too.

The absolute-window form (arXiv 2311.05613) writes the spatial embedding as a sum

    E[y, x] = bicubic(G)[y, x] + W[y mod 8, x mod 8]

of a small global part G, the only one that is ever resized, and a window part W that repeats in
every mask unit. When a plain embedding is resized, the pattern that training produced in each unit
no longer coincides with the units; in this form it does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = Sequence[int]
"""(rows, columns) in tokens."""


def resize_spatial(embed: Tensor, source: Grid, target: Grid) -> Tensor:
    """Resize [1, h*w, C] of the grid `source` = (h, w) to [1, h'*w', C] of `target`, bicubic."""
    if tuple(source) == tuple(target):
        return embed
    plane = embed.transpose(1, 2).unflatten(2, tuple(source))
    return resize_plane(plane, target).flatten(2).transpose(1, 2).contiguous()


def resize_temporal(embed: Tensor, length: int) -> Tensor:
    """Resize [1, t, C] to [1, length, C], linear."""
    if embed.shape[1] == length:
        return embed
    line = embed.float().transpose(1, 2)
    line = F.interpolate(line, size=length, mode="linear", align_corners=False)
    return line.transpose(1, 2).to(embed.dtype).contiguous()


def resize_joint(embed: Tensor, source: Sequence[int], target: Sequence[int]) -> Tensor:
    """Resize [1, t*h*w, C] of `source` = (t, h, w): linear in time, then bicubic in space."""
    if tuple(source) == tuple(target):
        return embed
    (frames, *plane), (new_frames, *new_plane) = source, target
    channels = embed.shape[-1]
    over_time = embed.reshape(1, frames, -1)
    over_time = resize_temporal(over_time, new_frames).reshape(new_frames, -1, channels)
    steps = [resize_spatial(step[None], tuple(plane), tuple(new_plane)) for step in over_time]
    return torch.cat(steps, dim=1)


def resize_plane(plane: Tensor, size: Grid) -> Tensor:
    """Resize [1, C, h, w] to [1, C, *size], bicubic."""
    if tuple(plane.shape[2:]) == tuple(size):
        return plane
    resized = F.interpolate(plane.float(), size=tuple(size), mode="bicubic", align_corners=False)
    return resized.to(plane.dtype)


def abs_win_embedding(window: Tensor, overall: Tensor, grid: Grid) -> Tensor:
    """Add W [1, C, a, b], tiled, and G [1, C, g, f], resized: the plain embedding [1, h*w, C].

    `grid` is (h, w), each side a multiple of the window's.
    """
    repeats = [side // step for side, step in zip(grid, window.shape[2:], strict=True)]
    plane = resize_plane(overall, grid) + window.tile(1, 1, *repeats)
    return plane.flatten(2).transpose(1, 2)


def split_abs_win(
    embed: Tensor, grid: Grid, *, window: Grid, overall: Grid
) -> tuple[Tensor, Tensor, float]:
    """Approximate a plain embedding by a window and a global part; no exact split exists.

    W is the mean over all windows; G has the mean of the remainder in each window.

    Args:
        embed: [1, h*w, C].
        grid: its (h, w), each side a multiple of the window's.
        window: (a, b), the sides of a mask unit in tokens.
        overall: (g, f), the sides of the global part.

    Returns:
        W [1, C, a, b], G [1, C, g, f], and the share of the embedding's variance over positions
        that the two parts together do not explain (0: exact, 1: nothing kept).
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
