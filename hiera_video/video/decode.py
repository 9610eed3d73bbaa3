"""Read frames of a video by index: `open_video`, `probe` and `read_frames`.

    with open_video("clip.mp4") as video:
        frames = video.read(range(0, 64, 4))                     # uint8 RGB [16, 3, H, W]

What happens to a file, from the top down:

1. `container.VideoFile` refuses what must not be opened, and opens the rest once, with PyAV;
2. `scan.describe` lists its packets: from here on, frame i is the same picture whichever library
   decodes it. `known.known_videos` remembers the list, as long as the file stays the same;
3. `decoders.order_for` says which library is the fastest for this file, of those that work here:
   torchcodec, PyAV, decord;
4. a reader (`readers/`) turns indices into pixels. PyAV's goes on with the open file; the others
   open it themselves and are handed the list. Where one fails, "auto" takes the next.

What all decoders agree on:

* frames are counted as shown: packets outside the file's edit list, and those cut off from their
  key frame at the start, are not frames;
* pictures are turned upright by the file's rotation (to the nearest quarter turn); of several
  video streams, the first that is not a cover picture is read;
* pixels of 8-bit video are the same in all three up to rounding (mean difference below 0.5, none
  above 4 of 255); beyond 8 bits decord filters colour differently (mean below 1, none above 32);
* where the picture size changes in mid-stream, PyAV scales every frame to the size of the first,
  while torchcodec refuses; so "auto" scales;
* damage that the library notices on the way to a wanted frame is an error, never a patched-up
  frame (a bit that flips inside the coded pictures can go unnoticed by all three).

Limits, so that no file can take the process down (`limits.py`): MAX_PIXELS per frame,
MAX_OUTPUT_BYTES per read, TIME_LIMIT seconds per call (checked between frames), local files in
known containers only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hiera_video.errors import DecodeError, UserError
from hiera_video.video.container import VideoFile, error_reason
from hiera_video.video.decoders import (
    DECODERS,
    after_failure,
    announce_fallback,
    available_decoders,
    choose_decoders,
    order_for,
)
from hiera_video.video.frame_folder import FRAMES_PER_SECOND, FrameFolder
from hiera_video.video.info import FrameIndex, Integers, VideoInfo
from hiera_video.video.known import known_videos
from hiera_video.video.limits import MAX_OUTPUT_BYTES, TIME_LIMIT, Deadline, is_out_of_memory
from hiera_video.video.readers.decord import DecordReader
from hiera_video.video.readers.frames import Pixels
from hiera_video.video.readers.pyav import PyavReader
from hiera_video.video.readers.torchcodec import TorchcodecReader
from hiera_video.video.scan import describe

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "DECODERS",
    "FrameIndexError",
    "VideoInfo",
    "VideoReader",
    "available_decoders",
    "open_video",
    "probe",
    "read_frames",
]


class FrameIndexError(UserError, IndexError):
    """A frame was asked for that the video does not have."""


def open_video(
    path: str | os.PathLike[str], decoder: str = "auto", *, fps: float = FRAMES_PER_SECOND
) -> VideoReader | FrameFolder:
    """Open a video file, or a folder of pictures at `fps`, for reading. Raises DecodeError."""
    return FrameFolder(path, fps=fps) if os.path.isdir(path) else VideoReader(path, decoder)


def probe(
    path: str | os.PathLike[str], decoder: str = "auto", *, time_limit: float = TIME_LIMIT
) -> VideoInfo:
    """Size, frame count, rate and times of a video, from its packets and its first frame.

    Raises:
        DecodeError: the file is not a video that can be decoded.
        UserError: there is no such decoder, or it does not work on this machine.
    """
    with VideoReader(path, decoder, time_limit=time_limit) as reader:
        return reader.info


def read_frames(
    path: str | os.PathLike[str],
    indices: Iterable[int],
    decoder: str = "auto",
    *,
    info: VideoInfo | None = None,
    time_limit: float = TIME_LIMIT,
) -> Tensor:
    """Frames by index: uint8 RGB [len(indices), 3, H, W], upright, in the order asked for.

    Indices may repeat and come in any order; each distinct frame is decoded once. The tensor is
    channels-last in memory, as decoders write it.

    Args:
        info: what `probe` returned for this file, so that it is not scanned again.
        time_limit: seconds after which the call gives up.

    Raises:
        DecodeError: the file cannot be decoded, or the result would exceed MAX_OUTPUT_BYTES.
        FrameIndexError: an index is negative or not below `num_frames`.
        UserError: there is no such decoder, or it does not work on this machine.
    """
    with VideoReader(path, decoder, info=info, time_limit=time_limit) as reader:
        return reader.read(indices)


class _Reader(Protocol):
    """What a library's reader does, once it has the file and its index."""

    def parts(self, wanted: Integers, size: int, deadline: Deadline) -> Iterator[Pixels]:
        """Yield uint8 RGB [<= size, H, W, 3], upright, of ascending, distinct indices [K]."""


class VideoReader:
    """One open video, for several reads. A context manager; memory does not grow with the reads.

    with VideoReader("clip.mp4") as video:
        for indices in windows:
            frames = video.read(indices)

    Arguments and errors are those of `read_frames`; `time_limit` holds for each read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        decoder: str = "auto",
        *,
        info: VideoInfo | None = None,
        time_limit: float = TIME_LIMIT,
    ) -> None:
        usable = choose_decoders(decoder)
        self._path = _text_path(path)
        self._time_limit = time_limit
        deadline = Deadline(self._path, time_limit)
        self._file = VideoFile(self._path)
        self._reader: _Reader | None = None
        if info is not None and info.path != self._path:
            raise UserError(f"info is of {info.path!r}, not of {self._path!r}; probe that file")
        index = info.index if info is not None else None
        if info is None or index is None or index.identity != self._file.identity:
            info, index = self._describe(deadline)
        self._index = index
        self._decoders = order_for(usable, info, index)
        self.info = dataclasses.replace(info, decoder=self._decoders[0])

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; reading again opens it again."""
        self._reader = None
        self._file.close()

    def read(self, indices: Iterable[int]) -> Tensor:
        """uint8 RGB [len(indices), 3, H, W]; see `read_frames`."""
        import torch

        return torch.from_numpy(self.pixels(indices)).permute(0, 3, 1, 2)

    def pixels(self, indices: Iterable[int]) -> Pixels:
        """The same without torch: uint8 RGB [len(indices), H, W, 3]."""
        wanted = _checked_indices(indices, self.info)
        _check_output_size(len(wanted), self.info)
        if not len(wanted):
            return np.empty((0, self.info.height, self.info.width, 3), np.uint8)
        distinct, back = np.unique(wanted, return_inverse=True)
        _, frames = next(self._parts(distinct, len(distinct)))
        return frames if np.array_equal(distinct, wanted) else frames[back]

    def parts(self, indices: Integers, size: int) -> Iterator[tuple[Integers, Tensor]]:
        """Yield ascending, distinct frames `size` at a time: their indices and uint8 [k, 3, H, W].

        One pass over the file with PyAV: small parts bound the memory and cost no time. The video
        must not be read otherwise until they end. Errors are those of `read_frames`; the time
        limit holds for each part.
        """
        import torch

        for part, pixels in self.pixel_parts(indices, size):
            yield part, torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def pixel_parts(self, indices: Integers, size: int) -> Iterator[tuple[Integers, Pixels]]:
        """The same without torch: indices and uint8 RGB [k, H, W, 3]."""
        wanted = _checked_indices(indices, self.info)
        if size < 1 or (np.diff(wanted) <= 0).any():
            raise ValueError(f"parts of {size} of {wanted}: at least 1, of ascending indices")
        _check_output_size(min(size, len(wanted)), self.info)
        yield from self._parts(wanted, size)

    def _describe(self, deadline: Deadline) -> tuple[VideoInfo, FrameIndex]:
        known = known_videos.get(self._path, self._file.identity)
        if known is not None and known.index is not None:
            return known, known.index
        try:
            with _as_decode_errors(self._path):
                info = describe(self._file, deadline)
                assert info.index is not None
                known_videos.add(info)
                return info, info.index
        except BaseException:
            self._file.close()
            raise

    def _parts(self, wanted: Integers, size: int) -> Iterator[tuple[Integers, Pixels]]:
        """What `parts` yields, as uint8 [k, H, W, 3], by the first decoder that succeeds."""
        with _as_decode_errors(self._path):
            deadline = Deadline(self._path, self._time_limit)
            self._file.watch(deadline)
            by_pyav: DecodeError | None = None
            done = 0
            while done < len(wanted):
                try:
                    if self._reader is None:
                        self._reader = self._open_reader(self._decoders[0], deadline)
                    for frames in self._reader.parts(wanted[done:], size, deadline):
                        yield wanted[done : done + len(frames)], self._checked(frames)
                        done += len(frames)
                        deadline.restart()  # what is done with a part takes its own time
                except DecodeError as error:
                    by_pyav = error if self._decoders[0] == "pyav" else by_pyav
                    self._use_next_decoder(error, by_pyav or error, deadline)

    def _use_next_decoder(
        self, error: DecodeError, reason: DecodeError, deadline: Deadline
    ) -> None:
        """Go on with another decoder after `error`; raise `reason` where there is none left."""
        self.close()
        deadline.check()
        others = after_failure(self._decoders)
        if not others:  # the reason of the reference is the one to report
            raise reason from None
        self._decoders = others
        announce_fallback(error, others[0])
        self.info = dataclasses.replace(self.info, decoder=others[0])

    def _open_reader(self, decoder: str, deadline: Deadline) -> _Reader:
        if decoder == "pyav":
            return PyavReader(self._file, self._index)
        self._file.close()  # the other libraries open it themselves
        if decoder == "torchcodec":
            return TorchcodecReader(self._file, self._index, deadline)
        return DecordReader(self._file, self._index, deadline)

    def _checked(self, frames: Pixels) -> Pixels:
        expected = (self.info.height, self.info.width, 3)
        if tuple(frames.shape[1:]) != expected:
            raise DecodeError(
                self._path,
                f"{self._decoders[0]} returned frames of {tuple(frames.shape[1:])}, not {expected}",
            )
        return frames


@contextlib.contextmanager
def _as_decode_errors(path: str) -> Iterator[None]:
    """Turn whatever a library raises over a damaged file into a DecodeError of that file."""
    try:
        yield
    except (DecodeError, UserError):
        raise
    except Exception as error:
        if is_out_of_memory(error):  # reported by the process that set the limit
            raise
        reason = f"unexpected {type(error).__name__}: {error_reason(error)}"
        raise DecodeError(path, reason) from error


# ---- arguments ----


def _text_path(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise UserError(f"path must be a file name (str or Path), not {type(path).__name__}")
    return text


def _checked_indices(indices: Iterable[int], info: VideoInfo) -> Integers:
    """int64 [N] of valid frame indices; UserError or FrameIndexError says what came."""
    if not hasattr(indices, "__array__"):
        indices = list(indices)
    wanted = np.asarray(indices)
    if not wanted.size:
        return np.empty(0, np.int64)
    if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
        raise UserError(
            f"indices must be a flat list of whole numbers, got {wanted.dtype} of shape "
            f"{wanted.shape}"
        )
    bad = wanted[(wanted < 0) | (wanted >= info.num_frames)]
    if len(bad):
        raise FrameIndexError(
            f"frame {int(bad[0])} of {info.path} was asked for; it has {info.num_frames} frames, "
            f"so 0 to {info.num_frames - 1} are allowed"
        )
    return wanted.astype(np.int64)


def _check_output_size(count: int, info: VideoInfo) -> None:
    """Raise DecodeError if `count` frames are more than MAX_OUTPUT_BYTES.

    Not a UserError: the size of the pictures is the file's; a run goes on without it.
    """
    size = 3 * info.height * info.width
    if count * size > MAX_OUTPUT_BYTES:
        raise DecodeError(
            info.path,
            f"{count} frames of {info.width}x{info.height} are {count * size / 2**30:.1f} GiB, "
            f"above the limit of {MAX_OUTPUT_BYTES / 2**30:.0f} GiB a read "
            f"(at most {MAX_OUTPUT_BYTES // size})",
        )
