"""Hand-made features of how a video looks, and of where it changes.

They are the floor: what recognises an action from one frame has recognised the place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evidence_rows.action_sets import Video
from evidence_rows.controls import changed
from evidence_rows.feature_files import Array
from hiera_video.video.decode import open_video

SIDE = 128
"""Pixels: pictures for hand-made features are made smaller until no side is longer."""

FPS = 10
"""Frames a second: in a tenth of a second people move further than the noise of dark footage."""

_MOST_SECONDS = 5

GAMMA, WHITE = 0.45, 0.99
"""Pictures are made readable by this gamma; the quantile of all pixels becomes white."""


def read_pictures(path: str) -> Tensor:
    """The middle 5 seconds of a video at about 10 frames a second, small: uint8 [T, 3, H, W]."""
    with open_video(path) as reader:
        info = reader.info
        step = max(round(info.fps / FPS), 1)
        count = min(info.num_frames, _MOST_SECONDS * FPS * step)
        first = (info.num_frames - count) // 2
        frames = reader.read(range(first, first + count, step))
    height, width = frames.shape[-2:]
    scale = min(SIDE / max(height, width), 1.0)
    size = round(height * scale), round(width * scale)
    small = F.interpolate(frames.float(), size, mode="bilinear", antialias=scale < 1)
    return small.round().clamp(0, 255).to(torch.uint8)


def brightened(frames: Tensor) -> Tensor:
    """uint8 [T, 3, H, W] -> float32 in [0, 1], readable however dark the video was filmed."""
    lifted = (np.arange(256, dtype=np.float32) / 255) ** GAMMA
    counts = np.bincount(frames.numpy().ravel(), minlength=256)
    brightest = int(np.searchsorted(counts.cumsum(), WHITE * frames.numel()))
    table = np.clip(lifted / max(lifted[brightest], 1e-3), 0, 1)
    return torch.from_numpy(table[frames.numpy()])


@dataclass(frozen=True)
class PictureFeatures:
    """Describes a video by one frame, the mean of 8 frames, and its motion energy."""

    controls: tuple[str, ...]
    name: str = "pictures"

    @property
    def settings(self) -> dict[str, Any]:
        return {"version": 1, "pictures": [SIDE, FPS, GAMMA, WHITE], "controls": self.controls}

    def describe(self, video: Video) -> dict[tuple[str, str], Array]:
        """(control, "one frame" | "mean frame" | "motion energy") -> float32 [1, D]."""
        frames = read_pictures(video.path)
        found = {}
        for control in self.controls:
            shown = brightened(changed(frames, control, video.name))
            eight = shown[torch.linspace(0, len(shown) - 1, 8).long()]
            blocks = {
                "one frame": looks(shown[len(shown) // 2]),
                "mean frame": looks(eight.mean(dim=0)),
                "motion energy": motion_energy(shown.mean(dim=1)),
            }
            for block, values in blocks.items():
                found[control, block] = values[None].numpy()
        return found


def looks(picture: Tensor) -> Tensor:
    """Describe a picture [3, H, W] by 16 x 16 greys, a histogram of its colours, and its edges."""
    grey = picture.mean(dim=0)
    greys = F.interpolate(grey[None, None], (16, 16), mode="bilinear", antialias=True)
    colours = [torch.histc(one, 16, 0, 1) / one.numel() for one in picture]
    return torch.cat([greys.flatten(), *colours, oriented_gradients(grey)])


def oriented_gradients(grey: Tensor) -> Tensor:
    """Histograms of 9 edge directions in 8 x 8 cells, [576]; each cell's has length 1."""
    square = F.interpolate(grey[None, None], (66, 66), mode="bilinear", antialias=True)[0, 0]
    across = square[1:-1, 2:] - square[1:-1, :-2]
    down = square[2:, 1:-1] - square[:-2, 1:-1]
    cells = direction_histograms(torch.stack([across, down]), bins=9, cells=(8, 8), signed=False)
    return F.normalize(cells, dim=-1, eps=0.05).flatten()


def direction_histograms(
    vectors: Tensor, *, bins: int, cells: tuple[int, int], signed: bool
) -> Tensor:
    """Histograms of the directions of vectors [2, H, W], weighted by length: [rows, columns, bins].

    A direction between two bins counts for both. signed: opposite directions differ.
    """
    length = vectors.norm(dim=0)
    turn = torch.atan2(vectors[1], vectors[0]) / (2 * torch.pi) * (1 if signed else 2) * bins
    lower = turn.floor()
    upper_share = turn - lower
    planes = torch.zeros(bins, *length.shape)
    for bin_, share in ((lower, 1 - upper_share), (lower + 1, upper_share)):
        planes.scatter_add_(0, (bin_.long() % bins)[None], (share * length)[None])
    return F.adaptive_avg_pool2d(planes, cells).movedim(0, -1)


def motion_energy(greys: Tensor) -> Tensor:
    """The mean absolute difference of neighbouring frames [T, H, W], 16 x 16."""
    energy = greys.diff(dim=0).abs().sum(dim=0) / max(len(greys) - 1, 1)
    return F.interpolate(energy[None, None], (16, 16), mode="area").flatten()
