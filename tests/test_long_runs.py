"""What shows after hours: memory that stays flat, and hostile files in the middle of a run."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path

import pytest
from clips import write_clip
from tiny_runs import config, run

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.batch import Failed
from hiera_video.data.datasets import TestReader, TrainReader, VideoDataset
from hiera_video.data.loader import LoaderSettings, build_loader
from hiera_video.data.manifests.layouts import read_manifest
from hiera_video.data.transforms.train import TrainTransform
from hiera_video.engine import build
from hiera_video.engine.records import read_metrics
from hiera_video.video.decoders import DECODERS, available_decoders
from hiera_video.video.guarded_pool import GuardedPool, WorkerFailure

MIB = 1 << 20
SPEC = ClipSpec(num_frames=8, sampling_rate=2, crop_size=64)

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/self/statm"), reason="memory is read from /proc"
)


def status(pid: int, field: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (at most)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"no {field} of process {pid}")


def write_list(folder: Path, paths) -> Path:
    (folder / "train.csv").write_text("".join(f"{path} 0\n" for path in paths))
    return folder


# ---- memory -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Videos of many kinds, each with its own way through the decoders, and three that fail."""
    folder = tmp_path_factory.mktemp("mixed")
    size = {"size": (128, 96), "frames": 24}
    kinds = [
        write_clip(folder / "plain.mp4", **size),
        write_clip(folder / "turned.mp4", rotation=90, **size),
        write_clip(folder / "reordered.mp4", b_frames=2, **size),
        write_clip(folder / "matroska.mkv", **size),
        write_clip(folder / "transport.ts", **size),
        write_clip(folder / "sound.mp4", audio=True, **size),
        write_clip(folder / "mpeg4.avi", codec="mpeg4", **size),
    ]
    whole = kinds[0].read_bytes()
    kinds += [folder / name for name in ("half.mp4", "text.mp4", "missing.mp4")]
    (folder / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp4").write_text("not a video")
    return read_manifest(write_list(folder, kinds))


def growth(manifest, decoder: str, *, clips: int, warm_up: int) -> tuple[int, int, int]:
    """(bytes, open files) by which one worker, and bytes by which the main process, has grown."""
    transform = TrainTransform(SPEC, rand_augment="rand-m7-mstd0.5-inc1", erase_prob=0.25)
    dataset = VideoDataset(manifest, TrainReader(transform, decoder=decoder))
    batch = len(manifest)
    loader = build_loader(
        dataset, LoaderSettings(batch_size=batch, num_workers=1, stop_step=clips // batch)
    )
    before, most = None, [0, 0, 0]
    for step, _ in enumerate(loader, 1):
        if step * batch < warm_up or step % 10:
            continue
        pid = loader._workers.processes[0].pid
        now = [
            status(pid, "VmRSS"),
            len(os.listdir(f"/proc/{pid}/fd")),
            status(os.getpid(), "VmRSS"),
        ]
        before = before or now
        most = [max(pair) for pair in zip(most, now, strict=True)]
    loader.close()
    assert step == clips // batch
    assert loader.failures.count == 3 * step
    return tuple(after - first for after, first in zip(most, before, strict=True))


@pytest.fixture(params=DECODERS)
def decoder(request):
    if available_decoders()[request.param]:
        pytest.skip(available_decoders()[request.param])
    return request.param


def test_memory_does_not_leak_in_a_thousand_clips(mixed, decoder):
    # A frame lost with each clip would be 36 MiB.
    worker, files, main = growth(mixed, decoder, clips=1500, warm_up=500)
    assert worker < 16 * MIB
    assert files < 8
    assert main < 16 * MIB


@pytest.mark.slow
def test_memory_does_not_leak_in_twenty_thousand_clips(mixed, decoder):
    worker, files, main = growth(mixed, decoder, clips=22_000, warm_up=2_000)
    print(f"{decoder}: worker +{worker / MIB:.1f} MiB, {files} files; main +{main / MIB:.1f} MiB")
    assert worker < 50 * MIB
    assert files < 8
    assert main < 50 * MIB


# ---- hostile files in a training set ------------------------------------------------------------


def read_one(request):
    """Whether a video of a data set cannot be read: in a child, whatever becomes of that."""
    reader, sample = request
    reader(sample)
    return False


def expected_failures(dataset) -> int:
    """How many videos of the first epoch cannot be read, found out one by one."""
    requests = [(dataset.reader, dataset.sample(i)) for i in range(len(dataset))]
    with GuardedPool(read_one, time_limit=120) as pool:
        return sum(isinstance(outcome, WorkerFailure) for _, outcome in pool.map(requests))


def write_good_and(folder: Path, bad: list[Path], multiple: int) -> Path:
    """A training list of `bad` and as many good videos or some more, so that batches come out."""
    good = [write_clip(folder / f"good {i}.mp4", frames=24, size=(64, 64)) for i in range(8)]
    count = len(bad) + -2 * len(bad) % multiple
    paths = [*bad, *itertools.islice(itertools.cycle(good), count)]
    lines = "".join(f"{path} {i % 2}\n" for i, path in enumerate(paths))
    (folder / "train.csv").write_text(lines)
    (folder / "val.csv").write_text("".join(f"{path} 0\n" for path in good))
    return folder


def train_on(folder: Path, out: Path) -> tuple[int, int, int]:
    """One epoch: (exit code, failed videos that it reports, those that there are)."""
    cfg = config(folder, out, "SOLVER.MAX_EPOCH", 1, "DATA_LOADER.NUM_WORKERS", 2)
    code = run(cfg)
    (epoch,) = [r for r in read_metrics(out) if r["_type"] == "train_epoch"]
    train_list, _ = build.read_lists(cfg)
    return code, epoch["failed"], expected_failures(build.training_set(cfg, train_list))


def test_hostile_files_in_a_training_set_are_counted_exactly(shared_data, tmp_path):
    hostile = sorted(p for p in (shared_data / "hostile").iterdir() if p.suffix != ".csv")
    folder = write_good_and(tmp_path, hostile, multiple=4)
    code, reported, there = train_on(folder, tmp_path / "out")
    assert code == 0
    assert reported == there
    assert there >= 8  # text and playlists among them, which nobody can read


def test_hostile_files_take_less_than_a_gibibyte(shared_data, tmp_path):
    hostile = sorted(p for p in (shared_data / "hostile").iterdir() if p.suffix != ".csv")
    manifest = read_manifest(write_list(tmp_path, hostile))
    dataset = VideoDataset(manifest, TrainReader(TrainTransform(SPEC)))
    loader = build_loader(
        dataset, LoaderSettings(batch_size=1, num_workers=1, stop_step=len(hostile))
    )
    most = 0
    for batch in loader:
        assert len(batch.video_ids) + len(batch.failed) == 1
        most = max(most, status(loader._workers.processes[0].pid, "VmHWM"))
    loader.close()
    assert 0 < most < 1024 * MIB
    assert dataset.unreadable == {}  # none of them even ends its worker


def mutate(whole: bytes, seed: int) -> bytes:
    """A video with bytes changed, cut out, or cut off."""
    rng = random.Random(seed)
    data = bytearray(whole)
    for _ in range(rng.choice([1, 4, 16, 64])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    if rng.random() < 0.3:
        start = rng.randrange(len(data))
        del data[start : start + rng.randrange(1, 2000)]
    if rng.random() < 0.3:
        del data[rng.randrange(1, len(data)) :]
    return bytes(data)


@pytest.mark.slow
def test_fuzz_two_thousand_mutated_files_in_a_training_set(tmp_path):
    sources = [
        write_clip(tmp_path / f"source.{ending}", frames=24, size=(64, 64), b_frames=b)
        for ending, b in (("mp4", 2), ("mkv", 0), ("ts", 0), ("avi", 0))
    ]
    wholes = [source.read_bytes() for source in sources]
    bad = []
    for i in range(2000):
        source = sources[i % len(sources)]
        path = tmp_path / f"mutated {i}{source.suffix}"
        path.write_bytes(mutate(wholes[i % len(sources)], i))
        bad.append(path)
    folder = write_good_and(tmp_path, bad, multiple=4)
    code, reported, there = train_on(folder, tmp_path / "out")
    print(f"{there} of {len(bad)} mutated files cannot be read")
    assert code == 0
    assert reported == there > 200


def test_a_video_known_to_end_workers_is_not_read_here(mixed):
    dataset = VideoDataset(mixed, TestReader(SPEC))
    dataset.unreadable[0] = "crashed"
    assert dataset[0, 0] == Failed(0, str(mixed.paths[0]), "crashed")
    assert isinstance(dataset[0, 1], list)
