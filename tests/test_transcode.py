"""Small copies of videos: the same frames at the same times, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest
from clips import cut_clip, is_upright, read_indices, write_audio_only, write_clip
from tiny_runs import environment

from hiera_video import files
from hiera_video.errors import DataError, DecodeError, RunFailed, UserError
from hiera_video.preparation import transcode as module
from hiera_video.preparation.transcode import (
    TranscodeJob,
    TranscodeOptions,
    copy_names,
    transcode,
    transcode_file,
)
from hiera_video.video.decode import probe, read_frames
from hiera_video.video.guarded_pool import WorkerFailure


def copy(source, folder, **options):
    """The copy of one file, made in this process."""
    target = folder / "copies" / "copy.mp4"
    transcode_file(
        TranscodeJob(
            path=source.name,
            name="copy.mp4",
            source=str(source),
            target=str(target),
            unfinished=str(folder / "unfinished.mp4"),
            options=TranscodeOptions(**options),
        )
    )
    return target


# ---- one file -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, (96, 64)),
        ({"rotation": 90}, (96, 64)),
        ({"rotation": 180}, (64, 96)),
        ({"rotation": 270, "audio": True}, (64, 96)),
        ({"times": [0, 0.1, 0.5, 0.55, 2, *(2.1 + i for i in range(15))]}, (96, 64)),
        ({"b_frames": 3, "start": 5.0, "fps": 50}, (96, 64)),
    ],
    ids=["plain", "quarter", "half", "sound", "variable rate", "late"],
)
def test_a_copy_has_every_frame_upright_at_its_time(tmp_path, settings, size):
    source = write_clip(tmp_path / "a.mp4", frames=20, size=(2 * size[0], 2 * size[1]), **settings)
    before = probe(source)
    target = copy(source, tmp_path, short_side=64)
    after = probe(target)
    assert (after.width, after.height, after.rotation) == (*size, 0)
    assert after.codec == "h264"
    np.testing.assert_allclose(after.times, before.times, atol=2e-5)
    assert after.fps == pytest.approx(before.fps, rel=1e-3)
    frames = read_frames(target, range(20))
    assert read_indices(frames) == list(range(20))
    assert is_upright(frames[7])
    with av.open(str(target)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
    assert target.stat().st_mtime_ns == source.stat().st_mtime_ns
    assert not (tmp_path / "unfinished.mp4").exists()


def test_frames_that_an_edit_list_hides_are_not_copied(tmp_path):
    whole = write_clip(tmp_path / "whole.mp4", frames=40, fps=10, gop=10)
    cut = cut_clip(whole, tmp_path / "cut.mp4", seconds=1.5)
    shown = read_indices(read_frames(cut, range(probe(cut).num_frames)))
    assert shown[0] == 15
    assert read_indices(read_frames(copy(cut, tmp_path), range(len(shown)))) == shown


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("full.mp4", {"pix_fmt": "yuvj420p"}),
        ("limited.mp4", {"pix_fmt": "yuv420p"}),
        ("sharp.mkv", {"pix_fmt": "yuv444p"}),
        ("tagged.mp4", {"options": {"colorspace": "bt709", "color_range": "tv"}}),
        ("flat.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
    ],
)
def test_colours_stay(tmp_path, name, settings):
    source = write_clip(tmp_path / name, frames=4, fps=10, size=(128, 96), **settings)
    target = copy(source, tmp_path, crf=12)
    was, now = (read_frames(path, range(4)).float() for path in (source, target))
    corners = was.unflatten(2, (4, 24)).unflatten(4, (4, 32)).mean(dim=(3, 5))
    others = now.unflatten(2, (4, 24)).unflatten(4, (4, 32)).mean(dim=(3, 5))
    assert (corners - others).abs().max() < 4


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((640, 360), 320, (568, 320)),
        ((360, 640), 320, (320, 568)),
        ((170, 128), 320, (170, 128)),
        ((427, 241), 320, (426, 240)),
        ((4000, 33), 32, (3878, 32)),
        ((1, 1), 320, (2, 2)),
    ],
)
def test_the_short_side_is_reduced_never_enlarged(size, short_side, expected):
    assert module._reduced_size(size, short_side) == expected


def test_what_cannot_be_decoded_to_its_end_has_no_copy(tmp_path):
    whole = write_clip(tmp_path / "a.mkv", frames=40, gop=5)
    data = bytearray(whole.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = os.urandom(400)
    (tmp_path / "damaged.mkv").write_bytes(data)
    write_audio_only(tmp_path / "sound.mp4")
    for name, reason in (("damaged.mkv", "damaged"), ("sound.mp4", "no video stream")):
        with pytest.raises(DecodeError, match=reason):
            copy(tmp_path / name, tmp_path)
    assert not (tmp_path / "copies" / "copy.mp4").exists()
    assert not (tmp_path / "unfinished.mp4").exists()


def test_a_full_disk_is_no_bad_video(tmp_path):
    """A limit on the size of files stands in for the full disk."""
    write_clip(tmp_path / "a.mp4", frames=60, size=(320, 240))
    code = (
        "import resource, signal\n"
        "from pathlib import Path\n"
        "from hiera_video.errors import RunFailed\n"
        "from test_transcode import copy\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "try:\n"
        "    copy(folder / 'a.mp4', folder, crf=1)\n"
        "except RunFailed as error:\n"
        "    print(error)\n"
    )
    env = environment()
    env["PYTHONPATH"] += os.pathsep + os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=env
    )
    target = tmp_path / "copies" / "copy.mp4"
    said = f"cannot write {target}: File too large"
    assert done.stdout.startswith(said), done.stdout + done.stderr
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.mp4"]


# ---- many files ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("originals")
    for name in ("a/1.mkv", "a/2.avi", "b/1 ü.mp4"):
        (root / name).parent.mkdir(exist_ok=True)
        write_clip(root / name, frames=12, size=(96, 64))
    (root / "b" / "text.mp4").write_text("not a video")
    return root


NAMES = ("a/1.mkv", "a/2.avi", "b/1 ü.mp4", "b/text.mp4")


def bytes_below(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*.mp4"))
        if path.is_file()
    }


def test_a_folder_of_copies_grows_and_is_not_made_twice(originals, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(originals, root)
    folder = tmp_path / "small"
    seen = []

    def call():
        seen.clear()
        return transcode(
            NAMES,
            root,
            folder,
            TranscodeOptions(short_side=32, workers=2),
            progress=lambda *numbers: seen.append(numbers),
        )

    first = call()
    assert first.made == {"a/1.mkv": "a/1.mp4", "a/2.avi": "a/2.mp4", "b/1 ü.mp4": "b/1 ü.mp4"}
    assert first.failed == {"b/text.mp4": "is a text file, not a video"}
    assert first.kept == 0
    assert seen[0] == (0, 0, 4)
    assert seen[-1] == (4, 1, 4)
    assert probe(folder / "a/2.mp4").height == 32
    made = bytes_below(folder)
    assert sorted(made) == sorted(first.made.values())

    # One goes missing, one is of another day, one is mended; what a killed call left goes.
    (folder / "a/1.mp4").unlink()
    write_clip(root / "a/2.avi", frames=5, size=(96, 64))
    os.utime(root / "a/2.avi", (1e9, 1e9))
    shutil.copyfile(root / "b/1 ü.mp4", root / "b/text.mp4")
    (folder / ".unfinished").mkdir()
    (folder / ".unfinished" / "99-0.mp4").write_bytes(b"half")
    second = call()
    assert (second.kept, second.failed) == (1, {})
    assert seen[0] == (1, 0, 4)
    assert probe(folder / "a/2.mp4").num_frames == 5
    again = bytes_below(folder)
    assert again["a/1.mp4"] == made["a/1.mp4"]  # the same bytes every time
    assert sorted(again) == ["a/1.mp4", "a/2.mp4", "b/1 ü.mp4", "b/text.mp4"]
    assert call().kept == 4


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(tmp_path):
    """SIGKILL while files are made: finished copies are whole, and the next call makes the rest."""
    root, folder = tmp_path / "root", tmp_path / "small"
    root.mkdir()
    names = [f"{i}.mp4" for i in range(10)]
    first = write_clip(root / names[0], frames=150, size=(320, 240))
    for name in names[1:]:
        shutil.copyfile(first, root / name)
    code = (
        "from hiera_video.preparation.transcode import TranscodeOptions, transcode\n"
        "if __name__ == '__main__':\n"
        f"    options = TranscodeOptions(workers=1)\n"
        f"    transcode({names!r}, {str(root)!r}, {str(folder)!r}, options)\n"
    )
    script = tmp_path / "make.py"
    script.write_text(code)
    for enough in (1, 3):
        process = subprocess.Popen([sys.executable, str(script)], env=environment())
        try:
            deadline = time.monotonic() + 300
            while len(bytes_below_top(folder)) < enough and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        for path in bytes_below_top(folder):
            assert probe(path).num_frames == 150
    result = transcode(names, root, folder, TranscodeOptions(workers=1))
    assert len(result.made) == 10
    assert result.kept >= 3
    assert len({path.read_bytes() for path in bytes_below_top(folder)}) == 1
    assert not (folder / ".unfinished").exists()


def bytes_below_top(folder):
    return sorted(folder.glob("*.mp4"))


class StubPool:
    """A pool whose second file ends with `ends_with`."""

    ends_with: BaseException | WorkerFailure

    def __init__(self, *args, **kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, jobs):
        yield jobs[0], None
        if isinstance(self.ends_with, WorkerFailure):
            yield jobs[1], self.ends_with
        else:
            raise self.ends_with


def test_a_full_disk_ends_the_work_and_says_what_is_left(originals, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "GuardedPool", StubPool)
    StubPool.ends_with = RunFailed("cannot write /small/a/2.mp4: No space left on device")
    with pytest.raises(RunFailed, match=r"2.mp4: No space left.*1 of 2 .*the same command again"):
        transcode(NAMES[:2], root=originals, folder=tmp_path / "small")
    StubPool.ends_with = WorkerFailure("crashed (SIGSEGV)")
    result = transcode(NAMES[:2], root=originals, folder=tmp_path / "small")
    assert result.failed == {"a/2.avi": "crashed (SIGSEGV)"}


def test_two_at_once_do_not_mix(originals, tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    with (
        files.hold(folder / ".lock"),
        pytest.raises(RunFailed, match="another process is filling"),
    ):
        transcode(NAMES, root=originals, folder=folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"short_side": 31}, "--short-side 31 must be an even"),
        ({"short_side": 2}, "--short-side 2 must be"),
        ({"crf": 52}, "--crf 52"),
        ({"workers": 0}, "--workers 0"),
        ({"time_limit": 0.0}, "--time-limit 0"),
        ({"folder": "root/small"}, "inside the videos' folder"),
        ({"folder": "root"}, "inside the videos' folder"),
        ({"folder": "a file"}, "is a file"),
        ({"folder": "mine"}, "holds files, and no transcode.json"),
        ({"folder": "other"}, "made with short_side 256, not short_side 320"),
        ({"folder": "broken"}, "cannot be read"),
    ],
)
def test_folders_of_the_user_are_not_touched(tmp_path, settings, message):
    (tmp_path / "root").mkdir()
    (tmp_path / "a file").write_text("")
    for name, file, content in (
        ("mine", "thesis.mp4", ""),
        ("other", "transcode.json", json.dumps({"short_side": 256, "crf": 23, "recipe": 1})),
        ("broken", "transcode.json", "{"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(content)
    before = sorted(tmp_path.rglob("*"))
    folder = tmp_path / settings.pop("folder", "new")
    with pytest.raises(UserError, match=message):
        transcode(["a.mp4"], tmp_path / "root", folder, TranscodeOptions(**settings))
    assert sorted(tmp_path.rglob("*")) == before


def test_no_two_videos_share_a_copy():
    names = ["x.avi", "x.mp4", "x.MP4", "y.mkv", "y.avi", "y.avi.mp4", "y.avi"]
    copies = copy_names(names)
    assert copies == {
        "x.avi": "x.avi.mp4",
        "x.mp4": "x.mp4",
        "x.MP4": "x.MP4.mp4",
        "y.mkv": "y.mkv.mp4",
        "y.avi": "y.mp4",
        "y.avi.mp4": "y.avi.mp4",
    }
    assert copy_names(names[::-1]) == copies
    for path in ("/abs.mp4", "../up.mp4", "a/../../up.mp4"):
        with pytest.raises(DataError, match="not below"):
            copy_names([path])
