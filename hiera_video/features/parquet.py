"""The library of Parquet files, and how a path is written in one. Light to import."""

from __future__ import annotations

import hashlib
from typing import Any

from hiera_video.errors import UserError, hide_secrets


def parquet() -> tuple[Any, Any]:
    """Return the modules pyarrow and pyarrow.parquet; UserError where they are not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            "tables of features need pyarrow: pip install pyarrow (--format npy does without)"
        ) from None
    return pyarrow, pyarrow.parquet


def stored_path(path: str) -> str:
    """A path as a table holds it: bytes that are not UTF-8 are written as \\udcff.

    The secrets of an address are hidden; a hash of the whole address keeps it apart from others.
    """
    shown = hide_secrets(path)
    if shown != path:
        digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()
        shown = f"{shown}#{digest[:12]}"
    return shown.encode("utf-8", "backslashreplace").decode("utf-8")
