"""Manifests -> batches of clips, the same whatever number of workers or processes reads them.

    dataset = VideoDataset(manifest, spec, transform=TrainTransform(spec), seed=1)
    loader = build_loader(dataset, batch_size=64, num_workers=8, start_step=120)
    for batch in loader:
        ...  # batch.clips float32 [B, 3, T, S, S]

Randomness is arithmetic. The order of an epoch is a function of (seed, epoch); where a clip starts
and how it is cropped and augmented, of (seed, epoch, video, view). There is no generator state, so
a run resumed at step 120, or on another number of workers or processes, sees the same clips.

A video that cannot be read is counted, never replaced: its clips are missing from the batch, and
`batch.failed` says which and why.

Workers are told the path and label of each video they are to read and hold no list, so that their
number does not multiply the memory of a long one. They are started from a fork server: forking the
training process itself, with its threads (FFmpeg's, OpenMP's, CUDA's), is how loaders come to hang.
A script that starts workers therefore needs `if __name__ == "__main__":` around what it does.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.augment import TrainTransform, directional_classes
from hiera_video.data.decode import DecodeError, VideoInfo, VideoReader
from hiera_video.data.frame_folder import FrameFolder, open_video
from hiera_video.data.manifests import DataError, Manifest
from hiera_video.data.randomness import epoch_order, generator_for, uniform
from hiera_video.data.sampling import Indices, training_clip
from hiera_video.data.views import load_test_views
from hiera_video.errors import RunFailed

__all__ = [
    "Batch",
    "DataError",
    "Failed",
    "Loader",
    "VideoDataset",
    "build_loader",
    "check_flip",
]

# ---- what comes out -----------------------------------------------------------------------------


class Failed(NamedTuple):
    """A video that could not be read."""

    video_id: int
    path: str
    reason: str


class Batch(NamedTuple):
    """What the data hands to the engine.

    B counts clips: videos x temporal clips x augmentations (training) or x views (test). It is
    smaller where videos failed, down to 0.
    """

    clips: Tensor
    """float32 [B, 3, T, S, S], normalised."""
    labels: Tensor
    """int64 [B] (-1: none), or float32 [B, K] of zeros and ones where labels are several; mixing
    turns either into soft targets [B, K]."""
    video_ids: Tensor
    """int64 [B]: the video's place in the manifest."""
    views: Tensor
    """int64 [B]: which clip of its video."""
    failed: tuple[Failed, ...] = ()
    """The videos of this batch that could not be read."""

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The same batch on `device`."""
        moved = (tensor.to(device, non_blocking=non_blocking) for tensor in self[:4])
        return Batch(*moved, self.failed)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which copies to a GPU overlap with work."""
        return Batch(*(tensor.pin_memory() for tensor in self[:4]), self.failed)


class Sample(NamedTuple):
    """What a worker is told to read: one line of the manifest, in one epoch."""

    video_id: int
    path: str
    label: int | tuple[int, ...]
    epoch: int


class Clips(NamedTuple):
    """What one video gives: N clips, neighbours in a batch."""

    clips: Tensor | list[Tensor]  # N x [3, T, S, S]
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

    def __call__(self, sample: Sample) -> list[Tensor]:
        """Float32 [3, T, S, S] for each view. Raises DecodeError."""
        key = (self.seed, sample.epoch, sample.video_id)
        with open_video(sample.path, self.decoder) as reader:
            places = [
                self._place(reader.info, generator_for(*key, temporal))
                for temporal in range(self.num_temporal)
            ]
            views = [
                (places[temporal], generator_for(*key, temporal, augment))
                for temporal in range(self.num_temporal)
                for augment in range(self.num_augment)
            ]
            cropped = self._read(reader, views)
        return [
            self.transform.finish(frames, generator)
            for frames, (_, generator) in zip(cropped, views, strict=True)
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

    def __call__(self, sample: Sample) -> Tensor:
        """Float32 [num_views * num_crops, 3, T, S, S]. Raises DecodeError."""
        return load_test_views(
            sample.path, self.spec, self.num_views, self.num_crops, decoder=self.decoder
        )


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

    `dataset[i]` (epoch 0) and `dataset[epoch, i]` give a list of float32 [3, T, S, S], or a
    `Failed`.

    Raises DataError where a mirrored video would have a wrong label (`check_flip`).
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
    ) -> None:
        self.manifest = manifest
        self.spec = spec
        self.seed = seed
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
            if transform.flip:
                check_flip(manifest)
            self.reader = TrainReader(transform, seed, num_temporal, num_augment, decoder)
            self.clips_per_video = num_temporal * num_augment

    def __len__(self) -> int:
        return len(self.manifest)

    def sample(self, video_id: int, epoch: int = 0) -> Sample:
        """What to read for one video in one epoch."""
        video_id = range(len(self))[video_id]
        return Sample(video_id, self.manifest.paths[video_id], self.manifest.label(video_id), epoch)

    def __getitem__(self, key: int | tuple[int, int]) -> list[Tensor] | Failed:
        epoch, video_id = key if isinstance(key, tuple) else (0, key)
        clips = _read(self.reader, self.sample(video_id, epoch))
        return clips if isinstance(clips, Failed) else list(clips.clips)


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
        shown = ", ".join(repr(name) for name in named[:4])
        more = f" and {len(named) - 4} more" if len(named) > 4 else ""
        raise DataError(f"classes {shown}{more} name a direction, and {advice}")


def _read(reader: TrainReader | TestReader, sample: Sample) -> Clips | Failed:
    try:
        return Clips(reader(sample), sample.label, sample.video_id)
    except DecodeError as error:
        return Failed(sample.video_id, sample.path, str(error.reason))


@dataclass(frozen=True)
class _Collate:
    """Clips of several videos -> one Batch; in a worker, straight into shared memory."""

    spec: ClipSpec
    num_classes: int
    """Columns of multi-hot labels; 0 for one label per video."""

    def __call__(self, items: Sequence[Clips | Failed]) -> Batch:
        failed = tuple(item for item in items if isinstance(item, Failed))
        read = [item for item in items if isinstance(item, Clips)]
        clips = [clip for item in read for clip in item.clips]
        counts = torch.tensor([len(item.clips) for item in read], dtype=torch.int64)
        ids = torch.tensor([item.video_id for item in read], dtype=torch.int64)
        views = [torch.arange(count) for count in counts.tolist()]
        return Batch(
            clips=default_collate(clips) if clips else self._no_clips(),
            labels=self._labels([item.label for item in read]).repeat_interleave(counts, dim=0),
            video_ids=ids.repeat_interleave(counts),
            views=torch.cat(views) if views else counts,
            failed=failed,
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
        return torch.empty(0, 3, self.spec.num_frames, size, size)


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

    @property
    def steps_per_epoch(self) -> int:
        return len(self.dataset) // self.batch_size

    @property
    def videos_at_a_time(self) -> int:
        return self.batch_size // (self.world * self.parts)

    def __len__(self) -> int:
        return max(self.stop_step - self.start_step, 0) * self.parts

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
            for part in range(self.parts):
                mine = videos[part * self.world + self.rank :: self.world * self.parts]
                yield [self.dataset.sample(video_id, epoch) for video_id in mine.tolist()]


@dataclass(frozen=True)
class _TestBatches:
    """Every video exactly once over all processes, in the manifest's order."""

    dataset: VideoDataset
    batch_size: int
    rank: int
    world: int

    @property
    def videos_at_a_time(self) -> int:
        return self.batch_size

    def __len__(self) -> int:
        return math.ceil(len(range(self.rank, len(self.dataset), self.world)) / self.batch_size)

    def __iter__(self) -> Iterator[list[Sample]]:
        mine = range(self.rank, len(self.dataset), self.world)
        for i in range(0, len(mine), self.batch_size):
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
"""Videos: a run ends when so many could not be read and none could (in training: in a row)."""


@dataclass
class Failures:
    """Videos that could not be read so far, by one loader."""

    count: int = 0
    first: list[Failed] = field(default_factory=list)
    """The first few, as examples."""
    in_a_row: int = 0

    def add(self, failed: Sequence[Failed], num_read: int) -> None:
        self.count += len(failed)
        self.first += failed[: max(0, 5 - len(self.first))]
        self.in_a_row = 0 if num_read else self.in_a_row + len(failed)

    def reasons(self) -> str:
        return "; ".join(f"{failed.path}: {failed.reason}" for failed in self.first[:3])


class Loader:
    """An iterable of `Batch`; made by `build_loader`.

    Attributes:
        batch_size: videos per optimizer step (training) or per batch (test).
        steps_per_epoch: optimizer steps in an epoch; 0 for a test data set.
        failures: what could not be read since the loader was made.
        notes: what a user should be told.

    Iterating raises RunFailed when no video can be read and when a worker process dies, with the
    video it was reading.
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
        self._workers = _Workers(num_workers) if num_workers else None
        manifest = dataset.manifest
        self._loader = DataLoader(
            _WorkerSide(dataset.reader, self._workers and self._workers.reading),
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=_Collate(dataset.spec, manifest.num_classes if manifest.multi_label else 0),
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
        num_read = 0
        batches = self._start()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                break
            except (RuntimeError, OSError, EOFError) as error:
                # Where a worker died the loader says so, or trips over what it left half sent.
                if self._workers is None or (death := self._workers.death(error)) is None:
                    raise
                raise RunFailed(self._obituary(*death)) from error
            num_read += len(batch.video_ids)
            self.failures.add(batch.failed, len(batch.video_ids))
            if self.failures.in_a_row >= GIVE_UP_AFTER and (self.dataset.train or not num_read):
                break
            yield batch
        if self.failures.in_a_row and (self.failures.in_a_row >= GIVE_UP_AFTER or not num_read):
            raise RunFailed(
                f"the last {self.failures.in_a_row} videos could not be read, one after the other; "
                f"the first reasons: {self.failures.reasons()}"
            )

    def close(self) -> None:
        """End the worker processes; iterating again starts new ones."""
        iterator, self._loader._iterator = self._loader._iterator, None
        if self._workers is not None and iterator is not None:
            iterator._shutdown_workers()

    def _start(self) -> Iterator[Batch]:
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
        self._workers.remember()
        return batches

    def _obituary(self, video_id: int, cause: str) -> str:
        more = "DATA_LOADER.NUM_WORKERS 0 reads in the main process, to see more"
        if video_id < 0:
            return f"a data loading worker died: {cause}. {more}"
        return (
            f"a data loading worker died while it read {self.dataset.manifest.paths[video_id]}: "
            f"{cause}. If that video is the cause, take it out of the list; {more}"
        )


class _Workers:
    """What the main process knows of its workers, so as to say what one died of."""

    def __init__(self, count: int) -> None:
        # [worker, (process id, video being read or -1)], written by the workers.
        self.reading = torch.full((count, 2), -1, dtype=torch.int64).share_memory_()
        self._processes: dict[int, multiprocessing.process.BaseProcess] = {}

    def remember(self) -> None:
        """Keep the process objects, which know how a worker ended."""
        self._processes |= {process.pid: process for process in multiprocessing.active_children()}

    def death(self, error: Exception) -> tuple[int, str] | None:
        """(video id or -1, cause) if the loader's error comes of a dead worker."""
        match = re.search(r"DataLoader worker \(pid(?:\(s\))? (\d+)", str(error))
        pid = int(match[1]) if match else self._dead()
        if pid is None:
            return None
        row = next((row for row in self.reading.tolist() if row[0] == pid), [pid, -1])
        process = self._processes.get(pid)
        return row[1], _cause(process.exitcode if process else None)

    def _dead(self, patience: float = 1.0) -> int | None:
        """The process id of a worker that ended badly, waiting a moment for the system to say."""
        end = time.monotonic() + patience
        while True:
            for pid, process in self._processes.items():
                if process.exitcode not in (None, 0):
                    return pid
            if time.monotonic() > end:
                return None
            time.sleep(0.05)


_CAUSES = {
    "SIGKILL": "killed, most likely for want of memory: take fewer DATA_LOADER.NUM_WORKERS",
    "SIGSEGV": "the decoder crashed: choose another (DATA.DECODING_BACKEND)",
    "SIGABRT": "the decoder crashed: choose another (DATA.DECODING_BACKEND)",
    "SIGBUS": "no shared memory left: enlarge /dev/shm (docker run --shm-size 8g)",
}


def _cause(exitcode: int | None) -> str:
    if exitcode is None:
        return "it ended for a reason unknown"
    if exitcode >= 0:
        return (
            f"it ended with exit code {exitcode} (a script of your own that starts workers needs "
            f"`if __name__ == '__main__':` around what it does)"
        )
    name = signal.Signals(-exitcode).name
    return f"{name}, {_CAUSES.get(name, 'a signal from outside')}"


@dataclass(frozen=True)
class _WorkerSide(Dataset):
    """What a worker holds: how to read a video, and where to note which one it is reading."""

    reader: TrainReader | TestReader
    reading: Tensor | None

    def __getitem__(self, sample: Sample) -> Clips | Failed:
        worker = get_worker_info()
        if worker is not None:
            self.reading[worker.id, 1] = sample.video_id
        item = _read(self.reader, sample)
        if worker is not None:
            self.reading[worker.id, 1] = -1
        return item


def _init_worker(worker_id: int) -> None:
    # Ctrl-C is for the main process, which then ends its workers in good order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One core per worker: clips are decoded side by side, not each on all cores.
    torch.set_num_threads(1)
    # Ctrl-C reaches every process of a terminal; the trainer stops the workers when it has saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    get_worker_info().dataset.reading[worker_id, 0] = os.getpid()


def _prefetch(dataset: VideoDataset, videos: int) -> int:
    """Batches that each worker has ready or under way: one where two would be too much memory."""
    clip_bytes = 4 * 3 * dataset.spec.num_frames * dataset.spec.crop_size**2
    return 1 if videos * dataset.clips_per_video * clip_bytes > _LARGE_BATCH else 2


_LARGE_BATCH = 128 << 20


def _context() -> multiprocessing.context.BaseContext:
    """Workers from a server that has imported what they need and runs no threads."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hiera_video.data.worker_imports"])
    return context
