"""SlowFast's lists of frames: which numbered pictures each video has.

    original_vido_id video_id frame_id path labels
    1j20qq1JyX4 0 0 1j20qq1JyX4/1j20qq1JyX4_000001.jpg ""
    1j20qq1JyX4 0 1 1j20qq1JyX4/1j20qq1JyX4_000002.jpg ""

A list of AVA has millions of lines and says little: of each video the folder, how its pictures are
called, and how many there are. That is all that is kept. Lines of the same length that repeat the
one before, but for two counters, are compared many at a time; others are taken apart.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hiera_video.detection.movie_frames import NumberedNames
from hiera_video.errors import DataError


@dataclass(frozen=True)
class ListedVideo:
    """The pictures of one video."""

    folder: str
    """As the list names it, below the folder of all frames."""
    names: NumberedNames


def read_frame_lists(paths: Iterable[str]) -> dict[str, ListedVideo]:
    """Read lists of frames: name of the video -> its pictures.

    Raises DataError, which names file and lines: a line that is none of a list, a picture that is
    missing between two others, a video whose lines are in two places.
    """
    videos: dict[str, ListedVideo] = {}
    for path in paths:
        videos |= _FrameList(path, known=set(videos)).read()
    return videos


_LINE = re.compile(
    rb"(\S+)\s+\S+\s+(\d{1,15})\s+((?:\S*/)?)([^\s/]*?)(\d{1,15})([^\s/\d]*)\s+\S+\s*"
)
"""Video, frame_id, and the path: folder, name up to its last number, that number, the rest."""
_BLOCK = 1 << 23
"""Bytes that are read at once."""
_SHOWN = 3


class _Line(NamedTuple):
    """A line, and where in it the two numbers are that count up."""

    video: bytes
    folder: bytes
    prefix: bytes
    suffix: bytes
    frame_id: int
    number: int
    counters: tuple[tuple[int, int], tuple[int, int]]
    """Start and end of frame_id and number."""

    @classmethod
    def parsed(cls, line: bytes) -> _Line | None:
        match = _LINE.fullmatch(line)
        if match is None:
            return None
        video, frame_id, folder, prefix, number, suffix = match.groups()
        counters = match.span(2), match.span(5)
        return cls(video, folder, prefix, suffix, int(frame_id), int(number), counters)

    @property
    def digits(self) -> int:
        """How many digits its number has."""
        start, end = self.counters[1]
        return end - start


@dataclass
class _Run:
    """The pictures of a video, one after the other."""

    first: _Line
    count: int = 0

    def goes_on_with(self, line: _Line) -> bool:
        """Whether `line` is that of the next picture."""
        number = self.first.number + self.count
        due = self.first._replace(
            frame_id=self.first.frame_id + self.count, number=number, counters=line.counters
        )
        return due == line and line.digits == max(self.first.digits, len(str(number)))

    def listed(self) -> ListedVideo:
        first = self.first
        prefix, suffix = os.fsdecode(first.prefix), os.fsdecode(first.suffix)
        names = NumberedNames(prefix, first.number, first.digits, suffix, self.count)
        return ListedVideo(os.fsdecode(first.folder).rstrip("/"), names)


@dataclass
class _FrameList:
    """One list while it is read."""

    path: str
    known: set[str]
    """Videos of the lists before."""
    runs: dict[bytes, _Run] = field(default_factory=dict)
    """The first run of each video; without a hole there is no other."""
    run: _Run | None = None
    """That of the line before."""
    problems: list[str] = field(default_factory=list)
    wrong: int = 0

    def read(self) -> dict[str, ListedVideo]:
        try:
            with open(self.path, "rb") as file:
                if _Line.parsed(file.readline()) is not None:
                    raise DataError(
                        f"{self.path}:1: the first line must be the header 'original_vido_id "
                        "video_id frame_id path labels'; readers of these lists skip it"
                    )
                for number, block in _blocks(file, first=2):
                    self._read_block(number, block)
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror or error}") from error
        if self.wrong:
            more = "; ..." if self.wrong > _SHOWN else ""
            raise DataError(
                f"{self.path}: {self.wrong} lines are wrong: {'; '.join(self.problems)}{more}. "
                "Extract the frames of these videos again, or take their lines out"
            )
        if not self.runs:
            raise DataError(f"{self.path}: lists no frames")
        return {os.fsdecode(name): run.listed() for name, run in self.runs.items()}

    def _read_block(self, number: int, block: bytes) -> None:
        """Read whole lines, of which `number` is the first."""
        letters = np.frombuffer(block, np.uint8)
        ends = np.flatnonzero(letters == ord("\n")) + 1
        lengths = np.diff(ends, prepend=0)
        at = 0
        while at < len(ends):
            end = int(ends[at])
            line = self._take(number + at, block[end - int(lengths[at]) : end])
            at += 1
            if line is None or self.run is None:
                continue
            window = 16  # doubles while all goes on: a list of odd lines costs no more than needed
            while at < len(ends):
                alike = lengths[at - 1 : at + window] == lengths[at - 1]
                lines = int(alike.argmin()) if not alike.all() else len(alike)
                start = int(ends[at - 1] - lengths[at - 1])
                table = letters[start : start + lines * int(lengths[at - 1])].reshape(lines, -1)
                more = _counting_up(table, line.counters)
                self.run.count += more
                at += more
                if more < window:
                    break
                window *= 2

    def _take(self, number: int, text: bytes) -> _Line | None:
        """Take one line apart; returns None, and notes it, where it is none."""
        line = _Line.parsed(text)
        if line is None:
            if text.strip():
                self._complain(number, f"{_short(text)} is no line 'video id frame_id path labels'")
            return None
        if self.run is None or not self.run.goes_on_with(line):
            self._begin(number, line)
        assert self.run is not None
        self.run.count += 1
        return line

    def _begin(self, number: int, line: _Line) -> None:
        """Begin a video, or go on after a hole in it."""
        before, video = self.run, os.fsdecode(line.video)
        if before is not None and before.first.video == line.video:
            last, name = before.listed().names[-1], _Run(line, 1).listed().names[0]
            self._complain(number, f"{video!r} goes from {last!r} to {name!r}")
        elif line.video in self.runs or video in self.known:
            self._complain(number, f"{video!r} was listed before; its lines must be together")
        self.run = _Run(line)
        self.runs.setdefault(line.video, self.run)

    def _complain(self, number: int, text: str) -> None:
        self.wrong += 1
        if self.wrong <= _SHOWN:
            self.problems.append(f"line {number}: {text}")


def _blocks(file: BinaryIO, first: int) -> Iterator[tuple[int, bytes]]:
    """Yield (number of the first line, whole lines), a few megabytes at a time."""
    rest = b""
    while block := file.read(_BLOCK):
        lines, newline, rest = (rest + block).rpartition(b"\n")
        yield first, lines + newline
        first += lines.count(b"\n") + len(newline)
    if rest:
        yield first, rest + b"\n"


def _counting_up(
    table: NDArray[np.uint8], counters: tuple[tuple[int, int], tuple[int, int]]
) -> int:
    """How many lines after the first of `table` [N, L] repeat it, with both counters one higher
    from line to line."""
    same = table == table[0]
    good = np.ones(len(table), bool)
    for start, end in counters:
        values = np.zeros(len(table), np.int64)
        for place in range(start, end):  # by columns: the rows are too short for numpy
            same[:, place] = True
            digits = table[:, place] - ord("0")  # what is no digit is above 9, as a byte
            good &= digits <= 9
            values = values * 10 + digits
        good &= values - values[0] == np.arange(len(table))
    if not same.all():
        good &= same.all(axis=1)
    return len(table) - 1 if good.all() else int(good.argmin()) - 1


def _short(line: bytes) -> str:
    text = os.fsdecode(line.strip())
    return repr(text if len(text) <= 60 else text[:57] + "...")
