"""Timing in rounds: medians, ratios of neighbouring measurements, and the machine's own peak.

Machines are noisy, so what is compared (the candidates) takes turns, measurement by measurement, on
the same input; the median is reported with the spread beside it, and a ratio is the median of the
ratios of neighbouring measurements.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F

from hiera_video.progress import Progress

SHORTEST = 0.05
"""Seconds that one measurement should last at least: a quicker call is repeated within it."""

MOST_CALLS = 200
"""Calls within one measurement, at most."""

WARM_UP_CALLS = {"cpu": 1, "cuda": 3}
"""Uncounted calls before the first round: a GPU picks its kernels and raises its clock in them."""


class CannotMeasure(Exception):
    """A candidate cannot run in this setting; the message goes into its row of the table."""


@dataclass
class Candidate:
    """One thing to time: a function without arguments, with its facts and measurements."""

    facts: dict[str, Any]
    """Columns of its row, such as {"model": ..., "implementation": ..., "dtype": ...}."""
    run: Callable[[], Any]
    """One call. It may launch work on the device without waiting for it."""
    samples: float = 1
    """Clips (files, frames) that one call handles."""
    gmacs: float | None = None
    """Multiply-adds of one call, in units of 1e9; None where they are not counted."""
    parts: Callable[[], dict[str, float]] | None = None
    """Returns the seconds of each part of the last call; read after every measurement."""
    seconds: list[float] = field(default_factory=list)
    """One call's duration, by measurement."""
    part_seconds: list[dict[str, float]] = field(default_factory=list)
    """The same, by part."""
    first_seconds: float | None = None
    """Duration of the very first call: with a compiled model, mostly the compilation."""
    calls: int = 1
    """Calls in one measurement."""
    failed: str = ""
    """Why it cannot be measured, such as "out of memory"; empty: it can."""

    @property
    def median(self) -> float:
        """Seconds of one call."""
        return statistics.median(self.seconds)

    @property
    def samples_per_s(self) -> float:
        """Samples of one call over its median."""
        return self.samples / self.median


# ---- taking turns -------------------------------------------------------------------------------


def interleave(
    candidates: Sequence[Candidate],
    *,
    repeats: int,
    device: torch.device,
    after_round: Callable[[], None] | None = None,
) -> None:
    """Time each candidate `repeats` times, taking turns, after warming all of them up.

    A candidate that runs out of the device's memory, or raises `CannotMeasure`, is not measured any
    further (`failed` says why); the others are. An interrupt leaves what was measured in the
    candidates.

    Args:
        after_round: called after the warm-up and after each round, for example to measure the
            machine itself.
    """
    try:
        for i, candidate in enumerate(candidates):
            progress("warm-up", i, len(candidates), "candidates")
            _or_mark_failed(candidate, warm_up, candidate, device)
        if after_round is not None:
            after_round()
        for round_number in range(repeats):
            for candidate in candidates:
                if not candidate.failed:
                    _or_mark_failed(candidate, measure, candidate, device)
            progress("measured", round_number + 1, repeats, "rounds")
            if after_round is not None:
                after_round()
    finally:
        progress("")


def warm_up(candidate: Candidate, device: torch.device) -> None:
    """Make the first calls, uncounted; they also decide how many calls make one measurement."""
    candidate.first_seconds = seconds_per_call(candidate.run, device=device)
    latest = candidate.first_seconds
    for _ in range(WARM_UP_CALLS[device.type] - 1):
        latest = seconds_per_call(candidate.run, device=device)
    if latest < SHORTEST:
        latest = min(latest, seconds_per_call(candidate.run, device=device))
    candidate.calls = min(MOST_CALLS, max(1, math.ceil(SHORTEST / max(latest, 1e-9))))


def measure(candidate: Candidate, device: torch.device) -> None:
    """Take one measurement: the mean of `calls` calls in a row.

    On a GPU after one uncounted call: where memory is tight, the allocator first has to free what
    it held for the candidate before.
    """
    if device.type == "cuda":
        candidate.run()
    seconds = seconds_per_call(candidate.run, device=device, calls=candidate.calls)
    candidate.seconds.append(seconds)
    if candidate.parts is not None:
        candidate.part_seconds.append(candidate.parts())


def seconds_per_call(run: Callable[[], Any], *, device: torch.device, calls: int = 1) -> float:
    """Mean seconds of `calls` calls in a row, the device's work included.

    On a GPU between two of its events: calls are queued without waiting, as in real use.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.device(device):
            start.record()
            for _ in range(calls):
                run()
            end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / calls
    began = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - began) / calls


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished: kernels are launched without waiting."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


_shown: list[Progress] = []
"""What `progress` has on the terminal: one piece of work, or none."""


def progress(what: str, done: int = 0, total: int | None = None, unit: str = "") -> None:
    """Show what is being measured; "" ends it. Nothing is drawn between two calls: a thread that
    draws would be measured, too."""
    if not what:
        while _shown:
            _shown.pop().close()
        return
    if not _shown:
        _shown.append(Progress(what, total, unit=unit, ticking=False).__enter__())
    (shown,) = _shown
    if (shown.total, shown.unit) != (total, unit):
        shown.begin(what, total, unit=unit)
    shown.to(done, what)


_LAUNCH_ERROR = re.compile(r"CUDA error: invalid (configuration|argument)")
"""A kernel that cannot be launched for this size. Unlike other CUDA errors it leaves the card
usable: the other sizes can still be measured."""


def _or_mark_failed(candidate: Candidate, step: Callable[..., None], *arguments: Any) -> None:
    """Run a step of a candidate's measurement; where it cannot be measured, note why."""
    try:
        step(*arguments)
    except torch.OutOfMemoryError:
        candidate.failed = "out of memory"
    except CannotMeasure as reason:
        candidate.failed = str(reason)
    except RuntimeError as error:
        if not _LAUNCH_ERROR.match(str(error)):
            raise
        candidate.failed = str(error).splitlines()[0]
    if candidate.failed:  # outside the handlers, whose tracebacks hold the tensors
        torch.cuda.empty_cache()


# ---- results ------------------------------------------------------------------------------------


def ratio_of(candidate: Candidate, reference: Candidate | None) -> float | None:
    """Samples per second over those of the reference: the median over rounds.

    None without a reference, or where either was not measured.
    """
    if reference is None or not candidate.seconds or not reference.seconds:
        return None
    pairs = zip(reference.seconds, candidate.seconds, strict=False)  # unequal after an interrupt
    per_sample = candidate.samples / reference.samples
    return statistics.median(per_sample * theirs / mine for theirs, mine in pairs)


def row_of(candidate: Candidate, *, peak: float | None = None) -> dict[str, Any]:
    """The row of a candidate for a table and for JSON: its facts and measurements.

    Args:
        peak: the machine's peak in 1e9 multiply-adds per second, for `of_peak` and `floor_ms`.
    """
    row = {**candidate.facts, "samples": candidate.samples, "repeats": len(candidate.seconds)}
    if candidate.failed:
        row["failed"] = candidate.failed
    if candidate.gmacs is not None:
        row["gmacs"] = candidate.gmacs
    if candidate.gmacs is not None and peak:
        row["floor_ms"] = 1e3 * candidate.gmacs / peak
    if not candidate.seconds:
        return row
    row |= {
        "ms": 1e3 * candidate.median,
        "ms_min": 1e3 * min(candidate.seconds),
        "ms_max": 1e3 * max(candidate.seconds),
        "samples_per_s": candidate.samples_per_s,
        "seconds": list(candidate.seconds),
        "calls": candidate.calls,
    }
    if candidate.gmacs is not None:
        row["gmacs_per_s"] = candidate.gmacs / candidate.median
        if peak:
            row["of_peak"] = row["gmacs_per_s"] / peak
    if candidate.part_seconds:
        row["parts_ms"] = median_parts(candidate.part_seconds)
    return row


def median_parts(measurements: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each part, in milliseconds."""
    return {
        part: 1e3 * statistics.median(m[part] for m in measurements if part in m)
        for part in measurements[0]
    }


def measured(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates with a measurement, or with a reason why there is none."""
    return [c for c in candidates if c.seconds or c.failed]


# ---- the machine's peak -------------------------------------------------------------------------

SHAPES = {
    "cpu": ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 1024, 4096), (6272, 768, 3072)),
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 4096, 4096), (25088, 1152, 4608)),
}
"""Rows, inner length and columns of the products: squares, and linear layers of models."""

LONGEST_PRODUCT = 3.0
"""Seconds; where a number format is emulated, larger products than this would take minutes."""


class Peak:
    """The fastest matrix product measured on this machine, per number format.

    One measurement is not enough: a shape that fits the caches badly, or other work on the machine,
    would make every model look better than it is. So several shapes are measured several times,
    and again with every `update`: before the candidates and after each of their rounds.
    """

    def __init__(self, device: torch.device, dtypes: dict[str, torch.dtype]) -> None:
        self.device, self.dtypes = device, dict(dtypes)
        self.by_shape: dict[torch.dtype, dict[str, float]] = {d: {} for d in dtypes.values()}

    def update(self, *, times: int = 3) -> None:
        """Measure every shape in every format, and keep what is faster than before."""
        for dtype, best in self.by_shape.items():
            progress(f"matrix products, {dtype}")
            pace = 0.0  # 1e9 multiply-adds per second so far
            for shape in SHAPES[self.device.type]:
                gmacs = math.prod(shape) / 1e9
                if pace and gmacs / pace > LONGEST_PRODUCT:
                    continue
                rate = gmacs / self._best_seconds(shape, dtype, times=times)
                pace = max(pace, rate)
                key = "x".join(map(str, shape))
                best[key] = max(best.get(key, 0.0), rate)
        progress("")

    def __getitem__(self, name: str) -> float:
        """1e9 multiply-adds per second of the fastest shape, in a format by its name ("bf16")."""
        return max(self.by_shape[self.dtypes[name]].values())

    def line(self) -> str:
        """The peaks in one line, for the notes."""
        rates = [f"{name} {facts['gmacs_per_s']:,.0f}" for name, facts in self.facts().items()]
        return f"best matrix product, G multiply-adds/s: {', '.join(rates)}"

    def facts(self) -> dict[str, Any]:
        """The peaks for JSON: of every format the fastest rate, and the best of every shape."""
        return {
            str(dtype).removeprefix("torch."): {
                "gmacs_per_s": max(shapes.values()),
                "by_shape": shapes,
            }
            for dtype, shapes in self.by_shape.items()
            if shapes
        }

    def _best_seconds(
        self, shape: tuple[int, int, int], dtype: torch.dtype, *, times: int
    ) -> float:
        rows, inner, columns = shape
        x = torch.randn(rows, inner, device=self.device).to(dtype)
        weight = torch.randn(columns, inner, device=self.device).to(dtype)
        with torch.inference_mode():
            candidate = Candidate({}, run=lambda: F.linear(x, weight))
            warm_up(candidate, self.device)
            first = candidate.first_seconds
            assert first is not None  # it was just warmed up
            for _ in range(times if first < LONGEST_PRODUCT else 1):
                measure(candidate, self.device)
        return min(candidate.seconds)
