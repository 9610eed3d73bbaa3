"""The frames of a movie at 30 a second: of its pictures, or straight from the video file.

SlowFast's AVA is a folder of pictures for each movie, extracted at 30 a second. `at_grid` says
which frame of the video file each of these pictures shows, so that the file itself gives the same
clips and a million pictures need not be written.

The rule is that of FFmpeg's filter `fps=30`, which extracts the pictures:

    ffmpeg -i movie.mp4 -vf fps=30 -q:v 1 movie_%06d.jpg

A frame's time, counted from the first frame, is rounded to the nearest whole number of 30ths, half
up; picture k shows the last frame that is not rounded to more than k. `ffmpeg -r 30`, as SlowFast's
instructions have it, gives the same pictures for 29.97 and 30 frames a second. It places others by
what was written so far and by the durations that the file states, which differs between versions:
a sixth of the pictures of a movie of 25 frames a second, a fifth at 24, are those of the frame
after or before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hiera_video.errors import DecodeError
from hiera_video.video.decode import VideoReader
from hiera_video.video.frame_folder import FrameFolder
from hiera_video.video.info import Integers, Seconds

FRAMES_PER_SECOND = 30
"""Of AVA's pictures, and of the clips that are cut from video files."""

_NOISE = 1e-6
"""Of a 30th of a second: times are sums of ticks, and one just below a half counts as a half."""


def at_grid(times: Seconds, places: Integers) -> Integers:
    """The frame that each of the pictures `places` [K] shows: int64 [K].

    times: seconds of a video's frames from its first, never falling. Places before the first frame
    show the first, those after the last the last.
    """
    rounded = np.floor(times * FRAMES_PER_SECOND + 0.5 + _NOISE).astype(np.int64)
    frames = np.searchsorted(rounded, places, side="right") - 1
    return np.clip(frames, 0, len(times) - 1)


def clip_places(centre: int, num_frames: int, sampling_rate: int) -> Integers:
    """The pictures of a clip around picture `centre`, as SlowFast takes them: int64 [T].

    4 frames 3 apart around 100: 94 97 100 103. They may lie before the first picture.
    """
    first = centre - num_frames * sampling_rate // 2
    return first + sampling_rate * np.arange(num_frames, dtype=np.int64)


@dataclass(frozen=True)
class NumberedNames(Sequence[str]):
    """The names of the pictures of one folder that are numbered without a gap."""

    prefix: str
    first: int
    """Number of the first picture."""
    width: int
    """Least digits of a number, filled with zeros."""
    suffix: str
    pictures: int

    def __len__(self) -> int:
        return self.pictures

    def __getitem__(self, index: int) -> str:  # type: ignore[override] # no slices
        number = self.first + range(self.pictures)[index]
        return f"{self.prefix}{number:0{self.width}d}{self.suffix}"


class Movie:
    """One open movie, read by the number of its picture at 30 a second. A context manager.

    Args:
        path: a video file, or the folder of its pictures.
        names: the names of the pictures, so that a folder of 27,000 need not be listed.
        decoder: for video files.

    Raises DecodeError for what cannot be opened.
    """

    def __init__(
        self, path: str, names: NumberedNames | None = None, decoder: str = "auto"
    ) -> None:
        self.reader: VideoReader | FrameFolder
        if names is not None:
            self.reader = FrameFolder(path, names=names)
        else:
            self.reader = VideoReader(path, decoder)

    def __enter__(self) -> Movie:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its pictures."""
        return self.reader.info.height, self.reader.info.width

    def frames_of(self, places: Integers, centre: int) -> Integers:
        """The reader's frames for the pictures `places` [T] of a clip around `centre`: int64 [T].

        Places before the start or after the end are the first or the last frame. DecodeError where
        the movie ends before `centre`.
        """
        info = self.reader.info
        if isinstance(self.reader, FrameFolder):
            count = info.num_frames
            frames = np.clip(places, 0, count - 1)
        else:
            count = round((info.times[-1] + 1 / info.fps) * FRAMES_PER_SECOND)
            frames = at_grid(info.times, places)
        if centre >= count:
            raise DecodeError(
                info.path,
                f"it ends after {count / FRAMES_PER_SECOND:.2f} s, before the key frame at "
                f"{centre / FRAMES_PER_SECOND:.2f} s (AVA.VIDEO_START says when it begins)",
            )
        return frames
