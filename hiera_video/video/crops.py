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
    if height <= width:
        return resize(frames, size, width * size // height)
    return resize(frames, height * size // width, size)


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
    parts = _cut_to_aspect(frames, num_crops) if _is_strip(frames) else [frames]
    if len(parts) == num_crops == 3:
        return [resize(part, crop_size, crop_size) for part in parts]
    short = crop_size if num_crops == 3 else -(-crop_size * 256 // 224)
    resized = resize_short_side(parts[0], short)
    spare_y, spare_x = (side - crop_size for side in resized.shape[-2:])
    centre_y, centre_x = (spare_y + 1) // 2, (spare_x + 1) // 2
    corners = [(centre_y, centre_x)]
    if num_crops == 3 and spare_y > spare_x:
        corners = [(0, centre_x), (centre_y, centre_x), (spare_y, centre_x)]
    elif num_crops == 3:
        corners = [(centre_y, 0), (centre_y, centre_x), (centre_y, spare_x)]
    return [resized[..., y : y + crop_size, x : x + crop_size] for y, x in corners]


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


def _is_strip(frames: Tensor) -> bool:
    height, width = frames.shape[-2:]
    return max(height, width) > _LARGEST_ASPECT * min(height, width)


def _cut_to_aspect(frames: Tensor, num_crops: int) -> list[Tensor]:
    """Squares of a strip at its start, middle and end (3), or its middle alone (1)."""
    height, width = frames.shape[-2:]
    side = min(height, width)
    spare = max(height, width) - side
    offsets = [0, (spare + 1) // 2, spare] if num_crops == 3 else [(spare + 1) // 2]
    along = -2 if height > width else -1
    return [frames.narrow(along, offset, side) for offset in offsets]
