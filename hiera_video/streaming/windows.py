"""Cut a stream into the windows of a timeline, and keep only the frames that the next ones need.

The windows and their clips are those that `sampling.window_clips` chooses for the whole video. A
clip may look past the end of its window: the window is then ready a little later.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, TypeVar

import numpy as np

from hiera_video.clip_spec import ClipSpec
from hiera_video.video.sampling import (
    Indices,
    frames_until_views,
    span,
    window_number,
    window_views,
)
from hiera_video.video.scan import frames_per_second

_RATE_SECONDS = 10.0
"""The frame rate is that of the last ten seconds: a camera takes fewer frames in the dark."""

_MOST_TIMES = 4096

T = TypeVar("T")


@dataclass(frozen=True)
class Cut:
    """How a stream is cut into windows, and what is scored of each."""

    seconds: float
    spec: ClipSpec
    num_views: int


@dataclass(frozen=True)
class StreamWindow(Generic[T]):
    """One window whose frames have all come."""

    start: float
    end: float
    num_frames: int
    """Frames that began in it."""
    views: Indices
    """int64 [K, T]: the clips, by number of the frame in the stream."""
    pictures: dict[int, T]
    """The frames of `views`, by number."""


@dataclass(frozen=True)
class _Closed:
    """A window after its last frame, which may wait for frames behind it."""

    number: int
    frames: range
    clip_span: Fraction


class WindowCutter(Generic[T]):
    """Takes frames one by one, and yields each window when all that it needs has come.

    Args:
        cut: windows and clips.
        stated: frames a second that the stream states; None where it does not.
        known: `stated` counts all frames of a whole file, so that nothing need be measured.
    """

    def __init__(self, cut: Cut, stated: Fraction | None, *, known: bool = False) -> None:
        self.cut, self.stated, self.known = cut, stated, known
        self.held: deque[T] = deque()
        """The pictures that windows to come may need, the oldest first."""
        self.count = 0
        """Frames so far."""
        self._times: deque[float] = deque(maxlen=_MOST_TIMES)
        self._closed: deque[_Closed] = deque()
        self._first = 0  # number of the first frame of the open window
        self._number: int | None = None  # of the open window

    def add(self, time: float, picture: T) -> Iterator[StreamWindow[T]]:
        """Take the next frame; times never fall."""
        number = window_number(time, self.cut.seconds)
        if self._number is not None and number != self._number:
            self._close()
        self._number = number
        self.held.append(picture)
        self.count += 1
        self._times.append(time)
        while self._times[-1] - self._times[0] > _RATE_SECONDS and len(self._times) > 2:
            self._times.popleft()
        while self._closed and self.count >= self._needed(self._closed[0]):
            yield self._ready(self._closed.popleft())
        self._forget()

    def finish(self) -> Iterator[StreamWindow[T]]:
        """Yield what is left at the end of the stream; the last window ends with it."""
        if self._number is None:
            return
        stream_end = self._times[-1] + 1 / self.rate()
        self._close()
        while self._closed:
            yield self._ready(self._closed.popleft(), stream_end)

    def rate(self) -> float:
        """Frames a second: as stated where the times agree, else measured."""
        if self.known and self.stated:
            return float(self.stated)
        times = np.asarray(self._times)
        return frames_per_second(times - times[0], self.stated)

    # ---- one window after the other ----

    def _close(self) -> None:
        assert self._number is not None
        spec = self.cut.spec
        clip_span = span(spec.num_frames, spec.sampling_rate, self.rate(), spec.target_fps)
        frames = range(self._first, self.count)
        self._closed.append(_Closed(self._number, frames, clip_span))
        self._first = self.count

    def _needed(self, window: _Closed) -> int:
        return frames_until_views(window.frames, window.clip_span, self.cut.spec)

    def _ready(self, window: _Closed, stream_end: float = math.inf) -> StreamWindow[T]:
        cut = self.cut
        views = window_views(window.frames, self.count, window.clip_span, cut.spec, cut.num_views)
        oldest = self.count - len(self.held)
        views = np.maximum(views, oldest)  # a rate that has just risen may reach further back
        return StreamWindow(
            start=window.number * cut.seconds,
            end=min((window.number + 1) * cut.seconds, stream_end),
            num_frames=len(window.frames),
            views=views,
            pictures={int(i): self.held[int(i) - oldest] for i in np.unique(views)},
        )

    def _forget(self) -> None:
        """Let go of the frames that no window to come can need."""
        spec = self.cut.spec
        clip_span = span(spec.num_frames, spec.sampling_rate, self.rate(), spec.target_fps)
        first = self._closed[0].frames.start if self._closed else self._first
        # A clip around a window begins half a clip before it at most; where the stream ends in the
        # middle of one, a whole clip before its end.
        keep = self.count - first
        if not spec.segments:
            keep = max(keep + math.ceil(clip_span / 2), math.ceil(clip_span)) + 1
        while len(self.held) > keep:
            self.held.popleft()
