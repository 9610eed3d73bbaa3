"""The audit: clips made here contain every kind of fault, and each must be found and named."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clips import picture, write_audio_only, write_clip
from conftest import REPOSITORY

from hiera_video.data.manifests.layouts import read_manifest
from hiera_video.errors import UserError
from hiera_video.preparation.audit import audit as audit_module
from hiera_video.preparation.audit import examine as examine_module
from hiera_video.preparation.audit import projection as projection_module
from hiera_video.preparation.audit.cache import AuditCache, FileState
from hiera_video.preparation.audit.examine import decode_all, examine, file_ends_digest
from hiera_video.preparation.audit.findings import PROBLEMS, REMARKS, Finding, Findings
from hiera_video.preparation.audit.jobs import FileCheck, FileJob
from hiera_video.video.find import PLAYLIST_SUFFIXES, find_videos

SHORT = ("--opts", "DATA.NUM_FRAMES", "4", "DATA.SAMPLING_RATE", "2")
"""Clips of 8 frames at 30 fps, so that small files are long enough."""


TOOL = importlib.import_module("hiera_video.commands.audit")


@pytest.fixture
def run(tmp_path, capsys):
    """Run the tool in this process: run(*words) -> (exit code, JSON, stdout)."""

    def run(*words, memory=tmp_path / "memory.sqlite"):
        target = tmp_path / "audit.json"
        code = TOOL.main([*map(str, words), "--json", str(target), "--memory", str(memory)])
        return code, json.loads(target.read_text()), capsys.readouterr().out

    return run


def reasons(report: dict, kind: str) -> dict[str, str]:
    """Return file name -> reason of the findings of one kind."""
    rows = [*report["problems"], *report["remarks"]]
    return {Path(row["file"]).name: row["reason"] for row in rows if row["kind"] == kind}


def kinds(report: dict) -> dict[str, int]:
    return {kind: count for kind, count in report["counts"].items() if count}


def noise(seed: int, frames: int = 12, size: tuple[int, int] = (64, 48)) -> list[np.ndarray]:
    """Return the pictures of a clip that differs from all others."""
    rng = np.random.default_rng(seed)
    still = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return [np.roll(still, i, axis=1) for i in range(frames)]


def clip(path: Path, seed: int, **settings) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = settings.pop("size", (64, 48))
    frames = noise(seed, settings.pop("frames", 12), size)
    return write_clip(path, frames=frames, size=size, **settings)


def cut(source: Path, path: Path, share: float) -> Path:
    """Write the first `share` of a file's bytes to `path`."""
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


# ---- one file -----------------------------------------------------------------------------------


def look(path: Path, **settings) -> FileCheck:
    return examine(FileJob(0, str(path), **settings))


def test_a_good_file_is_good(tmp_path):
    seen = look(clip(tmp_path / "a.mp4", 0))
    assert (seen.kind, seen.reason, seen.remarks) == ("", "", ())
    assert (seen.frames, seen.fps, seen.seconds) == (12, 30.0, 0.4)
    assert len(seen.frames_digest) == len(seen.ends_digest) == 16


def test_files_that_do_not_open(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "page.mp4").write_text("<html>404</html>")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\nfile:///etc/passwd\n")
    assert look(tmp_path / "empty.mp4")[:2] == ("unreadable", "is empty (0 bytes)")
    assert "web page" in look(tmp_path / "page.mp4").reason
    assert "playlist" in look(tmp_path / "list.m3u8").reason


def test_files_without_a_frame(tmp_path):
    sound = look(write_audio_only(tmp_path / "a.mp4"))
    assert sound[:2] == ("no_frames", "has no video stream (only audio)")
    (tmp_path / "folder").mkdir()
    assert look(tmp_path / "folder").kind == "no_frames"


def test_a_cut_file_does_not_match_its_header(tmp_path):
    whole = clip(tmp_path / "whole.mkv", 1, frames=90)
    seen = look(cut(whole, tmp_path / "cut.mkv", 0.5))
    assert seen.kind == "fewer_frames"
    assert seen.reason.startswith("states 3.0 s, ends after")
    moved = remux_faststart(clip(tmp_path / "whole.mp4", 1, frames=90), tmp_path / "moved.mp4")
    assert look(moved).kind == ""
    seen = look(cut(moved, tmp_path / "cut.mp4", 0.5))
    assert seen.kind == "fewer_frames"
    assert seen.reason.startswith("states 90 frames, holds ")


def remux_faststart(source: Path, path: Path) -> Path:
    """Write the same packets with the header first, as on web sites."""
    import av

    with (
        av.open(str(source)) as whole,
        av.open(str(path), "w", container_options={"movflags": "faststart"}) as moved,
    ):
        stream = whole.streams.video[0]
        twin = moved.add_stream_from_template(stream)
        for packet in whole.demux(stream):
            if packet.size:
                packet.stream = twin
                moved.mux(packet)
    return path


def test_damage_in_the_middle_is_found_only_by_decoding(tmp_path):
    path = clip(tmp_path / "a.mp4", 2, frames=60, gop=10)
    data = bytearray(path.read_bytes())
    start = data.find(b"mdat")
    middle = start + (data.find(b"moov") - start) // 2
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(data)
    seen = look(path)
    assert seen.kind == "fewer_frames"
    assert " of 60 frames decode (damage after frame " in seen.reason
    assert look(path, quick=True).kind == ""


def test_running_out_of_time_is_a_remark_and_no_problem(tmp_path, monkeypatch):
    seen = look(clip(tmp_path / "a.mp4", 3, frames=40), seconds=60.0)
    assert seen.remarks == ()
    monkeypatch.setattr(
        examine_module, "decode_all", lambda info, index, _: decode_all(info, index, 0.0)
    )
    seen = look(tmp_path / "a.mp4", seconds=60.0)
    assert (seen.kind, seen.frames_digest, len(seen.ends_digest)) == ("", b"", 16)
    assert seen.remarks == (
        (
            "unchecked",
            "0 of 40 frames decoded in 60 s without an error; the others were not checked",
        ),
    )


def test_rates_rotation_and_unusual_properties(tmp_path):
    times = [i / 30 for i in range(10)] + [0.6 + i / 3 for i in range(10)]
    seen = look(clip(tmp_path / "vfr.mp4", 4, frames=20, times=times))
    assert seen.remarks[0][0] == "odd_rate"
    assert seen.remarks[0][1].startswith("variable: frames last 0.033 to 0.3")
    assert look(clip(tmp_path / "turned.mp4", 5, rotation=90)).rotation == 90
    shutil.copy(clip(tmp_path / "a.mp4", 6), tmp_path / "a.avi")
    ((kind, text),) = look(tmp_path / "a.avi").remarks
    assert (kind, text[:21]) == ("odd_file", "its extension is .avi")


def test_milliseconds_are_no_variable_rate(tmp_path):
    times = [round(i / 30, 3) for i in range(60)]
    assert look(clip(tmp_path / "a.mkv", 7, frames=60, times=times)).remarks == ()


def test_a_folder_of_pictures(tmp_path):
    from PIL import Image

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(picture(i, (32, 32))).save(tmp_path / name / f"{i}.png")
    one, two = look(tmp_path / "one"), look(tmp_path / "two")
    assert (one.kind, one.frames) == ("", 3)
    assert one.frames_digest == two.frames_digest
    (tmp_path / "two" / "1.png").write_bytes(b"no picture")
    assert look(tmp_path / "two").kind == "unreadable"


def test_pictures_are_known_in_another_container(tmp_path):
    path = clip(tmp_path / "a.mp4", 8)
    again = remux_faststart(path, tmp_path / "a.mov")
    assert file_ends_digest(str(path)) != file_ends_digest(str(again))
    assert look(path).frames_digest == look(again).frames_digest
    assert look(path).frames_digest != look(clip(tmp_path / "b.mp4", 9)).frames_digest


# ---- a whole set --------------------------------------------------------------------------------


@pytest.fixture
def faulty(tmp_path):
    """A set with one fault of each kind: folder with train.csv, val.csv and classnames.json."""
    videos = tmp_path / "set" / "v"
    for i in range(6):
        clip(videos / f"good{i}.mp4", i)
    shutil.copy(videos / "good0.mp4", videos / "copy of 0.mp4")
    shutil.copy(videos / "good1.mp4", videos / "copy1.mp4")
    (videos / "empty.mp4").touch()
    write_audio_only(videos / "sound.mp4")
    cut(clip(tmp_path / "long.mkv", 20, frames=90), videos / "cut.mkv", 0.5)
    clip(videos / "short.mp4", 21, frames=3)
    clip(videos / "turned.mp4", 22, rotation=180)
    clip(videos / "slow.mp4", 23, fps=2)
    lines = [
        *(f"v/good{i}.mp4 {i % 2}" for i in range(4)),  # lines 1 to 4
        "v/copy of 0.mp4 1",  # 5: another label than line 1
        "v/empty.mp4 0",
        "v/sound.mp4 0",
        "v/cut.mkv 0",
        "v/gone.mp4 0",  # 9
        "v/short.mp4 0",
        "v/turned.mp4 0",
        "v/slow.mp4 0",
        "v/good4.mp4 zero",  # 13
        "v/good4.mp4 7",  # 14
        "v/good4.mp4 0",
    ]
    (tmp_path / "set" / "train.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "set" / "val.csv").write_text("v/copy1.mp4 1\nv/good5.mp4 0\n")
    names = {"zero": 0, "one": 1, "never": 2}
    (tmp_path / "set" / "classnames.json").write_text(json.dumps(names))
    return tmp_path / "set"


def test_every_fault_is_found_and_named(faulty, run):
    code, report, text = run(faulty, *SHORT)
    assert code == report["exit_code"] == 1
    assert kinds(report) == {
        "bad_line": 1,
        "label_out_of_range": 1,
        "missing": 1,
        "unreadable": 1,
        "no_frames": 1,
        "fewer_frames": 1,
        "duplicate_across": 1,
        "duplicate_within": 1,
        "too_short": 1,
        "rotated": 1,
        "odd_rate": 1,
        "unused_label": 2,
    }
    rows = {row["kind"]: row for row in report["problems"]}
    assert rows["bad_line"]["line"] == 13
    assert "'zero' is not a whole number" in rows["bad_line"]["reason"]
    assert rows["label_out_of_range"]["line"] == 14
    assert "label 7 is out of range; allowed are 0 to 2" in rows["label_out_of_range"]["reason"]
    assert (rows["missing"]["line"], rows["missing"]["reason"]) == (9, "no such file")
    assert reasons(report, "unreadable") == {"empty.mp4": "is empty (0 bytes)"}
    assert reasons(report, "no_frames") == {"sound.mp4": "has no video stream (only audio)"}
    assert "ends after" in reasons(report, "fewer_frames")["cut.mkv"]
    assert reasons(report, "too_short") == {
        "short.mp4": "3 frames at 30 fps; a clip of 4x2 needs 8"
    }
    assert reasons(report, "rotated") == {"turned.mp4": "by 180 degrees"}
    assert reasons(report, "odd_rate") == {"slow.mp4": "2 frames per second"}
    within, across = rows["duplicate_within"], rows["duplicate_across"]
    assert Path(within["file"]).name == "copy of 0.mp4"
    assert within["reason"].endswith("(in train line 1); labelled 'one' here and 'zero' there")
    assert Path(across["file"]).name == "good1.mp4", "training gives way to the held-out split"
    assert "copy1.mp4 (in val line 1)" in across["reason"]
    unused = [row["reason"] for row in report["remarks"] if row["kind"] == "unused_label"]
    assert unused == ["class 2 (never): no video"] * 2
    for row in [*report["problems"], *report["remarks"]]:
        assert row["reason"] in text, "the terminal shows what the JSON has"


def test_sums_histogram_and_projection(faulty, run):
    _, report, text = run(faulty, *SHORT)
    train, val = report["splits"]
    assert (train["split"], train["videos"], train["usable"]) == ("train", 13, 9)
    assert (val["split"], val["videos"], val["usable"]) == ("val", 2, 2)
    assert [row["name"] for row in train["classes"]] == ["zero", "one", "never"]
    assert [row["videos"] for row in train["classes"]] == [10, 3, 0]
    assert [row["usable"] for row in train["classes"]] == [6, 3, 0]
    frames = 7 * 12 + 3 + 12
    assert train["frames"] == frames
    assert train["hours"] == pytest.approx((7 * 0.4 + 0.1 + 6.0) / 3600)
    projection = report["projection"]
    assert (projection["videos"], projection["clips_timed"]) == (9, 9)
    assert projection["epoch_seconds"] == pytest.approx(
        projection["seconds_per_clip"] * 9 / projection["workers"]
    )
    assert "an epoch of 9 videos takes" in text
    assert [line.split() for line in text.splitlines() if line.startswith("0 zero")] == [
        ["0", "zero", "6", "1"]
    ]


def test_a_cleaned_set_is_clean(faulty, run, tmp_path):
    run(faulty, *SHORT, "--write", tmp_path / "cleaned")
    train = read_manifest(tmp_path / "cleaned", "train")
    names = [Path(path).name for path in train.paths]
    # Neither of two copies with contradicting labels stays, nor what is in val.
    assert names == ["good2.mp4", "good3.mp4", "short.mp4", "turned.mp4", "slow.mp4", "good4.mp4"]
    assert train.labels.tolist() == [0, 1, 0, 0, 0, 0]
    assert train.classes == ("zero", "one", "never")
    assert all(os.path.isfile(path) for path in train.paths)
    code, report, _ = run(tmp_path / "cleaned", *SHORT)
    assert code == 0
    assert not set(kinds(report)) & set(PROBLEMS)
    assert report["files"]["looked_at"] == 0, "remembered under their own names"
    assert run(tmp_path / "cleaned", *SHORT, "--strict")[0] == 1


def test_a_clean_set_is_clean(run, tmp_path):
    for i in range(4):
        clip(tmp_path / "set" / "ab"[i % 2] / f"{i}.mp4", i)
    code, report, text = run(tmp_path / "set", *SHORT)
    assert (code, kinds(report)) == (0, {})
    assert {row["split"]: row["videos"] for row in report["splits"]} == {"train": 2, "val": 2}
    assert text.splitlines()[-2] == "all clean"


def test_a_config_says_how_the_data_is_read(run, tmp_path):
    for i in range(3):
        clip(tmp_path / "set" / f"{i}.mp4", i)
    (tmp_path / "set" / "train.csv").write_text("0.mp4 0\n1.mp4 1\n2.mp4 5\n")
    (tmp_path / "a.yaml").write_text(
        f"MODEL: {{NUM_CLASSES: 2}}\n"
        f"DATA: {{PATH_TO_DATA_DIR: '{tmp_path}/set', NUM_FRAMES: 32, TARGET_FPS: 30.0}}\n"
    )
    code, report, _ = run("--cfg", tmp_path / "a.yaml", "DATA.SAMPLING_RATE", "1")
    assert code == 1
    assert kinds(report) == {"label_out_of_range": 1, "too_short": 2}
    assert report["problems"][0]["line"] == 3
    assert report["clip"]["num_frames"] == 32


def test_lists_are_compared_with_each_other(run, tmp_path):
    clip(tmp_path / "a.mp4", 0)
    clip(tmp_path / "b.mp4", 1)
    (tmp_path / "val.csv").write_text("a.mp4 0\n")
    (tmp_path / "train.csv").write_text("a.mp4 0\nb.mp4 1\nb.mp4 1\n")
    code, report, _ = run(tmp_path / "val.csv", tmp_path / "train.csv", *SHORT)
    assert code == 1
    found = [(row["kind"], row["line"], row["reason"]) for row in report["problems"]]
    assert found == [
        ("duplicate_across", 1, "the same file as in val line 1"),
        ("duplicate_within", 3, "the same file as in train line 2"),
    ]


def test_a_missing_list_does_not_stop_the_audit_of_the_others(run, tmp_path):
    clip(tmp_path / "a.mp4", 1)
    (tmp_path / "train.csv").write_text("a.mp4 0\n")
    code, report, said = run(tmp_path / "train.csv", tmp_path / "gone.csv", "nowhere/", *SHORT)
    assert code == 1
    assert kinds(report) == {"missing_list": 2}
    assert reasons(report, "missing_list") == dict.fromkeys(
        ("gone.csv", "nowhere"), "no such file or folder"
    )
    assert "2 lists and folders that do not exist" in said
    assert "1 videos, 0.00 hours: 1 examined, 0 from the cache" in said
    folder = tmp_path / "heap"
    clip(folder / "b.mp4", 2)
    code, report, said = run("nowhere/", folder, *SHORT)  # the folder, as if it were named alone
    assert (code, kinds(report)) == (1, {"missing_list": 1})
    assert "every video below it" in said


def test_a_list_of_which_nothing_parses(run, tmp_path):
    (tmp_path / "train.csv").write_text("a.mp4,cat,1\nb.mp4,dog,2\n")
    code, report, _ = run(tmp_path / "train.csv")
    assert code == 1
    assert [row["line"] for row in report["problems"]] == [1, 2]


def test_lists_are_read_as_training_reads_them(run, tmp_path):
    """Names, quotes, columns; in a mixture of ids and names, the rarer kind is reported."""
    clip(tmp_path / "a, b.mp4", 0)
    clip(tmp_path / "c.mp4", 1)
    (tmp_path / "train.csv").write_text('video;class\n"a, b.mp4";run\nc.mp4;walk\nc.mp4;3\n')
    _, report, text = run(tmp_path / "train.csv", *SHORT)
    assert [(row["kind"], row["line"]) for row in report["problems"]] == [("bad_line", 4)]
    assert "label '3' is a whole number" in report["problems"][0]["reason"]
    assert [row["name"] for row in report["splits"][0]["classes"]] == ["run", "walk"]
    assert f"note: train: 2 classes: run, walk; names in column 'class' of {tmp_path}" in text


def test_one_list_of_all_splits_is_audited_split_by_split(run, tmp_path):
    for i in range(3):
        clip(tmp_path / f"{i}.mp4", i)
    rows = "0.mp4,run,train\n1.mp4,walk,train\n2.mp4,run,val\n"
    (tmp_path / "all.csv").write_text("path,label,split\n" + rows)
    _, report, _ = run(tmp_path / "all.csv", *SHORT)
    assert {row["split"]: row["videos"] for row in report["splits"]} == {"train": 2, "val": 1}


def test_a_list_that_cannot_be_read_is_not_passed_over(run, tmp_path):
    clip(tmp_path / "a.mp4", 0)
    (tmp_path / "train.csv").write_text("a.mp4 0\n")
    (tmp_path / "val.csv").write_text("a.mp4 0\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"val.csv is UTF-16; save it as UTF-8"):
        run(tmp_path, *SHORT)


# ---- folders ------------------------------------------------------------------------------------


def test_splits_are_those_of_training(run, tmp_path):
    for i in range(6):
        split = ("Train", "Validation")[i % 2]
        clip(tmp_path / "set" / split / "abc"[i // 2] / f"{i}.mp4", i)
    _, report, text = run(tmp_path / "set", *SHORT)
    assert {row["split"]: row["num_classes"] for row in report["splits"]} == {"train": 3, "val": 3}
    assert "note: train: 3 classes: a, b, c; from folder names below" in text
    (tmp_path / "set" / "Train").rename(tmp_path / "set" / "training_set")
    with pytest.raises(UserError, match=r"rename training_set/ -> train/"):
        run(tmp_path / "set", *SHORT)
    shutil.rmtree(tmp_path / "set" / "training_set")
    _, report, _ = run(tmp_path / "set", *SHORT)
    assert {row["split"]: row["videos"] for row in report["splits"]} == {"val": 3}


def test_splits_inside_each_class_are_splits(run, tmp_path):
    for i in range(4):
        clip(tmp_path / "set" / "ab"[i % 2] / ("train", "val")[i // 2] / f"{i}.mp4", i)
    _, report, _ = run(tmp_path / "set", *SHORT)
    assert {row["split"]: row["num_classes"] for row in report["splits"]} == {"train": 2, "val": 2}


def test_folders_with_two_readings_are_audited_as_files_unless_told(run, tmp_path):
    for i in range(4):
        clip(tmp_path / "set" / ("ann", "bob")[i % 2] / ("run", "walk")[i // 2] / f"{i}.mp4", i)
    _, report, text = run(tmp_path / "set", *SHORT)
    assert [row["split"] for row in report["splits"]] == ["files"]
    assert "can be read in two ways" in text
    _, report, _ = run(tmp_path / "set", *SHORT, "DATA.FORMAT", "group_folders")
    assert {row["name"] for row in report["splits"][0]["classes"]} == {"run", "walk"}


def test_videos_without_a_label_among_labelled_ones(run, tmp_path):
    clip(tmp_path / "a.mp4", 0)
    clip(tmp_path / "b.mp4", 1)
    (tmp_path / "train.csv").write_text("a.mp4 0\nb.mp4\n")
    _, report, _ = run(tmp_path / "train.csv", *SHORT)
    assert [(row["kind"], row["line"]) for row in report["problems"]] == [("bad_line", 2)]
    (tmp_path / "train.csv").write_text("a.mp4\nb.mp4\n")
    assert run(tmp_path / "train.csv", *SHORT)[0] == 0


def test_a_folder_without_a_layout_and_files_named_like_videos(run, tmp_path):
    clip(tmp_path / "set" / "deep" / "er" / "a.mp4", 0)
    (tmp_path / "set" / "deep" / "list.m3u8").write_text("#EXTM3U\n/etc/passwd\n")
    (tmp_path / "set" / "deep" / "manifest.csv").write_text("file,what\na,b\n")
    os.symlink("nowhere.mp4", tmp_path / "set" / "link.mp4")
    code, report, text = run(tmp_path / "set", *SHORT)
    assert code == 1
    assert kinds(report) == {"missing": 1, "unreadable": 1}
    assert reasons(report, "missing") == {"link.mp4": "a link to nowhere.mp4, which does not exist"}
    assert "playlist" in reasons(report, "unreadable")["list.m3u8"]
    assert "no known layout" in text


def test_playlists_are_found_by_one_list_of_endings(run, tmp_path):
    """The demo and the audit refuse the same files by name."""
    clip(tmp_path / "set" / "deep" / "er" / "a.mp4", 0)
    for ending in PLAYLIST_SUFFIXES:
        (tmp_path / "set" / f"list{ending}").write_text("#EXTM3U\n/etc/passwd\n")
    playlists = {f"list{ending}" for ending in PLAYLIST_SUFFIXES}
    assert {"list.asx", "list.xspf", "list.ismc", "list.m3u8"} <= playlists
    found = {Path(path).name for path in find_videos([tmp_path / "set"])}
    assert found == {*playlists, "a.mp4"}
    _, report, _ = run(tmp_path / "set", *SHORT)
    assert set(reasons(report, "unreadable")) == playlists


def test_what_lies_beside_the_classes_is_looked_at(run, tmp_path):
    for i in range(4):
        clip(tmp_path / "set" / "train" / "ab"[i % 2] / f"{i}.mp4", i)
    (tmp_path / "set" / "train" / "a" / "list.m3u8").write_text("#EXTM3U\n")
    (tmp_path / "set" / "train" / "stray.mp4").touch()
    _, report, _ = run(tmp_path / "set", *SHORT)
    assert set(reasons(report, "unreadable")) == {"list.m3u8", "stray.mp4"}
    assert {row["split"] for row in report["problems"]} == {"unused"}


def test_names_may_be_anything(run, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    names = [b"\xff\xfe.mp4", b"a\nb.mp4", b"-x, 3.mp4", "ünï 视频.mp4".encode()]
    for seed, name in enumerate(names):
        clip(tmp_path / "a.mp4", seed).rename(
            os.path.join(os.fsencode(folder), name).decode(errors="surrogateescape")
        )
    (folder / "\x1b[31m.mp4").touch()
    code, report, text = run(folder, *SHORT, "--write", tmp_path / "out")
    assert code == 1
    assert report["splits"][0]["usable"] == 4
    assert "\x1b" not in text
    assert "\\x1b[31m.mp4: is empty" in text
    assert "1 for a line break in their name" in text
    again = read_manifest(tmp_path / "out" / "files.csv", need_labels=False)
    assert sorted(os.fsencode(Path(p).name) for p in again.paths) == sorted(
        name for name in names if b"\n" not in name
    )


def test_the_hostile_files_are_all_named(shared_data, run):
    code, report, _ = run(shared_data / "hostile")
    assert code == 1
    rows = [*report["problems"], *report["remarks"]]
    named = {Path(row["file"]).name for row in rows if row["kind"] != "too_short"}
    there = {p.name for p in (shared_data / "hostile").iterdir()} - {"manifest.csv"}
    # This one holds 50 frames in good order: the jump that its list speaks of is not in its bytes.
    assert there - named == {"timestamp_jump.ts"}
    assert reasons(report, "fewer_frames").keys() == {
        "real_decord_corrupted.mp4",
        "timescale_0.mp4",
        "truncated_50.webm",
        "truncated_70.mkv",
        "truncated_faststart_30.mp4",
    }


# ---- the cache -----------------------------------------------------------------------------------


def test_a_second_audit_opens_nothing(faulty, run, monkeypatch):
    first = run(faulty, *SHORT)[1]
    assert first["files"] == {"looked_at": 14, "remembered": 0}

    def no_pool(*_, **__):
        raise AssertionError("a file was to be opened")

    for module in (audit_module, projection_module):
        monkeypatch.setattr(module, "GuardedPool", no_pool)
    second = run(faulty, *SHORT)[1]
    assert second["files"] == {"looked_at": 0, "remembered": 14}
    for key in ("problems", "remarks", "splits", "projection"):
        assert second[key] == first[key]


def test_a_changed_file_is_looked_at_again(run, tmp_path):
    clip(tmp_path / "set" / "x" / "a.mp4", 0)
    clip(tmp_path / "set" / "x" / "b.mp4", 1)
    run(tmp_path / "set", *SHORT)
    (tmp_path / "set" / "x" / "b.mp4").write_bytes(b"")
    code, report, _ = run(tmp_path / "set", *SHORT)
    assert code == 1
    assert report["files"] == {"looked_at": 1, "remembered": 1}
    assert run(tmp_path / "set", *SHORT, "--afresh")[1]["files"]["looked_at"] == 2


def test_a_quick_look_is_no_answer_to_a_full_one(run, tmp_path):
    clip(tmp_path / "set" / "x" / "a.mp4", 0)
    shutil.copy(tmp_path / "set" / "x" / "a.mp4", tmp_path / "set" / "x" / "b.mp4")
    _, report, _ = run(tmp_path / "set", *SHORT, "--quick")
    assert report["files"]["looked_at"] == 2
    assert kinds(report) == {"duplicate_across": 1}
    assert run(tmp_path / "set", *SHORT)[1]["files"]["looked_at"] == 2
    assert run(tmp_path / "set", *SHORT, "--quick")[1]["files"]["looked_at"] == 0


def test_a_broken_cache_is_set_aside(run, tmp_path, capsys):
    clip(tmp_path / "set" / "x" / "a.mp4", 0)
    (tmp_path / "memory.sqlite").write_bytes(b"no database at all" * 100)
    assert run(tmp_path / "set", *SHORT)[0] == 0
    assert (tmp_path / "memory.sqlite.unreadable").exists()
    assert run(tmp_path / "set", *SHORT)[1]["files"]["remembered"] == 1


def test_a_broken_cache_that_cannot_be_set_aside_is_not_used(run, tmp_path):
    clip(tmp_path / "set" / "x" / "a.mp4", 0)
    (tmp_path / "memory.sqlite").write_bytes(b"no database at all" * 100)
    (tmp_path / "memory.sqlite.unreadable").mkdir()
    code, report, _ = run(tmp_path / "set", *SHORT)
    assert (code, report["files"]["looked_at"]) == (0, 1)
    assert (tmp_path / "memory.sqlite").read_bytes() == b"no database at all" * 100


def test_an_audit_goes_on_without_its_cache(run, tmp_path):
    clip(tmp_path / "set" / "x" / "a.mp4", 0)
    (tmp_path / "file").touch()
    assert run(tmp_path / "set", *SHORT, memory=tmp_path / "file" / "memory.sqlite")[0] == 0
    assert run(tmp_path / "set", *SHORT, memory="none")[0] == 0


def test_the_cache_returns_what_was_stored(tmp_path):
    name = os.fsdecode(b"/x/\xff.mp4")
    seen = FileCheck("", "", 12, 29.97, 0.4, 90, (("odd_rate", "slow"),), b"a" * 16, b"b" * 16)
    bad = FileCheck("unreadable", os.fsdecode(b"why \xff"))
    one, two = FileState(name, 1, 2), FileState("/x/b.mp4", 3, 4)
    with AuditCache(tmp_path / "m", pytest.fail) as cache:
        cache.store(one, seen, quick=True)
        cache.store(two, bad, quick=False)
    with AuditCache(tmp_path / "m", pytest.fail) as cache:
        assert cache.lookup([one, two], quick=True) == {name: seen, "/x/b.mp4": bad}
        assert cache.lookup([one, two], quick=False) == {"/x/b.mp4": bad}
        assert cache.lookup([one._replace(mtime=3), two._replace(size=4)], quick=True) == {}


EARLIER_CACHE = """
create table files (
    path blob primary key, size integer, mtime integer, quick integer, made_by text,
    kind text, reason blob, frames integer, fps real, seconds real, rotation integer,
    remarks text, sample blob, pictures blob
) without rowid;
create table clips (
    path blob, size integer, mtime integer, clip text, seconds real, primary key (path, clip)
) without rowid;
pragma user_version = 1;
"""
"""The tables as the first version made them."""


def test_the_cache_of_an_earlier_version_is_read(tmp_path):
    check = FileCheck("", "", 12, 30.0, 0.4, 90, (("odd_rate", "slow"),), b"a" * 16, b"b" * 16)
    made_by = f"1/av-{importlib.metadata.version('av')}"
    row = (b"/x/a.mp4", 1, 2, 0, made_by, "", b"", 12, 30.0, 0.4, 90, '[["odd_rate", "slow"]]')
    with contextlib.closing(sqlite3.connect(tmp_path / "m")) as database, database:
        database.executescript(EARLIER_CACHE)
        marks = ",".join("?" * 14)
        database.execute(f"insert into files values ({marks})", (*row, b"a" * 16, b"b" * 16))
        database.execute("insert into clips values (?, 1, 2, 'clip', 0.5)", (b"/x/a.mp4",))
    file = FileState("/x/a.mp4", 1, 2)
    with AuditCache(tmp_path / "m", pytest.fail) as cache:
        assert cache.lookup([file], quick=False) == {"/x/a.mp4": check}
        assert cache.clip_seconds(file, "clip") == 0.5


def test_a_cache_of_another_format_is_set_aside(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "m")) as database:
        database.execute("pragma user_version = 99")
    warnings = []
    with AuditCache(tmp_path / "m", warnings.append) as cache:
        cache.store(FileState("/x/a.mp4", 1, 2), FileCheck(frames=3), quick=False)
    assert (tmp_path / "m.unreadable").exists()
    (warning,) = warnings
    assert "has format 99, this version reads 1; it is renamed to m.unreadable" in warning


def test_findings_of_a_split_can_be_discarded():
    findings = Findings()
    for split in ("train", "test"):
        findings.add(Finding("missing", split, 1, "a", "gone"))
    findings.discard_split("test")
    assert findings.count("missing") == findings.problems == 1
    assert [found.split for found in findings.of("missing")] == ["train"]
    assert not set(PROBLEMS) & set(REMARKS)


# ---- the command --------------------------------------------------------------------------------


def command(*words) -> list[str]:
    return [sys.executable, str(REPOSITORY / "tools" / "audit_data.py"), *map(str, words)]


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no such file or folder: nowhere"),
        ([], "name what to audit"),
        (["a.mp4"], "is a video; name a list of videos or a folder"),
        (["set", "--json", "none/x.json"], "there is no folder"),
        (["set", "--json", "set"], "is a folder; name a file"),
        (["set", "--write", "a.mp4"], "is a file; name a folder"),
        (["set/train.csv", "--write", "set"], "would replace the lists that are read"),
        (["set", "--opts", "DATA.NUM_FRAME", "3"], "unknown config key"),
        (["empty"], "no videos in"),
    ],
)
def test_mistakes_of_the_user_are_named(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.mp4").touch()
    (tmp_path / "set" / "train.csv").write_text("a.mp4 0\n")
    with pytest.raises(UserError, match=message):
        TOOL.main([*words, "--memory", "none"])


def test_the_command_says_it_with_its_exit_code(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "bad.mp4").touch()

    def outcome(*words):
        done = subprocess.run(
            command(*words),
            cwd=tmp_path,
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            timeout=300,
        )
        return done.returncode, done.stdout, done.stderr

    code, out, _ = outcome("set", "--json", "audit.json")
    assert code == 1
    assert "set/bad.mp4: is empty (0 bytes)" in out
    assert json.loads((tmp_path / "audit.json").read_text())["exit_code"] == 1
    assert (tmp_path / "cache" / "hiera_video" / "audit.sqlite").is_file()
    code, out, errors = outcome("nowhere")
    assert (code, out) == (2, "")
    assert errors.startswith("error: no such file or folder: nowhere")


def test_ctrl_c_keeps_the_results_so_far(run, tmp_path, monkeypatch, capsys):
    for i in range(4):
        clip(tmp_path / "set" / "x" / f"{i}.mp4", i)
    report = TOOL.Progress.report

    def interrupted(shown, done, total):
        report(shown, done, total)
        if (shown.what, done) == ("examined", 2):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TOOL.Progress, "report", interrupted)
    with pytest.raises(KeyboardInterrupt):  # 130, by hiera_video.cli
        run(tmp_path / "set", *SHORT)
    assert "the same command goes on from there" in capsys.readouterr().err
    monkeypatch.setattr(TOOL.Progress, "report", report)
    assert run(tmp_path / "set", *SHORT)[1]["files"] == {"looked_at": 2, "remembered": 2}


# ---- a million videos ---------------------------------------------------------------------------


MEASURED = """
import json, os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(child.pid, 0)
child.returncode = os.waitstatus_to_exitcode(status)
print(json.dumps([child.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""
"""Runs a command and prints its exit code, processor seconds and peak memory, KiB. A process starts
with the peak of the one that starts it: with this small one's, not with that of the tests."""


@pytest.mark.parametrize("count", [2_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_long_lists_from_the_cache(tmp_path, count):
    """Stat calls only, in bounded memory, and what is wrong among them is found.

    The videos are links to forty files, remembered as if each were a video of its own.
    """
    gone, twin, odd = count // 50 + 11, count // 20 + 21, 7
    originals = [clip(tmp_path / f"{i}.mp4", i, frames=64 + i) for i in range(40)]
    file = tmp_path / "memory.sqlite"
    with open(tmp_path / "train.csv", "w") as lines, AuditCache(file, pytest.fail) as cache:
        for i in range(count):
            folder = tmp_path / f"{i // 2000:03d}"
            if i % 2000 == 0:
                folder.mkdir()
            path = folder / f"a_name_as_long_as_they_are_{i:08d}.mp4"
            lines.write(f"{folder.name}/{path.name} {i % 400}\n")
            if i % gone == odd:
                continue
            os.link(originals[i % 40], path)
            content = 1 if i % twin == odd else i + 2
            seen = FileCheck(
                frames=64 + i % 40,
                fps=30.0,
                seconds=(64 + i % 40) / 30,
                ends_digest=content.to_bytes(16, "little"),
                frames_digest=content.to_bytes(16, "little"),
            )
            status = os.stat(path)
            identity = FileState(str(path), status.st_size, status.st_mtime_ns)
            cache.store(identity, seen, quick=False)
    words = [tmp_path / "train.csv", "--memory", file, "--json", tmp_path / "audit.json"]
    for _ in range(2):  # the first times a few clips for its projection
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, *command(*words)],
            capture_output=True,
            text=True,
            check=True,
        )
        code, seconds, kibibytes = json.loads(done.stdout)
        assert code == 1
    report = json.loads((tmp_path / "audit.json").read_text())
    missing = len(range(odd, count, gone))
    # A file that is missing is the twin of nothing.
    twins = [i for i in range(odd, count, twin) if i % gone != odd]
    assert kinds(report) == {"missing": missing, "duplicate_within": len(twins) - 1}
    assert report["files"] == {"looked_at": 0, "remembered": count - missing}
    print(f"{count:,} lines again: {seconds:.1f} s of processor time, {kibibytes / 1024:.0f} MiB")
    assert kibibytes < 1 << 20


def test_lists_keep_names_that_are_not_utf8(run, tmp_path):
    """Training reads them back byte for byte; JSON writes them as Python does."""
    name = os.fsdecode(b"caf\xe9 =1+1.mp4")
    for number, file in enumerate((f"a/{name}", "a/-x.mp4", "=b/ü.mp4", "=b/y.mp4")):
        clip(tmp_path / "set" / file, number)
    clip(tmp_path / "set" / "=b" / os.fsdecode(b"bad\xff.mp4"), 9).write_bytes(b"")
    code, report, _ = run(tmp_path / "set", *SHORT, "--write", tmp_path / "clean")
    assert code == 1
    assert set(reasons(report, "unreadable")) == {os.fsdecode(b"bad\xff.mp4")}
    lists = [path for path in (tmp_path / "clean").iterdir() if path.suffix == ".csv"]
    assert not any(path.read_bytes().startswith(b"\xef\xbb\xbf") for path in lists)
    found = set()
    for path in lists:
        manifest = read_manifest(path.parent, path.stem)
        found |= {manifest.paths[i] for i in range(len(manifest))}
    kept = [path for path in (tmp_path / "set").rglob("*.mp4") if path.stat().st_size]
    assert found == {str(path) for path in kept}
