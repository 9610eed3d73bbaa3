"""How a page reaches a file outside its folder."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote


def link_to(path: str, folder: str) -> str:
    """Return the URL of a file for a page in `folder`: relative wherever that is possible."""
    real = os.path.realpath(path)
    try:
        relative = os.path.relpath(real, os.path.realpath(folder))
    except ValueError:  # another drive of Windows
        return Path(real).as_uri()
    return quote(os.fsencode(relative.replace(os.sep, "/")))
