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
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from hiera_video.errors import DecodeError
from hiera_video.video.decode import VideoReader, open_video
from hiera_video.video.frame_folder import FrameFolder
from hiera_video.video.guarded_pool import GuardedPool, WorkerFailure
from hiera_video.video.info import Integers, VideoInfo
from hiera_video.video.limits import imports_allowed

if TYPE_CHECKING:
    from torch import Tensor

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
            reason = f"reading it in a process of its own: {failure.reason}"
            raise DecodeError(self._file[0], reason) from None


# ---- in the other process -----------------------------------------------------------------------

_open_file: tuple[tuple[str, str], VideoReader | FrameFolder] | None = None
"""The file read last, and its reader: windows of a long video are requested one by one."""


def serve(request: tuple[Any, ...]) -> Any:
    """Answer one request of a `GuardedVideo`: crops, or frames [T, H, W, 3] to be cut there."""
    what, file, *arguments = request
    reader = _reader(file, reopen=what == "open")
    if what == "open":
        return dataclasses.replace(reader.info, index=None)
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


def _reader(file: tuple[str, str], *, reopen: bool) -> VideoReader | FrameFolder:
    global _open_file
    if _open_file is not None and (reopen or _open_file[0] != file):
        _open_file[1].close()
        _open_file = None
    if _open_file is None:
        _open_file = (file, open_video(*file))
    return _open_file[1]
