"""The benchmark command: a real run on small models; never a time."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from randomness import redraw

from hiera_video import build_model
from hiera_video.errors import UserError


@pytest.fixture(scope="module")
def benchmark(repository):
    spec = importlib.util.spec_from_file_location("benchmark", repository / "tools/benchmark.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark"] = module
    spec.loader.exec_module(module)
    return module


def contender(benchmark, log, name):
    return benchmark.Contender(
        model="m",
        implementation=name,
        mode="forward",
        dtype="fp32",
        batch=2,
        gmacs=4.0,
        run=lambda: log.append(name),
    )


def test_contenders_take_turns_and_the_first_round_does_not_count(benchmark):
    log = []
    contenders = [contender(benchmark, log, name) for name in ("ours", "theirs")]
    benchmark.interleave(contenders, repeats=3, device=torch.device("cpu"))
    assert log == ["ours", "theirs"] * 4
    assert [len(c.seconds) for c in contenders] == [3, 3]


def test_summary_is_arithmetic_on_the_measurements(benchmark):
    ours = contender(benchmark, [], "hiera_video")
    theirs = contender(benchmark, [], benchmark.REFERENCE)
    ours.seconds, theirs.seconds = [1.0, 2.0, 4.0], [3.0, 4.0, 4.0]
    row, reference = benchmark.summarise([ours, theirs], {"fp32": 8.0})
    assert row["ms"] == 2000
    assert (row["ms_min"], row["ms_max"], row["repeats"]) == (1000, 4000, 3)
    assert row["clips_per_s"] == 1.0
    assert (row["gmacs_per_s"], row["of_peak"]) == (2.0, 0.25)
    assert row["ratio"] == 2.0  # of 3, 2 and 1
    assert reference["ratio"] == 1.0


def test_models_that_disagree_are_not_compared(benchmark):
    sizes = {"input_size": (64, 64), "embed_dim": 16, "stages": (1, 1, 1, 1), "num_classes": 5}
    ours = redraw(build_model("hiera_tiny_224", **sizes))
    theirs = redraw(build_model("hiera_tiny_224", **sizes), seed=1)
    with pytest.raises(UserError, match="differ"):
        benchmark.check_agreement("m", ours, theirs, torch.randn(1, 3, 64, 64), None)


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


def test_both_passes_run_for_every_kind_of_model(benchmark):
    for name in ("hiera_tiny_16x224", "mae_hiera_tiny_16x224"):
        sizes = {"input_size": (4, 64, 64), "embed_dim": 16, "stages": (1, 1, 1, 1)}
        model = build_model(name, **sizes)
        clips = torch.randn(1, 3, 4, 64, 64)
        keep = model.random_keep(1, 0.5) if benchmark.is_autoencoder(model) else None
        for mode in ("forward", "train"):
            step = benchmark.step_of(model, clips, keep, mode=mode, dtype=torch.float32)
            step()
        assert all(p.grad is not None for p in model.parameters())
        assert benchmark.multiply_adds(model, clips, keep) > 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--names", "hiera_bse_224"], "hiera_base_224"),
        (["--dtype", "fp7"], "fp7"),
    ],
)
def test_wrong_use_is_named(benchmark, arguments, complaint):
    with pytest.raises(UserError, match=complaint):
        benchmark.main(["model", *arguments])


def test_wrong_numbers_exit_2(benchmark, capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["model", "--repeats", "0"])
    assert stop.value.code == 2
    assert "at least 1" in capsys.readouterr().err
