"""The keys of the parts of a state dict that only a classifier, or only a model in pretraining has.

Classifiers, autoencoders and predictors of motion share an encoder; the rest is found by its keys
when the weights of one are loaded into another, or a head is replaced. A model of another library
has its keys in an attribute `key_names`; for models without one they are Hiera's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

CLASSIFIER, AUTOENCODER, MOTION = "classifier", "autoencoder", "predictor of motion"
ENCODER = "encoder without a head"


def kind_of(keys: Collection[str]) -> str:
    """Tell what a state dict is of: CLASSIFIER, what was pretrained as AUTOENCODER or MOTION, or
    ENCODER, which is a Hiera without anything after its blocks."""
    if "mask_token" in keys:
        return AUTOENCODER
    if any(key.startswith("decoder_heads.") for key in keys):
        return MOTION
    positions = "pos_embed" in keys or "pos_embed_spatial" in keys
    hiera = positions and "patch_embed.proj.weight" in keys and "cls_token" not in keys
    bare = not any(key.startswith(HIERA_KEYS.classifier) for key in keys)
    return ENCODER if hiera and bare else CLASSIFIER


@dataclass(frozen=True)
class KeyNames:
    """Keys of a family of models, whole or by their beginnings, and words for messages."""

    head: tuple[str, str]
    """Keys of weight and bias of a classifier's last linear layer."""
    classifier: tuple[str, ...]
    """Beginnings of the keys that only a classifier has."""
    classifier_words: str
    decoder: tuple[str, ...] = ()
    """Beginnings of the keys that only a model in pretraining has, an autoencoder or another."""
    decoder_words: str = ""
    motion_words: str = "heads"
    readout: str = ""
    """Key of a tensor that only a head with a `Readout` has, and whose shape is what it reads;
    empty: no model of the family has one."""


HIERA_KEYS = KeyNames(
    head=("head.projection.weight", "head.projection.bias"),
    classifier=("norm.", "head.", "readout."),
    classifier_words="norm and head",
    readout="readout.mean",
    # encoder_norm was trained on the sum of several stages' features, which the classifier's norm
    # does not get, and the authors do not load it into classifiers either
    decoder=("decoder_", "mask_token", "encoder_norm.", "multi_scale_fusion_heads."),
    decoder_words="decoder, fusion heads and encoder_norm",
)
