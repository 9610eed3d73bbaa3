"""The section on generated data sets, and their names."""

from __future__ import annotations

from dataclasses import dataclass

from hiera_video.config.section import Section
from hiera_video.config.values import number, setting

GENERATED_SETS = {
    "synthetic": "data/camera_motion",
    "body_actions": "data/body_actions",
    "moving_shapes": "data/moving_shapes",
}
"""TRAIN.DATASET of the generated sets of files -> where each goes without DATA.PATH_TO_DATA_DIR."""

SETS_WITH_TRUTH = ("body_motion", "camera_flow")
"""TRAIN.DATASET of clips that come with what is known of them, optical flow and more."""


@dataclass(frozen=True)
class SyntheticConfig(Section):
    """The built-in data sets: camera motions and actions of figures, made when they are needed as
    real MP4 files, and the stream of generated clips."""

    prefix = "SYNTHETIC."

    num_train: int = number(192, at_least=1)
    """Training videos; of the stream, clips of an epoch."""
    num_val: int = number(48, at_least=1)
    """Validation videos."""
    size: int = number(96, at_least=16)
    """Side of a video, pixels."""
    frames: int = number(24, at_least=2)
    """Frames of a video."""
    plain: bool = setting(False)
    """An easier set: no foreground, steady light, quick motions. A small model learns it fast."""
