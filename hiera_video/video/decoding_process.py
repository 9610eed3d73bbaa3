"""The child process in which `guarded_video.GuardedVideo` reads files.

Light to import, so that the process can be started before torch is loaded.
"""

from __future__ import annotations

from hiera_video.video.guarded_pool import GuardedPool
from hiera_video.video.processes import usable_cores

MOST_PROCESSES = 16
"""Processes that read ahead: each holds the crops of a video."""


def processes_for(videos: int) -> int:
    """Return how many processes read so many videos: one for each, at most one for each core."""
    return max(1, min(videos, usable_cores(), MOST_PROCESSES))


def decoding_process(workers: int = 1) -> GuardedPool:
    """Start the process, or several of them for many videos; they import their libraries in the
    background."""
    return GuardedPool(
        "hiera_video.video.guarded_video.serve",
        workers=workers,
        # A read gives up after one minute by itself (limits.TIME_LIMIT), with a better reason.
        time_limit=120.0,
    )
