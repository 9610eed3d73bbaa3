"""State dicts of models around an encoder: the encoder's keys have no prefix, as published.

`blocks.0...`, not `encoder.blocks.0...`: so a classifier finds its encoder in the file of an
autoencoder, and the published files of both load.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def publish_encoder_keys(model: nn.Module) -> None:
    """Let a model with a part `encoder` save and load that part's keys without their prefix."""
    model.register_state_dict_post_hook(_drop_encoder_prefix)
    model.register_load_state_dict_pre_hook(_add_encoder_prefix)


def _drop_encoder_prefix(
    module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any
) -> None:
    """Save the published keys: `encoder.blocks...` becomes `blocks...`, in place, in order."""
    ours = f"{prefix}encoder."
    items = [
        (prefix + key.removeprefix(ours) if key.startswith(ours) else key, state[key])
        for key in list(state)
    ]
    state.clear()
    state.update(items)


def _add_encoder_prefix(
    module: nn.Module, state: dict[str, Any], prefix: str, *_unused: Any
) -> None:
    """Load the published keys: keys that are not the model's own are the encoder's."""
    own = {name.split(".")[0] for name, _ in module.named_parameters()} - {"encoder"}
    for key in list(state):
        if not key.startswith(prefix):
            continue
        first = key.removeprefix(prefix).split(".")[0]
        if first not in own and first != "encoder":
            state[f"{prefix}encoder.{key.removeprefix(prefix)}"] = state.pop(key)
