"""Read frames with PyAV: the reference, and what a fresh machine has.

One read is a few runs, each from a key frame to the last wanted frame that depends on it. Inside a
run, frames that are not wanted and that no other frame needs are not decoded, and only wanted
frames are converted to RGB. A run goes on from one part of a read to the next: however small the
parts are, no packet is decoded twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from hiera_video.errors import DecodeError
from hiera_video.video.container import (
    OpenVideo,
    VideoFile,
    demux,
    error_reason,
    frames_from_start,
)
from hiera_video.video.info import NO_TIME, FrameIndex, Integers
from hiera_video.video.limits import Deadline, check_size
from hiera_video.video.readers.frames import Pixels, upright

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# Where leaving out B-frames one by one is known to leave all others bit for bit as they are.
_SKIPS_UNREFERENCED = {"h264", "hevc"}

# Converted by copying each colour sample to its four pixels, whatever its stated position.
_REPLICATED = {"yuv420p", "yuvj420p"}

# Reading past this many packets costs less than one seek.
_SHORT_GAP = 8

# Frames that may come before an earlier one (H.264 and HEVC hold back at most 16). Where more do,
# that one is missing.
_MOST_EARLY = 16


@dataclass
class _Run:
    """Wanted frames decoded in one go from one key frame."""

    key: int
    """Packet to start at (-1: the start of the file)."""
    rows: dict[int, int]
    """Presentation time of each wanted frame -> its row in the output."""
    last: int
    """Packet of the wanted frame that is decoded last."""
    unneeded: set[int] = field(default_factory=set)
    """Presentation times of packets that no wanted frame depends on."""


class RgbConverter:
    """Converts frames of one video to RGB. Not safe to share between threads.

    Args:
        path: for errors.
        size: (width, height) that all frames are scaled to, where theirs differs.
    """

    def __init__(self, path: str, size: tuple[int, int]) -> None:
        from av.video.reformatter import VideoReformatter

        self.path, self.size = path, size
        self._convert = VideoReformatter()

    def write(self, frame: VideoFrame, row: Pixels) -> None:
        """Convert one frame into its row [H, W, 3]; DecodeError where that is not possible."""
        import av

        check_size(self.path, frame.width, frame.height)
        width, height = self.size
        try:
            rgb = self._convert.reformat(
                _without_chroma_position(frame),
                width=width,
                height=height,
                format="rgb24",
                interpolation="BICUBIC",  # of the colour planes; the same as torchcodec's
                threads=1,
            )
        except av.FFmpegError as error:
            reason = f"its pictures cannot be converted ({error_reason(error)})"
            raise DecodeError(self.path, reason) from None
        plane = rgb.planes[0]
        lines = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        row[:] = lines[:, : width * 3].reshape(height, width, 3)


class PyavReader:
    """Reads frames of one open file. Not safe to share between threads.

    Args:
        file: stays the caller's, who closes it.
        index: the file's frames; all are scaled to the size of the first.
    """

    def __init__(self, file: VideoFile, index: FrameIndex) -> None:
        self.file, self.index = file, index
        self.path = file.path
        self._converter = RgbConverter(file.path, index.size)

    def parts(self, wanted: Integers, size: int, deadline: Deadline) -> Iterator[Pixels]:
        """Yield uint8 RGB [<= size, H, W, 3], upright, of ascending, distinct indices [K]."""
        width, height = self.index.size
        read = self._read_counting if self.index.sequential else self._read_runs
        decoded = read(wanted, deadline)
        early: dict[int, VideoFrame] = {}  # frames of later parts, where a file mixes their order
        for first in range(0, len(wanted), size):
            rows = range(first, min(first + size, len(wanted)))
            out = np.empty((len(rows), height, width, 3), np.uint8)
            ready = [(row, early.pop(row)) for row in rows if row in early]
            missing = len(rows)
            for row, frame in itertools.chain(ready, decoded):
                if row in rows:
                    self._converter.write(frame, out[row - first])
                    missing -= 1
                    if not missing:
                        break
                else:
                    early[row] = frame
                    if len(early) > 2 * _MOST_EARLY:  # of a run and of its second try
                        raise self._missing(wanted, {0: first})
            yield upright(out, self.index.quarter_turns)

    def _read_runs(self, wanted: Integers, deadline: Deadline) -> Iterator[tuple[int, VideoFrame]]:
        """The row of each wanted frame, and the frame: once each, or DecodeError."""
        for run in self._plan(wanted):
            yield from self._read_run(run, deadline)
            # A key frame in the middle may turn out to be no clean start (a stream joined from
            # pieces, a recovery point): what is missing then is decoded from the beginning.
            if run.rows:
                whole = _Run(key=-1, rows=run.rows, last=run.last)
                yield from self._read_run(whole, deadline)
                if whole.rows:
                    raise self._missing(wanted, whole.rows)

    # ---- which packets ----

    def _plan(self, wanted: Integers) -> list[_Run]:
        index = self.index
        keys = np.flatnonzero(index.key)
        runs: list[_Run] = []
        for row, packet in enumerate(index.shown[wanted]):
            pts = int(index.pts[packet])
            before = keys[(keys <= packet) & (index.pts[keys] <= pts)]
            key = int(before[-1]) if len(before) else -1
            if runs and key <= runs[-1].last + _SHORT_GAP:
                if key > runs[-1].last and index.closed[key]:
                    runs[-1].unneeded.update(index.pts[runs[-1].last + 1 : key].tolist())
                runs[-1].rows[pts] = row
                runs[-1].last = max(runs[-1].last, int(packet))
            else:
                runs.append(_Run(key=key, rows={pts: row}, last=int(packet)))
        return runs

    # ---- decoding ----

    def _read_run(self, run: _Run, deadline: Deadline) -> Iterator[tuple[int, VideoFrame]]:
        """Decode `run`, dropping each row that came from it; rows that stay did not come."""
        import av

        exact = run.key < 0  # the second try takes no short cuts
        unfed = set(run.rows)
        early = 0
        started = exact
        skipping = False
        try:
            container, stream = self._seek(run.key, deadline)
            context = stream.codec_context
            context.skip_frame = "DEFAULT"
            skips = not exact and context.codec.name in _SKIPS_UNREFERENCED
            for packet in demux(container, stream):
                deadline.check()
                if not packet.size:
                    break
                if not started:
                    if not packet.is_keyframe:
                        continue
                    if packet.pts is None or packet.pts > self.index.pts[run.key]:
                        return  # the seek went too far
                    started = True
                if packet.pts in run.unneeded:
                    continue
                if skips and skipping != (packet.pts not in run.rows):
                    skipping = not skipping
                    context.skip_frame = "NONREF" if skipping else "DEFAULT"
                for row, frame in _taken(context.decode(packet), run):
                    yield row, frame
                    early += next(iter(run.rows.values()), row) < row
                unfed.discard(packet.pts)
                if not unfed:
                    break
                if early > _MOST_EARLY and not exact:
                    return
            if run.rows:
                yield from _taken(context.decode(None), run)  # what the decoder still holds back
        except (av.FFmpegError, MemoryError) as error:
            deadline.check()
            if exact:
                raise DecodeError(self.path, f"damaged video ({error_reason(error)})") from None

    def _read_counting(
        self, wanted: Integers, deadline: Deadline
    ) -> Iterator[tuple[int, VideoFrame]]:
        rows = {int(i): row for row, i in enumerate(wanted)}
        for i, frame in enumerate(frames_from_start(self.file, deadline)):
            if i in rows:
                yield rows.pop(i), frame
            if not rows:
                return
        raise self._missing(wanted, rows)

    def _seek(self, key: int, deadline: Deadline) -> OpenVideo:
        """The open file, at or before packet `key`; -1 is its start."""
        if key < 0 or (key == 0 and not self.file.is_open):
            return self.file.from_start(deadline)
        container, stream = opened = self.file.opened(deadline)
        dts, pts = int(self.index.dts[key]), int(self.index.pts[key])
        container.seek(pts if dts == NO_TIME else min(dts, pts), stream=stream)
        return opened

    # ---- pixels ----

    def _missing(self, wanted: Integers, rows: dict[int, int]) -> DecodeError:
        first = int(wanted[min(rows.values())])
        return DecodeError(self.path, f"damaged video (frame {first} cannot be decoded)")


def _taken(frames: Iterable[VideoFrame], run: _Run) -> Iterator[tuple[int, VideoFrame]]:
    """The wanted ones of `frames`, with their rows, which are dropped from `run`."""
    for frame in frames:
        if frame.pts is None or frame.is_corrupt:
            continue
        row = run.rows.pop(frame.pts, None)
        if row is not None:
            yield row, frame


def _without_chroma_position(frame: VideoFrame) -> VideoFrame:
    """The frame without the mark that says where between the pixels its colour samples lie.

    Only FFmpeg 7 and later use the mark, and only when they filter the colour planes. The older
    FFmpeg under torchcodec or decord ignores it: the same frame would come out up to 20 levels
    apart on edges of colour.
    """
    import av

    if frame.format.name in _REPLICATED and not (frame.width | frame.height) & 1:
        return frame
    if not any(component.is_chroma for component in frame.format.components):
        return frame
    plain = av.VideoFrame(frame.width, frame.height, frame.format.name)
    for source, target in zip(frame.planes, plain.planes, strict=True):
        lines = np.frombuffer(memoryview(source), np.uint8).reshape(source.height, source.line_size)
        into = np.frombuffer(memoryview(target), np.uint8).reshape(target.height, target.line_size)
        common = min(source.line_size, target.line_size)
        into[:, :common] = lines[:, :common]
    plain.colorspace, plain.color_range = frame.colorspace, frame.color_range
    return plain
