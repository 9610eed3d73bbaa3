"""Whether the encoder that is being pretrained still tells clips apart.

The loss does not show it: a decoder that has learnt to guess gets by without the encoder. So a few
whole clips, always the same, go through the encoder at the end of each epoch, and the spread of
their features is recorded. Seen here: 0.14 with random weights, 0.09 in a useful encoder, 0.00003
in one that was lost (docs/results.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.data.batch import Batch
from hiera_video.engine import tasks
from hiera_video.models.encoder_model import EncoderModel
from hiera_video.scoring import takes_images

CLIPS = 16
"""Clips that are compared, each of another video."""

LEAST = 0.001
"""Spread below which the run warns."""


NO_MEMORY = "no memory is left to see whether the encoder still tells whole clips apart"


def is_watched(model: nn.Module) -> bool:
    """Whether a model has an encoder that is all that is kept of it."""
    return isinstance(tasks.unwrap(model), EncoderModel)


@torch.no_grad()
def feature_spread(model: nn.Module, batch: Batch) -> float | None:
    """Return the variance over clips of what the encoder says of each, from 0 to 1; None where a
    GPU has no memory for a whole clip, which is no reason to end a run.

    The mean over the tokens of the last stage is layer-normalised, so that the scale of the
    features does not count; the variance is the mean over channels. Leaves the model in eval mode.

    Args:
        model: one that `is_watched`.
        batch: two clips or more, normalised, on the model's device.
    """
    inner = tasks.unwrap(model)
    assert isinstance(inner, EncoderModel)
    model.eval()
    # one after the other: whole clips of a large model need more memory than masked ones
    try:
        rows = [_described(inner, clip) for clip in batch.clips.split(1)]
    except torch.OutOfMemoryError:
        return None
    return float(torch.cat(rows).var(dim=0, correction=0).mean())


def _described(model: EncoderModel, clip: Tensor) -> Tensor:
    pixels = clip.squeeze(2) if takes_images(model) else clip
    tokens = model.encoder.forward_features(pixels).float()
    pooled = tokens.flatten(1, -2).mean(dim=1)
    return F.layer_norm(pooled, pooled.shape[-1:])


def warning_of(spread: float) -> str:
    """Say what is wrong and what to do; empty where the features differ enough."""
    if spread >= LEAST:
        return ""
    return (
        f"warning: the encoder says nearly the same of all clips (feature_spread {spread:.1g}): it "
        "is of no use for other tasks. Start anew with a lower SOLVER.BASE_LR or a longer "
        "SOLVER.WARMUP_EPOCHS"
    )
