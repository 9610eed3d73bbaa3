"""Where the time of one call goes, by stage, on the clock and on the processor."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up seconds by stage. Stages may lie inside each other: an inner one's are not counted to
    the outer.

        with watch("crop"):
            with watch("decode"):
                ...
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        """Stage -> seconds on the clock since `reset`."""
        self.cpu_seconds: dict[str, float] = defaultdict(float)
        """Stage -> seconds of this process's threads together."""
        self._stages: list[str] = []
        self._mark = (0.0, 0.0)

    def reset(self) -> None:
        """Begin anew."""
        self.seconds.clear()
        self.cpu_seconds.clear()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._charge()
        self._stages.append(stage)
        try:
            yield
        finally:
            self._charge()
            self._stages.pop()

    def _charge(self) -> None:
        now = (time.perf_counter(), time.process_time())
        if self._stages:
            self.seconds[self._stages[-1]] += now[0] - self._mark[0]
            self.cpu_seconds[self._stages[-1]] += now[1] - self._mark[1]
        self._mark = now
