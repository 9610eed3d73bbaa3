"""What a video file says of itself, held against what it holds: counts, times, sizes, its name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from hiera_video.video.container import open_container
from hiera_video.video.info import VideoInfo
from hiera_video.video.limits import TIME_LIMIT, Deadline

_ENDINGS = {
    "mov": (".mp4", ".m4v", ".mov", ".3gp", ".f4v"),
    "matroska": (".mkv", ".webm"),
    "avi": (".avi", ".divx"),
    "mpegts": (".ts", ".mts", ".m2ts"),
    "gif": (".gif",),
    "flv": (".flv", ".f4v"),
}
"""Of FFmpeg's name of a container (its first word), the endings that tell no lie."""

_SLIM = 8
"""A picture so many times longer than wide leaves a crop little to see."""

_MOST_MOOV = 64 << 20
"""Bytes; headers of hours of video are far smaller."""


def irregular(times: np.ndarray) -> str:
    """What is uneven about the frames' times (float64 [N], seconds); "" for a steady rate.

    Some lateness is normal (milliseconds in WebM, a frame dropped here and there): one frame in
    twenty may be half a step or more off.
    """
    steps = np.diff(times)
    if len(steps) < 2:
        return ""
    short, usual, long = np.percentile(steps, (5, 50, 95))
    if usual > 0 and long - short <= usual / 2:
        return ""
    if times[-1] <= 0:
        return "no frame times in the file"
    return f"variable: frames last {short:.3f} to {long:.3f} s"


def unkept_claim(info: VideoInfo) -> str:
    """How the file's header promises more than its packets hold; "" where it does not.

    MP4 states the number of its frames, and is held to each of them. Other containers state a time,
    in part only of the whole file, whose sound may be the longer part: half a second, and one part
    in twenty, are forgiven.
    """
    container = open_container(info.path, Deadline(info.path, TIME_LIMIT))
    try:
        stream = container.streams[info.index.stream]
        packets, stated = len(info.index.pts), stream.frames
        if info.index.container.startswith("mov") and stated:
            if packets >= stated:
                return ""
            readable = min(packets, info.num_frames)
            return f"claims {stated} frames, holds {readable} (cut off?)"
        if info.index.container in ("mpegts", "mpeg"):
            return ""  # they claim nothing: FFmpeg works the time out from what is there
        seconds = _stated_seconds(stream, container)
        if seconds - info.duration <= max(0.5, 0.05 * seconds):
            return ""
        return f"claims {seconds:.1f} s, ends after {info.duration:.1f} s (cut off?)"
    finally:
        container.close()


def _stated_seconds(stream, container) -> float:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")  # Matroska's own note
    minutes, _, seconds = rest.partition(":")
    try:
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return (container.duration or 0) / 1e6


def oddities(info: VideoInfo) -> Iterator[str]:
    """What is unusual about a file, in words; it can be read all the same."""
    kind = info.index.container.split(",")[0]
    ending = os.path.splitext(info.path)[1].lower()
    if ending not in _ENDINGS.get(kind, (ending,)):
        yield f"its name says {ending or 'nothing'}, it is {info.index.container}"
    if info.index.num_video_streams > 1:
        yield f"{info.index.num_video_streams} video streams: number {info.index.stream} is read"
    if info.index.sequential and kind != "avi":
        yield "no times, or the same one twice, on its packets: frames are counted by decoding"
    slim = max(info.width, info.height) / min(info.width, info.height)
    if slim >= _SLIM:
        yield f"pictures of {info.width}x{info.height}"
    if kind == "mov":
        stated = _stated_size(info.path)
        if stated is not None and stated != info.index.size and info.index.num_video_streams == 1:
            real = f"{info.index.size[0]}x{info.index.size[1]}"
            yield f"the header says {stated[0]}x{stated[1]}, the pictures are {real}"


def _stated_size(path: str) -> tuple[int, int] | None:
    """(width, height) in the header of an MP4 file with one video stream; None where unsure."""
    with open(path, "rb") as file:
        moov = _box(file, b"moov")
    video = moov.find(b"vmhd")
    table = moov.find(b"stsd", video) if video >= 0 else -1
    # After the name: version and count (8), size and name of the entry (8), and its first fields.
    place = table + 4 + 8 + 8 + 24
    if table < 0 or place + 4 > len(moov):
        return None
    width, height = moov[place : place + 2], moov[place + 2 : place + 4]
    return int.from_bytes(width, "big"), int.from_bytes(height, "big")


def _box(file: BinaryIO, name: bytes) -> bytes:
    """Content of the first top-level box of this name; empty where there is none."""
    while len(head := file.read(8)) == 8:
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(file.read(8), "big") - 8
        if head[4:] == name:
            return file.read(min(max(size - 8, 0), _MOST_MOOV)) if size else file.read(_MOST_MOOV)
        if size < 8:
            break
        file.seek(size - 8, os.SEEK_CUR)
    return b""
