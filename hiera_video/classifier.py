"""Load a classifier from the names and files that a user gives.

A classifier is a model with its weights, the sampling of its clips and the names of its outputs.
`predict.Predictor` runs it on videos.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from torch import nn

from hiera_video.classes import match_classes
from hiera_video.clip_spec import ClipSpec
from hiera_video.data.manifests.class_names import read_class_names
from hiera_video.errors import UserError, WeightsError, first_few
from hiera_video.labels import load_labels
from hiera_video.models import build_model
from hiera_video.models.weights.download import fetch
from hiera_video.models.weights.file import Checkpoint
from hiera_video.models.weights.key_names import CLASSIFIER
from hiera_video.models.weights.load import load_weights
from hiera_video.models.weights.published import (
    IMAGE_CLIPS,
    PUBLISHED,
    VIDEO_CLIPS,
    PublishedWeights,
    names_for,
)
from hiera_video.models.weights.resolve import (
    BUNDLED_CLASSIFIER,
    BUNDLED_LICENCE,
    bundled,
    resolve,
)
from hiera_video.registry import MODEL_REGISTRY
from hiera_video.scoring import takes_any_crop, takes_images

DEFAULT_MODEL = "hiera_base_16x224"

AnyPath = str | os.PathLike[str]
Warn = Callable[[str], None]
"""Called with each line that the user should read."""


@dataclass(frozen=True)
class Classifier:
    """A model with trained weights, and what is needed to use it."""

    model: nn.Module
    """Returns logits [B, num_classes]."""
    name: str
    """The registered name of the model."""
    weights: str
    """Where its weights come from."""
    spec: ClipSpec
    """How its clips are sampled, cropped and normalised."""
    classes: list[str]
    """Names of the outputs, in their order."""
    multi_label: bool = False
    """It was trained with a yes or no per class: sigmoid, not softmax."""
    licence: str = ""
    """Licence of the weights; empty: not known."""

    @property
    def clip_shape(self) -> tuple[int, ...]:
        """Shape of one input: (3, T, H, W), or (3, H, W) of an image model."""
        frames = () if takes_images(self.model) else (self.spec.num_frames,)
        return (3, *frames, self.spec.crop_size, self.spec.crop_size)


def load_classifier(
    model: AnyPath | None,
    weights: AnyPath | None,
    labels: AnyPath | None,
    *,
    spec: ClipSpec | None,
    model_kwargs: dict[str, Any],
    warn: Warn,
) -> Classifier:
    """Find, build and load the classifier that a user names; see `Predictor.load`.

    Raises UserError, WeightsError: unknown names, missing or unfit files.
    """
    names = None if labels is None else read_labels(labels)
    name, checkpoint, published = find_checkpoint(model, weights, warn=warn)
    built = _build(name, checkpoint, published, model_kwargs, warn)
    return Classifier(
        model=built,
        name=name,
        weights=checkpoint.label,
        spec=spec or checkpoint.spec or usual_spec(built, name, checkpoint, warn),
        classes=class_names(built, names, labels, checkpoint, warn),
        multi_label=checkpoint.multi_label,
        licence=_licence(checkpoint, published),
    )


def _licence(checkpoint: Checkpoint, published: PublishedWeights | None) -> str:
    """The licence of public weights, and of those that come with the package; else empty."""
    if published is not None:
        return published.licence
    return BUNDLED_LICENCE if checkpoint.name.startswith("bundled ") else ""


# ---- model and weights ----


def find_checkpoint(
    model: AnyPath | None, weights: AnyPath | None, *, warn: Warn
) -> tuple[str, Checkpoint, PublishedWeights | None]:
    """Find the weights that a user names, and the registered name of the model they are for.

    The arguments and errors are those of `Predictor.load`; also returns the row of the table of
    published weights, if they are such.
    """
    name, weights = _model_and_weights(model, weights)
    if weights is not None:
        checkpoint, published = _resolve(weights, name)
    else:
        checkpoint, published = _default_weights(name, warn)
    return _model_name(name, checkpoint), checkpoint, published


def _model_and_weights(
    model: AnyPath | None, weights: AnyPath | None
) -> tuple[str | None, AnyPath | None]:
    """Sort out which of the two arguments names a model and which names weights.

    Users give the one thing that they have, a checkpoint or the name of a model, as the first
    argument or as `weights`.
    """
    if weights is None and model is not None and not _is_model(model):
        return None, model
    if model is None and _is_model(weights):
        return weights, None
    if model is not None and not isinstance(model, str | os.PathLike):
        raise UserError(f"model is a {type(model).__name__}; name a registered model")
    return None if model is None else os.fspath(model), weights


def _is_model(name: Any) -> TypeGuard[str]:
    """Return whether this is a registered model's name, and not that of a file or of weights that
    come with the package."""
    if not isinstance(name, str) or os.path.exists(name) or name in bundled():
        return False
    return name in MODEL_REGISTRY  # last: an unknown name imports every model


def _resolve(weights: AnyPath, model: str | None) -> tuple[Checkpoint, PublishedWeights | None]:
    """Resolve the weights; an error for an unknown name suggests names of models too."""
    if not isinstance(weights, str | os.PathLike):
        raise UserError(
            f"weights is a {type(weights).__name__}; name a checkpoint file, an address, published "
            "weights or a model. For a model that is built already: Predictor(model, spec=..., "
            "classes=...)"
        )
    try:
        return resolve(weights, model)
    except WeightsError as error:
        near = difflib.get_close_matches(os.fspath(weights), MODEL_REGISTRY.names(), n=3)
        if not near or model is not None:
            raise
        raise WeightsError(f"{error}. Models of similar names: {', '.join(near)}") from None


def _default_weights(model: str | None, warn: Warn) -> tuple[Checkpoint, PublishedWeights | None]:
    """Fetch the published classifier of `model`.

    Without a model, of the default one; if that cannot be downloaded, take the bundled weights.
    """
    name = model or DEFAULT_MODEL
    MODEL_REGISTRY.get(name)  # raises for an unknown name, with similar ones
    trained = [PUBLISHED[name, weights] for weights in names_for(name)]
    trained = [row for row in trained if row.num_classes is not None]
    if not trained:
        raise UserError(f"{name} has no published classifier; name a checkpoint with --weights")
    try:
        fetch(trained[0].url)
    except WeightsError as error:
        if model is not None or BUNDLED_CLASSIFIER not in bundled():
            raise
        checkpoint, _ = resolve(BUNDLED_CLASSIFIER)
        warn(_bundled_warning(checkpoint, trained[0], error))
        return checkpoint, None
    return resolve(str(trained[0]), name)


def _bundled_warning(checkpoint: Checkpoint, wanted: PublishedWeights, error: Exception) -> str:
    classes = checkpoint.classes or []
    lines = [
        "WARNING: these labels are NOT Kinetics labels.",
        f"The weights {wanted} cannot be downloaded:",
        *str(error).splitlines(),
        "The small model that comes with this package is used instead",
        f"({checkpoint.model_name}). It knows {len(classes)} classes and no others:",
        ", ".join(classes),
        "Name weights with --weights to get other labels.",
    ]
    rule = "!" * 79
    return "\n".join([rule, *(f"!! {line}" for line in lines), rule])


def _model_name(model: str | None, checkpoint: Checkpoint) -> str:
    """Return the registered name of the model; UserError where nothing names it, or for two."""
    stored = checkpoint.model_name
    name = model or stored
    if name is None:
        raise UserError(
            f"{checkpoint.label} does not say which model it is for; add --model NAME "
            "(names: python -c 'import hiera_video; print(hiera_video.list_models())')"
        )
    if stored is not None and MODEL_REGISTRY.get(name) is not MODEL_REGISTRY.get(stored):
        raise UserError(f"{checkpoint.label} is for {stored}, not for {name}; drop --model")
    return name


def _build(
    name: str,
    checkpoint: Checkpoint,
    published: PublishedWeights | None,
    model_kwargs: dict[str, Any],
    warn: Warn,
) -> nn.Module:
    """Build the model and load its weights; WeightsError without a trained classifier."""
    untrained = published is not None and published.num_classes is None
    if checkpoint.kind != CLASSIFIER or untrained:
        raise WeightsError(
            f"{checkpoint.label} has no trained classifier (it is the result of pretraining); "
            "fine-tune it first, or name fine-tuned weights with --weights"
        )
    arguments = {**checkpoint.model_kwargs, **model_kwargs}
    num_classes = checkpoint.num_classes or arguments.pop("num_classes", None)
    arguments.pop("num_classes", None)
    model = build_model(name, num_classes=num_classes, **arguments)
    report = load_weights(model, checkpoint)
    if report.missing:
        raise WeightsError(
            f"{checkpoint.label} has no trained values for {', '.join(report.missing[:4])}; "
            "labels would be random"
        )
    for note in report.notes:
        warn(f"{checkpoint.label}: {note}")
    return model


def usual_spec(model: nn.Module, name: str, checkpoint: Checkpoint, warn: Warn) -> ClipSpec:
    """Return the sampling for weights that do not say theirs, at the model's input size.

    It is that of the public weights of this model, else Hiera's own.
    """
    published = [PUBLISHED[name, weights].spec for weights in names_for(name)]
    usual = published[0] if published else IMAGE_CLIPS if takes_images(model) else VIDEO_CLIPS
    frames, size = 1, tuple(getattr(model, "input_size", (16, 224, 224)))
    if not takes_images(model):
        frames = size[0]
    crop = max(usual.crop_size, size[-1]) if takes_any_crop(model) else size[-1]
    spec = replace(usual, num_frames=frames, crop_size=crop)
    warn(
        f"{checkpoint.label} does not say how its clips are sampled and normalised; using "
        f"{spec.in_words()}"
    )
    return spec


# ---- class names ----


def read_labels(labels: AnyPath) -> list[str]:
    """Read class names from a file, or take those of a known data set by its name."""
    if os.path.exists(labels):
        return read_class_names(os.fspath(labels))
    try:
        return load_labels(os.fspath(labels))
    except UserError as error:
        raise UserError(f"--labels {os.fspath(labels)}: no such file, and {error}") from None


def class_names(
    model: nn.Module,
    names: list[str] | None,
    labels: AnyPath | None,
    checkpoint: Checkpoint,
    warn: Warn,
) -> list[str]:
    """Return the names of the outputs: the checkpoint's, as --labels calls them if it is given.

    names: the class names of `labels`.
    """
    outputs = getattr(model, "num_classes", None)
    known, guess = checkpoint.classes, checkpoint.classes_guessed
    if names is not None and labels is not None:
        if outputs is not None and len(names) != outputs:
            raise UserError(
                f"{os.fspath(labels)} names {len(names)} classes, the model has {outputs}"
            )
        return _renamed(known, names, labels, checkpoint, warn) if known and not guess else names
    if known:
        if guess:
            warn(
                f"warning: {checkpoint.label} has no class names; its {outputs} outputs are read "
                f"as those of {guess}, the usual ones of this model (other names: --labels FILE)"
            )
        return known
    if outputs is None:
        raise UserError(f"{checkpoint.label} has no class names; give them with --labels FILE")
    warn(f"warning: {checkpoint.label} has no class names; numbers are used (--labels FILE)")
    return [f"class {index}" for index in range(outputs)]


def _renamed(
    known: list[str],
    names: list[str],
    labels: AnyPath,
    checkpoint: Checkpoint,
    warn: Warn,
) -> list[str]:
    """Rename outputs whose names the checkpoint knows: --labels may translate the names.

    It may not move them. If --labels has the same names in another order, each output keeps its
    name. If only some names are in another place, it is unclear what was meant: UserError.
    """
    file = os.fspath(labels)
    match = match_classes(known, names)
    if match.same_names and not match.same_order:
        warn(
            f"{file} has the classes of {checkpoint.label} in another order; the order of the "
            "checkpoint counts"
        )
        return [names[match.rows.index(row)] for row in range(len(known))]
    moved = [i for i, row in enumerate(match.rows) if row is not None and row != i]
    if moved:
        first = moved[0]
        raise UserError(
            f"{file} calls output {first} {names[first]!r}, which is output {match.rows[first]} of "
            f"{checkpoint.label}; output {first} is {known[first]!r}. Leave --labels out, or give "
            "its names in the order of the outputs"
        )
    pairs = [f"{old} -> {new}" for old, new in zip(known, names, strict=True) if old != new]
    if pairs:
        warn(
            f"{file} renames {len(pairs)} of the {len(known)} classes of {checkpoint.label}: "
            f"{first_few(pairs, 3)}"
        )
    return names
