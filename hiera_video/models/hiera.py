"""Hiera: a hierarchical vision transformer without the bells and whistles (arXiv 2306.00989).

A stem embeds patches (2x4x4 cubes for video), learned positions are added once, tokens are put
into unit-major order, and four stages of plain transformer blocks follow. Between stages the
width doubles and queries are max-pooled 2x2 in space. In the first two stages (and, since the
kind of attention lags by one block, in the first block of the third) attention stays inside mask
units; after that it is global. Nothing else: no convolution, no relative positions, no overlap.

Published names, arguments and state-dict keys; sizes from the paper's Table 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hiera_video.errors import UserError
from hiera_video.models.inputs import check_clips
from hiera_video.models.layers import LAYER_NORM_EPS, Block, BlockConfig, Head, PatchEmbed
from hiera_video.models.readout import AttentiveReadout, Readout, check_readout_stages
from hiera_video.models.tokens import (
    TokenLayout,
    count_kept,
    keep_from_noise,
    unit_ids,
)
from hiera_video.registry import MODEL_REGISTRY

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "num_heads": 1, "stages": (1, 2, 7, 2)},
    "small": {"embed_dim": 96, "num_heads": 1, "stages": (1, 2, 11, 2)},
    "base": {"embed_dim": 96, "num_heads": 1, "stages": (2, 3, 16, 3)},
    "base_plus": {"embed_dim": 112, "num_heads": 2, "stages": (2, 3, 16, 3)},
    "large": {"embed_dim": 144, "num_heads": 2, "stages": (2, 6, 36, 4)},
    "huge": {"embed_dim": 256, "num_heads": 4, "stages": (2, 6, 36, 4)},
}
"""The sizes of the paper (Table 2); tiny and small have no published video weights."""

VIDEO: dict[str, Any] = {
    "input_size": (16, 224, 224),
    "q_stride": (1, 2, 2),
    "mask_unit_size": (1, 8, 8),
    "patch_kernel": (3, 7, 7),
    "patch_stride": (2, 4, 4),
    "patch_padding": (1, 3, 3),
    "sep_pos_embed": True,
}
"""What differs between the image model and the video model: 3-D patches, separable positions."""

INIT_STD = 0.02
"""Standard deviation of initial weights and positions. The published code truncates the normal
distribution at +-2, which is 100 deviations away: the plain normal is the same distribution and
several times faster to draw."""

ABS_WIN_GRID = 7
"""Side of the global part of absolute-window positions (SAM 2 uses 7 for T, S, L; 14 for B+)."""


@dataclass(frozen=True)
class StageWidths:
    """Width and heads of the first stage, and their growth at each stage after it."""

    embed_dim: int
    num_heads: int
    dim_mul: float
    head_mul: float


class HieraEncoder(nn.Module):
    """Stem, positions and blocks: everything before the final norm and the head.

    A variant of Hiera is a subclass that replaces parts: `layout_class` (order of tokens),
    `make_positions` and `add_positions`, `make_blocks`, `init_module`, `is_position`, `stage_map`.

    Args:
        input_size: pixels along each dimension: (H, W) of an image, (T, H, W) of a clip. T must
            be a multiple of 2, H and W of 32 (one mask unit, with the default patches).
        in_chans: input channels.
        embed_dim, num_heads: width and heads of the first stage; both grow by `dim_mul` and
            `head_mul` at each stage.
        stages: number of blocks of each stage.
        q_pool: how many of the stage changes pool: 3 in classifiers, 2 in pretraining.
        q_stride: pooling stride along each dimension.
        mask_unit_size: tokens of a mask unit along each dimension.
        mask_unit_attn: for each stage, whether attention stays inside mask units.
        patch_kernel, patch_stride, patch_padding: of the stem's convolution.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0.
        sep_pos_embed: spatial plus temporal positions instead of one table (3-D inputs).
        abs_win: positions as a window part, tiled, plus a global part, resized: the form that
            carries to other sizes (arXiv 2311.05613). Not the published parametrisation.
        act_checkpoint: recompute the blocks' activations in the backward pass to save memory.
        contrast_stem: a stem whose filters always have zero mean and start at six times the
            published size: it sees contrast, not brightness. For small models trained from scratch:
            on the camera-motion set the published stem stays at chance and this one learns.

    Raises:
        UserError: sizes do not divide or tuples differ in length; the message says what is allowed.
    """

    layout_class: type[TokenLayout] = TokenLayout
    """Class of `layout`, which defines the order of tokens."""
    embedding_names: tuple[str, ...] = ("patch_embed.", "pos_embed")
    """How the names of the parameters before the first block begin."""

    pos_embed: nn.Parameter
    pos_embed_spatial: nn.Parameter
    pos_embed_temporal: nn.Parameter
    pos_embed_window: nn.Parameter

    def __init__(
        self,
        input_size: Sequence[int] = (224, 224),
        in_chans: int = 3,
        embed_dim: int = 96,
        num_heads: int = 1,
        stages: Sequence[int] = (2, 3, 16, 3),
        q_pool: int = 3,
        q_stride: Sequence[int] = (2, 2),
        mask_unit_size: Sequence[int] = (8, 8),
        mask_unit_attn: Sequence[bool] = (True, True, False, False),
        dim_mul: float = 2.0,
        head_mul: float = 2.0,
        patch_kernel: Sequence[int] = (7, 7),
        patch_stride: Sequence[int] = (4, 4),
        patch_padding: Sequence[int] = (3, 3),
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        sep_pos_embed: bool = False,
        abs_win: bool = False,
        act_checkpoint: bool = False,
        contrast_stem: bool = False,
    ) -> None:
        super().__init__()
        check_stages(stages, q_pool=q_pool, mask_unit_attn=mask_unit_attn)
        self.layout = self.layout_class(
            input_size=input_size,
            patch_stride=patch_stride,
            mask_unit_size=mask_unit_size,
            q_stride=q_stride,
            num_pools=len(stages) - 1,
        )
        self.input_size = tuple(input_size)
        self.stages, self.q_pool = tuple(stages), q_pool
        self.mask_unit_attn = tuple(mask_unit_attn)
        self.sep_pos_embed, self.abs_win = sep_pos_embed, abs_win
        self.act_checkpoint, self.contrast_stem = act_checkpoint, contrast_stem

        self.patch_embed = PatchEmbed(
            in_chans,
            embed_dim,
            kernel=patch_kernel,
            stride=patch_stride,
            padding=patch_padding,
            contrast=contrast_stem,
        )
        self.make_positions(embed_dim)
        widths = StageWidths(embed_dim, num_heads, dim_mul=dim_mul, head_mul=head_mul)
        plan = self._plan_blocks(widths, mlp_ratio=mlp_ratio, drop_path_rate=drop_path_rate)
        blocks = self.make_blocks(plan)
        self.blocks = nn.ModuleList(blocks)
        self.stage_ends = [sum(self.stages[: i + 1]) - 1 for i in range(len(self.stages))]
        self.stage_dims = [blocks[end].dim_out for end in self.stage_ends]

    # ---- building -----------------------------------------------------------------------

    def _plan_blocks(
        self, widths: StageWidths, *, mlp_ratio: float, drop_path_rate: float
    ) -> list[BlockConfig]:
        """Return the settings of all blocks, in order.

        The first block of stages 2 to 4 doubles the width and pools the queries; its attention is
        still of the kind of the stage before.
        """
        rates = torch.linspace(0, drop_path_rate, sum(self.stages), device="cpu").tolist()
        dim, heads = widths.embed_dim, widths.num_heads
        plan: list[BlockConfig] = []
        for stage, depth in enumerate(self.stages):
            for i in range(depth):
                enters = i == 0 and stage > 0
                dim_out = int(dim * widths.dim_mul) if enters else dim
                heads = int(heads * widths.head_mul) if enters else heads
                config = BlockConfig(
                    dim,
                    dim_out,
                    heads,
                    q_pool=self.layout.pool_factor if enters and stage <= self.q_pool else 1,
                    local=self.mask_unit_attn[stage - 1 if enters else stage],
                    mlp_ratio=mlp_ratio,
                    drop_path=rates[len(plan)],
                )
                plan.append(config)
                dim = dim_out
        return plan

    def make_blocks(self, plan: Sequence[BlockConfig]) -> list[Block]:
        """Build the blocks from their settings."""
        return [Block(config) for config in plan]

    def make_positions(self, channels: int) -> None:
        """Add the parameters of the positions; UserError for settings that exclude each other."""
        grid, dims = self.layout.grid, self.layout.dims
        if self.sep_pos_embed and dims != 3:
            raise UserError(f"sep_pos_embed=True needs a (T, H, W) input, not {self.input_size}")
        if self.abs_win and dims != 2 and not self.sep_pos_embed:
            raise UserError("abs_win=True needs an image model or a video model with sep_pos_embed")
        plane = grid[1:] if self.sep_pos_embed else grid
        tokens = torch.Size(plane).numel()
        name = "pos_embed_spatial" if self.sep_pos_embed else "pos_embed"
        if self.abs_win:
            # one side for all input sizes, so that weights carry over: `_plane` resizes the table
            side = (ABS_WIN_GRID, ABS_WIN_GRID)
            self.register_parameter(name, positions_parameter(1, channels, *side))
            window = self.layout.unit[-2:]
            self.pos_embed_window = positions_parameter(1, channels, *window)
        else:
            self.register_parameter(name, positions_parameter(1, tokens, channels))
        if self.sep_pos_embed:
            self.pos_embed_temporal = positions_parameter(1, grid[0], channels)

    # ---- sizes and names of parameters --------------------------------------------------

    @property
    def clip_shape(self) -> tuple[int, ...]:
        """Shape of one input, (C_in, *input_size)."""
        return (self.patch_embed.proj.in_channels, *self.input_size)

    @property
    def num_mask_units(self) -> int:
        """U, the mask units of one clip: 392 for 16x224x224, 49 for 224x224."""
        return self.layout.num_units

    @property
    def num_layers(self) -> int:
        """The largest `layer_id`: depth + 1."""
        return len(self.blocks) + 1

    def layer_id(self, name: str) -> int:
        """Depth of a parameter for layer decay: stem and positions 0, block i: i + 1, rest last."""
        if name.startswith(self.embedding_names):
            return 0
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return self.num_layers

    def is_position(self, name: str) -> bool:
        """Whether a parameter is a position embedding."""
        return name.startswith("pos_embed")

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that must not be decayed: position embeddings."""
        return {name for name, _ in self.named_parameters() if self.is_position(name)}

    @staticmethod
    def init_module(module: nn.Module, *, bias: float) -> None:
        """Initialise one module, not its children, as `init_layer`."""
        init_layer(module, bias=bias)

    def reset_parameters(self) -> None:
        """Initialise as published: weights normal 0.02, biases of linear layers and norms 0.02."""
        self.apply(partial(self.init_module, bias=0.02))
        for name, parameter in self.named_parameters():
            if self.is_position(name):
                nn.init.normal_(parameter, std=INIT_STD)
        if self.contrast_stem:
            init_contrast(self.patch_embed.proj.weight)

    def stage_pools(self, stage: int) -> int:
        """Number of poolings before the end of `stage` (0-based)."""
        return min(stage, self.q_pool)

    # ---- forward ------------------------------------------------------------------------

    def embed(self, clips: Tensor, keep: Tensor | None = None, kept: int | None = None) -> Tensor:
        """Pixels [B, C_in, *input_size] -> first-stage tokens [B, k, n, C] of the kept units.

        Raises:
            UserError: the model cannot take `clips` (`inputs.check_clips`), or `keep` is not a
                usable mask (`tokens.count_kept`).
        """
        check_clips(clips, self.clip_shape, weight=self.patch_embed.proj.weight)
        if keep is None:
            return self.add_positions(self.patch_embed(clips, self.layout))
        batch, units = clips.shape[0], self.num_mask_units
        kept = count_kept(keep, batch=batch, num_units=units, known=kept)
        return self.embed_units(clips, keep, unit_ids(keep, kept))

    def embed_units(self, clips: Tensor, keep: Tensor, ids: Tensor) -> Tensor:
        """`embed` for a mask that was checked, with the flat positions `ids` of its kept units."""
        tokens = self.patch_embed.visible(clips, self.layout, keep, ids)
        positions = self.positions()[0].index_select(0, ids % self.num_mask_units)
        return tokens + positions.view_as(tokens)

    def add_positions(self, tokens: Tensor) -> Tensor:
        """Add the positions to the tokens of all units, [B, U, n, C]."""
        return tokens + self.positions()

    def forward_stages(self, tokens: Tensor, last: int | None = None) -> list[Tensor]:
        """First-stage tokens [B, k, n, C] -> tokens at the end of every stage, unit-major.

        last: the last stage (0-based) that is needed; None: all are.
        """
        outputs: list[Tensor] = []
        end = self.stage_ends[-1 if last is None else last]
        for i, block in enumerate(self.blocks):
            if i > end:
                break
            if self.act_checkpoint and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
            if i in self.stage_ends:
                outputs.append(tokens)
        return outputs

    def forward_features(
        self, clips: Tensor, keep: Tensor | None = None, kept: int | None = None
    ) -> Tensor:
        """Pixels -> tokens of the last stage [B, k, n, C], before any norm."""
        return self.forward_stages(self.embed(clips, keep, kept=kept))[-1]

    def stage_features(self, clips: Tensor, keep: Tensor | None = None) -> list[Tensor]:
        """Return the feature maps of every stage in raster order.

        Args:
            clips: pixels [B, C_in, *input_size].
            keep: bool [B, U], True = visible; None for all.

        Returns:
            One tensor per stage: [B, *grid, C] (time, rows, columns) without a mask; with one,
            [B, k, *unit, C]: the kept units, each in raster order.
        """
        stages = self.forward_stages(self.embed(clips, keep))
        return [self.stage_map(x, i, dense=keep is None) for i, x in enumerate(stages)]

    def stage_map(self, tokens: Tensor, stage: int, *, dense: bool) -> Tensor:
        """Tokens at the end of `stage` -> [B, *grid, C] of all units, else [B, k, *unit, C]."""
        arrange = self.layout.to_raster if dense else self.layout.to_unit_raster
        return arrange(tokens, self.stage_pools(stage))

    def random_keep(
        self, batch: int, mask_ratio: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw a keep mask bool [B, U], True = visible, that deletes `mask_ratio` of the units.

        Raises UserError for a ratio outside [0, 1).
        """
        device = self.patch_embed.proj.weight.device if generator is None else generator.device
        noise = torch.rand(batch, self.num_mask_units, device=device, generator=generator)
        return keep_from_noise(noise, mask_ratio).to(self.patch_embed.proj.weight.device)

    # ---- positions ----------------------------------------------------------------------

    def positions(self) -> Tensor:
        """Return the learned positions in unit-major order, [1, U, n, C]."""
        grid = self.layout.grid
        channels = self.patch_embed.proj.out_channels
        if self.sep_pos_embed:
            raster = self._plane(self.pos_embed_spatial, grid[1:]).view(1, 1, *grid[1:], channels)
            raster = raster + self.pos_embed_temporal.view(1, grid[0], 1, 1, channels)
        else:
            raster = self._plane(self.pos_embed, grid).view(1, *grid, channels)
        return self.layout.to_units(raster)

    def _plane(self, embed: Tensor, grid: Sequence[int]) -> Tensor:
        """Return a table as [1, N, C]: as it is stored, or window part plus resized global part."""
        if not self.abs_win:
            return embed
        whole = F.interpolate(embed, size=tuple(grid), mode="bicubic", align_corners=False)
        window = self.pos_embed_window
        repeats = [g // w for g, w in zip(grid, window.shape[2:], strict=True)]
        return (whole + window.tile(1, 1, *repeats)).flatten(2).transpose(1, 2)


class Hiera(HieraEncoder):
    """Hiera as a classifier: mean over tokens, LayerNorm, dropout, one linear layer.

    Args:
        num_classes: outputs; 0 returns the feature [B, C] before the linear layer, not logits.
        head_dropout: dropout before the linear layer.
        head_init_scale: factor on the linear layer's initial weight and bias.
        readout_stages: stages (0-based) that the head reads through a `Readout`, in place of the
            mean of the last one. What comes after them is not run and not trained. For small models
            with a frozen encoder; empty: the published head.
        attentive: read the tokens of these stages (empty: of the last one) by attention with one
            learned query, through an `AttentiveReadout`, a norm and the linear layer.
        kwargs: see `HieraEncoder`.
    """

    def __init__(
        self,
        *args: Any,
        num_classes: int = 1000,
        head_dropout: float = 0.0,
        head_init_scale: float = 0.001,
        readout_stages: Sequence[int] = (),
        attentive: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if num_classes < 0:
            raise UserError(f"num_classes={num_classes} must be 0 (features) or more")
        check_readout_stages(readout_stages, len(self.stages))
        self.num_classes, self.head_init_scale = num_classes, head_init_scale
        if attentive and not readout_stages:
            readout_stages = (len(self.stages) - 1,)
        self.readout_stages = tuple(readout_stages)
        self.readout: Readout | AttentiveReadout | None = None
        dim = self.stage_dims[-1]
        if readout_stages:
            self.readout = self._make_readout(attentive)
            dim = self.readout.out_dim
            for block in self.blocks[self.stage_ends[readout_stages[-1]] + 1 :]:
                block.requires_grad_(False)  # several processes wait for every gradient
        normed = attentive or self.readout is None
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS) if normed else nn.Identity()
        self.head = Head(dim, num_classes, head_dropout) if num_classes else nn.Identity()
        self.reset_parameters()

    def _make_readout(self, attentive: bool) -> Readout | AttentiveReadout:
        """Build what reads `readout_stages`."""
        widths = [self.stage_dims[stage] for stage in self.readout_stages]
        if not attentive:
            return Readout(widths)
        grids = [self.layout.grid_shape(self.stage_pools(stage)) for stage in self.readout_stages]
        tokens = [torch.Size(grid).numel() for grid in grids]
        return AttentiveReadout(list(zip(tokens, widths, strict=True)))

    def reset_parameters(self) -> None:
        """Initialise as published, the head smaller."""
        super().reset_parameters()
        self.reset_head()

    def reset_head(self) -> None:
        """Initialise the head, scaled down so that training starts from near-equal scores."""
        if isinstance(self.head, Head):
            init_layer(self.head.projection, bias=0.02)
            with torch.no_grad():
                self.head.projection.weight.mul_(self.head_init_scale)
                self.head.projection.bias.mul_(self.head_init_scale)

    def forward_features(
        self, clips: Tensor, keep: Tensor | None = None, kept: int | None = None
    ) -> Tensor:
        """Pixels -> what `forward_head` takes: tokens of the last stage [B, k, n, C]; with a
        readout its features [B, D]."""
        if self.readout is None:
            return super().forward_features(clips, keep, kept=kept)
        if keep is not None:
            raise UserError(
                f"a model with readout_stages={self.readout_stages} reads whole clips: it takes no "
                "mask"
            )
        stages = self.forward_stages(self.embed(clips), last=self.readout_stages[-1])
        maps = [self.stage_map(stages[i], i, dense=True) for i in self.readout_stages]
        features: Tensor = self.readout(maps)
        return features

    def forward_head(self, features: Tensor) -> Tensor:
        """Features of `forward_features` -> logits [B, num_classes]."""
        if self.readout is not None:
            logits: Tensor = self.head(self.norm(self.readout.head_input(features)))
        else:
            logits = self.head(self.norm(features.mean(dim=(1, 2))))
        return logits

    def forward(self, clips: Tensor, keep: Tensor | None = None, kept: int | None = None) -> Tensor:
        """Classify clips. All arguments may be given by position, as exporters do.

        Args:
            clips: normalised pixels [B, C_in, *input_size].
            keep: bool [B, U], True = visible; None for all. The same number per clip.
            kept: that number, if it is known (see `tokens.count_kept`).

        Returns:
            Logits [B, num_classes], in training and in evaluation.

        Raises:
            UserError: as `embed`.
        """
        return self.forward_head(self.forward_features(clips, keep, kept=kept))


def positions_parameter(*shape: int) -> nn.Parameter:
    """Return a parameter of zeros, to be initialised."""
    return nn.Parameter(torch.zeros(*shape))


def init_layer(module: nn.Module, *, bias: float) -> None:
    """Initialise weights by a normal 0.02, biases of linear layers and norms by `bias`."""
    if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, (nn.Linear, nn.LayerNorm)) and module.bias is not None:
        nn.init.constant_(module.bias, bias)
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)


@torch.no_grad()
def init_contrast(weight: Tensor) -> None:
    """Initialise the filters [C, C_in, *kernel] of a contrast stem."""
    nn.init.normal_(weight, std=6 * INIT_STD)


def check_stages(stages: Sequence[int], *, q_pool: int, mask_unit_attn: Sequence[bool]) -> None:
    """Raise UserError for stage settings that do not fit each other, naming both."""
    if not stages or any(not isinstance(s, int) or s < 1 for s in stages):
        raise UserError(f"stages={tuple(stages)!r} must be one positive block count per stage")
    if len(mask_unit_attn) != len(stages):
        raise UserError(
            f"mask_unit_attn={tuple(mask_unit_attn)} must have one entry for each of the "
            f"{len(stages)} stages"
        )
    if not 0 <= q_pool < len(stages):
        raise UserError(f"q_pool={q_pool} must be 0 to {len(stages) - 1} for {len(stages)} stages")


# ---- the registered variants --------------------------------------------------------------


def register_variants(size: str) -> None:
    """Register `hiera_{size}_224` (ImageNet-1K) and `hiera_{size}_16x224` (Kinetics-400)."""

    def image(num_classes: int = 1000, **overrides: Any) -> Hiera:
        return Hiera(**{**SIZES[size], "num_classes": num_classes, **overrides})

    def video(num_classes: int = 400, **overrides: Any) -> Hiera:
        return Hiera(**{**SIZES[size], **VIDEO, "num_classes": num_classes, **overrides})

    image.__doc__ = f"Hiera-{size} for 224x224 images; 1000 classes unless said otherwise."
    video.__doc__ = f"Hiera-{size} for 16-frame 224x224 clips; 400 classes unless said otherwise."
    MODEL_REGISTRY.register(name=f"hiera_{size}_224")(image)
    MODEL_REGISTRY.register(name=f"hiera_{size}_16x224")(video)


for _size in SIZES:
    register_variants(_size)
