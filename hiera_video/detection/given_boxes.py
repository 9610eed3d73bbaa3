"""Boxes that a user gives (`--boxes FILE`): of one video or of several, whole or part seconds.

    video,second,x1,y1,x2,y2[,action[,score or person]]      as AVA writes them, without a header
    second,x1,y1,x2,y2                                       of one video
    file,second,person,x1,y1,x2,y2,...                       with a header, in any order: our --csv

Corners are shares of the picture's width and height. Rows that differ in their action alone are one
box. The eighth column holds people's numbers where all of it is whole numbers, else scores.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hiera_video.detection.tracks import Corners
from hiera_video.errors import DataError, UserError, first_few
from hiera_video.spreadsheet import original

NAMED = {
    **{"video": "video", "file": "video", "video_id": "video"},
    **{"second": "second", "seconds": "second", "timestamp": "second", "time": "second"},
    **{name: name for name in ("x1", "y1", "x2", "y2", "person", "score")},
    **{"person_id": "person", "person_score": "score"},
}
"""Name of a column in a header -> what it is."""

LAYOUTS = {
    5: ("second", "x1", "y1", "x2", "y2"),
    6: ("video", "second", "x1", "y1", "x2", "y2"),
    7: ("video", "second", "x1", "y1", "x2", "y2", "action"),
    8: ("video", "second", "x1", "y1", "x2", "y2", "action", "last"),
}
"""Number of fields -> what they are, where there is no header."""


@dataclass(frozen=True)
class GivenBox:
    """One row."""

    line: int
    """From 1."""
    video: str
    """As it is written; empty in a file of one video."""
    second: float
    corners: tuple[float, float, float, float]
    person: int | None = None
    score: float | None = None


@dataclass(frozen=True)
class GivenFrame:
    """The boxes of one moment of a video."""

    second: float
    """As it is written."""
    corners: Corners
    people: list[int] | None
    """The numbers of people that the file gives; None: not for every box."""
    scores: list[float | None]
    place: str
    """File and line of the first of them."""


class GivenBoxes:
    """The boxes of a file, by video.

    Args:
        path: the CSV file.
        pixels: its corners are pixels of the upright picture.

    Raises DataError, which names the file and the line, for what is no box.
    """

    def __init__(self, path: str, *, pixels: bool = False) -> None:
        self.path, self.pixels = path, pixels
        self.rows = _read(path, pixels=pixels)
        self.videos = list(dict.fromkeys(row.video for row in self.rows))
        """Their names as they are written, in the order of the file."""

    def by_file(self, files: Sequence[str]) -> dict[str, list[GivenBox]]:
        """Return the rows of each file: a video is called by its path, its name, or its name
        without ending.

        Raises UserError where it is not clear which file is meant.
        """
        if self.videos == [""]:
            if len(files) != 1:
                raise UserError(
                    f"{self.path} has no column of videos, so it is for one video, and there are "
                    f"{len(files)}; name one, or write the video in front of each row"
                )
            return {files[0]: self.rows}
        found: dict[str, list[GivenBox]] = {file: [] for file in files}
        chosen = {video: self._file_of(video, files) for video in self.videos}
        for row in self.rows:
            file = chosen[row.video]
            if file is not None:
                found[file].append(row)
        return found

    def left_over(self, files: Sequence[str]) -> list[str]:
        """Return the videos of the file that are none of these files."""
        if self.videos == [""]:
            return []
        return [video for video in self.videos if self._file_of(video, files) is None]

    def frames(self, rows: Sequence[GivenBox], size: tuple[int, int]) -> list[GivenFrame]:
        """Return the boxes of one video by their moment, ascending.

        size: (width, height) of the upright picture, which pixels are shares of.
        """
        scale = np.array([*size, *size], float) if self.pixels else np.ones(4)
        moments: dict[float, dict[tuple[float, ...], GivenBox]] = {}
        for row in rows:
            boxes = moments.setdefault(row.second, {})
            known = boxes.setdefault(row.corners, row)
            if row.score is not None and row.score > (known.score or 0):
                boxes[row.corners] = replace(known, score=row.score)  # several actions of one box
        frames = []
        for second in sorted(moments):
            boxes_here = list(moments[second].values())
            corners = np.array([box.corners for box in boxes_here]) / scale
            people = [box.person for box in boxes_here if box.person is not None]
            self._require_inside(corners, boxes_here, size)
            frames.append(
                GivenFrame(
                    second,
                    corners.clip(0, 1),
                    people if len(set(people)) == len(boxes_here) else None,
                    [box.score for box in boxes_here],
                    f"{self.path}:{boxes_here[0].line}",
                )
            )
        return frames

    def _require_inside(
        self, corners: Corners, boxes: Sequence[GivenBox], size: tuple[int, int]
    ) -> None:
        beyond = np.flatnonzero(corners.max(axis=1) > 1 + 1e-9)
        if len(beyond):
            width, height = size
            raise DataError(
                f"{self.path}:{boxes[beyond[0]].line}: a corner lies outside of the picture, which "
                f"has {width}x{height} pixels"
            )

    def _file_of(self, video: str, files: Sequence[str]) -> str | None:
        """Return the file that a row means by a name; None where it is none of them."""
        for called in (os.path.normpath, os.path.basename, _stem):
            name = called(video) if called is os.path.normpath else video
            found = [file for file in files if called(file) == name]
            if len(found) > 1:
                raise UserError(
                    f"{self.path} has boxes of {video}, and {first_few(found, 3)} are called so; "
                    "write the path in its first column"
                )
            if found:
                return found[0]
        return None


def _stem(file: str) -> str:
    return os.path.splitext(os.path.basename(file))[0]


# ---- reading ------------------------------------------------------------------------------------


def _read(path: str, *, pixels: bool) -> list[GivenBox]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = [(number, row) for number, row in enumerate(csv.reader(file), 1) if any(row)]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV file in UTF-8: {error}") from None
    if not lines:
        raise DataError(f"{path} is empty; {_allowed()}")
    columns = _header(lines[0][1])
    if columns is not None:
        lines = lines[1:]
    elif len(lines[0][1]) not in LAYOUTS:
        raise DataError(f"{path}:{lines[0][0]}: {len(lines[0][1])} fields; {_allowed()}")
    else:
        columns = list(LAYOUTS[len(lines[0][1])])
    rows = [(line, _fields(path, line, row, columns)) for line, row in lines]
    # Of our own --csv: a file that could not be read has a row without a box.
    rows = [(line, fields) for line, fields in rows if any(map(fields.get, CORNERS))]
    last = "person" if all(_is_whole(fields.get("last", "")) for _, fields in rows) else "score"
    boxes = [_box(path, line, fields, last) for line, fields in rows]
    large = [box for box in boxes if max(box.corners) > 1]
    if large and not pixels:
        raise DataError(
            f"{path}:{large[0].line}: the corner {max(large[0].corners):g} looks like pixels; "
            "corners are shares of the picture's width and height, 0 to 1. If all are pixels, add "
            "--pixels"
        )
    return boxes


CORNERS = ("x1", "y1", "x2", "y2")


def _allowed() -> str:
    layouts = " or ".join(",".join(LAYOUTS[count]) for count in (6, 5))
    return f"rows are {layouts}, or have a header that names these columns"


def _header(row: Sequence[str]) -> list[str] | None:
    """What the columns of a header are, "" for those that do not count; None if it is no header."""
    names = [NAMED.get(name.strip().lower(), "") for name in row]
    if "x1" not in names:
        return None
    return names


def _fields(path: str, line: int, row: Sequence[str], columns: Sequence[str]) -> dict[str, str]:
    if len(row) != len(columns):
        raise DataError(
            f"{path}:{line}: {len(row)} fields, and the first row has {len(columns)}; {_allowed()}"
        )
    fields = {name: text.strip() for name, text in zip(columns, row, strict=True) if name}
    missing = [name for name in ("second", *CORNERS) if name not in fields]
    if missing:
        raise DataError(f"{path}: its header has no {', '.join(missing)}; {_allowed()}")
    return fields


def _box(path: str, line: int, fields: dict[str, str], last: str) -> GivenBox:
    """One row; DataError where it is no box."""
    place = f"{path}:{line}"
    numbers = {name: _number(place, name, fields[name]) for name in ("second", *CORNERS)}
    x1, y1, x2, y2 = (numbers[name] for name in CORNERS)
    if min(x1, y1) < 0 or x2 <= x1 or y2 <= y1:
        raise DataError(
            f"{place}: {x1:g},{y1:g},{x2:g},{y2:g} is no box: x1,y1 is the upper left corner, "
            "x2,y2 the lower right one, and none is below 0"
        )
    if numbers["second"] < 0:
        raise DataError(f"{place}: second {fields['second']} is before the video's first frame")
    person = fields.get("person") or (fields.get("last") if last == "person" else None)
    score = fields.get("score") or (fields.get("last") if last == "score" else None)
    if person and not _is_whole(person):
        raise DataError(f"{place}: person {person!r} is no whole number from 0 on")
    return GivenBox(
        line=line,
        video=original(fields.get("video", "")),
        second=numbers["second"],
        corners=(x1, y1, x2, y2),
        person=int(person) if person else None,
        score=_number(place, "score", score) if score else None,
    )


def _number(place: str, name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{place}: {name} {text!r} is no number; {_allowed()}")
    return number


def _is_whole(text: str) -> bool:
    return text == "" or (text.isascii() and text.isdigit() and len(text) < 10)
