"""What the audit and the copies share when they read a video with PyAV, frame by frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hiera_video.errors import DecodeError
from hiera_video.video.decode import VideoReader
from hiera_video.video.info import FrameIndex, VideoInfo

if TYPE_CHECKING:
    from av.video.plane import VideoPlane


def scan_file(path: str, time_limit: float) -> tuple[VideoInfo, FrameIndex]:
    """Return what a video file holds, and where each of its frames is.

    Raises DecodeError: the file cannot be opened, has no frame, or takes longer than `time_limit`
    seconds to scan.
    """
    with VideoReader(path, "pyav", time_limit=time_limit) as reader:
        info = reader.info
    if info.index is None:
        raise DecodeError(path, "has no frame index")
    return info, info.index


def plane_bytes(plane: VideoPlane) -> np.ndarray:
    """Return the memory of one plane of a frame: uint8 [height, line_size], without a copy.

    Lines end with padding where `line_size` is above the plane's width.
    """
    return np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
