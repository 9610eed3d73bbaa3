"""What generators of synthetic clips draw with: noise, light, sensor, rotations, sampling grids.

Coordinates of a picture run from -0.5 to 0.5 over its side, x to the right and y down. Random
numbers come from `numpy.random.Generator`s that the caller gives.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# ---- textures -----------------------------------------------------------------------------------


def fractal_noise(rng: np.random.Generator, side: int, exponent: float) -> np.ndarray:
    """Draw float32 [side, side, 3] near [0, 1] with amplitude 1 / frequency ** exponent.

    It wraps around, so it can be tiled.
    """
    fy, fx = np.fft.fftfreq(side), np.fft.rfftfreq(side)
    radius = np.hypot(fy[:, None], fx[None])
    radius[0, 0] = 1
    spectrum = rng.standard_normal((3, side, len(fx), 2)).astype(np.float32)
    field = np.fft.irfft2((spectrum[..., 0] + 1j * spectrum[..., 1]) / radius**exponent)
    field /= field.std(axis=(1, 2), keepdims=True)
    grey = rng.uniform(0, 1)  # from grey texture to three unrelated channels
    field = grey * field[:1] + (1 - grey) * field
    return (0.5 + 0.18 * field).transpose(1, 2, 0).astype(np.float32)


def gradient(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draw float32 [side, side, 3]: a slope of brightness over a scene."""
    ramp = np.linspace(-0.5, 0.5, side, dtype=np.float32)
    slope = rng.normal(0, 0.25, size=(2, 3)).astype(np.float32)
    return ramp[:, None, None] * slope[0] + ramp[None, :, None] * slope[1]


def power_law(
    rng: np.random.Generator, count: int, exponent: float, smallest: float, largest: float
) -> np.ndarray:
    """Draw float64 [count] of density r ** -(1 + exponent) between the two ends."""
    low, high = smallest**-exponent, largest**-exponent
    return (low + rng.uniform(size=count) * (high - low)) ** (-1 / exponent)


# ---- geometry -----------------------------------------------------------------------------------


def rotation(angle: np.ndarray) -> np.ndarray:
    """Rotation matrices float64 [..., 2, 2], clockwise on the screen, where y points down."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def pixel_centres(size: int) -> Tensor:
    """Centres of the pixels over a picture's side, -0.5 to 0.5: float32 [size]."""
    return (torch.arange(size, dtype=torch.float32) + 0.5) / size - 0.5


def affine_grid(linear: np.ndarray, offset: np.ndarray, rows: Tensor, columns: Tensor) -> Tensor:
    """Affine maps of all pixels: `linear[t] @ (x, y) + offset[t]`, float32 [T, H, W, 2]."""
    a = torch.from_numpy(np.ascontiguousarray(linear, dtype=np.float32))
    b = torch.from_numpy(np.ascontiguousarray(offset, dtype=np.float32))
    across = a[:, None, :, 0] * columns[None, :, None] + b[:, None]  # [T, W, 2]
    down = a[:, None, :, 1] * rows[None, :, None]  # [T, H, 2]
    return across[:, None] + down[:, :, None]


def sample_pyramid(levels: tuple[Tensor, ...], grid: Tensor, step: np.ndarray) -> Tensor:
    """Sample a pyramid at `grid` [T, H, W, 2] (-1 to 1, mirrored beyond): float32 [T, 3, H, W].

    `step` [T] is the distance of neighbouring grid points in pixels of the pyramid's first level;
    the two nearest levels are blended, so that far views do not flicker. Levels hold one picture
    for all frames, or one for each.
    """
    level = np.clip(np.log2(np.maximum(step, 1e-6)) - 0.25, 0, len(levels) - 1.001)
    picture: Tensor | None = None
    for number, pixels in enumerate(levels):
        weight = np.clip(1 - np.abs(level - number), 0, 1)
        chosen = np.flatnonzero(weight)
        if not len(chosen):
            continue
        rows = torch.from_numpy(chosen)
        sample = functools.partial(F.grid_sample, padding_mode="reflection", align_corners=False)
        if (
            len(pixels) == 1
        ):  # one scene for all frames: sample one tall picture, without a copy per frame
            tall = grid[rows].flatten(0, 1)[None]
            seen = sample(pixels, tall)[0].unflatten(1, (len(chosen), grid.shape[1]))
            seen = seen.transpose(0, 1)
        else:
            seen = sample(pixels[rows], grid[rows])
        seen = seen * torch.from_numpy(weight[chosen]).float()[:, None, None, None]
        if picture is None and len(chosen) == len(grid):
            picture = seen
        else:
            if picture is None:
                picture = seen.new_zeros(len(grid), *seen.shape[1:])
            picture.index_add_(0, rows, seen)
    assert picture is not None  # the weights of the levels add up to 1 in every frame
    return picture


# ---- colour, light, sensor ----------------------------------------------------------------------


def recolour(rng: np.random.Generator, picture: Tensor) -> Tensor:
    """Mix the channels and change contrast and brightness of [N, 3, H, W]."""
    mix = np.eye(3)[rng.permutation(3)] + rng.normal(0, 0.15, size=(3, 3))
    grey = rng.uniform(0, 1) ** 2
    mix = (1 - grey) * mix + grey * np.full((3, 3), 1 / 3)
    if rng.uniform() < 0.3:
        mix = -mix
    contrast, brightness = rng.uniform(0.5, 1.3), rng.normal(0.45, 0.12)
    red, green, blue = (picture - 0.5).unbind(1)
    # no matrix product: its sums depend on the processor, and on how many threads share them
    weights = (contrast * mix).astype(np.float32).tolist()
    mixed = [red * r + green * g + blue * b for r, g, b in weights]
    return torch.stack(mixed, 1) + float(brightness)


def light(
    rng: np.random.Generator, picture: Tensor, seconds: np.ndarray, strength: float
) -> Tensor:
    """Let the exposure of [T, 3, H, W] drift and flicker, in some clips with a moving shadow or
    glow; `strength` 0 changes nothing, 1 is the most."""
    middle = seconds - seconds.mean()
    gain = 1 + strength * rng.normal(0, 0.15) * middle
    if rng.uniform() < 0.3:
        gain = gain + strength * rng.uniform(0, 0.12) * np.sin(
            2 * math.pi * rng.uniform(0.5, 5) * seconds + rng.uniform(0, 6)
        )
    if rng.uniform() < 0.3:
        gain = gain + strength * rng.normal(0, 0.05, size=len(seconds))
    field = torch.from_numpy(gain.astype(np.float32))[:, None, None]
    if rng.uniform() < 0.3:
        axis = pixel_centres(picture.shape[-1]).numpy()
        place = rng.uniform(-0.5, 0.5, size=2) + rng.normal(0, 0.25, size=2) * middle[:, None]
        width = rng.uniform(0.1, 0.5)
        across = np.exp(-0.5 * ((axis[None] - place[:, :1]) / width) ** 2)  # [T, W]
        down = np.exp(-0.5 * ((axis[None] - place[:, 1:]) / width) ** 2)
        spot = strength * rng.uniform(-0.7, 0.7) * down[:, :, None] * across[:, None]
        field = field * torch.from_numpy((1 + spot).astype(np.float32))
    return picture * field[:, None]


_GRAIN_SEED = (0, 6)
"""Changing it changes the clips of every set."""


@functools.lru_cache(maxsize=1)
def _grain() -> Tensor:
    """float32 [2 ** 20] of unit noise; each frame takes a piece of it from a drawn offset."""
    return torch.from_numpy(
        np.random.default_rng(_GRAIN_SEED).standard_normal(1 << 20).astype(np.float32)
    )


def sensor(rng: np.random.Generator, picture: Tensor) -> Tensor:
    """Add softness, grain and in some clips black bars; round to uint8 [T, 3, H, W]."""
    frames, channels, height, width = picture.shape
    if rng.uniform() < 0.4:
        side = rng.uniform(0.05, 0.3)
        for axis in (2, 3):
            ends = picture.narrow(axis, 0, 1), picture.narrow(axis, picture.shape[axis] - 1, 1)
            wide = torch.cat([ends[0], picture, ends[1]], axis)
            around = wide.narrow(axis, 0, height) + wide.narrow(axis, 2, height)
            picture = (1 - 2 * side) * picture + side * around
    noise = math.exp(rng.uniform(math.log(0.001), math.log(0.04)))
    grain, count = _grain(), channels * height * width
    if count < len(grain):
        starts = rng.integers(0, len(grain) - count, size=frames)
        picture = picture + noise * torch.stack([grain[s : s + count] for s in starts]).view_as(
            picture
        )
    if rng.uniform() < 0.1:  # black bars, as in films of another aspect ratio
        bar = int(rng.uniform(0.04, 0.14) * height)
        if rng.uniform() < 0.7:
            picture[:, :, :bar] = picture[:, :, height - bar :] = 0
        else:
            picture[..., :bar] = picture[..., width - bar :] = 0
    return picture.mul(255).add(0.5).clamp(0, 255).to(torch.uint8)
