"""Remember the frame lists of videos, so that a file is scanned once per process, not per clip.

A data loader's worker opens the same videos epoch after epoch, and the demo opens one file for its
labels and again for its timeline. Long lists are kept compressed: that of a quarter of an hour is
0.8 MB, of which 10 to 100 KB are left, and the workers of a set of long movies remember them all.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import threading
import time
import zlib
from collections import OrderedDict

import numpy as np

from hiera_video.storage.addresses import absolute
from hiera_video.video.info import FrameIndex, VideoInfo
from hiera_video.video.scan import frame_times

MOST_BYTES = 32 << 20
"""Of a process's memory: the lists of some 3,000 videos of 300 frames."""

LONG = 128 << 10
"""Bytes from which on a list is kept compressed: opening such a video then takes milliseconds more.
"""

_SETTLED = 2.0
"""Seconds since the last change after which a file is remembered. Time stamps are coarse (a second
or two on some file systems): a file that is still being written could keep the same one."""


class KnownVideos:
    """The `VideoInfo` of the files scanned last, at most `most_bytes`. Safe between threads."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self._infos: OrderedDict[str, VideoInfo | PackedInfo] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: str, identity: tuple[int, int]) -> VideoInfo | None:
        """What is known of the file at `path`, if it is still the file with this `identity`."""
        name = absolute(path)
        with self._lock:
            info = self._infos.get(name)
            if info is None or info.path != path:
                return None
            if info.index is None or info.index.identity != identity:
                self._forget(name)
                return None
            self._infos.move_to_end(name)
        return info.unpacked() if isinstance(info, PackedInfo) else info

    def add(self, info: VideoInfo) -> None:
        """Remember `info`, and forget those used longest ago where it gets too much."""
        if info.index is None or time.time() - info.index.identity[1] / 1e9 < _SETTLED:
            return
        kept = PackedInfo(info) if _is_long(info) else info
        if size_of(kept) > self.most_bytes // 8:  # it would push out all others
            return
        name = absolute(info.path)
        with self._lock:
            if name in self._infos:
                self._forget(name)
            self._infos[name] = kept
            self.bytes += size_of(kept)
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


class PackedInfo:
    """A `VideoInfo` in less memory: the steps from frame to frame, which are few different numbers,
    compressed. Not for an index that is sequential, whose times cannot be computed again."""

    def __init__(self, info: VideoInfo) -> None:
        index = info.index
        assert index is not None
        assert not index.sequential
        self.path = info.path
        lists = _lists_of(index)
        self.index = _with_lists(index, [numbers[:0].copy() for numbers in lists])
        self._info = dataclasses.replace(info, times=info.times[:0].copy(), index=None)
        steps = pickle.dumps([_steps(numbers) for numbers in lists], pickle.HIGHEST_PROTOCOL)
        self._packed = zlib.compress(steps, 1)

    @property
    def size(self) -> int:
        """Bytes of the compressed lists."""
        return len(self._packed)

    def unpacked(self) -> VideoInfo:
        """The same as what was packed, number by number."""
        lists = pickle.loads(zlib.decompress(self._packed))
        index = _with_lists(self.index, [_added_up(steps) for steps in lists])
        return dataclasses.replace(self._info, times=frame_times(index), index=index)


def _lists_of(index: FrameIndex) -> list[np.ndarray]:
    return [index.pts, index.dts, index.key, index.closed, index.hidden, index.shown]


def _with_lists(index: FrameIndex, lists: list[np.ndarray]) -> FrameIndex:
    """The same index with other lists, in the order of `_lists_of`."""
    pts, dts, key, closed, hidden, shown = lists
    return dataclasses.replace(
        index, pts=pts, dts=dts, key=key, closed=closed, hidden=hidden, shown=shown
    )


def _steps(numbers: np.ndarray) -> np.ndarray:
    """What is added from each number to the next, bits eight to a byte."""
    if numbers.dtype == np.bool_:
        return np.concatenate(
            [np.array([len(numbers)], np.int64).view(np.uint8), np.packbits(numbers)]
        )
    return np.diff(numbers, prepend=0)


def _added_up(steps: np.ndarray) -> np.ndarray:
    """The numbers of `_steps`."""
    if steps.dtype == np.uint8:
        (count,) = steps[:8].view(np.int64).tolist()
        return np.unpackbits(steps[8:], count=count).astype(np.bool_)
    return np.cumsum(steps)


def _is_long(info: VideoInfo) -> bool:
    return info.index is not None and not info.index.sequential and size_of(info) > LONG


def size_of(info: VideoInfo | PackedInfo) -> int:
    """Bytes of memory that `info` takes: its arrays, and about 1 KB around them."""
    if isinstance(info, PackedInfo):
        return 2048 + info.size
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
