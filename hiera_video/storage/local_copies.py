"""Whole copies of remote files on this machine, for what cannot read a part of a file.

They lie in the cache folder (`files.cache_file("remote")`), at most HIERA_VIDEO_CACHE_GB of them
(20); those used longest ago make room. A copy is named after its address and the state of the file
there, so a file that has changed is fetched again.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path

from hiera_video.errors import UserError
from hiera_video.files import atomic_write, cache_file, explained, hold
from hiera_video.storage.addresses import base_name, plain_name

PART = 8 << 20
"""Bytes of one request for a copy."""

LIMIT = "HIERA_VIDEO_CACHE_GB"
"""The environment variable with the most gigabytes of copies."""

_USUAL_LIMIT = 20.0


def folder() -> Path:
    """Where the copies are."""
    return cache_file("remote")


def most_bytes() -> int:
    """The most bytes of all copies. Raises UserError for a variable that is no number."""
    text = os.environ.get(LIMIT, "")
    try:
        gigabytes = float(text) if text else _USUAL_LIMIT
    except ValueError:
        gigabytes = math.nan
    if not 0 <= gigabytes < math.inf:
        raise UserError(f"{LIMIT}={text!r} must be a number of gigabytes, such as 20")
    return int(gigabytes * 1e9)


def place_of(path: str, identity: tuple[int, int], ending: str = "") -> Path:
    """Where the copy of a file in this state lies, if there is one."""
    key = hashlib.sha256(f"{path}\0{identity}".encode("utf-8", "surrogateescape")).hexdigest()
    suffix = ending or os.path.splitext(plain_name(base_name(path)))[1].lower()
    suffix = suffix if suffix[1:].isalnum() and len(suffix) < 10 else ""
    return folder() / key[:2] / f"{key[2:34]}{suffix}"


def known_copy(path: str, identity: tuple[int, int]) -> Path | None:
    """The copy of a file, which then counts as used now; None where there is none."""
    place = place_of(path, identity)
    try:
        os.utime(place)
    except OSError:
        return None
    return place


def store(place: Path, size: int, fetch: Callable[[int, int], bytes]) -> None:
    """Write a copy of `size` bytes, in parts, after making room for it.

    Raises UserError where it is larger than all copies may be, RunFailed where it cannot be
    written.
    """
    limit = most_bytes()
    if size > limit:
        raise UserError(
            f"a copy of {size / 1e9:.2f} GB is needed here, more than the cache holds "
            f"({limit / 1e9:g} GB; the variable {LIMIT} changes that)"
        )
    with explained(place):
        place.parent.mkdir(parents=True, exist_ok=True)
    _make_room(limit - size)
    with atomic_write(place) as file:
        for start in range(0, size, PART):
            file.write(fetch(start, min(start + PART, size)))


def _make_room(most: int) -> None:
    """Delete the copies used longest ago until the others have at most `most` bytes."""
    with explained(folder()):
        lock = hold(folder() / "lock", wait=5.0)
    if lock is None:  # another process is at it
        return
    with contextlib.closing(lock):
        copies = []
        for file in folder().glob("??/*"):
            with contextlib.suppress(OSError):  # deleted meanwhile
                status = file.stat()
                copies.append((status.st_mtime_ns, status.st_size, file))
        total = sum(size for _, size, _ in copies)
        for _, size, file in sorted(copies):
            if total <= most:
                return
            with contextlib.suppress(OSError):
                file.unlink()
                total -= size
