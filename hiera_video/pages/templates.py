"""Jinja2 for pages: what comes from strangers, names of files and of classes, stays text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hiera_video import cli

if TYPE_CHECKING:
    import jinja2


def environment(folder: Path) -> jinja2.Environment:
    """Templates of a folder. Values are escaped; the filter `printable` shows control characters,
    and those that turn the text around them, as such."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["printable"] = cli.printable
    return made
