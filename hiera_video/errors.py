"""Every error that a user can meet. Importing them loads neither torch nor a decoder.

Exit codes: 0 done; 1 the run failed (`RunFailed`, `DecodeError`); 2 wrong use (`UserError`).
"""

from __future__ import annotations

import os


class UserError(ValueError):
    """Wrong use: the message says what came, what is allowed and what to do next."""


class RunFailed(RuntimeError):
    """The command was right and the work failed; the message says what is left on disk."""


class ConfigError(UserError):
    """A setting nobody knows, of the wrong type or out of range; the message names its key."""


class DataError(UserError):
    """Something wrong with the data the user named; says where, what came and what is allowed."""


class LabelRangeError(DataError):
    """A label that is a number, and not one of those allowed."""


class WeightsError(UserError):
    """Weights that cannot be found, fetched, read or fitted to the model; nothing was changed."""


class DecodeError(Exception):
    """A video file that cannot be decoded: `.path`, `.reason`; as text "path: reason".

    One argument alone is the whole text: that is how a DataLoader rebuilds it from a worker.
    """

    def __init__(self, path: str | os.PathLike, reason: str = ""):
        self.path = os.fspath(path)
        self.reason = reason
        super().__init__(self.path, reason)

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.reason else self.path


def first_few(names: list[str], count: int = 10) -> str:
    """The first few names of a list, for a message, and how many more there are."""
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")
