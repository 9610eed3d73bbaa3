"""CSV files whose texts survive spreadsheets and pandas unchanged, whatever the names are.

    with csv_file("labels.csv", ["file", "label"]) as add:
        add([path_cell("clip.mp4"), "jump"])

Files are UTF-8 with a byte order mark, without which Excel shows `é` as two other letters (read
them in Python with encoding="utf-8-sig"; pandas detects it). Two kinds of text are changed:

* Text that a spreadsheet or pandas would misread (as a formula, a number in an unusual spelling, a
  missing value, true or false) gets an apostrophe in front: `'=1+1`, `'007`, `'None`. So does text
  that begins with an apostrophe.
* Bytes that are not valid UTF-8, as file names can contain, and control characters are written as
  `\\xff`. In such a text, and in one that contains this notation, backslashes are doubled.

`original` undoes both, so different texts stay different. A path that would get an apostrophe gets
`./` in front instead, so that it still names its file. Lists for training are written elsewhere.
"""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

from hiera_video.errors import hide_secrets
from hiera_video.files import AnyPath, atomic_write

Row = Sequence[Any]


@contextlib.contextmanager
def csv_file(path: AnyPath, columns: Sequence[str]) -> Iterator[Callable[[Row], None]]:
    """Yield a function that adds a row; the file is complete when the block ends.

    Raises RunFailed, which names `path`, if it cannot be written.
    """
    with atomic_write(path, text=True) as file:
        yield row_writer(file, columns)


def row_writer(file: IO[str], columns: Sequence[str]) -> Callable[[Row], None]:
    """Write the header of a CSV file, and return a function that adds a row."""
    file.write("\ufeff")
    writer = csv.writer(file)

    def add(row: Row) -> None:
        writer.writerow([cell(value) if isinstance(value, str) else value for value in row])

    add(columns)
    return add


def cell(text: str) -> str:
    """Encode a text as described at the top of this file."""
    text = _escaped(text)
    return f"'{text}" if _is_misread(text) else text


def path_cell(path: str) -> str:
    """Prepare a path for `row_writer`, so that it is not misread and still names its file.

    The secrets of an address are hidden.
    """
    path = hide_secrets(path)
    return f"./{path}" if _is_misread(path) else path


def original(cell: str) -> str:
    """Decode a text that `cell` has encoded."""
    text = cell.removeprefix("'")
    if not _ESCAPE.search(text):
        return text
    return re.sub(rf"\\\\|{_ESCAPE.pattern}", lambda match: _unescaped(match[0]), text)


# ---- bytes and control characters ---------------------------------------------------------------

_ESCAPE = re.compile(r"\\(?:x[0-9a-f]{2}|ud[89a-f][0-9a-f]{2})")
_NEEDS_ESCAPE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]|" + _ESCAPE.pattern)
"""Control characters except tab and line ends, which are safe in quotes."""


def _escaped(text: str) -> str:
    if not _NEEDS_ESCAPE.search(text):
        return text
    text = text.replace("\\", r"\\")
    return "".join(_escape(letter) if _NEEDS_ESCAPE.match(letter) else letter for letter in text)


def _escape(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name, as Python represents it
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _unescaped(escape: str) -> str:
    if escape == r"\\":
        return "\\"
    code = int(escape[2:], 16)
    return chr(code + 0xDC00 if 0x80 <= code <= 0xFF else code)


# ---- what a spreadsheet or pandas would misread -------------------------------------------------

_SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'")
"""Beginnings of formulas in Excel, LibreOffice and Google Sheets, and the apostrophe itself."""

_MISSING = frozenset(
    (
        *("NA", "N/A", "n/a", "NULL", "null", "None", "NaN", "nan", "<NA>"),
        *("#NA", "#N/A", "#N/A N/A", "1.#IND", "1.#QNAN"),
    )
)
"""Texts that pandas reads as a missing value; those that begin with a sign are left out."""


def _is_misread(text: str) -> bool:
    return (
        text.lstrip(" ").startswith(_SIGNS)
        or text in _MISSING
        or text.lower() in ("true", "false")
        or _is_unusual_number(text)
    )


def _is_unusual_number(text: str) -> bool:
    """Whether a text would be read as a number and be shown in another spelling."""
    try:
        float(text)
    except ValueError:
        return False
    return not re.fullmatch("0|[1-9][0-9]{0,14}", text)  # spreadsheets keep 15 digits
