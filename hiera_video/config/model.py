"""The sections on the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hiera_video.config.section import Section
from hiera_video.config.values import choice, number, setting
from hiera_video.errors import ConfigError

INSTEAD_OF_KWARGS = {
    "name": "MODEL.MODEL_NAME",
    "num_classes": "MODEL.NUM_CLASSES",
    "classes": "DATA.CLASS_NAMES, a file with the names of the classes",
    "pretrained": "TRAIN.CHECKPOINT_FILE_PATH to start from weights, TEST.CHECKPOINT_FILE_PATH to "
    "test them",
}
"""Arguments of `build_model` that have a setting of their own, and that setting."""


@dataclass(frozen=True)
class ModelConfig(Section):
    """The model, its head and its loss."""

    prefix = "MODEL."

    model_name: str = setting("hiera_base_16x224")
    """A registered model (`list_models()`); an autoencoder (`mae_hiera_*`) when pretraining."""
    num_classes: int = number(0, at_least=0)
    """Outputs of the head; 0 takes the number of classes of the data set."""
    dropout_rate: float | None = number(None, at_least=0, below=1)
    """Dropout before the classifier; None is the model's own default."""
    loss_func: str = choice("cross_entropy", ("cross_entropy", "bce_logit"))
    """bce_logit is a sigmoid for every class; DATA.MULTI_LABEL needs it."""
    act_checkpoint: bool = setting(False)
    """Recompute each block in the backward pass: less memory, about a third more time."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """More arguments for the model's builder, in its own lower-case names: `{embed_dim: 32}`. They
    override those of other settings."""

    def check(self) -> None:
        for name in sorted(self.kwargs.keys() & INSTEAD_OF_KWARGS.keys()):
            raise ConfigError(
                f"MODEL.KWARGS.{name}={self.kwargs[name]!r} is not allowed there; "
                f"set {INSTEAD_OF_KWARGS[name]}"
            )


@dataclass(frozen=True)
class HieraConfig(Section):
    """Settings of the Hiera family; None keeps the builder's default."""

    prefix = "HIERA."

    droppath_rate: float | None = number(None, at_least=0, below=1)
    """Stochastic depth of the last block; earlier blocks drop linearly less."""
    abs_win: bool | None = setting(None)
    """Absolute-window position embeddings (arXiv 2311.05613): the size of the input may change."""
    decoder_embed_dim: int | None = number(None, at_least=1)
    """Width of the autoencoder's decoder (512 in the paper's code)."""
    decoder_depth: int | None = number(None, at_least=1)
    """Blocks of the decoder (8 in the paper)."""
    decoder_num_heads: int | None = number(None, at_least=1)
    """Heads of the decoder's attention (8 for video in the paper's table)."""
    decode_ratio: float | None = number(None, above=0, at_most=1)
    """Share of the masked units that a pretraining step decodes; below 1 is faster, but not what
    the paper does. None and 1 decode all."""
    target: str = choice("pixels", ("pixels", "hog", "flow"))
    """What an autoencoder predicts: pixels, histograms of oriented gradients (Table 3 of the
    paper), or the optical flow of generated clips (TRAIN.DATASET body_motion, camera_flow)."""
