"""Hand-made features of motion: where, when and in which direction a video moves, and how fast.

The baseline to beat on small sets of actions: it knows nothing but motion, from the first video on.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evidence_rows.action_sets import Video
from evidence_rows.controls import changed
from evidence_rows.feature_files import Array
from evidence_rows.pictures import (
    FPS,
    GAMMA,
    SIDE,
    WHITE,
    brightened,
    direction_histograms,
    read_pictures,
)

GRIDS = {"1x1x3": (1, 1, 3), "2x2x3": (2, 2, 3), "3x3x3": (3, 3, 3), "4x4x2": (4, 4, 2)}
"""Name of a block -> its cells: rows, columns, parts in time."""

DIRECTIONS = 8

SMOOTHING = 1.5
"""Standard deviation of the blur before, in pixels: dark footage is mostly noise."""

NOISE = 0.9
"""Shorter vectors, in pixels, do not count."""

_FINE = 12
"""Rows and columns of the histograms that the grids are summed from."""


@dataclass(frozen=True)
class FlowFeatures:
    """Describes a video by histograms of its optical flow."""

    controls: tuple[str, ...]
    name: str = "optical flow"

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "version": 1,
            "pictures": [SIDE, FPS, GAMMA, WHITE],
            "flow": [SMOOTHING, NOISE, DIRECTIONS],
            "grids": GRIDS,
            "controls": self.controls,
        }

    def describe(self, video: Video) -> dict[tuple[str, str], Array]:
        """(control, grid) -> float32 [1, D]."""
        frames = read_pictures(video.path)
        found = {}
        for control in self.controls:
            greys = brightened(changed(frames, control, video.name)).mean(dim=1)
            fine = torch.stack([motion_histograms(flow) for flow in dense_flow(greys)])
            for name, grid in GRIDS.items():
                found[control, name] = in_cells(fine, grid)[None].numpy()
        return found


def motion_histograms(flow: Tensor) -> Tensor:
    """Directions of a flow field [2, H, W], weighted by speed: [12, 12, directions]."""
    moving = torch.where(flow.norm(dim=0) > NOISE, flow, torch.zeros(()))
    return direction_histograms(moving, bins=DIRECTIONS, cells=(_FINE, _FINE), signed=True)


def dense_flow(greys: Tensor) -> Tensor:
    """Optical flow of frames [T, H, W] in [0, 1]: pixels across and down, [steps, 2, H, W]."""
    blurred = [
        cv2.GaussianBlur(one, (0, 0), SMOOTHING)
        for one in greys.mul(255).round().to(torch.uint8).numpy()
    ]
    pairs = list(itertools.pairwise(blurred))
    if not pairs:
        return torch.zeros(1, 2, *greys.shape[1:])
    method: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    flows = [method.calc(first, then, None) for first, then in pairs]
    return torch.from_numpy(np.stack(flows)).movedim(-1, 1)


def in_cells(fine: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Histograms [T, 12, 12, directions] -> their means in a grid, [D]."""
    rows, columns, parts = grid
    return F.adaptive_avg_pool3d(fine.permute(3, 0, 1, 2)[None], (parts, rows, columns)).flatten()
