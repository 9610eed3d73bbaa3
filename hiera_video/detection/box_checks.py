"""Checks of lists of boxes: what is refused, what is left out, and the notes that say so."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hiera_video.detection.files import NO_ACTION, BoxTable, LabelMap
from hiera_video.errors import DataError

_NOT_COUNTED = -1
"""In place of a class: a box without an action, or with one that does not count."""
_SHOWN = 3


class BoxFile(NamedTuple):
    """A list of boxes and where it is from."""

    path: str
    table: BoxTable

    def lines(self, rows: NDArray[np.bool_]) -> str:
        """File and line of the first few of the rows that are true: "gt.csv:3, :7 and 9 more"."""
        numbers = self.table.lines[rows]
        named = ", ".join(f":{number}" for number in numbers[:_SHOWN].tolist())
        more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
        return f"{os.path.basename(self.path)}{named}{more}"


class Rows(NamedTuple):
    """Boxes to use, one row for each of their actions."""

    videos: tuple[str, ...]
    video: NDArray[np.int32]
    second: NDArray[np.int32]
    corners: NDArray[np.float64]
    label: NDArray[np.int64]
    """The class seen, or -1."""

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of several files; a video keeps its number in all of them."""
        place: dict[str, int] = {}
        for name in (name for part in parts for name in part.videos):
            place.setdefault(name, len(place))
        numbers = [np.array([place[n] for n in part.videos], np.int32) for part in parts]
        videos = [n[part.video] for n, part in zip(numbers, parts, strict=True)]
        return cls(
            tuple(place),
            np.concatenate(videos),
            np.concatenate([part.second for part in parts]),
            np.concatenate([part.corners for part in parts]),
            np.concatenate([part.label for part in parts]),
        )

    def where(self, kept: NDArray[np.bool_]) -> Rows:
        """The rows where `kept` is true."""
        return Rows(
            self.videos, self.video[kept], self.second[kept], self.corners[kept], self.label[kept]
        )

    def at(self, moments: set[tuple[str, int]]) -> NDArray[np.bool_]:
        """Which rows are at one of these (video, second)."""
        place = {name: number for number, name in enumerate(self.videos)}
        keys = [place[name] << 32 | second for name, second in moments if name in place]
        own = self.video.astype(np.int64) << 32 | self.second
        return np.isin(own, np.array(keys, np.int64))


@dataclass
class Checks:
    """What lists of boxes are checked against, and what was left out of them."""

    labels: LabelMap
    seconds: tuple[int, int]
    """AVA.SECONDS, first and last."""
    notes: list[str] = field(default_factory=list)

    def require_known(self, file: BoxFile) -> None:
        """Raise DataError for an action that does not exist, and for an annotated box at a second
        that AVA.SECONDS does not allow."""
        highest = max(self.labels.ids)
        unknown = file.table.action > highest
        if unknown.any():
            raise DataError(
                f"{file.lines(unknown)}: action {file.table.action[unknown][0]} is unknown; the "
                f"list of actions goes to {highest}"
            )
        if file.table.score is None and (wrong := self.outside(file.table)).any():
            first, last = self.seconds
            raise DataError(
                f"{file.lines(wrong)}: second {file.table.second[wrong][0]} is outside of {first} "
                f"to {last}; AVA.SECONDS says which seconds may be annotated"
            )

    def outside(self, table: BoxTable) -> NDArray[np.bool_]:
        """Which boxes are at a second that AVA.SECONDS does not allow."""
        return (table.second < self.seconds[0]) | (table.second > self.seconds[1])

    def classes(self, action: NDArray[np.int32]) -> NDArray[np.int64]:
        """The class of each action; -1 of none, and of one that does not count."""
        number = np.full(max(self.labels.ids) + 1, _NOT_COUNTED, np.int64)
        number[list(self.labels.ids)] = np.arange(len(self.labels))
        return number[action]

    def leave_out(self, file: BoxFile, rows: NDArray[np.bool_], what: str) -> NDArray[np.bool_]:
        """Note the rows that are true; returns the others."""
        if rows.any():
            self.notes.append(f"{what}, left out: {int(rows.sum())} ({file.lines(rows)})")
        return ~rows


def checked(file: BoxFile, checks: Checks, *, least_score: float = 0.0) -> Rows:
    """The boxes of a file that are used. Raises DataError as `Checks.require_known` does.

    least_score: boxes of a detector below it are left out, without a note.
    """
    checks.require_known(file)
    table = file.table
    kept = np.ones(len(table.lines), bool)
    if table.score is not None:
        kept = table.score >= least_score
        kept &= checks.leave_out(file, kept & checks.outside(table), "boxes outside AVA.SECONDS")
    x1, y1, x2, y2 = table.corners.T
    empty = kept & ((x1 >= x2) | (y1 >= y2))
    kept &= checks.leave_out(file, empty, "boxes without width or height")
    label = checks.classes(table.action)
    _note_uncounted(file, checks, kept & (label < 0) & (table.action != NO_ACTION))
    return Rows(
        table.videos, table.video[kept], table.second[kept], table.corners[kept], label[kept]
    )


def _note_uncounted(file: BoxFile, checks: Checks, rows: NDArray[np.bool_]) -> None:
    """Note actions that are annotated but not in the list of those that count."""
    if rows.any():
        numbers = np.unique(file.table.action[rows]).tolist()
        some = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
        checks.notes.append(
            f"lines of {os.path.basename(file.path)} with an action that is not among the "
            f"{len(checks.labels)} that count: {int(rows.sum())} (actions {some}); their boxes stay"
        )
