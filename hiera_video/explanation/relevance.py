"""What in a clip speaks for a class: integrated gradients along a path that stops once.

The path leads from a grey clip (the mean colour everywhere) over the still picture (each frame is
the mean of all) to the clip. So the logit of a class is divided exactly:

    logit(clip) = logit(grey) + appearance + motion
    appearance  = logit(still) - logit(grey)
    motion      = logit(clip) - logit(still)

and the integral of the gradient along each part, times the way, says where it comes from
(Sundararajan et al., Axiomatic Attribution for Deep Networks, ICML 2017, section 3). Any model with
gradients will do. Attention rollout does not hold for Hiera: most of its attention stays inside
mask units, and units are pooled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from hiera_video.errors import RunFailed, UserError
from hiera_video.scoring import takes_images

STEPS = 4
"""Points of each part of the path at which the gradient is taken (Gauss-Legendre)."""

PASSES = 2 * STEPS
"""Forward and backward passes of an explanation."""


@dataclass(frozen=True)
class Relevance:
    """Where a class comes from in one clip."""

    cells: NDArray[np.float32]
    """[T', rows, columns]: the share of each cell in what speaks for the class. Sums to 1; all 0
    where nothing speaks for it. A cell is two frames of 16 pixels, of small clips 8."""
    grey: float
    """The class's logit for the mean colour of the clip."""
    still: float
    """For the clip's mean picture, still."""
    clip: float
    """For the clip."""

    @property
    def appearance(self) -> float:
        """What the still picture adds to the logit."""
        return self.still - self.grey

    @property
    def motion(self) -> float:
        """What the change over time adds to the logit."""
        return self.clip - self.still


def require_gradients(model: nn.Module) -> None:
    """Raise UserError for a model without gradients: an exported file."""
    if next(model.parameters(), None) is None:
        raise UserError(
            "an explanation needs gradients, and an exported file has none; use --runtime torch "
            "with the checkpoint"
        )


def clip_relevance(
    model: nn.Module,
    clip: Tensor,
    index: int,
    *,
    steps: int = STEPS,
    on_pass: Callable[[], None] = lambda: None,
) -> Relevance:
    """Explain one output of a model for one clip.

    Args:
        model: in eval mode; returns logits [B, num_classes].
        clip: normalised, float32 [3, T, H, W], on the model's device.
        index: of the class.
        steps: points of each part of the path. The more, the closer the sum over all pixels comes
            to `appearance` plus `motion`; the picture hardly changes.
        on_pass: called after each of the 2 * steps passes.

    Raises:
        ValueError: a model in training mode. RunFailed: gradients that are not finite.
    """
    if model.training:
        raise ValueError("an explanation needs model.eval(): dropout would make it random")
    clip = clip.detach()
    still = clip.mean(dim=1, keepdim=True).expand_as(clip)
    grey = clip.mean(dim=(1, 2, 3), keepdim=True).expand_as(clip)
    parts = [_part(model, ends, index, steps, on_pass) for ends in ((grey, still), (still, clip))]
    speaks_for = torch.stack(parts).sum(dim=0).clamp(min=0)
    if not torch.isfinite(speaks_for).all():
        raise RunFailed("the gradients of the model are not finite; other weights may be needed")
    with torch.no_grad():
        logits = [float(_logit(model, x[None], index)) for x in (grey, still, clip)]
    return Relevance(_cells(speaks_for), *logits)


def _part(
    model: nn.Module,
    ends: tuple[Tensor, Tensor],
    index: int,
    steps: int,
    on_pass: Callable[[], None],
) -> Tensor:
    """The integrated gradient of a straight part of the path: [T, H, W], summed over colours."""
    first, last = ends
    total = torch.zeros_like(last)
    points, weights = np.polynomial.legendre.leggauss(steps)  # on -1 to 1
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        between = torch.lerp(first, last, float(point)).requires_grad_(True)
        with torch.enable_grad():
            logit = _logit(model, between[None], index)
        total += float(weight) * torch.autograd.grad(logit, between)[0]
        on_pass()
    return ((last - first) * total).sum(dim=0)


def _logit(model: nn.Module, clips: Tensor, index: int) -> Tensor:
    logits: Tensor = model(clips.squeeze(2) if takes_images(model) else clips)
    return logits[0, index].float()


def _cells(pixels: Tensor) -> NDArray[np.float32]:
    """[T, H, W] -> the shares of cells [T', rows, columns]."""
    side = 16 if min(pixels.shape[1:]) >= 128 else 8
    frames, height, width = pixels.shape
    grid = (-(-frames // 2), -(-height // side), -(-width // side))
    cells = F.adaptive_avg_pool3d(pixels[None, None].cpu().double(), grid)[0, 0]
    total = cells.sum()
    shares: NDArray[np.float32] = (cells / total if total > 0 else cells).float().numpy()
    return shares
