"""The gate: open a video file safely, choose its stream, and list its frames without decoding them.

PyAV does this for all three decoders, because it alone takes FFmpeg's white lists: a file is seen
by torchcodec or decord only after it has passed here. The list of frames (`FrameIndex`) is the one
truth about which frame has which index and time; decoders are asked for positions in it.

Decoding is needed for three things only: the first frame (is it turned, does the stream decode at
all), the wanted frames, and the count of the rare files whose packets carry no usable times.
"""

from __future__ import annotations

import os
import re
import stat
import time
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from hiera_video.errors import DecodeError
from hiera_video.video.h264 import starting_point

CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,ivf,flv,asf,ogg,gif,nut,mxf,dv"
)
"""The demuxers that may open a file. None of them follows a name inside the file to another file or
address, as playlists do (hls, dash, concat, sdp, image sequences)."""

MAX_PIXELS = 8192 * 4352
"""Largest picture: that of H.264 and HEVC level 6.2, one step above 8K."""

MAX_OUTPUT_BYTES = 1 << 30
"""Largest tensor one read returns (1 GiB: 16 frames of 8192x4352 are 1.6, of 4K 0.4)."""

TIME_LIMIT = 60.0
"""Seconds one call may take before it gives up with a DecodeError."""

UNTOLD = np.iinfo(np.int64).min
"""In place of a time that the file does not tell."""

# Of still pictures; beside a moving stream they are a cover, whatever the file says of them.
_PICTURE_CODECS = {"mjpeg", "png", "bmp", "gif", "webp", "tiff"}

# Broadcast formats may start their clock anew at any point (FFmpeg marks them TS_DISCONT and calls
# ten seconds the limit of a believable gap).
_RESTARTING_CLOCKS = {"mpegts", "mpeg"}
_LONGEST_GAP = 10.0


class Deadline:
    """A time limit that long work asks about now and then."""

    def __init__(self, path: str, seconds: float):
        self.path, self.seconds = path, seconds
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        """Raise DecodeError once the time is over."""
        if time.monotonic() > self._end:
            raise DecodeError(
                self.path,
                f"not decoded within {self.seconds:g} s; a larger time_limit waits longer",
            )


@dataclass(frozen=True, eq=False)
class FrameIndex:
    """Every packet of the chosen stream in decode order, and which of them can be read as frames.

    Arrays of P packets; `shown` has N <= P entries, one a frame, in the order they are seen.
    """

    identity: tuple[int, int]
    """Size and modification time of the file: another file under the same name is noticed."""
    container: str
    stream: int
    num_video_streams: int
    size: tuple[int, int]
    """(width, height) of the first frame as stored, before it is turned upright."""
    quarter_turns: int
    """Counter-clockwise, 0 to 3: what makes the stored pictures upright."""
    time_base: Fraction
    pts: np.ndarray = field(repr=False)
    """int64 [P] presentation times in ticks of `time_base`; UNTOLD where there is none."""
    dts: np.ndarray = field(repr=False)
    """int64 [P] decode times, for seeking; UNTOLD where the file has none."""
    key: np.ndarray = field(repr=False)
    """bool [P]: decoding can start here, and is right from this frame's time on."""
    closed: np.ndarray = field(repr=False)
    """bool [P]: a key whose followers never look back behind it."""
    plain: bool
    """True where the file's own key-frame marks are the closed keys: any library can seek."""
    hidden: np.ndarray = field(repr=False)
    """bool [P]: decoded but not shown (outside the file's edit list)."""
    shown: np.ndarray = field(repr=False)
    """int64 [N]: the packet of each frame."""
    sequential: bool
    """True where packet times are missing or repeated: frames are then counted as they come out of
    the decoder, from the first one on."""

    def frame_pts(self) -> np.ndarray:
        """int64 [N]: presentation time of each readable frame, in ticks."""
        return self.pts[self.shown]

    def cut_off(self) -> np.ndarray:
        """bool [P]: packets before the first frame that need what was before the file's start."""
        before = self.pts < self.pts[self.shown[0]]
        start = int(self.key.argmax())
        undecodable = (np.arange(len(self.pts)) < start) | (self.pts < self.pts[start])
        return before & (~self.hidden | undecodable)

    def packets_to_decode(self, wanted: np.ndarray) -> np.ndarray:
        """int64 [K]: for each of the ascending frames [K], the packets from the last closed key, or
        from the frame before, to it. What a library decodes between two looks at the clock."""
        packets = self.shown[wanted]
        closed = np.flatnonzero(self.closed)
        keys = closed[np.searchsorted(closed, packets, side="right") - 1]
        since = np.maximum(keys, np.concatenate([[-1], np.maximum.accumulate(packets)[:-1]]))
        return np.maximum(packets - since, 1)

    def ranks(self, counted: np.ndarray) -> np.ndarray:
        """int64 [N]: the place of each frame among the `counted` packets (bool [P]) by time.

        Libraries that list the packets on their own know a frame by this number.
        """
        order = np.flatnonzero(counted)[np.argsort(self.pts[counted], kind="stable")]
        rank = np.full(len(self.pts), -1, np.int64)
        rank[order] = np.arange(len(order))
        return rank[self.shown]


def check_file(path: str) -> tuple[int, int]:
    """Refuse what is not a file with content; return its (size, modification time in ns)."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if "://" in path:
            reason = "addresses are not opened; download the video and name the file"
        else:
            reason = "no such file"
        raise DecodeError(path, reason) from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise DecodeError(path, f"cannot be opened: {_os_reason(error)}") from None
    if stat.S_ISDIR(status.st_mode):
        raise DecodeError(path, "is a folder, not a video file")
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError(path, "is a pipe or a device, not a video file")
    if status.st_size == 0:
        raise DecodeError(path, "is empty (0 bytes)")
    return status.st_size, status.st_mtime_ns


def open_container(path: str, deadline: Deadline):
    """Open `path` for reading with the white lists on; returns PyAV's container.

    Raises DecodeError for anything that is not one of CONTAINERS.
    """
    import av

    head = _head(path)
    # Every allowed container is binary, every playlist is text: refused here, before any library
    # guesses at it, by its content or by the ending of its name.
    kind = _text_kind(head)
    if kind:
        raise DecodeError(path, kind)
    try:
        return av.open(
            os.path.abspath(path),  # no leading dash, no "protocol:" prefix
            options={
                "format_whitelist": CONTAINERS,
                "protocol_whitelist": "file",
                "max_pixels": str(MAX_PIXELS),
            },
            metadata_errors="replace",
            timeout=deadline.seconds,
        )
    except av.FFmpegError as error:
        deadline.check()
        raise DecodeError(path, _open_reason(error, head)) from None


def choose_stream(path: str, container):
    """The first video stream that is not a cover picture."""
    from av.stream import Disposition

    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        others = sorted({s.type for s in container.streams} - {"video"})
        raise DecodeError(
            path, "has no video stream" + (f" (only {', '.join(others)})" if others else "")
        )
    decodable = [s for s in streams if s.codec_context is not None]
    if not decodable:
        raise DecodeError(path, "its video codec has no decoder in PyAV's FFmpeg")
    moving = [s for s in decodable if s.codec_context.codec.name not in _PICTURE_CODECS]
    stream = (moving or decodable)[0]
    check_size(path, stream.codec_context.width, stream.codec_context.height)
    return stream


def prepare_decoder(stream) -> None:
    """Settings of PyAV's decoder, before its first packet.

    One thread: two gave nothing on clips of 256 to 720 lines once unneeded frames are skipped, and
    FFmpeg's threads beside a DataLoader's fork can hang for ever.
    """
    from av.stream import Discard

    context = stream.codec_context
    context.options = {"max_pixels": str(MAX_PIXELS)}
    context.thread_type = "SLICE"
    context.thread_count = 1
    for other in stream.container.streams:
        if other.index != stream.index:
            other.discard = Discard.all  # not even read from the disk


def check_size(path: str, width: int, height: int) -> None:
    """Refuse pictures beyond MAX_PIXELS before anything of their size is allocated."""
    if width * height > MAX_PIXELS:
        raise DecodeError(
            path, f"its pictures are {width}x{height}, above the limit of {MAX_PIXELS:,} pixels"
        )


def scan(path: str, container, stream, identity, deadline: Deadline) -> FrameIndex:
    """List the packets of `stream` and decode its first frame. Leaves the file at its end.

    Where packets do not tell their times, the index is `sequential` and has no frames yet.
    """
    is_h264 = stream.codec_context.codec.name == "h264"
    extradata = stream.codec_context.extradata
    probing = _FirstFrameProbe(path, stream)
    rows = []
    first = None
    cut_short = False
    for packet in _packets(container, stream, deadline):
        marked = packet.is_keyframe
        start = "idr" if marked else None
        if marked and is_h264:
            start = starting_point(bytes(packet), extradata)
        rows.append((packet.pts, packet.dts, marked, start, packet.is_discard))
        cut_short = packet.is_corrupt
        if first is None:
            alone = is_h264 and start == "idr" and not packet.is_discard
            first = probing.feed(packet, alone=alone)
    if not rows:
        raise DecodeError(path, "its video stream is empty")
    first = first or probing.finish()

    pts, dts, marked, starts, hidden = zip(*rows, strict=True)
    hidden = np.array(hidden, bool)
    visible = ~hidden
    visible[-1] &= not cut_short  # the last packet is, by the end of the file
    seen = [t for t, show in zip(pts, visible, strict=True) if show]
    sequential = (
        None in seen
        or len(set(seen)) < len(seen)
        or first.pts is None
        # AVI has no presentation times: those reported are of the order in the file.
        or (container.format.name == "avi" and stream.codec_context.reorder_depth > 0)
    )
    ticks = _ticks([None] * len(rows) if sequential else pts)
    shown = np.flatnonzero(visible)
    shown = shown[np.argsort(ticks[shown], kind="stable")]
    if sequential:
        shown = shown[:0]
    else:  # packets before the first frame that decodes: of a picture group that was cut off
        shown = shown[ticks[shown] >= first.pts]
        if not len(shown):
            raise DecodeError(path, "none of its frames can be shown")
    closed = _closed_keys(ticks, starts)
    return FrameIndex(
        identity=identity,
        container=container.format.name,
        stream=stream.index,
        num_video_streams=len(container.streams.video),
        size=(first.width, first.height),
        quarter_turns=round(first.rotation / 90) % 4,
        time_base=Fraction(stream.time_base),
        pts=ticks,
        dts=_ticks(dts),
        key=np.array([start is not None for start in starts], bool),
        closed=closed,
        plain=bool(np.array_equal(closed, marked)),
        hidden=hidden,
        shown=shown,
        sequential=sequential,
    )


def _ticks(times) -> np.ndarray:
    """int64 [P], with UNTOLD for None."""
    return np.array([UNTOLD if t is None else t for t in times], np.int64)


def _packets(container, stream, deadline: Deadline):
    """The packets of `stream`, up to where the file can be read."""
    import av

    try:
        for packet in demux(container, stream):
            deadline.check()
            if packet.size:  # the one at the end has none
                yield packet
    except av.FFmpegError:
        deadline.check()  # the time is over, or else the rest of the file is damaged


def demux(container, stream):
    """The packets of `stream`, and one without content at the end; av.FFmpegError at damage.

    Broadcast files and FLV may announce further streams in mid-file. PyAV trips over the first
    packet of such a stream, which is passed over here: it is never of `stream`.
    """
    while True:
        try:
            yield from container.demux(stream)
        except IndexError:
            continue
        return


def _closed_keys(pts: np.ndarray, starts) -> np.ndarray:
    """bool [P]: starts ("idr", "recovery" or None) after which nothing earlier is shown.

    The very first start counts as closed: there is nothing before it to look back at.
    """
    times = np.where(pts == UNTOLD, np.iinfo(np.int64).max, pts)
    earliest_from_here = np.minimum.accumulate(times[::-1])[::-1]
    closed = np.array([s == "idr" for s in starts], bool) & (earliest_from_here == times)
    closed[[i for i, start in enumerate(starts) if start][:1]] = True
    return closed


class _FirstFrameProbe:
    """Decodes from the start until one whole frame has come out."""

    # As many packets as the longest common key-frame interval (10 s at 30 fps).
    PATIENCE = 300

    def __init__(self, path: str, stream):
        self.path, self.stream = path, stream
        self.fed = 0
        self.error = None

    def feed(self, packet, *, alone: bool = False):
        """Decode one packet; the first whole frame, or None where none is finished yet.

        With `alone`, the packet is a picture that nothing else is shown before: it is drawn out of
        the decoder at once, where some that follow would be decoded only to wait for their order.
        """
        import av

        if self.fed > self.PATIENCE:
            return None
        self.fed += packet is not None
        context = self.stream.codec_context
        try:
            frames = context.decode(packet)
            if alone and not frames:
                frames = context.decode(None)
                context.flush_buffers()
                if not frames:  # half a picture: go on as with others
                    frames = context.decode(packet)
        except (av.FFmpegError, MemoryError) as error:
            self.error = error
            return None
        for frame in frames:
            if frame.is_corrupt and frame.key_frame:
                raise DecodeError(self.path, "its first frame is damaged")
            if not frame.is_corrupt:  # else: the tail of a picture group whose start was cut off
                check_size(self.path, frame.width, frame.height)
                return frame
        return None

    def finish(self):
        """The first frame of a stream that ended before one came out."""
        first = self.feed(None) if self.fed <= self.PATIENCE else None
        if first is None:
            why = f" ({error_reason(self.error)})" if self.error else ""
            raise DecodeError(self.path, f"no frame can be decoded{why}")
        return first


def frame_times(index: FrameIndex) -> np.ndarray:
    """float64 [N]: seconds from the first frame, never falling; for an index with times."""
    ticks = index.frame_pts()
    times = (ticks - ticks[0]).astype(np.float64) * float(index.time_base)
    return without_jumps(times, index.container)


def without_jumps(times: np.ndarray, container: str) -> np.ndarray:
    """Close the gaps that a clock started anew leaves in `times` (only where it may start anew)."""
    steps = np.diff(times)
    if container in _RESTARTING_CLOCKS and len(steps):
        jumps = (steps > _LONGEST_GAP) | (steps < 0)
        if jumps.any():
            usual = steps[~jumps]
            steps[jumps] = np.median(usual) if len(usual) else 0.0
    return np.concatenate([times[:1] * 0.0, np.cumsum(np.maximum(steps, 0.0))])


def frames_per_second(times: np.ndarray, stated: Fraction | None) -> float:
    """Average rate over the whole stream; the file's own statement where the times bear it out."""
    stated = float(stated) if stated else 0.0
    if len(times) < 2 or times[-1] <= 0:
        return stated if 0.1 <= stated <= 1000 else 1.0  # of one frame: as good as any
    measured = (len(times) - 1) / times[-1]
    # 30/1.001 read off millisecond time stamps is 29.97003: prefer the exact number.
    return stated if abs(stated - measured) <= 0.005 * measured else float(measured)


def error_reason(error: BaseException) -> str:
    """The telling part of a library's error, on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = text.strip().splitlines()[0]
    # Libraries put the time and their own source line first.
    text = re.sub(r"^\[[\d:]+\] ", "", text)
    text = re.sub(r"^.*\.(cc|cpp|h):\d+[:,] ", "", text)
    return re.sub(r"^Check failed: ", "", text).rstrip(".")


def _os_reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


def _open_reason(error, head: bytes) -> str:
    if isinstance(error, PermissionError) and not head:
        return "cannot be opened: permission denied"
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide"):
        return f"damaged or unfinished MP4 file ({error_reason(error)})"
    return f"not a video file of a known kind ({error_reason(error)})"


def _head(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(512)
    except OSError as error:
        raise DecodeError(path, f"cannot be opened: {_os_reason(error)}") from None


def _text_kind(head: bytes) -> str | None:
    """What a file of text is, in words that help; None for binary files."""
    if any(byte < 32 and byte not in b"\t\n\f\r\x1b" for byte in head):
        return None
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the video itself (git lfs pull fetches it)"
    if text.startswith((b"<!doctype html", b"<html")):
        return "is a web page, not a video (a download that failed?)"
    if text.startswith((b"#extm3u", b"ffconcat", b"v=0", b"<?xml")):
        return "is a playlist; playlists are not opened, since they name other files"
    return "is a text file, not a video"
