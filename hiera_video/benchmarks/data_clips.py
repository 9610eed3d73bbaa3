"""The clips that `data` measures with: kinds, sizes, and the data set that gives them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hiera_video.benchmarks.stopwatch import Stopwatch
from hiera_video.clip_spec import ClipSpec
from hiera_video.data.datasets import TestReader, TrainReader, VideoDataset
from hiera_video.data.manifests.layouts import Manifest
from hiera_video.data.transforms.train import Pixels, TrainTransform
from hiera_video.video.sampling import span

OURS, PYTORCHVIDEO = "hiera_video", "pytorchvideo"

POLICY = "rand-m7-mstd0.5-inc1"
REPEATS = 4
VIEWS, CROPS = 5, 3
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)

STAGES = ("open", "decode", "crop", "augment", "collate", "normalise")


@dataclass(frozen=True)
class ClipTask:
    """Which clips are read, from which videos, with which decoder."""

    kind: str
    """One of `options.KINDS`."""
    manifest: Manifest
    spec: ClipSpec
    decoder: str

    def dataset(self, watch: Stopwatch | None = None) -> VideoDataset:
        """The package's own data set of these clips; `watch` times its augmentation."""
        if self.kind == "test":
            return VideoDataset(
                self.manifest,
                TestReader(self.spec, num_views=VIEWS, num_crops=CROPS, decoder=self.decoder),
            )
        heavy = self.kind == "augmented"
        transform = TimedTransform(
            self.spec,
            area=AREA,
            aspect=ASPECT,
            rand_augment=POLICY if heavy else "",
            erase_prob=0.25 if heavy else 0.0,
            watch=watch,
        )
        repeats = REPEATS if self.kind == "repeated" else 1
        reader = TrainReader(transform, decoder=self.decoder, num_temporal=repeats)
        return VideoDataset(self.manifest, reader)


@dataclass(frozen=True)
class TimedTransform(TrainTransform):
    """The training transform, with the time that augmentation takes."""

    watch: Stopwatch | None = None

    def augment(self, frames: Tensor, generator: torch.Generator) -> Pixels:
        """See `TrainTransform.augment`."""
        if self.watch is None:
            return super().augment(frames, generator)
        with self.watch("augment"):
            return super().augment(frames, generator)


def clip_frames(spec: ClipSpec, fps: float) -> int:
    """Number of consecutive frames of a video that a clip spans."""
    return math.floor(span(spec.num_frames, spec.sampling_rate, fps, spec.target_fps))
