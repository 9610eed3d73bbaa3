"""Whole runs: they learn, they go on bit for bit, they stop cleanly, they say what is wrong."""

import importlib
import json
import os
import re
import shlex
import signal
import sys

import numpy as np
import pytest
import torch
from clips import write_clip
from PIL import Image
from tiny_runs import (
    CLASSES,
    HEAVY,
    PRETRAIN,
    config,
    empty,
    final,
    interrupted,
    losses,
    run,
    run_child,
    same,
    settings,
    start_child,
    write_videos,
)

from hiera_video import build_model
from hiera_video.data.randomness import epoch_order
from hiera_video.engine import build, checkpoint, distributed, evaluate, plots, tasks, train
from hiera_video.engine.records import read_metrics
from hiera_video.engine.signals import Stop
from hiera_video.engine.step import Forward
from hiera_video.errors import RunFailed, UserError
from hiera_video.registry import MODEL_REGISTRY
from hiera_video.video.decode import probe, read_frames


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Nine training and three validation videos."""
    return write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(autouse=True)
def no_curves(request, monkeypatch):
    """Drawing takes longer than these runs; one test looks at the picture."""
    if "leaves_its_folder" not in request.node.name:
        monkeypatch.setattr(plots, "draw_curves", lambda folder: None)


# ---- a run leaves what it should ----------------------------------------------------------------


def test_a_run_leaves_its_folder(videos, tmp_path):
    out = tmp_path / "out"
    assert run(config(videos, out)) == 0
    there = {p.name for p in out.iterdir()} - {".lock"}
    page = {"index.html", "page"}
    logs = {"config.yaml", "curves.png", "metrics.jsonl", "stdout.log"}
    assert there == {"checkpoints"} | page | logs
    names = {p.name for p in (out / "checkpoints").iterdir()}
    assert names == {
        "checkpoint_epoch_00001.pyth", "checkpoint_epoch_00002.pyth", "best.pyth", "best.json"
    }  # fmt: skip
    state = final(out)
    assert state["classes"] == sorted(CLASSES)
    assert state["spec"]["num_frames"] == 4
    assert state["model"]["kwargs"]["num_classes"] == 3
    assert (state["epoch"], state["step"]) == (2, 4)
    kinds = [r["_type"] for r in read_metrics(out)]
    assert kinds == ["train_iter_", "train_iter_", "train_epoch", "val_epoch"] * 2
    log = (out / "stdout.log").read_text()
    assert log.count("json_stats: {") == 8
    assert "1 left over" in log  # drop-last is stated

    # the same command again: done already, nothing changes
    before = {p: p.stat().st_mtime_ns for p in (out / "checkpoints").iterdir()}
    assert run(config(videos, out)) == 0
    assert {p: p.stat().st_mtime_ns for p in (out / "checkpoints").iterdir()} == before
    assert [r["_type"] for r in read_metrics(out)] == kinds


def test_the_checkpoint_alone_labels_a_video(videos, tmp_path):
    from hiera_video import Predictor

    out = tmp_path / "out"
    run(config(videos, out, "SOLVER.MAX_EPOCH", 1))
    predictor = Predictor.load(weights=out / "checkpoints" / "best.pyth")
    found = predictor(str(videos / "val" / "fast" / "00.mp4"))
    assert sorted(label.label for label in found.labels) == sorted(CLASSES)
    assert sum(label.score for label in found.labels) == pytest.approx(1)


def test_only_the_last_checkpoints_and_the_best_are_kept(videos, tmp_path):
    out = tmp_path / "out"
    run(config(videos, out, "SOLVER.MAX_EPOCH", 4, "TRAIN.KEEP_CHECKPOINTS", 1))
    names = sorted(p.name for p in (out / "checkpoints").glob("*.pyth"))
    assert names == ["best.pyth", "checkpoint_epoch_00004.pyth"]
    best = checkpoint.best_record(out / "checkpoints")
    assert checkpoint.load(out / "checkpoints" / "best.pyth")["epoch"] == best["epoch"]
    errors = [r["top1_err"] for r in read_metrics(out) if r["_type"] == "val_epoch"]
    assert best["value"] == pytest.approx(100 - min(errors))
    assert best["epoch"] == errors.index(min(errors)) + 1  # the first of equals


@pytest.mark.parametrize("period", ["CHECKPOINT_PERIOD", "EVAL_PERIOD"])
def test_periods_skip_epochs_but_never_the_last(videos, tmp_path, period):
    out = tmp_path / "out"
    run(
        config(
            videos, out, "SOLVER.MAX_EPOCH", 3, f"TRAIN.{period}", 2, "TRAIN.KEEP_CHECKPOINTS", 0
        )
    )
    validated = [r["step"] // 2 for r in read_metrics(out) if r["_type"] == "val_epoch"]
    saved = [checkpoint.load(p)["epoch"] for p in checkpoint.in_order(out / "checkpoints")]
    if period == "EVAL_PERIOD":
        assert validated == [2, 3]
        assert saved == [1, 2, 3]
    else:
        assert validated == [1, 2, 3]
        # an epoch that is the best so far is kept although its checkpoint was not due
        assert set(saved) >= {2, 3}
        assert checkpoint.load(out / "checkpoints" / "best.pyth")


# ---- going on -----------------------------------------------------------------------------------


@pytest.mark.numbers
@pytest.mark.parametrize("task", ["classify", "pretrain"])
def test_a_stop_anywhere_goes_on_bit_for_bit(videos, tmp_path, task):
    extra = HEAVY if task == "classify" else ("DATA.TRAIN_CROP_NUM_TEMPORAL", 2)
    kind = PRETRAIN if task == "pretrain" else None
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run(config(videos, straight, *extra, task=kind)) == 0
    cfg = config(videos, broken, *extra, task=kind)
    assert interrupted(cfg, after=1) == 130  # in the middle of the first epoch
    assert final(broken)["step"] == 1
    assert interrupted(cfg, after=3) == 130  # in the middle of the second
    assert final(broken)["step"] == 3
    assert run(cfg) == 0
    a, b = final(straight), final(broken)
    for key in ("model_state", "optimizer_state", "raw_state", "epoch_sums", "step"):
        assert same(a.get(key), b.get(key)), key
    assert losses(straight) == losses(broken)
    assert len(losses(broken)) == 4


def test_a_stop_during_validation_validates_later(videos, tmp_path):
    out = tmp_path / "out"
    stop = Stop()
    with pytest.MonkeyPatch.context() as patch:
        update = evaluate.VideoProgress.update
        patch.setattr(
            evaluate.VideoProgress,
            "update",
            lambda *args: setattr(stop, "signal", signal.SIGTERM) or update(*args),
        )
        assert train.train(config(videos, out), distributed.init("cpu"), stop) == 0
    assert stop.obeyed
    assert final(out)["step"] == 2
    assert not [r for r in read_metrics(out) if r["_type"] == "val_epoch"]
    assert run(config(videos, out)) == 0
    steps = [r["step"] for r in read_metrics(out) if r["_type"] == "val_epoch"]
    assert steps == [2, 4]


def test_checkpoints_inside_an_epoch(videos, tmp_path):
    out = tmp_path / "out"
    run(config(videos, out, "TRAIN.BATCH_SIZE", 3, "TRAIN.CHECKPOINT_STEPS", 2,
               "TRAIN.KEEP_CHECKPOINTS", 0, "SOLVER.MAX_EPOCH", 1))  # fmt: skip
    steps = [checkpoint.load(p)["step"] for p in checkpoint.in_order(out / "checkpoints")]
    assert steps == [2, 3]


def test_checkpoints_by_steps_are_written_at_the_end_of_an_epoch_too(videos, tmp_path):
    out = tmp_path / "out"
    run(config(videos, out, "TRAIN.CHECKPOINT_STEPS", 2, "TRAIN.CHECKPOINT_PERIOD", 100,
               "TRAIN.KEEP_CHECKPOINTS", 0, "TRAIN.EVAL_PERIOD", 0,
               "SOLVER.MAX_EPOCH", 3))  # fmt: skip
    steps = [checkpoint.load(p)["step"] for p in checkpoint.in_order(out / "checkpoints")]
    assert steps == [2, 4, 6]


def test_a_damaged_newest_checkpoint_is_passed_over(videos, tmp_path, capsys):
    straight, out = tmp_path / "straight", tmp_path / "out"
    run(config(videos, straight))
    run(config(videos, out))
    newest = checkpoint.in_order(out / "checkpoints")[-1]
    os.truncate(newest, newest.stat().st_size - 100)
    capsys.readouterr()
    assert run(config(videos, out)) == 0
    said = capsys.readouterr().out
    assert newest.name in said
    assert "going on from" in said
    assert same(final(straight)["model_state"], final(out)["model_state"])


def test_changed_settings_are_refused_by_name(videos, tmp_path):
    out = tmp_path / "out"
    interrupted(config(videos, out), after=1)
    with pytest.raises(UserError, match=r"SOLVER\.BASE_LR: 0\.005 there, 0\.1 here") as error:
        run(config(videos, out, "SOLVER.BASE_LR", 0.1))
    assert "CHECKPOINT_EPOCH_RESET" in str(error.value)
    # what does not change the result may change
    assert interrupted(config(videos, out, "LOG_PERIOD", 3, "TEST.BATCH_SIZE", 2), after=2) == 130


def test_another_model_another_list_and_a_second_start_are_refused(videos, tmp_path):
    out = tmp_path / "out"
    interrupted(config(videos, out), after=1)
    kwargs = "{embed_dim: 16, num_heads: 1, stages: [1, 1, 1, 1]}"
    with pytest.raises(UserError, match=r"MODEL\.KWARGS"):
        run(config(videos, out, "MODEL.KWARGS", kwargs))
    with pytest.raises(UserError, match="AUTO_RESUME is False"):
        run(config(videos, out, "TRAIN.AUTO_RESUME", "false"))
    more = write_videos(tmp_path / "more", train=10)
    with pytest.raises(UserError, match="list of training videos has changed"):
        run(config(more, out))
    stored = out / "checkpoints" / "checkpoint_epoch_00000_step_0000001.pyth"
    with pytest.raises(UserError, match="checkpoint of another model"):
        run(config(videos, tmp_path / "b", "MODEL.KWARGS", kwargs,
                   "TRAIN.CHECKPOINT_FILE_PATH", stored,
                   "TRAIN.CHECKPOINT_EPOCH_RESET", "false"))  # fmt: skip


def test_going_on_under_new_settings_on_purpose(videos, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    run(config(videos, first))
    stored = first / "checkpoints" / "checkpoint_epoch_00002.pyth"
    cfg = config(videos, second, "SOLVER.MAX_EPOCH", 3, "TRAIN.CHECKPOINT_FILE_PATH", stored,
                 "TRAIN.CHECKPOINT_EPOCH_RESET", "false")  # fmt: skip
    assert run(cfg) == 0
    assert sorted(losses(second)) == [5, 6]


SGD = ("SOLVER.OPTIMIZING_METHOD", "sgd")
AFRESH = "note: the optimizer's state starts afresh"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (SGD, (), f"{AFRESH}: the checkpoint holds momentum_buffer, which"),
        ((), SGD, f"{AFRESH}: the checkpoint holds exp_avg, exp_avg_sq, step, which"),
        (
            (*SGD, "SOLVER.MOMENTUM", 0, "SOLVER.NESTEROV", "false"),
            SGD,
            f"{AFRESH}: the checkpoint has none",
        ),
        (SGD, (*SGD, "SOLVER.MOMENTUM", 0, "SOLVER.NESTEROV", "false"), None),
        (SGD, (*SGD, "SOLVER.MOMENTUM", 0.5, "SOLVER.NESTEROV", "false"), None),
        ((), ("SOLVER.LAYER_DECAY", 0.5, "SOLVER.BETAS", "[0.8, 0.9]"), None),
        (("SOLVER.LAYER_DECAY", 0.5), ("SOLVER.WEIGHT_DECAY", 0), None),
        ((), ("TRAIN.LINEAR_PROBE", "true"), None),
        (
            ("TRAIN.LINEAR_PROBE", "true"),
            (),
            r"state of \d+ of \d+ parameters starts afresh, .*: pos_embed",
        ),
        ((), ("TRAIN.MIXED_PRECISION", "fp16"), None),
        (("TRAIN.MIXED_PRECISION", "fp16"), ("TRAIN.MIXED_PRECISION", "bf16"), None),
        (("TRAIN.EMA_DECAY", 0.9), (), None),
        ((), ("TRAIN.EMA_DECAY", 0.9), None),
        ((), ("MODEL.DROPOUT_RATE", 0.5, "HIERA.DROPPATH_RATE", 0), None),
    ],
    ids=lambda words: "_".join(map(str, words)) if isinstance(words, tuple) else "",
)
def test_going_on_with_another_optimizer_and_other_groups(
    videos, tmp_path, capsys, before, after, said
):
    """Moments follow their parameters by name; those that are missing start afresh, and the run
    says so. Then it trains on."""
    few = ("SOLVER.WARMUP_EPOCHS", 0, "TRAIN.EVAL_PERIOD", 0)
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    run(config(videos, first, *few, "SOLVER.MAX_STEPS", 2, *before))
    stored = checkpoint.in_order(first / "checkpoints")[-1]
    begin = (*few, "TRAIN.CHECKPOINT_FILE_PATH", stored, "TRAIN.CHECKPOINT_EPOCH_RESET", "false")
    # with no step left to take, the new folder's checkpoint holds what was taken over
    capsys.readouterr()
    assert run(config(videos, second, *begin, "SOLVER.MAX_STEPS", 2, *after)) == 0
    heard = capsys.readouterr().out
    assert re.search(said, heard) if said else "afresh" not in heard
    theirs, ours = moments(final(first)), moments(final(second))
    assert all(same(values, theirs[name]) for name, values in ours.items())
    wanted = set() if said and AFRESH in said else theirs.keys()
    if "TRAIN.LINEAR_PROBE" in (*before, *after):
        wanted = {"head.projection.weight", "head.projection.bias"}
    assert ours.keys() == (set() if after[2:4] == ("SOLVER.MOMENTUM", 0) else wanted)
    assert run(config(videos, third, *begin, "SOLVER.MAX_STEPS", 3, *after)) == 0
    assert final(third)["step"] == 3


def moments(state):
    """Name of a parameter -> its moments."""
    groups = state["optimizer_state"]["param_groups"]
    names = [name for group in groups for name in group["param_names"]]
    return {names[number]: values for number, values in state["optimizer_state"]["state"].items()}


def without_names(path):
    """A checkpoint as earlier versions wrote it: groups do not name their parameters."""
    state = checkpoint.load(path)
    for group in state["optimizer_state"]["param_groups"]:
        del group["param_names"]
    checkpoint.save(state, path)


def test_checkpoints_of_earlier_versions_go_on(videos, tmp_path, capsys):
    straight, out = tmp_path / "straight", tmp_path / "out"
    run(config(videos, straight, *HEAVY))
    interrupted(config(videos, out, *HEAVY), after=2)
    stored = checkpoint.in_order(out / "checkpoints")[-1]
    without_names(stored)
    assert run(config(videos, out, *HEAVY)) == 0
    for key in ("model_state", "raw_state", "optimizer_state"):
        assert same(final(straight)[key], final(out)[key]), key
    without_names(stored)
    other = config(
        videos, tmp_path / "other", *HEAVY, "SOLVER.LAYER_DECAY", 1,
        "TRAIN.CHECKPOINT_FILE_PATH", stored, "TRAIN.CHECKPOINT_EPOCH_RESET", "false",
    )  # fmt: skip
    capsys.readouterr()
    assert run(other) == 0
    assert (
        "starts afresh: the checkpoint groups its parameters in another" in capsys.readouterr().out
    )


def test_a_checkpoint_beyond_the_end_of_the_run_is_refused(videos, tmp_path):
    run(config(videos, tmp_path / "first", "SOLVER.MAX_STEPS", 3))
    stored = checkpoint.in_order(tmp_path / "first" / "checkpoints")[-1]
    with pytest.raises(UserError, match=r"has taken 3 steps and this run ends after 2.*MAX_EPOCH"):
        run(config(videos, tmp_path / "second", "SOLVER.MAX_STEPS", 2,
                   "TRAIN.CHECKPOINT_FILE_PATH", stored,
                   "TRAIN.CHECKPOINT_EPOCH_RESET", "false"))  # fmt: skip


def test_clips_of_another_size_than_the_model_are_refused_before_the_first_step(videos, tmp_path):
    """The model that was built decides, whatever its name is."""
    other = ("DATA.TEST_CROP_SIZE", 96)
    with pytest.raises(UserError, match=r"validation and test.* 4x64x64 .*makes 4x96x96.*TEST_CR"):
        run(config(videos, tmp_path / "a", *other))
    assert not list(tmp_path.glob("a/checkpoints/*"))
    assert run(config(videos, tmp_path / "b", *other, "SOLVER.MAX_STEPS", 1, task=PRETRAIN)) == 0
    run(config(videos, tmp_path / "c", "SOLVER.MAX_STEPS", 1))
    with pytest.raises(UserError, match=r"hiera_tiny_16x224, .* makes 4x96x96"):
        evaluate.test(config(videos, tmp_path / "c", *other), distributed.init("cpu"), Stop())


NO_ARGUMENTS = {"MODEL.KWARGS": "{}"}
"""In place of those that make a Hiera tiny."""


def test_a_model_of_ones_own_says_itself_which_sizes_it_takes(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(MODEL_REGISTRY, "_obj_map", dict(MODEL_REGISTRY._obj_map))

    @MODEL_REGISTRY.register
    def hiera_mine(num_classes=3, **others):
        if others:
            return build_model("hiera_tiny_16x224", num_classes=num_classes, **others)
        return AnySize(num_classes)

    mine = ("MODEL.MODEL_NAME", "hiera_mine", "SOLVER.MAX_STEPS", 1)
    free = ("MODEL.DROPOUT_RATE", "None", "HIERA.DROPPATH_RATE", "None", "DATA.TEST_CROP_SIZE", 96)
    assert run(config(videos, tmp_path / "a", *mine, *free, task=NO_ARGUMENTS)) == 0
    with pytest.raises(UserError, match=r"takes clips of 16x224x224.*MODEL\.KWARGS\.input_size"):
        run(config(videos, tmp_path / "b", *mine))
    told = ("MODEL.KWARGS.input_size", "[4, 64, 64]")
    assert run(config(videos, tmp_path / "c", *mine, *told)) == 0


class AnySize(torch.nn.Module):
    """The mean colour, and a head."""

    def __init__(self, num_classes):
        super().__init__()
        self.head = torch.nn.Linear(3, num_classes)

    def forward(self, clips):
        return self.head(clips.mean(dim=(2, 3, 4)))


def test_pretrained_weights_start_a_classifier(videos, tmp_path, capsys):
    pre, fine = tmp_path / "pre", tmp_path / "fine"
    run(config(videos, pre, "SOLVER.MAX_EPOCH", 1, task=PRETRAIN))
    stored = pre / "checkpoints" / "checkpoint_epoch_00001.pyth"
    capsys.readouterr()
    run(config(videos, fine, "SOLVER.MAX_STEPS", 1, "TRAIN.CHECKPOINT_FILE_PATH", stored,
               "SOLVER.BASE_LR", 1e-6, "SOLVER.COSINE_END_LR", 0))  # fmt: skip
    assert "loaded" in capsys.readouterr().out
    key = "blocks.2.mlp.fc1.weight"
    difference = final(pre)["model_state"][key] - final(fine)["model_state"][key]
    assert difference.abs().max() < 1e-4


# ---- it learns ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "precision", [pytest.param("off", marks=pytest.mark.numbers), "bf16", "fp16"]
)
def test_thirty_two_clips_are_learnt_by_heart(tmp_path, precision):
    videos = write_videos(tmp_path / "videos", train=32, val=3, tinted=True)
    cfg = config(
        videos, tmp_path / "out", "TRAIN.BATCH_SIZE", 16, "SOLVER.MAX_EPOCH", 8, *quiet(),
        "DATA.TRAIN_JITTER_SCALES_RELATIVE", "[1, 1]", "TRAIN.EVAL_PERIOD", 0,
        "SOLVER.WARMUP_EPOCHS", 1, "SOLVER.CLIP_GRAD_L2NORM", 1, "TRAIN.CHECKPOINT_PERIOD", 100,
        "TRAIN.MIXED_PRECISION", precision,
    )  # fmt: skip
    run(cfg)
    epochs = [r for r in read_metrics(tmp_path / "out") if r["_type"] == "train_epoch"]
    assert epochs[0]["loss"] > 1
    assert epochs[-1]["loss"] < 0.3
    assert [r["top1_err"] for r in epochs[-2:]] == [0, 0]


def test_pretraining_lowers_its_loss_and_draws(videos, tmp_path):
    out = tmp_path / "out"
    run(config(videos, out, "SOLVER.MAX_EPOCH", 6, "TRAIN.PICTURE_PERIOD", 3, task=PRETRAIN))
    found = [r["loss"] for r in read_metrics(out) if r["_type"] == "train_epoch"]
    assert found[-1] < found[0] - 0.02
    pictures = sorted((out / "pictures").glob("reconstruction_*.png"))
    assert len(pictures) == 2
    for picture in pictures:
        with Image.open(picture) as image:  # two clips of three rows, two frames of each
            assert image.size == (2 * 64, 2 * 3 * 64)
            shown = np.asarray(image)
        video = picture.with_suffix(".mp4")
        frames = read_frames(video, [0, 1])
        assert frames.shape == (2, 3, 2 * 64, 3 * 64), "rows are columns, clips below each other"
        # [clip, row, y, frame, x, channel] -> [frame, channel, clip, y, row, x]
        rows = shown.reshape(2, 3, 64, 2, 64, 3).transpose(3, 5, 0, 2, 1, 4)
        wanted = rows.reshape(frames.shape).astype(float)
        assert np.abs(frames.numpy() - wanted).mean() < 6
        assert probe(video).num_frames == 2
    rows = json.loads((out / "pictures" / "reconstruction.json").read_text())["rows"]
    assert rows == ["input", "visible part", "reconstruction"]
    assert "best.pyth" not in {p.name for p in (out / "checkpoints").iterdir()}


GOLDEN = {
    "classify": ("MIXUP.ENABLE", "true", "AUG.RE_PROB", 0.5, "AUG.NUM_SAMPLE", 2,
                 "TRAIN.EMA_DECAY", 0.3, "SOLVER.LAYER_DECAY", 0.8,
                 "SOLVER.CLIP_GRAD_L2NORM", 1.0, "TRAIN.GRAD_ACCUM", 2),
    "pretrain": ("TRAIN.BATCH_SIZE", 3,),
}  # fmt: skip
"""Two runs with all that is random but RandAugment, which rounds to whole levels."""

NO_RESIZING = (
    "DATA.TRAIN_JITTER_SCALES_RELATIVE", f"[{64**2 / 72**2}, {64**2 / 72**2}]",
    "DATA.TRAIN_JITTER_ASPECT_RELATIVE", "[1, 1]",
    "DATA.RANDOM_FLIP", "true",
    "DATA.DECODING_BACKEND", "pyav",
)  # fmt: skip
"""Crops of 64 x 64 out of 72 x 72 are cut and not scaled, which rounds to whole levels too."""


def write_exact_videos(folder):
    """Nine training and three validation videos, lossless and without colour conversion."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 9), ("val", 3)):
        for i in range(count):
            path = folder / split / CLASSES[i % 3] / f"{i:02d}.mov"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = rng.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
            frames = coarse.repeat(9, axis=1).repeat(9, axis=2)
            write_clip(path, frames=frames, fps=10, size=(72, 72), codec="png", pix_fmt="rgb24")
    return folder


def absolute_sum(state):
    """Sum of the absolute values of a model's weights."""
    return sum(value.double().abs().sum().item() for value in state.values())


@pytest.mark.numbers
@pytest.mark.parametrize("task", GOLDEN)
def test_the_golden_curve(task, tmp_path, repository, monkeypatch):
    """Changes only on purpose: delete the file, run the test, commit what it wrote.

    Everything up to the model is exact, and the weights are redrawn so that no gradient is lost in
    rounding: processors, threads and versions of torch then agree to some 3e-7 (measured), and the
    smallest change of a rule moves the curve by 1e-4 and more.
    """
    found = {}
    training_model = build.training_model

    def redrawn(cfg, **kwargs):
        model, identity = training_model(cfg, **kwargs)
        found["first weights"] = absolute_sum(model.state_dict())
        rng = np.random.default_rng(1)  # numpy's uniform numbers are exact everywhere
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = rng.uniform(-1, 1, parameter.shape)
                one = parameter.ndim == 1 and name.endswith("weight")
                parameter.copy_(torch.from_numpy(noise * 0.2 + 1 if one else noise * 0.15))
        return model, identity

    monkeypatch.setattr(build, "training_model", redrawn)
    videos, out = write_exact_videos(tmp_path / "videos"), tmp_path / "out"
    cfg = config(videos, out, *NO_RESIZING, "SOLVER.MAX_EPOCH", 3, "SOLVER.WEIGHT_DECAY", 0.5,
                 "TRAIN.EVAL_PERIOD", 0, *GOLDEN[task],
                 task=PRETRAIN if task == "pretrain" else None)  # fmt: skip
    assert run(cfg) == 0
    for record in read_metrics(out):
        if record["_type"] == "train_iter_":
            found[f"loss {record['step']}"] = record["loss"]
            found[f"gradient {record['step']}"] = record["grad_norm"]
    state = final(out)
    found["weights"] = absolute_sum(state["model_state"])
    if "raw_state" in state:
        found["not averaged"] = absolute_sum(state["raw_state"])

    golden = repository / "tests" / "golden" / f"{task}.txt"
    if not golden.exists():
        golden.write_text("".join(f"{name}: {value:.7f}\n" for name, value in found.items()))
        pytest.fail(f"wrote {golden}; look at it and commit it")
    stored = dict(line.split(": ") for line in golden.read_text().splitlines())
    assert found.keys() == stored.keys()
    for name, value in found.items():
        assert value == pytest.approx(float(stored[name]), rel=5e-6), name


# ---- the same whatever the shape of the computation ---------------------------------------------


def quiet(*more):
    """Settings without drop path and dropout, which each process draws for itself."""
    return ("HIERA.DROPPATH_RATE", 0, "MODEL.DROPOUT_RATE", 0, *more)


@pytest.mark.parametrize("task", ["classify", pytest.param("pretrain", marks=pytest.mark.slow)])
def test_two_processes_give_the_curve_of_one(videos, tmp_path, task):
    one, two = tmp_path / "one", tmp_path / "two"
    kind = PRETRAIN if task == "pretrain" else None
    extra = ("HIERA.DROPPATH_RATE", 0, "SOLVER.MAX_EPOCH", 3)
    extra += ("MODEL.DROPOUT_RATE", 0) if task == "classify" else ()
    run(config(videos, one, *extra, task=kind))
    words = settings(videos, two, *extra, "TEST.ENABLE", task == "classify", task=kind)
    done = run_child("--cfg", empty(tmp_path), *words, processes=2)
    assert done.returncode == 0, done.stderr
    a, b = losses(one), losses(two)
    assert a.keys() == b.keys()
    assert max(abs(a[s] - b[s]) for s in a) < 1e-5
    if task == "classify":
        val = [[r for r in read_metrics(out) if r["_type"] == "val_epoch"] for out in (one, two)]
        assert val[0] == val[1]
        results = json.loads((two / "results.json").read_text())
        assert (results["n_videos"], results["n_failed"]) == (3, 0)
        assert len((two / "predictions.csv").read_text().splitlines()) == 4


@pytest.mark.numbers
def test_accumulation_does_not_change_the_curve(videos, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(config(videos, whole, *quiet()))
    run(config(videos, parts, *quiet("TRAIN.GRAD_ACCUM", 4)))
    a, b = losses(whole), losses(parts)
    assert max(abs(a[s] - b[s]) for s in a) < 1e-5


def test_activation_checkpointing_and_workers_do_not_change_the_curve(videos, tmp_path):
    plain, other = tmp_path / "plain", tmp_path / "other"
    run(config(videos, plain, "SOLVER.MAX_EPOCH", 1))
    run(config(videos, other, "SOLVER.MAX_EPOCH", 1, "MODEL.ACT_CHECKPOINT", "true",
               "DATA_LOADER.NUM_WORKERS", 1))  # fmt: skip
    a, b = losses(plain), losses(other)
    assert max(abs(a[s] - b[s]) for s in a) < 1e-6


@pytest.mark.numbers
@pytest.mark.parametrize("precision", ["off", "bf16", "fp16"])
def test_mixed_precision_trains(videos, tmp_path, monkeypatch, precision):
    """The layers compute in the format that was asked for; weights and loss stay float32."""
    seen = {"layers": set(), "loss": set(), "gradients": set()}
    training_model, update = build.training_model, train.update
    classify = tasks.Classification.step

    def watched(cfg, **kwargs):
        model, identity = training_model(cfg, **kwargs)
        for module in model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv3d):
                module.register_forward_hook(lambda m, i, o: seen["layers"].add(o.dtype))
        return model, identity

    def weighed(*args, **kwargs):
        result = classify(*args, **kwargs)
        seen["loss"].add(result["loss"].dtype)
        return result

    def updated(optimizer, scaler, trained, *rest):
        seen["gradients"] |= {parameter.grad.dtype for parameter in trained}
        return update(optimizer, scaler, trained, *rest)

    monkeypatch.setattr(build, "training_model", watched)
    monkeypatch.setattr(tasks.Classification, "step", weighed)
    monkeypatch.setattr(train, "update", updated)
    out = tmp_path / "out"
    run(config(videos, out, "SOLVER.MAX_STEPS", 2, "TRAIN.EVAL_PERIOD", 0, *quiet(),
               "TRAIN.MIXED_PRECISION", precision))  # fmt: skip
    asked = tasks.PRECISION[precision]
    assert seen == {"layers": {asked}, "loss": {torch.float32}, "gradients": {torch.float32}}
    state = final(out)
    assert {v.dtype for v in state["model_state"].values()} == {torch.float32}
    assert bool(state["scaler_state"]) == (precision == "fp16")


# ---- switches -----------------------------------------------------------------------------------


def test_a_linear_probe_moves_the_head_alone(videos, tmp_path):
    first, out = tmp_path / "first", tmp_path / "out"
    run(config(videos, first, "SOLVER.MAX_STEPS", 1))
    stored = first / "checkpoints" / "checkpoint_epoch_00000_step_0000001.pyth"
    run(config(videos, out, "SOLVER.MAX_STEPS", 2, "TRAIN.LINEAR_PROBE", "true",
               "TRAIN.CHECKPOINT_FILE_PATH", stored))  # fmt: skip
    before, after = final(first)["model_state"], final(out)["model_state"]
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"head.projection.weight", "head.projection.bias"}


@pytest.mark.numbers
def test_averaged_weights_are_what_is_validated_and_kept(videos, tmp_path):
    out = tmp_path / "out"
    run(config(videos, out, "TRAIN.EMA_DECAY", 0.9, "SOLVER.MAX_EPOCH", 1))
    state = final(out)
    assert not same(state["model_state"], state["raw_state"])
    plain = tmp_path / "plain"
    run(config(videos, plain, "SOLVER.MAX_EPOCH", 1))
    assert same(state["raw_state"], final(plain)["model_state"])
    target = tmp_path / "exported.pyth"
    checkpoint.export(checkpoint.in_order(out / "checkpoints")[-1], target)
    exported = torch.load(target, weights_only=True)
    assert same(exported["model_state"], state["model_state"])


@pytest.mark.numbers
def test_balanced_class_weights_scale_the_loss(tmp_path, monkeypatch):
    """With scores that differ by class: equal losses would average to the same without weights."""
    videos = write_videos(tmp_path / "videos", train=4, val=3)  # 2 fast, 1 slow, 1 still
    scores, training_model = torch.tensor([0.0, 1.0, 2.0]), build.training_model

    def opinionated(cfg, **kwargs):
        model, identity = training_model(cfg, **kwargs)
        with torch.no_grad():
            model.head.projection.weight.zero_()
            model.head.projection.bias.copy_(scores)
        return model, identity

    monkeypatch.setattr(build, "training_model", opinionated)
    fast, slow, still = (-scores.log_softmax(0)).tolist()
    expected = {"none": (2 * fast + slow + still) / 4, "balanced": (fast + slow + still) / 3}
    for kind, loss in expected.items():
        out = tmp_path / kind
        run(config(videos, out, "TRAIN.CLASS_WEIGHTS", kind, "SOLVER.MAX_STEPS", 1,
                   "TRAIN.EVAL_PERIOD", 0))  # fmt: skip
        # all four videos are in the step
        assert losses(out)[1] == pytest.approx(loss, abs=1e-5), kind


def test_learning_rates_scale_with_the_batch(videos, tmp_path):
    out = tmp_path / "out"
    run(config(videos, out, "SOLVER.LR_BATCH", 8, "SOLVER.WARMUP_EPOCHS", 0, "SOLVER.MAX_STEPS", 1))
    records = [r for r in read_metrics(out) if r["_type"] == "train_iter_"]
    assert records[0]["lr"] == pytest.approx(5e-3 * 4 / 8)


def test_three_videos_make_short_epochs_and_the_run_says_so(tmp_path, capsys):
    videos, out = write_videos(tmp_path / "videos", train=3, val=3), tmp_path / "out"
    run(config(videos, out, "SOLVER.WARMUP_EPOCHS", 1, "SOLVER.MAX_EPOCH", 3))
    said = capsys.readouterr().out
    assert "note: only 3 videos: steps of 3 instead of 4 videos" in said
    assert "these are 3 in all (1 an epoch)" in said
    lrs = [r["lr"] for r in read_metrics(out) if r["_type"] == "train_iter_"]
    assert lrs[:2] == pytest.approx([2.5e-3, 5e-3], rel=1e-3)


# ---- failures -----------------------------------------------------------------------------------


def poisoned_step(monkeypatch, number):
    """Make the loss of this step NaN; the steps before it are unchanged."""
    classify, calls = tasks.Classification.step, []

    def poisoned(*args, **kwargs):
        calls.append(1)
        result = classify(*args, **kwargs)
        return {**result, "loss": result["loss"] * (float("nan") if len(calls) == number else 1)}

    monkeypatch.setattr(tasks.Classification, "step", poisoned)


def assert_finite(out):
    """Assert that no checkpoint of a run holds a NaN or an infinity."""
    for path in checkpoint.in_order(out / "checkpoints"):
        state = checkpoint.load(path)
        for part in ("model_state", "raw_state"):
            assert all(torch.isfinite(w).all() for w in state.get(part, {}).values())
        for moments in state["optimizer_state"]["state"].values():
            assert all(torch.isfinite(m).all() for m in moments.values())


def test_a_loss_that_is_not_finite_stops_the_run(videos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    poisoned_step(monkeypatch, 3)
    with pytest.raises(RunFailed, match=r"loss of step 3 is not finite \(nan\)") as error:
        run(config(videos, out))
    assert "checkpoint_epoch_00001.pyth" in str(error.value)
    assert final(out)["step"] == 2
    assert_finite(out)
    assert (out / "stdout.log").read_text().count("train_iter_") == 2


@pytest.mark.parametrize("step", [1, 3], ids=["before a checkpoint", "after one"])
def test_the_advice_after_a_loss_that_is_not_finite_can_be_typed(
    videos, tmp_path, monkeypatch, capsys, step
):
    out = tmp_path / "my run"
    lrs = ("SOLVER.WARMUP_START_LR", 4e-3, "SOLVER.COSINE_END_LR", 2e-3)
    with monkeypatch.context() as patch:
        poisoned_step(patch, step)
        with pytest.raises(RunFailed, match="same command would meet it again") as error:
            run(config(videos, out, *lrs))
    advice = shlex.split(str(error.value).splitlines()[-1])
    capsys.readouterr()
    again = config(videos, out, *lrs, *advice)  # behind the same command
    assert again.solver.base_lr == again.solver.warmup_start_lr == 1.25e-3
    assert run(again) == 0
    assert ("going on from" in capsys.readouterr().out) == (step == 3)
    assert final(tmp_path / "my run_2")["step"] == 4


def test_weights_that_an_update_breaks_are_not_saved(videos, tmp_path):
    """The gradient is finite and the step too large: the loss would show it one step later."""
    out = tmp_path / "out"
    broken = (*SGD, "SOLVER.BASE_LR", 3e38, "SOLVER.WEIGHT_DECAY", 1000, "SOLVER.WARMUP_EPOCHS", 0)
    each = ("TRAIN.CHECKPOINT_STEPS", 1, "TRAIN.EMA_DECAY", 0.9)
    with pytest.raises(RunFailed, match=r"after step 1 was not saved, .* not finite: model_state"):
        run(config(videos, out, *broken, *each))
    assert not checkpoint.in_order(out / "checkpoints")
    stop = interrupted_or_failed(config(videos, tmp_path / "b", *broken), after=1)
    assert isinstance(stop, RunFailed)  # asked to stop after that very step
    assert not checkpoint.in_order(tmp_path / "b" / "checkpoints")


def interrupted_or_failed(cfg, *, after):
    try:
        return interrupted(cfg, after=after)
    except RunFailed as error:
        return error


def test_a_checkpoint_with_broken_numbers_is_passed_over(videos, tmp_path, capsys):
    """As earlier versions could write them."""
    straight, out = tmp_path / "straight", tmp_path / "out"
    run(config(videos, straight))
    run(config(videos, out))
    newest = checkpoint.in_order(out / "checkpoints")[-1]
    state = checkpoint.load(newest)
    state["model_state"]["norm.weight"][0] = float("nan")
    checkpoint.save(state, newest)
    with pytest.raises(UserError, match=r"cannot go on from .*not finite: model_state norm"):
        run(config(videos, tmp_path / "c", "TRAIN.CHECKPOINT_FILE_PATH", newest,
                   "TRAIN.CHECKPOINT_EPOCH_RESET", "false"))  # fmt: skip
    with pytest.raises(UserError, match=rf"weights of {newest} are not finite: norm\.weight"):
        run(config(videos, tmp_path / "d", "TRAIN.CHECKPOINT_FILE_PATH", newest))
    capsys.readouterr()
    assert run(config(videos, out)) == 0
    said = capsys.readouterr().out
    assert f"skipping a checkpoint: {newest}: its numbers are not finite" in said
    assert same(final(straight)["model_state"], final(out)["model_state"])


MASKED = """
import torch
from torch import nn
from hiera_video.registry import MODEL_REGISTRY

@MODEL_REGISTRY.register
class Masked(nn.Module):
    def __init__(self, num_classes: int = 3):
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, 0.0, -float("inf"), 0.0]))
        self.conv = nn.Conv3d(3, 4, 3)
        self.head = nn.Linear(4, num_classes)

    def forward(self, clips):
        return self.head(self.conv(clips).mean(dim=(2, 3, 4)) * (self.mask.exp()))
"""


def test_infinities_that_a_model_is_built_with_are_allowed(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(MODEL_REGISTRY, "_obj_map", dict(MODEL_REGISTRY._obj_map))
    exec(MASKED, {"__name__": "masked"})
    out, free = tmp_path / "out", ("MODEL.MODEL_NAME", "Masked", *PLAIN[2:-2])
    assert run(config(videos, out, *free, "TRAIN.EMA_DECAY", 0.9, task=NO_ARGUMENTS)) == 0
    state = final(out)
    for part in ("model_state", "raw_state"):
        assert state[part]["mask"].tolist() == [0, 0, -float("inf"), 0]


def test_unreadable_videos_are_counted_and_the_mean_is_over_the_others(tmp_path):
    videos = write_videos(tmp_path / "videos", train=5, val=4)
    for broken in ("train/fast/00.mp4", "val/slow/01.mp4"):
        (videos / broken).write_bytes(b"not a video")
    out = tmp_path / "out"
    run(config(videos, out, "TRAIN.BATCH_SIZE", 5, "TRAIN.GRAD_ACCUM", 5, "SOLVER.MAX_EPOCH", 1,
               "MODEL.DROPOUT_RATE", 0))  # fmt: skip
    record = next(r for r in read_metrics(out) if r["_type"] == "train_iter_")
    assert (record["clips"], record["failed"]) == (4, 1)
    assert record["loss"] == pytest.approx(1.0986, abs=1e-2)  # log 3, and not 4/5 of it
    val = next(r for r in read_metrics(out) if r["_type"] == "val_epoch")
    assert (val["n_videos"], val["n_failed"]) == (4, 1)
    assert "1 videos could not be read" in (out / "stdout.log").read_text()


@pytest.mark.numbers
def test_gradients_are_the_mean_over_what_could_be_read(tmp_path):
    """A broken video beside four good ones trains as the four alone do."""
    good = write_videos(tmp_path / "good", train=4, val=3)
    bad = write_videos(tmp_path / "bad", train=4, val=3)
    # sorts last, so the other videos keep their numbers and thus their clips
    (bad / "train" / "still" / "99.mp4").write_bytes(b"not a video")
    weights = []
    for videos, batch in ((good, 4), (bad, 5)):
        out = tmp_path / f"out{batch}"
        run(config(videos, out, "TRAIN.BATCH_SIZE", batch, "SOLVER.OPTIMIZING_METHOD", "sgd",
                   "SOLVER.MAX_STEPS", 1, "SOLVER.WARMUP_EPOCHS", 0, *quiet()))  # fmt: skip
        weights.append(final(out)["model_state"])
    for key, value in weights[0].items():
        assert torch.allclose(value, weights[1][key], atol=1e-6), key


NORMED = """
from torch import nn
from hiera_video.registry import MODEL_REGISTRY

@MODEL_REGISTRY.register
class Normed(nn.Module):
    def __init__(self, num_classes: int = 3):
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 3)
        self.norm = nn.BatchNorm3d(4)
        self.late = nn.BatchNorm1d(4)  # behind the pooling: one clip alone has no statistics
        self.head = nn.Linear(4, num_classes)

    def forward(self, clips):
        return self.head(self.late(self.norm(self.conv(clips)).mean(dim=(2, 3, 4))))
"""
"""A small network with batch statistics, to be imported."""

PLAIN = (
    *("MODEL.MODEL_NAME", "Normed", "MODEL.DROPOUT_RATE", "None"),
    *("HIERA.DROPPATH_RATE", "None", "TRAIN.EVAL_PERIOD", 0, "TEST.ENABLE", "false"),
    *("SOLVER.WARMUP_EPOCHS", 0, "IMPORTS", "normed"),
)


@pytest.fixture
def normed(tmp_path, monkeypatch):
    """The network with batch statistics, registered; what its settings begin with."""
    monkeypatch.setattr(MODEL_REGISTRY, "_obj_map", dict(MODEL_REGISTRY._obj_map))
    (tmp_path / "normed.py").write_text(NORMED)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "normed", raising=False)
    importlib.import_module("normed")
    return NO_ARGUMENTS


def test_a_step_without_a_readable_video_leaves_batch_statistics_alone(
    tmp_path, normed, monkeypatch
):
    videos = write_videos(tmp_path / "videos", train=6, val=3)
    for name in ("fast/00", "fast/03"):
        (videos / "train" / f"{name}.mp4").write_bytes(b"")
    backward, seen = Forward.backward, []

    def watched(self, *rest):
        before = {name: buffer.clone() for name, buffer in self.parallel.named_buffers()}
        totals = backward(self, *rest)
        after = dict(self.parallel.named_buffers())
        seen.append((int(totals[1]), [n for n in before if not torch.equal(before[n], after[n])]))
        assert all(module.training for module in self.parallel.modules())
        return totals

    monkeypatch.setattr(Forward, "backward", watched)
    # Videos in pairs; in one of the epochs the two broken ones are a pair.
    seed = next(s for s in range(99) if sorted(epoch_order(6, s, 0)[2:4].tolist()) == [0, 1])
    run(config(videos, tmp_path / "out", *PLAIN, "TRAIN.BATCH_SIZE", 2, "SOLVER.MAX_EPOCH", 1,
               "RNG_SEED", seed, task=normed))  # fmt: skip
    assert [clips for clips, _ in seen] == [2, 0, 2]
    assert [bool(changed) for _, changed in seen] == [True, False, True]
    assert final(tmp_path / "out")["model_state"]["norm.num_batches_tracked"] == 2


def test_a_process_without_a_readable_video_takes_part_and_leaves_no_trace(tmp_path, normed):
    """Its statistics stay, its gradient is zero, and the others do not wait for it."""
    videos = write_videos(tmp_path / "videos", train=4, val=3)
    out, broken = tmp_path / "out", epoch_order(4, 1, 0)[::2].tolist()  # those of the main process
    paths = sorted((videos / "train").rglob("*.mp4"))
    for i in broken:
        paths[i].write_bytes(b"")
    words = settings(videos, out, *PLAIN, "SOLVER.MAX_STEPS", 1, task=normed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
        patch.chdir(tmp_path)
        done = run_child("--cfg", empty(tmp_path), *words, processes=2)
    assert done.returncode == 0, done.stderr
    (record,) = (r for r in read_metrics(out) if r["_type"] == "train_iter_")
    assert (record["clips"], record["failed"]) == (2, 2)
    assert record["grad_norm"] > 0
    state = final(out)["model_state"]
    assert state["norm.num_batches_tracked"] == state["late.num_batches_tracked"] == 0
    assert torch.equal(state["norm.running_mean"], torch.zeros(4))


def test_nothing_readable_ends_the_run_before_it_begins(tmp_path):
    videos = write_videos(tmp_path / "videos")
    for path in videos.glob("train/*/*.mp4"):
        path.write_bytes(b"")
    with pytest.raises(RunFailed, match="none of 8 training videos tried can be read") as error:
        run(config(videos, tmp_path / "out"))
    assert "00.mp4" in str(error.value)


def test_when_the_data_gives_out_what_was_learnt_is_saved(videos, tmp_path, monkeypatch):
    out, backward = tmp_path / "out", Forward.backward

    def give_out(self, batches, step, *rest):
        if step == 3:
            raise RunFailed("the last 100 videos could not be read")
        return backward(self, batches, step, *rest)

    monkeypatch.setattr(Forward, "backward", give_out)
    with pytest.raises(RunFailed, match=r"the last 100 videos.*saved .*step_0000001\.pyth"):
        run(config(videos, out))
    assert final(out)["step"] == 3


def test_too_little_memory_names_the_settings_that_help(videos, tmp_path, monkeypatch):
    def too_much(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 ...")

    monkeypatch.setattr(tasks.Classification, "step", too_much)
    with pytest.raises(RunFailed, match=r"allocate 2.00 GiB, with 4 clips.*GRAD_ACCUM"):
        run(config(videos, tmp_path / "out"))


@pytest.mark.parametrize("where", ["train", "eval"])
def test_the_memory_of_a_cpu_may_not_suffice_either(videos, tmp_path, monkeypatch, where):
    monkeypatch.setattr(MODEL_REGISTRY, "_obj_map", dict(MODEL_REGISTRY._obj_map))

    @MODEL_REGISTRY.register
    class Huge(AnySize):
        def __init__(self, num_classes: int = 3):
            super().__init__(num_classes)

        def forward(self, clips):
            if self.training == (where == "train"):
                torch.empty(1 << 58, dtype=torch.uint8)
            return super().forward(clips)

    free = ("MODEL.MODEL_NAME", "Huge", "MODEL.DROPOUT_RATE", "None", "HIERA.DROPPATH_RATE", "None")
    way = {"train": r"with 4 clips at a time.*GRAD_ACCUM", "eval": r"4 views.*TEST\.BATCH_SIZE"}
    with pytest.raises(RunFailed, match=rf"out of memory: 268435456.00 GiB.*{way[where]}"):
        run(config(videos, tmp_path / "out", *free, task=NO_ARGUMENTS))


def test_two_runs_do_not_share_a_folder(videos, tmp_path):
    cfg = config(videos, tmp_path / "out")
    from hiera_video.engine.run_folder import RunFolder

    with (
        RunFolder(cfg.output_dir, distributed.init("cpu")),
        pytest.raises(UserError, match="another run is writing"),
    ):
        run(cfg)


def test_a_full_disk_is_known_before_the_first_step(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: 1000)
    with pytest.raises(UserError, match=r"GiB free.*KEEP_CHECKPOINTS"):
        run(config(videos, tmp_path / "out"))
    assert not losses(tmp_path / "out")


def test_a_disk_that_fills_up_later_keeps_the_last_checkpoint(videos, tmp_path, monkeypatch):
    out, save = tmp_path / "out", torch.save

    def refuse_the_second(state, target):
        if state["step"] > 2:
            target.raw.error = OSError(28, "No space left on device")
            raise RuntimeError("PytorchStreamWriter failed")  # which is all that torch says
        save(state, target)

    monkeypatch.setattr(torch, "save", refuse_the_second)
    with pytest.raises(RunFailed, match=r"No space left.*checkpoint_epoch_00001\.pyth"):
        run(config(videos, out))
    monkeypatch.undo()
    assert run(config(videos, out)) == 0
    straight = tmp_path / "straight"
    run(config(videos, straight))
    assert same(final(straight)["model_state"], final(out)["model_state"])


def test_a_batch_that_cannot_be_shared_is_refused(videos, tmp_path):
    with pytest.raises(UserError, match=r"accumulated batches"):
        run(config(videos, tmp_path / "out", "TRAIN.BATCH_SIZE", 10, "TRAIN.GRAD_ACCUM", 10))


def test_wrong_tasks_and_classes_are_refused(videos, tmp_path):
    with pytest.raises(UserError, match=r"MODEL\.NUM_CLASSES"):
        run(config(videos, tmp_path / "a", "MODEL.NUM_CLASSES", 7))
    with pytest.raises(UserError, match="mae_hiera"):
        run(config(videos, tmp_path / "b", "TASK", "pretrain", "MODEL.DROPOUT_RATE", "None"))
    with pytest.raises(UserError, match="classif"):
        run(config(videos, tmp_path / "c", "MODEL.MODEL_NAME", "mae_hiera_tiny_16x224"))


# ---- signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_signals_save_and_stop(videos, tmp_path, number, code):
    out = tmp_path / "out"
    words = settings(videos, out, "SOLVER.MAX_EPOCH", 1000, "DATA_LOADER.NUM_WORKERS", 1)
    child = start_child("--cfg", empty(tmp_path), *words)
    try:
        for line in child.stdout:
            if "step 2/2" in line:
                break
        os.killpg(child.pid, number)  # as a terminal does: to the workers, too
        rest, errors = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == code, errors
    assert "Traceback" not in errors
    assert "saved" in rest
    assert "Ctrl-C" in rest or "SIGTERM" in rest
    assert not (out / "results.json").exists()  # code 0 is no invitation to go on with the test
    state = final(out)
    assert state["step"] >= 2
    assert f"after step {state['step']} of" in rest


def test_the_exit_code_for_sigterm_is_0_only_if_something_was_saved():
    codes = {}
    for number in (signal.SIGINT, signal.SIGTERM, None):
        stop = Stop()
        stop.signal = number
        codes[number] = stop.exit_code(saved=True), stop.exit_code(saved=False)
    # None: another process received the signal and reports it
    assert codes == {signal.SIGINT: (130, 130), signal.SIGTERM: (0, 143), None: (0, 130)}
