"""A frozen model as a function from clips to vectors.

    encoder = load_encoder("camera_motion", EncoderOptions(layer="stage3"))
    vectors = encoder(clips)                                # [V, *encoder.shape]

Any classifier has the layer "head": what its last layer takes. Models with Hiera's encoder,
classifiers and those of pretraining, have "stage1" to "stage4" too.

Shapes: V clips, T frames, C channels of a layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video.classifier import find_checkpoint, usual_spec
from hiera_video.clip_spec import ClipSpec
from hiera_video.errors import RunFailed, UserError
from hiera_video.files import sha256_of
from hiera_video.models import build_model
from hiera_video.models.hiera import HieraEncoder
from hiera_video.models.readout import pooled
from hiera_video.models.weights.file import Checkpoint
from hiera_video.models.weights.key_names import CLASSIFIER
from hiera_video.models.weights.load import load_weights
from hiera_video.scoring import (
    choose_device,
    choose_dtype,
    distinct_clips,
    require_fitting_clips,
    takes_images,
)

HEAD = "head"

POOLS = {
    "mean": "the mean over all tokens",
    "mean_max": "the mean over all tokens, then their maximum: twice the channels",
    "tokens": "all tokens of one clip, in their places",
}

DTYPE_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}

Warn = Callable[[str], None]


@dataclass(frozen=True)
class EncoderOptions:
    """What is read of a model, and how it computes."""

    model: str | None = None
    """Registered name; None: the model that the weights are for."""
    layer: str | None = None
    """"head", "stage1", ...; None: the head if it is trained, else the last stage."""
    pool: str = "mean"
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = 4
    """Most clips of a forward pass; any value gives the same vectors, up to rounding."""

    def __post_init__(self) -> None:
        if self.layer is not None and not re.fullmatch(r"head|stage[1-9]", self.layer):
            raise UserError(f"layer {self.layer!r}; choose head, or a stage: stage1, stage2, ...")
        if self.pool not in POOLS:
            raise UserError(f"pool {self.pool!r}; choose {', '.join(POOLS)}")
        if self.layer == HEAD and self.pool != "mean":
            raise UserError(
                f"pool {self.pool} needs a stage: what the head takes is one vector a clip; add "
                "--layer stage4"
            )
        if self.batch_size < 1:
            raise UserError(f"batch size {self.batch_size} must be at least 1 clip")


@dataclass(frozen=True)
class Encoder:
    """A model in eval mode on its device, and what is read of it. Call it with clips."""

    model: nn.Module
    name: str
    """Registered name of the model."""
    weights: str
    """As they were named."""
    sha256: str
    """Of the file of weights."""
    spec: ClipSpec
    """How its clips are sampled, cropped and normalised."""
    options: EncoderOptions
    """With the layer that was chosen."""
    device: torch.device
    dtype: torch.dtype
    shape: tuple[int, ...] = ()
    """Of the vector of a clip: (C,), or (T, rows, columns, C) of tokens."""

    @property
    def layer(self) -> str:
        """The layer that is read."""
        return self.options.layer or HEAD

    @torch.inference_mode()
    def __call__(self, clips: Tensor) -> Tensor:
        """Normalised clips [V, 3, T, H, W] -> float32 [V, *shape], on the CPU.

        Equal clips (the crops of a square video) go through the model once. Raises RunFailed where
        there is too little memory, or the vectors are not finite.
        """
        if takes_images(self.model):
            clips = clips.squeeze(2)
        distinct, row_of = distinct_clips(clips)
        parts = []
        try:
            for chosen in distinct.split(self.options.batch_size):
                batch = clips[chosen.to(clips.device)].to(self.device, non_blocking=True)
                enabled = self.dtype != torch.float32
                with torch.autocast(self.device.type, dtype=self.dtype, enabled=enabled):
                    parts.append(self._read(batch))
            found = torch.cat([part.float().cpu() for part in parts])[row_of]
        except torch.OutOfMemoryError as error:
            raise RunFailed(
                f"out of GPU memory with {self.options.batch_size} clips per forward pass; "
                "try --batch-size 1, or --device cpu"
            ) from error
        if not torch.isfinite(found).all():
            raise RunFailed(
                f"the model's features are not finite in {DTYPE_NAMES[self.dtype]}; try --dtype "
                "fp32, and if that gives the same, other weights"
            )
        return found

    def _read(self, clips: Tensor) -> Tensor:
        if self.layer == HEAD:
            return input_of_head(self.model, clips)
        encoder = encoder_of(self.model)
        assert encoder is not None  # `_chosen_layer` has looked
        stage = int(self.layer.removeprefix("stage")) - 1
        tokens = encoder.forward_stages(encoder.embed(clips), last=stage)[stage]
        places = encoder.stage_map(tokens, stage, dense=True)  # [V, T, rows, columns, C]
        if self.options.pool == "mean":
            return places.flatten(1, -2).float().mean(dim=1)
        return pooled(places) if self.options.pool == "mean_max" else places


def input_of_head(model: nn.Module, clips: Tensor) -> Tensor:
    """What the last layer of a classifier takes: [V, C]. Places that it keeps are averaged."""
    taken: list[Tensor] = []

    def keep(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
        taken.append(arguments[0])

    handle = model.head.register_forward_pre_hook(keep)  # type: ignore[union-attr]
    try:
        model(clips)
    finally:
        handle.remove()
    (features,) = taken
    return features if features.dim() == 2 else features.flatten(1, -2).float().mean(dim=1)


def encoder_of(model: nn.Module) -> HieraEncoder | None:
    """Return the encoder with the stages: a classifier is one, a model of pretraining holds one."""
    inner = model if isinstance(model, HieraEncoder) else getattr(model, "encoder", None)
    return inner if isinstance(inner, HieraEncoder) else None


# ---- loading ------------------------------------------------------------------------------------


def load_encoder(weights: str, options: EncoderOptions, *, warn: Warn) -> Encoder:
    """Load a classifier, or a model of pretraining, as an encoder.

    weights: all that `Predictor.load` takes, and weights of pretraining. warn: called with each
    line that the user should read.

    Raises UserError, WeightsError: unknown names, missing or unfit files, a layer that the model
    does not have.
    """
    device = choose_device(options.device)  # a mistyped name is an error before a download
    dtype, slow = choose_dtype(options.dtype, device)
    if slow:
        warn(f"warning: {slow}")
    name, checkpoint, _ = find_checkpoint(options.model, weights, warn=warn)
    model, missing = _built(name, checkpoint, warn)
    layer = _chosen_layer(model, name, options, head_is_trained=not missing)
    options = replace(options, layer=layer)  # which checks it with the pool
    # a model of pretraining may compute more than its encoder does
    part = model if layer == HEAD else encoder_of(model) or model
    spec = checkpoint.spec or usual_spec(part, name, checkpoint, warn)
    require_fitting_clips(part, spec)
    encoder = Encoder(
        model=part.to(device).eval(),
        name=name,
        weights=weights,
        sha256=sha256_of(checkpoint.path),
        spec=spec,
        options=options,
        device=device,
        dtype=dtype,
    )
    clip = torch.zeros(1, 3, spec.num_frames, spec.crop_size, spec.crop_size)
    return replace(encoder, shape=tuple(encoder(clip).shape[1:]))


def _built(name: str, checkpoint: Checkpoint, warn: Warn) -> tuple[nn.Module, list[str]]:
    """Build the model and load its weights; also returns the keys that have no trained values."""
    arguments = dict(checkpoint.model_kwargs)
    if checkpoint.kind == CLASSIFIER and checkpoint.num_classes is not None:
        arguments["num_classes"] = checkpoint.num_classes
    model = build_model(name, **arguments)
    report = load_weights(model, checkpoint)
    for note in report.notes:
        warn(f"{checkpoint.label}: {note}")
    return model, report.missing


def _chosen_layer(
    model: nn.Module, name: str, options: EncoderOptions, *, head_is_trained: bool
) -> str:
    """The layer that is asked for or usual; UserError where the model has none of it."""
    encoder = encoder_of(model)
    stages = [f"stage{n + 1}" for n in range(len(encoder.stages))] if encoder is not None else []
    head = isinstance(getattr(model, HEAD, None), nn.Module) and head_is_trained
    layers = [*([HEAD] if head else []), *stages]
    if not layers:
        raise UserError(f"{name} has no layer to read: it has neither a trained head nor stages")
    usual = HEAD if head and (options.pool == "mean" or not stages) else stages[-1]
    layer = options.layer or usual
    if layer not in layers:
        what = "trained head" if layer == HEAD else f"layer {layer}"
        raise UserError(f"{name} has no {what} to read; it has {', '.join(layers)}")
    return layer
