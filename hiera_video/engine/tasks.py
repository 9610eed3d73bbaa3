"""What one step computes: a batch in, a dictionary with its `loss` out.

    step = tasks.get("classify")
    out = step(model, batch, epoch=3, settings=settings)   # {"loss": ..., "top1": ..., "top5": ...}

`loss` is the mean over the clips of the batch, with its graph; the rest are counts, without one.
A new objective is one more function here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.engine.metrics import topk_correct
from hiera_video.errors import UserError
from hiera_video.models.mae import MaskedAutoencoder
from hiera_video.models.tokens import keep_from_noise, num_kept
from hiera_video.scoring import takes_images

PRECISION = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""TRAIN.MIXED_PRECISION -> number format of the forward pass."""


@dataclass(frozen=True)
class StepSettings:
    """What a step needs to know besides model and batch."""

    seed: int = 0
    """Of the masks."""
    loss_func: str = "cross_entropy"
    """cross_entropy, or bce_logit: every class its own yes or no."""
    class_weights: Tensor | None = None
    """float32 [C]: weight of the loss of each true class; None is 1 for all."""
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)
    precision: torch.dtype = torch.float32
    """Number format of the forward pass; the loss is float32 always."""

    def autocast(self) -> torch.autocast:
        """The context of the forward pass."""
        enabled = self.precision != torch.float32
        return torch.autocast(self.device.type, dtype=self.precision, enabled=enabled)


Step = Callable[..., dict[str, Any]]


def classify(model: nn.Module, batch: Any, *, epoch: int, settings: StepSettings) -> dict:
    """Class scores against labels int64 [B], or float [B, C] (mixed, smoothed or several)."""
    clips = batch.clips.squeeze(2) if takes_images(unwrap(model)) else batch.clips
    with settings.autocast():
        logits = model(clips)
    loss = class_losses(
        logits.float(), batch.labels, kind=settings.loss_func, weights=settings.class_weights
    ).mean()
    with torch.no_grad():
        return {
            "loss": loss,
            "top1": topk_correct(logits, batch.labels, 1),
            "top5": topk_correct(logits, batch.labels, 5),
        }


def class_losses(
    logits: Tensor, labels: Tensor, *, kind: str = "cross_entropy", weights: Tensor | None = None
) -> Tensor:
    """Loss of every clip, float32 [B].

    logits: float32 [B, C]; labels: int64 [B] or float [B, C]. bce_logit is the mean over classes.
    Weights scale the loss of a class (of mixed classes by their shares). They are not divided by
    the weights in the batch: what a clip counts must not depend on its company.
    """
    targets = labels
    if labels.ndim == 1:
        targets = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    if kind == "bce_logit":
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return (losses if weights is None else losses * weights).mean(dim=1)
    shares = targets if weights is None else targets * weights
    return -(shares * logits.log_softmax(dim=1)).sum(dim=1)


def balanced_weights(counts: Tensor) -> Tensor:
    """Weights proportional to 1 / videos of the class, whose mean over the videos is 1.

    counts: whole numbers [C]. A class without a video weighs 0: it has no loss to scale.
    """
    counts = counts.double()
    present = counts > 0
    weights = torch.where(present, 1 / counts.clamp(min=1), 0.0)
    return (weights * counts.sum() / present.sum()).float()


def pretrain(model: nn.Module, batch: Any, *, epoch: int, settings: StepSettings) -> dict:
    """Masked autoencoding; the mask of a clip depends on nothing but seed, epoch and the clip."""
    inner = unwrap(model)
    if not hasattr(inner, "random_keep") or not hasattr(inner, "mask_ratio"):
        raise UserError(
            f"TASK pretrain needs a masked autoencoder (mae_hiera_*), not {type(inner).__name__}"
        )
    keep = keep_masks(inner, batch.video_ids, batch.views, epoch=epoch, seed=settings.seed)
    clips = batch.clips.squeeze(2) if takes_images(inner) else batch.clips
    known = {}
    if isinstance(inner, MaskedAutoencoder):
        known["kept"] = num_kept(inner.num_mask_units, inner.mask_ratio)
    with settings.autocast():
        out = model(clips, keep.to(clips.device, non_blocking=True), **known)
    return {"loss": out.loss}


def keep_masks(
    model: nn.Module, video_ids: Tensor, views: Tensor, *, epoch: int, seed: int
) -> Tensor:
    """bool [B, U], True = visible: one mask per (seed, epoch, video, repeat).

    Drawn on the CPU, so that it is the same on every device, and clip by clip, so that it is the
    same in every batch and for any number of processes.
    """
    generators = [
        torch.Generator().manual_seed(stream_seed(seed, "mask", epoch, video, view))
        for video, view in zip(video_ids.tolist(), views.tolist(), strict=True)
    ]
    if isinstance(model, MaskedAutoencoder):  # one sort and one copy for all
        units = model.num_mask_units
        noise = torch.cat([torch.rand(1, units, generator=g) for g in generators])
        return keep_from_noise(noise, model.mask_ratio)
    return torch.cat([model.random_keep(1, model.mask_ratio, g) for g in generators])


STREAMS = {"weights": (), "step": ("step", "share"), "mask": ("epoch", "video", "view")}
"""What `stream_seed` is for: purpose -> the numbers that it takes. SeedSequence fills up with
zeros, so (step 5) and (step 5, share 0) would be one stream: each purpose has one count of numbers,
and its first four letters are its own."""


def stream_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A 63-bit seed for one purpose at one place; different ones give unrelated streams.

    ValueError for a purpose that `STREAMS` does not list, or with other numbers than it lists.
    """
    fits = purpose in STREAMS and len(numbers) == len(STREAMS[purpose])
    if not fits or not all(0 <= number < 1 << 32 for number in numbers):
        raise ValueError(f"stream {purpose!r} with the numbers {numbers} is not one of STREAMS")
    tag = int.from_bytes(purpose.encode(), "little")
    words = np.random.SeedSequence([seed, tag, *numbers]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


TASKS: dict[str, Step] = {"classify": classify, "pretrain": pretrain}


def get(name: str) -> Step:
    """The step of a task; UserError with the allowed names."""
    if name not in TASKS:
        raise UserError(f"unknown task {name!r} (TASK); allowed are {', '.join(sorted(TASKS))}")
    return TASKS[name]


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


@torch.no_grad()
def reconstruction(
    model: nn.Module,
    clips: Tensor,
    keep: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    most_frames: int = 8,
) -> Tensor:
    """A picture of what an autoencoder sees and paints: float RGB [3, height, width] in [0, 1].

    Three rows for every clip (input, what the encoder saw, reconstruction), frames side by side.
    clips: normalised float32 [B, 3, T, H, W]; keep: bool [B, U].
    """
    model = unwrap(model)
    if takes_images(model):
        clips = clips.squeeze(2)
    pred = model(clips, keep).pred
    painted = model.reconstruct(clips, pred, keep)
    # Of a black clip every token has mean 0 and the smallest deviation there is, 1e-3: what a
    # prediction of 1000 paints white is what was hidden.
    hidden = model.reconstruct(torch.zeros_like(clips), torch.full_like(pred, 1000.0), keep) > 0.5
    if clips.ndim == 4:
        clips, painted, hidden = (x.unsqueeze(2) for x in (clips, painted, hidden))
    shown = clips[:, :, :: clips.shape[2] // painted.shape[2]]
    grey = torch.zeros_like(shown)  # the mean colour
    rows = torch.stack([shown, torch.where(hidden, grey, shown), painted], dim=1)
    rows = rows[:, :, :, :most_frames].float().cpu()  # [B, 3 rows, 3, F, H, W]
    scale, shift = (torch.tensor(v).view(3, 1, 1, 1) for v in (std, mean))
    pixels = (rows * scale + shift).clamp(0, 1)
    return pixels.permute(2, 0, 1, 4, 3, 5).flatten(4, 5).flatten(1, 3)
