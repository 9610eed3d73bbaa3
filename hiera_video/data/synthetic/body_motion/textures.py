"""What parts of bodies look like: textures (plates) and outlines, drawn once a process."""

from __future__ import annotations

import functools
import math

import numpy as np

from hiera_video.data.synthetic.body_motion.streams import bank_stream
from hiera_video.data.synthetic.drawing import fractal_noise
from hiera_video.data.synthetic.scenes import scene_pyramid

PLATES = 64
PLATE_SIDE = 256
OUTLINES = 48
OUTLINE_SIDE = 40
CAPSULE, ELLIPSE, BOX = 0, 1, 2
"""The first outlines: of limbs, of heads and trunks, of things. The others are ragged."""


@functools.lru_cache(maxsize=1)
def texels() -> np.ndarray:
    """The textures of all clips as the rasteriser reads them: int32 [PLATES, (S + 1) ** 2].

    A texel is red + 256 green + 65536 blue. After the last row and column the first ones follow
    again, so that the neighbours of a texel are found without wrapping around.
    """
    wrapped = np.pad(plates(), ((0, 0), (0, 1), (0, 1), (0, 0)), mode="wrap").astype(np.int32)
    packed = wrapped[..., 0] | wrapped[..., 1] << 8 | wrapped[..., 2] << 16
    return packed.reshape(PLATES, -1)


def plates() -> np.ndarray:
    """Draw the textures of all clips: uint8 [PLATES, S, S, 3], S = PLATE_SIDE; each wraps around.

    A quarter are noise from smooth to fine, a quarter patterns (stripes, checks, dots) over noise,
    and half crops of generated stills (dead leaves), whose statistics are those of photographs.
    """
    drawn = [_noise, _pattern, _still, _still]
    bank = [drawn[n % 4](bank_stream(n, "plate"), n) for n in range(PLATES)]
    return np.stack([np.clip(plate * 255 + 0.5, 0, 255).astype(np.uint8) for plate in bank])


def _noise(rng: np.random.Generator, number: int) -> np.ndarray:
    return fractal_noise(rng, PLATE_SIDE, rng.uniform(0.5, 1.7))


def _pattern(rng: np.random.Generator, number: int) -> np.ndarray:
    """Stripes, checks or dots with whole periods over the plate, mixed with noise."""
    axis = np.arange(PLATE_SIDE, dtype=np.float32) * (2 * math.pi / PLATE_SIDE)
    across, down = rng.integers(1, 17, size=2)
    tilt = int(rng.integers(-8, 9))
    first = np.sin(across * axis[None] + tilt * axis[:, None])
    kind = rng.integers(0, 3)
    if kind == 0:
        wave = first + 0 * axis[:, None]
    elif kind == 1:
        wave = first * np.sin(down * axis[:, None])
    else:
        wave = first + np.sin(down * axis[:, None] - tilt * axis[None]) - 0.6
    wave = np.clip(wave * rng.uniform(0.8, 4), -1, 1)[..., None]
    colours = rng.uniform(0.05, 0.95, size=(2, 3))
    mixed = colours[0] + (colours[1] - colours[0]) * (wave + 1) / 2
    noise = fractal_noise(rng, PLATE_SIDE, rng.uniform(0.8, 1.4)) - 0.5
    return mixed + rng.uniform(0.1, 0.7) * noise


def _still(rng: np.random.Generator, number: int) -> np.ndarray:
    """A crop of a generated still, mirrored at its edges so that it wraps around."""
    picture = scene_pyramid(number // 2)[0][0].permute(1, 2, 0).numpy()
    half = PLATE_SIDE // 2
    zoom = int(rng.integers(1, 4))
    top, left = rng.integers(0, picture.shape[0] - half * zoom, size=2)
    crop = picture[top : top + half * zoom, left : left + half * zoom]
    crop = crop.reshape(half, zoom, half, zoom, 3).mean((1, 3))
    crop = np.concatenate([crop, crop[::-1]])
    return np.concatenate([crop, crop[:, ::-1]], axis=1)


@functools.lru_cache(maxsize=1)
def outlines() -> np.ndarray:
    """Draw all outlines as signed distances: float32 [OUTLINES, D, D], negative inside.

    Each is about 0.9 in its local coordinates, which run from -1 to 1.
    """
    side = (np.arange(OUTLINE_SIDE, dtype=np.float32) + 0.5) / OUTLINE_SIDE * 2 - 1
    x, y = side[None, :], side[:, None]
    capsule = np.maximum(np.abs(x) - 0.85, np.hypot(x * 0.6, np.maximum(np.abs(y) - 0.5, 0)) - 0.45)
    ellipse = np.hypot(x, y) - 0.9
    box = np.maximum(np.abs(x), np.abs(y)) - 0.85
    ragged = [_ragged(bank_stream(n, "outline"), x, y) for n in range(OUTLINES - 3)]
    return np.stack([capsule, ellipse, box, *ragged]).astype(np.float32)


def _ragged(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A closed curve around the centre: a superellipse whose radius has random waves."""
    power = math.exp(rng.uniform(math.log(0.8), math.log(5)))
    radius = (np.abs(x) ** power + np.abs(y) ** power) ** (1 / power)
    angle = np.arctan2(y, x)
    edge = np.full_like(angle, 0.72)
    roughness = rng.uniform(0, 0.3)
    for wave in range(2, 8):
        phase = rng.uniform(0, 2 * math.pi)
        edge += np.float32(roughness * rng.normal() / wave) * np.cos(wave * angle + phase)
    return radius - np.clip(edge, 0.25, 0.9)
