"""Show progress on stderr: one line that overwrites itself, or a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import timedelta

_SECONDS_ON_TERMINAL = 0.2
_SECONDS_IN_LOG = 30.0


class ProgressLine:
    """Shows `done/total what, time left`. A context manager; its end clears the line."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._began = self._shown = clock()
        self._first: int | None = None

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    @property
    def started(self) -> bool:
        """Whether `show` has been called in this phase."""
        return self._first is not None

    def show(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` are done, if the last line is old enough.

        `total` 0 ends the phase. What was done at a phase's first call counts as done before it,
        so it does not enter the time left.
        """
        now = self._clock()
        if not total:
            self.clear()
            self._began, self._first = now, None
            return
        if self._first is None:
            self._first = done
        if now - self._shown < (_SECONDS_ON_TERMINAL if self._on_terminal else _SECONDS_IN_LOG):
            return
        self._shown = now
        text = f"{done:,}/{total:,} {what}"
        if done > self._first:
            left = (now - self._began) / (done - self._first) * (total - done)
            text += f", {duration(left)} left"
        if self._on_terminal:
            print(f"\r{text:<70}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def log(self, text: str) -> None:
        """Print a line at once, unless stderr is a terminal."""
        if not self._on_terminal:
            print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Clear the line on a terminal."""
        if self._on_terminal:
            print(f"\r{'':<70}\r", end="", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Return a duration as `1 day, 4:10:00`; below a minute as seconds."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    return str(timedelta(seconds=round(seconds)))
