"""List the frames of an open video without decoding them: `describe` gives its `VideoInfo`.

The list (`FrameIndex`) alone decides which frame has which index and time; decoders are asked for
positions in it. Decoding is needed for three things only: the first frame (is it turned, does the
stream decode at all), the wanted frames, and the count of the rare files whose packets carry no
usable times.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from hiera_video.errors import DecodeError
from hiera_video.storage.local_copies import most_bytes
from hiera_video.storage.range_file import WHOLE
from hiera_video.storage.retries import StorageError
from hiera_video.video.container import (
    OpenVideo,
    VideoFile,
    demux,
    error_reason,
    frames_from_start,
    storage_errors,
)
from hiera_video.video.few_bytes import FewBytes, plan_of
from hiera_video.video.h264 import starting_point
from hiera_video.video.info import NO_TIME, FrameIndex, Integers, Mask, Seconds, VideoInfo
from hiera_video.video.limits import Deadline, check_size

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Broadcast formats may restart their clock at any point (FFmpeg marks them TS_DISCONT and calls
# ten seconds the limit of a believable gap).
RESTARTING_CLOCKS = {"mpegts", "mpeg"}
LONGEST_GAP = 10.0


def describe(file: VideoFile, deadline: Deadline) -> VideoInfo:
    """Scan `file` once. Leaves it open, at its end; raises DecodeError."""
    opened = file.from_start(deadline)
    stated = opened.stream.average_rate
    codec = opened.stream.codec_context.codec.canonical_name
    index = None
    if needs_few_bytes(file):
        index = scan_of_few_bytes(file, opened, deadline)
        opened = opened if index is not None else file.from_start(deadline)
    index = index or scan(file, opened, deadline)
    if index.sequential:
        index, times = _count(file, index, stated, deadline)
    else:
        times = frame_times(index)
    fps = frames_per_second(times, stated)
    width, height = index.size[::-1] if index.quarter_turns % 2 else index.size
    return VideoInfo(
        path=file.path,
        num_frames=len(index.shown),
        fps=fps,
        duration=len(index.shown) / fps,
        width=width,
        height=height,
        rotation=90 * index.quarter_turns,
        codec=codec,
        decoder="pyav",
        times=times,
        container=index.container,
        index=index,
    )


# ---- packets ----


def needs_few_bytes(file: VideoFile) -> bool:
    """Whether reading all of the file costs much: it is remote and large."""
    stored = file.stored
    return stored is not None and stored.is_remote and stored.size > WHOLE and file.copy is None


def scan_of_few_bytes(file: VideoFile, opened: OpenVideo, deadline: Deadline) -> FrameIndex | None:
    """The index of a remote MP4 or MOV file, without reading the pictures whose content does not
    matter for it; None where that is not possible, and the whole file is to be scanned.

    Leaves the file closed. A remote file that must be scanned whole is copied to this machine.
    """
    stored = file.stored
    assert stored is not None
    plan = plan_of(opened)
    if plan is not None:
        try:
            with storage_errors(file.path):
                stored.file.blank(plan.between, plan.shown, stored.fetch_all)
            index = scan(file, file.from_start(deadline), deadline, plan)
        finally:
            stored.file.unblank()
            file.close()  # FFmpeg's own buffer may hold zeros
        if index.identity != UNFIT:
            return index
    if stored.size <= most_bytes():
        file.use_copy(deadline)
    return None


UNFIT = (-1, -1)
"""The identity of an index that was made of too few bytes."""


def scan(
    file: VideoFile, opened: OpenVideo, deadline: Deadline, plan: FewBytes | None = None
) -> FrameIndex:
    """List the packets of the stream and decode its first frame.

    Where packets do not tell their times, the index is `sequential` and has no frames yet.
    plan: what of the file is read; the index is UNFIT where that turns out to be too little.
    """
    container, stream = opened
    is_h264 = stream.codec_context.codec.name == "h264"
    extradata = stream.codec_context.extradata
    probe = _FirstFrame(file.path, stream)
    first: VideoFrame | None = None
    cut_short = False
    pts: list[int | None] = []
    dts: list[int | None] = []
    marked: list[bool] = []
    starts: list[str | None] = []
    discarded: list[bool] = []
    for packet in _packets(opened, deadline):
        is_key = packet.is_keyframe
        start = "idr" if is_key else None
        if is_key and is_h264:
            start = starting_point(bytes(packet), extradata)
        pts.append(packet.pts)
        dts.append(packet.dts)
        marked.append(is_key)
        starts.append(start)
        discarded.append(packet.is_discard)
        cut_short = packet.is_corrupt
        if first is None:
            alone = is_h264 and start == "idr" and not packet.is_discard
            first = probe.feed(packet, alone=alone)
    if not pts:
        raise DecodeError(file.path, "its video stream is empty")
    first = first or probe.finish()
    identity = file.identity
    if plan is not None and not plan.sufficed(len(pts), probe.fed, marked, starts):
        identity = UNFIT

    hidden = np.array(discarded, bool)
    visible = ~hidden
    visible[-1] &= not cut_short  # the last packet is, by the end of the file
    # AVI has no presentation times: those reported are of the order in the file.
    orderless = container.format.name == "avi" and stream.codec_context.reorder_depth > 0
    sequential = orderless or first.pts is None or not _all_different(pts, visible)
    ticks = _ticks([None] * len(pts) if sequential else pts)
    closed = _closed_keys(ticks, starts)
    return FrameIndex(
        identity=identity,
        container=container.format.name,
        stream=stream.index,
        num_video_streams=len(container.streams.video),
        size=(first.width, first.height),
        quarter_turns=round(first.rotation / 90) % 4,
        time_base=Fraction(stream.time_base or 0),
        pts=ticks,
        dts=_ticks(dts),
        key=np.array([start is not None for start in starts], bool),
        closed=closed,
        plain=bool(np.array_equal(closed, marked)),
        hidden=hidden,
        shown=_shown(file.path, ticks, visible, None if sequential else first.pts),
        sequential=sequential,
    )


def _packets(opened: OpenVideo, deadline: Deadline) -> Iterator[Packet[VideoStream]]:
    """The packets of the stream, up to where the file can be read."""
    import av

    try:
        for packet in demux(*opened):
            deadline.check()
            if packet.size:  # the one at the end has none
                yield packet
    except (av.FFmpegError, StorageError):
        pass  # the time is over, the storage failed, or else the rest of the file is damaged
    deadline.check()


def _all_different(pts: Sequence[int | None], visible: Mask) -> bool:
    """Whether every visible packet has a time, and no two the same."""
    seen = [time for time, show in zip(pts, visible.tolist(), strict=True) if show]
    return None not in seen and len(set(seen)) == len(seen)


def _ticks(times: Sequence[int | None]) -> Integers:
    """int64 [P], with NO_TIME for None."""
    return np.array([NO_TIME if t is None else t for t in times], np.int64)


def _shown(path: str, ticks: Integers, visible: Mask, first_pts: int | None) -> Integers:
    """int64 [N]: the visible packets by time, from `first_pts` on; none yet without a first time.

    Packets before the first frame that decodes belong to a picture group whose start was cut off.
    """
    shown = np.flatnonzero(visible)
    shown = shown[np.argsort(ticks[shown], kind="stable")]
    if first_pts is None:
        return shown[:0]
    shown = shown[ticks[shown] >= first_pts]
    if not len(shown):
        raise DecodeError(path, "none of its frames can be shown")
    return shown


def _closed_keys(pts: Integers, starts: Sequence[str | None]) -> Mask:
    """bool [P]: starts ("idr", "recovery" or None) after which nothing earlier is shown.

    The very first start counts as closed: there is nothing before it to refer to.
    """
    times = np.where(pts == NO_TIME, np.iinfo(np.int64).max, pts)
    earliest_from_here = np.minimum.accumulate(times[::-1])[::-1]
    closed = np.array([s == "idr" for s in starts], bool) & (earliest_from_here == times)
    closed[[i for i, start in enumerate(starts) if start][:1]] = True
    return closed


class _FirstFrame:
    """Decodes from the start until one whole frame has come out."""

    # As many packets as the longest common key-frame interval (10 s at 30 fps).
    PATIENCE = 300

    def __init__(self, path: str, stream: VideoStream) -> None:
        self.path, self.stream = path, stream
        self.fed = 0
        self.error: Exception | None = None

    def feed(self, packet: Packet[VideoStream] | None, *, alone: bool = False) -> VideoFrame | None:
        """Decode one packet; returns the first whole frame, None where none is finished yet.

        alone: the packet is a picture that nothing else is shown before. The decoder is drained at
            once; otherwise it would wait for several packets more to know their order.
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

    def finish(self) -> VideoFrame:
        """The first frame of a stream that ended before one came out."""
        first = self.feed(None) if self.fed <= self.PATIENCE else None
        if first is None:
            why = f" ({error_reason(self.error)})" if self.error else ""
            raise DecodeError(self.path, f"no frame can be decoded{why}")
        return first


# ---- times ----


def _count(
    file: VideoFile, index: FrameIndex, stated: Fraction | None, deadline: Deadline
) -> tuple[FrameIndex, Seconds]:
    """Index and times of a file whose packets do not tell them, from decoding all of it."""
    ticks = [frame.pts for frame in frames_from_start(file, deadline)]
    if not ticks:
        raise DecodeError(file.path, "no frame can be decoded")
    index = dataclasses.replace(index, shown=np.arange(len(ticks)))
    known = [t for t in ticks if t is not None]
    falling = any(later < earlier for earlier, later in itertools.pairwise(known))
    if len(known) < len(ticks) or (falling and index.container == "avi"):
        return index, np.arange(len(ticks)) / float(stated or 25)
    times = np.array(known, np.float64) * float(index.time_base)
    return index, without_jumps(times, index.container)


def frame_times(index: FrameIndex) -> Seconds:
    """float64 [N]: seconds from the first frame, never falling; for an index with times."""
    ticks = index.frame_pts()
    times = (ticks - ticks[0]).astype(np.float64) * float(index.time_base)
    return without_jumps(times, index.container)


def without_jumps(times: Seconds, container: str) -> Seconds:
    """Close the gaps in `times` where the clock restarts, in containers where it may."""
    steps = np.diff(times)
    if container in RESTARTING_CLOCKS and len(steps):
        jumps = (steps > LONGEST_GAP) | (steps < 0)
        if jumps.any():
            usual = steps[~jumps]
            steps[jumps] = np.median(usual) if len(usual) else 0.0
    return np.concatenate([times[:1] * 0.0, np.cumsum(np.maximum(steps, 0.0))])


def frames_per_second(times: Seconds, stated: Fraction | None) -> float:
    """Average rate over the whole stream; the file's stated rate where the times confirm it."""
    rate = float(stated) if stated else 0.0
    if len(times) < 2 or times[-1] <= 0:
        return rate if 0.1 <= rate <= 1000 else 1.0  # a single frame: any rate will do
    measured = (len(times) - 1) / float(times[-1])
    # 30/1.001 read off millisecond time stamps is 29.97003: prefer the exact number.
    return rate if abs(rate - measured) <= 0.005 * measured else measured
