"""How fast a run is, how much memory it takes, and how both are written for people."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections import deque
from collections.abc import Iterator

import torch


class StepTimer:
    """Speed over the last `window` steps: seconds a step, seconds of waiting for data, clips/s."""

    def __init__(self, window: int = 50) -> None:
        self._steps: deque[tuple[float, float, int]] = deque(maxlen=window)
        self._mark, self._waited = time.perf_counter(), 0.0

    def restart(self) -> None:
        """Start a step now: the time since the last one (evaluation, saving) is not counted."""
        self._mark, self._waited = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure the block as waiting for data."""
        began = time.perf_counter()
        yield
        self.waited(time.perf_counter() - began)

    def waited(self, seconds: float) -> None:
        """Count so many seconds of this step as waiting for data."""
        self._waited += seconds

    def step_done(self, clips: int) -> None:
        """End the step, which had `clips` clips, and start the next."""
        now = time.perf_counter()
        self._steps.append((now - self._mark, self._waited, clips))
        self._mark, self._waited = now, 0.0

    @property
    def seconds(self) -> float:
        """Mean seconds of a step."""
        return sum(s[0] for s in self._steps) / max(len(self._steps), 1)

    @property
    def data_seconds(self) -> float:
        """Mean seconds of a step that were waiting for data."""
        return sum(s[1] for s in self._steps) / max(len(self._steps), 1)

    @property
    def clips_per_second(self) -> float:
        """Clips a second, of this process alone."""
        return sum(s[2] for s in self._steps) / max(sum(s[0] for s in self._steps), 1e-9)


def format_duration(seconds: float) -> str:
    """Format seconds as `0:07:31` or `3 days, 4:10:00`; nan and inf as `unknown`."""
    if not math.isfinite(seconds):
        return "unknown"
    whole = int(seconds + 0.5)
    days, rest = divmod(whole, 86400)
    text = f"{rest // 3600}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days} day{'s' * (days != 1)}, {text}" if days else text


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of PyTorch's allocator on a GPU, of the process on a CPU.

    0 where the system does not tell (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def format_gib(number: float) -> str:
    """Format bytes as GiB, `1.25G`, as SlowFast's logs do."""
    return f"{number / 2**30:.2f}G"
