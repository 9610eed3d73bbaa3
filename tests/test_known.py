"""The lists of videos that were scanned: kept while the file stays the same, and never too many."""

import dataclasses
import os
import time

import numpy as np
import pytest
import torch
from clips import read_indices, write_clip

from hiera_video.video import decode, known
from hiera_video.video.decode import open_video, probe, read_frames
from hiera_video.video.known import KnownVideos, size_of


@pytest.fixture
def scans(monkeypatch):
    """The paths scanned; with nothing known beforehand."""
    paths = []
    describe = decode.describe

    def spy(file, deadline):
        paths.append(file.path)
        return describe(file, deadline)

    monkeypatch.setattr(decode, "describe", spy)
    known.known_videos.clear()
    yield paths
    known.known_videos.clear()


def settled(path, seconds=60):
    """`path`, last changed a while ago."""
    past = time.time() - seconds
    os.utime(path, (past, past))
    return path


def test_a_file_is_scanned_once_and_reads_the_same(tmp_path, scans):
    path = settled(write_clip(tmp_path / "a.mp4", b_frames=3, gop=20))
    first = read_frames(path, [3, 40, 41])
    with open_video(path) as again:
        assert again.info.num_frames == 64
        assert torch.equal(again.read([3, 40, 41]), first)
    assert torch.equal(read_frames(path, range(64), "pyav")[[3, 40, 41]], first)
    assert scans == [str(path)]


def test_a_file_that_changes_is_scanned_anew(tmp_path, scans):
    path = settled(write_clip(tmp_path / "a.mp4", frames=20))
    assert probe(path).num_frames == 20
    settled(write_clip(path, frames=9), seconds=50)
    assert probe(path).num_frames == 9
    assert read_indices(read_frames(path, [8])) == [8]
    settled(path, seconds=40)  # another time alone is enough
    probe(path)
    assert len(scans) == 3


def test_a_file_that_may_still_be_written_is_not_remembered(tmp_path, scans):
    path = write_clip(tmp_path / "a.mp4", frames=5)
    probe(path)
    probe(path)
    assert len(scans) == 2
    assert len(known.known_videos) == 0


def test_a_file_that_is_gone_is_not_found_again(tmp_path, scans):
    path = settled(write_clip(tmp_path / "a.mp4", frames=5))
    probe(path)
    os.remove(path)
    with pytest.raises(decode.DecodeError, match="no such file"):
        probe(path)


def example(tmp_path, frames=200):
    path = settled(write_clip(tmp_path / "a.mp4", frames=4))
    info = probe(path)
    longer = dataclasses.replace(info.index, pts=np.arange(frames))
    return dataclasses.replace(info, index=longer)


def renamed(info, name):
    return dataclasses.replace(info, path=name)


def test_memory_is_bounded_and_the_oldest_go_first(tmp_path):
    info = example(tmp_path)
    videos = KnownVideos(most_bytes=10 * size_of(info))
    identity = info.index.identity
    for i in range(10):
        videos.add(renamed(info, f"{i}.mp4"))
    assert len(videos) == 10
    assert videos.get("0.mp4", identity) is not None  # now the one used last
    for i in range(10, 14):
        videos.add(renamed(info, f"{i}.mp4"))
    assert len(videos) == 10
    assert videos.bytes == 10 * size_of(info)
    left = [i for i in range(14) if videos.get(f"{i}.mp4", identity)]
    assert left == [0, *range(5, 14)]
    videos.add(renamed(info, "0.mp4"))  # once more the same: no more bytes
    assert videos.bytes == 10 * size_of(info)
    videos.clear()
    assert (len(videos), videos.bytes) == (0, 0)


def test_one_very_long_video_does_not_push_out_all_others(tmp_path):
    info = example(tmp_path)
    videos = KnownVideos(most_bytes=10 * size_of(info))
    videos.add(info)
    longer = example(tmp_path, frames=20_000)
    irregular = np.random.default_rng(0).integers(0, 2**60, 20_000)
    irregular = dataclasses.replace(longer.index, pts=irregular)
    videos.add(renamed(dataclasses.replace(longer, index=irregular), "long.mp4"))
    assert len(videos) == 1
    videos.add(renamed(longer, "regular.mp4"))  # of hours too, where little is left of it
    assert len(videos) == 2


@pytest.mark.parametrize("options", [{}, {"b_frames": 2, "start": 1.5}, {"times": "variable"}])
def test_a_long_list_is_kept_compressed_and_comes_back_the_same(tmp_path, options):
    if "times" in options:
        options = dict(options)
        options["times"] = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.1, 5000)).tolist()
    path = settled(write_clip(tmp_path / "a.mp4", frames=5000, size=(32, 32), gop=250, **options))
    info = probe(path)
    videos = KnownVideos()
    videos.add(info)
    assert size_of(info) > known.LONG
    assert videos.bytes < size_of(info) / 4
    again = videos.get(str(path), info.index.identity)
    for one, other in ((info, again), (info.index, again.index)):
        for field in dataclasses.fields(one):
            if field.name != "index":
                before, after = getattr(one, field.name), getattr(other, field.name)
                assert type(before) is type(after)
                assert np.array_equal(before, after)
                assert getattr(before, "dtype", None) == getattr(after, "dtype", None)


def test_another_identity_is_forgotten_at_once(tmp_path):
    info = example(tmp_path)
    videos = KnownVideos()
    videos.add(info)
    size, changed = info.index.identity
    assert videos.get(info.path, (size, changed)) is info
    assert videos.get(info.path, (size, changed + 1)) is None
    assert (len(videos), videos.bytes) == (0, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_process_forked_while_a_thread_holds_the_lock_can_go_on():
    with known.known_videos._lock:
        child = os.fork()
        if child == 0:
            free = known.known_videos._lock.acquire(timeout=5)
            os._exit(0 if free else 1)
    assert os.waitpid(child, 0)[1] == 0
