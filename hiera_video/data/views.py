"""Read the test views of a video: file -> clips, the same for the demo and for the test.

K temporal views x S spatial crops are written "5x3". Every frame that any view needs is decoded
once, in the file's order, and cut to its crops before the next few are decoded: memory is bounded
by what the model takes, not by the length or the size of the video.
"""

from __future__ import annotations

import os
import re

import torch
from torch import Tensor

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.transforms.normalize import normalize_clips
from hiera_video.errors import UserError
from hiera_video.video.crops import SPATIAL_CROPS, read_crops
from hiera_video.video.decode import VideoReader, open_video
from hiera_video.video.frame_folder import FrameFolder
from hiera_video.video.guarded_video import GuardedVideo
from hiera_video.video.sampling import Indices, uniform_views
from hiera_video.video.view_crops import ViewCrops, read_view_crops

_MOST_TEMPORAL_VIEWS = 100

Reader = VideoReader | FrameFolder | GuardedVideo


def parse_views(text: str) -> tuple[int, int]:
    """Read "5x3" as (5, 3): temporal views x spatial crops. UserError says what is allowed."""
    match = re.fullmatch(r"([0-9]{1,9})[xX×]([0-9]{1,9})", text.strip())
    if match:
        num_views, num_crops = int(match[1]), int(match[2])
        if 1 <= num_views <= _MOST_TEMPORAL_VIEWS and num_crops in SPATIAL_CROPS:
            return num_views, num_crops
    raise UserError(
        f"views {text!r}; write TEMPORALxSPATIAL, such as 5x3: 1 to {_MOST_TEMPORAL_VIEWS} clips "
        "spread over the video x 1 crop (centre) or 3 (side to side)"
    )


def load_test_views(
    path: str | os.PathLike,
    spec: ClipSpec,
    num_views: int,
    num_crops: int,
    decoder: str = "auto",
) -> Tensor:
    """The `num_views` x `num_crops` test clips of a video: float32 [K * S, 3, T, H, W].

    The crops of one temporal view are neighbours. A folder of pictures is read as a video. Raises
    DecodeError for what cannot be decoded, UserError for views or a decoder that do not exist.
    """
    with open_video(path, decoder) as reader:
        return read_test_views(reader, spec, num_views, num_crops)


def read_test_views(reader: Reader, spec: ClipSpec, num_views: int, num_crops: int) -> Tensor:
    """The clips that `load_test_views` returns, of an open video."""
    return read_views(reader, views_of(reader, spec, num_views), spec, num_crops)


def views_of(reader: Reader, spec: ClipSpec, num_views: int) -> Indices:
    """The frames of the test's `num_views` clips of an open video: int64 [K, T]."""
    return uniform_views(reader.info.num_frames, reader.info.fps, spec, num_views)


def read_views(reader: Reader, views: Indices, spec: ClipSpec, num_crops: int) -> Tensor:
    """The clips at the frames `views` [K, T] of an open video: float32 [K * S, 3, T, H, W]."""
    pixels = read_view_pixels(reader, views, spec, num_crops)
    clips = torch.empty(len(pixels), 3, *pixels[0].shape[:1], *pixels[0].shape[2:])
    for clip, frames in zip(clips, pixels, strict=True):
        normalize_clips(frames.transpose(0, 1)[None], spec, out=clip[None])
    return clips


def read_view_pixels(
    reader: Reader, views: Indices, spec: ClipSpec, num_crops: int
) -> list[Tensor]:
    """The clips of `read_views` before normalisation: a list of K * S uint8 [T, 3, H, W]."""
    return read_shared_crops(reader, views, spec, num_crops).clips()


def read_shared_crops(reader: Reader, views: Indices, spec: ClipSpec, num_crops: int) -> ViewCrops:
    """The frames that the views [K, T] of an open video show, each once."""

    def read(indices: Indices) -> list[Tensor]:
        return _crops(reader, indices, spec.crop_size, num_crops)

    return read_view_crops(read, views)


def _crops(reader: Reader, indices: Indices, crop_size: int, num_crops: int) -> list[Tensor]:
    """S times uint8 [T, 3, H, W], cut in the process that decodes."""
    if isinstance(reader, GuardedVideo):
        return reader.read_crops(indices, crop_size, num_crops)
    return read_crops(reader, indices, crop_size, num_crops)
