"""Call a function in child processes that may crash, hang or run out of memory.

    with GuardedPool(probe, workers=4) as pool:
        for path, info in pool.map(paths):
            if isinstance(info, WorkerFailure):
                print(path, info.reason)        # "crashed (SIGSEGV)", "took longer than 60 s", ...

Video decoders are C libraries: a file made for it, or damaged by chance, can end the process that
reads it. Nothing inside that process can prevent this, so untrusted files are read in another one,
and each bad file costs one failure, not the run. `limits.limited` holds the same limits inside a
process that is watched already, as the loader's workers are.

Light to import: neither torch nor a decoder, so that children can be started before either is
loaded.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from hiera_video.errors import DecodeError, RunFailed, first_line
from hiera_video.video.guarded_child import Task, serve
from hiera_video.video.limits import MEMORY_LIMIT
from hiera_video.video.processes import SERVER_GONE, ended_by, fork_server

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

__all__ = ["PRELOAD", "GuardedPool", "WorkerFailure"]

PRELOAD = ("hiera_video.video.worker_imports",)
"""What children that read videos need."""

START_LIMIT = 900.0
"""Seconds a child may take to import what it needs: torch, from a slow disk, on a busy machine."""

T = TypeVar("T")

Kind = Literal["crashed", "time", "memory", "refused"]


class WorkerFailure(Exception):
    """How one item failed: returned by `GuardedPool.map`, raised by `GuardedPool.call`.

    `reason` is for people. `kind`: "crashed" (its process ended), "time" and "memory" (beyond the
    limit), "refused" (a DecodeError, whose reason it is; from `map` alone).
    """

    def __init__(self, reason: str, kind: Kind = "crashed") -> None:
        super().__init__(reason, kind)
        self.reason = reason
        self.kind = kind

    def __str__(self) -> str:
        return self.reason


class GuardedPool:
    """Calls of one function in child processes. A context manager.

    A child that crashes, or is killed for exceeding a limit, is replaced; the item it had is a
    `WorkerFailure`. Children start at once, in the background. They come from a fork server, so a
    script that makes a pool needs `if __name__ == "__main__":` around what it does.

    Args:
        function: takes an item, returns a value; a module's own, or its name "package.module.name".
            Items and values travel pickled, through pipes: keep them small.
        workers: number of children.
        time_limit: seconds for one item.
        memory_limit: bytes of address space that one item may take on top of what its child held
            before (where the system has such limits: Linux).
        preload: modules that the fork server imports for all children, if it is not running yet;
            by default what reading videos needs.
        prepare: called in a child, without arguments, before its first item; a function or a name.

    Raises RunFailed, when an item is handed in, if children cannot be started, and in a process
    that was forked from the pool's.
    """

    def __init__(
        self,
        function: Callable[[Any], Any] | str,
        *,
        workers: int = 1,
        time_limit: float = 60.0,
        memory_limit: int = MEMORY_LIMIT,
        preload: Sequence[str] = PRELOAD,
        prepare: Callable[[], Any] | str | None = None,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers={workers} must be at least 1")
        self.time_limit = time_limit
        self.memory_limit = memory_limit
        self.workers = workers
        self._context = fork_server(preload)
        self._task = Task(function, prepare, time_limit, memory_limit, one_thread=workers > 1)
        self._closed = False
        self._start_trouble = ""
        """Why there are fewer children, for the end of a message."""
        self._children: list[_Child] = []
        self._owner = os.getpid()
        # Starting waits for the fork server's imports: seconds in which the caller goes on.
        self._starting = threading.Thread(target=self._start, args=(workers,), daemon=True)
        self._starting.start()

    def __enter__(self) -> GuardedPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the children, whatever they are doing.

        Does nothing in a forked process: they are the children of another one.
        """
        if os.getpid() != self._owner:
            return
        self._closed = True
        for child in self._children:
            child.kill()

    def call(self, item: Any) -> Any:
        """The function's value for one item.

        Raises what the function raised, or `WorkerFailure`.
        """
        ((_, outcome),) = self._run([item])
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def map(self, items: Iterable[T]) -> Iterator[tuple[T, Any]]:
        """(item, value or `WorkerFailure`) for each item, as they are done: not in their order.

        Items are taken from `items` when a child is free for them, so an endless supply is fine.
        Exceptions of the function other than DecodeError are bugs and are raised here.
        """
        for item, outcome in self._run(items):
            yield item, _value_or_failure(outcome)

    def ordered(self, items: Iterable[T], *, ahead: int) -> Iterator[tuple[T, Any]]:
        """`map` in the order of the items. The next ones are worked on while the caller uses one.

        ahead: most items that are begun or done and not yet yielded; it bounds the memory when one
        item takes long.
        """
        turn, begun = 0, 0
        numbers: dict[int, list[int]] = {}  # of each object that is worked on, by its id
        done: dict[int, tuple[T, Any]] = {}

        def counted() -> Iterator[T]:
            nonlocal begun
            for item in items:
                numbers.setdefault(id(item), []).append(begun)
                begun += 1
                yield item

        def may_take() -> bool:
            return begun < turn + ahead

        for item, outcome in self._run(counted(), may_take):
            done[numbers[id(item)].pop(0)] = item, _value_or_failure(outcome)
            if not numbers[id(item)]:
                del numbers[id(item)]
            while turn in done:
                turn += 1
                yield done.pop(turn - 1)

    # ---- handing out and taking in ----

    def _run(
        self, items: Iterable[T], may_take: Callable[[], bool] = lambda: True
    ) -> Iterator[tuple[T, Any]]:
        """(item, value or exception) for each item. may_take: whether another item may be begun."""
        self._require_children()
        for child in self._children:
            child.start_if_killed()
        source = iter(items)
        suspects: list[T] = []  # what a child had when it was killed from outside
        again: list[T] = []
        try:
            while self._hand_out(source, again, may_take):
                found = []
                for item, outcome in [child.take() for child in self._wait()]:
                    if outcome is not _KILLED:
                        found.append((item, outcome))
                    elif any(item is suspect for suspect in suspects):
                        failure = WorkerFailure("its process was killed twice, out of memory?")
                        found.append((item, failure))
                    else:  # by the system or by a user: the item may be innocent
                        suspects.append(item)
                        again.append(item)
                if found:  # the children go on while the caller uses these
                    self._hand_out(source, again, may_take)
                yield from found
        finally:
            for child in self._children:  # the caller left early and takes no more outcomes
                if child.item is not _NONE:
                    child.kill()
                    child.take()

    def _hand_out(self, source: Iterator[T], again: list[T], may_take: Callable[[], bool]) -> bool:
        """Give an item to each child that is free; False when there are none left anywhere."""
        at_end = False
        for child in self._children:
            if child.is_free() and not at_end and (again or may_take()):
                item = again.pop() if again else next(source, _NONE)
                at_end = item is _NONE
                if not at_end:
                    child.give(item)
        return not at_end or any(child.item is not _NONE for child in self._children)

    def _wait(self) -> list[_Child]:
        """The children that have an outcome now; waits until something happens."""
        now = time.monotonic()
        sooner = min(child.deadline for child in self._children) - now
        handles = [child.connection for child in self._children if child.deadline < _NEVER]
        ready = wait(handles, timeout=max(sooner, 0.0))
        done = []
        for child in self._children:
            if child.connection in ready:
                if child.receive():
                    done.append(child)
            elif child.deadline <= time.monotonic() and not child.connection.poll():
                child.give_up()
                done.append(child)
        return done

    # ---- children ----

    def _start(self, workers: int) -> None:
        # Ctrl-C is not for the fork server, which inherits this.
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        for _ in range(workers):
            try:
                child = _Child(self._context, self._task)
            except OSError as error:  # this is a thread: whoever needs the children is told
                self._start_trouble = f": {first_line(error)}"
                if "AF_UNIX" in str(error):
                    self._start_trouble += "; set TMPDIR to a folder with a shorter name"
                return
            self._children.append(child)
            if self._closed:
                child.kill()
                return

    def _require_children(self) -> None:
        if os.getpid() != self._owner:
            raise RunFailed(
                "this process was forked from the one whose children read videos, and cannot share "
                "them; start the reading process (decoding_process) in this one, or start this one "
                "with spawn"
            )
        self._starting.join()
        if self._closed:
            raise ValueError("this pool is closed")
        if not self._children:
            raise RunFailed(f"cannot start a worker process to read videos in{self._start_trouble}")


def _value_or_failure(outcome: Any) -> Any:
    """What `map` yields for an outcome; raises exceptions that are bugs."""
    if isinstance(outcome, DecodeError):
        return WorkerFailure(outcome.reason, "refused")
    if isinstance(outcome, BaseException) and not isinstance(outcome, WorkerFailure):
        raise outcome
    return outcome


_NONE: Any = object()
"""In place of an item: there is none."""

_KILLED: Any = object()
"""In place of an outcome: somebody else killed the process."""

_NEVER = float("inf")

_BY_OTHERS = ("SIGKILL", "SIGTERM", f"exit code {SERVER_GONE}")
"""Ends that no decoder causes by itself."""

_STARTS = 3
"""Times that a child may fail to start, one after the other."""


class _Child:
    """One child process, seen from its parent."""

    connection: Connection

    def __init__(self, context: ForkServerContext | SpawnContext, task: Task) -> None:
        self._context, self._task = context, task
        self.failed_starts = 0
        self._launch()

    def _launch(self) -> None:
        self.connection, theirs = self._context.Pipe()
        self.process = self._context.Process(
            target=serve, args=(theirs, self._task), daemon=True, name="reads videos"
        )
        self.process.start()
        theirs.close()
        self.ready = False
        self.item: Any = _NONE
        self.outcome: Any = None
        self.deadline = time.monotonic() + START_LIMIT

    def is_free(self) -> bool:
        return self.ready and self.item is _NONE

    def give(self, item: Any) -> None:
        """Make it work on `item`."""
        data = pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
        self.item = item
        self.deadline = time.monotonic() + self._task.time_limit
        # One that died meanwhile is noticed when its outcome is waited for.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send_bytes(data)

    def receive(self) -> bool:
        """Take what came through the pipe; returns True if that is the outcome of its item.

        Raises RunFailed where it cannot even start.
        """
        try:
            what, content = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return self._ended()
        if what == "broken":
            raise RunFailed(f"cannot start a worker process to read videos in: {content}")
        self.deadline = _NEVER
        if what == "ready":
            self.ready, self.failed_starts = True, 0
            return False
        self.outcome = content
        if what == "memory":
            limit = _binary_size(self._task.memory_limit)
            self.outcome = WorkerFailure(f"needed more than {limit}", "memory")
            self._renew()
        elif what == "error":
            error, trace = content
            if sys.version_info >= (3, 11):
                error.add_note(f"in the worker process that reads videos:\n{trace}")
            self.outcome = error
        return True

    def take(self) -> tuple[Any, Any]:
        """(item, value or exception); afterwards it is free for the next item."""
        item, outcome = self.item, self.outcome
        self.item, self.outcome = _NONE, None
        return item, outcome

    def give_up(self) -> None:
        """Handle a child whose time is over: the item fails and the process is replaced."""
        if not self.ready:
            self.kill()
            raise RunFailed(
                f"a worker process to read videos in was not ready within {START_LIMIT:g} s; is "
                "the disk with the Python packages very slow?"
            )
        self.outcome = WorkerFailure(f"took longer than {self._task.time_limit:g} s", "time")
        self._renew()

    def start_if_killed(self) -> None:
        """Start a new process instead of one that `kill` ended."""
        if self.connection.closed:
            self._launch()

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.join()
        self.connection.close()

    def _ended(self) -> bool:
        """Handle a process that ended by itself; returns True if it had an item."""
        self.process.join(5)
        ending = ended_by(self.process.exitcode)
        if not self.ready:
            self.failed_starts += 1
            if self.failed_starts == _STARTS:
                raise RunFailed(
                    f"a worker process to read videos in ends while it starts ({ending}); a "
                    "script of your own that starts some needs `if __name__ == '__main__':` "
                    "around what it does"
                )
        self.outcome = _KILLED if ending in _BY_OTHERS else WorkerFailure(f"crashed ({ending})")
        self._renew()
        return self.item is not _NONE

    def _renew(self) -> None:
        """Replace the process; item and outcome stay until they are taken."""
        item, outcome = self.item, self.outcome
        self.kill()
        self._launch()
        self.item, self.outcome = item, outcome


def _binary_size(size: int) -> str:
    return f"{size / 2**30:.3g} GiB" if size >= 1 << 30 else f"{size / 2**20:.3g} MiB"
