"""Files to measure with: generated clips of realistic size, or those of a folder.

The pictures are those of the camera-motion set (`data/synthetic/camera_motion.py`): textures,
moving shapes, changing light and sensor noise, so that they compress and decode like filmed ones.
Half of a clip is rendered and then played backwards; larger pictures are tiled with mirror images.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from hiera_video.benchmarks.measure import progress
from hiera_video.benchmarks.options import SECONDS
from hiera_video.errors import RunFailed
from hiera_video.video.find import find_videos
from hiera_video.video.guarded_pool import GuardedPool, WorkerFailure
from hiera_video.video.processes import usable_cores

FPS = 30
"""Of a clip, as in Kinetics."""

CRF = 23
"""x264's own default quality."""

RENDERED = 340
"""Side of the square that is rendered."""


@dataclass(frozen=True)
class Recipe:
    """One file to make."""

    name: str
    """Of the file, without its ending."""
    width: int = 340
    height: int = 256
    codec: str = "h264"
    """h264, hevc, vp9 or av1."""
    seed: int = 0
    seconds: float = SECONDS
    gop: int | None = None
    """Frames from key frame to key frame; None: the encoder's choice."""

    @property
    def file_name(self) -> str:
        """mp4; for vp9, webm."""
        return f"{self.name}.{'webm' if self.codec == 'vp9' else 'mp4'}"


ENCODERS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"crf": str(CRF), "preset": "veryfast"}),
    "hevc": ("libx265", {"crf": "28", "preset": "ultrafast", "x265-params": "log-level=none"}),
    "vp9": ("libvpx-vp9", {"crf": "35", "b": "0", "deadline": "realtime", "cpu-used": "8"}),
    "av1": ("libsvtav1", {"crf": "40", "preset": "12"}),
}
"""Codec -> encoder of FFmpeg and its options; key frames are placed by the encoder."""


@contextmanager
def benchmark_videos(folder: str | None, recipes: Sequence[Recipe]) -> Iterator[list[str]]:
    """The videos below `folder`, or generated ones, which are deleted when the block ends.

    Raises UserError where the folder has no videos, RunFailed where one cannot be generated.
    """
    if folder is not None:
        yield find_videos([folder])
        return
    with TemporaryDirectory(prefix="hiera_video_benchmark_") as temporary:
        yield make_videos(temporary, recipes)


def make_videos(folder: str, recipes: Sequence[Recipe]) -> list[str]:
    """Generate a file for each recipe; returns their paths in the same order."""
    jobs = [(folder, recipe) for recipe in recipes]
    workers = min(usable_cores(), len(jobs))
    with GuardedPool(write, workers=workers, time_limit=600, memory_limit=8 << 30) as pool:
        for done, (job, outcome) in enumerate(pool.map(jobs), 1):
            progress("made to measure with", done, len(jobs), "videos")
            if isinstance(outcome, WorkerFailure):
                raise RunFailed(f"cannot make {job[1].file_name}: {outcome.reason}")
    progress("")
    return [str(Path(folder) / recipe.file_name) for recipe in recipes]


def write(job: tuple[str, Recipe]) -> None:
    """Render and encode one file."""
    import av

    folder, recipe = job
    frames = pictures(recipe)
    encoder, options = ENCODERS[recipe.codec]
    with av.open(str(Path(folder) / recipe.file_name), "w") as container:
        stream = container.add_stream(encoder, rate=FPS, options=dict(options))
        if recipe.gop is not None:
            stream.gop_size = recipe.gop
        stream.width, stream.height = recipe.width, recipe.height
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            picture = tiled(frame, recipe.height, recipe.width).permute(1, 2, 0).contiguous()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.numpy(), "rgb24")))
        container.mux(stream.encode(None))


@functools.lru_cache(maxsize=1)
def _rendered(seed: int, frames: int) -> Tensor:
    from hiera_video.data.synthetic import camera_motion as synthetic

    label = synthetic.LABELS[seed % len(synthetic.LABELS)]
    return synthetic.render_clip(label, seed, frames=max(frames, 2), size=RENDERED)


def pictures(recipe: Recipe) -> Tensor:
    """Render a clip, uint8 [T, 3, S, S], played forwards and then backwards."""
    count = max(1, round(recipe.seconds * FPS))
    half = _rendered(recipe.seed, (count + 1) // 2)[: (count + 1) // 2]
    return torch.cat([half, half.flip(0)])[:count]


def tiled(frame: Tensor, height: int, width: int) -> Tensor:
    """[3, S, S] -> [3, height, width]: cropped to the middle, or tiled with mirror images."""
    for dim, size in ((1, height), (2, width)):
        side = frame.shape[dim]
        if size <= side:
            frame = frame.narrow(dim, (side - size) // 2, size)
            continue
        copies = -(-size // side)
        mirrored = [frame.flip(dim) if i % 2 else frame for i in range(copies)]
        frame = torch.cat(mirrored, dim).narrow(dim, 0, size)
    return frame
