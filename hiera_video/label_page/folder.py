"""The folder of a page of labelled videos: its parts, and which videos in it are copies."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from hiera_video.errors import UserError
from hiera_video.pages.folder import OUR_PICTURE, PICTURES, PageFolder
from hiera_video.video.find import InputFile

MARK = "hiera_video labels/1"
"""In index.html, so that a later page may replace it."""

VIDEOS, FILES = "videos", "files"
"""The subfolders with a page for each video, and with copies of videos."""

_OURS = {
    VIDEOS: re.compile(r"[0-9a-f]{20}\.html"),
    FILES: re.compile(r"[0-9a-f]{20}\.(mp4|webm)"),
    PICTURES: OUR_PICTURE,
}


def folder_of(path: str) -> PageFolder:
    """Return the folder of such a page."""
    return PageFolder(path, MARK, _OURS)


def originals(files: Sequence[InputFile], folder: str) -> list[InputFile]:
    """Return the files but those that are copies in the page's folder: a search may find them.

    Raises UserError, before any work, where the page cannot be written, or nothing is left.
    """
    try:
        folder_of(folder).require_replaceable()
        kept = [file for file in files if not _is_copy(file.path, folder)]
        if not kept:
            raise UserError(f"all videos are copies in {folder}; name the originals")
    except UserError as error:
        raise UserError(f"--html: {error}") from None
    return kept


def _is_copy(path: str, folder: str) -> bool:
    real = os.path.realpath(path)
    place = os.path.join(os.path.realpath(folder), FILES)
    return os.path.dirname(real) == place and bool(_OURS[FILES].fullmatch(os.path.basename(real)))
