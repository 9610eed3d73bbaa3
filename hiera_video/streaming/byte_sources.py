"""Where the bytes of a stream come from: a file that grows, a pipe, an address of the web.

FFmpeg is handed bytes and no names, so nothing in a stream can make it open something else. The
web is read with Python's own library: it checks certificates, and follows a redirect to http and
https alone, and never from https to http.

Each source has `read(size)`, which waits for bytes and returns none at the end. `on_bytes` is
called whenever some came. How long to wait is decided by who watches (`child.py`), but for a file:
one that has not grown for a while is complete.
"""

from __future__ import annotations

import base64
import http.client
import os
import select
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

from hiera_video.cli import printable
from hiera_video.errors import DecodeError
from hiera_video.streaming.sources import Source
from hiera_video.web import web_opener

_POLL_SECONDS = 0.1
"""How often a file is asked whether it has grown."""

_HEAD_BYTES = 512

OnBytes = Callable[[], None]


class ByteSource(Protocol):
    """What FFmpeg reads from."""

    head: bytes
    """The first bytes that were read, to say what came where it is no video."""

    def read(self, size: int) -> bytes:
        """Wait for bytes; none at the end."""

    def is_live(self) -> bool:
        """Whether what is read comes as it happens, and is not kept anywhere."""

    def close(self) -> None:
        """Let go of it."""


def open_bytes(
    source: Source, descriptor: int | None, timeout: float, on_bytes: OnBytes
) -> ByteSource:
    """Open a file, a pipe or an address. descriptor: that of standard input.

    Raises DecodeError.
    """
    if source.kind == "file":
        return GrowingFile(source, timeout, on_bytes)
    if source.kind == "http":
        return WebAddress(source, timeout, on_bytes)
    if descriptor is None:
        try:
            descriptor = os.open(source.place, os.O_RDONLY)  # waits for somebody who writes to it
        except OSError as error:
            raise DecodeError(source.name, f"cannot be opened: {error.strerror}") from None
    return Pipe(descriptor, on_bytes)


# ---- a pipe ----


class Pipe:
    """Standard input, or a named pipe. Also a file, where one is standard input."""

    def __init__(self, descriptor: int, on_bytes: OnBytes) -> None:
        self._descriptor, self._on_bytes = descriptor, on_bytes
        self.head = b""

    def read(self, size: int) -> bytes:
        """Wait for bytes; none at the end."""
        select.select([self._descriptor], [], [])
        data = os.read(self._descriptor, size)
        self._on_bytes()
        self.head = self.head or data[:_HEAD_BYTES]
        return data

    def is_live(self) -> bool:
        """Whether what is read is kept nowhere."""
        return True

    def close(self) -> None:
        """Close the pipe, which its writer notices."""
        os.close(self._descriptor)


# ---- the web ----


class WebAddress:
    """What a web server sends at an address."""

    def __init__(self, source: Source, timeout: float, on_bytes: OnBytes) -> None:
        self._source, self._timeout, self._on_bytes = source, timeout, on_bytes
        self.head = b""
        request = _request(source.place)
        try:
            self._response = web_opener().open(request, timeout=timeout)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DecodeError(source.name, self._why(error)) from None

    def read(self, size: int) -> bytes:
        """Wait for bytes; none at the end."""
        try:
            data: bytes = self._response.read1(size)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DecodeError(self._source.name, self._why(error)) from None
        if not data and self._response.length:
            raise DecodeError(self._source.name, "the server closed the connection too early")
        self._on_bytes()
        self.head = self.head or data[:_HEAD_BYTES]
        return data

    def is_live(self) -> bool:
        """Whether what is read is kept nowhere."""
        return True

    def close(self) -> None:
        """Close the connection."""
        self._response.close()

    def _why(self, error: Exception) -> str:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return silence(self._timeout)
        said = printable(str(getattr(reason, "strerror", None) or reason).strip())
        if isinstance(error, urllib.error.HTTPError):
            return f"the server answers {error.code} {said}"
        return f"cannot be read: {said}"


def _request(address: str) -> urllib.request.Request:
    """The request for an address; the name and password in it are sent to its own host alone."""
    parts = urlsplit(address)
    user, at, place = parts.netloc.rpartition("@")
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=place, fragment="")))
    if at:
        words = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {words}")
    return request


# ---- a file that grows ----


class GrowingFile:
    """A file that may still grow; it is complete when it has not grown for `timeout` seconds."""

    def __init__(self, source: Source, timeout: float, on_bytes: OnBytes) -> None:
        self._name, self._timeout, self._on_bytes = source.name, timeout, on_bytes
        self.head = b""
        self._complete = False  # FFmpeg asks several times more
        try:
            self._file = open(source.place, "rb", buffering=0)  # noqa: SIM115 (close() does)
        except OSError as error:
            raise DecodeError(source.name, f"cannot be opened: {error.strerror}") from None
        self._backlog = self._size()
        self._layout = self._read_layout()

    def read(self, size: int) -> bytes:
        """Wait for bytes; none at the end."""
        grew = time.monotonic()
        while True:
            data = self._file.read(size)
            if data:
                self._on_bytes()
                return data
            if self._size() < self._file.tell() and not self.seekable():
                raise DecodeError(self._name, "the file became shorter while it was read")
            waited = time.monotonic() - grew
            self._complete = self._complete or waited > self._timeout or self._is_complete()
            if self._complete:
                return b""
            self._on_bytes()  # waiting here is no fault of anybody's
            time.sleep(_POLL_SECONDS)

    def is_live(self) -> bool:
        """Whether all that the file held when it was opened is read."""
        return self._file.tell() > self._backlog

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    # FFmpeg seeks only where it has to: at the end of a file that grows it would wait.

    def seekable(self) -> bool:
        """Whether the file must be read out of order: an MP4 with its index at the end."""
        return self._layout == "index last"

    def seek(self, position: int, whence: int = 0) -> int:
        """Go to a place in the file."""
        return self._file.seek(position, whence)

    def tell(self) -> int:
        """The place in the file."""
        return self._file.tell()

    # ---- MP4 ----

    def _read_layout(self) -> str:
        """Find out whether the index of an MP4 comes last; waits for the bytes that tell."""
        start = time.monotonic()
        while True:
            self._file.seek(0)
            self.head = self._file.read(_HEAD_BYTES)
            boxes = self._boxes()
            layout = _layout(boxes) if self.head else "unknown"
            waited = time.monotonic() - start
            if layout != "unknown" or waited > self._timeout or self._is_complete():
                break
            self._on_bytes()
            time.sleep(_POLL_SECONDS)
        self._file.seek(0)
        if not self.head:
            raise DecodeError(self._name, f"is empty, and did not grow for {self._timeout:g} s")
        if layout == "unfinished":
            raise DecodeError(
                self._name,
                "an MP4 file that is still being written has its index at the end, and cannot be "
                "read before; write MPEG-TS, Matroska or fragmented MP4 "
                "(-movflags +frag_keyframe+empty_moov)",
            )
        return layout

    def _is_complete(self) -> bool:
        """Whether an MP4 with its index at the end is all there."""
        boxes = self._boxes()
        names = [name for name, _, _ in boxes]
        return (
            b"moov" in names
            and b"mdat" in names
            and boxes[-1][2] == self._size()
            and (b"moof" not in names)
        )

    def _boxes(self) -> list[tuple[bytes, int, int]]:
        """(name, size as written, end) of each box of an MP4; none for other files."""
        if self.head[4:8] not in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"):
            return []
        found: list[tuple[bytes, int, int]] = []
        here, position = self._file.tell(), 0
        while len(found) < 32:  # a fragmented file has thousands
            self._file.seek(position)
            head = self._file.read(16)
            if len(head) < 16:
                break
            size, name = int.from_bytes(head[:4], "big"), head[4:8]
            if size == 1:
                size = int.from_bytes(head[8:], "big")
            position += size
            found.append((name, size, position))
            if size < 8:
                break
        self._file.seek(here)
        return found

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size


def _layout(boxes: list[tuple[bytes, int, int]]) -> str:
    """ "in order", "index last", "unfinished", or "unknown" where the boxes do not tell yet."""
    if not boxes:
        return "in order"
    for name, size, _ in boxes:
        if name in (b"moov", b"moof"):
            return "in order"
        if name == b"mdat":
            return "unfinished" if size == 0 else "index last"
        if size < 8:
            return "in order"  # damaged: FFmpeg says how
    return "unknown"


def silence(seconds: float) -> str:
    """Say that nothing came."""
    return (
        f"nothing came for {seconds:g} s; see whether the sender still runs, and start the same "
        "command again. --stream-timeout SECONDS waits longer"
    )
