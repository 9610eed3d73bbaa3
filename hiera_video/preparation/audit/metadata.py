"""Compare the metadata of a video file with its content: frame count, times, size, name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from hiera_video.video.container import open_container
from hiera_video.video.info import FrameIndex, VideoInfo
from hiera_video.video.limits import TIME_LIMIT, Deadline

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.stream import Stream

_EXTENSIONS = {
    "mov": (".mp4", ".m4v", ".mov", ".3gp", ".f4v"),
    "matroska": (".mkv", ".webm"),
    "avi": (".avi", ".divx"),
    "mpegts": (".ts", ".mts", ".m2ts"),
    "gif": (".gif",),
    "flv": (".flv", ".f4v"),
}
"""FFmpeg's name of a container (its first word) -> the file extensions that fit it."""

_EXTREME_ASPECT_RATIO = 8
"""In a picture with this aspect ratio, a square crop shows little of the scene."""

_MAX_MOOV_BYTES = 64 << 20
"""Headers of hours of video are far smaller."""


def uneven_frame_times(times: np.ndarray) -> str:
    """Describe how the frame times vary; "" for a steady rate.

    Some lateness is normal (milliseconds in WebM, a frame dropped here and there): one frame in
    twenty may be half a frame or more off.

    Args:
        times: float64 [N], seconds.
    """
    steps = np.diff(times)
    if len(steps) < 2:
        return ""
    shortest, median, longest = np.percentile(steps, (5, 50, 95))
    if median > 0 and longest - shortest <= median / 2:
        return ""
    if times[-1] <= 0:
        return "no frame times in the file"
    return f"variable: frames last {shortest:.3f} to {longest:.3f} s"


def metadata_mismatch(info: VideoInfo, index: FrameIndex) -> str:
    """Describe how the header states more video than the packets hold; "" where it does not.

    MP4 states the number of its frames, and each must be there. Other containers state a duration,
    sometimes that of the whole file, whose sound may be longer: half a second, or 5 %, is allowed.
    """
    container = open_container(info.path, Deadline(info.path, TIME_LIMIT))
    try:
        stream = container.streams[index.stream]
        packets, stated = len(index.pts), stream.frames
        if index.container.startswith("mov") and stated:
            if packets >= stated:
                return ""
            readable = min(packets, info.num_frames)
            return f"states {stated} frames, holds {readable} (cut off?)"
        if index.container in ("mpegts", "mpeg"):
            return ""  # they state nothing: FFmpeg computes the duration from the packets
        seconds = _stated_seconds(stream, container)
        if seconds - info.duration <= max(0.5, 0.05 * seconds):
            return ""
        return f"states {seconds:.1f} s, ends after {info.duration:.1f} s (cut off?)"
    finally:
        container.close()


def _stated_seconds(stream: Stream, container: InputContainer) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    # Matroska keeps the duration of a stream as a tag, "00:00:03.000000000".
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")
    minutes, _, seconds = rest.partition(":")
    try:
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return (container.duration or 0) / 1e6


def unusual_properties(info: VideoInfo, index: FrameIndex) -> Iterator[str]:
    """Describe what is unusual about a file that can be read all the same."""
    container = index.container.split(",")[0]
    extension = os.path.splitext(info.path)[1].lower()
    if extension not in _EXTENSIONS.get(container, (extension,)):
        yield f"its extension is {extension or 'missing'}, its format is {index.container}"
    if index.num_video_streams > 1:
        yield f"{index.num_video_streams} video streams: number {index.stream} is read"
    if index.sequential and container != "avi":
        yield "packet times are missing or repeated: frames are counted by decoding"
    aspect_ratio = max(info.width, info.height) / min(info.width, info.height)
    if aspect_ratio >= _EXTREME_ASPECT_RATIO:
        yield f"pictures of {info.width}x{info.height}"
    if container == "mov" and index.num_video_streams == 1:
        stated = _stated_size(info.path)
        if stated is not None and stated != index.size:
            real = f"{index.size[0]}x{index.size[1]}"
            yield f"the header states {stated[0]}x{stated[1]}, the pictures are {real}"


def _stated_size(path: str) -> tuple[int, int] | None:
    """Return (width, height) in the header of an MP4 file with one video stream; None if unsure."""
    with open(path, "rb") as file:
        moov = _box(file, b"moov")
    video = moov.find(b"vmhd")
    table = moov.find(b"stsd", video) if video >= 0 else -1
    # After the name: version and count (8), size and name of the entry (8), and its first fields.
    start = table + 4 + 8 + 8 + 24
    if table < 0 or start + 4 > len(moov):
        return None
    width, height = moov[start : start + 2], moov[start + 2 : start + 4]
    return int.from_bytes(width, "big"), int.from_bytes(height, "big")


def _box(file: BinaryIO, name: bytes) -> bytes:
    """Return the content of the first top-level box of this name; empty if there is none."""
    while len(head := file.read(8)) == 8:
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(file.read(8), "big") - 8
        if head[4:] == name:
            most = _MAX_MOOV_BYTES
            return file.read(min(max(size - 8, 0), most) if size else most)
        if size < 8:
            break
        file.seek(size - 8, os.SEEK_CUR)
    return b""
