"""Several processes end together: where one fails, rank 0 prints why and all of them leave.

A process that waits in a collective for one that has failed waits for half an hour, or for ever;
it sees no signal meanwhile, and NCCL cannot even be shut down. So each process has a thread beside
its main one, with a connection to rank 0 that carries nothing else:

- A process that fails (`Watch.fail`) tells rank 0, which prints the cause and sends all away.
- A process that is killed, or crashes, closes its connection by that. A machine that is lost no
  longer answers the probes of the kernel on the other side (`PROBES`).
- A signal is passed on to the thread even while the main thread waits in C code.

The kernel answers for a process that is only slow, that is stopped (SIGSTOP, a debugger) or whose
C code holds Python's lock: such a process counts as alive, the others wait for it, and what it is
told it does once it runs again. A rank 0 in that state prints nothing; a process that fails then
prints its own message and leaves, after `ANSWER_SECONDS`.

On one process there is no Watch.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from hiera_video import cli
from hiera_video.engine import signals
from hiera_video.errors import RunFailed

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

SETTLING_SECONDS = 0.5
"""How long rank 0 waits after a message of failure for a process that is found dead: the failure
may be no more than what the death has led to."""

MAIN_SECONDS = 5.0
"""How long the main thread has to react to a signal before the process leaves without it."""

ANSWER_SECONDS = 10.0
"""How long a process that has failed waits for rank 0 to print why."""

LEAVE_SECONDS = 5.0
"""How long the last words and the exit functions may take: a full pipe would block for ever."""

CONNECT_SECONDS = 60.0

PROBES = {"TCP_KEEPIDLE": 5, "TCP_KEEPALIVE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""Options of the connections: the machine on the other side is asked after 5 s of silence, three
times, every 5 s. TCP_KEEPALIVE is macOS's name of TCP_KEEPIDLE."""

_KEY = "address of rank 0"
_SIGNALS = signals.SIGNALS
_TICK = 0.1


class Ending(NamedTuple):
    """How this process ends."""

    code: int | None
    """The exit code of a failure; None where all processes have finished."""
    text: str = ""
    """What this process prints first; empty for nothing."""


class Report(NamedTuple):
    """A failure, of which process, and when it was heard of."""

    rank: int
    failure: cli.Failure
    at: float


class Own:
    """What this process has to say to the others."""

    def __init__(self) -> None:
        self.report: Report | None = None
        """How it failed."""
        self.finished = False
        """Whether its work is done."""


# ---- connections --------------------------------------------------------------------------------


class Link:
    """A connection that carries messages: dicts, as lines of JSON."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.rank = -1
        """Of the process on the other side; -1 until it has said so."""
        self._unread = b""
        connection.settimeout(2)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in PROBES.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, **message: Any) -> None:
        """Send a message; one that cannot arrive is dropped, and `receive` tells why."""
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> tuple[list[dict[str, Any]], bool]:
        """Return the messages that have come, and whether more can come; call it when there is
        something to read."""
        try:
            data = self.connection.recv(1 << 16)
        except OSError:
            data = b""
        *lines, self._unread = (self._unread + data).split(b"\n")
        try:
            return [dict(json.loads(line)) for line in lines], bool(data)
        except (ValueError, TypeError):  # not one of ours
            return [], False


class Hub:
    """Rank 0's side: it hears of all failures and decides which one is the cause."""

    rank = 0

    def __init__(self, size: int, *, one_machine: bool) -> None:
        self._size = size
        self._token = secrets.token_hex(16)
        self._ranks: dict[int, Link] = {}
        self._finished: set[int] = set()
        self._dead: list[int] = []
        self._reports: list[Report] = []
        if one_machine:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=size)
        else:
            self._listener = _listen_everywhere(backlog=size)
        self._listener.setblocking(False)

    def address(self, hosts: Sequence[str]) -> str:
        """Return what the others need to connect. hosts: names of this machine, the best first."""
        port = self._listener.getsockname()[1]
        return json.dumps({"hosts": hosts, "port": port, "token": self._token})

    def sockets(self) -> list[tuple[socket.socket, Link | None]]:
        """Return what to listen to from the start."""
        return [(self._listener, None)]

    def accept(self) -> Link | None:
        """Take up a connection."""
        try:
            return Link(self._listener.accept()[0])
        except OSError:  # the other side has gone again
            return None

    def hear(self, link: Link, message: dict[str, Any]) -> bool:
        """Take a message; returns False for one that does not come from a process of this run."""
        if link.rank < 0:
            rank = message.get("rank")
            if message.get("token") != self._token or not isinstance(rank, int):
                return False
            link.rank = rank
            self._ranks[rank] = link
        elif "failed" in message:
            failure = cli.Failure(*message["failed"])
            self._reports.append(Report(link.rank, failure, time.monotonic()))
        elif "finished" in message:
            self._finished.add(link.rank)
        return True

    def lost(self, link: Link) -> None:
        """Take note that a connection has ended."""
        told = {report.rank for report in self._reports} | self._finished
        if link.rank > 0 and link.rank not in told:
            self._dead.append(link.rank)

    @property
    def settling(self) -> bool:
        """Whether `decide` is to be asked again soon."""
        return bool(self._reports)

    def decide(self, own: Own, now: float) -> Ending | None:
        """Return how the run ends; None while it does not."""
        if self._dead:
            return _ending_by_death(self._dead)
        if own.report is not None and own.report not in self._reports:
            self._reports.append(own.report)
        if self._reports:
            return self._cause(own) if now > self._reports[0].at + SETTLING_SECONDS else None
        if own.finished and len(self._finished) == self._size - 1:
            return Ending(None)
        return None

    def _cause(self, own: Own) -> Ending:
        """Return the first failure; it bears no rank where this process failed in the same way."""
        first = self._reports[0]
        if own.report is not None and own.report.failure.message == first.failure.message:
            first = own.report
        who = f"rank {first.rank}: " if first.rank else ""
        failure = first.failure
        missing = sorted(set(range(1, self._size)) - set(self._ranks))
        if missing and failure.code > 128:
            # One that died before it joined leads to a signal of torchrun, and to nothing else.
            message = f"{failure.message}; {_ranks(missing)} had not joined the run yet"
            failure = failure._replace(message=message)
        return Ending(failure.code, failure.text(who))

    def announce(self, ending: Ending) -> None:
        """Tell the others that this is the end."""
        for link in self._ranks.values():
            link.send(leave=ending.code)


class Spoke:
    """The side of every other rank: it tells rank 0 what happens here, and does what that says."""

    def __init__(self, rank: int, address: str) -> None:
        self.rank = rank
        self._told = Own()
        self._ending: Ending | None = None
        facts = json.loads(address)
        self._link = Link(_connect(facts["hosts"], facts["port"], rank))
        self._link.rank = 0
        self._link.send(rank=rank, token=facts["token"])

    def sockets(self) -> list[tuple[socket.socket, Link | None]]:
        """Return what to listen to from the start."""
        return [(self._link.connection, self._link)]

    def accept(self) -> Link | None:
        """Nobody connects to this side."""
        return None

    def hear(self, link: Link, message: dict[str, Any]) -> bool:
        """Take a message of rank 0."""
        if "leave" in message:
            self._ending = Ending(message["leave"])
        return True

    def lost(self, link: Link) -> None:
        """Take note that rank 0 has gone."""
        if self._ending is None:
            self._ending = _ending_by_death([0])

    @property
    def settling(self) -> bool:
        """Whether `decide` is to be asked again soon."""
        return self._told.report is not None

    def decide(self, own: Own, now: float) -> Ending | None:
        """Return how the run ends; None while it does not."""
        if self._ending is not None:
            return self._ending
        if own.report is not None:
            if self._told.report is None:
                self._link.send(failed=own.report.failure)
                self._told.report = own.report
            if now > own.report.at + ANSWER_SECONDS:
                return _alone(own)
        elif own.finished and not self._told.finished:
            self._link.send(finished=True)
            self._told.finished = True
        return None

    def announce(self, ending: Ending) -> None:
        """Rank 0 does that."""


def _alone(own: Own) -> Ending | None:
    """Return the ending of a process that can talk to no other."""
    if own.report is None:
        return None
    rank, failure, _ = own.report
    return Ending(failure.code, failure.text(f"rank {rank}: " if rank else ""))


def _ending_by_death(ranks: Sequence[int]) -> Ending:
    message = (
        f"{_ranks(ranks)} ended without a word: killed (by the system, most likely out of memory, "
        "or by a person), crashed, or the machine is lost"
    )
    return Ending(cli.FAILED, cli.Failure(cli.FAILED, message).text())


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _listen_everywhere(backlog: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # a kernel without IPv6
            return socket.create_server(
                ("", 0), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
            )
    return socket.create_server(("", 0), backlog=backlog)


def _connect(hosts: Sequence[str], port: int, rank: int) -> socket.socket:
    """Connect to the first host that answers; RunFailed where none does."""
    reasons = []
    for host in hosts:
        try:
            return socket.create_connection((host, port), timeout=CONNECT_SECONDS)
        except OSError as error:
            reasons.append(f"{host}: {error.strerror or error}")
    raise RunFailed(
        f"rank {rank} cannot reach rank 0 at port {port} ({'; '.join(reasons)}); the machines of a "
        "run must be able to connect to each other at any port"
    )


# ---- the thread ---------------------------------------------------------------------------------


class Watch:
    """The thread of one process of several; see the top of this file.

    start, then join, then either `finish` or `fail`; all of them in the main thread.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._own = Own()
        self._side: Hub | Spoke | None = None
        self._main_waits = False
        self._over = threading.Event()
        self._ending = Ending(None)
        self._inbox, self._outbox = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._signal = 0
        """The signal that ended the main thread; 0: none."""
        self._asked: dict[int, float] = {}
        """Signal -> when it came, of those to which the main thread has to react."""
        self._counts = dict.fromkeys(_SIGNALS, 0)
        self._handlers: dict[int, Any] = {}
        self._wakeup_fd = -1
        self._forking = threading.local()
        """`mask`: the signals that a thread had blocked before its fork that goes on."""

    def start(self) -> None:
        """Take over the signals that ask for a stop, and start the thread. `join` connects it to
        the others."""
        for end in (self._inbox, self._outbox):
            end.setblocking(False)
        self._selector.register(self._inbox, selectors.EVENT_READ)
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._handlers[number] = signal.signal(number, self._handle)
            # The number of each signal is written there at once, whatever the main thread does.
            self._wakeup_fd = signal.set_wakeup_fd(self._outbox.fileno(), warn_on_full_buffer=False)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._hold_signals,
                after_in_parent=self._release_signals,
                after_in_child=self._forget,
            )
        threading.Thread(target=self._watch, daemon=True, name="watches the ranks").start()

    def join(self, store: Store, host: str, *, one_machine: bool) -> None:
        """Connect to the other processes.

        store: shared by all. host: the machine of rank 0, MASTER_ADDR of torchrun.
        one_machine: whether all processes run on one.
        Raises RunFailed where rank 0 cannot be reached.
        """
        if self.rank == 0:
            hub = Hub(self.size, one_machine=one_machine)
            hosts = ["127.0.0.1"] if one_machine else [host, socket.gethostname()]
            store.set(_KEY, hub.address(hosts))
            self._side = hub
        else:
            self._side = Spoke(self.rank, store.get(_KEY).decode())
        self._wake()

    def fail(self, error: BaseException) -> NoReturn:
        """Let rank 0 print what has ended this process, and leave; so do all other processes."""
        self._main_waits = True
        failure = cli.failure_of(error)
        if isinstance(error, KeyboardInterrupt) and self._signal:
            failure = _failure_by(signal.Signals(self._signal))
        self._report(failure)
        self._wake()
        self._leave_when_over()
        raise AssertionError("all processes cannot have finished: this one failed")

    def finish(self) -> None:
        """Wait until every process has come here; leave the process where another one fails."""
        self._main_waits = True
        self._own.finished = True
        self._wake()
        self._leave_when_over()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._handlers:
            signal.set_wakeup_fd(self._wakeup_fd)

    # ---- in the main thread ---------------------------------------------------------------------

    def _handle(self, number: int, frame: object) -> None:
        """A signal outside of a `Stop`, where there is nothing to save."""
        if not self._main_waits:
            self._signal = number
            raise KeyboardInterrupt

    def _report(self, failure: cli.Failure) -> None:
        if self._own.report is None:
            self._own.report = Report(self.rank, failure, time.monotonic())

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it will wake up anyhow
            self._outbox.send(b"\0")

    def _leave_when_over(self) -> None:
        self._over.wait()
        if self._ending.code is not None:
            cli.exit_without_shutdown(self._ending.code)

    def _forget(self) -> None:
        """In a forked child: its signals are not those of this process, and a connection that it
        holds open would hide this one's death."""
        if self._over.is_set():
            self._release_signals()
            return
        if self._handlers:
            signal.set_wakeup_fd(-1)
            for number, handler in self._handlers.items():
                if signal.getsignal(number) == self._handle:
                    signal.signal(number, handler)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._release_signals()

    def _hold_signals(self) -> None:
        """Before a fork: a signal to the child that comes before `_forget` would be written to the
        wakeup socket, which the child shares, and be taken for one to this process."""
        if self._handlers and not self._over.is_set():
            self._forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

    def _release_signals(self) -> None:
        mask = self._forking.__dict__.pop("mask", None)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    # ---- in the thread --------------------------------------------------------------------------

    def _watch(self) -> None:
        try:
            listening = False
            while not self._over.is_set():
                if self._side is not None and not listening:
                    listening = True
                    for connection, link in self._side.sockets():
                        self._selector.register(connection, selectors.EVENT_READ, link)
                self._look()
        except BaseException:  # nobody would notice a thread that has ended
            try:
                traceback.print_exc()
            finally:
                os._exit(cli.FAILED)

    def _look(self) -> None:
        """Wait for something to happen, and act on it."""
        side = self._side
        soon = self._asked or self._own.report or (side is not None and side.settling)
        for key, _ in self._selector.select(_TICK if soon else None):
            if key.fileobj is self._inbox:
                self._take_signals()
            elif key.data is not None:
                self._take_messages(key.data)
            elif side is not None and (link := side.accept()) is not None:
                self._selector.register(link.connection, selectors.EVENT_READ, link)
        now = time.monotonic()
        self._require_reactions(now)
        side = self._side
        ending = _alone(self._own) if side is None else side.decide(self._own, now)
        if ending is not None:
            self._end(ending)

    def _take_messages(self, link: Link) -> None:
        assert self._side is not None
        messages, open_ = link.receive()
        if all(self._side.hear(link, message) for message in messages) and open_:
            return
        self._selector.unregister(link.connection)
        link.connection.close()
        self._side.lost(link)

    def _take_signals(self) -> None:
        for number in self._inbox.recv(1 << 10):
            if number in _SIGNALS:
                self._counts[signal.Signals(number)] += 1
                self._asked.setdefault(number, time.monotonic())

    def _require_reactions(self, now: float) -> None:
        """Leave without the main thread where it has not reacted to a signal, unless a `Stop` took
        the signal up or will do so after the current step."""
        for number, since in list(self._asked.items()):
            if now < since + MAIN_SECONDS:
                continue
            del self._asked[number]
            insisted = number == signal.SIGINT and self._counts[signal.SIGINT] > 1
            taken = signals.taken_at.get(number, -1.0) > since - 1
            ours = signal.getsignal(number) == self._handle
            if not self._main_waits and not taken and (ours or insisted):
                self._report(_failure_by(signal.Signals(number)))

    def _end(self, ending: Ending) -> None:
        """Print why, tell the others, and leave, in the main thread where that waits for it."""
        self._ending = ending
        side = self._side
        if ending.code is None:
            if side is not None:
                side.announce(ending)
            self._over.set()
            return
        last = threading.Timer(LEAVE_SECONDS, os._exit, (ending.code,))
        last.daemon = True
        last.start()
        if ending.text:
            clear = "\r\x1b[K" if sys.stderr.isatty() else ""  # a line of progress may be there
            with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody reads it
                print(clear + ending.text, file=sys.stderr, end="", flush=True)
        if side is not None:
            side.announce(ending)
        if not self._main_waits:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                sys.stdout.flush()
            os._exit(ending.code)
        self._over.set()


def _failure_by(number: signal.Signals) -> cli.Failure:
    if number == signal.SIGINT:
        return cli.failure_of(KeyboardInterrupt())
    return cli.Failure(128 + number, f"stopped by {number.name}")
