"""The child process in which `guarded_video.GuardedVideo` reads files.

Light to import, so that the process can be started before torch is loaded.
"""

from __future__ import annotations

from hiera_video.video.guarded_pool import GuardedPool


def decoding_process() -> GuardedPool:
    """Start the process; it imports its libraries in the background."""
    return GuardedPool(
        "hiera_video.video.guarded_video.serve",
        # A read gives up after one minute by itself (limits.TIME_LIMIT), with a better reason.
        time_limit=120.0,
    )
