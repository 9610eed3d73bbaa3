"""Copy the packets of one video stream into a simple container in memory.

For files that a library cannot seek in or count correctly by itself (MPEG-TS, no duration, several
video streams, open picture groups, edit lists): it then reads the copy. Nothing is decoded. The
copy shows every packet, has key-frame marks only where decoding can start without earlier packets,
and begins where decoding can begin.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import numpy as np

from hiera_video.errors import DecodeError
from hiera_video.video.container import VideoFile, demux, error_reason
from hiera_video.video.info import FrameIndex
from hiera_video.video.limits import Deadline

MAX_BYTES = 256 << 20
"""Largest file that is copied into memory."""

MAX_GAP = 1500
"""Most packets from one closed key frame to the next: what one frame may cost to decode."""


def remux(
    file: VideoFile, index: FrameIndex, formats: Sequence[str], deadline: Deadline
) -> io.BytesIO:
    """The stream of `index` in the first of `formats` that takes its codec, positioned at 0.

    Its packets are those of the index that are not `cut_off`.
    """
    import av

    size = index.identity[0]
    if size > MAX_BYTES:
        raise DecodeError(
            file.path,
            f"must be copied into memory for this decoder, and its {size >> 20} MiB are above the "
            f"limit of {MAX_BYTES >> 20}; decoder 'pyav' reads it from the disk",
        )
    gaps = np.diff(np.append(np.flatnonzero(index.closed), len(index.closed)))
    if not index.plain and gaps.max(initial=0) > MAX_GAP:
        raise DecodeError(
            file.path, "its picture groups are open, which of the decoders only pyav can seek in"
        )
    refusals = []
    for name in formats:
        copy = io.BytesIO()
        try:
            _copy(file, index, copy, name, deadline)
        except (av.FFmpegError, ValueError) as error:
            refusals.append(f"{name}: {error_reason(error)}")
            continue
        copy.seek(0)
        return copy
    raise DecodeError(file.path, f"cannot be copied for this decoder ({'; '.join(refusals)})")


def _copy(
    file: VideoFile, index: FrameIndex, target: io.BytesIO, format: str, deadline: Deadline
) -> None:
    import av

    keep = ~index.cut_off()
    source, stream = file.from_start(deadline)
    # Times from zero on: otherwise the copy would hide what comes before, as the file did.
    options = {"avoid_negative_ts": "make_zero"}
    with (
        contextlib.closing(file),
        av.open(target, "w", format=format, options=options) as sink,
    ):
        twin = sink.add_stream_from_template(stream)
        packets = (packet for packet in demux(source, stream) if packet.size)
        for packet, kept, closed in zip(packets, keep, index.closed, strict=False):
            deadline.check()
            if kept:
                packet.is_keyframe = bool(closed)
                packet.duration = packet.duration or 1  # decord leaves out a last frame without
                packet.stream = twin
                sink.mux(packet)
