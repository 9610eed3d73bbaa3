"""The steps between MViTv2 and Hiera as registered models, in three of Hiera's sizes.

    ladder_r0_large_16x224, ladder_r1_..., ladder_r2b_..., ladder_r2c_..., r3, r4, ladder_r5_...
    mae_ladder_r1_large_16x224, ... (not r0, which takes no mask)

ladder_r5 is Hiera. A choice of a step is changed by an argument: `ablation={"pool_pad": "-inf"}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hiera_video.errors import UserError
from hiera_video.models.hiera import SIZES, VIDEO, Hiera
from hiera_video.models.ladder.ablation import LADDER, AblationConfig, as_ablation
from hiera_video.models.ladder.models import build_autoencoder, build_classifier
from hiera_video.models.mae import MaskedAutoencoder
from hiera_video.registry import MODEL_REGISTRY

Choices = AblationConfig | Mapping[str, Any] | None
"""A whole config, or the choices in which one differs from a registered step."""

LADDER_SIZES = ("small", "base", "large")
"""The sizes in which MViTv2 was published too."""


def changed_step(base: AblationConfig, ablation: Choices, rung: Choices) -> AblationConfig:
    """Return a step with some choices changed.

    `rung` is the name that the argument had in earlier versions: configs and checkpoints have it.

    Raises:
        UserError: both are given; or as `as_ablation`.
    """
    if ablation is not None and rung is not None:
        raise UserError("ablation and rung are the same argument; give ablation")
    return as_ablation(rung if ablation is None else ablation, base=base)


def register_classifier(
    name: str,
    *,
    step: AblationConfig,
    size: str,
    arguments: dict[str, Any],
    num_classes: int,
    doc: str,
) -> None:
    """Register a classifier of a step; `SIZES[size]`, `arguments` and `num_classes` are its usual
    arguments."""
    usual = num_classes

    def build(
        num_classes: int = usual,
        *,
        ablation: Choices = None,
        rung: Choices = None,
        **overrides: Any,
    ) -> Hiera:
        changed = changed_step(step, ablation, rung)
        usual_arguments = {**SIZES[size], **arguments}
        return build_classifier(
            changed, **{**usual_arguments, "num_classes": num_classes, **overrides}
        )

    build.__doc__ = f"{doc}; {usual} classes by default."
    MODEL_REGISTRY.register(name=name)(build)


def register_autoencoder(
    name: str,
    *,
    step: AblationConfig,
    size: str,
    arguments: dict[str, Any],
    mask_ratio: float,
    doc: str,
) -> None:
    """Register a masked autoencoder of a step; `SIZES[size]`, `arguments` and `mask_ratio` are its
    usual arguments."""

    def build(
        *, ablation: Choices = None, rung: Choices = None, **overrides: Any
    ) -> MaskedAutoencoder:
        changed = changed_step(step, ablation, rung)
        usual_arguments = {**SIZES[size], **arguments}
        return build_autoencoder(
            changed, **{**usual_arguments, "mask_ratio": mask_ratio, **overrides}
        )

    build.__doc__ = f"{doc}; mask ratio {mask_ratio}."
    MODEL_REGISTRY.register(name=name)(build)


def register_step(name: str, size: str) -> None:
    """Register the models of one step and size: classifiers, and autoencoders if it takes masks."""
    step = LADDER[name]
    what = f"Step {name} of the ladder from MViTv2 (r0) to Hiera (r5), size {size}"
    images, clips = f"{what}, for 224x224 images", f"{what}, for 16-frame 224x224 clips"
    model = f"ladder_{name}_{size}"
    register_classifier(
        f"{model}_224", step=step, size=size, arguments={}, num_classes=1000, doc=images
    )
    register_classifier(
        f"{model}_16x224", step=step, size=size, arguments=VIDEO, num_classes=400, doc=clips
    )
    if step.tokens != "grid":
        no_changes: dict[str, Any] = {}
        for suffix, arguments, ratio, doc in (
            ("224", no_changes, 0.6, images),
            ("16x224", VIDEO, 0.9, clips),
        ):
            register_autoencoder(
                f"mae_{model}_{suffix}",
                step=step,
                size=size,
                arguments=arguments,
                mask_ratio=ratio,
                doc=f"{doc}: masked autoencoder",
            )


for _name in LADDER:
    for _size in LADDER_SIZES:
        register_step(_name, _size)
