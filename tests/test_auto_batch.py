"""TRAIN.GRAD_ACCUM auto and TRAIN.BATCH_SIZE auto: as much of a step at a time as memory allows."""

from __future__ import annotations

import contextlib
import dataclasses
import math

import pytest
import ranks
import run_net
import tiny_runs as tiny
import torch

from hiera_video.config import Config, load_config
from hiera_video.data.boxes import BatchBoxes
from hiera_video.engine import auto_batch, build, distributed, memory
from hiera_video.engine.auto_batch import Line, part_sizes
from hiera_video.errors import ConfigError, RunFailed, UserError

QUIET = ("TEST.ENABLE", "false", "PAGE.ENABLE", "false", "TRAIN.EVAL_PERIOD", 0)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return tiny.write_videos(tmp_path_factory.mktemp("videos"), train=9)


# ---- settings -----------------------------------------------------------------------------------


def test_auto_is_a_word_for_the_number_of_parts():
    assert load_config(None, ["TRAIN.GRAD_ACCUM", "auto"]).train.grad_accum == 0
    assert Config.from_yaml("TRAIN: {GRAD_ACCUM: Auto}").train.grad_accum == 0
    with pytest.raises(ConfigError, match="a whole number, at least 0, or auto"):
        load_config(None, ["TRAIN.GRAD_ACCUM", "most"])


def test_a_batch_size_of_auto_keeps_that_of_the_recipe(tmp_path):
    (tmp_path / "base.yaml").write_text("TRAIN: {BATCH_SIZE: 48, GRAD_ACCUM: 4}\n")
    (tmp_path / "own.yaml").write_text("_BASE_: base.yaml\nTRAIN: {BATCH_SIZE: auto}\n")
    for cfg in (
        load_config(tmp_path / "base.yaml", ["TRAIN.BATCH_SIZE", "auto"]),
        load_config(tmp_path / "own.yaml"),
        load_config(tmp_path / "own.yaml", ["train.batch_size", "AUTO"]),
    ):
        assert (cfg.train.batch_size, cfg.train.grad_accum) == (48, 0)
    cfg = load_config(tmp_path / "own.yaml", ["TRAIN.BATCH_SIZE", "32", "TRAIN.GRAD_ACCUM", "2"])
    assert (cfg.train.batch_size, cfg.train.grad_accum) == (32, 2)


# ---- how a step can be cut ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "processes", "videos", "expected"),
    [
        (12, 1, 100, {1: 12, 2: 6, 3: 4, 4: 3, 6: 2, 12: 1}),
        (12, 2, 100, {1: 6, 2: 3, 3: 2, 6: 1}),
        (12, 5, 100, {}),
        (8, 1, 6, {1: 6, 2: 3}),  # a small set: steps of six, however they are cut
        (8, 2, 7, {1: 3}),
        (8, 4, 3, {}),
        (1, 1, 1, {1: 1}),
    ],
)
def test_cuts_keep_the_videos_of_a_step(batch, processes, videos, expected):
    assert part_sizes(batch, processes, videos) == expected


def test_cuts_are_those_that_the_loader_takes(videos, tmp_path):
    world = distributed.init("cpu")
    for batch in range(1, 13):
        cfg = tiny.config(videos, tmp_path, "TRAIN.BATCH_SIZE", batch)
        data = build.training_data(cfg, world)
        steps = set()
        for parts, size in part_sizes(batch, 1, len(data.dataset)).items():
            plan = build.plan_of(auto_batch._with_parts(cfg, parts), data.dataset, world)
            assert plan.videos_per_step == parts * size
            steps.add(plan.videos_per_step)
        assert len(steps) == 1


# ---- what is chosen -----------------------------------------------------------------------------


def limited(monkeypatch, most):
    """Let only parts of up to `most` videos fit; returns the list of what is tried."""
    tried = []

    class Limited:
        what = "the cupboard"

        def fits(self, videos):
            tried.append(videos)
            return videos <= most

    monkeypatch.setattr(auto_batch, "_trial", lambda *words: contextlib.nullcontext(Limited()))
    return tried


def chosen(videos, out, *more, task=None):
    words = ("TRAIN.BATCH_SIZE", 8, "TRAIN.GRAD_ACCUM", "auto", *more)
    cfg = tiny.config(videos, out, *words, task=task)
    world = distributed.init("cpu")
    found, notes = auto_batch.choose(cfg, build.training_data(cfg, world), world, lambda _: None)
    return found.train.grad_accum, notes


def test_the_largest_part_that_fits_is_taken(videos, tmp_path, monkeypatch):
    tried = limited(monkeypatch, 3)
    parts, (note,) = chosen(videos, tmp_path)
    assert (parts, tried) == (4, [8, 4, 2])
    assert note == (
        "TRAIN.GRAD_ACCUM auto: 2 videos at a time fit the cupboard, and 4 do not; a step is 4 "
        "parts x 2, TRAIN.GRAD_ACCUM 4"
    )


def test_where_nothing_fits_it_says_what_takes_less(videos, tmp_path, monkeypatch):
    limited(monkeypatch, 0)
    with pytest.raises(RunFailed, match=r"not one video at a time fits the cupboard.*ACT_CHECKPO"):
        chosen(videos, tmp_path)


def test_without_steps_or_without_auto_nothing_is_tried(videos, tmp_path, monkeypatch):
    tried = limited(monkeypatch, 0)
    probe = ("TRAIN.PROBE", "linear", "SOLVER.MAX_EPOCH", 0, "SOLVER.WARMUP_EPOCHS", 0)
    assert chosen(videos, tmp_path, *probe) == (1, [])
    assert chosen(videos, tmp_path, "TRAIN.GRAD_ACCUM", 2) == (2, [])
    assert not tried


def test_batch_norm_is_refused(videos, tmp_path, monkeypatch):
    limited(monkeypatch, 8)
    task = {"MODEL.MODEL_NAME": "x3d_xs", "MODEL.KWARGS": "{}", "HIERA.DROPPATH_RATE": "None"}
    with pytest.raises(UserError, match="would change what x3d_xs learns, whose batch norm"):
        chosen(videos, tmp_path, task=task)


def test_parts_of_a_sharded_model_are_the_users_choice(videos, tmp_path, monkeypatch):
    limited(monkeypatch, 8)
    cfg = tiny.config(videos, tmp_path, "TRAIN.GRAD_ACCUM", "auto", "TRAIN.SHARDING", "fsdp")
    world = distributed.init("cpu")
    data = build.training_data(cfg, world)
    two = dataclasses.replace(world, size=2)
    with pytest.raises(UserError, match=r"tries whole models.*set TRAIN.GRAD_ACCUM to a number"):
        auto_batch.choose(cfg, data, two, lambda _: None)


# ---- what is tried ------------------------------------------------------------------------------


def test_a_batch_is_repeated_with_its_boxes(videos, tmp_path):
    cfg = tiny.config(videos, tmp_path, "AUG.NUM_SAMPLE", 2)
    world = distributed.init("cpu")
    data = build.training_data(cfg, world)
    one = auto_batch.one_video(cfg, data, world)
    assert one.clips.shape[0] == 2
    boxes = BatchBoxes(torch.tensor([0, 1, 1]), torch.rand(3, 4), torch.ones(3, 5), torch.arange(3))
    many = auto_batch.repeated(one._replace(boxes=boxes), 3)
    assert many.clips.shape[0] == len(many.labels) == len(many.video_ids) == 6
    assert many.clips[4:].equal(one.clips)
    assert many.boxes.clips.tolist() == [0, 1, 1, 2, 3, 3, 4, 5, 5]
    assert len(many.boxes.corners) == len(many.boxes.labels) == 9


@pytest.mark.parametrize(
    "more",
    [
        (),
        (*tiny.HEAVY, "TRAIN.MIXED_PRECISION", "bf16", "MODEL.ACT_CHECKPOINT", "true"),
        ("TRAIN.LINEAR_PROBE", "true"),
    ],
)
def test_a_rehearsal_is_a_step_of_the_run(videos, tmp_path, more):
    cfg = tiny.config(videos, tmp_path, "TRAIN.BATCH_SIZE", 8, *more)
    world = distributed.init("cpu")
    data = build.training_data(cfg, world)
    batch = auto_batch.one_video(cfg, data, world)
    rehearsal = auto_batch.Rehearsal(cfg, data, batch, world.device)
    before = [parameter.clone() for parameter in rehearsal._state.trained]
    assert rehearsal.fits(3)
    after = rehearsal._state.trained
    assert any(not a.equal(b) for a, b in zip(before, after, strict=True))
    assert rehearsal._state.optimizer.state


def test_running_out_of_memory_is_told_from_other_errors(videos, tmp_path, monkeypatch):
    cfg = tiny.config(videos, tmp_path, "TRAIN.BATCH_SIZE", 8)
    world = distributed.init("cpu")
    data = build.training_data(cfg, world)
    rehearsal = auto_batch.Rehearsal(
        cfg, data, auto_batch.one_video(cfg, data, world), world.device
    )
    forward = type(rehearsal._state.model).forward
    errors = iter([torch.OutOfMemoryError("CUDA out of memory. Tried to"), RuntimeError("a bug")])

    def fail(self, clips, *rest, **more):
        if len(clips) > 1:
            raise next(errors)
        return forward(self, clips, *rest, **more)

    monkeypatch.setattr(type(rehearsal._state.model), "forward", fail)
    assert not rehearsal.fits(4)
    assert all(parameter.grad is None for parameter in rehearsal._state.trained)
    assert rehearsal.fits(1)
    with pytest.raises(RuntimeError, match="a bug"):
        rehearsal.fits(4)


def cpu_trial(videos, out, *more, free):
    cfg = tiny.config(videos, out, "TRAIN.BATCH_SIZE", 8, *more)
    world = distributed.init("cpu")
    data = build.training_data(cfg, world)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "available", lambda: free)
        return auto_batch.CpuTrial(cfg, data, auto_batch.one_video(cfg, data, world), 1)


@pytest.mark.slow
@pytest.mark.skipif(math.isinf(memory.available()), reason="this system does not tell its memory")
def test_on_a_cpu_a_child_is_measured(videos, tmp_path):
    """Memory grows with the videos, and the line through one and two decides what is tried."""
    wide = ("MODEL.KWARGS", "{embed_dim: 32, num_heads: 1, stages: [1, 2, 2, 1]}")
    with cpu_trial(videos, tmp_path, *wide, free=64 << 30) as trial:
        assert trial.fits(32)
        peaks = trial._peaks
        assert set(peaks) == {1, 2, 32}
        assert 100 << 20 < peaks[1] < peaks[2] < peaks[32]
        trial._budget = Line(peaks[1], peaks[2] - peaks[1]).at(64)
        assert not trial.fits(100)
        assert 100 not in peaks


@pytest.mark.slow
def test_a_child_without_memory_does_not_end_this_process(videos, tmp_path):
    with cpu_trial(videos, tmp_path, free=1 << 20) as trial:
        assert not trial.fits(1)
    with cpu_trial(videos, tmp_path, free=64 << 30) as trial:
        trial._child.kill()
        assert not trial.fits(1)
    with pytest.raises(UserError, match="cannot tell how much memory is free"):
        cpu_trial(videos, tmp_path, free=math.inf)


# ---- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/job/step", {"job/memory.max": "900", "job/memory.current": "500",
                          "job/step/memory.max": "max", "job/step/memory.current": "10"}, {400}),
        ("0::/", {"memory.max": "1000", "memory.current": "100"}, {900}),
        ("4:cpu,memory:/a", {"memory/a/memory.limit_in_bytes": "70",
                             "memory/a/memory.usage_in_bytes": "60"}, {10}),
        ("3:cpu:/x", {}, set()),
    ],
)  # fmt: skip
def test_limits_of_control_groups(tmp_path, line, files, expected):
    """Those of a container, of a job of Slurm, and of all groups around it."""
    (tmp_path / "self").write_text(f"{line}\n")
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    found = memory._free_in_groups(tmp_path / "self", tmp_path / "groups")
    assert set(found) == expected


# ---- runs ---------------------------------------------------------------------------------------


def test_a_run_learns_what_it_learns_with_the_number(videos, tmp_path, monkeypatch):
    """And goes on with another number, when memory has become less."""
    auto, fixed = tmp_path / "auto", tmp_path / "fixed"
    limited(monkeypatch, 4)
    words = (*QUIET, "TRAIN.BATCH_SIZE", 8)
    assert tiny.run(tiny.config(videos, fixed, *words, "TRAIN.GRAD_ACCUM", 2)) == 0
    cfg = tiny.config(videos, auto, *words, "TRAIN.BATCH_SIZE", "auto", "SOLVER.MAX_EPOCH", 2)
    assert tiny.run(cfg) == 0
    assert tiny.same(tiny.final(fixed)["model_state"], tiny.final(auto)["model_state"])
    assert "GRAD_ACCUM: 2" in (auto / "config.yaml").read_text()
    assert "4 videos at a time fit the cupboard" in (auto / "stdout.log").read_text()
    again = tiny.config(videos, tmp_path / "again", *words, "TRAIN.BATCH_SIZE", "auto")
    tiny.interrupted(again, after=1)
    limited(monkeypatch, 2)
    assert tiny.run(again) == 0
    assert tiny.final(tmp_path / "again")["step"] == 2
    assert "GRAD_ACCUM: 4" in (tmp_path / "again" / "config.yaml").read_text()


def smallest(folder, words):
    """A run in which less fits the process of rank 1."""
    import os

    with pytest.MonkeyPatch.context() as patch:
        limited(patch, 1 if os.environ["RANK"] == "1" else 100)
        return run_net.main(words)


@pytest.mark.slow
def test_processes_take_what_fits_all_of_them(videos, tmp_path):
    words = (*QUIET, "TRAIN.BATCH_SIZE", 8, "TRAIN.GRAD_ACCUM", "auto")
    words = ["--cfg", str(tiny.empty(tmp_path)), *tiny.settings(videos, tmp_path / "out", *words)]
    ended = ranks.start(smallest, 2, tmp_path, words).wait()
    assert [process.code for process in ended] == [0, 0], ended
    assert "a step is 4 parts x 2 processes x 1, TRAIN.GRAD_ACCUM 4" in ended[0].output


@pytest.mark.slow
def test_processes_try_for_themselves(videos, tmp_path):
    """Nothing is made up."""
    words = (*QUIET, "TRAIN.BATCH_SIZE", 8, "TRAIN.BATCH_SIZE", "auto")
    done = tiny.run_child(
        "--cfg", tiny.empty(tmp_path), *tiny.settings(videos, tmp_path / "out", *words),
        processes=2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "a step is 1 part x 2 processes x 4, TRAIN.GRAD_ACCUM 1" in done.stdout
    dry = tiny.run_child(
        "--cfg", tiny.empty(tmp_path), "--dry-run", 1,
        *tiny.settings(videos, tmp_path / "dry", *words),
    )  # fmt: skip
    assert dry.returncode == 0, dry.stderr
    assert "videos at a time fit" in dry.stdout or "4 of a step's 8 videos" in dry.stdout


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_what_does_not_fit_is_caught(videos, tmp_path):
    """The memory that a try took is free again, and so is what was kept from it."""
    cfg = tiny.config(videos, tmp_path, "TRAIN.BATCH_SIZE", 8, "DEVICE", "cuda")
    world = distributed.init("cuda")
    data = build.training_data(cfg, world)
    batch = auto_batch.one_video(cfg, data, world)
    before = torch.cuda.memory_allocated()
    with auto_batch._trial(cfg, data, world, batch) as trial:
        assert trial.fits(8)
        too_many = torch.cuda.get_device_properties(0).total_memory // batch.clips[0].numel()
        assert not trial.fits(min(too_many, 20_000_000))
        assert trial.fits(8)
    del trial
    assert torch.cuda.memory_allocated() <= before + (1 << 20)
