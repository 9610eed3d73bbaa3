"""Video files -> frames: `probe` a file, `read_frames` by index.

    info = probe("clip.mp4")
    frames = read_frames("clip.mp4", range(0, 64, 4), info=info)     # uint8 RGB [16, 3, H, W]

Three libraries can do the decoding: torchcodec, PyAV and decord. "auto" takes the first that works
on this machine, and for a file it fails on, the next; a name takes that one alone. Which file may
be opened, how many frames it has and when each is shown is decided once, by PyAV
(`decoders/container.py`), so that index i is the same picture whichever library draws it:

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

Limits, so that no file can take the process down: MAX_PIXELS a frame, MAX_OUTPUT_BYTES a read,
TIME_LIMIT seconds a call (looked at between frames), local files in known containers only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import io
import itertools
import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch

from hiera_video.errors import DecodeError, UserError
from hiera_video.video.container import (
    MAX_OUTPUT_BYTES,
    MAX_PIXELS,
    TIME_LIMIT,
    Deadline,
    FrameIndex,
    check_file,
    choose_stream,
    error_reason,
    frame_times,
    frames_per_second,
    open_container,
    prepare_decoder,
    scan,
    without_jumps,
)
from hiera_video.video.guarded_pool import wants_memory
from hiera_video.video.readers.decord import DecordReader
from hiera_video.video.readers.pyav import PyavReader
from hiera_video.video.readers.torchcodec import TorchcodecReader

__all__ = [
    "DECODERS",
    "MAX_OUTPUT_BYTES",
    "MAX_PIXELS",
    "TIME_LIMIT",
    "DecodeError",
    "FrameIndexError",
    "VideoInfo",
    "VideoReader",
    "available_decoders",
    "probe",
    "read_frames",
]

DECODERS = ("torchcodec", "pyav", "decord")
"""The decoders, in the order "auto" tries them."""

logger = logging.getLogger("hiera_video")


class FrameIndexError(UserError, IndexError):
    """A frame was asked for that the video does not have."""


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """What a video file holds, without its pictures."""

    path: str
    num_frames: int
    """Frames that `read_frames` can index, in the order they are shown."""
    fps: float
    """Average over the whole file."""
    duration: float
    """Seconds: num_frames / fps."""
    width: int
    """Of the upright picture, in pixels as stored (pixels may not be square)."""
    height: int
    rotation: int
    """Degrees by which the stored pictures are turned counter-clockwise: 0, 90, 180 or 270."""
    codec: str
    decoder: str
    """The library that decodes (where "auto" meets a file it fails on, the next one does)."""
    times: np.ndarray = field(repr=False)
    """float64 [num_frames]: seconds from the first frame, never falling."""
    index: FrameIndex | None = field(default=None, repr=False)
    """Where each frame lies in the file; spares `read_frames` the search."""


def probe(
    path: str | os.PathLike, decoder: str = "auto", *, time_limit: float = TIME_LIMIT
) -> VideoInfo:
    """Size, frame count, rate and times of a video, from its packets and its first frame.

    Raises:
        DecodeError: the file is not a video that can be decoded.
        UserError: there is no such decoder, or it does not work on this machine.
    """
    with VideoReader(path, decoder, time_limit=time_limit) as reader:
        return reader.info


def read_frames(
    path: str | os.PathLike,
    indices: Iterable[int],
    decoder: str = "auto",
    *,
    info: VideoInfo | None = None,
    time_limit: float = TIME_LIMIT,
) -> torch.Tensor:
    """Frames by index: uint8 RGB [len(indices), 3, H, W], upright, in the order asked for.

    Indices may repeat and come in any order; each distinct frame is decoded once. The tensor is
    laid out channels-last, as decoders draw it.

    Args:
        info: what `probe` said of this file, so that it is not scanned again.
        time_limit: seconds until the attempt is given up.

    Raises:
        DecodeError: the file cannot be decoded, or the result would exceed MAX_OUTPUT_BYTES.
        FrameIndexError: an index is negative or not below `num_frames`.
        UserError: there is no such decoder, or it does not work on this machine.
    """
    with VideoReader(path, decoder, info=info, time_limit=time_limit) as reader:
        return reader.read(indices)


class VideoReader:
    """One open video, for several reads. A context manager; memory does not grow with the reads.

    with VideoReader("clip.mp4") as video:
        for indices in windows:
            frames = video.read(indices)

    Arguments and errors are those of `read_frames`; `time_limit` holds for each read.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        decoder: str = "auto",
        *,
        info: VideoInfo | None = None,
        time_limit: float = TIME_LIMIT,
    ):
        self._names = _choose(decoder)
        self._path = _text_path(path)
        self._time_limit = time_limit
        self._reader = None
        self._opened = None
        deadline = Deadline(self._path, time_limit)
        identity = check_file(self._path)
        if info is not None and info.path != self._path:
            raise UserError(f"info is of {info.path!r}, not of {self._path!r}; probe that file")
        if info is not None and info.index is not None and info.index.identity == identity:
            self.info = dataclasses.replace(info, decoder=self._names[0])
        else:
            with _surprises_are_the_files(self._path):
                self.info = self._scan(identity, deadline)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; reading again opens it again."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._opened is not None:
            self._opened[0].close()
            self._opened = None

    def read(self, indices: Iterable[int]) -> torch.Tensor:
        """uint8 RGB [len(indices), 3, H, W]; see `read_frames`."""
        wanted = _checked_indices(indices, self.info)
        size = 3 * self.info.height * self.info.width
        if len(wanted) * size > MAX_OUTPUT_BYTES:
            # Not a UserError: the size of the pictures is the file's doing; a run goes on without.
            raise DecodeError(
                self._path,
                f"{len(wanted)} frames of {self.info.width}x{self.info.height} are "
                f"{len(wanted) * size / 2**30:.1f} GiB, above the limit of "
                f"{MAX_OUTPUT_BYTES / 2**30:.0f} GiB a read (at most {MAX_OUTPUT_BYTES // size})",
            )
        if not len(wanted):
            return torch.empty(0, 3, self.info.height, self.info.width, dtype=torch.uint8)
        distinct, back = np.unique(wanted, return_inverse=True)
        with _surprises_are_the_files(self._path):
            frames = self._read_distinct(distinct, Deadline(self._path, self._time_limit))
        if np.array_equal(distinct, wanted):
            return frames
        return frames[torch.from_numpy(back)]

    # ---- opening ----

    def _scan(self, identity, deadline: Deadline) -> VideoInfo:
        container = open_container(self._path, deadline)
        try:
            stream = choose_stream(self._path, container)
            prepare_decoder(stream)
            index = scan(self._path, container, stream, identity, deadline)
        except BaseException:
            container.close()
            raise
        self._opened = container, stream
        stated = stream.average_rate
        codec = stream.codec_context.codec.canonical_name
        if index.sequential:
            index, times = self._count(index, stated, deadline)
        else:
            times = frame_times(index)
        fps = frames_per_second(times, stated)
        width, height = index.size[::-1] if index.quarter_turns % 2 else index.size
        return VideoInfo(
            path=self._path,
            num_frames=len(index.shown),
            fps=fps,
            duration=len(index.shown) / fps,
            width=width,
            height=height,
            rotation=90 * index.quarter_turns,
            codec=codec,
            decoder=self._names[0],
            times=times,
            index=index,
        )

    def _count(self, index: FrameIndex, stated: Fraction | None, deadline: Deadline):
        """Index and times of a file whose packets do not tell them, from decoding all of it."""
        opened, self._opened = self._opened, None
        with contextlib.closing(PyavReader(self._path, index, opened=opened)) as counter:
            ticks = [frame.pts for frame in counter.frames_from_start(deadline)]
        if not ticks:
            raise DecodeError(self._path, "no frame can be decoded")
        index = dataclasses.replace(index, shown=np.arange(len(ticks)))
        turns_back = None not in ticks and any(b < a for a, b in itertools.pairwise(ticks))
        if None in ticks or (turns_back and index.container == "avi"):
            return index, np.arange(len(ticks)) / float(stated or 25)
        times = np.array(ticks, np.float64) * float(index.time_base)
        return index, without_jumps(times, index.container)

    # ---- decoding ----

    def _read_distinct(self, wanted: np.ndarray, deadline: Deadline) -> torch.Tensor:
        """Frames [K, 3, H, W] of ascending indices, by the first decoder that manages."""
        while True:
            try:
                if self._reader is None:
                    self._reader = self._open_reader(self._names[0], deadline)
                return self._checked(self._reader.read(wanted, deadline))
            except DecodeError as error:
                failed = self._names[0]
                self.close()
                deadline.check()
                # PyAV is the reference: what it cannot decode, decord would only guess at.
                if len(self._names) == 1 or failed == "pyav":
                    raise
                self._names = self._names[1:]
                _announce_fallback(error, self._names[0])
                self.info = dataclasses.replace(self.info, decoder=self._names[0])

    def _open_reader(self, name: str, deadline: Deadline):
        index = self.info.index
        opened, self._opened = self._opened, None
        if name == "pyav":
            return PyavReader(self._path, index, opened=opened)
        if opened is not None:
            opened[0].close()
        reader = TorchcodecReader if name == "torchcodec" else DecordReader
        return reader(self._path, index, deadline)

    def _checked(self, frames: torch.Tensor) -> torch.Tensor:
        expected = (3, self.info.height, self.info.width)
        if tuple(frames.shape[1:]) != expected:
            raise DecodeError(
                self._path,
                f"{self._names[0]} returned frames of {tuple(frames.shape[1:])}, not {expected}",
            )
        return frames


@contextlib.contextmanager
def _surprises_are_the_files(path: str) -> Iterator[None]:
    """Whatever libraries raise over a damaged file costs that file, not the run."""
    try:
        yield
    except (DecodeError, UserError):
        raise
    except Exception as error:
        if wants_memory(error):  # whoever set the limit knows how to say it
            raise
        reason = f"unexpected {type(error).__name__}: {error_reason(error)}"
        raise DecodeError(path, reason) from error


# ---- which decoder ----

LEAST_TORCHCODEC = (0, 15)
"""0.14 loses frames of files that were cut without encoding; 0.7, the last that works with torch
2.8, also gives other pixels for 10-bit video and for pictures of odd size."""


@functools.cache
def available_decoders() -> dict[str, str | None]:
    """Each of DECODERS with the reason it does not work on this machine; None where it works.

    Working means having decoded a frame: torchcodec imports without the FFmpeg libraries it needs.
    """
    return {name: _failure(name) for name in DECODERS}


def _failure(name: str) -> str | None:
    if name == "torchcodec" and (version := _too_old_torchcodec()):
        least = ".".join(map(str, LEAST_TORCHCODEC))
        return f"is too old ({version}; before {least} it gives other frames for some files)"
    try:
        importlib.import_module({"pyav": "av"}.get(name, name))
    except Exception as error:  # also OSError, RuntimeError: libraries that do not load
        return f"cannot be imported ({error_reason(error)})"
    if name == "pyav":
        return None
    try:
        _decode_sample(name)
    except Exception as error:
        return f"imports, but does not decode ({error_reason(error)})"
    return None


def _too_old_torchcodec() -> str | None:
    """The installed version, if it is too old; found without importing it, which can crash."""
    try:
        version = importlib.metadata.version("torchcodec")
    except importlib.metadata.PackageNotFoundError:
        return None
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    return version if numbers < LEAST_TORCHCODEC else None


def _decode_sample(name: str) -> None:
    """Decode one grey frame made on the spot."""
    import av

    sample = io.BytesIO()
    with av.open(sample, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 128, np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if name == "torchcodec":
        from torchcodec.decoders import VideoDecoder

        VideoDecoder(sample.getvalue(), device="cpu")[0]
    else:
        import decord

        sample.seek(0)
        decord.VideoReader(sample, ctx=decord.cpu(0))[0].asnumpy()


def _choose(decoder: str) -> tuple[str, ...]:
    """The decoders to try, in order. Announces the first, once a process."""
    if decoder not in ("auto", *DECODERS):
        raise UserError(f"decoder={decoder!r}: choose one of auto, {', '.join(DECODERS)}")
    failures = available_decoders()
    works = tuple(name for name in DECODERS if failures[name] is None)
    if failures["pyav"]:
        raise UserError(f"PyAV is needed to open videos: {failures['pyav']}; pip install av")
    if decoder == "auto":
        _announce(works[0], "; ".join(f"{n} {failures[n]}" for n in DECODERS if failures[n]))
        return works
    if failures[decoder]:
        raise UserError(
            f"decoder={decoder!r} does not work here: it {failures[decoder]}; "
            f"use one of auto, {', '.join(works)}"
        )
    _announce(decoder, "")
    return (decoder,)


@functools.cache
def _announce(name: str, without: str) -> None:
    logger.info("decoding videos with %s%s", name, f" ({without})" if without else "")


def _announce_fallback(error: DecodeError, name: str) -> None:
    """Every reason once a process, with the file that met it first; the others for who debugs."""
    level = logging.DEBUG if error.reason in _fallback_reasons else logging.INFO
    _fallback_reasons.add(error.reason)
    logger.log(level, "%s (decoding such files with %s)", error, name)


_fallback_reasons: set[str] = set()


# ---- arguments ----


def _text_path(path: str | os.PathLike) -> str:
    try:
        text = os.fspath(path)
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise UserError(f"path must be a file name (str or Path), not {type(path).__name__}")
    return text


def _checked_indices(indices: Iterable[int], info: VideoInfo) -> np.ndarray:
    """int64 [N] of valid frame indices, or a UserError that says what came."""
    if not isinstance(indices, (np.ndarray, torch.Tensor)):
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
