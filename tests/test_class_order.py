"""Runs and tests on data whose classes have other names, or another order, than a checkpoint's."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import (
    CLASSES,
    config,
    empty,
    final,
    interrupted,
    losses,
    run,
    run_child,
    settings,
    write_videos,
)

from hiera_video.data.manifests.layouts import read_manifest
from hiera_video.data.relabel import fit_labels
from hiera_video.engine import build, checkpoint, distributed, dry_run, evaluate
from hiera_video.engine.records import read_metrics
from hiera_video.engine.signals import Stop
from hiera_video.errors import DataError, UserError
from hiera_video.labels import load_labels

pytestmark = pytest.mark.usefixtures("no_curves")

FIRST = ("fast", "slow", "still")
OTHER = ("still", "fast", "slow")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Nine training and six validation videos, told apart by their colour too."""
    return write_videos(tmp_path_factory.mktemp("videos"), train=9, val=6, tinted=True)


def lists(folder, videos, names, *, called=None, named=True, many=False):
    """train.csv and val.csv: the videos in the same order, whatever the numbers of their classes.

    names: the folders in the order of their numbers. called: what the class file calls them.
    """
    folder.mkdir()
    for split in ("train", "val"):
        rows = []
        for path in sorted((videos / split).rglob("*.mp4")):
            number = names.index(path.parent.name) if path.parent.name in names else None
            if number is not None:
                also = (number + 1) % len(names)
                rows.append(f"{path},{f'{number} {also}' if many else number}\n")
        (folder / f"{split}.csv").write_text("".join(rows))
    if named:
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in called or names))
    return folder


@pytest.fixture(scope="module")
def trained(videos, tmp_path_factory):
    """A run on lists in the first order that has learnt its colours; its last checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    cfg = config(
        lists(folder / "lists", videos, FIRST), folder / "out", *LEARNS, "SOLVER.MAX_EPOCH", 12
    )
    run(cfg)
    return checkpoint.in_order(folder / "out" / "checkpoints")[-1]


LEARNS = (
    "TRAIN.BATCH_SIZE", 9, "SOLVER.WARMUP_EPOCHS", 1, "SOLVER.CLIP_GRAD_L2NORM", 1,
    "HIERA.DROPPATH_RATE", 0, "MODEL.DROPOUT_RATE", 0, "TRAIN.EVAL_PERIOD", 0,
    "DATA.TRAIN_JITTER_SCALES_RELATIVE", "[1, 1]", "TRAIN.CHECKPOINT_PERIOD", 100,
)  # fmt: skip
STILL = ("SOLVER.BASE_LR", 1e-9, "SOLVER.COSINE_END_LR", 0, "SOLVER.WARMUP_START_LR", 0)
"""Nothing is learnt: what is validated are the weights that came in."""


def results_of(cfg):
    """Run a test and return its results."""
    assert evaluate.test(cfg, distributed.init("cpu"), Stop()) == 0
    return json.loads((config_folder(cfg) / "results.json").read_text())


def config_folder(cfg):
    return Path(cfg.output_dir)


def rows_of(path):
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def log_of(out):
    return (out / "stdout.log").read_text(encoding="utf-8")


def validation_error(out):
    return [r["top1_err"] for r in read_metrics(out) if r["_type"] == "val_epoch"][-1]


def head(state):
    return state["model_state"]["head.projection.weight"]


# ---- starting from weights ----------------------------------------------------------------------


def test_a_run_that_learnt_its_classes(videos, trained, tmp_path):
    """The other tests rest on this: in its own order the checkpoint is right."""
    results = results_of(
        config(
            lists(tmp_path / "lists", videos, FIRST), tmp_path / "out",
            "TEST.CHECKPOINT_FILE_PATH", trained,
        )
    )  # fmt: skip
    assert results["top1_acc"] == 100
    assert "another order" not in log_of(tmp_path / "out")


def test_the_same_classes_in_another_order_start_with_their_own_rows(videos, trained, tmp_path):
    out = tmp_path / "out"
    cfg = config(lists(tmp_path / "lists", videos, OTHER), out, *STILL, "SOLVER.MAX_STEPS", 1,
                 "TRAIN.CHECKPOINT_FILE_PATH", trained)  # fmt: skip
    run(cfg)
    stored = checkpoint.load(trained)
    torch.testing.assert_close(head(final(out)), head(stored)[[2, 0, 1]])
    assert final(out)["classes"] == list(OTHER)
    assert validation_error(out) == 0
    assert "3 classes are in another order here; rows placed by name" in log_of(out)


def test_known_classes_start_with_their_rows_beside_new_ones(videos, trained, tmp_path):
    out = tmp_path / "out"
    called = ("Still", "running fast", "slow")
    cfg = config(lists(tmp_path / "lists", videos, OTHER, called=called), out, *STILL,
                 "SOLVER.MAX_STEPS", 1, "TRAIN.CHECKPOINT_FILE_PATH", trained)  # fmt: skip
    run(cfg)
    torch.testing.assert_close(head(final(out))[[0, 2]], head(checkpoint.load(trained))[[2, 1]])
    said = log_of(out)
    assert "head: 2 of 3 classes placed by name (Still, slow); 1 new" in said
    assert "randomly initialised: running fast; 1 of the checkpoint left out: fast" in said
    assert "'Still' is 'still'" in said


def test_as_many_other_classes_get_a_new_head(videos, trained, tmp_path):
    out = tmp_path / "out"
    cfg = config(lists(tmp_path / "lists", videos, FIRST, called=("a", "b", "c")), out, *STILL,
                 "SOLVER.MAX_STEPS", 1, "TRAIN.CHECKPOINT_FILE_PATH", trained)  # fmt: skip
    run(cfg)
    assert head(final(out)).abs().max() < 1e-3
    assert "none of its 3 classes (fast, slow, still) is one of the 3 here (a, b, c)" in log_of(out)


def test_lists_without_names_are_taken_in_order_and_that_is_said(videos, trained, tmp_path):
    out = tmp_path / "out"
    cfg = config(lists(tmp_path / "lists", videos, FIRST, named=False), out, *STILL,
                 "SOLVER.MAX_STEPS", 1, "TRAIN.CHECKPOINT_FILE_PATH", trained)  # fmt: skip
    run(cfg)
    assert validation_error(out) == 0
    assert re.search(
        "the data has no class names: .* 0 = fast, 1 = slow, 2 = still; if", log_of(out)
    )


def test_a_dry_run_places_rows_too(videos, trained, tmp_path, capsys):
    cfg = config(lists(tmp_path / "lists", videos, OTHER), tmp_path / "out",
                 "TRAIN.CHECKPOINT_FILE_PATH", trained)  # fmt: skip
    dry_run.run(cfg, distributed.init("cpu"), steps=1)
    said = capsys.readouterr().out
    assert "rows placed by name" in said
    cfg = config(tmp_path / "none", tmp_path / "out", "TRAIN.CHECKPOINT_FILE_PATH", trained,
                 "MODEL.NUM_CLASSES", 3)  # fmt: skip
    dry_run.run(cfg, distributed.init("cpu"), steps=1)
    said = capsys.readouterr().out
    assert "generated clips" in said
    assert "class names" not in said


# ---- going on -----------------------------------------------------------------------------------

ADAMW = ("TRAIN.EMA_DECAY", 0.9, "SOLVER.LAYER_DECAY", 0.8, "MIXUP.ENABLE", "true")
SGD = ("SOLVER.OPTIMIZING_METHOD", "sgd", "SOLVER.BASE_LR", 2e-3)


def going_on(data, out, stored, *more):
    return config(data, out, "TRAIN.CHECKPOINT_FILE_PATH", stored,
                  "TRAIN.CHECKPOINT_EPOCH_RESET", "false", *more)  # fmt: skip


@pytest.mark.parametrize("extra", [ADAMW, SGD], ids=["adamw, averaged, mixed", "sgd"])
def test_a_run_goes_on_in_another_order_as_if_nothing_had_happened(videos, tmp_path, extra):
    more = (*extra, "SOLVER.MAX_EPOCH", 4)
    first, other = (lists(tmp_path / n[0], videos, n) for n in (FIRST, OTHER))
    straight, begun, out = (tmp_path / name for name in ("straight", "begun", "out"))
    run(config(first, straight, *more))
    interrupted(config(first, begun, *more), after=3)
    stored = checkpoint.in_order(begun / "checkpoints")[-1]
    run(going_on(other, out, stored, *more))
    mine, expected = losses(out), losses(straight)
    assert sorted(mine) == [4, 5, 6, 7, 8]
    for step, loss in mine.items():
        assert loss == pytest.approx(expected[step], rel=1e-4)
    assert "head and optimizer state placed by name" in log_of(out)
    a, b = final(straight), final(out)
    assert b["classes"] == list(OTHER)
    for name in ("model_state", "raw_state") if "raw_state" in a else ("model_state",):
        theirs = a[name]["head.projection.weight"][[2, 0, 1]]
        torch.testing.assert_close(b[name]["head.projection.weight"], theirs, rtol=1e-3, atol=1e-5)
    moments = [m for state in b["optimizer_state"]["state"].values() for m in state.values()]
    assert all(torch.isfinite(m).all() for m in moments if isinstance(m, torch.Tensor))
    # and that run goes on in its own folder
    assert run(going_on(other, out, stored, *more)) == 0


def test_a_run_does_not_go_on_with_other_classes(videos, trained, tmp_path):
    data = lists(tmp_path / "lists", videos, FIRST, called=("fast", "slow", "gone"))
    with pytest.raises(UserError, match="has other classes than the data") as caught:
        run(going_on(data, tmp_path / "out", trained, *LEARNS))
    said = str(caught.value)
    assert "only there: still" in said
    assert "only here: gone" in said
    assert "Leave TRAIN.CHECKPOINT_EPOCH_RESET at True" in said
    few = lists(tmp_path / "few", videos, FIRST[:2])
    with pytest.raises(UserError, match="only there: still"):
        run(going_on(few, tmp_path / "out", trained, *LEARNS))


def test_a_run_without_names_goes_on_in_order_and_says_so(videos, trained, tmp_path):
    data = lists(tmp_path / "lists", videos, FIRST, named=False)
    out = tmp_path / "out"
    run(going_on(data, out, trained, *LEARNS, "SOLVER.MAX_EPOCH", 13))
    assert "the data has no class names" in log_of(out)
    assert final(out)["classes"] == list(FIRST)  # what its outputs are, has not changed
    assert validation_error(out) == 0


def test_the_same_folder_refuses_other_names_and_another_order(videos, tmp_path):
    """The list, numbers and all, is the same: only the file of names says something else."""
    data, out = lists(tmp_path / "lists", videos, FIRST), tmp_path / "out"
    interrupted(config(data, out), after=1)
    for names, says in (
        (OTHER, "the same names in another order"),
        (("fast", "slow", "gone"), "only there: still; only here: gone"),
    ):
        (data / "classes.txt").write_text("".join(f"{name}\n" for name in names))
        with pytest.raises(UserError, match="OUTPUT_DIR holds a run with other classes") as caught:
            run(config(data, out))
        assert says in str(caught.value)
        assert final(out)["step"] == 1
    (data / "classes.txt").unlink()
    assert run(config(data, out)) == 0
    assert final(out)["classes"] == list(FIRST)
    assert "the data has no class names" in log_of(out)


def test_a_checkpoint_without_names_takes_those_of_the_data_in_order(videos, tmp_path):
    data, out = lists(tmp_path / "lists", videos, FIRST, named=False), tmp_path / "out"
    interrupted(config(data, out), after=1)
    assert final(out)["classes"] == []
    (data / "classes.txt").write_text("fast\nslow\nstill\n")
    assert run(config(data, out)) == 0
    assert final(out)["classes"] == list(FIRST)
    assert "has no class names: its 3 outputs are taken in order for fast, slow" in log_of(out)


# ---- testing ------------------------------------------------------------------------------------


def test_a_list_in_another_order_is_tested_by_name(videos, trained, tmp_path):
    out = tmp_path / "out"
    results = results_of(config(lists(tmp_path / "lists", videos, OTHER), out,
                            "TEST.CHECKPOINT_FILE_PATH", trained))  # fmt: skip
    assert results["top1_acc"] == 100
    assert "labels placed by name" in log_of(out)
    for row in rows_of(out / "predictions.csv"):
        assert row["label"] == row["class1"]
        assert f"/{row['label']}/" in row["video"]
    with open(out / "confusion.csv", newline="") as file:
        assert next(csv.reader(file))[1:] == list(FIRST)  # in the checkpoint's order


def test_a_class_that_the_checkpoint_does_not_know_is_refused(videos, trained, tmp_path):
    data = lists(tmp_path / "lists", videos, FIRST, called=("fast", "slow", "hovering"))
    with pytest.raises(DataError, match=r"does not know 1 class of the data: hovering\. It knows"):
        results_of(config(data, tmp_path / "out", "TEST.CHECKPOINT_FILE_PATH", trained))
    # one without videos does no harm
    few = lists(tmp_path / "few", videos, FIRST[:2], called=("fast", "slow"))
    with open(few / "classes.txt", "a") as file:
        file.write("hovering\n")
    assert results_of(config(few, tmp_path / "b", "TEST.CHECKPOINT_FILE_PATH", trained))
    assert "no videos of 1 class of" in log_of(tmp_path / "b")


def test_a_folder_without_one_of_the_classes_is_tested_by_name(videos, trained, tmp_path):
    few = tmp_path / "few"
    for split in ("train", "val"):
        (few / split).mkdir(parents=True)
        for name, called in (("slow", "Slow"), ("still", "still")):
            (few / split / called).symlink_to(videos / split / name)
    out = tmp_path / "out"
    results = results_of(config(few, out, "TEST.CHECKPOINT_FILE_PATH", trained))
    assert results["top1_acc"] == 100
    assert "no videos of 1 class of" in log_of(out)
    assert "'Slow' is 'slow'" in log_of(out)
    assert [int(row["videos"]) for row in rows_of(out / "per_class.csv")] == [0, 2, 2]


def test_a_table_that_lacks_a_class_is_tested_by_name(videos, trained, tmp_path):
    lines = ["path,label,label_id,split\n"]
    for folder, split in (("train", "train"), ("val", "test")):
        for path in sorted((videos / folder).rglob("*.mp4")):
            if path.parent.name != "slow":
                number = {"fast": 2, "still": 0}[path.parent.name]
                lines.append(f"{path},{path.parent.name},{number},{split}\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "labels.csv").write_text("".join(lines))
    results = results_of(config(tmp_path / "data", tmp_path / "out",
                            "TEST.CHECKPOINT_FILE_PATH", trained))  # fmt: skip
    assert results["top1_acc"] == 100


def test_ids_without_names_are_the_outputs_and_that_is_said(videos, trained, tmp_path):
    out = tmp_path / "out"
    data = lists(tmp_path / "lists", videos, FIRST, named=False)
    results = results_of(config(data, out, "TEST.CHECKPOINT_FILE_PATH", trained))
    assert results["top1_acc"] == 100
    assert "the data has no class names: its labels are taken as the outputs of" in log_of(out)
    assert {row["label"] for row in rows_of(out / "predictions.csv")} == set(CLASSES)


def nameless(trained, path):
    """The weights of a checkpoint alone."""
    torch.save({"model_state": checkpoint.load(trained)["model_state"]}, path)
    return path


def test_weights_without_names_and_fewer_classes_are_refused_before_a_video_is_read(
    videos, trained, tmp_path
):
    weights = nameless(trained, tmp_path / "x.pth")
    few = lists(tmp_path / "few", videos, ("slow", "still"))
    for split in ("train", "val"):  # nothing could be read
        text = (few / f"{split}.csv").read_text()
        (few / f"{split}.csv").write_text(text.replace(".mp4", ".mkv"))
    with pytest.raises(DataError, match=r"has 3 outputs without class names.*DATA\.CLASS_NAMES"):
        results_of(config(few, tmp_path / "out", "TEST.CHECKPOINT_FILE_PATH", weights))


def test_names_that_are_given_make_weights_without_names_right(videos, trained, tmp_path):
    weights = nameless(trained, tmp_path / "x.pth")
    few = tmp_path / "few"
    for split in ("train", "val"):
        (few / split).mkdir(parents=True)
        for name in ("slow", "still"):
            (few / split / name).symlink_to(videos / split / name)
    (tmp_path / "names.txt").write_text("fast\nslow\nstill\n")
    out = tmp_path / "out"
    results = results_of(config(few, out, "TEST.CHECKPOINT_FILE_PATH", weights,
                            "DATA.CLASS_NAMES", tmp_path / "names.txt"))  # fmt: skip
    assert results["top1_acc"] == 100
    assert {row["class1"] for row in rows_of(out / "predictions.csv")} == {"slow", "still"}
    whole = results_of(config(videos, tmp_path / "b", "TEST.CHECKPOINT_FILE_PATH", weights))
    assert whole["top1_acc"] == 100
    assert "its 3 outputs are taken in order for fast, slow, still" in log_of(tmp_path / "b")


@pytest.mark.parametrize(
    ("own", "says"),
    [
        (
            ("riding_a_bike", "yoga", "abseiling"),
            "its 400 outputs are read as those of kinetics400",
        ),
        (("mine", "yoga", "abseiling"), None),
    ],
)
def test_weights_that_look_like_public_ones_have_their_names_where_all_agree(
    videos, tmp_path, own, says
):
    """A bare file of a published model, tested on three classes."""
    small = {
        "MODEL.MODEL_NAME": "hiera_base_16x224",
        "MODEL.KWARGS": "{embed_dim: 8, num_heads: 1, stages: [1, 1, 1, 1]}",
    }
    data = tmp_path / "data"
    for split in ("train", "val"):
        (data / split).mkdir(parents=True)
        for name, called in zip(FIRST, own, strict=True):
            (data / split / called).symlink_to(videos / split / name)
    weights, out = tmp_path / "mine.pth", tmp_path / "out"
    cfg = config(data, out, "TEST.CHECKPOINT_FILE_PATH", weights, task=small)
    model, _ = build.training_model(cfg, num_classes=400)
    names = load_labels("kinetics400")
    with torch.no_grad():  # it says "yoga" whatever it sees
        model.head.projection.bias[names.index("yoga")] = 9.0
    torch.save({"model_state": model.state_dict()}, weights)
    if says is None:
        with pytest.raises(DataError, match="400 outputs without class names, and the data has 3"):
            results_of(cfg)
        return
    assert results_of(cfg)["top1_acc"] == pytest.approx(100 / 3)
    assert says in log_of(out)
    rows = rows_of(out / "predictions.csv")
    assert {row["class1"] for row in rows} == {"yoga"}
    assert {row["label"] for row in rows} == {"riding a bike", "yoga", "abseiling"}


def test_a_validation_list_in_another_order_follows_the_training_list(videos, tmp_path):
    """Two lists in two folders, each with its own file of names."""
    train_list = lists(tmp_path / "a", videos, FIRST)
    val_list = lists(tmp_path / "b", videos, OTHER)
    manifest = fit_labels(
        read_manifest(val_list, "val"),
        names=read_manifest(train_list, "train").classes,
        count=3,
        owner="the training list",
    )
    assert manifest.classes == FIRST
    for path, label in zip(manifest.paths, manifest.labels, strict=True):
        assert f"/{FIRST[label]}/" in path


def test_the_validation_of_a_run_is_by_name(videos, trained, tmp_path):
    """`annotations/val.csv` lies beside other names than `train.csv`."""
    data = lists(tmp_path / "data", videos, FIRST)
    (data / "val.csv").unlink()
    other = lists(tmp_path / "other", videos, OTHER)
    other.rename(data / "annotations")
    (data / "annotations" / "train.csv").unlink()
    out = tmp_path / "out"
    run(config(data, out, *STILL, "SOLVER.MAX_STEPS", 1, "TRAIN.CHECKPOINT_FILE_PATH", trained))
    assert validation_error(out) == 0
    assert "in another order than those of the training list" in log_of(out)


def test_several_labels_follow_their_names(videos, tmp_path):
    first = read_manifest(lists(tmp_path / "a", videos, FIRST, many=True), multi_label=True)
    other = read_manifest(
        lists(tmp_path / "b", videos, ("slow", "still", "fast"), many=True), multi_label=True
    )
    fitted = fit_labels(other, names=first.classes, count=3, owner="x")
    found = [fitted.label(i) for i in range(len(fitted))]
    # by hand: a video of a class, and the class that follows it in the second order
    after = {"slow": "still", "still": "fast", "fast": "slow"}
    for path, labels in zip(fitted.paths, found, strict=True):
        name = path.split("/")[-2]
        assert {FIRST[label] for label in labels} == {name, after[name]}
        assert list(labels) == sorted(labels)
    assert np.array_equal(fitted.label_ends, other.label_ends)


def test_a_reader_of_ones_own_cannot_give_labels_beyond_the_outputs(videos, tmp_path):
    manifest = read_manifest(lists(tmp_path / "a", videos, FIRST, named=False))
    with pytest.raises(DataError, match="label 2 is out of range; allowed are 0 to 1"):
        fit_labels(manifest, names=["a", "b"], count=2, owner="x.pyth")


# ---- from the command line ----------------------------------------------------------------------


def test_the_command_line_says_it_and_ends_with_2_where_it_cannot_be_right(
    videos, trained, tmp_path
):
    data = lists(tmp_path / "lists", videos, FIRST, called=("fast", "slow", "hovering"))
    words = settings(data, tmp_path / "out", "TEST.CHECKPOINT_FILE_PATH", trained)
    done = run_child("--cfg", empty(tmp_path), *words, "TRAIN.ENABLE", "False")
    assert done.returncode == 2, done.stderr
    assert "does not know 1 class of the data: hovering" in done.stderr
    assert "Traceback" not in done.stderr
