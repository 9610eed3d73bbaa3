"""A data set -> batches, the same whatever number of workers or processes reads them.

    dataset = VideoDataset(manifest, TrainReader(TrainTransform(spec), seed=1))
    loader = build_loader(dataset, LoaderSettings(batch_size=64, num_workers=8, start_step=120))
    for batch in loader:
        batch = batch.to(device).normalized(spec)  # batch.clips float32 [B, 3, T, S, S]

The order of an epoch is a function of (seed, epoch), so a run resumed at step 120, or on another
number of workers or processes, sees the same batches.

A video that cannot be read is counted, never replaced: its clips are missing from the batch, and
`batch.failed` says which and why. That includes a video that crashes the worker that reads it, and
one that takes more time or memory than a video may: the worker is replaced, and the stream goes on
with the very batch that was due.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from hiera_video.data.batch import Batch, Collate, Failed
from hiera_video.data.datasets import Sample, VideoDataset
from hiera_video.data.randomness import epoch_order
from hiera_video.data.workers import (
    VIDEO_TIME_LIMIT,
    SampleReader,
    WorkerMonitor,
    bytes_per_video,
    init_worker,
    memory_limit,
    worker_context,
)
from hiera_video.errors import DataError, RunFailed

# ---- settings -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoaderSettings:
    """How a data set is cut into batches, and which of them this process reads.

    Raises DataError for impossible numbers.
    """

    batch_size: int
    """Training: videos per optimizer step, over all processes and accumulated batches. Test: videos
    per batch of this process."""
    num_workers: int = 0
    """Worker processes; 0 reads in this process."""
    pin_memory: bool = False
    """Page-locked batches, where there is a GPU."""
    rank: int = 0
    """Which of the `world_size` processes this is."""
    world_size: int = 1
    grad_accum: int = 1
    """Batches that make up one optimizer step (training)."""
    start_step: int = 0
    """First optimizer step, counted over all epochs (training)."""
    stop_step: int | None = None
    """End before this step; None: where the epoch of `start_step` ends (training)."""

    def __post_init__(self) -> None:
        sizes = (self.batch_size, self.world_size, self.grad_accum)
        if min(sizes) < 1 or not 0 <= self.rank < self.world_size or self.num_workers < 0:
            raise DataError(
                f"batch_size={self.batch_size}, grad_accum={self.grad_accum}, rank={self.rank} of "
                f"world_size={self.world_size}, num_workers={self.num_workers}: sizes must be at "
                "least 1, the rank below world_size, workers at least 0"
            )


# ---- which videos, in which order ---------------------------------------------------------------


@dataclass(frozen=True)
class TrainBatchSampler:
    """The samples of each batch from `start_step` to before `stop_step`, on one process.

    Step s of an epoch takes the videos [s * batch_size, (s + 1) * batch_size) of the epoch's order.
    They are dealt out one by one to the processes and accumulated batches, so that a step has the
    same videos for any number of these. The last, incomplete batch of an epoch is dropped; which
    videos that are differs from epoch to epoch.
    """

    dataset: VideoDataset
    batch_size: int
    rank: int
    world_size: int
    grad_accum: int
    start_step: int
    stop_step: int
    start_part: int = 0
    """The accumulated batch of the first step to begin with."""

    @property
    def steps_per_epoch(self) -> int:
        return len(self.dataset) // self.batch_size

    @property
    def videos_per_batch(self) -> int:
        return self.batch_size // (self.world_size * self.grad_accum)

    def __len__(self) -> int:
        return max((self.stop_step - self.start_step) * self.grad_accum - self.start_part, 0)

    def after(self, count: int) -> TrainBatchSampler:
        """The batches that come after the first `count`."""
        steps, part = divmod(self.start_part + count, self.grad_accum)
        return replace(self, start_step=self.start_step + steps, start_part=part)

    def __iter__(self) -> Iterator[list[Sample]]:
        order, ordered_epoch = np.empty(0, np.int64), -1
        shares = self.world_size * self.grad_accum
        for step in range(self.start_step, self.stop_step):
            epoch, i = divmod(step, self.steps_per_epoch)
            if epoch != ordered_epoch:
                order = epoch_order(len(self.dataset), self.dataset.seed, epoch)
                ordered_epoch = epoch
            videos = order[i * self.batch_size : (i + 1) * self.batch_size]
            for part in range(self.start_part * (step == self.start_step), self.grad_accum):
                own = videos[part * self.world_size + self.rank :: shares]
                yield [self.dataset.sample(video_id, epoch) for video_id in own.tolist()]


@dataclass(frozen=True)
class TestBatchSampler:
    """Every video exactly once over all processes, in the manifest's order."""

    __test__ = False  # for pytest: the name begins like a test class

    dataset: VideoDataset
    batch_size: int
    rank: int
    world_size: int
    start: int = 0
    """The batch to begin with."""

    steps_per_epoch = 0
    """A test has no optimizer steps."""

    @property
    def videos_per_batch(self) -> int:
        return self.batch_size

    def __len__(self) -> int:
        own = range(self.rank, len(self.dataset), self.world_size)
        return max(math.ceil(len(own) / self.batch_size) - self.start, 0)

    def after(self, count: int) -> TestBatchSampler:
        """The batches that come after the first `count`."""
        return replace(self, start=self.start + count)

    def __iter__(self) -> Iterator[list[Sample]]:
        own = range(self.rank, len(self.dataset), self.world_size)
        for i in range(self.start * self.batch_size, len(own), self.batch_size):
            yield [self.dataset.sample(video_id) for video_id in own[i : i + self.batch_size]]


class ResumableSampler:
    """The batches of a sampler from the one after the first `done`; `done` may be set anew."""

    def __init__(self, batches: TrainBatchSampler | TestBatchSampler) -> None:
        self.batches = batches
        self.done = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Sample]]:
        return iter(self.batches.after(self.done))


# ---- the loader ---------------------------------------------------------------------------------


def build_loader(dataset: VideoDataset, settings: LoaderSettings) -> Loader:
    """Build the loader of a data set for one process.

    Training data sets: the loader yields `batch_size / (world_size * grad_accum)` videos at a time,
    from step `start_step` to before `stop_step`. One loader can serve a whole run, so that workers
    read on across epochs. A data set smaller than `batch_size` is one smaller step per epoch, which
    `notes` says.

    Test data sets: `batch_size` videos at a time. Each video comes exactly once over all processes,
    so processes may have different numbers of batches.

    Raises DataError: sizes that do not divide or do not fit.
    """
    if not dataset.train:
        test_batches = TestBatchSampler(
            dataset, settings.batch_size, settings.rank, settings.world_size
        )
        return Loader(dataset, test_batches, settings)
    batch_size, notes = _fitting_batch_size(len(dataset), settings)
    steps_per_epoch = len(dataset) // batch_size
    stop_step = settings.stop_step
    if stop_step is None:
        stop_step = (settings.start_step // steps_per_epoch + 1) * steps_per_epoch
    batches = TrainBatchSampler(
        dataset,
        batch_size,
        settings.rank,
        settings.world_size,
        settings.grad_accum,
        settings.start_step,
        stop_step,
    )
    return Loader(dataset, batches, settings, notes)


def _fitting_batch_size(num_videos: int, settings: LoaderSettings) -> tuple[int, list[str]]:
    """The videos per step: `batch_size`, or fewer for a small data set, which the notes say."""
    shares = settings.world_size * settings.grad_accum
    if settings.batch_size % shares:
        raise DataError(
            f"a batch of {settings.batch_size} videos (TRAIN.BATCH_SIZE) does not divide by "
            f"{settings.world_size} processes x {settings.grad_accum} accumulated batches "
            f"(TRAIN.GRAD_ACCUM); take a multiple of {shares}"
        )
    if num_videos >= settings.batch_size:
        return settings.batch_size, []
    if num_videos < shares:
        raise DataError(
            f"{num_videos} training videos are too few for {settings.world_size} processes x "
            f"{settings.grad_accum} accumulated batches: each needs at least one"
        )
    smaller = num_videos // shares * shares
    return smaller, [
        f"only {num_videos} videos: steps of {smaller} instead of {settings.batch_size} videos"
    ]


GIVE_UP_AFTER = 100
"""Training fails when so many different videos, or all there are, cannot be read one after the
other. A test reads its list to the end: it may begin or end with a missing folder."""


@dataclass
class Failures:
    """The videos that one loader could not read so far."""

    count: int = 0
    first: list[Failed] = field(default_factory=list)
    """The first few, as examples."""
    in_a_row: set[int] = field(default_factory=set)
    """Ids of the videos that failed since one was read. In a small list the same few videos fail
    again in every epoch: they count once."""

    def add(self, failed: Sequence[Failed], num_read: int) -> None:
        """Count the failures of a batch, of which `num_read` clips could be read."""
        self.count += len(failed)
        self.first += failed[: max(0, 5 - len(self.first))]
        if num_read:
            self.in_a_row.clear()
        else:
            self.in_a_row.update(video.video_id for video in failed)

    def reasons(self) -> str:
        """The first three, with their reasons."""
        return "; ".join(f"{failed.path}: {failed.reason}" for failed in self.first[:3])


class Loader:
    """An iterable of `Batch`; made by `build_loader`.

    Attributes:
        batch_size: videos per optimizer step (training) or per batch (test).
        steps_per_epoch: optimizer steps in an epoch; 0 for a test data set.
        failures: the videos that could not be read since the loader was made.
        notes: messages for the user.

    A worker process that dies is replaced, and the batches go on where they were. The video it was
    reading is given up (`dataset.unreadable`) at once if the worker crashed, and at the second time
    if it was killed or hung, which may have another cause. Each is logged with the file's name.

    Iterating raises RunFailed when workers die again and again and, in training, when video after
    video cannot be read. A test loader goes to the end of its list: only all processes together
    know whether any video could be read.
    """

    def __init__(
        self,
        dataset: VideoDataset,
        batches: TrainBatchSampler | TestBatchSampler,
        settings: LoaderSettings,
        notes: Sequence[str] = (),
    ) -> None:
        self.dataset = dataset
        self.batch_size = batches.batch_size
        self.steps_per_epoch = batches.steps_per_epoch
        self.failures = Failures()
        self.notes = list(notes)
        self._sampler = ResumableSampler(batches)
        num_workers = settings.num_workers
        # Other processes wait for this one's share of a step: it must not leave in the middle.
        others_wait = dataset.train and settings.world_size > 1
        self._workers = WorkerMonitor(dataset, num_workers, others_wait) if num_workers else None
        manifest = dataset.manifest
        # Torch warns where workers outnumber cores, as a recipe for bigger machines may have it.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        self._loader = DataLoader(
            SampleReader(
                dataset.reader,
                reading=self._workers.reading if self._workers else None,
                time_limit=self._workers.time_limit if self._workers else VIDEO_TIME_LIMIT,
                memory_limit=memory_limit(dataset),
            ),
            batch_sampler=self._sampler,
            num_workers=num_workers,
            collate_fn=Collate(dataset.spec, manifest.num_classes if manifest.multi_label else 0),
            pin_memory=settings.pin_memory and torch.cuda.is_available(),
            worker_init_fn=init_worker if num_workers else None,
            multiprocessing_context=worker_context() if num_workers else None,
            persistent_workers=num_workers > 0,
            prefetch_factor=_prefetch(dataset, batches.videos_per_batch) if num_workers else None,
        )

    def __len__(self) -> int:
        """Number of batches."""
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
                # After a worker's death the DataLoader either says so, or fails on a message that
                # the worker had sent in part.
                if self._workers is None or not self._workers.handle_deaths(error):
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
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()

    def _start(self, *, after: int) -> Iterator[Batch]:
        """The batches that come after the first `after`."""
        self._sampler.done = after
        if self._workers is None:
            return iter(self._loader)
        # torch installs a SIGCHLD handler that raises wherever the program happens to be when a
        # worker dies. Without it the DataLoader notices the death by itself within seconds, in
        # next(), where the video that was being read is known.
        in_main = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGCHLD) if in_main and os.name == "posix" else None
        batches = iter(self._loader)
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            self._workers.processes = batches._workers
            _poll_more_often(batches)
        return batches


def _poll_more_often(batches: _MultiProcessingDataLoaderIter, seconds: float = 0.5) -> None:
    """Make torch's iterator look for dead workers every `seconds` instead of every 5 s."""
    look, itself = type(batches)._try_get_data, weakref.ref(batches)

    def try_get_data(timeout: float = seconds) -> tuple[bool, Any]:
        return look(itself(), timeout)  # type: ignore[arg-type] # alive: it is what calls this

    batches._try_get_data = try_get_data  # type: ignore[method-assign] # of this iterator alone


_LARGE_BATCH = 128 << 20
"""Bytes of a batch from which on each worker prepares one batch ahead, not two."""


def _prefetch(dataset: VideoDataset, videos: int) -> int:
    """The DataLoader's `prefetch_factor`: batches that each worker has ready or in progress."""
    return 1 if videos * bytes_per_video(dataset) > _LARGE_BATCH else 2
