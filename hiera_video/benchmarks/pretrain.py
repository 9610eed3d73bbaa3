"""`pretrain`: one step of masked autoencoding, by part, beside hiera-transformer and VideoMAE.

hiera-transformer's step runs on the same weights and is checked to give the same loss first;
VideoMAE's is another method of comparable size, with random weights. Every call draws its own mask.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from hiera_video.benchmarks import (
    compare,
    loss_comparison,
    machine,
    measure,
    memory,
    parts,
    pictures,
    steps,
    tables,
)
from hiera_video.benchmarks.compare import Comparison
from hiera_video.benchmarks.measure import Candidate
from hiera_video.benchmarks.models import LIBRARIES, OTHERS, implementation, is_buildable
from hiera_video.benchmarks.options import PICTURES
from hiera_video.benchmarks.steps import OURS, REFERENCE, Case, CaseBuilder
from hiera_video.benchmarks.tables import Column, Row
from hiera_video.errors import UserError
from hiera_video.registry import MODEL_REGISTRY, arguments_of

PICTURE = Path(PICTURES, "pretrain.png")

WHAT = (
    Column("model", "name"),
    Column("implementation", implementation),
    Column("masked", "mask_ratio", ".2f"),
    Column("decoded", "decode_ratio", ".2f"),
    Column("dtype", "dtype"),
    Column("attention", "attention"),
    Column("compiled", "compiled"),
    Column("batch", "batch"),
)
COLUMNS = (
    *WHAT,
    *tables.TIMES,
    Column("clips/s", "samples_per_s", ".3g"),
    *compare.COUNTS,
    compare.MEMORY,
    Column("compile s", "compile_s", ".0f"),
    Column("graph breaks", "graph_breaks"),
    Column("x ref", "ratio", ".2f"),
    Column("x ref fp32", "ratio_fp32", ".2f"),
    Column("x other", "ratio_other", ".2f"),
    Column("memory / ref", "memory_ratio", ".2f"),
)


def part_column(part: str) -> Column:
    """Milliseconds of one part."""
    title = part.replace(" backward", " back")
    return Column(title, lambda row: row.get("parts_ms", {}).get(part), ".1f")


PART_COLUMNS = (*WHAT, *(part_column(part) for part in parts.PARTS))


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    compare.check(args)
    check(args)
    device = machine.device_of(args)
    if args.compare_loss:
        return loss_comparison.run(args, device)
    dtypes = machine.usable_dtypes(args.dtype, device, emulated=args.emulated)
    facts = machine.machine_facts(device, LIBRARIES)
    peak = measure.Peak(device, dtypes)
    more = [PART_COLUMNS]
    with tables.Report(args, facts=facts, columns=COLUMNS, more=more) as report:
        peak.update()
        for name in args.names:
            comparison = Comparison(CaseBuilder(device, parts=parts.marks_of), args, peak)
            try:
                comparison.run(cases_of(name, args, list(dtypes)))
            finally:
                report.rows += rows_of(comparison)
                report.record["peak"] = peak.facts()
        report.notes += notes_of(device, peak, args)
        if args.png != "" and any("parts_ms" in row for row in report.rows):
            path = draw(args.png or PICTURE, report.rows, facts)
            report.notes.append(f"picture: {path}")
    return 0


def check(args: argparse.Namespace) -> None:
    """Raise UserError for a model that is no autoencoder, and for ratios out of range."""
    for name in (*args.names, *(args.others or ())):
        if "mask_ratio" not in arguments_of(MODEL_REGISTRY.get(name)):
            raise UserError(f"{name} is not a masked autoencoder; their names start with mae_")
    for option, ratios in (
        ("--mask-ratio", args.mask_ratio),
        ("--decode-ratio", args.decode_ratio),
    ):
        for ratio in ratios or ():
            if not 0 < ratio <= 1:
                raise UserError(f"{option} {ratio} must be above 0 and at most 1")


def cases_of(name: str, args: argparse.Namespace, dtypes: Sequence[str]) -> list[Case]:
    """Ours at every decode ratio, other libraries' and the others, at every mask ratio."""
    size = None if args.input_size is None else tuple(args.input_size)
    others = OTHERS.get(name, ()) if args.others is None else args.others
    beside = [(name, library, None) for library in steps.counterparts(name)]
    beside += [(other, OURS, None) for other in others if is_buildable(other, size)]
    # None is the builder's own 1: one module serves that and the check against the reference
    mine = [(name, OURS, None if ratio == 1 else ratio) for ratio in decode_ratios(name, args)]
    return [
        Case(
            who,
            library,
            input_size=size,
            mask_ratio=mask if mask is not None else own_ratio(who),
            decode_ratio=decode,
            **settings,
        )
        for settings in compare.settings(args, dtypes, ["train"])
        for mask in args.mask_ratio or [None]
        for who, library, decode in (*mine, *beside)
    ]


def decode_ratios(name: str, args: argparse.Namespace) -> list[float]:
    """The decode ratios asked for; 1 alone for a user's model that has no such argument."""
    if "decode_ratio" in arguments_of(MODEL_REGISTRY.get(name)):
        return args.decode_ratio
    print(f"{name} has no decode_ratio: it decodes everything")
    return [1.0]


def own_ratio(name: str) -> float:
    """The mask ratio of a model's recipe."""
    with torch.device("meta"):
        return steps.as_autoencoder(steps.build(Case(name))).mask_ratio


# ---- rows ---------------------------------------------------------------------------------------


def rows_of(comparison: Comparison) -> list[Row]:
    """Rows with their ratios, which `notes_of` explains."""
    rows = comparison.rows()
    for row, candidate in zip(rows, measure.measured(comparison.candidates), strict=True):
        row |= ratios(comparison, candidate)
        if row["library"] == OURS:
            row.setdefault("decode_ratio", 1.0)
    return rows


def ratios(comparison: Comparison, candidate: Candidate) -> dict[str, float | None]:
    """A step's clips per second and memory over those of the reference and of the other method."""
    mask = candidate.facts["mask_ratio"]
    whose = {"implementation": REFERENCE, "mask_ratio": mask, "compiled": None}
    same = comparison.find(candidate, **whose)
    plain = comparison.find(candidate, **{**whose, "dtype": "fp32"})
    other = next(
        (
            c.facts["name"]
            for c in comparison.candidates
            if c.facts["library"] not in (OURS, REFERENCE.split("-")[0])
        ),
        None,
    )
    beside = comparison.find(candidate, name=other, mask_ratio=mask, compiled=None)
    mine = candidate.facts.get("peak_memory")
    theirs = None if same is None else same.facts.get("peak_memory")
    return {
        "ratio": measure.ratio_of(candidate, same),
        "ratio_fp32": None if plain is same else measure.ratio_of(candidate, plain),
        "ratio_other": measure.ratio_of(candidate, beside),
        "memory_ratio": mine / theirs if mine and theirs else None,
    }


def notes_of(device: torch.device, peak: measure.Peak, args: argparse.Namespace) -> list[str]:
    """The notes that explain the columns, and how the parts were measured."""
    optimizer = " and AdamW's fused step" if args.optimizer else ""
    clock = "events in the stream" if device.type == "cuda" else "the clock"
    notes = [
        peak.line(),
        f"a step: forward, backward{optimizer}; x ref: clips/s over hiera-transformer's, same "
        "weights, mask ratio and setting, eager; x other: over the other method's (VideoMAE)",
        f"parts, ms: {clock} read by hooks at the first block, the decoder's first and last layer, "
        "and backward when the gradients there are done; fusion is in the encoder, targets in loss",
    ]
    if args.memory:
        notes.append(f"peak MiB: {memory.describe(device)}")
    return notes


def draw(path: str | Path, rows: Sequence[Row], facts: dict[str, object]) -> Path:
    """Draw one bar for each row, stacked from its parts, in milliseconds per clip."""
    cut = [row for row in rows if "parts_ms" in row]
    shown = [part for part in parts.PARTS if any(part in row["parts_ms"] for row in cut)]
    return pictures.stacked_bars(
        path,
        labels=[label_of(row) for row in cut],
        parts={
            part: [row["parts_ms"].get(part, 0.0) / row["samples"] for row in cut] for part in shown
        },
        title=f"One pretraining step: {facts['device']}, torch {facts['torch']}",
        axis="ms per clip",
    )


def label_of(row: Row) -> str:
    """The label of a bar, in short lines."""
    lines = [row["name"].removeprefix("mae_"), implementation(row)]
    lines.append(f"{row['dtype']} {row['attention']}")
    lines.append(f"masked {row['mask_ratio']:g}")
    if row.get("decode_ratio", 1.0) != 1.0:
        lines.append(f"decoded {row['decode_ratio']:g}")
    return "\n".join(lines)
