"""Find the videos that a command line names: files, folders, globs, addresses, tar shards.

Light to import: a mistyped name is reported before torch is loaded.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from typing import NamedTuple

from hiera_video.errors import UserError
from hiera_video.progress import Progress
from hiera_video.storage.addresses import absolute, is_address, is_shard, is_stored
from hiera_video.storage.listing import videos_at

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
"""Lists of videos: a search finds them, so that they are reported as refused; never opened."""


class InputFile(NamedTuple):
    """One file that a command line names, or a path at which there is none."""

    path: str
    error: str | None = None
    """Why there is no video at this path."""


def find_videos(paths: Iterable[str]) -> list[str]:
    """The files of `expand_paths`; UserError where any path leads to none."""
    files = expand_paths(paths)
    for path, error in files:
        if error is not None:
            raise UserError(f"{path!r}: {error}")
    return [path for path, _ in files]


def expand_paths(paths: Iterable[str]) -> list[InputFile]:
    """The files that files, folders and globs name, in the order given, each file once.

    A file is taken whatever it is called. A folder is searched with its subfolders for names that
    end like a video or a playlist (in any case, hidden ones aside), in sorted order; a playlist is
    then refused by the decoder, visibly, instead of being passed over. A glob ("clips/**/*.mp4")
    takes what a folder would take, and folders that match are searched. Addresses (`storage/`) are
    taken in the same way, and a tar shard, alone or in a folder without videos, stands for its
    videos.

    A path that does not exist, a folder without videos, a folder that cannot be read and a glob
    that matches nothing are one entry each, with the reason, so that the others can still be read.
    Raises UserError where no entry is a file.
    """
    found: dict[str, InputFile] = {}
    with Progress("looking for videos", unit="files") as progress:
        for path in paths:
            for file in _expand(os.fspath(path), progress):
                found.setdefault(absolute(file.path), file)
    entries = list(found.values())
    errors = [f"{path!r}: {error}" for path, error in entries if error is not None]
    if errors and len(errors) == len(entries):
        several = f"none of these {len(errors)} paths leads to a video: " if errors[1:] else ""
        raise UserError(several + "; ".join(errors))
    return entries


def is_video(name: str) -> bool:
    """Whether a name ends like a video's."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def is_video_or_playlist(path: str) -> bool:
    """Whether the search of a folder takes this name: not hidden, and ends like either."""
    name = os.path.basename(path)
    suffix = os.path.splitext(name)[1].lower()
    return not name.startswith(".") and suffix in (*VIDEO_SUFFIXES, *PLAYLIST_SUFFIXES)


def _expand(path: str, progress: Progress) -> list[InputFile]:
    if is_address(path):
        return _stored(path)
    if os.path.isdir(path):
        return (
            _walk(path, progress)
            or _shards_of(path)
            or [InputFile(path, f"no videos in it or below it; {_looked_for()}")]
        )
    if is_stored(path) or is_shard(path):
        return _stored(path)
    if os.path.lexists(path):  # before the glob: names may contain its signs, "clip [1].mp4"
        return [InputFile(path)]
    if not glob.has_magic(path):
        return [InputFile(path, "no such file or folder")]
    matches = sorted(glob.glob(path, recursive=True))
    files = []
    for match in matches:
        if os.path.isdir(match):
            files += _walk(match, progress)
        elif is_video_or_playlist(match):
            files.append(InputFile(match))
    if not files:
        found = f"{len(matches)} names, none of them a video's" if matches else "nothing"
        return [InputFile(path, f"matches {found}; {_looked_for()}")]
    return files


def _stored(path: str) -> list[InputFile]:
    return [InputFile(*file) for file in videos_at(path, is_video_or_playlist, _looked_for())]


def _shards_of(folder: str) -> list[InputFile]:
    names = sorted(name for name in os.listdir(folder) if is_shard(name))
    return [file for name in names for file in _stored(os.path.join(folder, name))]


def _walk(folder: str, progress: Progress) -> list[InputFile]:
    unreadable: list[InputFile] = []

    def on_error(error: OSError) -> None:
        reason = f"cannot look into this folder: {error.strerror}"
        unreadable.append(InputFile(error.filename, reason))

    files = []
    for parent, folders, names in os.walk(folder, onerror=on_error):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [
            InputFile(os.path.join(parent, name))
            for name in sorted(names)
            if is_video_or_playlist(name)
        ]
        progress.add(len(names))
    return files + unreadable


def _looked_for() -> str:
    return f"looked for names that end in {' '.join(sorted(VIDEO_SUFFIXES))}"
