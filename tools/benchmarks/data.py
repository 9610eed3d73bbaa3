"""`data`: from video files to batches on a device, by stage and per core, beside PyTorchVideo.

Every contender reads the same clips: the same files and frames, crops of the same sizes. Ours runs
the loader's own code; PyTorchVideo's runs its `EncodedVideo` and transforms, put together in the
order that costs it least (its factory normalises and augments before it crops).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from benchmarks import machine, measure, tables
from benchmarks.measure import Contender
from benchmarks.steps import Case, Workbench
from benchmarks.stopwatch import Stopwatch
from benchmarks.tables import Column, Row
from benchmarks.videos import Recipe, benchmark_videos
from hiera_video.clip_spec import ClipSpec
from hiera_video.compat import ensure_pytorchvideo
from hiera_video.data import datasets
from hiera_video.data.datasets import VideoDataset, build_loader
from hiera_video.data.manifests.layouts import Manifest, read_manifest
from hiera_video.data.preload import PRELOAD
from hiera_video.data.transforms.train import Pixels, TrainTransform
from hiera_video.data.views import views_of
from hiera_video.engine.prefetch import DevicePrefetcher
from hiera_video.errors import UserError
from hiera_video.preparation.transcode import usable_cores
from hiera_video.video.decode import DECODERS, available_decoders, open_video
from hiera_video.video.processes import fork_server
from hiera_video.video.sampling import span

OURS, PYTORCHVIDEO = "hiera_video", "pytorchvideo"
THEIR_DECODERS = ("pyav", "decord")
"""Those of PyTorchVideo that work with today's libraries."""

POLICY = "rand-m7-mstd0.5-inc1"
KINDS = ("train", "augmented", "test")
"""train: a random place, crop and flip, as in pretraining. augmented: RandAugment and erasing too,
as in fine-tuning. test: 5 clips x 3 crops of each video."""
VIEWS, CROPS = 5, 3
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)

STAGES = ("open", "decode", "crop", "augment", "collate", "normalise")
BATCH = 4
"""Videos in a loader's batch: small, so that a rate is known soon."""
MANY = 1000
"""Times that a loader's list names each video: none comes to its end while it is timed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `data`."""
    add = parser.add_argument
    add("--videos", metavar="FOLDER", help="measure with these (generated: 10 s, 340x256, H.264)")
    add("--clips", type=machine.positive, default=4, help="videos to generate or take (4)")
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of clips (all)")
    add("--decoders", nargs="+", choices=DECODERS, help="all that work here")
    add("--frames", type=machine.positive, default=16, help="of a clip (16)")
    add("--rate", type=machine.positive, default=4, help="distance of its frames at 30 fps (4)")
    add("--crop", type=machine.positive, default=224, help="side of its pictures (224)")
    add("--loaders", nargs="*", choices=KINDS, default=["augmented", "test"], help="whole loaders")
    add("--workers", nargs="+", type=machine.positive, help="of loaders (1, 2, 4, ... cores)")
    add("--seconds", type=float, default=3.0, help="for which each loader is timed (3)")
    add("--feeds", type=float, metavar="CLIPS_PER_S", help="what a model takes: cores for that")
    add("--model", metavar="NAME", help="the same, of this model's training step, timed here")
    add("--batch", type=machine.positive, default=8, help="clips of that step (8)")
    add("--dtype", help="of that step (bf16 on a GPU, fp32 on a CPU)")
    machine.add_machine_arguments(parser, repeats=5)
    tables.add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    device = machine.device_of(args)
    decoders = usable_decoders(args.decoders)
    packages = ["torchcodec", "av", "decord", PYTORCHVIDEO]
    facts = {**machine.machine_facts(device, packages), "cores": usable_cores()}
    spec = ClipSpec(num_frames=args.frames, sampling_rate=args.rate, crop_size=args.crop)
    recipes = [Recipe(f"video_{i}", seed=i) for i in range(args.clips)]
    with (
        tables.Report(args, facts=facts, columns=BY_STAGE, more=further_tables(args)) as report,
        benchmark_videos(args.videos, recipes) as paths,
        TemporaryDirectory(prefix="hiera_video_benchmark_") as folder,
    ):
        manifest = write_list(folder, paths[: args.clips])
        many = write_list(folder, paths[: args.clips], times=MANY)
        report.record["clip"] = spec.to_dict()
        report.record["files"] = [describe(path) for path in paths[: args.clips]]
        report.notes += notes(report.record["files"], spec)
        for kind in args.kinds:
            report.rows += by_stage(kind, manifest, spec, decoders, args)
        for kind in args.loaders:
            chosen = quickest(report.rows, kind) or default_decoders(decoders)
            report.rows += loading(kind, many, spec, chosen, args, device)
        report.rows += feeding(report.rows, args, device)
    return 0


def further_tables(args: argparse.Namespace) -> list[Sequence[Column]]:
    """Those that there will be."""
    loaders = [LOADING] if args.loaders else []
    return loaders + ([FEEDING] if args.feeds or args.model else [])


def notes(files: Sequence[str], spec: ClipSpec) -> list[str]:
    """What the tables do not say by themselves."""
    return [
        f"{len(files)} videos: {'; '.join(sorted(set(files)))}. Clips of {spec.num_frames} frames, "
        f"{spec.crop_size}x{spec.crop_size}; milliseconds for one, one thread, medians.",
        "The CPU time is that of a loader's worker, of all its threads: ours leaves normalising to "
        "the device. Clips per second and core follow from it.",
        "PyTorchVideo reads the file whole, decodes every frame of a clip's span to float32 and "
        "scales without antialiasing, on floats; it has no random erasing. Ours decodes the frames "
        "that the clip has, with the frames that these need, and stays in bytes.",
    ]


def usable_decoders(wanted: Sequence[str] | None) -> list[str]:
    """Those asked for, or all that work here.

    Raises UserError for one that does not work.
    """
    failures = available_decoders()
    for name in wanted or ():
        if failures[name]:
            raise UserError(f"--decoders {name}: it {failures[name]}")
    return list(wanted or (name for name in DECODERS if failures[name] is None))


def write_list(folder: str, paths: Sequence[str], times: int = 1) -> Manifest:
    """A list of the videos, as data sets take them, each so many times."""
    lines = [f"{os.path.abspath(path)}\t{i}\n" for i, path in enumerate(paths)] * times
    (Path(folder) / "train.csv").write_text("".join(lines), encoding="utf-8")
    return read_manifest(folder, "train", separator="\t")


def describe(path: str) -> str:
    """ "340x256 h264, 300 frames, 30 fps"."""
    with open_video(path) as reader:
        i = reader.info
        return f"{i.width}x{i.height} {i.codec}, {i.num_frames} frames, {i.fps:.4g} fps"


# ---- by stage -----------------------------------------------------------------------------------


def _only(table: str, key: str) -> Callable[[Row], Any]:
    """Shows a key of the rows of one table, and nothing of the others."""
    return lambda row: row.get(key) if row["table"] == table else None


BY_STAGE = (
    Column("clips", _only("stages", "kind")),
    Column("library", _only("stages", "library")),
    Column("decoder", _only("stages", "decoder")),
    *(Column(stage, _only("stages", f"{stage}_ms"), ".1f") for stage in STAGES),
    Column("all ms", _only("stages", "ms"), ".1f"),
    Column("min-max", lambda row: tables.spread(row) if row["table"] == "stages" else None),
    Column("worker CPU ms", _only("stages", "worker_cpu_ms"), ".1f"),
    Column("clips/s per core", _only("stages", "clips_per_core_s"), ".1f"),
    Column("x PyTorchVideo", _only("stages", "ratio"), ".2f"),
)


def by_stage(
    kind: str,
    manifest: Manifest,
    spec: ClipSpec,
    decoders: Sequence[str],
    args: argparse.Namespace,
) -> list[Row]:
    """One row for each library and decoder."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader's worker
    try:
        pipelines: list[Pipeline] = [Ours(kind, manifest, spec, name) for name in decoders]
        pipelines += [Theirs(kind, manifest, spec, name) for name in their_decoders(decoders)]
        contenders = [
            Contender(
                facts={"table": "stages", "kind": kind, **pipeline.facts},
                run=pipeline,
                samples=pipeline.clips,
                parts=pipeline.parts,
            )
            for pipeline in pipelines
        ]
        measure.interleave(contenders, repeats=args.repeats, device=torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)
    return [stage_row(c, reference_for(c, contenders)) for c in contenders]


def their_decoders(decoders: Sequence[str]) -> list[str]:
    """What PyTorchVideo can be measured with here."""
    if machine.installed_version(PYTORCHVIDEO) is None:
        print("PyTorchVideo is not installed (pip install pytorchvideo==0.1.5): ours alone")
        return []
    return [name for name in THEIR_DECODERS if name in decoders]


def reference_for(contender: Contender, contenders: Sequence[Contender]) -> Contender | None:
    """PyTorchVideo on the same decoder, or where it has none, on the one it takes by default."""
    if contender.facts["library"] == PYTORCHVIDEO:
        return None
    theirs = {c.facts["decoder"]: c for c in contenders if c.facts["library"] == PYTORCHVIDEO}
    return theirs.get(contender.facts["decoder"]) or theirs.get("pyav")


def stage_row(contender: Contender, reference: Contender | None) -> Row:
    """All times in milliseconds for one clip."""
    row = measure.row_of(contender)
    for key in ("ms", "ms_min", "ms_max"):
        row[key] /= contender.samples
    parts = row.pop("parts_ms")
    row |= {f"{stage}_ms": parts[stage] / contender.samples for stage in STAGES if stage in parts}
    row["worker_cpu_ms"] = parts["worker CPU"] / contender.samples
    row["clips_per_core_s"] = 1e3 / row["worker_cpu_ms"]
    row["ratio"] = measure.ratio_of(contender, reference)
    return row


class Pipeline:
    """One call reads every video of the list once, and makes one batch of it."""

    library: str
    in_worker: tuple[str, ...] = STAGES
    """Stages that a loader's worker does."""

    def __init__(self, kind: str, manifest: Manifest, spec: ClipSpec, decoder: str) -> None:
        self.spec, self.decoder, self.watch = spec, decoder, Stopwatch()
        self.dataset = data_set(kind, manifest, spec, decoder, watch=self.watch)
        self.facts = {"library": self.library, "decoder": decoder}
        self.clips = len(manifest) * self.dataset.clips_per_video
        self.calls = itertools.count()

    def __call__(self) -> Tensor:
        """float32 [clips, 3, T, S, S], normalised."""
        self.watch.reset()
        epoch = next(self.calls)
        return self.batch([self.dataset.sample(i, epoch) for i in range(len(self.dataset))])

    def batch(self, samples: Sequence[datasets.Sample]) -> Tensor:
        """The clips of those videos, normalised, in one tensor."""
        raise NotImplementedError

    def parts(self) -> dict[str, float]:
        """Seconds of the last call, by stage, and those of its worker's processor."""
        cpu = sum(self.watch.cpu_seconds[stage] for stage in self.in_worker)
        return {**self.watch.seconds, "worker CPU": cpu}


def data_set(
    kind: str, manifest: Manifest, spec: ClipSpec, decoder: str, watch: Stopwatch | None = None
) -> VideoDataset:
    """The library's own; its augmentation is watched."""
    if kind == "test":
        return VideoDataset(manifest, spec, num_views=VIEWS, num_crops=CROPS, decoder=decoder)
    heavy = {"rand_augment": POLICY, "erase_prob": 0.25} if kind == "augmented" else {}
    transform = WatchedTransform(spec, area=AREA, aspect=ASPECT, watch=watch, **heavy)
    return VideoDataset(manifest, spec, transform=transform, decoder=decoder)


@dataclass(frozen=True)
class WatchedTransform(TrainTransform):
    """Says how long it augments."""

    watch: Stopwatch | None = None

    def augment(self, frames: Tensor, generator: torch.Generator) -> Pixels:
        """As it always does."""
        if self.watch is None:
            return super().augment(frames, generator)
        with self.watch("augment"):
            return super().augment(frames, generator)


class WatchedReader:
    """An open video that says how long it decodes."""

    def __init__(self, reader: Any, watch: Stopwatch) -> None:
        self.info, self._reader, self._watch = reader.info, reader, watch

    def read(self, indices: Any) -> Tensor:
        """As the reader does."""
        with self._watch("decode"):
            return self._reader.read(indices)


class Ours(Pipeline):
    """The code of a loader's worker, and of the device it feeds."""

    library = OURS
    in_worker = STAGES[:-1]

    def batch(self, samples: Sequence[datasets.Sample]) -> Tensor:
        """See `Pipeline`."""
        items = []
        for sample in samples:
            with self.watch("open"):
                reader = open_video(sample.path, self.decoder)
            with self.watch("crop"):
                clips = self.dataset.reader.read(WatchedReader(reader, self.watch), sample)
            with self.watch("open"):
                reader.close()
            items.append(datasets.Clips(clips, sample.label, sample.video_id))
        with self.watch("collate"):
            batch = datasets.Collate(self.spec, 0)(items)
        with self.watch("normalise"):
            return batch.normalized(self.spec).clips


class Theirs(Pipeline):
    """`EncodedVideo` and transforms of PyTorchVideo, on the frames and boxes that ours takes."""

    library = PYTORCHVIDEO

    def __init__(self, kind: str, manifest: Manifest, spec: ClipSpec, decoder: str) -> None:
        super().__init__(kind, manifest, spec, decoder)
        self.transform = TheirTransform(kind, spec, watch=self.watch)
        self.info = {}
        for i in range(len(manifest)):
            with open_video(manifest.paths[i]) as reader:
                self.info[i] = reader.info

    def batch(self, samples: Sequence[datasets.Sample]) -> Tensor:
        """See `Pipeline`."""
        clips = []
        for sample in samples:
            clips += self._clips(sample)
        with self.watch("collate"):
            return default_collate(clips)

    def _clips(self, sample: datasets.Sample) -> list[Tensor]:
        places, box = self._draw(sample)
        clips = []
        with lent_decord(self.decoder), self.watch("open"):
            video = open_encoded(sample.path, self.decoder)
        for start, end in places:
            with lent_decord(self.decoder), self.watch("decode"):
                clip = self.transform.subsample(video.get_clip(start, end)["video"])
            clips += self.transform.views(clip) if box is None else [self.transform(clip, box)]
        with self.watch("open"):
            video.close()
        return clips

    def _draw(self, sample: datasets.Sample) -> tuple[list[tuple[Fraction, Fraction]], Any]:
        """When each clip begins and ends, in seconds, and (area, aspect) of the crop's box."""
        info, reader = self.info[sample.video_id], self.dataset.reader
        box = None
        if self.dataset.train:
            ((indices, generator),) = reader.draw(info, sample)
            crop = reader.transform.draw_crop(info.height, info.width, generator)
            area = crop.height * crop.width / (info.height * info.width)
            box = (area, crop.width / crop.height)
            starts = [indices[0]]
        else:
            starts = [view[0] for view in views_of(_Known(info), self.spec, VIEWS)]
        fps = Fraction(info.fps).limit_denominator(1001)
        frames = clip_frames(self.spec, info.fps)
        return [(int(start) / fps, (int(start) + frames) / fps) for start in starts], box


@dataclass(frozen=True)
class _Known:
    """A video whose facts are known, in the place of one that is open."""

    info: Any


def clip_frames(spec: ClipSpec, fps: float) -> int:
    """Frames of a video that a clip stretches over."""
    return math.floor(span(spec.num_frames, spec.sampling_rate, fps, spec.target_fps))


def open_encoded(path: str, decoder: str) -> Any:
    """PyTorchVideo's open video."""
    from pytorchvideo.data.encoded_video import EncodedVideo

    return EncodedVideo.from_path(path, decode_audio=False, decoder=decoder)


@contextlib.contextmanager
def lent_decord(decoder: str) -> Iterator[None]:
    """PyTorchVideo has decord give tensors, in the whole process; afterwards it gives again what
    our reader takes."""
    if decoder != "decord":
        yield
        return
    import decord

    decord.bridge.set_bridge("torch")
    try:
        yield
    finally:
        decord.bridge.set_bridge("native")


class TheirTransform:
    """PyTorchVideo's transforms for one kind of clips; goes to a worker by its arguments."""

    def __init__(self, kind: str, spec: ClipSpec, watch: Stopwatch | None = None) -> None:
        ensure_pytorchvideo()
        from pytorchvideo import transforms as ptv
        from torchvision.transforms import RandomHorizontalFlip

        self.kind, self.spec, self.watch = kind, spec, watch or Stopwatch()
        self.subsample = ptv.UniformTemporalSubsample(spec.num_frames)
        self.scale = ptv.ShortSideScale(spec.crop_size)
        self.flip = RandomHorizontalFlip()
        self.to_unit = ptv.Div255()
        self.normalise = ptv.Normalize(spec.mean, spec.std)
        self.policy = ptv.RandAugment(magnitude=7, num_layers=2, prob=0.5)

    def __reduce__(self) -> tuple:
        return (TheirTransform, (self.kind, self.spec))

    def __call__(self, clip: Tensor, box: tuple[float, float] | None = None) -> Tensor:
        """A training clip, float32 [3, T, H, W] of levels 0 to 255, cropped (to a box of that area
        and aspect, or to any), augmented, normalised: [3, T, S, S]."""
        from pytorchvideo.transforms.functional import random_resized_crop

        side = self.spec.crop_size
        area, aspect = (AREA, ASPECT) if box is None else ((box[0],) * 2, (box[1],) * 2)
        with self.watch("crop"):
            clip = self.flip(random_resized_crop(clip, side, side, area, aspect))
        if self.kind == "augmented":
            with self.watch("augment"):
                frames = clip.to(torch.uint8).permute(1, 0, 2, 3)
                clip = self.policy(frames).permute(1, 0, 2, 3)
        return self._normalised(clip)

    def views(self, clip: Tensor) -> list[Tensor]:
        """The crops of a test clip."""
        from pytorchvideo.transforms.functional import uniform_crop

        with self.watch("crop"):
            clip = self.scale(clip)
            crops = [uniform_crop(clip, self.spec.crop_size, place) for place in range(CROPS)]
        return [self._normalised(crop) for crop in crops]

    def _normalised(self, clip: Tensor) -> Tensor:
        with self.watch("normalise"):
            return self.normalise(self.to_unit(clip))


# ---- the whole loader ---------------------------------------------------------------------------

LOADING = (
    Column("clips", _only("loaders", "kind")),
    Column("library", _only("loaders", "library")),
    Column("decoder", _only("loaders", "decoder")),
    Column("workers", _only("loaders", "workers")),
    Column("clips/s", _only("loaders", "clips_per_s"), ".1f"),
    Column("min-max", _only("loaders", "range")),
    Column("per worker", _only("loaders", "clips_per_worker_s"), ".1f"),
    Column("x PyTorchVideo", _only("loaders", "ratio"), ".2f"),
)


@dataclass
class LoaderRun:
    """Whole loaders of one kind, with a number of workers; each is started, timed, and ended."""

    facts: dict[str, Any]
    batches: Callable[[], tuple[Iterator[int], Callable[[], None]]]
    """Gives a stream of the numbers of clips that arrive, and what ends it."""
    rates: list[float] = field(default_factory=list)

    def measure(self, seconds: float) -> None:
        """Clips a second, over about so many seconds, once every worker is at work."""
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


def quickest(rows: Sequence[Row], kind: str) -> dict[str, str]:
    """Library -> the decoder with which its workers take the least time, as the stages say."""
    best: dict[str, Row] = {}
    for row in rows:
        if row["table"] != "stages" or row["kind"] != kind:
            continue
        known = best.setdefault(row["library"], row)
        if row["worker_cpu_ms"] < known["worker_cpu_ms"]:
            best[row["library"]] = row
    return {library: row["decoder"] for library, row in best.items()}


def default_decoders(decoders: Sequence[str]) -> dict[str, str]:
    """Library -> the first decoder that it has, where no stages were timed."""
    theirs = their_decoders(decoders)
    return {OURS: decoders[0], **({PYTORCHVIDEO: theirs[0]} if theirs else {})}


def loading(
    kind: str,
    manifest: Manifest,
    spec: ClipSpec,
    decoders: dict[str, str],
    args: argparse.Namespace,
    device: torch.device,
) -> list[Row]:
    """One row for each library and number of workers. decoders: of each library."""
    runs = [
        LOADERS[library](kind, manifest, spec, decoder, workers, device)
        for workers in args.workers or worker_counts(usable_cores())
        for library, decoder in decoders.items()
    ]
    for number in range(min(3, args.repeats)):
        for i, loader_run in enumerate(runs):
            measure.progress(f"loaders of {kind} clips, round {number + 1}: {i + 1}/{len(runs)}")
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


def our_loader(
    kind: str,
    manifest: Manifest,
    spec: ClipSpec,
    decoder: str,
    workers: int,
    device: torch.device,
) -> LoaderRun:
    """Batches that arrive on the device, normalised."""
    dataset = data_set(kind, manifest, spec, decoder)
    settings = {"batch_size": BATCH, "stop_step": 1 << 30} if dataset.train else {"batch_size": 1}

    def batches() -> tuple[Iterator[int], Callable[[], None]]:
        loader = build_loader(dataset, num_workers=workers, pin_memory=True, **settings)
        return (len(batch.clips) for batch in DevicePrefetcher(loader, device, spec)), loader.close

    facts = {"kind": kind, "library": OURS, "decoder": decoder, "workers": workers}
    return LoaderRun(facts, batches)


def their_loader(
    kind: str,
    manifest: Manifest,
    spec: ClipSpec,
    decoder: str,
    workers: int,
    device: torch.device,
) -> LoaderRun:
    """The same by `LabeledVideoDataset`, with its own samplers."""
    ensure_pytorchvideo()
    paths = [(manifest.paths[i], {"label": manifest.label(i)}) for i in range(len(manifest))]

    def batches() -> tuple[Iterator[int], Callable[[], None]]:
        loader = DataLoader(
            TheirDataset(paths, kind, spec, decoder),
            batch_size=BATCH,
            num_workers=workers,
            multiprocessing_context=fork_server(PRELOAD),
            pin_memory=device.type == "cuda",
        )
        iterator = iter(loader)

        arriving = (len(clips.to(device, non_blocking=True)) for clips in iterator)
        return arriving, iterator._shutdown_workers

    facts = {"kind": kind, "library": PYTORCHVIDEO, "decoder": decoder, "workers": workers}
    return LoaderRun(facts, batches)


@dataclass
class TheirDataset(torch.utils.data.IterableDataset):
    """The clips of PyTorchVideo's `LabeledVideoDataset` over a list of videos."""

    paths: list[tuple[str, dict]]
    kind: str
    spec: ClipSpec
    decoder: str

    def __iter__(self) -> Iterator[Tensor]:
        ensure_pytorchvideo()
        from pytorchvideo.data import LabeledVideoDataset, make_clip_sampler

        seconds = Fraction(self.spec.num_frames * self.spec.sampling_rate) / Fraction(
            self.spec.target_fps
        )
        sampler = make_clip_sampler("random", seconds)
        if self.kind == "test":
            sampler = make_clip_sampler("constant_clips_per_video", seconds, VIEWS, CROPS)
        transform = TheirTransform(self.kind, self.spec)
        videos = LabeledVideoDataset(
            self.paths,
            sampler,
            transform=_OneClip(transform),
            decode_audio=False,
            decoder=self.decoder,
        )
        return iter(videos)


class _OneClip:
    """A sample of PyTorchVideo's -> the clip alone."""

    def __init__(self, transform: TheirTransform) -> None:
        self.transform = transform

    def __call__(self, sample: dict[str, Any]) -> Tensor:
        from pytorchvideo.transforms.functional import uniform_crop

        transform = self.transform
        clip = transform.subsample(sample["video"])
        if transform.kind != "test":
            return transform(clip)
        crop = uniform_crop(transform.scale(clip), transform.spec.crop_size, sample["aug_index"])
        return transform._normalised(crop)


LOADERS = {OURS: our_loader, PYTORCHVIDEO: their_loader}
"""Library -> what makes its `LoaderRun`."""


# ---- how many cores a model needs ---------------------------------------------------------------

FEEDING = (
    Column("feeds", _only("feeding", "model")),
    Column("model's clips/s", _only("feeding", "needed"), ".3g"),
    Column("clips", _only("feeding", "kind")),
    Column("library", _only("feeding", "library")),
    Column("decoder", _only("feeding", "decoder")),
    Column("cores needed", _only("feeding", "cores"), ".2g"),
)


def feeding(rows: Sequence[Row], args: argparse.Namespace, device: torch.device) -> list[Row]:
    """One row for each way to read, with the cores it takes to keep the model busy."""
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
    contender = Workbench(device).contender(case)
    measure.interleave([contender], repeats=3, device=device)
    if contender.failed:
        raise UserError(f"--model {args.model}: {contender.failed} at --batch {args.batch}")
    return contender.samples_per_s
