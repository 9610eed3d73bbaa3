"""The time of a call by stage: wall time and CPU time."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up seconds by stage. Stages may be nested: an inner one is not counted to the outer.

    with watch("crop"):
        with watch("decode"):
            ...
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        """Stage -> wall seconds since `reset`."""
        self.cpu_seconds: dict[str, float] = defaultdict(float)
        """Stage -> CPU seconds of all threads of this process."""
        self._stages: list[str] = []
        self._mark = (0.0, 0.0)

    def reset(self) -> None:
        """Set all stages to zero."""
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
