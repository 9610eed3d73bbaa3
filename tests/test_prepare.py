"""Manifests from folders and from official lists: readable, reproducible, sources kept together."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from clips import write_clip
from pages import TINY
from scripts import load_script
from tiny_runs import environment

from hiera_video import cli
from hiera_video.config import load_config
from hiera_video.data.manifests.layouts import read_manifest
from hiera_video.errors import RunFailed, UserError
from hiera_video.preparation import manifest_files, prepare
from hiera_video.preparation.manifest_files import write
from hiera_video.preparation.prepare import (
    SplitOptions,
    leave_out_missing,
    torn_sources,
    use_copies,
)
from hiera_video.spreadsheet import original


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def gather(layout, path, **options):
    return prepare.gather(layout, path, SplitOptions(**options))


def listed(manifest):
    return [(manifest.paths.relative(i), manifest.label(i)) for i in range(len(manifest))]


def paths(prepared, split):
    return [video.path for video in prepared.splits[split]]


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/prepare_data.py")


@pytest.fixture
def run_tool(tool, monkeypatch, capsys):
    """The command line in this process: (exit code, stdout, stderr)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.run(tool.main)
        return (end.value.code, *capsys.readouterr())

    return call


# ---- a folder -----------------------------------------------------------------------------------


def test_the_real_set_by_its_sources(run_tool, shared_data, tmp_path):
    root = shared_data / "scfd_small"
    words = ["folder", root, "--group-by", "source", "--out"]
    code, out, _ = run_tool(*words, tmp_path / "one")
    assert code == 0
    assert "train.csv      244 videos, 35 sources; noFight 125, fight 119" in out
    assert "28 of 300 videos name no source" in out
    prepared = gather("folder", root, group_by="source")
    assert not torn_sources(prepared.splits)
    for split in ("train", "val"):
        ours = read_manifest(tmp_path / "one", split, path_prefix=str(root))
        theirs = read_manifest(root, split)  # training on the folder itself
        assert listed(ours) == listed(theirs)
        assert ours.classes == theirs.classes == ("noFight", "fight")
        assert all(os.path.exists(ours.paths[i]) for i in range(len(ours)))
    assert run_tool(*words, tmp_path / "two")[0] == 0
    for name in ("train.csv", "val.csv", "classnames.json", "prepare.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def write_sources(root, sources=12, clips=4):
    return touch(
        root, *(f"{c}/{s:02d}_{i}.mp4" for c in "ab" for s in range(sources) for i in range(clips))
    )


PATTERN = r"(?:^|/)(\d+)_\d+[.]mp4"
"""Sources of `write_sources`: one is in both classes."""


def test_a_pattern_on_file_names_keeps_sources_together(tmp_path):
    root = write_sources(tmp_path / "videos")
    prepared = gather("folder", root, group_by=PATTERN, val_fraction=0.25)
    assert prepared.knows_sources
    assert not torn_sources(prepared.splits)
    assert sum(map(len, prepared.splits.values())) == 96
    assert 16 <= len(prepared.splits["val"]) <= 32
    for split in ("train", "val"):  # what training on the folder itself would hold out
        own = read_manifest(root, split, group_by=PATTERN, val_fraction=0.25)
        assert paths(prepared, split) == sorted(path for path, _ in listed(own))
    other = gather("folder", root, group_by=PATTERN, val_fraction=0.25, seed=1)
    assert paths(other, "val") != paths(prepared, "val")
    # Without it they are torn apart, which is what it is for.
    alone = gather("folder", root, val_fraction=0.25)
    named = {
        split: [video._replace(source=video.path[2:4]) for video in videos]
        for split, videos in alone.splits.items()
    }
    assert torn_sources(named)
    assert any("no sources known" in note for note in alone.notes)


def test_three_shares(tmp_path):
    root = write_sources(tmp_path, sources=20)
    prepared = gather("folder", root, group_by=PATTERN, val_fraction=0.2, test_fraction=0.2)
    assert list(prepared.splits) == ["train", "val", "test"]
    assert not torn_sources(prepared.splits)
    assert {split: len(videos) for split, videos in prepared.splits.items()} == {
        "train": 96,
        "val": 32,
        "test": 32,
    }
    two = gather("folder", root, group_by=PATTERN, val_fraction=0.2)
    assert paths(two, "val") == paths(prepared, "val")


def test_splits_by_folder_are_kept_and_their_paths_start_at_the_top(tmp_path):
    root = touch(tmp_path / "v", "train/a/1.mp4", "train/b/2.mp4", "val/a/3.mp4", "test/b/4.mp4")
    prepared = gather("folder", root)
    assert prepared.root == str(root)
    assert {split: paths(prepared, split) for split in prepared.splits} == {
        "train": ["train/a/1.mp4", "train/b/2.mp4"],
        "val": ["val/a/3.mp4"],
        "test": ["test/b/4.mp4"],
    }
    (root / "test/b/4.mp4").rename(root / "val/4.mp4")
    assert list(gather("folder", root).splits) == ["train", "val"]


def test_splits_in_any_case_are_kept_and_the_classes_said(run_tool, tmp_path):
    names = [f"{s}/{c}/{s}{c}.mp4" for s in ("Train", "Validation") for c in "abc"]
    root = touch(tmp_path / "v", *names)
    code, out, _ = run_tool("folder", root, "--out", tmp_path / "out")
    assert code == 0
    assert f"3 classes: a, b, c; from folder names below {root}/Train" in out
    assert (tmp_path / "out" / "train.csv").read_text() == (
        "Train/a/Traina.mp4 0\nTrain/b/Trainb.mp4 1\nTrain/c/Trainc.mp4 2\n"
    )
    assert len(read_manifest(tmp_path / "out", "val")) == 3
    (root / "Train").rename(root / "train_set")
    code, _, error = run_tool("folder", root, "--out", tmp_path / "other")
    assert (code, "rename train_set/ -> train/" in error) == (2, True)
    assert not (tmp_path / "other").exists()


def test_folders_with_two_readings_are_refused_until_one_is_chosen(run_tool, tmp_path):
    people = [f"{p}/{c}/{i}.mp4" for p in ("ann", "bob", "cy") for c in "ab" for i in range(4)]
    root = touch(tmp_path / "v", *people)
    code, _, error = run_tool("folder", root, "--out", tmp_path / "out")
    assert (code, "can be read in two ways" in error) == (2, True)
    words = ["folder", root, "--out", tmp_path / "out", "--format", "group_folders"]
    code, out, _ = run_tool(*words)
    assert code == 0
    assert "2 classes: a, b; from inner folder names below" in out
    assert "sources" in out
    parts = [
        {path.split("/")[0] for path, _ in listed(read_manifest(tmp_path / "out", split))}
        for split in ("train", "val")
    ]
    assert all(parts)
    assert parts[0].isdisjoint(parts[1])
    code, out, _ = run_tool(*words[:2], "--out", tmp_path / "upper", "--format", "class_folders")
    assert (code, "3 classes: ann, bob, cy" in out) == (0, True)


def test_splits_inside_each_class_are_kept(tmp_path):
    root = touch(tmp_path, *(f"{c}/{s}/1.mp4" for c in "ab" for s in ("train", "val", "test")))
    prepared = gather("folder", root)
    assert {split: paths(prepared, split) for split in prepared.splits} == {
        split: [f"a/{split}/1.mp4", f"b/{split}/1.mp4"] for split in ("train", "val", "test")
    }


def test_one_list_is_divided(tmp_path):
    """Its videos are never in train and val at once."""
    root = touch(tmp_path / "v", *(f"{c}/{i}.mp4" for c in "ab" for i in range(10)))
    rows = [f"{c}/{i}.mp4;{c}" for c in "ab" for i in range(10)]
    file = text(tmp_path / "list.csv", "video;class\n" + "\n".join(rows) + "\n")
    prepared = gather("kinetics", file, videos=str(root))
    assert {split: len(videos) for split, videos in prepared.splits.items()} == {
        "train": 16,
        "val": 4,
    }
    assert prepared.classes == ("a", "b")
    assert not torn_sources(prepared.splits)


def test_a_split_that_tears_sources_apart_is_refused_or_noted(tmp_path):
    touch(tmp_path, "1.mp4", "2.mp4", "3.mp4")
    rows = "1.mp4,x,film1,0\n2.mp4,y,film1,1\n3.mp4,x,,1\n"
    text(tmp_path / "labels.csv", "path,label,source,fold\n" + rows)
    with pytest.raises(UserError, match=r"1 sources are in more than one split: 'film1'.*remove"):
        gather("folder", tmp_path, group_by="source")
    notes = gather("folder", tmp_path).notes
    assert any("'film1' in train and val" in note for note in notes)
    with pytest.raises(UserError, match=r"'film1'"):
        gather("folder", tmp_path, group_by="source", fold=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_by": "sauce"}, "'sauce' .*no column of labels.csv, and as a regular expression"),
        ({"group_by": "("}, "regular expression"),
        ({"group_by": r"(zebra)"}, r"finds no source for any of the 96 videos \('a/00_0.mp4'"),
        ({"fold": 1}, "--fold 1: .* no labels.csv with a column 'fold'"),
        ({"val_fraction": 0.0}, "--val-fraction 0 must be"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ({"test_fraction": -1.0}, "--test-fraction -1"),
    ],
)
def test_settings_that_contradict_the_data(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        gather("folder", write_sources(tmp_path), **settings)


# ---- the lists of public sets -------------------------------------------------------------------


def test_kinetics_and_what_is_missing_of_it(run_tool, tmp_path):
    header = "label,youtube_id,time_start,time_end,split\n"
    ids = [f"{i:011d}" for i in range(6)]
    rows = [f"{'jump' if i % 2 else 'a wave'},{name},5,15," for i, name in enumerate(ids)]
    lists, videos = tmp_path / "lists", tmp_path / "videos"
    text(lists / "train.csv", header + "".join(f"{row}train\n" for row in rows[:4]))
    text(lists / "validate.csv", header + "".join(f"{row}validate\n" for row in rows[4:]))
    touch(videos, *(f"any/{name}_000005_000015.mp4" for name in ids[1:]))
    out = tmp_path / "out"
    code, printed, _ = run_tool("kinetics", lists, "--videos", videos, "--out", out)
    assert code == 0
    assert (out / "train.csv").read_text() == (
        "any/00000000001_000005_000015.mp4 1\n"
        "any/00000000002_000005_000015.mp4 0\n"
        "any/00000000003_000005_000015.mp4 1\n"
    )
    assert (out / "left_out.csv").read_text(encoding="utf-8-sig") == (
        "path,split,label,reason\n00000000000_000005_000015.mp4,train,a wave,no such file\n"
    )
    assert json.loads((out / "classnames.json").read_text()) == ["a wave", "jump"]
    assert "left out: 1 videos, see left_out.csv (1 x no such file)" in printed
    assert not (out / "test.csv").exists()
    # The sources are known from the names.
    touch(videos, f"{ids[1]}_000020_000030.mp4")
    with open(lists / "validate.csv", "a") as file:
        file.write(f"jump,{ids[1]},20,30,validate\n")
    prepared = gather("kinetics", lists, videos=str(videos))
    assert any(repr(ids[1]) in note for note in prepared.notes)


def test_ucf101_with_a_validation_list_of_its_own(tmp_path):
    lists = tmp_path / "ucfTrainTestlist"
    names = [f"Wave/v_Wave_g{g:02d}_c{c:02d}.avi" for g in range(1, 11) for c in range(1, 4)]
    text(lists / "classInd.txt", "1 Wave\n2 Jump\n")
    names += [name.replace("Wave", "Jump") for name in names]
    test = [name for name in names if "_g01_" in name or "_g02_" in name]
    train = [name for name in names if name not in test]
    text(lists / "trainlist01.txt", "".join(f"{n} {1 + ('Jump' in n)}\n" for n in train))
    text(lists / "testlist01.txt", "".join(f"{n}\n" for n in test))
    videos = touch(tmp_path / "UCF-101", *names)
    official = gather("ucf101", lists, videos=str(videos))
    assert (paths(official, "train"), paths(official, "val")) == (train, test)
    (note,) = official.notes
    assert note.startswith("the official test list is used for validation, and the best checkpoint")
    assert official.splits["train"][0].label == 0
    own = gather("ucf101", lists, videos=str(videos), val_fraction=0.25)
    assert paths(own, "test") == test
    assert sorted(paths(own, "train") + paths(own, "val")) == sorted(train)
    assert len(own.splits["val"]) == 12
    assert not torn_sources(own.splits)  # groups (g01, ...) stay together
    assert own.notes[0].startswith("val.csv is taken from the training list")
    with pytest.raises(UserError, match=r"--test-fraction is for data without a split.*ucf101"):
        gather("ucf101", lists, videos=str(videos), test_fraction=0.1)


def test_hmdb51_and_ssv2(tmp_path):
    lists = tmp_path / "splits"
    text(lists / "wave_test_split2.txt", "a.avi 1 \nb.avi 2 \nc.avi 0 \n")
    text(lists / "jump_test_split2.txt", "d.avi 1 \n")
    videos = touch(tmp_path / "hmdb", *(f"wave/{n}.avi" for n in "abc"), "jump/d.avi")
    prepared = gather("hmdb51", lists, videos=str(videos), fold=2)
    assert prepared.classes == ("jump", "wave")
    assert paths(prepared, "train") == ["jump/d.avi", "wave/a.avi"]
    assert paths(prepared, "val") == ["wave/b.avi"]

    lists = tmp_path / "ssv2"
    text(lists / "labels.json", json.dumps({"Pushing something": "0", "Pulling something": "1"}))
    for split, number in (("train", "7"), ("validation", "8")):
        entry = {"id": number, "template": "Pulling [something]"}
        text(lists / f"{split}.json", json.dumps([entry]))
    prepared = gather("ssv2", lists, videos=str(touch(tmp_path / "webm", "7.webm", "8.webm")))
    assert [tuple(v) for v in prepared.splits["train"]] == [("7.webm", 1, "")]
    assert write(prepared, tmp_path / "out").is_dir()


# ---- writing ------------------------------------------------------------------------------------

ODD = (
    "a/ leading.mp4",
    "a/trailing.mp4 /x.mp4",
    "a/one, two;three 4.mp4",
    'a/"quoted".mp4',
    "a/take 7 8.mp4",
    "a/видео (1) 9.mp4",
    "a/#hash: 'x'.mp4",
    os.fsdecode(b"a/latin\xe9.mp4"),
)


def test_odd_names_survive(tmp_path):
    root = touch(tmp_path / "videos: 1 #x", *ODD, "a/line\nbreak.mp4")
    touch(root, *(name.replace("a/", "b/", 1) for name in ODD))
    prepared = gather("folder", root, val_fraction=0.3)
    leave_out_missing(prepared)
    write(prepared, tmp_path / "out")
    found = [
        path
        for split in ("train", "val")
        for path, _ in listed(read_manifest(tmp_path / "out", split, path_prefix=str(root)))
    ]
    assert sorted(found) == sorted([*ODD, *(name.replace("a/", "b/", 1) for name in ODD)])
    assert [row.path for row in prepared.left_out] == ["a/line\nbreak.mp4"]
    assert "line break" in prepared.left_out[0].reason


@pytest.mark.parametrize(
    "name",
    [
        *(" a.mp4", '"a".mp4', "video 1.mp4", "path", 'say "hi" .mp4 ', 'my "open.mp4', '"b.mp4'),
        *("path,label", "clip class.mp4", '5" disk.mp4', "a.mp4 b.mp4"),
    ],
)
def test_names_at_the_top_of_a_list_survive(tmp_path, name):
    """Names that a reader could take for a header, a quoted field or blanks around the line."""
    videos = [prepare.Video(name, 0, ""), prepare.Video("z.mp4", 1, "")]
    splits = {"train": videos, "val": videos[1:]}
    write(prepare.Prepared("folder", str(tmp_path), splits, ("7", "1 x")), tmp_path / "out")
    assert listed(read_manifest(tmp_path / "out", "train")) == [(name, 0), ("z.mp4", 1)]


def test_a_list_that_does_not_read_back_is_not_written(tmp_path, monkeypatch):
    prepared = gather("folder", write_sources(tmp_path / "v"))
    monkeypatch.setattr(manifest_files, "_line", lambda video: f"{video.path} 0\n")
    with pytest.raises(RunFailed, match="does not read back"):
        write(prepared, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_what_was_written_here_is_overwritten(run_tool, tmp_path):
    root = write_sources(tmp_path / "v")
    out = tmp_path / "out"
    words = ["folder", root, "--group-by", PATTERN, "--out", out]
    assert run_tool(*words, "--test-fraction", "0.2")[0] == 0
    assert (out / "test.csv").is_file()
    assert run_tool(*words)[0] == 0
    assert not (out / "test.csv").exists()  # of the call before: not left to be mistaken for new
    with open(out / "val.csv", "a") as file:
        file.write("mine.mp4 0\n")
    code, _, error = run_tool(*words)
    assert code == 2
    assert "val.csv exists and was not written by this command, or was changed since" in error
    assert (out / "val.csv").read_text().endswith("mine.mp4 0\n")
    # An official list of the user's is never the price of a wrong --out.
    lists = text(tmp_path / "lists" / "train.csv", "a/00_0.mp4 0\nb/01_1.mp4 1\n").parent
    text(lists / "val.csv", "a/01_0.mp4 0\n")
    code, _, error = run_tool("kinetics", lists, "--videos", root, "--out", lists)
    assert (code, "train.csv exists" in error) == (2, True)
    assert (lists / "train.csv").read_text() == "a/00_0.mp4 0\nb/01_1.mp4 1\n"


def test_an_interrupted_write_is_finished_by_the_next(tmp_path):
    """Some files new, some old, an old record: the state after a power cut between two renames."""
    root = write_sources(tmp_path / "v")
    out = write(gather("folder", root), tmp_path / "out")
    fresh = write(gather("folder", root, seed=3), tmp_path / "fresh")
    (out / "train.csv").write_bytes((fresh / "train.csv").read_bytes())
    with pytest.raises(UserError, match=r"train.csv exists"):
        write(gather("folder", root), out)
    write(gather("folder", root, seed=3), out)
    assert (out / "val.csv").read_bytes() == (fresh / "val.csv").read_bytes()


KILLED = """
import os, signal, sys
from hiera_video.preparation.manifest_files import write
from hiera_video.preparation.prepare import SplitOptions, gather

root, folder = sys.argv[1:]
real = {name: getattr(os, name) for name in ("replace", "unlink", "fsync", "mkdir")}
old, new = gather("folder", root), gather("folder", root, SplitOptions(seed=3))

def step():
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1

def stopping(name):
    def call(*arguments, **settings):
        step()
        result = real[name](*arguments, **settings)
        step()
        return result
    return call

killed, left = True, -1
while killed:
    left += 1
    out = write(old, os.path.join(folder, str(left)))
    child = os.fork()
    if child == 0:
        for name in real:
            setattr(os, name, stopping(name))
        write(new, out)
        os._exit(0)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
"""


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_killed_at_any_step_no_mixture_passes_for_a_set(tmp_path):
    """Lists of two calls would train on what they validate on. If train.csv exists, all of
    the set is of one call; and the same command finishes an interrupted one."""
    root = write_sources(tmp_path / "v")
    old = snapshot(write(gather("folder", root), tmp_path / "old"))
    new = snapshot(write(gather("folder", root, seed=3), tmp_path / "new"))
    assert old["train.csv"] != new["train.csv"]
    lists = ("train.csv", "val.csv", "classnames.json")
    words = [sys.executable, "-c", KILLED, root, tmp_path / "killed"]
    # Killed children leave the folder in which the lists are read back: not in the system's.
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    subprocess.run(words, env={**environment(), "TMPDIR": str(scratch)}, check=True)
    folders = sorted((tmp_path / "killed").iterdir(), key=lambda out: int(out.name))
    assert len(folders) > 20
    seen = []
    for out in folders:
        there = snapshot(out)
        found = {name: there[name] for name in lists if name in there}
        if "train.csv" in there:
            assert found in [{name: whole[name] for name in lists} for whole in (old, new)]
        seen.append(there.get("train.csv"))
        manifest_files.check_out(out)  # as the command does first: all that is there counts as ours
        write(gather("folder", root, seed=3), out)
        assert snapshot(out) == new
    assert set(seen) == {old["train.csv"], new["train.csv"], None}
    assert (seen[0], seen[-1]) == (old["train.csv"], new["train.csv"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs limits of Linux")
def test_a_full_disk_is_named_and_the_old_lists_stay(tmp_path):
    root = write_sources(tmp_path / "v")
    out = write(gather("folder", root), tmp_path / "out")
    before = snapshot(out)
    limit = len(before["train.csv"]) // 2
    code = (
        "import resource, sys\n"
        "from hiera_video import cli\n"
        "from hiera_video.preparation.manifest_files import write\n"
        "from hiera_video.preparation.prepare import SplitOptions, gather\n"
        "def main(argv):\n"
        "    prepared = gather('folder', argv[0], SplitOptions(seed=3))\n"
        f"    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "    write(prepared, argv[1])\n"
        "cli.run(main)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, root, out], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert re.match(r"error: cannot write .*/\S+\.(csv|json): File too large, ", done.stderr)
    assert snapshot(out) == before


def test_the_videos_left_out_open_in_a_spreadsheet(tmp_path):
    """Their names, and those of their classes, are as odd as names can be."""
    odd = ["=1+1/-x.mp4", os.fsdecode(b"=1+1/caf\xe9.mp4"), "None/ü.mp4", "None/y.mp4"]
    root = touch(tmp_path / "v", *odd, *(f"{c}/{i}.mp4" for c in ("=1+1", "None") for i in "1234"))
    prepared = gather("folder", root)
    for name in odd:
        (root / name).unlink()
    leave_out_missing(prepared)
    out = write(prepared, tmp_path / "out")
    with open(out / "left_out.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(original(row["path"]) for row in rows) == sorted(
        f"./{name}" if name.startswith("=") else name for name in odd
    )
    assert {row["label"] for row in rows} == {"'=1+1", "'None"}
    assert {row["reason"] for row in rows} == {"no such file"}


def test_nothing_left_of_a_split(tmp_path):
    prepared = gather("folder", write_sources(tmp_path))
    for video in prepared.splits["val"]:
        (tmp_path / video.path).unlink()
    with pytest.raises(RunFailed, match=r"none of the \d+ videos for val.*no such file"):
        leave_out_missing(prepared)


def test_copies_take_the_place_of_videos(tmp_path):
    prepared = gather("folder", touch(tmp_path, *(f"a/{i}.avi" for i in range(10))))
    every = [video.path for videos in prepared.splits.values() for video in videos]
    lost = paths(prepared, "train")[0]
    made = {path: path.replace("avi", "mp4") for path in every if path != lost}
    use_copies(prepared, tmp_path / "small", made, {lost: "damaged video"})
    assert prepared.root == str(tmp_path / "small")
    assert all(path.endswith(".mp4") for path in paths(prepared, "train") + paths(prepared, "val"))
    (row,) = prepared.left_out
    assert (row.path, row.split, row.reason) == (lost, "train", "damaged video")


# ---- the command line ---------------------------------------------------------------------------


def test_one_command_after_it_trains(run_tool, repository, tmp_path, monkeypatch):
    """With copies, from a folder whose name needs quoting; a broken video is counted."""
    monkeypatch.chdir(repository)
    root = tmp_path / "my videos: 2 #x"
    for label in ("jump", "wave"):
        (root / label).mkdir(parents=True)
        for i in range(3):
            write_clip(root / label / f"{i} x.mkv", frames=12, fps=10, size=(96, 64))
    (root / "jump" / "3 x.mkv").write_bytes(b"\x1aE\xdf\xa3 damaged")
    out, small = tmp_path / "the manifests", tmp_path / "small copies"
    words = ["folder", root, "--out", out, "--transcode", small, "--short-side", 32]
    code, printed, progress = run_tool(*words, "--workers", 1)
    assert code == 0
    assert "6 copies of short side 32 at most (0 of them from before), 1 failed" in printed
    assert "  failed: jump/3 x.mkv: " in printed
    assert "transcoding 7 of 7 videos" in progress
    assert "3 x.mkv" in (out / "left_out.csv").read_text()
    first = (out / "train.csv").read_bytes()
    code, printed, _ = run_tool(*words)
    assert "(6 of them from before)" in printed
    assert (out / "train.csv").read_bytes() == first

    line = shlex.split(printed.splitlines()[-1])
    assert line[:4] == ["python", "tools/run_net.py", "--cfg", "configs/finetune_folder.yaml"]
    cfg = load_config(line[3], line[4:])
    assert (cfg.data.path_to_data_dir, cfg.data.path_prefix) == (str(out), str(small))
    line += [*shlex.split(TINY), "OUTPUT_DIR", str(tmp_path / "run"), "DEVICE", "cpu"]
    line += ["TEST.NUM_ENSEMBLE_VIEWS", "1", "TEST.NUM_SPATIAL_CROPS", "1"]
    done = subprocess.run(
        [sys.executable, *line[1:]], capture_output=True, text=True, timeout=600, env=environment()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = (tmp_path / "run" / "predictions.csv").read_text().splitlines()
    assert len(rows) == 1 + len((out / "val.csv").read_text().splitlines())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "LAYOUT"),
        (["folder"], "--out"),
        (["folder", "nowhere", "--out", "x"], "no such file or folder: nowhere"),
        (["folder", "{empty}", "--out", "{empty}/out"], "no videos in"),
        (["folder", "{empty}", "--out", "{file}"], "is a file"),
        (["ucf101", "{empty}", "--out", "{empty}/out", "--fold", "4"], "1 to 3"),
        (["kinetics", "{empty}", "--out", "{empty}/out", "--fold", "1"], "--fold"),
    ],
)
def test_wrong_use(run_tool, tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    places = {"empty": tmp_path / "empty", "file": tmp_path / "file"}
    code, _, error = run_tool(*(word.format(**places) for word in words))
    assert code == 2
    assert message in error
    assert "Traceback" not in error
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RunFailed("full")])
def test_reading_back_leaves_no_folder_behind(tmp_path, monkeypatch, error):
    prepared = gather("folder", write_sources(tmp_path / "v"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(manifest_files.tempfile, "tempdir", str(scratch))
    seen = []

    def interrupted(folder, *args, **settings):
        seen.append(folder)
        raise error

    monkeypatch.setattr(manifest_files, "read_manifest", interrupted)
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        write(prepared, tmp_path / "out")
    assert seen
    assert os.path.dirname(seen[0]) == str(scratch)
    assert not list(scratch.iterdir())
    assert not (tmp_path / "out").exists()
