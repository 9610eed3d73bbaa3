"""Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2: a run finishes its step, saves its state and ends.

Schedulers send SIGUSR1 or SIGUSR2 where they are told to warn a job before its time is over (Slurm:
--signal), and SIGTERM to one that must make room.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import types
from typing import Any

SIGNALS: tuple[signal.Signals, ...] = (
    *(signal.SIGINT, signal.SIGTERM),
    *(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)),
)
"""Signals that ask for a stop; Windows has fewer."""

taken_at: dict[int, float] = {}
"""Signal -> when a `Stop` last took it up, by the monotonic clock."""


class Stop:
    """A signal (`SIGNALS`) asks for a stop after the current step; a second Ctrl-C stops at once.

    A context manager. Outside of it, while there is nothing to save yet, the signals keep the
    handlers that they had.

    saved_code: the exit code of a run that was stopped by another signal than Ctrl-C, once its
    state is saved.
    """

    def __init__(self, saved_code: int = 0) -> None:
        self._saved_code = saved_code
        self.signal: int | None = None
        """The signal that this process received; None: none yet."""
        self.obeyed = False
        """Whether the run ended early because of a signal to this process or to another one."""
        self._previous: dict[int, Any] = {}
        self._process = os.getpid()

    @property
    def requested(self) -> bool:
        """Whether this process received a signal."""
        return self.signal is not None

    @property
    def name(self) -> str:
        """`Ctrl-C`, `SIGTERM`, ..., or `a signal to another process`."""
        if self.signal is None:
            return "a signal to another process"
        return "Ctrl-C" if self.signal == signal.SIGINT else signal.Signals(self.signal).name

    def exit_code(self, *, saved: bool) -> int:
        """Return `saved_code`, 0, for SIGTERM once the state is saved, because the scheduler's
        request was met. Otherwise 128 + the signal, as shells report it: 130 for Ctrl-C, 143 for
        SIGTERM.

        A process that received no signal itself returns `saved_code` once the state is saved: the
        process that did receive one reports it.
        """
        if saved and self.signal != signal.SIGINT:
            return self._saved_code
        return 128 + int(self.signal or signal.SIGINT)

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker inherited this handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif number == signal.SIGINT and self.requested:
            raise KeyboardInterrupt
        else:
            self.signal = number
            taken_at[number] = time.monotonic()
