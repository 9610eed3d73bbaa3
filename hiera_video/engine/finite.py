"""Checks for NaN and infinity in what a checkpoint holds.

The loss shows broken weights one step late, so the weights themselves are checked before they are
written, and again before a run resumes from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video.engine import sharding
from hiera_video.errors import UserError, first_few


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that hold a NaN or an infinity; waits once for each device. Of
    sharded tensors this process's part is looked at."""
    by_device: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            own = sharding.local(tensor.detach())
            by_device.setdefault(tensor.device, {})[name] = own.isfinite().all()
    return [
        name
        for flags in by_device.values()
        for name, good in zip(flags, torch.stack(list(flags.values())).tolist(), strict=True)
        if not good
    ]


class FiniteState:
    """Checks the states of a run with this model: parameters, buffers, averages and moments.

    Buffers that hold infinities from the start, as masks do, are exempt.
    Raises UserError where the parameters are not finite; `source` says where they come from.
    """

    def __init__(self, model: nn.Module, source: str) -> None:
        broken = not_finite(dict(model.named_parameters()))
        if broken:
            raise UserError(f"the weights of {source} are not finite: {first_few(broken, 3)}")
        self._exempt = set(not_finite(dict(model.named_buffers())))

    def fault(self, state: Mapping[str, Any]) -> str | None:
        """Return why a run cannot resume from the content of a checkpoint; None if it can."""
        broken = not_finite(dict(self._tensors(state)))
        return f"its numbers are not finite: {first_few(broken, 3)}" if broken else None

    def _tensors(self, state: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
        for part in ("model_state", "raw_state"):
            for name, tensor in state.get(part, {}).items():
                if name not in self._exempt:
                    yield f"{part} {name}", tensor
        for number, moments in state["optimizer_state"]["state"].items():
            for name, tensor in moments.items():
                if isinstance(tensor, Tensor):
                    yield f"{name} of parameter {number}", tensor
