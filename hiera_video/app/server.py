"""Start the app's server, serve, and leave nothing behind."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hiera_video.errors import RunFailed, UserError

if TYPE_CHECKING:
    import uvicorn

LOOPBACK = "127.0.0.1"

STARTS_WITHIN = 60.0
"""Seconds."""


@dataclass(frozen=True)
class Place:
    """Where the server listens, and what it takes."""

    host: str = LOOPBACK
    port: int = 0
    """0: any that is free."""
    most_bytes: int = 200_000_000
    """Of one upload."""
    queue: int = 8
    """Jobs that may wait."""

    @property
    def closed(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Return whether a name or number of a machine is that of this one alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_gradio() -> None:
    """Raise UserError where Gradio is not installed."""
    if find_spec("gradio") is None:
        raise UserError("the app needs Gradio: pip install 'hiera_video[app]'")


@contextlib.contextmanager
def own_folder() -> Iterator[str]:
    """Yield a folder for uploads, whole or begun; it is deleted at the end.

    What the environment says of Gradio is put aside, before Gradio is
    imported: it could open paths and share the app.
    """
    before = dict(os.environ)
    for name in before:
        if name.startswith("GRADIO_"):
            del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="hiera_video_app_", ignore_cleanup_errors=True) as top:
        uploads = Path(top, "uploads")
        uploads.mkdir()
        os.environ.update(
            GRADIO_TEMP_DIR=str(uploads),
            GRADIO_EXAMPLES_CACHE=str(Path(top, "examples")),
            GRADIO_ANALYTICS_ENABLED="False",
            HF_HUB_DISABLE_TELEMETRY="1",
        )
        try:
            yield str(uploads)
        finally:
            os.environ.clear()
            os.environ.update(before)


def listening(place: Place) -> socket.socket:
    """Return a socket that listens; UserError where it cannot."""
    try:
        (family, kind, number, _, address), *_ = socket.getaddrinfo(
            place.host, place.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise UserError(f"--host {place.host}: {error.strerror}") from None
    bound = socket.socket(family, kind, number)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise UserError(
            f"cannot listen on port {place.port} of {place.host}: {error.strerror}; end the "
            "program that has it, or name another port with --port (0: any that is free)"
        ) from None
    return bound


def address_of(bound: socket.socket, place: Place) -> str:
    """Return what to open in a browser on this machine."""
    host = place.host
    with contextlib.suppress(ValueError):
        number = ipaddress.ip_address(host)
        host = f"[{host}]" if number.version == 6 else host
        host = LOOPBACK if number.is_unspecified else host
    return f"http://{host}:{bound.getsockname()[1]}/"


def server_of(blocks: Any, place: Place, uploads: str) -> uvicorn.Server:
    """Return the server of a page, not yet started."""
    import fastapi
    import gradio as gr
    import uvicorn

    from hiera_video.app.guard import Guard
    from hiera_video.app.results import script, style

    app = gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="/",
        server_name=place.host,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,  # of bugs; they are printed here
        max_file_size=place.most_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=_theme(),
        css=style(),
        head=f"<script>{script()}</script>",
    )
    hosts = (place.host, LOOPBACK, "localhost", "[::1]") if place.closed else None
    guard = Guard(app, uploads=uploads, most_bytes=place.most_bytes, hosts=hosts)
    return uvicorn.Server(
        uvicorn.Config(
            guard,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_graceful_shutdown=1,  # open pages hold their connections
        )
    )


def _theme() -> Any:
    """Fonts of the machine: Gradio's usual ones come from another host. Words on the button that
    can be read."""
    import gradio as gr

    theme = gr.themes.Base(
        font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
    )
    return theme.set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )


@contextlib.contextmanager
def served_beside(server: uvicorn.Server, bound: socket.socket) -> Iterator[None]:
    """Serve from a thread, as long as the block lasts. Raises RunFailed if it does not start."""
    thread = threading.Thread(target=server.run, args=([bound],), name="serves", daemon=True)
    thread.start()
    waited = threading.Event()
    try:
        for _ in range(int(STARTS_WITHIN * 20)):
            if server.started or not thread.is_alive():
                break
            waited.wait(0.05)
        if not server.started:
            raise RunFailed("the server of the app does not start")
        yield
    finally:
        server.should_exit = True
        thread.join(STARTS_WITHIN)


@contextlib.contextmanager
def sigterm_ends() -> Iterator[None]:
    """Let SIGTERM end the process as Ctrl-C does, so that what is temporary is deleted."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
