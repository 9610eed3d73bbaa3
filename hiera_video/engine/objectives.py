"""The package's own objectives: importing this registers them."""

from __future__ import annotations

from hiera_video.engine import motion, tasks

__all__ = ["motion", "tasks"]
