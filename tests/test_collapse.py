"""A pretrained encoder that is lost is noticed: its features are the same for all clips."""

import pytest
import torch
from tiny_runs import PRETRAIN, config, interrupted, run, write_videos

from hiera_video.data.batch import Batch
from hiera_video.engine import collapse
from hiera_video.engine.records import read_metrics
from hiera_video.models import build_model

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("videos"), train=4, val=3)


def batch_of(clips):
    zeros = torch.zeros(len(clips), dtype=torch.int64)
    return Batch(clips=clips, labels=zeros, video_ids=zeros, views=zeros)


def autoencoder():
    torch.manual_seed(0)
    return build_model("mae_hiera_tiny_16x224", input_size=(4, 64, 64), mask_ratio=0.5)


def spreads(out):
    return [r["feature_spread"] for r in read_metrics(out) if r["_type"] == "features"]


def test_clips_that_differ_have_features_that_differ():
    model = autoencoder()
    clips = torch.randn(3, 3, 4, 64, 64)
    assert collapse.LEAST < collapse.feature_spread(model, batch_of(clips)) < 1
    assert collapse.feature_spread(model, batch_of(clips[:1].expand(3, -1, -1, -1, -1))) < 1e-9


def test_an_encoder_that_sees_nothing_is_warned_of():
    model = autoencoder()
    with torch.no_grad():
        model.encoder.patch_embed.proj.weight.zero_()
    spread = collapse.feature_spread(model, batch_of(torch.randn(3, 3, 4, 64, 64)))
    assert spread < collapse.LEAST
    assert "SOLVER.BASE_LR" in collapse.warning_of(spread)
    assert not collapse.warning_of(collapse.LEAST)


@pytest.mark.parametrize(("task", "count"), [(PRETRAIN, 2), (None, 0)])
def test_a_run_records_the_spread_after_each_epoch(videos, tmp_path, task, count):
    """Of pretraining alone: a classifier is validated."""
    words = ("SOLVER.MAX_EPOCH", 2, "TRAIN.EVAL_PERIOD", 0)
    assert run(config(videos, tmp_path, *words, task=task)) == 0
    found = spreads(tmp_path)
    assert len(found) == count
    assert all(0 < spread < 1 for spread in found)


def test_a_resumed_run_records_the_same(videos, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = ("SOLVER.MAX_EPOCH", 3)
    assert run(config(videos, whole, *words, task=PRETRAIN)) == 0
    interrupted(config(videos, parts, *words, task=PRETRAIN), after=2)
    assert len(spreads(parts)) < 3
    assert run(config(videos, parts, *words, task=PRETRAIN)) == 0
    assert len(spreads(parts)) == 3
    assert spreads(parts) == pytest.approx(spreads(whole), rel=1e-3)


def test_a_full_memory_does_not_end_the_run(videos, tmp_path, monkeypatch, capsys):
    def full(model, clip):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(collapse, "_described", full)
    assert run(config(videos, tmp_path, "SOLVER.MAX_EPOCH", 1, task=PRETRAIN)) == 0
    assert not spreads(tmp_path)
    assert collapse.NO_MEMORY in capsys.readouterr().out


def test_the_warning_is_in_the_log_of_the_run(videos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(collapse, "LEAST", 2.0)
    assert run(config(videos, tmp_path, "SOLVER.MAX_EPOCH", 1, task=PRETRAIN)) == 0
    line = "warning: the encoder says nearly the same of all clips"
    assert line in (tmp_path / "stdout.log").read_text(encoding="utf-8")
    assert line in capsys.readouterr().out
