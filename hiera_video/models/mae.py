"""Masked autoencoder: Hiera pretrained by deleting mask units and predicting their pixels.

The encoder sees the kept units only (a tenth of a clip). The outputs of its stages are fused at
the final resolution, a small transformer over all units, with a learned token in the place of
each deleted one, predicts the pixels that were deleted, and the loss is taken there alone
(paper, section 3.1 and Table 11).

Tokens stay unit-major in the decoder too: its attention is global, so their order is free as
long as the positions follow it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hiera_video.errors import UserError
from hiera_video.models.hiera import (
    INIT_STD,
    SIZES,
    VIDEO,
    HieraEncoder,
    init_contrast,
    init_layer,
)
from hiera_video.models.layers import CONVOLUTIONS, LAYER_NORM_EPS, Block
from hiera_video.models.tokens import (
    count_kept,
    num_kept,
    pick_units,
    raster_to_units,
    unit_ids,
    units_to_raster,
)
from hiera_video.registry import MODEL_REGISTRY

TARGET_EPS = 1e-6


class MAEOutput(NamedTuple):
    """What an autoencoder returns."""

    loss: Tensor
    """Mean squared error on normalised pixels of the deleted tokens; a float32 scalar."""
    pred: Tensor
    """Predicted pixels [B, D, n, P] of the decoded units, in raster order, tokens of each in raster
    order, P values of one token (see `MaskedAutoencoder.targets`). D is U - k, every deleted unit,
    unless `decode_ratio` says fewer."""
    keep: Tensor
    """The mask used, bool [B, U], True = visible."""
    decoded: Tensor | None = None
    """Which units `pred` and the loss are of, bool [B, U]; None: every deleted one."""


class MaskedAutoencoder(nn.Module):
    """Encoder, multi-scale fusion, decoder and loss.

    Args:
        decoder_embed_dim: width of the decoder.
        decoder_depth: its blocks.
        decoder_num_heads: its heads. The published code builds 16 for every model; the paper's
            video recipe says 8 (Table 11). Weights fit both.
        mask_ratio: share of the units deleted when `forward` draws the mask.
        decode_ratio: share of the deleted units that a training step decodes and takes its loss on,
            drawn anew each time. Below 1 goes beyond the paper: the decoder, more than half of a
            step, costs less, and sees fewer mask tokens. In evaluation all are decoded.
        kwargs: of the encoder, see `HieraEncoder`.

    The state dict speaks the published flat keys (`blocks.0...`, not `encoder.blocks.0...`).

    Raises:
        UserError: for settings that do not fit each other.
    """

    kwargs_of = HieraEncoder

    def __init__(
        self,
        *args: Any,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        mask_ratio: float = 0.6,
        decode_ratio: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if decoder_embed_dim % decoder_num_heads:
            raise UserError(
                f"decoder_embed_dim={decoder_embed_dim} must be a multiple of "
                f"decoder_num_heads={decoder_num_heads}"
            )
        self.encoder = HieraEncoder(*args, **{"q_pool": 2, **kwargs})
        self.encoder._check_maskable()
        layout = self.encoder.layout
        num_kept(layout.num_units, mask_ratio)  # refuses a ratio out of range
        if not 0.0 < decode_ratio <= 1.0:
            raise UserError(f"decode_ratio={decode_ratio!r} must be above 0 and at most 1 (all)")
        self.mask_ratio, self.decode_ratio = mask_ratio, decode_ratio
        pools = self.encoder.q_pool
        if layout.dims == 3 and layout.q_stride[0] != 1:
            raise UserError(f"a video autoencoder cannot pool time: q_stride={layout.q_stride}")
        self.final_unit = layout.unit_shape(pools)
        patch = self.encoder.patch_embed.stride
        self.pred_stride = patch[-1] * layout.q_stride[-1] ** pools
        in_chans = self.encoder.patch_embed.proj.in_channels
        dim = self.encoder.stage_dims[-1]

        self.multi_scale_fusion_heads = nn.ModuleList()
        for stage in range(pools):
            kernel = tuple(
                a // b for a, b in zip(layout.unit_shape(stage), self.final_unit, strict=True)
            )
            convolution = CONVOLUTIONS[layout.dims]
            self.multi_scale_fusion_heads.append(
                convolution(self.encoder.stage_dims[stage], dim, kernel_size=kernel, stride=kernel)
            )
        self.encoder_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)

        tokens = math.prod(layout.grid_shape(pools))
        self.decoder_embed = nn.Linear(dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, tokens, decoder_embed_dim))
        mlp_ratio = kwargs.get("mlp_ratio", 4.0)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_embed_dim, decoder_embed_dim, decoder_num_heads, mlp_ratio=mlp_ratio)
            for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_embed_dim, eps=LAYER_NORM_EPS)
        pixels = self.pred_stride ** min(2, layout.dims) * in_chans
        self.decoder_pred = nn.Linear(decoder_embed_dim, pixels)

        self.register_state_dict_post_hook(_drop_encoder_prefix)
        self.register_load_state_dict_pre_hook(_add_encoder_prefix)
        self.reset_parameters()

    # ---- facts --------------------------------------------------------------------------

    @property
    def input_size(self) -> tuple[int, ...]:
        """Pixels along each dimension of the input."""
        return self.encoder.input_size

    @property
    def num_mask_units(self) -> int:
        """U, the mask units of one clip."""
        return self.encoder.num_mask_units

    @property
    def num_layers(self) -> int:
        """The largest `layer_id`."""
        return self.encoder.num_layers

    def layer_id(self, name: str) -> int:
        """Depth of a parameter for layer decay: the encoder's, the decoder counts as last."""
        if name.startswith("encoder."):
            return self.encoder.layer_id(name.removeprefix("encoder."))
        return self.num_layers

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone: the encoder's positions."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}

    def random_keep(
        self, batch: int, mask_ratio: float | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """A random keep mask bool [B, U]; the model's own ratio unless one is given."""
        ratio = self.mask_ratio if mask_ratio is None else mask_ratio
        return self.encoder.random_keep(batch, ratio, generator)

    def reset_parameters(self) -> None:
        """The published initialisation of autoencoders: Xavier-uniform weights, zero biases.

        With a contrast stem the encoder starts as that of a classifier instead, and the first
        prediction is next to zero, the mean pixel. Otherwise a short pretraining spends itself on
        drowning what the stem sees, which at first only disturbs the prediction, and the
        classifier that starts from it stays at chance for hundreds of steps.
        """
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                init_layer(module, bias=0.0)
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            # the stem as if it were linear, on its flattened kernel
            nn.init.xavier_uniform_(self.encoder.patch_embed.proj.weight.flatten(1))
        if self.encoder.contrast_stem:
            self.encoder.apply(partial(init_layer, bias=0.0))
            init_contrast(self.encoder.patch_embed.proj.weight)
            with torch.no_grad():
                self.decoder_pred.weight.mul_(0.01)
        for name, parameter in self.named_parameters():
            if "pos_embed" in name or name == "mask_token":
                nn.init.normal_(parameter, std=INIT_STD)

    # ---- forward ------------------------------------------------------------------------

    def forward(
        self, clips: Tensor, keep: Tensor | None = None, kept: int | None = None
    ) -> MAEOutput:
        """Delete units, encode the rest, predict the deleted pixels.

        Args:
            clips: normalised pixels [B, C_in, *input_size].
            keep: bool [B, U], True = visible, the same number per clip; None draws one at
                `mask_ratio` from the default generator.
            kept: how many units `keep` leaves of each clip, where that is known, see
                `tokens.count_kept`.

        Raises:
            UserError: if the model cannot take `clips`, or `keep` is no usable mask.
        """
        self.encoder._check_clips(clips)
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
        return MAEOutput(self.loss(pred, self.targets(clips, wanted)), pred, keep, decoded)

    def choose_decoded(self, keep: Tensor, deleted: int) -> tuple[Tensor, int]:
        """The units to decode, bool [B, U], and how many per clip: `decode_ratio` of the deleted.

        Drawn from the default generator in training; in evaluation, all of them.
        """
        if not self.training or self.decode_ratio == 1.0:
            return ~keep, deleted
        count = max(1, round(deleted * self.decode_ratio))
        noise = torch.rand(keep.shape, device=keep.device).masked_fill(keep, 2.0)
        smallest = noise.argsort(dim=1)[:, :count]
        return torch.zeros_like(keep).scatter_(1, smallest, True), count

    def encode(self, clips: Tensor, keep: Tensor) -> Tensor:
        """Fused, normed features of the kept units: [B, k, n, C], tokens raster in their unit."""
        kept = count_kept(keep, batch=clips.shape[0], num_units=self.num_mask_units)
        return self.encode_units(clips, keep, unit_ids(keep, kept))

    def encode_units(self, clips: Tensor, keep: Tensor, visible: Tensor) -> Tensor:
        """`encode` for a mask known to be good, with the flat positions of its kept units."""
        tokens = self.encoder.embed_units(clips, keep, visible)
        stages = self.encoder.forward_stages(tokens)
        return self.encoder_norm(self.fuse(stages))

    def fuse(self, stages: Sequence[Tensor]) -> Tensor:
        """Stage outputs -> their sum at the final resolution, [B, k, n, C].

        With q_pool = 2, stages 1, 2 and 4: stage 3 has the resolution of stage 4.
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
        """Kept features [B, k, n, C] -> predicted pixels of the wanted units [B, D, n, P].

        `visible` and `wanted` are flat positions of units, see `unit_ids`. Attention is global, so
        the visible units simply come first and the wanted ones are the rest.
        """
        positions = self.decoder_positions()[0]  # (U, n, W)
        seen = self.decoder_embed(latent)
        masks = self.mask_token + positions.index_select(0, wanted % self.num_mask_units)
        seen = seen + positions.index_select(0, visible % self.num_mask_units).view_as(seen)
        x = torch.cat([seen, masks.unflatten(0, (seen.shape[0], -1))], dim=1)
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x[:, seen.shape[1] :]))

    def decoder_positions(self) -> Tensor:
        """Decoder positions, stored in raster order, as [1, U, n, C]."""
        layout = self.encoder.layout
        raster = self.decoder_pos_embed.unflatten(1, layout.grid_shape(self.encoder.q_pool))
        return raster_to_units(raster, layout.unit_grid).flatten(2, -2)

    # ---- pixels -------------------------------------------------------------------------

    def pixel_tokens(self, clips: Tensor) -> Tensor:
        """Pixels of every predicted token, [B, U, n, P], raster in units and in tokens.

        Of a video, the first frame of each temporal patch ("time-strided" target). The P values
        are ordered (row, column, channel) for video and (channel, row, column) for images: the
        released decoders were trained so.
        """
        layout = self.encoder.layout
        side, dims = self.pred_stride, layout.dims
        if dims == 3:
            clips = clips[:, :, :: self.encoder.patch_embed.stride[0]]
            patch = (1, side, side)
        else:
            patch = (side,) * dims
        sizes = [
            s
            for u, n, p in zip(layout.unit_grid, self.final_unit, patch, strict=True)
            for s in (u, n, p)
        ]
        x = clips.reshape(clips.shape[0], clips.shape[1], *sizes)
        unit, inner, pixel = (range(2 + i, 2 + 3 * dims, 3) for i in range(3))
        last = (*pixel, 1) if dims == 3 else (1, *pixel)
        x = x.permute(0, *unit, *inner, *last)
        return x.reshape(
            clips.shape[0],
            layout.num_units,
            math.prod(self.final_unit),
            math.prod(patch) * clips.shape[1],
        )

    def pixels_from_tokens(self, tokens: Tensor) -> Tensor:
        """The inverse of `pixel_tokens`: [B, U, n, P] -> pixels [B, C_in, ...]."""
        layout, side = self.encoder.layout, self.pred_stride
        patch = (1, side, side) if layout.dims == 3 else (side,) * layout.dims
        channels = self.encoder.patch_embed.proj.in_channels
        order = (*patch, channels) if layout.dims == 3 else (channels, *patch)
        x = tokens.unflatten(-1, order)
        if layout.dims != 3:
            x = x.movedim(3, -1)
        x = units_to_raster(x.flatten(3).unflatten(2, self.final_unit), layout.unit_grid)
        x = x.unflatten(-1, (*patch, channels))
        dims = layout.dims
        pairs = [axis for d in range(dims) for axis in (1 + d, 1 + dims + d)]
        x = x.permute(0, x.dim() - 1, *pairs)
        grid = layout.grid_shape(self.encoder.q_pool)
        return x.reshape(x.shape[0], channels, *(g * p for g, p in zip(grid, patch, strict=True)))

    def targets(self, clips: Tensor, wanted: Tensor) -> Tensor:
        """Normalised pixels of the units at flat positions `wanted`: [B, D, n, P].

        Each token is normalised over its pixels and channels together, with the unbiased
        variance, in float32 whatever the precision around it.
        """
        pixels = pick_units(self.pixel_tokens(clips), wanted).float()
        return (pixels - pixels.mean(-1, keepdim=True)) / (
            pixels.var(-1, keepdim=True) + TARGET_EPS
        ).sqrt()

    @staticmethod
    def loss(pred: Tensor, target: Tensor) -> Tensor:
        """Mean squared error in float32."""
        return (pred.float() - target).square().mean()

    @torch.no_grad()
    def reconstruct(self, clips: Tensor, pred: Tensor, keep: Tensor) -> Tensor:
        """Pixels for pictures: what was visible as it was, the deleted tokens as predicted.

        Predictions are of normalised pixels; mean and variance of each token are taken from the
        original, so this shows structure, not brightness learnt.

        Args:
            clips: normalised pixels [B, C_in, *input_size].
            pred: [B, U - k, n, P] as `forward` returns it where every deleted unit is decoded.
            keep: bool [B, U].

        Returns:
            Pixels [B, C_in, T', H, W] with T' the predicted frames (every second one), or
            [B, C_in, H, W] of images.
        """
        original = self.pixel_tokens(clips).float()
        kept = count_kept(keep, batch=clips.shape[0], num_units=self.num_mask_units)
        deleted = unit_ids(~keep, self.num_mask_units - kept)
        hidden = pick_units(original, deleted)
        scale = (hidden.var(-1, keepdim=True) + TARGET_EPS).sqrt()
        shown = pred.float() * scale + hidden.mean(-1, keepdim=True)
        flat = original.flatten(0, 1).index_copy(0, deleted, shown.flatten(0, 1))
        return self.pixels_from_tokens(flat.unflatten(0, original.shape[:2]))


def _drop_encoder_prefix(module: nn.Module, state: dict, prefix: str, _metadata: Any) -> None:
    """Speak the published keys: `encoder.blocks...` is saved as `blocks...`, in place, in order."""
    ours = f"{prefix}encoder."
    items = [
        (prefix + key.removeprefix(ours) if key.startswith(ours) else key, state[key])
        for key in list(state)
    ]
    state.clear()
    state.update(items)


def _add_encoder_prefix(module: nn.Module, state: dict, prefix: str, *_unused: Any) -> None:
    """Read the published keys: what is not the autoencoder's own belongs to the encoder."""
    own = {name.split(".")[0] for name, _ in module.named_parameters()} - {"encoder"}
    for key in list(state):
        if not key.startswith(prefix):
            continue
        first = key.removeprefix(prefix).split(".")[0]
        if first not in own and first != "encoder":
            state[f"{prefix}encoder.{key.removeprefix(prefix)}"] = state.pop(key)


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
