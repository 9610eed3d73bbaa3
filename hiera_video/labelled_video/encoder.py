"""Encodes frames and the sound of their source into an MP4, MOV or MKV file, with PyAV."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from hiera_video.errors import RunFailed, UserError, first_line
from hiera_video.labelled_video.captions import Pixels

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""Endings of files that can be written, and FFmpeg's names of the formats."""

ENCODERS: dict[str, dict[str, str]] = {
    # no lookahead and no B-frames: bounded memory, and a packet for each frame at once
    "libx264": {"preset": "veryfast", "crf": "20", "tune": "zerolatency"},
    "mpeg4": {"qmin": "2", "qmax": "4"},
}
"""In the order of preference. PyAV's wheels have both: H.264 by x264, which is under the GPL, and
FFmpeg's own MPEG-4 (LGPL), which browsers do not play."""

TICKS = 60_000
"""Time base of the frames: 1 / 60,000 s. MPEG-4 allows 1 / 65,535 at the finest."""

BT601, LIMITED_RANGE = 6, 1
"""FFmpeg's numbers of SMPTE 170M and of values from 16 to 235."""

COPIED_SOUND = ("aac", "mp3", "ac3", "eac3", "opus", "alac", "flac")
"""What MP4 and its relatives hold as it is. Other sound is encoded again, as AAC."""


def check_target(target: str) -> None:
    """Raise UserError unless a file of this name can be written."""
    if not target.lower().endswith(tuple(FORMATS)):
        raise UserError(f"{target}: labelled videos are written as {', '.join(FORMATS)}")
    folder = os.path.dirname(os.path.abspath(target))
    if not os.path.isdir(folder):
        raise UserError(f"{target}: there is no folder {folder}; create it, or name another place")
    if os.path.isdir(target):
        raise UserError(f"{target} is a folder; name a file in it")


def even(picture: Pixels) -> Pixels:
    """A picture [H, W, 3] with even sides, as H.264 needs them: the last line is shown twice."""
    height, width = picture.shape[:2]
    if height % 2 or width % 2:
        return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return picture


class Encoder:
    """A video file that grows frame by frame. A context manager.

    Args:
        target: the file, whatever its name is, and the ending that its format has.
        size: (width, height) of the pictures, even numbers.
        rate: pictures in a second, on the average.
        sound: where the sound comes from; None for none.

    Raises RunFailed if no encoder works here, or the file cannot be written.
    """

    def __init__(
        self, target: tuple[str, str], size: tuple[int, int], rate: float, sound: Sound | None
    ) -> None:
        import av

        (self._target, ending), self._sound = target, sound
        with self._explained():
            self._container: OutputContainer = av.open(self._target, "w", format=FORMATS[ending])
            self.codec, self._stream = self._video_stream(size, rate)
            if sound is not None:
                sound.add_to(self._container)

    def __enter__(self) -> Encoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            with contextlib.suppress(Exception):
                self._container.close()

    def add(self, picture: Pixels, time: float, duration: float) -> None:
        """Append a picture [H, W, 3], shown from `time` for `duration`, both in seconds."""
        import av

        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = round(time * TICKS), Fraction(1, TICKS)
        with self._explained():
            for packet in self._stream.encode(frame):
                self._mux(packet, duration)
            if self._sound is not None:
                for packet in self._sound.until(time + duration):
                    self._container.mux(packet)

    def close(self) -> None:
        """Write what is left, and the end of the file."""
        with self._explained():
            for packet in self._stream.encode(None):
                self._mux(packet, 0)
            if self._sound is not None:
                for packet in self._sound.until(None):
                    self._container.mux(packet)
            self._container.close()

    def _mux(self, packet: Packet, duration: float) -> None:
        base = packet.time_base or Fraction(1, TICKS)
        packet.duration = max(packet.duration or 0, round(duration / base))
        self._container.mux(packet)

    def _video_stream(self, size: tuple[int, int], rate: float) -> tuple[str, Any]:
        import av

        for name, options in ENCODERS.items():
            try:
                av.codec.Codec(name, "w")
            except ValueError:
                continue
            stream: Any = self._container.add_stream(
                name, rate=Fraction(rate).limit_denominator(1001), options=dict(options)
            )
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p"
            # what FFmpeg makes of RGB; players take untagged pictures of 720 lines for BT.709
            stream.codec_context.colorspace = BT601
            stream.codec_context.color_range = LIMITED_RANGE
            stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
            return name, stream
        raise RunFailed(f"PyAV has none of the encoders {', '.join(ENCODERS)} here")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        import av

        try:
            yield
        except (OSError, av.FFmpegError) as error:
            raise RunFailed(f"cannot write {self._target}: {first_line(error)}") from None


class Sound:
    """The first sound track of an open file, as packets for another one.

    Args:
        container: open, and read by nothing else.
        begin: the time of the first picture, in seconds of the file: sound before it is left out.
    """

    def __init__(self, container: InputContainer, begin: float) -> None:
        self._stream: AudioStream = container.streams.audio[0]
        self._begin = begin
        self._copied = self._stream.codec_context.name in COPIED_SOUND
        self._out: Any = None
        self._packets = self._encoded(container)
        self._waiting: Packet | None = None

    def add_to(self, output: OutputContainer) -> None:
        """Make its track in the file that is written."""
        if self._copied:
            self._out = output.add_stream_from_template(self._stream)
        else:
            self._out = output.add_stream("aac", rate=self._stream.codec_context.sample_rate)

    def until(self, time: float | None) -> Iterator[Packet]:
        """Yield the packets that begin before a time; None: all that are left."""
        while True:
            packet = self._waiting or next(self._packets, None)
            self._waiting = packet
            if packet is None:
                return
            begins = packet.pts * packet.time_base if packet.pts is not None else 0
            if time is not None and begins >= time:
                return
            self._waiting = None
            yield packet

    def _encoded(self, container: InputContainer) -> Iterator[Packet]:
        yield from self._copies(container) if self._copied else self._anew(container)

    def _copies(self, container: InputContainer) -> Iterator[Packet]:
        for packet in container.demux(self._stream):
            base = packet.time_base
            if packet.dts is None or packet.pts is None or base is None:
                continue  # the end, or a packet that nobody could place
            moved = round(self._begin / base)
            packet.pts, packet.dts = packet.pts - moved, packet.dts - moved
            if packet.pts < 0 or packet.dts < 0:
                continue
            packet.stream = self._out
            yield packet

    def _anew(self, container: InputContainer) -> Iterator[Packet]:
        for frame in container.decode(self._stream):
            if frame.pts is not None and frame.time_base is not None:
                frame.pts -= round(self._begin / frame.time_base)
                if frame.pts < 0:
                    continue
            yield from self._out.encode(frame)
        yield from self._out.encode(None)
