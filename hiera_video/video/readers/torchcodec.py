"""Frames by torchcodec, which needs FFmpeg's shared libraries on the system."""

from __future__ import annotations

import os

import numpy as np
import torch

from hiera_video.errors import DecodeError
from hiera_video.video.container import Deadline, FrameIndex, error_reason
from hiera_video.video.readers.portions import portions
from hiera_video.video.readers.remux import remux

# It seeks by time to the wrong place in these, and returns other frames than it was asked for.
_UNSEEKABLE = {"mpegts", "mpeg", "mpegvideo", "h264", "hevc", "m4v"}


class TorchcodecReader:
    """Reads frames of one file."""

    def __init__(self, path: str, index: FrameIndex, deadline: Deadline):
        if index.sequential:
            raise DecodeError(
                path, "its time stamps are missing or repeated; of the decoders only pyav reads it"
            )
        self.path, self.index = path, index
        copied = index.container.split(",")[0] in _UNSEEKABLE or not index.plain
        self._decoder = self._open(copied, deadline)
        # It turns pictures by what its own FFmpeg finds in the file; older ones do not look in all
        # kinds of files, a copy in memory does not say, and older torchcodecs do not turn at all.
        turned = round((getattr(self._decoder.metadata, "rotation", None) or 0) / 90)
        self._turns_left = (index.quarter_turns - turned) % 4
        counted = ~index.cut_off() if copied else ~index.hidden
        self._ranks = index.ranks(counted)
        # Its own clock starts at the first packet it counts.
        ticks = index.frame_pts() - index.pts[counted].min()
        self._times = ticks * float(index.time_base)
        if len(self._decoder) != counted.sum():
            raise DecodeError(
                path, f"torchcodec counts {len(self._decoder)} frames, the file has {counted.sum()}"
            )

    def _open(self, copied: bool, deadline: Deadline):
        from torchcodec.decoders import VideoDecoder

        source, stream = os.path.abspath(self.path), self.index.stream
        if copied:
            source, stream = remux(self.path, self.index, ("nut",), deadline).getvalue(), 0
        try:
            return VideoDecoder(source, stream_index=stream, device="cpu", num_ffmpeg_threads=1)
        except Exception as error:
            raise DecodeError(self.path, f"torchcodec: {error_reason(error)}") from None

    def close(self) -> None:
        self._decoder = None

    def read(self, wanted: np.ndarray, deadline: Deadline) -> torch.Tensor:
        """uint8 RGB [K, 3, H, W], upright, of ascending, distinct indices [K]."""
        batches = []
        for part in portions(self.path, self.index, wanted, "torchcodec"):
            try:
                batch = self._decoder.get_frames_at(self._ranks[part].tolist())
            except Exception as error:
                raise DecodeError(self.path, f"torchcodec: {error_reason(error)}") from None
            self._check_times(batch.pts_seconds.numpy(), part)
            batches.append(batch.data)
            deadline.check()
        frames = batches[0] if len(batches) == 1 else torch.cat(batches)
        return torch.rot90(frames, self._turns_left, dims=(2, 3)) if self._turns_left else frames

    def _check_times(self, seconds: np.ndarray, part: np.ndarray) -> None:
        """A decoder that met damage may return a neighbour of the frame it was asked for."""
        begin = self._decoder.metadata.begin_stream_seconds
        wrong = np.abs(seconds - begin - self._times[part]) > float(self.index.time_base) / 2 + 1e-6
        if wrong.any():
            raise DecodeError(
                self.path, f"torchcodec returned another frame than {int(part[wrong.argmax()])}"
            )
