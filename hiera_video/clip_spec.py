"""What a model expects to see: how a clip is sampled, cropped and normalised.

It is a module of its own because both `data`, which makes such clips, and `models`, whose weights
come with a spec, need it, and neither imports the other.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from hiera_video.errors import UserError


@dataclass(frozen=True)
class ClipSpec:
    """Sampling and normalisation of one clip; the defaults are Hiera's on Kinetics (16x4, 224)."""

    num_frames: int = 16
    """Frames in a clip (T); 1 for an image model."""
    sampling_rate: int = 4
    """Distance between neighbouring frames of a clip, in frames at `target_fps`."""
    target_fps: float = 30.0
    """Frame rate that `sampling_rate` refers to; clips of other videos span the same time."""
    crop_size: int = 224
    """Side of the square crop, pixels."""
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    """Per-channel RGB mean of pixels in [0, 1]."""
    std: tuple[float, float, float] = (0.225, 0.225, 0.225)
    """Per-channel RGB standard deviation of pixels in [0, 1]."""
    segments: bool = False
    """True: one frame from each of `num_frames` equal parts of the video (Something-Something)."""
    normalize_brightness: bool = False
    """True: each clip is brought to the same levels before mean and std; how, says
    `data/transforms/normalize.py`."""

    def __post_init__(self) -> None:
        for name in ("num_frames", "sampling_rate", "crop_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"clip {name}={value!r} must be a whole number of at least 1")
        if not self.target_fps > 0:
            raise UserError(f"clip target_fps={self.target_fps!r} must be above 0")
        for name in ("mean", "std"):
            value = tuple(float(v) for v in getattr(self, name))
            if len(value) != 3 or (name == "std" and min(value) <= 0):
                raise UserError(f"clip {name}={value!r} must be three numbers (std above 0)")
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Convert to numbers and lists, as a checkpoint stores them.

        `normalize_brightness` is left out where it is off: versions that do not know it refuse
        what they do not know, and can read such a checkpoint.
        """
        stored = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}
        if not self.normalize_brightness:
            del stored["normalize_brightness"]
        return stored

    def in_words(self) -> str:
        """For messages: "16x4 at 30 fps, mean (0.45, 0.45, 0.45), std (0.225, 0.225, 0.225)"."""
        brightness = ", brightness normalised" if self.normalize_brightness else ""
        return (
            f"{self.num_frames}x{self.sampling_rate} at {self.target_fps:g} fps, "
            f"mean {self.mean}, std {self.std}{brightness}"
        )

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> ClipSpec:
        """Make a spec from the output of `to_dict`.

        Raises UserError for a key that this version does not know.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(stored) - known)
        if unknown:
            raise UserError(f"unknown clip settings {unknown}; this version knows {sorted(known)}")
        values: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in stored.items()
        }
        return cls(**values)
