"""TensorBoard, W&B, MLflow and trackio: what they are told, and runs that go on without them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import REPOSITORY
from tiny_runs import config, run, write_videos

from hiera_video.config import load_config
from hiera_video.engine import trackers
from hiera_video.engine.run_logger import RunLogger
from hiera_video.errors import ConfigError, UserError

IMAGE = torch.linspace(0, 1, 3 * 4 * 6).view(3, 4, 6)


@pytest.fixture
def tracked(tmp_path):
    return trackers.TrackedRun(tmp_path, "project", "", "SOLVER:\n  BASE_LR: 0.1\nTASK: classify\n")


# ---- TensorBoard --------------------------------------------------------------------------------


def test_tensorboard_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        trackers.TensorBoard(tmp_path)


def test_tensorboard_gets_the_curves(tmp_path, monkeypatch):
    calls = []

    class Writer:
        def __init__(self, folder):
            calls.append(folder)

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def add_image(self, name, image, step):
            calls.append((name, tuple(image.shape), step))

        def close(self):
            calls.append("closed")

    module = type(sys)("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    logger = RunLogger(tmp_path, quiet=True)
    logger.add_tracker(trackers.TensorBoard(tmp_path / "tensorboard"))
    logger.add_scalars(3, Train__loss=0.5)
    logger.add_image("mask", IMAGE, 4)
    logger.close()
    assert calls == [
        *(str(tmp_path / "tensorboard"), ("Train/loss", 0.5, 3)),
        *(("mask", (3, 4, 6), 4), "closed"),
    ]


# ---- stand-ins for the libraries ----------------------------------------------------------------


@pytest.fixture
def wandb(monkeypatch):
    """A wandb that remembers what it is told; `broken` makes its calls fail."""
    told = SimpleNamespace(inits=[], logs=[], finished=0, broken=False)

    class Run:
        id = "abc123"

        def log(self, values, step):
            if told.broken:
                raise ConnectionError("the server is away\nlong text")
            told.logs.append((values, step))

        def finish(self):
            told.finished += 1

    def init(**arguments):
        told.inits.append(arguments)
        return Run()

    module = type(sys)("wandb")
    module.init, module.Image = init, lambda pixels: ("image", pixels.shape, pixels.dtype.name)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return told


def test_wandb_is_told_the_settings_curves_and_pictures(wandb, tracked):
    tracker = trackers.open_tracker("wandb", tracked)
    tracker.add_scalars({"Train/loss": 0.5}, 3)
    tracker.add_image("mask", IMAGE, 4)
    tracker.close()
    assert wandb.inits == [
        {
            "project": "project",
            "name": tracked.folder.name,
            "config": {"SOLVER.BASE_LR": 0.1, "TASK": "classify"},
            "resume": "allow",
            "dir": str(tracked.folder),
        }
    ]
    assert wandb.logs == [({"Train/loss": 0.5}, 3), ({"mask": ("image", (4, 6, 3), "uint8")}, 4)]
    assert wandb.finished == 1


def test_a_resumed_run_goes_on_in_the_same_tracked_run(wandb, tracked):
    trackers.open_tracker("wandb", tracked)
    trackers.open_tracker("wandb", tracked)
    assert "id" not in wandb.inits[0]
    assert wandb.inits[1]["id"] == "abc123"
    (tracked.folder / trackers.IDS).write_text("{broken")
    trackers.open_tracker("wandb", tracked)
    assert "id" not in wandb.inits[2]
    assert json.loads((tracked.folder / trackers.IDS).read_text()) == {"wandb": "abc123"}


def test_a_server_that_is_away_does_not_end_the_run(wandb, tracked):
    said = []
    tracker = trackers.Careful("wandb", trackers.open_tracker("wandb", tracked), said.append)
    wandb.broken = True
    for step in range(3):
        tracker.add_scalars({"a": 1.0}, step)
    tracker.close()
    assert len(said) == 1
    assert said[0].startswith("warning: wandb gets nothing more of this run: the server is away.")


def test_one_that_cannot_be_started_is_refused(wandb, tracked, monkeypatch):
    def init(**arguments):
        raise RuntimeError("api_key not configured (no-tty)\ncall wandb.login")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    with pytest.raises(UserError, match="api_key not configured") as error:
        trackers.open_tracker("wandb", tracked)
    assert "WANDB_MODE=offline" in str(error.value)


@pytest.mark.parametrize("name", trackers.OPENERS)
def test_one_that_is_not_installed(name, tracked, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"pip install {name}"):
        trackers.open_tracker(name, tracked)


def test_names_are_checked_when_the_config_is_read():
    assert load_config(None, ["TRACKERS.NAMES", "[wandb, mlflow]"]).trackers.names == (
        *("wandb", "mlflow"),
    )
    with pytest.raises(ConfigError, match=r"'wanb' is not known; allowed are wandb, mlflow"):
        load_config(None, ["TRACKERS.NAMES", "[wanb]"])


# ---- runs ---------------------------------------------------------------------------------------


def test_a_run_is_tracked(wandb, tmp_path):
    videos = write_videos(tmp_path / "videos", train=4, val=3)
    out = tmp_path / "out"
    assert run(config(videos, out, "TRACKERS.NAMES", "[wandb]", "SOLVER.MAX_EPOCH", 1)) == 0
    names = {name for values, _ in wandb.logs for name in values}
    assert {"Train/loss", "Val/top1_err"} <= names
    assert wandb.inits[0]["config"]["SOLVER.MAX_EPOCH"] == 1
    assert wandb.finished == 1


def test_none_is_imported_unless_named():
    code = (
        "import sys, hiera_video.engine.train\n"
        "print([m for m in ('wandb', 'mlflow', 'trackio', 'tensorboard') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


# ---- the libraries themselves, where they are installed -----------------------------------------


def test_wandb_offline(tracked, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracker = trackers.open_tracker("wandb", tracked)
    tracker.add_scalars({"Train/loss": 0.5}, 1)
    tracker.add_image("mask", IMAGE, 2)
    tracker.close()
    assert list(tracked.folder.glob("wandb/offline-run-*/*.wandb"))
    assert tracked.known_id("wandb")


def test_mlflow_in_a_folder(tracked, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    place = tracked.folder / "mlruns"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(place.as_uri())
    for loss in (0.5, 0.25):  # the second goes on in the same run
        tracker = trackers.open_tracker("mlflow", tracked)
        tracker.add_scalars({"Train/loss": loss}, int(1 / loss))
        tracker.add_image("mask", IMAGE, 2)
        tracker.close()
    history = tracker.client.get_metric_history(tracker.run_id, "Train/loss")
    assert [(point.step, point.value) for point in history] == [(2, 0.5), (4, 0.25)]
    assert tracker.client.get_run(tracker.run_id).data.params["SOLVER.BASE_LR"] == "0.1"
    assert [file.path for file in tracker.client.list_artifacts(tracker.run_id)] == [
        "mask_0000002.png"
    ]
    assert os.listdir(place)
