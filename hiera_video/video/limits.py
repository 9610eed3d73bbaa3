"""Limits on what one file may cost: pixels, bytes, seconds, and the memory of the process.

Light to import: neither torch nor a decoder.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Protocol

from hiera_video.errors import DecodeError

with contextlib.suppress(ImportError):  # Windows has no limits on memory
    import resource

MAX_PIXELS = 8192 * 4352
"""Largest picture: that of H.264 and HEVC level 6.2, one step above 8K."""

MAX_OUTPUT_BYTES = 1 << 30
"""Largest tensor that one read returns (1 GiB: 16 frames of 8192x4352 are 1.6, of 4K 0.4)."""

TIME_LIMIT = 60.0
"""Seconds after which one call gives up with a DecodeError."""

MEMORY_LIMIT = 2 << 30
"""Bytes that one video may allocate on top of what its process held before: twice the largest
read."""


class Storage(Protocol):
    """What a deadline asks of the storage that a video is read from."""

    @property
    def seconds(self) -> float:
        """Spent waiting for it."""

    @property
    def failure(self) -> Exception | None:
        """What it failed with, with a `reason`."""


class Deadline:
    """A time limit that long work checks between two steps."""

    def __init__(self, path: str, seconds: float) -> None:
        self.path, self.seconds = path, seconds
        self._storage: Storage | None = None
        self._waited = 0.0
        self.restart()

    def restart(self) -> None:
        """Begin anew."""
        self._end = time.monotonic() + self.seconds
        self._waited = 0.0 if self._storage is None else self._storage.seconds

    def watch(self, storage: Storage) -> None:
        """Also raise what the storage of the video fails with, and name it where it is slow."""
        if self._storage is None:
            self._storage, self._waited = storage, storage.seconds

    def left(self) -> float:
        """Seconds until the time is over."""
        return self._end - time.monotonic()

    def check(self) -> None:
        """Raise DecodeError once the time is over, and for a storage that failed."""
        if self._storage is not None and (failure := self._storage.failure) is not None:
            raise DecodeError(self.path, str(getattr(failure, "reason", failure))) from None
        if self.left() < 0:
            waited = 0.0 if self._storage is None else self._storage.seconds - self._waited
            if waited > self.seconds / 2:
                raise DecodeError(
                    self.path,
                    f"slow storage: {waited:.0f} of {self.seconds:g} s were spent waiting for it; "
                    "a larger time_limit waits longer",
                )
            raise DecodeError(
                self.path,
                f"not decoded within {self.seconds:g} s; a larger time_limit waits longer",
            )


def check_size(path: str, width: int, height: int) -> None:
    """Raise DecodeError for pictures above MAX_PIXELS, before memory for one is allocated."""
    if width * height > MAX_PIXELS:
        raise DecodeError(
            path, f"its pictures are {width}x{height}, above the limit of {MAX_PIXELS:,} pixels"
        )


@contextlib.contextmanager
def limited(seconds: float, memory: int) -> Iterator[None]:
    """Limit the time and the memory of what runs inside, even in the middle of a library's call.

    After `seconds` SIGALRM ends this process. Beyond `memory` bytes of address space on top of what
    the process holds now, allocations fail (see `is_out_of_memory`).

    For a process that another one watches. Costs microseconds; does nothing where the system has
    no such limits.
    """
    before = limit_memory(memory)
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        if before is not None:
            resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def imports_allowed() -> Iterator[None]:
    """Lift the limit on memory of `limited` while a library is imported.

    torch alone maps more address space than a video may take. Afterwards the limit holds for what
    comes on top of that.
    """
    try:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        held = _address_space()
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    except (OSError, NameError, ValueError):  # not Linux
        yield
        return
    try:
        yield
    finally:
        if soft != resource.RLIM_INFINITY:
            more = soft + max(_address_space() - held, 0)
            soft = more if hard == resource.RLIM_INFINITY else min(more, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
    """Bytes of address space that this process holds; OSError where the system does not tell."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def limit_memory(memory: int) -> tuple[int, int] | None:
    """Limit this process's address space to `memory` bytes more than it holds now.

    Returns the limits before, None where the system has none.
    """
    try:
        held = _address_space()
        before = resource.getrlimit(resource.RLIMIT_AS)
        limits = [held + memory, *(x for x in before if x != resource.RLIM_INFINITY)]
        resource.setrlimit(resource.RLIMIT_AS, (min(limits), before[1]))
    except (OSError, NameError, ValueError):  # not Linux
        return None
    return before


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that an allocation failed: libraries say it in many ways."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, (RuntimeError, OSError)) and (
        "not enough memory" in text or "allocate memory" in text or "bad_alloc" in text
    )
