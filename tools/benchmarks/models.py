"""`model`: forward pass and training step of registered models, beside other implementations.

Beside a Hiera stand hiera-transformer's and, for images, timm's, with the same weights and after a
check that they compute the same; beside the video model of size B also other models of its size,
for context.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from benchmarks import machine, measure, memory, race, steps, tables
from benchmarks.measure import Contender
from benchmarks.race import Race
from benchmarks.steps import OURS, REFERENCE, TIMM, Case, Workbench
from benchmarks.tables import Column, Row
from hiera_video.errors import UserError
from hiera_video.registry import MODEL_REGISTRY

OTHERS = {
    "hiera_base_16x224": ("torchvision_mvit_v2_s", "videomae_base_16x224"),
    "mae_hiera_base_16x224": ("mae_videomae_base_16x224",),
}
"""Models of comparable size, by the name that they stand beside when nobody says."""

LIBRARIES = (REFERENCE, TIMM, "torchvision", "transformers")
"""Whose versions matter."""

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
    *race.COUNTS,
    race.MEMORY,
    Column("compile s", "compile_s", ".0f"),
    Column("graph breaks", "graph_breaks"),
    Column("x ref", "ratio", ".2f"),
    Column("x ref fp32", "ratio_fp32", ".2f"),
    Column("x best ref", "ratio_best", ".2f"),
    Column("x timm", "ratio_timm", ".2f"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `model`."""
    race.add_name_arguments(
        parser,
        usual="hiera_base_16x224",
        others="models to stand beside each of them, for context (torchvision's MViT and VideoMAE "
        "beside the video Hiera-B)",
    )
    race.add_arguments(parser, attention=["fused"], modes=["forward", "train"])


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    race.check(args)
    for name in (*args.names, *(args.others or ())):
        MODEL_REGISTRY.get(name)  # a mistyped name is answered before anything is measured
    device = machine.device_of(args)
    dtypes = machine.usable_dtypes(args.dtype, device)
    facts = machine.machine_facts(device, LIBRARIES)
    peak = measure.Peak(device, dtypes)
    with tables.Report(args, facts=facts, columns=COLUMNS) as report:
        peak.look()
        for name in args.names:
            contest = Race(Workbench(device), args, peak)
            try:
                contest.run(cases_of(name, args, list(dtypes)))
            finally:
                report.rows += rows_of(contest)
                report.record["peak"] = peak.facts()
        report.notes += notes_of(device, peak, args)
    return 0


def cases_of(name: str, args: argparse.Namespace, dtypes: Sequence[str]) -> list[Case]:
    """Ours, its counterparts and the others, in every setting asked for."""
    size = None if args.input_size is None else tuple(args.input_size)
    others = OTHERS.get(name, ()) if args.others is None else args.others
    whose = [(name, implementation) for implementation in (OURS, *steps.counterparts(name))]
    whose += [(other, OURS) for other in others if is_buildable(other, size)]
    return [
        Case(who, implementation, input_size=size, **settings)
        for settings in race.settings(args, dtypes, args.modes)
        for who, implementation in whose
    ]


def is_buildable(name: str, size: tuple[int, ...] | None) -> bool:
    """Whether the model can stand beside others; a line says why not."""
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
    """Whose code a row is about."""
    return row["implementation"] if row["implementation"] != OURS else row["library"]


def rows_of(contest: Race) -> list[Row]:
    """Rows with their ratios; see `notes_of` for what they say."""
    rows = contest.rows()
    for row, contender in zip(rows, measure.measured(contest.contenders), strict=True):
        row |= ratios(contest, contender)
    return rows


def ratios(contest: Race, contender: Contender) -> dict[str, float | None]:
    """How a contender stands to the reference, and to timm's model where there is one."""
    has_reference = any(c.facts["implementation"] == REFERENCE for c in contest.contenders)
    whose = (
        {"implementation": REFERENCE}
        if has_reference
        else {key: contest.contenders[0].facts[key] for key in ("name", "implementation")}
    )
    same = contest.find(contender, **whose, compiled=None)
    plain = contest.find(contender, **whose, compiled=None, dtype="fp32")
    timm = contest.find(contender, implementation=TIMM, compiled=None)
    best = quickest(contest, contender, whose)
    return {
        "ratio": measure.ratio_of(contender, same),
        "ratio_fp32": None if plain is same else measure.ratio_of(contender, plain),
        "ratio_best": None if best is same else measure.ratio_of(contender, best),
        "ratio_timm": measure.ratio_of(contender, timm),
    }


def quickest(contest: Race, like: Contender, whose: dict[str, object]) -> Contender | None:
    """The reference's best setting in the same mode: dtype, attention, compiled or not."""
    wanted = {**whose, "mode": like.facts["mode"]}
    found = [
        c
        for c in contest.contenders
        if c.seconds and all(c.facts.get(key) == value for key, value in wanted.items())
    ]
    return max(found, key=lambda c: c.samples_per_s, default=None)


def notes_of(device: torch.device, peak: measure.Peak, args: argparse.Namespace) -> list[str]:
    """What the columns mean."""
    notes = [
        peak.line(),
        "floor ms: multiply-adds over that; x ref: clips/s over those of hiera-transformer (or of "
        "the first model, where it has none) in the same setting, eager; x best ref: over its best",
    ]
    if args.memory:
        notes.append(f"peak MiB: {memory.describe(device)}")
    return notes
