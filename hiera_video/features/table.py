"""A table of vectors as a Parquet file: one row a video, or a window.

Columns: path (text), start and end (seconds), vector (a list of a fixed size of float32 or
float16), error (text, null in rows that have a vector). Where there is an error, start and end are
null and the vector is NaN: not null, because older readers of Parquet fail on a null among lists of
a fixed size. The settings that made the vectors are in the file's metadata, under "hiera_video", as
JSON.

A Parquet file cannot grow. While videos are described, parts of the table are kept in the folder
FILE.parts, each of them a whole file of whole videos. At the end they become one file, and the
folder is deleted. A killed process loses the work since the last part: half a minute.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from hiera_video.errors import DataError, RunFailed, UserError
from hiera_video.features.describe import Described, Vectors
from hiera_video.features.parquet import parquet, stored_path
from hiera_video.features.settings import FeatureSettings
from hiera_video.files import AnyPath, atomic_write, explained, hold

KEY = b"hiera_video"
"""Of the settings, in the metadata of a file."""

PART_SECONDS = 30.0
"""Time after which what is new becomes a part."""

PART_BYTES = 64 << 20
"""Memory of new vectors at which they become a part."""

_NUMPY_TYPES = {"fp32": np.float32, "fp16": np.float16}


# ---- writing ------------------------------------------------------------------------------------


class TableWriter:
    """Writes a table of vectors, and goes on with one that was begun. A context manager.

    Args:
        path: the file.
        settings: of all its vectors.
        afresh: start over, whatever is there.

    Raises UserError: the file is of other settings, another process writes it, pyarrow is missing;
    DataError: what is there cannot be read; RunFailed: it cannot be written.
    """

    def __init__(self, path: AnyPath, settings: FeatureSettings, *, afresh: bool = False) -> None:
        self._arrow, self._parquet = parquet()
        self.path = Path(path)
        self.settings = settings
        self._folder = Path(f"{self.path}.parts")
        self._lock = self._locked_folder()
        try:
            if afresh:
                self._discard()
            self._sources = self._existing()
            self.done = self._read_done()
        except BaseException:
            self.close()
            raise
        self._tables: list[Any] = []
        self._since = time.monotonic()

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def is_done(self, path: str) -> bool:
        """Whether a video has its vectors; one that failed is tried again."""
        return stored_path(path) in self.done

    def add(self, path: str, described: Described) -> None:
        """Add the vectors of a video."""
        self._add(path, described.starts, described.ends, described.vectors, None)

    def add_error(self, path: str, error: str) -> None:
        """Add a row that says why there are none."""
        vectors = np.full((1, self.settings.length), np.nan, dtype=np.float32)
        self._add(path, [None], [None], vectors, error)

    def close(self) -> None:
        """Write what is new as a part, and let go of the folder."""
        if self._lock.closed:
            return
        try:
            if getattr(self, "_tables", None):
                self._write_part()
        finally:
            with contextlib.suppress(OSError):
                if not self._parts():
                    shutil.rmtree(self._folder)
            self._lock.close()  # last: nobody else may put parts into the folder before

    def finish(self) -> None:
        """Make one file of all parts."""
        if self._tables:
            self._write_part()
        if self._sources == [self.path]:
            return  # nothing new
        last = self._last_sources()
        with atomic_write(self.path) as file, self._writer(file) as out:
            for number, source in enumerate(self._sources):
                for table in _row_groups(source):
                    paths = table.column("path").to_pylist()
                    kept = [last[path] == number for path in paths]
                    if any(kept):
                        out.write_table(table.filter(self._arrow.array(kept)))
        for part in self._parts():
            part.unlink()
        self._sources = [self.path]

    # ---- parts

    def _locked_folder(self) -> IO[Any]:
        with explained(self.path):
            if self.path.is_dir():
                raise IsADirectoryError(0, "it is a folder")
            self._folder.mkdir(exist_ok=True)
            lock = hold(self._folder / "lock")
        if lock is None:
            raise UserError(f"another process is writing {self.path}; wait for it, or end it")
        return lock

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob("*.parquet"))

    def _existing(self) -> list[Path]:
        """The file and its parts, in the order they were written; their settings are compared."""
        found = [*([self.path] if self.path.exists() else []), *self._parts()]
        for source in found:
            stored = read_settings(source)
            self.settings.require_same(stored, str(source))
        return found

    def _discard(self) -> None:
        with explained(self.path):
            for part in self._parts():
                part.unlink()
            self.path.unlink(missing_ok=True)

    def _read_done(self) -> set[str]:
        done: set[str] = set()
        for source in self._sources:
            for table in _row_groups(source, ["path", "error"]):
                errors = table.column("error").to_pylist()
                rows = zip(table.column("path").to_pylist(), errors, strict=True)
                done.update(path for path, error in rows if error is None)
        return done

    def _last_sources(self) -> dict[str, int]:
        """Path -> the number of the last source that has it: an error there is replaced here."""
        last: dict[str, int] = {}
        for number, source in enumerate(self._sources):
            for table in _row_groups(source, ["path"]):
                last.update(dict.fromkeys(table.column("path").to_pylist(), number))
        return last

    def _add(
        self,
        path: str,
        starts: Sequence[float | None],
        ends: Sequence[float | None],
        vectors: Vectors,
        error: str | None,
    ) -> None:
        arrow = self._arrow
        with np.errstate(over="ignore"):  # said below
            numbers = np.ascontiguousarray(vectors, dtype=_NUMPY_TYPES[self.settings.stored_as])
        if error is None and not np.isfinite(numbers).all():
            raise RunFailed("the vectors do not fit into fp16; store them as fp32")
        rows = len(numbers)
        columns = {
            "path": arrow.array([stored_path(path)] * rows, arrow.string()),
            "start": arrow.array(starts, arrow.float64()),
            "end": arrow.array(ends, arrow.float64()),
            "vector": arrow.FixedSizeListArray.from_arrays(
                arrow.array(numbers.reshape(-1)), self.settings.length
            ),
            "error": arrow.array([error] * rows, arrow.string()),
        }
        self._tables.append(arrow.table(columns, schema=self._schema()))
        new = sum(table.nbytes for table in self._tables)
        if new > PART_BYTES or time.monotonic() - self._since > PART_SECONDS:
            self._write_part()

    def _schema(self) -> Any:
        arrow = self._arrow
        number = arrow.from_numpy_dtype(_NUMPY_TYPES[self.settings.stored_as])
        fields = {
            "path": arrow.string(),
            "start": arrow.float64(),
            "end": arrow.float64(),
            "vector": arrow.list_(number, self.settings.length),
            "error": arrow.string(),
        }
        metadata = {KEY: self.settings.to_json().encode()}
        return arrow.schema(list(fields.items()), metadata=metadata)

    def _writer(self, file: IO[Any]) -> Any:
        return self._parquet.ParquetWriter(
            file, self._schema(), compression="zstd", use_dictionary=["path", "error"]
        )

    def _write_part(self) -> None:
        numbers = [int(part.stem) for part in self._parts()]
        part = self._folder / f"{max(numbers, default=-1) + 1:06d}.parquet"
        with atomic_write(part) as file, self._writer(file) as out:
            out.write_table(self._arrow.concat_tables(self._tables))
        self._sources.append(part)
        self._tables, self._since = [], time.monotonic()


# ---- reading ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Some rows of a table, those that have a vector."""

    paths: list[str]
    starts: list[float]
    ends: list[float]
    vectors: Vectors
    """float32 [rows, D]."""


def read_settings(path: AnyPath) -> FeatureSettings:
    """Return the settings of a table. Raises DataError for any other file."""
    schema = _opened(path).schema_arrow
    text = (schema.metadata or {}).get(KEY)
    if text is None:
        raise DataError(f"{os.fspath(path)} is a Parquet file, but not one of hiera-video features")
    return FeatureSettings.from_json(text.decode("utf-8", "replace"), os.fspath(path))


def read_batches(path: AnyPath) -> Iterator[Batch]:
    """Yield the rows of a table that have a vector, as many at once as were written at once.

    Raises DataError for a file that is none.
    """
    length = read_settings(path).length
    for group in _row_groups(path):
        table = group.filter(group.column("error").is_null())
        if not table.num_rows:
            continue
        numbers = table.column("vector").combine_chunks().flatten()
        flat = numbers.to_numpy(zero_copy_only=False).astype(np.float32)
        yield Batch(
            paths=table.column("path").to_pylist(),
            starts=table.column("start").to_pylist(),
            ends=table.column("end").to_pylist(),
            vectors=flat.reshape(-1, length),
        )


def read_errors(path: AnyPath) -> list[tuple[str, str]]:
    """Return (path, reason) of the videos without vectors.

    Raises DataError for a file that is no table.
    """
    found: list[tuple[str, str]] = []
    for group in _row_groups(path, ["path", "error"]):
        failed = group.filter(group.column("error").is_valid())
        pairs = zip(
            failed.column("path").to_pylist(), failed.column("error").to_pylist(), strict=True
        )
        found += pairs
    return found


def _opened(path: AnyPath) -> Any:
    """An open ParquetFile; DataError says why it cannot be one."""
    arrow, module = parquet()
    path = os.fspath(path)
    if not os.path.exists(path):
        begun = os.path.isdir(f"{path}.parts")
        hint = "; it was begun: the same hiera-video features command goes on" if begun else ""
        raise DataError(f"no such file: {path}{hint}")
    try:
        return module.ParquetFile(path)
    except (arrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read as a Parquet file: {reason}") from None


def _row_groups(path: AnyPath, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """The groups of rows of a table, all columns or some; DataError where one cannot be read."""
    arrow, _ = parquet()
    with _opened(path) as file:
        for number in range(file.num_row_groups):
            try:
                group = file.read_row_group(number, columns=columns)
            except (arrow.ArrowException, OSError) as error:
                reason = str(error).splitlines()[0]
                raise DataError(
                    f"{os.fspath(path)} is damaged ({reason}); delete it and write it again"
                ) from None
            yield group
