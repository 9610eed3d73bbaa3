"""Reads what key frames need, in a process of its own: the clip around each, and its whole picture.

    with reading_process() as process:
        with GuardedVideo("clip.mp4", process) as video:
            for read in read_moments("clip.mp4", moments, request, process):
                ...

The clips of neighbouring key frames overlap. So several are read in one pass, each frame once, and
the process reads the next ones while the models compute. Light to import, as the process is started
before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hiera_video.video import guarded_video
from hiera_video.video.guarded_pool import GuardedPool, WorkerFailure
from hiera_video.video.limits import imports_allowed
from hiera_video.video.pictures import at_most, resized
from hiera_video.video.sampling import Indices

if TYPE_CHECKING:
    from torch import Tensor

    from hiera_video.video.crops import FrameReader

Picture = NDArray[np.uint8]

PART_BYTES = 64 << 20
"""Crops and pictures that one answer carries."""

CROPS = 3
"""Of each frame, from side to side: together they show all of it."""


@dataclass(frozen=True)
class MomentRequest:
    """What is read of each key frame."""

    crop_size: int
    longest: int
    """Longest side of its whole picture, which is scaled down to it; 0: no pictures."""
    decoder: str = "auto"


class Moment(NamedTuple):
    """A key frame that is to be read."""

    frame: int
    clip: Indices
    """int64 [T]: the frames of the clip around it."""


class ReadMoment(NamedTuple):
    """What was read of one key frame."""

    clips: Tensor
    """uint8 [3, 3, T, S, S]: the crops, then colours, frames, rows, columns."""
    picture: Picture | None
    """uint8 [H, W, 3]; None where no pictures are read."""


def reading_process() -> GuardedPool:
    """Start the process; it imports its libraries in the background."""
    return GuardedPool("hiera_video.detection.reading.serve", time_limit=120.0)


def read_moments(
    path: str, moments: Sequence[Moment], request: MomentRequest, process: GuardedPool
) -> Iterator[ReadMoment]:
    """Yield what was read of each key frame, in order. Raises DecodeError."""
    import torch

    size = _at_once(moments, request)
    parts = [moments[first : first + size] for first in range(0, len(moments), size)]
    items = (("moments", (path, request.decoder), part, request) for part in parts)
    for _, outcome in process.ordered(items, ahead=2):
        if isinstance(outcome, WorkerFailure):
            raise guarded_video.decode_error(path, outcome)
        place, crops, pictures = outcome
        for number, row in enumerate(place):
            clips = np.stack([crop[row] for crop in crops])
            picture = pictures[number] if pictures else None
            yield ReadMoment(torch.from_numpy(clips).transpose(1, 2), picture)


def _at_once(moments: Sequence[Moment], request: MomentRequest) -> int:
    """How many key frames one answer may carry."""
    frames = max(len(moment.clip) for moment in moments) if moments else 1
    # pictures are 16:9 or so; a square one is larger, and the part with it
    picture = request.longest**2 * 9 // 16
    each = 3 * (frames * CROPS * request.crop_size**2 + picture)
    return max(1, PART_BYTES // each)


# ---- in the other process -----------------------------------------------------------------------


def serve(request: tuple[Any, ...]) -> Any:
    """Answer one request: that of key frames, or one of a `GuardedVideo`."""
    if request[0] != "moments":
        return guarded_video.serve(request)
    _, file, moments, wanted = request
    with imports_allowed():
        from hiera_video.video import crops  # noqa: F401 (loads torch)
    return _read(guarded_video.reader_of(file), moments, wanted)


def _read(
    reader: FrameReader, moments: Sequence[Moment], request: MomentRequest
) -> tuple[NDArray[np.int64], list[Picture], list[Picture]]:
    """Read each frame once: [M, T], which of the crops' frames a clip shows; crops; pictures."""
    from hiera_video.video.crops import read_parts, spatial_crops

    in_clips, place = np.unique(np.stack([m.clip for m in moments]), return_inverse=True)
    shown = {moment.frame for moment in moments} if request.longest else set()
    cropped: list[list[Picture]] = [[] for _ in range(CROPS)]
    pictures: dict[int, Picture] = {}
    wanted = np.union1d(in_clips, np.fromiter(shown, np.int64, len(shown)))
    for numbers, frames in read_parts(reader, wanted):
        of_clips = np.isin(numbers, in_clips)
        if of_clips.any():
            chosen = frames if of_clips.all() else frames[of_clips.tolist()]
            crops = spatial_crops(chosen, request.crop_size, CROPS)
            for pieces, crop in zip(cropped, crops, strict=True):
                pieces.append(crop.numpy().copy())
        for number, frame in zip(numbers.tolist(), frames, strict=True):
            if number in shown:
                pictures[number] = _small(frame.permute(1, 2, 0).numpy(), request.longest)
    found = [pictures[moment.frame] for moment in moments] if request.longest else []
    shape = (len(moments), -1)
    return place.reshape(shape), [np.concatenate(pieces) for pieces in cropped], found


def _small(picture: Picture, longest: int) -> Picture:
    """A copy, no side longer than `longest`."""
    height, width = picture.shape[:2]
    size = at_most((width, height), longest)
    return picture.copy() if size is None else resized(picture, size)
