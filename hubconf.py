"""torch.hub entry points: one for each registered model.

    model = torch.hub.load("/path/to/this/checkout", "hiera_base_16x224", source="local")
    model = torch.hub.load(..., "hiera_base_16x224", pretrained=True, checkpoint="mae_k400_ft_k400")

Models return logits, also in eval mode. Hiera's published weights are CC BY-NC 4.0.
"""

from typing import Any as _Any

from hiera_video.errors import UserError as _UserError
from hiera_video.models import build_model as _build_model
from hiera_video.models import list_models as _list_models

dependencies = ["torch", "torchvision", "pytorchvideo", "fvcore", "iopath", "numpy"]


def _entry_point(name: str) -> _Any:
    def entry_point(
        pretrained: bool = False, checkpoint: str | None = None, **overrides: _Any
    ) -> _Any:
        if checkpoint and not pretrained:
            raise _UserError(f"{name}: checkpoint={checkpoint!r} needs pretrained=True")
        return _build_model(name, pretrained=checkpoint or pretrained, **overrides)

    entry_point.__name__ = name
    entry_point.__doc__ = (
        f"{name}: fresh weights, or published ones with pretrained=True (checkpoint= picks among "
        "them); other arguments go to the model, e.g. num_classes=10."
    )
    return entry_point


for _name in _list_models():
    globals()[_name] = _entry_point(_name)
