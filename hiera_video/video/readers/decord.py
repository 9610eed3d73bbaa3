"""Read frames with decord 0.6, where it is installed: an FFmpeg of 2020, without AV1."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiera_video.errors import DecodeError
from hiera_video.video.container import VideoFile, error_reason
from hiera_video.video.info import FrameIndex, Integers
from hiera_video.video.limits import Deadline
from hiera_video.video.readers.frames import Pixels
from hiera_video.video.readers.portions import portions
from hiera_video.video.readers.remux import remux

# It opens, counts and seeks without mistakes only in these, and with one video stream.
_NATIVE = {"mov", "avi"}


class DecordReader:
    """Reads frames of one file."""

    def __init__(self, file: VideoFile, index: FrameIndex, deadline: Deadline) -> None:
        if index.sequential:
            raise DecodeError(
                file.path,
                "its time stamps are missing or repeated; of the decoders only pyav reads it",
            )
        self.path, self.index = file.path, index
        self._reader = self._open(file, deadline)
        counted = ~index.cut_off()
        self._ranks = index.ranks(counted)
        if len(self._reader) != counted.sum():
            raise DecodeError(
                file.path, f"decord counts {len(self._reader)} frames, the file has {counted.sum()}"
            )

    def _open(self, file: VideoFile, deadline: Deadline) -> Any:
        # DECORD_EOF_RETRY_MAX stays as it is. A lower number ends reading sooner at damage, but
        # also refuses the last frames of whole files, wherever decoding is slower than counting.
        import decord

        # It turns pictures upright itself in MP4 and MOV, and is given nothing else.
        index = self.index
        native = (
            index.format in _NATIVE
            and index.num_video_streams == 1
            and index.plain
            and not index.hidden.any()
            and not index.cut_off().any()
        )
        source: str | io.BytesIO
        formats = ("mp4", "mov")
        source = file.use_copy(deadline) if native else remux(file, index, formats, deadline)
        try:
            return decord.VideoReader(source, ctx=decord.cpu(0), num_threads=1)
        except Exception as error:
            raise DecodeError(self.path, f"decord: {error_reason(error)}") from None

    def parts(self, wanted: Integers, size: int, deadline: Deadline) -> Iterator[Pixels]:
        """Yield uint8 RGB [<= size, H, W, 3], upright, of ascending, distinct indices [K]."""
        for first in range(0, len(wanted), size):
            yield self._read(wanted[first : first + size], deadline)

    def _read(self, wanted: Integers, deadline: Deadline) -> Pixels:
        width, height = self.index.size
        if self.index.quarter_turns % 2:
            width, height = height, width
        # It pads lines to whole 32 pixels, and takes the padding for more channels where the
        # division leaves no remainder.
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
        return np.concatenate(batches)

    def _fetch(self, ranks: list[int]) -> NDArray[np.uint8]:
        return self._reader.get_batch(ranks).asnumpy()

    def _fetch_padded(self, ranks: list[int], *, width: int) -> NDArray[np.uint8]:
        frames = np.stack([self._reader[rank].asnumpy() for rank in ranks])
        lines = frames.reshape(len(ranks), frames.shape[1], -1)[:, :, : 3 * width]
        return lines.reshape(len(ranks), frames.shape[1], width, 3)
