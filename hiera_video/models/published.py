"""The public Hiera checkpoints: where they are, and what one must know to use them.

Addresses, accuracies and the licence are those that the authors publish with their code and in the
paper (Ryali et al., Hiera, ICML 2023): ImageNet-1K top-1 for one centre crop, Kinetics-400 top-1
for 5 clips x 3 crops of 16 frames, every 4th.
"""

from __future__ import annotations

from dataclasses import dataclass

from hiera_video.clip_spec import ClipSpec

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
    licence: str = LICENCE
    note: str = ""

    def __str__(self) -> str:
        return f"{self.model}.{self.name}"

    @property
    def file_name(self) -> str:
        """Last part of its address, the name it has in the cache."""
        return self.url.rsplit("/", 1)[1]


def _family(sizes: dict[str, float], video: bool) -> list[PublishedWeights]:
    """Three rows a size: the classifier, its encoder before fine-tuning, the whole autoencoder."""
    suffix, data = ("16x224", "k400") if video else ("224", "in1k")
    full_name = "Kinetics-400" if video else "ImageNet-1K"
    spec = VIDEO_CLIPS if video else IMAGE_CLIPS
    rows = []
    for size, top1 in sizes.items():
        model = f"hiera_{size}_{suffix}"
        pretraining = {
            "name": f"mae_{data}",
            "url": f"{_HOST}mae_{model}.pth",
            "trained_on": f"{full_name}, masked autoencoding",
            "classes": None,
            "num_classes": None,
            "spec": spec,
            "top1": None,
        }
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
            ),
            PublishedWeights(model=model, **pretraining),
            PublishedWeights(
                model=f"mae_{model}", **pretraining, note=DECODER_HEADS if video else ""
            ),
        ]
    return rows


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
