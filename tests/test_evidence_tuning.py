"""tools/evidence.py: the rows that run the trainer, what they start from and what is tested."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from evidence_clips import write_set
from evidence_rows import finetuning, rows
from evidence_rows.controls import CONTROLS, PLAIN
from evidence_rows.encoders import load_encoder
from evidence_rows.progress import Progress
from scripts import load_script

from hiera_video.config import Config, load_config
from hiera_video.engine import build, checkpoint
from hiera_video.engine.state import RunRecord, TrainingState
from hiera_video.errors import RunFailed, UserError

TINY = "{embed_dim: 8, num_heads: 1, stages: [1, 1, 4, 1], contrast_stem: true, abs_win: true}"
WITH_READOUT = f"{TINY[:-1]}, readout_stages: [3]}}"


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/evidence.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_set(folder / "dark_actions", train=4, val=2, listed=True)
    return folder


def write_encoder(file, tool, objective, kwargs):
    """Write a checkpoint of pretraining, as the trainer does, with its first weights."""
    config, task = ("motion_pretrain", []) if objective == "motion" else ("pretrain_folder", [])
    if objective != "motion":
        task = ["HIERA.TARGET", objective]
    if objective == "flow":
        task += ["TRAIN.DATASET", "body_motion"]
    path = tool.ROOT / "configs" / "small" / f"{config}.yaml"
    cfg = load_config(path, ["MODEL.KWARGS", kwargs, *task])
    model, identity = build.training_model(cfg, num_classes=0)
    optimizer = build.build_optimizer(cfg.solver, model, torch.device("cpu"))
    state = TrainingState(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), sums=[])
    spec = cfg.data.clip_spec(training=False).to_dict()
    record = RunRecord(identity, multi_label=False, spec=spec, settings=cfg.to_yaml(), data="")
    checkpoint.save(record.content(state, epoch=1), file)
    return str(file)


def rows_of(tool, out, *words, encoders=()):
    """Name -> fine-tuning row, with settings over the config's."""
    trainer = finetuning.Trainer(tool.CONFIG, words, out, Progress())
    return {row.name: row for row in finetuning.finetuning_rows(trainer, encoders)}


def config_of(row):
    return Config.from_yaml(row.settings(0)["config"], source="the row")


# ---- what the rows are --------------------------------------------------------------------------


def test_rows_differ_in_what_they_are_called_for_and_nothing_else(tool, tmp_path):
    rows = rows_of(tool, tmp_path, encoders=["motion", "random", "camera_motion"])
    names = ["scratch", "fine-tuning without probe", "probe", "recipe", "recipe from camera_motion"]
    assert list(rows) == names
    scratch, tuned, probe, recipe, other = map(config_of, rows.values())
    assert recipe.train.checkpoint_file_path == "motion"
    assert recipe.train.probe == "linear"
    unprobed = replace(recipe, train=replace(recipe.train, probe=False))
    assert tuned == unprobed
    assert scratch == replace(unprobed, train=replace(unprobed.train, checkpoint_file_path=""))
    assert probe == replace(recipe, solver=replace(recipe.solver, max_epoch=0))
    start = replace(recipe.train, checkpoint_file_path="camera_motion")
    assert other == replace(recipe, train=start)
    starts = [row.settings(0)["start"] for row in rows.values()]
    assert starts[0] == ""
    assert starts[1] == starts[2] == starts[3] != starts[4]


def test_no_row_is_chosen_by_the_test_videos(tool, tmp_path):
    """The best epoch of a run is chosen on the list "val": here these are the test videos."""
    assert load_config(tool.CONFIG).test.checkpoint_file_path == "best"
    for row in rows_of(tool, tmp_path, "SOLVER.MAX_EPOCH", "3").values():
        config = config_of(row)
        assert config.train.eval_period == 0, row.name
        assert config.test.checkpoint_file_path == "", row.name
    for key in ("TRAIN.EVAL_PERIOD", "test.checkpoint_file_path", "RNG_SEED"):
        with pytest.raises(UserError, match=f"--set {key}: every fine-tuning row has its own"):
            rows_of(tool, tmp_path, key, "1")


def test_a_config_without_a_probe_has_no_rows_about_it(tool, tmp_path):
    assert list(rows_of(tool, tmp_path, "TRAIN.PROBE", "False")) == ["scratch", "recipe"]
    from_nothing = rows_of(tool, tmp_path, "TRAIN.CHECKPOINT_FILE_PATH", "")
    assert list(from_nothing) == ["scratch", "probe", "recipe"]


# ---- which weights fit --------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["pixels", "hog", "flow", "motion"])
def test_every_pretraining_is_an_encoder_and_a_start(tool, tmp_path, objective):
    file = write_encoder(tmp_path / "encoder.pyth", tool, objective, TINY)
    maps = load_encoder(file).stages(torch.zeros(1, 3, 8, 64, 64))
    assert [stage.shape[-1] for stage in maps] == [8, 16, 32, 64]
    settings = "MODEL.KWARGS", WITH_READOUT, "TRAIN.CHECKPOINT_FILE_PATH", ""
    rows_of(tool, tmp_path, *settings, encoders=[file])[f"recipe from {file}"].check()


def test_weights_that_do_not_fit_are_refused_before_anything_runs(tool, data, tmp_path):
    file = write_encoder(tmp_path / "encoder.pyth", tool, "pixels", TINY)
    words = [
        "--sets",
        "dark_actions",
        "--data",
        str(data),
        "--out",
        str(tmp_path / "out"),
        "--rows",
    ]
    encoder = ["--encoders", file]
    message = rf"the row 'recipe from {file}' cannot run with .*\n.*shape(.*\n)+Name a config of"
    with pytest.raises(UserError, match=message):
        tool.main([*words, "fine-tuning", "one frame", *encoder])
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"no such weights file: nosuch\.pyth"):
        tool.main([*words, "recipe", "--set", "TRAIN.CHECKPOINT_FILE_PATH", "nosuch.pyth"])
    config = str(tool.ROOT / "configs" / "small" / "pretrain_folder.yaml")
    with pytest.raises(UserError, match="is for TASK pretrain"):
        tool.main([*words, "recipe", "--cfg", config])


def test_weights_of_the_package_that_do_not_fit_are_left_out(tool, tmp_path, capsys):
    args = tool.arguments().parse_args(["--out", str(tmp_path), "--rows", "fine-tuning"])
    rows, notes = tool.runnable_rows(args, tool.chosen_rows(args, Progress()))
    names = ["scratch", "fine-tuning without probe", "probe", "recipe"]
    assert [row.name for row in rows] == names
    (note,) = notes
    assert note.startswith("recipe from camera_motion is left out: these weights do not fit")
    assert note in capsys.readouterr().err
    args = tool.arguments().parse_args(["--rows", "recipe from camera_motion"])
    with pytest.raises(UserError, match="cannot run with"):
        tool.runnable_rows(args, tool.chosen_rows(args, Progress()))


# ---- runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ["scratch", "probe"])
def test_a_row_runs_the_trainer(tool, data, tmp_path, row, monkeypatch):
    # asked about unchanged clips, the model answers as in the trainer's own test
    monkeypatch.setitem(CONTROLS, "same", lambda clip, seed: clip)
    file = write_encoder(tmp_path / "encoder.pyth", tool, "pixels", TINY)
    settings = {
        "MODEL.KWARGS": WITH_READOUT,
        "DATA.RANDOM_FLIP": False,
        "DATA_LOADER.NUM_WORKERS": 0,
        "TRAIN.BATCH_SIZE": 4,
        "TRAIN.CHECKPOINT_FILE_PATH": file,
        "TRAIN.PROBE_VIEWS": 1,
        "TEST.NUM_ENSEMBLE_VIEWS": 1,
    }
    words = ["--sets", "dark_actions", "--data", data, "--out", tmp_path, "--rows", row, "--quick"]
    words += ["--json", tmp_path / "all.json", "--set"]
    words += [word for pair in settings.items() for word in pair]
    assert tool.main([str(word) for word in words]) == 0
    (result,) = json.loads((tmp_path / "all.json").read_text())["results"]
    assert result["videos"][0] == "val/down/0.mp4"
    assert result["predicted"]["same"] == result["predicted"][PLAIN]
    assert set(result["predicted"]) == {PLAIN, *CONTROLS}
    (run,) = (tmp_path / "runs").iterdir()
    record = json.loads((run / "results.json").read_text())
    assert record["epoch"] == (1 if row == "scratch" else 0)
    assert not (run / "checkpoints").exists()
    log = (run / "stdout.log").read_text()
    # two scenes are two folds; single videos would be five
    assert ("by 2-fold cross-validation" in log) == (row == "probe")
    assert (f"from {file}" in log) == (row == "probe")


def test_a_recipe_that_stops_at_its_probe_is_not_run_again(tool, data, tmp_path, monkeypatch):
    ran = []

    def answer(self, job):
        ran.append(job.row)
        labels = job.part.test.labels.tolist()
        return rows.Answers(dict.fromkeys((PLAIN, *CONTROLS), labels))

    monkeypatch.setattr(finetuning.FineTuning, "run", answer)
    words = [
        "--sets",
        "dark_actions",
        "--data",
        data,
        "--out",
        tmp_path,
        "--rows",
        "probe",
        "recipe",
    ]
    words += ["--quick", "--json", tmp_path / "all.json"]
    assert tool.main([str(word) for word in words]) == 0
    probe, recipe = json.loads((tmp_path / "all.json").read_text())["results"]
    assert ran == ["probe"]
    assert (probe["row"], recipe["row"]) == ("probe", "recipe")
    assert probe["predicted"] == recipe["predicted"]
    assert tool.main([str(word) for word in [*words, "--set", "TRAIN.PROBE_ALONE_BELOW", 3]]) == 0
    assert ran == ["probe", "probe", "recipe"]


def test_a_failing_trainer_says_why(tmp_path):
    trainer = finetuning.Trainer(tmp_path / "no.yaml", (), tmp_path, Progress())
    tuning = finetuning.FineTuning(trainer, {})
    with pytest.raises(RunFailed, match=r"exit code 2; its last lines:\n  error: .*no\.yaml"):
        tuning._call([sys.executable, str(finetuning.TOOL), "--cfg", str(trainer.config)])


TRAINER = """
import pathlib, signal, sys, time
def leave(*_):
    pathlib.Path("saved").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
pathlib.Path("started").touch()
time.sleep(300)
"""


def test_sigterm_ends_the_trainer_too(tmp_path):
    """As a scheduler sends it, to a call that a shell began with `&`, where Ctrl-C is ignored."""
    code = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path[:0] = {sys.path!r}
from scripts import load_script
tool = load_script("tools/evidence.py")
from pathlib import Path
from evidence_rows import finetuning, rows
from evidence_rows.progress import Progress
class Tuning:
    name, kind, missing, config = "scratch", "fine-tuning", (), None
    def check(self): pass
    def settings(self, seed): return {{}}
    def twin(self, part): return ""
    def run(self, job):
        trainer = finetuning.Trainer(Path("c.yaml"), (), Path("."), Progress())
        finetuning.FineTuning(trainer, {{}})._call([sys.executable, "-c", {TRAINER!r}])
tool.chosen_rows = lambda *_: [Tuning()]
tool.cli.run(tool.main, ["--sets", "dark_actions", "--data", "data", "--out", "out"])
"""
    write_set(tmp_path / "data" / "dark_actions", train=4, val=2, listed=True)
    command = [sys.executable, "-c", code]
    child = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 120
        while not (tmp_path / "started").exists():
            assert child.poll() is None, child.communicate()[1]
            assert time.monotonic() < end, "the trainer does not start"
            time.sleep(0.05)
        child.send_signal(signal.SIGTERM)
        errors = child.communicate(timeout=60)[1]
        assert child.returncode == 143, errors
        assert (tmp_path / "saved").exists()
    finally:
        child.kill()
