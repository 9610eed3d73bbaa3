"""Which videos the words of a command line mean: files, folders, globs.

Light to import: a mistyped name is answered before torch is loaded.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from typing import NamedTuple

from hiera_video.errors import UserError

VIDEO_SUFFIXES = frozenset(
    f".{ending}"
    for ending in (
        *("3gp", "asf", "avi", "divx", "f4v", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4"),
        *("mpe", "mpeg", "mpg", "mts", "mxf", "ogm", "ogv", "rmvb", "ts", "vob", "webm", "wmv"),
    )
)

PLAYLIST_SUFFIXES = frozenset(
    f".{ending}"
    for ending in ["asx", "concat", "ffconcat", "ismc", "m3u", "m3u8", "mpd", "pls", "sdp", "xspf"]
)
"""Lists of videos: found in folders so that they are refused by name, never opened."""


class Named(NamedTuple):
    """One file that a command line names, or a path that leads to none."""

    path: str
    error: str | None = None
    """Why there is nothing to label."""


def find_videos(paths: Iterable[str]) -> list[str]:
    """The files of `named_videos`; UserError where any path leads to none."""
    named = named_videos(paths)
    for path, error in named:
        if error is not None:
            raise UserError(f"{path!r}: {error}")
    return [path for path, _ in named]


def named_videos(paths: Iterable[str]) -> list[Named]:
    """What files, folders and globs name, in the order given, each file once.

    A file is taken whatever it is called. A folder is searched with its subfolders for names that
    end like a video or a playlist (in any case, hidden ones aside), in sorted order; a playlist is
    then refused by the decoder, visibly, instead of being passed over. A glob ("clips/**/*.mp4")
    takes what a folder would take, and folders that match are searched.

    A path that is not there, a folder without videos, a folder that may not be read and a glob that
    matches nothing are one entry each, with the reason: the others are labelled all the same.
    Raises UserError where that is all there is.
    """
    found: dict[str, Named] = {}
    for path in paths:
        for named in _videos_of(os.fspath(path)):
            found.setdefault(os.path.abspath(named.path), named)
    entries = list(found.values())
    errors = [f"{path!r}: {error}" for path, error in entries if error is not None]
    if errors and len(errors) == len(entries):
        several = f"none of these {len(errors)} paths leads to a video: " if errors[1:] else ""
        raise UserError(several + "; ".join(errors))
    return entries


def is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def is_video_name(path: str) -> bool:
    """Whether a folder's search takes this name: not hidden, and a video's or playlist's ending."""
    name = os.path.basename(path)
    suffix = os.path.splitext(name)[1].lower()
    return not name.startswith(".") and suffix in (*VIDEO_SUFFIXES, *PLAYLIST_SUFFIXES)


def _videos_of(path: str) -> list[Named]:
    if os.path.isdir(path):
        return _walk(path) or [Named(path, f"no videos in it or below it; {_looked_for()}")]
    if os.path.lexists(path):  # first of all: a name may hold the signs of a glob, "clip [1].mp4"
        return [Named(path)]
    if not glob.has_magic(path):
        return [Named(path, "no such file or folder")]
    matches = sorted(glob.glob(path, recursive=True))
    files = []
    for match in matches:
        if os.path.isdir(match):
            files += _walk(match)
        elif is_video_name(match):
            files.append(Named(match))
    if not files:
        found = f"{len(matches)} names, none of them a video's" if matches else "nothing"
        return [Named(path, f"matches {found}; {_looked_for()}")]
    return files


def _walk(folder: str) -> list[Named]:
    closed: list[Named] = []

    def note(error: OSError) -> None:
        closed.append(Named(error.filename, f"cannot look into this folder: {error.strerror}"))

    files = []
    for parent, folders, names in os.walk(folder, onerror=note):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [
            Named(os.path.join(parent, name)) for name in sorted(names) if is_video_name(name)
        ]
    return files + closed


def _looked_for() -> str:
    return f"looked for names that end in {' '.join(sorted(VIDEO_SUFFIXES))}"
