"""TASK detect: a model learns what is done in each box of a clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from hiera_video.data.batch import Batch
from hiera_video.data.boxes import BatchBoxes
from hiera_video.detection.build import DetectionParts
from hiera_video.engine.tasks import Objective, StepSettings, class_losses, unwrap
from hiera_video.errors import UserError
from hiera_video.models.contract import takes_boxes
from hiera_video.registry import OBJECTIVE_REGISTRY
from hiera_video.scoring import takes_images


@OBJECTIVE_REGISTRY.register(name="detect")
class Detection(Objective):
    """Scores of boxes against the actions seen in them.

    MODEL.LOSS_FUNC bce_logit is what SlowFast does; cross_entropy is what the paper's Table 13
    says: the actions of a box then share the weight 1, and a box without one has no loss.
    """

    labelled = True
    validated = True
    metrics = ("boxes", "top1")
    compiles = False  # the number of boxes changes from batch to batch
    parts = DetectionParts()

    def step(
        self, model: nn.Module, batch: Batch, *, epoch: int, settings: StepSettings
    ) -> dict[str, Tensor]:
        """Compute the loss, the number of boxes, and in how many of them the best class is seen."""
        require_detector(model)
        clips = pixels(model, batch)
        boxes = batch.boxes or no_boxes(clips, outputs(model))
        with settings.autocast():
            logits = model(clips, boxes.for_model()).float()
        labels = boxes.labels
        if settings.loss_func == "cross_entropy":
            labels = labels / labels.sum(dim=1, keepdim=True).clamp(min=1)
        losses = class_losses(logits, labels, kind=settings.loss_func)
        # A sum over a fixed number, not the mean over the boxes of this batch: a box has the same
        # weight in whichever part of a step, and on whichever process, its clip is.
        loss = losses.sum() / (settings.boxes_per_clip * len(clips))
        with torch.no_grad():
            seen = boxes.labels.gather(1, logits.argmax(dim=1, keepdim=True))
            return {
                "loss": loss,
                "boxes": torch.full_like(loss, len(boxes.rows)),
                "top1": (seen > 0).sum().to(loss),
            }

    def logged(
        self, sums: Mapping[str, float], *, clips: float, multi_label: bool
    ) -> dict[str, float]:
        """Return boxes of a clip, and in how many percent of them the best class is not seen."""
        boxes = sums["boxes"]
        return {
            "boxes": boxes / max(clips, 1),
            "top1_err": 100.0 * (1 - sums["top1"] / max(boxes, 1)),
        }

    def hint(self, error: str) -> str:
        """Say that other models score whole clips."""
        if "'roi_resolution'" in error or "'aligned'" in error:
            return ". TASK detect needs a model for boxes: MODEL.MODEL_NAME hiera_..._16x224_ava"
        return ""


def require_detector(model: nn.Module) -> None:
    """Raise UserError for a model that does not take boxes."""
    inner = unwrap(model)
    if not takes_boxes(inner):
        raise UserError(
            f"TASK detect needs a model that takes boxes (hiera_..._16x224_ava), not "
            f"{type(inner).__name__}"
        )


def pixels(model: nn.Module, batch: Batch) -> Tensor:
    """Return the clips of a batch as the model takes them."""
    return batch.clips.squeeze(2) if takes_images(unwrap(model)) else batch.clips


def outputs(model: nn.Module) -> int:
    """Return the number of outputs of a model for boxes."""
    return cast(int, cast(Any, unwrap(model)).num_classes)


def no_boxes(clips: Tensor, classes: int) -> BatchBoxes:
    """Return the boxes of clips that have none."""
    numbers = torch.zeros(0, dtype=torch.int64, device=clips.device)
    return BatchBoxes(
        numbers,
        torch.zeros(0, 4, device=clips.device),
        torch.zeros(0, classes, device=clips.device),
        numbers,
    )
