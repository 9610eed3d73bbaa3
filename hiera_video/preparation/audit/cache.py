"""What an audit learnt of each file, kept by path, size and modification time (SQLite).

A file that has not changed is not opened again, so that a second audit costs one `stat` per file.
The memory is a convenience: where it cannot be read or written, that is said once and the audit
goes on without.
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
from typing import NamedTuple

from hiera_video.clip_spec import ClipSpec
from hiera_video.preparation.audit.findings import Seen

FORMAT = 1
"""Of the tables; a file of another one is set aside."""

LOOKS_FOR = "1"
"""Of what `audit_file.examine` looks for; results of another one are void."""

_COMMIT_SECONDS = 5.0
_COMMIT_ROWS = 500
_ASK_AT_ONCE = 500

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


class Identity(NamedTuple):
    """Which file, in which state."""

    path: str
    """Absolute."""
    size: int
    mtime: int
    """Nanoseconds."""


def default_memory_file() -> Path:
    """`$XDG_CACHE_HOME/hiera_video/audit.sqlite`, in ~/.cache where that is not set."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "hiera_video" / "audit.sqlite"


class AuditMemory:
    """A context manager. `file` None remembers nothing.

    Args:
        warn: is told, in a sentence, when something is wrong with the memory itself.
        afresh: know nothing, and remember what is learnt in place of what was.
    """

    def __init__(
        self, file: Path | None, warn: Callable[[str], None], *, afresh: bool = False
    ) -> None:
        self.file = file
        self._afresh = afresh
        self._warn = warn
        self._made_by = f"{LOOKS_FOR}/av-{_version_of('av')}"
        self._waiting: list[tuple] = []
        self._committed = time.monotonic()
        self._database = _open(file, warn) if file is not None else None

    def __enter__(self) -> AuditMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.commit()
        if self._database is not None:
            self._database.close()
            self._database = None

    def known(self, files: Sequence[Identity], *, quick: bool) -> dict[str, Seen]:
        """By path, those of `files` that were seen in this very state (at least as closely as
        asked for: what a quick look found is no answer to a full one)."""
        found: dict[str, Seen] = {}
        wanted = {os.fsencode(file.path): file for file in files}
        keys = list(wanted)
        for first in range(0, len(keys), _ASK_AT_ONCE):
            some = keys[first : first + _ASK_AT_ONCE]
            marks = ",".join("?" * len(some))
            rows = self._ask(f"select * from files where path in ({marks})", some)
            for path, size, mtime, was_quick, made_by, *rest in rows:
                file = wanted[path]
                same = size == file.size and mtime == file.mtime and made_by == self._made_by
                if same and quick >= was_quick:
                    found[file.path] = _seen(*rest)
        return found

    def keep(self, file: Identity, what: Seen, *, quick: bool) -> None:
        """Remember a file. Written within seconds, or at the latest by `commit`."""
        self._waiting.append(
            (os.fsencode(file.path), file.size, file.mtime, quick, self._made_by, *_columns(what))
        )
        overdue = time.monotonic() - self._committed > _COMMIT_SECONDS
        if overdue or len(self._waiting) >= _COMMIT_ROWS:
            self.commit()

    def commit(self) -> None:
        """Write what is waiting."""
        rows, self._waiting = self._waiting, []
        self._committed = time.monotonic()
        if rows:
            marks = ",".join("?" * len(rows[0]))
            self._write(f"insert or replace into files values ({marks})", rows)

    # ---- what a clip of it costs ----

    def clip_seconds(self, file: Identity, clip: str) -> float | None:
        """Seconds that reading one clip took; `clip` from `clip_key`."""
        query = "select seconds from clips where path = ? and size = ? and mtime = ? and clip = ?"
        rows = self._ask(query, (os.fsencode(file.path), file.size, file.mtime, clip))
        return rows[0][0] if rows else None

    def keep_clip_seconds(self, file: Identity, clip: str, seconds: float) -> None:
        row = (os.fsencode(file.path), file.size, file.mtime, clip, seconds)
        self._write("insert or replace into clips values (?, ?, ?, ?, ?)", [row])

    # ---- the database ----

    def _ask(self, query: str, values: Sequence) -> list[tuple]:
        if self._database is None or self._afresh:
            return []
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            self._give_up(error)
            return []

    def _write(self, statement: str, rows: Sequence[tuple]) -> None:
        if self._database is None:
            return
        try:
            with self._database:
                self._database.executemany(statement, rows)
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: sqlite3.Error) -> None:
        self._warn(f"what is learnt is not remembered: {self.file}: {error}")
        with contextlib.suppress(sqlite3.Error):
            self._database.close()
        self._database = None


def clip_key(spec: ClipSpec, decoder: str) -> str:
    """What decides how long a clip takes to read, as text."""
    return json.dumps([decoder, *sorted(spec.to_dict().items())])


def _columns(seen: Seen) -> tuple:
    remarks = json.dumps(seen.remarks) if seen.remarks else ""
    reason = seen.reason.encode("utf-8", "surrogateescape")
    facts = (seen.frames, seen.fps, seen.seconds, seen.rotation)
    return (seen.kind, reason, *facts, remarks, seen.sample, seen.pictures)


def _seen(kind, reason, frames, fps, seconds, rotation, remarks, sample, pictures) -> Seen:
    """The inverse of `_columns`; called a million times, so plain."""
    told = tuple(map(tuple, json.loads(remarks))) if remarks else ()
    text = reason.decode("utf-8", "surrogateescape") if reason else ""
    return Seen(kind, text, frames, fps, seconds, rotation, told, sample, pictures)


def _open(file: Path, warn: Callable[[str], None]) -> sqlite3.Connection | None:
    """The database; a file that is none, or of another format, is set aside for a new one."""
    for _ in range(2):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(file, timeout=30.0)
            try:
                (found,) = database.execute("pragma user_version").fetchone()
                if found not in (0, FORMAT):
                    raise sqlite3.DatabaseError(f"is of format {found}, this version has {FORMAT}")
                database.executescript(_TABLES)
                database.execute(f"pragma user_version = {FORMAT}")
                database.execute("pragma synchronous = normal")
                return database
            except BaseException:
                database.close()
                raise
        except sqlite3.OperationalError as error:  # locked, no permission, disk full
            warn(f"what is learnt is not remembered: {file}: {error}")
            return None
        except sqlite3.DatabaseError as error:
            if not _set_aside(file, error, warn):
                return None
        except OSError as error:
            warn(f"what is learnt is not remembered: {file}: {error.strerror or error}")
            return None
    return None


def _set_aside(file: Path, fault: sqlite3.DatabaseError, warn: Callable[[str], None]) -> bool:
    """Rename a file that is no memory, so that a new one can be made; whether that worked."""
    aside = file.with_name(f"{file.name}.unreadable")
    try:
        os.replace(file, aside)
    except OSError as error:
        reason = f"{fault}, and it cannot be set aside as {aside.name}: {error.strerror}"
        warn(f"what is learnt is not remembered: {file} {reason}")
        return False
    warn(f"{file} {fault}; it is set aside as {aside.name}, and all files are looked at")
    return True


def _version_of(package: str) -> str:
    """Without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
