"""What the page of a run is told, and the file that keeps it between two writes of the page.

Training writes how it began, a test what it found; the page shows both, whoever wrote it last.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hiera_video.files import write_text

VERSION = 1
"""Of facts.json: a file of another version is not read."""


class Change(NamedTuple):
    """A setting that is not as the recipe has it."""

    key: str
    here: str
    recipe: str


@dataclass(frozen=True)
class Split:
    """A list of videos."""

    name: str
    videos: int
    described: str
    """The classes, and where they come from, in a line."""
    counts: Sequence[int] = ()
    """Videos of each class; empty without labels."""
    notes: Sequence[str] = ()
    unit: str = "videos"
    """What the videos are called."""


@dataclass(frozen=True)
class Start:
    """How a training run begins."""

    lines: Sequence[str]
    """Model, device and plan, in words."""
    notes: Sequence[str]
    recipe: str
    """The name of the recipe; empty where the run has none."""
    changed: Sequence[Change]
    settings: str
    """All of them, as YAML."""
    classes: Sequence[str] = ()
    splits: Sequence[Split] = ()


@dataclass
class Clip:
    """A tested video."""

    path: str
    labels: tuple[int, ...]
    best: tuple[tuple[int, float], ...] = ()
    """(class, score), the highest first; none where the video could not be read."""
    true_score: float = 0.0
    """Of its label; the lowest where it has several."""
    error: str = ""
    picture: str = ""
    """Relative to RUN/page; empty where there is none."""

    @property
    def predicted(self) -> int:
        """The class with the highest score."""
        return self.best[0][0]

    @property
    def is_right(self) -> bool:
        """Whether the highest score is that of one of its labels."""
        return self.predicted in self.labels


@dataclass(frozen=True)
class Outcome:
    """A test: what the page says of it besides its clips."""

    lines: Sequence[str]
    """What was tested and the result, in words."""
    notes: Sequence[str]
    classes: Sequence[str]
    per_class: Sequence[float | None]
    """Accuracy of each class in percent, or average precision; None for one without a video."""
    multi_label: bool = False
    confusion: Sequence[tuple[int, int, int]] = ()
    """(true class, predicted class, videos), of those that occurred; none with several labels."""


class FactsFile:
    """RUN/page/facts.json: a dictionary of what is above, as JSON."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "facts.json"

    def read(self) -> dict[str, Any]:
        """Return what is known; nothing where the file is not there, or of another version."""
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) and found.get("version") == VERSION else {}

    def update(self, **facts: Any) -> dict[str, Any]:
        """Replace facts by others; returns all. Raises RunFailed where they cannot be written."""
        plain = {name: _plain(value) for name, value in facts.items()}
        known = {**self.read(), **plain, "version": VERSION}
        write_text(self._path, json.dumps(known) + "\n")
        return known


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return asdict(value)
    return value
