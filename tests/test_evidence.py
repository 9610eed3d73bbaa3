"""tools/evidence.py: the table, its rows, and what keeps it honest, on sets that are made here."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from evidence_clips import write_set
from evidence_rows import feature_files, finetuning, pictures, readouts, rows, tables
from evidence_rows.action_sets import read_set
from evidence_rows.claims import claimed
from evidence_rows.controls import CONTROLS, PLAIN, changed, relit
from evidence_rows.feature_files import FeatureStore
from evidence_rows.progress import Progress
from evidence_rows.readouts import NEIGHBOURS, choose
from evidence_rows.results import Job, Result, ResultFiles
from scripts import load_script

from hiera_video.engine.folds import grouped_folds
from hiera_video.errors import RunFailed, UserError

KNN = "frozen camera_motion: k-NN"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a set that is laid out like dark_actions; of `scfd` there is nothing."""
    folder = tmp_path_factory.mktemp("data")
    write_set(folder / "dark_actions", train=4, val=2, listed=True)
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder for results that the tests share: features of frozen encoders are computed once."""
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/evidence.py")


def call(tool, data, out, *words, row=KNN):
    """Run the tool with one row and one window a video; the exit code."""
    words = ["--data", data, "--out", out, "--views", "1x1", "--seeds", 1, "--rows", row, *words]
    return tool.main([str(word) for word in words])


def job_of(action_set, row, part=0):
    return Job(row.name, action_set, action_set.parts[part], seed=0, settings=row.settings(0))


def knn_row(out):
    store = FeatureStore(out / "features", Progress())
    return next(r for r in rows.frozen_rows(store, ["camera_motion"], (1, 1)) if r.name == KNN)


# ---- the command --------------------------------------------------------------------------------


def test_the_table_and_all_that_is_written(tool, data, out, tmp_path, capsys):
    files = tmp_path / "all.json", tmp_path / "table.md"
    code = call(tool, data, out, "--sets", "dark_actions", "scfd", "--json", files[0], "--markdown",
                files[1])  # fmt: skip
    printed = capsys.readouterr()
    assert code == 0
    assert "scfd is left out: there is no folder" in printed.err
    assert "dark_actions: 3 classes, chance 33.3 %, 18 test videos in 2 parts" in printed.out
    record = json.loads(files[0].read_text())
    (line,) = record["tables"][0]["lines"]
    first, second = record["results"]
    assert [first["part"], second["part"]] == ["train -> val", "val -> train"]
    assert [len(first["videos"]), len(second["videos"])] == [6, 12]
    right = [np.mean(np.equal(r["predicted"]["plain"], r["labels"])) for r in record["results"]]
    assert line["top1"] == pytest.approx(100 * np.mean(right))
    assert line["low"] <= line["top1"] <= line["high"]
    assert f"| {KNN} | {line['top1']:.1f} |" in files[1].read_text()
    # the bundled model knows motion, and these classes are nothing else
    assert line["top1"] > 80
    assert line["controls"]["one frame"] < 60
    assert line["controls"]["reversed"] < 50
    swapped = [
        said for said, label in zip(second["predicted"]["reversed"], second["labels"], strict=True)
        if label == 1
    ]  # fmt: skip
    assert swapped.count(2) > 2, "what moves to the left moves to the right, backwards"


def test_what_is_done_is_not_done_again(tool, data, out, capsys, monkeypatch):
    assert call(tool, data, out, "--sets", "dark_actions") == 0
    first = capsys.readouterr().out

    def fail(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(rows.FeatureRow, "run", fail)
    assert call(tool, data, out, "--sets", "dark_actions") == 0
    assert capsys.readouterr().out == first


def test_an_interrupted_call_leaves_its_results(tool, data, out, tmp_path, capsys, monkeypatch):
    done, run = [], rows.FeatureRow.run

    def interrupt_second(self, job):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(job.part.name)
        return run(self, job)

    monkeypatch.setattr(rows.FeatureRow, "run", interrupt_second)
    (tmp_path / "features").symlink_to(out / "features")
    with pytest.raises(KeyboardInterrupt):
        call(tool, data, tmp_path, "--sets", "dark_actions")
    assert "6 test videos in 1 part" in capsys.readouterr().out
    done.clear()
    assert call(tool, data, tmp_path, "--sets", "dark_actions") == 0
    assert done == ["val -> train"]


@pytest.mark.parametrize("its_end", ["done", "killed"])
def test_two_calls_share_the_jobs(tool, data, out, tmp_path, capsys, monkeypatch, its_end):
    """What another call is at comes last; nothing is done twice, and nothing is lost with it."""
    assert call(tool, data, out, "--sets", "dark_actions") == 0
    table = capsys.readouterr().out
    action_set = read_set("dark_actions", data)
    row = knn_row(out)
    first, second = (job_of(action_set, row, part) for part in (0, 1))
    here = ResultFiles(tmp_path / "results")
    begun, ran, run = threading.Event(), [], rows.FeatureRow.run

    def other_call():
        with here.claimed(first, wait=0) as mine:
            assert mine
            begun.set()
            while not here.find(second):
                time.sleep(0.01)
            if its_end == "done":
                here.write(first, ResultFiles(out / "results").find(first))

    monkeypatch.setattr(
        rows.FeatureRow, "run", lambda self, job: ran.append(job.part.name) or run(self, job)
    )
    (tmp_path / "features").symlink_to(out / "features")
    other = threading.Thread(target=other_call)
    other.start()
    assert begun.wait(60)
    assert call(tool, data, tmp_path, "--sets", "dark_actions") == 0
    other.join(60)
    assert ran == ["val -> train"] + ["train -> val"] * (its_end == "killed")
    assert capsys.readouterr().out == table
    assert not list(tmp_path.glob("results/*.lock"))


def test_two_calls_share_the_features(data, out, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_files, "_VIDEOS_A_FILE", 6)
    videos = read_set("dark_actions", data).videos
    describer = pictures.PictureFeatures((PLAIN,))
    store = FeatureStore(tmp_path, Progress())
    whole = store.plain(describer, videos)
    made = sorted(tmp_path.glob("*/*.npz"))
    assert len(made) == 3
    taken = {file: file.read_bytes() for file in made}
    for file in made:
        file.unlink()
    written, write = [], feature_files._write

    def other_call():
        with claimed(made[0]) as mine:
            assert mine
            begun.set()
            while not all(file.is_file() for file in made[1:]):
                time.sleep(0.01)
            made[0].write_bytes(taken[made[0]])

    begun = threading.Event()
    monkeypatch.setattr(
        feature_files, "_write", lambda file, *rest: written.append(file) or write(file, *rest)
    )
    other = threading.Thread(target=other_call)
    other.start()
    assert begun.wait(60)
    shared = store.plain(describer, videos)
    other.join(60)
    assert sorted(written) == made[1:]
    for name, numbers in whole.items():
        np.testing.assert_array_equal(shared[name], numbers)


def test_nothing_to_do_and_wrong_use(tool, data, out, capsys):
    assert call(tool, data / "nowhere", out) == 1
    assert "none of the sets is here" in capsys.readouterr().err
    with pytest.raises(UserError, match="no such set; choose from dark_actions, scfd"):
        call(tool, data, out, "--sets", "ucf101")
    with pytest.raises(UserError, match="--rows nosuch: no such row; there are one frame"):
        call(tool, data, out, row="nosuch")


def test_a_row_whose_library_is_missing_is_left_out(tool, data, out, capsys, monkeypatch):
    call(tool, data, out, "--sets", "dark_actions")
    find = rows.importlib.util.find_spec
    monkeypatch.setattr(
        rows.importlib.util, "find_spec", lambda name: None if name == "cv2" else find(name)
    )
    words = ["--sets", "dark_actions", "--data", str(data), "--out", str(out), "--views", "1x1"]
    assert tool.main([*words, "--seeds", "1", "--rows", "optical flow", KNN]) == 0
    printed = capsys.readouterr().out
    assert "optical flow: not installed: pip install opencv-python-headless" in printed
    assert KNN in printed


def test_a_row_that_fails_leaves_the_others(tool, data, out, capsys, monkeypatch):
    def fail(self, job):
        raise RunFailed("no space")

    monkeypatch.setattr(finetuning.FineTuning, "run", fail)
    words = ["--sets", "dark_actions", "--data", str(data), "--out", str(out), "--views", "1x1"]
    assert tool.main([*words, "--seeds", "1", "--rows", "scratch", KNN]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("no space") == 1
    assert "scratch is unfinished" in printed.out
    assert KNN in printed.out


# ---- honesty ------------------------------------------------------------------------------------


def test_test_labels_decide_nothing(data, out):
    action_set = read_set("dark_actions", data)
    part = action_set.parts[0]
    row = knn_row(out)
    answers = row.run(job_of(action_set, row))
    other = replace(part.test, labels=np.roll(part.test.labels, 2))
    relabelled = replace(action_set, parts=(replace(part, test=other),))
    assert row.run(job_of(relabelled, row)) == answers


def test_test_clips_decide_nothing(data, out, monkeypatch):
    action_set = read_set("dark_actions", data)
    row = knn_row(out)
    answers = row.run(job_of(action_set, row))
    plain = FeatureStore.plain

    def other_test_clips(self, describer, videos):
        blocks = plain(self, describer, videos)
        held = [video.name.startswith("val/") for video in videos]
        for features in blocks.values():
            features[held] = 1e3
        return blocks

    monkeypatch.setattr(FeatureStore, "plain", other_test_clips)
    other_answers = row.run(job_of(action_set, row))
    assert other_answers.chosen == answers.chosen
    for control in CONTROLS:  # their clips are read from elsewhere: the same classifier answers
        assert other_answers.predicted[control] == answers.predicted[control]


@pytest.mark.parametrize("seed", range(20))
def test_no_group_is_on_both_sides(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(8, 60))
    groups = [f"scene {g}" for g in rng.integers(0, rng.integers(2, 12), size=count)]
    labels = rng.integers(0, 4, size=count).tolist()
    folds = grouped_folds(labels, groups, folds=4, seed=seed)
    assert (np.sum(folds, axis=0) == 1).all(), "each video is held out once"
    for held in folds:
        inside = {g for g, h in zip(groups, held, strict=True) if h}
        outside = {g for g, h in zip(groups, held, strict=True) if not h}
        assert inside
        assert not inside & outside


def test_folds_have_the_classes_alike():
    labels = [i % 2 for i in range(80)]
    groups = [str(i // 4) for i in range(80)]
    folds = grouped_folds(labels, groups, folds=4, seed=0)
    assert [np.bincount(np.array(labels)[held]).tolist() for held in folds] == [[10, 10]] * 4


def test_the_block_that_generalises_to_other_groups_is_chosen():
    """A block that knows the group perfectly predicts the training labels, and nothing else."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(12), 5)
    labels = group % 3
    noise = 0.1 * rng.normal(size=(60, 2, 12)).astype(np.float32)
    blocks = {
        "place": noise + np.eye(12, dtype=np.float32)[group][:, None],
        "motion": noise + 0.5 * np.eye(12, dtype=np.float32)[labels][:, None],
    }
    folds = grouped_folds(labels.tolist(), group.astype(str).tolist(), folds=4, seed=0)
    choice = choose(NEIGHBOURS, blocks, labels, folds, None)
    assert choice.block == "motion"
    assert choice.accuracy == 100


# ---- controls -----------------------------------------------------------------------------------


def test_every_control_changes_the_clip():
    clip = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 3, 6, 5), np.uint8))
    shown = {control: changed(clip, control, "a.mp4") for control in CONTROLS}
    for control, frames in shown.items():
        assert frames.shape == clip.shape, control
        assert frames.dtype == torch.uint8, control
        assert not torch.equal(frames, clip), control
        assert torch.equal(frames, changed(clip, control, "a.mp4")), "the same again"
    assert torch.equal(changed(clip, PLAIN, "a.mp4"), clip)
    assert all(torch.equal(frame, clip[4]) for frame in shown["one frame"])
    assert torch.equal(shown["reversed"].flip(0), clip)
    means = clip.float().mean((1, 2, 3))
    assert torch.equal(shown["shuffled"].float().mean((1, 2, 3)).sort()[0], means.sort()[0])
    assert not torch.equal(shown["shuffled"], changed(clip, "shuffled", "b.mp4"))
    assert (shown["brighter"] >= clip).all()
    assert (shown["darker"] <= clip).all()


def test_light_is_gain_and_gamma_in_whole_levels():
    levels = torch.tensor([0, 64, 128, 255], dtype=torch.uint8)
    expected = [round(255 * min(1.0, 1.6 * (v / 255) ** 0.6)) for v in (0, 64, 128, 255)]
    assert relit(levels, gain=1.6, gamma=0.6).tolist() == expected


# ---- numbers ------------------------------------------------------------------------------------


def test_intervals():
    rng = np.random.default_rng(0)
    assert tables.interval([np.ones((3, 40), bool)]) == (100, 100)
    few, many = (rng.uniform(size=(1, n)) < 0.5 for n in (50, 800))
    narrow, wide = tables.interval([many]), tables.interval([few])
    assert narrow[0] < 100 * many.mean() < narrow[1]
    # two standard errors on either side
    assert wide[1] - wide[0] == pytest.approx(4 * 50 / 50**0.5, rel=0.15)
    assert narrow[1] - narrow[0] == pytest.approx(4 * 50 / 800**0.5, rel=0.15)


def results_of(row, right, seeds=1):
    """Results of a row in two parts; right: bool [videos] of either, the same for all seeds."""
    return [
        Result(row, "toys", part, seed, list("abcdefghij" * 10), [1] * 100, {PLAIN: list(right)})
        for part in ("there", "back")
        for seed in range(seeds)
    ]


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    base = rng.uniform(size=100) < 0.5
    better = base.copy()
    better[np.flatnonzero(~base)[:10]] = True
    base, better, same = (results_of("row", x.astype(int), 3) for x in (base, better, base.copy()))
    assert tables.difference(base, same) == tables.Difference(0, 0, 0)
    found = tables.difference(better, base)
    back = tables.difference(base, better)
    assert (found.points, back.points) == (pytest.approx(10), pytest.approx(-10))
    # two parts of 100 videos, of which one in ten differs: two standard errors on either side
    assert found.high - found.low == pytest.approx(4 * 30 / 200**0.5, rel=0.15)
    assert found.low > 0, "each row alone has an interval of 14 points: only the pairs tell"
    assert back.high < 0


def test_rows_of_other_seeds_are_not_compared():
    right = np.ones(100, int)
    first, more = results_of("first", right), results_of("more", right, seeds=2)
    assert tables.line_of("more", more, {"first": first, "more": more}).against == {}
    line = tables.line_of("more", more[::2], {"first": first})
    assert line.against == {"first": tables.Difference(0, 0, 0)}


def test_the_table_against_a_row(tool, data, out, tmp_path, capsys):
    other = "frozen random: k-NN"
    words = ["--sets", "dark_actions", "--encoders", "camera_motion", "random", "--against"]
    written = ["--json", tmp_path / "all.json", "--markdown", tmp_path / "table.md"]
    assert call(tool, data, out, *words, other, *written, row="frozen *: k-NN") == 0
    printed = capsys.readouterr().out
    first, second = json.loads((tmp_path / "all.json").read_text())["tables"][0]["lines"]
    found = first["against"][other]
    assert found["points"] == pytest.approx(first["top1"] - second["top1"])
    assert second["against"] == {}
    cell = f"{found['points']:+.1f} ({found['low']:+.1f} to {found['high']:+.1f})"
    for text in (printed, (tmp_path / "table.md").read_text()):
        assert f"minus {other}" in text
        assert cell in text
        assert "a difference is in points" in text
    with pytest.raises(UserError, match="--against recipe: not a row of this table; there are fro"):
        call(tool, data, out, *words, "recipe")


def test_nearest_neighbours_by_hand():
    features = np.array([[1, 0], [1, 0.1], [0, 1]], np.float32)
    scores = readouts.fit_neighbours(features, np.array([3, 3, 5]), {"k": 2})
    found = scores(np.array([[2, 0], [0, 3]], np.float32))
    assert found.argmax(axis=1).tolist() == [0, 1]
    assert found[0] == pytest.approx([2.0, 0.0], abs=0.01)


# ---- the other rows -----------------------------------------------------------------------------


@pytest.mark.parametrize("readout", [readouts.SVM, readouts.LINEAR], ids=lambda r: r.name)
def test_readouts_of_scikit_learn(readout):
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    for classes in (2, 3):  # scikit-learn gives two classes one column
        labels = np.arange(30) % classes + 1
        features = rng.normal(size=(30, 2, 5)).astype(np.float32)
        features[..., :3] += 5 * np.eye(4)[labels][:, None, 1:]
        fit = readouts.VideoClassifier.fit(readout, features, labels, 3)
        assert (fit(readout.grid[-1]).predict(features) == labels).mean() > 0.8


def test_hand_made_rows(tool, data, tmp_path, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("cv2")
    assert call(tool, data, tmp_path, "--quick", "--json", tmp_path / "all.json", row="hand-made",
                ) == 0  # fmt: skip
    found = json.loads((tmp_path / "all.json").read_text())["results"]
    assert [r["row"] for r in found] == ["one frame", "mean frame", "motion energy", "optical flow"]
    right = {r["row"]: np.mean(np.equal(r["predicted"]["plain"], r["labels"])) for r in found}
    assert right["optical flow"] > 0.8
    assert right["one frame"] < 0.8
