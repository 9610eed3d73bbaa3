"""Read a video in another process, where it can do no harm: the demo's way to read files.

    with decoding_process() as process:       # starts while torch is imported
        with GuardedVideo("clip.mp4", process) as video:
            crops = video.read_crops([0, 8, 16], 224, 3)

The crops that a model takes travel between the processes, uint8, not whole frames: a tenth of the
bytes for a video of 1080 lines.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from hiera_video.errors import DecodeError
from hiera_video.video.crops import read_crops
from hiera_video.video.decode import VideoReader, open_video
from hiera_video.video.frame_folder import FrameFolder
from hiera_video.video.guarded_pool import GuardedPool, WorkerFailure
from hiera_video.video.info import VideoInfo

_MESSAGE_BYTES = 128 << 20
"""Most bytes of crops that one message carries; the 5x3 views of 16 frames are 36 MB."""


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

    def read_crops(
        self, indices: Iterable[int], crop_size: int, num_crops: int
    ) -> list[torch.Tensor]:
        """The ascending frames `indices` [T], cut as `spatial_crops` does: uint8 [T, 3, S, S] each.

        Errors are those of `VideoReader.read`.
        """
        wanted = np.asarray(indices)
        step = max(1, _MESSAGE_BYTES // (3 * crop_size**2 * num_crops))
        parts = [
            self._ask("crops", wanted[first : first + step], crop_size, num_crops)
            for first in range(0, len(wanted), step)
        ]
        return [torch.from_numpy(np.concatenate(pieces)) for pieces in zip(*parts, strict=True)]

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
    """Answer one request of a `GuardedVideo`."""
    what, file, *arguments = request
    reader = _reader(file, reopen=what == "open")
    if what == "open":
        return dataclasses.replace(reader.info, index=None)
    indices, crop_size, num_crops = arguments
    return [crop.numpy() for crop in read_crops(reader, indices, crop_size, num_crops)]


def _reader(file: tuple[str, str], *, reopen: bool) -> VideoReader | FrameFolder:
    global _open_file
    if _open_file is not None and (reopen or _open_file[0] != file):
        _open_file[1].close()
        _open_file = None
    if _open_file is None:
        _open_file = (file, open_video(*file))
    return _open_file[1]
