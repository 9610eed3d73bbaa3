"""Foreground shapes of the camera-motion set, which move on their own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hiera_video.data.synthetic.camera_path import SIZE, CameraPath, difficulty, stream
from hiera_video.data.synthetic.drawing import affine_grid, pixel_centres, recolour, rotation
from hiera_video.data.synthetic.scenes import CLIPS_PER_SCENE, scene_pyramid

_SPRITE_SIDE = 64
MAX_COVERAGE = 0.5
"""Shapes together cover at most this part of the picture (by area, at the pivot)."""


@dataclass(frozen=True)
class Shape:
    """One foreground shape: its picture, and its pose over time."""

    sprite: Tensor
    """float32 [4, S, S]: RGB and opacity."""
    centre: np.ndarray
    """float64 [T, 2], view sides."""
    size: np.ndarray
    """float64 [T], its longer side in view sides."""
    angle: np.ndarray
    """float64 [T], radians clockwise."""
    with_camera: bool
    """True: carried along with the view; False: part of the scene."""


@dataclass(frozen=True)
class _Common:
    """What the shapes of one clip have in common."""

    seed: int
    seconds: np.ndarray
    """float64 [T]."""
    since_pivot: np.ndarray
    """float64 [T]: seconds after frame `pivot`."""
    direction: float | None
    """Radians, where all move about the same way."""
    carried: float
    """Probability of a shape to be carried along with the camera."""


def foreground_shapes(seed: int, seconds: np.ndarray, pivot: int) -> list[Shape]:
    """Draw the foreground of one clip; nothing in it depends on the label."""
    rng = stream(seed, "shapes")
    if rng.uniform() < 0.15:
        return []
    count = int(rng.integers(1, 8))
    sizes = np.exp(rng.uniform(math.log(0.1), math.log(0.75), size=count))
    area = float((0.6 * sizes**2).sum())
    sizes *= math.sqrt(min(1.0, MAX_COVERAGE * difficulty(seed, plain=False) / area))
    # traffic and crowds: what moves often moves the same way
    direction = rng.uniform(0, 2 * math.pi) if rng.uniform() < 0.35 else None
    carried = rng.uniform() * (rng.uniform() < 0.7)
    common = _Common(seed, seconds, seconds - seconds[pivot], direction, carried)
    return [_draw_shape(rng, common, size) for size in sizes]


def _draw_shape(rng: np.random.Generator, common: _Common, size: float) -> Shape:
    since = common.since_pivot
    if common.direction is None:
        direction = rng.uniform(0, 2 * math.pi)
    else:
        direction = common.direction + rng.normal(0, 0.15)
    speed = math.exp(rng.uniform(math.log(0.02), math.log(0.8)))
    velocity = speed * np.array([math.cos(direction), math.sin(direction)])
    start = rng.uniform(-0.55, 0.55, size=2)
    growth = rng.normal(0, 0.2) * (rng.uniform() < 0.5)
    spin = rng.normal(0, 0.8) * (rng.uniform() < 0.6)
    angle = rng.uniform(0, 2 * math.pi) + spin * since
    centre = start + velocity * since[:, None]
    if rng.uniform() < 0.5:  # swings about a point, as limbs and branches do
        rate, phase = 2 * math.pi * rng.uniform(0.3, 2.5), rng.uniform(0, 2 * math.pi)
        wave = np.sin(rate * common.seconds + phase)
        swing, hinge = rng.uniform(0.1, 0.9) * wave, rng.uniform(0, 0.5) * size
        angle = angle + swing
        centre = centre + hinge * np.stack([np.cos(angle), np.sin(angle)], 1)
        centre = centre + rng.uniform(0, 0.1) * wave[:, None] * rng.normal(size=2)
    return Shape(
        sprite=_sprite(rng, common.seed, pixels=size * SIZE),
        centre=centre,
        size=size * np.exp(np.clip(growth * since, -1, 1)),
        angle=angle,
        with_camera=bool(rng.uniform() < common.carried),
    )


def _sprite(rng: np.random.Generator, seed: int, pixels: float) -> Tensor:
    """float32 [4, S, S]: a ragged, squashed outline filled from the clip's own scene."""
    side = int(np.clip(pixels * 1.4, 12, _SPRITE_SIDE))
    ramp = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
    x, y = ramp[None, :], ramp[:, None] / rng.uniform(0.3, 1.0)
    theta, radius = np.arctan2(y, x), np.hypot(x, y)
    outline = np.full_like(theta, 0.8)
    if rng.uniform() < 0.3:  # a box
        radius = np.maximum(np.abs(x), np.abs(y))
    else:
        for wave in range(2, 7):
            outline += np.float32(rng.normal(0, 0.18 / wave)) * np.cos(
                wave * theta + rng.uniform(0, 2 * math.pi)
            )
    softness = rng.uniform(0.3, 2.0)
    opacity = np.clip((outline - radius) * side / 2 / softness + 0.5, 0, 1)
    levels = scene_pyramid(seed // CLIPS_PER_SCENE)
    level = int(rng.integers(0, 2))
    source = levels[level][0]
    top, left = rng.integers(0, source.shape[1] - side, size=2)
    colour = source[:, top : top + side, left : left + side]
    colour = recolour(rng, colour[None])[0]
    return torch.cat([colour, torch.from_numpy(opacity.astype(np.float32))[None]])


def draw_over(picture: Tensor, shape: Shape, path: CameraPath) -> None:
    """Draw a shape over `picture` [T, 3, H, W], in place."""
    centre, size, angle = shape.centre, shape.size, shape.angle
    if not shape.with_camera:
        turn = rotation(-path.angle) / np.exp(path.log_scale)[:, None, None]
        centre = np.einsum("tij,tj->ti", turn, centre - path.centre)
        size, angle = size / np.exp(path.log_scale), angle - path.angle
    paste(picture, shape.sprite, centre=centre, size=size, angle=angle)


def paste(
    picture: Tensor, sprite: Tensor, *, centre: np.ndarray, size: np.ndarray, angle: np.ndarray
) -> None:
    """Draw a sprite over each frame of `picture` [T, 3, H, W], in place.

    Args:
        sprite: float32 [4, S, S]: RGB and opacity.
        centre: float64 [T, 2], sides of the picture, from its middle.
        size: float64 [T]: the sprite's side, sides of the picture.
        angle: float64 [T], radians clockwise.
    """
    reach = 0.72 * size[:, None]  # half the diagonal of its box
    pixels = picture.shape[-1]
    low = np.floor(((centre - reach).min(axis=0) + 0.5) * pixels).clip(0, pixels).astype(int)
    high = np.ceil(((centre + reach).max(axis=0) + 0.5) * pixels).clip(0, pixels).astype(int)
    if (low >= high).any():
        return  # outside the picture in every frame
    linear = rotation(-angle) * (2 / size)[:, None, None]
    offset = -np.einsum("tij,tj->ti", linear, centre)
    axis = pixel_centres(pixels)
    rows, columns = axis[low[1] : high[1]], axis[low[0] : high[0]]
    grid = affine_grid(linear, offset, rows, columns).flatten(0, 1)[None]
    drawn = F.grid_sample(sprite[None], grid, align_corners=False)[0]
    drawn = drawn.unflatten(1, (len(picture), len(rows))).transpose(0, 1)  # [T, 4, h, w]
    window = picture[:, :, low[1] : high[1], low[0] : high[0]]
    # Beyond the sprite both colour and opacity fade to 0.
    opacity = drawn[:, 3:]
    window += opacity * (drawn[:, :3] - window)
