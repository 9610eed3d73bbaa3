"""Several calls in one folder: who makes which file."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from hiera_video import files

T = TypeVar("T")


def each_settled(things: Sequence[T], settle: Callable[[T, float], bool]) -> None:
    """Settle all things: first those that no other call is at, then the others.

    settle: takes a thing and the seconds to wait for another call; False if it is still at it.
    """
    left, seconds = list(things), 0.0
    while left:
        left, seconds = [thing for thing in left if not settle(thing, seconds)], math.inf


@contextlib.contextmanager
def claimed(file: Path, *, wait: float = 0.0) -> Iterator[bool]:
    """Hold a file that is to be made against other processes; its folder is made.

    Yields False if another process holds it for longer than `wait` seconds. Whoever gets it must
    look whether the file is there by now. The end of a process, whatever its cause, frees the file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    path = file.with_name(f"{file.name}.lock")
    lock = files.hold(path, wait=wait)
    if lock is None:
        yield False
        return
    with lock:
        yield True
        if file.is_file():  # whoever waits, or comes later, finds it
            with contextlib.suppress(OSError):
                os.unlink(path)
