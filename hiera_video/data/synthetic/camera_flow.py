"""Camera motions as a stream of clips with their optical flow, for pretraining: nothing is stored.

frames, truth = draw_clip(label="pan left", seed=7, spec=spec)
frames.shape, truth.shape      # uint8 (8, 3, 32, 32), float32 (15, 4, 16, 16)

The clips are plain ones of the camera-motion set, of scenes that are in no set of files. Nothing
moves in them but the camera, so its path gives the flow of every place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.datasets import Sample
from hiera_video.data.randomness import draw_seed, generator_for
from hiera_video.data.synthetic.body_motion.truth import GRID, TRUTH_CHANNELS
from hiera_video.data.synthetic.stream_clips import require_stream_clips
from hiera_video.data.transforms.train import Pixels

if TYPE_CHECKING:
    from hiera_video.data.synthetic.camera_path import CameraPath

NAME = "camera_flow"

_FIRST_SCENE = 1 << 40
"""Number of the first scene of the stream, far above those of the sets of files."""

_SCENES = 1 << 40


@dataclass(frozen=True)
class CameraFlowReader:
    """Draws clips of camera motions, new ones in every epoch.

    The `clips_per_video` clips of one number show one scene, which takes longer to draw than a
    clip. Each has a camera motion of its own.

    Raises UserError for clips that the stream cannot have.
    """

    spec: ClipSpec
    seed: int = 0
    clips_per_video: int = 1
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_stream_clips(self.spec)

    def __call__(self, sample: Sample) -> list[Pixels]:
        """Draw uint8 [T, 3, S, S] and the truth of each clip, see `draw_clip`."""
        from hiera_video.data.synthetic.camera_path import LABELS
        from hiera_video.data.synthetic.scenes import CLIPS_PER_SCENE

        generator = generator_for("generated", self.seed, sample.epoch, sample.video_id, 0)
        scene = _FIRST_SCENE + draw_seed(generator) % _SCENES
        labels = torch.randint(len(LABELS), (self.clips_per_video,), generator=generator)
        clips = []
        for number, label in enumerate(labels.tolist()):
            seed = scene * CLIPS_PER_SCENE + number
            frames, truth = draw_clip(LABELS[label], seed, self.spec)
            clips.append(Pixels(frames, truth=truth))
        return clips


def draw_clip(label: str, seed: int, spec: ClipSpec) -> tuple[Tensor, Tensor]:
    """Draw a clip: uint8 [T, 3, S, S], and its truth float32 [TRUTH_CHANNELS, T / 2, GRID, GRID].

    The truth has the numbers of `body_motion/truth.py`, for every second frame: the displacement
    until the next frame in 1/64 of the view's side, and 0 for what only bodies do.
    """
    from hiera_video.data.synthetic.camera_motion import render_clip
    from hiera_video.data.synthetic.camera_path import camera_path

    count, fps = spec.num_frames, spec.target_fps / spec.sampling_rate
    frames = render_clip(label, seed, size=spec.crop_size, frames=count, fps=fps, plain=True)
    flow = camera_flow(camera_path(label, seed, frames=count, fps=fps, plain=True), GRID)[::2]
    truth = torch.zeros(TRUTH_CHANNELS, len(flow), GRID, GRID)
    truth[:2] = torch.from_numpy(64 * flow).permute(3, 0, 1, 2)
    return frames, truth


def camera_flow(path: CameraPath, grid: int) -> np.ndarray:
    """Compute where the scene goes in the picture from each frame to the next.

    Returns float64 [T - 1, grid, grid, 2], x and y at the centres of the cells, in sides of the
    view.
    """
    from hiera_video.data.synthetic.drawing import rotation

    axis = (np.arange(grid) + 0.5) / grid - 0.5
    place = np.stack(np.meshgrid(axis, axis), axis=-1)  # x, y
    turn = rotation(path.angle) * np.exp(path.log_scale)[:, None, None]  # picture -> scene
    scene = np.einsum("tij,rcj->trci", turn[:-1], place) + path.centre[:-1, None, None]
    back = np.linalg.inv(turn[1:])
    return np.einsum("tij,trcj->trci", back, scene - path.centre[1:, None, None]) - place
