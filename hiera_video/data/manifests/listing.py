"""Folders and JSON as they lie on disk, and which names are those of videos.

Whatever cannot be read is a `DataError` with the file, the line, what came and what is allowed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hiera_video.errors import DataError
from hiera_video.video.find import is_video


def read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 (Latin-1, UTF-16?); save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not valid JSON: {error}") from error


def scan_folder(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"cannot read folder {folder}: {error.strerror}") from error


def videos_below(root: Path, wanted: Callable[[str], bool] = is_video) -> list[str]:
    """Sorted relative paths of the videos at any depth; links are followed, loops are not.

    `wanted` tells by its name whether a file is one.
    """
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        relative = os.path.relpath(folder, root)
        found += [
            os.path.normpath(os.path.join(relative, name))
            for name in files
            if wanted(name) and not name.startswith(".")
        ]
    return sorted(found)


def some(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
