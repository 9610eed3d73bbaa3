"""MViTv2 as it was published (arXiv 2112.01526): the models the ladder starts from.

They are the ladder's first rung with the details in which the published models differ from it and
from each other: video models put a class token first and stride keys and values by 8, 4, 2, 1; the
large ones double their width in the MLP. State dicts have the published keys; those of torchvision,
timm and SlowFast load too (`mvit_keys.py`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from hiera_video.models.hiera import SIZES, VIDEO, Hiera
from hiera_video.models.ladder.ablation import RUNGS, Rung, as_rung
from hiera_video.registry import MODEL_REGISTRY

IMAGE_RUNG = RUNGS["r0"]
VIDEO_RUNG = dataclasses.replace(RUNGS["r0"], kv_stride=(8, 4, 2, 1), cls_token=True, final="cls")

TINY = {**SIZES["tiny"], "stages": (1, 2, 5, 2)}
LONG_CLIPS = {**VIDEO, "input_size": (32, 224, 224)}


def register_mvitv2(
    name: str, *, rung: Rung, sizes: dict[str, Any], num_classes: int, says: str
) -> None:
    """Register one published model."""
    usual = num_classes

    def build(num_classes: int = usual, **overrides: Any) -> Hiera:
        changed = as_rung(overrides.get("rung"), base=rung)
        return Hiera(**{**sizes, "num_classes": num_classes, **overrides, "rung": changed})

    build.__doc__ = f"{says}; {usual} classes unless said otherwise."
    MODEL_REGISTRY.register(name=name)(build)


for _size in ("tiny", "small", "base", "large"):
    register_mvitv2(
        f"mvitv2_{_size}_224",
        rung=dataclasses.replace(IMAGE_RUNG, expand="mlp" if _size == "large" else "attn"),
        sizes=TINY if _size == "tiny" else SIZES[_size],
        num_classes=1000,
        says=f"MViTv2-{_size} for 224x224 images, as published for ImageNet-1K",
    )
register_mvitv2(
    "mvitv2_small_16x224",
    rung=VIDEO_RUNG,
    sizes={**SIZES["small"], **VIDEO},
    num_classes=400,
    says="MViTv2-small for 16-frame 224x224 clips, as published for Kinetics-400",
)
register_mvitv2(
    "mvitv2_base_32x224",
    rung=VIDEO_RUNG,
    sizes={**SIZES["base"], **LONG_CLIPS},
    num_classes=400,
    says="MViTv2-base for 32-frame 224x224 clips, as published for Kinetics-400",
)
register_mvitv2(
    "mvitv2_large_16x224",
    rung=dataclasses.replace(VIDEO_RUNG, expand="mlp"),
    sizes={**SIZES["large"], **VIDEO},
    num_classes=400,
    says="MViTv2-large, cut down to the strides of 16-frame 224x224 clips: the baseline of Hiera's "
    "paper",
)
