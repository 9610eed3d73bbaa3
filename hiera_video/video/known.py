"""Remember the frame lists of videos, so that a file is scanned once per process, not per clip.

A data loader's worker opens the same videos epoch after epoch, and the demo opens one file for its
labels and again for its timeline.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict

from hiera_video.video.info import VideoInfo

MOST_BYTES = 32 << 20
"""Of a process's memory: the lists of some 3,000 videos of 300 frames."""

_SETTLED = 2.0
"""Seconds since the last change after which a file is remembered. Time stamps are coarse (a second
or two on some file systems): a file that is still being written could keep the same one."""


class KnownVideos:
    """The `VideoInfo` of the files scanned last, at most `most_bytes`. Safe between threads."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self._infos: OrderedDict[str, VideoInfo] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: str, identity: tuple[int, int]) -> VideoInfo | None:
        """What is known of the file at `path`, if it is still the file with this `identity`."""
        name = os.path.abspath(path)
        with self._lock:
            info = self._infos.get(name)
            if info is None or info.path != path:
                return None
            if info.index is None or info.index.identity != identity:
                self._forget(name)
                return None
            self._infos.move_to_end(name)
            return info

    def add(self, info: VideoInfo) -> None:
        """Remember `info`, and forget those used longest ago where it gets too much."""
        if info.index is None or time.time() - info.index.identity[1] / 1e9 < _SETTLED:
            return
        size = size_of(info)
        if size > self.most_bytes // 8:  # hours of video: it would push out all others
            return
        name = os.path.abspath(info.path)
        with self._lock:
            if name in self._infos:
                self._forget(name)
            self._infos[name] = info
            self.bytes += size
            while self.bytes > self.most_bytes:
                self._forget(next(iter(self._infos)))

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._infos.clear()
            self.bytes = 0

    def __len__(self) -> int:
        return len(self._infos)

    def _forget(self, name: str) -> None:
        self.bytes -= size_of(self._infos.pop(name))


def size_of(info: VideoInfo) -> int:
    """Bytes of memory that `info` takes: its arrays, and about 1 KB around them."""
    index = info.index
    assert index is not None
    arrays = (index.pts, index.dts, index.key, index.closed, index.hidden, index.shown, info.times)
    return 1024 + sum(array.nbytes for array in arrays)


known_videos = KnownVideos()
"""Those of this process."""


def _after_fork() -> None:
    """A lock that another thread held at the fork would stay locked for ever."""
    known_videos._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
