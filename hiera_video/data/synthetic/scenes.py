"""Scenes: procedural pictures (dead leaves, 1/f noise, gradients) that the camera moves over."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hiera_video.data.synthetic.camera_path import stream
from hiera_video.data.synthetic.drawing import fractal_noise, gradient, power_law

SCENE_SIDE = 512
CLIPS_PER_SCENE = 16
"""So many consecutive seeds show one scene, each at another place, scale, angle and colour."""


@functools.lru_cache(maxsize=4)
def scene_pyramid(number: int) -> tuple[Tensor, ...]:
    """Draw a scene as a pyramid: float32 [1, 3, S, S] in [0, 1], S = 512, 256, 128, 64."""
    rng = stream(number, "plate")
    # The noise wraps around: a tile of half the side fills the whole scene.
    scene = np.tile(fractal_noise(rng, SCENE_SIDE // 2, rng.uniform(0.8, 1.6)), (2, 2, 1))
    scene = 0.5 + (scene - 0.5) * rng.uniform(0.3, 1.0) + gradient(rng, SCENE_SIDE)
    if rng.uniform() < 0.85:
        _paint_leaves(rng, scene)
    levels = [torch.from_numpy(np.clip(scene, 0, 1).transpose(2, 0, 1)[None].astype(np.float32))]
    for _ in range(3):
        levels.append(F.avg_pool2d(levels[-1], 2))
    return tuple(levels)


def _paint_leaves(rng: np.random.Generator, scene: np.ndarray) -> None:
    """Paint dead leaves over `scene` [S, S, 3], in place.

    They are overlapping discs, ellipses and boxes; their radii follow a power law.
    """
    side = len(scene)
    exponent = rng.uniform(1.4, 2.4)  # density r ** -(1 + exponent); 2 looks the same at all scales
    smallest, largest = math.exp(rng.uniform(math.log(2.5), math.log(12))), rng.uniform(60, 180)
    cover = rng.uniform(0.3, 2.0)
    radii = power_law(rng, 2000, exponent, smallest, largest)
    count = int(np.searchsorted(np.cumsum(2.5 * radii**2), cover * side * side)) + 1
    radii = radii[:count]
    if rng.uniform() < 0.5:  # big ones behind, or any order
        radii = np.sort(radii)[::-1]
    boxes, flat, grain = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0, 0.5)
    texture = fractal_noise(rng, 256, exponent=rng.uniform(0.5, 1.2)) - 0.5
    texture = np.tile(texture, (3, 3, 1))  # it wraps around, so any window of up to 512 is a slice
    palette = rng.uniform(0, 1, size=(rng.integers(3, 12), 3)).astype(np.float32)
    coordinates = np.arange(side, dtype=np.float32)
    for radius, draws in zip(radii, rng.uniform(size=(len(radii), 8)).tolist(), strict=True):
        radius = float(radius)
        cx, cy, angle = draws[0] * side, draws[1] * side, draws[2] * math.pi
        squash = 0.25 + 0.75 * draws[3]
        is_box, shade, ox, oy = draws[4:]
        x0, x1 = max(0, int(cx - radius)), min(side, int(cx + radius) + 2)
        y0, y1 = max(0, int(cy - radius)), min(side, int(cy + radius) + 2)
        dx, dy = coordinates[None, x0:x1] - cx, coordinates[y0:y1, None] - cy
        cos, sin = math.cos(angle) / radius, math.sin(angle) / radius
        along, across = cos * dx + sin * dy, (cos * dy - sin * dx) * (1 / squash)
        if is_box < boxes:
            inside = np.maximum(np.abs(along), np.abs(across)) < 0.7
        else:
            inside = along * along + across * across < 1
        colour = palette[int(shade * len(palette))] + np.float32(0.15 * (ox - 0.5))
        piece = scene[y0:y1, x0:x1]
        if radius < 8 or shade > 1 - flat * 0.5:
            piece[inside] = colour
            continue
        ty, tx = int(oy * 256), int(ox * 256)
        fill = grain * texture[ty : ty + y1 - y0, tx : tx + x1 - x0] + colour
        fill += ((ox - 0.5) * 0.6 * along)[..., None]
        np.copyto(piece, fill, where=inside[..., None])
