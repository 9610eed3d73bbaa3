"""Downloading a weights file once, into a cache, through iopath's path manager.

The cache is the folder `hiera_video` of `TORCH_HOME`, or of `$XDG_CACHE_HOME/torch`, or of
`~/.cache/torch`. A file that is there already is used without a look at the network, so a machine
without network works once the file has been copied to it.

A file appears in the cache whole and readable or not at all: it is written under another name,
checked by reading it, and only then renamed. Processes that need the same file at the same time
download it once. Without a network the error comes within `ANSWER_SECONDS`, whatever the resolver
or a silent server does.
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
from hiera_video.progress import Progress
from hiera_video.web import web_opener

ANSWER_SECONDS = 8.0
"""Longest wait for a server's first bytes: name look-up, connection and redirects together. So a
command without network ends within 15 seconds, with a slow start of Python included."""
STALL_SECONDS = 30.0
"""Longest wait for the next bytes in the middle of a download."""
TURN_SECONDS = 3600.0
"""Longest wait for another process that downloads the same file."""
CHUNK = 1 << 20
"""Bytes read at once."""


def cache_folder() -> Path:
    """The folder of downloaded weights: `<TORCH_HOME>/hiera_video`, found as PyTorch finds it."""
    home = os.environ.get("TORCH_HOME")
    if not home:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    return Path(home).expanduser() / "hiera_video"


def cached_path(url: str) -> Path:
    """The path in the cache of the file at an address, whether it is there or not.

    Published weights keep their published file name, or the one in the table. The names of all
    others get a few digits of the address's hash, since "checkpoint.pth" of two servers are two
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
    """Download the file at an http(s) address if it is not in the cache; returns its local path.

    Raises:
        WeightsError: no network, no such file, a web page instead of it, an interrupted transfer, a
            cache that cannot be written. The message names the address, where to put the file by
            hand, and what else can be done.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        raise WeightsError(
            f"cannot download {url!r}: only https:// and http:// addresses are supported; "
            "for a file on this machine give its path alone"
        )
    url = f"{scheme.lower()}://{rest}"
    try:
        host = urllib.parse.urlsplit(url).hostname
    except ValueError:  # half an IPv6 address
        host = None
    if not host:
        raise WeightsError(f"cannot download {url!r}: it names no host; write https://host/path")
    return _PATHS.get_local_path(url)


_offline = False


@contextmanager
def without_network() -> Iterator[None]:
    """Download nothing inside the block: what is not in the cache is a WeightsError, at once."""
    global _offline
    before, _offline = _offline, True
    try:
        yield
    finally:
        _offline = before


def is_offline() -> bool:
    """Whether nothing may be downloaded, see `without_network`."""
    return _offline


class _WeightsHandler(HTTPURLHandler):
    """iopath's handler of web addresses, with our cache, deadlines and checks."""

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        self._check_kwargs(kwargs)
        target = cached_path(path)
        if force or not target.is_file():
            _download(path, target, force=force)
        return str(target)


_PATHS = PathManager()
_PATHS.register_handler(_WeightsHandler())


def _download(url: str, target: Path, *, force: bool) -> None:
    """Download a file to `target`, unless another process did so meanwhile and not `force`."""
    with _failures_explained(url, target):
        if _offline:
            raise _Refused("it is not in the cache, and no network is to be used (--offline)")
    # connect before taking the lock: so eight processes without network fail together, not in turn
    with _failures_explained(url, target), _Transfer(url) as transfer:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = target.with_name(f"{target.name}.lock")
        turn = hold(lock, wait=TURN_SECONDS)
        if turn is None:
            raise _Refused(f"another process has held {lock} for an hour; end it, then try again")
        with turn:
            if target.is_file() and not force:
                return
            with atomic_write(target) as file:
                transfer.save(file)
                file.flush()
                fault = unreadable(file.name)
                if fault:
                    raise _Refused(f"what the server sent cannot be used: {fault}")


class _Refused(Exception):
    """The download failed for a reason that is no OSError: a wrong answer, a lock, no space."""


@contextmanager
def _failures_explained(url: str, target: Path) -> Iterator[None]:
    """Turn every failure of network and disk into a WeightsError that says what can be done."""
    try:
        yield
    except WeightsError:
        raise
    except (OSError, ValueError, http.client.HTTPException, RunFailed, _Refused) as error:
        raise WeightsError(
            f"cannot download {url}: {_why(error)}\n"
            f"  put the file here, then run the same again:  {target}\n"
            "  or name a file that you have instead:        --weights FILE of hiera-video predict, "
            "TRAIN.CHECKPOINT_FILE_PATH FILE in training\n"
            "  or set TORCH_HOME to a folder that has it:   $TORCH_HOME/hiera_video/"
            f"{target.name}"
        ) from None


def _why(error: BaseException) -> str:
    """A few words on a failure; urllib wraps the error that matters in one of its own."""
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
    """An open response of a server whose first bytes have arrived and look like weights.

    Raises _Refused or an OSError where they do not.
    """

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
        if self.response.status != http.HTTPStatus.OK:  # also 206, a part of the file
            raise _Refused(f"the server answered {self.response.status} {self.response.reason}")
        if "html" in self.response.headers.get("Content-Type", "").lower():
            raise _Refused("the server answered with a web page (a login or a proxy in between?)")
        size = len(self.start) if self.size is None else self.size
        problem = not_a_checkpoint(self.start, size if self.start else 0)
        if problem:
            raise _Refused(f"what the server sent is no weights file: {problem}")

    def save(self, file: IO[bytes]) -> None:
        """Write the whole body to `file`; OSError or _Refused where it ends early."""
        free = free_bytes(cache_folder())
        if self.size is not None and self.size > free:
            raise _Refused(f"it has {self.size / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free")
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
    """Send the request and wait for the first bytes of the response's body."""
    request = urllib.request.Request(url, headers={"User-Agent": "hiera_video"})
    response = web_opener().open(request, timeout=STALL_SECONDS)
    try:
        return response, response.read(512)
    except BaseException:
        response.close()
        raise


def _before_deadline(work: Callable[[], Any], seconds: float) -> Any:
    """Run `work()` in a thread and return its result; TimeoutError after `seconds`.

    A socket's timeout does not limit the look-up of a name, hence the thread. It closes a result
    that comes too late.
    """
    outcome: list[tuple[Any, BaseException | None]] = []
    lock, given_up, done = threading.Lock(), threading.Event(), threading.Event()

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as caught:  # raised again in the thread that waits
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
    """Show a bar on a terminal, one line elsewhere; yields a function that adds received bytes."""
    name = cached_path(url).name
    if not sys.stderr.isatty():
        amount = "" if size is None else f" ({size / 1e6:,.0f} MB)"
        print(f"downloading {url}{amount} to {cache_folder()}", file=sys.stderr)
        yield lambda count: None
        return
    with Progress(f"downloading {name}", size, unit="B") as progress:
        yield progress.add
