"""SlowFast's lists of frames: which numbered pictures each video has.

    original_vido_id video_id frame_id path labels
    1j20qq1JyX4 0 0 1j20qq1JyX4/1j20qq1JyX4_000001.jpg ""
    1j20qq1JyX4 0 1 1j20qq1JyX4/1j20qq1JyX4_000002.jpg ""

A list of AVA has millions of lines and says little: of each video the folder, how its pictures are
called, and how many there are. That is all that is kept. A line is compared with the one that is
due after the line before it, and taken apart only where the two differ.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

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


_LINE = re.compile(rb"(\S+)(\s+\S+\s+)(\d+)(\s+)(\S+)(\s+\S+\s*)")
_NUMBERED = re.compile(rb"(.*?)(\d+)(\D*)")
"""The last number of a name, with what is before and after it."""
_SHOWN = 3


@dataclass
class _Run:
    """The pictures of a video up to the line that was read last."""

    line: int
    folder: bytes
    prefix: bytes
    first: int
    """Number of the first picture."""
    width: int
    suffix: bytes
    frame_id: int
    """Of the first picture."""
    template: bytes
    """The line of a picture, for its frame_id and its number."""
    count: int = 0

    def continued_by(self, other: _Run) -> bool:
        """Whether the first picture of `other` is the next one of this."""
        same = (self.folder, self.prefix, self.suffix) == (other.folder, other.prefix, other.suffix)
        return same and (other.frame_id, other.first) == (
            self.frame_id + self.count,
            self.first + self.count,
        )


@dataclass
class _FrameList:
    """One list while it is read."""

    path: str
    known: set[str]
    """Videos of the lists before."""
    runs: dict[bytes, _Run] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    wrong: int = 0

    def read(self) -> dict[str, ListedVideo]:
        try:
            with open(self.path, "rb") as file:
                header = file.readline()
                if header and _is_row(header):
                    raise DataError(
                        f"{self.path}:1: the first line must be the header 'original_vido_id "
                        "video_id frame_id path labels'; readers of these lists skip it"
                    )
                self._read_lines(file)
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
        return {os.fsdecode(name): _video(run) for name, run in self.runs.items()}

    def _read_lines(self, lines: Iterable[bytes]) -> None:
        # The loop over all lines, millions of them: nothing here but the comparison.
        current, run, template = b"", None, b"%d%d"
        count = frame_id = first = 0
        for number, line in enumerate(lines, 2):
            if line == template % (frame_id + count, first + count):
                count += 1
                continue
            if run is not None:
                run.count = count
            name, found = self._parsed(number, line)
            if found is None:
                continue
            if run is None or name != current or not run.continued_by(found):
                self._begin(name, found, run if name == current else None)
                current, run, count = name, found, 0
            else:  # only another label, or the last line without its end
                run.template = found.template
            template, frame_id, first = run.template, run.frame_id, run.first
            count += 1
        if run is not None:
            run.count = count

    def _parsed(self, number: int, line: bytes) -> tuple[bytes, _Run | None]:
        match = _LINE.fullmatch(line)
        folder, _, file = match[5].rpartition(b"/") if match else (b"", b"", b"")
        numbered = _NUMBERED.fullmatch(file)
        if match is None or numbered is None:
            if line.strip():
                self._complain(number, f"{_short(line)} is no line 'video id frame_id path labels'")
            return b"", None
        prefix, digits, suffix = numbered.groups()
        written = [match[1], match[2], b"%d", match[4], folder, b"/" if folder else b"", prefix]
        fixed = [part.replace(b"%", b"%%") if part != b"%d" else part for part in written]
        tail = (suffix + match[6]).replace(b"%", b"%%")
        return match[1], _Run(
            line=number,
            folder=folder,
            prefix=prefix,
            first=int(digits),
            width=len(digits),
            suffix=suffix,
            frame_id=int(match[3]),
            template=b"".join([*fixed, b"%%0%dd" % len(digits), tail]),
        )

    def _begin(self, name: bytes, found: _Run, before: _Run | None) -> None:
        """Begin a video, or go on after a hole in it."""
        video = os.fsdecode(name)
        if before is not None:
            last = before.first + before.count - 1
            self._complain(
                found.line, f"{video!r} goes from picture {last} to {found.first} of its list"
            )
        elif name in self.runs or video in self.known:
            self._complain(found.line, f"{video!r} was listed before; its lines must be together")
        self.runs.setdefault(name, found)

    def _complain(self, line: int, text: str) -> None:
        self.wrong += 1
        if self.wrong <= _SHOWN:
            self.problems.append(f"line {line}: {text}")


def _is_row(line: bytes) -> bool:
    match = _LINE.fullmatch(line)
    return match is not None and b"." in match[5]


def _short(line: bytes) -> str:
    text = os.fsdecode(line.strip())
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _video(run: _Run) -> ListedVideo:
    names = NumberedNames(
        os.fsdecode(run.prefix), run.first, run.width, os.fsdecode(run.suffix), run.count
    )
    return ListedVideo(os.fsdecode(run.folder), names)
