"""A picture of each tested clip that a page shows: the frame in the middle of the video."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from hiera_video.errors import DecodeError
from hiera_video.pages.moments import jpeg_at, write_picture
from hiera_video.progress import Progress
from hiera_video.run_page.facts import Clip
from hiera_video.run_page.mistakes import sure_mistakes
from hiera_video.video.decoding_process import decoding_process
from hiera_video.video.guarded_video import GuardedVideo

MOST_SECONDS = 300.0
"""For all pictures of a page: the processes of a run wait for the one that reads them."""


def add_pictures(
    clips: Sequence[Clip],
    folder: Path,
    *,
    most: int,
    decoder: str = "auto",
) -> None:
    """Read the pictures of at most `most` clips and write them below `folder`: errors first, by
    their score, then the hardest of the others.

    Reads in a process of its own: a video that crashes a decoder has no picture, nor have those
    that are left after MOST_SECONDS.
    Raises RunFailed where a picture cannot be written.
    """
    chosen = _chosen(clips, most)
    if not chosen:
        return
    end = time.monotonic() + MOST_SECONDS
    shown = Progress("pictures of the page", len(chosen), unit="videos")
    with shown, decoding_process() as process:
        for clip in chosen:
            if time.monotonic() > end:
                return
            try:
                with GuardedVideo(clip.path, process, decoder) as video:
                    jpeg = jpeg_at(video, video.info.duration / 2)
            except DecodeError:
                continue
            finally:
                shown.add(1)
            clip.picture = write_picture(str(folder), jpeg)


def _chosen(clips: Sequence[Clip], most: int) -> list[Clip]:
    right = sorted((c for c in clips if c.best and c.is_right), key=lambda clip: clip.true_score)
    return [*sure_mistakes(clips), *right][:most]
