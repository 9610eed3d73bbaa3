"""Runs whose processes are killed: torchrun starts all of them again, and they go on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
import tiny_runs as tiny
from conftest import REPOSITORY
from ranks import end_torchrun, ranks_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes in /proc"),
]

RUN = (
    *("SOLVER.MAX_EPOCH", 12, "TRAIN.CHECKPOINT_STEPS", 2, "TRAIN.CHECKPOINT_PERIOD", 100),
    *("TRAIN.EVAL_PERIOD", 0, "TEST.ENABLE", "false", "PAGE.ENABLE", "false"),
)
"""Twenty-four steps with a checkpoint after every second one."""

LEARNT = ("model_state", "optimizer_state", "epoch_sums", "step")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The command line of a run of RUN into a folder."""
    cfg = tiny.empty(tmp_path_factory.mktemp("cfg"))
    videos = tiny.write_videos(tmp_path_factory.mktemp("videos"), train=8)
    return lambda out, *more: ["--cfg", cfg, *tiny.settings(videos, out, *RUN, *more)]


WITHOUT_DROPOUT = ("MODEL.DROPOUT_RATE", 0, "HIERA.DROPPATH_RATE", 0)
"""What is drawn for a clip depends on the number of processes."""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, words):
    """The folder of RUN on two processes to which nothing happens."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    done = tiny.run_child(*words(out), processes=2)
    assert done.returncode == 0, done.stderr
    return out


@contextlib.contextmanager
def torchrun(words, *, processes=2, restarts=3):
    """A run under torchrun that may start anew; killed at the end if it is still there."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += [f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    child = subprocess.Popen(
        [*launcher, str(REPOSITORY / "tools" / "run_net.py"), *map(str, words)],
        env=tiny.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        end_torchrun(child)


def wait_for_step(child, out, step):
    """Wait until the records hold a step; the processes that take it, by rank."""
    end = time.monotonic() + 120
    while max([0, *(tiny.losses(out) if (out / "metrics.jsonl").exists() else ())]) < step:
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < end, f"step {step} does not come"
        time.sleep(0.02)
    return ranks_of(child)


def test_a_run_of_which_processes_are_killed_ends_with_the_weights_of_an_unbroken_one(
    unbroken, words, tmp_path
):
    """First one that waits for rank 0, then rank 0, which holds the folder."""
    out = tmp_path / "out"
    with torchrun(words(out)) as child:
        os.kill(wait_for_step(child, out, 5)[1], signal.SIGKILL)
        os.kill(wait_for_step(child, out, 11)[0], signal.SIGKILL)
        said, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors
    assert said.count("going on from") == 2, said
    assert "error: rank 1 ended without a word: killed" in errors
    for key in LEARNT:
        assert tiny.same(tiny.final(unbroken)[key], tiny.final(out)[key]), key
    assert tiny.losses(unbroken) == tiny.losses(out)


def test_restarts_are_counted(words, tmp_path):
    """What fails each time ends with its cause."""
    with torchrun(words(tmp_path / "out", "MODEL.MODEL_NAME", "none_such"), restarts=1) as child:
        _, errors = child.communicate(timeout=300)
    assert child.returncode == 1
    assert errors.count("error: unknown model 'none_such'") == 2


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 1), (1, 2)])
def test_a_killed_run_goes_on_with_another_number_of_processes(words, tmp_path, before, after):
    """The result is the same but for the rounding of sums."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    done = tiny.run_child(*words(whole, *WITHOUT_DROPOUT))
    assert done.returncode == 0, done.stderr
    with torchrun(words(out, *WITHOUT_DROPOUT), processes=before, restarts=0) as child:
        os.kill(wait_for_step(child, out, 7)[before - 1], signal.SIGKILL)
        child.communicate(timeout=300)
    assert child.returncode == 1
    done = tiny.run_child(*words(out, *WITHOUT_DROPOUT), processes=after if after > 1 else 0)
    assert done.returncode == 0, done.stderr
    assert "going on from" in done.stdout
    assert tiny.losses(out) == pytest.approx(tiny.losses(whole), rel=1e-4)
