"""Progress of long work: one line on stderr, in one style, where that is a terminal.

    described  34% |██████▊             | 62/180 videos  4.1 videos/s  00:28 left

    with Progress("described", len(files), unit="videos") as progress:
        for number, file in enumerate(files):
            progress.to(number)
            ...

It appears once the work takes two seconds, and it is gone at the end. Elsewhere than on a terminal
nothing is printed, unless a line now and then is asked for (`log_every`). Lines that are printed
meanwhile, on stderr or on a terminal's stdout, appear above it. tqdm draws it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, TextIO, TypeVar

from hiera_video.cli import printable

T = TypeVar("T")

DELAY = 2.0
"""Seconds of work after which there is a line."""

LOG_SECONDS = 30.0
"""Between two lines of `log_every` in a log, for commands that run for hours."""

_REDRAW_SECONDS = 0.25
_LONGEST_NAME = 40

_clock = time.monotonic
_lock = threading.RLock()
_open: list[Progress] = []
"""Pieces of work within each other; the last one has the line."""


class Progress:
    """Shows how much of a piece of work is done. A context manager; its end clears the line.

    Args:
        what: is done, in a word or two; strangers' file names may be in it.
        total: things to do; None where that is not known: then there are count and rate alone.
        unit: what is counted, in the plural; "B" counts bytes. Empty: nothing is counted, and the
            time so far is shown.
        log_every: seconds between lines where stderr is no terminal; None: none.
        ticking: draw while nothing is reported, too, so that the time goes on. Off for
            measurements, which a second thread would disturb.
    """

    def __init__(
        self,
        what: str,
        total: float | None = None,
        *,
        unit: str = "",
        log_every: float | None = None,
        ticking: bool = True,
    ) -> None:
        self.what, self.total, self.unit = what, total, unit
        self._log_every = log_every
        self._ticking = ticking
        self._stream: TextIO | None = None
        self._bar: Any = None
        self._streams = contextlib.ExitStack()
        self._over = threading.Event()
        self.done: float = 0
        self._first: float | None = None
        self._began = self._started = self._drawn = _clock()

    def __enter__(self) -> Progress:
        if _is_first_process() and sys.stderr is not None:
            self._open(sys.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def on_terminal(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self._stream is not None

    def begin(self, what: str, total: float | None = None, *, unit: str | None = None) -> None:
        """Go on with another piece of work, counted from its first report."""
        with _lock:
            self._hide()
            self.what, self.total = what, total
            self.unit = self.unit if unit is None else unit
            self.done, self._first = 0, None
            self._began = self._started = _clock()

    def to(self, done: float, what: str | None = None) -> None:
        """Say that so many things are done; what was done at the first report was done before."""
        now = _clock()
        with _lock:
            if self._first is None:
                self._first, self._began = done, now
            self.done = done
            self.what = self.what if what is None else what
            if self.on_terminal:
                if now - self._drawn >= _REDRAW_SECONDS:
                    self._draw()
            elif self._log_every is not None and now - self._drawn >= self._log_every:
                self._drawn = now
                print(f"{printable(self.what)}  {self.facts()}", file=sys.stderr, flush=True)

    def report(self, done: float, total: float) -> None:
        """`to`, for work that learns only by and by how much there is."""
        self.total = total
        self.to(done)

    def add(self, more: float = 1) -> None:
        """Say that so many more things are done."""
        if self._first is None:
            self._first = 0.0
        self.to(self.done + more)

    def close(self) -> None:
        """Clear the line, and print plainly from now on."""
        self._over.set()
        with _lock:
            self._hide()
            self._streams.close()
            if self in _open:
                _open.remove(self)
            self._stream = None

    def facts(self) -> str:
        """Return count, rate and the time left, in words."""
        passed = _clock() - self._began
        new = self.done - (self._first or 0.0)
        rate = new / passed if passed > 0 and new > 0 else 0.0
        words = []
        if self.unit:
            words.append(_counted(self.done, self.total, self.unit))
            if rate:
                words.append(_rate(rate, self.unit))
        if rate and self.total:
            words.append(f"{_clock_time(max(self.total - self.done, 0) / rate)} left")
        if not self.unit and not self.total:
            words.append(_clock_time(passed))
        return "  ".join(words)

    # ---- the line on a terminal ----

    def _open(self, stream: TextIO) -> None:
        if not stream.isatty():
            return
        with _lock:
            for outer in _open:
                outer._hide()
            self._stream = stream if not isinstance(stream, _Above) else stream.stream
            _open.append(self)
            for name in ("stdout", "stderr"):
                self._streams.enter_context(_above(name))
        if DELAY <= 0:
            self._draw()
        if self._ticking:
            threading.Thread(target=self._tick, daemon=True).start()

    def _tick(self) -> None:
        while not self._over.wait(max(_REDRAW_SECONDS, 0.05)):
            with _lock:
                if not self._over.is_set():
                    self._draw()

    def _draw(self) -> None:
        """Draw the line, if it is time and nothing inner has it."""
        now = _clock()
        if self._stream is None or _open[-1] is not self or now - self._started < DELAY:
            return
        if self._bar is None:
            self._bar = _bar(self._stream)
        self._drawn = now
        bar, total = self._bar, self.total
        bar.set_description_str(printable(self.what)[:_LONGEST_NAME], refresh=False)
        bar.total, bar.n = total, min(self.done, total) if total else self.done
        bar.ncols, bar.pos = _columns(self._stream), 0
        bar.bar_format = "{desc}  {percentage:3.0f}% |{bar:20}| " if total else "{desc}  "
        bar.bar_format += self.facts().replace("{", "{{").replace("}", "}}")
        with contextlib.suppress(OSError, ValueError):  # the terminal has gone
            bar.refresh()

    def _hide(self) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self._bar.clear()
                self._bar.close()
            self._bar = None


def _is_first_process() -> bool:
    """Whether this is the first of several processes (torchrun), or the only one."""
    return os.environ.get("RANK", "0") == "0"


def _bar(stream: TextIO) -> Any:
    """A line of tqdm's, which draws nothing before it is told to."""
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # its thread would draw, too
    return tqdm(total=1, file=stream, leave=False, ncols=80, delay=1e-9)


def _columns(stream: TextIO) -> int:
    """Columns of a terminal, but for the last, which makes some wrap; 79 where it has no size."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return (os.get_terminal_size(stream.fileno()).columns or 80) - 1
    return 79


def counted(things: Iterable[T], what: str, total: int, *, unit: str) -> Iterator[T]:
    """Yield the things, and show how many there were."""
    with Progress(what, total, unit=unit) as progress:
        for done, thing in enumerate(things):
            progress.to(done)
            yield thing


# ---- what is printed meanwhile ------------------------------------------------------------------


class _Above:
    """A stream on whose terminal the line is: whole lines are written above it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._rest = ""
        self._owner = os.getpid()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write what ends a line at once, the rest with what follows."""
        if os.getpid() != self._owner:  # a forked process: the line, and its lock, are not its own
            return self.stream.write(text)
        with _lock:
            whole, end, self._rest = (self._rest + text).rpartition("\n")
            if end:
                self._print(whole + end)
        return len(text)

    def flush(self) -> None:
        """Whole lines have been flushed already."""

    def end(self) -> None:
        """Write what is left."""
        rest, self._rest = self._rest, ""
        if rest:
            self._print(rest)

    def _print(self, text: str) -> None:
        if _open:
            _open[-1]._hide()
        self.stream.write(text)
        self.stream.flush()


@contextlib.contextmanager
def _above(name: str) -> Iterator[None]:
    """Let what is printed on a stream of sys appear above the line, where it is a terminal."""
    stream = getattr(sys, name)
    if stream is None or isinstance(stream, _Above) or not stream.isatty():
        yield
        return
    replaced = _Above(stream)
    setattr(sys, name, replaced)
    try:
        yield
    finally:
        if getattr(sys, name) is replaced:
            setattr(sys, name, stream)
        replaced.end()


# ---- words --------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Return a duration as `1 day, 4:10:00`; below a minute as seconds."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    return str(timedelta(seconds=round(seconds)))


def _clock_time(seconds: float) -> str:
    """A duration as 00:28, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def _counted(done: float, total: float | None, unit: str) -> str:
    if unit == "B":
        return f"{done / 1e6:,.1f}" + ("" if total is None else f"/{total / 1e6:,.1f}") + " MB"
    return f"{int(done):,}" + ("" if total is None else f"/{int(total):,}") + f" {unit}"


def _rate(rate: float, unit: str) -> str:
    """Things a second; a minute, where these are few."""
    if unit == "B":
        return f"{rate / 1e6:,.1f} MB/s"
    if rate < 0.1:
        return f"{rate * 60:.2g} {unit}/min"
    return f"{rate:,.0f} {unit}/s" if rate >= 100 else f"{rate:.2g} {unit}/s"
