"""The objective `motion`: say for every place of a generated clip what moves how."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.data.batch import Batch
from hiera_video.data.synthetic.body_motion.truth import FLOW_CHANNELS, TRUTH_SCALE
from hiera_video.engine.tasks import Objective, StepSettings
from hiera_video.errors import UserError
from hiera_video.registry import OBJECTIVE_REGISTRY

BETA = 0.5
"""Where the smooth L1 loss turns from squares to absolute values."""


@OBJECTIVE_REGISTRY.register(name="motion")
class MotionPrediction(Objective):
    """Dense motion: smooth L1 between predicted and true numbers, equally over stages and numbers.

    Displacements are compressed (asinh of 1/64 of the view's side) and everything is scaled to unit
    spread, so that neither the fast nor the common decides alone.
    """

    metrics = ("flow_loss", "flow_zero", "doing_loss", "doing_zero")

    def step(
        self, model: nn.Module, batch: Batch, *, epoch: int, settings: StepSettings
    ) -> dict[str, Tensor]:
        """Compute the loss; and of the last stage the loss of both kinds of numbers, and what it is
        for a prediction of zero."""
        if batch.truth is None:
            raise UserError(
                "TASK motion needs clips with their truth, which generated ones have: set "
                "TRAIN.DATASET body_motion"
            )
        with settings.autocast():
            predictions = model(batch.clips)
        truth = scaled_truth(batch.truth)
        losses = [
            F.smooth_l1_loss(p.float(), truth[:, : p.shape[1]], beta=BETA) for p in predictions
        ]
        out = {"loss": torch.stack(losses).mean()}
        last = predictions[-1].detach().float()
        parts = {"flow": slice(0, FLOW_CHANNELS), "doing": slice(FLOW_CHANNELS, None)}
        for name, part in parts.items():
            given, wanted = last[:, part], truth[:, part]
            loss = F.smooth_l1_loss(given, wanted, beta=BETA)
            zero = F.smooth_l1_loss(torch.zeros_like(wanted), wanted, beta=BETA)
            out[f"{name}_loss"], out[f"{name}_zero"] = len(truth) * loss, len(truth) * zero
        return out

    def logged(
        self, sums: Mapping[str, float], *, clips: float, multi_label: bool
    ) -> dict[str, float]:
        """Return the losses of both kinds, relative to a prediction of zero."""
        return {
            f"{name}_rel": sums[f"{name}_loss"] / max(sums[f"{name}_zero"], 1e-12)
            for name in ("flow", "doing")
        }

    def hint(self, error: str) -> str:
        """Say which models predict motion."""
        return ". TASK motion needs a model that predicts motion: MODEL.MODEL_NAME motion_hiera_..."


def scaled_truth(truth: Tensor) -> Tensor:
    """The truth of clips, float32 [B, K, T', G, G], with displacements compressed, in units of its
    usual spread."""
    flow, doing = truth[:, :FLOW_CHANNELS].asinh(), truth[:, FLOW_CHANNELS:]
    scale = truth.new_tensor(TRUTH_SCALE).view(1, -1, 1, 1, 1)
    return torch.cat([flow, doing], dim=1) / scale
