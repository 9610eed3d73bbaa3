"""One video of a manifest -> its clips: random ones to train on, fixed views to test with.

    dataset = VideoDataset(manifest, TrainReader(TrainTransform(spec), seed=1))
    clips = dataset[epoch, video_id]  # a list of float32 [3, T, S, S], or a `Failed`

Randomness is arithmetic: where a clip starts and how it is cropped and augmented is a function of
(seed, epoch, video, view). There is no generator state, so a run that is resumed, or that uses
another number of workers or processes, sees the same clips. `loader.py` makes batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.batch import Clips, Failed
from hiera_video.data.manifests.listing import quoted
from hiera_video.data.manifests.manifest import Manifest
from hiera_video.data.randomness import generator_for, log_uniform, uniform
from hiera_video.data.transforms.train import Crop, Pixels, TrainTransform, directional_classes
from hiera_video.data.views import read_view_pixels, views_of
from hiera_video.errors import DataError, DecodeError, hide_secrets
from hiera_video.video.crops import read_parts
from hiera_video.video.decode import VideoReader, open_video
from hiera_video.video.frame_folder import FrameFolder
from hiera_video.video.info import VideoInfo
from hiera_video.video.sampling import Indices, training_clip


class Sample(NamedTuple):
    """What a worker needs to read one video of the manifest in one epoch."""

    video_id: int
    path: str
    label: int | tuple[int, ...]
    epoch: int
    unreadable: str = ""
    """Why the video must not be opened: it ended the worker processes that tried."""
    part: object = None
    """Which part of the video is meant, where the data set has several of one: plain data that its
    own reader understands."""


class ClipReader(Protocol):
    """What turns a sample into clips. Readers are sent to worker processes: plain, frozen data."""

    @property
    def spec(self) -> ClipSpec:
        """The form of every clip."""
        ...

    @property
    def random(self) -> bool:
        """Whether clips differ from epoch to epoch, for training."""
        ...

    @property
    def clips_per_video(self) -> int:
        """How many clips a sample gives."""
        ...

    def __call__(self, sample: Sample) -> list[Pixels]:
        """Read the clips. Raises DecodeError."""
        ...


# ---- one video -> its clips ---------------------------------------------------------------------


@dataclass(frozen=True)
class TrainReader:
    """Reads random clips: `num_temporal` positions in time (SlowFast's TRAIN_CROP_NUM_TEMPORAL),
    each augmented `num_augment` times (AUG.NUM_SAMPLE).

    However many clips are asked for, the video is opened once and every frame is decoded once.
    Views are numbered temporal clip by temporal clip.

    Raises DataError for counts below 1 and for a speed that is no range or has no meaning.
    """

    transform: TrainTransform
    seed: int = 0
    num_temporal: int = 1
    num_augment: int = 1
    decoder: str = "auto"
    speed: tuple[float, float] = (1.0, 1.0)
    """Least and greatest factor of the distance between frames, log-uniform."""
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.num_temporal, self.num_augment) < 1:
            raise DataError(
                f"num_temporal={self.num_temporal} and num_augment={self.num_augment} must be at "
                "least 1"
            )
        least, most = self.speed
        if not 0 < least <= most:
            raise DataError(f"speed=({least}, {most}) must be (least, most), both above 0")
        if self.spec.segments and self._changes_speed:
            raise DataError(f"speed={self.speed} has no meaning for segments: leave it at (1, 1)")

    @property
    def spec(self) -> ClipSpec:
        return self.transform.spec

    @property
    def clips_per_video(self) -> int:
        return self.num_temporal * self.num_augment

    @property
    def _changes_speed(self) -> bool:
        return self.speed != (1, 1)

    def __call__(self, sample: Sample) -> list[Pixels]:
        """Read uint8 [T, 3, S, S] for each view, and the boxes to erase. Raises DecodeError."""
        with open_video(sample.path, self.decoder) as reader:
            return self.read(reader, sample)

    def read(self, reader: VideoReader | FrameFolder, sample: Sample) -> list[Pixels]:
        """Read the same from an open video."""
        views = self.draw(reader.info, sample)
        return [
            self.transform.augment(frames, generator)
            for frames, (_, generator) in zip(self._read(reader, views), views, strict=True)
        ]

    def draw(self, info: VideoInfo, sample: Sample) -> list[tuple[Indices, Generator]]:
        """Draw the frame indices of each view; with the generator of its crop and augmentation."""
        key = (self.seed, sample.epoch, sample.video_id)
        starts = [
            self._frame_indices(info, generator_for("place", *key, temporal))
            for temporal in range(self.num_temporal)
        ]
        return [
            (starts[temporal], generator_for("augment", *key, temporal, augment))
            for temporal in range(self.num_temporal)
            for augment in range(self.num_augment)
        ]

    def _frame_indices(self, info: VideoInfo, generator: Generator) -> Indices:
        count = self.spec.num_frames if self.spec.segments else 1
        u, speed = uniform(generator, count), 1.0
        if self._changes_speed:
            (place,) = uniform(generator, 1)
            speed = log_uniform(place, *self.speed)
        return training_clip(info.num_frames, info.fps, self.spec, u, speed)

    def _read(
        self, reader: VideoReader | FrameFolder, views: Sequence[tuple[Indices, Generator]]
    ) -> list[Tensor]:
        """The cropped frames of each view, uint8 [T, 3, S, S].

        Frames are cropped as they are decoded, so that memory is bounded by what the model takes,
        even for many clips of a 4K video.
        """
        wanted = np.unique(np.concatenate([indices for indices, _ in views]))
        crops: list[Crop] = []
        pieces: list[list[Tensor]] = [[] for _ in views]
        for decoded, frames in read_parts(reader, wanted):
            if not crops:
                height, width = frames.shape[-2:]
                crops = [self.transform.draw_crop(height, width, g) for _, g in views]
            for (indices, _), crop, parts in zip(views, crops, pieces, strict=True):
                present = indices[np.isin(indices, decoded)]
                if len(present):
                    rows = np.searchsorted(decoded, present)
                    parts.append(crop.cut(_take(frames, rows), self.spec.crop_size))
        return [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in pieces]


@dataclass(frozen=True)
class FixedClips:
    """Reads the random clips of epoch 0 whenever it is asked: for what goes through all training
    videos once and does not train, such as a probe."""

    reader: TrainReader
    random: ClassVar[bool] = False

    @property
    def spec(self) -> ClipSpec:
        return self.reader.spec

    @property
    def clips_per_video(self) -> int:
        return self.reader.clips_per_video

    def __call__(self, sample: Sample) -> list[Pixels]:
        """Read the clips of the video. Raises DecodeError."""
        return self.reader(sample._replace(epoch=0))


@dataclass(frozen=True)
class TestReader:
    """Reads the fixed views of a test: `num_views` clips spread over the video x `num_crops`."""

    __test__ = False  # for pytest: the name begins like a test class

    spec: ClipSpec
    num_views: int = 1
    num_crops: int = 1
    decoder: str = "auto"
    random: ClassVar[bool] = False

    @property
    def clips_per_video(self) -> int:
        return self.num_views * self.num_crops

    def __call__(self, sample: Sample) -> list[Pixels]:
        """Read uint8 [T, 3, S, S], num_views * num_crops times. Raises DecodeError."""
        with open_video(sample.path, self.decoder) as reader:
            return self.read(reader, sample)

    def read(self, reader: VideoReader | FrameFolder, sample: Sample) -> list[Pixels]:
        """Read the same from an open video."""
        views = views_of(reader, self.spec, self.num_views)
        return [Pixels(f) for f in read_view_pixels(reader, views, self.spec, self.num_crops)]


def _take(frames: Tensor, rows: np.ndarray) -> Tensor:
    """`frames[rows]`, without a copy in the usual case that these are all frames in order."""
    if len(rows) == len(frames) and (np.diff(rows) == 1).all():
        return frames
    return frames[torch.from_numpy(rows)]


def read_clips(reader: ClipReader, sample: Sample) -> Clips | Failed:
    """Read the clips of a video; `Failed` with the reason where it cannot be decoded."""
    if sample.unreadable:
        return Failed(sample.video_id, hide_secrets(sample.path), sample.unreadable)
    try:
        return Clips(reader(sample), sample.label, sample.video_id)
    except DecodeError as error:
        return Failed(sample.video_id, hide_secrets(sample.path), str(error.reason))


def read_sample(request: tuple[ClipReader, Sample]) -> Clips | Failed:
    """`read_clips` with one argument, for a process of its own (`GuardedPool`)."""
    return read_clips(*request)


def try_to_read(request: tuple[ClipReader, Sample]) -> Failed | None:
    """Read a video and keep only the failure, if any, for a process of its own (`GuardedPool`)."""
    item = read_clips(*request)
    return item if isinstance(item, Failed) else None


# ---- the data set -------------------------------------------------------------------------------


class VideoDataset(Dataset):
    """The videos of a manifest as clips.

    `dataset[i]` (epoch 0) and `dataset[epoch, i]` are a list of normalised float32 [3, T, S, S], or
    a `Failed`.

    Args:
        manifest: the videos and their labels.
        reader: `TrainReader` for training, `TestReader` for validation and tests; or another one.
        seed: of the order of the videos; a `TrainReader` has its own.
        labelled: whether the labels are used; False for pretraining.

    Attributes:
        train: whether the clips are random.
        spec: the form of every clip.
        clips_per_video: how many clips each video gives.
        unreadable: {video id: reason} of the videos that ended the worker processes which read
            them; they are not opened again.

    Raises DataError if training would mirror videos whose label has a direction (`check_flip`).
    """

    def __init__(
        self, manifest: Manifest, reader: ClipReader, *, seed: int = 0, labelled: bool = True
    ) -> None:
        self.manifest = manifest
        self.reader = reader
        self.spec = reader.spec
        self.clips_per_video = reader.clips_per_video
        self.unreadable: dict[int, str] = {}
        self.train = reader.random
        self.seed = seed
        if isinstance(reader, TrainReader):
            self.seed = reader.seed
            if reader.transform.flip and labelled:
                check_flip(manifest)

    def __len__(self) -> int:
        return len(self.manifest)

    def sample(self, video_id: int, epoch: int = 0) -> Sample:
        """What a worker needs to read one video in one epoch."""
        video_id = range(len(self))[video_id]
        path, label = self.manifest.paths[video_id], self.manifest.label(video_id)
        return Sample(video_id, path, label, epoch, self.unreadable.get(video_id, ""))

    def __getitem__(self, key: int | tuple[int, int]) -> list[Tensor] | Failed:
        epoch, video_id = key if isinstance(key, tuple) else (0, key)
        clips = read_clips(self.reader, self.sample(video_id, epoch))
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
    directional = directional_classes(manifest.classes or ())
    if directional:
        raise DataError(f"classes {quoted(directional, 4)} name a direction, and {advice}")
