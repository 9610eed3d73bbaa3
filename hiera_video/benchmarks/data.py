"""`data`: from video files to batches on a device, by stage and per core, beside PyTorchVideo.

Both libraries read the same clips: the same files and frames, crops of the same sizes. Ours runs
the loader's own code; PyTorchVideo's runs its `EncodedVideo` and transforms, put together in the
order that costs it least (its factory normalises and augments before it crops).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from hiera_video.benchmarks import machine, measure, tables
from hiera_video.benchmarks.data_clips import PYTORCHVIDEO
from hiera_video.benchmarks.data_loaders import LOADING, default_decoders, fastest_decoders, loading
from hiera_video.benchmarks.data_stages import BY_STAGE, by_stage
from hiera_video.benchmarks.steps import Case, CaseBuilder
from hiera_video.benchmarks.tables import Column, Row, of_table
from hiera_video.benchmarks.videos import Recipe, benchmark_videos
from hiera_video.clip_spec import ClipSpec
from hiera_video.data.manifests.layouts import Manifest, read_manifest
from hiera_video.errors import UserError
from hiera_video.video.decode import open_video
from hiera_video.video.decoders import DECODERS, available_decoders
from hiera_video.video.processes import usable_cores

LIST_REPEATS = 1000
"""Times that the list of a timed loader names each video, so that it does not end while timed."""


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    device = machine.device_of(args)
    decoders = usable_decoders(args.decoders)
    packages = ["torchcodec", "av", "decord", PYTORCHVIDEO]
    facts = {**machine.machine_facts(device, packages), "cores": usable_cores()}
    spec = ClipSpec(num_frames=args.frames, sampling_rate=args.rate, crop_size=args.crop)
    recipes = [
        Recipe(f"video_{i}", seed=i, seconds=args.length, gop=args.gop) for i in range(args.clips)
    ]
    with (
        tables.Report(args, facts=facts, columns=BY_STAGE, more=further_tables(args)) as report,
        benchmark_videos(args.videos, recipes) as paths,
        TemporaryDirectory(prefix="hiera_video_benchmark_") as folder,
    ):
        manifest = write_list(folder, paths[: args.clips])
        many = write_list(folder, paths[: args.clips], times=LIST_REPEATS)
        report.record["clip"] = spec.to_dict()
        report.record["files"] = [describe(path) for path in paths[: args.clips]]
        report.notes += notes(report.record["files"], spec, args.known)
        for kind in args.kinds:
            report.rows += by_stage(kind, manifest, spec, decoders, args)
        for kind in args.loaders:
            chosen = fastest_decoders(report.rows, kind) or default_decoders(decoders)
            report.rows += loading(kind, many, spec, chosen, args, device)
        report.rows += feeding(report.rows, args, device)
    return 0


def further_tables(args: argparse.Namespace) -> list[Sequence[Column]]:
    """Columns of the tables after the first, as far as the options ask for them."""
    loaders = [LOADING] if args.loaders else []
    return loaders + ([FEEDING] if args.feeds or args.model else [])


def notes(files: Sequence[str], spec: ClipSpec, known: bool) -> list[str]:
    """The notes under the tables."""
    return [
        "Files were read before in the same process: ours does not scan them again."
        if known
        else "Files are new to the process, as in the first epoch: ours scans each once.",
        f"{len(files)} videos: {'; '.join(sorted(set(files)))}. Clips of {spec.num_frames} frames, "
        f"{spec.crop_size}x{spec.crop_size}; milliseconds for one, one thread, medians.",
        "The CPU time is that of a loader's worker, of all its threads: ours normalises on the "
        "device instead. Clips per second and core follow from it.",
        "PyTorchVideo reads the file whole, decodes every frame of a clip's span to float32 and "
        "scales without antialiasing, on floats; it has no random erasing. Ours decodes the frames "
        "that the clip has, with the frames that these need, and stays in bytes.",
    ]


def usable_decoders(wanted: Sequence[str] | None) -> list[str]:
    """The decoders asked for, or all that work here.

    Raises UserError for one that does not work.
    """
    failures = available_decoders()
    for name in wanted or ():
        if failures[name]:
            raise UserError(f"--decoders {name}: it {failures[name]}")
    return list(wanted or (name for name in DECODERS if failures[name] is None))


def write_list(folder: str, paths: Sequence[str], times: int = 1) -> Manifest:
    """A manifest that lists each of the videos `times` times."""
    lines = [f"{os.path.abspath(path)}\t{i}\n" for i, path in enumerate(paths)] * times
    (Path(folder) / "train.csv").write_text("".join(lines), encoding="utf-8")
    return read_manifest(folder, "train", separator="\t")


def describe(path: str) -> str:
    """ "340x256 h264, 300 frames, 30 fps"."""
    with open_video(path) as reader:
        i = reader.info
        return f"{i.width}x{i.height} {i.codec}, {i.num_frames} frames, {i.fps:.4g} fps"


# ---- how many cores a model needs ---------------------------------------------------------------

FEEDING = (
    Column("feeds", of_table("feeding", "model")),
    Column("model's clips/s", of_table("feeding", "needed"), ".3g"),
    Column("clips", of_table("feeding", "kind")),
    Column("library", of_table("feeding", "library")),
    Column("decoder", of_table("feeding", "decoder")),
    Column("cores needed", of_table("feeding", "cores"), ".2g"),
)


def feeding(rows: Sequence[Row], args: argparse.Namespace, device: torch.device) -> list[Row]:
    """One row for each way to read, with the number of cores that keeps the model busy."""
    if args.model is None and args.feeds is None:
        return []
    name, needed = "as told", args.feeds
    if args.model is not None:
        name, needed = args.model, args.feeds or training_rate(args, device)
    return [
        {
            "table": "feeding",
            "model": name,
            "needed": needed,
            **{key: row[key] for key in ("kind", "library", "decoder")},
            "cores": needed * row["worker_cpu_ms"] / 1e3,
        }
        for row in rows
        if row["table"] == "stages" and row["kind"] != "test"
    ]


def training_rate(args: argparse.Namespace, device: torch.device) -> float:
    """Clips per second of the model's training step on this device."""
    dtype = args.dtype or ("bf16" if device.type == "cuda" else "fp32")
    case = Case(args.model, mode="train", dtype=dtype, batch=args.batch, optimizer=True)
    candidate = CaseBuilder(device).candidate(case)
    measure.interleave([candidate], repeats=3, device=device)
    if candidate.failed:
        raise UserError(f"--model {args.model}: {candidate.failed} at --batch {args.batch}")
    return candidate.samples_per_s
