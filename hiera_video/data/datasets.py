"""Manifests -> batches of clips, the same whatever number of workers or processes reads them.

    dataset = VideoDataset(manifest, spec, transform=TrainTransform(spec), seed=1)
    loader = build_loader(dataset, batch_size=64, num_workers=8, start_step=120)
    for batch in loader:
        batch = batch.to(device).normalized(spec)  # batch.clips float32 [B, 3, T, S, S]

Clips come as uint8 and are normalised where they are used: a quarter of the bytes through shared
memory, page-locked memory and the bus, and less work for the workers, which decide how fast a GPU
is fed. `engine/feeding.py` does so one batch ahead.

Randomness is arithmetic. The order of an epoch is a function of (seed, epoch); where a clip starts
and how it is cropped and augmented, of (seed, epoch, video, view). There is no generator state, so
a run resumed at step 120, or on another number of workers or processes, sees the same clips.

A video that cannot be read is counted, never replaced: its clips are missing from the batch, and
`batch.failed` says which and why. That holds for a video which crashes the worker that reads it, or
takes more time or memory than a video may: the worker is replaced, and the stream goes on with the
very batch that was due.

Workers are told the path and label of each video they are to read and hold no list, so that their
number does not multiply the memory of a long one. They are started from a fork server: forking the
training process itself, with its threads (FFmpeg's, OpenMP's, CUDA's), is how loaders come to hang.
A script that starts workers therefore needs `if __name__ == "__main__":` around what it does.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.manifests.layouts import Manifest
from hiera_video.data.manifests.listing import some
from hiera_video.data.preload import PRELOAD
from hiera_video.data.randomness import epoch_order, generator_for, uniform
from hiera_video.data.transforms.normalize import normalize_clips
from hiera_video.data.transforms.train import Pixels, TrainTransform, directional_classes
from hiera_video.data.views import read_view_pixels, views_of
from hiera_video.errors import DataError, DecodeError, RunFailed
from hiera_video.video.decode import VideoReader, open_video
from hiera_video.video.frame_folder import FrameFolder
from hiera_video.video.info import VideoInfo
from hiera_video.video.limits import MEMORY_LIMIT, TIME_LIMIT, is_out_of_memory, limited
from hiera_video.video.processes import SERVER_GONE, end_with_parent, ended_by, fork_server
from hiera_video.video.sampling import Indices, training_clip

__all__ = [
    "Batch",
    "DataError",
    "Failed",
    "Loader",
    "VideoDataset",
    "build_loader",
    "check_flip",
]

logger = logging.getLogger("hiera_video")

# ---- what comes out -----------------------------------------------------------------------------


class Failed(NamedTuple):
    """A video that could not be read."""

    video_id: int
    path: str
    reason: str


class Erased(NamedTuple):
    """The boxes that the clips of a batch have lost, in the order in which they are filled."""

    boxes: tuple[tuple[int, int, int, int, int], ...] = ()
    """(clip, top, left, height, width) each."""
    noise: Tensor | None = None
    """float32, flat: what fills the boxes, [3, T, height, width] each, one after the other. None:
    they are filled with zero."""

    def erase(self, clips: Tensor) -> None:
        """Do it to normalised clips [B, 3, T, S, S], in place."""
        start = 0
        for clip, top, left, height, width in self.boxes:
            region = clips[clip, :, :, top : top + height, left : left + width]
            if self.noise is None:
                region.zero_()
            else:
                region.copy_(self.noise[start : start + region.numel()].view(region.shape))
                start += region.numel()


class Batch(NamedTuple):
    """What the data hands to the engine.

    B counts clips: videos x temporal clips x augmentations (training) or x views (test). It is
    smaller where videos failed, down to 0.
    """

    clips: Tensor
    """uint8 [B, 3, T, S, S] in any layout, as loaders give it; after `normalized`, float32."""
    labels: Tensor
    """int64 [B] (-1: none), or float32 [B, K] of zeros and ones where labels are several; mixing
    turns either into soft targets [B, K]."""
    video_ids: Tensor
    """int64 [B]: the video's place in the manifest. Stays on the CPU, as all bookkeeping does."""
    views: Tensor
    """int64 [B]: which clip of its video. Stays on the CPU."""
    failed: tuple[Failed, ...] = ()
    """The videos of this batch that could not be read."""
    erased: Erased = Erased()
    """What `normalized` is to erase."""

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The same batch with its clips and labels on `device`."""
        clips, labels, *noise = (
            tensor.to(device, non_blocking=non_blocking) for tensor in self.travelling()
        )
        erased = self.erased._replace(noise=noise[0]) if noise else self.erased
        return self._replace(clips=clips, labels=labels, erased=erased)

    def travelling(self) -> tuple[Tensor, ...]:
        """The tensors that `to` moves."""
        noise = () if self.erased.noise is None else (self.erased.noise,)
        return (self.clips, self.labels, *noise)

    def normalized(self, spec: ClipSpec) -> Batch:
        """The batch with clips as models take them, contiguous float32 [B, 3, T, S, S], normalised
        and erased; itself where that is done."""
        if self.clips.dtype != torch.uint8:
            return self
        clips = normalize_clips(self.clips, spec.mean, spec.std)
        self.erased.erase(clips)
        return self._replace(clips=clips, erased=Erased())


class Sample(NamedTuple):
    """What a worker is told to read: one line of the manifest, in one epoch."""

    video_id: int
    path: str
    label: int | tuple[int, ...]
    epoch: int
    lost: str = ""
    """Why it is not to be read: it ended the workers that tried."""


class Clips(NamedTuple):
    """What one video gives: N clips, neighbours in a batch."""

    clips: list[Pixels]  # N x [T, 3, S, S]
    label: int | tuple[int, ...]
    video_id: int


# ---- one video -> its clips ---------------------------------------------------------------------

_DECODED_BYTES = 128 << 20
"""Whole decoded frames held at once: 20 at 1080p."""


@dataclass(frozen=True)
class TrainReader:
    """Reads random clips: `num_temporal` places in time, each augmented `num_augment` times.

    However many clips are asked for, the video is opened once and every frame decoded once. Views
    are numbered temporal clip by temporal clip.
    """

    transform: TrainTransform
    seed: int = 0
    num_temporal: int = 1
    num_augment: int = 1
    decoder: str = "auto"

    @property
    def spec(self) -> ClipSpec:
        return self.transform.spec

    def __call__(self, sample: Sample) -> list[Pixels]:
        """uint8 [T, 3, S, S] for each view, and what is to be erased of it. Raises DecodeError."""
        with open_video(sample.path, self.decoder) as reader:
            return self.read(reader, sample)

    def read(self, reader: VideoReader | FrameFolder, sample: Sample) -> list[Pixels]:
        """The same of an open video."""
        views = self.draw(reader.info, sample)
        cropped = self._read(reader, views)
        return [
            self.transform.augment(frames, generator)
            for frames, (_, generator) in zip(cropped, views, strict=True)
        ]

    def draw(self, info: VideoInfo, sample: Sample) -> list[tuple[Indices, Generator]]:
        """The frames of each view, and the generator of its crop and augmentation."""
        key = (self.seed, sample.epoch, sample.video_id)
        places = [
            self._place(info, generator_for("place", *key, temporal))
            for temporal in range(self.num_temporal)
        ]
        return [
            (places[temporal], generator_for("augment", *key, temporal, augment))
            for temporal in range(self.num_temporal)
            for augment in range(self.num_augment)
        ]

    def _place(self, info: VideoInfo, generator: Generator) -> Indices:
        count = self.spec.num_frames if self.spec.segments else 1
        u = uniform(generator, count)
        return training_clip(info.num_frames, info.fps, self.spec, u)

    def _read(
        self, reader: VideoReader | FrameFolder, views: Sequence[tuple[Indices, Generator]]
    ) -> list[Tensor]:
        """The cropped frames of each view, uint8 [T, 3, S, S].

        Frames are cropped as they come, so that memory is bounded by what the model takes even for
        many clips of a 4K video.
        """
        wanted = np.unique(np.concatenate([indices for indices, _ in views]))
        step = max(1, _DECODED_BYTES // (3 * reader.info.width * reader.info.height))
        crops, pieces = [], [[] for _ in views]
        for i in range(0, len(wanted), step):
            frames = reader.read(wanted[i : i + step])
            if not crops:
                height, width = frames.shape[-2:]
                crops = [self.transform.draw_crop(height, width, g) for _, g in views]
            for (indices, _), crop, parts in zip(views, crops, pieces, strict=True):
                here = indices[np.isin(indices, wanted[i : i + step])]
                if len(here):
                    rows = np.searchsorted(wanted[i : i + step], here)
                    parts.append(crop.cut(_rows(frames, rows), self.spec.crop_size))
        return [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in pieces]


@dataclass(frozen=True)
class TestReader:
    """Reads the fixed views of a test: `num_views` clips spread over the video x `num_crops`."""

    __test__ = False  # for pytest: the name begins like a test class

    spec: ClipSpec
    num_views: int = 1
    num_crops: int = 1
    decoder: str = "auto"

    def __call__(self, sample: Sample) -> list[Pixels]:
        """uint8 [T, 3, S, S], num_views * num_crops times. Raises DecodeError."""
        with open_video(sample.path, self.decoder) as reader:
            return self.read(reader, sample)

    def read(self, reader: VideoReader | FrameFolder, sample: Sample) -> list[Pixels]:
        """The same of an open video."""
        views = views_of(reader, self.spec, self.num_views)
        return [Pixels(f) for f in read_view_pixels(reader, views, self.spec, self.num_crops)]


def _rows(frames: Tensor, rows: np.ndarray) -> Tensor:
    """`frames[rows]` without a copy where they are all the frames in order, as they mostly are."""
    if len(rows) == len(frames) and (np.diff(rows) == 1).all():
        return frames
    return frames[torch.from_numpy(rows)]


# ---- the data set -------------------------------------------------------------------------------


class VideoDataset(Dataset):
    """The videos of a manifest as clips.

    With a `transform` it is for training: random clips, `num_temporal` in time (SlowFast's
    TRAIN_CROP_NUM_TEMPORAL) and each of them augmented `num_augment` times (AUG.NUM_SAMPLE).
    Without, it is for testing: `num_views` x `num_crops` fixed clips.

    `lost` holds the videos that ended the workers that read them, {video id: reason}: these are not
    touched again.

    `dataset[i]` (epoch 0) and `dataset[epoch, i]` give a list of normalised float32 [3, T, S, S],
    or a `Failed`.

    Raises DataError where a mirrored video would have a wrong label (`check_flip`), unless the
    labels play no part (`labelled=False`: pretraining).
    """

    def __init__(
        self,
        manifest: Manifest,
        spec: ClipSpec,
        *,
        transform: TrainTransform | None = None,
        num_temporal: int = 1,
        num_augment: int = 1,
        num_views: int = 1,
        num_crops: int = 1,
        decoder: str = "auto",
        seed: int = 0,
        labelled: bool = True,
    ) -> None:
        self.manifest = manifest
        self.spec = spec
        self.seed = seed
        self.lost: dict[int, str] = {}
        self.train = transform is not None
        if transform is None:
            self.reader = TestReader(spec, num_views, num_crops, decoder)
            self.clips_per_video = num_views * num_crops
        else:
            if transform.spec != spec:
                raise ValueError(f"transform is for {transform.spec}, the data set for {spec}")
            if min(num_temporal, num_augment) < 1:
                raise DataError(
                    f"num_temporal={num_temporal} and num_augment={num_augment} must be at least 1"
                )
            if transform.flip and labelled:
                check_flip(manifest)
            self.reader = TrainReader(transform, seed, num_temporal, num_augment, decoder)
            self.clips_per_video = num_temporal * num_augment

    def __len__(self) -> int:
        return len(self.manifest)

    def sample(self, video_id: int, epoch: int = 0) -> Sample:
        """What to read for one video in one epoch."""
        video_id = range(len(self))[video_id]
        path, label = self.manifest.paths[video_id], self.manifest.label(video_id)
        return Sample(video_id, path, label, epoch, self.lost.get(video_id, ""))

    def __getitem__(self, key: int | tuple[int, int]) -> list[Tensor] | Failed:
        epoch, video_id = key if isinstance(key, tuple) else (0, key)
        clips = _read(self.reader, self.sample(video_id, epoch))
        if isinstance(clips, Failed):
            return clips
        return [pixels.normalized(self.spec) for pixels in clips.clips]


def check_flip(manifest: Manifest) -> None:
    """Raise DataError if mirroring a video would make its label wrong.

    That is so for Something-Something, and for classes whose names say left, right or a sense of
    rotation.
    """
    advice = (
        "mirrored videos would be labelled wrongly: switch flipping off (DATA.RANDOM_FLIP False)"
    )
    if manifest.name == "ssv2":
        raise DataError(f"Something-Something has directions in its labels, and {advice}")
    named = directional_classes(manifest.classes or ())
    if named:
        raise DataError(f"classes {some(named, 4)} name a direction, and {advice}")


def _read(reader: TrainReader | TestReader, sample: Sample) -> Clips | Failed:
    if sample.lost:
        return Failed(sample.video_id, sample.path, sample.lost)
    try:
        return Clips(reader(sample), sample.label, sample.video_id)
    except DecodeError as error:
        return Failed(sample.video_id, sample.path, str(error.reason))


def read_sample(request: tuple[TrainReader | TestReader, Sample]) -> Clips | Failed:
    """The clips of a video: for a process of its own (`guard.GuardedPool`)."""
    return _read(*request)


def try_to_read(request: tuple[TrainReader | TestReader, Sample]) -> Failed | None:
    """What is wrong with a video, if anything: for a process of its own (`guard.GuardedPool`)."""
    item = _read(*request)
    return item if isinstance(item, Failed) else None


@dataclass(frozen=True)
class Collate:
    """Clips of several videos -> one Batch; in a worker, straight into shared memory."""

    spec: ClipSpec
    num_classes: int
    """Columns of multi-hot labels; 0 for one label per video."""

    def __call__(self, items: Sequence[Clips | Failed]) -> Batch:
        failed = tuple(item for item in items if isinstance(item, Failed))
        read = [item for item in items if isinstance(item, Clips)]
        pixels = [clip for item in read for clip in item.clips]
        counts = torch.tensor([len(item.clips) for item in read], dtype=torch.int64)
        ids = torch.tensor([item.video_id for item in read], dtype=torch.int64)
        views = [torch.arange(count) for count in counts.tolist()]
        return Batch(
            clips=_stacked([clip.frames for clip in pixels]) if pixels else self._no_clips(),
            labels=self._labels([item.label for item in read]).repeat_interleave(counts, dim=0),
            video_ids=ids.repeat_interleave(counts),
            views=torch.cat(views) if views else counts,
            failed=failed,
            erased=_erased(pixels),
        )

    def _labels(self, labels: Sequence[int | tuple[int, ...]]) -> Tensor:
        if not self.num_classes:
            return torch.tensor(labels, dtype=torch.int64)
        hot = torch.zeros(len(labels), self.num_classes)
        for row, several in zip(hot, labels, strict=True):
            row[list(several)] = 1
        return hot

    def _no_clips(self) -> Tensor:
        size = self.spec.crop_size
        return torch.empty(0, 3, self.spec.num_frames, size, size, dtype=torch.uint8)


def _stacked(clips: Sequence[Tensor]) -> Tensor:
    """B times uint8 [T, 3, S, S] -> [B, 3, T, S, S], colours interleaved in memory if the first
    clip's are: taking them apart would cost more than the copy, and a GPU does it for nothing."""
    if clips[0].stride(1) == 1:
        return default_collate([clip.permute(0, 2, 3, 1) for clip in clips]).permute(0, 4, 1, 2, 3)
    return default_collate(list(clips)).transpose(1, 2)


def _erased(clips: Sequence[Pixels]) -> Erased:
    """The erasures of all clips together."""
    found = [(row, erasure) for row, clip in enumerate(clips) for erasure in clip.erased]
    boxes = tuple((row, *erasure[:4]) for row, erasure in found)
    noise = [erasure.noise.flatten() for _, erasure in found if erasure.noise is not None]
    return Erased(boxes, torch.cat(noise) if noise else None)


# ---- which videos, in which order ---------------------------------------------------------------


@dataclass(frozen=True)
class _TrainBatches:
    """The videos of each batch from `start_step` to before `stop_step`, on one process.

    Step s of an epoch is the videos [s * batch_size, (s + 1) * batch_size) of the epoch's order,
    dealt to processes and accumulation parts like cards: the same videos for any of their numbers.
    The last, incomplete batch of an epoch is left out; which videos that are differs by epoch.
    """

    dataset: VideoDataset
    batch_size: int
    rank: int
    world: int
    parts: int
    start_step: int
    stop_step: int
    start_part: int = 0
    """Of the first step, the part to begin with."""

    @property
    def steps_per_epoch(self) -> int:
        return len(self.dataset) // self.batch_size

    @property
    def videos_at_a_time(self) -> int:
        return self.batch_size // (self.world * self.parts)

    def __len__(self) -> int:
        return max((self.stop_step - self.start_step) * self.parts - self.start_part, 0)

    def after(self, count: int) -> _TrainBatches:
        """The batches that come after the first `count`."""
        steps, part = divmod(self.start_part + count, self.parts)
        return replace(self, start_step=self.start_step + steps, start_part=part)

    def __iter__(self) -> Iterator[list[Sample]]:
        order, ordered_epoch = None, -1
        for step in range(self.start_step, self.stop_step):
            epoch, i = divmod(step, self.steps_per_epoch)
            if epoch != ordered_epoch:
                order, ordered_epoch = (
                    epoch_order(len(self.dataset), self.dataset.seed, epoch),
                    epoch,
                )
            videos = order[i * self.batch_size : (i + 1) * self.batch_size]
            for part in range(self.start_part * (step == self.start_step), self.parts):
                mine = videos[part * self.world + self.rank :: self.world * self.parts]
                yield [self.dataset.sample(video_id, epoch) for video_id in mine.tolist()]


@dataclass(frozen=True)
class _TestBatches:
    """Every video exactly once over all processes, in the manifest's order."""

    dataset: VideoDataset
    batch_size: int
    rank: int
    world: int
    start: int = 0
    """The batch to begin with."""

    @property
    def videos_at_a_time(self) -> int:
        return self.batch_size

    def __len__(self) -> int:
        mine = range(self.rank, len(self.dataset), self.world)
        return max(math.ceil(len(mine) / self.batch_size) - self.start, 0)

    def after(self, count: int) -> _TestBatches:
        """The batches that come after the first `count`."""
        return replace(self, start=self.start + count)

    def __iter__(self) -> Iterator[list[Sample]]:
        mine = range(self.rank, len(self.dataset), self.world)
        for i in range(self.start * self.batch_size, len(mine), self.batch_size):
            yield [self.dataset.sample(video_id) for video_id in mine[i : i + self.batch_size]]


# ---- the loader ---------------------------------------------------------------------------------


def build_loader(
    dataset: VideoDataset,
    *,
    batch_size: int,
    num_workers: int = 0,
    rank: int = 0,
    world: int = 1,
    grad_accum: int = 1,
    start_step: int = 0,
    stop_step: int | None = None,
    pin_memory: bool = False,
) -> Loader:
    """Batches of a data set for one of `world` processes.

    Training data sets: `batch_size` is the number of videos per optimizer step, over all processes
    and over the `grad_accum` batches in which a step is computed; the loader yields
    `batch_size / (world * grad_accum)` videos at a time. It begins with step `start_step` of the
    run (counted over all epochs) and ends before `stop_step`, by default where that epoch ends; one
    loader can serve a whole run, so that workers read on across epochs. A data set smaller than
    `batch_size` is one smaller step per epoch, which `notes` says.

    Test data sets: `batch_size` is the number of videos at a time on this process. Each video comes
    exactly once over all processes, so processes may have different numbers of batches.

    `num_workers=0` reads in this process.

    Raises DataError: sizes that do not divide or do not fit.
    """
    if min(batch_size, world, grad_accum) < 1 or not 0 <= rank < world or num_workers < 0:
        raise DataError(
            f"batch_size={batch_size}, grad_accum={grad_accum}, rank={rank} of world={world}, "
            f"num_workers={num_workers}: sizes must be at least 1, rank below world, workers at "
            f"least 0"
        )
    if not dataset.train:
        batches = _TestBatches(dataset, batch_size, rank, world)
        return Loader(dataset, batches, num_workers, pin_memory)
    shares = world * grad_accum
    if batch_size % shares:
        raise DataError(
            f"a batch of {batch_size} videos (TRAIN.BATCH_SIZE) does not divide by {world} "
            f"processes x {grad_accum} accumulation parts (TRAIN.GRAD_ACCUM); take a multiple of "
            f"{shares}"
        )
    notes = []
    if len(dataset) < batch_size:
        if len(dataset) < shares:
            raise DataError(
                f"{len(dataset)} training videos are too few for {world} processes x {grad_accum} "
                f"accumulation parts: each needs at least one"
            )
        smaller = len(dataset) // shares * shares
        notes.append(
            f"only {len(dataset)} videos: steps of {smaller} instead of {batch_size} videos"
        )
        batch_size = smaller
    steps_per_epoch = len(dataset) // batch_size
    if stop_step is None:
        stop_step = (start_step // steps_per_epoch + 1) * steps_per_epoch
    batches = _TrainBatches(dataset, batch_size, rank, world, grad_accum, start_step, stop_step)
    return Loader(dataset, batches, num_workers, pin_memory, notes)


GIVE_UP_AFTER = 100
"""Training ends when so many different videos, or all there are, cannot be read one after the
other. A test reads its list to the end: it may begin or end with a missing folder."""


@dataclass
class Failures:
    """Videos that could not be read so far, by one loader."""

    count: int = 0
    first: list[Failed] = field(default_factory=list)
    """The first few, as examples."""
    in_a_row: set[int] = field(default_factory=set)
    """Ids of the videos that failed since one was read. A small list comes round every epoch, so
    the same few videos fail again: they count once."""

    def add(self, failed: Sequence[Failed], num_read: int) -> None:
        self.count += len(failed)
        self.first += failed[: max(0, 5 - len(self.first))]
        if num_read:
            self.in_a_row.clear()
        else:
            self.in_a_row.update(video.video_id for video in failed)

    def reasons(self) -> str:
        return "; ".join(f"{failed.path}: {failed.reason}" for failed in self.first[:3])


DEATHS, WITHIN = 5, 100
"""A run ends when so many workers die, with no video to blame, before so many batches are read."""

VIDEO_TIME_LIMIT = 2 * TIME_LIMIT
"""Seconds until a worker that reads one video is ended. Longer than what a read gives itself, since
a decoder that can be interrupted says better what it failed at."""


class Loader:
    """An iterable of `Batch`; made by `build_loader`.

    Attributes:
        batch_size: videos per optimizer step (training) or per batch (test).
        steps_per_epoch: optimizer steps in an epoch; 0 for a test data set.
        failures: what could not be read since the loader was made.
        notes: what a user should be told.

    A worker process that dies is replaced, and the batches go on where they were. The video it was
    reading is given up (`dataset.lost`) if the worker crashed; if it was killed or hung, so that
    something else may be the cause, at the second time. Each is said with the file's name.

    Iterating raises RunFailed when workers die again and again and, in training, when video after
    video cannot be read. A test loader goes to the end of its list: only all processes together
    know whether any video could be read.
    """

    def __init__(
        self,
        dataset: VideoDataset,
        batches: _TrainBatches | _TestBatches,
        num_workers: int,
        pin_memory: bool,
        notes: Sequence[str] = (),
    ) -> None:
        self.dataset = dataset
        self.batch_size = batches.batch_size
        self.steps_per_epoch = getattr(batches, "steps_per_epoch", 0)
        self.failures = Failures()
        self.notes = list(notes)
        self._course = _Course(batches)
        # Other processes wait for this one's share of the step: it must not leave in the middle.
        others_wait = dataset.train and batches.world > 1
        self._workers = _Workers(dataset, num_workers, others_wait) if num_workers else None
        manifest = dataset.manifest
        # Torch warns where workers outnumber cores, which a recipe for bigger machines may do.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        self._loader = DataLoader(
            _WorkerSide(
                dataset.reader,
                reading=self._workers and self._workers.reading,
                time_limit=self._workers.time_limit if self._workers else VIDEO_TIME_LIMIT,
                # Augmentation works on floats, now and then.
                memory_limit=MEMORY_LIMIT + 3 * torch.float32.itemsize * _bytes_per_video(dataset),
            ),
            batch_sampler=self._course,
            num_workers=num_workers,
            collate_fn=Collate(dataset.spec, manifest.num_classes if manifest.multi_label else 0),
            pin_memory=pin_memory and torch.cuda.is_available(),
            worker_init_fn=_init_worker if num_workers else None,
            multiprocessing_context=_context() if num_workers else None,
            persistent_workers=num_workers > 0,
            prefetch_factor=_prefetch(dataset, batches.videos_at_a_time) if num_workers else None,
        )

    def __len__(self) -> int:
        """Batches it yields."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        done = 0
        batches = self._start(after=0)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                break
            except (RuntimeError, OSError, EOFError) as error:
                # Where a worker died the loader says so, or trips over what it left half sent.
                if self._workers is None or not self._workers.count_deaths(error):
                    raise
                self.close()
                batches = self._start(after=done)
                continue
            done += 1
            self.failures.add(batch.failed, len(batch.video_ids))
            if self.dataset.train:
                self._require_some_readable()
            if self._workers is not None:
                self._workers.batches_since_death += 1
            yield batch

    def _require_some_readable(self) -> None:
        count = len(self.failures.in_a_row)
        if count >= min(GIVE_UP_AFTER, len(self.dataset)):
            raise RunFailed(
                f"the last {count} videos could not be read, one after the other; "
                f"the first reasons: {self.failures.reasons()}"
            )

    def close(self) -> None:
        """End the worker processes; iterating again starts new ones."""
        iterator, self._loader._iterator = self._loader._iterator, None
        if self._workers is not None and iterator is not None:
            iterator._shutdown_workers()

    def _start(self, *, after: int) -> Iterator[Batch]:
        """The batches that come after the first `after`."""
        self._course.done = after
        if self._workers is None:
            return iter(self._loader)
        # torch installs a handler that raises wherever the program happens to be when a worker
        # dies. Without it the loader notices by itself within seconds, in next(), where it can be
        # told which video was being read.
        in_main = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGCHLD) if in_main and os.name == "posix" else None
        batches = iter(self._loader)
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)
        self._workers.processes = batches._workers
        _look_often(batches)
        return batches


def _look_often(batches: Iterator[Batch], seconds: float = 0.5) -> None:
    """Have torch's iterator look for dead workers more often than every 5 s while it waits."""
    look, itself = type(batches)._try_get_data, weakref.ref(batches)
    batches._try_get_data = lambda timeout=seconds: look(itself(), timeout)


class _Course:
    """What a loader reads: its batches, from the one after the first `done`."""

    def __init__(self, batches: _TrainBatches | _TestBatches) -> None:
        self.batches = batches
        self.done = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Sample]]:
        return iter(self.batches.after(self.done))


class _Workers:
    """What the main process knows of its workers: what each was reading, and what one died of."""

    def __init__(self, dataset: VideoDataset, count: int, others_wait: bool) -> None:
        self.dataset = dataset
        self.others_wait = others_wait
        self.time_limit = VIDEO_TIME_LIMIT
        self.processes: Sequence[multiprocessing.process.BaseProcess] = ()
        # [worker]: the video being read or -1, written by the workers.
        self.reading = torch.full((count,), -1, dtype=torch.int64).share_memory_()
        self.batches_since_death = 0
        self._deaths = 0
        self._suspects: set[int] = set()

    def count_deaths(self, error: Exception) -> bool:
        """Draw the conclusions if workers have died; False if none has. The others are ended.

        RunFailed where new workers would fare no better.
        """
        dead = self._dead()
        codes = {code for _, code in dead}
        together = len(dead) == len(self.processes) and codes <= {-signal.SIGTERM, SERVER_GONE}
        if together and self.others_wait:  # torchrun ends the processes it started so
            died = "all data loading workers were ended from outside"
            self._count_death(died, error)
            logger.warning("%s. They are replaced", died)
        else:
            for worker, exitcode in dead:
                self._count(int(self.reading[worker]), exitcode, error)
            if together and codes == {-signal.SIGTERM}:
                raise RunFailed("all data loading workers were ended by SIGTERM") from error
        if dead:
            for process in self.processes:
                process.kill()
            self.reading.fill_(-1)
        return bool(dead)

    def _dead(self, patience: float = 1.0) -> list[tuple[int, int]]:
        """(worker, exit code) of those that ended, waiting a moment for the system to say."""
        end = time.monotonic() + patience
        while True:
            codes = [process.exitcode for process in self.processes]
            dead = [(worker, code) for worker, code in enumerate(codes) if code is not None]
            more = -signal.SIGTERM in codes and None in codes  # a signal to all, on its way
            if (dead and not more) or time.monotonic() > end:
                return dead
            time.sleep(0.05)

    def _count(self, video_id: int, exitcode: int, error: Exception) -> None:
        ending = ended_by(exitcode)
        if video_id >= 0:
            path = self.dataset.manifest.paths[video_id]
            if ending not in _MAYBE_INNOCENT:
                self._lose(video_id, f"crashed the process that read it ({ending})")
                return
            reason = _MAYBE_INNOCENT[ending].format(limit=self.time_limit)
            if video_id in self._suspects:
                self._lose(video_id, f"{reason}, twice")
                return
            self._suspects.add(video_id)
            if ending == "SIGALRM":
                logger.warning("%s: %s; it is tried once more", path, reason)
                return
        while_reading = f" while it read {path}" if video_id >= 0 else ""
        died = f"a data loading worker died{while_reading}: {_cause(exitcode)}"
        self._count_death(died, error, hopeless=video_id < 0 <= exitcode != SERVER_GONE)
        logger.warning("%s. It is replaced", died)

    def _count_death(self, died: str, error: Exception, *, hopeless: bool = False) -> None:
        """One more death with no video to blame; RunFailed at the last of `DEATHS`."""
        self._deaths = self._deaths + 1 if self.batches_since_death < WITHIN else 1
        self.batches_since_death = 0
        if self._deaths >= DEATHS or hopeless:
            raise RunFailed(
                f"{died}. DATA_LOADER.NUM_WORKERS 0 reads in the main process, to see more"
            ) from error

    def _lose(self, video_id: int, reason: str) -> None:
        if video_id in self.dataset.lost:  # two workers had it at once
            return
        self.dataset.lost[video_id] = reason
        logger.warning(
            "%s: %s; it counts as unreadable from here on",
            self.dataset.manifest.paths[video_id],
            reason,
        )


_MAYBE_INNOCENT = {
    "SIGALRM": "took longer than {limit:g} s",
    "SIGKILL": "the process that read it was killed, most likely out of memory",
    "SIGTERM": "the process that read it was ended by SIGTERM",
    f"exit code {SERVER_GONE}": "the process that read it was killed",
}
"""Ends that a worker may come to for other reasons than the video it reads: memory that all take
together, a person, a computer put to sleep."""

_CAUSES = {
    "SIGKILL": "killed, most likely out of memory: use fewer DATA_LOADER.NUM_WORKERS",
    "SIGBUS": "no shared memory left: enlarge /dev/shm (docker run --shm-size 8g)",
}


def _cause(exitcode: int) -> str:
    if exitcode == SERVER_GONE:
        return "killed, together with the process that starts them"
    if exitcode >= 0:
        return (
            f"it ended with exit code {exitcode} (a script of your own that starts workers needs "
            f"`if __name__ == '__main__':` around what it does)"
        )
    name = ended_by(exitcode)
    return f"{name}, {_CAUSES.get(name, 'a signal from outside')}"


@dataclass(frozen=True)
class _WorkerSide(Dataset):
    """What a worker holds: how to read a video, within which limits, and where to note which one
    it is reading."""

    reader: TrainReader | TestReader
    reading: Tensor | None
    time_limit: float
    """Seconds for a video."""
    memory_limit: int
    """Bytes for a video, its clips included."""

    def __getitem__(self, sample: Sample) -> Clips | Failed:
        worker = get_worker_info()
        if worker is None:
            return _read(self.reader, sample)
        self.reading[worker.id] = sample.video_id
        item = self._read_limited(sample)
        self.reading[worker.id] = -1
        return item

    def _read_limited(self, sample: Sample) -> Clips | Failed:
        try:
            with limited(self.time_limit, self.memory_limit):
                return _read(self.reader, sample)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = f"needed more than {self.memory_limit / 2**30:.1f} GiB of memory"
            return Failed(sample.video_id, sample.path, reason)


def _init_worker(worker_id: int) -> None:
    # Ctrl-C reaches every process of a terminal; the trainer stops the workers when it has saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One core per worker: clips are decoded side by side, not each on all cores.
    torch.set_num_threads(1)
    end_with_parent()


def _prefetch(dataset: VideoDataset, videos: int) -> int:
    """Batches that each worker has ready or under way: one where two would be too much memory."""
    return 1 if videos * _bytes_per_video(dataset) > _LARGE_BATCH else 2


def _bytes_per_video(dataset: VideoDataset) -> int:
    """Of the clips that one video gives."""
    return 3 * dataset.spec.num_frames * dataset.spec.crop_size**2 * dataset.clips_per_video


_LARGE_BATCH = 128 << 20


def _context() -> multiprocessing.context.BaseContext:
    """Workers from a server that has imported what they need."""
    return fork_server(PRELOAD)
