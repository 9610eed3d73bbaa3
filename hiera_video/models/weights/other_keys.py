"""Keys of MViTv2 and Hiera in the files of torchvision and timm, translated to the published ones.

Our state dicts have the keys of the authors' own code (SlowFast, mvit, hiera). torchvision and timm
have the same tensors under other keys. Q, K and V are packed alike everywhere, so only the keys
differ, and the shape of torchvision's class token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

Renames = Sequence[tuple[str, str]]
"""Pairs (pattern, replacement) of `re.sub`, applied one after the other."""

TORCHVISION: Renames = (
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^pos_encoding\.class_token$", "cls_token"),
    (r"\.attn\.project\.0\.", ".attn.proj."),
    (r"\.attn\.pool_([qkv])\.pool\.", r".attn.pool_\1."),
    (r"\.attn\.pool_([qkv])\.norm_act\.0\.", r".attn.norm_\1."),
    (r"^(blocks\.\d+)\.project\.", r"\1.proj."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
    (r"^head\.1\.", "head.projection."),
)
TIMM: Renames = (
    (r"\.shortcut_proj_(attn|mlp)\.", ".proj."),
    (r"^head\.norm\.", "norm."),
    (r"^head\.fc\.", "head.projection."),
)
HEAD_WEIGHT = "head.projection.weight"

_BLOCK_OF_STAGE = re.compile(r"^stages\.(\d+)\.blocks\.(\d+)\.")


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with torchvision's or timm's keys -> published keys; others are unchanged."""
    renames = _renames(state)
    if not renames:
        return dict(state)
    first = _first_blocks(state)

    def flat(match: re.Match) -> str:
        return f"blocks.{first[int(match[1])] + int(match[2])}."

    translated = {}
    for key, tensor in state.items():
        name = _BLOCK_OF_STAGE.sub(flat, key)
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        if name == "cls_token":
            tensor = tensor.reshape(1, 1, -1)
        translated[name] = tensor
    return translated


def head_weight(state: Mapping[str, Tensor]) -> str | None:
    """The key of the classifier's weight, published, torchvision's or timm's; None without one."""
    candidates = (HEAD_WEIGHT, "head.1.weight" if "conv_proj.weight" in state else "head.fc.weight")
    return next((key for key in candidates if key in state), None)


_SIZES = {
    # channels of the stem, blocks, steps in time (0 for images): the published MViTv2
    (96, 10, 0): "mvitv2_tiny_224",
    (96, 16, 0): "mvitv2_small_224",
    (96, 24, 0): "mvitv2_base_224",
    (144, 48, 0): "mvitv2_large_224",
    (96, 16, 8): "mvitv2_small_16x224",
    (96, 24, 16): "mvitv2_base_32x224",
    (144, 48, 8): "mvitv2_large_16x224",
}


def published_model(state: Mapping[str, Tensor]) -> str | None:
    """Registered name of the published MViTv2 with the sizes of a state dict; None if none has."""
    state = to_published(state)
    stem, table = state.get("patch_embed.proj.weight"), state.get("blocks.0.attn.rel_pos_h")
    if stem is None or table is None or (stem.dim() == 5) != ("cls_token" in state):
        return None
    blocks = {key.split(".")[1] for key in state if key.startswith("blocks.")}
    in_time = state.get("blocks.0.attn.rel_pos_t")
    steps = 0 if in_time is None else (in_time.shape[0] + 1) // 2
    return _SIZES.get((stem.shape[0], len(blocks), steps))


def _renames(state: Mapping[str, Tensor]) -> Renames:
    """The renames for a state dict, recognised by keys that only one library has."""
    if "conv_proj.weight" in state:
        return TORCHVISION
    timm = "stages.0.blocks.0.attn.pool_q.weight" in state or (
        "head.fc.weight" in state and "blocks.0.attn.qkv.weight" in state
    )
    return TIMM if timm else ()


def _first_blocks(state: Mapping[str, Tensor]) -> list[int]:
    """The number, over all stages, of the first block of each of timm's stages."""
    places = {
        (int(match[1]), int(match[2])) for key in state if (match := _BLOCK_OF_STAGE.match(key))
    }
    depths = [0] * (1 + max((stage for stage, _ in places), default=-1))
    for stage, block in places:
        depths[stage] = max(depths[stage], block + 1)
    return [sum(depths[:stage]) for stage in range(len(depths))]
