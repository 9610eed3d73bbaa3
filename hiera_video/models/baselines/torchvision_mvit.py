"""torchvision's MViT: `torchvision_mvit_v1_b` and `torchvision_mvit_v2_s`.

The same two networks are registered as PyTorchVideo's `mvit_base_16x4` and as this package's own
`mvitv2_small_16x224`; tests compare the latter with torchvision's.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence

from hiera_video.compat import ensure_torchvision
from hiera_video.errors import UserError
from hiera_video.models.baselines.adapter import (
    LayeredBaseline,
    check_video_size,
    on_default_device,
)
from hiera_video.registry import MODEL_REGISTRY

INPUT_SIZE = (16, 224, 224)


def build(
    name: str,
    *,
    num_classes: int,
    input_size: Sequence[int],
    head_dropout: float,
    drop_path_rate: float,
    act_checkpoint: bool,
) -> LayeredBaseline:
    """Build torchvision's "mvit_v1_b" or "mvit_v2_s", in the one size that it offers.

    Raises:
        UserError: another size; torchvision is not installed or does not fit torch.
    """
    size = check_video_size(f"torchvision_{name}", input_size)
    if size != INPUT_SIZE:
        raise UserError(
            f"torchvision_{name}: input_size={size}; torchvision builds it for {INPUT_SIZE} alone"
        )
    ensure_torchvision()
    builder = getattr(importlib.import_module("torchvision.models.video"), name)
    network = on_default_device(
        functools.partial(
            builder,
            num_classes=num_classes,
            dropout=head_dropout,
            stochastic_depth_prob=drop_path_rate,
        )
    )
    return LayeredBaseline(
        network,
        head="head.1",
        input_size=size,
        head_init_std=0.02,
        blocks="blocks",
        embedding=("conv_proj.", "pos_encoding."),
        no_decay=("pos_encoding.",),
        act_checkpoint=act_checkpoint,
    )


def register(name: str, title: str) -> None:
    """Register torchvision's `name` as "torchvision_{name}"; `title` is for its docstring."""

    def builder(
        num_classes: int = 400,
        *,
        input_size: Sequence[int] = INPUT_SIZE,
        head_dropout: float = 0.5,
        drop_path_rate: float = 0.2,
        act_checkpoint: bool = False,
    ) -> LayeredBaseline:
        return build(
            name,
            num_classes=num_classes,
            input_size=input_size,
            head_dropout=head_dropout,
            drop_path_rate=drop_path_rate,
            act_checkpoint=act_checkpoint,
        )

    builder.__doc__ = f"torchvision's {title} for clips of 16 frames, 224x224."
    MODEL_REGISTRY.register(name=f"torchvision_{name}")(builder)


register("mvit_v1_b", "MViTv1-B")
register("mvit_v2_s", "MViTv2-S")
