"""Lists with a video a line, with or without names above the columns.

    table = VideoTable(Path("labels.csv"))
    for line, path, label, cells in table.rows():
        ...

The separator is the one that fits most of the first thousand lines. In a list without a header, or
with the header `path,label` alone, lines are split from the right, so that paths may contain the
separator without quotes.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from hiera_video.data.manifests.tables import (
    COLUMNS,
    SEPARATORS,
    SEVERAL_NUMBERS,
    WHOLE_NUMBER,
    Header,
    OnBadRow,
    find_header,
    plain_name,
    quoted_text,
    raise_error,
    split_cells,
    table_rows,
    text_lines,
)
from hiera_video.errors import DataError
from hiera_video.video.find import VIDEO_SUFFIXES, is_video

SAMPLE = 1000
"""Lines from which the separator is found."""


class Row(NamedTuple):
    """One video of a table."""

    line: int
    path: str
    label: str
    """As written; empty where there is none."""
    cells: list[str] | None
    """All columns, where the header has more than path and label."""


class VideoTable:
    """A list of videos: its header and separator are known, its rows are read on demand.

    Args:
        file: the list.
        separator: between its columns; None finds it.
        multi_label: several labels may follow the path.
        need_labels: every line should have a label.
        exists: whether there is a file or folder of this name, for ambiguous lines.

    Attributes:
        header: the line that names the columns, or None.
        separator: between the columns.
        places: role (see `COLUMNS`) -> index of its column.
        is_plain: whether lines are split from the right, not as a table.

    Raises DataError: no text, empty, columns without one for the labels.
    """

    def __init__(
        self,
        file: Path,
        *,
        separator: str | None = None,
        multi_label: bool = False,
        need_labels: bool = True,
        exists: Callable[[str], bool] = os.path.exists,
    ) -> None:
        self.file = file
        self.multi_label = multi_label
        self.exists = exists
        self.header = find_header(file, separator=separator)
        if self.header is not None and len(self.header.names) == 1 and exists(self.header.names[0]):
            self.header = None  # the line is a folder of frames called "clip", no column name
        self.places = _places(file, self.header, need_labels) if self.header else {}
        first = self.header.line if self.header else 0
        self._first_line = first + 1
        sample = list(itertools.islice(self._lines(), SAMPLE))
        if not sample:
            raise DataError(
                f"{file}: the list is empty; expected a line 'path label' for each video"
                if self.header is None
                else f"{file}: the list is empty, no videos below the line of column names"
            )
        if self.header is None:
            _require_no_header(file, separator, sample)
        # Path and label alone are split from the right: paths need no quotes then.
        self.is_plain = self.header is None or self._has_path_and_label_only(self.header)
        if self.header is not None and not self.is_plain:
            self.separator = self.header.separator
            return
        lines = [line for _, line in sample]
        usual = self.header.separator if self.header else ""
        self.separator = separator or find_separator(lines, multi_label, usual)
        self.has_frames = self._has_frames(lines)
        lasts = [line.rpartition(self.separator)[2].strip() for line in lines]
        self.id_pattern = SEVERAL_NUMBERS if multi_label else WHOLE_NUMBER
        self.ends_in_ids = all(self.id_pattern.fullmatch(last) for last in lasts)

    def _has_path_and_label_only(self, header: Header) -> bool:
        roles = sorted(self.places, key=lambda role: self.places[role])
        named = [name for name in header.names if name]
        return len(named) == len(roles) and roles in (
            ["path"],
            ["path", "label"],
            ["path", "frames", "label"],
        )

    def _lines(self) -> Iterator[tuple[int, str]]:
        lines = text_lines(self.file)
        if self._first_line == 1:
            return lines
        return ((number, line) for number, line in lines if number >= self._first_line)

    def rows(self, on_bad_row: OnBadRow = raise_error) -> Iterator[Row]:
        """Yield the videos in the order of the list.

        `on_bad_row(line, error)` is called for each line that cannot be read.
        """
        if self.header is not None and not self.is_plain:
            path_column, label_column = self.places["path"], self.places.get("label")
            for number, cells in table_rows(self.file, self.header, on_bad_row):
                text = "" if label_column is None else cells[label_column]
                yield Row(number, cells[path_column], text, cells)
            return
        split = self.split
        for number, line in self._lines():
            try:
                path, label = split(line)
            except DataError as error:
                on_bad_row(number, DataError(f"{self.file}:{number}: {error}"))
                continue
            if label or path.strip(self.separator + " "):  # else a row of empty cells
                yield Row(number, path, label, None)

    # ---- one line: a path and what follows it

    def split(self, line: str) -> tuple[str, str]:
        """Split a line into path and label; the label is empty where there is none.

        Raises DataError for a line that can be split in two ways.
        """
        if '"' in line:
            quoted = self._split_quoted(line)
            if quoted is not None:
                return quoted
        path, found, last = line.rpartition(self.separator)
        path, last = path.strip(), last.strip()
        if not found:
            return self._bare(line)
        if is_video(path):  # `clip.mp4 3`, the usual line
            return (line, "") if is_video(last) else (path, last)
        if is_video(last):
            return line, ""
        end = self._end_of_video(line)
        if end:
            video, behind = line[:end].strip(), line[end:].strip(self.separator + " ")
            if self._is_behind_video(video, behind, path, last):
                return video, self._label(behind, line)
        return self._split_folder(line, path, last)

    def _is_behind_video(self, video: str, behind: str, path: str, last: str) -> bool:
        """Whether the path ends after `video`, or that is only part of a folder's name."""
        if not self.id_pattern.fullmatch(last):
            return True
        if SEVERAL_NUMBERS.fullmatch(behind.replace(self.separator, " ")):
            return not self.exists(path)
        return not self.ends_in_ids or self.exists(video)

    def _split_quoted(self, line: str) -> tuple[str, str] | None:
        """Split a line whose path or label is in quotes; None where quotes are part of a name."""
        behind = line[self._end_of_video(line) :].lstrip(self.separator + " ")
        opened = line if line.startswith('"') else behind
        if opened.startswith('"') and not _QUOTED.match(opened):
            raise DataError(f'a quote (") is opened and not closed in {quoted_text(line)}')
        if line.startswith('"'):
            path, *cells = split_cells(line, self.separator) or [""]
            if path and self._is_label(path, cells):
                sign = ";" if self.multi_label and self.separator != " " else self.separator
                return path, self._label(sign.join(cells), line, cells=cells)
        elif match := _quoted_label(self.separator).fullmatch(line):
            path = match["path"].strip()
            head, _, frames = path.rpartition(self.separator)
            if head and WHOLE_NUMBER.fullmatch(frames.strip()) and not is_video(path):
                path = head.strip()
            return path, match["label"].replace('""', '"').strip()
        return None

    def _is_label(self, path: str, behind: Sequence[str]) -> bool:
        """Whether the cells after a quoted path may be its label; else the line is one name."""
        numbers = [bool(WHOLE_NUMBER.fullmatch(cell.strip())) for cell in behind]
        short = len(behind) < 2 or all(numbers) or (len(behind) == 2 and numbers[0])
        return short or is_video(path) or self.exists(path)

    def _bare(self, line: str) -> tuple[str, str]:
        """Split a line without the separator: it is a path alone, or has another separator."""
        if is_video(line):
            return line, ""
        for other in SEPARATORS:
            path, found, last = line.rpartition(other)
            ends = is_video(path.strip()) or WHOLE_NUMBER.fullmatch(last.strip())
            if found and last.strip() and ends and not is_video(last) and not self.exists(line):
                raise DataError(
                    f"no {_name(self.separator)} in {quoted_text(line)}, which has {_name(other)}; "
                    f"{_name(self.separator)} separates path and label in this list. Use one for "
                    "the whole list, or set DATA.PATH_LABEL_SEPARATOR"
                )
        return line, ""

    def _end_of_video(self, line: str) -> int:
        """Index after the last name of a video that a separator follows; 0: there is none."""
        end = 0
        for match in _video_end(self.separator).finditer(line):
            end = match.end()
        return end

    def _label(self, text: str, line: str, cells: Sequence[str] | None = None) -> str:
        """The label, or labels, in the text after a path, which may begin with a frame count."""
        if self.multi_label:
            return text
        cells = text.split(self.separator) if cells is None else list(cells)
        cells = [cell.strip() for cell in cells if cell.strip()]
        if len(cells) > 1 and WHOLE_NUMBER.fullmatch(cells[0]) and self._drops_frames(cells[1:]):
            cells = cells[1:]
        numbers = all(WHOLE_NUMBER.fullmatch(cell) for cell in cells)
        if len(cells) < 2 or (self.separator == " " and not numbers):
            return " ".join(cells)
        raise DataError(
            f"{len(cells) + 1} columns in {quoted_text(line)}, and no line that names them; "
            f"expected 'path{self.separator}label'. Name the columns in the first line, put "
            f"a name with {_name(self.separator)} in it in quotes, or set DATA.MULTI_LABEL for "
            "several labels"
        )

    def _drops_frames(self, rest: Sequence[str]) -> bool:
        """Whether a number before `rest` counts frames; "100 m" may also be the name of a class."""
        if len(rest) > 1 and self.separator != " ":
            return False
        return self.separator != " " or self.has_frames or bool(WHOLE_NUMBER.fullmatch(rest[-1]))

    def _has_frames(self, lines: Sequence[str]) -> bool:
        """Whether a number and something else follow every path."""
        for line in lines:
            end = self._end_of_video(line)
            words = line[end:].split() if end else []
            if len(words) < 2 or not WHOLE_NUMBER.fullmatch(words[0]):
                return False
        return True

    def _split_folder(self, line: str, path: str, last: str) -> tuple[str, str]:
        """Split a line whose path has no video's ending: a folder of frames."""
        if self.multi_label:
            match = _many_labels(self.separator).fullmatch(line)
            if match is not None:
                return match["path"].strip(), match["labels"]
        if not last:
            return path, ""
        if WHOLE_NUMBER.fullmatch(last):
            # A number in the middle counts frames, unless a path simply ends in a number.
            head, found, frames = path.rpartition(self.separator)
            if found and WHOLE_NUMBER.fullmatch(frames.strip()) and not self.exists(path):
                path = head.strip()
            return path, last
        ends = [m.start() for m in re.finditer(re.escape(self.separator), line)]
        heads = [line[:end].strip() for end in ends]
        for end, head in zip(reversed(ends), reversed(heads), strict=True):
            if head and self.exists(head):
                return head, self._label(line[end:].strip(self.separator + " "), line)
        if self.exists(line):
            return line, ""
        if len({head for head in heads if head}) > 1:
            raise DataError(
                f"cannot tell where the path ends in {quoted_text(line)}; put it in quotes, or "
                "separate path and label by a tab"
            )
        return path, last


def _require_no_header(file: Path, separator: str | None, sample: list[tuple[int, str]]) -> None:
    """Raise DataError where the first line names columns, but none for the videos."""
    for role in ("label", "class_name", "label_id"):
        header = find_header(file, role, separator)
        others = (word for _, line in sample[1:] for word in re.split(r"[,;\t ]+", line))
        if header and len(header.names) > 1 and any(is_video(word.strip('"')) for word in others):
            raise DataError(
                f"{file}: no column path; its first line names the columns and says "
                f"{header.separator.join(header.names)}. The column may be called "
                f"{', '.join(COLUMNS['path'])}"
            )


def _places(file: Path, header: Header, need_labels: bool) -> dict[str, int]:
    """Role -> index of the columns of a list of videos. Raises DataError."""
    indices = {role: header.place(role) for role in COLUMNS}
    places = {role: index for role, index in indices.items() if index is not None}
    if "class_name" in places:  # beside names, a column `label` or `class` holds their numbers
        if "label" in places:
            places.setdefault("label_id", places["label"])
        places["label"] = places.pop("class_name")
    elif "label" not in places and "label_id" in places:
        places["label"] = places.pop("label_id")
    if need_labels and "label" not in places:
        raise DataError(
            f"{file}: no column label; its first line names the columns and says "
            f"{header.separator.join(header.names)}. The column may be called "
            f"{', '.join(COLUMNS['label'])} or {', '.join(COLUMNS['class_name'])}"
        )
    twice = [
        name
        for role in ("label", "split", "fold")
        for name in header.names
        if plain_name(name) in COLUMNS[role] and header.place(role) != header.names.index(name)
    ]
    if twice:
        raise DataError(
            f"{file}: two columns for the same thing among {header.separator.join(header.names)}: "
            f"{twice[0]!r} could be it as well; rename or remove one"
        )
    return places


# ---- the separator ------------------------------------------------------------------------------


def find_separator(lines: Sequence[str], multi_label: bool, usual: str = "") -> str:
    """Find the separator that fits most of the lines; of two that fit alike, `usual`.

    A separator fits best between the name of a video and a number. For a list of bare paths it is a
    space.
    """
    candidates = dict.fromkeys([*([usual] if usual else []), *SEPARATORS])
    scores = {}
    for separator in candidates:
        fits = [_fit(line, separator, multi_label) for line in lines]
        # Of several labels, the separator before them all leaves the shortest paths.
        scores[separator] = (
            sum(score for score, _ in fits),
            -sum(length for _, length in fits) if multi_label else 0,
        )
    best = max(scores, key=lambda separator: scores[separator])
    return best if scores[best][0] else usual or " "


def _fit(line: str, separator: str, multi_label: bool) -> tuple[int, int]:
    """(how well a separator fits a line, length of the path that it leaves)."""
    spaced = separator == " "
    if match := _QUOTED.match(line):
        rest = line[match.end() :] if spaced else line[match.end() :].lstrip(" ")
        if rest.startswith(separator):
            numbers = SEVERAL_NUMBERS.fullmatch(rest.strip(separator + " "))
            return (6 if numbers else 3 if spaced else 5), match.end()
    ends = [match.end() for match in _video_end(separator).finditer(line)]
    if ends:
        rest = line[ends[-1] :].strip(separator + " ").strip('"')
        if not rest or is_video(rest):
            return 0, 0
        # With a name behind it, a space may also be part of a path: of a folder called `a.mp4 b`.
        return (6 if SEVERAL_NUMBERS.fullmatch(rest) else 3 if spaced else 5), ends[-1]
    path, found, last = line.rpartition(separator)
    if multi_label and (match := _many_labels(separator).fullmatch(line)):
        path, last = match["path"], "0"
    last = last.strip()
    if not found or not path.strip() or not last or is_video(last):
        return 0, 0
    return (4 if WHOLE_NUMBER.fullmatch(last) else 1), len(path)


_QUOTED = re.compile(r'"(?:[^"]|"")*"')


@functools.lru_cache(maxsize=8)
def _video_end(separator: str) -> re.Pattern[str]:
    """Matches the ending of a video's name before a separator."""
    endings = "|".join(sorted(ending[1:] for ending in VIDEO_SUFFIXES))
    return re.compile(rf"\.(?:{endings})(?=\s*{re.escape(separator)})", re.IGNORECASE)


@functools.lru_cache(maxsize=8)
def _many_labels(separator: str) -> re.Pattern[str]:
    """Matches a path and several numbers."""
    numbers = SEVERAL_NUMBERS.pattern
    return re.compile(rf"(?P<path>.*?){re.escape(separator)}\s*(?P<labels>{numbers})")


@functools.lru_cache(maxsize=8)
def _quoted_label(separator: str) -> re.Pattern[str]:
    """Matches a path and a label in quotes."""
    return re.compile(rf'(?P<path>.*?){re.escape(separator)}\s*"(?P<label>(?:[^"]|"")*)"')


def _name(separator: str) -> str:
    """A separator in words."""
    words = {" ": "space", "\t": "tab", ",": "comma", ";": "semicolon"}
    return words.get(separator, repr(separator))


# ---- writing ------------------------------------------------------------------------------------


def quoted_path(path: str) -> str:
    """Write a path as a line of a list, in quotes where it would otherwise be read as another."""
    if path != path.strip() or path.startswith('"'):
        doubled = path.replace('"', '""')
        return f'"{doubled}"'
    return path
