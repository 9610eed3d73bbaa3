"""A checkpoint on its way into a model: what is edited, what is noted, and the change of task.

The steps in `inflate`, `positions` and `head` work on a `Fit` as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video.classes import ClassMatch
from hiera_video.errors import WeightsError
from hiera_video.models.tokens import TokenLayout
from hiera_video.models.weights.file import Checkpoint
from hiera_video.models.weights.key_names import (
    AUTOENCODER,
    CLASSIFIER,
    ENCODER,
    HIERA_KEYS,
    MOTION,
    KeyNames,
    kind_of,
)
from hiera_video.models.weights.other_keys import to_published


@dataclass(frozen=True)
class TokenGrid:
    """What the sizes of a model's position embeddings follow from."""

    layout: TokenLayout
    q_pool: int
    """Poolings between the first and the last stage."""
    patch_stride: tuple[int, ...]
    """Of the stem's convolution, along each dimension of the input."""


class Fit:
    """A checkpoint's tensors while they are made to fit a model; the model itself is only read.

    Args:
        model: the model that will get the tensors, without wrappers around it.
        checkpoint: what was read; it is not changed.

    Raises:
        WeightsError: the model is on the meta device.
    """

    def __init__(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.model_state: dict[str, Tensor] = model.state_dict()
        """The model's own tensors: the names and shapes to fit."""
        if any(tensor.is_meta for tensor in self.model_state.values()):
            raise WeightsError(
                "the model is on the meta device, which holds no values; "
                "build it on the CPU or a GPU before loading weights"
            )
        self.tensors = _in_names_of(model, checkpoint.state_dict, self.model_state)
        """The checkpoint's tensors under the model's names; the steps edit this dict."""
        self.names: KeyNames = getattr(model, "key_names", HIERA_KEYS)
        self.grid = _token_grid(model)
        """None for a model whose positions are not known here."""
        self.initial: set[str] = set()
        """Keys of the model that keep their initial values on purpose."""
        self.left_out: list[str] = []
        """Keys of the checkpoint that are not used on purpose."""
        self.resized: list[str] = []
        """Position embeddings that were resized or converted."""
        self.notes: list[str] = []
        """One sentence for each change."""
        self.classes: ClassMatch | None = None
        """Which row of the checkpoint's head each class has, where both sides have names."""

    @property
    def kind(self) -> str:
        """What the model is, see `kind_of`."""
        return kind_of(self.model_state)

    def leave_out(self, keys: Iterable[str]) -> None:
        """Remove tensors of the checkpoint on purpose."""
        for key in keys:
            if self.tensors.pop(key, None) is not None:
                self.left_out.append(key)

    def leave_out_all(self, beginnings: tuple[str, ...]) -> None:
        """Remove on purpose all tensors of the checkpoint whose names begin so."""
        self.leave_out([key for key in self.tensors if key.startswith(beginnings)])

    def keep_initial(self, keys: Iterable[str]) -> None:
        """Let tensors of the model keep their initial values on purpose."""
        self.initial.update(key for key in keys if key in self.model_state)

    def keep_initial_all(self, beginnings: tuple[str, ...]) -> None:
        """Let all tensors of the model whose names begin so keep their initial values."""
        self.keep_initial(key for key in self.model_state if key.startswith(beginnings))

    def value(self, key: str) -> Tensor:
        """A tensor of the checkpoint as the model stores it: dense, and of its number format.

        Raises WeightsError where it cannot be converted.
        """
        tensor, own = self.tensors[key], self.model_state[key]
        try:
            if tensor.is_meta or (tensor.is_complex() and not own.is_complex()):
                raise self.error(
                    f"{key} holds no plain numbers ({tensor.dtype} on {tensor.device})"
                )
            if tensor.is_quantized:
                tensor = tensor.dequantize()
            if tensor.layout != torch.strided:
                tensor = tensor.to_dense()
            return tensor.to(own.dtype)
        except (RuntimeError, NotImplementedError) as error:
            raise self.error(f"{key} ({tensor.dtype}) cannot be converted: {error}") from None

    def error(self, problem: str) -> WeightsError:
        """The error to raise where the checkpoint cannot be fitted."""
        return WeightsError(f"{self.checkpoint.label} does not fit the model: {problem}")


def _in_names_of(
    model: nn.Module, state: Mapping[str, Tensor], model_state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of a file under the names that they have in the model.

    A model whose weights are published under other names than its own translates them itself
    (`read_published_keys`). Otherwise the names of the file are taken, or the published names of
    what torchvision and timm name in their own way, whichever the model has more of.
    """
    translate: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None
    translate = getattr(model, "read_published_keys", None)
    if translate is not None:
        return translate(state)
    published = to_published(state)
    if len(model_state.keys() & published.keys()) < len(model_state.keys() & state.keys()):
        return dict(state)
    return published


def _token_grid(model: nn.Module) -> TokenGrid | None:
    """The grid of a Hiera, or of the Hiera inside an autoencoder; None for other models."""
    encoder: Any = getattr(model, "encoder", model)  # nn.Module has no types for attributes
    layout = getattr(encoder, "layout", None)
    if layout is None:
        return None
    return TokenGrid(layout, getattr(encoder, "q_pool", 0), encoder.patch_embed.proj.stride)


def shape_text(tensor: Tensor) -> str:
    """Its shape for a message, such as "400x768"."""
    return "x".join(map(str, tensor.shape)) or "a number"


def fit_task(fit: Fit, *, allowed: bool) -> None:
    """Take the encoder out of a pretrained model for a classifier, or out of any other for a model
    that is to be pretrained, where that is `allowed`.

    Raises WeightsError where it is not.
    """
    names, there, here = fit.names, fit.checkpoint.kind, fit.kind
    if there == here:
        return
    if here != CLASSIFIER and not allowed:
        raise fit.error(
            f"it is {_a(there)}'s and the model is {_a(here)}, whose decoder would start from "
            f"scratch. Name {_a(here)}'s weights, or ask for the encoder alone "
            "(into_autoencoder=True)"
        )
    fit.leave_out_all(names.classifier if there == CLASSIFIER else names.decoder)
    fit.keep_initial_all(names.classifier if here == CLASSIFIER else names.decoder)
    words = {
        CLASSIFIER: names.classifier_words,
        AUTOENCODER: names.decoder_words,
        MOTION: names.motion_words,
    }
    if there == ENCODER:
        fit.notes.append(f"the weights of an encoder: {words[here]} keep their initial values")
        return
    fit.notes.append(
        f"encoder taken out of {_a(there)}: {len(fit.left_out)} tensors of its {words[there]} are "
        f"left out; {words[here]} keep their initial values"
    )


def _a(kind: str) -> str:
    """The kind with its article."""
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
