"""What a model does with clips, as a picture and as a video; flow and gradients as colours."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hiera_video.engine.flow import flow_colours, hues
from hiera_video.models.mae import MaskedAutoencoder
from hiera_video.models.targets import HOG_BINS

MOST_FRAMES = 8
"""Frames of a clip in a picture."""


class Panels(NamedTuple):
    """Clips, each shown in several ways."""

    names: tuple[str, ...]
    """Of the ways, such as "input"."""
    pixels: Tensor
    """Float RGB [B, ways, 3, F, H, W] in [0, 1], on the CPU."""

    def as_picture(self) -> Tensor:
        """A row for each way of each clip, its first frames side by side: float [3, H', W']."""
        rows = self.pixels[:, :, :, :MOST_FRAMES]
        return rows.permute(2, 0, 1, 4, 3, 5).flatten(4, 5).flatten(1, 3)

    def as_video(self) -> Tensor:
        """The ways side by side, clips below each other: uint8 [F, 3, H', W'], H' and W' even."""
        frames = self.pixels.permute(3, 2, 0, 4, 1, 5).flatten(4, 5).flatten(2, 3)
        height, width = frames.shape[-2:]
        return (frames * 255).round().byte()[..., : height - height % 2, : width - width % 2]


def hog_colours(maps: Tensor) -> Tensor:
    """Colour histograms of gradients [B, 9 C, T, H, W]: float RGB [B, 3, T, H, W] in [0, 1].

    The colour is the strongest bin of the mean over the clip's colours, its strength the value
    there; black is flat. Upright edges are cyan, level ones red.
    """
    strength, strongest = maps.unflatten(1, (-1, HOG_BINS)).mean(1).max(dim=1)
    return hues((strongest + 0.5) * (2 * math.pi / HOG_BINS), strength.clamp(0, 1))


COLOURS: dict[str, Callable[[Tensor], Tensor]] = {
    "hog": hog_colours,
    "flow": lambda maps: flow_colours(maps[:, :2]),
}
"""Target -> how its maps [B, C, T, h, w] become RGB. Of the flow the first two numbers are drawn,
the displacement until the next frame."""


@torch.no_grad()
def target_rows(
    model: MaskedAutoencoder, clips: Tensor, keep: Tensor, truth: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw what is to be predicted of clips, and the predictions of what was hidden.

    clips: normalised, as the model takes them. Returns which pixels are hidden, bool [B, 1, T', H,
    W], and target and prediction, float RGB [B, 3, T', H, W] in [0, 1]; what is visible has its
    true colours in both.
    """
    pred = model(clips, keep, truth=truth).pred
    target = model.target.join(model.target.tokens(clips, truth))
    predicted = model.reconstruct(clips, pred, keep, truth)
    # a prediction that no cell has by itself marks the hidden ones
    marked = model.reconstruct(clips, torch.full_like(pred, math.inf), keep, truth).isinf()
    hidden = marked.any(dim=1, keepdim=True).float()
    side = clips.shape[-2:]
    maps = [x if x.ndim == 5 else x.unsqueeze(2) for x in (hidden, target, predicted)]
    draw = COLOURS[model.target.name]
    rows = [maps[0], *(draw(x.float()) for x in maps[1:])]
    hidden, target, predicted = (F.interpolate(x, (x.shape[2], *side)) for x in rows)
    return hidden > 0, target, predicted
