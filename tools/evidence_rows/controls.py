"""Changes of a test clip that show what an answer rests on.

A classifier learns from unchanged clips and is asked about changed ones:

* one frame: the middle frame throughout; what is left does not come from motion;
* shuffled: the frames in random order; what is left does not come from their order;
* reversed: backwards; actions that are each other's reverse should swap;
* brighter, darker: other light; what is lost came from brightness.

The pixels that change are those of the file: 8 bits, before any normalisation of brightness, which
is part of what is tested. Light is gain * pixel ** gamma, alike for all frames. It is cut off at
white and rounded: as in a file that was filmed like this, what is lost is lost.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import Tensor

PLAIN = "plain"
"""The name of the unchanged clip."""


def one_frame(clip: Tensor, seed: int) -> Tensor:
    """The middle frame, repeated."""
    return clip[len(clip) // 2].expand_as(clip)


def shuffled(clip: Tensor, seed: int) -> Tensor:
    """The frames in an order drawn from `seed`."""
    return clip[torch.randperm(len(clip), generator=torch.Generator().manual_seed(seed))]


def backwards(clip: Tensor, seed: int) -> Tensor:
    """The frames from last to first."""
    return clip.flip(0)


def brighter(clip: Tensor, seed: int) -> Tensor:
    """As with a longer exposure: gain 1.6, gamma 0.6."""
    return relit(clip, gain=1.6, gamma=0.6)


def darker(clip: Tensor, seed: int) -> Tensor:
    """As with a shorter exposure: gain 0.5, gamma 1.5."""
    return relit(clip, gain=0.5, gamma=1.5)


def relit(clip: Tensor, *, gain: float, gamma: float) -> Tensor:
    """gain * pixel ** gamma with pixels in [0, 1], cut off and rounded as a file stores them."""
    levels = torch.arange(256) / 255
    table = (gain * levels**gamma).clamp(0, 1).mul(255).round().to(torch.uint8)
    return torch.from_numpy(table.numpy()[clip.numpy()])


CONTROLS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "one frame": one_frame,
    "shuffled": shuffled,
    "reversed": backwards,
    "brighter": brighter,
    "darker": darker,
}
"""Name -> function of a clip uint8 [T, 3, H, W] and a seed; the same shape comes back."""


def changed(clip: Tensor, control: str, name: str) -> Tensor:
    """A clip uint8 [T, 3, H, W] as a control shows it.

    name: of the clip; what is random depends on nothing else, so that a later call repeats it.
    """
    if control == PLAIN:
        return clip
    return CONTROLS[control](clip, zlib.crc32(name.encode("utf-8", "surrogateescape")))
