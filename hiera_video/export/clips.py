"""Clips to compare with and to calibrate on: generated ones, or those of a user's videos."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.synthetic.camera_motion import LABELS, render_clip
from hiera_video.data.transforms.normalize import normalize_clips
from hiera_video.data.views import read_test_views
from hiera_video.errors import DecodeError, RunFailed, UserError
from hiera_video.video.decoding_process import decoding_process
from hiera_video.video.find import expand_paths
from hiera_video.video.guarded_video import GuardedVideo

COMPARED_FROM, CALIBRATED_FROM = 10_000_000, 0
"""First seeds: those of the embedded set's videos for testing, and for training."""


def generated_clips(spec: ClipSpec, count: int, first_seed: int) -> Tensor:
    """Draw clips of the embedded set in the form that a model takes: float32 [count, 3, T, H, W].

    The camera moves as in the set; each clip has as many frames, as far apart, as `spec` says.
    """
    frames, side = max(spec.num_frames, 2), max(32, spec.crop_size + spec.crop_size % 2)
    fps = spec.target_fps / spec.sampling_rate
    clips = torch.empty(count, 3, spec.num_frames, spec.crop_size, spec.crop_size)
    for i, clip in enumerate(clips):
        # Consecutive seeds share a scene, which is slow to draw.
        label = LABELS[i % len(LABELS)]
        pixels = render_clip(label, first_seed + i, frames=frames, size=side, fps=fps)
        pixels = pixels[: spec.num_frames, :, : spec.crop_size, : spec.crop_size]
        normalize_clips(pixels.transpose(0, 1)[None], spec, out=clip[None])
    return clips


def video_clips(
    paths: Sequence[str], spec: ClipSpec, count: int, warn: Callable[[str], None]
) -> Tensor:
    """Read one clip, from the middle, of each of at most `count` videos: [N, 3, T, H, W].

    Of more videos, `count` are taken evenly from the list. Files that cannot be decoded are passed
    over with a warning. Raises UserError where nothing can be read.
    """
    files = [path for path, error in expand_paths(paths) if error is None]
    chosen = [files[i * len(files) // count] for i in range(count)] if len(files) > count else files
    clips = []
    with decoding_process() as process:
        for path in chosen:
            try:
                with GuardedVideo(path, process, "auto") as reader:
                    clips.append(read_test_views(reader, spec, 1, 1))
            except (DecodeError, RunFailed) as error:
                warn(f"--calibrate: passed over {error}")
    if not clips:
        raise UserError(f"--calibrate {' '.join(paths)}: no video could be read")
    return torch.cat(clips)
