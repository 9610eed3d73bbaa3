"""`generate`: drawing clips of body motion for pretraining, by stage and number of processes.

Each process is single-threaded and draws whole clips with their truth, as a loader's worker does.
"""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

import torch

from hiera_video.benchmarks import machine, measure, tables
from hiera_video.benchmarks.data_loaders import worker_counts
from hiera_video.benchmarks.measure import Candidate
from hiera_video.benchmarks.tables import Column, Row, of_table
from hiera_video.data.synthetic.body_motion.reader import require_numba
from hiera_video.data.synthetic.body_motion.truth import GRID, LARGEST_SIZE
from hiera_video.data.synthetic.stream_clips import drawable
from hiera_video.errors import UserError
from hiera_video.video.processes import usable_cores

STAGES = ("scene", "drawing", "film", "truth")

BY_STAGE = (
    Column("frames", of_table("stages", "frames")),
    Column("size", of_table("stages", "size")),
    *(Column(stage, of_table("stages", f"{stage}_ms"), ".2f") for stage in STAGES),
    Column("CPU ms", of_table("stages", "cpu_ms"), ".2f"),
    Column("wall ms", of_table("stages", "ms"), ".2f"),
    Column("min-max", lambda row: tables.spread(row) if row["table"] == "stages" else None),
    Column("clips/s per core", of_table("stages", "clips_per_core_s"), ".0f"),
)

BY_PROCESSES = (
    Column("processes", of_table("processes", "processes")),
    Column("clips/s", of_table("processes", "clips_per_s"), ".0f"),
    Column("min-max", of_table("processes", "range")),
    Column("per process", of_table("processes", "clips_per_process_s"), ".0f"),
)


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    check_form(args.frames, args.size)
    require_numba()
    # Imported here: the other subcommands do without numba.
    from hiera_video.benchmarks import generate_clips
    from hiera_video.data.synthetic.body_motion.clips import ClipSettings

    settings = ClipSettings(frames=args.frames, size=args.size)
    cpu = torch.device("cpu")
    facts = machine.machine_facts(cpu, ["numba", "numpy"])
    facts |= {"cores": usable_cores(), "threads": 1}  # of each process
    with (
        tables.Report(args, facts=facts, columns=BY_STAGE, more=[BY_PROCESSES]) as report,
        contextlib.ExitStack() as pools,
    ):
        report.notes += notes(args)
        # The stages come first: their warm-up compiles, and the processes find the result.
        candidates = [generate_clips.in_stages(args.clips, settings)]
        for count in args.processes or worker_counts(usable_cores()):
            pool = pools.enter_context(generate_clips.processes(count, settings))
            candidates.append(generate_clips.in_processes(pool, count, args.clips, settings))
        try:
            measure.interleave(candidates, repeats=args.repeats, device=cpu)
        finally:
            report.rows += [row_of(candidate) for candidate in candidates if candidate.seconds]
    return 0


def check_form(frames: int, size: int) -> None:
    """Raises UserError for clips that the generator cannot draw."""
    if not drawable(frames, size, largest=LARGEST_SIZE):
        raise UserError(
            f"--frames {frames} --size {size}: the frames must be an even number, and the size a "
            f"multiple of {GRID} up to {LARGEST_SIZE}"
        )


def notes(args: argparse.Namespace) -> list[str]:
    """The notes under the tables."""
    return [
        f"Clips of {args.frames} frames, {args.size}x{args.size}, with their truth; each "
        f"measurement draws {args.clips} clips per process. Medians; a warm-up compiles.",
        "Stages: CPU milliseconds of one clip. Scene: what moves and how; drawing: clean pixels; "
        "film: light, lens, noise and compression; truth: what is to be predicted.",
    ]


def row_of(candidate: Candidate) -> Row:
    """The row of a candidate, for one clip or for its clips per second."""
    row = measure.row_of(candidate)
    if candidate.facts["table"] == "processes":
        return row | rates_of(candidate)
    for key in ("ms", "ms_min", "ms_max"):
        row[key] /= candidate.samples
    parts = row.pop("parts_ms")
    row |= {f"{stage}_ms": parts[stage] / candidate.samples for stage in STAGES}
    row["cpu_ms"] = sum(parts.values()) / candidate.samples
    row["clips_per_core_s"] = 1e3 / row["cpu_ms"]
    return row


def rates_of(candidate: Candidate) -> dict[str, Any]:
    """Clips per second of all processes together."""
    rates = [candidate.samples / seconds for seconds in candidate.seconds]
    return {
        "clips_per_s": candidate.samples_per_s,
        "range": f"{min(rates):.0f}-{max(rates):.0f}",
        "clips_per_process_s": candidate.samples_per_s / candidate.facts["processes"],
    }
