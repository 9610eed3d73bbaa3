"""Servers that videos are read from in tests: the web, with faults, and S3.

with WebServer({"a.mp4": data}) as web:
    probe(web.address("cut", "a.mp4"))      # the first answer is cut off in the middle
    assert web.requests == [("HEAD", ...), ("GET", ...)]
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hiera_video.storage import remote, retries, stored
from hiera_video.video.known import known_videos

WAYS = """
ok        ranges, an etag
plain     ranges, neither etag nor date
whole     ranges are ignored, and the server says so
silent    ranges are ignored, and the server does not say so
twice     the first two requests for content end with 500
broken    every request ends with 503
busy      the first request for content ends with 429
denied    every request ends with 403
gone      every request ends with 404
cut       the first answer with content is cut off in the middle
cutting   every answer with content is
short     answers are shorter than was asked for, and say so
stalls    answers with content stop in the middle, and the connection stays open
changing  another etag after the first answer with content; If-Match is held to
moved     a redirect to `ok`
slow      every answer with content takes a quarter of a second
"""


class WebServer:
    """Serves files by name, in one of WAYS: the first part of the address's path."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.requests: list[tuple[str, str, str]] = []
        """(method, path, Range header or "") of each."""
        self.sent = 0
        """Bytes of content."""
        self.answers: Counter[str] = Counter()
        """GET requests of each path."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                server._answer(self, content=False)

            def do_GET(self) -> None:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    server._answer(self, content=True)

        class Server(ThreadingHTTPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.over = threading.Event()
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )

    def __enter__(self) -> WebServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()

    def address(self, way: str, name: str) -> str:
        assert re.search(rf"^{way} ", WAYS, re.MULTILINE), way
        return f"http://127.0.0.1:{self._server.server_port}/{way}/{name}"

    def _answer(self, handler: BaseHTTPRequestHandler, *, content: bool) -> None:
        path = handler.path.partition("?")[0]
        _, way, name = path.split("/", 2)
        asked = handler.headers.get("Range", "")
        self.requests.append((handler.command, handler.path, asked))
        self.answers[path] += content
        count = self.answers[path]
        data = self.files.get(name)
        etag = f'"{name}-{way == "changing" and content and count > 1}"'
        code = 404 if data is None else self._fault(way, count, content)
        if way == "changing" and content and handler.headers.get("If-Match", etag) != etag:
            code = 412
        if code is not None:
            handler.send_response(code)
            if code == 302:
                handler.send_header("Location", f"/ok/{name}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
        part, partly = data, match is not None and way not in ("whole", "silent")
        if partly:
            first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
            part = data[first : last + 1]
        if way == "short" and content:
            part = part[: len(part) // 2]
        handler.send_response(206 if partly else 200)
        handler.send_header("Content-Length", str(len(part)))
        if partly:
            handler.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        if way != "plain":
            handler.send_header("ETag", etag)
        if way == "whole":
            handler.send_header("Accept-Ranges", "none")
        handler.end_headers()
        if content:
            self._send(handler, part, way, count)

    @staticmethod
    def _fault(way: str, count: int, content: bool) -> int | None:
        """The status of an answer that is an error or a redirect; None of a good one."""
        if content and way == "twice" and count <= 2:
            return 500
        if content and way == "busy" and count == 1:
            return 429
        return {"broken": 503, "denied": 403, "gone": 404, "moved": 302}.get(way)

    def _send(self, handler: BaseHTTPRequestHandler, part: bytes, way: str, count: int) -> None:
        if way == "slow":
            time.sleep(0.25)
        cuts = way in ("cutting", "stalls") or (way == "cut" and count == 1)
        if cuts:
            part = part[: len(part) // 2]
        handler.wfile.write(part)
        self.sent += len(part)
        if way == "stalls":
            self.over.wait(20)
        if cuts:
            handler.close_connection = True
            with contextlib.suppress(OSError):
                handler.connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def s3_server():
    """Run moto's S3 server in a process of its own; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', sys.argv[1]])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "MOTO_S3_ALLOW_CROSSACCOUNT_ACCESS": "true"},
    )
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{address}/moto-api/", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, "moto's server has ended"
                assert time.monotonic() < end, "moto's server does not start"
                time.sleep(0.1)
        yield address
    finally:
        process.kill()
        process.wait()


def s3_variables(address: str) -> dict[str, str]:
    """Environment variables with which fsspec reads from this server."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    """Nothing is known of any storage, and retries come at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(stored, "_known_shards", stored._KnownShards())
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.01)
    known_videos.clear()


@pytest.fixture(scope="module")
def s3():
    """An empty bucket of a server of S3, as fsspec's file system: s3://bucket/."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    with s3_server() as address, pytest.MonkeyPatch.context() as patch:
        for name, value in s3_variables(address).items():
            patch.setenv(name, value)
        remote._filesystem.cache_clear()
        store = remote.filesystem("s3://bucket/")
        store.mkdir("bucket")
        yield store
    remote._filesystem.cache_clear()
