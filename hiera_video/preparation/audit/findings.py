"""The kinds of findings of an audit, and the store that holds them."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

PROBLEMS = {
    "missing_list": "lists and folders that do not exist",
    "bad_line": "lines that cannot be read",
    "label_out_of_range": "labels out of range",
    "missing": "missing files",
    "unreadable": "unreadable files",
    "no_frames": "files without a frame",
    "fewer_frames": "files that decode to fewer frames than their header states",
    "duplicate_across": "the same video in several splits",
    "duplicate_within": "the same video twice in one split",
}
"""Kind -> meaning of the findings that make an audit fail, in the order of the report."""

REMARKS = {
    "too_short": "shorter than a clip (the last frame is repeated)",
    "rotated": "rotated (frames are turned upright)",
    "odd_rate": "unusual frame rate",
    "odd_file": "unusual, but readable",
    "unused_label": "classes without a video",
    "unchecked": "not decoded to the end",
}
"""Kind -> meaning of the findings that a user should know and that training can handle."""


class Finding(NamedTuple):
    """One line of the report."""

    kind: str
    """A key of PROBLEMS or of REMARKS."""
    split: str
    """The split, or the list."""
    line: int
    """Line number in the list; 0 if no list names the file."""
    file: str
    """Empty if the finding is not about a file."""
    reason: str


class Findings:
    """All findings of an audit, in a temporary SQLite database.

    SQLite moves a large table to disk, so that a million missing files do not fill the memory.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("")  # "": a temporary file, deleted when it is closed
        self._database.execute(
            "create table findings (kind text, split text, line integer, file blob, reason blob)"
        )
        self._counts: dict[str, int] = {}

    def add(self, finding: Finding) -> None:
        """Store one finding."""
        self._counts[finding.kind] = self._counts.get(finding.kind, 0) + 1
        kind, split, line, file, reason = finding
        self._database.execute(
            "insert into findings values (?, ?, ?, ?, ?)",
            (kind, split, line, os.fsencode(file), _encoded(reason)),
        )

    def discard_split(self, split: str) -> None:
        """Delete all findings of one split."""
        query = "select kind, count(*) from findings where split = ? group by kind"
        for kind, count in self._database.execute(query, (split,)).fetchall():
            self._counts[kind] -= count
        self._database.execute("delete from findings where split = ?", (split,))

    def count(self, kind: str) -> int:
        """Return the number of findings of one kind."""
        return self._counts.get(kind, 0)

    def of(self, kind: str, most: int | None = None) -> Iterator[Finding]:
        """Yield the findings of one kind in the order of the lists, at most `most` of them."""
        rows = self._database.execute(
            "select kind, split, line, file, reason from findings where kind = ? "
            "order by split, line, rowid limit ?",
            (kind, -1 if most is None else most),
        )
        for kind, split, line, file, reason in rows:
            yield Finding(kind, split, line, os.fsdecode(file), os.fsdecode(reason))

    @property
    def problems(self) -> int:
        """The number of findings whose kind is in PROBLEMS."""
        return sum(self.count(kind) for kind in PROBLEMS)

    @property
    def remarks(self) -> int:
        """The number of findings whose kind is in REMARKS."""
        return sum(self.count(kind) for kind in REMARKS)


def _encoded(text: str) -> bytes:
    """Encode a text that can hold file names, which need not be valid UTF-8."""
    return text.encode("utf-8", "surrogateescape")
