"""The camera motions of the set over real footage: for measurements only, never to train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hiera_video.data.synthetic.camera_motion import CLIP_SPEC
from hiera_video.data.synthetic.camera_path import FPS, SIZE, camera_path, stream
from hiera_video.data.synthetic.drawing import affine_grid, pixel_centres, rotation, sample_pyramid
from hiera_video.errors import UserError
from hiera_video.video.decode import VideoReader


def over_real_footage(
    video_path: str | Path,
    label: str,
    seed: int,
    *,
    frozen: bool,
    frames: int = 2 * CLIP_SPEC.num_frames,
    size: int = SIZE,
) -> Tensor:
    """Move a crop over a real video as a camera moves: uint8 [frames, 3, size, size] at `FPS`.

    A stretch of the video that starts at a drawn time is read in real time. With `frozen=False`
    the video goes on inside the crop; with `frozen=True` one frame of it stands still. The path,
    its speed and the crop's size and place follow from (label, seed); the crop never leaves the
    picture. It measures how well a model generalises: never train on it.

    Raises UserError if the label is unknown or the video is shorter than `frames / FPS` seconds,
    DecodeError if it cannot be read.
    """
    path = camera_path(label, seed, frames=frames)
    rng = stream(seed, "footage")
    start, still, fill, px, py = rng.uniform(size=5)
    with VideoReader(video_path) as video:
        times = np.asarray(video.info.times)
        span = frames / FPS
        if video.info.duration < span:
            raise UserError(
                f"{video_path}: lasts {video.info.duration:.2f} s; a clip of {frames} frames at "
                f"{FPS:g} fps needs {span:.2f} s: choose a longer video or fewer frames"
            )
        wanted = times[0] + start * (video.info.duration - span) + np.arange(frames) / FPS
        on_screen = np.searchsorted(times, wanted + 1e-6, side="right").clip(1) - 1
        source = video.read(on_screen[[int(still * frames)]] if frozen else on_screen)
    height, width = source.shape[-2:]
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    scale = np.exp(path.log_scale)
    linear = rotation(path.angle) * scale[:, None, None]
    reached = path.centre[:, None] + np.einsum("tij,cj->tci", linear, corners)
    low, high = reached.min(axis=(0, 1)), reached.max(axis=(0, 1))
    room = np.array([width, height])
    side = float((room / (high - low)).min()) * (0.75 + 0.25 * fill)  # pixels of the pivot's view
    place = np.array([px, py]) * (room - side * (high - low)) - side * low
    # pixels -> the -1..1 that grid_sample wants
    to_source = np.diag(2 / room)
    axis = pixel_centres(size)
    grid = affine_grid(
        to_source @ linear * side, (place + side * path.centre) @ to_source - 1, axis, axis
    )
    levels = [source.float() / 255]
    while len(levels) < 4 and min(levels[-1].shape[-2:]) >= 4:
        levels.append(F.avg_pool2d(levels[-1], 2))
    picture = sample_pyramid(tuple(levels), grid, step=side * scale / size)
    return picture.mul(255).add(0.5).clamp(0, 255).to(torch.uint8)
