"""Hiera for video: models, training, testing and labelling.

from hiera_video import build_model, list_models, Predictor, load_config
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "build_model": "hiera_video.models",
    "list_models": "hiera_video.models",
    "Backbone": "hiera_video.models.backbone",
    "from_pretrained": "hiera_video.models",
    "save_pretrained": "hiera_video.models.weights.publish",
    "push_to_hub": "hiera_video.models.weights.publish",
    "create_hiera": "hiera_video.models.baselines.create_hiera",
    "load_config": "hiera_video.config",
    "ClipSpec": "hiera_video.clip_spec",
    "Predictor": "hiera_video.predict",
    "MODEL_REGISTRY": "hiera_video.registry",
    "DATASET_REGISTRY": "hiera_video.registry",
    "OBJECTIVE_REGISTRY": "hiera_video.registry",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `--help` does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hiera_video' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
