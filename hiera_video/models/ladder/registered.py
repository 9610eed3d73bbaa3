"""The rungs between MViTv2 and Hiera as registered models, in three of Hiera's sizes.

    ladder_r0_large_16x224, ladder_r1_..., ladder_r2b_..., ladder_r2c_..., r3, r4, ladder_r5_...
    mae_ladder_r1_large_16x224, ... (not r0, which takes no mask)

All are one class, `Hiera` or `MaskedAutoencoder`, with a `rung` (`rungs.py`); ladder_r5 builds what
hiera builds. A change in a rung is an argument: `rung={"pool_pad": "-inf"}`.
"""

from __future__ import annotations

from typing import Any

from hiera_video.models.hiera import SIZES, VIDEO, Hiera
from hiera_video.models.ladder.ablation import RUNGS, as_rung
from hiera_video.models.mae import MaskedAutoencoder
from hiera_video.registry import MODEL_REGISTRY

LADDER_SIZES = ("small", "base", "large")
"""The sizes in which MViTv2 was published too."""


def register_rung(name: str, size: str) -> None:
    """Register the classifiers of one rung and size, and its autoencoders where it takes masks."""

    def arguments(overrides: dict[str, Any], **defaults: Any) -> dict[str, Any]:
        rung = as_rung(overrides.get("rung"), base=RUNGS[name])
        return {**SIZES[size], **defaults, **overrides, "rung": rung}

    def image(num_classes: int = 1000, **overrides: Any) -> Hiera:
        return Hiera(**arguments(overrides, num_classes=num_classes))

    def video(num_classes: int = 400, **overrides: Any) -> Hiera:
        return Hiera(**arguments(overrides, **VIDEO, num_classes=num_classes))

    def mae_image(**overrides: Any) -> MaskedAutoencoder:
        return MaskedAutoencoder(**arguments(overrides, mask_ratio=0.6))

    def mae_video(**overrides: Any) -> MaskedAutoencoder:
        return MaskedAutoencoder(**arguments(overrides, **VIDEO, mask_ratio=0.9))

    rung = f"Rung {name} from MViTv2 (r0) to Hiera (r5), size {size}"
    image.__doc__ = f"{rung}, for 224x224 images; 1000 classes unless said otherwise."
    video.__doc__ = f"{rung}, for 16-frame 224x224 clips; 400 classes unless said otherwise."
    mae_image.__doc__ = f"{rung}: masked autoencoder for 224x224 images; mask ratio 0.6."
    mae_video.__doc__ = f"{rung}: masked autoencoder for 16x224x224 clips; mask ratio 0.9."
    MODEL_REGISTRY.register(name=f"ladder_{name}_{size}_224")(image)
    MODEL_REGISTRY.register(name=f"ladder_{name}_{size}_16x224")(video)
    if RUNGS[name].tokens != "grid":
        MODEL_REGISTRY.register(name=f"mae_ladder_{name}_{size}_224")(mae_image)
        MODEL_REGISTRY.register(name=f"mae_ladder_{name}_{size}_16x224")(mae_video)


for _name in RUNGS:
    for _size in LADDER_SIZES:
        register_rung(_name, _size)
