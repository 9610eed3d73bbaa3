"""Masked autoencoder: Hiera pretrained by deleting mask units and predicting what was there.

The encoder sees only the kept units (a tenth of a clip). The outputs of its stages are fused at
the final resolution. A small transformer over all units, with a learned token in place of each
deleted one, predicts the pixels that were deleted, and the loss is computed on those alone (paper,
section 3.1 and Table 11). Other targets than pixels are in `targets.py`.

Tokens stay unit-major in the decoder too: its attention is global, so their order does not matter
as long as the positions have the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hiera_video.errors import UserError
from hiera_video.models.encoder_model import EncoderModel
from hiera_video.models.hiera import (
    INIT_STD,
    SIZES,
    VIDEO,
    HieraEncoder,
    init_contrast,
    init_layer,
)
from hiera_video.models.inputs import check_clips
from hiera_video.models.layers import CONVOLUTIONS, LAYER_NORM_EPS, Block, BlockConfig
from hiera_video.models.targets import TokenGrid, build_target
from hiera_video.models.tokens import (
    count_kept,
    num_kept,
    pick_units,
    raster_to_units,
    unit_ids,
)
from hiera_video.registry import MODEL_REGISTRY


class MAEOutput(NamedTuple):
    """Output of a masked autoencoder."""

    loss: Tensor
    """Mean squared error on the targets (normalised pixels) of the deleted tokens; a float32
    scalar."""
    pred: Tensor
    """Predictions [B, D, n, P] of the decoded units: units in raster order, tokens of a unit in
    raster order, P values of one token (see `targets.TokenGrid.split`). D is U - k, all deleted
    units, or fewer with `decode_ratio` below 1."""
    keep: Tensor
    """The mask used, bool [B, U], True = visible."""
    decoded: Tensor | None = None
    """The units that `pred` and the loss cover, bool [B, U]; None: all deleted units."""


class MaskedAutoencoder(EncoderModel):
    """Encoder, multi-scale fusion, decoder and loss.

    Args:
        decoder_embed_dim: width of the decoder.
        decoder_depth: its blocks.
        decoder_num_heads: its heads. The published code builds 16 for every model; the paper's
            video recipe says 8 (Table 11). Weights fit both.
        mask_ratio: share of the units deleted when `forward` draws the mask.
        decode_ratio: share of the deleted units that a training step decodes and computes its loss
            on, drawn anew in each step. Values below 1 are not in the paper: the decoder, more than
            half of a step, costs less and sees fewer mask tokens. In evaluation all are decoded.
        target: what is predicted: `pixels`, `hog` or `flow`, see `targets.py`. The flow is known of
            generated clips only.
        kwargs: arguments of the encoder, see `HieraEncoder`.

    The state dict has the published flat keys (`blocks.0...`, not `encoder.blocks.0...`).

    Raises:
        UserError: settings do not fit each other.
    """

    kwargs_of: type[HieraEncoder] = HieraEncoder
    """Class of the encoder, which takes the `kwargs`."""

    def __init__(
        self,
        *args: Any,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        mask_ratio: float = 0.6,
        decode_ratio: float = 1.0,
        target: str = "pixels",
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if decoder_embed_dim % decoder_num_heads:
            raise UserError(
                f"decoder_embed_dim={decoder_embed_dim} must be a multiple of "
                f"decoder_num_heads={decoder_num_heads}"
            )
        if not 0.0 < decode_ratio <= 1.0:
            raise UserError(f"decode_ratio={decode_ratio!r} must be above 0 and at most 1 (all)")
        self.set_encoder(self.kwargs_of(*args, **{"q_pool": 2, **kwargs}))
        layout, pools = self.encoder.layout, self.encoder.q_pool
        num_kept(layout.num_units, mask_ratio)  # raises for a ratio out of range
        if layout.dims == 3 and layout.q_stride[0] != 1:
            raise UserError(f"a video autoencoder cannot pool time: q_stride={layout.q_stride}")
        self.mask_ratio, self.decode_ratio = mask_ratio, decode_ratio
        self.final_unit = layout.unit_shape(pools)
        stem = self.encoder.patch_embed
        self.token_grid = TokenGrid(layout, pools, tuple(stem.stride), stem.proj.in_channels)
        self.pred_stride = self.token_grid.side
        self.target = build_target(target, self.token_grid)

        self._add_fusion()
        block = BlockConfig(
            decoder_embed_dim,
            decoder_embed_dim,
            decoder_num_heads,
            mlp_ratio=kwargs.get("mlp_ratio", 4.0),
        )
        self._add_decoder(block, depth=decoder_depth)
        self.reset_parameters()

    def _add_fusion(self) -> None:
        """Add the convolutions that bring the stages before the last pool to the final size."""
        layout, dims = self.encoder.layout, self.encoder.stage_dims
        self.multi_scale_fusion_heads = nn.ModuleList()
        for stage in range(self.encoder.q_pool):
            unit = layout.unit_shape(stage)
            kernel = tuple(a // b for a, b in zip(unit, self.final_unit, strict=True))
            convolution = CONVOLUTIONS[layout.dims]
            self.multi_scale_fusion_heads.append(
                convolution(dims[stage], dims[-1], kernel_size=kernel, stride=kernel)
            )
        self.encoder_norm = nn.LayerNorm(dims[-1], eps=LAYER_NORM_EPS)

    def _add_decoder(self, block: BlockConfig, *, depth: int) -> None:
        """Add the decoder: `depth` blocks with an embedding before and a projection after them."""
        layout, width = self.encoder.layout, block.dim
        tokens = math.prod(layout.grid_shape(self.encoder.q_pool))
        self.decoder_embed = nn.Linear(self.encoder.stage_dims[-1], width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.decoder_blocks = nn.ModuleList(Block(block) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.decoder_pred = nn.Linear(width, self.target.values_per_token)

    # ---- sizes and names of parameters --------------------------------------------------

    @property
    def num_mask_units(self) -> int:
        """U, the mask units of one clip."""
        return self.encoder.num_mask_units

    def random_keep(
        self, batch: int, mask_ratio: float | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw a keep mask bool [B, U], True = visible; `mask_ratio` None is the model's own."""
        ratio = self.mask_ratio if mask_ratio is None else mask_ratio
        return self.encoder.random_keep(batch, ratio, generator)

    def reset_parameters(self) -> None:
        """Initialise as published: Xavier-uniform weights, zero biases.

        With a contrast stem the encoder starts as that of a classifier instead, and the first
        prediction is close to zero, the mean pixel. Otherwise a short pretraining learns to ignore
        the stem, whose output at first only disturbs the prediction, and the classifier that starts
        from it stays at chance for hundreds of steps.
        """
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                init_layer(module, bias=0.0)
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            # the stem is initialised as a linear layer, on its flattened kernel
            nn.init.xavier_uniform_(self.encoder.patch_embed.proj.weight.flatten(1))
        if self.encoder.contrast_stem:
            self.encoder.apply(partial(self.encoder.init_module, bias=0.0))
            init_contrast(self.encoder.patch_embed.proj.weight)
            with torch.no_grad():
                self.decoder_pred.weight.mul_(0.01)
        for name, parameter in self.named_parameters():
            if "pos_embed" in name or name == "mask_token":
                nn.init.normal_(parameter, std=INIT_STD)

    # ---- forward ------------------------------------------------------------------------

    def forward(
        self,
        clips: Tensor,
        keep: Tensor | None = None,
        kept: int | None = None,
        truth: Tensor | None = None,
    ) -> MAEOutput:
        """Delete units, encode the rest, predict the deleted pixels, or another target of them.

        All arguments may be given by position.

        Args:
            clips: normalised pixels [B, C_in, *input_size].
            keep: bool [B, U], True = visible, the same number per clip; None draws one at
                `mask_ratio` from the default generator.
            kept: number of units that `keep` leaves in each clip, if it is known (see
                `tokens.count_kept`).
            truth: what is known of the clips: for the target `flow` the displacements [B, 6, T',
                16, 16] as they are to be predicted. Other targets do not read it.

        Raises:
            UserError: the model cannot take `clips`, `keep` is not a usable mask, or the target
                needs a `truth` and did not get one.
        """
        check_clips(clips, self.encoder.clip_shape, weight=self.encoder.patch_embed.proj.weight)
        batch, units = clips.shape[0], self.num_mask_units
        if keep is None:
            keep = self.random_keep(batch)
            kept = num_kept(units, self.mask_ratio)
        else:
            kept = count_kept(keep, batch=batch, num_units=units, known=kept)
            if kept == units:
                raise UserError("keep deletes no mask unit, so there is nothing to predict")
        visible = unit_ids(keep, kept)
        decoded, count = self.choose_decoded(keep, units - kept)
        wanted = unit_ids(decoded, count)
        latent = self.encode_units(clips, keep, visible)
        pred = self.decode_units(latent, visible, wanted)
        loss = self.loss(pred, self.targets(clips, wanted, truth))
        return MAEOutput(loss, pred, keep, decoded)

    def choose_decoded(self, keep: Tensor, deleted: int) -> tuple[Tensor, int]:
        """Return the units to decode, bool [B, U], and their number per clip.

        In training a share `decode_ratio` of the deleted ones, drawn from the default generator; in
        evaluation all of them.
        """
        if not self.training or self.decode_ratio == 1.0:
            return ~keep, deleted
        count = max(1, round(deleted * self.decode_ratio))
        noise = torch.rand(keep.shape, device=keep.device).masked_fill(keep, 2.0)
        smallest = noise.argsort(dim=1)[:, :count]
        return torch.zeros_like(keep).scatter_(1, smallest, True), count

    def encode(self, clips: Tensor, keep: Tensor) -> Tensor:
        """Return fused, normed features of the kept units: [B, k, n, C], raster in each unit."""
        kept = count_kept(keep, batch=clips.shape[0], num_units=self.num_mask_units)
        return self.encode_units(clips, keep, unit_ids(keep, kept))

    def encode_units(self, clips: Tensor, keep: Tensor, visible: Tensor) -> Tensor:
        """`encode` for a mask that was checked, with the flat positions of its kept units."""
        tokens = self.encoder.embed_units(clips, keep, visible)
        stages = self.encoder.forward_stages(tokens)
        features: Tensor = self.encoder_norm(self.fuse(stages))
        return features

    def fuse(self, stages: Sequence[Tensor]) -> Tensor:
        """Sum the outputs of the stages at the final resolution, [B, k, n, C].

        With q_pool = 2 these are stages 1, 2 and 4: stage 3 has the resolution of stage 4.
        """
        layout, pools = self.encoder.layout, self.encoder.q_pool
        fused = layout.to_unit_raster(stages[-1], pools).flatten(2, -2)
        for stage, head in enumerate(self.multi_scale_fusion_heads):
            maps = layout.to_unit_raster(stages[stage], stage).flatten(0, 1).movedim(-1, 1)
            # contiguous: see `layers.convolve`
            fused = fused + head(maps.contiguous()).flatten(2).transpose(1, 2).unflatten(
                0, fused.shape[:2]
            )
        return fused

    def decode_units(self, latent: Tensor, visible: Tensor, wanted: Tensor) -> Tensor:
        """Kept features [B, k, n, C] -> predictions for the wanted units [B, D, n, P].

        `visible` and `wanted` are flat positions of units, see `unit_ids`. Attention is global, so
        the visible units may come first and the wanted ones after them. Nothing is predicted of the
        visible ones, so the last block only attends to them.
        """
        positions = self.decoder_positions()[0]  # (U, n, W)
        seen = self.decoder_embed(latent)
        masks = self.mask_token + positions.index_select(0, wanted % self.num_mask_units)
        seen = seen + positions.index_select(0, visible % self.num_mask_units).view_as(seen)
        x = torch.cat([seen, masks.unflatten(0, (seen.shape[0], -1))], dim=1)
        *before, last = self.decoder_blocks
        for block in before:
            x = block(x)
        pred: Tensor = self.decoder_pred(self.decoder_norm(last(x, skip=seen.shape[1])))
        return pred

    def decoder_positions(self) -> Tensor:
        """Return the decoder's positions, which are stored in raster order, as [1, U, n, C]."""
        layout = self.encoder.layout
        raster = self.decoder_pos_embed.unflatten(1, layout.grid_shape(self.encoder.q_pool))
        return raster_to_units(raster, layout.unit_grid).flatten(2, -2)

    # ---- targets ------------------------------------------------------------------------

    def pixel_tokens(self, clips: Tensor) -> Tensor:
        """Return the pixels of every token, [B, U, n, P], see `targets.TokenGrid.split`.

        For a video these are those of the first frame of each temporal patch.
        """
        return self.token_grid.split(self.token_grid.frames(clips))

    def pixels_from_tokens(self, tokens: Tensor) -> Tensor:
        """Invert `pixel_tokens`: [B, U, n, P] -> pixels [B, C_in, ...]."""
        return self.token_grid.join(tokens, self.token_grid.patch(self.pred_stride))

    def targets(self, clips: Tensor, wanted: Tensor, truth: Tensor | None = None) -> Tensor:
        """Return what is to be predicted of the units at flat positions `wanted`: [B, D, n, P].

        Always in float32. Pixels are normalised: those of each token and all channels together,
        with the unbiased variance. `truth` as in `forward`.
        """
        return self.target.normalise(pick_units(self.target.tokens(clips, truth), wanted))

    @staticmethod
    def loss(pred: Tensor, target: Tensor) -> Tensor:
        """Mean squared error in float32."""
        return (pred.float() - target).square().mean()

    @torch.no_grad()
    def reconstruct(
        self, clips: Tensor, pred: Tensor, keep: Tensor, truth: Tensor | None = None
    ) -> Tensor:
        """Return maps to look at: the visible tokens as they are, the deleted ones as predicted.

        For the target `pixels` these are pixels. Predictions are normalised pixels. Mean and
        variance of each token are taken from the original, so this shows predicted structure, not
        predicted brightness.

        Args:
            clips: normalised pixels [B, C_in, *input_size].
            pred: [B, U - k, n, P] as `forward` returns it if all deleted units are decoded.
            keep: bool [B, U].
            truth: as in `forward`.

        Returns:
            Pixels [B, C_in, T', H, W] with T' the predicted frames (every second one), or
            [B, C_in, H, W] for images; for another target its maps in place of pixels (see
            `targets.Target.maps`).
        """
        original = self.target.tokens(clips, truth).float()
        kept = count_kept(keep, batch=clips.shape[0], num_units=self.num_mask_units)
        deleted = unit_ids(~keep, self.num_mask_units - kept)
        shown = self.target.restore(pred.float(), pick_units(original, deleted))
        flat = original.flatten(0, 1).index_copy(0, deleted, shown.flatten(0, 1))
        return self.target.join(flat.unflatten(0, original.shape[:2]))


# ---- the registered variants --------------------------------------------------------------


def register_variants(size: str) -> None:
    """Register `mae_hiera_{size}_224` and `mae_hiera_{size}_16x224`."""

    def image(**overrides: Any) -> MaskedAutoencoder:
        return MaskedAutoencoder(**{**SIZES[size], "mask_ratio": 0.6, **overrides})

    def video(**overrides: Any) -> MaskedAutoencoder:
        return MaskedAutoencoder(**{**SIZES[size], **VIDEO, "mask_ratio": 0.9, **overrides})

    image.__doc__ = f"Masked autoencoder of Hiera-{size} for 224x224 images; mask ratio 0.6."
    video.__doc__ = f"Masked autoencoder of Hiera-{size} for 16x224x224 clips; mask ratio 0.9."
    MODEL_REGISTRY.register(name=f"mae_hiera_{size}_224")(image)
    MODEL_REGISTRY.register(name=f"mae_hiera_{size}_16x224")(video)


for _size in SIZES:
    register_variants(_size)
