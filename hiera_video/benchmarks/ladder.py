"""`ladder`: every step from MViTv2 to Hiera, with the paper's ratios beside ours, and a picture.

Steps are those of `hiera_video/models/ladder/ablation.py`; all of them pool keys and values by
(4, 2, 1, 1), as the paper's steps after the first do. The released MViTv2 for video, cut down to
(8, 4, 2, 1), with a class token, is a row of its own where it is registered: the paper's 20.5
clips/s belong to it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hiera_video.benchmarks import compare, machine, measure, memory, pictures, steps, tables
from hiera_video.benchmarks.compare import Comparison
from hiera_video.benchmarks.measure import Candidate
from hiera_video.benchmarks.options import PICTURES, RUNGS
from hiera_video.benchmarks.steps import Case, CaseBuilder
from hiera_video.benchmarks.tables import Column, Row
from hiera_video.registry import MODEL_REGISTRY

LABELS = {rung: rung.replace("r", "R") for rung in RUNGS}
SUFFIX = {"image": "224", "video": "16x224"}
RELEASED = "released"

PAPER: dict[str, dict[str, float]] = {
    "image": {
        "r0": 219.8,
        "r1": 253.3,
        "r2b": 99.9,
        "r2c": 309.2,
        "r3": 369.8,
        "r4": 374.3,
        "r5": 531.4,
    },
    "video": {
        RELEASED: 20.5,
        "r1": 20.7,
        "r2b": 10.4,
        "r2c": 26.2,
        "r3": 29.4,
        "r4": 29.8,
        "r5": 40.8,
    },
}
"""Samples per second of size L, arXiv 2306.00989, Table 1: A100, fp16, without fused attention,
best batch, forward. Its first video row is the cut-down model; of the uncut one it only says that
Hiera is 5.1 times faster."""

COLUMNS = (
    Column("rung", "rung"),
    Column("attention", "attention"),
    Column("mode", "mode"),
    Column("dtype", "dtype"),
    Column("batch", "batch"),
    Column("parameters", "parameters", ",d"),
    Column("GMAC", "gmacs_per_sample", ".2f"),
    *tables.TIMES,
    Column("samples/s", "samples_per_s", ".3g"),
    Column("of peak", tables.percent("of_peak")),
    Column("floor ms", "floor_ms", ".1f"),
    compare.MEMORY,
    Column("compiled", "compiled"),
    Column("compile s", "compile_s", ".0f"),
    Column("x last rung", "step", ".2f"),
    Column("paper", "paper_step", ".2f"),
    Column("x R0", "ratio", ".2f"),
    Column("x released", "ratio_released", ".2f"),
    Column("paper total", "paper_ratio", ".2f"),
)


@dataclass(frozen=True)
class Rows:
    """Which models a table is about."""

    size: str
    kind: str
    """ "image" or "video"."""

    def names(self) -> dict[str, str]:
        """Rung -> registered name; the released model where there is one.

        Raises:
            UserError: a step is not registered.
        """
        found = {rung: f"ladder_{rung}_{self.size}_{SUFFIX[self.kind]}" for rung in RUNGS}
        for name in found.values():
            MODEL_REGISTRY.get(name)
        released = f"mvitv2_{self.size}_16x224"
        if self.kind == "video" and released in MODEL_REGISTRY:
            return {RELEASED: released, **found}
        return found


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    compare.check(args)
    which = Rows(args.size, args.input)
    names = {r: n for r, n in which.names().items() if r in (*args.rungs, RELEASED)}
    device = machine.device_of(args)
    formats = args.dtype or default_dtype(device)
    dtypes = machine.usable_dtypes(formats, device, emulated=args.emulated)
    facts = machine.machine_facts(device)
    peak = measure.Peak(device, dtypes)
    with tables.Report(args, facts=facts, columns=COLUMNS) as report:
        peak.update()
        comparison = Comparison(CaseBuilder(device), args, peak)
        try:
            comparison.run(cases_of(names, args, list(dtypes)))
        finally:
            report.rows += rows_of(comparison, names, kind=args.input)
            report.record["peak"] = peak.facts()
            report.record["paper"] = PAPER[args.input]
        report.notes += [peak.line(), *notes_of(report.rows, args, device)]
        if args.png != "":
            path = args.png or Path(PICTURES, f"ladder_{args.size}_{args.input}.png")
            report.notes.append(draw(path, report.rows, args, facts))
    return 0


def default_dtype(device: torch.device) -> list[str]:
    """One format: half the width on a GPU, where the paper measured so, and float32 on a CPU."""
    if device.type != "cuda":
        return ["fp32"]
    return ["bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"]


def cases_of(names: dict[str, str], args: argparse.Namespace, dtypes: Sequence[str]) -> list[Case]:
    """Return every step in every setting."""
    size = None if args.input_size is None else tuple(args.input_size)
    return [
        Case(name, input_size=size, **settings)
        for settings in compare.settings(args, dtypes, args.modes)
        for name in names.values()
    ]


# ---- rows ---------------------------------------------------------------------------------------


def rows_of(comparison: Comparison, names: dict[str, str], *, kind: str) -> list[Row]:
    """Add to the rows the ratios to the step before, to R0 and to the released model."""
    step_of = {name: rung for rung, name in names.items()}
    rows = comparison.rows()
    for row, candidate in zip(rows, measure.measured(comparison.candidates), strict=True):
        rung = step_of[row["name"]]
        case = comparison.case_of[id(candidate)]
        row |= {
            "rung": LABELS.get(rung, rung),
            "parameters": steps.parameter_count(case),
            "gmacs_per_sample": row["gmacs"] / row["samples"],
        }
        row |= ratios(comparison, candidate, rung, names)
        row |= paper_ratios(kind, rung, names)
    return rows


def ratios(
    comparison: Comparison, candidate: Candidate, rung: str, names: dict[str, str]
) -> dict[str, float | None]:
    """Return samples per second over those of the step before, of R0 and of the released model."""
    compiled = candidate.facts.get("compiled")

    def over(other: str | None) -> float | None:
        if other not in names:
            return None
        found = comparison.find(candidate, name=names[other], compiled=compiled)
        return measure.ratio_of(candidate, found)

    return {
        "step": over(step_before(rung, names)),
        "ratio": over("r0"),
        "ratio_released": over(RELEASED),
    }


def step_before(rung: str, names: dict[str, str]) -> str | None:
    """Return the step that a step is compared with; None for the first."""
    climbed = [r for r in RUNGS if r in names]
    if rung not in climbed or rung == climbed[0]:
        return None
    return climbed[climbed.index(rung) - 1]


def paper_ratios(kind: str, rung: str, names: dict[str, str]) -> dict[str, float | None]:
    """The paper's ratios of the same two rows; its video R0 is the cut-down released model."""
    rates = PAPER[kind]
    before = step_before(rung, names)
    first = "r0" if kind == "image" else RELEASED
    step = None
    if rung in rates and before in rates:
        step = rates[rung] / rates[before]
    return {
        "paper_step": step,
        "paper_ratio": rates[rung] / rates[first] if rung in rates else None,
    }


def notes_of(rows: Sequence[Row], args: argparse.Namespace, device: torch.device) -> list[str]:
    """What the columns mean, and the one number that the ladder is about."""
    notes = []
    for row in rows:
        if row["rung"] == "R5" and row.get("ratio") is not None:
            setting = f"{row['mode']}, {row['dtype']}, {row['attention']} attention"
            compiled = ", compiled" if row.get("compiled") else ""
            notes.append(f"R5 over R0 ({setting}{compiled}): {row['ratio']:.2f}")
    first = "R0" if args.input == "image" else "the released, cut-down model"
    notes.append(
        "paper, L: of its Table 1 (A100, fp16, explicit attention, best batch), the step; total: "
        f"over {first}. Floor ms: multiply-adds over the best matrix product"
    )
    if args.memory:
        notes.append(f"peak MiB: {memory.describe(device)}")
    return notes


# ---- the picture --------------------------------------------------------------------------------


def draw(
    path: str | Path, rows: Sequence[Row], args: argparse.Namespace, facts: dict[str, object]
) -> str:
    """Draw samples per second of every step over those of R0, a bar per setting, and the paper's.

    Returns:
        A note on where the picture is, or why there is none.
    """
    if not any(row.get("ratio") is not None for row in rows):
        return "no picture: it compares with R0, which was not measured"
    labels = list(dict.fromkeys(row["rung"] for row in rows))
    groups: dict[str, dict[str, float | None]] = {}
    for row in rows:
        setting = " ".join(
            str(row[key]) for key in ("mode", "dtype", "attention", "compiled") if row.get(key)
        )
        if len(args.batch) > 1:
            setting += f" batch {row['batch']}"
        groups.setdefault(setting, {})[row["rung"]] = row.get("ratio")
    first = PAPER[args.input].get("r0") or PAPER[args.input][RELEASED]
    paper = "paper, L" if args.input == "image" else "paper, L, over released"
    groups[paper] = {LABELS.get(r, r): rate / first for r, rate in PAPER[args.input].items()}
    drawn = pictures.grouped_bars(
        path,
        labels=labels,
        groups={name: [values.get(label) for label in labels] for name, values in groups.items()},
        title=f"From MViTv2 (R0) to Hiera (R5), {args.input}, {args.size}: {facts['device']}, "
        f"torch {facts['torch']}",
        axis="samples/s over R0",
    )
    return f"picture: {drawn}"
