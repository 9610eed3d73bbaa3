"""Lists and folders as they lie on disk: lines, csv rows, JSON, the videos below a folder.

Whatever cannot be read is a `DataError` with the file, the line, what came and what is allowed.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hiera_video.errors import UserError

VIDEO_SUFFIXES = frozenset(
    f".{ending}"
    for ending in (
        *("3gp", "asf", "avi", "divx", "f4v", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4"),
        *("mpe", "mpeg", "mpg", "mts", "mxf", "ogm", "ogv", "rmvb", "ts", "vob", "webm", "wmv"),
    )
)


class DataError(UserError):
    """Something wrong with the data the user named; says where, what came and what is allowed."""


class LabelRangeError(DataError):
    """A label that is a number, and not one of those allowed."""


def is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def text_lines(file: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of the lines that are not blank. Names need not be valid UTF-8."""
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line.strip()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error


def csv_rows(
    file: Path, need: Sequence[str], refuse: Callable[[int, DataError], None] | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a csv whose first line names the columns.

    `refuse` is told of each row that has too few or too many, instead of it being raised.
    """
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            reader = csv.DictReader(lines, skipinitialspace=True)
            missing = [name for name in need if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{file}: no column {', '.join(missing)}; its first line must name the columns "
                    f"and says {reader.fieldnames}"
                )
            for row in reader:
                short = [name for name, value in row.items() if value is None]
                if short or None in row:
                    error = DataError(
                        f"{file}:{reader.line_num}: expected {len(reader.fieldnames)} columns "
                        f"({','.join(reader.fieldnames)})"
                    )
                    if refuse is None:
                        raise error
                    refuse(reader.line_num, error)
                    continue
                yield reader.line_num, {key: value.strip() for key, value in row.items()}
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    except csv.Error as error:
        raise DataError(f"{file} is not a csv file: {error}") from error


def read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not valid JSON: {error}") from error


def scan_folder(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"cannot read folder {folder}: {error.strerror}") from error


def videos_below(root: Path, wanted: Callable[[str], bool] = is_video) -> list[str]:
    """Sorted relative paths of the videos at any depth; links are followed, loops are not.

    `wanted` tells by its name whether a file is one.
    """
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        relative = os.path.relpath(folder, root)
        found += [
            os.path.normpath(os.path.join(relative, name))
            for name in files
            if wanted(name) and not name.startswith(".")
        ]
    return sorted(found)


def some(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
