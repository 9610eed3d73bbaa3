"""AVA's files: annotated boxes, scored boxes, the list of actions, excluded seconds.

    truth = read_annotated_boxes("ava_val_v2.2.csv")
    detections = read_scored_boxes("detections.csv")
    labels = read_label_map("ava_action_list_v2.2_for_activitynet_2019.pbtxt")
    excluded = read_excluded("ava_val_excluded_timestamps_v2.2.csv")

A line of boxes is `video,second,x1,y1,x2,y2,action` and, as the eighth field, a person's number
(annotated) or a score (found by a detector or a model). There is no header. Corners are shares of
the picture's width and height, x1 and y1 its left and top. A box with several actions has a line
for each; one with an empty action has none.

What is no such line is a DataError that names file and line. Lines that only have blanks do not
count. Read by `numpy.loadtxt`, a block of lines at a time; a block that it does not take, or whose
numbers are out of range, is read line by line, which says what is wrong.
"""

from __future__ import annotations

import csv
import io
import os
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hiera_video.errors import DataError
from hiera_video.files import AnyPath, atomic_write

NO_ACTION = 0
"""The action of a box in which nothing is annotated."""
UNKNOWN_PERSON = -1


@dataclass(frozen=True)
class BoxTable:
    """Boxes as flat arrays, in the order of their file."""

    videos: tuple[str, ...]
    """Distinct names, in order of first appearance."""
    video: NDArray[np.int32]
    """[N]: index into `videos`."""
    second: NDArray[np.int32]
    """[N]"""
    corners: NDArray[np.float64]
    """[N, 4]: x1, y1, x2, y2 in 0..1."""
    action: NDArray[np.int32]
    """[N]: id of the action, from 1; 0: none."""
    score: NDArray[np.float64] | None
    """[N]; None for annotated boxes."""
    person: NDArray[np.int32] | None
    """[N]: number of the person, -1 where it is not known; None for scored boxes."""
    lines: NDArray[np.int32]
    """[N]: line of the file, from 1."""

    def __len__(self) -> int:
        return len(self.lines)


@dataclass(frozen=True)
class LabelMap:
    """The actions that count, in the order of their file."""

    ids: tuple[int, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)


# ---- lists of boxes -----------------------------------------------------------------------------


def read_annotated_boxes(path: AnyPath) -> BoxTable:
    """Read annotated boxes; the eighth field, the person's number, may be missing or empty.

    Raises DataError, which names file and lines, for what is no annotated box.
    """
    return _read_boxes(path, _Form(scored=False))


def read_scored_boxes(path: AnyPath) -> BoxTable:
    """Read boxes with scores: of a person detector (without action) or of a model.

    Raises DataError, which names file and lines, for what is no scored box.
    """
    return _read_boxes(path, _Form(scored=True))


def write_scored_boxes(path: AnyPath, table: BoxTable) -> None:
    """Write boxes with scores, one line each, as SlowFast and the official evaluation read them.

    Numbers have nine digits, which tell any two float32 apart. Raises RunFailed if the file cannot
    be written, DataError for a name that no line can hold.
    """
    if table.score is None:
        raise ValueError("these boxes have no scores")
    _write(path, table, [f"{score:.9g}" for score in table.score.tolist()])


def write_annotated_boxes(path: AnyPath, table: BoxTable) -> None:
    """Write annotated boxes, one line each. Raises as `write_scored_boxes`."""
    if table.person is None:
        raise ValueError("these boxes have no persons")
    persons = table.person.tolist()
    _write(path, table, ["" if p == UNKNOWN_PERSON else str(p) for p in persons])


def _write(path: AnyPath, table: BoxTable, last: Sequence[str]) -> None:
    names = [_quoted(name) for name in table.videos]
    box, before = "", None
    with atomic_write(path, text=True, errors="surrogateescape") as file:
        for place, *corners, action, end in zip(
            zip(table.video.tolist(), table.second.tolist(), strict=True),
            *table.corners.T.tolist(),
            table.action.tolist(),
            last,
            strict=True,
        ):
            if (place, corners) != before:  # a box has as many lines as there are actions
                before = place, corners
                numbers = ",".join(f"{corner:.9g}" for corner in corners)
                box = f"{names[place[0]]},{place[1]:04d},{numbers}"
            file.write(f"{box},{action or ''},{end}\n")


def _quoted(name: str) -> str:
    if "\n" in name or "\r" in name or not name:
        raise DataError(f"the video {name!r} cannot stand in a list of boxes; rename it")
    if "," in name or '"' in name:
        return '"' + name.replace('"', '""') + '"'
    return name


class _Form(NamedTuple):
    """Which of the two forms of lines a file has."""

    scored: bool

    @property
    def last(self) -> str:
        return "a score" if self.scored else "a person's number"

    @property
    def allowed(self) -> str:
        return f"video,second,x1,y1,x2,y2,action and {self.last}"


_Names = Sequence[str] | NDArray[np.object_]


class _Rows(NamedTuple):
    """Columns of a block of lines."""

    names: _Names
    second: NDArray[np.int64]
    corners: NDArray[np.float64]
    action: NDArray[np.int64]
    last: NDArray[np.float64]
    """Score, or person."""
    lines: NDArray[np.int64]


_NO_ROWS = _Rows(
    (),
    np.empty(0, np.int64),
    np.empty((0, 4)),
    np.empty(0, np.int64),
    np.empty(0),
    np.empty(0, np.int64),
)


@dataclass
class _Problems:
    """Lines that are no boxes."""

    path: str
    shown: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, line: int, text: str) -> None:
        self.count += 1
        if self.count <= _SHOWN:
            self.shown.append(f"line {line}: {text}")
        if self.count == _MOST:
            self.raise_them()

    def raise_them(self) -> None:
        if self.count == 1:
            raise DataError(f"{self.path}: {self.shown[0]}")
        if self.count:
            count = f"{self.count}" if self.count < _MOST else f"{_MOST} or more"
            more = "; ..." if self.count > _SHOWN else ""
            raise DataError(f"{self.path}: {count} lines are wrong; {'; '.join(self.shown)}{more}")


_SHOWN, _MOST = 3, 1000
"""So many wrong lines are quoted; after so many, the rest of the file is not read."""


def _read_boxes(path: AnyPath, form: _Form) -> BoxTable:
    name = os.fspath(path)
    problems = _Problems(name)
    index: dict[str, int] = {}
    blocks = [_NO_ROWS]
    videos = [np.empty(0, np.int32)]
    for first, lines in _blocks(path):
        rows = _read_quickly(first, lines, form)
        if rows is None:
            rows = _read_slowly(first, lines, form, problems)
        videos.append(_indices(rows.names, index))
        blocks.append(rows._replace(names=()))  # a name per line would be most of the memory
    problems.raise_them()
    last = np.concatenate([rows.last for rows in blocks])
    return BoxTable(
        videos=tuple(index),
        video=np.concatenate(videos),
        second=np.concatenate([rows.second for rows in blocks]).astype(np.int32),
        corners=np.concatenate([rows.corners for rows in blocks]),
        action=np.concatenate([rows.action for rows in blocks]).astype(np.int32),
        score=last if form.scored else None,
        person=None if form.scored else last.astype(np.int32),
        lines=np.concatenate([rows.lines for rows in blocks]).astype(np.int32),
    )


def _indices(
    names: Sequence[str] | NDArray[np.object_], index: dict[str, int]
) -> NDArray[np.int32]:
    """Give every name its number; a new one the next."""
    if not len(names):
        return np.empty(0, np.int32)
    named = np.asarray(names, dtype=object)
    starts = np.concatenate([[0], np.flatnonzero(named[1:] != named[:-1]) + 1])
    numbers = [index.setdefault(name, len(index)) for name in named[starts].tolist()]
    lengths = np.diff(np.append(starts, len(named)))
    return np.repeat(np.array(numbers, dtype=np.int32), lengths)


# ---- blocks of lines ----------------------------------------------------------------------------

_BLOCK = 1 << 23
_LONGEST_LINE = 1 << 16


def _blocks(path: AnyPath) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of the first line, lines) of a text file, a few megabytes at a time."""
    name = os.fspath(path)
    try:
        with open(path, "rb") as raw:
            start = raw.peek(4)[:4]
            if start.startswith(b"\x1f\x8b"):
                raise DataError(f"{name}: is compressed; unpack it first (gunzip)")
            if start.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise DataError(f"{name}: is UTF-16; save it as UTF-8")
            # Names of files need not be valid UTF-8; they stay what the file system says.
            text = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape")
            yield from _lines(name, text)
    except IsADirectoryError:
        raise DataError(f"{name}: is a folder; name a file") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from error


def _lines(name: str, text: io.TextIOWrapper) -> Iterator[tuple[int, list[str]]]:
    number, rest = 1, ""
    while block := text.read(_BLOCK):
        lines = (rest + block).split("\n")
        rest = lines.pop()
        if len(rest) > _LONGEST_LINE or "\0" in block:
            raise DataError(f"{name}: line {number + len(lines)}: is no text of this kind of list")
        if lines:
            yield number, lines
        number += len(lines)
    if rest:
        yield number, [rest]


# ---- the quick way ------------------------------------------------------------------------------

_EMPTY = -987654321
"""Stands for an empty field while numpy reads; whoever writes it gets the slow way, as it is out
of every range."""


def _read_quickly(first: int, lines: list[str], form: _Form) -> _Rows | None:
    """Read a block of lines; None where not all of them are plain and right."""
    block = "\n".join(lines)
    if '"' in block or str(_EMPTY) in block or (commas := lines[0].count(",")) not in (6, 7):
        return None
    if commas == 6 and form.scored:
        return None
    if ",," in block or ",\n" in block or block.endswith(","):
        block = block.replace(",,", f",{_EMPTY},").replace(",\n", f",{_EMPTY}\n")
        lines = (block + str(_EMPTY) if block.endswith(",") else block).split("\n")
    columns = [("name", "O"), ("second", "i8"), ("corners", "f8", 4), ("action", "i8")]
    if commas == 7:
        columns.append(("last", "f8" if form.scored else "i8"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # older numpy only warns of 902.5 for a whole number
            read = np.loadtxt(lines, dtype=columns, delimiter=",", comments=None, ndmin=1)
    except (ValueError, OverflowError, Warning):
        return None
    if len(read) != len(lines):  # empty lines
        return None
    last = read["last"] if commas == 7 else np.full(len(read), UNKNOWN_PERSON)
    action = np.where(read["action"] == _EMPTY, NO_ACTION, read["action"])
    if not form.scored:
        last = np.where(last == _EMPTY, UNKNOWN_PERSON, last)
    numbers = np.arange(first, first + len(read))
    rows = _Rows(
        read["name"], read["second"], read["corners"], action, last.astype(np.float64), numbers
    )
    written_zero = (read["action"] == NO_ACTION).any()
    return rows if not written_zero and _all_right(rows, form) else None


def _all_right(rows: _Rows, form: _Form) -> bool:
    """Whether all numbers are in range; `_wrong` says the same of one line."""
    x1, y1, x2, y2 = rows.corners.T
    inside = (x1 >= 0) & (y1 >= 0) & (x2 <= 1) & (y2 <= 1) & (x1 <= x2) & (y1 <= y2)
    named = np.fromiter(map(bool, rows.names), bool, len(rows.names))
    counted = (rows.second >= 0) & (rows.second <= _LARGEST)
    acted = (rows.action >= 0) & (rows.action <= _LARGEST)
    if form.scored:
        ended = np.isfinite(rows.last) & (rows.last != _EMPTY)
    else:
        ended = (rows.last >= UNKNOWN_PERSON) & (rows.last <= _LARGEST)
    return bool((inside & named & counted & acted & ended).all())


# ---- line by line -------------------------------------------------------------------------------

_LARGEST = 10**9
_WHOLE = re.compile(r"\s*[0-9]{1,10}\s*")


def _read_slowly(first: int, lines: list[str], form: _Form, problems: _Problems) -> _Rows:
    """Read a block line by line; what is wrong is added to `problems`."""
    names, seconds, corners, actions, lasts, numbers = [], [], [], [], [], []
    for number, line in enumerate(lines, first):
        if not line.strip():
            continue
        if len(line) > _LONGEST_LINE:
            problems.add(number, f"has {len(line):,} letters")
            continue
        fields = next(csv.reader([line]))
        wrong = _wrong(fields, line, form)
        if wrong:
            problems.add(number, wrong)
            continue
        names.append(fields[0])
        seconds.append(int(fields[1]))
        corners.append([float(f) for f in fields[2:6]])
        actions.append(int(fields[6]) if fields[6].strip() else NO_ACTION)
        last = fields[7].strip() if len(fields) == 8 else ""
        lasts.append(float(last) if last else float(UNKNOWN_PERSON))
        numbers.append(number)
    return _Rows(
        names,
        np.array(seconds, np.int64),
        np.array(corners, np.float64).reshape(-1, 4),
        np.array(actions, np.int64),
        np.array(lasts, np.float64),
        np.array(numbers, np.int64),
    )


def _wrong(fields: list[str], line: str, form: _Form) -> str:
    """What is wrong with a line of boxes; empty: nothing."""
    if len(fields) != 8 and (form.scored or len(fields) != 7):
        found = f"has {len(fields)} fields of {form.allowed}"
        return found + (", separated by commas" if ";" in line or "\t" in line else "")
    name, second, *numbers, action = [text.strip() for text in fields[:7]]
    last = fields[7].strip() if len(fields) == 8 else ""
    if not name:
        return "has no name of a video"
    if not _is_whole(second):
        header = "; AVA's lists have no header" if second.strip().isalpha() or "_" in second else ""
        return f"the second {_short(second)} is no whole number{header}"
    corners = [_number(text) for text in numbers]
    if None in corners:
        bad = _short(numbers[corners.index(None)])
        return f"the corner {bad} is no number"
    x1, y1, x2, y2 = (corner for corner in corners if corner is not None)
    if min(x1, y1, x2, y2) < 0 or max(x1, y1, x2, y2) > 1:
        pixels = ": divide pixels by the picture's width and height" if max(x2, y2) > 2 else ""
        return f"the box {','.join(numbers)} is not inside 0..1{pixels}"
    if x1 > x2 or y1 > y2:
        return f"the box {','.join(numbers)} is not x1,y1,x2,y2 with x1 <= x2 and y1 <= y2"
    if action.strip() and (not _is_whole(action) or int(action) == NO_ACTION):
        return f"the action {_short(action)} is no whole number from 1 on; for none, leave it empty"
    if form.scored:
        return "" if _number(last) is not None else f"the score {_short(last)} is no finite number"
    unknown = last in ("", str(UNKNOWN_PERSON))
    return "" if unknown or _is_whole(last) else f"the person {_short(last)} is no whole number"


def _is_whole(text: str) -> bool:
    return _WHOLE.fullmatch(text) is not None and int(text) <= _LARGEST


def _number(text: str) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) and "_" not in text else None


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


# ---- actions and seconds ------------------------------------------------------------------------

_TOKENS = re.compile(
    r"""(?P<blank>[\s,;]+|\#[^\n]*)
    | (?P<text>"(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*')
    | (?P<word>[\w.+-]+)
    | (?P<sign>[{}:])""",
    re.VERBOSE,
)
_LARGEST_LABEL_MAP = 1 << 22


def read_label_map(path: AnyPath) -> LabelMap:
    """Read a list of actions, as AVA and TensorFlow have it, with ids from 1 on:

        item { name: "bend/bow (at the waist)" id: 1 }
        label { name: "crawl" label_id: 2 label_type: PERSON_MOVEMENT }

    Raises DataError, which names file and line.
    """
    name = os.fspath(path)
    text = ""
    for _, lines in _blocks(path):
        text += "\n".join(lines) + "\n"
        if len(text) > _LARGEST_LABEL_MAP:
            raise DataError(f"{name}: is too large for a list of actions; name the .pbtxt file")
    found: dict[int, str] = {}
    for line, entry in _entries(name, text):
        number, label = entry.get("id", entry.get("label_id", "")), entry.get("name", "")
        if not _is_whole(number) or int(number) < 1:
            raise DataError(f"{name}: line {line}: an action needs an id from 1 on, got {number!r}")
        if not label.strip():
            raise DataError(f"{name}: line {line}: the action {number} has no name")
        if int(number) in found:
            raise DataError(f"{name}: line {line}: the id {number} is there twice")
        found[int(number)] = label
    if not found:
        raise DataError(
            f'{name}: lists no action; it should have entries as item {{ name: "walk" id: 12 }}'
        )
    return LabelMap(tuple(found), tuple(found.values()))


def _entries(name: str, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, fields) of each `item { ... }`."""
    tokens = list(_tokens(name, text))
    at = 0

    def wrong(expected: str) -> DataError:
        line, token = tokens[at] if at < len(tokens) else (text.count("\n"), "the end")
        return DataError(f"{name}: line {line}: expected {expected}, found {_short(token)}")

    while at < len(tokens):
        line, kind = tokens[at]
        if kind not in ("item", "label"):
            raise wrong("item { or label {")
        at += 1
        at += at < len(tokens) and tokens[at][1] == ":"
        if at >= len(tokens) or tokens[at][1] != "{":
            raise wrong("{")
        at += 1
        entry: dict[str, str] = {}
        while at < len(tokens) and tokens[at][1] != "}":
            if at + 2 >= len(tokens) or tokens[at + 1][1] != ":":
                raise wrong('a field as name: "walk"')
            entry[tokens[at][1]] = _unquoted(tokens[at + 2][1])
            at += 3
        if at >= len(tokens):
            raise wrong("}")
        at += 1
        yield line, entry


def _tokens(name: str, text: str) -> Iterator[tuple[int, str]]:
    at, line = 0, 1
    while at < len(text):
        match = _TOKENS.match(text, at)
        if match is None:
            rest = _short(text[at:].split("\n")[0])
            raise DataError(f"{name}: line {line}: {rest} does not belong in a list of actions")
        if match.lastgroup != "blank":
            yield line, match[0]
        line += match[0].count("\n")
        at = match.end()


def _unquoted(token: str) -> str:
    return re.sub(r"\\(.)", r"\1", token[1:-1]) if token[0] in "\"'" else token


def read_excluded(path: AnyPath) -> set[tuple[str, int]]:
    """Read the seconds that are not measured, lines of `video,second`; none is allowed.

    Raises DataError, which names file and line.
    """
    name = os.fspath(path)
    problems, excluded = _Problems(name), set()
    for first, lines in _blocks(path):
        for number, line in enumerate(lines, first):
            if not line.strip():
                continue
            fields = next(csv.reader([line[:_LONGEST_LINE]]))
            if len(fields) != 2:
                problems.add(number, f"has {len(fields)} fields of video,second")
            elif not fields[0]:
                problems.add(number, "has no name of a video")
            elif not _is_whole(fields[1]):
                problems.add(number, f"the second {_short(fields[1])} is no whole number")
            else:
                excluded.add((fields[0], int(fields[1])))
    problems.raise_them()
    return excluded


def write_excluded(path: AnyPath, excluded: Collection[tuple[str, int]]) -> None:
    """Write seconds that are not measured. Raises as `write_scored_boxes`."""
    lines = [f"{_quoted(video)},{second:04d}\n" for video, second in sorted(excluded)]
    with atomic_write(path, text=True, errors="surrogateescape") as file:
        file.writelines(lines)


def write_label_map(path: AnyPath, labels: LabelMap) -> None:
    """Write a list of actions as the official evaluation reads it. Raises as the others."""
    with atomic_write(path, text=True, errors="surrogateescape") as file:
        for number, name in zip(labels.ids, labels.names, strict=True):
            quoted = re.sub(r'(["\\\\])', r"\\\1", name)
            file.write(f'item {{\n  name: "{quoted}"\n  id: {number}\n}}\n')
