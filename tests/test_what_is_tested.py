"""Which videos a test takes; what a run says of its classes and of parts that stand in."""

import json
import shutil

import pytest
import torch
from tiny_runs import (
    CLASSES,
    PRETRAIN,
    config,
    empty,
    final,
    run,
    run_child,
    settings,
    write_videos,
)

from hiera_video.engine import build, checkpoint, distributed, evaluate, preflight, train
from hiera_video.errors import UserError

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder of classes, four videos each."""
    return write_videos(tmp_path_factory.mktemp("plain"), train=12, val=0) / "train"


SHORT = ("SOLVER.MAX_STEPS", 1, "DATA.VAL_FRACTION", 0.25)


@pytest.fixture(scope="module")
def trained(plain, tmp_path_factory):
    """A short run on that folder, three videos of it held out."""
    out = tmp_path_factory.mktemp("run") / "out"
    assert run(config(plain, out, *SHORT)) == 0
    return out


def outcome_of(videos, out, weights, *words):
    """(names of the videos tested, what was said): of a test of `weights` into `out`."""
    cfg = config(videos, out, "TEST.CHECKPOINT_FILE_PATH", weights, *words)
    assert evaluate.test(cfg, distributed.init("cpu"), train.Stop()) == 0
    lines = (out / "predictions.csv").read_text(encoding="utf-8-sig").splitlines()[1:]
    names = {line.split(",")[0].strip('"').rsplit("/", 1)[1] for line in lines}
    return names, (out / "stdout.log").read_text(encoding="utf-8")


def held_out_of(plain):
    manifest = build.read_lists(config(plain, plain, *SHORT))[1]
    return {manifest.paths[i].rsplit("/", 1)[1] for i in range(len(manifest))}


def best(out):
    return out / "checkpoints" / "best.pyth"


# ---- a folder that names no parts ---------------------------------------------------------------


def test_one_command_tests_what_it_held_out(plain, tmp_path):
    """Training and test in one: none of the training videos is tested."""
    words = settings(plain, tmp_path / "out", *SHORT)
    done = run_child("--cfg", empty(tmp_path), *words)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["n_videos"] == len(held_out_of(plain)) == 3
    assert "note: testing the 3 of 12 videos that were held out" in done.stdout
    lines = done.stdout.count(f"3 classes: fast, slow, still; from folder names below {plain}")
    assert lines == 2, "training says it, and the test does"


def test_a_later_test_takes_what_was_held_out(plain, trained, tmp_path):
    names, said = outcome_of(plain, tmp_path, best(trained))
    assert names == held_out_of(plain)
    assert "testing the 3 of 12 videos that were held out when this checkpoint was trained" in said


def test_a_later_test_holds_to_the_settings_of_the_training(plain, trained, tmp_path):
    """Another seed or share in the test's settings must not bring training videos in."""
    names, _ = outcome_of(plain, tmp_path, best(trained), "RNG_SEED", 9, "DATA.VAL_FRACTION", 0.5)
    assert names == held_out_of(plain)


def test_the_folder_may_have_moved_or_grown(plain, trained, tmp_path):
    moved = shutil.copytree(plain, tmp_path / "moved")
    assert outcome_of(moved, tmp_path / "a", best(trained))[0] == held_out_of(plain)
    grown = shutil.copytree(plain, tmp_path / "grown")
    assert run(config(grown, tmp_path / "run", *SHORT)) == 0
    shutil.copy(grown / "fast" / "00.mp4", grown / "fast" / "99.mp4")
    names, said = outcome_of(grown, tmp_path / "b", best(tmp_path / "run"))
    assert len(names) < 6
    assert f"{grown} has changed since" in said


def test_a_checkpoint_from_elsewhere_is_tested_on_all(plain, trained, tmp_path):
    other = write_videos(tmp_path / "other", train=8, val=0) / "train"
    names, said = outcome_of(other, tmp_path / "out", best(trained))
    assert len(names) == 8
    assert f"note: all 8 videos of {other}: the folder has no splits" in said


def test_weights_without_notes_of_their_training_are_tested_on_all(plain, trained, tmp_path):
    torch.save({"model_state": final(trained)["model_state"]}, tmp_path / "bare.pth")
    assert len(outcome_of(plain, tmp_path / "out", tmp_path / "bare.pth")[0]) == 12


def test_exported_weights_know_what_was_held_out(plain, trained, tmp_path):
    checkpoint.export(best(trained), tmp_path / "exported.pyth")
    moved = shutil.copytree(plain, tmp_path / "moved")
    assert outcome_of(moved, tmp_path / "out", tmp_path / "exported.pyth")[0] == held_out_of(plain)


def test_a_table_without_splits_is_tested_like_a_folder(plain, tmp_path):
    videos = shutil.copytree(plain, tmp_path / "videos")
    rows = [f"{p.relative_to(videos)},{p.parent.name}" for p in sorted(videos.rglob("*.mp4"))]
    (videos / "labels.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    assert run(config(videos, tmp_path / "run", *SHORT)) == 0
    held_out, _ = outcome_of(videos, tmp_path / "a", best(tmp_path / "run"))
    assert len(held_out) == 3
    rows[0] += "\nstill/more.mp4,still"
    (tmp_path / "elsewhere.csv").write_text("\n".join(rows) + "\n")
    words = ("DATA.PATH_PREFIX", videos)
    names, said = outcome_of(
        tmp_path / "elsewhere.csv", tmp_path / "b", best(tmp_path / "run"), *words
    )
    assert len(names) == 13
    assert "the list has no splits" in said


def test_a_single_list_has_its_own_share_held_out(plain, tmp_path):
    """It does not validate on what it trains on."""
    rows = [f"{p.relative_to(plain)} {p.parent.name}" for p in sorted(plain.rglob("*.mp4"))]
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    words = ("DATA.PATH_PREFIX", plain, *SHORT)
    train_list, val_list = build.read_lists(config(tmp_path / "list.csv", tmp_path, *words))
    assert (len(train_list), len(val_list)) == (9, 3)
    assert {*train_list.paths}.isdisjoint(val_list.paths)


def test_a_checkpoint_tested_on_its_own_training_videos_is_told(trained, plain, tmp_path):
    """Whatever they are called there."""
    held_out = held_out_of(plain)
    copy = shutil.copytree(plain, tmp_path / "videos" / "test")
    for path in list(copy.rglob("*.mp4")):
        if path.name in held_out:
            path.unlink()
    names, said = outcome_of(copy.parent, tmp_path / "out", best(trained))
    assert len(names) == 9
    assert "this checkpoint was trained on these same videos" in said


def test_a_folder_that_holds_a_held_out_part_only_is_tested_whole(trained, tmp_path):
    videos = write_videos(tmp_path / "videos", train=0, val=6)
    names, _ = outcome_of(videos, tmp_path / "out", best(trained))
    assert len(names) == 6
    with pytest.raises(UserError, match=r"no folder for train in .*, which has val: training need"):
        run(config(videos, tmp_path / "run"))


# ---- what a run says ----------------------------------------------------------------------------


def said_by(capsys, cfg):
    assert run(cfg) == 0
    return capsys.readouterr().out


def test_train_and_test_without_val_are_said(tmp_path, capsys):
    videos = write_videos(tmp_path / "videos", train=4, val=3)
    (videos / "val").rename(videos / "test")
    said = said_by(capsys, config(videos, tmp_path / "out", "SOLVER.MAX_STEPS", 1))
    assert (
        f"note: no folder for val in {videos}: test is used instead; the best checkpoint is "
        "chosen on it, so a test on it is no independent figure"
    ) in said
    _, said = outcome_of(videos, tmp_path / "test", best(tmp_path / "out"))
    assert "note: training validates on test too: the best checkpoint is chosen on it" in said


def test_lists_of_ids_from_one_or_with_gaps_are_said(tmp_path, capsys):
    videos = write_videos(tmp_path / "videos", train=4, val=3)
    for split in ("train", "val"):
        rows = [
            f"{p.relative_to(videos)} {1 + 3 * CLASSES.index(p.parent.name)}"
            for p in sorted((videos / split).rglob("*.mp4"))
        ]
        (videos / f"{split}.csv").write_text("\n".join(rows) + "\n")
    said = said_by(capsys, config(videos, tmp_path / "out", "SOLVER.MAX_STEPS", 1))
    assert f"8 classes, 3 of them with videos; ids 1 to 7 of {videos}/train.csv, no names" in said
    assert (
        "note: 8 outputs, 5 of them without a training video: 0, 2, 3, 5, 6; ids start at 0" in said
    )


def one_class(folder):
    videos = write_videos(folder, train=6, val=0) / "train"
    for name in CLASSES[1:]:
        shutil.rmtree(videos / name)
    return videos


def test_one_class_is_nothing_to_learn(tmp_path):
    videos = one_class(tmp_path / "videos")
    words = settings(videos, tmp_path / "out", *SHORT)
    done = run_child("--cfg", empty(tmp_path), *words, "--dry-run", 1)
    assert done.returncode == 2
    assert "1 class (fast): a classifier needs two classes or more" in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(UserError, match=r"1 class \(fast\): a classifier needs.*TASK pretrain"):
        run(config(videos, tmp_path / "out", *SHORT))
    pretraining = config(videos, tmp_path / "pretrained", *SHORT, task=PRETRAIN)
    assert run(pretraining) == 0


def test_a_test_of_one_class_says_so(trained, tmp_path):
    videos = one_class(tmp_path / "videos")
    names, said = outcome_of(videos, tmp_path / "out", best(trained))
    assert len(names) == 2
    assert "note: all videos are of one class (fast)" in said


def test_a_dry_run_says_what_the_classes_are(plain, tmp_path):
    done = run_child("--cfg", empty(tmp_path), *settings(plain, tmp_path / "out"), "--dry-run", 1)
    assert done.returncode == 0, done.stderr
    assert f"3 classes: fast, slow, still; from folder names below {plain}" in done.stdout


@pytest.mark.parametrize("more", [(), ("--dry-run", 1)])
def test_splits_in_any_case_train_the_classes_inside(tmp_path, more):
    videos = write_videos(tmp_path / "videos", train=6, val=3)
    (videos / "train").rename(videos / "Train")
    (videos / "val").rename(videos / "Validation")
    done = run_child("--cfg", empty(tmp_path), *settings(videos, tmp_path / "out", *SHORT), *more)
    assert done.returncode == 0, done.stderr
    assert f"3 classes: fast, slow, still; from folder names below {videos}/Train" in done.stdout
    (videos / "Validation").rename(videos / "val_set")
    with pytest.raises(UserError, match="rename val_set/ -> val/"):
        build.read_lists(config(videos, tmp_path / "out"))


def test_the_format_of_the_data_may_be_said_when_a_run_goes_on():
    """A folder that is refused now may have been trained on before."""
    before = config("x", "y").to_yaml()
    now = config("x", "y", "DATA.FORMAT", "class_folders").to_yaml()
    assert preflight.changed_settings(before, now) == []
