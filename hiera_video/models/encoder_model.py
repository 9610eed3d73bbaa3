"""Models around an encoder, for pretraining: what they all take from it.

Their state dicts have the encoder's keys without a prefix, as published (`blocks.0...`, not
`encoder.blocks.0...`): so a classifier finds its encoder in the file of an autoencoder, and the
published files of both load.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from hiera_video.models.hiera import HieraEncoder


class EncoderModel(nn.Module):
    """A model with an `encoder` and parts of its own, which are not kept after pretraining."""

    encoder: HieraEncoder

    def set_encoder(self, encoder: HieraEncoder) -> None:
        """Take the encoder, whose keys have no prefix from then on."""
        self.encoder = encoder
        self.register_state_dict_post_hook(_drop_encoder_prefix)
        self.register_load_state_dict_pre_hook(_add_encoder_prefix)

    @property
    def input_size(self) -> tuple[int, ...]:
        """Pixels along each dimension of the input."""
        return self.encoder.input_size

    @property
    def num_layers(self) -> int:
        """The largest `layer_id`."""
        return self.encoder.num_layers

    def layer_id(self, name: str) -> int:
        """Depth of a parameter for layer decay: as in the encoder; all others count as last."""
        if name.startswith("encoder."):
            return self.encoder.layer_id(name.removeprefix("encoder."))
        return self.num_layers

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that must not be decayed: the encoder's positions."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}


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
