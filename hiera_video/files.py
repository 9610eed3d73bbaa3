"""Atomic writes: a file under its final name is complete, whatever stops the writer.

    with atomic_write("runs/x/results.json", text=True) as file:
        file.write(text)

The bytes go to a temporary file with a hidden name in the same folder. When all of them are on the
disk, it is renamed in one step. A reader therefore finds the old file or the new one, never a part,
also after a kill or a power cut at any moment. An error leaves the old file and no temporary one.
The temporary file of a killed writer is deleted by the next writer.

Errors of writing are RunFailed and name the file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from hiera_video.errors import RunFailed

AnyPath = str | os.PathLike[str]
T = TypeVar("T")

# ---- writing ------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_write(path: AnyPath, *, text: bool = False, errors: str = "strict") -> Iterator[IO[Any]]:
    """Yield a file to write to, binary or UTF-8, which replaces `path` when the block ends.

    If `path` is a symbolic link, its target is replaced. A device or a pipe (/dev/stdout) is
    written to directly. An existing file keeps its mode and owner.

    Args:
        text: yield a text file; line ends are written as they are given.
        errors: what to do with text that is not valid UTF-8, as in `open`.

    Raises RunFailed, which names `path`, if the file cannot be written.
    """
    with explained(path):
        special = _is_special(path)
        place = os.path.realpath(path)
        raw = _Raw(path, "w") if special else _temporary_file(place)
    file: Any = io.BufferedWriter(raw)  # goes on when the system took only a part of the bytes
    if text:
        file = io.TextIOWrapper(file, encoding="utf-8", errors=errors, newline="")
    try:
        yield file
        with explained(path):
            if raw.error is not None:  # a write failed and the block went on: bytes are missing
                raise raw.error
            file.flush()
            if not special:
                _rename(raw, place)
    except Exception as error:
        if raw.error is None or isinstance(error, (RunFailed, BrokenPipeError)):
            raise
        raise _cannot_write(path, raw.error) from error
    finally:
        raw.close()
        if not special:
            with contextlib.suppress(OSError):
                os.unlink(raw.name)  # renamed already unless there was an error


def write_text(path: AnyPath, text: str, *, errors: str = "strict") -> None:
    """Write a text file in one call of `atomic_write`."""
    with atomic_write(path, text=True, errors=errors) as file:
        file.write(text)


def put_in_place(finished: AnyPath, path: AnyPath) -> None:
    """Rename a file or folder that another library has written on the same disk.

    An existing file at `path` is replaced; an existing folder is an error.
    Raises RunFailed, which names `path`.
    """
    with explained(path):
        _sync(finished)
        os.replace(finished, path)
        sync_folder(os.path.dirname(path))


def unfinished_name(path: AnyPath) -> str:
    """Return a hidden name beside `path` for what `put_in_place` puts there once it is finished.

    What earlier writers of `path` left, because they were killed, is deleted.
    """
    place = os.path.realpath(path)
    remove_leftovers(os.path.dirname(place), os.path.basename(place))
    return _hidden_name(place)


def link_or_copy(source: AnyPath, path: AnyPath) -> None:
    """Make `path` a hard link to `source`, or a copy if the file system has no hard links."""
    place = os.path.realpath(path)
    unfinished = unfinished_name(place)
    try:
        os.link(source, unfinished)
    except OSError:
        with atomic_write(place) as copy, open(source, "rb") as file:
            shutil.copyfileobj(file, copy, 1 << 20)
        return
    try:
        put_in_place(unfinished, place)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)  # still there after an error, or if both were one file before


@contextlib.contextmanager
def explained(path: AnyPath) -> Iterator[None]:
    """Turn an OSError of the block into RunFailed, which names `path`.

    BrokenPipeError stays what it is: the program that reads our output has ended.
    """
    try:
        yield
    except BrokenPipeError as error:
        raise BrokenPipeError(error.errno, error.strerror, os.fspath(path)) from error
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: AnyPath, error: OSError) -> RunFailed:
    path = os.fspath(path)
    reason = error.strerror or str(error)
    folder = os.path.dirname(os.path.realpath(path))
    if isinstance(error, FileNotFoundError) and not os.path.isdir(folder):
        reason = f"there is no folder {folder}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with contextlib.suppress(OSError):
            if not _is_special(path):
                reason += f", {free_bytes(folder) / 2**20:,.0f} MiB are free there"
        reason += "; free some space, or write to another disk"
    return RunFailed(f"cannot write {path}: {reason}")


def _is_special(path: AnyPath) -> bool:
    """Whether a path is a device or a pipe, and not a file or a folder."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


# ---- the steps of a write -----------------------------------------------------------------------


class _Raw(io.FileIO):
    """A file that keeps the first error of a write; `torch.save` only says that one failed."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = self.error or error
            raise


def _temporary_file(place: str) -> _Raw:
    """Create an empty, locked file beside `place`, with the mode of an existing `place`."""
    if os.path.isdir(place):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    before = os.stat(place) if os.path.exists(place) else None
    if before is not None and not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, "it is write-protected")
    remove_leftovers(os.path.dirname(place), os.path.basename(place))
    while True:
        raw = _Raw(_hidden_name(place), "x")
        # Before it was locked, another writer may have deleted it as a leftover.
        if _lock(raw) is not False and os.path.exists(raw.name):
            break
        raw.close()
    if before is not None and hasattr(os, "fchmod"):
        # The owner first: changing it clears bits of the mode.
        with contextlib.suppress(OSError):
            os.fchown(raw.fileno(), before.st_uid, before.st_gid)
        with contextlib.suppress(OSError):
            os.fchmod(raw.fileno(), stat.S_IMODE(before.st_mode))
    return raw


def _rename(raw: _Raw, place: str) -> None:
    """Check that all bytes are on the disk, and give the file its final name."""
    arrived, written = os.fstat(raw.fileno()).st_size, raw.tell()
    if arrived < written:
        raise OSError(errno.EIO, f"only {arrived:,} of {written:,} bytes arrived there")
    os.fsync(raw.fileno())
    if os.name == "nt":  # Windows cannot rename an open file
        raw.close()
    os.replace(raw.name, place)
    sync_folder(os.path.dirname(place))


def _sync(path: AnyPath) -> None:
    """Flush a file, or everything below a folder, to the disk."""
    if os.path.isdir(path):
        with os.scandir(os.fspath(path)) as entries:
            for entry in entries:
                _sync(entry.path)
        sync_folder(path)
    else:
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def sync_folder(folder: AnyPath) -> None:
    """Flush a folder's entries to the disk; until then a power cut could undo a rename."""
    if os.name == "nt":
        return
    try:
        handle = os.open(folder or ".", os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        # Some file systems refuse this for folders, and some folders are writable but not readable.
        if error.errno not in (errno.EINVAL, errno.EACCES, errno.ENOTSUP, errno.ENOSYS):
            raise


# ---- leftovers ----------------------------------------------------------------------------------

_LEFTOVER = re.compile(r"\.(.+?)(?:\.[0-9a-f]{8})?\.tmp", re.DOTALL)
"""Names of temporary files; those of older versions have no number in them."""
_STALE_SECONDS = 3600


def _hidden_name(place: str) -> str:
    folder, name = os.path.split(place)
    return os.path.join(folder, f".{_stem(name)}.{os.urandom(4).hex()}.tmp")


def _stem(name: str) -> str:
    """The first 200 bytes of a file's name: a file system allows 255, and more is added to it."""
    return os.fsdecode(os.fsencode(name)[:200])


def remove_leftovers(folder: AnyPath, name: str | None = None) -> None:
    """Delete temporary files whose writers were killed; only those of the file `name` if given."""
    try:
        with os.scandir(os.fspath(folder) or ".") as entries:
            leftovers = [(entry, m) for entry in entries if (m := _LEFTOVER.fullmatch(entry.name))]
    except OSError:  # no such folder, or not readable: whoever writes there will report it
        return
    for entry, match in leftovers:
        if name is None or match[1] == _stem(name):
            with contextlib.suppress(OSError):
                if entry.is_file(follow_symlinks=False) and _writer_is_gone(entry.path):
                    os.unlink(entry.path)


def _writer_is_gone(path: str) -> bool:
    """Whether no living process, on any machine, holds the lock of a temporary file."""
    with open(path, "rb+") as file:
        free = _lock(file)
        if free is None:
            return time.time() - os.fstat(file.fileno()).st_mtime > _STALE_SECONDS
        return free


# ---- locks and space ----------------------------------------------------------------------------


def _lock(file: IO[Any]) -> bool | None:
    """Lock an open file until it is closed.

    Returns True, False if another process holds the lock, or None if there are no locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # some network file systems have no locks
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def hold(path: AnyPath, *, wait: float = 0.0) -> IO[Any] | None:
    """Open the lock file `path` and lock it until it is closed; the file is created if needed.

    Returns None if another process holds it for more than `wait` seconds. Without locks (Windows,
    some network file systems) every process gets it.
    """
    file = open(path, "ab")  # noqa: SIM115 (closed by the caller)
    end = time.monotonic() + wait
    try:
        while _lock(file) is False:
            if time.monotonic() >= end:
                file.close()
                return None
            time.sleep(0.05)
    except BaseException:  # interrupted
        file.close()
        raise
    return file


def cache_file(name: str) -> Path:
    """Return the path of the cache file `name`: in the folder `hiera_video` of `$XDG_CACHE_HOME`,
    or of ~/.cache if that is not set."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "hiera_video" / name


def read_measured(path: Path, kind: type[T]) -> dict[str, T]:
    """Read what was measured before on this machine: the entries of a JSON file that are of `kind`.

    Nothing where the file is missing, damaged or unreadable.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: value for key, value in content.items() if isinstance(value, kind)}


def add_measured(path: Path, key: str, value: T) -> None:
    """Add an entry to such a file. Raises RunFailed if it cannot be written."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    content = {**read_measured(path, type(value)), key: value}
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def sha256_of(path: AnyPath) -> str:
    """Hash a file, 64 hexadecimal digits; of a folder, the names and hashes of its files."""
    digest = hashlib.sha256()
    if os.path.isdir(path):
        for name in sorted(os.listdir(path)):
            digest.update(f"{name}\0{sha256_of(os.path.join(path, name))}\0".encode())
        return digest.hexdigest()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def free_bytes(folder: AnyPath) -> int:
    """Free bytes on the disk of `folder`, which need not exist yet."""
    folder = os.path.abspath(folder)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return shutil.disk_usage(folder).free
