"""The stream of generated clips with their truth, for pretraining: nothing is stored or decoded.

    clip = MotionClip(seed=7, settings=ClipSettings())
    clip.frames                # uint8 [8, 64, 64, 3]
    clip.truth                 # float32 [6, 4, 16, 16]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hiera_video.data.synthetic.body_motion.light import film
from hiera_video.data.synthetic.body_motion.motions import log_uniform
from hiera_video.data.synthetic.body_motion.scene import Scene, random_scene
from hiera_video.data.synthetic.body_motion.streams import stream

TRUTH_CHANNELS = 6
"""Values of the truth in every cell: displacement until the next frame (x, y), that part of it which
is not the camera's (x, y), and what is not the camera's over 4 frames (x, y)."""

FAR = 4
"""Frames of the long displacement, which tells a step forward from a swing."""


@dataclass(frozen=True)
class ClipSettings:
    """Form of the clips of a stream."""

    frames: int = 8
    size: int = 64
    """Side of the pictures, pixels; a multiple of 8."""
    seconds: tuple[float, float] = (0.05, 0.16)
    """Time between frames: (least, most), drawn log-uniformly for each clip."""
    cell: int = 4
    """Side of the cells in which the truth is averaged, in pixels of a picture of side 64."""


def frame_times(seed: int, settings: ClipSettings) -> np.ndarray:
    """Times of the frames, and of `FAR` more after them: float64 [T + FAR], seconds."""
    step = log_uniform(stream(seed, "file"), *settings.seconds)
    return (np.arange(settings.frames + FAR) - (settings.frames - 1) / 2) * step


def draw_clip(seed: int, settings: ClipSettings) -> tuple[np.ndarray, np.ndarray]:
    """Draw a clip: uint8 [T, S, S, 3], and its truth float32 [TRUTH_CHANNELS, T / 2, G, G].

    G is 64 / `cell`. The truth is for every second frame, in 1/64 of the view's side; beyond the
    last frame the clip's world goes on, so that it is known there too.
    """
    t = frame_times(seed, settings)
    scene = random_scene(seed, t)
    picture, owner = _visible(scene, settings).draw(settings.size)
    frames = film(stream(seed, "light"), picture, t[: settings.frames])
    return frames, truth_of(scene, owner, settings)


def _visible(scene: Scene, settings: ClipSettings) -> Scene:
    """The scene without the frames after the clip."""
    forward = np.ascontiguousarray(scene.forward[:, : settings.frames])
    return Scene(forward, scene.outline, scene.plate, scene.paint, scene.body)


def truth_of(scene: Scene, owner: np.ndarray, settings: ClipSettings) -> np.ndarray:
    """Average what is known of every second frame over cells, see `draw_clip`."""
    grid = 64 // settings.cell
    pixels = settings.size // grid
    out = np.empty((TRUTH_CHANNELS, settings.frames // 2, grid, grid), np.float32)
    for row, start in enumerate(range(0, settings.frames, 2)):
        out[:4, row] = scene.flow(owner, start, start + 1, cell=pixels)
        out[4:, row] = scene.flow(owner, start, start + FAR, cell=pixels)[2:]
    return 64 * out
