"""Resize and crop decoded frames, uint8 [T, 3, H, W] (RGB), without any randomness.

Random augmentation for training is in `data/transforms/train.py`.

Resizing is bilinear *with* antialiasing. SlowFast's is without, on Kinetics copies that were
already reduced to about 256 or 340 pixels, where the two hardly differ; a phone's 1080p or 4K file
would alias badly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hiera_video.errors import UserError
from hiera_video.video.info import Integers, VideoInfo

SPATIAL_CROPS = (1, 3)

# Beyond this ratio of the sides a frame is cut to its crop before it is resized: a 2000x2 strip
# at 224 lines would be 224,000 pixels wide.
_LARGEST_ASPECT = 8


DECODED_BYTES = 128 << 20
"""Most bytes of whole decoded frames held at once: 20 frames at 1080p."""


class FrameReader(Protocol):
    """An open video or folder of pictures."""

    info: VideoInfo

    def parts(self, indices: Integers, size: int) -> Iterator[tuple[Integers, Tensor]]:
        """Yield ascending frames `size` at a time: their indices and uint8 [k, 3, H, W]."""


def read_parts(reader: FrameReader, indices: Integers) -> Iterator[tuple[Integers, Tensor]]:
    """Yield ascending frames, few enough at a time for DECODED_BYTES: see `FrameReader.parts`."""
    size = DECODED_BYTES // (3 * reader.info.width * reader.info.height)
    yield from reader.parts(indices, max(1, size))


def read_crops(
    reader: FrameReader, indices: Integers, crop_size: int, num_crops: int
) -> list[Tensor]:
    """The ascending frames `indices` [T] cut as they are decoded: see `spatial_crops`.

    Memory is bounded by the crops, not by the size of the video.
    """
    parts = [
        spatial_crops(frames, crop_size, num_crops) for _, frames in read_parts(reader, indices)
    ]
    return [
        torch.cat(pieces) if len(pieces) > 1 else pieces[0] for pieces in zip(*parts, strict=True)
    ]


def resize_short_side(frames: Tensor, size: int) -> Tensor:
    """Scale uint8 [T, 3, H, W] so that the shorter side is `size`: uint8 [T, 3, H', W'].

    The longer side is truncated to whole pixels, as in SlowFast.
    """
    height, width = frames.shape[-2:]
    return resize(frames, *_resized(height, width, size))


def _resized(height: int, width: int, short: int) -> tuple[int, int]:
    """Height and width of a picture whose shorter side becomes `short`."""
    if height <= width:
        return short, width * short // height
    return height * short // width, short


def resize(frames: Tensor, height: int, width: int) -> Tensor:
    """Scale uint8 [T, 3, H, W] to `height` x `width`, bilinear with antialiasing."""
    if tuple(frames.shape[-2:]) == (height, width):
        return frames
    return F.interpolate(frames, size=(height, width), mode="bilinear", antialias=True)


def spatial_crops(frames: Tensor, crop_size: int, num_crops: int) -> list[Tensor]:
    """The test crops of uint8 [T, 3, H, W]: a list of uint8 [T, 3, S, S] with S = `crop_size`.

    3 crops: the shorter side becomes S; left, centre and right (top, centre, bottom of an upright
    video). 1 crop: the shorter side becomes S * 256 / 224, rounded up, and the centre is cut out.
    Both are SlowFast's. Raises UserError for another number.
    """
    check_num_crops(num_crops)
    height, width = frames.shape[-2:]
    parts = _cut_to_aspect(frames, num_crops) if _is_strip(height, width) else [frames]
    if len(parts) == num_crops == 3:
        return [resize(part, crop_size, crop_size) for part in parts]
    resized = resize_short_side(parts[0], _short_side(crop_size, num_crops))
    spare_y, spare_x = (side - crop_size for side in resized.shape[-2:])
    corners = _corners(spare_y, spare_x, num_crops)
    return [resized[..., y : y + crop_size, x : x + crop_size] for y, x in corners]


Area = tuple[float, float, float, float]
"""Left, top, right and bottom edge of a part of a picture, as fractions of its sides."""


def crop_areas(height: int, width: int, crop_size: int, num_crops: int) -> list[Area]:
    """What each of the crops of `spatial_crops` shows of pictures of this size."""
    check_num_crops(num_crops)
    if not _is_strip(height, width):
        return _areas_of_crops(height, width, crop_size, num_crops)
    side = min(height, width)
    offsets = _offsets(height, width, num_crops)
    corners = [(offset, 0) if height > width else (0, offset) for offset in offsets]
    inner = [(0.0, 0.0, 1.0, 1.0)] * 3
    if num_crops == 1:
        inner = _areas_of_crops(side, side, crop_size, 1)
    return [
        (
            (x + side * left) / width,
            (y + side * top) / height,
            (x + side * right) / width,
            (y + side * bottom) / height,
        )
        for (y, x), (left, top, right, bottom) in zip(corners, inner, strict=True)
    ]


def _areas_of_crops(height: int, width: int, crop_size: int, num_crops: int) -> list[Area]:
    rows, columns = _resized(height, width, _short_side(crop_size, num_crops))
    return [
        (x / columns, y / rows, (x + crop_size) / columns, (y + crop_size) / rows)
        for y, x in _corners(rows - crop_size, columns - crop_size, num_crops)
    ]


def _short_side(crop_size: int, num_crops: int) -> int:
    return crop_size if num_crops == 3 else -(-crop_size * 256 // 224)


def _corners(spare_y: int, spare_x: int, num_crops: int) -> list[tuple[int, int]]:
    """Top and left of each crop."""
    centre_y, centre_x = (spare_y + 1) // 2, (spare_x + 1) // 2
    if num_crops == 1:
        return [(centre_y, centre_x)]
    if spare_y > spare_x:
        return [(0, centre_x), (centre_y, centre_x), (spare_y, centre_x)]
    return [(centre_y, 0), (centre_y, centre_x), (centre_y, spare_x)]


def planar(frames: Tensor) -> Tensor:
    """Contiguous uint8 [T, 3, H, W], as `.contiguous()` returns.

    Decoded frames are channels-last; this copy is four times as fast in numpy as in torch.
    """
    if frames.is_contiguous() or frames.stride(1) != 1:
        return frames.contiguous()
    out = np.empty(tuple(frames.shape), np.uint8)
    for colour in range(frames.shape[1]):
        out[:, colour] = frames[:, colour].numpy()
    return torch.from_numpy(out)


def check_num_crops(num_crops: int) -> None:
    """Raise UserError unless `num_crops` is a number of spatial crops that exists."""
    if num_crops not in SPATIAL_CROPS:
        raise UserError(f"{num_crops} spatial crops; allowed are 1 (centre) and 3 (side to side)")


def _is_strip(height: int, width: int) -> bool:
    return max(height, width) > _LARGEST_ASPECT * min(height, width)


def _cut_to_aspect(frames: Tensor, num_crops: int) -> list[Tensor]:
    """Squares of a strip at its start, middle and end (3), or its middle alone (1)."""
    height, width = frames.shape[-2:]
    along = -2 if height > width else -1
    offsets = _offsets(height, width, num_crops)
    return [frames.narrow(along, offset, min(height, width)) for offset in offsets]


def _offsets(height: int, width: int, num_crops: int) -> list[int]:
    """Where the squares of a strip begin along its longer side."""
    spare = abs(height - width)
    return [0, (spare + 1) // 2, spare] if num_crops == 3 else [(spare + 1) // 2]
