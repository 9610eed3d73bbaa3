"""`pretrain`: one step of masked autoencoding, by part, beside hiera-transformer and VideoMAE.

hiera-transformer's step runs on the same weights and is checked to give the same loss first;
VideoMAE's is another method of comparable size, with random weights. Every call draws its own mask.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import (
    loss_comparison,
    machine,
    measure,
    memory,
    parts,
    pictures,
    race,
    steps,
    tables,
)
from benchmarks.measure import Contender
from benchmarks.models import LIBRARIES, OTHERS, implementation, is_buildable
from benchmarks.race import Race
from benchmarks.steps import OURS, REFERENCE, Case, Workbench
from benchmarks.tables import Column, Row
from hiera_video.errors import UserError
from hiera_video.registry import MODEL_REGISTRY, arguments_of

PICTURE = Path("runs/benchmark/pretrain.png")

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
    *race.COUNTS,
    race.MEMORY,
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `pretrain`."""
    race.add_name_arguments(
        parser,
        usual="mae_hiera_base_16x224",
        others="autoencoders to stand beside each of them (VideoMAE beside the video Hiera-B)",
    )
    parser.add_argument(
        "--mask-ratio",
        nargs="+",
        type=float,
        metavar="R",
        help="shares of the mask units deleted (the model's own)",
    )
    parser.add_argument(
        "--decode-ratio",
        nargs="+",
        type=float,
        default=[1.0, 0.25],
        metavar="R",
        help="shares of the deleted units that ours decodes; below 1 is beyond the paper (1 0.25)",
    )
    parser.add_argument(
        "--compare-loss",
        type=machine.positive,
        metavar="STEPS",
        help="train a tiny autoencoder on generated clips for so many steps, once for each "
        "--decode-ratio, and print the loss on held-out clips; nothing else is measured",
    )
    parser.add_argument(
        "--seeds", type=machine.positive, default=2, help="runs of each for --compare-loss (2)"
    )
    parser.add_argument(
        "--png", metavar="FILE", help=f"the picture ({PICTURE}; an empty name for none)"
    )
    race.add_arguments(parser, attention=["fused"], modes=None)
    parser.set_defaults(repeats=5)


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    race.check(args)
    check(args)
    device = machine.device_of(args)
    if args.compare_loss:
        return loss_comparison.run(args, device)
    dtypes = machine.usable_dtypes(args.dtype, device)
    facts = machine.machine_facts(device, LIBRARIES)
    peak = measure.Peak(device, dtypes)
    more = [PART_COLUMNS]
    with tables.Report(args, facts=facts, columns=COLUMNS, more=more) as report:
        peak.look()
        for name in args.names:
            contest = Race(Workbench(device, parts=parts.marks_of), args, peak)
            try:
                contest.run(cases_of(name, args, list(dtypes)))
            finally:
                report.rows += rows_of(contest)
                report.record["peak"] = peak.facts()
        report.notes += notes_of(device, peak, args)
        if args.png != "" and any("parts_ms" in row for row in report.rows):
            path = draw(args.png or PICTURE, report.rows, facts)
            report.notes.append(f"picture: {path}")
    return 0


def check(args: argparse.Namespace) -> None:
    """UserError for what is no autoencoder, or no ratio."""
    for name in (*args.names, *(args.others or ())):
        if "mask_ratio" not in arguments_of(MODEL_REGISTRY.get(name)):
            raise UserError(f"{name} is no masked autoencoder; their names start with mae_")
    for option, ratios in (
        ("--mask-ratio", args.mask_ratio),
        ("--decode-ratio", args.decode_ratio),
    ):
        for ratio in ratios or ():
            if not 0 < ratio <= 1:
                raise UserError(f"{option} {ratio} must be above 0 and at most 1")


def cases_of(name: str, args: argparse.Namespace, dtypes: Sequence[str]) -> list[Case]:
    """Ours at every decode ratio, its counterpart and the others, at every mask ratio."""
    size = None if args.input_size is None else tuple(args.input_size)
    others = OTHERS.get(name, ()) if args.others is None else args.others
    beside = [(name, library, None) for library in steps.counterparts(name)]
    beside += [(other, OURS, None) for other in others if is_buildable(other, size)]
    # 1 is the builder's own: one module for that and for the check against the reference
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
        for settings in race.settings(args, dtypes, ["train"])
        for mask in args.mask_ratio or [None]
        for who, library, decode in (*mine, *beside)
    ]


def decode_ratios(name: str, args: argparse.Namespace) -> list[float]:
    """Those asked for; of a model of the user's that cannot, all."""
    if "decode_ratio" in arguments_of(MODEL_REGISTRY.get(name)):
        return args.decode_ratio
    print(f"{name} has no decode_ratio: it decodes everything")
    return [1.0]


def own_ratio(name: str) -> float:
    """The mask ratio of a model's recipe."""
    with torch.device("meta"):
        return steps.build(Case(name)).mask_ratio


# ---- rows ---------------------------------------------------------------------------------------


def rows_of(contest: Race) -> list[Row]:
    """Rows with their ratios; see `notes_of` for what they say."""
    rows = contest.rows()
    for row, contender in zip(rows, measure.measured(contest.contenders), strict=True):
        row |= ratios(contest, contender)
        if row["library"] == OURS:
            row.setdefault("decode_ratio", 1.0)
    return rows


def ratios(contest: Race, contender: Contender) -> dict[str, float | None]:
    """How a step stands to the reference's and to the other method's."""
    mask = contender.facts["mask_ratio"]
    whose = {"implementation": REFERENCE, "mask_ratio": mask, "compiled": None}
    same = contest.find(contender, **whose)
    plain = contest.find(contender, **{**whose, "dtype": "fp32"})
    other = next(
        (
            c.facts["name"]
            for c in contest.contenders
            if c.facts["library"] not in (OURS, REFERENCE.split("-")[0])
        ),
        None,
    )
    beside = contest.find(contender, name=other, mask_ratio=mask, compiled=None)
    memories = [c.facts.get("peak_memory") for c in (contender, same) if c is not None]
    return {
        "ratio": measure.ratio_of(contender, same),
        "ratio_fp32": None if plain is same else measure.ratio_of(contender, plain),
        "ratio_other": measure.ratio_of(contender, beside),
        "memory_ratio": memories[0] / memories[1] if len(memories) == 2 and all(memories) else None,
    }


def notes_of(device: torch.device, peak: measure.Peak, args: argparse.Namespace) -> list[str]:
    """What the columns mean, and how the parts were measured."""
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
    """One bar for each row, made of its parts, in milliseconds of a clip."""
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
    """What a bar is about, in short lines."""
    lines = [row["name"].removeprefix("mae_"), implementation(row)]
    lines.append(f"{row['dtype']} {row['attention']}")
    lines.append(f"masked {row['mask_ratio']:g}")
    if row.get("decode_ratio", 1.0) != 1.0:
        lines.append(f"decoded {row['decode_ratio']:g}")
    return "\n".join(lines)
