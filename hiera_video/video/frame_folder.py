"""A folder of pictures read like a video, and `open_video`, which takes either.

Something-Something and other sets are often kept as one folder of JPEGs per video. Frames are
ordered by the last number in their names, so that 10.jpg comes after 9.jpg.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image

from hiera_video.errors import DecodeError
from hiera_video.video.decode import MAX_PIXELS, VideoInfo, VideoReader

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})

FRAMES_PER_SECOND = 30.0
"""Pictures carry no times; 30 is the rate at which SlowFast's lists have their frames taken out."""


def open_video(
    path: str | os.PathLike, decoder: str = "auto", *, fps: float = FRAMES_PER_SECOND
) -> VideoReader | FrameFolder:
    """A reader of a video file, or of a folder of pictures at `fps`. Raises DecodeError."""
    return FrameFolder(path, fps=fps) if os.path.isdir(path) else VideoReader(path, decoder)


class FrameFolder:
    """The pictures of one folder, with the `info` and `read` of a `VideoReader`.

    Raises DecodeError: no pictures there, one that cannot be read, or one of another size.
    """

    def __init__(self, path: str | os.PathLike, *, fps: float = FRAMES_PER_SECOND) -> None:
        self._folder = os.fspath(path)
        try:
            names = os.listdir(self._folder)
        except OSError as error:
            raise DecodeError(self._folder, error.strerror) from error
        pictures = [n for n in names if os.path.splitext(n)[1].lower() in PICTURE_SUFFIXES]
        self._names = sorted((n for n in pictures if not n.startswith(".")), key=_frame_order)
        if not self._names:
            raise DecodeError(self._folder, "a folder without pictures (jpg, png, webp or bmp)")
        height, width = self._picture(0, size=None).shape[:2]
        self.info = VideoInfo(
            path=self._folder,
            num_frames=len(self._names),
            fps=fps,
            duration=len(self._names) / fps,
            width=width,
            height=height,
            rotation=0,
            codec="pictures",
            decoder="pillow",
            times=np.arange(len(self._names)) / fps,
            index=None,
        )

    def __enter__(self) -> FrameFolder:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is kept open."""

    def read(self, indices: Iterable[int]) -> torch.Tensor:
        """uint8 RGB [len(indices), 3, H, W], channels-last."""
        indices = np.asarray(list(indices), np.int64)
        wanted, rows = np.unique(indices, return_inverse=True)
        size = (self.info.height, self.info.width)
        frames = np.empty((len(wanted), *size, 3), np.uint8)
        for row, index in enumerate(wanted.tolist()):
            frames[row] = self._picture(index, size)
        distinct = torch.from_numpy(frames).permute(0, 3, 1, 2)
        return distinct if np.array_equal(wanted, indices) else distinct[torch.from_numpy(rows)]

    def _picture(self, index: int, size: tuple[int, int] | None) -> np.ndarray:
        name = self._names[index]
        try:
            with Image.open(os.path.join(self._folder, name)) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise DecodeError(
                        self._folder, f"{name} is {picture.width}x{picture.height}, too large"
                    )
                pixels = np.asarray(picture.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DecodeError(self._folder, f"{name} cannot be read ({error})") from error
        if size is not None and pixels.shape[:2] != size:
            raise DecodeError(
                self._folder,
                f"{name} is {pixels.shape[1]}x{pixels.shape[0]}, the first is {size[1]}x{size[0]}",
            )
        return pixels


def _frame_order(name: str) -> tuple[int, str]:
    numbers = re.findall(r"\d+", name)
    return (int(numbers[-1]) if numbers else 0, name)
