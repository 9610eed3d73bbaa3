"""Parameter groups, the optimizer, the learning rate of a step, and averaged weights (EMA)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from hiera_video.config import SolverConfig
from hiera_video.engine import sharding
from hiera_video.engine.finite import not_finite
from hiera_video.errors import UserError, first_few


@dataclass(frozen=True)
class LRSchedule:
    """Linear warm-up, then half a cosine: the settings of `lr_at`."""

    base_lr: float
    """Peak learning rate."""
    total_steps: int
    """Optimizer steps of the whole run."""
    warmup_steps: float = 0
    """Steps of the warm-up; a fraction of a step is possible, for warm-ups given in epochs."""
    warmup_start_lr: float = 0.0
    end_lr: float = 0.0
    """Where the cosine ends."""
    cosine_after_warmup: bool = False
    """The cosine spans the steps after the warm-up; False: the whole run, as in SlowFast."""


def lr_at(step: int, schedule: LRSchedule) -> float:
    """Return the learning rate of optimizer step `step`, 0 to total_steps - 1.

    A pure function: a resumed run needs only the step. As in SlowFast, the warm-up is a straight
    line from `warmup_start_lr` to the value that the cosine has at `warmup_steps`.
    """
    if step >= schedule.warmup_steps:
        return _cosine_at(step, schedule)
    top, start = _cosine_at(schedule.warmup_steps, schedule), schedule.warmup_start_lr
    return start + (top - start) * step / schedule.warmup_steps


def _cosine_at(step: float, schedule: LRSchedule) -> float:
    first = schedule.warmup_steps if schedule.cosine_after_warmup else 0
    part = (step - first) / max(schedule.total_steps - first, 1)
    height = schedule.base_lr - schedule.end_lr
    return schedule.end_lr + height * (math.cos(math.pi * part) + 1) / 2


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group: `lr` times the group's `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def parameter_groups(
    model: nn.Module, *, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Sort the trainable parameters into groups by weight decay and layer-wise learning rate.

    Each group is {"params", "param_names", "weight_decay", "lr_scale"}.

    These get no weight decay: tensors of at most one dimension, every `bias`, and the names in
    `model.no_weight_decay()`. Whole names count, never parts of one.

    lr_scale is layer_decay ** (num_layers - id), where id is `model.layer_id(name)`: 0 for the
    layers before the first block, i + 1 for block i, num_layers (depth + 1) for the layers after
    the last block. As in SlowFast and BEiT, the last block gets one factor and the head none.

    Raises UserError: a layer decay outside (0, 1], or a model without `layer_id`.
    """
    if not 0 < layer_decay <= 1:
        raise UserError(f"SOLVER.LAYER_DECAY {layer_decay} must be above 0 and at most 1 (1: off)")
    layer_id: Callable[[str], int] | None = getattr(model, "layer_id", None)
    if layer_decay < 1 and layer_id is None:
        raise UserError(
            f"SOLVER.LAYER_DECAY {layer_decay} needs a model that numbers its layers; "
            f"{type(model).__name__} does not: set SOLVER.LAYER_DECAY 1.0"
        )
    exempt = _without_weight_decay(model)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        no_decay = parameter.ndim <= 1 or name.rsplit(".", 1)[-1] == "bias" or name in exempt
        decay = 0.0 if no_decay else weight_decay
        scale = 1.0
        if layer_decay < 1 and layer_id is not None:
            scale = layer_decay ** (cast(int, model.num_layers) - layer_id(name))
        group = groups.setdefault(
            (scale, decay),
            {"params": [], "param_names": [], "weight_decay": decay, "lr_scale": scale},
        )
        group["params"].append(parameter)
        group["param_names"].append(name)
    return list(groups.values())


def _without_weight_decay(model: nn.Module) -> set[str]:
    """Names of parameters that the model itself takes out of weight decay."""
    names_of: Callable[[], Iterable[str]] | None = getattr(model, "no_weight_decay", None)
    exempt = set() if names_of is None else set(names_of())
    unknown = exempt - {name for name, _ in model.named_parameters()}
    if unknown:
        raise ValueError(f"no_weight_decay() names what is no parameter: {sorted(unknown)}")
    return exempt


def build_optimizer(
    groups: list[dict[str, Any]], solver: SolverConfig, *, fused: bool = False
) -> torch.optim.Optimizer:
    """Build the optimizer of the SOLVER settings over `parameter_groups`.

    Its learning rate is 0 until `set_lr`, which is called before every step.
    fused: one kernel for all parameters, on a GPU.
    """
    if solver.optimizing_method == "sgd":
        momentum = solver.momentum
        nesterov = solver.nesterov and momentum > 0
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov, fused=fused)
    return torch.optim.AdamW(groups, lr=0.0, betas=solver.betas, fused=fused)


def restore_state(optimizer: torch.optim.Optimizer, stored: dict[str, Any]) -> list[str]:
    """Load the moments of a stored `optimizer.state_dict()`, matching parameters by name.

    Everything else (weight decay, betas, groups, which parameters train) stays as this run has it,
    so the run that wrote the state may have had other settings. Where the stored state has no
    moments of the kind that `optimizer` keeps, they start from zero; returns a note for each case.
    """
    own = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    names = [name for group in own["param_groups"] for name in group["param_names"]]
    stored_names = _names_of(stored["param_groups"], own["param_groups"])
    if stored_names is None:
        return [
            "the optimizer's state starts afresh: the checkpoint groups its parameters in another "
            "way and, written by an earlier version, does not name them"
        ]
    moments = {stored_names[number]: state for number, state in stored["state"].items()}
    kinds = _moment_names(optimizer)
    own["state"] = {
        number: _placed(moments[name], parameter)
        for number, (name, parameter) in enumerate(zip(names, parameters, strict=True))
        if name in moments and _fit(moments[name], kinds, parameter)
    }
    # This moves every state to the device of its parameter; the step count too, where the group
    # says that it is fused. The groups are this run's own, so it does not matter what was stored.
    optimizer.load_state_dict(own)
    return _missing_notes(names, own["state"], moments) if kinds else []


def _moment_names(optimizer: torch.optim.Optimizer) -> set[str]:
    """Names of the state that the optimizer keeps for each parameter."""
    if isinstance(optimizer, torch.optim.SGD):
        return {"momentum_buffer"} if optimizer.defaults["momentum"] else set()
    return {"step", "exp_avg", "exp_avg_sq"}


def _fit(state: dict[str, Any], kinds: set[str], parameter: Tensor) -> bool:
    return (
        bool(kinds)
        and set(state) == kinds
        and all(value.shape == parameter.shape for name, value in state.items() if name != "step")
    )


def _placed(state: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
    """Return the state of a parameter as the parameter lies on the processes."""
    return {
        name: value if name == "step" else sharding.like(parameter, value)
        for name, value in state.items()
    }


def _names_of(stored: list[dict[str, Any]], own: list[dict[str, Any]]) -> list[str] | None:
    """Names of the parameters of stored groups, in their order; None where they are unknown."""
    if all("param_names" in group for group in stored):
        return [name for group in stored for name in group["param_names"]]
    if [len(group["params"]) for group in stored] != [len(group["params"]) for group in own]:
        return None
    return [name for group in own for name in group["param_names"]]


def _missing_notes(names: list[str], kept: dict[int, Any], moments: dict[str, Any]) -> list[str]:
    """Notes on the parameters whose moments start from zero."""
    missing = [name for number, name in enumerate(names) if number not in kept]
    if not missing:
        return []
    if not kept:
        other = sorted(set().union(*moments.values()))
        what = (
            f"holds {', '.join(other)}, which this optimizer does not use" if other else "has none"
        )
        return [f"the optimizer's state starts afresh: the checkpoint {what}"]
    return [
        f"the optimizer's state of {len(missing)} of {len(names)} parameters starts afresh, the "
        f"checkpoint has none for them: {first_few(missing, 3)}"
    ]


@torch.no_grad()
def scale_gradients(parameters: Iterable[nn.Parameter], factor: Tensor) -> None:
    """Multiply all gradients, in place, by a 0-d tensor on the device: no host sync."""
    gradients = [sharding.local(p.grad) for p in parameters if p.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Clip the gradients to a total L2 norm of at most `max_norm`, in place; None only measures.

    Returns the norm before clipping, a 0-d tensor on the device.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = sharding.total_norm(gradients)
    if max_norm:
        # min(1, max_norm / norm), without a copy to the CPU
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([sharding.local(gradient) for gradient in gradients], factor)
    return norm


class Ema:
    """Exponential moving average of a model's weights, in float32, kept beside the model: of a
    sharded model each process keeps the average of its part."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {k: self._copy(v) for k, v in model.state_dict().items()}
        # Attention masks hold infinities, which have no average: such buffers are copied.
        self._copied = set(not_finite(dict(model.named_buffers())))

    @staticmethod
    def _copy(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        return tensor.float().clone() if tensor.is_floating_point() else tensor.clone()

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Average in the weights after step `step`: shadow <- d * shadow + (1 - d) * weights.

        d grows from 0.1 to `decay` as (1 + step) / (10 + step), so that the random first weights do
        not dominate the average of a short run. Integer tensors are copied.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in model.state_dict().items():
            average, own = sharding.local(self.shadow[key]), sharding.local(value.detach())
            if value.is_floating_point() and key not in self._copied:
                average.lerp_(own.float(), 1 - decay)
            else:
                average.copy_(own)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights under the keys of the model's state dict."""
        return self.shadow

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load averaged weights, or the plain weights of a run that kept no average."""
        if set(state) != set(self.shadow):
            raise UserError("the averaged weights (EMA) in the checkpoint are of another model")
        for key, value in state.items():
            sharding.assign(self.shadow[key], value)

    @contextlib.contextmanager
    def in_model(self, model: nn.Module) -> Iterator[None]:
        """Let the model have the averaged weights inside the block, and its own ones after it."""
        own = {key: value.detach().clone() for key, value in model.state_dict().items()}
        model.load_state_dict(self.shadow)
        try:
            yield
        finally:
            sharding.reshard(model)
            model.load_state_dict(own)
