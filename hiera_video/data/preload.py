"""What the fork server imports for processes that read samples (`GuardedPool`, `fork_server`)."""

from __future__ import annotations

PRELOAD = ("hiera_video.data.worker_imports",)
"""One server serves all children of a process, and the first pool decides what it imports: every
pool of a run that reads samples passes this."""
