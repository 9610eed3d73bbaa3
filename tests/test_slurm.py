"""Jobs of Slurm: what is submitted, and runs that are stopped, queued again and go on."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_slurm
import pytest
import tiny_runs as tiny
from conftest import REPOSITORY

from hiera_video.commands import slurm
from hiera_video.errors import UserError
from hiera_video.slurm.submission import minutes_of

pytest.importorskip("submitit")

LEARNT = ("model_state", "optimizer_state", "epoch_sums", "step")

RUN = (
    *("SOLVER.MAX_EPOCH", 16, "TRAIN.CHECKPOINT_PERIOD", 100, "TRAIN.EVAL_PERIOD", 0),
    *("TEST.ENABLE", "false", "PAGE.ENABLE", "false"),
)
"""Thirty-two steps; nothing is saved but for a signal."""


# ---- what is submitted --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        *(("90", 90), ("1:30", 2), ("12:00:00", 720), ("2-00:00:00", 2880), ("2-12", 3600)),
        *(("1-02:03", 1563), ("00:00:01", 1)),
    ],
)
def test_times_as_slurm_writes_them(text, minutes):
    assert minutes_of(text) == minutes


@pytest.mark.parametrize("text", ["", "0", "00:00:00", "2d", "1:2:3:4", "1-", "-5", "1:5"])
def test_other_times_are_refused(text):
    with pytest.raises(UserError, match=r"12:00:00 .hours., 2-00:00:00"):
        minutes_of(text)


def words(*more):
    return ["--cfg", "small/finetune_folder", "--time", "2-00:00:00", *map(str, more)]


def test_the_script_is_printed_and_nothing_is_made(tmp_path, capsys):
    out = tmp_path / "it's out"
    more = ("--nodes", 2, "--gpus-per-node", 4, "--partition", "gpu", "--cpus-per-task", 8,
            "--mem", "64G", "--sbatch", "exclusive", "--sbatch", "exclude=node7",
            "--setup", "module load cuda", "OUTPUT_DIR", out)  # fmt: skip
    assert slurm.main(words("--dry-run", *more)) == 0
    lines = capsys.readouterr().out.splitlines()
    wanted = {
        *("nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "time=2880", "signal=USR2@120"),
        *("requeue", "open-mode=append", "partition=gpu", "mem=64G", "exclusive", "job-name=hiera"),
        *("exclude=node7", "cpus-per-task=8"),
    }
    assert wanted <= {line.removeprefix("#SBATCH --") for line in lines}
    assert "module load cuda" in lines
    (started,) = [line for line in lines if line.startswith("srun ")]
    assert "--kill-on-bad-exit=1 --cpus-per-task=8" in started
    assert not any("wckey" in line for line in lines)
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--time", "2d"), "--time 2d: write it as Slurm does"),
        (("--time", "1"), "--warning 120 s is not before the end of --time 1; lower it"),
        (("--nodes", 2, "--local"), "--local is for one machine, and --nodes is 2"),
        (("--gpus-per-node", 7), r"TRAIN.BATCH_SIZE \d+ does not divide by 7 processes"),
        (("--sbatch", "Exclude node7"), "write NAME=VALUE, such as exclude=node7"),
        (("SOLVER.BASE_LRR", 1), "unknown config key SOLVER.BASE_LRR"),
        ((), "no sbatch and no srun on this machine.*--dry-run prints the script, and --local"),
        (("--local", "OUTPUT_DIR", "/proc/none"), "cannot write to OUTPUT_DIR /proc/none"),
    ],
)
def test_what_cannot_run_is_not_submitted(more, said, tmp_path, monkeypatch):
    if shutil.which("sbatch") is not None:
        pytest.skip("this machine has Slurm")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        slurm.main(words(*more))
    assert not list(tmp_path.iterdir())


def test_without_submitit_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'hiera_video\[slurm\]'"):
        slurm.main(words("--dry-run"))


# ---- jobs that run ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_words(tmp_path_factory):
    """KEY VALUE words of RUN into a folder, with their config file."""
    cfg = tiny.empty(tmp_path_factory.mktemp("cfg"))
    videos = tiny.write_videos(tmp_path_factory.mktemp("videos"), train=8)
    return lambda out, *more: ["--cfg", cfg, *tiny.settings(videos, out, *RUN, *more)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, run_words):
    """The folder of RUN on two processes to which nothing happens."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    done = tiny.run_child(*run_words(out), processes=2)
    assert done.returncode == 0, done.stderr
    return out


class Job:
    """A job that was submitted from the command line; nothing of it is left at the end."""

    def __init__(self, out: Path, command_line, **variables):
        self.out = out
        done = subprocess.run(
            [sys.executable, str(REPOSITORY / "tools" / "slurm.py"), *map(str, command_line)],
            env={**tiny.environment(), **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        self.said = done.stdout
        self.number = re.search(r"job (\d+), 2 processes", done.stdout)[1]

    @property
    def log(self):
        """What both tasks have printed."""
        logs = sorted((self.out / "slurm").glob(f"{self.number}_*_log.*"))
        return "".join(path.read_text() for path in logs)

    def wait_for(self, condition, what):
        end = time.monotonic() + 200
        while not condition():
            assert time.monotonic() < end, f"{what} does not come\n{self.log}"
            time.sleep(0.05)

    def wait_for_step(self, step):
        records = self.out / "metrics.jsonl"
        self.wait_for(
            lambda: max([0, *(tiny.losses(self.out) if records.exists() else ())]) >= step,
            f"step {step}",
        )

    def wait_for_word(self, text, count=1):
        self.wait_for(lambda: self.log.count(text) >= count, repr(text))

    def processes(self):
        """Process ids of whatever was started for this job."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if str(self.out) in Path(f"/proc/{name}/cmdline").read_text():
                    found.append(int(name))
        return found

    def end(self):
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def assert_same_run(unbroken, out):
    for key in LEARNT:
        assert tiny.same(tiny.final(unbroken)[key], tiny.final(out)[key]), key
    assert tiny.losses(unbroken) == tiny.losses(out)


@pytest.fixture
def local(run_words, tmp_path):
    """Start RUN with two tasks through submitit's executor for this machine."""
    jobs = []

    def start(*more):
        out = tmp_path / "out"
        options = ("--local", "--time", 60, "--tasks-per-node", 2)
        jobs.append(Job(out, [*options, *run_words(out, *more)]))
        return jobs[-1]

    yield start
    for job in jobs:
        job.end()


def tasks_of(controller):
    """The tasks that submitit's controller has started."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError):
            facts = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            if facts[1] == controller:
                found.append(int(name))
    return found


@pytest.mark.slow
def test_slurm_job_on_this_machine_is_warned_and_goes_on(local, unbroken):
    """Twice: every time the run saves, starts anew and has learnt what an unbroken one learns."""
    job = local()
    for step in (4, 12):
        job.wait_for_step(step)
        for pid in tasks_of(job.number):
            os.kill(pid, signal.SIGUSR2)
        job.wait_for_word("going on from", 1 + (step > 4))
    job.wait_for_word("trained: step 32 of 32")
    assert job.log.count("stopped by SIGUSR2 after step") == 2
    assert "queued again, 2 of at most 100" in job.log
    assert_same_run(unbroken, job.out)


@pytest.mark.slow
def test_slurm_job_that_is_asked_to_stop_stops(local):
    """SIGTERM on this machine comes from a person."""
    job = local()
    job.wait_for_step(3)
    for pid in tasks_of(job.number):
        os.kill(pid, signal.SIGTERM)
    job.wait_for_word("stopped by SIGTERM after step")
    job.wait_for(lambda: not job.processes(), "its end")
    assert "queued again" not in job.log
    assert 3 <= tiny.final(job.out)["step"] < 32


@pytest.fixture
def cluster(run_words, tmp_path):
    """Start RUN with two tasks on a Slurm that is made up."""
    (tmp_path / "slurm").mkdir()
    variables = fake_slurm.install(tmp_path / "slurm")
    jobs = []

    def start(*more):
        out = tmp_path / "out"
        options = ("--time", 60, "--tasks-per-node", 2)
        jobs.append(Job(out, [*options, *more, *run_words(out)], **variables))
        return jobs[-1], lambda *words: subprocess.run(
            words, env={**os.environ, **variables}, check=True
        )

    yield start
    for job in jobs:
        job.end()


def state(tmp_path, job):
    path = tmp_path / "slurm" / job.number / "state"
    return path.read_text() if path.exists() else ""


@pytest.mark.slow
def test_slurm_queues_a_run_again_that_it_warned_or_preempted(cluster, unbroken, tmp_path):
    """The warning before the end of its time, then SIGTERM for another job; both go to all that
    the tasks have started."""
    job, call = cluster()
    assert f"cancel: scancel {job.number}" in job.said
    job.wait_for_step(4)
    call("scancel", "--signal=USR2", job.number)
    job.wait_for_word("going on from")
    job.wait_for_step(12)
    call("scancel", "--signal=TERM", job.number)
    job.wait_for(lambda: state(tmp_path, job).startswith("DONE"), "its end")
    assert state(tmp_path, job) == "DONE 0"
    assert "trained: step 32 of 32" in job.log
    assert job.log.count("going on from") == 2
    assert f"Slurm step {job.number}.0: process 0 of 2, 2 on this machine" in job.log
    assert_same_run(unbroken, job.out)


@pytest.mark.slow
def test_slurm_does_not_queue_a_job_again_that_a_person_cancelled(cluster, tmp_path):
    job, call = cluster()
    job.wait_for_step(3)
    call("scancel", job.number)
    job.wait_for_word("stopped by SIGTERM after step")
    job.wait_for(lambda: not job.processes(), "its end")
    assert state(tmp_path, job) == "CANCELLED"
    assert "queued again" not in job.log


@pytest.mark.slow
def test_slurm_does_not_queue_a_run_again_that_fails_or_stops_too_often(cluster, tmp_path):
    job, call = cluster("--max-requeues", 0)
    job.wait_for_step(3)
    call("scancel", "--signal=USR2", job.number)
    job.wait_for(lambda: state(tmp_path, job).startswith("DONE"), "its end")
    assert state(tmp_path, job) == "DONE 75"
    assert "error: stopped again after 0 requeues (--max-requeues)" in job.log
    checkpoint = sorted((job.out / "checkpoints").glob("*.pyth"))[-1]
    for path in (job.out / "checkpoints").glob("*.pyth"):
        path.unlink()
    checkpoint.mkdir()  # nothing can be read, or written in its place
    job, call = cluster()
    job.wait_for(lambda: state(tmp_path, job).startswith("DONE"), "its end")
    assert state(tmp_path, job) in ("DONE 1", "DONE 2")
    assert "queued again" not in job.log.rpartition("Starting with")[2]


@pytest.mark.slow
def test_slurm_says_why_it_refuses_a_job(run_words, tmp_path):
    (tmp_path / "slurm").mkdir()
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tools" / "slurm.py"), "--time", "60"]
        + ["--partition", "none", *map(str, run_words(tmp_path / "out"))],
        env={**tiny.environment(), **fake_slurm.install(tmp_path / "slurm")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: sbatch refused the job: sbatch: error: invalid partition specified: none\n"
    )
