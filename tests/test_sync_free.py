"""No step waits for the device: nothing in it asks for a number, and the last step's come later."""

import sys

import pytest
import torch
from tiny_runs import HEAVY, PRETRAIN, config, final, losses, run, same, write_videos

from hiera_video.engine import train
from hiera_video.engine.prefetch import DevicePrefetcher
from hiera_video.engine.step import Arriving
from hiera_video.errors import RunFailed

ASKING = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")
"""Methods of a tensor for which the CPU waits until the device has computed it."""

ON_THE_CPU = {
    ("tasks.py", "keep_masks"),
    ("mixup.py", "pair_across_videos"),
    ("randomness.py", "uniform"),
    ("randomness.py", "draw_seed"),
    ("step.py", "read"),
}
"""(file, function) that ask only for what is on the CPU already, or is meant to wait."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("videos"), train=8)


@pytest.fixture(autouse=True)
def quiet(no_curves):
    pass


@pytest.fixture
def asked(monkeypatch):
    """(file, function) of this package, or of torch.nn.utils, that asks a tensor in a step."""
    found, inside = set(), [False]
    take_step, read_batch = train.TrainingRun.take_step, DevicePrefetcher.__next__

    def during(value, function):
        def watched(self, *args):
            before, inside[0] = inside[0], value
            try:
                return function(self, *args)
            finally:
                inside[0] = before

        return watched

    def noting(method):
        def note(self, *args, **kwargs):
            code = sys._getframe(1).f_code
            if inside[0] and ("hiera_video" in code.co_filename or "nn/utils" in code.co_filename):
                found.add((code.co_filename.rsplit("/", 1)[-1], code.co_name))
            return method(self, *args, **kwargs)

        return note

    monkeypatch.setattr(train.TrainingRun, "take_step", during(True, take_step))
    monkeypatch.setattr(DevicePrefetcher, "__next__", during(False, read_batch))  # decodes
    for name in ASKING:
        monkeypatch.setattr(torch.Tensor, name, noting(getattr(torch.Tensor, name)))
    return found


@pytest.mark.parametrize("task", ["classify", "pretrain"])
def test_a_step_asks_for_no_number(videos, tmp_path, asked, task):
    extra = HEAVY if task == "classify" else ("TRAIN.EMA_DECAY", 0.9)
    settings = (*extra, "SOLVER.MAX_EPOCH", 1, "TRAIN.EVAL_PERIOD", 0)
    cfg = config(videos, tmp_path, *settings, task=PRETRAIN if task == "pretrain" else None)
    assert run(cfg) == 0
    assert ("step.py", "read") in asked  # the watching works
    assert asked <= ON_THE_CPU


def test_the_watching_finds_a_step_that_asks(videos, tmp_path, asked, monkeypatch):
    update = train.update

    def asking(*args):
        norm = update(*args)
        assert norm.item() >= 0
        return norm

    asking.__code__ = asking.__code__.replace(co_filename="hiera_video/engine/asking.py")
    monkeypatch.setattr(train, "update", asking)
    assert run(config(videos, tmp_path, "SOLVER.MAX_STEPS", 1, "TRAIN.EVAL_PERIOD", 0)) == 0
    assert ("asking.py", "asking") in asked


def ahead(monkeypatch):
    monkeypatch.setattr(train, "STEPS_AHEAD", {"cpu": 1})


def test_numbers_that_are_read_a_step_later_are_the_same(videos, tmp_path, monkeypatch):
    settings = ("TRAIN.CHECKPOINT_STEPS", 1, "TRAIN.KEEP_CHECKPOINTS", 0)
    assert run(config(videos, tmp_path / "at once", *settings)) == 0
    ahead(monkeypatch)
    waiting, read = [], Arriving.read

    def noting(self):
        waiting.append(self)
        return read(self)

    monkeypatch.setattr(Arriving, "read", noting)
    assert run(config(videos, tmp_path / "later", *settings)) == 0
    assert losses(tmp_path / "later") == losses(tmp_path / "at once")
    for key in ("model_state", "optimizer_state", "epoch_sums", "step"):
        assert same(final(tmp_path / "later")[key], final(tmp_path / "at once")[key])
    assert len(waiting) == final(tmp_path / "later")["step"]


def test_a_loss_that_is_not_finite_stops_a_run_that_is_a_step_ahead(videos, tmp_path, monkeypatch):
    ahead(monkeypatch)
    settings = ("SOLVER.BASE_LR", 1e30, "SOLVER.WARMUP_EPOCHS", 0, "SOLVER.MAX_EPOCH", 8)
    with pytest.raises(RunFailed, match="is not finite"):
        run(config(videos, tmp_path, *settings))


def test_a_step_is_queued_before_the_last_one_is_read(videos, tmp_path, monkeypatch):
    ahead(monkeypatch)
    order, read, take_step = [], Arriving.read, train.TrainingRun.take_step

    def reading(self):
        order.append("read")
        return read(self)

    def taking(self, *args):
        order.append("queue")
        take_step(self, *args)

    monkeypatch.setattr(Arriving, "read", reading)
    monkeypatch.setattr(train.TrainingRun, "take_step", taking)
    settings = ("SOLVER.MAX_STEPS", 4, "TRAIN.EVAL_PERIOD", 0, "TRAIN.BATCH_SIZE", 2)
    assert run(config(videos, tmp_path, *settings)) == 0
    assert order == ["queue", "queue", "read", "queue", "read", "queue", "read", "read"]
