"""Files that last: whole or not at all under their names, whatever stops the writer.

    with atomic_write("runs/x/results.json", text=True) as file:
        file.write(text)

The file grows beside its place, under a hidden name of its own. Only when all of its bytes are on
the disk does it take its place, in one step. So a reader finds the old file or the new one, and
never a part, also after a kill or a power cut at any moment. An error leaves the old file and
nothing else; what a killed writer left, the next one deletes.

Errors of writing are RunFailed, and name the file.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from typing import IO, Any

from hiera_video.errors import RunFailed

AnyPath = str | os.PathLike

# ---- writing ------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_write(path: AnyPath, *, text: bool = False, errors: str = "strict") -> Iterator[IO[Any]]:
    """A file to write into, binary or UTF-8, that takes the place of `path` when the block ends.

    Where `path` is a link, the file that it names is replaced. A device or a pipe (/dev/stdout) has
    no place to take: it is written to as the bytes come. The mode of a file that was there is kept.

    Args:
        text: lines as they are given, no line end is translated.
        errors: for text that is not valid UTF-8, as `open` has it.

    Raises RunFailed, which names `path`, where the file cannot be written.
    """
    with explained(path):
        special = _is_special(path)
        place = os.path.realpath(path)
        raw = _Raw(path, "w") if special else _new_file_beside(place)
    file: Any = io.BufferedWriter(raw)  # which writes on where the system took only a part
    if text:
        file = io.TextIOWrapper(file, encoding="utf-8", errors=errors, newline="")
    try:
        yield file
        with explained(path):
            if raw.error is not None:  # the block was told, and went on: a part is missing
                raise raw.error
            file.flush()
            if not special:
                _put_in_place(raw, place)
    except Exception as error:
        if raw.error is None or isinstance(error, (RunFailed, BrokenPipeError)):
            raise
        raise _cannot_write(path, raw.error) from error
    finally:
        raw.close()
        if not special:
            with contextlib.suppress(OSError):
                os.unlink(raw.name)  # gone already if all went well


def write_text(path: AnyPath, text: str, *, errors: str = "strict") -> None:
    """`atomic_write` of a whole text."""
    with atomic_write(path, text=True, errors=errors) as file:
        file.write(text)


def put_in_place(finished: AnyPath, path: AnyPath) -> None:
    """Give what another library wrote on the same disk, a file or a folder, the name `path`.

    A file replaces one that is there; a folder does not.
    """
    with explained(path):
        _sync(finished)
        os.replace(finished, path)
        sync_folder(os.path.dirname(path))


def link_or_copy(source: AnyPath, path: AnyPath) -> None:
    """Make `path` a second name of `source`, or a copy where the file system has no such names."""
    place = os.path.realpath(path)
    unfinished = _hidden_name(place)
    remove_leftovers(os.path.dirname(place), os.path.basename(place))
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
            os.unlink(unfinished)  # still there after an error, or where both were one file before


@contextlib.contextmanager
def explained(path: AnyPath) -> Iterator[None]:
    """Around the writing of `path`: an OSError becomes RunFailed that names it.

    But where the reader of a pipe went away, it stays a BrokenPipeError.
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
        reason += "; free some space, or write to another place"
    return RunFailed(f"cannot write {path}: {reason}")


def _is_special(path: AnyPath) -> bool:
    """A device, a pipe: what bytes go through, and no file or folder."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


# ---- the steps ----------------------------------------------------------------------------------


class _Raw(io.FileIO):
    """A file that keeps the error of a write: `torch.save` tells only that one failed."""

    error: OSError | None = None

    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            self.error = self.error or error
            raise


def _new_file_beside(place: str) -> _Raw:
    """An empty file in the folder of `place`, with the mode of what is there, held by its lock."""
    if os.path.isdir(place):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    before = os.stat(place) if os.path.exists(place) else None
    if before is not None and not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, "it is write-protected")
    remove_leftovers(os.path.dirname(place), os.path.basename(place))
    while True:
        raw = _Raw(_hidden_name(place), "x")
        # Before it was locked, another writer may have taken it for a leftover.
        if _lock(raw) is not False and os.path.exists(raw.name):
            break
        raw.close()
    if before is not None and hasattr(os, "fchmod"):
        # The owner first: a change of it clears bits of the mode.
        with contextlib.suppress(OSError):
            os.fchown(raw.fileno(), before.st_uid, before.st_gid)
        with contextlib.suppress(OSError):
            os.fchmod(raw.fileno(), stat.S_IMODE(before.st_mode))
    return raw


def _put_in_place(raw: _Raw, place: str) -> None:
    arrived, written = os.fstat(raw.fileno()).st_size, raw.tell()
    if arrived < written:
        raise OSError(errno.EIO, f"only {arrived:,} of {written:,} bytes arrived there")
    os.fsync(raw.fileno())
    if os.name == "nt":  # Windows renames no open file
        raw.close()
    os.replace(raw.name, place)
    sync_folder(os.path.dirname(place))


def _sync(path: AnyPath) -> None:
    """Bring a file, or all that is below a folder, to the disk."""
    if os.path.isdir(path):
        with os.scandir(path) as entries:
            for entry in entries:
                _sync(entry.path)
        sync_folder(path)
    else:
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def sync_folder(folder: AnyPath) -> None:
    """Bring a folder's entries to the disk: a power cut could undo a rename until then."""
    if os.name == "nt":
        return
    try:
        handle = os.open(folder or ".", os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        # Some file systems refuse this for folders, and some folders may be written and not read.
        if error.errno not in (errno.EINVAL, errno.EACCES, errno.ENOTSUP, errno.ENOSYS):
            raise


# ---- leftovers ----------------------------------------------------------------------------------

_LEFTOVER = re.compile(r"\.(.+?)(?:\.[0-9a-f]{8})?\.tmp", re.DOTALL)
"""Hidden names of unfinished files; versions before this one had no number in them."""
_STALE_SECONDS = 3600


def _hidden_name(place: str) -> str:
    folder, name = os.path.split(place)
    return os.path.join(folder, f".{_stem(name)}.{secrets.token_hex(4)}.tmp")


def _stem(name: str) -> str:
    """As much of a file's name as leaves room for more: names end at 255 bytes."""
    return os.fsdecode(os.fsencode(name)[:200])


def remove_leftovers(folder: AnyPath, name: str | None = None) -> None:
    """Delete unfinished files (of the file `name` alone) whose writers were killed."""
    try:
        with os.scandir(folder or ".") as entries:
            found = [(entry, m) for entry in entries if (m := _LEFTOVER.fullmatch(entry.name))]
    except OSError:  # a folder that is not there, or may not be read, is no concern of this
        return
    for entry, match in found:
        if name is None or match[1] == _stem(name):
            with contextlib.suppress(OSError):
                if entry.is_file(follow_symlinks=False) and _writer_is_gone(entry.path):
                    os.unlink(entry.path)


def _writer_is_gone(path: str) -> bool:
    """A writer holds the lock of its file while it lives, on whatever machine."""
    with open(path, "rb+") as file:
        free = _lock(file)
        if free is None:
            return time.time() - os.fstat(file.fileno()).st_mtime > _STALE_SECONDS
        return free


# ---- locks and space ----------------------------------------------------------------------------


def _lock(file: IO[Any]) -> bool | None:
    """Lock an open file until it is closed: True; False: another holds it; None: no locks here."""
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
    """The lock file `path`, made if need be and locked until it is closed.

    None where another holds it for more than `wait` seconds. Where there are no locks (Windows,
    some network file systems), nobody is kept out.
    """
    file = open(path, "ab")  # noqa: SIM115 (held by the caller)
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


def free_bytes(folder: AnyPath) -> int:
    """Free space of the disk that `folder` is on, or will be on once it is made."""
    folder = os.path.abspath(folder)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return shutil.disk_usage(folder).free
