"""Whole loaders, timed in clips per second, for each number of worker processes."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader

from hiera_video.benchmarks import data_pytorchvideo, measure
from hiera_video.benchmarks.data_clips import OURS, PYTORCHVIDEO, ClipTask
from hiera_video.benchmarks.data_pytorchvideo import PyTorchVideoDataset
from hiera_video.benchmarks.tables import Column, Row, of_table
from hiera_video.clip_spec import ClipSpec
from hiera_video.compat import ensure_pytorchvideo
from hiera_video.data.loader import LoaderSettings, build_loader
from hiera_video.data.manifests.layouts import Manifest
from hiera_video.data.preload import PRELOAD
from hiera_video.engine.prefetch import DevicePrefetcher
from hiera_video.video.processes import fork_server, usable_cores

BATCH = 4
"""Videos in a loader's batch: small, so that the first batches come soon."""

LOADING = (
    Column("clips", of_table("loaders", "kind")),
    Column("library", of_table("loaders", "library")),
    Column("decoder", of_table("loaders", "decoder")),
    Column("workers", of_table("loaders", "workers")),
    Column("clips/s", of_table("loaders", "clips_per_s"), ".1f"),
    Column("min-max", of_table("loaders", "range")),
    Column("per worker", of_table("loaders", "clips_per_worker_s"), ".1f"),
    Column("x PyTorchVideo", of_table("loaders", "ratio"), ".2f"),
)


@dataclass
class LoaderRun:
    """One kind of loader with a number of workers: started, timed and ended, once per round."""

    facts: dict[str, Any]
    batches: Callable[[], tuple[Iterator[int], Callable[[], None]]]
    """Starts a loader; returns a stream of how many clips arrive, and a function that ends it."""
    rates: list[float] = field(default_factory=list)
    """Clips per second, one for each round."""

    def measure(self, seconds: float) -> None:
        """Measure clips per second over about `seconds`, from when every worker is at work."""
        stream, end = self.batches()
        try:
            for _ in range(self.facts["workers"]):
                next(stream)
            began, clips = time.perf_counter(), 0
            while not clips or time.perf_counter() - began < seconds:
                clips += next(stream)
            self.rates.append(clips / (time.perf_counter() - began))
        finally:
            end()


def fastest_decoders(rows: Sequence[Row], kind: str) -> dict[str, str]:
    """Library -> the decoder with the least CPU time of a worker, from rows of the stages."""
    best: dict[str, Row] = {}
    for row in rows:
        if row["table"] != "stages" or row["kind"] != kind:
            continue
        known = best.setdefault(row["library"], row)
        if row["worker_cpu_ms"] < known["worker_cpu_ms"]:
            best[row["library"]] = row
    return {library: row["decoder"] for library, row in best.items()}


def default_decoders(decoders: Sequence[str]) -> dict[str, str]:
    """Library -> the first decoder that it has, for when no stages were timed."""
    theirs = data_pytorchvideo.usable_decoders(decoders)
    return {OURS: decoders[0], **({PYTORCHVIDEO: theirs[0]} if theirs else {})}


def loading(
    kind: str,
    manifest: Manifest,
    spec: ClipSpec,
    decoders: dict[str, str],
    args: argparse.Namespace,
    device: torch.device,
) -> list[Row]:
    """Measure loaders; one row for each library and number of workers.

    Args:
        decoders: library -> its decoder.
    """
    runs = [
        LOADERS[library](ClipTask(kind, manifest, spec, decoder), workers, device)
        for workers in args.workers or worker_counts(usable_cores())
        for library, decoder in decoders.items()
    ]
    for number in range(min(3, args.repeats)):
        for i, loader_run in enumerate(runs):
            measure.progress(f"{kind} clips, round {number + 1}", i, len(runs), "loaders")
            loader_run.measure(args.seconds)
    measure.progress("")
    return [loader_row(loader_run, runs) for loader_run in runs]


def worker_counts(cores: int) -> list[int]:
    """1, 2, 4, ... and the number of cores."""
    counts = [1 << i for i in range(cores.bit_length()) if 1 << i <= cores]
    return counts if counts[-1] == cores else [*counts, cores]


def loader_row(loader_run: LoaderRun, runs: Sequence[LoaderRun]) -> Row:
    """The median over rounds, and the ratio to PyTorchVideo with as many workers."""
    facts, rates = loader_run.facts, loader_run.rates
    rate = statistics.median(rates)
    row = {
        "table": "loaders",
        **facts,
        "rates": rates,
        "clips_per_s": rate,
        "range": f"{min(rates):.1f}-{max(rates):.1f}",
        "clips_per_worker_s": rate / facts["workers"],
    }
    theirs = [
        other.rates
        for other in runs
        if other.facts["library"] == PYTORCHVIDEO and other.facts["workers"] == facts["workers"]
    ]
    if facts["library"] == OURS and theirs:
        pairs = zip(rates, theirs[0], strict=True)
        row["ratio"] = statistics.median(mine / other for mine, other in pairs)
    return row


def loader_facts(library: str, task: ClipTask, workers: int) -> dict[str, Any]:
    """Columns of a loader's row."""
    return {"kind": task.kind, "library": library, "decoder": task.decoder, "workers": workers}


def hiera_video_loader(task: ClipTask, workers: int, device: torch.device) -> LoaderRun:
    """This package's loader, up to normalised batches on the device."""
    dataset = task.dataset()
    settings = {"batch_size": BATCH, "stop_step": 1 << 30} if dataset.train else {"batch_size": 1}

    def batches() -> tuple[Iterator[int], Callable[[], None]]:
        loader = build_loader(
            dataset, LoaderSettings(num_workers=workers, pin_memory=True, **settings)
        )
        return (
            len(batch.clips) for batch in DevicePrefetcher(loader, device, task.spec)
        ), loader.close

    return LoaderRun(loader_facts(OURS, task, workers), batches)


def pytorchvideo_loader(task: ClipTask, workers: int, device: torch.device) -> LoaderRun:
    """The same with PyTorchVideo's `LabeledVideoDataset` and samplers."""
    ensure_pytorchvideo()
    manifest = task.manifest
    paths: list[tuple[str, dict[str, Any]]] = [
        (manifest.paths[i], {"label": manifest.label(i)}) for i in range(len(manifest))
    ]

    def batches() -> tuple[Iterator[int], Callable[[], None]]:
        loader = DataLoader(
            PyTorchVideoDataset(paths, task.kind, task.spec, task.decoder),
            batch_size=BATCH,
            num_workers=workers,
            multiprocessing_context=fork_server(PRELOAD),
            pin_memory=device.type == "cuda",
        )
        iterator: Any = iter(loader)  # torch's type has no _shutdown_workers

        arriving = (len(clips.to(device, non_blocking=True)) for clips in iterator)
        return arriving, iterator._shutdown_workers

    return LoaderRun(loader_facts(PYTORCHVIDEO, task, workers), batches)


LOADERS = {OURS: hiera_video_loader, PYTORCHVIDEO: pytorchvideo_loader}
"""Library -> the function that makes its `LoaderRun`."""
