"""Frames by decord 0.6, for those who have it: an FFmpeg of 2020, without AV1."""

from __future__ import annotations

import functools
import os

import numpy as np
import torch

from hiera_video.errors import DecodeError
from hiera_video.video.container import Deadline, FrameIndex, error_reason
from hiera_video.video.readers.frames import upright
from hiera_video.video.readers.portions import portions
from hiera_video.video.readers.remux import remux

# Only these it opens, counts and seeks in by itself without mistakes, and with one video stream.
_NATIVE = {"mov", "avi"}


class DecordReader:
    """Reads frames of one file."""

    def __init__(self, path: str, index: FrameIndex, deadline: Deadline):
        if index.sequential:
            raise DecodeError(
                path, "its time stamps are missing or repeated; of the decoders only pyav reads it"
            )
        self.path, self.index = path, index
        self._reader = self._open(deadline)
        counted = ~index.cut_off()
        self._ranks = index.ranks(counted)
        if len(self._reader) != counted.sum():
            raise DecodeError(
                path, f"decord counts {len(self._reader)} frames, the file has {counted.sum()}"
            )

    def _open(self, deadline: Deadline):
        # At damage it starts anew this often, 10240 times by default, which looks like a hang.
        os.environ.setdefault("DECORD_EOF_RETRY_MAX", "64")
        import decord

        # It turns pictures upright itself, in MP4 and MOV, which is all that it gets to see.
        index = self.index
        kind = index.container.split(",")[0]
        native = (
            kind in _NATIVE
            and index.num_video_streams == 1
            and index.plain
            and not index.hidden.any()
            and not index.cut_off().any()
        )
        source = os.path.abspath(self.path)
        if not native:
            source = remux(self.path, index, ("mp4", "mov"), deadline)
        try:
            return decord.VideoReader(source, ctx=decord.cpu(0), num_threads=1)
        except Exception as error:
            raise DecodeError(self.path, f"decord: {error_reason(error)}") from None

    def close(self) -> None:
        self._reader = None

    def read(self, wanted: np.ndarray, deadline: Deadline) -> torch.Tensor:
        """uint8 RGB [K, 3, H, W], upright, of ascending, distinct indices [K]."""
        width, height = self.index.size
        if self.index.quarter_turns % 2:
            width, height = height, width
        # It takes lines padded to whole 32 pixels for more channels where that comes out even.
        padded = -(-width // 32) * 32
        fetch = self._fetch
        if padded != width and 3 * padded % width == 0:
            fetch = functools.partial(self._fetch_padded, width=width)
        batches = []
        for part in portions(self.path, self.index, wanted, "decord"):
            try:
                batches.append(fetch(self._ranks[part].tolist()))
            except Exception as error:
                raise DecodeError(self.path, f"decord: {error_reason(error)}") from None
            deadline.check()
        return upright(np.concatenate(batches), 0)

    def _fetch(self, ranks: list[int]) -> np.ndarray:
        return self._reader.get_batch(ranks).asnumpy()

    def _fetch_padded(self, ranks: list[int], *, width: int) -> np.ndarray:
        frames = np.stack([self._reader[rank].asnumpy() for rank in ranks])
        lines = frames.reshape(len(ranks), frames.shape[1], -1)[:, :, : 3 * width]
        return lines.reshape(len(ranks), frames.shape[1], width, 3)
