"""What the parts of an audit tell each other. Light to import: neither torch nor a decoder."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from hiera_video.clip_spec import ClipSpec

PROBLEMS = {
    "missing_list": "lists and folders that are not there",
    "bad_line": "lines that cannot be read",
    "label_out_of_range": "labels out of range",
    "missing": "missing files",
    "unreadable": "unreadable files",
    "no_frames": "files without a frame",
    "fewer_frames": "files that decode to fewer frames than claimed",
    "duplicate_across": "the same video in several splits",
    "duplicate_within": "the same video twice in a split",
}
"""What makes an audit fail, in the order it is shown."""

REMARKS = {
    "too_short": "shorter than a clip (their last frame is repeated)",
    "rotated": "rotated (they are turned upright)",
    "odd_rate": "odd frame rate",
    "odd_file": "odd, but readable",
    "unused_label": "classes without a video",
    "unchecked": "not looked at to the end",
}
"""What a user should know, and training copes with."""


class Job(NamedTuple):
    """One file to look at."""

    entry: int
    """Whatever the caller knows it by."""
    path: str
    quick: bool = False
    """List the packets and decode the first frame only."""
    seconds: float = 60.0
    """Decoding stops after so long; what was not reached is said in a remark."""


class Seen(NamedTuple):
    """What a file turned out to be."""

    kind: str = ""
    """"" (good), "unreadable", "no_frames" or "fewer_frames"."""
    reason: str = ""
    frames: int = 0
    """That can be asked for by index."""
    fps: float = 0.0
    """Average over the file."""
    seconds: float = 0.0
    rotation: int = 0
    """Degrees: 0, 90, 180 or 270."""
    remarks: tuple[tuple[str, str], ...] = ()
    """(kind, text) of what is no fault: "odd_rate", "odd_file", "unchecked"."""
    sample: bytes = b""
    """16 bytes: digest of the size and both ends of the file; empty for a folder."""
    pictures: bytes = b""
    """16 bytes: digest of every decoded picture; empty where not all were decoded."""
    lasting: bool = True
    """False where another try may see more (no permission, a disk that fails)."""


class ClipJob(NamedTuple):
    """A training clip to be read with a watch in hand."""

    entry: int
    path: str
    spec: ClipSpec
    decoder: str


class Finding(NamedTuple):
    """One thing that an audit has to say."""

    kind: str
    """A key of PROBLEMS or of REMARKS."""
    part: str
    """The split, or the list."""
    line: int
    """Of the list; 0 where no list named it."""
    file: str
    """"" where it is not about a file."""
    reason: str


class Findings:
    """All that was found, on disk as soon as it is much: a million missing files are no burden."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("")  # a temporary file of its own
        self._database.execute(
            "create table findings (kind text, part text, line integer, file blob, reason blob)"
        )
        self._counts: dict[str, int] = {}

    def add(self, kind: str, part: str, line: int, file: str, reason: str) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self._database.execute(
            "insert into findings values (?, ?, ?, ?, ?)",
            (kind, part, line, os.fsencode(file), _storable(reason)),
        )

    def forget(self, part: str) -> None:
        """Drop all that was found of one split."""
        query = "select kind, count(*) from findings where part = ? group by kind"
        for kind, count in self._database.execute(query, (part,)).fetchall():
            self._counts[kind] -= count
        self._database.execute("delete from findings where part = ?", (part,))

    def count(self, kind: str) -> int:
        return self._counts.get(kind, 0)

    def of(self, kind: str, most: int | None = None) -> Iterator[Finding]:
        """Those of one kind, in the order of the list; the first `most`."""
        rows = self._database.execute(
            "select kind, part, line, file, reason from findings where kind = ? "
            "order by part, line, rowid limit ?",
            (kind, -1 if most is None else most),
        )
        for kind, part, line, file, reason in rows:
            yield Finding(kind, part, line, os.fsdecode(file), os.fsdecode(reason))

    @property
    def problems(self) -> int:
        return sum(self.count(kind) for kind in PROBLEMS)

    @property
    def remarks(self) -> int:
        return sum(self.count(kind) for kind in REMARKS)


def _storable(text: str) -> bytes:
    """Names in a text need not be valid UTF-8."""
    return text.encode("utf-8", "surrogateescape")
