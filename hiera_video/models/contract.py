"""What training, testing, labelling and the loading of weights ask of a model.

A model is an `nn.Module` under a registered name. All that a model *needs* is

    forward(clips)      normalised pixels [B, C, *input_size] -> logits [B, K]

with arguments that may be given by position, because exporters, tracers and profilers do so.
Softmax is never part of a model. Every model of this package has the rest of `VideoModel` too,
every classifier that of `Classifier`, every masked autoencoder that of `Autoencoder`, every
predictor of motion that of `MotionModel`. The other protocols are optional: each of them enables
one feature, and a model that lacks it is used without.

    member                       used for                         without it
    input_size                   comparing clips with the model   clips are not compared
    any_crop                     larger pictures in testing       `input_size` is exact
    num_classes                  comparing class names            names are not counted
    reset_head                   a new head in fine-tuning        rows start as they were built
    parameters called head.*     TRAIN.LINEAR_PROBE               an error that says so
    no_weight_decay              SOLVER.WEIGHT_DECAY              all matrices decay
    num_layers, layer_id         SOLVER.LAYER_DECAY below 1       an error that says so
    random_keep, mask_ratio, ... TASK pretrain                    an error that says so
    channels, predictions        TASK motion                      an error that says so
    forward(clips, boxes)        TASK detect                      an error that says so
    key_names                    changing a head by class names   Hiera's names are assumed
    read_published_keys          weights under other names        torchvision's and timm's names of
                                                                  MViTv2 and Hiera are known
    forward_features, _head      features instead of logits       logits only

`isinstance(model, LayeredModel)` tells whether a model has the members of a protocol.

Shapes: B batch, C channels, T frames, H and W pixels, U mask units, k of them kept, n tokens of a
unit, K classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hiera_video.models.hiera import Hiera
from hiera_video.models.mae import MAEOutput, MaskedAutoencoder
from hiera_video.models.motion import MotionPredictor
from hiera_video.models.weights.key_names import KeyNames


@runtime_checkable
class VideoModel(Protocol):
    """What every registered model of this package has."""

    @property
    def input_size(self) -> tuple[int, ...]:
        """(T, H, W) of a clip, (H, W) of an image."""
        ...

    def no_weight_decay(self) -> set[str]:
        """Names, as in `named_parameters`, of parameters that must not be decayed.

        Biases and parameters of one dimension are exempt anyway.
        """
        ...


@runtime_checkable
class Classifier(VideoModel, Protocol):
    """A model that gives logits. The parameters of its last layer are called `head.*`."""

    @property
    def num_classes(self) -> int:
        """K, the number of outputs."""
        ...

    def forward(self, clips: Tensor) -> Tensor:
        """Normalised pixels [B, C, *input_size] -> logits [B, K], in training and evaluation."""
        ...

    def reset_head(self) -> None:
        """Initialise the last layer, for other classes."""
        ...


@runtime_checkable
class Autoencoder(VideoModel, Protocol):
    """A masked autoencoder. Masks are bool [B, U], True = visible."""

    @property
    def mask_ratio(self) -> float:
        """Share of the mask units that are deleted when the model draws a mask."""
        ...

    @property
    def num_mask_units(self) -> int:
        """U, the mask units of one clip."""
        ...

    def random_keep(
        self, batch: int, mask_ratio: float | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw a mask bool [batch, U] that keeps the same number of units of every clip."""
        ...

    def forward(self, clips: Tensor, keep: Tensor | None = None) -> MAEOutput:
        """Pixels [B, C, *input_size] and a mask [B, U] (None: draw one) -> loss and predictions."""
        ...

    def reconstruct(self, clips: Tensor, pred: Tensor, keep: Tensor) -> Tensor:
        """Clips, `MAEOutput.pred` and mask -> pixels [B, C, T', H, W] or [B, C, H, W] to show."""
        ...


@runtime_checkable
class MotionModel(VideoModel, Protocol):
    """A model that predicts numbers for a grid of cells over a clip."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Numbers of a cell, for each of the predictions."""
        ...

    def forward(self, clips: Tensor) -> list[Tensor]:
        """Normalised pixels [B, C, *input_size] -> predictions [B, channels, T', G, G]."""
        ...


@runtime_checkable
class LayeredModel(Protocol):
    """Optional: layers are numbered, for layer-wise learning rates. Transformers have it."""

    @property
    def num_layers(self) -> int:
        """The largest `layer_id`: number of blocks + 1."""
        ...

    def layer_id(self, name: str) -> int:
        """Layer of a parameter: embedding 0, block i: i + 1, the rest `num_layers`."""
        ...


@runtime_checkable
class FeatureModel(Protocol):
    """Optional: a classifier in two steps, `forward(x) == forward_head(forward_features(x))`."""

    def forward_features(self, clips: Tensor) -> Tensor:
        """Pixels [B, C, *input_size] -> features before the head; Hiera's are [B, U, n, C], with a
        readout [B, D]."""
        ...

    def forward_head(self, features: Tensor) -> Tensor:
        """Features of `forward_features` -> logits [B, K]."""
        ...


@runtime_checkable
class MaskableModel(Protocol):
    """Optional: a classifier that takes a mask as the second argument of `forward`.

    MViTv2 (`ladder_r0_*`, `mvitv2_*`) has the method and refuses: it has no mask units.
    """

    @property
    def num_mask_units(self) -> int:
        """U, the mask units of one clip."""
        ...

    def random_keep(
        self, batch: int, mask_ratio: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw a mask bool [batch, U]; UserError for a model without mask units."""
        ...


class BoxModel(Classifier, Protocol):
    """Optional: a classifier of boxes. `takes_boxes` tells whether a model is one."""

    def forward(self, clips: Tensor, boxes: Tensor | None = None) -> Tensor:
        """Pixels [B, C, *input_size] and boxes [N, 5] (clip, x1, y1, x2, y2 as shares of the
        picture; None: the whole picture of each clip) -> logits [N, K]."""
        ...


def takes_boxes(model: nn.Module) -> bool:
    """Whether a model scores boxes."""
    return "boxes" in inspect.signature(model.forward).parameters


@runtime_checkable
class AnyCropModel(Protocol):
    """Optional: a model that may take larger pictures than `input_size` (convolutional ones)."""

    @property
    def any_crop(self) -> bool:
        """Whether H and W may be larger."""
        ...


@runtime_checkable
class NamedKeysModel(Protocol):
    """Optional: a model whose state dict calls the head or the decoder otherwise than Hiera's."""

    @property
    def key_names(self) -> KeyNames:
        """Names of the head, and of what only classifiers or only autoencoders have."""
        ...


@runtime_checkable
class TranslatedKeysModel(Protocol):
    """Optional: a model whose weights are published under other names than its own."""

    def read_published_keys(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A published state dict -> the same tensors under the model's own keys."""
        ...


if TYPE_CHECKING:  # the type checker holds this package's own models to the contract
    _CLASSIFIER: type[Classifier] = Hiera
    _LAYERED: type[LayeredModel] = Hiera
    _FEATURES: type[FeatureModel] = Hiera
    _MASKABLE: type[MaskableModel] = Hiera
    _AUTOENCODER: type[Autoencoder] = MaskedAutoencoder
    _LAYERED_AUTOENCODER: type[LayeredModel] = MaskedAutoencoder
    _MOTION: type[MotionModel] = MotionPredictor
    _LAYERED_MOTION: type[LayeredModel] = MotionPredictor
