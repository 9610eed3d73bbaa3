"""The one reader of tables: text in UTF-8, names above the columns, cells as in CSV.

    header = find_header(Path("labels.csv"))
    for line, cells in table_rows(Path("labels.csv"), header):
        ...

It knows the usual names of columns and quotes cells as the `csv` module does; errors name other
encodings than UTF-8. Lists of videos, which may have no header, are read by `video_table.py` on top
of it.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from hiera_video.errors import DataError
from hiera_video.video.find import is_video

SEPARATORS = (",", "\t", ";", " ")

COLUMNS = {
    "path": (
        *("path", "file", "filename", "filepath", "videopath", "video", "videofile", "videoname"),
        *("clip", "clippath", "clipname", "clipfile", "relativepath", "relpath", "videoid"),
        *("clipid", "name", "id"),
    ),
    "label": (
        *("label", "labels", "class", "classes", "category", "categories", "action", "actions"),
        *("activity", "activities", "target", "targets", "tag", "tags"),
    ),
    "class_name": ("classname", "labelname", "categoryname", "actionname", "activityname"),
    "label_id": (
        *("labelid", "classid", "categoryid", "actionid", "targetid"),
        *("labelindex", "classindex", "labelidx", "classidx", "labelnumber", "classnumber"),
    ),
    "split": ("split", "subset", "partition", "set", "usage"),
    "fold": ("fold", "foldid", "foldnumber", "cvfold"),
    "source": ("source", "group", "sourceid", "groupid", "sourcename", "groupname"),
    "frames": ("frames", "numframes", "nframes", "framecount", "totalframes", "numberofframes"),
}
"""Role -> names of its column, the most specific first; case, spaces, `_` and `-` are ignored."""

WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")
SEVERAL_NUMBERS = re.compile(r"-?[0-9]{1,18}(?:[,; \t]+-?[0-9]{1,18})*")

# ---- text ---------------------------------------------------------------------------------------

_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def require_text(file: Path) -> None:
    """Raise DataError if the first bytes are not those of UTF-8 text: UTF-16, an Excel workbook."""
    try:
        with open(file, "rb") as content:
            head = content.read(4096)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    marked = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "")
    if not marked and head.count(b"\0") > len(head) // 4:  # two bytes per letter
        marked = "UTF-16"
    if marked:
        raise DataError(f"{file} is {marked}; save it as UTF-8")
    if head.startswith(b"PK\x03\x04"):
        raise DataError(f"{file} is an Excel workbook or another zip file; save it as CSV (UTF-8)")


def is_utf8(text: str) -> bool:
    """Whether text read with `surrogateescape` was UTF-8."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def quoted_text(text: str) -> str:
    """Text in quotes for a message; bytes that are not UTF-8 are shown as Latin-1."""
    if is_utf8(text):
        return repr(text)
    return repr(text.encode(errors="surrogateescape").decode("latin-1"))


def require_utf8(text: str, place: str) -> None:
    """Raise DataError, beginning with `place`, unless the text was UTF-8."""
    if not is_utf8(text):
        raise DataError(
            f"{place}: {quoted_text(text)} is not UTF-8 (it looks like Latin-1); save the file as "
            "UTF-8"
        )


def text_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, text) of the lines that are not blank; `is_utf8` tells bad bytes."""
    require_text(file)
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                if line := line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error


# ---- named columns ------------------------------------------------------------------------------


class Header(NamedTuple):
    """The line that names the columns."""

    line: int
    names: tuple[str, ...]
    """As written."""
    separator: str

    def place(self, role: str) -> int | None:
        """Index of the column for a role of `COLUMNS`, or of that name; None if there is none."""
        plain = [plain_name(name) for name in self.names]
        known = COLUMNS.get(role, (plain_name(role),))
        return next((plain.index(name) for name in known if name in plain), None)


def plain_name(name: str) -> str:
    """A column's name in lower case, with letters and digits only."""
    return re.sub(r"[\W_]+", "", name.strip().lower())


def find_header(file: Path, need: str = "path", separator: str | None = None) -> Header | None:
    """Find the header of a table with a column for the role `need`; None where it has none.

    A first line that contains a number or the name of a video is a row, no header.
    """
    number, first = next(text_lines(file), (0, ""))
    words = [word.strip('"') for word in re.split(r"[,;\t ]+", first)]
    if any(WHOLE_NUMBER.fullmatch(word) or is_video(word) for word in words):
        return None
    for candidate in dict.fromkeys([*([separator] if separator else []), *SEPARATORS]):
        cells = split_cells(first, candidate)
        if cells is None:
            continue
        names = [cell.strip() for cell in cells]
        while names and not names[-1]:
            names.pop()
        header = Header(number, tuple(names), candidate)
        alone = len(names) == 1 and candidate != SEPARATORS[0]  # any separator fits one column
        if header.place(need) is not None and not alone:
            return header
    return None


def split_cells(line: str, separator: str) -> list[str] | None:
    """The cells of one line; None where its quotes are not those of a table."""
    try:
        reader = csv.reader([line], delimiter=separator, strict=True, skipinitialspace=True)
        return next(reader, [])
    except csv.Error:
        return None


OnBadRow = Callable[[int, DataError], None]


def raise_error(line: int, error: DataError) -> None:
    """The default for `on_bad_row`."""
    raise error


def table_rows(
    file: Path, header: Header, on_bad_row: OnBadRow = raise_error
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) of the rows below a header, each with as many cells as the header.

    `on_bad_row(line, error)` is called for each row that cannot be read.
    """
    require_text(file)
    wanted = len(header.names)
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            reader = csv.reader(
                lines, delimiter=header.separator, strict=True, skipinitialspace=True
            )
            while True:
                begins = reader.line_num + 1
                try:
                    row = next(reader, None)
                except csv.Error as error:
                    on_bad_row(begins, DataError(f"{file}:{begins}: {_quotes(error)}"))
                    continue
                if row is None:
                    return
                cells = [cell.strip() for cell in row]
                if begins <= header.line or not any(cells):
                    continue
                while len(cells) > wanted and not cells[-1]:
                    cells.pop()
                if len(cells) != wanted:
                    on_bad_row(begins, DataError(f"{file}:{begins}: {_columns(cells, header)}"))
                    continue
                yield begins, cells
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error


def _quotes(error: csv.Error) -> str:
    if "end of data" in str(error):
        return 'a cell begins with a quote (") that is never closed'
    if "expected after" in str(error):
        return 'a cell goes on after its closing quote; a quote (") inside a quoted cell is doubled'
    return f"not a row of a table: {error}"


def _columns(cells: Sequence[str], header: Header) -> str:
    text = header.separator.join(cells)
    return (
        f"expected {len(header.names)} columns ({header.separator.join(header.names)}), found "
        f"{len(cells)} in {quoted_text(text)}; a cell with {header.separator!r} in it must be in "
        "quotes"
    )


def named_rows(
    file: Path, header: Header, names: Sequence[str], on_bad_row: OnBadRow = raise_error
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line, {name: cell}) of those of the columns (roles or names) that a table has."""
    places = {name: header.place(name) for name in names}
    for line, cells in table_rows(file, header, on_bad_row):
        yield line, {name: cells[i] for name, i in places.items() if i is not None}
