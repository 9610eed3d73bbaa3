"""Calls in child processes that may crash, hang or eat memory: each costs one failure, not the run.

    with GuardedPool(probe, workers=4) as pool:
        for path, info in pool.map(paths):
            if isinstance(info, WorkerFailure):
                print(path, info.reason)        # "crashed (SIGSEGV)", "took longer than 60 s", ...

Video decoders are C libraries: a file made for it, or damaged by chance, can end the process that
reads it. Nothing inside that process can prevent this, so files nobody vouches for are read in
another one. `limited` holds the same limits inside a process that is watched already, as the
loader's workers are.

Light to import: no torch and no decoder, so that children can be started before either is loaded.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, TypeVar

from hiera_video.errors import RunFailed

with contextlib.suppress(ImportError):  # not on Windows: no limit of memory there
    import resource

__all__ = [
    "MEMORY_LIMIT",
    "SERVER_GONE",
    "GuardedPool",
    "WorkerFailure",
    "decoding_process",
    "end_with_parent",
    "ended_by",
    "fork_server",
    "limited",
    "wants_memory",
]

MEMORY_LIMIT = 2 << 30
"""Bytes one video may take beyond what its process held before: two of the largest reads."""

SERVER_GONE = 255
"""What multiprocessing takes for the exit code of processes whose fork server was killed."""

START_LIMIT = 900.0
"""Seconds a child may take to import what it needs: torch, from a slow disk, on a busy machine."""

T = TypeVar("T")

Kind = Literal["crashed", "time", "memory", "refused"]


class WorkerFailure(Exception):
    """What one item came to: returned by `GuardedPool.map`, raised by `GuardedPool.call`.

    `reason` is for people. `kind`: "crashed" (its process ended), "time" and "memory" (beyond the
    limit), "refused" (a DecodeError, `reason` being its own; from `map` alone).
    """

    def __init__(self, reason: str, kind: Kind = "crashed") -> None:
        super().__init__(reason, kind)
        self.reason = reason
        self.kind = kind

    def __str__(self) -> str:
        return self.reason


def decoding_process() -> GuardedPool:
    """The process in which `guarded_video.GuardedVideo` reads files; it finds out meanwhile which
    decoders work."""
    return GuardedPool(
        "hiera_video.video.guarded_video.serve",
        # A read gives itself one minute (decode.TIME_LIMIT), and says better what it failed at.
        time_limit=120.0,
        prepare="hiera_video.video.decode.available_decoders",
    )


# ---- the pool -----------------------------------------------------------------------------------


class GuardedPool:
    """Calls of one function in child processes. A context manager.

    A child that crashes, or is killed for exceeding a limit, is replaced; the item it had is a
    `WorkerFailure`. Children start at once, in the background. They come from a fork server, so a
    script that makes a pool needs `if __name__ == "__main__":` around what it does.

    Args:
        function: takes an item, returns a value; a module's own, or its name "package.module.name".
            Items and values travel pickled, through pipes: keep them small.
        workers: children.
        time_limit: seconds for one item.
        memory_limit: bytes of address space that one item may take on top of what its child held
            before (where the system has such limits: Linux).
        preload: modules that the fork server imports for all children, if it is not running yet;
            by default what reading videos takes.
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
        preload: Sequence[str] = (),
        prepare: Callable[[], Any] | str | None = None,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers={workers} must be at least 1")
        self.time_limit = time_limit
        self.memory_limit = memory_limit
        self._context = fork_server(preload or ["hiera_video.video.worker_imports"])
        self._task = (function, prepare, time_limit, memory_limit, workers > 1)
        self._closed = False
        self._children: list[_Child] = []
        self._owner = os.getpid()
        # Starting waits for the fork server's imports: seconds that the caller has better use for.
        self._starting = threading.Thread(target=self._start, args=(workers,), daemon=True)
        self._starting.start()

    def __enter__(self) -> GuardedPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the children, whatever they are doing. In a forked process nothing: they are the
        children of another."""
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
        from hiera_video.errors import DecodeError

        for item, outcome in self._run(items):
            if isinstance(outcome, DecodeError):
                outcome = WorkerFailure(outcome.reason, "refused")
            if isinstance(outcome, BaseException) and not isinstance(outcome, WorkerFailure):
                raise outcome
            yield item, outcome

    # ---- handing out and taking in ----

    def _run(self, items: Iterable[T]) -> Iterator[tuple[T, Any]]:
        """(item, value or exception) for each item."""
        self._require_children()
        for child in self._children:
            child.start_if_killed()
        source = iter(items)
        suspects: list[T] = []  # what a child had when it was killed from outside
        again: list[T] = []
        try:
            while self._hand_out(source, again):
                for child in self._wait():
                    item, outcome = child.take()
                    if outcome is not _KILLED:
                        yield item, outcome
                    elif any(item is suspect for suspect in suspects):
                        yield item, WorkerFailure("its process was killed twice, out of memory?")
                    else:  # by the system or by hand: the item may be innocent
                        suspects.append(item)
                        again.append(item)
        finally:
            for child in self._children:  # left in the middle: nobody waits for these any more
                if child.item is not _END:
                    child.kill()
                    child.take()

    def _hand_out(self, source: Iterator[T], again: list[T]) -> bool:
        """Give an item to each child that is free; False when there are none left anywhere."""
        at_end = False
        for child in self._children:
            if child.is_free() and not at_end:
                item = again.pop() if again else next(source, _END)
                at_end = item is _END
                if not at_end:
                    child.give(item)
        return not at_end or any(child.item is not _END for child in self._children)

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
        if hasattr(
            signal, "pthread_sigmask"
        ):  # Ctrl-C is not for the fork server: it inherits this
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        for _ in range(workers):
            child = _Child(self._context, self._task)
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
            raise RunFailed("no process could be started to read videos in")


_END: Any = object()
_KILLED: Any = object()
_NEVER = float("inf")
_GRACE = 30.0
"""Seconds after the limit at which a child ends by itself, where nobody is left to end it."""

_BY_OTHERS = ("SIGKILL", "SIGTERM", f"exit code {SERVER_GONE}")
"""Ends that no decoder comes to by itself."""

_STARTS = 3
"""Times that a child may fail to start, one after the other."""


class _Child:
    """One child process, seen from its parent."""

    def __init__(self, context: multiprocessing.context.BaseContext, task: tuple) -> None:
        self._context, self._task = context, task
        self.failed_starts = 0
        self._launch()

    def _launch(self) -> None:
        self.connection, theirs = self._context.Pipe()
        self.process = self._context.Process(
            target=_serve, args=(theirs, *self._task), daemon=True, name="reads videos"
        )
        self.process.start()
        theirs.close()
        self.ready = False
        self.item: Any = _END
        self.outcome: Any = None
        self.deadline = time.monotonic() + START_LIMIT

    def is_free(self) -> bool:
        return self.ready and self.item is _END

    def give(self, item: Any) -> None:
        """Have it work on `item`."""
        _, _, time_limit, _, _ = self._task
        data = pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
        self.item = item
        self.deadline = time.monotonic() + time_limit
        # One that died meanwhile is noticed when its outcome is waited for.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send_bytes(data)

    def receive(self) -> bool:
        """Take what came through the pipe; True if that is the outcome of its item.

        Raises RunFailed where it cannot even start.
        """
        try:
            what, content = pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return self._mourn()
        if what == "broken":
            raise RunFailed(f"a process to read videos in cannot be started: {content}")
        self.deadline = _NEVER
        if what == "ready":
            self.ready, self.failed_starts = True, 0
            return False
        self.outcome = content
        if what == "memory":
            limit = self._task[3]
            self.outcome = WorkerFailure(f"needed more than {_gibibytes(limit)}", "memory")
            self._renew()
        elif what == "error":
            error, trace = content
            if sys.version_info >= (3, 11):
                error.add_note(f"in the process that reads videos:\n{trace}")
            self.outcome = error
        return True

    def take(self) -> tuple[Any, Any]:
        """(item, value or exception); it is free for the next."""
        item, outcome = self.item, self.outcome
        self.item, self.outcome = _END, None
        return item, outcome

    def give_up(self) -> None:
        """Its time is over."""
        if not self.ready:
            self.kill()
            raise RunFailed(
                f"a process to read videos in was not ready within {START_LIMIT:g} s; is the disk "
                "with the Python packages very slow?"
            )
        self.outcome = WorkerFailure(f"took longer than {self._task[2]:g} s", "time")
        self._renew()

    def start_if_killed(self) -> None:
        """A new process in the place of one that `kill` ended."""
        if self.connection.closed:
            self._launch()

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.join()
        self.connection.close()

    def _mourn(self) -> bool:
        """The process ended by itself."""
        self.process.join(5)
        exitcode = self.process.exitcode
        if not self.ready:
            self.failed_starts += 1
            if self.failed_starts == _STARTS:
                raise RunFailed(
                    f"a process to read videos in ends while it starts ({ended_by(exitcode)}); a "
                    "script of your own that starts some needs `if __name__ == '__main__':` "
                    "around what it does"
                )
        ending = ended_by(exitcode)
        self.outcome = _KILLED if ending in _BY_OTHERS else WorkerFailure(f"crashed ({ending})")
        self._renew()
        return self.item is not _END

    def _renew(self) -> None:
        item, outcome = self.item, self.outcome
        self.kill()
        self._launch()
        self.item, self.outcome = item, outcome


# ---- in the child -------------------------------------------------------------------------------


def _serve(
    connection: Connection,
    function: Callable[[Any], Any] | str,
    prepare: Callable[[], Any] | str | None,
    time_limit: float,
    memory_limit: int,
    one_of_many: bool,
) -> None:
    """Answer items until the other end of `connection` is closed.

    The parent may be gone at any time, for it starts this before it knows that it has work: then
    nobody is left to be told anything.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    end_with_parent()  # in the middle of a video, too
    try:
        call = _named(function)
        if one_of_many and "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        if prepare is not None:
            _named(prepare)()
    except Exception as error:
        _send(connection, pickle.dumps(("broken", f"{type(error).__name__}: {error}")))
        return
    there = _send(connection, pickle.dumps(("ready", None)))
    while there:
        data = _receive(connection)
        if data is None:
            return
        item = pickle.loads(data)
        answer = _answer(call, item, time_limit, memory_limit)
        there = _send(connection, answer)
        del data, item, answer


def _send(connection: Connection, data: bytes) -> bool:
    """False where nobody is left to read it."""
    try:
        connection.send_bytes(data)
    except OSError:  # BrokenPipeError, ConnectionResetError
        return False
    return True


def _receive(connection: Connection) -> bytes | None:
    """None where nobody is left to send anything."""
    try:
        return connection.recv_bytes()
    except (EOFError, OSError):
        return None


def _answer(call: Callable[[Any], Any], item: Any, time_limit: float, memory_limit: int) -> bytes:
    """("value", value), ("memory", None) or ("error", (exception, traceback)), pickled."""
    try:
        with limited(time_limit + _GRACE, memory_limit):
            value = call(item)
        return pickle.dumps(("value", value), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        if wants_memory(error):
            return pickle.dumps(("memory", None))
        trace = traceback.format_exc()
        try:
            answer = pickle.dumps(("error", (error, trace)))
            pickle.loads(answer)  # some exceptions go into a pickle and do not come out
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {error}")
            answer = pickle.dumps(("error", (error, trace)))
        return answer


def _named(function: Callable | str) -> Callable:
    if not isinstance(function, str):
        return function
    module, _, name = function.rpartition(".")
    return getattr(importlib.import_module(module), name)


# ---- limits -------------------------------------------------------------------------------------


def end_with_parent() -> None:
    """Have this process end when the one that started it is gone, killed even.

    Torch's workers look at their parent process for that. Here this is the fork server, which in
    turn lives as long as any of its children does: together they would stay for ever.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=watch, daemon=True, name="watches the parent").start()


@contextlib.contextmanager
def limited(seconds: float, memory: int) -> Iterator[None]:
    """End this process by SIGALRM after `seconds`, even in the middle of a library's call; refuse
    it more than `memory` bytes of address space beyond what it has now (a MemoryError, see
    `wants_memory`).

    For a process that somebody watches. Microseconds, where the system has such limits.
    """
    before = _limit_memory(memory)
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        if before is not None:
            resource.setrlimit(resource.RLIMIT_AS, before)


def _limit_memory(memory: int) -> tuple[int, int] | None:
    """Limit this process's address space; the limits before, or None where there are none."""
    try:
        with open("/proc/self/statm", "rb") as file:
            held = int(file.read().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        limits = [held + memory, *(x for x in before if x != resource.RLIM_INFINITY)]
        resource.setrlimit(resource.RLIMIT_AS, (min(limits), before[1]))
    except (OSError, NameError, ValueError):  # not Linux
        return None
    return before


def wants_memory(error: BaseException) -> bool:
    """Whether `error` says that there is no memory left: libraries say it in many ways."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, (RuntimeError, OSError)) and (
        "not enough memory" in text or "allocate memory" in text or "bad_alloc" in text
    )


# ---- words and wiring ---------------------------------------------------------------------------


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


def fork_server(preload: Sequence[str]) -> multiprocessing.context.BaseContext:
    """Processes forked from a server that has imported `preload` and runs no threads.

    Forking this process itself, with its threads (FFmpeg's, OpenMP's, CUDA's), is how children come
    to hang. One server serves all; what it imports is decided when the first child is started.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:.3g} GiB" if size >= 1 << 30 else f"{size / 2**20:.3g} MiB"
