"""A video read in another process gives the same crops, and its failures are errors like others."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clips import write_clip

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.views import (
    load_test_views,
    read_test_views,
    read_view_pixels,
    views_of,
)
from hiera_video.errors import DecodeError, UserError
from hiera_video.video import guarded_video
from hiera_video.video.crops import spatial_crops
from hiera_video.video.decode import FrameIndexError, VideoReader
from hiera_video.video.guarded_pool import GuardedPool, WorkerFailure
from hiera_video.video.guarded_video import GuardedVideo, ViewRequest, read_ahead

SPEC = ClipSpec(num_frames=4, sampling_rate=2, crop_size=32)


def serve_or_worse(request):
    """`serve`, but for files that are named after what they do to a decoder."""
    name = os.path.basename(request[1][0])
    if name.startswith("crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("hang"):
        time.sleep(1000)
    if name.startswith("bloat"):
        bytearray(16 << 30)
    return guarded_video.serve(request)


@pytest.fixture(scope="module")
def pool():
    with GuardedPool(serve_or_worse, time_limit=10) as pool:
        yield pool


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return str(write_clip(tmp_path_factory.mktemp("guarded") / "clip.mp4", frames=40))


def test_crops_and_views_are_those_read_here(pool, clip):
    with VideoReader(clip) as here, GuardedVideo(clip, pool) as there:
        assert there.info.num_frames == here.info.num_frames == 40
        assert there.info.times.tolist() == here.info.times.tolist()
        for indices in ([0, 7, 39], [3]):
            expected = spatial_crops(here.read(indices), 32, 3)
            for mine, theirs in zip(there.read_crops(indices, 32, 3), expected, strict=True):
                assert torch.equal(mine, theirs)
        assert torch.equal(read_test_views(there, SPEC, 3, 3), load_test_views(clip, SPEC, 3, 3))


@pytest.mark.parametrize("most", ["everything", "nothing"])
def test_torch_is_imported_in_the_other_process_only_to_cut_large_frames(tmp_path, most):
    path = write_clip(tmp_path / "clip.mp4", frames=20, size=(96, 64))
    script = f"""
        import sys
        import numpy as np
        from hiera_video.video import guarded_video
        from hiera_video.video.decoding_process import decoding_process
        from hiera_video.video.limits import limited

        if {most == "nothing"}:
            guarded_video._MESSAGE_BYTES = 0
        file = ({str(path)!r}, "auto")
        with limited(100, 64 << 20):  # less than torch maps: importing it is not the video's fault
            info = guarded_video.serve(("open", file))
            answer = guarded_video.serve(("crops", file, np.array([3, 9]), 32, 3))
        shapes = [np.shape(x) for x in ([answer] if isinstance(answer, np.ndarray) else answer)]
        print(info.num_frames, shapes, "torch" in sys.modules, "torchcodec" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    frames, crops = "[(2, 64, 96, 3)] False", f"{[(2, 3, 32, 32)] * 3} True"
    expected = frames if most == "everything" else crops
    assert done.stdout.strip() == f"20 {expected} False", done.stderr


def test_frames_and_crops_give_the_same(clip, monkeypatch):
    here = SimpleNamespace(call=guarded_video.serve)  # torch is imported in this process
    sent = [(GuardedVideo(clip, here).read_crops([0, 5, 7], size, 3)) for size in (8, 64)]
    with VideoReader(clip) as reader:
        for size, crops in zip((8, 64), sent, strict=True):
            for mine, theirs in zip(
                crops, spatial_crops(reader.read([0, 5, 7]), size, 3), strict=True
            ):
                assert torch.equal(mine, theirs)
    answers = [guarded_video.serve(("crops", (clip, "auto"), [1], size, 3)) for size in (8, 200)]
    assert [isinstance(answer, np.ndarray) for answer in answers] == [False, True]
    monkeypatch.setattr(guarded_video, "_MESSAGE_BYTES", 2 * 3 * 3 * 64 * 64)  # two frames' crops
    calls = []
    spy = SimpleNamespace(
        call=lambda request: calls.append(request) or guarded_video.serve(request)
    )
    crops = GuardedVideo(clip, spy).read_crops([0, 5, 7], 64, 3)
    assert [len(request[2]) for request in calls[1:]] == [2, 1]
    assert all(torch.equal(a, b) for a, b in zip(crops, sent[1], strict=True))


def test_two_videos_may_be_read_in_turn(pool, clip, tmp_path):
    other = write_clip(tmp_path / "other.mp4", frames=20, first_index=500)
    with GuardedVideo(clip, pool) as one, GuardedVideo(other, pool) as two:
        for video, path in ((one, clip), (two, other), (one, clip)):
            (crop,) = video.read_crops([5], 64, 1)
            (expected,) = spatial_crops(VideoReader(path).read([5]), 64, 1)
            assert torch.equal(crop, expected)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("crash.mp4", r"crashed \(SIGSEGV\)"),
        ("hang.mp4", "took longer than 10 s"),
        ("bloat.mp4", "needed more than 2 GiB"),
        ("text.mp4", "is a text file"),
    ],
)
def test_a_bad_file_is_a_decode_error_and_the_next_is_read(pool, clip, tmp_path, name, reason):
    path = tmp_path / name
    path.write_text("not a video")
    with pytest.raises(DecodeError, match=reason) as error:
        GuardedVideo(path, pool)
    assert error.value.path == str(path)
    with GuardedVideo(clip, pool) as video:
        assert len(video.read_crops([0], 32, 1)) == 1


def test_wrong_use_is_told_as_here(pool, clip):
    with pytest.raises(UserError, match="choose one of auto"):
        GuardedVideo(clip, pool, "vlc")
    with GuardedVideo(clip, pool) as video, pytest.raises(FrameIndexError, match="frame 40 of"):
        video.read_crops([40], 32, 1)


# ---- many videos, ahead of their use ----

REQUEST = ViewRequest(SPEC, 2, 3)


def views_here(path):
    return [clip.tolist() for clip in read_pixels(path)]


def read_pixels(path):
    with VideoReader(path) as video:
        return read_view_pixels(video, views_of(video, SPEC, 2), SPEC, 3)


@pytest.mark.parametrize("workers", [1, 2])
def test_videos_read_ahead_have_the_views_of_those_read_here(clip, tmp_path, workers):
    other = str(write_clip(tmp_path / "other.mp4", frames=9, first_index=500, size=(64, 96)))
    crash, bad = str(tmp_path / "crash.mp4"), str(tmp_path / "bad.mp4")
    for path in (crash, bad):
        with open(path, "w") as file:
            file.write("not a video")
    paths = [clip, crash, other, bad, clip]
    with GuardedPool(serve_or_worse, workers=workers) as pool:
        found = list(read_ahead(iter(paths), REQUEST, pool))
    assert len(found) == 5
    for path, crops in zip(paths, found, strict=True):
        if path in (crash, bad):
            assert isinstance(crops, DecodeError)
            assert crops.path == path
            continue
        clips = [frames.tolist() for frames in crops.clips()]
        assert clips == views_here(path)
        assert crops.stacked().transpose(1, 2).tolist() == clips
    assert found[1].reason == "reading it in a process of its own: crashed (SIGSEGV)"
    assert "process of its own" not in found[3].reason
    assert found[3].reason == reason_alone(bad)


def reason_alone(path):
    with pytest.raises(DecodeError) as error:
        VideoReader(path)
    return error.value.reason


def test_a_whole_video_beyond_the_limits_of_a_part_is_read_in_parts(clip, monkeypatch):
    class Slow:
        workers = 1

        def ordered(self, items, *, ahead):
            yield from ((item, WorkerFailure("took longer than 120 s", "time")) for item in items)

    (crops,) = read_ahead([clip], REQUEST, Slow())
    assert [frames.tolist() for frames in crops.clips()] == views_here(clip)
    (error,) = read_ahead(["gone.mp4"], REQUEST, Slow())
    assert isinstance(error, DecodeError)


@pytest.mark.parametrize(("views", "expected"), [(1, 5), (5, 5), (50, 4), (100, 1)])
def test_what_waits_is_bounded_in_bytes(views, expected, monkeypatch):
    asked = []

    class Recorder:
        workers = 4

        def ordered(self, items, *, ahead):
            asked.append(ahead)
            return iter(())

    monkeypatch.setattr(guarded_video, "AHEAD_BYTES", 1 << 29)
    spec = ClipSpec(num_frames=16, sampling_rate=4, crop_size=224)
    list(read_ahead([], ViewRequest(spec, views, 1 if views == 50 else 3), Recorder()))
    assert asked == [expected]
