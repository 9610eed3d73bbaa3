"""The public checkpoints: where they are, and what one must know to use them.

Hiera's addresses, accuracies and licence are those that the authors publish with their code and in
the paper (Ryali et al., Hiera, ICML 2023): ImageNet-1K top-1 for one centre crop, Kinetics-400
top-1 for 5 clips x 3 crops of 16 frames, every 4th. Where the facts on the other models come from
stands with each family.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hiera_video.clip_spec import ClipSpec
from hiera_video.models.weights.key_names import HIERA_KEYS

LICENCE = "CC BY-NC 4.0"
_HOST = "https://dl.fbaipublicfiles.com/hiera/"

VIDEO_CLIPS = ClipSpec(num_frames=16, sampling_rate=4, crop_size=224)
IMAGE_CLIPS = ClipSpec(
    num_frames=1,
    sampling_rate=1,
    crop_size=224,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
DECODER_HEADS = (
    "whether its decoder was trained with 8 or 16 attention heads is not published and its tensors "
    "do not tell: compare the loss under decoder_num_heads=8 and 16 and keep the lower"
)


@dataclass(frozen=True)
class PublishedWeights:
    """One public checkpoint as one model loads it."""

    model: str
    """Registered name of the model."""
    name: str
    """Published name of the weights, e.g. "mae_k400_ft_k400"."""
    url: str
    trained_on: str
    classes: str | None
    """Stem of the file in `labels/` with the head's class names; None: no trained head."""
    num_classes: int | None
    spec: ClipSpec
    """Clip length x stride, crop and normalisation it was trained with."""
    top1: float | None
    """Published accuracy, %; None for weights without a trained head."""
    views: tuple[int, int] | None = None
    """Clips in time x crops that `top1` is an average over; None: one image, or nothing to test."""
    licence: str = LICENCE
    note: str = ""
    head: str = HIERA_KEYS.head[0]
    """Key of the classifier's weight in the file."""
    file: str = ""
    """Name in the cache, where the last part of the address says too little; empty: that part."""

    def __str__(self) -> str:
        return f"{self.model}.{self.name}"

    @property
    def file_name(self) -> str:
        """The name it has in the cache: `file`, or the last part of its address."""
        return self.file or self.url.rsplit("/", 1)[1]


def _family(sizes: dict[str, float], video: bool) -> list[PublishedWeights]:
    """Three rows per size: the classifier, its encoder before fine-tuning, the whole autoencoder.

    Args:
        sizes: size -> published top-1 of its classifier, in percent.
        video: the models for Kinetics-400 clips; otherwise those for ImageNet-1K images.
    """
    suffix, data = ("16x224", "k400") if video else ("224", "in1k")
    full_name = "Kinetics-400" if video else "ImageNet-1K"
    spec = VIDEO_CLIPS if video else IMAGE_CLIPS
    rows = []
    for size, top1 in sizes.items():
        model = f"hiera_{size}_{suffix}"
        encoder = PublishedWeights(
            model=model,
            name=f"mae_{data}",
            url=f"{_HOST}mae_{model}.pth",
            trained_on=f"{full_name}, masked autoencoding",
            classes=None,
            num_classes=None,
            spec=spec,
            top1=None,
        )
        rows += [
            PublishedWeights(
                model=model,
                name=f"mae_{data}_ft_{data}",
                url=f"{_HOST}{model}.pth",
                trained_on=f"{full_name}, masked autoencoding, then fine-tuned on {full_name}",
                classes="kinetics400" if video else "imagenet1k",
                num_classes=400 if video else 1000,
                spec=spec,
                top1=top1,
                views=(5, 3) if video else None,
            ),
            encoder,
            replace(encoder, model=f"mae_{model}", note=DECODER_HEADS if video else ""),
        ]
    return rows


# ---- PyTorchVideo -------------------------------------------------------------------------

# Addresses: pytorchvideo 0.1.5, models/hub. Accuracy, clips and views: its docs/source/model_zoo.md
# (X3D-L and MViT: the hub's docstrings; X3D-L's clips: SlowFast, projects/pytorchvideo). Crops of
# the test: SlowFast, configs/Kinetics/pytorchvideo.
_APACHE = "Apache-2.0 (the project's; none is stated for the weights)"
_ZOO = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/"


def _pytorchvideo(
    model: str,
    file: str,
    spec: ClipSpec,
    *,
    top1: float,
    head: str,
    views: tuple[int, int] = (10, 3),
) -> PublishedWeights:
    """One file of PyTorchVideo's model zoo."""
    return PublishedWeights(
        model=model,
        name="k400",
        url=_ZOO + file,
        trained_on="Kinetics-400",
        classes="kinetics400",
        num_classes=400,
        spec=spec,
        top1=top1,
        views=views,
        licence=_APACHE,
        head=f"{head}.weight",
    )


def _clips(frames: int, rate: int, crop: int) -> ClipSpec:
    """Clips of `frames` frames, every `rate`-th, cropped to `crop` pixels a side."""
    return ClipSpec(num_frames=frames, sampling_rate=rate, crop_size=crop)


_STAGE_5, _STAGE_6, _VIT = "blocks.5.proj", "blocks.6.proj", "head.proj"
PYTORCHVIDEO = [
    _pytorchvideo("slow_r50", "SLOW_8x8_R50.pyth", _clips(8, 8, 256), top1=74.58, head=_STAGE_5),
    _pytorchvideo("c2d_r50", "C2D_8x8_R50.pyth", _clips(8, 8, 256), top1=71.46, head=_STAGE_6),
    _pytorchvideo("i3d_r50", "I3D_8x8_R50.pyth", _clips(8, 8, 256), top1=73.27, head=_STAGE_6),
    _pytorchvideo("csn_r101", "CSN_32x2_R101.pyth", _clips(32, 2, 256), top1=77.0, head=_STAGE_5),
    _pytorchvideo(
        "r2plus1d_r50", "R2PLUS1D_16x4_R50.pyth", _clips(16, 4, 256), top1=76.01, head=_STAGE_5
    ),
    _pytorchvideo(
        "slowfast_r50", "SLOWFAST_8x8_R50.pyth", _clips(32, 2, 256), top1=76.94, head=_STAGE_6
    ),
    _pytorchvideo(
        "slowfast_r101", "SLOWFAST_8x8_R101.pyth", _clips(32, 2, 256), top1=77.9, head=_STAGE_6
    ),
    _pytorchvideo(
        "slowfast_16x8_r101_50_50",
        "SLOWFAST_16x8_R101_50_50.pyth",
        _clips(64, 2, 256),
        top1=78.7,
        head=_STAGE_6,
    ),
    _pytorchvideo("x3d_xs", "X3D_XS.pyth", _clips(4, 12, 182), top1=69.12, head=_STAGE_5),
    _pytorchvideo("x3d_s", "X3D_S.pyth", _clips(13, 6, 182), top1=73.33, head=_STAGE_5),
    _pytorchvideo("x3d_m", "X3D_M.pyth", _clips(16, 5, 256), top1=75.94, head=_STAGE_5),
    _pytorchvideo("x3d_l", "X3D_L.pyth", _clips(16, 5, 356), top1=77.44, head=_STAGE_5),
    _pytorchvideo(
        "mvit_base_16x4", "MVIT_B_16x4.pyth", _clips(16, 4, 224), top1=78.9, head=_VIT, views=(5, 1)
    ),
    _pytorchvideo(
        "mvit_base_32x3",
        "MVIT_B_32x3_f294077834.pyth",
        _clips(32, 3, 224),
        top1=80.3,
        head=_VIT,
        views=(5, 1),
    ),
]


# ---- MViT of torchvision, SlowFast and mvit -----------------------------------------------


def _mvit_video(
    model: str, name: str, url: str, *, clip: tuple[int, int], top1: float, **facts: str
) -> PublishedWeights:
    frames, rate = clip
    return PublishedWeights(
        model=model,
        name=name,
        url=url,
        trained_on="Kinetics-400",
        classes="kinetics400",
        num_classes=400,
        spec=ClipSpec(num_frames=frames, sampling_rate=rate, crop_size=224),
        top1=top1,
        views=(5, 1),
        **facts,
    )


# Addresses, accuracies and clips: torchvision 0.29.1, models/video/mvit.py. It resizes the short
# side to 256 and crops 224; here the short side is the crop, as where the weights come from.
_BSD = "BSD-3-Clause (the project's; none is stated for the weights)"
_TORCHVISION = "https://download.pytorch.org/models/"
_MVIT_V1_B, _MVIT_V2_S = "mvit_v1_b-dbeb1030.pth", "mvit_v2_s-ae3be167.pth"

# Addresses and accuracies: SlowFast, projects/mvitv2/README.md (video); facebookresearch/mvit,
# README.md, and timm 1.0.31, models/mvitv2.py (images).
_SLOWFAST = "https://dl.fbaipublicfiles.com/pyslowfast/model_zoo/mvitv2/pysf_video_models/"
_MVIT = "https://dl.fbaipublicfiles.com/mvit/mvitv2_models/"

MVIT = [
    _mvit_video(
        "torchvision_mvit_v1_b",
        "k400",
        _TORCHVISION + _MVIT_V1_B,
        clip=(16, 4),
        top1=78.477,
        licence=_BSD,
        head="head.1.weight",
    ),
    _mvit_video(
        "torchvision_mvit_v2_s",
        "k400",
        _TORCHVISION + _MVIT_V2_S,
        clip=(16, 4),
        top1=80.757,
        licence=_BSD,
        head="head.1.weight",
    ),
    _mvit_video(
        "mvitv2_small_16x224",
        "k400",
        _SLOWFAST + "MViTv2_S_16x4_k400_f302660347.pyth",
        clip=(16, 4),
        top1=81.0,
        licence=_APACHE,
    ),
    _mvit_video(
        "mvitv2_small_16x224",
        "k400_torchvision",
        _TORCHVISION + _MVIT_V2_S,
        clip=(16, 4),
        top1=80.757,
        licence=_BSD,
        head="head.1.weight",
    ),
    _mvit_video(
        "mvitv2_base_32x224",
        "k400",
        _SLOWFAST + "MViTv2_B_32x3_k400_f304025456.pyth",
        clip=(32, 3),
        top1=82.9,
        licence=_APACHE,
    ),
    *(
        PublishedWeights(
            model=f"mvitv2_{size}_224",
            name="in1k",
            url=f"{_MVIT}MViTv2_{size[0].upper()}_in1k.pyth",
            trained_on="ImageNet-1K",
            classes="imagenet1k",
            num_classes=1000,
            spec=IMAGE_CLIPS,
            top1=top1,
            licence="Apache-2.0",
        )
        for size, top1 in {"tiny": 82.3, "small": 83.6, "base": 84.4, "large": 85.3}.items()
    ),
]


# ---- VideoMAE -----------------------------------------------------------------------------

# Files, configurations and licence: MCG-NJU/videomae-* on the Hugging Face hub. Accuracy and views:
# MCG-NJU/VideoMAE, MODEL_ZOO.md of 2023; that of 2022 has 80.9 and 84.7 for the same base and large
# files. Clips: its scripts/kinetics/*/finetune.sh.
_HUB = "https://huggingface.co/MCG-NJU/"
_VIDEOMAE_CLIPS = replace(VIDEO_CLIPS, mean=IMAGE_CLIPS.mean, std=IMAGE_CLIPS.std)


def _videomae(size: str, top1: float, *, autoencoder: bool) -> list[PublishedWeights]:
    """The classifier and, where it is published, the autoencoder that it started from."""
    model, trained_on = f"videomae_{size}_16x224", "Kinetics-400, masked autoencoding"
    tuned = f"videomae-{size}-finetuned-kinetics"
    rows = [
        PublishedWeights(
            model=model,
            name="mae_k400_ft_k400",
            url=f"{_HUB}{tuned}/resolve/main/pytorch_model.bin",
            file=f"{tuned}.bin",
            trained_on=f"{trained_on}, then fine-tuned on Kinetics-400",
            classes="kinetics400",
            num_classes=400,
            spec=_VIDEOMAE_CLIPS,
            top1=top1,
            views=(5, 3),
            head="classifier.weight",
        )
    ]
    if autoencoder:
        rows += [
            PublishedWeights(
                model=owner,
                name="mae_k400",
                url=f"{_HUB}videomae-{size}/resolve/main/pytorch_model.bin",
                file=f"videomae-{size}.bin",
                trained_on=trained_on,
                classes=None,
                num_classes=None,
                spec=_VIDEOMAE_CLIPS,
                top1=None,
                head="classifier.weight",
            )
            for owner in (model, f"mae_{model}")
        ]
    return rows


VIDEOMAE = [
    *_videomae("base", 81.5, autoencoder=True),
    *_videomae("large", 85.2, autoencoder=True),
    *_videomae("small", 79.0, autoencoder=False),
]


# ---- the table ----------------------------------------------------------------------------

PUBLISHED: dict[tuple[str, str], PublishedWeights] = {
    (row.model, row.name): row
    for row in [
        *_family({"base": 84.0, "base_plus": 85.0, "large": 87.3, "huge": 87.8}, video=True),
        *_family(
            {
                "tiny": 82.8,
                "small": 83.8,
                "base": 84.5,
                "base_plus": 85.2,
                "large": 86.1,
                "huge": 86.9,
            },
            video=False,
        ),
        *PYTORCHVIDEO,
        *MVIT,
        *VIDEOMAE,
    ]
}
"""(model, weights name) -> row; the first row of a model is its default."""


def names_for(model: str) -> list[str]:
    """Names of the weights published for a model, its default first; maybe none."""
    return [name for (owner, name) in PUBLISHED if owner == model]


def by_file_name(file_name: str, model: str | None = None) -> PublishedWeights | None:
    """The row whose published file is called so; the one of `model` where several share it."""
    rows = [row for row in PUBLISHED.values() if row.file_name == file_name]
    rows = [row for row in rows if row.model == model] or rows[:1]
    return rows[0] if rows else None
