"""Who started this process, and with how many others: torchrun, Slurm's srun, or nobody.

torchrun says it in RANK, WORLD_SIZE, LOCAL_RANK and MASTER_*. Under srun none of them is set, and
Slurm's own variables say the same. The shell of `salloc` and the script of `sbatch` have most of
these variables too, for tasks that do not exist yet: a process there is alone, and says so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from hiera_video.engine import slurm_names
from hiera_video.errors import UserError

FIRST_PORT, PORTS = 10_000, 20_000
"""Ports that meetings of Slurm's tasks use, below those that systems give to connections."""

_SPECIAL_STEPS = 0xFFFFFFF0
"""Numbers of steps from here on are no srun: the batch script, an interactive shell, ..."""


@dataclass(frozen=True)
class Launch:
    """A process among those that were started with it."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the processes of this machine."""
    local_size: int = 1
    address: str = ""
    """Machine of rank 0, where all meet; empty for one process."""
    port: int = 0
    note: str = ""
    """What Slurm's variables were taken for; empty without Slurm."""

    def variables(self) -> dict[str, str]:
        """Return what torchrun sets, which libraries and the end of a command read as well."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def find_launch(variables: Mapping[str, str] | None = None) -> Launch:
    """Read how this process was started. variables: None for the environment of this process.

    Raises UserError: variables that are only partly set, or make no sense.
    """
    found = os.environ if variables is None else variables
    if found.get("WORLD_SIZE"):
        return _of_torchrun(found)
    tasks = _number(found, "SLURM_STEP_NUM_TASKS") or _number(found, "SLURM_NTASKS")
    if _is_step(found):
        if tasks > 1:
            return _of_srun(found, tasks)
    elif tasks > 1:
        job = found.get("SLURM_JOB_ID", "?")
        return Launch(
            note=f"Slurm job {job} has {tasks} tasks, and this process is none of them: it was "
            f"started without srun, so it runs alone (for {tasks}: srun hiera-video train ...)"
        )
    return Launch()


def _of_torchrun(found: Mapping[str, str]) -> Launch:
    size = _number(found, "WORLD_SIZE")
    if size == 1:
        return Launch()
    needed = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in found]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {size} but {', '.join(missing)} is not set; start "
            "several processes with: torchrun --nproc-per-node N -m hiera_video train ..."
        )
    return Launch(
        rank=_number(found, "RANK"),
        size=size,
        local_rank=_number(found, "LOCAL_RANK"),
        local_size=_number(found, "LOCAL_WORLD_SIZE") or 1,
        address=found["MASTER_ADDR"],
        port=_number(found, "MASTER_PORT"),
    )


# ---- Slurm --------------------------------------------------------------------------------------


def _is_step(found: Mapping[str, str]) -> bool:
    """Whether srun started this process. SLURM_PROCID alone does not say so: it is 0 in the script
    of sbatch."""
    step = found.get("SLURM_STEP_ID", found.get("SLURM_STEPID", ""))
    return step.isdigit() and int(step) < _SPECIAL_STEPS and "SLURM_PROCID" in found


def _of_srun(found: Mapping[str, str], tasks: int) -> Launch:
    rank, local_rank = _number(found, "SLURM_PROCID"), _number(found, "SLURM_LOCALID")
    job, step = _number(found, "SLURM_JOB_ID"), _number(found, "SLURM_STEP_ID", "SLURM_STEPID")
    if not rank < tasks:
        raise UserError(f"SLURM_PROCID is {rank} of {tasks} tasks; Slurm's variables were changed")
    nodelist = found.get("SLURM_STEP_NODELIST") or found.get("SLURM_JOB_NODELIST") or ""
    try:
        machines = slurm_names.hosts(nodelist) if nodelist else [""]
        local_size = _tasks_here(found, tasks, len(machines))
    except ValueError as error:
        raise UserError(
            f"Slurm's variables make no sense: {error}. Start the processes with torchrun, or set "
            "RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT for each"
        ) from None
    # The name of a single machine need not lead back to it, as in a container.
    address = "127.0.0.1" if len(machines) == 1 else machines[0]
    address = found.get("MASTER_ADDR") or address
    port = _number(found, "MASTER_PORT") or port_of(job, step)
    return Launch(
        rank=rank,
        size=tasks,
        local_rank=local_rank,
        local_size=local_size,
        address=address,
        port=port,
        note=f"Slurm step {job}.{step}: process {rank} of {tasks}, {local_size} on this machine; "
        f"they meet at {address}:{port}",
    )


def _tasks_here(found: Mapping[str, str], tasks: int, machines: int) -> int:
    """Return how many tasks this machine has; ValueError for variables that are wrong."""
    listed = found.get("SLURM_STEP_TASKS_PER_NODE") or found.get("SLURM_TASKS_PER_NODE")
    if listed:
        counts = slurm_names.tasks_on_nodes(listed)
        number = _number(found, "SLURM_NODEID")
        if number < len(counts):
            return counts[number]
    return _number(found, "SLURM_NTASKS_PER_NODE") or -(-tasks // machines)


def port_of(job: int, step: int) -> int:
    """Return the port at which the tasks of a step meet: jobs that follow each other, and the steps
    of one, have different ones."""
    return FIRST_PORT + (job + 1009 * step) % PORTS


def _number(found: Mapping[str, str], *names: str) -> int:
    """Return the first of these variables that is set, as a number; 0 where none is."""
    for name in names:
        text = found.get(name)
        if text:
            if not text.isdigit():
                raise UserError(f"the variable {name} is {text!r}; it must be a number")
            return int(text)
    return 0
