"""The objective `motion`: say for every place of a generated clip what moves how."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.batch import Batch
from hiera_video.data.synthetic.body_motion.truth import (
    DOING_SCALE,
    FIGURE_SHARE,
    FLOW_CHANNELS,
)
from hiera_video.engine.flow import flow_colours, per_channel, scaled_flow
from hiera_video.engine.pictures import Panels
from hiera_video.engine.tasks import Objective, StepSettings, unwrap
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

    picture_name = "motion"
    metrics = ("flow_loss", "flow_zero", "doing_loss", "doing_zero")

    def step(
        self, model: nn.Module, batch: Batch, *, epoch: int, settings: StepSettings
    ) -> dict[str, Tensor]:
        """Compute the loss; and of the last stage the loss of both kinds of numbers, and what it is
        for a prediction of zero."""
        if batch.truth is None:
            raise UserError(
                "TASK motion needs clips with their truth, which generated ones have: set "
                "TRAIN.DATASET body_motion or camera_flow"
            )
        if not hasattr(unwrap(model), "predict_stages"):
            raise UserError(f"TASK motion needs a motion_hiera_* model, not {type(model).__name__}")
        with settings.autocast():
            predictions = model(batch.clips)
        wanted, weights = targets(batch.truth)
        losses = [errors(given, wanted, weights).mean() for given in predictions]
        out = {"loss": torch.stack(losses).mean()}
        with torch.no_grad():
            last = predictions[-1]
            found = errors(last, wanted, weights)
            nothing = errors(torch.zeros_like(last), wanted, weights)
            parts = {"flow": slice(0, FLOW_CHANNELS), "doing": slice(FLOW_CHANNELS + 1, None)}
            for name, part in parts.items():
                out[f"{name}_loss"] = len(wanted) * found[:, part].mean()
                out[f"{name}_zero"] = len(wanted) * nothing[:, part].mean()
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

    @torch.no_grad()
    def panels(self, model: nn.Module, batch: Batch, *, spec: ClipSpec, seed: int) -> Panels | None:
        """Show of each clip every second frame, the true flow and the predicted one: the colour is
        the direction, its strength the speed."""
        assert batch.truth is not None  # `step` has come before
        predicted = model(batch.clips)[-1][:, :2].float().cpu()
        wanted = targets(batch.truth)[0][:, :2].cpu()
        frames = batch.clips[:, :, :: batch.clips.shape[2] // wanted.shape[2]].float().cpu()
        mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (spec.mean, spec.std))
        side = frames.shape[-1]
        shown = [(frames * std + mean).clamp(0, 1), flow_colours(wanted), flow_colours(predicted)]
        rows = torch.stack([F.interpolate(x, (x.shape[2], side, side)) for x in shown], dim=1)
        return Panels(("input", "true flow", "predicted flow"), rows)


def targets(truth: Tensor) -> tuple[Tensor, Tensor]:
    """What to predict from the truth of clips, float32 [B, K, T', G, G], and the weights of the
    errors, of the same shape.

    Displacements are compressed and in units of their usual spread. What a figure does is asked
    only where there is one: elsewhere, which is nearly everywhere, the answer would be zero.
    """
    cover = truth[:, FLOW_CHANNELS : FLOW_CHANNELS + 1]
    doing = truth[:, FLOW_CHANNELS + 1 :] / cover.clamp(min=0.05)
    doing = doing / per_channel(DOING_SCALE, truth)
    wanted = torch.cat([scaled_flow(truth), 2 * cover, doing], dim=1)
    weights = torch.ones_like(wanted)
    weights[:, FLOW_CHANNELS + 1 :] = cover / FIGURE_SHARE
    return wanted, weights


def errors(given: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """Weighted smooth L1 errors of a prediction, float32 [B, k, T', G, G]; k may be fewer than the
    numbers that are known."""
    count = given.shape[1]
    found = F.smooth_l1_loss(given.float(), wanted[:, :count], beta=BETA, reduction="none")
    return found * weights[:, :count]
