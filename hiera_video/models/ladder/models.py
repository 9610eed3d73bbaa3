"""The models of the ladder: Hiera with the parts of MViTv2 that an `AblationConfig` keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video.errors import UserError
from hiera_video.models.hiera import INIT_STD, Hiera, HieraEncoder, positions_parameter
from hiera_video.models.ladder.ablation import AblationConfig, as_ablation, require_mask_units
from hiera_video.models.ladder.layouts import LAYOUTS
from hiera_video.models.ladder.pooling import BlockPlace, WindowConv, make_block
from hiera_video.models.layers import Block, BlockConfig
from hiera_video.models.mae import MaskedAutoencoder


class LadderEncoder(HieraEncoder):
    """`HieraEncoder` as a step of the ladder.

    Args:
        ablation: what the model still has of MViTv2: a whole config, or a mapping of the choices
            that differ from Hiera.
        kwargs: see `HieraEncoder`.
    """

    embedding_names = (*HieraEncoder.embedding_names, "cls_token")
    cls_token: nn.Parameter

    def __init__(
        self,
        *args: Any,
        ablation: AblationConfig | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # set before the parts are built, which depend on it
        self.ablation = as_ablation(ablation)
        self.layout_class = LAYOUTS[self.ablation.tokens]
        super().__init__(*args, **kwargs)

    # ---- building -----------------------------------------------------------------------

    def make_blocks(self, plan: Sequence[BlockConfig]) -> list[Block]:
        """Build the blocks of the step from the settings of Hiera's.

        Raises:
            UserError: `kv_stride` has not one stride per stage, or does not fit the units.
        """
        kv_strides = self.ablation.kv_stride or (1,) * len(self.stages)
        if len(kv_strides) != len(self.stages):
            raise UserError(
                f"ablation: kv_stride={kv_strides} must have one stride per stage, "
                f"{len(self.stages)}"
            )
        stages = [stage for stage, depth in enumerate(self.stages) for _ in range(depth)]
        plan = [self._attention_config(config) for config in plan]
        blocks = []
        for i, (stage, config) in enumerate(zip(stages, plan, strict=True)):
            place = BlockPlace(
                self.layout,
                pools_before=self.stage_pools(stage) - (config.q_pool > 1),
                kv_stride=kv_strides[stage],
                dim_out=config.dim_out if i + 1 == len(plan) else plan[i + 1].dim,
            )
            blocks.append(make_block(self.ablation, config, place))
        return blocks

    def _attention_config(self, config: BlockConfig) -> BlockConfig:
        """Return the settings of a block up to its attention.

        If MLPs widen, the width has doubled before the first attention of a stage.
        """
        dim = config.dim if self.ablation.expand == "attn" else config.dim_out
        # without mask units all attention is global
        local = config.local and self.ablation.unit_attn
        return dataclasses.replace(config, dim=dim, local=local)

    def make_positions(self, channels: int) -> None:
        """Add the parameters of absolute positions and of a class token, if the step has them."""
        if self.ablation.cls_token:
            self.cls_token = positions_parameter(1, 1, channels)
        if self.ablation.positions == "absolute":
            super().make_positions(channels)
        elif self.abs_win:
            raise UserError("abs_win=True needs absolute positions; this model's are relative")

    @staticmethod
    def init_module(module: nn.Module, *, bias: float) -> None:
        """Initialise one module, a pooling convolution like the other convolutions."""
        if isinstance(module, WindowConv):
            nn.init.normal_(module.weight, std=INIT_STD)
        HieraEncoder.init_module(module, bias=bias)

    def is_position(self, name: str) -> bool:
        """Whether a parameter is a position embedding, absolute or relative, or the class token."""
        return name.startswith(("pos_embed", "cls_token")) or ".rel_pos_" in name

    # ---- forward ------------------------------------------------------------------------

    def embed(self, clips: Tensor, keep: Tensor | None = None, kept: int | None = None) -> Tensor:
        """Pixels -> first-stage tokens, see `HieraEncoder.embed`.

        Raises UserError also for a mask given to a model without mask units.
        """
        if keep is not None:
            require_mask_units(self.ablation)
        return super().embed(clips, keep, kept)

    def add_positions(self, tokens: Tensor) -> Tensor:
        """Add absolute positions and a class token to all tokens, as far as the step has them."""
        if self.ablation.positions == "absolute":
            tokens = super().add_positions(tokens)
        if self.ablation.cls_token:
            first = self.cls_token.expand(tokens.shape[0], 1, 1, -1)
            tokens = torch.cat((first, tokens), dim=2)
        return tokens

    def without_cls(self, tokens: Tensor) -> Tensor:
        """Remove the class token, if there is one, from tokens [B, U, n, C]."""
        return tokens[:, :, 1:] if self.ablation.cls_token else tokens

    def stage_map(self, tokens: Tensor, stage: int, *, dense: bool) -> Tensor:
        """Tokens at the end of `stage` -> feature map, without the class token."""
        return super().stage_map(self.without_cls(tokens), stage, dense=dense)

    def random_keep(
        self, batch: int, mask_ratio: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw a keep mask bool [B, U]; UserError for a model without mask units."""
        require_mask_units(self.ablation)
        return super().random_keep(batch, mask_ratio, generator)


class LadderClassifier(LadderEncoder, Hiera):
    """`Hiera` as a step of the ladder; arguments as `LadderEncoder` and `Hiera`."""

    def forward_head(self, features: Tensor) -> Tensor:
        """Features of `forward_features` -> logits [B, num_classes]."""
        if self.readout is not None:
            return super().forward_head(features)
        tokens = features
        if self.ablation.final == "mean_norm":
            return super().forward_head(self.without_cls(tokens))
        if self.ablation.final == "cls":
            pooled = self.norm(tokens[:, 0, 0])
        else:
            pooled = self.norm(self.without_cls(tokens)).mean(dim=(1, 2))
        logits: Tensor = self.head(pooled)
        return logits


class LadderAutoencoder(MaskedAutoencoder):
    """`MaskedAutoencoder` of a step of the ladder; arguments as `LadderEncoder`.

    Raises:
        UserError: the step has no mask units; or as `MaskedAutoencoder`.
    """

    kwargs_of = LadderEncoder

    def __init__(
        self,
        *args: Any,
        ablation: AblationConfig | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        ablation = as_ablation(ablation)
        require_mask_units(ablation)
        super().__init__(*args, ablation=ablation, **kwargs)


def build_classifier(ablation: AblationConfig, **arguments: Any) -> Hiera:
    """Build the classifier of a step: Hiera itself where nothing is left of MViTv2."""
    if ablation == AblationConfig():
        return Hiera(**arguments)
    return LadderClassifier(ablation=ablation, **arguments)


def build_autoencoder(ablation: AblationConfig, **arguments: Any) -> MaskedAutoencoder:
    """Build the autoencoder of a step: Hiera's where nothing is left of MViTv2."""
    if ablation == AblationConfig():
        return MaskedAutoencoder(**arguments)
    return LadderAutoencoder(ablation=ablation, **arguments)
