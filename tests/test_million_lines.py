"""A list of a million videos: read in seconds, held once however many workers there are."""

import gc
import os
import time

import pytest
from clips import write_clip

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.datasets import TestReader, VideoDataset
from hiera_video.data.loader import LoaderSettings, build_loader
from hiera_video.data.manifests.layouts import read_manifest

LINES, FEW = 1_000_000, 64
SPEC = ClipSpec(num_frames=2, sampling_rate=1, crop_size=32)
MIB = 1 << 20


def memory_of(pid, field):
    """Bytes of one line of a process's memory map, summed up: Rss, Pss, Private_Dirty."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            name, *words = line.split()
            if name == f"{field}:":
                return int(words[0]) * 1024
    raise AssertionError(f"the kernel does not tell {field}")


def write_list(folder, lines):
    """train.csv of many lines and few files; paths as long as those of Kinetics."""
    long = "a folder whose name is as long as such names are"
    (folder / long).mkdir(parents=True)
    clips = [write_clip(folder / long / f"{i}.mp4", frames=4, size=(48, 32)) for i in range(4)]
    with open(folder / "train.csv", "w") as file:
        file.writelines(f"{long}/{clips[i % 4].name},{i % 400}\n" for i in range(lines))
    return folder


def first_batches(folder, workers=2):
    """(videos, seconds to the first batch, bytes this process grew, bytes of each worker alone)."""
    gc.collect()
    before, began = memory_of(os.getpid(), "Rss"), time.monotonic()
    manifest = read_manifest(folder, "train")
    loader = build_loader(
        VideoDataset(manifest, TestReader(SPEC)), LoaderSettings(batch_size=8, num_workers=workers)
    )
    batches = iter(loader)
    shapes = [next(batches).clips.shape for _ in range(2 * workers)]
    seconds = time.monotonic() - began
    assert set(shapes) == {(8, 3, 2, 32, 32)}
    grown = memory_of(os.getpid(), "Rss") - before
    private = [memory_of(process.pid, "Private_Dirty") for process in loader._workers.processes]
    loader.close()
    return len(manifest), seconds, grown, private


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="memory maps of Linux")
def test_a_million_lines_start_in_seconds_and_leak_into_no_worker(tmp_path):
    first_batches(write_list(tmp_path / "first", FEW))  # what is imported once, is
    short = first_batches(write_list(tmp_path / "short", FEW))
    long = first_batches(write_list(tmp_path / "long", LINES))
    print(
        f"{long[0]} lines: first batches after {long[1]:.1f} s ({short[1]:.1f} s for {FEW} lines), "
        f"{long[2] / MIB:.0f} MiB in this process, in each worker "
        f"{max(long[3]) / MIB:.0f} MiB of its own ({max(short[3]) / MIB:.0f} MiB for {FEW} lines)"
    )
    assert long[0] == LINES
    assert long[1] < 300  # to be told of a loader that hangs; the seconds are printed
    list_bytes = (tmp_path / "long" / "train.csv").stat().st_size
    assert list_bytes > 50 * MIB
    assert long[2] < 4 * list_bytes
    assert max(long[3]) < max(short[3]) + list_bytes / 4
