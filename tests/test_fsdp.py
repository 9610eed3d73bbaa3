"""TRAIN.SHARDING fsdp: real processes over gloo, against one process."""

import json
import os
import pickle
import shutil
import signal
from pathlib import Path

import pytest
import ranks
import run_net
import sharded_runs
import tiny_runs as tiny
import torch
from sharded_runs import SHARDED

from hiera_video.detection import moving_shapes
from hiera_video.engine import checkpoint, evaluate, sharded_checkpoint, sharding, step
from hiera_video.engine import train as training
from hiera_video.engine.records import read_metrics
from hiera_video.errors import UserError, WeightsError
from hiera_video.models import build_model, list_models
from hiera_video.models.weights import sharded
from hiera_video.models.weights.file import read_checkpoint

EVERYTHING = (
    *("SOLVER.LAYER_DECAY", 0.8, "SOLVER.CLIP_GRAD_L2NORM", 0.5, "TRAIN.EMA_DECAY", 0.9),
    *("TRAIN.GRAD_ACCUM", 2, "TRAIN.BATCH_SIZE", 8, "SOLVER.MAX_EPOCH", 3),
)
CALM = ("HIERA.DROPPATH_RATE", 0)
NO_DROPOUT = ("MODEL.DROPOUT_RATE", 0)

DETECT = {
    **{"TASK": "detect", "MODEL.MODEL_NAME": "hiera_tiny_16x224_ava"},
    **{"MODEL.LOSS_FUNC": "bce_logit", "DATA.TARGET_FPS": 30, "DATA.SAMPLING_RATE": 4},
    **{"TRAIN.DATASET": "moving_shapes", "TEST.DATASET": "moving_shapes"},
    **{"TEST.NUM_ENSEMBLE_VIEWS": 1, "SYNTHETIC.NUM_TRAIN": 4, "SYNTHETIC.NUM_VAL": 3},
    **{"SYNTHETIC.SIZE": 64, "SOLVER.MAX_EPOCH": 1},
}


def words_of(videos, out, *overrides, task=None):
    """Words of a run without what each process draws for itself."""
    calm = CALM if task else (*CALM, *NO_DROPOUT)
    return tiny.settings(videos, out, *calm, *overrides, task=task)


def train_alone(words):
    """Run the words in this process, with redrawn weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.build, "training_model", training.build.training_model)
        sharded_runs.with_redrawn_weights()
        assert tiny.run(tiny.load_config(None, words)) == 0


def gradients(out):
    """Step -> gradient norm before clipping, from the records."""
    return {
        r["step"]: float(r["grad_norm"]) for r in read_metrics(out) if r["_type"] == "train_iter_"
    }


def assert_same_curve(one, other, within=1e-5):
    """Losses and gradient norms are equal within the rounding of float32."""
    for read in (tiny.losses, gradients):
        a, b = read(one), read(other)
        assert a.keys() == b.keys()
        assert a == pytest.approx(b, rel=within)
    assert len({round(norm, 4) for norm in gradients(one).values()}) > 1


def named_state(content):
    """The content of a checkpoint with the optimizer's moments under the parameters' names."""
    optimizer = content["optimizer_state"]
    names = [name for group in optimizer["param_groups"] for name in group["param_names"]]
    moments = {names[number]: state for number, state in optimizer["state"].items()}
    kept = ("model_state", "raw_state", "step", "epoch", "epoch_sums", "scaler_state", "classes")
    return {**{key: content[key] for key in kept if key in content}, "moments": moments}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return tiny.write_videos(tmp_path_factory.mktemp("videos"), train=16, val=3)


@pytest.fixture(scope="module")
def alone(videos, tmp_path_factory):
    """A run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    train_alone(words_of(videos, folder / "out", *EVERYTHING))
    return folder / "out"


@pytest.fixture(scope="module")
def two(videos, tmp_path_factory):
    """The folder of a sharded run of two processes; its OUTPUT_DIR is `out`."""
    folder = tmp_path_factory.mktemp("two")
    words = words_of(videos, folder / "out", *EVERYTHING, *SHARDED, "TEST.ENABLE", "true")
    sharded_runs.train(folder, 2, words)
    return folder


@pytest.fixture
def folder(two, tmp_path):
    """A copy of the newest checkpoint of that run."""
    newest = checkpoint.in_order(two / "out" / "checkpoints")[-1]
    return Path(shutil.copytree(newest, tmp_path / newest.name))


# ---- the same curve with a part of the memory ---------------------------------------------------


def test_two_sharded_processes_give_the_curve_of_one(alone, two):
    assert_same_curve(alone, two / "out")
    kinds = [
        [r for r in read_metrics(o) if r["_type"] == "val_epoch"] for o in (alone, two / "out")
    ]
    assert kinds[0] == kinds[1]
    results = json.loads((two / "out" / "results.json").read_text())
    assert (results["n_videos"], results["n_failed"]) == (3, 0)
    said = (two / "out" / "stdout.log").read_text()
    assert "2 processes on CPU, a part of the model on each" in said
    a, b = (named_state(tiny.final(out)) for out in (alone, two / "out"))
    torch.testing.assert_close(b["model_state"], a["model_state"], rtol=1e-3, atol=1e-4)
    assert b["moments"].keys() == a["moments"].keys()


def test_each_process_keeps_half(two, alone):
    whole = tiny.final(alone)
    parameters = sum(4 * t.numel() for t in whole["raw_state"].values())
    kept = [json.loads((two / f"kept{rank}.json").read_text())["bytes"] for rank in (0, 1)]
    for name, times in (("parameters", 1), ("moments", 2), ("ema", 1)):
        sizes = [part[name] for part in kept]
        assert sum(sizes) == times * parameters
        assert max(sizes) < 0.52 * times * parameters


@pytest.mark.slow
@pytest.mark.parametrize(("task", "processes"), [("classify", 4), ("pretrain", 2), ("pretrain", 4)])
def test_sharded_processes_give_the_curve_of_one(videos, tmp_path, task, processes):
    kind = tiny.PRETRAIN if task == "pretrain" else None
    more = (*EVERYTHING, "TRAIN.PICTURE_PERIOD", 1)
    train_alone(words_of(videos, tmp_path / "one", *more, task=kind))
    words = words_of(videos, tmp_path / "many", *more, *SHARDED, task=kind)
    sharded_runs.train(tmp_path, processes, words)
    assert_same_curve(tmp_path / "one", tmp_path / "many")
    if task == "pretrain":
        names = {path.name for path in (tmp_path / "many" / "pictures").iterdir()}
        assert names == {path.name for path in (tmp_path / "one" / "pictures").iterdir()} != set()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["off", "bf16", "fp16"])
def test_drop_path_dropout_and_checkpointed_activations_are_those_of_ddp(
    videos, tmp_path, precision
):
    """Each share draws its own, so the curve is compared with that of as many whole models."""
    more = (*EVERYTHING, "TRAIN.MIXED_PRECISION", precision, "SOLVER.MAX_EPOCH", 2)
    more += ("HIERA.DROPPATH_RATE", 0.3, "MODEL.ACT_CHECKPOINT", "true", "TEST.ENABLE", "false")
    for name, how in (("ddp", ()), ("fsdp", SHARDED)):
        sharded_runs.train(tmp_path, 2, tiny.settings(videos, tmp_path / name, *more, *how))
    assert_same_curve(
        tmp_path / "ddp", tmp_path / "fsdp", within=1e-5 if precision == "off" else 2e-2
    )


@pytest.mark.slow
def test_a_linear_probe_moves_the_head_alone(videos, tmp_path):
    more = ("TRAIN.LINEAR_PROBE", "true", "SOLVER.MAX_EPOCH", 1, "TEST.ENABLE", "false")
    train_alone(words_of(videos, tmp_path / "one", *more))
    sharded_runs.train(tmp_path, 2, words_of(videos, tmp_path / "two", *more, *SHARDED))
    assert_same_curve(tmp_path / "one", tmp_path / "two")
    one, two = (tiny.final(tmp_path / name)["model_state"] for name in ("one", "two"))
    for name, value in one.items():
        if not name.startswith("head."):
            assert torch.equal(value, two[name])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_the_fitted_head_of_a_probe_is_that_of_one_process(videos, tmp_path, kind):
    kwargs = "{embed_dim: 8, num_heads: 1, stages: [1, 1, 1, 1], readout_stages: [3]"
    kwargs += ", attentive: true}" if kind == "attentive" else "}"
    more = ("MODEL.KWARGS", kwargs, "TRAIN.PROBE", kind, "TRAIN.PROBE_VIEWS", 2)
    more += ("SOLVER.MAX_EPOCH", 1, "TEST.ENABLE", "false", "TRAIN.EMA_DECAY", 0.9)
    train_alone(words_of(videos, tmp_path / "one", *more))
    sharded_runs.train(tmp_path, 2, words_of(videos, tmp_path / "two", *more, *SHARDED))
    lines = [
        next(
            line
            for line in (tmp_path / name / "stdout.log").read_text().splitlines()
            if "probe:" in line
        )
        for name in ("one", "two")
    ]
    assert lines[0].partition("probe:")[2] == lines[1].partition("probe:")[2]
    assert_same_curve(tmp_path / "one", tmp_path / "two", within=1e-3)


@pytest.mark.slow
def test_sharded_processes_score_the_boxes_of_one(tmp_path):
    """Of nine key frames four processes have unequal shares, and of their boxes too."""
    form = moving_shapes.ShapeSettings(num_train=4, num_val=3, size=64)
    shapes = moving_shapes.make_shapes(tmp_path / "set", form, workers=1)
    words = words_of(shapes, tmp_path / "one", *NO_DROPOUT, task=DETECT)
    train_alone(words)
    words = words_of(shapes, tmp_path / "four", *NO_DROPOUT, *SHARDED, task=DETECT)
    sharded_runs.train(tmp_path, 4, words)
    assert_same_curve(tmp_path / "one", tmp_path / "four", within=1e-4)
    ends = [
        [r for r in read_metrics(tmp_path / name) if r["_type"] == "val_epoch"]
        for name in ("one", "four")
    ]
    assert len(ends[0]) == len(ends[1]) == 1
    assert ends[0][0]["n_boxes"] == ends[1][0]["n_boxes"] > 0
    assert ends[0][0]["map"] == pytest.approx(ends[1][0]["map"], abs=2)


# ---- which parts ---------------------------------------------------------------------------------


QUICK = ("hiera_tiny_16x224", "mae_hiera_tiny_16x224", "mvitv2_small_16x224", "slowfast_r50")
MODELS = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in list_models()
]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_blocks_that_hold_nearly_all_of_it(name):
    with torch.device("meta"):
        try:
            model = build_model(name)
        except UserError as error:
            pytest.skip(str(error))
    blocks = sharding.blocks_of(model)
    inside = {id(p): p.numel() for block in blocks for p in block.parameters()}
    total = sum(p.numel() for p in model.parameters())
    assert len(blocks) >= 4
    assert sum(inside.values()) > 0.85 * total
    assert all(parameter.ndim for parameter in model.parameters())  # FSDP2 cuts no scalars
    for place, block in enumerate(blocks):  # inner ones first
        assert not any(block is module for later in blocks[:place] for module in later.modules())


def test_tensors_are_cut_where_every_process_gets_a_part():
    shapes = {(7, 5): 0, (1, 12, 8): 1, (3, 5): 0, (1, 6, 8): 2, (2, 4): 1}
    assert {shape: sharding.placement(shape, 4).dim for shape in shapes} == shapes


def test_one_process_says_that_it_shards_nothing(videos, tmp_path, capsys):
    words = words_of(videos, tmp_path / "out", "SOLVER.MAX_STEPS", 1, *SHARDED)
    assert tiny.run(tiny.load_config(None, words)) == 0
    assert "TRAIN.SHARDING fsdp shards over several processes" in capsys.readouterr().out
    assert checkpoint.in_order(tmp_path / "out" / "checkpoints")[-1].suffix == ".pyth"


# ---- going on with other processes ---------------------------------------------------------------


def resave(folder, words):
    """Resume and save again at once, without a step between."""

    def stop_at_once(self):
        self.stopping, self.stop.signal = True, signal.SIGTERM

    training.TrainingRun.start_training = stop_at_once
    return run_net.main(words)


FP16 = (
    *EVERYTHING, "TRAIN.MIXED_PRECISION", "fp16", "TRAIN.CHECKPOINT_STEPS", 1,
    "TRAIN.EVAL_PERIOD", 0, "TRAIN.KEEP_CHECKPOINTS", 0, "TEST.ENABLE", "false",
)  # fmt: skip
WAYS = {"one": (1, "none"), "ddp2": (2, "none"), "fsdp2": (2, "fsdp"), "fsdp4": (4, "fsdp")}


@pytest.mark.slow
@pytest.mark.parametrize("source", ["ddp2", "fsdp2", "fsdp4"])
def test_a_state_is_taken_over_exactly_by_whatever_processes(videos, tmp_path, source):
    """Weights, averages, moments by name, step, sums and scaler, in the middle of an epoch."""
    count, how = WAYS[source]
    words = words_of(videos, tmp_path / "a", *FP16, "SOLVER.MAX_EPOCH", 2)
    sharded_runs.train(tmp_path, count, [*words, "TRAIN.SHARDING", how])
    stored = checkpoint.in_order(tmp_path / "a" / "checkpoints")[-2]
    assert "_step_" in stored.name
    expected = named_state(checkpoint.load(stored))
    scaler = expected["scaler_state"]
    assert (scaler["scale"], scaler["_growth_tracker"]) != (65536.0, 0)  # those of a new one
    for target, (count, how) in WAYS.items():
        out = tmp_path / target
        more = ("TRAIN.CHECKPOINT_FILE_PATH", stored, "TRAIN.CHECKPOINT_EPOCH_RESET", "false")
        words = words_of(videos, out, *FP16, "SOLVER.MAX_EPOCH", 2, *more, "TRAIN.SHARDING", how)
        words = ["--cfg", str(tiny.empty(tmp_path)), *words]
        ended = ranks.start(resave, count, tmp_path, words).wait()
        assert [process.code for process in ended] == [0] * count, ended
        assert tiny.same(named_state(tiny.final(out)), expected), target


@pytest.mark.slow
def test_a_run_goes_on_with_other_processes_as_if_it_had_not_stopped(videos, tmp_path, alone):
    """One step each by two shards, four shards, two whole models and one process."""
    out = tmp_path / "out"
    more = (*EVERYTHING, "TRAIN.CHECKPOINT_STEPS", 1, "TEST.ENABLE", "false")
    for way in ("fsdp2", "fsdp4", "ddp2", "fsdp2"):
        count, how = WAYS[way]
        words = words_of(videos, out, *more, "TRAIN.SHARDING", how)
        words = ["--cfg", str(tiny.empty(tmp_path)), *words]
        ended = ranks.start(one_step, count, tmp_path, words).wait()
        assert [process.code for process in ended] == [0] * count, ended
    assert tiny.run(tiny.load_config(None, words_of(videos, out, *more))) == 0
    assert_same_curve(alone, out)


def one_step(folder, words):
    """A run that SIGTERM ends after a step."""
    sharded_runs.with_redrawn_weights()
    take = training.TrainingRun.take_step

    def and_stop(self, *rest):
        self.stop.signal = signal.SIGTERM
        return take(self, *rest)

    training.TrainingRun.take_step = and_stop
    return run_net.main(words)


# ---- checkpoints as folders ----------------------------------------------------------------------


def test_a_folder_is_read_wherever_a_file_is(two, alone, folder, tmp_path):
    names = [path.name for path in checkpoint.in_order(two / "out" / "checkpoints")]
    assert names == ["checkpoint_epoch_00002.sharded", "checkpoint_epoch_00003.sharded"]
    best = checkpoint.best_path(two / "out" / "checkpoints")
    assert (best.name, checkpoint.fault(best)) == ("best.sharded", None)
    read = read_checkpoint(folder)
    assert read.classes == list(tiny.CLASSES)
    file = tmp_path / "plain.pyth"
    assert run_net.main(["--export-weights", str(folder), str(file)]) == 0
    assert tiny.same(read_checkpoint(file).state_dict, read.state_dict)
    whole = checkpoint.load(checkpoint.in_order(alone / "checkpoints")[-1])
    assert checkpoint.load(folder).keys() == whole.keys()


def test_a_folder_with_a_part_missing_or_damaged_is_refused(folder):
    record = sharded.read_record(folder)
    shard = folder / "__1_0.distcp"
    kept = shard.read_bytes()
    shard.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(WeightsError, match=r"__1_0\.distcp is damaged; copy the folder again"):
        read_checkpoint(folder)
    shard.write_bytes(kept[:100])
    with pytest.raises(UserError, match=r"__1_0\.distcp has 100 bytes of"):
        checkpoint.load(folder)
    shard.unlink()
    assert "incomplete: __1_0.distcp is missing" in checkpoint.fault(folder)
    (folder / sharded.RECORD).unlink()
    with pytest.raises(
        WeightsError, match=r"incomplete \(no run.pyth\).*use an earlier checkpoint"
    ):
        read_checkpoint(folder)
    assert set(record[sharded.FILES]) == {".metadata", "__0_0.distcp", "__1_0.distcp"}


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("sprung",)


def test_a_folder_from_a_stranger_runs_no_code(folder, tmp_path, monkeypatch):
    """Its checksums are right: who can write the folder can write those too."""
    monkeypatch.chdir(tmp_path)
    (folder / sharded.METADATA).write_bytes(pickle.dumps(Trap()))
    record = sharded.read_record(folder)
    record[sharded.FILES][sharded.METADATA] = sharded.checksum(folder / sharded.METADATA)
    torch.save(record, folder / sharded.RECORD)
    with pytest.raises(WeightsError, match=r"refused, .metadata would run code \(posix.mkdir\)"):
        read_checkpoint(folder)
    record[sharded.FILES]["../elsewhere"] = (1, 1)
    torch.save(record, folder / sharded.RECORD)
    with pytest.raises(WeightsError, match="no file of the folder"):
        read_checkpoint(folder)
    assert not (tmp_path / "sprung").exists()


def test_a_damaged_folder_is_skipped_by_the_run_that_goes_on(videos, two, tmp_path, capsys):
    out = Path(shutil.copytree(two / "out", tmp_path / "out"))
    newest = checkpoint.in_order(out / "checkpoints")[-1]
    (newest / "__0_0.distcp").write_bytes(b"")
    unfinished = out / "checkpoints" / ".checkpoint_epoch_00009.sharded.abcd1234.tmp"
    unfinished.mkdir()
    assert tiny.run(tiny.load_config(None, words_of(videos, out, *EVERYTHING))) == 0
    said = capsys.readouterr().out
    assert f"skipping a checkpoint: {unfinished} is unfinished" in said.replace("\n", "")
    assert "skipping a checkpoint: cannot read checkpoint" in said
    assert "checkpoint_epoch_00002.sharded, after step 4 of 6" in said
    assert not unfinished.exists()
    assert_same_curve(two / "out", out)
    kept = [path.name for path in checkpoint.in_order(out / "checkpoints")]
    assert kept == ["checkpoint_epoch_00003.pyth", "checkpoint_epoch_00003.sharded"]


# ---- what can go wrong ---------------------------------------------------------------------------


MOMENTS = {
    "step": (step.Forward, "_backward_part"),
    "validation": (evaluate, "clip_scores"),
    "save": (sharded, "checksum"),
    "weights": (training.TrainingRun, "save"),
}
"""What a process is doing -> what it calls then."""


def act(folder, words, moment, call, what):
    """A run in which something happens to rank 1 at a call of a function, counted from 1."""
    sharded_runs.with_redrawn_weights()
    owner, name = MOMENTS[moment]
    real, calls = getattr(owner, name), []

    def acting(*args, **kwargs):
        calls.append(name)
        if os.environ["RANK"] == "1" and len(calls) == call:
            what(*args)
        return real(*args, **kwargs)

    setattr(owner, name, acting)
    return run_net.main(words)


def kill(*args):
    os.kill(os.getpid(), signal.SIGKILL)


def fail(*args):
    raise OSError(28, "No space left on device")


def break_weights(run, *rest):
    with torch.no_grad():
        sharding.local(run.state.trained[0].data).view(-1)[0] = torch.nan


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "call", "what", "said"),
    [
        ("step", 6, kill, "error: rank 1 ended without a word"),
        ("validation", 1, fail, "error: rank 1: cannot write to standard output: No space"),
        ("save", 2, kill, "error: rank 1 ended without a word"),
        ("save", 2, fail, "cannot write"),
        ("weights", 2, break_weights, "error: the state after step 4 was not saved"),
    ],
)
def test_whatever_ends_one_ends_both_and_the_last_checkpoint_is_whole(
    videos, tmp_path, alone, moment, call, what, said
):
    """The same command then goes on from there, to the same end."""
    out = tmp_path / "out"
    words = words_of(videos, out, *EVERYTHING, *SHARDED, "TEST.ENABLE", "false")
    all_words = ["--cfg", str(tiny.empty(tmp_path)), *words]
    ended = ranks.start(act, 2, tmp_path, all_words, moment, call, what).wait()
    codes = [process.code for process in ended]
    assert codes == ([1, -9] if what is kill else [1, 1]), ended
    assert any(said in line for line in ended[0].errors.splitlines()), ended
    if what is fail and moment == "save":
        assert "No space left on device" in ended[0].errors
        assert "The last complete checkpoint is" in ended[0].errors
    for path in checkpoint.in_order(out / "checkpoints"):
        assert checkpoint.fault(path) is None
    sharded_runs.train(tmp_path, 2, words)
    assert_same_curve(alone, out)
    assert not [path for path in (out / "checkpoints").iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_a_signal_waits_for_the_save(videos, tmp_path):
    words = words_of(videos, tmp_path / "out", *EVERYTHING, *SHARDED)
    words = ["--cfg", str(tiny.empty(tmp_path)), *words]
    ended = ranks.start(slow_disk, 2, tmp_path, words).wait()
    assert [process.code for process in ended] == [0, 0], ended
    assert "stopped by SIGTERM after step 1 of 6, which is saved" in ended[0].output
    (path,) = checkpoint.in_order(tmp_path / "out" / "checkpoints")
    assert checkpoint.fault(path) is None


def slow_disk(folder, words):
    """A run that SIGTERM ends after a step, and that takes two seconds to write."""
    import time

    real = sharded.checksum
    sharded.checksum = lambda path: time.sleep(2) or real(path)
    return one_step(folder, words)


@pytest.mark.slow
def test_steps_go_on_while_a_checkpoint_is_written(videos, tmp_path):
    words = words_of(videos, tmp_path / "out", *EVERYTHING, *SHARDED, "TRAIN.EVAL_PERIOD", 0)
    words = ["--cfg", str(tiny.empty(tmp_path)), *words, "TEST.ENABLE", "false"]
    ended = ranks.start(held_save, 2, tmp_path, words).wait()
    assert [process.code for process in ended] == [0, 0], ended
    assert (tmp_path / "a step was taken").exists()


def held_save(folder, words):
    """A run whose first save ends only after the next step."""
    import threading

    sharded_runs.with_redrawn_weights()
    stepped, real, take = threading.Event(), sharded_checkpoint.Saving._run, training.update

    def hold(self):
        if stepped.wait(ranks.LIMIT / 2):
            (folder / "a step was taken").touch()
        return real(self)

    def taken(*args):
        if sharded_checkpoint.threading.active_count() and any(
            thread.name == "checkpoint" for thread in threading.enumerate()
        ):
            stepped.set()
        return take(*args)

    sharded_checkpoint.Saving._run = hold
    training.update = taken
    return run_net.main(words)


# ---- parts of it, in processes of their own ------------------------------------------------------


@pytest.mark.slow
def test_running_statistics_are_those_of_rank_0(tmp_path):
    ended = ranks.start(statistics, 2, tmp_path).wait()
    assert [process.code for process in ended] == [0, 0], ended


def statistics(folder):
    from hiera_video.engine import distributed

    with distributed.init("cpu") as world:
        torch.manual_seed(0)
        block = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
        model = torch.nn.Sequential(block, torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
        sharding.shard(model, world)
        clips = torch.randn(8, 4) + world.rank
        for _ in range(2):
            model(clips).sum().backward()
        own = torch.cat([block[1].running_mean, model[2].running_mean])
        assert len({tuple(part.tolist()) for part in world.all_gather(own)}) == 2
        norms = [model[2].running_mean.clone()]
        with torch.no_grad():
            sharding.send_statistics(model)
        norms = world.all_gather(model[2].running_mean)
        assert torch.equal(norms[0], norms[1])


@pytest.mark.slow
def test_the_dry_run_shards_too(videos, tmp_path):
    words = words_of(videos, tmp_path / "out", *EVERYTHING, *SHARDED, "TRAIN.COMPILE", "true")
    words = ["--cfg", str(tiny.empty(tmp_path)), "--dry-run", "2", *words]
    ended = ranks.start(plain, 2, tmp_path, words).wait()
    assert [process.code for process in ended] == [0, 0], ended
    assert "step 2/2: loss" in ended[0].output
    assert "fsdp runs without torch.compile" in ended[0].output


def plain(folder, words):
    return run_net.main(words)
