"""Parameters at random, for comparisons: default initialisation makes wrong code agree."""

import torch
from torch import nn


def redraw(model: nn.Module, seed: int = 0) -> nn.Module:
    """Redraw every parameter, as large as trained ones are: norms near 1, biases not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(0.1 * noise + (1.0 if is_norm_weight(name) else 0.0))
            else:
                parameter.copy_(0.05 * noise)
    return model


def is_norm_weight(name: str) -> bool:
    """Whether a one-dimensional parameter is the scale of a norm."""
    return "norm" in name and name.endswith("weight")


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference over the largest magnitude."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
