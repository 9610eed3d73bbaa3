"""Links from a page to files beside it."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from hiera_video.errors import hide_secrets
from hiera_video.storage.addresses import is_stored, member_of


def link_to(path: str, folder: str) -> str:
    """Return the URL of a file for a page in `folder`: relative wherever that is possible.

    Of an address that no browser opens, or with a secret in it, "".
    """
    if is_stored(path):
        opened = path.lower().startswith(("http://", "https://")) and member_of(path) is None
        return path if opened and hide_secrets(path) == path else ""
    real = os.path.realpath(path)
    try:
        relative = os.path.relpath(real, os.path.realpath(folder))
    except ValueError:  # another drive of Windows
        return Path(real).as_uri()
    return quote(os.fsencode(relative.replace(os.sep, "/")))
