"""The folder of a page: what it holds, when it may be replaced, what is deleted."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from hiera_video.errors import UserError
from hiera_video.files import explained

PICTURES = "pictures"
"""The subfolder of a page that holds pictures."""

OUR_PICTURE = re.compile(r"[0-9a-f]{20}\.jpg")
"""The names of ours."""

_BEGINNING = 1000
"""Bytes of index.html that must hold the mark."""


@dataclass(frozen=True)
class PageFolder:
    """A folder with index.html, and with subfolders of files that the page shows."""

    path: str
    mark: str
    """In every index.html of this kind, so that a later one may replace it."""
    parts: Mapping[str, re.Pattern[str]]
    """Subfolder -> the names of ours in it; other files are not ours to delete."""

    @property
    def index(self) -> str:
        """The path of index.html."""
        return os.path.join(self.path, "index.html")

    def require_replaceable(self) -> None:
        """Raise UserError unless the folder is new, empty or holds an earlier page."""
        place = Path(self.path)
        if not os.path.lexists(place):
            return
        if not place.is_dir():
            raise UserError(f"{place} is a file; name a folder for the page")
        try:
            ours = self._is_ours(place)
        except OSError as error:
            raise UserError(
                f"{place} cannot be read: {error.strerror}; name a new folder"
            ) from None
        if not ours:
            raise UserError(
                f"{place} holds other things than an earlier page; name a new or an empty folder"
            )

    def make(self) -> None:
        """Create the folder and its subfolders. Raises UserError where it may not be replaced."""
        self.require_replaceable()
        for part in self.parts:
            with explained(self.path):
                os.makedirs(os.path.join(self.path, part), exist_ok=True)

    def remove_unused(self, used: Collection[str]) -> None:
        """Delete our files in the subfolders, but for those that `used` names ("part/name")."""
        for part, ours in self.parts.items():
            for old in Path(self.path, part).iterdir():
                if ours.fullmatch(old.name) and f"{part}/{old.name}" not in used:
                    with explained(old):
                        old.unlink(missing_ok=True)

    def _is_ours(self, place: Path) -> bool:
        """Whether it is empty, or holds such a page, or the parts of one that was interrupted."""
        names = {entry.name for entry in place.iterdir()}
        if "index.html" in names:
            with open(place / "index.html", "rb") as file:
                return self.mark.encode() in file.read(_BEGINNING)
        return names <= set(self.parts) and all(
            self.parts[name].fullmatch(entry.name)
            for name in names
            for entry in (place / name).iterdir()
        )
