"""Folders and JSON files, with errors for users: each is a `DataError` that names the file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hiera_video.errors import DataError
from hiera_video.video.find import is_video


def read_json(file: Path) -> Any:
    """Read a JSON file in UTF-8. Raises DataError where it cannot be read or parsed."""
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 (Latin-1, UTF-16?); save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not valid JSON: {error}") from error


def scan_folder(folder: Path) -> list[os.DirEntry[str]]:
    """List the entries of a folder. Raises DataError where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"cannot read folder {folder}: {error.strerror}") from error


def videos_below(root: Path, wanted: Callable[[str], bool] = is_video) -> list[str]:
    """Sorted paths below `root` of the videos at any depth. Links are followed, each folder once.

    `wanted` decides by its name whether a file is a video.
    """
    videos: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        relative = os.path.relpath(folder, root)
        videos += [
            os.path.normpath(os.path.join(relative, name))
            for name in files
            if wanted(name) and not name.startswith(".")
        ]
    return sorted(videos)


def quoted(names: Sequence[str], most: int = 5) -> str:
    """The first few names in quotes, for a message, and how many more there are."""
    listed = ", ".join(repr(name) for name in names[:most])
    return listed + (f" and {len(names) - most} more" if len(names) > most else "")
