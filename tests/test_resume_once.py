"""A run that goes on reads its checkpoint once, and is then what it was."""

import copy

from tiny_runs import config, final, interrupted, run, same, write_videos

from hiera_video.engine import checkpoint
from hiera_video.engine.train import TrainingRun


def test_the_checkpoint_of_a_resumed_run_is_read_once(tmp_path, monkeypatch, no_curves):
    videos = write_videos(tmp_path / "videos", train=8)
    cfg = config(videos, tmp_path / "out", "TRAIN.EVAL_PERIOD", 0)
    assert interrupted(cfg, after=1) == 130
    read, loads = [], checkpoint.load

    def noting(path):
        read.append(path)
        return loads(path)

    monkeypatch.setattr(checkpoint, "load", noting)
    assert run(cfg) == 0
    assert len(read) == 1
    assert final(tmp_path / "out")["step"] > 1


def test_a_resumed_run_that_is_stopped_at_once_writes_the_same_state(
    tmp_path, monkeypatch, no_curves
):
    """The learning rate of its last step too, which is in the optimizer's state."""
    videos = write_videos(tmp_path / "videos", train=8)
    cfg = config(videos, tmp_path / "out", "TRAIN.EVAL_PERIOD", 0)
    assert interrupted(cfg, after=1) == 130
    before = final(tmp_path / "out")
    resumed = []
    resume = TrainingRun.resume

    def noting(self, stored):
        notes = resume(self, stored)
        resumed.append(copy.deepcopy(self.state.optimizer.state_dict()))
        return notes

    monkeypatch.setattr(TrainingRun, "resume", noting)
    assert run(cfg) == 0
    assert before["optimizer_state"]["param_groups"][0]["lr"] > 0
    assert same(resumed[0], before["optimizer_state"])
