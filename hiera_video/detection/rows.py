"""What comes out of a video: a row for each person and second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PersonRow:
    """One person at one key frame."""

    second: float
    """As boxes that were given count it; else the time."""
    time: float
    """Seconds from the first frame of the video."""
    person: int
    """Number of the track, from 1; or of the person, where the given boxes have it."""
    corners: tuple[float, float, float, float]
    """x1, y1, x2, y2 as shares of the upright picture."""
    labels: tuple[tuple[str, float], ...]
    """(name, score from 0 to 1), highest first."""
    person_score: float | None
    """How sure the person detector is; None for given boxes without a score."""

    def to_dict(self) -> dict[str, Any]:
        """Return the object of --json."""
        return {
            "second": self.second,
            "person": self.person,
            **dict(zip(("x1", "y1", "x2", "y2"), self.corners, strict=True)),
            "person_score": self.person_score,
            "labels": [{"score": score, "label": label} for label, score in self.labels],
        }
