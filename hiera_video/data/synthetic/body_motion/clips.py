"""Generated clips with their truth, one after the other, for pretraining: nothing is stored.

frames, truth = draw_clip(seed=7, settings=ClipSettings())
frames.shape, truth.shape      # uint8 (8, 64, 64, 3), float32 (14, 4, 16, 16)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from hiera_video.data.synthetic.body_motion.light import film
from hiera_video.data.synthetic.body_motion.motions import log_uniform
from hiera_video.data.synthetic.body_motion.scene import Scene, random_scene
from hiera_video.data.synthetic.body_motion.streams import stream
from hiera_video.data.synthetic.body_motion.truth import FAR, GRID


@dataclass(frozen=True)
class ClipSettings:
    """Form of the clips of a stream."""

    frames: int = 8
    size: int = 64
    """Side of the pictures, pixels; a multiple of `GRID`."""
    seconds: tuple[float, float] = (0.05, 0.16)
    """Time between frames: (least, most), drawn log-uniformly for each clip."""


def frame_times(seed: int, settings: ClipSettings) -> np.ndarray:
    """Times of the frames, and of `FAR` more after them: float64 [T + FAR], seconds."""
    step = log_uniform(stream(seed, "file"), *settings.seconds)
    return (np.arange(settings.frames + FAR) - (settings.frames - 1) / 2) * step


def draw_clip(seed: int, settings: ClipSettings) -> tuple[np.ndarray, np.ndarray]:
    """Draw a clip: uint8 [T, S, S, 3], and its truth float32 [TRUTH_CHANNELS, T / 2, GRID, GRID].

    The truth is for every second frame. Beyond the last frame the clip's world goes on, so that
    displacements are known there too.
    """
    t = frame_times(seed, settings)
    scene = random_scene(seed, t, settings.frames)
    picture, owner = without_future(scene, settings).draw(settings.size)
    frames = film(stream(seed, "light"), picture, t[: settings.frames])
    return frames, truth_of(scene, owner)


def without_future(scene: Scene, settings: ClipSettings) -> Scene:
    """The scene without the times after the clip."""
    forward = np.ascontiguousarray(scene.forward[:, : settings.frames])
    return dataclasses.replace(scene, forward=forward)


def truth_of(scene: Scene, owner: np.ndarray) -> np.ndarray:
    """Average what is known of every second frame over cells, see `draw_clip`."""
    frames, size, _ = owner.shape
    cell = size // GRID
    starts = np.arange(0, frames, 2)
    near = scene.flows(owner, starts, starts + 1, cell=cell)
    far = scene.flows(owner, starts, starts + FAR, cell=cell)
    doing = scene.doing_maps(owner[::2], cell=cell)
    return np.concatenate([64 * near, 64 * far[2:], doing])
