"""Errors that users meet. Importing this module loads neither torch nor a decoder.

Exit codes: 0 done; 1 the run failed (`RunFailed`, `DecodeError`); 2 wrong use (`UserError`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence


class UserError(ValueError):
    """Wrong use. The message says what was given, what is allowed and what to do next."""


class RunFailed(RuntimeError):
    """The command was right but the run failed. The message says what is left on disk."""


class ConfigError(UserError):
    """An unknown setting, or a value of the wrong type or out of range; the message says which."""


class DataError(UserError):
    """Data that is missing or wrong. The message says where, what was read and what is allowed."""


class LabelRangeError(DataError):
    """A numeric label that is out of range."""


class WeightsError(UserError):
    """Weights that cannot be found, downloaded, read or fitted. The model is unchanged."""


class DecodeError(Exception):
    """A video file that cannot be decoded; `str(error)` is "path: reason".

    A single argument is the whole text, because that is how a DataLoader re-creates an error of
    one of its workers.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str = "") -> None:
        self.path = hide_secrets(os.fspath(path))
        self.reason = reason
        super().__init__(self.path, reason)

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.reason else self.path


_USER = re.compile(r"(?<=://)[^/?#@\s]+@")
_QUERY = re.compile(r"([?&][^=&?\s'\"]+=)[^&#\s'\"]+")


def hide_secrets(text: str) -> str:
    """Return a text with the secrets of its addresses hidden: `user:password@`, values of `?a=b`.

    Outputs and logs are kept and passed on; a signed address opens the file for whoever has it.
    """
    if "://" not in text:
        return text
    return _QUERY.sub(r"\1***", _USER.sub("***@", text))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text; the name of its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def kind_and_line(error: BaseException, most: int = 200) -> str:
    """Return an error's type and the first line of its text, at most `most` characters."""
    kind, line = type(error).__name__, first_line(error)
    return (kind if line == kind else f"{kind}: {line}")[:most]


def first_few(names: Sequence[str], count: int = 10) -> str:
    """Join the first names of a list for a message: "a, b and 3 more"."""
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")
