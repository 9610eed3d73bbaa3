"""PyTorchVideo's way to read the same clips: its open videos, transforms and data set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from hiera_video.benchmarks import data_clips
from hiera_video.benchmarks.data_clips import CROPS, PYTORCHVIDEO, VIEWS
from hiera_video.benchmarks.stopwatch import Stopwatch
from hiera_video.clip_spec import ClipSpec
from hiera_video.compat import ensure_pytorchvideo
from hiera_video.runtimes.measured import installed_version

DECODERS = ("pyav", "decord")
"""Those of PyTorchVideo that work with today's libraries."""


def usable_decoders(decoders: Sequence[str]) -> list[str]:
    """Those of `decoders` that PyTorchVideo can be measured with here; none if it is missing."""
    if installed_version(PYTORCHVIDEO) is None:
        print("PyTorchVideo is not installed (pip install pytorchvideo==0.1.5): ours alone")
        return []
    return [name for name in DECODERS if name in decoders]


def open_encoded(path: str, decoder: str) -> Any:
    """A video opened by PyTorchVideo."""
    from pytorchvideo.data.encoded_video import EncodedVideo

    return EncodedVideo.from_path(path, decode_audio=False, decoder=decoder)


@contextlib.contextmanager
def decord_bridge(decoder: str) -> Iterator[None]:
    """Let decord return tensors, as PyTorchVideo needs, and afterwards arrays, as our reader does.

    The setting belongs to the whole process. Does nothing for other decoders.
    """
    if decoder != "decord":
        yield
        return
    import decord

    decord.bridge.set_bridge("torch")
    try:
        yield
    finally:
        decord.bridge.set_bridge("native")


class PyTorchVideoTransform:
    """PyTorchVideo's transforms for one kind of clips; pickled as its arguments."""

    def __init__(self, kind: str, spec: ClipSpec, watch: Stopwatch | None = None) -> None:
        ensure_pytorchvideo()
        from pytorchvideo import transforms as ptv
        from torchvision.transforms import RandomHorizontalFlip

        self.kind, self.spec, self.watch = kind, spec, watch or Stopwatch()
        self.subsample = ptv.UniformTemporalSubsample(spec.num_frames)
        self.scale = ptv.ShortSideScale(spec.crop_size)
        self.flip = RandomHorizontalFlip()
        self.to_unit = ptv.Div255()
        self.normalise = ptv.Normalize(spec.mean, spec.std)
        self.policy = ptv.RandAugment(magnitude=7, num_layers=2, prob=0.5)

    def __reduce__(self) -> tuple[type, tuple[str, ClipSpec]]:
        return (PyTorchVideoTransform, (self.kind, self.spec))

    def __call__(self, clip: Tensor, box: tuple[float, float] | None = None) -> Tensor:
        """Crop, augment and normalise a training clip.

        Args:
            clip: float32 [3, T, H, W], 0 to 255.
            box: (area, aspect) of the crop; None: drawn at random.

        Returns:
            float32 [3, T, S, S].
        """
        from pytorchvideo.transforms.functional import random_resized_crop

        side = self.spec.crop_size
        area, aspect = data_clips.AREA, data_clips.ASPECT
        if box is not None:
            area, aspect = (box[0], box[0]), (box[1], box[1])
        with self.watch("crop"):
            clip = self.flip(random_resized_crop(clip, side, side, area, aspect))
        if self.kind == "augmented":
            with self.watch("augment"):
                frames = clip.to(torch.uint8).permute(1, 0, 2, 3)
                clip = self.policy(frames).permute(1, 0, 2, 3)
        return self.normalised(clip)

    def views(self, clip: Tensor) -> list[Tensor]:
        """The crops of a test clip, normalised: `CROPS` times float32 [3, T, S, S]."""
        from pytorchvideo.transforms.functional import uniform_crop

        with self.watch("crop"):
            clip = self.scale(clip)
            crops = [uniform_crop(clip, self.spec.crop_size, place) for place in range(CROPS)]
        return [self.normalised(crop) for crop in crops]

    def normalised(self, clip: Tensor) -> Tensor:
        """Pixels 0 to 255 -> normalised ones."""
        with self.watch("normalise"):
            return self.normalise(self.to_unit(clip))


@dataclass
class PyTorchVideoDataset(torch.utils.data.IterableDataset):
    """The clips of PyTorchVideo's `LabeledVideoDataset` over a list of videos."""

    paths: list[tuple[str, dict[str, Any]]]
    kind: str
    spec: ClipSpec
    decoder: str

    def __iter__(self) -> Iterator[Tensor]:
        ensure_pytorchvideo()
        from pytorchvideo.data import LabeledVideoDataset, make_clip_sampler

        seconds = Fraction(self.spec.num_frames * self.spec.sampling_rate) / Fraction(
            self.spec.target_fps
        )
        sampler = make_clip_sampler("random", seconds)
        if self.kind == "test":
            sampler = make_clip_sampler("constant_clips_per_video", seconds, VIEWS, CROPS)
        transform = PyTorchVideoTransform(self.kind, self.spec)
        videos = LabeledVideoDataset(
            self.paths,
            sampler,
            transform=_OneClip(transform),
            decode_audio=False,
            decoder=self.decoder,
        )
        return iter(videos)


class _OneClip:
    """A sample of PyTorchVideo -> its clip alone, transformed."""

    def __init__(self, transform: PyTorchVideoTransform) -> None:
        self.transform = transform

    def __call__(self, sample: dict[str, Any]) -> Tensor:
        from pytorchvideo.transforms.functional import uniform_crop

        transform = self.transform
        clip = transform.subsample(sample["video"])
        if transform.kind != "test":
            return transform(clip)
        crop = uniform_crop(transform.scale(clip), transform.spec.crop_size, sample["aug_index"])
        return transform.normalised(crop)
