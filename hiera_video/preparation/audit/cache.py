"""The cache of examined files, an SQLite file: results by path, size and modification time.

An unchanged file is not opened again, so that a second audit costs one `stat` per file. If the
cache cannot be read or written, one warning says so and the audit goes on without it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hiera_video import files
from hiera_video.clip_spec import ClipSpec
from hiera_video.preparation.audit.jobs import FileCheck

FORMAT = 1
"""Version of the tables. A file with another version is set aside."""

CHECKS_VERSION = "1"
"""Version of what `examine` checks. Results of another version are not used."""

_COMMIT_SECONDS = 5.0
_COMMIT_ROWS = 500
_QUERY_ROWS = 500

_TABLES = """
create table if not exists files (
    path blob primary key, size integer, mtime integer, quick integer, made_by text,
    kind text, reason blob, frames integer, fps real, seconds real, rotation integer,
    remarks text, sample blob, pictures blob
) without rowid;
create table if not exists clips (
    path blob, size integer, mtime integer, clip text, seconds real, primary key (path, clip)
) without rowid;
"""


class FileState(NamedTuple):
    """A file in one state: the key of the cache."""

    path: str
    """Absolute."""
    size: int
    mtime: int
    """Nanoseconds."""

    @classmethod
    def of(cls, path: str) -> FileState:
        """Return the present state of a file. Raises OSError if it does not exist."""
        path = os.path.abspath(path)
        status = os.stat(path)
        return cls(path, status.st_size, status.st_mtime_ns)


def default_cache_file() -> Path:
    """Return `$XDG_CACHE_HOME/hiera_video/audit.sqlite`, below ~/.cache if that is not set."""
    return files.cache_file("audit.sqlite")


class AuditCache:
    """Results of earlier audits. A context manager.

    Args:
        file: the SQLite file; None caches nothing.
        warn: called with one sentence if the cache itself fails.
        afresh: return no cached result; new results replace the old ones.
    """

    def __init__(
        self, file: Path | None, warn: Callable[[str], None], *, afresh: bool = False
    ) -> None:
        self.file = file
        self._afresh = afresh
        self._warn = warn
        self._made_by = f"{CHECKS_VERSION}/av-{_version_of('av')}"
        self._pending: list[tuple[Any, ...]] = []
        self._committed = time.monotonic()
        self._database = _open(file, warn) if file is not None else None

    def __enter__(self) -> AuditCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.commit()
        if self._database is not None:
            self._database.close()
            self._database = None

    def lookup(self, files: Sequence[FileState], *, quick: bool) -> dict[str, FileCheck]:
        """Return path -> result of the files that are cached in this very state.

        A full audit does not use the results of a quick one; a quick audit uses both.
        """
        results: dict[str, FileCheck] = {}
        wanted = {os.fsencode(file.path): file for file in files}
        keys = list(wanted)
        for first in range(0, len(keys), _QUERY_ROWS):
            batch = keys[first : first + _QUERY_ROWS]
            marks = ",".join("?" * len(batch))
            rows = self._query(f"select * from files where path in ({marks})", batch)
            for path, size, mtime, was_quick, made_by, *columns in rows:
                file = wanted[path]
                same = size == file.size and mtime == file.mtime and made_by == self._made_by
                if same and quick >= was_quick:
                    results[file.path] = _check_of(columns)
        return results

    def store(self, file: FileState, check: FileCheck, *, quick: bool) -> None:
        """Cache one result. It is written within seconds, at the latest by `commit`."""
        key = (os.fsencode(file.path), file.size, file.mtime, quick, self._made_by)
        self._pending.append((*key, *_columns_of(check)))
        overdue = time.monotonic() - self._committed > _COMMIT_SECONDS
        if overdue or len(self._pending) >= _COMMIT_ROWS:
            self.commit()

    def commit(self) -> None:
        """Write the pending results."""
        rows, self._pending = self._pending, []
        self._committed = time.monotonic()
        if rows:
            marks = ",".join("?" * len(rows[0]))
            self._write(f"insert or replace into files values ({marks})", rows)

    # ---- times of clips ----

    def clip_seconds(self, file: FileState, clip: str) -> float | None:
        """Return the seconds that reading one clip took; `clip` is from `clip_key`."""
        query = "select seconds from clips where path = ? and size = ? and mtime = ? and clip = ?"
        rows = self._query(query, (os.fsencode(file.path), file.size, file.mtime, clip))
        return rows[0][0] if rows else None

    def store_clip_seconds(self, file: FileState, clip: str, seconds: float) -> None:
        """Cache the seconds that reading one clip took."""
        row = (os.fsencode(file.path), file.size, file.mtime, clip, seconds)
        self._write("insert or replace into clips values (?, ?, ?, ?, ?)", [row])

    # ---- the database ----

    def _query(self, query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        if self._database is None or self._afresh:
            return []
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            self._give_up(self._database, error)
            return []

    def _write(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if self._database is None:
            return
        try:
            with self._database:
                self._database.executemany(statement, rows)
        except sqlite3.Error as error:
            self._give_up(self._database, error)

    def _give_up(self, database: sqlite3.Connection, error: sqlite3.Error) -> None:
        self._warn(f"results are not cached: {self.file}: {error}")
        with contextlib.suppress(sqlite3.Error):
            database.close()
        self._database = None


def clip_key(spec: ClipSpec, decoder: str) -> str:
    """Return as text what decides how long reading a clip takes."""
    return json.dumps([decoder, *sorted(spec.to_dict().items())])


def _columns_of(check: FileCheck) -> tuple[Any, ...]:
    """Return a result as the columns of the table `files` after its key."""
    remarks = json.dumps(check.remarks) if check.remarks else ""
    reason = check.reason.encode("utf-8", "surrogateescape")
    numbers = (check.frames, check.fps, check.seconds, check.rotation)
    return (check.kind, reason, *numbers, remarks, check.ends_digest, check.frames_digest)


def _check_of(columns: Sequence[Any]) -> FileCheck:
    """Invert `_columns_of`. Called once per cached file, a million times for a large set."""
    kind, reason, frames, fps, seconds, rotation, remarks, ends, pictures = columns
    pairs = tuple(map(tuple, json.loads(remarks))) if remarks else ()
    text = reason.decode("utf-8", "surrogateescape") if reason else ""
    return FileCheck(kind, text, frames, fps, seconds, rotation, pairs, ends, pictures)


def _open(file: Path, warn: Callable[[str], None]) -> sqlite3.Connection | None:
    """Open the database. A file that is not one, or has another version, is set aside."""
    for _ in range(2):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            return _connect(file)
        except sqlite3.OperationalError as error:  # locked, no permission, disk full
            warn(f"results are not cached: {file}: {error}")
            return None
        except sqlite3.DatabaseError as error:
            if not _set_aside(file, error, warn):
                return None
        except OSError as error:
            warn(f"results are not cached: {file}: {error.strerror or error}")
            return None
    return None


def _connect(file: Path) -> sqlite3.Connection:
    """Open the file and create its tables. Raises sqlite3.DatabaseError for another version."""
    database = sqlite3.connect(file, timeout=30.0)
    try:
        (version,) = database.execute("pragma user_version").fetchone()
        if version not in (0, FORMAT):
            raise sqlite3.DatabaseError(f"has format {version}, this version reads {FORMAT}")
        database.executescript(_TABLES)
        database.execute(f"pragma user_version = {FORMAT}")
        database.execute("pragma synchronous = normal")
    except BaseException:
        database.close()
        raise
    return database


def _set_aside(file: Path, fault: sqlite3.DatabaseError, warn: Callable[[str], None]) -> bool:
    """Rename a file that is not a cache, so that a new one can be made. False if that fails."""
    aside = file.with_name(f"{file.name}.unreadable")
    try:
        os.replace(file, aside)
    except OSError as error:
        reason = f"{fault}, and it cannot be renamed to {aside.name}: {error.strerror}"
        warn(f"results are not cached: {file} {reason}")
        return False
    warn(f"{file} {fault}; it is renamed to {aside.name}, and all files are examined")
    return True


def _version_of(package: str) -> str:
    """Return the version of an installed package without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
