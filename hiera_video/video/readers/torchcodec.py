"""Read frames with torchcodec, which needs FFmpeg's shared libraries on the system."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from hiera_video.errors import DecodeError
from hiera_video.video.container import VideoFile, error_reason
from hiera_video.video.info import FrameIndex, Integers, Mask, Seconds
from hiera_video.video.limits import Deadline
from hiera_video.video.readers.frames import Pixels, upright
from hiera_video.video.readers.portions import portions
from hiera_video.video.readers.remux import remux

if TYPE_CHECKING:
    from hiera_video.storage.range_file import RangeFile

# It seeks by time to the wrong place in these, and returns other frames than it was asked for.
_UNSEEKABLE = {"mpegts", "mpeg", "mpegvideo", "h264", "hevc", "m4v"}

LARGE_PACKETS = 8192
"""Mean bytes per packet above which an MP4 or MOV file is not scanned a second time: torchcodec is
handed our index. Below, parsing the index costs more than its own scan. Files of other formats
(Matroska, FLV) cannot always be seeked in before they have been read to the end."""


class TorchcodecReader:
    """Reads frames of one file."""

    def __init__(self, file: VideoFile, index: FrameIndex, deadline: Deadline) -> None:
        if index.sequential:
            raise DecodeError(
                file.path,
                "its time stamps are missing or repeated; of the decoders only pyav reads it",
            )
        self.path, self.index = file.path, index
        copied = needs_copy(index)
        counted = ~index.cut_off() if copied else ~index.hidden
        self._decoder = (
            self._open_copy(file, deadline) if copied else self._open_file(file, counted, deadline)
        )
        # It turns pictures by what its own FFmpeg finds in the file; older ones do not look in all
        # kinds of files, a copy in memory does not say, and older torchcodecs do not turn at all.
        turned = round((getattr(self._decoder.metadata, "rotation", None) or 0) / 90)
        self._turns_left = (index.quarter_turns - turned) % 4
        self._ranks = index.ranks(counted)
        # Its own clock starts at the first packet it counts.
        ticks = index.frame_pts() - index.pts[counted].min()
        self._times = ticks * float(index.time_base)
        if len(self._decoder) != counted.sum():
            raise DecodeError(
                self.path,
                f"torchcodec counts {len(self._decoder)} frames, the file has {counted.sum()}",
            )

    def _open_copy(self, file: VideoFile, deadline: Deadline) -> Any:
        copy = remux(file, self.index, ("nut",), deadline)
        return self._open(copy.getvalue(), 0, None)

    def _open_file(self, file: VideoFile, counted: Mask, deadline: Deadline) -> Any:
        index = self.index
        if index.format == "mov" and index.identity[0] > LARGE_PACKETS * len(index.pts):
            mappings = _frame_mappings(index, counted)
            decoder = self._open(file.source(), index.stream, mappings)
            if len(decoder) == counted.sum():
                return decoder
            # The file was cut off: with our index, torchcodec goes by the count in the header.
        # Its own scan reads all of the file.
        return self._open(file.use_copy(deadline), index.stream, None)

    def _open(self, source: str | bytes | RangeFile, stream: int, mappings: str | None) -> Any:
        try:
            return open_decoder(source, stream_index=stream, custom_frame_mappings=mappings)
        except Exception as error:
            raise DecodeError(self.path, f"torchcodec: {error_reason(error)}") from None

    def parts(self, wanted: Integers, size: int, deadline: Deadline) -> Iterator[Pixels]:
        """Yield uint8 RGB [<= size, H, W, 3], upright, of ascending, distinct indices [K]."""
        for first in range(0, len(wanted), size):
            yield self._read(wanted[first : first + size], deadline)

    def _read(self, wanted: Integers, deadline: Deadline) -> Pixels:
        batches = []
        for part in portions(self.path, self.index, wanted, "torchcodec"):
            try:
                batch = self._decoder.get_frames_at(self._ranks[part].tolist())
            except Exception as error:
                raise DecodeError(self.path, f"torchcodec: {error_reason(error)}") from None
            self._check_times(batch.pts_seconds.numpy(), part)
            batches.append(batch.data.permute(0, 2, 3, 1).numpy())
            deadline.check()
        frames = batches[0] if len(batches) == 1 else np.concatenate(batches)
        return upright(frames, self._turns_left)

    def _check_times(self, seconds: Seconds, part: Integers) -> None:
        """A decoder that met damage may return a neighbour of the frame it was asked for."""
        begin = self._decoder.metadata.begin_stream_seconds
        wrong = np.abs(seconds - begin - self._times[part]) > float(self.index.time_base) / 2 + 1e-6
        if wrong.any():
            raise DecodeError(
                self.path, f"torchcodec returned another frame than {int(part[wrong.argmax()])}"
            )


def needs_copy(index: FrameIndex) -> bool:
    """Whether torchcodec reads the file from a copy in memory, since it cannot seek in it."""
    return index.format in _UNSEEKABLE or not index.plain


def open_decoder(source: str | bytes | RangeFile, **options: Any) -> Any:
    """torchcodec's `VideoDecoder` of a path, a content or a file object, on the CPU, one thread."""
    # By name: the package does not declare to type checkers what it exports.
    library = importlib.import_module("torchcodec.decoders")
    return library.VideoDecoder(source, device="cpu", num_ffmpeg_threads=1, **options)


def _frame_mappings(index: FrameIndex, counted: Mask) -> str:
    """The counted packets (bool [P]) by time, as JSON that spares torchcodec its own scan.

    Of the durations it uses only the last, for an end of the stream that is not asked for here.
    """
    pts, key = index.pts[counted], index.closed[counted].astype(np.int64)
    order = np.argsort(pts, kind="stable")
    frames = ",".join(
        f'{{"pts":{time},"duration":1,"key_frame":{is_key}}}'
        for time, is_key in zip(pts[order].tolist(), key[order].tolist(), strict=True)
    )
    return f'{{"frames":[{frames}]}}'
