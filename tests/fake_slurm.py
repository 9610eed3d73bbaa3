#!/usr/bin/env python
"""Slurm on one machine, as far as a job of `hiera-video slurm` needs it.

install(folder) puts sbatch, srun, scontrol and scancel there, all of them this file. A job is a
folder FAKE_SLURM/NUMBER with `state` and, of its tasks, their process ids.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

NAMES = ("sbatch", "srun", "scontrol", "scancel")


def install(folder: Path) -> dict[str, str]:
    """Make the commands; returns the variables with which they are found."""
    (folder / "bin").mkdir()
    for name in NAMES:
        path = folder / "bin" / name
        text = Path(__file__).read_text().split("\n", 1)[1]
        path.write_text(f"#!{sys.executable}\n{text}")
        path.chmod(0o755)
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    return {"FAKE_SLURM": str(folder), "PATH": path}


def home() -> Path:
    return Path(os.environ["FAKE_SLURM"])


def sbatch(words):
    """Queue a job; it starts at once, in the background."""
    script = Path(words[-1])
    text = script.read_text()
    if "--partition=none" in text:
        sys.exit("sbatch: error: invalid partition specified: none")
    job = 5000 + os.getpid() % 1000
    folder = home() / str(job)
    folder.mkdir()
    (folder / "script").write_text(text)
    subprocess.Popen(
        [sys.executable, __file__, "controller", str(job)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    print(f"Submitted batch job {job}")


def controller(words):
    """Run the script of a job, again when it is queued again."""
    job = words[0]
    folder = home() / job
    text = (folder / "script").read_text()
    tasks = re.search(r"--ntasks-per-node=(\d+)", text)[1]
    for restart in range(20):
        (folder / "requeue").unlink(missing_ok=True)
        variables = {"SLURM_JOB_ID": job, "SLURM_NTASKS": tasks, "SLURM_PROCID": "0"}
        variables |= {"SLURM_JOB_NODELIST": "here", "SLURM_TASKS_PER_NODE": tasks}
        variables |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_RESTART_COUNT": str(restart)}
        (folder / "state").write_text("RUNNING")
        code = subprocess.call(["bash", str(folder / "script")], env={**os.environ, **variables})
        if not (folder / "requeue").exists():
            break
    cancelled = (folder / "state").read_text() == "CANCELLED"
    (folder / "state").write_text("CANCELLED" if cancelled else f"DONE {code}")


def srun(words):
    """Start the tasks of a job as one step."""
    output = words[words.index("--output") + 1].replace("%j", os.environ["SLURM_JOB_ID"])
    command = words[words.index(sys.executable) :]
    folder = home() / os.environ["SLURM_JOB_ID"]
    tasks = []
    for rank in range(int(os.environ["SLURM_NTASKS"])):
        place = {"SLURM_STEP_ID": "0", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        with open(output.replace("%t", str(rank)), "a") as file:
            tasks.append(
                subprocess.Popen(
                    command,
                    env={**os.environ, **place, "SLURM_NODEID": "0"},
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )
            )
    (folder / "tasks").write_text(" ".join(str(task.pid) for task in tasks))
    while any(task.poll() is None for task in tasks):
        failed = any(task.poll() for task in tasks)
        if failed or (folder / "requeue").exists():  # --kill-on-bad-exit, or Slurm makes room
            time.sleep(3)
            for task in tasks:
                if task.poll() is None:
                    os.killpg(task.pid, signal.SIGKILL)
        time.sleep(0.1)
    sys.exit(max(abs(task.returncode) for task in tasks))


def scontrol(words):
    folder = home() / words[-1]
    if words[0] == "requeue":
        (folder / "requeue").touch()
    else:
        print(f"JobId={words[-1]}\n   JobState={(folder / 'state').read_text()} Reason=None")


def scancel(words):
    """With --signal=S: send it, to the tasks and all that they have started."""
    folder = home() / words[-1]
    number = signal.SIGTERM
    if words[0].startswith("--signal="):
        number = getattr(signal, f"SIG{words[0].partition('=')[2]}")
    else:
        (folder / "state").write_text("CANCELLED")
    for pid in (folder / "tasks").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid), number)


if __name__ == "__main__":
    chosen = Path(sys.argv[0]).name
    arguments = sys.argv[1:]
    if arguments[:1] == ["controller"]:
        controller(arguments[1:])
    else:
        {"sbatch": sbatch, "srun": srun, "scontrol": scontrol, "scancel": scancel}[chosen](
            arguments
        )
