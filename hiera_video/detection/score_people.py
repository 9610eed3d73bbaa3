"""A trained model for boxes, as the demo uses it: clips and boxes in, scores out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hiera_video.classifier import load_classifier
from hiera_video.clip_spec import ClipSpec
from hiera_video.data.transforms.normalize import normalize_clips
from hiera_video.errors import RunFailed, UserError
from hiera_video.scoring import (
    choose_device,
    choose_dtype,
    require_fitting_clips,
    takes_images,
    tf32_products,
)


@dataclass(frozen=True)
class ModelChoice:
    """What a user says of the model, see `predict.Predictor.load`."""

    weights: str
    model: str | None = None
    labels: str | None = None
    device: str = "auto"
    dtype: str = "auto"


class BoxScorer:
    """Scores boxes of clips.

    Args:
        model: takes clips and boxes [N, 5], returns logits [N, C].
        spec: how its clips are sampled, cropped and normalised.
        classes: names of the outputs.
        device: "auto", "cpu", "cuda", "cuda:1".
        dtype: see `Predictor`.
        multi_label: sigmoid, not softmax.
        warn: called with each line that the user should read.

    Raises UserError for a model that takes no boxes.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: ClipSpec,
        classes: list[str],
        *,
        multi_label: bool = True,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        if "boxes" not in inspect.signature(model.forward).parameters:
            raise UserError(
                f"a {type(model).__name__} labels whole clips, not the people in them; name the "
                "weights of a model for boxes (hiera_..._16x224_ava, TASK detect), or label whole "
                "videos with hiera-video predict"
            )
        require_fitting_clips(model, spec)
        self.device = choose_device(device)
        self.dtype, self.slow = choose_dtype(dtype, self.device)
        self.model = model.to(self.device).eval()
        self.spec, self.classes, self.multi_label = spec, list(classes), multi_label
        self.name, self.weights = type(model).__name__, ""

    @classmethod
    def load(cls, choice: ModelChoice, warn: Callable[[str], None]) -> BoxScorer:
        """Build it from what a user names. Raises UserError, WeightsError."""
        # A mistyped name is an error here, before a download.
        choose_dtype(choice.dtype, choose_device(choice.device))
        found = load_classifier(
            choice.model, choice.weights, choice.labels, spec=None, model_kwargs={}, warn=warn
        )
        scorer = cls(
            found.model,
            found.spec,
            found.classes,
            multi_label=found.multi_label,
            device=choice.device,
            dtype=choice.dtype,
        )
        scorer.name, scorer.weights = found.name, found.weights
        if scorer.slow:
            warn(f"warning: {scorer.slow}")
        return scorer

    @torch.inference_mode()
    def __call__(self, clips: Tensor, boxes: Tensor) -> Tensor:
        """Score the boxes of clips in one forward pass: float32 [N, C], on the CPU.

        Args:
            clips: uint8 [K, 3, T, S, S].
            boxes: float32 [N, 5]: the clip, and x1, y1, x2, y2 as shares of its pictures.

        Raises RunFailed where that is not possible.
        """
        pixels = normalize_clips(clips.to(self.device), self.spec)
        if takes_images(self.model):
            pixels = pixels.squeeze(2)
        kind = self.device.type
        try:
            with (
                torch.autocast(kind, dtype=self.dtype, enabled=self.dtype != torch.float32),
                tf32_products(self.device),
            ):
                logits = self.model(pixels, boxes.to(self.device)).float()
        except torch.OutOfMemoryError as error:
            raise RunFailed("out of GPU memory; try --dtype bf16, or --device cpu") from error
        scores: Tensor = logits.sigmoid() if self.multi_label else logits.softmax(dim=-1)
        if not torch.isfinite(scores).all():
            raise RunFailed(
                f"the model's scores are not finite in {self.dtype}; try --dtype fp32, "
                "and if that gives the same, other weights"
            )
        return scores.cpu()
