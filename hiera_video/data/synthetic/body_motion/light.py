"""Light, lens, sensor and compression: clean pixels -> what a camera saves."""

from __future__ import annotations

import functools
import math

import numpy as np

from hiera_video.data.synthetic.body_motion import camera
from hiera_video.data.synthetic.body_motion.motions import log_uniform

LEVELS = 2048


def film(rng: np.random.Generator, picture: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Film a clip: float32 [T, H, W, 3], near 0 to 1 -> uint8 [T, H, W, 3].

    A third is dark, as at night: little light, lifted or not by the camera's own gamma, with noise
    that is as strong as the picture's own contrasts.
    """
    dark = rng.uniform() < 0.35
    exposure = log_uniform(rng, 0.04, 0.5) if dark else log_uniform(rng, 0.6, 1.5)
    noise = log_uniform(rng, 0.3, 6 if dark else 10)  # bytes
    gamma = log_uniform(rng, 0.6, 1.8)
    if rng.uniform() < 0.45:
        picture = camera.soften(picture, rng.uniform(0.08, 0.33))
    gain = _light(rng, t, picture.shape[1])
    ramp = np.linspace(0, 1, LEVELS)
    offset = rng.uniform(0, 12) if rng.uniform() < 0.3 else 0.0
    curve = (255 * exposure * ramp**gamma + offset).astype(np.float32)
    if dark and rng.uniform() < 0.4:  # lifted afterwards, noise and all
        curve, noise = curve * (0.7 / exposure), min(noise * 0.7 / exposure, 40.0)
    grain = _grain()
    count = picture[0].size
    offsets = rng.integers(0, len(grain) - count, size=len(picture))
    if rng.uniform() < 0.1:
        offsets[:] = offsets[0]  # dirt on the lens: noise that does not move
    bytes_ = camera.expose(picture, gain, curve, grain, offsets, noise)
    if rng.uniform() < 0.3:
        bytes_ = compress(bytes_, step=log_uniform(rng, 4, 40))
    return bytes_


@functools.lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    """Unit noise, float32 [2 ** 19]; each frame takes a piece of it."""
    return np.random.default_rng((0, 7)).standard_normal(1 << 19).astype(np.float32)


def _light(rng: np.random.Generator, t: np.ndarray, side: int) -> np.ndarray:
    """Draw the light over time and picture: float32 [T, H, W] around 1."""
    gain = 1 + 0.15 * rng.normal() * (rng.uniform() < 0.3) * t
    if rng.uniform() < 0.2:  # flicker, regular or not
        gain = gain + rng.uniform(0, 0.15) * np.sin(rng.uniform(3, 30) * t + rng.uniform(0, 6))
    if rng.uniform() < 0.2:
        gain = gain + rng.normal(0, 0.06, size=len(t))
    if rng.uniform() < 0.4:  # a lamp, a shadow or a dark border, still or moving
        axis = (np.arange(side) + 0.5) / side - 0.5
        moving = rng.normal(0, 0.3, size=2) * (rng.uniform() < 0.3)
        centre = rng.uniform(-0.5, 0.5, size=2) + moving * t[:, None]
        width = rng.uniform(0.15, 0.6)
        across = np.exp(-0.5 * ((axis[None] - centre[:, :1]) / width) ** 2)
        down = np.exp(-0.5 * ((axis[None] - centre[:, 1:]) / width) ** 2)
        spot = rng.uniform(-0.7, 1.2)
        return camera.lit(gain, down, across, spot)
    return np.broadcast_to(gain[:, None, None], (len(t), side, side)).astype(np.float32)


@functools.lru_cache(maxsize=1)
def _cosines() -> np.ndarray:
    """The discrete cosine transform of 8 values, and its inverse: float32 [2, 8, 8]."""
    k, n = np.arange(8)[:, None], np.arange(8)[None]
    basis = np.cos(math.pi * (2 * n + 1) * k / 16) * 0.5
    basis[0] /= math.sqrt(2)
    return np.stack([basis, basis.T]).astype(np.float32)


def compress(frames: np.ndarray, *, step: float) -> np.ndarray:
    """Lose what a codec loses: the cosines of blocks of 8 x 8 rounded to steps, coarser the finer
    they are. uint8 [T, H, W, 3], H and W multiples of 8; `step` in bytes."""
    steps = step * (1 + 0.5 * (np.arange(8)[:, None] + np.arange(8)[None]))
    return camera.rounded_cosines(frames, _cosines(), steps.astype(np.float32))
