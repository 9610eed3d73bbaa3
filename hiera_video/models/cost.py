"""What a model costs: its parameters, and the multiply-adds of a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


class Cost(NamedTuple):
    """Of one model and one sample."""

    input_size: tuple[int, ...]
    """(T, H, W) of a clip, (H, W) of an image."""
    parameters: int
    gmacs: float | None
    """1e9 multiply-adds of a forward pass on one clip or image, attention included; None where they
    cannot be counted without computing."""


def cost_of(build: Callable[[], nn.Module], *, count: bool = True) -> Cost:
    """Count what a model costs, on the meta device: nothing is allocated or computed.

    build: makes the model. count: False leaves out the multiply-adds, which take a second or more
    of a large model.
    """
    with torch.device("meta"):
        model = build().eval()
    size = tuple(int(side) for side in model.input_size)  # type: ignore[union-attr]
    parameters = sum(p.numel() for p in model.parameters())
    return Cost(size, parameters, _gmacs(model, size) if count else None)


def _gmacs(model: nn.Module, size: tuple[int, ...]) -> float | None:
    clip = torch.zeros(1, 3, *size, device="meta")
    # The counter knows plain products on every device, fused attention only on some.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        try:
            model(clip)
        except (RuntimeError, NotImplementedError):  # it reads values: meta tensors have none
            return None
    return counter.get_total_flops() / 2e9
