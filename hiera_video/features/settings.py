"""What the vectors in a file of features depend on: kept in the file, compared when it grows."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from hiera_video.clip_spec import ClipSpec
from hiera_video.errors import DataError, UserError

FORMAT = "hiera_video features/1"

NOT_COMPARED = ("weights",)
"""A name: the same weights may lie elsewhere, and their hash says whether they are the same."""


@dataclass(frozen=True)
class FeatureSettings:
    """All that a vector depends on, besides its video."""

    model: str
    """Registered name."""
    weights: str
    """As they were named: a file, a published name, "camera_motion"."""
    weights_sha256: str
    """Of the file of weights."""
    layer: str
    """"head" (what the last layer takes) or "stage1", "stage2", ..."""
    pool: str
    """"mean", "mean_max" or "tokens", see `encoder.POOLS`."""
    shape: tuple[int, ...]
    """Of one vector before it is flattened: (C,), or (T, rows, columns, C) of tokens."""
    views: tuple[int, int]
    """Clips in time x crops in space; the vector is the mean over them."""
    every: float | None
    """Seconds from a window to the next; None: one vector a video."""
    clip: ClipSpec
    computed_in: str
    """Number format of the forward pass: "fp32", "bf16" or "fp16"."""
    stored_as: str
    """Number format of the file: "fp32" or "fp16"."""
    root: str = ""
    """Folder that names in a folder of matrices are relative to; empty in a table."""

    @property
    def length(self) -> int:
        """D, the numbers of a vector."""
        return math.prod(self.shape)

    def to_json(self) -> str:
        """Return the text that the file holds."""
        content = {**asdict(self), "clip": self.clip.to_dict()}
        return json.dumps({"format": FORMAT, **content}, indent=1)

    @classmethod
    def from_json(cls, text: str, file: str) -> FeatureSettings:
        """Read the text of `to_json`; DataError, which names `file`, for any other."""
        try:
            content: dict[str, Any] = json.loads(text)
            if content.pop("format") != FORMAT:
                raise ValueError("it is of another version of this package")
            content["clip"] = ClipSpec.from_dict(content["clip"])
            for name in ("shape", "views"):
                content[name] = tuple(map(int, content[name]))
            settings = cls(**content)
        except (ValueError, TypeError, KeyError, AttributeError, UserError) as error:
            raise DataError(
                f"{file}: its settings cannot be read ({error}); write it again with "
                "hiera-video features"
            ) from None
        return settings

    def require_same(self, stored: FeatureSettings, file: str) -> None:
        """Raise UserError, which lists what differs, unless `stored` makes the same vectors.

        file: where `stored` is from.
        """
        names = [f.name for f in fields(self) if f.name not in NOT_COMPARED]
        pairs = [(name, getattr(stored, name), getattr(self, name)) for name in names]
        different = [
            f"{name} {_short(a)} there, {_short(b)} here" for name, a, b in pairs if a != b
        ]
        if different:
            raise UserError(
                f"{file} was written with other settings: {'; '.join(different)}. Name another "
                "--out, give the same settings, or replace the file with --afresh"
            )


def _short(value: Any) -> str:
    if isinstance(value, ClipSpec):
        return f"{value.in_words()}, crop {value.crop_size}"
    return str(value)[:16] if isinstance(value, str) and len(value) == 64 else str(value)
