"""A key frame -> its clip with boxes: a random one to train on, fixed crops to test with.

    dataset = KeyFrameDataset(train, TrainKeyFrames(TrainTransform(spec), seed=1))
    batch = next(iter(build_loader(dataset, LoaderSettings(batch_size=8))))
    batch.boxes.corners                    # float32 [N, 4], in the crops that the model sees

A clip has `num_frames` pictures, `sampling_rate` 30ths of a second apart, with the key frame in the
middle as SlowFast takes them (`clip_places`); before the start and after the end of a movie the
first or the last picture is repeated. Randomness is a function of (seed, epoch, key frame).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.boxes import ClipBoxes
from hiera_video.data.datasets import ClipReader, Sample, VideoDataset
from hiera_video.data.randomness import generator_for, uniform
from hiera_video.data.transforms.train import Crop, Pixels, TrainTransform
from hiera_video.detection.box_moves import (
    Corners,
    Window,
    at_least,
    clipped,
    jittered,
    seen_through,
    shares_inside,
)
from hiera_video.detection.key_frames import KeyFrameList
from hiera_video.detection.movie_frames import (
    FRAMES_PER_SECOND,
    Movie,
    NumberedNames,
    clip_places,
)
from hiera_video.errors import UserError
from hiera_video.video.crops import check_num_crops, read_parts

LEAST_SEEN = 0.1
"""Of a box's area: a training box of which the crop shows less is left out of its clip."""


class KeyFrame(NamedTuple):
    """What a reader needs to know of one key frame; small, as it goes to another process."""

    centre: int
    """The picture of the key frame, at 30 a second from where the movie begins."""
    names: NumberedNames | None
    """The movie's pictures; None for a video file."""
    corners: Corners
    """[N, 4], of the whole picture."""
    labels: NDArray[np.uint8]
    """[N, C], or [N, 0]."""
    first_row: int
    """The row of the first box; the others follow it."""

    def boxes(self, corners: Corners, chosen: NDArray[np.int64]) -> ClipBoxes:
        """The `chosen` of the boxes, at `corners` of a clip, [len(chosen), 4]."""
        return ClipBoxes(
            torch.from_numpy(corners.astype(np.float32)),
            torch.from_numpy(self.labels[chosen].astype(np.float32)),
            torch.from_numpy(chosen + self.first_row),
        )


class KeyFrameDataset(VideoDataset):
    """The key frames of a list as clips with boxes; see `VideoDataset`, whose videos they are."""

    manifest: KeyFrameList

    def __init__(self, manifest: KeyFrameList, reader: ClipReader, *, seed: int = 0) -> None:
        super().__init__(manifest, reader, seed=seed)

    def sample(self, video_id: int, epoch: int = 0) -> Sample:
        """What a worker needs to read one key frame in one epoch."""
        frames, sample = self.manifest, super().sample(video_id, epoch)
        rows = frames.rows(sample.video_id)
        part = KeyFrame(
            int(frames.centres[sample.video_id]),
            frames.picture_names(sample.video_id),
            frames.corners[rows.start : rows.stop],
            frames.box_labels[rows.start : rows.stop],
            rows.start,
        )
        return sample._replace(part=part)


# ---- training -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainKeyFrames:
    """Reads a random clip of a key frame: crop, mirroring, light and erasing of `transform`.

    A box that leaves the crop is cut to it; one of which the crop shows less than LEAST_SEEN is
    left out, and the other boxes stay. So a clip may have no box.

    Raises UserError for a transform that moves pixels where boxes cannot follow.
    """

    transform: TrainTransform
    seed: int = 0
    box_jitter: float = 0.0
    """Sides of boxes move by up to this share of the box's width or height."""
    decoder: str = "auto"
    scales: tuple[int, int] | None = None
    """SlowFast's crop: the short side of the picture is scaled to a random number of pixels between
    these and a square of the clip's size is cut out. None: the crop of `transform`, whose share of
    the picture and aspect are random."""
    random: ClassVar[bool] = True
    clips_per_video: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_spec(self.spec)
        if self.transform.rand_augment:
            raise UserError(
                f"rand_augment={self.transform.rand_augment!r} (AUG.AA_TYPE) turns and shifts "
                "pictures without their boxes; leave it empty for TASK detect"
            )
        if not 0 <= self.box_jitter < 1:
            raise UserError(f"box_jitter={self.box_jitter} must be at least 0 and below 1")
        if self.scales and not self.spec.crop_size <= self.scales[0] <= self.scales[1]:
            raise UserError(
                f"scales={self.scales} must ascend from the crop's {self.spec.crop_size} pixels"
            )

    @property
    def spec(self) -> ClipSpec:
        return self.transform.spec

    def __call__(self, sample: Sample) -> list[Pixels]:
        """Read uint8 [T, 3, S, S] with its boxes. Raises DecodeError."""
        frame = key_frame_of(sample)
        generator = generator_for("augment", self.seed, sample.epoch, sample.video_id, 0, 0)
        with Movie(sample.path, frame.names, self.decoder) as movie:
            size = movie.size
            crop = self._draw_crop(*size, generator)
            (clip,) = read_clip(movie, frame.centre, self.spec, [crop])
        boxes = self._boxes(frame, crop, size, generator)
        return [self.transform.augment(clip, generator)._replace(boxes=boxes)]

    def _draw_crop(self, height: int, width: int, generator: Generator) -> Crop:
        if self.scales is None:
            return self.transform.draw_crop(height, width, generator)
        scale, y, x, mirror = uniform(generator, 4)
        least, most = self.scales
        short = round(least + scale * (most - least))
        side = max(1, round(self.spec.crop_size * min(height, width) / short))
        top, left = int(y * (height - side + 1)), int(x * (width - side + 1))
        return Crop(top, left, side, side, flip=mirror < self.transform.flip)

    def _boxes(
        self, frame: KeyFrame, crop: Crop, size: tuple[int, int], generator: Generator
    ) -> ClipBoxes:
        corners = frame.corners
        if self.box_jitter:
            draws = np.array(uniform(generator, corners.size)).reshape(corners.shape)
            corners = clipped(jittered(corners, draws, self.box_jitter))
        corners = seen_through(corners, window_of(crop, size))
        chosen = np.flatnonzero(shares_inside(corners) >= LEAST_SEEN)
        return frame.boxes(clipped(corners[chosen]), chosen)


# ---- test ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TestKeyFrames:
    """Reads the fixed crops of a key frame: the short side of its pictures becomes the clip's.

    1 crop: the centre, as in the paper. 3: also those at both ends of the long side. Each box is
    scored once, in the crop that shows most of it (where several show the same, the first of
    centre, start, end), cut to what is seen of it; where nothing is, at the edge nearest to it.
    Crops without a box are not read, so a key frame gives 1 to `num_crops` clips.
    """

    __test__ = False  # for pytest: the name begins like a test class

    spec: ClipSpec
    num_crops: int = 1
    decoder: str = "auto"
    random: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_spec(self.spec)
        check_num_crops(self.num_crops)

    @property
    def clips_per_video(self) -> int:
        return self.num_crops

    def __call__(self, sample: Sample) -> list[Pixels]:
        """Read uint8 [T, 3, S, S] with its boxes for each crop. Raises DecodeError."""
        frame = key_frame_of(sample)
        with Movie(sample.path, frame.names, self.decoder) as movie:
            size = movie.size
            crops = square_crops(*size, self.num_crops)
            seen = [seen_through(frame.corners, window_of(crop, size)) for crop in crops]
            best = np.argmax([shares_inside(corners) for corners in seen], axis=0)
            used = np.unique(best).tolist()
            clips = read_clip(movie, frame.centre, self.spec, [crops[i] for i in used])
        found = []
        for number, clip in zip(used, clips, strict=True):
            chosen = np.flatnonzero(best == number)
            corners = at_least(clipped(seen[number][chosen]), 1 / self.spec.crop_size)
            found.append(Pixels(clip, boxes=frame.boxes(corners, chosen)))
        return found


def square_crops(height: int, width: int, num_crops: int) -> list[Crop]:
    """The largest squares in a picture: the centre, and for 3 those at the start and the end."""
    side = min(height, width)
    spare = max(height, width) - side
    offsets = [(spare + 1) // 2, 0, spare][:num_crops]
    places = [(offset, 0) if height > width else (0, offset) for offset in offsets]
    return [Crop(top, left, side, side, flip=False) for top, left in places]


# ---- both ---------------------------------------------------------------------------------------


def window_of(crop: Crop, size: tuple[int, int]) -> Window:
    """What `crop` shows of pictures of `size` (height, width)."""
    return Window.of_pixels(crop[:4], size, flip=crop.flip)


def read_clip(movie: Movie, centre: int, spec: ClipSpec, crops: list[Crop]) -> list[Tensor]:
    """The clip around picture `centre` in each of the crops: uint8 [T, 3, S, S].

    Pictures are cut as they are decoded, each once. Raises DecodeError.
    """
    places = clip_places(centre, spec.num_frames, spec.sampling_rate)
    wanted, back = np.unique(movie.frames_of(places, centre), return_inverse=True)
    pieces: list[list[Tensor]] = [[] for _ in crops]
    for _, frames in read_parts(movie.reader, wanted):
        for crop, parts in zip(crops, pieces, strict=True):
            parts.append(crop.cut(frames, spec.crop_size))
    cut = [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in pieces]
    if len(back) == len(wanted):
        return cut
    rows = torch.from_numpy(back)
    return [clip[rows] for clip in cut]


def key_frame_of(sample: Sample) -> KeyFrame:
    """The key frame that a sample of `KeyFrameDataset` carries."""
    if not isinstance(sample.part, KeyFrame):
        raise TypeError("this reader reads the samples of a KeyFrameDataset")
    return sample.part


def _check_spec(spec: ClipSpec) -> None:
    if spec.segments or spec.target_fps != FRAMES_PER_SECOND:
        raise UserError(
            f"clips around key frames are taken at {FRAMES_PER_SECOND} frames a second: "
            f"DATA.TARGET_FPS={spec.target_fps:g} and segments={spec.segments} have no meaning"
        )
