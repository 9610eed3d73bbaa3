"""Files at addresses, through fsspec: what is known of them, ranges of their bytes, folders.

Which credentials and which server are used is fsspec's matter: its environment variables and
configuration files, and those of the library for each kind of storage.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from hiera_video.errors import UserError, hide_secrets
from hiera_video.storage.addresses import SCHEMES, refusal
from hiera_video.storage.retries import (
    Changed,
    ShortRead,
    StorageError,
    ask,
    may_pass,
    status_of,
)

CONNECT_LIMIT, SILENCE_LIMIT = 10.0, 15.0
"""Seconds until a connection stands, and without a byte on one that stands: then a request failed.
"""


ANSWER_LIMIT = 60.0
"""Seconds for the whole answer to one request."""


class Status(NamedTuple):
    """What a storage says of a file, without its content."""

    size: int
    token: int
    """A negative number from the storage's etag, or time of change: another one after a change."""
    etag: str
    """"" where the storage gives none."""
    ranges: bool
    """Whether parts of the file may be asked for."""


class Listed(NamedTuple):
    """A file of a folder."""

    address: str
    size: int


# ---- fsspec -------------------------------------------------------------------------------------


def filesystem(address: str) -> Any:
    """fsspec's file system for an address.

    Raises StorageError for an address that is not opened, UserError where its package is missing.
    """
    if reason := refusal(address):
        raise StorageError(address, reason)
    return _filesystem(address.partition("://")[0].lower(), os.getpid())


@functools.lru_cache(maxsize=32)
def _filesystem(scheme: str, process: int) -> Any:
    """process: a forked one needs its own, since fsspec's threads are not in it."""
    require_packages(scheme)
    # Imported here: a run with local files needs none of these libraries.
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(
            total=ANSWER_LIMIT, sock_connect=CONNECT_LIMIT, sock_read=SILENCE_LIMIT
        )
        options["client_kwargs"] = {"timeout": timeout}
    try:
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise UserError(_missing(scheme, str(error))) from None


def require_packages(scheme: str) -> None:
    """Raise UserError, with the command that installs them, where packages are missing."""
    for package in ("fsspec", SCHEMES.get(scheme, "")):
        try:
            if package:
                importlib.import_module(package)
        except ImportError as error:
            raise UserError(_missing(scheme, str(error))) from None


def _missing(scheme: str, error: str) -> str:
    package = SCHEMES.get(scheme, "")
    needed = " and ".join(["fsspec", *([package] if package else [])])
    extra = {"gcsfs": "gcs", "adlfs": "azure"}.get(package, "remote")
    return (
        f"addresses that begin with {scheme}:// need {needed}: pip install 'hiera_video[{extra}]' "
        f"({error})"
    )


# ---- one file -----------------------------------------------------------------------------------


def status_of_file(address: str) -> Status:
    """Size and state of a file. Raises StorageError."""
    fs = filesystem(address)
    info = ask(address, functools.partial(_info, fs, address))
    if info.get("type") == "directory":
        raise StorageError(address, "is a folder, not a video file")
    size = info.get("size")
    if not isinstance(size, int):
        raise StorageError(
            address, "the server does not say how long it is; download the video and name the file"
        )
    etag = str(info.get("ETag") or info.get("etag") or "")
    changes = ("VersionId", "generation", "md5Hash", "LastModified", "Last-Modified", "mtime",
               "updated", "created", "blob_id")  # fmt: skip
    known = [f"{name}={info[name]}" for name in changes if info.get(name)]
    digest = hashlib.blake2b("\n".join([str(size), etag, *known]).encode(), digest_size=7)
    token = -1 - int.from_bytes(digest.digest(), "big")
    return Status(size, token, etag, info.get("partial") is not False)


def _info(fs: Any, address: str) -> dict[str, Any]:
    try:
        info: dict[str, Any] = fs.info(address)
    except FileNotFoundError as error:
        # fsspec says so of a web server whatever its answer was.
        cause = error.__cause__
        if cause is not None and (may_pass(cause) or status_of(cause) not in (None, 404, 410)):
            raise cause from None
        raise
    return info


class Fetcher:
    """Gets ranges of bytes of one file, and counts what that costs.

    Raises StorageError: the file is not there any more, has changed, comes too short.
    """

    def __init__(self, address: str, status: Status) -> None:
        self.address, self.status = address, status
        self.requests = self.bytes = 0
        self.seconds = 0.0
        """Spent waiting for the storage."""
        self._fs = filesystem(address)
        self._lock = threading.Lock()
        self.time_left: Callable[[], float] | None = None
        """How many seconds the caller has for the next request and its retries."""

    def __call__(self, start: int, end: int) -> bytes:
        """The bytes from `start` to before `end`, within the file."""
        if end <= start:
            return b""
        limit = {} if self.time_left is None else {"seconds": max(self.time_left(), 0.0)}
        began = time.monotonic()
        try:
            return ask(self.address, lambda: self._try(start, end), **limit)
        finally:
            with self._lock:
                self.seconds += time.monotonic() - began

    def _try(self, start: int, end: int) -> bytes:
        with self._lock:
            self.requests += 1
        data = self._range(start, end)
        with self._lock:
            self.bytes += len(data)
        if len(data) == self.status.size != end - start:  # a server without ranges
            data = data[start:end]
        if len(data) != end - start:
            raise ShortRead(f"{len(data):,} bytes came instead of {end - start:,}")
        return data

    def _range(self, start: int, end: int) -> bytes:
        scheme = self.address.partition("://")[0].lower()
        if scheme == "s3":
            return self._from_s3(start, end)
        options: dict[str, Any] = {}
        if scheme in ("http", "https"):
            options["headers"] = {"Accept-Encoding": "identity"}
            if self.status.etag and not self.status.etag.startswith("W/"):
                options["headers"]["If-Match"] = self.status.etag
        data: bytes = self._fs.cat_file(self.address, start=start, end=end, **options)
        return data

    def _from_s3(self, start: int, end: int) -> bytes:
        """One request, for the version of the file that was found."""
        from fsspec.asyn import sync

        fs = self._fs
        bucket, key, _ = fs.split_path(self.address)
        wanted = {"Bucket": bucket, "Key": key, "Range": f"bytes={start}-{end - 1}"}
        if self.status.etag:
            wanted["IfMatch"] = self.status.etag

        async def get() -> bytes:
            answer = await fs._call_s3("get_object", **wanted, **fs.req_kw)
            try:
                data: bytes = await answer["Body"].read()
                return data
            finally:
                answer["Body"].close()

        try:
            data: bytes = sync(fs.loop, get, timeout=ANSWER_LIMIT)
        except OSError as error:
            if "pre-condition" in str(error):
                raise Changed("another version of the file") from None
            raise
        return data


# ---- folders ------------------------------------------------------------------------------------


def is_folder(address: str) -> bool:
    """Whether there are files below an address. Raises StorageError."""
    if address.startswith(("http://", "https://")):
        return False  # web servers have no folders
    fs = filesystem(address)
    return bool(ask(address, lambda: fs.isdir(address.rstrip("/"))))


def files_below(address: str) -> list[Listed]:
    """All files below a folder, sorted. Raises StorageError."""
    return _listed(address, "folder", lambda fs: fs.find(address.rstrip("/") + "/", detail=True))


def matching(address: str) -> list[Listed]:
    """The files that a glob names, sorted. Raises StorageError."""
    return _listed(address, "glob", lambda fs: fs.glob(address, detail=True))


def _listed(address: str, what: str, find: Callable[[Any], Any]) -> list[Listed]:
    if address.lower().startswith(("http://", "https://")):
        raise StorageError(
            address, f"web servers do not list files, so a {what} cannot be read; name the files, "
            "one by one or in a list"
        )  # fmt: skip
    fs = filesystem(address)
    found: dict[str, dict[str, Any]] = ask(address, lambda: find(fs))
    scheme = address.partition("://")[0]
    return sorted(
        Listed(f"{scheme}://{name.lstrip('/')}", int(info.get("size") or 0))
        for name, info in found.items()
        if info.get("type") != "directory"
    )


def read_small(address: str, most: int) -> bytes:
    """The whole content of a list. Raises StorageError, also for more than `most` bytes."""
    status = status_of_file(address)
    if status.size > most:
        raise StorageError(
            hide_secrets(address), f"has {status.size:,} bytes; a list has at most {most:,}"
        )
    return Fetcher(address, status)(0, status.size)
