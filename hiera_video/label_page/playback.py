"""How a page reaches a video: a link to the file, or a copy of it in the page's folder."""

from __future__ import annotations

import os
import shutil
from typing import NamedTuple

from hiera_video.errors import DecodeError
from hiera_video.files import atomic_write
from hiera_video.label_page.folder import FILES
from hiera_video.pages.links import link_to
from hiera_video.video.info import VideoInfo

LONGEST_SIDE = 640
"""Of a copy that was made because browsers do not play the file."""

_IN_MP4 = frozenset({"h264", "av1", "vp9"})
_IN_WEBM = frozenset({"vp8", "vp9", "av1"})


_CONTAINERS = {"mov": "MP4 or MOV", "matroska": "Matroska or WebM", "": "no container"}
"""FFmpeg's names of formats that people know by others."""


class Playback(NamedTuple):
    """What the page's player opens."""

    url: str
    """Relative to the folder with the pages of the videos, percent-encoded."""
    note: str = ""
    """What the user should know of it."""


def browsers_play(info: VideoInfo) -> bool:
    """Whether today's browsers play such a file, by its container and codec."""
    return _ending(info) is not None


def container_name(info: VideoInfo) -> str:
    """Return the name of a file's format, for people."""
    first = info.container.split(",")[0]
    return _CONTAINERS.get(first, first)


def playback(path: str, info: VideoInfo | None, folder: str) -> Playback:
    """Return a link to a video for a page in `folder`. info: None where it cannot be decoded."""
    url = link_to(path, folder)
    if info is None or browsers_play(info):
        return Playback(url)
    what = f"{info.codec} in {container_name(info)}"
    return Playback(url, f"A browser may not play this ({what}); --copy adds a small copy.")


def copied(path: str, info: VideoInfo, page: str, name: str, decoder: str) -> Playback:
    """Put a copy into the folder `page`: of the file, or a small one in H.264 that browsers play.

    name: of the copy, without its ending. Raises RunFailed if it cannot be written.
    """
    ending = _ending(info)
    if ending is not None:
        relative = f"{FILES}/{name}{ending}"
        try:
            with open(path, "rb") as file, atomic_write(os.path.join(page, relative)) as copy:
                shutil.copyfileobj(file, copy, 1 << 20)
        except OSError as error:
            return Playback(link_to(path, os.path.join(page, FILES)), f"No copy: {error.strerror}.")
        return Playback(f"../{relative}")
    from hiera_video.labelled_video.write import write_small_copy

    relative = f"{FILES}/{name}.mp4"
    try:
        codec = write_small_copy(
            path, os.path.join(page, relative), longest=LONGEST_SIDE, decoder=decoder
        )
    except DecodeError as error:
        linked = playback(path, info, os.path.join(page, FILES))
        return linked._replace(note=f"A browser may not play this; no copy: {error.reason}.")
    note = f"This is a small copy: browsers do not play {info.codec} in such a file."
    if codec != "libx264":
        note = "A browser may not play this copy: there is no encoder for H.264 here."
    return Playback(f"../{relative}", note)


def _ending(info: VideoInfo) -> str | None:
    """What a copy of the file is called; None where browsers do not play it."""
    names = info.container.split(",")
    if "mov" in names:
        return ".mp4" if info.codec in _IN_MP4 else None
    if "webm" in names and info.path.lower().endswith(".webm"):  # not all play other Matroska
        return ".webm" if info.codec in _IN_WEBM else None
    return None
