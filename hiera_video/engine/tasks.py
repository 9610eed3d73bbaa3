"""Objectives: what a model is trained for. A batch goes in, a dictionary with its `loss` comes out.

    objective = tasks.get("classify")
    out = objective.step(model, batch, epoch=3, settings=settings)   # {"loss": ..., "top1": ...}

Another objective is one class, in any module that `--import` names:

    @OBJECTIVE_REGISTRY.register(name="count_motion")
    class CountMotion(Objective):
        metrics = ("exact",)

        def step(self, model, batch, *, epoch, settings):
            ...
            return {"loss": losses.mean(), "exact": exact.sum()}
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.batch import Batch
from hiera_video.engine.flow import scaled_flow
from hiera_video.engine.metrics import topk_correct
from hiera_video.engine.parts import Parts
from hiera_video.engine.pictures import Panels, target_rows
from hiera_video.errors import UserError
from hiera_video.models.mae import MaskedAutoencoder
from hiera_video.models.tokens import keep_from_noise, num_kept
from hiera_video.registry import OBJECTIVE_REGISTRY, UnknownNameError
from hiera_video.scoring import takes_images

PRECISION = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""TRAIN.MIXED_PRECISION -> number format of the forward pass."""


@dataclass(frozen=True)
class StepSettings:
    """What a step needs besides model and batch."""

    seed: int = 0
    """RNG_SEED of the run."""
    loss_func: str = "cross_entropy"
    """cross_entropy, or bce_logit: a yes or no for every class by itself."""
    class_weights: Tensor | None = None
    """float32 [C]: weight of the loss of each true class; None: 1 for all."""
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)
    precision: torch.dtype = torch.float32
    """Number format of the forward pass; the loss is always float32."""
    boxes_per_clip: float = 1.0
    """Boxes of a training clip on average, where clips have boxes."""

    def autocast(self) -> torch.autocast:
        """Return the autocast context of the forward pass."""
        enabled = self.precision != torch.float32
        return torch.autocast(self.device.type, dtype=self.precision, enabled=enabled)


@runtime_checkable
class Objective(Protocol):
    """What a run asks of its objective; TASK names it.

    Subclass it, so that later additions to the contract have defaults, register the class in
    OBJECTIVE_REGISTRY, and define `step`. An objective has no state: a run that is resumed, or has
    another number of processes, makes a new one.
    """

    labelled: ClassVar[bool] = False
    """Whether the loss needs labels: lists must have them, there must be two classes or more, the
    model is built with `num_classes`, and checkpoints hold the classes' names."""
    validated: ClassVar[bool] = False
    """Whether the model returns one score per class: then it is validated while it trains and
    tested afterwards. Needs `labelled`."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """What `step` returns besides `loss`."""
    compiles: ClassVar[bool] = True
    """Whether torch.compile can serve: the sizes of all inputs are those of the batch."""
    parts: ClassVar[Parts | None] = None
    """What a run builds and measures in another way than for videos with labels."""
    picture_name: ClassVar[str] = ""
    """File name of the pictures that TRAIN.PICTURE_PERIOD asks for; empty: there are none."""

    @abstractmethod
    def step(
        self, model: nn.Module, batch: Batch, *, epoch: int, settings: StepSettings
    ) -> dict[str, Tensor]:
        """Compute the loss of a batch.

        model: possibly inside DistributedDataParallel or torch.compile, see `unwrap`.
        batch: on the device, normalised; its `video_ids` and `views` are on the CPU.
        Returns `loss`, the mean over the clips, 0-d with its graph; and for each of `metrics` the
        sum over the clips, 0-d without one. What is random must be a function of
        (settings.seed, epoch, video id, view), see `stream_seed`; and nothing may wait for the
        device, as `.item()` does.
        """

    def logged(
        self, sums: Mapping[str, float], *, clips: float, multi_label: bool
    ) -> dict[str, float]:
        """Return what the records of a run say besides the loss: by default the mean over clips.

        sums: each of `metrics`, over the `clips` of a step or an epoch. multi_label: videos may
        have several labels.
        """
        return {name: sums[name] / max(clips, 1) for name in self.metrics}

    def hint(self, error: str) -> str:
        """Return what to add to the error of a model that cannot be built for this objective."""
        return ""

    def picture(self, model: nn.Module, batch: Batch, *, spec: ClipSpec, seed: int) -> Tensor:
        """Draw what the model does with clips: float RGB [3, height, width] in [0, 1].

        model: in eval mode. batch: on the device, normalised. spec: the mean and standard deviation
        that its clips are normalised by. By default the rows of `panels`.
        """
        panels = self.panels(model, batch, spec=spec, seed=seed)
        if panels is None:
            name = type(self).__name__
            raise NotImplementedError(f"{name} has a picture_name and draws no picture")
        return panels.as_picture()

    def panels(self, model: nn.Module, batch: Batch, *, spec: ClipSpec, seed: int) -> Panels | None:
        """Show what the model does with clips as clips, from which a video is made beside the
        picture. The arguments are those of `picture`. None, the default: there is only a picture.
        """
        return None


def get(name: str) -> Objective:
    """Return the objective that TASK names.

    Raises UnknownNameError with the registered names, UserError for a class that lacks a part.
    """
    try:
        objective = OBJECTIVE_REGISTRY.get(name)()
    except UnknownNameError as error:
        raise UnknownNameError(f"TASK: {error}") from None
    if not isinstance(objective, Objective):
        raise UserError(
            f"TASK: the objective {name!r} lacks a part of hiera_video.engine.tasks.Objective; "
            "let its class inherit from that one"
        )
    return objective


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel and torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


# ---- classification -----------------------------------------------------------------------------


@OBJECTIVE_REGISTRY.register(name="classify")
class Classification(Objective):
    """Class scores against labels int64 [B], or float [B, C] (mixed, smoothed or several)."""

    labelled = True
    validated = True
    metrics = ("top1", "top5")

    def step(
        self, model: nn.Module, batch: Batch, *, epoch: int, settings: StepSettings
    ) -> dict[str, Tensor]:
        """Compute the loss, and how many clips are right among the best 1 and 5 classes."""
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

    def logged(
        self, sums: Mapping[str, float], *, clips: float, multi_label: bool
    ) -> dict[str, float]:
        """Return errors in percent, as SlowFast logs them; none for several labels per video."""
        if multi_label:
            return {}
        return {f"{name}_err": 100.0 * (1 - sums[name] / max(clips, 1)) for name in self.metrics}

    def hint(self, error: str) -> str:
        """Say that an autoencoder is no classifier."""
        if "'num_classes'" in error or "'head_dropout'" in error:
            return ". TASK classify needs a classifier: a MODEL.MODEL_NAME without mae_"
        return ""


def class_losses(
    logits: Tensor, labels: Tensor, *, kind: str = "cross_entropy", weights: Tensor | None = None
) -> Tensor:
    """Compute the loss of every clip, float32 [B].

    logits: float32 [B, C]; labels: int64 [B] or float [B, C]. bce_logit is the mean over classes.
    Weights scale the loss of a class (of mixed classes by their shares). They are not divided by
    the sum of weights in the batch: the weight of a clip must not depend on its batch.
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
    """Return float32 [C] proportional to 1 / videos of the class, with mean 1 over the videos.

    counts: whole numbers [C]. A class without videos has weight 0.
    """
    counts = counts.double()
    present = counts > 0
    weights = torch.where(present, 1 / counts.clamp(min=1), 0.0)
    return (weights * counts.sum() / present.sum()).float()


# ---- masked pretraining -------------------------------------------------------------------------


class Autoencoder(Protocol):
    """What masked pretraining asks of its model, besides `model(clips, keep).loss`."""

    mask_ratio: float

    def random_keep(self, batch: int, mask_ratio: float, generator: torch.Generator) -> Tensor:
        """Draw masks: bool [batch, U], True = visible."""

    def reconstruct(self, clips: Tensor, pred: Tensor, keep: Tensor) -> Tensor:
        """Return pixels [B, 3, T, H, W]: visible ones as they are, hidden ones as predicted."""


def as_autoencoder(model: nn.Module) -> Autoencoder:
    """Return the model inside its wrappers; UserError where it is no masked autoencoder."""
    inner = unwrap(model)
    if not hasattr(inner, "random_keep") or not hasattr(inner, "mask_ratio"):
        raise UserError(
            f"TASK pretrain needs a masked autoencoder (mae_hiera_*), not {type(inner).__name__}"
        )
    return cast(Autoencoder, inner)


@OBJECTIVE_REGISTRY.register(name="pretrain")
class MaskedPretraining(Objective):
    """Masked autoencoding; the mask of a clip depends on seed, epoch and the clip alone."""

    picture_name = "reconstruction"

    def step(
        self, model: nn.Module, batch: Batch, *, epoch: int, settings: StepSettings
    ) -> dict[str, Tensor]:
        """Compute the loss of the reconstruction."""
        inner = as_autoencoder(model)
        keep = keep_masks(inner, batch.video_ids, batch.views, epoch=epoch, seed=settings.seed)
        clips = batch.clips.squeeze(2) if takes_images(unwrap(model)) else batch.clips
        known: dict[str, Any] = {}
        if isinstance(inner, MaskedAutoencoder):
            known["kept"] = num_kept(inner.num_mask_units, inner.mask_ratio)
            if inner.target.needs_truth:
                known["truth"] = true_flow(batch)
        with settings.autocast():
            out = model(clips, keep.to(clips.device, non_blocking=True), **known)
        return {"loss": out.loss}

    def hint(self, error: str) -> str:
        """Say that a classifier is no autoencoder."""
        if "'mask_ratio'" in error:
            return ". TASK pretrain needs a masked autoencoder: MODEL.MODEL_NAME mae_hiera_..."
        return ""

    def panels(self, model: nn.Module, batch: Batch, *, spec: ClipSpec, seed: int) -> Panels | None:
        """Show input, what the encoder saw and the reconstruction, with the masks of epoch 0; for
        another target than pixels that target before its prediction."""
        inner = as_autoencoder(model)
        keep = keep_masks(inner, batch.video_ids, batch.views, epoch=0, seed=seed)
        clips, truth = batch.clips, None
        if isinstance(inner, MaskedAutoencoder) and inner.target.needs_truth:
            truth = true_flow(batch)
        keep = keep.to(clips.device)
        return reconstructed(model, clips, keep, mean=spec.mean, std=spec.std, truth=truth)


def true_flow(batch: Batch) -> Tensor:
    """Return the flow of clips as the target `flow` predicts it; UserError where it is unknown."""
    if batch.truth is None:
        raise UserError(
            "HIERA.TARGET flow needs clips with their truth, which generated ones have: set "
            "TRAIN.DATASET body_motion or camera_flow"
        )
    return scaled_flow(batch.truth)


def keep_masks(
    model: Autoencoder, video_ids: Tensor, views: Tensor, *, epoch: int, seed: int
) -> Tensor:
    """Draw one mask per (seed, epoch, video, view): bool [B, U], True = visible.

    Masks are drawn on the CPU, so that they are the same on every device, and clip by clip, so that
    they are the same in every batch and for any number of processes.
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


@torch.no_grad()
def reconstructed(
    model: nn.Module,
    clips: Tensor,
    keep: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    truth: Tensor | None = None,
) -> Panels:
    """Show input, what the encoder saw and reconstruction; another target than pixels is shown
    before its prediction.

    clips: normalised float32 [B, 3, T, H, W]; keep: bool [B, U]; truth: as `true_flow`, if the
    model's target needs it.
    """
    inner = as_autoencoder(model)
    if takes_images(unwrap(model)):
        clips = clips.squeeze(2)
    scale, shift = (clips.new_tensor(v).view(3, 1, 1, 1) for v in (std, mean))
    names: tuple[str, ...] = ("input", "visible part", "reconstruction")
    if isinstance(inner, MaskedAutoencoder) and inner.target.name != "pixels":
        hidden, *drawn = target_rows(inner, clips, keep, truth)
        names = ("input", "visible part", f"target ({inner.target.name})", "prediction")
    else:
        painted, hidden = painted_pixels(model, clips, keep)
        drawn = [painted * scale + shift]
    shown = clips if clips.ndim == 5 else clips.unsqueeze(2)
    shown = shown[:, :, :: shown.shape[2] // hidden.shape[2]]
    grey = torch.zeros_like(shown)  # 0 is the mean colour
    seen = [x * scale + shift for x in (shown, torch.where(hidden, grey, shown))]
    return Panels(names, torch.stack([*seen, *drawn], dim=1).float().cpu().clamp(0, 1))


def painted_pixels(model: nn.Module, clips: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Return pixels with the hidden ones as predicted, normalised [B, 3, T', H, W], and which ones
    those are, bool of the same shape."""
    inner = as_autoencoder(model)
    pred = unwrap(model)(clips, keep).pred
    painted = inner.reconstruct(clips, pred, keep)
    # In a black clip every token has mean 0 and the smallest possible deviation, 1e-3: a prediction
    # of 1000 makes the hidden pixels white.
    hidden = inner.reconstruct(torch.zeros_like(clips), torch.full_like(pred, 1000.0), keep) > 0.5
    if painted.ndim == 4:
        painted, hidden = painted.unsqueeze(2), hidden.unsqueeze(2)
    return painted, hidden


# ---- random streams -----------------------------------------------------------------------------

STREAMS: dict[str, tuple[str, ...]] = {
    "weights": (),
    "step": ("step", "share"),
    "mask": ("epoch", "video", "view"),
}
"""Purposes of `stream_seed` -> the numbers that each takes. SeedSequence pads with zeros, so
(step 5) and (step 5, share 0) would be the same stream: each purpose always takes the same count of
numbers, and no two purposes begin with the same four letters."""


def stream_seed(seed: int, purpose: str, *numbers: int) -> int:
    """Return a 63-bit seed for one purpose and its numbers; others give unrelated streams.

    Raises ValueError for a purpose that `STREAMS` does not list, or for another count of numbers.
    """
    fits = purpose in STREAMS and len(numbers) == len(STREAMS[purpose])
    if not fits or not all(0 <= number < 1 << 32 for number in numbers):
        raise ValueError(f"stream {purpose!r} with the numbers {numbers} is not one of STREAMS")
    tag = int.from_bytes(purpose.encode(), "little")
    words = np.random.SeedSequence([seed, tag, *numbers]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))
