"""CSV files for people: a spreadsheet and pandas show what was meant, whatever the names.

    with csv_file("labels.csv", ["file", "label"]) as add:
        add([path_cell("clip.mp4"), "jump"])

UTF-8 behind a byte order mark, without which Excel takes `é` for two other letters (in Python:
encoding="utf-8-sig"; pandas needs nothing said). A text is written as it is, but for two kinds:

* What a spreadsheet or pandas would take for something else (a formula, a number in an unusual
  spelling, a missing value, true or false) has an apostrophe before it: `'=1+1`, `'007`, `'None`.
  So has a text that begins with an apostrophe itself.
* Bytes that are not valid UTF-8, as file names can hold, and control characters are written as
  `\\xff`. Where that happens, or a text has such letters itself, its backslashes are doubled.

`original` undoes both, so that no two texts look alike. A path that the first would change gets
`./` before it instead, and still names its file. Lists for training are not written here.
"""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from hiera_video.files import AnyPath, atomic_write

Row = Sequence[Any]


@contextlib.contextmanager
def csv_file(path: AnyPath, columns: Sequence[str]) -> Iterator[Callable[[Row], None]]:
    """Yields the function that adds a row; the file takes its place when the block ends.

    Raises RunFailed, which names `path`, where it cannot be written.
    """
    with atomic_write(path, text=True) as file:
        yield row_writer(file, columns)


def row_writer(file: IO[str], columns: Sequence[str]) -> Callable[[Row], None]:
    """Begin a CSV file with the names of its columns; the function that adds a row."""
    file.write("\ufeff")
    writer = csv.writer(file)

    def add(row: Row) -> None:
        writer.writerow([cell(value) if isinstance(value, str) else value for value in row])

    add(columns)
    return add


def cell(text: str) -> str:
    """How a text is written; see above."""
    text = _escaped(text)
    return f"'{text}" if _is_taken_for_something_else(text) else text


def path_cell(path: str) -> str:
    """A path for `row_writer`, so that it is not taken for a formula and still names its file."""
    return f"./{path}" if _is_taken_for_something_else(path) else path


def original(cell: str) -> str:
    """The text that was written as this cell."""
    text = cell.removeprefix("'")
    if not _ESCAPE.search(text):
        return text
    return re.sub(rf"\\\\|{_ESCAPE.pattern}", lambda found: _meant(found[0]), text)


# ---- bytes and control characters ---------------------------------------------------------------

_ESCAPE = re.compile(r"\\(?:x[0-9a-f]{2}|ud[89a-f][0-9a-f]{2})")
_NEEDS_ESCAPE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]|" + _ESCAPE.pattern)
"""Control characters but for tab and line ends, which quotes hold together."""


def _escaped(text: str) -> str:
    if not _NEEDS_ESCAPE.search(text):
        return text
    text = text.replace("\\", r"\\")
    return "".join(_escape(letter) if _NEEDS_ESCAPE.match(letter) else letter for letter in text)


def _escape(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file's name, as Python keeps it
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _meant(escape: str) -> str:
    if escape == r"\\":
        return "\\"
    code = int(escape[2:], 16)
    return chr(code + 0xDC00 if 0x80 <= code <= 0xFF else code)


# ---- what a program would take for something else -----------------------------------------------

_SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'")
"""Beginnings of formulas in Excel, LibreOffice and Google Sheets, and the apostrophe itself."""

_MISSING = frozenset(
    (
        *("NA", "N/A", "n/a", "NULL", "null", "None", "NaN", "nan", "<NA>"),
        *("#NA", "#N/A", "#N/A N/A", "1.#IND", "1.#QNAN"),
    )
)
"""What pandas takes for a missing value; those that begin with a sign are left out."""


def _is_taken_for_something_else(text: str) -> bool:
    return (
        text.lstrip(" ").startswith(_SIGNS)
        or text in _MISSING
        or text.lower() in ("true", "false")
        or _is_odd_number(text)
    )


def _is_odd_number(text: str) -> bool:
    """Whether a text would come back as a number, and that number in another spelling."""
    try:
        float(text)
    except ValueError:
        return False
    return not re.fullmatch("0|[1-9][0-9]{0,14}", text)  # a spreadsheet keeps 15 digits
