"""`model`: forward pass and training step of registered models, beside other implementations.

Beside a Hiera stand hiera-transformer's and, for images, timm's, with the same weights and after a
check that they compute the same; beside the video model of size B also other models of its size,
for context.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from hiera_video.benchmarks import compare, machine, measure, memory, steps, tables
from hiera_video.benchmarks.compare import Comparison
from hiera_video.benchmarks.measure import Candidate
from hiera_video.benchmarks.steps import OURS, REFERENCE, TIMM, Case, CaseBuilder
from hiera_video.benchmarks.tables import Column, Row
from hiera_video.errors import UserError
from hiera_video.registry import MODEL_REGISTRY

OTHERS = {
    "hiera_base_16x224": ("torchvision_mvit_v2_s", "videomae_base_16x224"),
    "mae_hiera_base_16x224": ("mae_videomae_base_16x224",),
}
"""Model -> models of comparable size that are measured beside it by default."""

LIBRARIES = (REFERENCE, TIMM, "torchvision", "transformers")
"""Libraries whose versions are printed."""

COLUMNS = (
    Column("model", "name"),
    Column("implementation", lambda row: implementation(row)),
    Column("mode", "mode"),
    Column("dtype", "dtype"),
    Column("attention", "attention"),
    Column("compiled", "compiled"),
    Column("batch", "batch"),
    *tables.TIMES,
    Column("clips/s", "samples_per_s", ".3g"),
    *compare.COUNTS,
    compare.MEMORY,
    Column("compile s", "compile_s", ".0f"),
    Column("graph breaks", "graph_breaks"),
    Column("x ref", "ratio", ".2f"),
    Column("x ref fp32", "ratio_fp32", ".2f"),
    Column("x best ref", "ratio_best", ".2f"),
    Column("x timm", "ratio_timm", ".2f"),
)


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    compare.check(args)
    for name in (*args.names, *(args.others or ())):
        MODEL_REGISTRY.get(name)  # an unknown name raises before anything is measured
    device = machine.device_of(args)
    dtypes = machine.usable_dtypes(args.dtype, device, emulated=args.emulated)
    facts = machine.machine_facts(device, LIBRARIES)
    peak = measure.Peak(device, dtypes)
    with tables.Report(args, facts=facts, columns=COLUMNS) as report:
        peak.update()
        for name in args.names:
            comparison = Comparison(CaseBuilder(device), args, peak)
            try:
                comparison.run(cases_of(name, args, list(dtypes)))
            finally:
                report.rows += rows_of(comparison)
                report.record["peak"] = peak.facts()
        report.notes += notes_of(device, peak, args)
    return 0


def cases_of(name: str, args: argparse.Namespace, dtypes: Sequence[str]) -> list[Case]:
    """Ours, the same model of other libraries, and the others, in every setting asked for."""
    size = None if args.input_size is None else tuple(args.input_size)
    others = OTHERS.get(name, ()) if args.others is None else args.others
    whose = [(name, implementation) for implementation in (OURS, *steps.counterparts(name))]
    whose += [(other, OURS) for other in others if is_buildable(other, size)]
    return [
        Case(who, implementation, input_size=size, **settings)
        for settings in compare.settings(args, dtypes, args.modes)
        for who, implementation in whose
    ]


def is_buildable(name: str, size: tuple[int, ...] | None) -> bool:
    """Whether the model can be built for this input size; prints why not."""
    if name not in MODEL_REGISTRY:
        print(f"{name}: left out, it is not registered")
        return False
    try:
        with torch.device("meta"):
            steps.build(Case(name, input_size=size))
    except UserError as error:
        print(f"{name}: left out, {error}")
        return False
    return True


def implementation(row: Row) -> str:
    """The library whose code a row is about."""
    return row["implementation"] if row["implementation"] != OURS else row["library"]


def rows_of(comparison: Comparison) -> list[Row]:
    """Rows with their ratios, which `notes_of` explains."""
    rows = comparison.rows()
    for row, candidate in zip(rows, measure.measured(comparison.candidates), strict=True):
        row |= ratios(comparison, candidate)
    return rows


def ratios(comparison: Comparison, candidate: Candidate) -> dict[str, float | None]:
    """Samples per second over those of the reference, and of timm's model if it was measured."""
    has_reference = any(c.facts["implementation"] == REFERENCE for c in comparison.candidates)
    whose: dict[str, object] = (
        {"implementation": REFERENCE}
        if has_reference
        else {key: comparison.candidates[0].facts[key] for key in ("name", "implementation")}
    )
    same = comparison.find(candidate, **whose, compiled=None)
    plain = comparison.find(candidate, **whose, compiled=None, dtype="fp32")
    timm = comparison.find(candidate, implementation=TIMM, compiled=None)
    best = fastest(comparison, candidate, whose)
    return {
        "ratio": measure.ratio_of(candidate, same),
        "ratio_fp32": None if plain is same else measure.ratio_of(candidate, plain),
        "ratio_best": None if best is same else measure.ratio_of(candidate, best),
        "ratio_timm": measure.ratio_of(candidate, timm),
    }


def fastest(comparison: Comparison, like: Candidate, whose: dict[str, object]) -> Candidate | None:
    """The reference's fastest setting in the same mode: dtype, attention, compiled or not."""
    wanted = {**whose, "mode": like.facts["mode"]}
    measured = [
        c
        for c in comparison.candidates
        if c.seconds and all(c.facts.get(key) == value for key, value in wanted.items())
    ]
    return max(measured, key=lambda c: c.samples_per_s, default=None)


def notes_of(device: torch.device, peak: measure.Peak, args: argparse.Namespace) -> list[str]:
    """The notes that explain the columns."""
    notes = [
        peak.line(),
        "floor ms: multiply-adds over that; x ref: clips/s over those of hiera-transformer (or of "
        "the first model, where it has none) in the same setting, eager; x best ref: over its best",
    ]
    if args.memory:
        notes.append(f"peak MiB: {memory.describe(device)}")
    return notes
