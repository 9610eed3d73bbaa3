"""Comparing cases: choose batches, time in turns, measure memory, make rows.

Shared by `model`, `ladder` and `pretrain`.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from hiera_video.benchmarks import measure, memory, tables
from hiera_video.benchmarks.machine import PURE
from hiera_video.benchmarks.measure import Candidate, CannotMeasure
from hiera_video.benchmarks.memory import Memory
from hiera_video.benchmarks.options import BEST
from hiera_video.benchmarks.steps import Case, CaseBuilder
from hiera_video.benchmarks.tables import Column
from hiera_video.errors import UserError

GAIN = 1.02
"""A larger batch is better if it gives this many times the clips per second."""

MOST_CLIPS = 4096
"""The largest batch that a sweep tries."""

SHARE_OF_MEMORY = 0.8
"""Share of a CPU's free memory that a sweep may fill: running out would end the process."""


COUNTS = (
    Column("GMAC", "gmacs", ".1f"),
    Column("GMAC/s", "gmacs_per_s", ",.0f"),
    Column("of peak", tables.percent("of_peak")),
    Column("floor ms", "floor_ms", ".1f"),
)
"""Multiply-adds of a call, their rate, that rate over the peak, and the time at the peak."""

MEMORY = Column("peak MiB", tables.mebibytes("peak_memory"))


# ---- command line -------------------------------------------------------------------------------


def check(args: argparse.Namespace) -> None:
    """UserError for options that exclude each other."""
    if BEST in args.batch and len(args.batch) > 1:
        raise UserError(f"--batch {' '.join(map(str, args.batch))}: numbers, or best alone")
    if args.input_size is not None and len(args.input_size) not in (2, 3):
        raise UserError(
            f"--input-size {' '.join(map(str, args.input_size))}: frames height width of clips, "
            "height width of images"
        )


def settings(
    args: argparse.Namespace, dtypes: Sequence[str], modes: Sequence[str]
) -> list[dict[str, Any]]:
    """Fields of `Case` for every combination asked for, eager before compiled.

    The batch is still "best" where it is chosen later.
    """
    compiled = ("", args.compile) if args.compile else ("",)
    combinations: list[dict[str, Any]] = []
    for mode, dtype in itertools.product(modes, dtypes):
        if mode == "train" and dtype.endswith(PURE):
            print(f"{dtype}: left out in training, where weights stay in float32")
            continue
        for attention, compiling, batch in itertools.product(args.attention, compiled, args.batch):
            combinations.append(
                {
                    "mode": mode,
                    "dtype": dtype,
                    "attention": attention,
                    "compiled": compiling,
                    "batch": batch,
                    "optimizer": args.optimizer and mode == "train",
                }
            )
    return combinations


# ---- the comparison -----------------------------------------------------------------------------


class Comparison:
    """The cases of one comparison; `candidates` always holds what was measured so far.

    Args:
        builder: builds the cases.
        args: the options of `options.add_model_options`.
        peak: updated after every round, so that it is taken under the same conditions.
    """

    def __init__(self, builder: CaseBuilder, args: argparse.Namespace, peak: measure.Peak) -> None:
        self.builder, self.args, self.device, self.peak = builder, args, builder.device, peak
        self.candidates: list[Candidate] = []
        self.case_of: dict[int, Case] = {}
        self._best: dict[Case, int] = {}

    def run(self, cases: Sequence[Case]) -> None:
        """Choose batches, build, time in turns, measure memory."""
        for case in cases:
            self._add(case)
        measure.interleave(
            self.candidates,
            repeats=self.args.repeats,
            device=self.device,
            after_round=lambda: self.peak.update(times=1),
        )
        for candidate in self.candidates:
            if candidate.facts.get("compiled") and candidate.first_seconds and candidate.seconds:
                candidate.facts["compile_s"] = candidate.first_seconds - candidate.median
        if self.args.memory:
            for candidate in self.candidates:
                self._add_memory(candidate)

    def rows(self) -> list[tables.Row]:
        """One row for each candidate that was measured or failed."""
        return [
            measure.row_of(c, peak=self.peak[c.facts["dtype"]])
            for c in measure.measured(self.candidates)
        ]

    def find(self, like: Candidate, **facts: object) -> Candidate | None:
        """The candidate with these facts and otherwise the setting of `like`; None: there is none.

        Batches may differ where each candidate has its best.
        """
        wanted = {key: like.facts.get(key) for key in ("mode", "dtype", "attention", "optimizer")}
        if BEST not in self.args.batch:
            wanted["batch"] = like.facts.get("batch")
        wanted |= facts
        for candidate in self.candidates:
            if all(candidate.facts.get(key) == value for key, value in wanted.items()):
                return candidate
        return None

    def _add(self, case: Case) -> None:
        """Build a case and add it to the candidates."""
        measure.progress(f"building {case.name}, {case.implementation}")
        tried = None
        if str(case.batch) == BEST:
            case, tried = self._with_best_batch(case)
        candidate = self.builder.candidate(case)
        if tried:
            candidate.facts["sweep"] = tried
        self.case_of[id(candidate)] = case
        self.candidates.append(candidate)

    # ---- batches --------------------------------------------------------------------------------

    def _with_best_batch(self, case: Case) -> tuple[Case, list[dict[str, float]] | None]:
        """The case at its best batch, and the rates of all batches tried now.

        A compiled case uses the best batch of the eager one.
        """
        eager = replace(case, compiled="")
        tried = None
        if eager not in self._best:
            tried = self._sweep(eager)
            best = max(tried, key=lambda rate: rate["samples_per_s"]) if tried else {"batch": 1}
            self._best[eager] = int(best["batch"])
        return replace(case, batch=self._best[eager]), tried

    def _sweep(self, case: Case) -> list[dict[str, float]]:
        """Clips per second at batch 1, 2, 4, ... until they stop growing or memory is full."""
        fits = self._fits(case)
        tried: list[dict[str, float]] = []
        best, since = 0.0, 0
        batch = 1
        while batch <= MOST_CLIPS and since < 2 and fits(batch):
            rate = self._rate(replace(case, batch=batch))
            if rate is None:
                break
            tried.append({"batch": batch, "samples_per_s": rate})
            since = 0 if rate > best * GAIN else since + 1
            best = max(best, rate)
            batch *= 2
        return tried

    def _rate(self, case: Case) -> float | None:
        """Clips per second at one batch, from three measurements; None: it does not fit."""
        measure.progress(f"batch {case.batch} of {case.name}, {case.implementation}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            candidate = self.builder.candidate(case)
        except torch.OutOfMemoryError:  # the input alone is too large
            return None
        measure.interleave([candidate], repeats=3, device=self.device)
        self.builder.forget_clips(case)
        if candidate.failed or not candidate.seconds:
            return None
        return case.batch / candidate.median

    def _fits(self, case: Case) -> Callable[[int], bool]:
        """A function that says whether a batch can be tried.

        On a GPU always: it reports that it is out of memory. On a CPU the process would be ended,
        so the memory of a batch is estimated from that of one clip.
        """
        if self.device.type == "cuda":
            return lambda batch: True
        try:
            one = memory.cpu_memory(replace(case, batch=1), imports=self.args.imports)
        except CannotMeasure:
            one = None
        if one is None:
            return lambda batch: batch == 1
        return lambda batch: one.of_batch(batch) < SHARE_OF_MEMORY * memory.available()

    # ---- memory ---------------------------------------------------------------------------------

    def _add_memory(self, candidate: Candidate) -> None:
        """Measure the peak memory of a candidate and add it to the facts."""
        case = self.case_of[id(candidate)]
        try:
            used = self._memory(candidate, case)
        except CannotMeasure as reason:
            candidate.facts["memory_failed"] = str(reason)
            return
        if used is not None:
            candidate.facts |= {"peak_memory": used.peak, "memory_before": used.before}

    def _memory(self, candidate: Candidate, case: Case) -> Memory | None:
        if candidate.failed:
            return None
        if self.device.type == "cuda":
            module = self.builder.module(case)
            return memory.gpu_memory(candidate, module, self.device, optimizer=case.optimizer)
        if case.compiled:
            return None  # most of it would be the compiler's own memory
        return memory.cpu_memory(case, imports=self.args.imports)
