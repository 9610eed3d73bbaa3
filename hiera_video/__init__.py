"""Hiera for video: models, training, testing and labelling.

from hiera_video import build_model, list_models, Predictor, load_config
"""

from __future__ import annotations

from hiera_video.on_first_use import on_first_use

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
__getattr__ = on_first_use(__name__, _HOMES)  # so that `--help` need not wait for torch


def __dir__() -> list[str]:
    return sorted(__all__)
