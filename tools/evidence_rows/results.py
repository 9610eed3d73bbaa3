"""Results of rows, one file each, so that a second call goes on where the first stopped, or works
beside it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evidence_rows.action_sets import ActionSet, Part
from evidence_rows.claims import claimed
from evidence_rows.controls import PLAIN
from evidence_rows.feature_files import digest, plain_name
from hiera_video import files


@dataclass(frozen=True)
class Job:
    """One row on one part of a set with one seed."""

    row: str
    action_set: ActionSet
    part: Part
    seed: int
    settings: dict[str, Any]
    """All that the result depends on, besides the videos."""

    @property
    def text(self) -> str:
        """The job in words."""
        return f"{self.action_set.name}, {self.part.name}, {self.row}, seed {self.seed}"

    def key(self) -> str:
        """A name for files that no other job, nor this one with other settings, has."""
        facts = [self.row, self.action_set.fingerprint, self.part.name, self.seed, self.settings]
        return f"{plain_name(self.text)}-{digest(facts)}"


@dataclass
class Result:
    """What a row answered."""

    row: str
    action_set: str
    part: str
    seed: int
    videos: list[str]
    """The tested videos."""
    labels: list[int]
    predicted: dict[str, list[int]]
    """"plain", and each control -> the answer for each video."""
    chosen: str = ""
    """What cross-validation chose, in words."""
    seconds: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)

    def accuracy(self, control: str = PLAIN) -> float:
        """Percent right."""
        pairs = zip(self.predicted[control], self.labels, strict=True)
        return 100 * sum(a == b for a, b in pairs) / len(self.labels)


@dataclass(frozen=True)
class ResultFiles:
    """The results in a folder."""

    folder: Path

    def find(self, job: Job) -> Result | None:
        """The result of a job, if it is there."""
        path = self._path(job)
        if not path.is_file():
            return None
        return Result(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, job: Job, result: Result) -> None:
        """Keep a result."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_text(self._path(job), json.dumps(asdict(result), default=str) + "\n")

    def claimed(self, job: Job, *, wait: float) -> contextlib.AbstractContextManager[bool]:
        """Hold a job against other calls: see `claims.claimed`."""
        return claimed(self._path(job), wait=wait)

    def _path(self, job: Job) -> Path:
        return self.folder / f"{job.key()}.json"
