"""Jinja2 for pages: what comes from strangers, names of files and of classes, stays text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hiera_video import cli
from hiera_video.files import write_text

if TYPE_CHECKING:
    import jinja2


_HERE = Path(__file__).parent

BASE_STYLE = "base.css"
"""What pages look like, beside the style of each kind."""


def environment(folder: Path) -> jinja2.Environment:
    """Templates of a folder, and base.html. Values are escaped; the filter `printable` shows
    control characters, and those that turn the text around them, as such."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _HERE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["printable"] = cli.printable
    return made


def write_as_they_are(source: Path, names: Sequence[str], target: str) -> None:
    """Write base.css, and the style and the scripts of a kind of page, into a folder.

    source: where files of these names are. Raises RunFailed, which names the file.
    """
    for file in (_HERE / BASE_STYLE, *(source / name for name in names)):
        write_text(os.path.join(target, file.name), file.read_text(encoding="utf-8"))
