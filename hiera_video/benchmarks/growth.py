"""`growth`: time and memory against frames, picture size and number of videos, with the exponent.

Each row is one task at growing values of one quantity; the exponent is the slope of a straight line
through the logarithms. 1: twice as much takes twice as long; 0: it costs the same.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from hiera_video.benchmarks import machine, memory, tables
from hiera_video.benchmarks.measure import progress
from hiera_video.benchmarks.steps import Case, CaseBuilder
from hiera_video.benchmarks.tables import Column, Row
from hiera_video.benchmarks.videos import Recipe, make_videos
from hiera_video.clip_spec import ClipSpec
from hiera_video.data.datasets import TestReader, TrainReader, VideoDataset
from hiera_video.data.loader import LoaderSettings, build_loader
from hiera_video.data.manifests.layouts import read_manifest
from hiera_video.data.transforms.train import TrainTransform
from hiera_video.data.views import load_test_views

COLUMNS = (
    Column("quantity", "quantity"),
    Column("task", "task"),
    Column("values", "values_text"),
    Column("CPU ms", "ms_text"),
    Column("exponent", "exponent", ".2f"),
    Column("last step", "last_exponent", ".2f"),
    Column("memory MiB", "memory_text"),
    Column("exponent of memory", "memory_exponent", ".2f"),
)

VIDEO_SECONDS = 5
"""Of the file that clips of more and more frames are read from: it must hold the longest."""


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    device = machine.device_of(args)
    facts = machine.machine_facts(device, ["av"])
    with (
        tables.Report(args, facts=facts, columns=COLUMNS) as report,
        TemporaryDirectory(prefix="hiera_video_benchmark_") as folder,
    ):
        report.notes += NOTES
        for values, tasks in (
            (args.frames, lambda: of_frames(args, folder)),
            (args.sizes, lambda: of_sizes(args, folder)),
            (args.videos, lambda: of_videos(args.videos, folder)),
        ):
            if len(set(values)) > 1:
                for task in tasks():  # one by one: an interrupt keeps what is done
                    report.rows.append(row_of(task, args.repeats))
    return 0


NOTES = (
    "Values, times and memory are in the same order. CPU time of all threads of the process, the "
    "median; exponent: the slope over all values; last step: between the two largest.",
    "Memory: of the model, the growth of a fresh process over one call; of lists, the most that "
    "Python and NumPy held at once.",
)


# ---- tasks --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Growing:
    """One task at growing values of one quantity."""

    quantity: str
    task: str
    values: Sequence[int]
    call: Callable[[int], Callable[[], Any]]
    """From a value to what is timed."""
    memory: Callable[[int], int | None] | None = None
    """From a value to bytes; None: the memory that Python holds while it is called."""


def of_frames(args: argparse.Namespace, folder: str) -> list[Growing]:
    """The model, and a clip read from a file, against the number of frames."""
    values = sorted(set(args.frames))
    (path,) = make_videos(folder, [Recipe("long", seconds=max(VIDEO_SECONDS, max(values) / 30))])

    def case(frames: int, mode: str = "forward") -> Case:
        return Case(args.model, mode=mode, input_size=(frames, 224, 224))

    def read(frames: int) -> Callable[[], Any]:
        spec = ClipSpec(num_frames=frames, sampling_rate=1, crop_size=224)
        return lambda: load_test_views(path, spec, 1, 1, "pyav")

    return [*of_model("frames", args, values, case), Growing("frames", "read a clip", values, read)]


def of_sizes(args: argparse.Namespace, folder: str) -> list[Growing]:
    """The model, and a clip read from a file of that size, against the side of the pictures."""
    values = sorted(set(args.sizes))
    recipes = [Recipe(f"size_{size}", size, size, seconds=2) for size in values]
    paths = dict(zip(values, make_videos(folder, recipes), strict=True))

    def case(size: int, mode: str = "forward") -> Case:
        return Case(args.model, mode=mode, input_size=(16, size, size))

    def read(size: int) -> Callable[[], Any]:
        spec = ClipSpec(num_frames=16, sampling_rate=2, crop_size=size)
        return lambda: load_test_views(paths[size], spec, 1, 1, "pyav")

    return [*of_model("size", args, values, case), Growing("size", "read a clip", values, read)]


def of_model(
    quantity: str, args: argparse.Namespace, values: Sequence[int], case: Callable[..., Case]
) -> list[Growing]:
    """The forward pass and the training step of the model."""
    builder = CaseBuilder(torch.device("cpu"))

    def bytes_of(mode: str) -> Callable[[int], int | None]:
        def measured(value: int) -> int | None:
            found = None if args.no_memory else memory.cpu_memory(case(value, mode))
            return found.peak if found else None

        return measured

    def call_of(mode: str) -> Callable[[int], Callable[[], Any]]:
        return lambda value: builder.candidate(case(value, mode)).run

    return [
        Growing(
            quantity,
            f"{args.model}, {mode}",
            values,
            call_of(mode),
            bytes_of(mode),
        )
        for mode in ("forward", "train")
    ]


def of_videos(counts: Sequence[int], folder: str) -> list[Growing]:
    """What a run does with its list of videos, against the length of the list."""
    values = sorted(set(counts))
    folders = {count: write_list(Path(folder) / str(count), count) for count in values}
    manifests = {count: read_manifest(folders[count], "train") for count in values}
    spec = ClipSpec(num_frames=16)
    train = {
        count: VideoDataset(manifests[count], TrainReader(TrainTransform(spec), seed=1))
        for count in values
    }
    test = {count: VideoDataset(manifests[count], TestReader(spec)) for count in values}

    def start_of_epoch(count: int) -> Callable[[], Any]:
        loader = build_loader(train[count], LoaderSettings(batch_size=8))
        return lambda: next(iter(loader._sampler))

    def whole_epoch(count: int) -> Callable[[], Any]:
        loader = build_loader(train[count], LoaderSettings(batch_size=8))
        return lambda: sum(len(batch) for batch in loader._sampler)

    def start_of_test(count: int) -> Callable[[], Any]:
        loader = build_loader(test[count], LoaderSettings(batch_size=8))
        return lambda: next(iter(loader._sampler))

    def read(count: int) -> Callable[[], Any]:
        return lambda: read_manifest(folders[count], "train")

    tasks = {
        "read the list": read,
        "first batch of an epoch": start_of_epoch,
        "all batches of an epoch": whole_epoch,
        "first batch of a test": start_of_test,
    }
    return [Growing("videos", name, values, call) for name, call in tasks.items()]


def write_list(folder: Path, count: int) -> str:
    """A folder with a list of `count` videos (the same empty file) in 400 classes."""
    folder.mkdir()
    (folder / "video.mp4").touch()
    lines = [f"video.mp4 {i % 400}\n" for i in range(count)]
    (folder / "train.csv").write_text("".join(lines), encoding="utf-8")
    return str(folder)


# ---- measuring ----------------------------------------------------------------------------------


def row_of(task: Growing, repeats: int) -> Row:
    """Measure a task; the row of its table."""
    milliseconds, held = [], []
    for value in task.values:
        progress(f"{task.task}: {value} {task.quantity}")
        call = task.call(value)
        call()
        milliseconds.append(1e3 * statistics.median(cpu_seconds(call) for _ in range(repeats)))
        held.append(traced(call) if task.memory is None else task.memory(value))
        del call
    progress("")
    mebibytes = [None if size is None else size / 2**20 for size in held]
    known = [size for size in held if size is not None]
    return {
        "quantity": task.quantity,
        "task": task.task,
        "values": list(task.values),
        "ms": milliseconds,
        "memory_bytes": held,
        "exponent": exponent(task.values, milliseconds),
        "last_exponent": exponent(task.values[-2:], milliseconds[-2:]),
        "memory_exponent": exponent(task.values, known) if len(known) == len(held) else None,
        "values_text": " ".join(f"{value:,}" for value in task.values),
        "ms_text": " ".join(f"{value:.3g}" for value in milliseconds),
        "memory_text": " ".join(f"{x:.3g}" for x in mebibytes if x is not None) or None,
    }


def cpu_seconds(call: Callable[[], Any]) -> float:
    """CPU seconds of one call, from as many calls as take 20 ms."""
    calls = 0
    start = time.process_time()
    while True:
        call()
        calls += 1
        spent = time.process_time() - start
        if spent > 0.02:
            return spent / calls


def traced(call: Callable[[], Any]) -> int:
    """Most bytes that Python and NumPy held at once during a call, over those before it."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        call()
        return max(tracemalloc.get_traced_memory()[1] - before, 1)
    finally:
        tracemalloc.stop()


def exponent(values: Sequence[float], costs: Sequence[float]) -> float:
    """Slope of the straight line through (log value, log cost) that fits best."""
    slope, _ = np.polyfit(np.log(values), np.log(costs), 1)
    return float(slope)
