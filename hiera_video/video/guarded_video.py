"""Read a video in another process, where it can do no harm: the demo's way to read files.

    with decoding_process() as process:       # starts while torch is imported
        with GuardedVideo("clip.mp4", process) as video:
            crops = video.read_crops([0, 8, 16], 224, 3)

What travels between the processes is uint8: the crops that a model takes, or whole frames where
these are fewer bytes. For a video of 1080 lines the crops are a tenth. The other process cuts them
with torch, which it imports when it first has to: a video of moderate size has its label before.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hiera_video.clip_spec import ClipSpec
from hiera_video.errors import DecodeError
from hiera_video.video.decode import VideoReader, open_video
from hiera_video.video.decoding_process import decoding_process
from hiera_video.video.frame_folder import FrameFolder
from hiera_video.video.guarded_pool import GuardedPool, WorkerFailure
from hiera_video.video.info import Integers, VideoInfo
from hiera_video.video.limits import imports_allowed
from hiera_video.video.sampling import Indices, stretch_views

if TYPE_CHECKING:
    from torch import Tensor

    from hiera_video.video.view_crops import ViewCrops

_MESSAGE_BYTES = 128 << 20
"""Most bytes of pixels that one message carries; the 5x3 views of 16 frames are 36 MB."""


class GuardedVideo:
    """A video file, or a folder of pictures, that a guarded process reads. A context manager.

    Raises DecodeError for a file that cannot be decoded, and for one that crashes its process or
    takes more time or memory than a video may.
    """

    def __init__(
        self, path: str | os.PathLike[str], process: GuardedPool, decoder: str = "auto"
    ) -> None:
        self._process = process
        self._file = (os.fspath(path), decoder)
        self.info: VideoInfo = self._ask("open")

    def __enter__(self) -> GuardedVideo:
        return self

    def __exit__(self, *exception: object) -> None:
        """The other process closes the file when it opens the next."""

    def read_crops(self, indices: Iterable[int], crop_size: int, num_crops: int) -> list[Tensor]:
        """The ascending frames `indices` [T], cut as `spatial_crops` does: uint8 [T, 3, S, S] each.

        Errors are those of `VideoReader.read`.
        """
        import torch

        wanted = np.asarray(indices)
        step = max(1, _MESSAGE_BYTES // (3 * crop_size**2 * num_crops))
        parts = [
            self._crops(wanted[first : first + step], crop_size, num_crops)
            for first in range(0, len(wanted), step)
        ]
        return [torch.cat(pieces) for pieces in zip(*parts, strict=True)]

    def _crops(self, wanted: Integers, crop_size: int, num_crops: int) -> list[Tensor]:
        """Those of few enough frames for one message."""
        import torch

        from hiera_video.video.crops import spatial_crops

        answer = self._ask("crops", wanted, crop_size, num_crops)
        if isinstance(answer, np.ndarray):
            frames = torch.from_numpy(answer).permute(0, 3, 1, 2)
            return spatial_crops(frames, crop_size, num_crops)
        return [torch.from_numpy(crop) for crop in answer]

    def _ask(self, what: str, *arguments: Any) -> Any:
        try:
            return self._process.call((what, self._file, *arguments))
        except WorkerFailure as failure:
            raise decode_error(self._file[0], failure) from None


# ---- many videos, ahead of their use -----------------------------------------------------------

AHEAD_BYTES = 1 << 30
"""Crops of videos that wait for their turn, in all."""

MOST_BYTES = 256 << 20
"""Crops that travel in one answer; those of larger requests are asked for part by part."""


class Stretch(NamedTuple):
    """A video, or the part of it from `start` to `end`, in seconds."""

    path: str
    start: float | None = None
    end: float | None = None


@dataclasses.dataclass(frozen=True)
class ViewRequest:
    """The views that are read of each video."""

    spec: ClipSpec
    num_views: int
    num_crops: int
    decoder: str = "auto"

    @property
    def most_bytes(self) -> int:
        """Bytes of the crops of one video, at most."""
        side = self.spec.crop_size
        return self.num_views * self.num_crops * self.spec.num_frames * 3 * side * side


def read_ahead(
    videos: Iterable[str | Stretch], request: ViewRequest, process: GuardedPool
) -> Iterator[ViewCrops | DecodeError]:
    """Yield the crops of each video, in order, while the children of `process` read the next ones.

    A video that cannot be read costs one DecodeError. At most `AHEAD_BYTES` wait, and an answer is
    one message: for requests beyond `MOST_BYTES` there is `read_in_parts`.
    """
    import torch

    from hiera_video.video.view_crops import ViewCrops

    ahead = max(1, min(process.workers + 1, AHEAD_BYTES // max(1, request.most_bytes)))
    arguments = (request.spec, request.num_views, request.num_crops)
    stretches = (video if isinstance(video, Stretch) else Stretch(video) for video in videos)
    items = (("views", (s.path, request.decoder), *arguments, (s.start, s.end)) for s in stretches)
    for item, outcome in process.ordered(items, ahead=ahead):
        path = item[1][0]
        if isinstance(outcome, WorkerFailure) and outcome.kind in ("time", "memory"):
            # The limits are meant for a part of a video, and this was a whole one.
            with decoding_process() as another:
                outcome = read_in_parts(Stretch(path, *item[-1]), request, another)
        if isinstance(outcome, WorkerFailure):
            yield decode_error(path, outcome)
        elif isinstance(outcome, DecodeError | ViewCrops):
            yield outcome
        else:
            place, crops, facts = outcome
            yield ViewCrops(place, [torch.from_numpy(crop) for crop in crops], facts)


def read_in_parts(
    stretch: Stretch, request: ViewRequest, process: GuardedPool
) -> ViewCrops | DecodeError:
    """Read one video, each part of it within the limits of `process` and of a message."""
    from hiera_video.video.view_crops import VideoFacts, read_view_crops

    def read(indices: Indices) -> list[Tensor]:
        return video.read_crops(indices, request.spec.crop_size, request.num_crops)

    try:
        with GuardedVideo(stretch.path, process, request.decoder) as video:
            info = video.info
            views = _views_of(info, request.spec, request.num_views, stretch[1:])
            facts = VideoFacts(info.decoder, info.num_frames, info.duration)
            return read_view_crops(read, views)._replace(facts=facts)
    except DecodeError as error:
        return error


def _views_of(
    info: VideoInfo,
    spec: ClipSpec,
    num_views: int,
    stretch: tuple[float | None, float | None],
) -> Indices:
    try:
        return stretch_views(info.times, info.fps, spec, stretch, num_views)
    except ValueError as error:
        raise DecodeError(info.path, str(error)) from None


def decode_error(path: str, failure: WorkerFailure) -> DecodeError:
    """The error of a file whose process failed."""
    if failure.kind == "refused":
        return DecodeError(path, failure.reason)
    return DecodeError(path, f"reading it in a process of its own: {failure.reason}")


# ---- in the other process -----------------------------------------------------------------------

_open_file: tuple[tuple[str, str], VideoReader | FrameFolder] | None = None
"""The file read last, and its reader: windows of a long video are requested one by one."""


def serve(request: tuple[Any, ...]) -> Any:
    """Answer one request of a `GuardedVideo`: crops, or frames [T, H, W, 3] to be cut there."""
    what, file, *arguments = request
    reader = reader_of(file, reopen=what in ("open", "views"))
    if what == "open":
        return dataclasses.replace(reader.info, index=None)
    if what == "views":
        return _views(reader, *arguments)
    indices, crop_size, num_crops = arguments
    if _sends_frames(reader.info, len(indices), num_crops * crop_size**2):
        return reader.pixels(indices)
    with imports_allowed():
        from hiera_video.video.crops import read_crops

    return [crop.numpy() for crop in read_crops(reader, indices, crop_size, num_crops)]


def _sends_frames(info: VideoInfo, count: int, cropped: int) -> bool:
    """Whether to send `count` whole frames rather than their crops of `cropped` pixels a frame."""
    pixels = info.width * info.height
    without_torch = "torch" not in sys.modules and 3 * pixels * count <= _MESSAGE_BYTES
    return pixels <= cropped or without_torch


def _views(
    reader: VideoReader | FrameFolder,
    spec: ClipSpec,
    num_views: int,
    num_crops: int,
    stretch: tuple[float | None, float | None],
) -> tuple[Any, list[Any], Any]:
    """All that the test's views of a video need, in one answer: the parts of a `ViewCrops`."""
    with imports_allowed():
        from hiera_video.video.crops import read_crops
        from hiera_video.video.view_crops import VideoFacts, read_view_crops

    def read(indices: Indices) -> list[Tensor]:
        return read_crops(reader, indices, spec.crop_size, num_crops)

    views = _views_of(reader.info, spec, num_views, stretch)
    found = read_view_crops(read, views)
    info = reader.info  # with the decoder that did it, if the first one could not
    facts = VideoFacts(info.decoder, info.num_frames, info.duration)
    return found.place, [crop.numpy() for crop in found.crops], facts


def reader_of(file: tuple[str, str], *, reopen: bool = False) -> VideoReader | FrameFolder:
    """The reader of (path, decoder), kept open until another file is asked for."""
    global _open_file
    if _open_file is not None and (reopen or _open_file[0] != file):
        _open_file[1].close()
        _open_file = None
    if _open_file is None:
        _open_file = (file, open_video(*file))
    return _open_file[1]
