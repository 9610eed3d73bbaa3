"""Reading clips stage by stage: open, decode, crop, augment, collate, normalise."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from hiera_video.benchmarks import data_pytorchvideo, measure, tables
from hiera_video.benchmarks.data_clips import (
    OURS,
    PYTORCHVIDEO,
    STAGES,
    VIEWS,
    ClipTask,
    clip_frames,
)
from hiera_video.benchmarks.data_pytorchvideo import (
    PyTorchVideoTransform,
    decord_bridge,
    open_encoded,
)
from hiera_video.benchmarks.measure import Candidate
from hiera_video.benchmarks.stopwatch import Stopwatch
from hiera_video.benchmarks.tables import Column, Row, of_table
from hiera_video.clip_spec import ClipSpec
from hiera_video.data.batch import Clips, Collate
from hiera_video.data.datasets import Sample
from hiera_video.data.manifests.layouts import Manifest
from hiera_video.video.decode import open_video
from hiera_video.video.known import known_videos
from hiera_video.video.sampling import uniform_views

BY_STAGE = (
    Column("clips", of_table("stages", "kind")),
    Column("library", of_table("stages", "library")),
    Column("decoder", of_table("stages", "decoder")),
    *(Column(stage, of_table("stages", f"{stage}_ms"), ".1f") for stage in STAGES),
    Column("all ms", of_table("stages", "ms"), ".1f"),
    Column("min-max", lambda row: tables.spread(row) if row["table"] == "stages" else None),
    Column("worker CPU ms", of_table("stages", "worker_cpu_ms"), ".1f"),
    Column("clips/s per core", of_table("stages", "clips_per_core_s"), ".1f"),
    Column("x PyTorchVideo", of_table("stages", "ratio"), ".2f"),
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
        theirs = data_pytorchvideo.usable_decoders(decoders)
        pipelines: list[Any] = [
            HieraVideoPipeline(ClipTask(kind, manifest, spec, name)) for name in decoders
        ]
        for ours in pipelines:
            ours.known = args.known
        pipelines += [PyTorchVideoPipeline(ClipTask(kind, manifest, spec, name)) for name in theirs]
        candidates = [
            Candidate(
                facts={"table": "stages", "kind": kind, **pipeline.facts},
                run=pipeline,
                samples=pipeline.clips,
                parts=pipeline.parts,
            )
            for pipeline in pipelines
        ]
        measure.interleave(candidates, repeats=args.repeats, device=torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)
    return [stage_row(c, reference_for(c, candidates)) for c in candidates]


def reference_for(candidate: Candidate, candidates: Sequence[Candidate]) -> Candidate | None:
    """PyTorchVideo on the same decoder or, where it has none such, on its default one."""
    if candidate.facts["library"] == PYTORCHVIDEO:
        return None
    theirs = {c.facts["decoder"]: c for c in candidates if c.facts["library"] == PYTORCHVIDEO}
    return theirs.get(candidate.facts["decoder"]) or theirs.get("pyav")


def stage_row(candidate: Candidate, reference: Candidate | None) -> Row:
    """The row of a candidate; all times are milliseconds per clip."""
    row = measure.row_of(candidate)
    for key in ("ms", "ms_min", "ms_max"):
        row[key] /= candidate.samples
    parts = row.pop("parts_ms")
    row |= {f"{stage}_ms": parts[stage] / candidate.samples for stage in STAGES if stage in parts}
    row["worker_cpu_ms"] = parts["worker CPU"] / candidate.samples
    row["clips_per_core_s"] = 1e3 / row["worker_cpu_ms"]
    row["ratio"] = measure.ratio_of(candidate, reference)
    return row


class Pipeline:
    """One call reads every video of the list once and makes one batch of all clips."""

    library: str
    in_worker: tuple[str, ...] = STAGES
    """Stages that a loader's worker does."""

    def __init__(self, task: ClipTask) -> None:
        self.task, self.watch = task, Stopwatch()
        self.dataset = task.dataset(self.watch)
        self.reader: Any = self.dataset.reader
        self.facts = {"library": self.library, "decoder": task.decoder}
        self.clips = len(task.manifest) * self.dataset.clips_per_video
        self.calls = itertools.count()

    def __call__(self) -> Tensor:
        """float32 [clips, 3, T, S, S], normalised."""
        self.watch.reset()
        epoch = next(self.calls)
        return self.batch([self.dataset.sample(i, epoch) for i in range(len(self.dataset))])

    def batch(self, samples: Sequence[Sample]) -> Tensor:
        """The clips of those videos, normalised, in one tensor."""
        raise NotImplementedError

    def parts(self) -> dict[str, float]:
        """Seconds of the last call by stage, and the CPU seconds of a loader's worker."""
        cpu = sum(self.watch.cpu_seconds[stage] for stage in self.in_worker)
        return {**self.watch.seconds, "worker CPU": cpu}


class TimedReader:
    """An open video, with the time that decoding takes."""

    def __init__(self, reader: Any, watch: Stopwatch) -> None:
        self.info, self._reader, self._watch = reader.info, reader, watch

    def parts(self, indices: Any, size: int) -> Iterator[tuple[Any, Tensor]]:
        """Frames at these indices, some at a time; see the reader."""
        parts = self._reader.parts(indices, size)
        while True:
            with self._watch("decode"):
                part = next(parts, None)
            if part is None:
                return
            yield part


class HieraVideoPipeline(Pipeline):
    """What this package's loader does in its worker, and on the device."""

    library = OURS
    known = False
    """Whether a file that was read before is not scanned again, as in a worker's later epochs."""
    in_worker = STAGES[:-1]

    def batch(self, samples: Sequence[Sample]) -> Tensor:
        """See `Pipeline`."""
        items = []
        for sample in samples:
            if not self.known:
                known_videos.clear()
            with self.watch("open"):
                reader = open_video(sample.path, self.task.decoder)
            with self.watch("crop"):
                clips = self.reader.read(TimedReader(reader, self.watch), sample)
            with self.watch("open"):
                reader.close()
            items.append(Clips(clips, sample.label, sample.video_id))
        with self.watch("collate"):
            batch = Collate(self.task.spec, 0)(items)
        with self.watch("normalise"):
            return batch.normalized(self.task.spec).clips


class PyTorchVideoPipeline(Pipeline):
    """PyTorchVideo's `EncodedVideo` and transforms, on the frames and boxes of our data set."""

    library = PYTORCHVIDEO

    def __init__(self, task: ClipTask) -> None:
        super().__init__(task)
        self.transform = PyTorchVideoTransform(task.kind, task.spec, watch=self.watch)
        self.info: dict[int, Any] = {}
        for i in range(len(task.manifest)):
            with open_video(task.manifest.paths[i]) as reader:
                self.info[i] = reader.info

    def batch(self, samples: Sequence[Sample]) -> Tensor:
        """See `Pipeline`."""
        clips = []
        for sample in samples:
            clips += self._clips(sample)
        with self.watch("collate"):
            return default_collate(clips)

    def _clips(self, sample: Sample) -> list[Tensor]:
        places = self._draw(sample)
        clips = []
        decoder = self.task.decoder
        with decord_bridge(decoder), self.watch("open"):
            video = open_encoded(sample.path, decoder)
        for start, end, box in places:
            with decord_bridge(decoder), self.watch("decode"):
                clip = self.transform.subsample(video.get_clip(start, end)["video"])
            clips += self.transform.views(clip) if box is None else [self.transform(clip, box)]
        with self.watch("open"):
            video.close()
        return clips

    def _draw(self, sample: Sample) -> list[tuple[Fraction, Fraction, Any]]:
        """Start and end of each clip in seconds, and (area, aspect) of a training clip's crop."""
        info = self.info[sample.video_id]
        starts: list[tuple[int, Any]] = []
        if self.dataset.train:
            for indices, generator in self.reader.draw(info, sample):
                crop = self.reader.transform.draw_crop(info.height, info.width, generator)
                area = crop.height * crop.width / (info.height * info.width)
                starts.append((indices[0], (area, crop.width / crop.height)))
        else:
            views = uniform_views(info.num_frames, info.fps, self.task.spec, VIEWS)
            starts = [(view[0], None) for view in views]
        fps = Fraction(info.fps).limit_denominator(1001)
        frames = clip_frames(self.task.spec, info.fps)
        return [(int(start) / fps, (int(start) + frames) / fps, box) for start, box in starts]
