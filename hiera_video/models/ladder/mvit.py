"""MViTv2 as published (arXiv 2112.01526): the models that the ladder starts from.

They are the first step of the ladder, with the details in which the published models differ from
it: video models put a class token first and stride keys and values by 8, 4, 2, 1; the large ones
double their width in the MLP. State dicts have the published keys; those of torchvision, timm and
SlowFast are translated when they are loaded.
"""

from __future__ import annotations

import dataclasses

from hiera_video.models.hiera import VIDEO
from hiera_video.models.ladder.ablation import LADDER
from hiera_video.models.ladder.steps import register_classifier

IMAGE_STEP = LADDER["r0"]
VIDEO_STEP = dataclasses.replace(IMAGE_STEP, kv_stride=(8, 4, 2, 1), cls_token=True, final="cls")

TINY = {"stages": (1, 2, 5, 2)}
LONG_CLIPS = {**VIDEO, "input_size": (32, 224, 224)}

for _size in ("tiny", "small", "base", "large"):
    register_classifier(
        f"mvitv2_{_size}_224",
        step=dataclasses.replace(IMAGE_STEP, expand="mlp" if _size == "large" else "attn"),
        size=_size,
        arguments=TINY if _size == "tiny" else {},
        num_classes=1000,
        doc=f"MViTv2-{_size} for 224x224 images, as published for ImageNet-1K",
    )
register_classifier(
    "mvitv2_small_16x224",
    step=VIDEO_STEP,
    size="small",
    arguments=VIDEO,
    num_classes=400,
    doc="MViTv2-small for 16-frame 224x224 clips, as published for Kinetics-400",
)
register_classifier(
    "mvitv2_base_32x224",
    step=VIDEO_STEP,
    size="base",
    arguments=LONG_CLIPS,
    num_classes=400,
    doc="MViTv2-base for 32-frame 224x224 clips, as published for Kinetics-400",
)
register_classifier(
    "mvitv2_large_16x224",
    step=dataclasses.replace(VIDEO_STEP, expand="mlp"),
    size="large",
    arguments=VIDEO,
    num_classes=400,
    doc="MViTv2-large, cut down to the strides of 16-frame 224x224 clips: the baseline of Hiera's "
    "paper",
)
