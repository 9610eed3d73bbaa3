"""Submits a training job: to Slurm, or to this machine.

submitit writes the script of sbatch, pickles what the tasks do, and starts them.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

from hiera_video.errors import RunFailed, UserError, kind_and_line
from hiera_video.slurm.job import TrainingJob

if TYPE_CHECKING:
    from submitit import Executor

PACKAGE = Path(__file__).resolve().parent.parent.parent
"""The folder that holds the package, which tasks import it from."""

_TIMES = (
    (r"(\d+)", (0, 0, 1, 0)),
    (r"(\d+):(\d\d)", (0, 0, 1, 2)),
    (r"(\d+):(\d\d):(\d\d)", (0, 1, 2, 3)),
    (r"(\d+)-(\d+)", (1, 2, 0, 0)),
    (r"(\d+)-(\d+):(\d\d)", (1, 2, 3, 0)),
    (r"(\d+)-(\d+):(\d\d):(\d\d)", (1, 2, 3, 4)),
)
"""Slurm's spellings of a time; which group holds days, hours, minutes and seconds, 0 for none."""


def minutes_of(text: str) -> int:
    """Return a time limit in minutes, rounded up; UserError for what Slurm does not read."""
    for pattern, places in _TIMES:
        match = re.fullmatch(pattern, text)
        if match is not None:
            days, hours, minutes, seconds = (int(match[p]) if p else 0 for p in places)
            total = -(-(((days * 24 + hours) * 60 + minutes) * 60 + seconds) // 60)
            if total:
                return total
    raise UserError(
        f"--time {text}: write it as Slurm does: 90 (minutes), 12:00:00 (hours), "
        "2-00:00:00 (days-hours), and more than nothing"
    )


@dataclass(frozen=True)
class Resources:
    """What a job asks for."""

    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    minutes: int
    warning_seconds: int
    """How long before the end of its time the job is told to stop."""
    name: str
    options: dict[str, str | bool]
    """More options of sbatch, by their long names; True for those without a value."""
    setup: tuple[str, ...] = ()
    """Lines of the script before the tasks start."""

    @property
    def tasks(self) -> int:
        """Processes of the trainer."""
        return self.nodes * self.tasks_per_node


@dataclass(frozen=True)
class Submitted:
    """A job that was handed over."""

    number: str
    cancel: str
    """The command that cancels it."""
    log: Path
    """What its first task prints."""


def require_slurm() -> None:
    """Raise UserError where jobs cannot be submitted from this machine."""
    missing = [name for name in ("sbatch", "srun") if shutil.which(name) is None]
    if missing:
        raise UserError(
            f"no {' and no '.join(missing)} on this machine: submit from a login node of the "
            "cluster. --dry-run prints the script, and --local runs the job here"
        )


def script(folder: Path, resources: Resources) -> str:
    """Return the script of sbatch; nothing is written."""
    slurm = _import_submitit().SlurmExecutor

    class Writer(slurm):  # type: ignore[misc, valid-type]  # it is imported late
        """Needs no Slurm: it only writes the script."""

        @classmethod
        def affinity(cls) -> int:
            return 1

    executor = Writer(folder)
    executor.update_parameters(**_sbatch_parameters(resources))
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
    return text


def submit(folder: Path, job: TrainingJob, resources: Resources) -> Submitted:
    """Submit a job to Slurm. folder: for its script, its pickles and its logs.

    Raises RunFailed with what sbatch says where it refuses the job.
    """
    submitit = _import_submitit()
    executor = submitit.SlurmExecutor(folder, max_num_timeout=job.most_requeues)
    executor.update_parameters(**_sbatch_parameters(resources))
    return _handed_over(executor, job)


def start_here(folder: Path, job: TrainingJob, resources: Resources) -> Submitted:
    """Start a job on this machine, in a session of its own: it outlives this process and its
    terminal."""
    submitit = _import_submitit()
    folder.mkdir(parents=True, exist_ok=True)
    executor = submitit.LocalExecutor(folder, max_num_timeout=job.most_requeues)
    executor.update_parameters(
        timeout_min=resources.minutes,
        tasks_per_node=resources.tasks_per_node,
        gpus_per_node=resources.gpus_per_node,
        signal_delay_s=resources.warning_seconds,
        stderr_to_stdout=True,
    )
    with tempfile.TemporaryFile("w+") as answer:
        starter = os.fork()  # submitit's process would keep this one's terminal, and pipes, open
        if starter == 0:
            _start_detached(executor, job, answer)
        _, status = os.waitpid(starter, 0)
        answer.seek(0)
        number, _, log = answer.read().partition("\n")
    if status or not log:
        raise RunFailed(f"submitit could not start the job: {number or 'it says nothing'}")
    return Submitted(number, f"kill -INT {number}", Path(log))


def _start_detached(executor: Executor, job: TrainingJob, answer: IO[str]) -> NoReturn:
    """In a child: start the job and write its number and its log; or what went wrong."""
    failed = 1
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nothing, number)
        handed = executor.submit(job)
        answer.write(f"{handed.job_id}\n{handed.paths.stdout}")
        failed = 0
    except Exception as error:
        answer.write(kind_and_line(error))
    finally:
        answer.flush()
        os._exit(failed)


def _handed_over(executor: Executor, job: TrainingJob) -> Submitted:
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    with contextlib.redirect_stderr(io.StringIO()):
        try:  # submitit prints what sbatch says, and raises it as well
            handed = executor.submit(job)
        except (FailedJobError, FailedSubmissionError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            said = [line for line in lines if "error" in line.lower()] or lines[-1:]
            raise RunFailed(f"sbatch refused the job: {'; '.join(said)}") from error
    number = str(handed.job_id)
    return Submitted(number, f"scancel {number}", Path(handed.paths.stdout))


def _sbatch_parameters(resources: Resources) -> dict[str, Any]:
    setup = [f"export PYTHONPATH={shlex.quote(str(PACKAGE))}${{PYTHONPATH:+:$PYTHONPATH}}"]
    more: dict[str, Any] = {"requeue": True, **resources.options}
    if resources.gpus_per_node:
        more["gpus-per-node"] = resources.gpus_per_node
    return {
        "job_name": resources.name,
        "time": resources.minutes,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "signal_delay_s": resources.warning_seconds,
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's own is refused where Slurm keeps accounts of them
        "setup": [*setup, *resources.setup],
        # a task that fails ends the others, which would wait for it
        "srun_args": ["--kill-on-bad-exit=1", *_cpus(resources.options)],
        "additional_parameters": more,
    }


def _cpus(options: dict[str, str | bool]) -> Sequence[str]:
    """Return the option of srun that since Slurm 22.05 is not taken from sbatch."""
    count = options.get("cpus-per-task")
    return [f"--cpus-per-task={count}"] if count else []


def _import_submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise UserError(
            "submitting jobs needs the package submitit: pip install 'hiera_video[slurm]' (or "
            "pip install submitit)"
        ) from None
    return submitit
