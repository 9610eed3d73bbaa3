"""A video that is open in another process, where it can do no harm: the demo's way to read files.

    with decoding_process() as process:       # guarded_pool.py; starts while torch is imported
        with GuardedVideo("clip.mp4", process) as video:
            crops = video.read_crops([0, 8, 16], 224, 3)

What crosses over are the crops that a model takes, uint8, not whole frames: a tenth of the bytes
for a video of 1080 lines.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from hiera_video.errors import DecodeError
from hiera_video.video.crops import spatial_crops
from hiera_video.video.decode import VideoInfo
from hiera_video.video.frame_folder import open_video
from hiera_video.video.guarded_pool import GuardedPool, WorkerFailure


class GuardedVideo:
    """A video file, or a folder of pictures, that a guarded process reads. A context manager.

    Raises DecodeError for a file that cannot be decoded, and for one that crashes its process or
    takes more time or memory than a video may.
    """

    def __init__(
        self, path: str | os.PathLike, process: GuardedPool, decoder: str = "auto"
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
        """The frames `indices` [T] cut as `transforms.spatial_crops` does: uint8 [T, 3, S, S] each.

        Errors are those of `VideoReader.read`.
        """
        crops = self._ask("crops", np.asarray(indices), crop_size, num_crops)
        return [torch.from_numpy(crop) for crop in crops]

    def _ask(self, what: str, *arguments: Any) -> Any:
        try:
            return self._process.call((what, self._file, *arguments))
        except WorkerFailure as failure:
            reason = f"reading it in a process of its own: {failure.reason}"
            raise DecodeError(self._file[0], reason) from None


# ---- in the other process -----------------------------------------------------------------------

_open_file: tuple[tuple[str, str], Any] | None = None
"""The file read last, and its reader: windows of a long video are asked for one by one."""


def serve(request: tuple) -> Any:
    """Answer one question of a `GuardedVideo`."""
    what, file, *arguments = request
    reader = _reader(file, anew=what == "open")
    if what == "open":
        return dataclasses.replace(reader.info, index=None)
    indices, crop_size, num_crops = arguments
    return [crop.numpy() for crop in spatial_crops(reader.read(indices), crop_size, num_crops)]


def _reader(file: tuple[str, str], *, anew: bool) -> Any:
    global _open_file
    if _open_file is not None and (anew or _open_file[0] != file):
        _open_file[1].close()
        _open_file = None
    if _open_file is None:
        _open_file = (file, open_video(*file))
    return _open_file[1]
