"""PyTorchVideo's hub models: ResNets in space and time, SlowFast, X3D and MViTv1.

The names, depths and kernels are those of `pytorchvideo.models.hub` (0.1.5), so that the published
files fit; networks come from its builders. What its hub leaves to the user is done here: one clip
is split into two pathways, the pooling of the head follows the number of frames and the crop, and
the softmax at the end of two of its heads is left out, as models here return logits.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video.compat import pytorchvideo_module
from hiera_video.models.baselines.adapter import (
    Baseline,
    LayeredBaseline,
    check_video_size,
    on_default_device,
)
from hiera_video.registry import MODEL_REGISTRY

SPATIAL_STRIDE = 32
"""Pixels of the input per place of the last feature map, for every convolutional model here."""


class ScorePooled(Baseline):
    """A convolutional network whose published head averages *probabilities* over places.

    At the crop it is built for, the head sees one place, and the logits are the linear layer's. A
    larger crop has several: the library takes a softmax at each and averages. Returned is the
    logarithm of that average, since its softmax is the average.
    """

    def logits(self, clips: Tensor) -> Tensor:
        """See `Baseline`."""
        places = self.network(clips).flatten(2)  # (B, K, places)
        if places.shape[2] == 1:
            return places.squeeze(2)
        return places.log_softmax(dim=1).logsumexp(dim=2) - math.log(places.shape[2])


class TwoPathways(Baseline):
    """SlowFast: the fast pathway sees every frame of the clip, the slow one every `alpha`-th.

    Args:
        alpha: frames of the fast pathway for one of the slow.
        kwargs: see `Baseline`.
    """

    picked: Tensor

    def __init__(self, network: nn.Module, *, alpha: int, **kwargs: Any) -> None:
        super().__init__(network, **kwargs)
        picked = slow_frames(self.input_size[0], alpha)
        self.register_buffer("picked", picked, persistent=False)

    def logits(self, clips: Tensor) -> Tensor:
        """See `Baseline`."""
        out: Tensor = self.network([clips.index_select(2, self.picked), clips])
        return out


def slow_frames(frames: int, alpha: int) -> Tensor:
    """Indices of the frames that the slow pathway sees, int64 [frames / alpha].

    They are spread from the first to the last (`linspace`, rounded down), as in SlowFast and in
    PyTorchVideo's tutorials: 0 4 8 13 17 22 26 31 of 32.
    """
    return torch.linspace(0, frames - 1, frames // alpha).long()


# ---- convolutional networks ---------------------------------------------------------------


@dataclass(frozen=True)
class Convolutional:
    """The settings of one convolutional model of the hub."""

    builder: str
    """PyTorchVideo's function, "module.function"."""
    input_size: tuple[int, int, int]
    """(T, H, W) it was trained with."""
    head: str
    """Name of the last linear layer."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that the hub passes to the builder, apart from sizes."""
    temporal_stride: int = 1
    """Frames of the input for one step of the last feature map."""


_SIX_IN_STAGE_4 = ((3, 1, 1),) * 6 + ((1, 1, 1),) * 17

CONVOLUTIONAL: dict[str, Convolutional] = {
    "slow_r50": Convolutional(
        builder="resnet.create_resnet",
        input_size=(8, 224, 224),
        head="blocks.5.proj",
        arguments={"model_depth": 50, "stem_conv_kernel_size": (1, 7, 7)},
    ),
    "c2d_r50": Convolutional(
        builder="resnet.create_resnet",
        input_size=(8, 224, 224),
        head="blocks.6.proj",
        arguments={
            "stem_conv_kernel_size": (1, 7, 7),
            "stage1_pool": nn.MaxPool3d,
            "stage_conv_a_kernel_size": ((1, 1, 1),) * 4,
        },
        temporal_stride=2,
    ),
    "i3d_r50": Convolutional(
        builder="resnet.create_resnet",
        input_size=(8, 224, 224),
        head="blocks.6.proj",
        arguments={
            "stem_conv_kernel_size": (5, 7, 7),
            "stage1_pool": nn.MaxPool3d,
            "stage_conv_a_kernel_size": (
                (3, 1, 1),
                [(3, 1, 1), (1, 1, 1)],
                [(3, 1, 1), (1, 1, 1)],
                [(1, 1, 1), (3, 1, 1)],
            ),
        },
        temporal_stride=2,
    ),
    "csn_r101": Convolutional(
        builder="csn.create_csn",
        input_size=(32, 224, 224),
        head="blocks.5.proj",
        arguments={"model_depth": 101, "stem_pool": nn.MaxPool3d},
        temporal_stride=8,
    ),
    "r2plus1d_r50": Convolutional(
        builder="r2plus1d.create_r2plus1d",
        input_size=(16, 224, 224),
        head="blocks.5.proj",
        arguments={"dropout_rate": 0.5},
        temporal_stride=4,
    ),
    "slowfast_r50": Convolutional(
        builder="slowfast.create_slowfast",
        input_size=(32, 224, 224),
        head="blocks.6.proj",
        arguments={"model_depth": 50, "slowfast_fusion_conv_kernel_size": (7, 1, 1)},
    ),
    "slowfast_r101": Convolutional(
        builder="slowfast.create_slowfast",
        input_size=(32, 224, 224),
        head="blocks.6.proj",
        arguments={"model_depth": 101, "slowfast_fusion_conv_kernel_size": (5, 1, 1)},
    ),
    "slowfast_16x8_r101_50_50": Convolutional(
        builder="slowfast.create_slowfast",
        input_size=(64, 224, 224),
        head="blocks.6.proj",
        arguments={
            "model_depth": 101,
            "slowfast_fusion_conv_kernel_size": (5, 1, 1),
            "stage_conv_a_kernel_sizes": (
                ((1, 1, 1), (1, 1, 1), _SIX_IN_STAGE_4, (3, 1, 1)),
                ((3, 1, 1), (3, 1, 1), _SIX_IN_STAGE_4, (3, 1, 1)),
            ),
        },
    ),
    **{
        name: Convolutional(
            builder="x3d.create_x3d", input_size=size, head="blocks.5.proj", arguments=arguments
        )
        for name, size, arguments in (
            ("x3d_xs", (4, 160, 160), {}),
            ("x3d_s", (13, 160, 160), {}),
            ("x3d_m", (16, 224, 224), {}),
            ("x3d_l", (16, 312, 312), {"depth_factor": 5.0}),
        )
    },
}
"""The hub's models, with its arguments (`pytorchvideo/models/hub/*.py` of 0.1.5)."""


def build_convolutional(
    name: str,
    *,
    num_classes: int,
    input_size: Sequence[int] | None,
    head_dropout: float | None,
    library: Mapping[str, Any],
) -> Baseline:
    """Build a model of `CONVOLUTIONAL`; the pooling of its head follows `input_size`.

    Raises:
        UserError: `input_size` does not fit the model.
    """
    variant = CONVOLUTIONAL[name]
    arguments: dict[str, Any] = {**variant.arguments, "model_num_class": num_classes, **library}
    if head_dropout is not None:
        arguments["dropout_rate"] = head_dropout
    alpha = arguments.get("slowfast_fusion_conv_stride", (4, 1, 1))[0]
    is_slowfast, is_x3d = "slowfast" in variant.builder, "x3d" in variant.builder
    size = check_video_size(
        name,
        input_size or variant.input_size,
        frames=alpha if is_slowfast else variant.temporal_stride,
        square=is_x3d,
    )
    time = size[0] // variant.temporal_stride
    space = tuple(math.ceil(side / SPATIAL_STRIDE) for side in size[1:])
    if is_x3d:
        arguments |= {"input_clip_length": size[0], "input_crop_size": size[1]}
    elif is_slowfast:
        arguments["head_pool_kernel_sizes"] = ((time // alpha, *space), (time, *space))
    else:
        arguments["head_pool_kernel_size"] = (time, *space)
    contract: dict[str, Any] = {"head": variant.head, "input_size": size, "any_crop": True}
    if is_slowfast:
        return TwoPathways(_builder(variant.builder)(**arguments), alpha=alpha, **contract)
    if is_x3d or "r2plus1d" in variant.builder:  # whose published heads end in a softmax
        arguments |= {"head_activation": None, "head_output_with_global_average": False}
        network = _builder(variant.builder)(**arguments)
        _plain_numbers(network)
        _plain_sums(network)
        return ScorePooled(network, **contract)
    return Baseline(_builder(variant.builder)(**arguments), **contract)


def _plain_numbers(network: nn.Module) -> None:
    """Turn the numpy numbers that X3D's builder puts into its pooling into Python's.

    torch.compile cannot work with them.
    """
    for module in network.modules():
        if isinstance(module, nn.AvgPool3d) and not isinstance(module.kernel_size, int):
            time, rows, columns = map(int, module.kernel_size)
            module.kernel_size = (time, rows, columns)


def _plain_sums(network: nn.Module) -> None:
    """Replace the sum of X3D's branches, a lambda of its builder, by one that can be pickled."""
    for module in network.modules():
        if "branch_fusion" in vars(module):
            vars(module)["branch_fusion"] = operator.add


def register_convolutional(name: str) -> None:
    """Register a model of `CONVOLUTIONAL` under the hub's name."""

    def build(
        num_classes: int = 400,
        *,
        input_size: Sequence[int] | None = None,
        head_dropout: float | None = None,
        library: Mapping[str, Any] = MappingProxyType({}),
    ) -> Baseline:
        return build_convolutional(
            name,
            num_classes=num_classes,
            input_size=input_size,
            head_dropout=head_dropout,
            library=library,
        )

    frames, side, _ = CONVOLUTIONAL[name].input_size
    build.__doc__ = f"PyTorchVideo's {name} for clips of {frames} frames, {side}x{side} or larger."
    MODEL_REGISTRY.register(name=name)(build)


# ---- MViTv1 -------------------------------------------------------------------------------

MVIT_BASE: dict[str, Any] = {
    "embed_dim_mul": [[1, 2.0], [3, 2.0], [14, 2.0]],
    "atten_head_mul": [[1, 2.0], [3, 2.0], [14, 2.0]],
    "pool_q_stride_size": [[1, 1, 2, 2], [3, 1, 2, 2], [14, 1, 2, 2]],
    "pool_kv_stride_adaptive": [1, 8, 8],
    "pool_kvq_kernel": [3, 3, 3],
}
"""The hub's configuration of MViTv1-B for video."""


def build_mvit(
    name: str, arguments: Mapping[str, Any], *, input_size: Sequence[int], act_checkpoint: bool
) -> LayeredBaseline:
    """Build MViTv1 with position embeddings for exactly `input_size`.

    Args:
        name: for messages.
        arguments: of PyTorchVideo's builder, besides `MVIT_BASE` and the sizes.
        input_size: (T, H, W).
        act_checkpoint: recompute each block in the backward pass.

    Raises:
        UserError: `input_size` does not fit the model.
    """
    size = check_video_size(name, input_size, frames=2, side=SPATIAL_STRIDE)
    arguments = {**MVIT_BASE, **arguments, "spatial_size": size[1:], "temporal_size": size[0]}
    builder = _builder("vision_transformers.create_multiscale_vision_transformers")
    return LayeredBaseline(
        on_default_device(functools.partial(builder, **arguments)),
        head="head.proj",
        input_size=size,
        head_init_std=0.02,
        blocks="blocks",
        embedding=("patch_embed.", "cls_positional_encoding."),
        no_decay=("cls_positional_encoding.",),
        act_checkpoint=act_checkpoint,
    )


def register_mvit(name: str, frames: int) -> None:
    """Register MViTv1-B for clips of `frames` frames under the hub's name."""

    def build(
        num_classes: int = 400,
        *,
        input_size: Sequence[int] = (frames, 224, 224),
        head_dropout: float | None = None,
        drop_path_rate: float = 0.0,
        act_checkpoint: bool = False,
        library: Mapping[str, Any] = MappingProxyType({}),
    ) -> LayeredBaseline:
        arguments = {
            "head_num_classes": num_classes,
            **library,
            "droppath_rate_block": drop_path_rate,
        }
        if head_dropout is not None:
            arguments["head_dropout_rate"] = head_dropout
        return build_mvit(name, arguments, input_size=input_size, act_checkpoint=act_checkpoint)

    build.__doc__ = f"PyTorchVideo's MViTv1-B for clips of {frames} frames, 224x224."
    MODEL_REGISTRY.register(name=name)(build)


def _builder(name: str) -> Callable[..., nn.Module]:
    """A function of `pytorchvideo.models`, named "module.function"."""
    module, _, function = name.partition(".")
    builder: Callable[..., nn.Module]
    builder = getattr(pytorchvideo_module(f"pytorchvideo.models.{module}"), function)
    return builder


for _name in CONVOLUTIONAL:
    register_convolutional(_name)
register_mvit("mvit_base_16x4", frames=16)
register_mvit("mvit_base_32x3", frames=32)
