"""Generated clips as a data set: what a reader is for video files, without files.

dataset = VideoDataset(stream_list("body_motion", 1000), GeneratedReader(spec, seed=1), seed=1)
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import ClassVar

import torch

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.datasets import Sample
from hiera_video.data.randomness import draw_seed, generator_for
from hiera_video.data.synthetic.body_motion.truth import LARGEST_SIZE
from hiera_video.data.synthetic.stream_clips import require_stream_clips
from hiera_video.data.transforms.train import Pixels
from hiera_video.errors import UserError

NAME = "body_motion"

SPEEDS = (0.5, 1.6)
"""Time between the frames of a clip, in multiples of the spec's: (least, most)."""


@dataclass(frozen=True)
class GeneratedReader:
    """Draws clips of body motion, new ones in every epoch.

    Raises UserError for clips that the generator cannot draw, or without numba, which draws them.
    """

    spec: ClipSpec
    seed: int = 0
    clips_per_video: int = 1
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_stream_clips(self.spec, largest=LARGEST_SIZE)
        require_numba()

    def __call__(self, sample: Sample) -> list[Pixels]:
        """Draw uint8 [T, 3, S, S] and the truth of each clip, see `clips.draw_clip`."""
        # Imported here: numba takes a second to load, and other data sets do without.
        from hiera_video.data.synthetic.body_motion.clips import ClipSettings, draw_clip

        spec = self.spec
        step = spec.sampling_rate / spec.target_fps
        settings = ClipSettings(
            frames=spec.num_frames,
            size=spec.crop_size,
            seconds=(step * SPEEDS[0], step * SPEEDS[1]),
        )
        clips = []
        for clip in range(self.clips_per_video):
            numbers = (sample.epoch, sample.video_id, clip)
            seed = draw_seed(generator_for("generated", self.seed, *numbers))
            frames, truth = draw_clip(seed, settings)
            pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
            clips.append(Pixels(pixels, truth=torch.from_numpy(truth)))
        return clips


def require_numba() -> None:
    """Raise UserError where numba is not installed."""
    if importlib.util.find_spec("numba") is None:
        raise UserError(
            "generated bodies are drawn by numba, which is not installed: "
            "pip install 'hiera_video[generate]' (or pip install numba)"
        )
