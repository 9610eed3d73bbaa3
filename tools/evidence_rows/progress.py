"""Lines that say what is done and how long the rest will take, on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from hiera_video import progress
from hiera_video.engine.meters import format_duration

_SECONDS_BETWEEN = 10.0
"""Between two lines of one piece of work, where they cannot overwrite each other."""


class Progress:
    """Prints the progress of a list of jobs, and of the work inside a job."""

    def __init__(self) -> None:
        self._jobs: list[tuple[str, str]] = []
        self._done = 0
        self._seconds: dict[str, list[float]] = {}

    def expect(self, jobs: list[tuple[str, str]]) -> None:
        """Say what is to do: the row and the kind of each job, in order.

        Jobs of one row take about as long; of a row that was not seen yet, as others of its kind.
        """
        self._jobs = jobs

    def job_done(self, text: str, seconds: float) -> None:
        """Count a job as done and print a line about it."""
        for name in self._jobs[self._done]:
            self._seconds.setdefault(name, []).append(seconds)
        self._done += 1
        self.say(f"[{self._done}/{len(self._jobs)}] {text}; {self._left()}")

    def job_kept(self, text: str) -> None:
        """Count a job whose result is there from an earlier call."""
        self._jobs.pop(self._done)
        self.say(f"kept: {text}")

    def job_later(self) -> None:
        """Put a job that another call is doing to the end."""
        self._jobs.append(self._jobs.pop(self._done))

    def job_dropped(self) -> None:
        """Count out a job that cannot be done here."""
        self._jobs.pop(self._done)

    def say(self, line: str) -> None:
        """Print a line."""
        print(line, file=sys.stderr, flush=True)

    def _left(self) -> str:
        """The time that the remaining jobs take, in words."""
        means = {name: sum(times) / len(times) for name, times in self._seconds.items()}
        rest = self._jobs[self._done :]
        known = [means.get(row, means.get(kind)) for row, kind in rest]
        seconds = [mean for mean in known if mean is not None]
        more = "at least " if len(seconds) < len(rest) else ""
        return f"{more}{format_duration(sum(seconds))} left"

    @contextlib.contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Yield a function to call with the number of videos that were done since its last call."""
        with progress.Progress(what, total, unit="videos", log_every=_SECONDS_BETWEEN) as shown:
            yield shown.add
