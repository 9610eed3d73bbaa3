"""What labelling a video gives: ranked labels, those of each stretch of time, or an error."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hiera_video.errors import hide_secrets
from hiera_video.explanation.explain import Explanation


@dataclass(frozen=True)
class Label:
    """One class and its score, a probability in [0, 1]."""

    label: str
    score: float

    def __str__(self) -> str:
        return f"{self.score:7.2%}  {self.label}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain strings and numbers, for JSON."""
        return {"score": self.score, "label": self.label}


@dataclass(frozen=True)
class Window:
    """The labels of one time window of a video; times in seconds from its first frame."""

    start: float
    end: float
    labels: tuple[Label, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, strings and numbers, for JSON."""
        labels = [label.to_dict() for label in self.labels]
        return {"start": self.start, "end": self.end, "labels": labels}


@dataclass
class Prediction:
    """The result for one file: its labels, highest score first, or why there are none."""

    file: str
    labels: list[Label] = field(default_factory=list)
    timeline: list[Window] | None = None
    """None where no timeline was asked for."""
    error: str | None = None
    """Why the file, or the rest of it, could not be labelled."""
    model: str = ""
    weights: str = ""
    views: str = ""
    """Temporal views x spatial crops, "5x3"."""
    explanation: Explanation | None = None
    """None where none was asked for."""

    def to_dict(self) -> dict[str, Any]:
        """Return the object that `--json` prints: plain lists, strings and numbers."""
        timeline = None if self.timeline is None else [w.to_dict() for w in self.timeline]
        result: dict[str, Any] = {
            "file": hide_secrets(self.file),
            "labels": [label.to_dict() for label in self.labels],
            "timeline": timeline,
            "error": self.error,
            "model": self.model,
            "weights": self.weights,
            "views": self.views,
        }
        if self.explanation is not None:
            result["explanation"] = self.explanation.to_dict()
        return result

    def __repr__(self) -> str:
        lines = [f"Prediction({self.file!r}, {self.model}, {self.views} views)"]
        lines += [f"  {rank:2d} {label}" for rank, label in enumerate(self.labels, 1)]
        if self.timeline is not None:
            lines.append(f"  timeline of {len(self.timeline)} windows")
        if self.error is not None:
            lines.append(f"  error: {self.error}")
        return "\n".join(lines)
