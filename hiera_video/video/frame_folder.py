"""Read a folder of pictures like a video.

Something-Something and other sets are often kept as one folder of JPEGs per video. Frames are
ordered by the last number in their names, so that 10.jpg comes after 9.jpg.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hiera_video.errors import DecodeError
from hiera_video.video.info import Integers, VideoInfo
from hiera_video.video.limits import MAX_PIXELS

if TYPE_CHECKING:
    from torch import Tensor

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})

FRAMES_PER_SECOND = 30.0
"""Pictures carry no times; SlowFast's lists of frames are extracted at 30 per second."""


class FrameFolder:
    """The pictures of one folder, with the `info` and `read` of a `VideoReader`.

    Args:
        names: the pictures in their order, where that is known; the folder, which may hold tens of
            thousands, is then not listed.

    Raises DecodeError: no pictures there, one that cannot be read, or one of another size.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fps: float = FRAMES_PER_SECOND,
        names: Sequence[str] | None = None,
    ) -> None:
        self._folder = os.fspath(path)
        self._names = _pictures_in(self._folder) if names is None else names
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is kept open."""

    def read(self, indices: Iterable[int]) -> Tensor:
        """uint8 RGB [len(indices), 3, H, W], channels-last."""
        import torch

        return torch.from_numpy(self.pixels(indices)).permute(0, 3, 1, 2)

    def pixels(self, indices: Iterable[int]) -> NDArray[np.uint8]:
        """The same without torch: uint8 RGB [len(indices), H, W, 3]."""
        asked = np.asarray(list(indices), np.int64)
        wanted, rows = np.unique(asked, return_inverse=True)
        size = (self.info.height, self.info.width)
        frames = np.empty((len(wanted), *size, 3), np.uint8)
        for row, index in enumerate(wanted.tolist()):
            frames[row] = self._picture(index, size)
        return frames if np.array_equal(wanted, asked) else frames[rows]

    def parts(self, indices: Integers, size: int) -> Iterator[tuple[Integers, Tensor]]:
        """Yield ascending pictures `size` at a time: their indices and uint8 [k, 3, H, W]."""
        for first in range(0, len(indices), size):
            part = indices[first : first + size]
            yield part, self.read(part)

    def _picture(self, index: int, size: tuple[int, int] | None) -> NDArray[np.uint8]:
        """uint8 [H, W, 3] of one picture; DecodeError where its size is not `size` (H, W)."""
        from PIL import Image

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


def _pictures_in(folder: str) -> list[str]:
    """The names of the pictures in a folder, in their order."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise DecodeError(folder, error.strerror or str(error)) from error
    pictures = [n for n in names if os.path.splitext(n)[1].lower() in PICTURE_SUFFIXES]
    return sorted((n for n in pictures if not n.startswith(".")), key=_frame_order)


def _frame_order(name: str) -> tuple[int, str]:
    numbers = re.findall(r"\d+", name)
    return (int(numbers[-1]) if numbers else 0, name)
