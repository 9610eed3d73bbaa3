"""Copy one video stream, packets as they are, into a simple container in memory.

For files that a library cannot seek in or count right by itself (MPEG-TS, no duration, several
video streams): it then reads the copy. Nothing is decoded or lost.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from hiera_video.data.decoders.container import (
    Deadline,
    DecodeError,
    FrameIndex,
    error_reason,
    open_container,
)

MAX_BYTES = 256 << 20
"""Largest file that is copied into memory."""


def remux(path: str, index: FrameIndex, formats: Sequence[str], deadline: Deadline) -> io.BytesIO:
    """The stream of `index` in the first of `formats` that takes its codec, positioned at 0."""
    import av

    size = index.identity[0]
    if size > MAX_BYTES:
        raise DecodeError(
            path,
            f"must be copied into memory for this decoder, and its {size >> 20} MiB are above the "
            f"limit of {MAX_BYTES >> 20}; decoder 'pyav' reads it from the disk",
        )
    refusals = []
    for name in formats:
        copy = io.BytesIO()
        try:
            with (
                open_container(path, deadline) as source,
                av.open(copy, "w", format=name) as target,
            ):
                stream = source.streams[index.stream]
                twin = target.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.size:
                        packet.stream = twin
                        target.mux(packet)
                        deadline.check()
        except (av.FFmpegError, ValueError) as error:
            refusals.append(f"{name}: {error_reason(error)}")
            continue
        copy.seek(0)
        return copy
    raise DecodeError(path, f"cannot be copied for this decoder ({'; '.join(refusals)})")
