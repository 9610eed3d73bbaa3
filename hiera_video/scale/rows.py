"""The rows of a job: the videos, or parts of videos, that an input names, in a fixed order.

An input is a folder or a glob of videos, one video, a list (.txt: a path a line) or a table (.csv,
.parquet) with a column `path` and, if parts of videos are wanted, `start` and `end` in seconds. It
and the paths in it may be addresses or tar shards.
Rows are read some ten thousand at a time: an input of any length takes little memory.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from hiera_video.errors import DataError, UserError
from hiera_video.features.parquet import parquet
from hiera_video.files import atomic_write
from hiera_video.storage.addresses import folder_of, is_address, plain_name, require_allowed
from hiera_video.storage.retries import StorageError
from hiera_video.video.find import expand_paths

AT_ONCE = 65_536
"""Rows that are read together."""

TABLES = (".csv", ".parquet")
LISTS = (".txt",)

MOST_LIST = 8 << 30
"""Bytes of a list or table that is fetched from an address."""

COLUMNS = ("path", "start", "end")


class Row(NamedTuple):
    """One row of the input."""

    number: int
    """From 0 on."""
    path: str
    start: float | None
    end: float | None


class Rows(NamedTuple):
    """Some neighbouring rows of the input."""

    paths: list[bytes]
    """As the file system knows them: names need not be UTF-8."""
    starts: list[float | None]
    ends: list[float | None]


def read_rows(source: str) -> Iterator[Rows]:
    """Yield the rows of an input, at most `AT_ONCE` together.

    Raises UserError, DataError: there is nothing, or a table that cannot be read or has no paths.
    """
    suffix = _suffix(source)
    if is_address(source) and suffix in (*TABLES, *LISTS):
        with tempfile.TemporaryDirectory(prefix="hiera_video_") as folder:
            yield from read_rows(_fetched(source, os.path.join(folder, f"list{suffix}")))
        return
    if not os.path.isfile(source) or suffix not in (*TABLES, *LISTS):
        paths = [os.fsencode(file.path) for file in expand_paths([source])]
        for first in range(0, len(paths), AT_ONCE):
            some = paths[first : first + AT_ONCE]
            yield Rows(some, [None] * len(some), [None] * len(some))
        return
    found = _listed(source) if suffix in LISTS else _table(source, suffix)
    empty = True
    for rows in found:
        empty = False
        yield rows
    if empty:
        raise DataError(f"{source} has no rows")


def folder_of_paths(source: str) -> str:
    """The folder that relative paths of an input are relative to: the list's, or this one."""
    suffix = _suffix(source)
    if is_address(source):
        return folder_of(source) if suffix in (*TABLES, *LISTS) else os.getcwd()
    listed = os.path.isfile(source) and suffix in (*TABLES, *LISTS)
    return os.path.dirname(os.path.abspath(source)) if listed else os.getcwd()


def _listed(source: str) -> Iterator[Rows]:
    some: list[bytes] = []
    with open(source, "rb") as file:
        for line in file:
            if path := line.rstrip(b"\r\n"):
                some.append(path)
            if len(some) == AT_ONCE:
                yield Rows(some, [None] * AT_ONCE, [None] * AT_ONCE)
                some = []
    if some:
        yield Rows(some, [None] * len(some), [None] * len(some))


def _table(source: str, suffix: str) -> Iterator[Rows]:
    arrow, _ = parquet()
    done = 0
    try:
        for batch in _batches(source, suffix):
            if "path" not in batch.schema.names:
                raise DataError(
                    f"{source} has no column path; it has {', '.join(batch.schema.names)}"
                )
            for first in range(0, batch.num_rows, AT_ONCE):
                part = batch.slice(first, AT_ONCE)
                yield _checked(part, f"{source}, rows from {done:,} on")
                done += part.num_rows
    except (arrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{source} cannot be read as a table: {reason}") from None


def _batches(source: str, suffix: str) -> Iterator[Any]:
    arrow, module = parquet()
    if suffix == ".parquet":
        with module.ParquetFile(source) as file:
            wanted = [name for name in COLUMNS if name in file.schema_arrow.names]
            if "path" not in wanted:
                wanted = file.schema_arrow.names
            yield from file.iter_batches(AT_ONCE, columns=wanted)
        return
    from pyarrow import csv

    types = {"path": arrow.string(), "start": arrow.float64(), "end": arrow.float64()}
    if os.path.getsize(source) == 0:
        return
    yield from csv.open_csv(source, convert_options=csv.ConvertOptions(column_types=types))


def _checked(batch: Any, where: str) -> Rows:
    """The rows of a batch; DataError for a missing path, and for a part that cannot be one."""
    paths = batch.column("path").to_pylist()
    columns = []
    for name in ("start", "end"):
        there = name in batch.schema.names
        numbers = batch.column(name).to_pylist() if there else [None] * len(paths)
        columns.append([_seconds(number, name, where) for number in numbers])
    if not all(paths):
        raise DataError(f"{where}: a row has no path")
    for start, end in zip(*columns, strict=True):
        if start is not None and end is not None and not start < end:
            raise DataError(f"{where}: a part from {start:g} s to {end:g} s; start is before end")
    encoded = [path if isinstance(path, bytes) else os.fsencode(str(path)) for path in paths]
    return Rows(encoded, *columns)


def _seconds(value: Any, name: str, where: str) -> float | None:
    if value is None or value != value:  # pandas writes what is missing as NaN
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DataError(f"{where}: {name} is {value!r}; it takes seconds") from None


class Fingerprint:
    """A hash of all rows and their order: whether an input is what it was."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.rows = 0

    def add(self, rows: Rows) -> None:
        """Take the next rows."""
        # one text for each column and call: rows are hashed in millions
        lengths = np.fromiter(map(len, rows.paths), np.int64, len(rows.paths))
        times = np.array([rows.starts, rows.ends], dtype=np.float64)  # None becomes NaN
        for content in (lengths.tobytes(), b"".join(rows.paths), times.tobytes()):
            self._hash.update(content)
        self.rows += len(rows.paths)

    def text(self) -> str:
        """64 hexadecimal digits."""
        return self._hash.hexdigest()


def in_parts(found: Iterable[Rows], size: int) -> Iterator[Rows]:
    """The same rows, `size` together but for the last ones."""
    paths: list[bytes] = []
    starts: list[float | None] = []
    ends: list[float | None] = []
    for rows in found:
        paths += rows.paths
        starts += rows.starts
        ends += rows.ends
        while len(paths) >= size:
            yield Rows(paths[:size], starts[:size], ends[:size])
            del paths[:size], starts[:size], ends[:size]
    if paths:
        yield Rows(paths, starts, ends)


def require_input(source: str) -> None:
    """Raise UserError for an input at which there is nothing, before anything is loaded."""
    if is_address(source):
        require_allowed(source)
    elif _suffix(source) in (*TABLES, *LISTS) and not os.path.exists(source):
        raise UserError(f"no such file: {source}")


def _suffix(source: str) -> str:
    return os.path.splitext(plain_name(source))[1].lower()


def _fetched(address: str, file: str) -> str:
    """A list or table at an address as a file of this machine, for a while."""
    from hiera_video.storage.remote import read_small

    try:
        content = read_small(address, MOST_LIST)
    except StorageError as error:
        raise DataError(str(error)) from None
    with atomic_write(file) as out:
        out.write(content)
    return file
