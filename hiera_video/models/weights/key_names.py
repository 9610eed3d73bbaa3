"""How a family of models names the parts of its state dict that come and go with the task.

What classifies and what pretrains share an encoder; the rest must be told apart by name when one's
weights go into the other, or a head is replaced. A model of another library says its names in an
attribute `key_names`; without one, Hiera's hold.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KeyNames:
    """Names in a state dict, whole or by their beginnings; the words are for messages."""

    head: tuple[str, str]
    """Weight and bias of the last linear layer of a classifier."""
    classifier: tuple[str, ...]
    """Beginnings of what only a classifier has."""
    classifier_words: str
    decoder: tuple[str, ...] = ()
    """Beginnings of what only an autoencoder has."""
    decoder_words: str = ""


HIERA_KEYS = KeyNames(
    head=("head.projection.weight", "head.projection.bias"),
    classifier=("norm.", "head."),
    classifier_words="norm and head",
    # encoder_norm was fitted to the sum of several stages' features, not to what the classifier's
    # norm sees, and the authors do not carry it over either
    decoder=("decoder_", "mask_token", "encoder_norm.", "multi_scale_fusion_heads."),
    decoder_words="decoder, fusion heads and encoder_norm",
)
