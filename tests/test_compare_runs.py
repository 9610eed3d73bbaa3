"""tools/compare_runs.py: what it prints of two runs, and what it refuses."""

import json

import pytest
from scripts import load_script
from tiny_runs import config, run, write_videos

from hiera_video.engine import distributed, evaluate
from hiera_video.engine.signals import Stop
from hiera_video.errors import UserError

TOOL = load_script("tools/compare_runs.py")


def write_run(folder, *, top1=50.0, steps=8, videos=("a.mp4", "b.mp4"), **more):
    """A run's folder as a training and a test leave it."""
    folder.mkdir()
    views = {"temporal": 2, "spatial": 1}
    results = {"n_videos": len(videos), "n_failed": 0, "top1_acc": top1, "views": views, **more}
    (folder / "results.json").write_text(json.dumps({k: v for k, v in results.items() if v != ""}))
    (folder / "predictions.csv").write_text("\n".join(["video,label", *(f"{v},x" for v in videos)]))
    records = [{"_type": "train_iter_", "step": steps - 1}, {"_type": "train_epoch", "step": steps}]
    records.append({"_type": "test_final"})
    if steps:
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder


def printed(capsys, *words):
    assert TOOL.main([str(word) for word in words]) == 0
    return capsys.readouterr().out.splitlines()


def test_two_runs_alike_in_a_table_and_a_line(tmp_path, capsys):
    one = write_run(tmp_path / "one", top1=84.444, steps=224)
    two = write_run(tmp_path / "two", top1=51.111, steps=224)
    assert printed(capsys, one, two, "--names", "with pretraining", "without") == [
        "run               top-1    videos  views  training steps",
        "with pretraining  84.44 %  2       2 x 1  224",
        "without           51.11 %  2       2 x 1  224",
        "",
        "with pretraining 84.4 %, without 51.1 %: same 224 training steps, same 2 test videos",
    ]


def test_what_differs_is_said(tmp_path, capsys):
    one = write_run(tmp_path / "one")
    longer = write_run(tmp_path / "longer", steps=16)
    unknown = write_run(tmp_path / "unknown", steps=0)
    other = write_run(tmp_path / "other", videos=("a.mp4", "c.mp4"))
    damaged = write_run(tmp_path / "damaged", n_failed=1)
    assert (
        "training steps 8, 16, ?, same 2 test videos" in printed(capsys, one, longer, unknown)[-1]
    )
    assert "training steps ?" in printed(capsys, unknown)[-1]
    assert printed(capsys, one, other)[-1].endswith("different videos: not to be compared")
    lines = printed(capsys, one, damaged)
    assert lines[-1].endswith("different videos: not to be compared")
    assert "2, 1 not decoded" in lines[2]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "results.json").unlink(), "has no test result .*TEST.ENABLE"),
        (lambda folder: (folder / "results.json").write_text("{"), "cannot read .*results.json"),
        (lambda folder: (folder / "results.json").write_text("[]"), "not the results.json of"),
        (lambda folder: (folder / "results.json").write_text("{}"), "none of top1_acc, map"),
        (lambda folder: (folder / "predictions.csv").unlink(), "cannot read .*predictions.csv"),
        (lambda folder: (folder / "predictions.csv").write_text("x\n1\n"), "predictions.csv"),
    ],
)
def test_a_folder_without_a_result_is_refused(tmp_path, spoil, message):
    folder = write_run(tmp_path / "run")
    spoil(folder)
    with pytest.raises(UserError, match=message):
        TOOL.main([str(folder)])


def test_wrong_words_are_refused(tmp_path):
    one = write_run(tmp_path / "one")
    several = write_run(tmp_path / "several", top1="", map=40.0)
    with pytest.raises(UserError, match="nowhere is not a folder"):
        TOOL.main([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="1 names for 2 runs"):
        TOOL.main([str(one), str(several), "--names", "one"])
    with pytest.raises(UserError, match="different metrics: one top-1, two mAP"):
        TOOL.main([str(one), str(several), "--names", "one", "two"])


def test_a_run_that_was_trained_and_tested_is_read(tmp_path, capsys):
    cfg = config(write_videos(tmp_path / "videos"), tmp_path / "out", "SOLVER.MAX_STEPS", 3)
    assert run(cfg) == 0
    world = distributed.init("cpu")
    assert evaluate.test(cfg, world, Stop()) == 0
    world.close()
    capsys.readouterr()
    value = json.loads((tmp_path / "out" / "results.json").read_text())["top1_acc"]
    line = printed(capsys, tmp_path / "out", "--names", "tiny")[-1]
    assert line == f"tiny {value:.1f} %: 3 training steps, 3 test videos"
