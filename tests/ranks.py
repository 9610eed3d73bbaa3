"""Real processes of a run over gloo, mostly without torchrun: nobody but they themselves ends them.

ended = start(main, 2, tmp_path, "argument").wait()
ended[0].code, ended[0].errors
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hiera_video import cli

LIMIT = 100
"""Seconds after which a process counts as one that never ends, on a busy machine."""


class Ended(NamedTuple):
    """How one process ended: its exit code (minus the signal that killed it) and what it wrote."""

    code: int
    output: str
    errors: str


@dataclass
class Ranks:
    """Processes that run, by rank."""

    processes: list
    folder: Path

    def wait(self) -> list[Ended]:
        """Wait for all of them; an AssertionError names those that do not end."""
        end = time.monotonic() + LIMIT
        for process in self.processes:
            process.join(max(0, end - time.monotonic()))
        hanging = [rank for rank, p in enumerate(self.processes) if p.exitcode is None]
        for rank in hanging:
            self.processes[rank].kill()
        ended = [
            Ended(process.exitcode, *(self._written(rank, kind) for kind in ("output", "errors")))
            for rank, process in enumerate(self.processes)
        ]
        assert not hanging, f"these ranks do not end: {hanging}\n{ended}"
        return ended

    def wait_for(self, name: str) -> None:
        """Wait until a process has made the file `name`."""
        end = time.monotonic() + LIMIT
        while not (self.folder / name).exists():
            assert time.monotonic() < end, f"nobody gets to {name!r}"
            time.sleep(0.02)

    def send(self, rank: int, number: int) -> None:
        """Send a signal to one process."""
        os.kill(self.processes[rank].pid, number)

    def _written(self, rank: int, kind: str) -> str:
        return (self.folder / f"{kind}{rank}").read_text()


def start(main: Callable, count: int, folder: Path, *args: object, machines: int = 1) -> Ranks:
    """Start `main(folder, *args)`, a function of a module, as the command of `count` processes.

    machines: how many machines the processes are told that they run on.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "hiera_video.engine.train"])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = []
    for rank in range(count):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count}
        variables |= {
            "LOCAL_WORLD_SIZE": count // machines,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        process = context.Process(target=_run, args=(main, folder, variables, args))
        process.start()
        processes.append(process)
    return Ranks(processes, folder)


def _run(main: Callable, folder: Path, variables: dict, args: tuple) -> None:
    os.environ.update({name: str(value) for name, value in variables.items()})
    for number, kind in ((1, "output"), (2, "errors")):
        file = os.open(folder / f"{kind}{variables['RANK']}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    sys.argv = ["command"]
    cli.run(lambda argv: main(folder, *args))


# ---- with torchrun


def ranks_of(torchrun: subprocess.Popen) -> dict[int, int]:
    """Rank -> process id, of the processes that torchrun has started."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{name}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
            if parent == torchrun.pid:
                with open(f"/proc/{name}/environ", "rb") as file:
                    found[int(file.read().split(b"\0RANK=")[1].split(b"\0")[0])] = int(name)
    return found


def end_torchrun(torchrun: subprocess.Popen) -> None:
    """Kill what torchrun has started, and torchrun."""
    for pid in (torchrun.pid, *ranks_of(torchrun).values()):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    torchrun.communicate()
