"""The names of classes in label order, from the files that people keep them in."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from hiera_video.data.manifests.listing import quoted, read_json
from hiera_video.data.manifests.source import Source
from hiera_video.data.manifests.tables import find_header, require_utf8, table_rows, text_lines
from hiera_video.errors import DataError
from hiera_video.labels import known_labels, load_labels

CLASS_FILES = ("classnames.json", "class_names.json", "classes.txt", "class_names.txt")


def read_class_names(path: str | Path) -> list[str]:
    """Read names in label order from a file, or those of a public set by its name ("kinetics400").

    JSON `{"name": 0}`, `{"0": "name"}` or `["name"]`; csv with columns id and name; text with one
    name a line, with or without its number before it (`1 ApplyEyeMakeup`).

    Raises DataError: no such file, numbers with gaps, a name twice.
    """
    return numbered_class_names(path)[0]


def numbered_class_names(path: str | Path) -> tuple[list[str], int]:
    """Do as `read_class_names`; also return the number of the first class in the file: 0 or 1."""
    path = Path(path)
    if not path.is_file():
        if str(path) in known_labels():
            return load_labels(str(path)), 0
        raise DataError(
            f"no such file of class names: {path} (DATA.CLASS_NAMES); nor is it one of the known "
            f"lists {', '.join(known_labels())}"
        )
    pairs: list[tuple[Any, Any]]
    if path.suffix.lower() == ".json":
        pairs = _pairs_of_json(path)
    elif path.suffix.lower() in (".csv", ".tsv"):
        pairs = _pairs_of_table(path)
    else:
        lines = [line for _, line in text_lines(path)]
        numbered = [match for line in lines if (match := re.fullmatch(r"(\d+)[\s,]+(.+)", line))]
        if lines and len(numbered) == len(lines):
            pairs = [(match[1], match[2]) for match in numbered]
        else:
            pairs = list(enumerate(lines))
    return _in_order(pairs, path)


def _pairs_of_json(path: Path) -> list[tuple[Any, Any]]:
    content = read_json(path)
    if isinstance(content, list):
        return list(enumerate(content))
    if isinstance(content, dict):
        turned = all(str(key).isdecimal() for key in content)
        return [(k, v) if turned else (v, k) for k, v in content.items()]
    raise DataError(f"{path}: expected a list of names or an object name -> number")


ID_COLUMNS = ("id", "label_id", "index")
NAME_COLUMNS = ("name", "class_name", "label")


def _pairs_of_table(path: Path) -> list[tuple[Any, Any]]:
    """(number, name) from a table with a column for each."""
    places: dict[str, int] = {}
    header = None
    for what, names in (("id", ID_COLUMNS), ("name", NAME_COLUMNS)):
        for name in names:
            header = find_header(path, name)
            place = None if header is None else header.place(name)
            if place is not None and place not in places.values():
                places[what] = place
                break
        else:
            first = next(text_lines(path), (1, ""))[1]
            raise DataError(
                f"{path}: no column {what}; its first line must name the columns (id,name) and "
                f"says {first!r}"
            )
    assert header is not None  # else the loop has raised
    rows = table_rows(path, header)
    return [(row[places["id"]], row[places["name"]]) for _, row in rows]


def _in_order(pairs: list[tuple[Any, Any]], path: Path) -> tuple[list[str], int]:
    try:
        by_number = {int(number): str(name).strip().strip('"') for number, name in pairs}
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: a class number is not a whole number: {error}") from error
    if not by_number:
        raise DataError(f"{path}: no class names in it")
    first = min(by_number)
    expected = range(first, first + len(pairs))
    if first not in (0, 1) or sorted(by_number) != list(expected):
        raise DataError(
            f"{path}: {len(pairs)} class names must be numbered 0 to {len(pairs) - 1} (or from 1) "
            f"without gaps; the numbers run from {first} to {max(by_number)}"
        )
    names = [by_number[number] for number in expected]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{path}: class names must differ; more than once: {quoted(twice)}")
    for name in names:
        require_utf8(name, str(path))
    return names, first


def with_class_file(source: Source, folder: Path) -> Source:
    """The source with names for its ids from a file in `folder`, unless it has names already."""
    if source.id_names is not None:
        return source
    for name in CLASS_FILES:
        if (folder / name).is_file():
            names, first = numbered_class_names(folder / name)
            return replace(source, id_names=tuple(names), id_names_from=name, id_names_begin=first)
    return source
