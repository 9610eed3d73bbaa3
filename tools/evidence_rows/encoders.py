"""Features of a frozen model: what its stages say about a few windows of a video."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evidence_rows.action_sets import Video
from evidence_rows.controls import PLAIN, changed
from evidence_rows.feature_files import Array
from hiera_video.clip_spec import ClipSpec
from hiera_video.data.transforms.normalize import normalize_clips
from hiera_video.data.views import read_view_pixels, views_of
from hiera_video.errors import UserError
from hiera_video.models import build_model
from hiera_video.models.weights.load import load_weights
from hiera_video.models.weights.resolve import resolve
from hiera_video.scoring import choose_device, takes_images
from hiera_video.video.decode import open_video

RANDOM = "random"
"""The name of fresh weights: what the architecture knows before it has learnt anything."""

CELLS = 2
"""Each stage's map is pooled to so many rows and columns."""

_CLIPS_A_PASS = 24


@dataclass(frozen=True)
class Encoder:
    """A model that gives features, and what its clips are like."""

    name: str
    """For the table."""
    model: nn.Module
    """In eval mode, on its device."""
    stages: Callable[[Tensor], list[Tensor]]
    """Its `stage_features`: clips [B, 3, T, H, W] -> a map [B, T, rows, columns, C] each."""
    spec: ClipSpec
    weights: str
    """Hash of its parameters."""


def load_encoder(weights: str) -> Encoder:
    """Load the encoder of a classifier or of a pretraining checkpoint.

    weights: a file, or what `resolve` takes. Raises UserError, WeightsError: not an encoder, or
    weights that do not say what they are for.
    """
    checkpoint, _ = resolve(weights)
    if checkpoint.model_name is None or checkpoint.spec is None:
        raise UserError(
            f"--encoders {weights}: it does not say which model it is for, and how its clips are "
            "sampled; checkpoints of tools/run_net.py do"
        )
    model = build_model(checkpoint.model_name, **checkpoint.model_kwargs)
    load_weights(model, checkpoint)
    return _encoder(weights, model, checkpoint.spec)


def fresh_encoder(weights: str, seed: int) -> Encoder:
    """The model that `weights` are for, with random weights."""
    checkpoint, _ = resolve(weights)
    if checkpoint.model_name is None or checkpoint.spec is None:
        raise UserError(f"{weights} does not say which model it is for")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(checkpoint.model_name, **checkpoint.model_kwargs)
    return _encoder(RANDOM, model, checkpoint.spec)


def _encoder(name: str, model: nn.Module, spec: ClipSpec) -> Encoder:
    # a model for pretraining holds its encoder, a classifier is one
    inner = model if hasattr(model, "stage_features") else getattr(model, "encoder", None)
    stages: Callable[[Tensor], list[Tensor]] | None = getattr(inner, "stage_features", None)
    if not isinstance(inner, nn.Module) or stages is None or takes_images(inner):
        raise UserError(
            f"--encoders {name}: a {type(model).__name__} has no stages of clips to read"
        )
    digest = hashlib.blake2b(digest_size=8)
    for key, value in inner.state_dict().items():
        digest.update(key.encode())
        digest.update(value.contiguous().numpy().tobytes())
    model = inner.to(choose_device("auto")).eval()
    return Encoder(name, model, stages, spec, digest.hexdigest())


@dataclass(frozen=True)
class StageFeatures:
    """Describes a video by the stages of an encoder: one block a stage, one sample a window.

    A map [T, rows, columns, C] becomes the means and the maxima of 2 x 2 cells, for each T by
    itself: the order of time is kept.
    """

    encoder: Encoder
    windows: int
    """Clips spread over the video."""
    crops: int
    """In each of them: 1 centre crop, or 3 from side to side."""
    controls: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.encoder.name

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "weights": self.encoder.weights,
            "clips": self.encoder.spec.to_dict(),
            "views": [self.windows, self.crops],
            "cells": CELLS,
            "controls": self.controls,
        }

    def describe(self, video: Video) -> dict[tuple[str, str], Array]:
        """(control, "stage 1") -> float32 [windows * crops, D]."""
        spec = self.encoder.spec
        with open_video(video.path) as reader:
            views = views_of(reader, spec, self.windows)
            clips = read_view_pixels(reader, views, spec, self.crops)
        found = {}
        for control in self.controls:
            # the crops of a window are shuffled alike: they are one clip
            shown = [
                changed(clip, control, f"{video.name} {i // self.crops}")
                for i, clip in enumerate(clips)
            ]
            for stage, features in enumerate(self._pooled_stages(shown), start=1):
                found[control, f"stage {stage}"] = features.numpy()
        return found

    @torch.inference_mode()
    def _pooled_stages(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Clips uint8 [T, 3, H, W] -> for each stage float32 [clips, D], on the CPU."""
        device = next(self.encoder.model.parameters()).device
        batches = []
        for start in range(0, len(clips), _CLIPS_A_PASS):
            pixels = torch.stack(list(clips[start : start + _CLIPS_A_PASS])).transpose(1, 2)
            batch = normalize_clips(pixels.to(device), self.encoder.spec)
            maps = self.encoder.stages(batch)
            batches.append([pooled(one).float().cpu() for one in maps])
        return [torch.cat(stage) for stage in zip(*batches, strict=True)]


def pooled(maps: Tensor) -> Tensor:
    """[B, T, rows, columns, C] -> [B, D]: mean and maximum of 2 x 2 cells at each T."""
    batch, times, rows, columns, channels = maps.shape
    planes = maps.permute(0, 1, 4, 2, 3).reshape(batch, times * channels, rows, columns)
    cells = min(CELLS, rows), min(CELLS, columns)
    mean = F.adaptive_avg_pool2d(planes, cells)
    return torch.cat([mean, F.adaptive_max_pool2d(planes, cells)], dim=1).flatten(1)


def encoder_controls(name: str, controls: Sequence[str]) -> tuple[str, ...]:
    """What an encoder's features are made of: random weights have learnt nothing to look into."""
    return (PLAIN,) if name == RANDOM else (PLAIN, *controls)
