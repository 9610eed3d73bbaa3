"""Whole runs of TASK detect, on clips of moving shapes."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import (
    DETECT,
    config,
    empty,
    final,
    interrupted,
    losses,
    run,
    run_child,
    same,
    settings,
)

from hiera_video.commands.evaluate_detections import main as evaluate_detections
from hiera_video.config import load_config
from hiera_video.detection import clips, moving_shapes
from hiera_video.engine import distributed, dry_run, evaluate
from hiera_video.engine.records import read_metrics
from hiera_video.engine.signals import Stop
from hiera_video.errors import DataError, UserError

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "set"
    return moving_shapes.make_shapes(
        folder, moving_shapes.ShapeSettings(num_train=4, num_val=3, size=64), workers=1
    )


def tiny(shapes, out, *more):
    return config(shapes, out, *more, task=DETECT)


def results_of(cfg):
    """Test a run; returns its folder's results."""
    assert evaluate.test(cfg, distributed.init("cpu"), Stop()) == 0
    return json.loads((Path(cfg.output_dir) / "results.json").read_text())


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hiera_video.engine.run_logger.RunLogger.draw_curves", lambda *_, **__: None)
        cfg = tiny(shapes, out)
        assert run(cfg) == 0
        results_of(cfg)
    return out


def test_a_run_validates_tests_and_writes_what_the_official_evaluation_reads(
    shapes, trained, capsys
):
    log = (trained / "stdout.log").read_text()
    assert "12 key frames, 4 a step" in log
    assert "on 9 key frames" in log
    (validated,) = [r for r in read_metrics(trained) if r["_type"] == "val_epoch"]
    results = json.loads((trained / "results.json").read_text())
    assert results["map"] == pytest.approx(validated["map"])
    assert (results["n_videos"], results["n_failed"], results["n_classes"]) == (9, 0, 6)
    annotations = shapes / "annotations"
    with open(annotations / "val.csv", newline="") as file:
        truth = list(csv.reader(file))
    with open(trained / "detections.csv", newline="") as file:
        detections = list(csv.reader(file))
    assert len(detections) == 6 * len(truth) == 6 * results["n_boxes"]
    assert {tuple(row[:6]) for row in detections} == {tuple(row[:6]) for row in truth}
    words = ["--truth", annotations / "val.csv", "--detections", trained / "detections.csv"]
    words += ["--labels", annotations / "actions.pbtxt", "--json"]
    capsys.readouterr()
    assert evaluate_detections([str(word) for word in words]) == 0
    assert 100 * json.loads(capsys.readouterr().out)["map"] == pytest.approx(results["map"])
    for name in ("per_class.csv", "precision_recall.png", "excluded.csv", "index.html"):
        assert (trained / name).is_file()
    page = (trained / "index.html").read_text()
    assert "frame mAP" in page
    assert "circles" in page
    assert "12 key frames" in page
    assert "classes/0.html" not in page  # there are no pages of clips
    assert "Boxes of a clip" in page
    assert ">n_boxes<" not in page
    assert 'href="detections.csv"' in page


def test_the_checkpoint_knows_its_actions(trained):
    content = final(trained)
    assert content["classes"] == list(moving_shapes.ACTIONS)
    assert content["multi_label"]  # each action is a yes or no
    assert content["model"]["name"] == "hiera_tiny_16x224_ava"
    assert content["model"]["kwargs"]["num_classes"] == 6


def test_a_run_that_was_interrupted_goes_on_as_if_it_was_not(shapes, tmp_path):
    whole = tiny(shapes, tmp_path / "whole")
    assert run(whole) == 0
    cfg = tiny(shapes, tmp_path / "out")
    assert interrupted(cfg, after=2) != 0
    assert run(cfg) == 0
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")
    assert same(final(tmp_path / "out")["model_state"], final(tmp_path / "whole")["model_state"])


def test_two_processes_give_the_curve_and_the_map_of_one(shapes, tmp_path):
    """The test's nine key frames are unequal shares, and so are their boxes."""
    one, two = tmp_path / "one", tmp_path / "two"
    calm = ("HIERA.DROPPATH_RATE", 0, "MODEL.DROPOUT_RATE", 0)  # each process draws its own
    cfg = tiny(shapes, one, *calm)
    assert run(cfg) == 0
    found = results_of(cfg)
    done = run_child(
        "--cfg", empty(tmp_path), *settings(shapes, two, *calm, task=DETECT), processes=2
    )
    assert done.returncode == 0, done.stderr
    a, b = losses(one), losses(two)
    assert a.keys() == b.keys()
    assert max(abs(a[step] - b[step]) for step in a) < 1e-5
    other = json.loads((two / "results.json").read_text())
    assert other["n_boxes"] == found["n_boxes"]
    assert other["map"] == pytest.approx(found["map"], abs=2)  # near-equal scores may change places


def test_key_frames_that_cannot_be_read_are_counted_and_in_no_number(
    shapes, trained, tmp_path, capsys
):
    copy = tmp_path / "set"
    shutil.copytree(shapes, copy)
    (copy / "videos" / "val_00001.mp4").write_bytes(b"no video")
    cfg = config(
        copy, tmp_path / "out", "TEST.CHECKPOINT_FILE_PATH", trained / "checkpoints" / "best.pyth",
        "TRAIN.DATASET", "ava", "TEST.DATASET", "ava", *as_words(moving_shapes.SETTINGS),
        task=DETECT,
    )  # fmt: skip
    capsys.readouterr()
    results = results_of(cfg)
    assert (results["n_videos"], results["n_failed"]) == (9, 3)
    assert "3 of 9 key frames could not be decoded" in capsys.readouterr().out
    excluded = (tmp_path / "out" / "excluded.csv").read_text().split()
    assert [line.partition(",")[0] for line in excluded] == ["val_00001"] * 3
    words = ["--truth", copy / "annotations" / "val.csv", "--json"]
    words += ["--detections", tmp_path / "out" / "detections.csv"]
    words += ["--excluded", tmp_path / "out" / "excluded.csv"]
    words += ["--labels", copy / "annotations" / "actions.pbtxt"]
    assert evaluate_detections([str(word) for word in words]) == 0
    assert 100 * json.loads(capsys.readouterr().out)["map"] == pytest.approx(results["map"])


def as_words(section):
    """The settings of a section as KEY VALUE words."""
    words = []
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if isinstance(value, tuple):
            value = json.dumps(list(value))
        words += [f"AVA.{field.name.upper()}", json.dumps(value) if value == "" else value]
    return words


def test_other_actions_than_the_checkpoint_knows_are_refused(shapes, trained, tmp_path):
    copy = tmp_path / "set"
    shutil.copytree(shapes, copy)
    labels = copy / "annotations" / "actions.pbtxt"
    labels.write_text(labels.read_text().replace("bounces", "jumps"))
    cfg = config(
        copy, tmp_path / "out", "TEST.CHECKPOINT_FILE_PATH", trained / "checkpoints" / "best.pyth",
        "TRAIN.DATASET", "ava", "TEST.DATASET", "ava", *as_words(moving_shapes.SETTINGS),
        task=DETECT,
    )  # fmt: skip
    with pytest.raises(UserError, match="bounces / jumps"):
        evaluate.test(cfg, distributed.init("cpu"), Stop())


def test_three_crops_score_every_box_once(shapes, trained, tmp_path):
    cfg = config(
        shapes, tmp_path / "out", "TEST.CHECKPOINT_FILE_PATH",
        trained / "checkpoints" / "best.pyth", "TEST.NUM_SPATIAL_CROPS", 3, task=DETECT,
    )  # fmt: skip
    results = results_of(cfg)
    whole = json.loads((trained / "results.json").read_text())
    assert results["n_boxes"] == whole["n_boxes"]
    assert results["map"] == pytest.approx(whole["map"])  # the clips are square: all crops are one


def test_without_data_the_error_says_what_it_must_hold(tmp_path):
    cfg = load_config("AVA/hiera_b_16x4", ["DATA.PATH_TO_DATA_DIR", str(tmp_path / "no")])
    with pytest.raises(DataError, match=r"is no folder\. It must hold AVA's files"):
        run(cfg)


@pytest.mark.parametrize("classes", [0, 60])
def test_a_dry_run_needs_no_data(tmp_path, capsys, classes):
    cfg = config(
        tmp_path / "none", tmp_path / "out", "TRAIN.DATASET", "ava", "TEST.DATASET", "ava",
        "MODEL.NUM_CLASSES", classes, "TRAIN.BATCH_SIZE", 20, task=DETECT,
    )  # fmt: skip
    dry_run.run(cfg, distributed.init("cpu"), steps=1)
    said = capsys.readouterr().out
    assert "dry run on generated clips" in said
    assert "step 1/1: loss" in said
    assert not (tmp_path / "out").exists()


# ---- it learns ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_quick_recipe_learns_and_one_frame_does_not(tmp_path, monkeypatch):
    """0.8 mAP is what is asked for; one frame of each clip, again and again, tells next to nothing:
    with six actions that are equally frequent, chance is about one in six."""
    words = ["DATA.PATH_TO_DATA_DIR", str(tmp_path / "set"), "TRAIN.EVAL_PERIOD", "0"]
    words += ["PAGE.ENABLE", "false", "DEVICE", "cpu"]
    cfg = load_config("quickstart/detect", [*words, "OUTPUT_DIR", str(tmp_path / "out")])
    assert run(cfg) == 0
    assert results_of(cfg)["map"] >= 80

    monkeypatch.setattr(clips, "clip_places", repeated)
    control = load_config(
        "quickstart/detect",
        [*words, "OUTPUT_DIR", str(tmp_path / "control"), "DATA_LOADER.NUM_WORKERS", "0"],
    )
    assert run(control) == 0
    assert results_of(control)["map"] <= 35


def repeated(centre, num_frames, sampling_rate):
    """The key frame in every place of its clip."""
    return np.full(num_frames, centre)
