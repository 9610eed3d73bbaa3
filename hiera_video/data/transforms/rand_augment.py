"""RandAugment for clips: PyTorchVideo's policy on torchvision's kernels.

timm's `rand-m7-mstd0.5-inc1`, which Hiera's recipe names: 2 of 15 operations are drawn, with
replacement; each is applied with probability 0.5, at a magnitude drawn from a normal distribution
(7, 0.5) and cut to [0, 10]; all frames of a clip are treated alike.

PyTorchVideo's RandAugment follows it: magnitudes, their standard deviation, the probability and the
"increasing" scale of each operation are the recipe's. torchvision's does not: it applies every
operation it draws, at one fixed magnitude, posterises four bits less and has no invert. So
probability and magnitude of the operations are PyTorchVideo's code, with three corrections: it
leaves out SolarizeAdd, it draws without replacement, and its kernels (torchvision's first
transforms) take two to four times as long as those of `torchvision.transforms.v2` called here.

Interpolation is bilinear (timm: bilinear or bicubic at random; SlowFast: bicubic). What a warp
leaves empty is grey (128), as in both.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from hiera_video.compat import ensure_pytorchvideo
from hiera_video.data.randomness import draw_seed, global_seed
from hiera_video.errors import UserError
from hiera_video.video.crops import planar

ensure_pytorchvideo()

from pytorchvideo.transforms import augmentations as ptv  # noqa: E402
from pytorchvideo.transforms.transforms import OpSampler  # noqa: E402
from torchvision.transforms.v2 import functional as F  # noqa: E402


@dataclass(frozen=True)
class RandAugment:
    """A RandAugment policy, called with a clip, uint8 [T, 3, H, W], and a generator."""

    magnitude: float = 10.0
    """Mean strength of an operation, 0 to 10."""
    magnitude_std: float = 0.0
    """Its standard deviation."""
    num_ops: int = 2
    """Operations drawn per clip."""
    prob: float = 0.5
    """Probability that an operation that was drawn is applied."""

    def __call__(self, frames: Tensor, generator: Generator) -> Tensor:
        # Decoded and resized frames are channels-last. Most kernels are faster on planar frames,
        # and a warp can then take all frames at once.
        frames = planar(frames)
        with global_seed(draw_seed(generator)):
            return _operations(self)(frames)


@functools.lru_cache(maxsize=16)
def parse_rand_augment(text: str) -> RandAugment:
    """Parse timm's spelling: m magnitude, mstd its spread, n operations, p probability.

    Raises UserError for unknown words and for a policy without inc1.
    """
    head, *words = text.split("-")
    pattern = r"(mstd|inc|m|n|p)(\d+(?:\.\d+)?)"
    matches = [match for word in words if (match := re.fullmatch(pattern, word))]
    if head != "rand" or len(matches) < len(words):
        raise UserError(
            f"RandAugment {text!r} is not understood; write it like rand-m7-mstd0.5-inc1 "
            f"(m: magnitude 0 to 10, mstd: its standard deviation, n: operations, p: probability)"
        )
    values = {match[1]: float(match[2]) for match in matches}
    if values.get("inc") != 1:
        raise UserError(
            f"RandAugment {text!r}: only policies whose strength grows with the magnitude (inc1) "
            f"are supported, as all video recipes use them; write {text.replace('-inc0', '')}-inc1"
        )
    magnitude, num_ops = values.get("m", 10.0), int(values.get("n", 2))
    if magnitude > 10 or num_ops < 1 or values.get("p", 0.5) > 1:
        raise UserError(f"RandAugment {text!r}: m must be 0 to 10, n at least 1 and p at most 1")
    return RandAugment(magnitude, values.get("mstd", 0.0), num_ops, values.get("p", 0.5))


@functools.lru_cache(maxsize=16)
def _operations(policy: RandAugment) -> Callable[[Tensor], Tensor]:
    scales = {**ptv._LEVEL_TO_ARG, "SolarizeAdd": _solarize_add_level}
    ranges = {**ptv._TRANSFORM_MAX_PARAMS, "SolarizeAdd": (0, 110)}
    ops = [
        ptv.AugmentTransform(
            name,
            magnitude=policy.magnitude,
            prob=policy.prob,
            name_to_transform_func=_KERNELS,
            level_to_arg=scales,
            transform_max_paras=ranges,
            transform_hparas={"fill": GREY},
            sampling_hparas={"sampling_std": policy.magnitude_std},
        )
        for name in _KERNELS
    ]
    return OpSampler(ops, num_sample_op=policy.num_ops, replacement=True)


GREY = 128.0
"""Fills the pixels that a warp leaves empty."""


# ---- the operations -----------------------------------------------------------------------------


def _solarize_add_level(level: float, limits: tuple[int, int]) -> tuple[int]:
    return (int(level / 10 * limits[1]),)


def _warp(frames: Tensor, **motion: object) -> Tensor:
    """Apply one affine transform to all frames."""
    steady = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    # As channels of one picture: the sampling grid is then computed once, not per frame.
    picture = frames.reshape(1, -1, *frames.shape[-2:])
    bilinear = F.InterpolationMode.BILINEAR
    moved = F.affine(picture, **(steady | motion), interpolation=bilinear, fill=GREY)
    return moved.view(frames.shape)


def _shift(frames: Tensor, right: int, down: int) -> Tensor:
    """Shift all frames by whole pixels: the result of `_warp` at the cost of a copy."""
    moved = torch.full_like(frames, int(GREY))
    height, width = frames.shape[-2:]
    (y, rows), (x, columns) = _overlap(down, height), _overlap(right, width)
    moved[..., y : y + rows, x : x + columns] = frames[
        ..., y - down : y - down + rows, x - right : x - right + columns
    ]
    return moved


def _overlap(shift: int, size: int) -> tuple[int, int]:
    """(start, length) of what remains inside of a line of `size` pixels after a shift."""
    return max(shift, 0), max(size - abs(shift), 0)


def _solarize(frames: Tensor, threshold: int) -> Tensor:
    """Invert the pixels of at least `threshold`."""
    return frames ^ (_at_least(frames, threshold) * 255)


def _solarize_add(frames: Tensor, add: int) -> Tensor:
    """Brighten the pixels of the darker half."""
    return frames + (1 - _at_least(frames, 128)) * add


def _at_least(frames: Tensor, threshold: int) -> Tensor:
    """uint8, 1 where a pixel reaches the threshold. numpy compares bytes 20 times as fast."""
    return torch.from_numpy(frames.numpy() >= threshold).view(torch.uint8)


def _angle(factor: float) -> float:
    return math.degrees(math.atan(factor))


def _sharpness(frames: Tensor, factor: float) -> Tensor:
    # The blur inside is a depthwise convolution: four times as fast with the channels last.
    sharp = F.adjust_sharpness(frames.contiguous(memory_format=torch.channels_last), factor)
    return sharp.contiguous()


_KERNELS: dict[str, Callable[..., Tensor]] = {
    "AutoContrast": lambda x, **_: F.autocontrast(x),
    "Equalize": lambda x, **_: F.equalize(x),
    "Invert": lambda x, **_: F.invert(x),
    "Rotate": lambda x, degrees, **_: _warp(x, angle=degrees),
    "Posterize": lambda x, bits, **_: F.posterize(x, bits),
    "Solarize": lambda x, threshold, **_: _solarize(x, int(256 * threshold)),
    "SolarizeAdd": lambda x, add, **_: _solarize_add(x, add),
    "AdjustSaturation": lambda x, factor, **_: F.adjust_saturation(x, factor),
    "AdjustContrast": lambda x, factor, **_: F.adjust_contrast(x, factor),
    "AdjustBrightness": lambda x, factor, **_: F.adjust_brightness(x, factor),
    "AdjustSharpness": lambda x, factor, **_: _sharpness(x, factor),
    "ShearX": lambda x, factor, **_: _warp(x, shear=[_angle(factor), 0.0], center=[0, 0]),
    "ShearY": lambda x, factor, **_: _warp(x, shear=[0.0, _angle(factor)], center=[0, 0]),
    "TranslateX": lambda x, share, **_: _shift(x, round(share * x.shape[-1]), 0),
    "TranslateY": lambda x, share, **_: _shift(x, 0, round(share * x.shape[-2])),
}
"""PyTorchVideo's name -> kernel(frames, argument), the argument scaled from the magnitude."""
