"""Dense motion prediction: Hiera trained to say, for every place of a clip, what moves how.

Linear heads on the maps of several stages predict numbers for a grid of cells: optical flow, what
of it is not the camera's, and what the body there does (`data/synthetic/body_motion/truth.py`).
Generated clips carry that truth. Not in the paper, whose models have real video by the million;
for a small model on a few hundred clips it is the better start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from hiera_video.errors import UserError
from hiera_video.models.encoder_model import EncoderModel
from hiera_video.models.hiera import SIZES, VIDEO, HieraEncoder
from hiera_video.models.layers import LAYER_NORM_EPS
from hiera_video.registry import MODEL_REGISTRY


class MotionPredictor(EncoderModel):
    """An encoder with a linear head on some of its stages.

    Args:
        predict_stages: the stages (0-based) whose maps are read.
        channels: how many numbers each of them predicts for every cell.
        grid: cells along each side of the picture.
        kwargs: arguments of the encoder, see `HieraEncoder`.

    The state dict has the encoder's published keys, so a classifier can start from it.

    Raises:
        UserError: settings do not fit each other.
    """

    kwargs_of: type[HieraEncoder] = HieraEncoder
    """Class of the encoder, which takes the `kwargs`."""

    def __init__(
        self,
        *args: Any,
        predict_stages: Sequence[int] = (1, 2, 3),
        channels: Sequence[int] = (2, 15, 15),
        grid: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.set_encoder(self.kwargs_of(*args, **kwargs))
        self.predict_stages, self.channels, self.grid = (
            tuple(predict_stages),
            tuple(channels),
            grid,
        )
        if len(self.predict_stages) != len(self.channels):
            raise UserError(
                f"predict_stages={self.predict_stages} and channels={self.channels} must have one "
                "length"
            )
        self.decoder_norms, self.decoder_heads = nn.ModuleList(), nn.ModuleList()
        for stage, count in zip(self.predict_stages, self.channels, strict=True):
            width = self.encoder.stage_dims[stage]
            self.decoder_norms.append(nn.LayerNorm(width, eps=LAYER_NORM_EPS))
            self.decoder_heads.append(nn.Linear(width, count * math.prod(self._cells(stage))))
        self.reset_parameters()

    def _cells(self, stage: int) -> tuple[int, int]:
        """Cells of the grid in one token of a stage, rows and columns."""
        layout = self.encoder.layout
        rows, columns = layout.grid_shape(self.encoder.stage_pools(stage))[-2:]
        if self.grid % rows or self.grid % columns:
            raise UserError(
                f"grid={self.grid} must be a multiple of the {rows} x {columns} tokens of stage "
                f"{stage}"
            )
        return self.grid // rows, self.grid // columns

    def reset_parameters(self) -> None:
        """Initialise as a classifier; the first prediction is close to zero."""
        self.encoder.reset_parameters()
        for head in self.decoder_heads:
            assert isinstance(head, nn.Linear)
            nn.init.normal_(head.weight, std=0.002)
            nn.init.zeros_(head.bias)

    # ---- forward ------------------------------------------------------------------------

    def forward(self, clips: Tensor) -> list[Tensor]:
        """Normalised pixels [B, C_in, *input_size] -> for each of `predict_stages` its numbers,
        [B, channels, T', grid, grid]; T' is the tokens in time."""
        maps = self.encoder.stage_features(clips)
        predictions = []
        heads = zip(self.predict_stages, self.decoder_norms, self.decoder_heads, strict=True)
        for stage, norm, head in heads:
            rows, columns = self._cells(stage)
            cells = head(norm(maps[stage])).unflatten(-1, (-1, rows, columns))  # B T h w K r c
            predictions.append(cells.permute(0, 4, 1, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4))
        return predictions


def register_variant(size: str) -> None:
    """Register `motion_hiera_{size}_16x224`."""

    def video(**overrides: Any) -> MotionPredictor:
        return MotionPredictor(**{**SIZES[size], **VIDEO, "grid": 56, **overrides})

    video.__doc__ = f"Dense motion prediction by Hiera-{size} for 16x224x224 clips."
    MODEL_REGISTRY.register(name=f"motion_hiera_{size}_16x224")(video)


for _size in SIZES:
    register_variant(_size)
