"""Random transforms of training clips: crop, flip, RandAugment, light, erase.

A clip goes in as uint8 [T, 3, H, W] and comes out as float32 [3, T, S, S]; or half way as `Pixels`,
which the device that computes normalises. Every random choice is made once per clip, so that all
its frames are treated alike, and from the generator of the caller: the same generator, the same
clip.

    transform = TrainTransform(spec, area=(0.08, 1.0), rand_augment="rand-m7-mstd0.5-inc1")
    clip = transform(frames, torch.Generator().manual_seed(1))

The order is timm's: crop, flip, RandAugment, normalise, erase; with a change of the light, which
timm does not have, after RandAugment. SlowFast runs RandAugment on the
whole picture before the crop. That is the same distribution, except for the pixels that a shift or
rotation leaves empty; after the crop, RandAugment has a third of the pixels to process.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Generator, Tensor

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.boxes import ClipBoxes
from hiera_video.data.randomness import uniform
from hiera_video.data.transforms.normalize import normalize
from hiera_video.data.transforms.photometric import Photometric
from hiera_video.errors import UserError
from hiera_video.video.crops import resize

if TYPE_CHECKING:
    from hiera_video.data.transforms.rand_augment import RandAugment

# ---- the whole transform ------------------------------------------------------------------------


class Crop(NamedTuple):
    """A box of the source picture in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    flip: bool

    def cut(self, frames: Tensor, size: int) -> Tensor:
        """Crop and resize: uint8 [T, 3, H, W] -> uint8 [T, 3, size, size]."""
        box = frames[..., self.top : self.top + self.height, self.left : self.left + self.width]
        box = resize(box, size, size)
        return box.flip(-1) if self.flip else box


class Erasure(NamedTuple):
    """A box in pixels to erase in all frames of a clip, and what replaces it."""

    top: int
    left: int
    height: int
    width: int
    noise: Tensor | None
    """float32 [3, T, height, width]; None is zero, the mean colour."""

    def erase(self, clip: Tensor) -> None:
        """Fill the box of a normalised clip [3, T, S, S], in place."""
        rows, columns = (
            slice(self.top, self.top + self.height),
            slice(self.left, self.left + self.width),
        )
        region = clip[:, :, rows, columns]
        if self.noise is None:
            region.zero_()
        else:
            region.copy_(self.noise)


class Pixels(NamedTuple):
    """A clip before it is normalised: a quarter of the bytes."""

    frames: Tensor
    """uint8 [T, 3, S, S], in any layout."""
    erased: tuple[Erasure, ...] = ()
    """In the order in which they are filled; a later one covers an earlier one."""
    truth: Tensor | None = None
    """float32 [K, T', G, G]: what is known of a generated clip, over time and cells."""
    boxes: ClipBoxes | None = None
    """The boxes of the clip; None where its data set has none."""

    def normalized(self, spec: ClipSpec) -> Tensor:
        """Normalise and erase: float32 [3, T, S, S]."""
        clip = normalize(self.frames, spec)
        for erasure in self.erased:
            erasure.erase(clip)
        return clip


@dataclass(frozen=True)
class TrainTransform:
    """The random transforms of a training clip between decoding and the model.

    Raises UserError for an empty range or an unknown `rand_augment`.
    """

    spec: ClipSpec
    area: tuple[float, float] = (0.08, 1.0)
    """Share of the picture that the crop covers; pretraining uses (0.5, 1.0)."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Width / height of the crop before it is resized to a square."""
    flip: float = 0.5
    """Probability of mirroring left and right."""
    rand_augment: str = ""
    """timm's spelling, e.g. "rand-m7-mstd0.5-inc1"; empty is none. See
    `rand_augment.py`."""
    erase_prob: float = 0.0
    """Probability of random erasing."""
    erase_mode: str = "pixel"
    """"pixel": noise in every pixel of every frame; "const": zero, the mean colour."""
    erase_count: int = 1
    """Largest number of boxes erased in a clip."""
    photometric: Photometric = field(default_factory=Photometric)
    """Exposure, noise, blur and colour; by default unchanged."""

    def __post_init__(self) -> None:
        for name in ("area", "aspect"):
            least, most = getattr(self, name)
            if not 0 < least <= most:
                raise UserError(f"{name}=({least}, {most}) must be (least, most), both above 0")
        if self.area[1] > 1:
            raise UserError(f"area={self.area} must end at 1, the whole picture, or below")
        for name in ("flip", "erase_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} must be between 0 and 1")
        if self.erase_mode not in ("pixel", "const"):
            raise UserError(f"erase_mode={self.erase_mode!r} must be 'pixel' or 'const'")
        self._policy()

    def draw_crop(self, height: int, width: int, generator: Generator) -> Crop:
        """Draw the crop of a clip whose frames are `height` x `width`."""
        box = random_box(height, width, self.area, self.aspect, generator)
        return Crop(*box, flip=uniform(generator, 1)[0] < self.flip)

    def augment(self, frames: Tensor, generator: Generator) -> Pixels:
        """Augment cropped uint8 [T, 3, S, S] and draw the boxes to erase after normalisation."""
        if policy := self._policy():
            frames = policy(frames, generator)
        erased = self._draw_erasures(frames, generator)
        # Drawn last: the boxes are the same with any light.
        return Pixels(self.photometric(frames, generator), erased)

    def finish(self, frames: Tensor, generator: Generator) -> Tensor:
        """Augment, normalise and erase: cropped uint8 [T, 3, S, S] -> float32 [3, T, S, S]."""
        return self.augment(frames, generator).normalized(self.spec)

    def _draw_erasures(self, frames: Tensor, generator: Generator) -> tuple[Erasure, ...]:
        if not self.erase_prob:
            return ()
        return draw_erasures(
            (3, len(frames), *frames.shape[-2:]),
            generator,
            prob=self.erase_prob,
            mode=self.erase_mode,
            most=self.erase_count,
        )

    def _policy(self) -> RandAugment | None:
        if not self.rand_augment:
            return None
        # Imported here: it needs torchvision and PyTorchVideo, and nothing else in this file does.
        from hiera_video.data.transforms.rand_augment import parse_rand_augment

        return parse_rand_augment(self.rand_augment)

    def __call__(self, frames: Tensor, generator: Generator) -> Tensor:
        """Crop, augment, normalise and erase: uint8 [T, 3, H, W] -> float32 [3, T, S, S]."""
        height, width = frames.shape[-2:]
        crop = self.draw_crop(height, width, generator)
        return self.finish(crop.cut(frames, self.spec.crop_size), generator)


# ---- crop and erase -----------------------------------------------------------------------------

_TRIES = 10


def random_box(
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    generator: Generator,
) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width) of a random crop, as Inception and torchvision do.

    The share of the picture is uniform in `area`, the logarithm of width / height uniform in
    `aspect`. If ten tries do not fit into the picture, it is the largest centred box of
    an allowed aspect.
    """
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(_TRIES):
        share, ratio, y, x = uniform(generator, 4)
        pixels = height * width * (area[0] + share * (area[1] - area[0]))
        ratio = math.exp(low + ratio * (high - low))
        box_width = round(math.sqrt(pixels * ratio))
        box_height = round(math.sqrt(pixels / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(y * (height - box_height + 1))
            left = int(x * (width - box_width + 1))
            return top, left, box_height, box_width
    box_width = min(width, max(1, round(height * aspect[1])))
    box_height = min(height, max(1, round(width / aspect[0])))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 10 / 3)


def random_erase(
    clip: Tensor, generator: Generator, *, prob: float, mode: str = "pixel", most: int = 1
) -> Tensor:
    """With probability `prob` erase 1 to `most` boxes of a normalised clip [3, T, S, S], in place.

    See `draw_erasures`, which draws them.
    """
    for erasure in draw_erasures(clip.shape, generator, prob=prob, mode=mode, most=most):
        erasure.erase(clip)
    return clip


def draw_erasures(
    shape: Sequence[int], generator: Generator, *, prob: float, mode: str = "pixel", most: int = 1
) -> tuple[Erasure, ...]:
    """Draw the boxes to erase in a clip of `shape` (3, T, S, S): 1 to `most`, or with probability
    1 - `prob` none.

    The box is the same in every frame; "pixel" fills it with standard normal noise of its own in
    every pixel and frame, "const" with zero. Areas and aspects are timm's (2 % to a third, 0.3 to
    3.3), where a box that does not fit is drawn again. Unlike SlowFast, all frames are erased
    whatever the count.
    """
    chance, how_many = uniform(generator, 2)
    if chance >= prob:
        return ()
    erasures = []
    for _ in range(1 + int(how_many * most)):
        box = random_box(shape[-2], shape[-1], ERASED_AREA, ERASED_ASPECT, generator)
        size = (*shape[:2], *box[2:])
        noise = torch.randn(size, generator=generator) if mode == "pixel" else None
        erasures.append(Erasure(*box, noise))
    return tuple(erasures)


# ---- labels that mirroring would make wrong -----------------------------------------------------

_DIRECTION = re.compile(
    r"(?:counter|anti)?clockwise|c?cw|(?:left|right)(?:wards?|hand(?:ed)?|side|most)?|lefty|righty"
)


def directional_classes(classes: Sequence[str]) -> list[str]:
    """The class names with a word for left, right or a sense of rotation."""
    return [name for name in classes if any(map(_DIRECTION.fullmatch, _words(name)))]


def flip_is_safe(classes: Sequence[str]) -> bool:
    """Whether mirroring a video leaves its label true, as far as the names can tell."""
    return not directional_classes(classes)


def _words(name: str) -> list[str]:
    """ "TurnLeft_2" -> turn, left, 2."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return re.split(r"[^a-z0-9]+", spaced.lower())
