"""Where the pictures of explanations go: NAME_explained.jpg in a folder, none of them twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hiera_video.errors import UserError

MARK = b"hiera_video explanation/1"
"""In every picture, so that a later one may replace it."""


def strip_files(videos: Sequence[str], folder: Path) -> list[Path]:
    """Return the picture of each video in `folder`; a name that comes again gets a number.

    Raises UserError where something else already has such a name.
    """
    found: list[Path] = []
    taken: set[str] = set()
    for video in videos:
        stem = name = Path(video).stem or "video"
        number = 1
        while name in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name)
        found.append(folder / f"{name}_explained.jpg")
        _require_ours(found[-1])
    return found


def _require_ours(place: Path) -> None:
    """Raise UserError where `place` is something else than an earlier picture."""
    try:
        with open(place, "rb") as file:
            ours = MARK in file.read(4096)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"--explain: {place} cannot be replaced: {error.strerror}") from None
    if not ours:
        raise UserError(
            f"--explain: {place} is not a picture that --explain wrote; move it, or start in "
            "another folder"
        )
