"""The child process that reads a stream: it decodes all the time, and hands out the newest window.

One thread decodes and keeps the frames that the next windows need. A window that nobody has asked
for when the next one is complete is dropped and counted, so that what is handed out is never old.
Only what a file held before it was opened is not dropped: its reader waits for the labels instead.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hiera_video.errors import DecodeError, RunFailed
from hiera_video.streaming.byte_sources import ByteSource, open_bytes, silence
from hiera_video.streaming.decoding import Frames, open_stream
from hiera_video.streaming.pictures import Cropper, Picture, Room
from hiera_video.streaming.sources import Source
from hiera_video.streaming.windows import Cut, StreamWindow, WindowCutter
from hiera_video.video.container import error_reason
from hiera_video.video.limits import MEMORY_LIMIT, is_out_of_memory, limit_memory
from hiera_video.video.sampling import Indices
from hiera_video.video.view_crops import ViewCrops, read_view_crops

POLL_SECONDS = 1.0
"""Seconds that an answer takes at most while nothing is ready."""

_GRACE = 20.0
"""Seconds on top of the timeout for the first frame, and between two where bytes do come: FFmpeg
looks at five seconds of a stream before it says what it is."""


@dataclass(frozen=True)
class StreamRequest:
    """What is read and how."""

    source: Source
    cut: Cut
    num_crops: int
    timeout: float
    """Seconds without anything after which the stream is given up, or a file complete."""
    stdin: Any = None
    """Standard input, as multiprocessing sends descriptors; None for other sources."""


@dataclass(frozen=True)
class CutWindow:
    """A window as it travels between the processes."""

    start: float
    end: float
    place: Indices
    """[K, T], as in `ViewCrops`."""
    crops: list[Any]
    """S times uint8 [U, 3, H, W] in numpy."""
    came: float
    """When its last frame came, by `time.monotonic`."""
    clock: float
    """The same by `time.time`."""
    dropped: int
    """Frames that were dropped so far."""

    def view_crops(self) -> ViewCrops:
        """The crops as tensors."""
        return ViewCrops(self.place, [torch.from_numpy(crop) for crop in self.crops])


# ---- the interface: what `GuardedPool` calls ----

_reading: _Reading | None = None


def prepare() -> None:
    """Make this process ready: one thread, and a limit on memory for as long as it lives."""
    import av  # noqa: F401 (imported before the limit holds)

    torch.set_num_threads(1)
    limit_memory(MEMORY_LIMIT)


def serve(request: StreamRequest | None) -> CutWindow | bool:
    """Open a stream (a request), or return its next window (None).

    Returns True while there is no window yet, False at the end of the stream.
    """
    global _reading
    if request is not None:
        if _reading is not None:
            _reading.stop()
        _reading = _Reading(request)
        return True
    if _reading is None:
        raise RunFailed("another program ended the process that read the stream; start it again")
    return _reading.next()


# ---- between the two threads ----


@dataclass(frozen=True)
class _Ready:
    window: StreamWindow[Picture]
    came: float
    clock: float


class _Stopped(Exception):
    """Nobody wants this stream any more."""


class _Handover:
    """The newest window, on its way from the thread that decodes to the one that answers."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ready: _Ready | None = None
        self._ended = self._stopped = False
        self._error: BaseException | None = None
        self.dropped = 0
        self.is_full = False
        """Whether the thread that decodes waits here."""

    def put(self, ready: _Ready, *, wait: bool) -> None:
        """Leave a window. wait: until the last one is taken; otherwise it is dropped.

        Raises _Stopped after `stop`.
        """
        with self._changed:
            while wait and self._ready is not None and not self._stopped:
                self.is_full = True
                self._changed.wait()
            self.is_full = False
            if self._stopped:
                raise _Stopped
            if self._ready is not None:
                self.dropped += self._ready.window.num_frames
            self._ready = ready
            self._changed.notify_all()

    def stop(self) -> None:
        """Let the thread that decodes end at its next window."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def end(self, error: BaseException | None) -> None:
        """Say that nothing more comes."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def take(self, seconds: float) -> _Ready | bool:
        """Take the newest window; True where none comes for `seconds`, False at the end.

        Raises what ended the stream, after the last window.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ready is not None or self._ended, seconds)
            ready, self._ready = self._ready, None
            self._changed.notify_all()
            if ready is not None:
                return ready
            if self._error is not None:
                raise self._error
            return not self._ended


class _Reading:
    """One stream that is being read."""

    def __init__(self, request: StreamRequest) -> None:
        self.request = request
        self._handover = _Handover()
        self._bytes = self._frame = time.monotonic()  # when some came last
        self._damaged = 0
        self._file: ByteSource | None = None
        threading.Thread(target=self._run, daemon=True, name="decodes").start()

    # ---- the thread that answers ----

    def stop(self) -> None:
        """Leave the stream."""
        self._handover.stop()

    def next(self) -> CutWindow | bool:
        ready = self._handover.take(POLL_SECONDS)
        if ready is True:
            self._check_progress()
        if isinstance(ready, bool):
            return ready
        window = ready.window

        def read(wanted: Indices) -> list[torch.Tensor]:
            crops = torch.stack([window.pictures[int(i)].crops() for i in wanted], dim=1)
            return list(crops)

        found = read_view_crops(read, window.views)
        return CutWindow(
            start=window.start,
            end=window.end,
            place=found.place,
            crops=[np.ascontiguousarray(crop.numpy()) for crop in found.crops],
            came=ready.came,
            clock=ready.clock,
            dropped=self._handover.dropped + self._damaged,
        )

    def _check_progress(self) -> None:
        """Raise DecodeError where nothing comes, or nothing that is a picture.

        The thread that decodes may be anywhere: in a name server's silence, in a decoder that
        never ends. It is left there; this process ends with its parent's interest in it.
        """
        if self._handover.is_full:
            return
        now, timeout, name = time.monotonic(), self.request.timeout, self.request.source.name
        seen = self._bytes if self._file is not None else self._frame
        limit = timeout if self._file is not None else timeout + _GRACE
        if now - seen > limit:
            raise DecodeError(name, silence(limit))
        if now - self._frame > timeout + _GRACE and self.request.source.kind != "file":
            raise DecodeError(
                name,
                f"bytes come, but no picture for {timeout + _GRACE:g} s; is it a video? "
                "--stream-timeout SECONDS waits longer",
            )

    # ---- the thread that decodes ----

    def _run(self) -> None:
        try:
            self._decode()
        except BaseException as error:
            self._handover.end(_explained(error, self.request.source.name))
        else:
            self._handover.end(None)

    def _decode(self) -> None:
        request = self.request
        source = request.source
        if source.kind not in ("camera", "rtsp"):
            self._file = open_bytes(source, _descriptor(request), request.timeout, self._on_bytes)
        frames = Frames(
            source.name, open_stream(source, self._file, request.timeout), request.timeout
        )
        with contextlib.closing(frames):
            self._cut(frames)

    def _cut(self, frames: Frames) -> None:
        """Cut the stream into windows; the last one ends with it, unless it ended in an error."""
        cut, name = self.request.cut, self.request.source.name
        cutter: WindowCutter[Picture] = WindowCutter(cut, frames.stated, known=frames.counts_all)
        room = Room(name, cut.seconds)
        cropper: Cropper | None = None
        for seconds, frame in frames:
            self._frame = time.monotonic()
            self._damaged = frames.damaged
            cropper = cropper or Cropper(name, frame, cut.spec.crop_size, self.request.num_crops)
            for window in cutter.add(seconds, Picture(frame, cropper)):
                self._put(window, wait=not self._is_live())
            room.make(cutter.held)
        for window in cutter.finish():
            self._put(window, wait=True)

    def _put(self, window: StreamWindow[Picture], *, wait: bool) -> None:
        self._handover.put(_Ready(window, time.monotonic(), time.time()), wait=wait)
        self._bytes = self._frame = time.monotonic()  # it may have waited there

    def _is_live(self) -> bool:
        return self._file is None or self._file.is_live()

    def _on_bytes(self) -> None:
        self._bytes = time.monotonic()


def _explained(error: BaseException, name: str) -> BaseException:
    """Whatever a library raises over a damaged stream, as a DecodeError of that stream."""
    if isinstance(error, DecodeError) or is_out_of_memory(error):
        return error
    return DecodeError(name, f"unexpected {type(error).__name__}: {error_reason(error)}")


def _descriptor(request: StreamRequest) -> int | None:
    if request.stdin is None:
        return None
    detach: Callable[[], int] = request.stdin.detach
    return os.dup(detach())
