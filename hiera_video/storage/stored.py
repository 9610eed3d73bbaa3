"""A video that is no plain file, found: its size, its state, and a file object to read it with.

    found = find_stored("s3://bucket/shard-000.tar!/a.mp4")     # or "https://host/a.mp4"
    av.open(found.file)

The state of a shard is asked for once per process; that of a file each time it is opened.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hiera_video.storage import local_copies
from hiera_video.storage.addresses import base_name, is_address, is_stored, member_of, plain_name
from hiera_video.storage.range_file import Range, RangeFile
from hiera_video.storage.remote import Fetcher, Status, status_of_file
from hiera_video.storage.retries import StorageError
from hiera_video.storage.shards import ShardIndex, fetcher_of, local_status, shard_index

THREADS = 8
"""Requests at the same time for many small ranges of one file."""


class StoredVideo:
    """One video at an address, or inside a shard.

    Raises StorageError: it is not there, may not be read, cannot be reached.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.start, self.size, token, self._fetch = _locate(path)
        self.identity = (self.size, token)
        """Size, and a negative number that is another one after a change."""
        self._files: list[RangeFile] = []
        self.file = self.another_file()

    @property
    def is_remote(self) -> bool:
        return is_address(self.path)

    def fetch(self, start: int, end: int) -> bytes:
        """Some bytes of the video. Raises StorageError."""
        return self._fetch(self.start + start, self.start + end)

    def fetch_all(self, ranges: Sequence[Range]) -> list[bytes]:
        """Several ranges at the same time. Raises StorageError."""
        if len(ranges) < 2:
            return [self.fetch(*one) for one in ranges]
        with ThreadPoolExecutor(min(THREADS, len(ranges))) as pool:
            return list(pool.map(lambda one: self.fetch(*one), ranges))

    def limit(self, time_left: Callable[[], float]) -> None:
        """Let requests take no longer than the caller has."""
        if isinstance(self._fetch, Fetcher):
            self._fetch.time_left = time_left

    @property
    def seconds(self) -> float:
        """Spent waiting for the storage, in all."""
        return self._fetch.seconds if isinstance(self._fetch, Fetcher) else 0.0

    @property
    def failure(self) -> StorageError | None:
        """What the storage failed with; decoders turn it into something else on its way."""
        failures = (file.failure for file in self._files)
        return next((failure for failure in failures if failure is not None), None)

    def another_file(self) -> RangeFile:
        """A second file object, for a decoder that opens the video itself."""
        name = "video" + os.path.splitext(plain_name(base_name(self.path)))[1]
        self._files.append(RangeFile(name, self.fetch, self.size))
        return self._files[-1]

    def known_copy(self) -> Path | None:
        """The copy of the video on this machine, if there is one already."""
        return local_copies.known_copy(self.path, self.identity)

    def copy(self) -> Path:
        """A copy of the whole video on this machine. Raises StorageError, UserError, RunFailed."""
        place = self.known_copy()
        if place is None:
            place = local_copies.place_of(self.path, self.identity)
            try:
                local_copies.store(place, self.size, self.fetch)
            except StorageError as error:
                self.file.failure = error
                raise
        return place


def find_stored(path: str) -> StoredVideo | None:
    """The video at an address or inside a shard; None for the path of a plain file."""
    return StoredVideo(path) if is_stored(path) else None


# ---- where ---------------------------------------------------------------------------------------


def _locate(path: str) -> tuple[int, int, int, Callable[[int, int], bytes]]:
    """(where it begins, size, token, what fetches ranges of the file around it)."""
    member = member_of(path)
    if member is None:
        status = status_of_file(path)
        if status.size == 0:
            raise StorageError(path, "is empty (0 bytes)")
        return 0, status.size, status.token, Fetcher(path, status)
    shard = _known_shards.get(member.shard)
    start, size = shard.index.place_of(member.name, path)
    return start, size, shard.status.token, shard.fetch


class _KnownShard:
    """The state and the index of a shard."""

    def __init__(self, shard: str, status: Status, index: ShardIndex) -> None:
        self.status, self.index = status, index
        self.fetch = fetcher_of(shard, status)


class _KnownShards:
    """The shards used last in this process, up to MOST_BYTES of indexes."""

    MOST_BYTES = 64 << 20

    def __init__(self) -> None:
        self._shards: OrderedDict[str, _KnownShard] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, shard: str) -> _KnownShard:
        """The shard of a path or address. Raises StorageError."""
        remote = is_address(shard)
        status = None if remote else local_status(shard)
        with self._lock:
            known = self._shards.get(shard)
            if known is not None and status in (None, known.status):
                self._shards.move_to_end(shard)
                return known
        status = status or status_of_file(shard)
        found = _KnownShard(shard, status, shard_index(shard, status).without_texts())
        with self._lock:
            if (old := self._shards.pop(shard, None)) is not None:
                self._bytes -= old.index.nbytes
            self._shards[shard] = found
            self._bytes += found.index.nbytes
            while self._bytes > self.MOST_BYTES and len(self._shards) > 1:
                self._bytes -= self._shards.popitem(last=False)[1].index.nbytes
        return found


_known_shards = _KnownShards()


def _after_fork() -> None:
    """A lock that another thread held at the fork would stay locked for ever."""
    _known_shards._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
