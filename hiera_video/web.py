"""Opening addresses of the web: http and https alone, whatever a server answers."""

from __future__ import annotations

import http.client
import urllib.request
from typing import IO


class UnsafeRedirect(ValueError):
    """A server led from https to something else."""


def web_opener() -> urllib.request.OpenerDirector:
    """urllib's opener for http and https only: no file:, no ftp:, not even after a redirect.

    Its `open` raises UnsafeRedirect besides what urllib's raises.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        Redirects,
    ):
        opener.add_handler(handler())
    return opener


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https down to http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Return the request that follows a redirect; raises UnsafeRedirect."""
        if req.type == "https" and not newurl.lower().startswith("https://"):
            raise UnsafeRedirect(f"the server redirects from https to {newurl}, which is not safe")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
