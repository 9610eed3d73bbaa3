"""The command line: what it prints, what it refuses, with which exit code."""

import csv
import importlib.util
import os
import re
import stat
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
import yaml
from tiny_runs import (
    CLASSES,
    PRETRAIN,
    command,
    environment,
    run_child,
    settings,
    write_videos,
)

from hiera_video import cli
from hiera_video.config import load_config
from hiera_video.engine import data_source, dry_run, preflight
from hiera_video.engine.distributed import World
from hiera_video.engine.schedule import build_schedule
from hiera_video.errors import UserError


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("videos"), train=4, val=3)


@pytest.fixture
def empty(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("{}\n")
    return path


class Ended(NamedTuple):
    """What `subprocess.run` would return."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run_net(monkeypatch, capsys, repository):
    """The command line in this process: a child's import of torch takes longer than these tests."""
    place = repository / "tools" / "run_net.py"
    spec = importlib.util.spec_from_file_location("run_net", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*words):
        monkeypatch.setattr(sys, "argv", [str(place), *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.run(module.main)
        return Ended(end.value.code, *capsys.readouterr())

    return call


def refused(done, *words, code=2):
    """One message on stderr, no traceback, the right code."""
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") or "usage:" in done.stderr
    for word in words:
        assert word in done.stderr


def test_train_then_test_then_export(run_net, videos, empty, tmp_path):
    out = tmp_path / "out"
    words = ["--cfg", empty, *settings(videos, out, "SOLVER.MAX_STEPS", 2)]
    done = run_child(*words)
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stdout  # plain lines in a pipe
    assert "top-1" in done.stdout
    stored = yaml.safe_load((out / "config.yaml").read_text())
    assert stored["SOLVER"]["MAX_STEPS"] == 2
    with open(out / "predictions.csv", newline="") as file:
        assert len(list(csv.reader(file))) == 4
    exported = tmp_path / "weights.pyth"
    newest = sorted((out / "checkpoints").glob("checkpoint_*"))[-1]
    done = run_net("--export-weights", newest, exported)
    assert done.returncode == 0, done.stderr
    assert exported.stat().st_size < newest.stat().st_size / 2


def test_print_config_is_a_config(run_net, empty, tmp_path):
    done = run_net("--cfg", empty, "SOLVER.BASE_LR", "1e-4", "--print-config")
    assert done.returncode == 0
    path = tmp_path / "again.yaml"
    path.write_text(done.stdout)
    assert load_config(path).solver.base_lr == 1e-4
    assert load_config(path).to_yaml() == done.stdout


def test_settings_may_stand_anywhere_on_the_line(run_net, empty):
    lr, seed = ("SOLVER.BASE_LR", "1e-4"), ("RNG_SEED", "3")
    lines = [
        ["--cfg", empty, *lr, *seed, "--print-config"],
        ["--cfg", empty, "--print-config", *lr, *seed],
        [*lr, *seed, "--print-config", "--cfg", empty],
        ["--cfg", empty, *lr, "--print-config", *seed],
        ["--opts", *lr, "--cfg", empty, "--print-config", "--opts", *seed],
    ]
    said = [run_net(*line) for line in lines]
    assert [done.returncode for done in said] == [0] * len(lines)
    assert len({done.stdout for done in said}) == 1
    assert "BASE_LR: 0.0001" in said[0].stdout


def test_every_setting_is_found_by_the_command_line(run_net):
    done = run_net("--settings", "LINEAR")
    assert done.returncode == 0
    assert done.stdout.startswith("TRAIN.LINEAR_PROBE  (default false; true or false)\n    Train")
    refused(run_net("--settings", "warmpu"), "SOLVER.WARMUP_EPOCHS")
    shown = run_net("--settings").stdout
    for key in ("TASK", "TRAIN.CLASS_WEIGHTS", "SYNTHETIC.PLAIN", "AUG.MASK_RATIO"):
        assert f"\n{key}  (" in f"\n{shown}"


def test_help_is_short_and_quick(run_net, empty):
    done = run_net("--help")
    assert done.returncode == 0
    for word in ("--cfg", "--dry-run", "--print-config", "--settings", "KEY VALUE", "Exit codes"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--cfg"),
        (["--cfg", "nowhere.yaml"], "nowhere.yaml"),
        (["--cfg", "{empty}", "SOLVER.BASE_RL", "1"], "SOLVER.BASE_LR"),
        (["--cfg", "{empty}", "TRAIN.ENABLE", "false", "TEST.ENABLE", "false"], "nothing to do"),
        (["--cfg", "{empty}", "TASK", "pretrain", "TRAIN.ENABLE", "false"], "no labels to test"),
        (["--cfg", "{empty}", "--dry-run", "0"], "at least 1"),
        (["--cfg", "{twice}"], "written twice"),
        (["--export-weights", "{empty}", "x.pyth"], "cannot read checkpoint"),
    ],
)
def test_wrong_words_are_refused(run_net, empty, tmp_path, words, message):
    twice = tmp_path / "twice.yaml"
    twice.write_text("SOLVER:\n  BASE_LR: 1\n  BASE_LR: 2\n")
    done = run_net(*[word.format(empty=empty, twice=twice) for word in words])
    refused(done, message)


def test_missing_data_names_the_place_the_layouts_and_the_way_without(run_net, empty, tmp_path):
    done = run_net("--cfg", empty, "DATA.PATH_TO_DATA_DIR", tmp_path / "no", "OUTPUT_DIR", tmp_path)
    refused(done, str(tmp_path / "no"), "train.csv", "CLASS/video.mp4", "quickstart", "--dry-run")


def in_process(tmp_path, *words):
    """Read the lists of a run, as it begins by doing; for errors of the data."""
    from hiera_video.engine.build import read_lists

    return read_lists(load_config(None, [str(w) for w in words]))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "train"),
        ("", "empty"),
        ("a.mp4 0\nb.mp4 dog\n", "dog"),
        ("a.mp4 0\nb.mp4 5\n", "5"),
        ("a.mp4 0\nb.mp4 -1\n", "label -1 is out of range"),
    ],
)
def test_bad_lists_are_refused(tmp_path, lines, message):
    folder = tmp_path / "data"
    folder.mkdir()
    if lines is not None:
        (folder / "train.csv").write_text(lines)
        (folder / "val.csv").write_text("a.mp4 0\n")
    with pytest.raises(UserError, match=message):
        in_process(tmp_path, "DATA.PATH_TO_DATA_DIR", folder, "MODEL.NUM_CLASSES", 3)


def test_a_folder_without_videos_is_refused(run_net, empty, tmp_path):
    (tmp_path / "data" / "cats").mkdir(parents=True)
    (tmp_path / "data" / "cats" / "readme.txt").write_text("no videos here")
    done = run_net("--cfg", empty, *settings(tmp_path / "data", tmp_path / "out"))
    refused(done, str(tmp_path / "data"))


def test_all_videos_unreadable_is_a_failed_run(run_net, empty, tmp_path):
    for split in ("train", "val"):
        for name in CLASSES:
            path = tmp_path / "data" / split / name / "a.mp4"
            path.parent.mkdir(parents=True)
            path.write_bytes(b"junk")
    done = run_net("--cfg", empty, *settings(tmp_path / "data", tmp_path / "out"))
    refused(done, "can be read", "a.mp4", code=1)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_an_output_folder_that_cannot_be_written(run_net, videos, empty, tmp_path):
    if os.geteuid() == 0:  # root may write anywhere; a file in the way stops it, too
        (tmp_path / "out").write_text("a file")
    else:
        (tmp_path / "out").mkdir()
        (tmp_path / "out").chmod(stat.S_IRUSR | stat.S_IXUSR)
    done = run_net("--cfg", empty, *settings(videos, tmp_path / "out"))
    refused(done, "cannot write to OUTPUT_DIR", str(tmp_path / "out"))


def test_weights_that_are_not_there_are_refused_before_the_first_step(
    run_net, videos, empty, tmp_path
):
    words = settings(videos, tmp_path / "out", "TRAIN.CHECKPOINT_FILE_PATH", "gone.pyth")
    done = run_net("--cfg", empty, *words)
    refused(done, "gone.pyth")
    assert not list((tmp_path / "out" / "checkpoints").glob("*.pyth"))


def test_a_reader_that_goes_away_is_no_traceback(videos, empty, tmp_path):
    words = settings(videos, tmp_path / "out", "SOLVER.MAX_EPOCH", 50, "TEST.ENABLE", "false")
    child = subprocess.Popen(
        command("--cfg", empty, *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    child.stdout.readline()
    child.stdout.close()
    errors = child.stderr.read()
    assert child.wait(timeout=120) == 141
    assert "Traceback" not in errors


# ---- dry runs -----------------------------------------------------------------------------------

FINDINGS = ("peak memory", "time per step", "samples per second", "limit", "full schedule")


def test_a_dry_run_on_the_data_writes_nothing(run_net, videos, empty, tmp_path):
    out = tmp_path / "out"
    done = run_net("--cfg", empty, *settings(videos, out), "--dry-run", 2)
    assert done.returncode == 0, done.stderr
    assert "step 2/2" in done.stdout
    for word in FINDINGS:
        assert word in done.stdout
    assert "2 steps over 4 videos" in done.stdout
    assert not out.exists()


def test_a_dry_run_without_data_makes_clips(run_net, empty, tmp_path):
    words = settings("", tmp_path / "out", "MODEL.NUM_CLASSES", 400, task=PRETRAIN)
    done = run_net("--cfg", empty, *words, "--dry-run", 1)
    assert done.returncode == 0, done.stderr
    assert "generated clips" in done.stdout
    for word in FINDINGS:
        assert word in done.stdout
    assert "240000 videos" in done.stdout


def test_a_recipe_for_gpus_runs_dry_on_a_cpu(run_net, empty, tmp_path):
    """Whole steps would take hours and more memory than there is."""
    out = tmp_path / "out"
    step = ("TRAIN.BATCH_SIZE", 256, "TRAIN.MIXED_PRECISION", "fp16", "AUG.NUM_SAMPLE", 2)
    words = settings("", out, *step, "SOLVER.MAX_EPOCH", 10, "MODEL.NUM_CLASSES", 400)
    done = run_net("--cfg", empty, *words, "--dry-run", 2)
    assert done.returncode == 0, done.stderr
    assert "2 of a step's 256 videos" in done.stdout
    assert "float32 in its place" in done.stdout
    found = {line.split(":")[0]: line for line in done.stdout.splitlines() if ": " in line}
    per_step = float(re.search(r"([\d.]+) s", found["time per step"])[1])
    last = float(re.search(r"step 2/2: .* ([\d.]+) s$", done.stdout, re.MULTILINE)[1])
    assert per_step == pytest.approx(128 * last, rel=0.02, abs=128 * 0.006)
    videos = float(re.search(r"([\d.e+]+) videos", found["samples per second"])[1])
    assert videos == pytest.approx(256 / per_step, rel=0.01)
    assert f"{240_000 // 256 * 10} steps over 240000 videos" in done.stdout


@pytest.mark.parametrize(
    ("waiting", "said"), [(0.5, "limit: the loader, with 3"), (0.1, "limit: the model on this CPU")]
)
def test_a_dry_run_says_whether_loader_or_device_is_the_limit(waiting, said):
    cfg = load_config(None, ["DATA_LOADER.NUM_WORKERS", "3"])
    dry = dry_run.DryRun(cfg, steps=1, generated=False, part=1.0)
    assert dry_run._limit(dry, World(device=torch.device("cpu")), waiting).startswith(said)


def test_a_dry_run_counts_the_waiting_of_each_step_by_itself(videos, tmp_path, monkeypatch):
    """Waits were differences of running means: a slow first step made the share negative."""
    given, counted = [3.0, 0.25, 0.5, 0.125], []

    def step(cfg, state, forward, batches, clock):
        clock.waited(given[len(counted_steps)])
        clock.step_done(1)
        counted_steps.append(1)
        return 0.0, 0.0

    counted_steps = []
    monkeypatch.setattr(dry_run, "_take_step", step)
    monkeypatch.setattr(dry_run, "_costs", lambda *args: counted.extend(args[-1]) or [])
    words = [str(word) for word in settings(videos, tmp_path / "out")]
    dry_run.run(load_config(None, words), World(device=torch.device("cpu")), steps=4)
    assert counted == given


def test_a_dry_run_of_a_probe_alone_says_so(run_net, videos, empty, tmp_path):
    sizes = "{embed_dim: 16, num_heads: 1, stages: [1, 1, 1, 1], readout_stages: [3]}"
    words = ("MODEL.KWARGS", sizes, "TRAIN.PROBE", "true", "TRAIN.PROBE_ALONE_BELOW", 5)
    done = run_net("--cfg", empty, *settings(videos, tmp_path / "out", *words), "--dry-run", 1)
    assert done.returncode == 0, done.stderr
    assert "note: 4 training videos, fewer than 5: the probe alone" in done.stdout
    assert "full schedule: no steps, the probe alone: 8 clips of each training video" in done.stdout


# ---- what is checked beforehand -----------------------------------------------------------------


def test_the_schedule_of_a_run():
    solver = load_config(
        None, ["SOLVER.BASE_LR", "8e-4", "SOLVER.LR_BATCH", "256", "SOLVER.MAX_EPOCH", "10",
               "SOLVER.WARMUP_EPOCHS", "2.5", "SOLVER.COSINE_END_LR", "1e-6"]
    ).solver  # fmt: skip
    plan = build_schedule(
        solver, videos=1000, videos_per_step=64, clips_per_video=2, steps_per_epoch=15
    )
    assert (plan.total_steps, plan.epochs, plan.dropped, plan.clips_per_step) == (150, 10, 40, 128)
    assert plan.lr.warmup_steps == 37.5
    assert plan.lr.base_lr == pytest.approx(2e-4)
    assert plan.lr.end_lr == pytest.approx(2.5e-7)
    assert "128 clips a step" in str(plan)
    assert "40 left over" in str(plan)


def test_only_settings_that_matter_are_compared():
    before = load_config(None, ["TRAIN.BATCH_SIZE", "8"]).to_yaml()
    now = load_config(
        None, ["TRAIN.BATCH_SIZE", "16", "LOG_PERIOD", "3", "DATA_LOADER.NUM_WORKERS", "9",
               "OUTPUT_DIR", "elsewhere", "TEST.NUM_SPATIAL_CROPS", "1"]
    ).to_yaml()  # fmt: skip
    assert preflight.changed_settings(before, now) == ["TRAIN.BATCH_SIZE: 8 there, 16 here"]
    known = preflight.flat_settings(before)
    for name in preflight.FREE_TO_CHANGE:
        assert any(key.startswith(name) for key in known), f"{name} is no setting"


def test_the_fingerprint_of_a_list_does_not_depend_on_where_it_lies(videos, tmp_path):
    moved = tmp_path / "moved"
    moved.symlink_to(videos)
    read = data_source.read_manifest
    here, there = data_source.fingerprint(read(videos)), data_source.fingerprint(read(moved))
    assert here == there
    assert data_source.fingerprint(read(videos, "val")) != here
