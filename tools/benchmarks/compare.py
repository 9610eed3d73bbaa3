"""Cases against each other: batches chosen, turns taken, memory taken, rows made of it.

What `model`, `ladder` and `pretrain` share.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from benchmarks import machine, measure, memory, steps, tables
from benchmarks.machine import PURE
from benchmarks.measure import Contender, GaveUp
from benchmarks.memory import Memory
from benchmarks.steps import Case, Workbench
from benchmarks.tables import Column
from hiera_video.errors import UserError

BEST = "best"

GAIN = 1.02
"""A larger batch is better if it gives this many times the clips per second."""

MOST_CLIPS = 4096
"""The largest batch that a sweep tries."""

SHARE_OF_MEMORY = 0.8
"""Of what a CPU has left, that a sweep may fill: there, running out ends the process."""

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")

COUNTS = (
    Column("GMAC", "gmacs", ".1f"),
    Column("GMAC/s", "gmacs_per_s", ",.0f"),
    Column("of peak", tables.percent("of_peak")),
    Column("floor ms", "floor_ms", ".1f"),
)
"""Work done, how fast, as a share of the matrix product's rate, and how fast that rate would be."""

MEMORY = Column("peak MiB", tables.mebibytes("peak_memory"))


# ---- command line -------------------------------------------------------------------------------


def add_arguments(
    parser: argparse.ArgumentParser, *, attention: Sequence[str], modes: Sequence[str] | None
) -> None:
    """Options of every subcommand that calls models.

    Args:
        attention: what is measured when nobody says.
        modes: the same for forward and training step; None: there is no choice.
    """
    if modes is not None:
        parser.add_argument(
            "--modes",
            "--mode",
            nargs="+",
            choices=("forward", "train"),
            default=list(modes),
            help=f"evaluation, or forward and backward ({' '.join(modes)})",
        )
    parser.add_argument(
        "--batch",
        nargs="+",
        type=batch_size,
        default=[1],
        metavar="N",
        help="clips per call, one or several, or best: doubled until clips/s stops growing (1)",
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        default=[],
        metavar="DTYPE",
        help="fp32, bf16, fp16 (autocast), bf16-pure, fp16-pure (forward only; the weights too); "
        "default: those that this device computes natively",
    )
    parser.add_argument(
        "--attention",
        nargs="+",
        choices=tuple(steps.FORWARD),
        default=list(attention),
        help=f"fused, or as separate products ({' '.join(attention)})",
    )
    parser.add_argument(
        "--compile",
        nargs="?",
        const="default",
        choices=COMPILE_MODES,
        help="add compiled rows; the mode of torch.compile (default)",
    )
    parser.add_argument(
        "--optimizer", action="store_true", help="end training steps with AdamW's, fused"
    )
    parser.add_argument(
        "--input-size",
        nargs="+",
        type=machine.positive,
        metavar="N",
        help="(frames) height width, in the place of the models' own",
    )
    parser.add_argument(
        "--no-memory",
        dest="memory",
        action="store_false",
        help="do not measure peak memory, which on a CPU takes a process for each row",
    )
    machine.add_machine_arguments(parser)
    tables.add_output_arguments(parser)


def add_name_arguments(parser: argparse.ArgumentParser, *, usual: str, others: str) -> None:
    """Options for which models are measured.

    Args:
        usual: the model when nobody names one.
        others: help on the models beside it.
    """
    parser.add_argument("--names", nargs="+", default=[usual], metavar="NAME")
    parser.add_argument("--others", nargs="*", metavar="NAME", help=f"registered {others}")
    parser.add_argument(
        "--no-others", dest="others", action="store_const", const=[], help="none of those"
    )


def batch_size(text: str) -> int | str:
    """A number of clips, or "best", for argparse."""
    return BEST if text == BEST else machine.positive(text)


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
) -> list[dict[str, object]]:
    """Fields of `Case` for every combination asked for, eager before compiled.

    "best" is still the batch's where that is to be found out.
    """
    compiled = ("", args.compile) if args.compile else ("",)
    found = []
    for mode, dtype in itertools.product(modes, dtypes):
        if mode == "train" and dtype.endswith(PURE):
            print(f"{dtype}: left out in training, where weights stay in float32")
            continue
        for attention, compiling, batch in itertools.product(args.attention, compiled, args.batch):
            found.append(
                {
                    "mode": mode,
                    "dtype": dtype,
                    "attention": attention,
                    "compiled": compiling,
                    "batch": batch,
                    "optimizer": args.optimizer and mode == "train",
                }
            )
    return found


# ---- the race -----------------------------------------------------------------------------------


class Race:
    """The cases of one comparison; what was measured is in `contenders` at any time.

    Args:
        bench: builds them.
        args: the options of `add_arguments`.
        peak: looks at the machine in every round, so that it meets the same conditions.
    """

    def __init__(self, bench: Workbench, args: argparse.Namespace, peak: measure.Peak) -> None:
        self.bench, self.args, self.device, self.peak = bench, args, bench.device, peak
        self.contenders: list[Contender] = []
        self.case_of: dict[int, Case] = {}
        self._best: dict[Case, int] = {}

    def run(self, cases: Sequence[Case]) -> None:
        """Choose batches, build, take turns, measure memory."""
        for case in cases:
            self._enter(case)
        measure.interleave(
            self.contenders,
            repeats=self.args.repeats,
            device=self.device,
            after_round=lambda: self.peak.look(times=1),
        )
        for contender in self.contenders:
            if contender.facts.get("compiled") and contender.seconds:
                contender.facts["compile_s"] = contender.first_seconds - contender.median
        if self.args.memory:
            for contender in self.contenders:
                self._add_memory(contender)

    def rows(self) -> list[tables.Row]:
        """Rows of what was measured."""
        return [
            measure.row_of(c, peak=self.peak[c.facts["dtype"]])
            for c in measure.measured(self.contenders)
        ]

    def find(self, like: Contender, **facts: object) -> Contender | None:
        """The contender with these facts that is otherwise like another; None: there is none.

        Batches need not agree where each has its best.
        """
        wanted = {key: like.facts.get(key) for key in ("mode", "dtype", "attention", "optimizer")}
        if BEST not in self.args.batch:
            wanted["batch"] = like.facts.get("batch")
        wanted |= facts
        for contender in self.contenders:
            if all(contender.facts.get(key) == value for key, value in wanted.items()):
                return contender
        return None

    def _enter(self, case: Case) -> None:
        measure.progress(f"building {case.name}, {case.implementation}")
        trail = None
        if case.batch == BEST:
            case, trail = self._with_best_batch(case)
        contender = self.bench.contender(case)
        if trail:
            contender.facts["sweep"] = trail
        self.case_of[id(contender)] = case
        self.contenders.append(contender)

    # ---- batches --------------------------------------------------------------------------------

    def _with_best_batch(self, case: Case) -> tuple[Case, list[dict[str, float]] | None]:
        """The case at its best batch, and what was tried; a compiled one takes the eager one's."""
        eager = replace(case, compiled="")
        trail = None
        if eager not in self._best:
            trail = self._sweep(eager)
            best = max(trail, key=lambda tried: tried["samples_per_s"]) if trail else {"batch": 1}
            self._best[eager] = int(best["batch"])
        return replace(case, batch=self._best[eager]), trail

    def _sweep(self, case: Case) -> list[dict[str, float]]:
        """Clips per second at 1, 2, 4, ... until they stop growing or memory ends."""
        fits = self._fits(case)
        trail: list[dict[str, float]] = []
        best, since = 0.0, 0
        batch = 1
        while batch <= MOST_CLIPS and since < 2 and fits(batch):
            rate = self._rate(replace(case, batch=batch))
            if rate is None:
                break
            trail.append({"batch": batch, "samples_per_s": rate})
            since = 0 if rate > best * GAIN else since + 1
            best = max(best, rate)
            batch *= 2
        return trail

    def _rate(self, case: Case) -> float | None:
        """Clips per second of one batch, from three measurements; None: it does not fit."""
        measure.progress(f"batch {case.batch} of {case.name}, {case.implementation}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            contender = self.bench.contender(case)
        except torch.OutOfMemoryError:  # already of the input
            return None
        measure.interleave([contender], repeats=3, device=self.device)
        self.bench.forget_clips(case)
        if contender.failed or not contender.seconds:
            return None
        return case.batch / contender.median

    def _fits(self, case: Case) -> Callable[[int], bool]:
        """Whether a batch can be tried at all: a GPU says so itself, a CPU is asked beforehand."""
        if self.device.type == "cuda":
            return lambda batch: True
        try:
            one = memory.cpu_memory(replace(case, batch=1), imports=self.args.imports)
        except GaveUp:
            one = None
        if one is None:
            return lambda batch: batch == 1
        return lambda batch: one.of_batch(batch) < SHARE_OF_MEMORY * memory.available()

    # ---- memory ---------------------------------------------------------------------------------

    def _add_memory(self, contender: Contender) -> None:
        case = self.case_of[id(contender)]
        try:
            found = self._memory(contender, case)
        except GaveUp as reason:
            contender.facts["memory_failed"] = str(reason)
            return
        if found is not None:
            contender.facts |= {"peak_memory": found.peak, "memory_before": found.before}

    def _memory(self, contender: Contender, case: Case) -> Memory | None:
        if contender.failed:
            return None
        if self.device.type == "cuda":
            module = self.bench.module(case)
            return memory.gpu_memory(contender, module, self.device, optimizer=case.optimizer)
        if case.compiled:
            return None  # the compiler's own memory would be most of it
        return memory.cpu_memory(case, imports=self.args.imports)
