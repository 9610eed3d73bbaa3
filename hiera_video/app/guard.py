"""What may be asked of the app's server: a short list, in front of all that Gradio would answer.

Gradio serves more than this app needs: it fetches addresses that a request names, records screens,
keeps histories. Only what the page and its client use goes through; of files, only uploads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from pathlib import Path
from typing import Any, NamedTuple

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

API = "/gradio_api/"

READ = {
    *("/", "/config", "/favicon.ico", "/manifest.json", "/robots.txt", "/theme.css"),
    *(f"{API}{name}" for name in ("app_id", "info", "queue/data", "startup-events", "theme.css")),
    f"{API}upload_progress",
}
"""Paths of GET and HEAD."""

READ_BELOW = ("/assets/", "/static/", f"{API}heartbeat/")
"""Beginnings of such paths."""

FILE = f"{API}file="
"""Followed by the path of an upload."""

UPLOAD, JOB = f"{API}upload", f"{API}queue/join"
WRITTEN = {UPLOAD, JOB, f"{API}cancel", f"{API}reset"}
"""Paths of POST."""

MOST_WORDS = 1 << 20
"""Bytes of a POST that is no upload."""

AROUND_A_FILE = 1 << 16
"""Bytes of an upload besides its file."""

MOST_DISCARDED = 1 << 28
"""Bytes of a request that is refused."""

KEPT_UPLOADS = 10
"""Uploads of the largest size that may lie on the disk at the same time."""

_POLICY = "; ".join(
    [
        "default-src 'self'",
        # Gradio's page has scripts in it, and makes functions and modules of texts
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "connect-src 'self' blob: data:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
}
"""In every answer: the browser asks no other host, whatever a page has in it."""


class Refusal(NamedTuple):
    """The answer to what may not be asked."""

    status: int
    text: str


class Guard:
    """An ASGI application in front of another one.

    Args:
        app: answers what is allowed.
        uploads: the folder of the uploads.
        most_bytes: of one upload.
        hosts: the names by which the server may be called; None: by any. Those of this machine
            alone keep pages of others, whose names lead here, from asking.
    """

    def __init__(
        self, app: Application, *, uploads: str, most_bytes: int, hosts: Collection[str] | None
    ) -> None:
        self._app, self._most_bytes, self._hosts = app, most_bytes, hosts
        self._uploads = Path(os.path.realpath(uploads))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let the application do so."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            refusal = self._refusal(scope)
            if refusal is None and scope["path"] == JOB:
                body = await _whole(receive)
                refusal = self._names_other_files(body)
                receive = _once_more(body, receive)
            if refusal is None:
                await self._app(scope, receive, _with_headers(send))
            else:
                await _discard(receive)
                await _answer(refusal, _with_headers(send))

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1")
        if self._hosts is not None and _without_port(host) not in self._hosts:
            return Refusal(403, "this server answers to the name of its own machine only")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and origin.partition("://")[2] != host:
            return Refusal(403, "this server answers its own page only")
        if scope["method"] == "POST" and scope["path"] in WRITTEN:
            return self._too_large(scope["path"], headers.get(b"content-length", b""))
        asks = scope["method"] in ("GET", "HEAD") and b"deep_link" not in scope["query_string"]
        if asks and self._may_be_read(scope["path"]):
            return None
        return Refusal(404, "not found")

    def _may_be_read(self, path: str) -> bool:
        if path.startswith(FILE):
            return self._is_upload(path.removeprefix(FILE))
        return path in READ or (path.startswith(READ_BELOW) and ".." not in path)

    def _is_upload(self, path: str) -> bool:
        return "\0" not in path and self._uploads in Path(os.path.realpath(path)).parents

    def _names_other_files(self, body: bytes) -> Refusal | None:
        """Refuse a job that names a file of this machine, or an address: Gradio would fetch it."""
        try:
            waiting = [json.loads(body)]
        except (ValueError, RecursionError):
            return Refusal(400, "the request is no JSON")
        while waiting:
            one = waiting.pop()
            if isinstance(one, dict):
                path = one.get("path")
                if "path" in one and not (isinstance(path, str) and self._is_upload(path)):
                    return Refusal(403, "that is no uploaded file")
                waiting += one.values()
            elif isinstance(one, list):
                waiting += one
        return None

    def _too_large(self, path: str, length: bytes) -> Refusal | None:
        if not length.isdigit():
            return Refusal(411, "the request does not say how long it is")
        size = int(length)
        if path != UPLOAD:
            return None if size <= MOST_WORDS else Refusal(413, "the request is too long")
        most = f"{self._most_bytes / 1e6:g} MB"
        if size > self._most_bytes + AROUND_A_FILE:
            return Refusal(413, f"the file is larger than the {most} that are allowed (--max-mb)")
        if self._held() + size > KEPT_UPLOADS * self._most_bytes:
            return Refusal(507, "there are too many uploads here at the moment; try again later")
        return None

    def _held(self) -> int:
        """Bytes of the uploads."""
        total = 0
        for folder, _, names in os.walk(self._uploads):
            for name in names:
                try:
                    total += os.lstat(os.path.join(folder, name)).st_size
                except OSError:  # deleted meanwhile
                    continue
        return total


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


async def _discard(receive: Receive) -> None:
    """Take the body of a request that is refused, if it is not endless: only after that do many
    clients read the answer."""
    taken = 0
    while taken < MOST_DISCARDED:
        message = await receive()
        taken += len(message.get("body", b""))
        if not message.get("more_body"):
            return


async def _whole(receive: Receive) -> bytes:
    """Read the body of a request, whose length was checked."""
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _once_more(body: bytes, receive: Receive) -> Receive:
    """Hand out a body that was read, then what comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return waiting.pop() if waiting else await receive()

    return received


def _with_headers(send: Send) -> Send:
    """Add HEADERS to an answer, in place of those of the same names."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            taken = {name for name, _ in ours}
            others = [pair for pair in message.get("headers", []) if pair[0].lower() not in taken]
            message = {**message, "headers": [*others, *ours]}
        await send(message)

    return sent


async def _answer(refusal: Refusal, send: Send) -> None:
    body = refusal.text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
