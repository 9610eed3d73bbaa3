"""Start child processes from a clean server, and learn how they ended.

Light to import: neither torch nor a decoder.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

SERVER_GONE = 255
"""What multiprocessing reports as the exit code of processes whose fork server was killed."""


def fork_server(preload: Sequence[str]) -> ForkServerContext | SpawnContext:
    """A context whose processes are forked from a server that has imported `preload`.

    The server runs no threads. Forking this process itself, with its threads (FFmpeg's, OpenMP's,
    CUDA's), is how children come to hang. One server serves all contexts; what it imports is
    decided when the first child is started. Windows has no fork: there each child starts afresh.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


def end_with_parent() -> None:
    """Make this process end when the one that started it is gone, even if that one was killed.

    Torch's workers watch their parent process for that. Here the parent is the fork server, which
    in turn lives as long as any of its children does: together they would stay for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watches the parent").start()


def ended_by(exitcode: int | None) -> str:
    """How a process ended, in a word: "SIGSEGV", "exit code 3"."""
    if exitcode is None:
        return "reason unknown"
    if exitcode >= 0:
        return f"exit code {exitcode}"
    try:
        return signal.Signals(-exitcode).name
    except ValueError:
        return f"signal {-exitcode}"


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
