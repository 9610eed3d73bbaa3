"""The network of another library as a model of this package: inputs, logits, names of parameters.

Shapes: B batch, T frames, H and W pixels, K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hiera_video.errors import UserError
from hiera_video.models.inputs import check_clips
from hiera_video.models.weights.key_names import KeyNames


class Baseline(nn.Module):
    """A network of another library as a classifier of this package.

    The last linear layer is an attribute `head` as well, so that its parameters are called
    `head.weight` and `head.bias` whatever the library calls them (a linear probe trains `head.*`).
    The state dict has the library's own keys and no others.

    Args:
        network: the library's model, without a softmax at its end.
        head: name of its last linear layer, e.g. "blocks.6.proj".
        input_size: (T, H, W) that it is built for.
        any_crop: accept larger H and W too (a convolutional network averages over more places).
        head_init_std: standard deviation of a fresh head's weights; its bias starts at zero.
    """

    head: nn.Linear
    network: nn.Module

    def __init__(
        self,
        network: nn.Module,
        *,
        head: str,
        input_size: Sequence[int],
        any_crop: bool = False,
        head_init_std: float = 0.01,
    ) -> None:
        super().__init__()
        # `head` comes before `network`: the first name of a parameter is the one it is listed under
        self.head = cast(nn.Linear, network.get_submodule(head))
        self.network = network
        self.key_names = KeyNames(
            head=(f"{head}.weight", f"{head}.bias"),
            classifier=(f"{head}.",),
            classifier_words="head",
        )
        self.input_size = tuple(input_size)
        self.any_crop = any_crop
        self.head_init_std = head_init_std
        use_library_keys(self)

    @property
    def num_classes(self) -> int:
        """K, the number of outputs of the head."""
        return self.head.out_features

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay; none by default."""
        return set()

    def reset_head(self) -> None:
        """Initialise the last linear layer as the library does."""
        nn.init.normal_(self.head.weight, std=self.head_init_std)
        nn.init.zeros_(self.head.bias)

    def forward(self, clips: Tensor) -> Tensor:
        """Normalised pixels [B, 3, T, H, W] -> logits [B, K].

        Raises:
            UserError: if the network cannot take `clips` (`inputs.check_clips`).
        """
        self._check_clips(clips)
        return self.logits(clips)

    def logits(self, clips: Tensor) -> Tensor:
        """Clips [B, 3, T, H, W] that were checked -> logits [B, K], by the library's network."""
        out: Tensor = self.network(clips)
        return out

    def _check_clips(self, clips: Tensor) -> None:
        or_more = 2 if self.any_crop else 0
        check_clips(clips, (3, *self.input_size), weight=self.head.weight, or_more=or_more)


class LayeredBaseline(Baseline):
    """A transformer of another library, with the number of each parameter's layer for layer decay.

    Args:
        network: see `Baseline`.
        blocks: name of its list of blocks, e.g. "blocks".
        embedding: beginnings of the names of the parameters before the first block.
        no_decay: beginnings of the names of position embeddings and class tokens.
        act_checkpoint: recompute each block in the backward pass: less memory, more time.
        kwargs: see `Baseline`.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        blocks: str,
        embedding: Sequence[str],
        no_decay: Sequence[str] = (),
        act_checkpoint: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, **kwargs)
        self.blocks_name = f"network.{blocks}."
        self.embedding = tuple(f"network.{name}" for name in embedding)
        self.no_decay = tuple(f"network.{name}" for name in no_decay)
        layers = cast(nn.ModuleList, network.get_submodule(blocks))
        self.depth = len(layers)
        if act_checkpoint:
            recompute(layers)

    @property
    def num_layers(self) -> int:
        """The largest `layer_id`: depth + 1."""
        return self.depth + 1

    def layer_id(self, name: str) -> int:
        """The layer of a parameter, for layer decay: embedding 0, block i i + 1, the rest last."""
        if name.startswith(self.embedding):
            return 0
        if name.startswith(self.blocks_name):
            return int(name.removeprefix(self.blocks_name).split(".")[0]) + 1
        return self.num_layers

    def no_weight_decay(self) -> set[str]:
        """Names of position embeddings and class tokens."""
        if not self.no_decay:
            return set()
        return {name for name, _ in self.named_parameters() if name.startswith(self.no_decay)}


def recompute(blocks: Iterable[nn.Module]) -> None:
    """Make blocks drop their activations and compute them again in the backward pass."""
    for block in blocks:
        recomputed = functools.partial(checkpoint, block.forward, use_reentrant=False)
        block.forward = recomputed


def check_video_size(
    name: str, input_size: Sequence[int], *, frames: int = 1, side: int = 1, square: bool = False
) -> tuple[int, int, int]:
    """Check a size (T, H, W) for the model `name` and return it as a tuple.

    Raises:
        UserError: it is not three numbers, T is no multiple of `frames`, H or W is none of `side`,
            or H and W differ and must be `square`.
    """
    size = tuple(input_size)
    whole = len(size) == 3 and all(isinstance(n, int) and n > 0 for n in size)
    if not whole or size[0] % frames or size[1] % side or size[2] % side:
        raise UserError(
            f"{name}: input_size={size} must be (frames, height, width), multiples of "
            f"({frames}, {side}, {side})"
        )
    if square and size[1] != size[2]:
        raise UserError(f"{name}: input_size={size} must be square: equal height and width")
    return size[0], size[1], size[2]


def on_default_device(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network on the CPU, then move it to the default device (`with torch.device("meta")`).

    For libraries that read values of tensors while they build, which meta tensors do not have.
    """
    device = torch.get_default_device()
    with torch.device("cpu"):
        network = build()
    return network if device.type == "cpu" else network.to(device)


def use_library_keys(module: nn.Module) -> None:
    """Make a module that wraps a library's `network` save and load the library's own keys.

    `network.blocks.0...` is saved as `blocks.0...`. Where the module has the last linear layer as
    `head` too, its tensors are saved once, under the library's name.
    """
    module.register_state_dict_post_hook(_drop_prefix)
    module.register_load_state_dict_pre_hook(_add_prefix)


def _drop_prefix(_module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """State dict hook: keys of the wrapper -> keys of the library."""
    ours, head = f"{prefix}network.", f"{prefix}head."
    items = [
        (prefix + key.removeprefix(ours) if key.startswith(ours) else key, state[key])
        for key in list(state)
        if not key.startswith(head)
    ]
    state.clear()
    state.update(items)


def _add_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_unused: Any) -> None:
    """Hook before loading a state dict: keys of the library -> keys of the wrapper."""
    own = {key: state.pop(key) for key in list(state) if key.startswith(prefix)}
    state.update({f"{prefix}network.{key.removeprefix(prefix)}": own[key] for key in own})
    names: KeyNames | None = getattr(module, "key_names", None)
    for key in names.head if names is not None and hasattr(module, "head") else ():
        if prefix + key in own:
            state[f"{prefix}head.{key.rpartition('.')[2]}"] = own[prefix + key]
