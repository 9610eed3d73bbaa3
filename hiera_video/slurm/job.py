"""What each task of a submitted job does: run the trainer, and queue the job again if it must stop.

submitit starts one task for each GPU, and the trainer runs in a child of the task. The signals that
ask a job to stop go on to it: it finishes its step, saves and ends with `STOPPED`. Then the first
task has the job queued again, and the same command goes on. What fails is not queued again.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hiera_video.engine.launch import Launch, port_of

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

STOPPED = 75
"""Exit code of a trainer that was stopped and has saved its state."""

WARNING = signal.SIGUSR2
"""What submitit has Slurm send before the time is over."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, WARNING)

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class TrainingJob:
    """A picklable function that trains, for submitit."""

    words: tuple[str, ...]
    """Command line of `hiera-video train`."""
    most_requeues: int
    requeues: int = 0
    """How often the job was queued again so far."""

    def __call__(self) -> None:
        """Train as one of the tasks. Ends the process where the trainer does not end with 0."""
        task = _Task([sys.executable, "-m", "hiera_video", "train", *self.words])
        code = task.run()
        if not task.must_go_on(code):
            if code:
                sys.exit(code if code > 0 else 128 - code)
            return
        if not task.is_first:
            return
        if self.requeues >= self.most_requeues:
            print(f"error: stopped again after {self.requeues} requeues (--max-requeues): the job "
                  "is not queued again. The state is saved; the same command goes on",
                  file=sys.stderr, flush=True)  # fmt: skip
            sys.exit(code if code > 0 else 128 - code)
        print(f"queued again, {self.requeues + 1} of at most {self.most_requeues}", flush=True)
        signal.raise_signal(WARNING)  # submitit calls `checkpoint`, queues the job and exits

    def checkpoint(self) -> DelayedSubmission:
        """Return what the job does once it is queued again; submitit calls this."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(dataclasses.replace(self, requeues=self.requeues + 1))


class _Task:
    """The trainer of this task, and the signals that came meanwhile."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._child: subprocess.Popen[bytes] | None = None
        self._received: set[int] = set()
        self._on_slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"

    @property
    def is_first(self) -> bool:
        """Whether this is task 0, which queues the job again."""
        return os.environ["SLURM_PROCID" if self._on_slurm else "SUBMITIT_LOCAL_GLOBALID"] == "0"

    def run(self) -> int:
        """Run the trainer to its end; returns its exit code, minus a signal that killed it."""
        before = {number: signal.signal(number, self._pass_on) for number in _SIGNALS}
        self._child = subprocess.Popen(self._command, env=self._environment())
        for number in self._received:  # before there was a child
            self._child.send_signal(number)
        code = self._child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
        return code

    def must_go_on(self, code: int) -> bool:
        """Whether the job was stopped before its end, and is to be queued again.

        A signal that came before there was anything to save has ended the trainer as it is.
        """
        ended = (-WARNING, 128 + WARNING, -signal.SIGTERM, 128 + signal.SIGTERM)
        if code != STOPPED and not (self._received and code in ended):
            return False
        if WARNING in self._received:
            return True
        # SIGTERM alone: Slurm makes room for another job, or a person has cancelled this one
        return self._on_slurm and _is_running(os.environ["SLURM_JOB_ID"])

    def _pass_on(self, number: int, frame: types.FrameType | None) -> None:
        self._received.add(number)
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)

    def _environment(self) -> dict[str, str]:
        """Return the variables of the trainer: Slurm's own say where a task is, and submitit's
        local ones are put into those of torchrun."""
        found = {name: value for name, value in os.environ.items() if name not in _TORCHRUN}
        tasks = int(found.get("SUBMITIT_LOCAL_NTASKS", 1))
        if not self._on_slurm:
            found = {n: v for n, v in found.items() if not n.startswith("SLURM_")}
        if not self._on_slurm and tasks > 1:
            rank = int(found["SUBMITIT_LOCAL_GLOBALID"])
            port = port_of(int(found["SUBMITIT_LOCAL_JOB_ID"]), 0)
            found |= Launch(rank, tasks, rank, tasks, "127.0.0.1", port).variables()
        return found


def _is_running(job: str) -> bool:
    """Whether Slurm counts the job as running, and not as cancelled or queued again already."""
    asked = subprocess.run(
        ["scontrol", "show", "job", job], capture_output=True, text=True, timeout=60, check=False
    )
    return "JobState=RUNNING" in asked.stdout.split()
