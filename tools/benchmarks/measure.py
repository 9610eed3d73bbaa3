"""Timing: contenders take turns, medians of neighbouring measurements, the machine's own peak.

Machines are noisy, so contenders take turns, measurement by measurement, on the same input; the
median is reported with the spread beside it, and a ratio is the median of the ratios of
neighbouring measurements.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F

SHORTEST = 0.05
"""Seconds that one measurement should last at least: a quicker call is repeated within it."""

MOST_CALLS = 200
"""Calls within one measurement, at most."""

WARM_UP_CALLS = {"cpu": 1, "cuda": 3}
"""Uncounted calls before the first round: a GPU picks its kernels and raises its clock in them."""


class GaveUp(Exception):
    """A contender cannot do what it was asked to; its message goes into the table."""


@dataclass
class Contender:
    """One thing to time: a function without arguments, and what to say about it."""

    facts: dict[str, Any]
    """Columns of its row, such as {"model": ..., "implementation": ..., "dtype": ...}."""
    run: Callable[[], Any]
    """One call. It may launch work on the device without waiting for it."""
    samples: float = 1
    """Clips (files, frames) that one call handles."""
    gmacs: float | None = None
    """Multiply-adds of one call, in units of 1e9; None where nobody counts them."""
    parts: Callable[[], dict[str, float]] | None = None
    """Seconds of each part of the last call, read after every measurement."""
    seconds: list[float] = field(default_factory=list)
    """One call's duration, by measurement."""
    part_seconds: list[dict[str, float]] = field(default_factory=list)
    """The same, by part."""
    first_seconds: float | None = None
    """Duration of the very first call: with a compiled model, mostly the compilation."""
    calls: int = 1
    """Calls in one measurement."""
    failed: str = ""
    """Why it was given up, such as "out of memory"."""

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
    contenders: Sequence[Contender],
    *,
    repeats: int,
    device: torch.device,
    after_round: Callable[[], None] | None = None,
) -> None:
    """Time each contender `repeats` times, taking turns, after warming all of them up.

    `after_round` is called after the warm-up and after each round, such as to look at the machine.

    A contender that runs out of the device's memory, or raises `GaveUp`, is out (`failed` says
    so), the others go on. An interrupt leaves what was measured in the contenders.
    """
    try:
        for i, contender in enumerate(contenders):
            progress(f"warm-up {i + 1}/{len(contenders)}")
            _or_out(contender, warm_up, contender, device)
        if after_round is not None:
            after_round()
        for round_number in range(repeats):
            for contender in contenders:
                if not contender.failed:
                    _or_out(contender, measure, contender, device)
            progress(f"round {round_number + 1}/{repeats}")
            if after_round is not None:
                after_round()
    finally:
        progress("")


def warm_up(contender: Contender, device: torch.device) -> None:
    """First calls, uncounted; they also say how many calls make one measurement."""
    contender.first_seconds = seconds_per_call(contender.run, device=device)
    latest = contender.first_seconds
    for _ in range(WARM_UP_CALLS[device.type] - 1):
        latest = seconds_per_call(contender.run, device=device)
    if latest < SHORTEST:
        latest = min(latest, seconds_per_call(contender.run, device=device))
    contender.calls = min(MOST_CALLS, max(1, math.ceil(SHORTEST / max(latest, 1e-9))))


def measure(contender: Contender, device: torch.device) -> None:
    """One measurement: `calls` calls in a row, their mean.

    On a GPU after one more, uncounted: where memory is tight, the allocator first has to take back
    what it held for the contender before.
    """
    if device.type == "cuda":
        contender.run()
    seconds = seconds_per_call(contender.run, device=device, calls=contender.calls)
    contender.seconds.append(seconds)
    if contender.parts is not None:
        contender.part_seconds.append(contender.parts())


def seconds_per_call(run: Callable[[], Any], *, device: torch.device, calls: int = 1) -> float:
    """Mean duration of `calls` calls in a row, the device's work included.

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
    """Let the device finish: kernels are launched without waiting."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def progress(text: str) -> None:
    """One line that overwrites itself, on a terminal only; "" wipes it."""
    if sys.stderr.isatty():
        print(f"\r{text:<70}", end="\r" if not text else "", file=sys.stderr, flush=True)


def _or_out(contender: Contender, step: Callable[..., None], *arguments: Any) -> None:
    try:
        step(*arguments)
    except torch.OutOfMemoryError:
        contender.failed = "out of memory"
    except GaveUp as reason:
        contender.failed = str(reason)
    if contender.failed:  # outside the handlers, whose tracebacks hold the tensors
        torch.cuda.empty_cache()


# ---- what comes of it ---------------------------------------------------------------------------


def ratio_of(contender: Contender, reference: Contender | None) -> float | None:
    """How many times more samples per second than the reference: the median over rounds.

    None without a reference, or where either was not measured.
    """
    if reference is None or not contender.seconds or not reference.seconds:
        return None
    pairs = zip(reference.seconds, contender.seconds, strict=False)  # one may be interrupted
    per_sample = contender.samples / reference.samples
    return statistics.median(per_sample * theirs / mine for theirs, mine in pairs)


def row_of(contender: Contender, *, peak: float | None = None) -> dict[str, Any]:
    """The contender's facts and measurements, ready for a table and for JSON.

    Args:
        peak: the machine's peak in 1e9 multiply-adds per second, for `of_peak` and `floor_ms`.
    """
    row = {**contender.facts, "samples": contender.samples, "repeats": len(contender.seconds)}
    if contender.failed:
        row["failed"] = contender.failed
    if contender.gmacs is not None:
        row["gmacs"] = contender.gmacs
    if contender.gmacs is not None and peak:
        row["floor_ms"] = 1e3 * contender.gmacs / peak
    if not contender.seconds:
        return row
    row |= {
        "ms": 1e3 * contender.median,
        "ms_min": 1e3 * min(contender.seconds),
        "ms_max": 1e3 * max(contender.seconds),
        "samples_per_s": contender.samples_per_s,
        "seconds": list(contender.seconds),
        "calls": contender.calls,
    }
    if contender.gmacs is not None:
        row["gmacs_per_s"] = contender.gmacs / contender.median
        if peak:
            row["of_peak"] = row["gmacs_per_s"] / peak
    if contender.part_seconds:
        row["parts_ms"] = median_parts(contender.part_seconds)
    return row


def median_parts(measurements: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each part, in milliseconds."""
    return {
        part: 1e3 * statistics.median(m[part] for m in measurements if part in m)
        for part in measurements[0]
    }


def measured(contenders: Iterable[Contender]) -> list[Contender]:
    """Those with something to report: a measurement, or a reason why there is none."""
    return [c for c in contenders if c.seconds or c.failed]


# ---- the machine's peak -------------------------------------------------------------------------

SHAPES = {
    "cpu": ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 1024, 4096), (6272, 768, 3072)),
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 4096, 4096), (25088, 1152, 4608)),
}
"""Rows, inner length and columns of the products tried: squares, and linear layers of models."""

LONGEST_PRODUCT = 3.0
"""Seconds; where a number format is emulated, larger products would take minutes."""


class Peak:
    """The fastest matrix product seen on this machine, per number format.

    One size is not honest: a product that fits the caches badly, or a moment of other work, would
    flatter every model. So several shapes, each several times, and again whenever `look` is
    called: before the contenders and after each of their rounds.
    """

    def __init__(self, device: torch.device, dtypes: dict[str, torch.dtype]) -> None:
        self.device, self.dtypes = device, dict(dtypes)
        self.by_shape: dict[torch.dtype, dict[str, float]] = {d: {} for d in dtypes.values()}

    def look(self, *, times: int = 3) -> None:
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
        """1e9 multiply-adds per second, of the best shape."""
        return max(self.by_shape[self.dtypes[name]].values())

    def line(self) -> str:
        """For people."""
        told = [f"{name} {facts['gmacs_per_s']:,.0f}" for name, facts in self.facts().items()]
        return f"best matrix product, G multiply-adds/s: {', '.join(told)}"

    def facts(self) -> dict[str, Any]:
        """For JSON: the peak and every shape's best."""
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
            contender = Contender({}, run=lambda: F.linear(x, weight))
            warm_up(contender, self.device)
            for _ in range(times if contender.first_seconds < LONGEST_PRODUCT else 1):
                measure(contender, self.device)
        return min(contender.seconds)
