"""Frames that wait until a window needs them: as decoded while there is room, else as crops.

Most frames of a stream are never looked at: a clip shows one of several, and windows are passed
over where labelling is slow. So a frame is converted and cut when a window needs it. Only where the
frames that wait are more than `HELD_BYTES` (4K, long windows) is the oldest cut early.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hiera_video.errors import DecodeError
from hiera_video.video.crops import spatial_crops
from hiera_video.video.readers.frames import upright
from hiera_video.video.readers.pyav import RgbConverter

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

HELD_BYTES = 384 << 20
"""Most bytes of the frames that wait: 129 of 1080 lines."""


class Cropper:
    """Cuts frames of one stream to the crops that the model takes, as files are cut.

    All are scaled to the size of the first and turned as it is. Safe to share between threads.
    """

    def __init__(self, path: str, first: VideoFrame, crop_size: int, num_crops: int) -> None:
        self.size = (first.width, first.height)
        self.quarter_turns = round(first.rotation / 90) % 4
        self.crop_size, self.num_crops = crop_size, num_crops
        self._converter = RgbConverter(path, self.size)
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Of the crops of one frame."""
        return 3 * self.crop_size**2 * self.num_crops

    def crops(self, frame: VideoFrame) -> Tensor:
        """Convert and cut one frame: uint8 [S, 3, H, W]."""
        width, height = self.size
        stored = np.empty((1, height, width, 3), np.uint8)
        with self._lock:
            self._converter.write(frame, stored[0])
        frames = torch.from_numpy(upright(stored, self.quarter_turns)).permute(0, 3, 1, 2)
        return torch.cat(spatial_crops(frames, self.crop_size, self.num_crops)).contiguous()


class Picture:
    """One frame of a stream."""

    def __init__(self, frame: VideoFrame, cropper: Cropper) -> None:
        self._cropper = cropper
        self._frame: VideoFrame | None = frame
        self._crops: Tensor | None = None
        self.num_bytes = sum(plane.buffer_size for plane in frame.planes)

    def crops(self) -> Tensor:
        """The crops that the model takes: uint8 [S, 3, H, W]."""
        frame, crops = self._frame, self._crops  # another thread may cut it meanwhile
        if crops is not None:
            return crops
        assert frame is not None
        return self._cropper.crops(frame)

    def cut(self) -> None:
        """Keep the crops alone, where they are fewer bytes than the frame."""
        if self._crops is None and self._cropper.num_bytes < self.num_bytes:
            self._crops = self.crops()
            self._frame = None
            self.num_bytes = self._cropper.num_bytes


class Room:
    """Sees to it that the frames that wait are at most `HELD_BYTES`."""

    def __init__(self, path: str, seconds: float) -> None:
        self.path, self.seconds = path, seconds

    def make(self, held: deque[Picture]) -> None:
        """Cut frames, the oldest first, while they are too many bytes.

        Raises DecodeError where that is not enough.
        """
        used = sum(picture.num_bytes for picture in held)
        for picture in held:
            if used <= HELD_BYTES:
                return
            used -= picture.num_bytes
            picture.cut()
            used += picture.num_bytes
        if used > HELD_BYTES:
            raise DecodeError(
                self.path,
                f"windows of {self.seconds:g} s need {len(held)} frames at a time, which are more "
                f"than {HELD_BYTES >> 20} MiB; a smaller --timeline needs fewer",
            )
