"""Pictures of moments of a video, for a page: small JPEG files, named by their content."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence

import numpy as np

from hiera_video.files import atomic_write
from hiera_video.pages.folder import PICTURES
from hiera_video.video.guarded_video import GuardedVideo
from hiera_video.video.info import VideoInfo

SIDE = 192
"""Of a picture, in pixels."""

_AT_ONCE = 8
"""Pictures of one request: the reader stays at its place between them, and each is bounded."""


def jpeg_at(video: GuardedVideo, seconds: float) -> bytes:
    """The frame that is shown at a time, its centre, SIDE x SIDE pixels."""
    return next(jpegs_at(video, [seconds]))


def jpegs_at(video: GuardedVideo, times: Sequence[float]) -> Iterator[bytes]:
    """Yield the picture of each time, in seconds from the first frame, rising."""
    frames = [frame_at(video.info, seconds) for seconds in times]
    for first in range(0, len(frames), _AT_ONCE):
        (crops,) = video.read_crops(frames[first : first + _AT_ONCE], SIDE, 1)
        for crop in crops:
            yield jpeg_of(crop.permute(1, 2, 0).numpy())


def frame_at(info: VideoInfo, seconds: float) -> int:
    """The frame that is shown at a time; the first or the last for times outside the video."""
    index = int(np.searchsorted(info.times, seconds, side="right")) - 1
    return min(max(index, 0), len(info.times) - 1)


def write_picture(folder: str, jpeg: bytes) -> str:
    """Write a picture into the folder of a page; returns its path, relative to the page."""
    name = f"{PICTURES}/{hashlib.sha256(jpeg).hexdigest()[:20]}.jpg"
    place = os.path.join(folder, name)
    if not os.path.exists(place):  # its name says what it holds
        with atomic_write(place) as file:
            file.write(jpeg)
    return name


def jpeg_of(pixels: np.ndarray) -> bytes:
    """The content of a JPEG file of a picture, uint8 [H, W, 3]."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=82)
    return file.getvalue()
