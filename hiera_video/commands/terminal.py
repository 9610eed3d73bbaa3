"""What the commands that label files print, and how."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from hiera_video.errors import hide_secrets
from hiera_video.progress import Progress


def accept_any_text(*, as_json: bool) -> None:
    """Let standard output take every text. as_json: JSON is written to it."""
    if sys.stdout is not None and hasattr(sys.stdout, "reconfigure"):
        # The terminal shows characters that it does not have escaped. JSON is UTF-8 by definition;
        # the byte ff of a file name, which Python reads as "\udcff", is escaped as JSON escapes.
        encoding = "utf-8" if as_json else sys.stdout.encoding
        sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")


def of_file(progress: Progress, number: int, file: str) -> Callable[[float], None]:
    """Return the `on_progress` of the `number`-th file."""
    name = os.path.basename(hide_secrets(file))
    return lambda share: progress.to(number + share, name)


def say(line: str) -> None:
    """Print a line on stderr."""
    print(line, file=sys.stderr)


def write(line: str) -> None:
    """Print a line on stdout at once."""
    print(line, flush=True)


def clock(seconds: float) -> str:
    """Return minutes, and seconds with one decimal, in one width."""
    minutes, rest = divmod(round(seconds * 10), 600)
    return f"{minutes:3d}:{rest / 10:04.1f}"
