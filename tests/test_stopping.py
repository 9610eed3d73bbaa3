"""Several processes, of which one or all receive a signal: all of them end soon."""

import os
import signal
import subprocess
import time

import pytest
import tiny_runs as tiny
from ranks import end_torchrun, ranks_of

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

SLOW = """
import os, time
from torch import nn
from hiera_video.registry import MODEL_REGISTRY

RANK = os.environ.get("RANK", "0")
PAUSES = dict(zip("01", map(float, os.environ["PAUSES"].split()), strict=True))

@MODEL_REGISTRY.register
class Slow(nn.Module):
    def __init__(self, num_classes: int = 3):
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, clips):
        kind = "train" if self.training else "eval"
        with open(f"{kind}{RANK}", "a") as file:
            file.write(".")
        time.sleep(PAUSES[RANK])
        return self.head(clips.mean(dim=(2, 3, 4)))
"""
"""A slow model that counts its calls in a file of each process."""

VIDEOS = 24
"""Validation videos: twelve for each process."""

SETTINGS = (
    *("MODEL.MODEL_NAME", "Slow", "MODEL.DROPOUT_RATE", "None", "HIERA.DROPPATH_RATE", "None"),
    *("IMPORTS", "slow", "TEST.BATCH_SIZE", 1, "TEST.NUM_ENSEMBLE_VIEWS", 1),
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return tiny.write_videos(tmp_path_factory.mktemp("videos"), train=8, val=VIDEOS)


@pytest.fixture
def started(videos, tmp_path):
    """Starts two processes under torchrun; each counts its calls of the model in files."""
    (tmp_path / "slow.py").write_text(SLOW)
    cfg, out, children = tiny.empty(tmp_path), tmp_path / "out", []

    def start(pauses, *overrides, processes=2):
        words = tiny.settings(videos, out, *SETTINGS, *overrides, task={"MODEL.KWARGS": "{}"})
        path = os.pathsep.join([str(tmp_path), tiny.environment()["PYTHONPATH"]])
        child = subprocess.Popen(
            tiny.command("--cfg", cfg, *words, processes=processes),
            env={**tiny.environment(), "PYTHONPATH": path, "PAUSES": pauses},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        children.append(child)
        return child

    yield start
    for child in children:
        end_torchrun(child)


def calls(folder, name):
    path = folder / name
    return len(path.read_text()) if path.exists() else 0


def wait_for(child, condition):
    end = time.monotonic() + 120
    while not condition():
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < end, "the run does not get there"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "whom",
    [
        pytest.param("one that computes", marks=pytest.mark.slow),
        "one that waits for the other",
        "all",
    ],
)
def test_a_signal_during_validation_ends_all_processes(started, tmp_path, whom):
    waits = whom == "one that waits for the other"
    child = started("0 1" if waits else "0.5 0.5", "DATA_LOADER.NUM_WORKERS", int(whom == "all"))
    first = VIDEOS // 2 if waits else 2
    wait_for(child, lambda: calls(tmp_path, "eval0") >= first and calls(tmp_path, "eval1") >= 2)
    ranks = ranks_of(child)
    if whom == "all":  # as torchrun and schedulers do: the workers, too
        for pid in ranks.values():
            os.killpg(pid, signal.SIGTERM)
    else:
        os.kill(ranks[0], signal.SIGTERM)
    said, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    assert "stopped by SIGTERM after step 2 of 4, which is saved" in said
    assert calls(tmp_path, "eval1") < VIDEOS // 2
    if whom == "all":
        child = started("0 0", "TRAIN.EVAL_PERIOD", 0, "TEST.ENABLE", "false", processes=0)
        said, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
        assert "going on from" in said


def test_a_signal_during_a_test_ends_all_processes(started, tmp_path):
    quick = ("TRAIN.EVAL_PERIOD", 0, "TEST.ENABLE", "false", "SOLVER.MAX_STEPS", 1)
    started("0 0", *quick, processes=0).communicate(timeout=120)
    for name in ("eval0", "eval1"):
        (tmp_path / name).unlink(missing_ok=True)
    child = started("0 1", "TRAIN.ENABLE", "false")
    done = VIDEOS // 2
    wait_for(child, lambda: calls(tmp_path, "eval0") >= done and calls(tmp_path, "eval1") >= 2)
    os.kill(ranks_of(child)[0], signal.SIGINT)
    said, _ = child.communicate(timeout=120)
    assert child.returncode != 0
    assert "the test was interrupted; nothing was written" in said
    assert calls(tmp_path, "eval1") < done
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_process_whose_workers_are_ended_with_it_finishes_the_step(started, tmp_path):
    """The others have begun the step and wait for its share: it may not leave."""
    child = started(
        "0 0", "DATA_LOADER.NUM_WORKERS", 1, "SOLVER.MAX_EPOCH", 900, "TRAIN.EVAL_PERIOD", 0,
        "TRAIN.CHECKPOINT_PERIOD", 1000, "TEST.ENABLE", "false",
    )  # fmt: skip
    wait_for(child, lambda: calls(tmp_path, "train1") >= 3)
    os.killpg(ranks_of(child)[1], signal.SIGTERM)
    said, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    assert "stopped by a signal to another process" in said
    assert 3 <= tiny.final(tmp_path / "out")["step"] < 1800
    assert calls(tmp_path, "train0") == calls(tmp_path, "train1")
