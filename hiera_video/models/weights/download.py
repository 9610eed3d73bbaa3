"""Fetching a weights file once, into a cache, through iopath's path manager.

The cache is the folder `hiera_video` of `TORCH_HOME`, or of `$XDG_CACHE_HOME/torch`, or of
`~/.cache/torch`. A file that lies there already is used as it is and nothing is asked of the
network, so a machine without one works once the file has been copied to it.

A file appears in the cache whole and readable or not at all: it grows under another name, is read
as weights are read, and only then takes its place. Processes that want the same file at once fetch
it once. Without a network the answer comes within `ANSWER_SECONDS`, whatever the resolver or a
silent server does.
"""

from __future__ import annotations

import hashlib
import http
import http.client
import os
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from iopath.common.file_io import HTTPURLHandler, PathManager

from hiera_video.errors import RunFailed, WeightsError
from hiera_video.files import atomic_write, free_bytes, hold
from hiera_video.models.weights.file import not_a_checkpoint, unreadable
from hiera_video.models.weights.published import PUBLISHED

ANSWER_SECONDS = 8.0
"""Longest wait for a server's first bytes: name look-up, connection and redirects together. With a
slow start of Python before it, a command without network still ends within 15 seconds."""
STALL_SECONDS = 30.0
"""Longest silence in the middle of a download."""
TURN_SECONDS = 3600.0
"""Longest wait for another process that fetches the same file."""
CHUNK = 1 << 20


def cache_folder() -> Path:
    """Where fetched weights lie: `<TORCH_HOME>/hiera_video`, PyTorch's own rule for TORCH_HOME."""
    home = os.environ.get("TORCH_HOME")
    if not home:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    return Path(home).expanduser() / "hiera_video"


def cached_path(url: str) -> Path:
    """Where the file of an address lies once fetched.

    Published weights keep their published file name, or the one that the table gives them. Any
    other address gets a few digits of its hash besides: "checkpoint.pth" of two servers are two
    files.
    """
    published = {row.url: row.file_name for row in PUBLISHED.values()}
    if url in published:
        return cache_folder() / published[url]
    name = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rsplit("/", 1)[-1]
    name = "".join(c if c.isalnum() or c in "._-+" else "_" for c in name)[-100:] or "weights"
    stem, dot, ending = name.rpartition(".")
    digits = hashlib.sha256(url.encode()).hexdigest()[:8]
    name = f"{stem or name}-{digits}{dot}{ending if stem else ''}"
    return cache_folder() / name


def fetch(url: str) -> str:
    """The local path of the file at an http(s) address, fetched if it is not in the cache yet.

    Raises:
        WeightsError: no network, no such file, a web page in its place, an interrupted transfer, a
            cache that cannot be written. The message names the address, where to put the file by
            hand, and what else can be done.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        raise WeightsError(
            f"cannot fetch {url!r}: only https:// and http:// addresses are fetched; "
            "for a file on this machine give its path alone"
        )
    url = f"{scheme.lower()}://{rest}"
    try:
        host = urllib.parse.urlsplit(url).hostname
    except ValueError:  # half an IPv6 address
        host = None
    if not host:
        raise WeightsError(f"cannot fetch {url!r}: it names no host; write https://host/path")
    return _PATHS.get_local_path(url)


class _WeightsHandler(HTTPURLHandler):
    """iopath's handler of web addresses with our cache, deadlines and checks in it."""

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        self._check_kwargs(kwargs)
        target = cached_path(path)
        if force or not target.is_file():
            _download(path, target, force=force)
        return str(target)


_PATHS = PathManager()
_PATHS.register_handler(_WeightsHandler())


def _download(url: str, target: Path, *, force: bool) -> None:
    # connect before taking the lock: eight processes offline give up together, not in turn
    with _failures_explained(url, target), _Transfer(url) as transfer:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = target.with_name(f"{target.name}.lock")
        turn = hold(lock, wait=TURN_SECONDS)
        if turn is None:
            raise _Refused(f"another process has held {lock} for an hour; end it, then try again")
        with turn:
            if target.is_file() and not force:  # another process was faster
                return
            with atomic_write(target) as file:
                transfer.save(file)
                file.flush()
                fault = unreadable(file.name)
                if fault:
                    raise _Refused(f"what the server sent cannot be used: {fault}")


class _Refused(Exception):
    """The server answered, with something that is not the file."""


@contextmanager
def _failures_explained(url: str, target: Path) -> Iterator[None]:
    """Turn what a network or a disk can do into one WeightsError with the ways out."""
    try:
        yield
    except WeightsError:
        raise
    except (OSError, ValueError, http.client.HTTPException, RunFailed, _Refused) as error:
        raise WeightsError(
            f"cannot fetch {url}: {_why(error)}\n"
            f"  put the file here, then run the same again:  {target}\n"
            "  or name a file that you have in its place:   --weights FILE in demo/predict.py, "
            "TRAIN.CHECKPOINT_FILE_PATH FILE in training\n"
            "  or set TORCH_HOME to a folder that has it:   $TORCH_HOME/hiera_video/"
            f"{target.name}"
        ) from None


def _why(error: BaseException) -> str:
    """Few words for a failure; urllib wraps the interesting error in one of its own."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        return _why(error.reason)
    if isinstance(error, TimeoutError):
        return str(error) if error.errno is None and str(error) else "the connection timed out"
    if isinstance(error, OSError) and error.strerror:
        place = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{place}"
    return str(error) or type(error).__name__


# ---- one transfer -------------------------------------------------------------------------------


class _Transfer:
    """An open answer of a server: its first bytes are here and look like weights."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.response, self.start = _before_deadline(lambda: _open(url), ANSWER_SECONDS)
        length = self.response.headers.get("Content-Length", "")
        self.size = int(length) if length.isdigit() else None
        try:
            self._check_start()
        except _Refused:
            self.response.close()
            raise

    def __enter__(self) -> _Transfer:
        return self

    def __exit__(self, *_: object) -> None:
        self.response.close()

    def _check_start(self) -> None:
        if self.response.status != http.HTTPStatus.OK:  # a part of it, or nothing
            raise _Refused(f"the server answered {self.response.status} {self.response.reason}")
        if "html" in self.response.headers.get("Content-Type", "").lower():
            raise _Refused("the server answered with a web page (a login or a proxy in between?)")
        size = len(self.start) if self.size is None else self.size
        problem = not_a_checkpoint(self.start, size if self.start else 0)
        if problem:
            raise _Refused(f"what the server sent is no weights file: {problem}")

    def save(self, file: IO[bytes]) -> None:
        """Write the whole body; OSError or _Refused where it stops short."""
        free = free_bytes(cache_folder())
        if self.size is not None and self.size > free:
            raise _Refused(
                f"it has {self.size / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free for it"
            )
        with _progress(self.url, self.size) as advance:
            received = 0
            chunk = self.start
            while chunk:
                file.write(chunk)
                received += len(chunk)
                advance(len(chunk))
                chunk = self._read_more(received)
            if self.size is not None and received != self.size:
                raise _Refused(f"the connection broke after {received:,} of {self.size:,} bytes")

    def _read_more(self, received: int) -> bytes:
        try:
            return self.response.read1(CHUNK)
        except TimeoutError:
            raise _Refused(
                f"nothing came for {STALL_SECONDS:.0f} seconds after {received:,} bytes"
            ) from None


def _open(url: str) -> tuple[http.client.HTTPResponse, bytes]:
    """Ask for an address and wait for the first bytes of the answer's body."""
    request = urllib.request.Request(url, headers={"User-Agent": "hiera_video"})
    response = _opener().open(request, timeout=STALL_SECONDS)
    try:
        return response, response.read(512)
    except BaseException:
        response.close()
        raise


def _opener() -> urllib.request.OpenerDirector:
    """urllib for http and https alone: no file:, no ftp:, not even by way of a redirect."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _Redirects,
    ):
        opener.add_handler(handler())
    return opener


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but never from https down to http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if req.type == "https" and not newurl.lower().startswith("https://"):
            raise _Refused(f"the server redirects from https to {newurl}, which is not safe")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _before_deadline(work: Callable[[], Any], seconds: float) -> Any:
    """`work()` in a thread of its own, given up after `seconds`.

    Timeouts of sockets do not bound the look-up of a name, hence the thread; what comes too late
    is closed by it.
    """
    outcome: list[tuple[Any, BaseException | None]] = []
    lock, given_up, done = threading.Lock(), threading.Event(), threading.Event()

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as caught:  # carried over to the thread that waits
            error = caught
        with lock:
            if given_up.is_set() and result is not None:
                result[0].close()
            outcome.append((result, error))
        done.set()

    threading.Thread(target=run, name="fetch-weights", daemon=True).start()
    done.wait(seconds)
    with lock:
        if not outcome:
            given_up.set()
            raise TimeoutError(f"no answer within {seconds:g} seconds")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


@contextmanager
def _progress(url: str, size: int | None) -> Iterator[Callable[[int], Any]]:
    """A bar on a terminal, one line elsewhere; yields the function that is told of new bytes."""
    from tqdm import tqdm  # type: ignore[import-untyped]  # has no types; needed here alone

    name = cached_path(url).name
    if not sys.stderr.isatty():
        amount = "" if size is None else f" ({size / 1e6:,.0f} MB)"
        print(f"fetching {url}{amount} to {cache_folder()}", file=sys.stderr)
        yield lambda count: None
        return
    with tqdm(desc=name, total=size, unit="B", unit_scale=True, leave=True) as bar:
        yield bar.update
