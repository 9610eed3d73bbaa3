"""Models: clips -> logits or losses. Every model is built by its registered name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from hiera_video.errors import UserError, WeightsError, first_few
from hiera_video.labels import load_labels
from hiera_video.models import hiera, mae
from hiera_video.models.hiera import Hiera, HieraEncoder
from hiera_video.models.mae import MAEOutput, MaskedAutoencoder
from hiera_video.models.motion import MotionPredictor
from hiera_video.models.weights.load import load_weights
from hiera_video.models.weights.resolve import resolve
from hiera_video.on_first_use import on_first_use
from hiera_video.registry import MODEL_REGISTRY, arguments_of

if TYPE_CHECKING:
    from hiera_video.models.ladder.ablation import LADDER, AblationConfig

__all__ = [
    "LADDER",
    "AblationConfig",
    "Hiera",
    "HieraEncoder",
    "MAEOutput",
    "MaskedAutoencoder",
    "MotionPredictor",
    "build_model",
    "from_pretrained",
    "list_models",
]

# Labelling a video needs nothing of the ladder.
_LADDER = "hiera_video.models.ladder.ablation"
__getattr__ = on_first_use(__name__, {"LADDER": _LADDER, "AblationConfig": _LADDER})


def list_models(pattern: str = "*") -> list[str]:
    """List the registered model names that match a shell pattern, e.g. "mae_hiera*"."""
    return MODEL_REGISTRY.names(pattern)


def from_pretrained(weights: str | Path) -> nn.Module:
    """Build the model that trained weights are for, and load them.

    weights: what says its model: a checkpoint of the trainer, a folder of `save_pretrained`, or
    "hf:owner/name@revision". A model with other classes: `build_model(name, pretrained=weights,
    classes=[...])`. Raises UserError, WeightsError as `build_model`, and for weights that name no
    model.
    """
    checkpoint, _ = resolve(weights)
    if checkpoint.model_name is None:
        raise WeightsError(
            f"{checkpoint.label} does not say which model it is for; name it: "
            "build_model(NAME, pretrained=...)"
        )
    arguments = dict(checkpoint.model_kwargs)
    if checkpoint.num_classes is not None:
        arguments["num_classes"] = checkpoint.num_classes
    model = build_model(checkpoint.model_name, **arguments)
    load_weights(model, checkpoint)
    return model


def build_model(
    name: str,
    pretrained: bool | str | Path | None = None,
    num_classes: int | None = None,
    *,
    classes: Sequence[str] | str | None = None,
    **overrides: Any,
) -> nn.Module:
    """Build a registered model and, with `pretrained`, load weights into it.

    Args:
        name: a registered name, see `list_models`.
        pretrained: None or False for initial weights (nothing is downloaded); True for the
            published weights of this name; or the name of published weights
            ("mae_k400_ft_k400"), a checkpoint file or a URL.
        num_classes: outputs of a classifier; None for the model's own (400 for Kinetics).
        classes: names of the outputs, in order, or the name of a public list ("kinetics400").
            A class that `pretrained` knows by name keeps its trained row of the head; the rows of
            other classes are initialised.
        overrides: arguments of the model, e.g. `input_size=(8, 224, 224)`, `drop_path_rate=0.1`,
            `decoder_num_heads=8`.

    Raises:
        UserError: the name or an argument is unknown (similar ones are suggested), sizes do not
            divide, or `classes` are not distinct or not `num_classes` many.
        WeightsError: the weights cannot be downloaded or do not fit.
    """
    builder = MODEL_REGISTRY.get(name)
    if classes is not None:
        classes = _class_names(classes, num_classes)
        num_classes = len(classes)
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    try:
        model = builder(**overrides)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise UserError(
            f"{name}: {error}; it takes {', '.join(sorted(arguments_of(builder)))}"
        ) from error
    if pretrained:
        from hiera_video.models.weights.load import load_pretrained

        load_pretrained(model, name, pretrained, num_classes=num_classes, classes=classes)
    return model


def _class_names(classes: Sequence[str] | str, num_classes: int | None) -> list[str]:
    """Return the names of the outputs; UserError if they are not distinct or not `num_classes`."""
    names = load_labels(classes) if isinstance(classes, str) else [str(name) for name in classes]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or twice:
        what = f"more than once: {first_few(twice)}" if twice else "it is empty"
        raise UserError(f"classes must be distinct names, one for each output; {what}")
    if num_classes is not None and num_classes != len(names):
        raise UserError(f"num_classes={num_classes} and {len(names)} names in classes; give one")
    return names


del hiera, mae  # imported for the models that they register
