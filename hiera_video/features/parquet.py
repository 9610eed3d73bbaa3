"""The library of Parquet files, and how a path is written in one. Light to import."""

from __future__ import annotations

from typing import Any

from hiera_video.errors import UserError


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
    """A path as a table holds it: bytes that are not UTF-8 are written as \\udcff."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")
