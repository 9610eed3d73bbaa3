"""Where the time of a pretraining step goes: stem, encoder, decoder, loss, forward and backward.

Marks are set while the step runs, by hooks: forward, before the first block (the stem ends), before
the decoder's first layer (the encoder ends, its multi-scale fusion included) and after its last
(the decoder ends; targets and loss follow); backward, when the gradient of the tensor at each of
these places is there, which is when the part behind it is done. On a CPU a mark is the time; on a
GPU it is an event in the stream, read once the step is over, so that nothing waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hiera_video.benchmarks.steps import Step

FORWARD = ("stem", "encoder", "decoder", "loss")
BACKWARD = ("loss backward", "decoder backward", "encoder backward", "stem backward")
PARTS = (*FORWARD, *BACKWARD, "optimizer")


class Places(NamedTuple):
    """Names of the modules at which the parts of an autoencoder meet."""

    first_block: str
    decoder_first: str
    decoder_last: str


PLACES = (
    Places("encoder.blocks.0", "decoder_embed", "decoder_pred"),
    Places("network.blocks.0", "network.decoder_embed", "network.decoder_pred"),
    Places(
        "network.videomae.encoder.layer.0", "network.encoder_to_decoder", "network.decoder.head"
    ),
)
"""Ours, hiera-transformer's, transformers' VideoMAE."""


def places_of(model: nn.Module) -> Places | None:
    """Where the parts of this autoencoder meet; None for an unknown model."""
    names = {name for name, _ in model.named_modules()}
    return next((places for places in PLACES if names.issuperset(places)), None)


class Marks:
    """Times the parts of one `Step` by hooks; `seconds` returns those of its last call."""

    def __init__(self, step: Step, places: Places) -> None:
        self.on_gpu = step.clips.is_cuda
        self.ended: list[tuple[str, Any]] = []
        self.active = False  # the same module may be called by other steps
        step.on_part = self._on_part
        first, start, end = (step.model.get_submodule(name) for name in places)
        first.register_forward_pre_hook(self._before("stem", "encoder backward"), with_kwargs=True)
        start.register_forward_pre_hook(
            self._before("encoder", "decoder backward"), with_kwargs=True
        )
        end.register_forward_hook(self._after_decoder)

    def seconds(self) -> dict[str, float]:
        """Seconds of each part; on a GPU it must have finished."""
        pairs = zip(self.ended, self.ended[1:], strict=False)
        return {part: self._between(before, mark) for (_, before), (part, mark) in pairs}

    def _between(self, before: Any, after: Any) -> float:
        return before.elapsed_time(after) / 1e3 if self.on_gpu else after - before

    def _on_part(self, part: str) -> None:
        if part == "start":
            self.ended.clear()
        self.active = part != "end"
        if self.active:
            self._mark(part)

    def _mark(self, part: str) -> None:
        if not self.active:
            return
        mark: Any = torch.cuda.Event(enable_timing=True) if self.on_gpu else time.perf_counter()
        if self.on_gpu:
            mark.record()
        self.ended.append((part, mark))

    def _mark_gradient(self, tensor: Tensor, part: str) -> None:
        if self.active and tensor.requires_grad:
            tensor.register_hook(lambda _: self._mark(part))

    def _before(
        self, part: str, backward: str
    ) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            self._mark(part)
            tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            self._mark_gradient(tensors[0], backward)

        return hook

    def _after_decoder(self, _: nn.Module, args: tuple, out: Tensor) -> None:
        self._mark("decoder")
        self._mark_gradient(out, "loss backward")


def marks_of(step: Step) -> Callable[[], dict[str, float]] | None:
    """A function that returns the seconds of each part of a training step's last call.

    None where the model's parts are not known.
    """
    places = places_of(step.model)
    if places is None or step.case.mode != "train":
        return None
    return Marks(step, places).seconds
