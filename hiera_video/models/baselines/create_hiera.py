"""Hiera as PyTorchVideo builds its models: `create_hiera(...)`, a `Net` made of a list of blocks.

    from hiera_video import create_hiera

    model = create_hiera(model_depth=24, model_num_class=400, head_activation=None)
    scores = model(clips)                                     # [B, 3, 16, 224, 224] -> [B, 400]

It can replace `pytorchvideo.models.create_resnet` and the like in code written for them: the
arguments have the same names, `head` is any builder with the arguments of PyTorchVideo's
`create_vit_basic_head`, and with `head=None` the result ends in feature maps [B, C, T, H, W], which
its convolutional and detection heads take. The blocks are Hiera's own, so the published weights
load: `load_weights(model, resolve("hiera_base_16x224.mae_k400_ft_k400")[0])`.

Shapes: B batch, C channels, U mask units, n tokens in a unit, N = U * n tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video.compat import pytorchvideo_module
from hiera_video.errors import UserError
from hiera_video.models.hiera import (
    INIT_STD,
    VIDEO,
    check_stages,
    init_layer,
    positions_parameter,
)
from hiera_video.models.inputs import check_clips
from hiera_video.models.layers import GELU, LAYER_NORM_EPS, Block, BlockConfig, PatchEmbed
from hiera_video.models.tokens import TokenLayout
from hiera_video.models.weights.key_names import HIERA_KEYS, KeyNames

Net: Any = pytorchvideo_module("pytorchvideo.models.net").Net

MODEL_STAGE_DEPTH = {
    12: (1, 2, 7, 2),
    16: (1, 2, 11, 2),
    24: (2, 3, 16, 3),
    48: (2, 6, 36, 4),
}
"""Blocks of each stage by depth: 12 is Hiera-T, 16 S, 24 B and B+, 48 L and H."""

HEAD_INIT_SCALE = 0.001


class HieraStem(nn.Module):
    """Patches or cubes of pixels, with learned positions, in unit-major order.

    Args:
        layout: grids and units of the input.
        in_channels, out_channels: of pixels and tokens.
        conv_kernel_size, conv_stride: of the strided convolution, which overlaps.
    """

    def __init__(
        self,
        layout: TokenLayout,
        *,
        in_channels: int,
        out_channels: int,
        conv_kernel_size: Sequence[int],
        conv_stride: Sequence[int],
    ) -> None:
        super().__init__()
        self.layout = layout
        self.patch_embed = PatchEmbed(
            in_channels,
            out_channels,
            kernel=conv_kernel_size,
            stride=conv_stride,
            padding=[size // 2 for size in conv_kernel_size],
        )
        sides = (step * tokens for step, tokens in zip(conv_stride, layout.grid, strict=True))
        self.clip_shape = (in_channels, *sides)
        *time, rows, columns = layout.grid
        if time:
            self.pos_embed_spatial = positions_parameter(1, rows * columns, out_channels)
            self.pos_embed_temporal = positions_parameter(1, *time, out_channels)
        else:
            self.pos_embed = positions_parameter(1, rows * columns, out_channels)

    def forward(self, clips: Tensor) -> Tensor:
        """Pixels [B, C_in, T, H, W] (images: [B, C_in, H, W]) -> tokens [B, U, n, C].

        Raises UserError for pixels that the model cannot take (`inputs.check_clips`).
        """
        check_clips(clips, self.clip_shape, weight=self.patch_embed.proj.weight)
        return self.patch_embed(clips, self.layout) + self.layout.to_units(self._positions())

    def _positions(self) -> Tensor:
        """[1, *grid, C] in raster order."""
        grid = self.layout.grid
        if len(grid) == 2:
            return self.pos_embed.unflatten(1, grid)
        return (
            self.pos_embed_spatial.unflatten(1, (1, *grid[1:]))
            + self.pos_embed_temporal[:, :, None, None]
        )


class HieraSequence(nn.Module):
    """Tokens [B, U, n, C] -> the sequence [B, N, C] that a head pools."""

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, U, n, C] -> [B, N, C]."""
        return tokens.flatten(1, 2)


class HieraMaps(nn.Module):
    """Tokens of the last stage -> feature maps in raster order, channels first."""

    def __init__(self, layout: TokenLayout, *, pools: int) -> None:
        super().__init__()
        self.layout, self.pools = layout, pools

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, U, n, C] -> [B, C, T, H, W], of images [B, C, H, W]."""
        return self.layout.to_raster(tokens, self.pools).movedim(-1, 1)


class HieraHead(nn.Module):
    """Mean over the tokens, LayerNorm, dropout, one linear layer, and optionally an activation."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        dropout_rate: float,
        activation: nn.Module | None,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_features, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(dropout_rate) if dropout_rate > 0 else nn.Identity()
        self.proj = nn.Linear(in_features, out_features)
        self.activation = activation

    def forward(self, sequence: Tensor) -> Tensor:
        """[B, N, C] -> [B, out_features]."""
        scores: Tensor = self.proj(self.dropout(self.norm(sequence.mean(dim=1))))
        return scores if self.activation is None else self.activation(scores)

    def reset_parameters(self) -> None:
        """Initialise small, as Hiera does, so that training starts from near-equal scores."""
        init_layer(self.norm, bias=0.02)
        init_layer(self.proj, bias=0.02)
        with torch.no_grad():
            self.proj.weight.mul_(HEAD_INIT_SCALE)
            self.proj.bias.mul_(HEAD_INIT_SCALE)


class HieraNet(Net):
    """PyTorchVideo's `Net` of Hiera's blocks: stem, stages, sequence (or maps), head.

    It loads Hiera's published files; its own state dict has the names of its blocks
    ("blocks.1.0.norm1.weight" is the first block of the first stage).
    """

    def __init__(self, blocks: Sequence[nn.Module], *, input_size: Sequence[int]) -> None:
        super().__init__(blocks=nn.ModuleList(blocks))
        self.input_size = tuple(input_size)
        self.key_names = KeyNames(
            head=(f"blocks.{HEAD}.proj.weight", f"blocks.{HEAD}.proj.bias"),
            classifier=(f"blocks.{HEAD}.",),
            classifier_words=HIERA_KEYS.classifier_words,
            decoder=HIERA_KEYS.decoder,
            decoder_words=HIERA_KEYS.decoder_words,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as published for Hiera, but for a head that is not Hiera's.

        PyTorchVideo's `Net` has initialised everything as for a ResNet before.
        """
        for block in self.blocks[:HEAD]:
            block.apply(partial(init_layer, bias=0.02))
        for name in sorted(self.no_weight_decay()):
            nn.init.normal_(self.get_parameter(name), std=INIT_STD)
        self.reset_head()

    def reset_head(self) -> None:
        """Initialise the head, where it is Hiera's."""
        if isinstance(self.blocks[-1], HieraHead):
            self.blocks[-1].reset_parameters()

    def no_weight_decay(self) -> set[str]:
        """Names of the position embeddings."""
        return {name for name, _ in self.named_parameters() if name.startswith("blocks.0.pos_")}

    def read_published_keys(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of `hiera_*`, or of a net like this -> the same with keys of this net."""
        if "blocks.0.patch_embed.proj.weight" in state:
            return dict(state)
        stages = [len(stage) for stage in self.blocks[1:SEQUENCE]]
        places = [(stage + 1, i) for stage, depth in enumerate(stages) for i in range(depth)]
        return {_place(key, places): tensor for key, tensor in state.items()}


SEQUENCE, HEAD = 5, 6
"""Places in the list of blocks: 0 the stem, 1 to 4 the stages, then these two."""


def _place(key: str, places: Sequence[tuple[int, int]]) -> str:
    """Hiera's key of a tensor -> its key in a `HieraNet`; unknown keys stay as they are."""
    block = re.match(r"blocks\.(\d+)\.(.+)", key)
    if block and int(block[1]) < len(places):
        stage, i = places[int(block[1])]
        return f"blocks.{stage}.{i}.{block[2]}"
    if key.startswith(("patch_embed.", "pos_embed")):
        return f"blocks.0.{key}"
    if key.startswith("norm."):
        return f"blocks.{HEAD}.{key}"
    return re.sub(r"^head\.projection\.", f"blocks.{HEAD}.proj.", key)


@dataclass(frozen=True)
class StageSpec:
    """The sizes of one stage of Hiera."""

    depth: int
    """Number of blocks."""
    dim_in: int
    dim_out: int
    """Width after the first block, which widens from `dim_in`."""
    num_heads: int
    """Of every block."""
    pool_factor: int = 1
    """Tokens of a unit that the first block pools into one: 4, or 1 for none."""
    local: bool = False
    """Whether attention stays inside mask units."""
    first_local: bool | None = None
    """The same for the first block, which in Hiera attends like the stage before; None: `local`."""


def create_hiera_stage(
    spec: StageSpec,
    *,
    mlp_ratio: float = 4.0,
    droppath_rates: Sequence[float] = (),
    activation: Callable[[], nn.Module] = GELU,
) -> nn.Sequential:
    """Build a stage of Hiera: transformer blocks on unit-major tokens [B, U, n, C].

    Args:
        spec: its sizes.
        mlp_ratio: width of the MLP's hidden layer over that of the block.
        droppath_rates: stochastic depth, one per block; empty for none.
        activation: builds the non-linearity of the MLPs.
    """
    blocks = []
    for i in range(spec.depth):
        first = i == 0
        config = BlockConfig(
            spec.dim_in if first else spec.dim_out,
            spec.dim_out,
            spec.num_heads,
            mlp_ratio=mlp_ratio,
            drop_path=droppath_rates[i] if droppath_rates else 0.0,
            q_pool=spec.pool_factor if first else 1,
            local=spec.first_local if first and spec.first_local is not None else spec.local,
        )
        block = Block(config)
        block.mlp.act = activation()
        blocks.append(block)
    return nn.Sequential(*blocks)


def create_hiera_head(
    *,
    in_features: int,
    out_features: int,
    seq_pool_type: str = "mean",
    dropout_rate: float = 0.0,
    activation: Callable[..., nn.Module] | None = None,
) -> HieraHead:
    """Build Hiera's head: mean over tokens [B, N, C], LayerNorm, dropout, projection, activation.

    The arguments are those of PyTorchVideo's `create_vit_basic_head`; `activation` builds a layer
    (`nn.Softmax` is given dim=1), None leaves logits. Raises UserError for a pooling other than
    "mean".
    """
    if seq_pool_type != "mean":
        raise UserError(f"seq_pool_type={seq_pool_type!r}: Hiera has no class token, only 'mean'")
    layer = None
    if activation is not None:
        layer = activation(dim=1) if activation is nn.Softmax else activation()
    return HieraHead(in_features, out_features, dropout_rate=dropout_rate, activation=layer)


def create_hiera(
    *,
    # Input clip configs.
    spatial_size: int | Sequence[int] = 224,
    temporal_size: int = 16,
    input_channels: int = 3,
    # Model configs.
    model_depth: int = 24,
    model_num_class: int = 400,
    dropout_rate: float = 0.0,
    # Activation configs.
    activation: Callable[[], nn.Module] = GELU,
    # Stem configs.
    stem_dim_out: int = 96,
    stem_conv_kernel_size: Sequence[int] = VIDEO["patch_kernel"],
    stem_conv_stride: Sequence[int] = VIDEO["patch_stride"],
    # Stage configs.
    stage_depths: Sequence[int] | None = None,
    num_heads: int = 1,
    mlp_ratio: float = 4.0,
    droppath_rate_block: float = 0.0,
    mask_unit_attn: Sequence[bool] = (True, True, False, False),
    # Head configs.
    head: Callable[..., nn.Module] | None = create_hiera_head,
    head_activation: Callable[..., nn.Module] | None = None,
) -> HieraNet:
    """Build Hiera (arXiv 2306.00989) as a PyTorchVideo `Net`.

    Args:
        spatial_size: pixels, one number or (H, W); multiples of 32.
        temporal_size: frames, a multiple of 2; 1 builds the image model, which takes
            [B, input_channels, H, W].
        input_channels: 3 for RGB.
        model_depth: number of blocks, one of 12 (T), 16 (S), 24 (B, B+), 48 (L, H).
        model_num_class: outputs of the head.
        dropout_rate: before the head's projection.
        activation: builds the non-linearity of the blocks.
        stem_dim_out: width of the first stage, doubled at each of the others: 96 for T, S and B,
            112 B+, 144 L, 256 H.
        stem_conv_kernel_size: (time, height, width); of images, the last two.
        stem_conv_stride: the same.
        stage_depths: blocks of each of the four stages, instead of `model_depth`.
        num_heads: of the first stage, doubled at each of the others: T, S, B 1, B+ and L 2, H 4.
        mlp_ratio: width of the MLPs' hidden layers over that of the block.
        droppath_rate_block: stochastic depth of the last block; rises linearly from 0.
        mask_unit_attn: for each stage, whether attention stays inside mask units.
        head: builder of the head (`in_features`, `out_features`, `seq_pool_type`, `dropout_rate`,
            `activation`) on a sequence [B, N, C]; None: the net ends in feature maps.
        head_activation: for the head; None leaves logits.

    Returns:
        A net: pixels [B, input_channels, T, H, W] -> [B, model_num_class], or with `head=None`
        feature maps [B, 8 * stem_dim_out, T / 2, H / 32, W / 32].

    Raises:
        UserError: a depth that is not in the table, sizes that do not divide.
    """
    depths = _stage_depths(model_depth, stage_depths, mask_unit_attn)
    layout = _layout(spatial_size, temporal_size, stride=stem_conv_stride, stages=len(depths))
    stem = HieraStem(
        layout,
        in_channels=input_channels,
        out_channels=stem_dim_out,
        conv_kernel_size=tuple(stem_conv_kernel_size)[-layout.dims :],
        conv_stride=tuple(stem_conv_stride)[-layout.dims :],
    )
    specs = _stage_specs(depths, stem_dim_out, num_heads, layout.pool_factor, mask_unit_attn)
    rates = torch.linspace(0, droppath_rate_block, sum(depths), device="cpu").split(depths)
    stages = [
        create_hiera_stage(
            spec, mlp_ratio=mlp_ratio, droppath_rates=rate.tolist(), activation=activation
        )
        for spec, rate in zip(specs, rates, strict=True)
    ]
    end: list[nn.Module] = [HieraMaps(layout, pools=len(depths) - 1)]
    if head is not None:
        sizes = {"in_features": specs[-1].dim_out, "out_features": model_num_class}
        options = {"dropout_rate": dropout_rate, "activation": head_activation}
        end = [HieraSequence(), head(**sizes, seq_pool_type="mean", **options)]
    return HieraNet([stem, *stages, *end], input_size=_input_size(spatial_size, temporal_size))


def _stage_depths(
    model_depth: int, stage_depths: Sequence[int] | None, mask_unit_attn: Sequence[bool]
) -> tuple[int, ...]:
    """Blocks of each stage; UserError where they are not those of a Hiera."""
    if not stage_depths and model_depth not in MODEL_STAGE_DEPTH:
        known = ", ".join(map(str, MODEL_STAGE_DEPTH))
        raise UserError(f"model_depth={model_depth!r} must be one of {known}, or give stage_depths")
    depths = tuple(stage_depths) if stage_depths else MODEL_STAGE_DEPTH[model_depth]
    check_stages(depths, q_pool=len(depths) - 1, mask_unit_attn=mask_unit_attn)
    if len(depths) != SEQUENCE - 1:
        raise UserError(f"stage_depths={depths} must be four numbers, one per stage of Hiera")
    return depths


def _stage_specs(
    depths: Sequence[int],
    dim: int,
    num_heads: int,
    pool_factor: int,
    mask_unit_attn: Sequence[bool],
) -> list[StageSpec]:
    """Sizes of the stages: each doubles width and heads of the one before, all but the first pool.

    Args:
        dim, num_heads: of the first stage.
    """
    return [
        StageSpec(
            depth=depth,
            dim_in=dim * 2 ** max(stage - 1, 0),
            dim_out=dim * 2**stage,
            num_heads=num_heads * 2**stage,
            pool_factor=pool_factor if stage else 1,
            local=mask_unit_attn[stage],
            first_local=mask_unit_attn[max(stage - 1, 0)],
        )
        for stage, depth in enumerate(depths)
    ]


def _input_size(spatial_size: int | Sequence[int], temporal_size: int) -> tuple[int, ...]:
    """(T, H, W) of a clip, (H, W) of an image."""
    sides = (spatial_size,) * 2 if isinstance(spatial_size, int) else tuple(spatial_size)
    return sides if temporal_size == 1 else (temporal_size, *sides)


def _layout(
    spatial_size: int | Sequence[int], temporal_size: int, *, stride: Sequence[int], stages: int
) -> TokenLayout:
    """The token layout of a clip or, for one frame, of an image: units of 2 x 32 x 32 pixels."""
    size = _input_size(spatial_size, temporal_size)
    return TokenLayout(
        input_size=size,
        patch_stride=tuple(stride)[-len(size) :],
        mask_unit_size=VIDEO["mask_unit_size"][-len(size) :],
        q_stride=VIDEO["q_stride"][-len(size) :],
        num_pools=stages - 1,
    )
