"""A file object over ranges of bytes: what decoders read instead of a path.

    file = RangeFile("s3://bucket/a.mp4", fetch, size)
    container = av.open(file)

Requests are few and large: the file is read in blocks of BLOCK bytes, the last MOST_BLOCKS of which
are kept, and a small file in one request. While a list of packets is made, whose content nobody
needs, `blank` ranges read as zeros and cost nothing.
"""

from __future__ import annotations

import bisect
import io
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from hiera_video.storage.retries import StorageError

BLOCK = 512 << 10
"""Bytes of a request: what a good connection sends in the time that a storage takes to answer."""

MOST_BLOCKS = 32

WHOLE = 2 << 20
"""Bytes up to which a file is read whole, in one request."""

Fetch = Callable[[int, int], bytes]
"""The bytes from a place to before another one."""

Range = tuple[int, int]
"""From, to before."""


class RangeFile(io.RawIOBase):
    """A seekable, read-only file of `size` bytes. Not safe between threads.

    A StorageError is raised to whoever reads and kept in `failure`: decoders turn it into something
    else on its way.
    """

    def __init__(self, name: str, fetch: Fetch, size: int, block: int = BLOCK) -> None:
        super().__init__()
        self.name, self.size = name, size
        self.failure: StorageError | None = None
        self.seconds = 0.0
        """Spent waiting for bytes."""
        self._fetch = fetch
        self._block = max(size, 1) if size <= WHOLE and block == BLOCK else block
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._place = 0
        self._blank: Range = (0, 0)
        self._shown: list[tuple[int, bytes]] = []

    # ---- as io asks for it

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}[whence]
        self._place = max(start + offset, 0)
        return self._place

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes; fewer only at the end. Raises StorageError."""
        left = max(self.size - self._place, 0)
        size = left if size is None or size < 0 else min(size, left)
        if not size:
            return b""
        data = self._range(self._place, self._place + size)
        self._place += size
        return data

    # ---- blank ranges

    def blank(self, between: Range, shown: Sequence[Range], fetch_all: _FetchAll) -> None:
        """Read as zeros what lies `between` two places, but for the ascending ranges `shown`.

        These are fetched now, all at once, by `fetch_all`.
        """
        try:
            self._shown = list(zip([start for start, _ in shown], fetch_all(shown), strict=True))
        except StorageError as error:
            self.failure = error
            raise
        self._blank = between

    def unblank(self) -> None:
        """Read everything as it is again."""
        self._blank, self._shown = (0, 0), []

    # ---- bytes

    def _range(self, start: int, end: int) -> bytes:
        first, last = self._blank
        if start >= last or end <= first:
            return self._real(start, end)
        parts = []
        if start < first:
            parts.append(self._real(start, first))
        parts.append(self._zeros(max(start, first), min(end, last)))
        if end > last:
            parts.append(self._real(last, end))
        return b"".join(parts)

    def _zeros(self, start: int, end: int) -> bytes:
        data = bytearray(end - start)
        place = max(bisect.bisect_right(self._shown, start, key=lambda piece: piece[0]) - 1, 0)
        for at, content in self._shown[place:]:
            if at >= end:
                break
            low, high = max(at, start), min(at + len(content), end)
            if low < high:
                data[low - start : high - start] = content[low - at : high - at]
        return bytes(data)

    def _real(self, start: int, end: int) -> bytes:
        size = self._block
        blocks = range(start // size, (end - 1) // size + 1)
        data = b"".join(self._one_block(number) for number in blocks)
        skipped = start - blocks[0] * size
        return data[skipped : skipped + end - start]

    def _one_block(self, number: int) -> bytes:
        known = self._blocks.get(number)
        if known is not None:
            self._blocks.move_to_end(number)
            return known
        began = time.monotonic()
        try:
            start = number * self._block
            data = self._fetch(start, min(start + self._block, self.size))
        except StorageError as error:
            self.failure = error
            raise
        finally:
            self.seconds += time.monotonic() - began
        self._blocks[number] = data
        while len(self._blocks) > MOST_BLOCKS:
            self._blocks.popitem(last=False)
        return data


_FetchAll = Callable[[Sequence[Range]], list[bytes]]


def merged(ranges: Sequence[Range], gap: int) -> list[Range]:
    """Ascending ranges, those closer than `gap` bytes as one: one request for several."""
    found: list[Range] = []
    for start, end in ranges:
        if found and start - found[-1][1] <= gap:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found
