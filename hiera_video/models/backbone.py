"""A Hiera as the backbone of another library's network: the feature maps of chosen stages.

    body = Backbone(build_model("hiera_base_224", pretrained="mae_in1k_ft_in1k"))
    maps = body(images)                      # a list, stride 4 first, [B, C, rows, columns] each
    body.feature_info.channels()             # [96, 192, 384, 768]

It is what timm calls `features_only=True`, with timm's names, for clips too.

Shapes: B clips, T frames, T' tokens in time, C channels of a stage, H and W pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hiera_video.errors import UserError
from hiera_video.models.encoder_model import EncoderModel
from hiera_video.models.hiera import Hiera, HieraEncoder

TIMES = {
    "keep": "[B, C, T', rows, columns]",
    "mean": "[B, C, rows, columns], the mean over time",
    "fold": "[B * T', C, rows, columns], the maps of a clip one after the other",
}
"""What can be done with the time of a clip -> the shape of a map."""


@dataclass(frozen=True)
class StageInfo:
    """What is known of the map of a stage."""

    num_chs: int
    """C, its channels."""
    reduction: int
    """Pixels of the input from a column to the next (and from a row to the next)."""
    time_reduction: int
    """Frames of the input from a map to the next in time; 1 for images."""
    module: str
    """Name of the last block of the stage."""


class FeatureInfo:
    """What is known of the maps that a `Backbone` returns, in their order, as timm says it."""

    def __init__(self, stages: Sequence[StageInfo], out_indices: Sequence[int]) -> None:
        self.stages = tuple(stages)
        self.out_indices = tuple(out_indices)

    def __len__(self) -> int:
        return len(self.stages)

    def __getitem__(self, place: int) -> StageInfo:
        return self.stages[place]

    def channels(self) -> list[int]:
        """Return the channels of each map."""
        return [stage.num_chs for stage in self.stages]

    def reduction(self) -> list[int]:
        """Return the stride of each map in space, in pixels of the input."""
        return [stage.reduction for stage in self.stages]

    def time_reduction(self) -> list[int]:
        """Return the stride of each map in time, in frames of the input."""
        return [stage.time_reduction for stage in self.stages]

    def module_name(self) -> list[str]:
        """Return the name of the block that each map comes from."""
        return [stage.module for stage in self.stages]


class Backbone(EncoderModel):
    """The feature maps of chosen stages, channels first, as detectors and segmenters take them.

    There is no norm after a stage: the maps are those of `stage_features`.

    Args:
        model: a Hiera, a step of the ladder, or what was pretrained with one inside. The backbone
            takes it over: head and norm, a decoder, and the blocks after the last chosen stage are
            removed from it, so that every parameter gets a gradient.
        out_indices: the stages to return, ascending, counted from 0; None: all.
        time: what becomes of the time of a clip, one of `TIMES`. Images have none, and any of them
            gives [B, C, rows, columns].

    Raises:
        UserError: a model without stages, or a wrong argument; the message says what is allowed.
    """

    def __init__(
        self, model: nn.Module, *, out_indices: Sequence[int] | None = None, time: str = "keep"
    ) -> None:
        super().__init__()
        encoder = _encoder_in(model)
        count = len(encoder.stages)
        chosen = tuple(range(count) if out_indices is None else out_indices)
        _check(chosen, count, time)
        _remove_the_rest(encoder, last=chosen[-1])
        self.set_encoder(encoder)
        self.time = time
        self.feature_info = FeatureInfo([_info(encoder, stage) for stage in chosen], chosen)

    def forward(self, clips: Tensor) -> list[Tensor]:
        """Pixels [B, C_in, *input_size] -> the map of each chosen stage, see `TIMES`.

        Raises UserError where the model cannot take `clips`.
        """
        encoder, chosen = self.encoder, self.feature_info.out_indices
        tokens = encoder.forward_stages(encoder.embed(clips), last=chosen[-1])
        return [self._map(encoder.stage_map(tokens[i], i, dense=True)) for i in chosen]

    def _map(self, stage: Tensor) -> Tensor:
        """[B, T', rows, columns, C] or [B, rows, columns, C] -> channels first."""
        if stage.ndim == 5 and self.time == "mean":
            stage = stage.mean(dim=1)
        if stage.ndim == 5 and self.time == "fold":
            stage = stage.flatten(0, 1)
        # contiguous: convolutions come next, and on views they can be wrong (`layers.convolve`)
        return stage.movedim(-1, 1).contiguous()


def _encoder_in(model: nn.Module) -> HieraEncoder:
    """Return the Hiera that a model is or has; UserError where there is none."""
    inner: Any = getattr(model, "encoder", model)
    if not isinstance(inner, HieraEncoder):
        raise UserError(
            f"a backbone needs the stages of a Hiera, and {type(model).__name__} has none: build a "
            "hiera_*, ladder_*, mvitv2_* or mae_hiera_* model"
        )
    return inner


def _check(chosen: tuple[Any, ...], count: int, time: str) -> None:
    """Raise UserError for stages that do not exist, or an unknown word for the time."""
    known = all(isinstance(stage, int) and 0 <= stage < count for stage in chosen)
    ascending = known and all(a < b for a, b in itertools.pairwise(chosen))
    if not chosen or not ascending:
        raise UserError(
            f"out_indices={chosen} must be ascending numbers of stages, 0 to {count - 1}, at least "
            "one; None for all"
        )
    if time not in TIMES:
        allowed = "; ".join(f"{word!r}: {shape}" for word, shape in TIMES.items())
        raise UserError(f"time={time!r} must be one of {allowed}")


def _remove_the_rest(encoder: HieraEncoder, *, last: int) -> None:
    """Remove what the maps up to stage `last` do not need."""
    encoder.blocks = encoder.blocks[: encoder.stage_ends[last] + 1]
    if isinstance(encoder, Hiera):
        encoder.head, encoder.norm, encoder.num_classes = nn.Identity(), nn.Identity(), 0
        if encoder.readout is not None:
            encoder.readout = None
            encoder.blocks.requires_grad_(True)  # it had frozen what it did not read


def _info(encoder: HieraEncoder, stage: int) -> StageInfo:
    """Collect what is known of the map of a stage."""
    pools, patch = encoder.stage_pools(stage), encoder.patch_embed.stride
    strides = [p * q**pools for p, q in zip(patch, encoder.layout.q_stride, strict=True)]
    return StageInfo(
        num_chs=encoder.stage_dims[stage],
        reduction=strides[-1],
        time_reduction=strides[0] if len(strides) == 3 else 1,
        module=f"encoder.blocks.{encoder.stage_ends[stage]}",
    )
