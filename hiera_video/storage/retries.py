"""Ask a remote storage again where that may help, and say what went wrong where it does not."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from hiera_video.errors import first_line, hide_secrets

TRIES = 5
"""How often a request is made."""

FIRST_WAIT, LONGEST_WAIT = 0.2, 5.0
"""Seconds before the second try, and most before any: doubled each time, times 0.5 to 1.5."""

TIME_LIMIT = 45.0
"""Seconds from the first try to the start of the last."""

T = TypeVar("T")


class StorageError(Exception):
    """A file that a remote storage did not give; `str(error)` is "address: reason"."""

    def __init__(self, address: str, reason: str) -> None:
        self.address = hide_secrets(address)
        self.reason = hide_secrets(reason)
        super().__init__(self.address, self.reason)

    def __str__(self) -> str:
        return f"{self.address}: {self.reason}"


class ShortRead(OSError):
    """Fewer or more bytes than were asked for."""


class Changed(OSError):
    """The file is another one than when it was opened."""


def ask(address: str, request: Callable[[], T], *, seconds: float = TIME_LIMIT) -> T:
    """`request()`, again where it fails in a way that may pass; StorageError where it does not.

    seconds: no further try begins after that.
    """
    began = time.monotonic()
    for number in range(1, TRIES + 1):
        try:
            return request()
        except StorageError:
            raise
        except Exception as error:
            wait = min(FIRST_WAIT * 2 ** (number - 1), LONGEST_WAIT) * random.uniform(0.5, 1.5)
            spent = time.monotonic() - began
            last = number == TRIES or spent + wait > seconds
            if last or not may_pass(error):
                raise StorageError(address, _reason(error, number, spent)) from None
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def may_pass(error: BaseException) -> bool:
    """Whether a later try may succeed: an overloaded server, a cut connection, a time limit."""
    code = status_of(error)
    if code is not None:
        return code in (408, 425, 429) or (code >= 500 and code not in (501, 505))
    never = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, Changed)
    if isinstance(error, never) or type(error).__name__ in _NEVER:
        return False
    if isinstance(error, (OSError, TimeoutError)):
        return True
    return _library(error) in ("aiohttp", "httpx", "httpcore", "requests", "botocore", "urllib3")


_NEVER = {"FileExpired", "NoCredentialsError", "PartialCredentialsError", "InvalidURL",
          "ProfileNotFound", "TokenRetrievalError"}  # fmt: skip


def status_of(error: BaseException) -> int | None:
    """The HTTP status in a library's error; None where there is none."""
    chain = [error, error.__cause__]
    responses = [getattr(one, "response", None) for one in chain]
    for holder in (*chain, *responses):
        if isinstance(holder, dict):  # botocore's
            code = holder.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            code = getattr(holder, "status", None) or getattr(holder, "status_code", None)
        if isinstance(code, int) and 100 <= code < 600:
            return code
    return None


def _library(error: BaseException) -> str:
    return type(error).__module__.split(".")[0]


def _reason(error: BaseException, tries: int, spent: float) -> str:
    """What came and what to do, in one line."""
    code, name = status_of(error), type(error).__name__
    said = first_line(error)[:200]
    tried = f" ({tries} tries in {spent:.0f} s)" if tries > 1 else ""
    if code in (401, 403) or isinstance(error, PermissionError) or "Credentials" in name:
        return (
            f"permission denied ({said}); fsspec takes credentials from its usual places: "
            "variables such as AWS_PROFILE or GOOGLE_APPLICATION_CREDENTIALS, or its own "
            "configuration files"
        )
    if code in (404, 410) or isinstance(error, FileNotFoundError):
        return "there is no such file at this address"
    if isinstance(error, Changed) or name == "FileExpired" or code == 412:
        return "changed while it was read; run again when nobody writes to it"
    if isinstance(error, ShortRead):
        return f"the storage sends wrong lengths: {said}{tried}; is the upload complete?"
    if isinstance(error, TimeoutError) or "Timeout" in name:
        return f"slow storage: no answer within the time limit{tried}; try again later"
    if code is not None:
        return f"the storage answers with error {code}{tried}; try again later"
    if isinstance(error, OSError) or _library(error) in ("aiohttp", "botocore", "httpx"):
        return f"cannot be reached, or the connection is cut: {said or name}{tried}"
    return f"cannot be read ({name}: {said})"
