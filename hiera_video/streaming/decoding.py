"""Decode a stream: open it with FFmpeg's white lists on, and yield its frames with their times."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction
from statistics import median
from typing import TYPE_CHECKING

from hiera_video.errors import DecodeError
from hiera_video.streaming.byte_sources import ByteSource, silence
from hiera_video.streaming.sources import Source
from hiera_video.video.container import (
    CONTAINERS,
    OpenVideo,
    choose_stream,
    demux,
    error_reason,
    prepare_decoder,
    text_kind,
)
from hiera_video.video.limits import MAX_PIXELS, check_size
from hiera_video.video.scan import LONGEST_GAP, RESTARTING_CLOCKS

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

_MOST_DAMAGED = 300
"""Damaged packets one after the other that are passed over: ten seconds at 30 frames a second."""

_LIVE_FORMATS = {"rtsp", "flv", "video4linux2,v4l2"}
"""Formats, besides those of files, whose clock may restart."""

_STEPS = 31
"""Steps between frames, of which the usual one is found."""

_DEVICES = {"camera": ("v4l2", "video4linux2,v4l2"), "rtsp": (None, "rtsp," + CONTAINERS)}
"""Kind of source -> format that is opened, formats that are allowed."""


def open_stream(source: Source, file: ByteSource | None, timeout: float) -> OpenVideo:
    """Open a stream with the white lists on. file: its bytes; None where FFmpeg gets them.

    Raises DecodeError.
    """
    import av

    format_name, formats = _DEVICES.get(source.kind, (None, CONTAINERS))
    options = {"format_whitelist": formats, "max_pixels": str(MAX_PIXELS)}
    if source.kind == "rtsp":
        # Everything through the one connection that the user asked for.
        options |= {"rtsp_transport": "tcp", "protocol_whitelist": "tcp,tls"}
    else:
        options |= {"protocol_whitelist": "none"}  # nothing in it may lead elsewhere
    began = time.monotonic()
    try:
        container = av.open(
            source.place if file is None else file,
            mode="r",
            format=format_name,
            options=options,
            metadata_errors="replace",
            timeout=timeout if file is None else None,
        )
    except av.FFmpegError as error:
        # FFmpeg's RTSP says "invalid data" when it is interrupted.
        late = file is None and (_is_timeout(error) or time.monotonic() - began >= timeout)
        reason = silence(timeout) if late else _open_reason(error, file)
        raise DecodeError(source.name, reason) from None
    try:
        stream = choose_stream(source.name, container)
        prepare_decoder(stream)
    except BaseException:
        container.close()
        raise
    return OpenVideo(container, stream)


def _open_reason(error: Exception, file: ByteSource | None) -> str:
    if file is None:
        return f"cannot be opened ({error_reason(error)})"
    kind = text_kind(file.head) if file.head else "nothing came before it ended"
    if kind:
        return kind
    if file.head[4:8] in (b"ftyp", b"mdat", b"free", b"wide", b"moov"):
        return (
            f"an MP4 file that is damaged, unfinished or has its index at the end "
            f"({error_reason(error)}); write MPEG-TS, Matroska or fragmented MP4 "
            "(-movflags +frag_keyframe+empty_moov) into a pipe"
        )
    return f"not a video of a known kind ({error_reason(error)})"


def _is_timeout(error: Exception) -> bool:
    import av

    return isinstance(error, av.error.ExitError | av.error.TimeoutError)


class Frames:
    """The frames of an open stream: an iterator over (seconds from the first one, frame)."""

    def __init__(self, name: str, opened: OpenVideo, timeout: float) -> None:
        self.name, self.opened, self.timeout = name, opened, timeout
        self.damaged = 0
        """Frames that could not be decoded, after the first that could."""
        stream = opened.stream
        self.stated = stream.average_rate
        self.counts_all = stream.frames > 0  # an MP4 whose index is read
        container = opened.container.format.name
        orderless = container == "avi" and stream.codec_context.reorder_depth > 0
        self._clock = StreamClock(
            Fraction(stream.time_base or 0),
            float(self.stated or 25),
            restarts=container in RESTARTING_CLOCKS | _LIVE_FORMATS,
            counts=orderless,
        )

    def __iter__(self) -> Iterator[tuple[float, VideoFrame]]:
        import av

        whole = False
        try:
            for frame in self._decoded():
                if frame is None or frame.is_corrupt:
                    # Before the first whole frame: a group of pictures whose start was not sent.
                    self.damaged += whole
                    continue
                whole = True
                check_size(self.name, frame.width, frame.height)
                yield self._clock.time(frame.pts), frame
        except av.FFmpegError as error:
            if _is_timeout(error):
                raise DecodeError(self.name, silence(self.timeout)) from None
            raise DecodeError(self.name, f"broke off ({error_reason(error)})") from None
        if not whole:
            raise DecodeError(self.name, "no frame can be decoded")

    def _decoded(self) -> Iterator[VideoFrame | None]:
        """Yield each frame, and None for a damaged packet."""
        import av

        context = self.opened.stream.codec_context
        in_a_row = 0
        for packet in demux(*self.opened):
            try:
                frames = context.decode(packet if packet.size else None)
            except (av.error.InvalidDataError, MemoryError) as error:
                in_a_row += 1
                if in_a_row > _MOST_DAMAGED:
                    reason = f"damaged: {in_a_row} packets in a row ({error_reason(error)})"
                    raise DecodeError(self.name, reason) from None
                yield None
                continue
            in_a_row = 0 if frames else in_a_row
            yield from frames

    def close(self) -> None:
        """Close the stream."""
        container: InputContainer = self.opened.container
        container.close()


class StreamClock:
    """Times of frames in seconds from the first one, never falling.

    Args:
        time_base: seconds of a tick.
        usual_rate: frames a second, where frames have no times.
        restarts: the clock of this kind of stream may jump (a camera that starts again, a counter
            that wraps): a jump counts as the usual step between two frames.
        counts: the frames' own times mean nothing.
    """

    def __init__(
        self, time_base: Fraction, usual_rate: float, *, restarts: bool, counts: bool = False
    ) -> None:
        self._time_base, self._rate, self._usual_step = float(time_base), usual_rate, 1 / usual_rate
        self._restarts, self._counts = restarts, counts
        self._count = 0
        self._first: int | None = None
        self._last: float | None = None  # by the stream's clock
        self._time: float | None = None
        self._steps: list[float] = []

    def time(self, pts: int | None) -> float:
        """The time of the next frame, whose time stamp is `pts`."""
        self._count += 1
        if self._counts:
            return (self._count - 1) / self._rate
        if self._first is None:
            self._first = pts
        if pts is None or self._first is None:
            now, step = None, self._usual_step
        else:
            now = (pts - self._first) * self._time_base
            step = self._usual_step if self._last is None else now - self._last
        if self._restarts and (step < 0 or step > LONGEST_GAP):
            step = median(self._steps) if self._steps else 0.0
        elif len(self._steps) < _STEPS:
            self._steps.append(step)
        else:
            self._steps = [*self._steps[1:], step]
        self._last = now
        self._time = 0.0 if self._time is None else self._time + max(step, 0.0)
        return self._time
