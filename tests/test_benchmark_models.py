"""`benchmark.py model`: a real run on small models; never a time."""

import json
import subprocess
import sys

import pytest
import torch
from randomness import redraw

from hiera_video import build_model
from hiera_video.benchmark import models
from hiera_video.errors import UserError


def test_models_that_disagree_are_not_compared():
    sizes = {"input_size": (64, 64), "embed_dim": 16, "stages": (1, 1, 1, 1), "num_classes": 5}
    ours = redraw(build_model("hiera_tiny_224", **sizes))
    theirs = redraw(build_model("hiera_tiny_224", **sizes), seed=1)
    with pytest.raises(UserError, match="differ"):
        models.check_agreement("m", ours, theirs, torch.randn(1, 3, 64, 64), None)


def test_command_writes_what_it_prints(repository, tmp_path):
    pytest.importorskip("hiera")
    record = tmp_path / "out.json"
    command = [sys.executable, "tools/benchmark.py", "model", "--names", "hiera_tiny_224"]
    command += ["--repeats", "1", "--dtype", "fp32"]
    done = subprocess.run(
        [*command, "--json", str(record)], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(record.read_text())["rows"]
    assert [(r["implementation"], r["mode"]) for r in rows] == [
        ("hiera_video", "forward"),
        ("hiera-transformer", "forward"),
    ]
    assert rows[0]["gmacs"] == pytest.approx(4.90, rel=0.005)
    assert "x ref" in done.stdout


def test_both_passes_run_for_every_kind_of_model():
    for name in ("hiera_tiny_16x224", "mae_hiera_tiny_16x224"):
        sizes = {"input_size": (4, 64, 64), "embed_dim": 16, "stages": (1, 1, 1, 1)}
        model = build_model(name, **sizes)
        clips = torch.randn(1, 3, 4, 64, 64)
        keep = model.random_keep(1, 0.5) if models.is_autoencoder(model) else None
        for mode in ("forward", "train"):
            step = models.step_of(model, clips, keep, mode=mode, dtype=torch.float32)
            step()
        assert all(p.grad is not None for p in model.parameters())
        assert models.multiply_adds(model, clips, keep) > 0
