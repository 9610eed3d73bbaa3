"""Which videos the words of a command line mean: files, folders, globs.

Light to import: a mistyped name is answered before torch is loaded.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable

from hiera_video.data.listing import PLAYLIST_SUFFIXES, VIDEO_SUFFIXES
from hiera_video.errors import UserError


def find_videos(paths: Iterable[str]) -> list[str]:
    """The files that files, folders and globs name, in the order given, each once.

    A file is taken whatever it is called. A folder is searched with its subfolders for names that
    end like a video or a playlist (in any case, hidden ones aside), in sorted order; a playlist is
    then refused by the decoder, visibly, instead of being passed over. A glob ("clips/**/*.mp4")
    takes what a folder would take, and folders that match are searched.

    Raises UserError: no such file, nothing to label in a folder, a glob that matches nothing.
    """
    found: dict[str, str] = {}
    for path in paths:
        for file in _videos_of(os.fspath(path)):
            found.setdefault(os.path.abspath(file), file)
    return list(found.values())


def is_video_name(path: str) -> bool:
    """Whether a folder's search takes this name: not hidden, and a video's or playlist's ending."""
    name = os.path.basename(path)
    suffix = os.path.splitext(name)[1].lower()
    return not name.startswith(".") and suffix in (*VIDEO_SUFFIXES, *PLAYLIST_SUFFIXES)


def _videos_of(path: str) -> list[str]:
    if os.path.isdir(path):
        return _videos_in(path)
    if os.path.lexists(path):  # first of all: a name may hold the signs of a glob, "clip [1].mp4"
        return [path]
    if not glob.has_magic(path):
        raise UserError(f"no such file or folder: {path!r}")
    matches = sorted(glob.glob(path, recursive=True))
    files = []
    for match in matches:
        if os.path.isdir(match):
            files += _walk(match)
        elif is_video_name(match):
            files.append(match)
    if not files:
        found = f"{len(matches)} names, none of them a video's" if matches else "nothing"
        raise UserError(f"{path!r} matches {found}; {_looked_for()}")
    return files


def _videos_in(folder: str) -> list[str]:
    files = _walk(folder)
    if not files:
        raise UserError(f"no videos in the folder {folder!r} or below it; {_looked_for()}")
    return files


def _walk(folder: str) -> list[str]:
    def refuse(error: OSError) -> None:
        raise UserError(f"cannot look into the folder {error.filename!r}: {error.strerror}")

    files = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [os.path.join(parent, name) for name in sorted(names) if is_video_name(name)]
    return files


def _looked_for() -> str:
    return f"looked for names that end in {' '.join(sorted(VIDEO_SUFFIXES))}"
