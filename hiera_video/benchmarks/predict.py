"""`predict`: files to labels as `hiera-video predict` does it, from a cold start and one by one."""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from hiera_video.benchmarks import machine, measure, tables
from hiera_video.benchmarks.data import describe, usable_decoders
from hiera_video.benchmarks.labelling import TimedProcess, load, time_forward
from hiera_video.benchmarks.measure import Candidate
from hiera_video.benchmarks.stopwatch import Stopwatch
from hiera_video.benchmarks.tables import Column, Row
from hiera_video.benchmarks.videos import Recipe, benchmark_videos
from hiera_video.data.views import parse_views
from hiera_video.errors import RunFailed
from hiera_video.models import build_model
from hiera_video.models.weights.resolve import BUNDLED_CLASSIFIER
from hiera_video.predict import Predictor
from hiera_video.video.decoding_process import decoding_process, processes_for

RANDOM = "random"
"""Value of --weights: the model's initial weights, written to a file first."""

FILES = (
    Recipe("small", 340, 256),
    Recipe("hd", 1280, 720),
    Recipe("full_hd", 1920, 1080, seconds=5),
    Recipe("hevc", 1280, 720, codec="hevc"),
    Recipe("vp9", 640, 360, codec="vp9"),
)
"""The generated files: sizes and codecs of phones, cameras and the web."""

COLUMNS = (
    Column("model", "model"),
    Column("weights", "weights"),
    Column("views", "views"),
    Column("decoder", "decoder"),
    Column("start", "start"),
    Column("file", "file"),
    *tables.TIMES,
    Column("files/min", "files_per_min", ".1f"),
    Column("python", "python_ms", ".0f"),
    Column("import", "import_ms", ".0f"),
    Column("weights ms", "weights_ms", ".0f"),
    Column("torch alone", "torch_ms", ".0f"),
    Column("decode", "decode_ms", ".0f"),
    Column("forward", "forward_ms", ".0f"),
    Column("rest", "rest_ms", ".0f"),
)

NOTES = (
    "Steady: a process that labels file after file; one call: `Predictor.label_files`, which reads "
    "ahead in processes, beside the same files one by one.",
    "Cold: from the command `hiera-video predict` to its first label, with Python's compiled "
    "modules in place, as from the second start on. Its parts are those of a process that does "
    "the same with a clock: python is the interpreter and the light imports, import that of torch "
    "and of this package; the process that reads videos starts beside it. Torch alone: `python -c "
    "'import torch'`. The three take turns.",
    "Milliseconds of one file, medians. Decode: opening, decoding and cropping, in the process "
    "that reads videos, and the way from there; forward: the model; rest: all else.",
)


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    device = machine.device_of(args)
    usable_decoders([name for name in args.decoders if name != "auto"])
    views = [parse_views(text) for text in args.views]
    facts = machine.machine_facts(device, ["torchcodec", "av", "decord"])
    with (
        tables.Report(args, facts=facts, columns=COLUMNS) as report,
        TemporaryDirectory(prefix="hiera_video_benchmark_") as folder,
        benchmark_videos(args.videos, FILES) as paths,
    ):
        report.notes += NOTES
        labels = {path: describe(path) for path in paths}
        for choice in choices(args, Path(folder)):
            for (num_views, num_crops), decoder in (
                (pair, name) for pair in views for name in args.decoders
            ):
                asked = replace(choice, views=f"{num_views}x{num_crops}", decoder=decoder)
                report.rows += steady(asked, labels, args, device)
                if len(labels) > 1:
                    report.rows += many(asked, labels, args, device)
                if not args.no_cold:
                    report.rows.append(cold(asked, paths[0], labels[paths[0]], args))
    return 0


# ---- what is run --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A predictor, by the options of the demo."""

    model: str | None
    weights: str | None
    name: str
    """Of the weights, for the table."""
    labels: str | None = None
    views: str = "5x3"
    decoder: str = "auto"

    def facts(self) -> dict[str, Any]:
        """Columns of its rows."""
        return {
            "model": self.model,
            "weights": self.name,
            "views": self.views,
            "decoder": self.decoder,
        }

    def words(self, args: argparse.Namespace) -> list[str]:
        """The options on a command line."""
        named = {
            "--model": self.model,
            "--weights": self.weights,
            "--labels": self.labels,
            "--views": self.views,
            "--decoder": self.decoder,
            "--batch-size": args.batch_size,
            "--device": args.device,
            "--dtype": args.dtype,
        }
        return [str(word) for pair in named.items() if pair[1] is not None for word in pair]


def choices(args: argparse.Namespace, folder: Path) -> Iterator[Choice]:
    """The predictor asked for; by default the bundled model and a base one with random weights."""
    if args.model is None and args.weights is None:
        yield Choice(None, BUNDLED_CLASSIFIER, BUNDLED_CLASSIFIER)
        yield with_random_weights("hiera_base_16x224", folder)
    elif args.weights == RANDOM or args.weights is None:
        yield with_random_weights(args.model or "hiera_base_16x224", folder)
    else:
        yield Choice(args.model, args.weights, Path(args.weights).name)


def with_random_weights(model: str, folder: Path) -> Choice:
    """A model with its initial weights in a file, and a file of class names."""
    torch.manual_seed(0)
    built: Any = build_model(model)
    path = folder / f"{model}.pyth"
    torch.save({"model_state": built.state_dict()}, path)
    names = folder / f"{model}.txt"
    names.write_text("".join(f"class {i}\n" for i in range(built.num_classes)))
    return Choice(model, str(path), RANDOM, labels=str(names))


# ---- file after file ----------------------------------------------------------------------------


def steady(
    choice: Choice, labels: dict[str, str], args: argparse.Namespace, device: torch.device
) -> list[Row]:
    """Label file after file in one process; one row for each file.

    Args:
        labels: path -> description for the table.
    """
    watch = Stopwatch()
    asked = argparse.Namespace(**{**vars(choice), **settings(args)})
    with decoding_process() as process, quiet():
        predictor = load(asked, TimedProcess(process, watch))
        time_forward(predictor, watch)
        candidates = [file_candidate(predictor, path, watch) for path in labels]
        for candidate, path in zip(candidates, labels, strict=True):
            candidate.facts |= {**choice.facts(), "start": "steady", "file": labels[path]}
            candidate.facts["model"] = predictor.model_name
        measure.interleave(candidates, repeats=args.repeats, device=device)
    return [steady_row(candidate) for candidate in candidates]


def many(
    choice: Choice, labels: dict[str, str], args: argparse.Namespace, device: torch.device
) -> list[Row]:
    """Label all files one by one, and all in one call: a row for each way, of all files."""
    asked = argparse.Namespace(**{**vars(choice), **settings(args)})
    paths = list(labels)
    with decoding_process() as one, decoding_process(processes_for(len(paths))) as several, quiet():
        alone, together = load(asked, one), load(asked, several)
        ways = {
            "one by one": lambda: [alone(path) for path in paths],
            "one call": lambda: list(together.label_files(paths)),
        }
        candidates = [
            Candidate({**choice.facts(), "start": name, "model": alone.model_name}, run=way)
            for name, way in ways.items()
        ]
        measure.interleave(candidates, repeats=args.repeats, device=device)
    rows = [measure.row_of(candidate) for candidate in candidates]
    for row in rows:
        row["file"] = f"all {len(paths)}"
        row["files_per_min"] = 60e3 * len(paths) / row["ms"]
    return rows


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The options that all predictors share."""
    return {"device": args.device, "dtype": args.dtype, "batch_size": args.batch_size}


def file_candidate(predictor: Predictor, path: str, watch: Stopwatch) -> Candidate:
    """A candidate whose call labels the file."""

    def label() -> None:
        watch.reset()
        predictor(path)

    return Candidate({}, run=label, parts=lambda: dict(watch.seconds))


def steady_row(candidate: Candidate) -> Row:
    """The row of a file: its times, and the rest that is neither decoding nor the model."""
    row = measure.row_of(candidate)
    parts = row.pop("parts_ms")
    row |= {f"{part}_ms": parts[part] for part in ("decode", "forward")}
    row["rest_ms"] = max(row["ms"] - sum(parts.values()), 0.0)
    row["files_per_min"] = 60e3 / row["ms"]
    return row


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what libraries print while loading to stderr, away from the table."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


# ---- cold starts --------------------------------------------------------------------------------


def cold(choice: Choice, path: str, label: str, args: argparse.Namespace) -> Row:
    """Label one file in fresh processes, and import torch in others, in turns; the row of it."""
    labelled, staged, torch_alone = [], [], []
    for number in range(args.repeats + 1):
        measure.progress(f"cold start {number}")
        staged.append(cold_start(choice, path, args))  # first, because it says why it fails
        labelled.append(1e3 * first_label(choice, path, args))
        torch_alone.append(1e3 * import_torch_alone())
    measure.progress("")
    # The first of each fills the system's file cache, and compiles Python modules.
    labelled, staged, torch_alone = labelled[1:], staged[1:], torch_alone[1:]
    stages = {
        f"{stage}_ms": 1e3 * statistics.median(run["seconds"][stage] for run in staged)
        for stage in ("python", "import", "weights")
    }
    parts = {
        f"{part}_ms": 1e3 * statistics.median(run["parts"][part] for run in staged)
        for part in ("decode", "forward")
    }
    return {
        **choice.facts(),
        "model": staged[0]["model"],
        "start": "cold",
        "file": label,
        "repeats": len(labelled),
        "ms": statistics.median(labelled),
        "ms_min": min(labelled),
        "ms_max": max(labelled),
        "torch_ms": statistics.median(torch_alone),
        "runs": [
            {**run, "first_label_ms": first, "torch_ms": alone}
            for run, first, alone in zip(staged, labelled, torch_alone, strict=True)
        ],
        **stages,
        **parts,
    }


def first_label(choice: Choice, path: str, args: argparse.Namespace) -> float:
    """Seconds from the command `hiera-video predict` to the first label that it prints.

    Raises RunFailed where it prints none.
    """
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "hiera_video", "predict", path, *choice.words(args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=machine.child_environment(),
    ) as command:
        assert command.stdout is not None
        # To the end, so that the command never writes into a pipe that is closed.
        times = [time.perf_counter() for line in command.stdout if line.startswith("    1 ")]
    if not times:
        raise RunFailed(f"`hiera-video predict {path}` printed no label")
    return times[0] - start


def import_torch_alone() -> float:
    """Seconds of a fresh process that imports torch and ends: nothing with torch is faster."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", "import torch"], check=True, env=machine.child_environment()
    )
    return time.perf_counter() - start


def cold_start(choice: Choice, path: str, args: argparse.Namespace) -> dict[str, Any]:
    """Label a file in a fresh process; returns what it printed.

    Raises RunFailed where it cannot label the file.
    """
    command = [sys.executable, "-m", "hiera_video.benchmarks.cold_start"]
    done = subprocess.run(
        [*command, str(time.time()), path, *choice.words(args)],
        capture_output=True,
        text=True,
        env=machine.child_environment(),
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        reason = said[0] if said else done.stderr.strip()[-500:]
        raise RunFailed(f"a fresh process failed: {reason}")
    return json.loads(done.stdout.splitlines()[-1])
