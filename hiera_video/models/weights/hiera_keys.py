"""Keys of Hiera in other people's files, translated to the published ones.

Two kinds of files have Hiera's tensors under other names: those of Hugging Face transformers
(`facebook/hiera-*-hf`) and SAM 2, whose image encoder is a Hiera (`image_encoder.trunk.` in Meta's
files, `vision_encoder.backbone.` in those of transformers). SAM 2 has windows in place of mask
units; at the input size where a window of the third stage covers the whole map (224, for SAM 2's
large model 256), both compute the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

Renames = Sequence[tuple[str, str]]
"""Pairs (pattern, replacement) of `re.sub`, applied one after the other."""

TRANSFORMERS: Renames = (
    (r"^hiera\.embeddings\.position_embeddings$", "pos_embed"),
    (r"^hiera\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"^hiera\.pooler\.layernorm\.", "norm."),
    (r"^classifier\.", "head.projection."),
)
SAM2: Renames = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.mlp\.(?:layers\.0|proj_in)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:layers\.1|proj_out)\.", ".mlp.fc2."),
)
TRUNKS = ("image_encoder.trunk.", "vision_encoder.backbone.", "trunk.")
"""Where the image encoder is in a file of SAM 2."""

_LAYER = re.compile(r"^hiera\.encoder\.stages\.(\d+)\.layers\.(\d+)\.")


def published_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of transformers' Hiera or of SAM 2 -> the same tensors under published keys.

    Of SAM 2, and of transformers' Hiera for pretraining, only the encoder is taken. Others are
    returned as they are.
    """
    if "hiera.embeddings.patch_embeddings.projection.weight" in state:
        return _of_transformers(state)
    for trunk in TRUNKS:
        if f"{trunk}pos_embed_window" in state:
            inner = {
                key.removeprefix(trunk): t for key, t in state.items() if key.startswith(trunk)
            }
            return {_renamed(key, SAM2): tensor for key, tensor in inner.items()}
    return dict(state)


def _of_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    places = {(int(m[1]), int(m[2])) for key in state if (m := _LAYER.match(key))}
    depths = [0] * (1 + max((stage for stage, _ in places), default=-1))
    for stage, layer in places:
        depths[stage] = max(depths[stage], layer + 1)

    def flat(match: re.Match) -> str:
        return f"blocks.{sum(depths[: int(match[1])]) + int(match[2])}."

    own = ("hiera.", "classifier.")
    return {
        _renamed(_LAYER.sub(flat, key), TRANSFORMERS): tensor
        for key, tensor in state.items()
        if key.startswith(own)
    }


def _renamed(key: str, renames: Renames) -> str:
    for pattern, replacement in renames:
        key = re.sub(pattern, replacement, key)
    return key
