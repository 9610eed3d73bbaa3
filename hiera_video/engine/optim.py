"""Parameter groups, the optimizer, the learning rate of a step, and averaged weights (EMA)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video.engine.finite import not_finite
from hiera_video.errors import UserError, first_few

OPTIMIZERS = ("adamw", "sgd")


def lr_at(
    step: int,
    *,
    base_lr: float,
    total_steps: int,
    warmup_steps: float = 0,
    warmup_start_lr: float = 0.0,
    end_lr: float = 0.0,
    cosine_after_warmup: bool = False,
) -> float:
    """Learning rate of optimizer step `step` (0 .. total_steps - 1): linear warm-up, then cosine.

    A pure function: a resumed run needs only the step. As in SlowFast, warm-up is a straight line
    from `warmup_start_lr` to the cosine's value at `warmup_steps`; the half cosine spans the
    whole run, or with `cosine_after_warmup` only what follows warm-up.
    """

    def cosine(at: float) -> float:
        first = warmup_steps if cosine_after_warmup else 0
        part = (at - first) / max(total_steps - first, 1)
        return end_lr + (base_lr - end_lr) * (math.cos(math.pi * part) + 1) / 2

    if step < warmup_steps:
        top = cosine(warmup_steps)
        return warmup_start_lr + (top - warmup_start_lr) * step / warmup_steps
    return cosine(step)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def parameter_groups(
    model: nn.Module, *, weight_decay: float, layer_decay: float = 1.0
) -> list[dict]:
    """Groups of {"params", "param_names", "weight_decay", "lr_scale"}, over what trains.

    No weight decay, by rule and never by part of a name: tensors of at most one dimension, every
    `bias`, and the names in `model.no_weight_decay()`.
    lr_scale = layer_decay ** (num_layers - id), with id = `model.layer_id(name)`: 0 for what feeds
    the first block, i + 1 for block i, num_layers (depth + 1) for what follows the last one
    (SlowFast and BEiT: the last block already gets one factor, the head none).
    Raises UserError for a layer decay outside (0, 1] or a model without `layer_id`.
    """
    if not 0 < layer_decay <= 1:
        raise UserError(f"SOLVER.LAYER_DECAY {layer_decay} must be above 0 and at most 1 (1: off)")
    if layer_decay < 1 and not hasattr(model, "layer_id"):
        raise UserError(
            f"SOLVER.LAYER_DECAY {layer_decay} needs a model that numbers its layers; "
            f"{type(model).__name__} does not: set SOLVER.LAYER_DECAY 1.0"
        )
    exempt = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    unknown = exempt - {name for name, _ in model.named_parameters()}
    if unknown:
        raise ValueError(f"no_weight_decay() names what is no parameter: {sorted(unknown)}")

    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        spared = parameter.ndim <= 1 or name.rsplit(".", 1)[-1] == "bias" or name in exempt
        decay = 0.0 if spared else weight_decay
        scale = 1.0
        if layer_decay < 1:
            scale = layer_decay ** (model.num_layers - model.layer_id(name))
        group = groups.setdefault(
            (scale, decay),
            {"params": [], "param_names": [], "weight_decay": decay, "lr_scale": scale},
        )
        group["params"].append(parameter)
        group["param_names"].append(name)
    return list(groups.values())


def build_optimizer(
    groups: list[dict],
    *,
    method: str,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    momentum: float = 0.9,
    nesterov: bool = True,
    fused: bool = False,
) -> torch.optim.Optimizer:
    """AdamW or SGD over `parameter_groups`; the learning rate is set before every step."""
    if method == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=fused)
    if method == "sgd":
        return torch.optim.SGD(
            groups, lr=0.0, momentum=momentum, nesterov=nesterov and momentum > 0, fused=fused
        )
    raise UserError(f"SOLVER.OPTIMIZING_METHOD {method!r}: allowed are {', '.join(OPTIMIZERS)}")


def restore_state(optimizer: torch.optim.Optimizer, stored: dict[str, Any]) -> list[str]:
    """Take the moments of a stored `optimizer.state_dict()`, parameter by parameter, by name.

    Everything else (decay, betas, groups, which parameters train) stays as this run has it, so the
    run that wrote the state may have had other settings. Where the stored state has no moments of
    the kind that `optimizer` keeps, those start afresh; a sentence for each such case is returned.
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
    wanted = _moments_of(optimizer)
    own["state"] = {
        number: moments[name]
        for number, (name, parameter) in enumerate(zip(names, parameters, strict=True))
        if name in moments and _fit(moments[name], wanted, parameter)
    }
    optimizer.load_state_dict(own)
    return _started_afresh(names, own["state"], moments) if wanted else []


def _moments_of(optimizer: torch.optim.Optimizer) -> set[str]:
    """What the optimizer remembers of each parameter."""
    if isinstance(optimizer, torch.optim.SGD):
        return {"momentum_buffer"} if optimizer.defaults["momentum"] else set()
    return {"step", "exp_avg", "exp_avg_sq"}


def _fit(state: dict[str, Any], wanted: set[str], parameter: Tensor) -> bool:
    return (
        bool(wanted)
        and set(state) == wanted
        and all(value.shape == parameter.shape for name, value in state.items() if name != "step")
    )


def _names_of(stored: list[dict], own: list[dict]) -> list[str] | None:
    """The names of the parameters of stored groups, in their order; None where they are unknown."""
    if all("param_names" in group for group in stored):
        return [name for group in stored for name in group["param_names"]]
    if [len(group["params"]) for group in stored] != [len(group["params"]) for group in own]:
        return None
    return [name for group in own for name in group["param_names"]]


def _started_afresh(names: list[str], kept: dict[int, Any], moments: dict[str, Any]) -> list[str]:
    missing = [name for number, name in enumerate(names) if number not in kept]
    if not missing:
        return []
    if not kept:
        other = sorted(set().union(*moments.values()))
        came = (
            f"holds {', '.join(other)}, which this optimizer does not use" if other else "has none"
        )
        return [f"the optimizer's state starts afresh: the checkpoint {came}"]
    return [
        f"the optimizer's state of {len(missing)} of {len(names)} parameters starts afresh, the "
        f"checkpoint has none for them: {first_few(missing, 3)}"
    ]


@torch.no_grad()
def scale_gradients(parameters: Iterable[nn.Parameter], factor: Tensor) -> None:
    """Multiply all gradients by a number that stays on the device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Scale gradients to an L2 norm of at most `max_norm` (None: leave them); the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm:
        # min(1, max/norm) without asking the device for the number
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


class Ema:
    """Exponential moving average of a model's weights, in float32, kept beside the model."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.shadow = {k: self._copy(v) for k, v in model.state_dict().items()}
        # Infinities, which masks are made of, have no average.
        self._copied = set(not_finite(dict(model.named_buffers())))

    @staticmethod
    def _copy(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        return tensor.float().clone() if tensor.is_floating_point() else tensor.clone()

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """shadow <- d * shadow + (1 - d) * weights after step `step`; whole numbers are copied.

        d grows from 0.1 to `decay` as (1 + step) / (10 + step), so that a short run's average is
        not dominated by the random start.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in model.state_dict().items():
            if value.is_floating_point() and key not in self._copied:
                self.shadow[key].lerp_(value.detach().float(), 1 - decay)
            else:
                self.shadow[key].copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights under the model's own names."""
        return self.shadow

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from averaged weights, or from the weights of a run that kept no average."""
        if set(state) != set(self.shadow):
            raise UserError("the averaged weights (EMA) in the checkpoint are of another model")
        for key, value in state.items():
            self.shadow[key].copy_(value)
