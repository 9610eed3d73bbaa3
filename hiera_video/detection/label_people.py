"""Label the people of a video: who is there at each key frame, and what they do.

    with reading_process() as process:
        label = PeopleLabeller(scorer, detector, process)
        for row in label("clip.mp4"):
            print(row.second, row.person, row.labels[0])

For each key frame: find the people in it, or take the boxes that were given; number them by their
tracks; score all of them in one forward pass over the clip around it. A clip is what the model was
trained on: `num_frames` x `sampling_rate` frames, the key frame in the middle, first or last frames
repeated where the video ends. The model sees squares: the middle one, and beside it those at the
sides where the middle one does not show a person whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hiera_video.clip_spec import ClipSpec
from hiera_video.detection.box_moves import Window, at_least, clipped, seen_through, shares_inside
from hiera_video.detection.given_boxes import GivenFrame
from hiera_video.detection.movie_frames import FRAMES_PER_SECOND, at_grid, clip_places
from hiera_video.detection.people import LONGEST
from hiera_video.detection.reading import (
    CROPS,
    Moment,
    MomentRequest,
    ReadMoment,
    read_moments,
)
from hiera_video.detection.rows import PersonRow
from hiera_video.detection.tracks import Corners, Tracks
from hiera_video.errors import DataError, UserError
from hiera_video.video.crops import crop_areas
from hiera_video.video.guarded_pool import GuardedPool
from hiera_video.video.guarded_video import GuardedVideo
from hiera_video.video.info import VideoInfo

SMALLEST = 1e-3
"""Least side of a box, as a share of what the model sees."""

WHOLE = 0.98
"""Share of a box's area that a square must show to count as showing it whole."""


class Scorer(Protocol):
    """Scores boxes of clips, see `score_people.BoxScorer`."""

    spec: ClipSpec
    classes: list[str]

    def __call__(self, clips: Tensor, boxes: Tensor) -> Tensor:
        """Score boxes [N, 5] of clips uint8 [K, 3, T, S, S]: float32 [N, C]."""


Detector = Callable[[NDArray[np.uint8]], tuple[Corners, NDArray[np.float64]]]
"""Finds people in a picture [H, W, 3]: corners [N, 4] as shares, scores [N]."""


@dataclass(frozen=True)
class LabelSettings:
    """Which key frames, and which labels."""

    every: float = 1.0
    """Seconds between key frames."""
    top_k: int = 5
    """Most labels of a person."""
    threshold: float = 0.0
    """Least score of a label."""
    decoder: str = "auto"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.every) and self.every > 0):
            raise UserError(f"--every {self.every:g}: seconds between key frames, above 0")
        if self.top_k < 1:
            raise UserError(f"--top-k {self.top_k}: at least 1")
        if not 0 <= self.threshold <= 1:
            raise UserError(f"--threshold {self.threshold:g}: a score from 0 to 1")


class _Wanted(NamedTuple):
    """A key frame that is to be labelled."""

    second: float
    time: float
    given: GivenFrame | None


class PeopleLabeller:
    """Labels the people of videos.

    Args:
        scorer: says what they do.
        detector: finds them; None where boxes are given.
        process: reads the files, see `reading.reading_process`.
        settings: which key frames and labels.
    """

    def __init__(
        self,
        scorer: Scorer,
        detector: Detector | None,
        process: GuardedPool,
        settings: LabelSettings | None = None,
    ) -> None:
        self._scorer, self._detector, self._process = scorer, detector, process
        self.settings = settings or LabelSettings()

    def open(self, path: str) -> VideoInfo:
        """Return what is known of a file. Raises DecodeError."""
        with GuardedVideo(path, self._process, self.settings.decoder) as video:
            return video.info

    def __call__(
        self,
        info: VideoInfo,
        given: Sequence[GivenFrame] | None = None,
        *,
        begin: float = 0.0,
        on_progress: Callable[[float], None] | None = None,
    ) -> Iterator[PersonRow]:
        """Yield the rows of one video, key frame by key frame.

        Args:
            info: of the video, see `open`.
            given: its boxes, by their moments; None: people are found every `settings.every`
                seconds.
            begin: the second of `given` at which the video begins.
            on_progress: called with the fraction of the work that is done.

        Raises DecodeError, RunFailed; DataError for a moment that the video does not have.
        """
        if given is None:
            wanted = key_moments(info, self.settings.every)
        else:
            wanted = _given_moments(info, given, begin)
        numbers = _Numbers(wanted, self.settings.every)
        request = MomentRequest(
            self._scorer.spec.crop_size, 0 if given is not None else LONGEST, self.settings.decoder
        )
        moments = [moment_at(info, one.time, self._scorer.spec) for one in wanted]
        read = read_moments(info.path, moments, request, self._process)
        for done, (one, found) in enumerate(zip(wanted, read, strict=True), 1):
            yield from self._rows(info, one, found, numbers)
            if on_progress is not None:
                on_progress(done / len(wanted))

    def _rows(
        self, info: VideoInfo, wanted: _Wanted, read: ReadMoment, numbers: _Numbers
    ) -> Iterator[PersonRow]:
        """Yield the rows of one key frame, those of the lowest number first."""
        given = wanted.given
        if given is not None:
            corners, sure = given.corners, given.scores
        else:
            assert self._detector is not None
            assert read.picture is not None
            corners, scores = self._detector(read.picture)
            sure = list(scores.tolist())
        people = numbers.of(wanted, corners)
        if not len(corners):
            return
        labels = self._labels(info, read.clips, corners)
        for row in np.argsort(people, kind="stable").tolist():
            x1, y1, x2, y2 = corners[row].tolist()
            yield PersonRow(
                second=wanted.second,
                time=wanted.time,
                person=people[row],
                corners=(x1, y1, x2, y2),
                labels=labels[row],
                person_score=sure[row],
            )

    def _labels(
        self, info: VideoInfo, clips: Tensor, corners: Corners
    ) -> list[tuple[tuple[str, float], ...]]:
        """The labels of each box of one key frame, from one forward pass."""
        places, seen = squares_of(corners, info, self._scorer.spec.crop_size)
        used, row = np.unique(places, return_inverse=True)
        boxes = torch.from_numpy(np.column_stack([row, seen])).float()
        scores = self._scorer(clips[torch.from_numpy(used)], boxes)
        best = scores.topk(min(self.settings.top_k, scores.shape[1]), dim=1)
        return [
            tuple(
                (self._scorer.classes[index], score)
                for index, score in zip(indices, values, strict=True)
                if score >= self.settings.threshold
            )
            for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


class _Numbers:
    """Numbers of people: those that were given, where all boxes have one, else those of tracks."""

    def __init__(self, wanted: Sequence[_Wanted], every: float) -> None:
        times = np.array([one.time for one in wanted])
        step = float(np.median(np.diff(times))) if len(times) > 1 else every
        self._given = all(one.given is not None and one.given.people for one in wanted)
        self._tracks = Tracks(step)

    def of(self, wanted: _Wanted, corners: Corners) -> list[int]:
        """Return the number of each box of the next key frame."""
        if self._given and wanted.given is not None and wanted.given.people is not None:
            return wanted.given.people
        return self._tracks.add(wanted.time, corners)


# ---- moments ------------------------------------------------------------------------------------


def key_moments(info: VideoInfo, every: float) -> list[_Wanted]:
    """The moments 0, `every`, 2 * `every`, ... of a video, at most one for each of its frames."""
    last = float(info.times[-1]) + 1e-6
    count = min(int(last / every) + 1, 10_000_000)
    times = np.round(np.arange(count) * every, 6)
    _, first = np.unique(frames_at(info, times), return_index=True)
    return [_Wanted(time, time, None) for time in times[first].tolist()]


def _given_moments(info: VideoInfo, given: Sequence[GivenFrame], begin: float) -> list[_Wanted]:
    """The moments of boxes; DataError for one that the video does not have."""
    end = float(info.times[-1]) + 1 / info.fps
    wanted = []
    for frame in given:
        time = frame.second - begin
        if not 0 <= time <= end:
            raise DataError(
                f"{frame.place}: second {frame.second:g} is not in {info.path}, which has the "
                f"seconds {begin:g} to {begin + end:.5g}; --boxes-start SECONDS says at which "
                "second of the boxes the video begins (900 for AVA's 15-minute files)"
            )
        wanted.append(_Wanted(frame.second, time, frame))
    return wanted


def frames_at(info: VideoInfo, times: NDArray[np.float64]) -> NDArray[np.int64]:
    """The frame that is shown at each time; at the ends the first and the last one."""
    places = np.round(times * FRAMES_PER_SECOND).astype(np.int64)
    return at_grid(info.times, places)


def moment_at(info: VideoInfo, time: float, spec: ClipSpec) -> Moment:
    """The key frame at a time, and the frames of the clip around it, as in training."""
    centre = round(time * FRAMES_PER_SECOND)
    step = max(1, round(spec.sampling_rate * FRAMES_PER_SECOND / spec.target_fps))
    clip = at_grid(info.times, clip_places(centre, spec.num_frames, step))
    (frame,) = frames_at(info, np.array([time])).tolist()
    return Moment(frame, clip)


# ---- what the model sees ------------------------------------------------------------------------


def squares_of(
    corners: Corners, info: VideoInfo, crop_size: int
) -> tuple[NDArray[np.int64], Corners]:
    """The square that each box is scored in, [N], and the part of the box that it shows, [N, 4].

    The middle square where it shows the whole box: that is what models are tested on, and the fewer
    squares, the faster. Else the one that shows most of it.
    """
    areas = crop_areas(info.height, info.width, crop_size, CROPS)
    windows = [Window(left, top, right - left, low - top) for left, top, right, low in areas]
    moved = np.stack([seen_through(corners, window) for window in windows])
    shown = np.stack([shares_inside(boxes) for boxes in moved])
    middle = CROPS // 2
    places = np.where(shown[middle] >= WHOLE, middle, shown.argmax(axis=0))
    seen = moved[places, np.arange(len(corners))]
    return places, at_least(clipped(seen), SMALLEST)
