"""torch.compile around the model of a step: when it is used, and what makes a run go on without."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hiera_video.errors import kind_and_line


class CompileSettings(NamedTuple):
    """How the model is compiled."""

    mode: str
    """Of torch.compile."""
    whole: bool = False
    """Compile it in one graph or not at all. DistributedDataParallel always has breaks."""


def choose_compile(wanted: bool | None, mode: str, device: torch.device) -> CompileSettings | None:
    """Return the settings for TRAIN.COMPILE and its mode; None: the model runs as it is.

    None as the wanted value leaves the choice to the device: on a GPU, models that compile whole.
    """
    if wanted is None:
        return CompileSettings(mode, whole=True) if device.type == "cuda" else None
    return CompileSettings(mode) if wanted else None


def compile_model(model: nn.Module, settings: CompileSettings) -> nn.Module:
    """Return the compiled model, for inputs of one size each; it is compiled when it is called.

    Raises RuntimeError where this Python or system has no torch.compile.
    """
    whole = settings.whole and not isinstance(model, DistributedDataParallel)
    compiled = torch.compile(model, mode=settings.mode, dynamic=False, fullgraph=whole)
    return cast(nn.Module, compiled)


_COMPILERS = ("torch._dynamo", "torch._inductor", "torch._functorch", "triton")


def compile_fault(error: BaseException) -> str | None:
    """Return why compiling failed, in a line; None for an error that the model itself raises."""
    if isinstance(error, torch.OutOfMemoryError):
        return None
    modules = [f"{kind.__module__}." for kind in type(error).__mro__]
    if not any(module.startswith(f"{name}.") for name in _COMPILERS for module in modules):
        return None
    return kind_and_line(error)


def fallback_note(reason: str) -> str:
    """Return the line that says that a run goes on without torch.compile."""
    return (
        f"note: torch.compile failed ({reason}); the model runs without it. TRAIN.COMPILE False "
        "does not try"
    )
