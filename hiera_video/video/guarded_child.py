"""What runs in a child of `GuardedPool`: it answers items until nobody is left to send any."""

from __future__ import annotations

import importlib
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from hiera_video.video.limits import is_out_of_memory, limited
from hiera_video.video.processes import end_with_parent

_GRACE = 30.0
"""Seconds after the limit at which a child ends by itself, in case its parent cannot end it."""


@dataclass(frozen=True)
class Task:
    """What the children of a pool do, and within which limits."""

    function: Callable[[Any], Any] | str
    """Takes an item, returns a value; or its name "package.module.name"."""
    prepare: Callable[[], Any] | str | None
    """Called before the first item."""
    time_limit: float
    """Seconds for one item."""
    memory_limit: int
    """Bytes of address space that one item may take on top of what the child held before."""
    one_thread: bool
    """Torch computes on one thread, since other children compute beside it."""


def serve(connection: Connection, task: Task) -> None:
    """Answer items until the other end of `connection` is closed.

    The parent may end at any time, for it starts this before it knows whether it has work. A pipe
    that nobody reads any more is therefore no error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    end_with_parent()  # in the middle of an item, too
    try:
        function = _imported(task.function)
        if task.one_thread and "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        if task.prepare is not None:
            _imported(task.prepare)()
    except Exception as error:
        _send(connection, pickle.dumps(("broken", f"{type(error).__name__}: {error}")))
        return
    is_read = _send(connection, pickle.dumps(("ready", None)))
    while is_read:
        data = _receive(connection)
        if data is None:
            return
        item = pickle.loads(data)
        answer = _answer(function, item, task)
        is_read = _send(connection, answer)
        del data, item, answer


def _send(connection: Connection, data: bytes) -> bool:
    """Send; returns False where nobody is left to read it."""
    try:
        connection.send_bytes(data)
    except OSError:  # BrokenPipeError, ConnectionResetError
        return False
    return True


def _receive(connection: Connection) -> bytes | None:
    """The next item, pickled; None where nobody is left to send one."""
    try:
        return connection.recv_bytes()
    except (EOFError, OSError):
        return None


def _answer(function: Callable[[Any], Any], item: Any, task: Task) -> bytes:
    """("value", value), ("memory", None) or ("error", (exception, traceback)), pickled."""
    try:
        with limited(task.time_limit + _GRACE, task.memory_limit):
            value = function(item)
        return pickle.dumps(("value", value), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        if is_out_of_memory(error):
            return pickle.dumps(("memory", None))
        trace = traceback.format_exc()
        try:
            answer = pickle.dumps(("error", (error, trace)))
            pickle.loads(answer)  # some exceptions can be pickled but not unpickled
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {error}")
            answer = pickle.dumps(("error", (error, trace)))
        return answer


def _imported(function: Callable[..., Any] | str) -> Callable[..., Any]:
    if not isinstance(function, str):
        return function
    module, _, name = function.rpartition(".")
    imported: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return imported
