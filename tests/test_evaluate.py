"""The test: every video once, honest counts, the demo's scores, files that say what they should."""

import contextlib
import csv
import json
import os

import pytest
import torch
from tiny_runs import CLASSES, PRETRAIN, config, run, write_videos
from torch import nn

from hiera_video import Predictor
from hiera_video.clip_spec import ClipSpec
from hiera_video.data.batch import Failed
from hiera_video.data.datasets import TestReader, VideoDataset
from hiera_video.data.loader import LoaderSettings, build_loader
from hiera_video.data.manifests.layouts import read_manifest
from hiera_video.engine import checkpoint, distributed, evaluate, train
from hiera_video.errors import RunFailed, UserError
from hiera_video.scoring import ScoreSettings
from hiera_video.spreadsheet import original

pytestmark = pytest.mark.usefixtures("no_curves")

SPEC = ClipSpec(num_frames=4, sampling_rate=2, target_fps=10, crop_size=64)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Training videos, and seven for the test of which one is broken."""
    folder = write_videos(tmp_path_factory.mktemp("videos"), train=4, val=7)
    (folder / "val" / "still" / "05.mp4").write_bytes(b"not a video")
    return folder


@pytest.fixture(scope="module")
def trained(videos, tmp_path_factory):
    """The folder of a short run."""
    out = tmp_path_factory.mktemp("run") / "out"
    run(config(videos, out, "SOLVER.MAX_STEPS", 1))
    return out


def test_run(cfg):
    return evaluate.test(cfg, distributed.init("cpu"), train.Stop())


test_run.__test__ = False


def rows_of(path):
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


class Pixel(nn.Module):
    """Logits that depend on the clip, in a way easy to work out again."""

    input_size = (4, 64, 64)

    def forward(self, clips):
        flat = clips.flatten(1)
        return torch.stack([flat.mean(1), flat.std(1), flat[:, :999].mean(1)], dim=1)


def scores_of(videos, *, batch_size, views=2, model=None, multi_label=False, **kwargs):
    manifest = read_manifest(videos, "val")
    dataset = VideoDataset(manifest, TestReader(SPEC, num_views=views))
    loader = build_loader(dataset, LoaderSettings(batch_size=batch_size))
    model = model or Pixel()
    world = distributed.init("cpu")
    settings = ScoreSettings(batch_size=3, multi_label=multi_label)
    return manifest, evaluate.score_videos(model, loader, settings, world=world, **kwargs)


def test_one_row_per_readable_video_whatever_the_batches(videos):
    manifest, scores = scores_of(videos, batch_size=1)
    assert scores.n_videos == len(manifest) == 7
    assert [manifest.paths.relative(f.video_id) for f in scores.failed] == ["still/05.mp4"]
    broken = scores.failed[0].video_id
    assert scores.video_ids.tolist() == [i for i in range(7) if i != broken]
    assert torch.allclose(scores.rows.sum(1), torch.ones(6))
    for batch_size in (2, 7):
        other = scores_of(videos, batch_size=batch_size)[1]
        assert torch.equal(scores.video_ids, other.video_ids)
        assert torch.allclose(scores.rows, other.rows, atol=1e-6)


def test_views_are_averaged_after_softmax(videos):
    manifest, scores = scores_of(videos, batch_size=4, views=3)
    dataset = VideoDataset(manifest, TestReader(SPEC, num_views=3))
    clips = torch.stack(list(dataset[int(scores.video_ids[2])]))
    expected = Pixel()(clips).softmax(1).mean(0)
    assert torch.allclose(scores.rows[2], expected, atol=1e-6)
    several = scores_of(videos, batch_size=4, views=3, multi_label=True)[1]
    assert torch.allclose(several.rows[2], Pixel()(clips).sigmoid().mean(0), atol=1e-6)


def test_a_stop_gives_no_half_result(videos):
    asked = []

    def stopped():
        asked.append(1)
        return len(asked) > 2

    assert scores_of(videos, batch_size=1, stopped=stopped)[1] is None


def test_shares_of_processes_are_put_together_and_never_twice():
    def part(ids, failed=()):
        ids = torch.tensor(ids, dtype=torch.int64)
        rows = ids[:, None] * torch.ones(1, 2) if len(ids) else None
        return evaluate._Part(ids, rows, [Failed(i, f"{i}.mp4", "broken") for i in failed])

    merged = evaluate._merged([part([0, 2]), part([1], failed=[3]), part([])])
    assert merged.video_ids.tolist() == [0, 1, 2]
    assert merged.rows[:, 0].tolist() == [0, 1, 2]
    assert [f.video_id for f in merged.failed] == [3]
    with pytest.raises(ValueError, match="twice"):
        evaluate._merged([part([0, 2]), part([2])])
    with pytest.raises(RunFailed, match="none of the 1 videos"):
        evaluate._merged([part([], failed=[0])])


def test_broken_weights_are_an_error_and_not_a_score(videos):
    class Broken(Pixel):
        def forward(self, clips):
            return super().forward(clips) * float("nan")

    with pytest.raises(RunFailed, match="not finite"):
        scores_of(videos, batch_size=2, model=Broken())


def test_the_files_of_a_test(videos, trained, capsys):
    assert test_run(config(videos, trained)) == 0
    results = json.loads((trained / "results.json").read_text())
    assert (results["n_videos"], results["n_failed"]) == (7, 1)
    assert results["views"] == {"temporal": 2, "spatial": 1}
    assert results["checkpoint"].endswith("checkpoint_epoch_00001.pyth")
    assert results["failed"][0]["path"].endswith("still/05.mp4")
    assert "TASK: classify" in results["config"]

    rows = rows_of(trained / "predictions.csv")
    assert len(rows) == 7
    scored = [row for row in rows if not row["error"]]
    assert len(scored) == 6
    assert results["top1_acc"] == pytest.approx(100 * sum(int(r["correct"]) for r in scored) / 6)
    for row in scored:
        assert row["video"].endswith(".mp4")
        assert row["label"] in row["video"]
        assert row["correct"] == str(int(row["class1"] == row["label"]))
        values = [float(row[f"score{k}"]) for k in (1, 2, 3)]
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-5)
    broken = next(row for row in rows if row["error"])
    assert broken["video"].endswith("still/05.mp4")
    assert broken["class1"] == ""

    with open(trained / "confusion.csv", newline="") as file:
        table = list(csv.reader(file))
    assert table[0][1:] == sorted(CLASSES)
    counts = [[int(v) for v in row[1:]] for row in table[1:]]
    assert sum(map(sum, counts)) == 6
    assert sum(counts[i][i] for i in range(3)) == sum(int(r["correct"]) for r in scored)
    per_class = rows_of(trained / "per_class.csv")
    assert [row["class"] for row in per_class] == sorted(CLASSES)
    assert [int(row["videos"]) for row in per_class] == [sum(row) for row in counts]
    assert (trained / "confusion.png").stat().st_size > 1000

    said = capsys.readouterr().out
    assert "1 of 7 videos could not be decoded" in said
    lines = (trained / "stdout.log").read_text().splitlines()
    last = [line for line in lines if line.startswith("json_stats: ")][-1]
    record = json.loads(last.removeprefix("json_stats: "))
    assert record["split"] == "test_final"
    assert record["top1_acc"] == f"{results['top1_acc']:.2f}"


def test_the_files_of_a_test_open_right_whatever_the_names(tmp_path):
    """Names that are formulas, not valid UTF-8, or mathematics to the library that draws."""
    names = {"fast": "=1+1", "slow": "caf\udce9 $x^$ $", "still": "None"}
    plain = write_videos(tmp_path / "plain", train=6, val=3)
    root = tmp_path / "videos \udcff"
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        for plain_name, name in names.items():
            (plain / split / plain_name).rename(root / split / name)
    (root / "val" / "None" / "bad\udcff.mp4").write_bytes(b"not a video")
    out = tmp_path / "out \udcfe"
    assert run(config(root, out, "SOLVER.MAX_STEPS", 1)) == 0
    assert test_run(config(root, out)) == 0

    rows = rows_of(out / "predictions.csv")
    assert len(rows) == 4
    assert {original(row["label"]) for row in rows} == set(names.values())
    assert {original(row["class1"]) for row in rows if not row["error"]} <= set(names.values())
    files = [original(row["video"]) for row in rows]
    assert sorted(files) == sorted(str(path) for path in (root / "val").glob("*/*.mp4"))
    (bad,) = (row for row in rows if row["error"])
    assert bad["video"].endswith(r"None/bad\xff.mp4")

    def table(name):
        with open(out / name, newline="", encoding="utf-8-sig") as file:
            return list(csv.reader(file))

    header, *counts = table("confusion.csv")
    order = sorted(names.values())
    assert [original(name) for name in header[1:]] == order
    assert [original(row[0]) for row in counts] == order
    assert [original(row[0]) for row in table("per_class.csv")[1:]] == order
    assert table("per_class.csv")[1][0] == "'=1+1"
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert results["failed"][0]["path"] == str(root / "val" / "None" / "bad\udcff.mp4")
    (out / "stdout.log").read_text(encoding="utf-8")
    assert (out / "confusion.png").stat().st_size > 1000


def test_errors_of_writing_name_the_file(videos, trained, tmp_path, monkeypatch):
    """And what was there of an earlier test stays."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "per_class.csv").mkdir()
    cfg = config(videos, tmp_path / "out", "TEST.CHECKPOINT_FILE_PATH",
                 checkpoint.in_order(trained / "checkpoints")[-1])  # fmt: skip
    with pytest.raises(RunFailed, match=r"cannot write .*per_class\.csv: it is a folder"):
        test_run(cfg)


def test_the_demo_gives_the_scores_of_the_test(videos, trained):
    test_run(config(videos, trained))
    stored = checkpoint.in_order(trained / "checkpoints")[-1]
    predictor = Predictor.load(weights=stored, views=(2, 1), device="cpu")
    row = next(r for r in rows_of(trained / "predictions.csv") if "fast" in r["video"])
    found = {label.label: label.score for label in predictor(row["video"]).labels}
    for k in (1, 2, 3):
        assert found[row[f"class{k}"]] == pytest.approx(float(row[f"score{k}"]), abs=2e-6)


def test_several_labels_are_scored_by_map(videos, tmp_path):
    (tmp_path / "lists").mkdir()
    for split in ("train", "val"):
        files = sorted(p for p in (videos / split).glob("*/*.mp4") if p.stat().st_size > 20)
        lines = [f"{p} {'0,2' if 'fast' in str(p) else '1'}\n" for p in files]
        (tmp_path / "lists" / f"{split}.csv").write_text("".join(lines))
    out = tmp_path / "out"
    cfg = config(tmp_path / "lists", out, "DATA.MULTI_LABEL", "true", "SOLVER.MAX_STEPS", 1,
                 "MODEL.LOSS_FUNC", "bce_logit", "MODEL.NUM_CLASSES", 3)  # fmt: skip
    assert run(cfg) == 0
    assert test_run(cfg) == 0
    results = json.loads((out / "results.json").read_text())
    assert 0 < results["map"] <= 100
    assert "top1_acc" not in results
    assert not (out / "confusion.csv").exists()
    assert {row["label"] for row in rows_of(out / "predictions.csv")} == {"0;2", "1"}
    assert checkpoint.best_record(out / "checkpoints")["metric"] == "map"


def test_labels_follow_the_names_of_the_checkpoint(videos, trained, tmp_path):
    """A test set without one of the classes, whose own numbering would be another."""
    few = tmp_path / "few"
    for split in ("train", "val"):
        for name in ("slow", "still"):
            (few / split).mkdir(parents=True, exist_ok=True)
            (few / split / name).symlink_to(videos / split / name)
    cfg = config(few, tmp_path / "out", "TEST.CHECKPOINT_FILE_PATH",
                 checkpoint.in_order(trained / "checkpoints")[-1])  # fmt: skip
    assert test_run(cfg) == 0
    with open(tmp_path / "out" / "confusion.csv", newline="") as file:
        table = list(csv.reader(file))
    assert table[0][1:] == sorted(CLASSES)
    assert [sum(map(int, row[1:])) for row in table[1:]] == [0, 2, 1]


def test_what_cannot_be_tested_says_so(videos, trained, tmp_path):
    with pytest.raises(UserError, match="nothing to test"):
        test_run(config(videos, tmp_path / "a"))
    with pytest.raises(UserError, match=r"has 3 classes, MODEL\.NUM_CLASSES says 5"):
        test_run(config(videos, trained, "MODEL.NUM_CLASSES", 5))
    stored = checkpoint.in_order(trained / "checkpoints")[-1]
    with pytest.raises(UserError, match=r"embed|shape|fit"):
        test_run(config(videos, tmp_path / "b", "TEST.CHECKPOINT_FILE_PATH", stored,
                        "MODEL.KWARGS.embed_dim", 16))  # fmt: skip
    pre = tmp_path / "pre"
    run(config(videos, pre, "SOLVER.MAX_STEPS", 1, task=PRETRAIN))
    with pytest.raises(UserError, match="fine-tune it first"):
        test_run(config(videos, tmp_path / "c", "TEST.CHECKPOINT_FILE_PATH",
                        checkpoint.in_order(pre / "checkpoints")[-1]))  # fmt: skip
    with pytest.raises(UserError, match=r"no such|unknown weights"):
        test_run(config(videos, tmp_path / "d", "TEST.CHECKPOINT_FILE_PATH", "missing.pyth"))


def test_a_label_beyond_the_model_is_refused_before_the_test(videos, trained, tmp_path):
    (tmp_path / "lists").mkdir()
    path = next((videos / "val").glob("fast/*.mp4"))
    (tmp_path / "lists" / "val.csv").write_text(f"{path} 3\n")
    with pytest.raises(UserError, match=r"val\.csv"):
        test_run(config(tmp_path / "lists", trained))


# ---- how it is computed, and what it leaves ------------------------------------------------------


def log_of(out):
    return (out / "stdout.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("training", "setting", "used"),
    [("off", "bf16", "bfloat16"), ("bf16", "off", "float32"), ("bf16", "train", "bfloat16")],
)
def test_a_test_has_a_precision_of_its_own(
    videos, trained, tmp_path, monkeypatch, training, setting, used
):
    asked = []

    def noted(model, clips, settings, **kwargs):
        asked.append(str(settings.dtype).removeprefix("torch."))
        return clip_scores(model, clips, settings, **kwargs)

    clip_scores = evaluate.clip_scores
    monkeypatch.setattr(evaluate, "clip_scores", noted)
    out = tmp_path / "out"
    stored = checkpoint.in_order(trained / "checkpoints")[-1]
    cfg = config(videos, out, "TEST.CHECKPOINT_FILE_PATH", stored,
                 "TRAIN.MIXED_PRECISION", training, "TEST.MIXED_PRECISION", setting)  # fmt: skip
    assert test_run(cfg) == 0
    assert set(asked) == {used}
    assert json.loads((out / "results.json").read_text())["precision"] == used
    assert f"(clips in time x crops), in {used}" in log_of(out)


def test_validation_has_the_precision_of_the_training(videos, tmp_path, monkeypatch):
    asked = []
    clip_scores = evaluate.clip_scores

    def noted(model, clips, settings, **kwargs):
        asked.append(settings.dtype)
        return clip_scores(model, clips, settings, **kwargs)

    monkeypatch.setattr(evaluate, "clip_scores", noted)
    run(config(videos, tmp_path / "out", "SOLVER.MAX_STEPS", 1, "TRAIN.MIXED_PRECISION", "bf16",
               "TEST.MIXED_PRECISION", "off"))  # fmt: skip
    assert set(asked) == {torch.bfloat16}


def open_files(folder):
    """Files below a folder that this process holds open."""
    found = []
    for handle in os.scandir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(handle.path))
    return sorted(path for path in found if path.startswith(str(folder)))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_files_are_closed_when_scoring_fails(videos, trained, tmp_path):
    state = checkpoint.load(checkpoint.in_order(trained / "checkpoints")[-1])
    state["model_state"]["head.projection.bias"][0] = float("nan")
    checkpoint.save(state, tmp_path / "broken.pyth")
    cfg = config(videos, tmp_path / "out", "TEST.CHECKPOINT_FILE_PATH", tmp_path / "broken.pyth")
    with pytest.raises(RunFailed, match="not finite") as caught:
        test_run(cfg)
    assert open_files(tmp_path) == []  # while the error holds every frame that it passed
    assert caught.value is not None
    assert "testing" in log_of(tmp_path / "out")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_files_are_closed_when_a_run_fails_before_its_first_step(videos, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="nine camera motions") as caught:
        run(config(videos, out, "AUG.SYMMETRIES", "true"))
    assert (out / "stdout.log").exists()
    assert open_files(tmp_path) == []
    assert caught.value is not None


def test_lines_said_before_the_log_is_there_are_in_it(videos, trained, tmp_path, capsys):
    """What became of starting weights, and of a checkpoint that cannot be read."""
    out = tmp_path / "out"
    stored = checkpoint.in_order(trained / "checkpoints")[-1]
    cfg = config(videos, out, "TRAIN.CHECKPOINT_FILE_PATH", stored, "SOLVER.MAX_STEPS", 2,
                 "TRAIN.KEEP_CHECKPOINTS", 0)  # fmt: skip
    run(cfg)
    lines = log_of(out).splitlines()
    assert lines[0].startswith("loaded ")
    assert lines[1].startswith("classify hiera_tiny_16x224")
    checkpoint.in_order(out / "checkpoints")[-1].write_bytes(b"PK damaged")
    run(cfg)
    assert log_of(out).count("skipping a checkpoint") == 1
    checkpoint.in_order(out / "checkpoints")[-1].write_bytes(b"PK damaged")
    capsys.readouterr()
    assert test_run(cfg) == 0
    assert log_of(out).count("skipping a checkpoint") == 2
    assert capsys.readouterr().out.count("skipping a checkpoint") == 1


def test_a_checkpoint_of_several_labels_tested_with_one_is_said(videos, trained, tmp_path):
    state = checkpoint.load(checkpoint.in_order(trained / "checkpoints")[-1])
    state["multi_label"] = True
    checkpoint.save(state, tmp_path / "multi.pyth")
    out = tmp_path / "out"
    assert test_run(config(videos, out, "TEST.CHECKPOINT_FILE_PATH", tmp_path / "multi.pyth")) == 0
    assert "trained with several labels a video (sigmoid)" in log_of(out)
