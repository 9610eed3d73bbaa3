"""The keys of the parts of a state dict that only a classifier or only an autoencoder has.

Classifiers and autoencoders share an encoder; the rest is found by its keys when the weights of one
are loaded into the other, or a head is replaced. A model of another library has its keys in an
attribute `key_names`; for models without one they are Hiera's.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KeyNames:
    """Keys of a family of models, whole or by their beginnings, and words for messages."""

    head: tuple[str, str]
    """Keys of weight and bias of a classifier's last linear layer."""
    classifier: tuple[str, ...]
    """Beginnings of the keys that only a classifier has."""
    classifier_words: str
    decoder: tuple[str, ...] = ()
    """Beginnings of the keys that only an autoencoder has."""
    decoder_words: str = ""


HIERA_KEYS = KeyNames(
    head=("head.projection.weight", "head.projection.bias"),
    classifier=("norm.", "head."),
    classifier_words="norm and head",
    # encoder_norm was trained on the sum of several stages' features, which the classifier's norm
    # does not get, and the authors do not load it into classifiers either
    decoder=("decoder_", "mask_token", "encoder_norm.", "multi_scale_fusion_heads."),
    decoder_words="decoder, fusion heads and encoder_norm",
)
