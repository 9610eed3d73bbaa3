"""Imports what processes that read videos need; the fork server runs it once for all of them.

Not torch and torchcodec, which cost two seconds of processor time each: few files need them to be
read. Modules that are absent or broken on this machine are left out: the process that uses them
reports the reason.
"""

import contextlib
import importlib


def import_each(*names: str) -> None:
    """Import modules, passing over those that fail."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


import_each("hiera_video.video.guarded_video", "av")
