"""The same batches however they are read; one decode per video; failures counted, not replaced."""

import itertools
import logging
import multiprocessing
import multiprocessing.forkserver
import os
import re
import signal
import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clips import read_index, write_clip

from hiera_video.clip_spec import ClipSpec
from hiera_video.data import workers
from hiera_video.data.batch import Batch, Erasures, Failed
from hiera_video.data.datasets import TestReader, TrainReader, VideoDataset
from hiera_video.data.loader import GIVE_UP_AFTER, LoaderSettings, build_loader
from hiera_video.data.manifests.layouts import read_manifest
from hiera_video.data.randomness import PURPOSES, epoch_order, generator_for
from hiera_video.data.transforms.train import TrainTransform
from hiera_video.data.views import load_test_views
from hiera_video.engine import preflight
from hiera_video.errors import DataError, RunFailed
from hiera_video.video import crops, decode
from hiera_video.video.sampling import span

SPEC = ClipSpec(num_frames=4, sampling_rate=2, crop_size=32)
TRANSFORM = TrainTransform(SPEC, rand_augment="rand-m7-mstd0.5-inc1", erase_prob=0.25)
# The whole picture, as it is: what the frames' own code can be read back from.
PLAIN_SPEC = ClipSpec(num_frames=4, sampling_rate=2, crop_size=64)
PLAIN = TrainTransform(PLAIN_SPEC, area=(1, 1), aspect=(1, 1), flip=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve 64x64 videos of 24 frames in two classes; video v begins with picture 100 v."""
    root = tmp_path_factory.mktemp("videos")
    lines = []
    for i in range(12):
        name = f"clip {i}.mp4"
        write_clip(root / name, frames=24, size=(64, 64), first_index=100 * i)
        lines.append(f"{name} {i % 2}\n")
    (root / "train.csv").write_text("".join(lines))
    return root


@pytest.fixture(scope="module")
def manifest(folder):
    return read_manifest(folder)


@pytest.fixture
def broken(folder, tmp_path):
    """A list of the twelve and four that cannot be read."""
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    whole = (folder / "clip 0.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    bad = ["text.mp4", "empty.mp4", "half.mp4", "missing.mp4"]
    good = [f"{folder}/clip {i}.mp4 {i % 2}\n" for i in range(12)]
    (tmp_path / "train.csv").write_text("".join(good) + "".join(f"{b} 0\n" for b in bad))
    return read_manifest(tmp_path)


def training(manifest, transform=TRANSFORM, seed=3, **settings):
    return VideoDataset(manifest, TrainReader(transform, seed=seed, **settings))


def same(batches, others):
    assert len(batches) == len(others) > 0
    for a, b in zip(batches, others, strict=True):
        for name in ("clips", "labels", "video_ids", "views"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert a.failed == b.failed


def pictures(clips, spec=PLAIN_SPEC):
    """The indices in the pictures of [B, 3, T, H, W], uint8 or back from normalisation."""
    pixels = clips
    if clips.dtype != torch.uint8:
        pixels = (clips * spec.std[0] + spec.mean[0]) * 255
    return [[read_index(frame) for frame in clip.unbind(1)] for clip in pixels]


# ---- the same stream, however it is read --------------------------------------------------------


def test_any_number_of_workers_gives_the_same_batches(manifest):
    dataset = training(manifest, num_temporal=2)
    settings = {"batch_size": 4, "start_step": 1, "stop_step": 5}  # across the end of an epoch
    alone = list(build_loader(dataset, LoaderSettings(**settings)))
    assert len(alone) == 4
    assert alone[0].clips.shape == (8, 3, 4, 32, 32)
    for num_workers in (1, 2):
        loader = build_loader(dataset, LoaderSettings(num_workers=num_workers, **settings))
        same(list(loader), alone)
        same(list(loader), alone)  # a second time, by the same workers
        loader.close()


def test_processes_and_accumulation_parts_share_out_the_same_videos(manifest):
    dataset = training(manifest)
    whole = list(build_loader(dataset, LoaderSettings(batch_size=6)))
    for world, parts in ((2, 1), (3, 1), (1, 2), (3, 2)):
        loaders = [
            build_loader(
                dataset, LoaderSettings(batch_size=6, rank=rank, world_size=world, grad_accum=parts)
            )
            for rank in range(world)
        ]
        streams = [list(loader) for loader in loaders]
        assert [len(s) for s in streams] == [len(whole) * parts] * world
        for step, batch in enumerate(whole):
            shares = [streams[r][step * parts + p] for p in range(parts) for r in range(world)]
            # Dealt like cards, so that taking one from each in turn gives the whole again.
            order = torch.arange(6).view(-1, world * parts).t().flatten()
            together = torch.cat([share.clips for share in shares])
            assert torch.equal(together, batch.clips[order])
            ids = torch.cat([share.video_ids for share in shares])
            assert torch.equal(ids, batch.video_ids[order])


def test_a_run_goes_on_in_the_middle_of_an_epoch(manifest):
    dataset = training(manifest)
    loader = build_loader(dataset, LoaderSettings(batch_size=3, stop_step=9))
    assert loader.steps_per_epoch == 4
    assert len(loader) == 9
    whole = list(loader)
    for start in (2, 5):
        same(
            list(
                build_loader(dataset, LoaderSettings(batch_size=3, start_step=start, stop_step=9))
            ),
            whole[start:],
        )
    same(
        list(build_loader(dataset, LoaderSettings(batch_size=3, start_step=6))), whole[6:8]
    )  # to the epoch's end


def test_an_epoch_takes_every_video_once_and_the_next_in_another_order(manifest):
    batches = list(build_loader(training(manifest), LoaderSettings(batch_size=4, stop_step=6)))
    epochs = [torch.cat([b.video_ids for b in batches[i : i + 3]]).tolist() for i in (0, 3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0] != epochs[1]
    assert epochs[0] == epoch_order(12, 3, 0).tolist()
    other = next(iter(build_loader(training(manifest, seed=4), LoaderSettings(batch_size=4))))
    assert other.video_ids.tolist() != epochs[0][:4]


@pytest.mark.numbers
def test_randomness_is_the_same_on_every_machine():
    assert epoch_order(10, seed=1, epoch=2).tolist() == ORDER
    assert torch.rand(2, generator=generator_for("mixing", 1, 2, 3)).tolist() == pytest.approx(
        DRAWN, abs=1e-6
    )


def test_every_purpose_has_streams_of_its_own():
    """No two places of a run share random numbers, zeros at the end included."""
    seeds = {
        (purpose, *numbers): generator_for(purpose, 3, *numbers).initial_seed()
        for purpose, names in PURPOSES.items()
        for numbers in itertools.product(range(3), repeat=len(names))
    }
    assert len(set(seeds.values())) == len(seeds)
    for purpose, names in PURPOSES.items():
        for count in {0, 1, 2, 3, 4, 5} - {len(names)}:
            with pytest.raises(ValueError, match=f"{purpose}.*{count} numbers"):
                generator_for(purpose, 3, *[0] * count)
    with pytest.raises(ValueError, match="'colour'"):
        generator_for("colour", 3, 0)


BEGUN = {
    "order": 87672672766571202,
    "mixing": 4604229177644123140,
    "place": 1531355398595180668,
    "augment": 7995634324845821991,
    "symmetries": 7618610380674609433,
}
"""Purpose -> the seed that earlier runs drew with; changing one changes their clips."""


@pytest.mark.parametrize(("purpose", "seed"), BEGUN.items())
def test_a_resumed_run_draws_from_the_streams_it_began_with(purpose, seed):
    numbers = [7] + [0] * (len(PURPOSES[purpose]) - 1)
    assert generator_for(purpose, 3, *numbers).initial_seed() == seed


ORDER = [9, 4, 3, 7, 6, 8, 1, 5, 2, 0]
DRAWN = [0.130478, 0.989595]


def test_left_over_videos_differ_by_epoch(manifest):
    loader = build_loader(training(manifest), LoaderSettings(batch_size=5, stop_step=6))
    assert loader.steps_per_epoch == 2
    ids = [b.video_ids.tolist() for b in loader]
    left_over = [set(range(12)) - {*ids[i], *ids[i + 1]} for i in (0, 2, 4)]
    assert all(len(rest) == 2 for rest in left_over)
    assert len({frozenset(rest) for rest in left_over}) > 1


# ---- clips --------------------------------------------------------------------------------------


def test_clips_hold_the_pictures_of_their_video_in_order(manifest):
    starts = set()
    for batch in build_loader(
        training(manifest, PLAIN), LoaderSettings(batch_size=4, stop_step=12)
    ):
        for indices, video, label in zip(
            pictures(batch.clips), batch.video_ids.tolist(), batch.labels.tolist(), strict=True
        ):
            own = np.array(indices) - 100 * video
            assert (np.diff(own) >= 2).all()
            assert own[-1] - own[0] == span(4, 2, 30, 30) - 1
            assert 0 <= own[0] <= own[-1] < 24
            assert label == video % 2
            starts.add(int(own[0]))
    assert min(starts) <= 2
    assert max(starts) >= 14


def test_the_speed_of_a_clip_is_drawn_from_the_range(manifest):
    """Spans of 8 x speed of the 24 frames: 4 to 16 frames, log-uniform."""
    dataset = training(manifest, PLAIN, speed=(0.5, 2.0))
    info = SimpleNamespace(num_frames=24, fps=30.0)
    drawn = [dataset.reader.draw(info, dataset.sample(i % 12, i // 12)) for i in range(600)]
    spans = np.array([np.ptp(indices) + 1 for ((indices, _),) in drawn])
    assert (spans.min(), spans.max()) == (4, 15)
    assert np.median(spans) == pytest.approx(7.5, abs=0.6)  # 8, truncated to whole frames
    assert pictures(training(manifest, PLAIN, speed=(2.0, 2.0))[0, 0][0][None])[0] in [
        [start, start + 5, start + 10, start + 15] for start in range(9)
    ]
    assert all(
        torch.equal(dataset[epoch, 3][0], training(manifest, PLAIN, speed=(0.5, 2.0))[epoch, 3][0])
        for epoch in range(3)
    )


def test_a_speed_of_one_draws_the_clips_that_no_speed_draws(manifest):
    for epoch in range(3):
        (plain,), (one,) = (
            training(manifest, **settings)[epoch, 5] for settings in ({}, {"speed": (1, 1)})
        )
        assert torch.equal(plain, one)


def test_a_speed_that_is_no_range_or_has_no_meaning_is_refused():
    for speed in ((0, 1), (2, 1)):
        with pytest.raises(DataError, match=rf"speed=\({speed[0]}, {speed[1]}\)"):
            TrainReader(PLAIN, speed=speed)
    segments = TrainTransform(ClipSpec(segments=True))
    with pytest.raises(DataError, match="no meaning for segments"):
        TrainReader(segments, speed=(0.5, 2))
    TrainReader(segments, speed=(1, 1))


@pytest.fixture
def decodes(monkeypatch):
    """The frames that the decoder gives, part by part."""
    reads = []

    class Spy(decode.VideoReader):
        def parts(self, indices, size):
            for part, frames in super().parts(indices, size):
                reads.append(list(part))
                yield part, frames

    monkeypatch.setattr(decode, "VideoReader", Spy)
    return reads


def test_repeats_share_one_decode(manifest, decodes):
    clips = training(manifest, PLAIN, num_temporal=3, num_augment=2)[0, 5]
    assert len(clips) == 6
    assert len(decodes) == 1
    assert decodes[0] == sorted(set(decodes[0]))
    shown = pictures(torch.stack(clips))
    assert sorted({i - 500 for view in shown for i in view}) == decodes[0]
    # Neighbouring pairs are the same moment augmented anew; the moments are drawn one by one.
    assert shown[0::2] == shown[1::2]
    assert len({tuple(view) for view in shown[0::2]}) > 1


def test_augmentations_of_one_clip_differ(manifest):
    first, second = training(manifest, num_augment=2)[0, 1]
    assert not torch.equal(first, second)
    assert torch.equal(training(manifest)[0, 1][0], first)  # one more repeat changes none of these
    assert torch.equal(training(manifest, num_temporal=2)[0, 1][0], first)


def test_large_pictures_are_cropped_as_they_come(manifest, decodes, monkeypatch):
    whole = training(manifest, num_temporal=2)[1, 7]
    monkeypatch.setattr(crops, "DECODED_BYTES", 3 * 64 * 64 * 3)  # three pictures at once
    pieces = training(manifest, num_temporal=2)[1, 7]
    assert len(decodes) > 2
    assert all(len(read) <= 3 for read in decodes[1:])
    assert all(torch.equal(a, b) for a, b in zip(whole, pieces, strict=True))


def test_a_short_video_and_an_image_model(tmp_path):
    write_clip(tmp_path / "short.mp4", frames=3, size=(64, 64))
    (tmp_path / "train.csv").write_text("short.mp4 0\n")
    manifest = read_manifest(tmp_path)
    assert pictures(training(manifest, PLAIN)[0, 0][0][None]) == [[0, 2, 2, 2]]
    image = ClipSpec(num_frames=1, crop_size=64)
    plain = TrainTransform(image, area=(1, 1), aspect=(1, 1), flip=0)
    assert training(manifest, plain)[0][0].shape == (3, 1, 64, 64)


def test_segments_take_one_random_frame_of_each_part(manifest):
    spec = ClipSpec(num_frames=6, crop_size=64, segments=True)
    plain = TrainTransform(spec, area=(1, 1), aspect=(1, 1), flip=0)
    seen = set()
    for epoch in range(6):
        (indices,) = pictures(training(manifest, plain)[epoch, 0][0][None], spec)
        assert all(23 * i // 6 <= index <= 23 * (i + 1) // 6 + 1 for i, index in enumerate(indices))
        seen.add(tuple(indices))
    assert len(seen) > 3


def test_test_views_are_those_of_the_demo(manifest, folder):
    dataset = VideoDataset(manifest, TestReader(SPEC, num_views=2, num_crops=3))
    (batch,) = build_loader(dataset, LoaderSettings(batch_size=12))
    assert batch.clips.shape == (12 * 6, 3, 4, 32, 32)
    assert batch.views.tolist() == list(range(6)) * 12
    assert batch.video_ids.tolist() == [v for v in range(12) for _ in range(6)]
    expected = load_test_views(str(folder / "clip 3.mp4"), SPEC, 2, 3)
    assert batch.clips.dtype == torch.uint8
    assert torch.equal(batch.normalized(SPEC).clips[18:24], expected)


def test_every_video_is_tested_once_by_any_number_of_processes(manifest):
    dataset = VideoDataset(manifest, TestReader(SPEC))
    for world in (1, 2, 5):
        loaders = [
            build_loader(dataset, LoaderSettings(batch_size=2, rank=r, world_size=world))
            for r in range(world)
        ]
        ids = [b.video_ids for loader in loaders for b in loader]
        assert sorted(torch.cat(ids).tolist()) == list(range(12))


# ---- labels -------------------------------------------------------------------------------------


def test_several_labels_become_rows_of_zeros_and_ones(folder, tmp_path):
    lines = ["clip 0.mp4 3 0\n", "clip 1.mp4 2\n"]
    (tmp_path / "train.csv").write_text("".join(lines))
    manifest = read_manifest(tmp_path, multi_label=True, num_classes=5, path_prefix=str(folder))
    (batch,) = build_loader(
        VideoDataset(manifest, TestReader(SPEC, num_views=2)), LoaderSettings(batch_size=2)
    )
    assert batch.labels.tolist() == [[1, 0, 0, 1, 0]] * 2 + [[0, 0, 1, 0, 0]] * 2
    assert batch.labels.dtype == torch.float32


def test_lists_without_labels_can_be_read(folder, tmp_path):
    (tmp_path / "train.csv").write_text("clip 0.mp4\nclip 1.mp4\n")
    manifest = read_manifest(tmp_path, need_labels=False, path_prefix=str(folder))
    (batch,) = build_loader(training(manifest), LoaderSettings(batch_size=2))
    assert batch.labels.tolist() == [-1, -1]


def test_labels_with_a_direction_are_never_mirrored(folder, tmp_path):
    for i, name in enumerate(("pan left", "pan right", "tilt up")):
        (tmp_path / name).mkdir()
        os.link(folder / f"clip {i}.mp4", tmp_path / name / "a.mp4")
    manifest = read_manifest(tmp_path, val_fraction=0.01)
    with pytest.raises(DataError, match=r"'pan left', 'pan right' name a direction.*RANDOM_FLIP"):
        training(manifest)
    training(manifest, TrainTransform(SPEC, flip=0))


def test_something_something_is_never_mirrored(folder, tmp_path):
    (tmp_path / "labels.json").write_text('{"Holding something": "0"}')
    (tmp_path / "train.json").write_text('[{"id": "clip 1", "template": "Holding [something]"}]')
    manifest = read_manifest(tmp_path, path_prefix=str(folder))
    with pytest.raises(DataError, match=r"Something-Something .*RANDOM_FLIP"):
        training(manifest)
    dataset = training(manifest, TrainTransform(PLAIN_SPEC, area=(1, 1), aspect=(1, 1), flip=0))
    # Read from the pixels: a mirrored code would be another number.
    shown = [pictures(dataset[epoch, 0][0][None])[0] for epoch in range(20)]
    assert all(100 <= index < 124 for view in shown for index in view)


# ---- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_videos_are_counted_and_named(broken, num_workers):
    loader = build_loader(training(broken), LoaderSettings(batch_size=16, num_workers=num_workers))
    (batch,) = loader
    assert sorted(batch.video_ids.tolist()) == list(range(12))
    assert batch.clips.shape[0] == batch.labels.shape[0] == batch.views.shape[0] == 12
    assert sorted(failed.video_id for failed in batch.failed) == [12, 13, 14, 15]
    names = {os.path.basename(failed.path): failed.reason for failed in batch.failed}
    assert set(names) == {"text.mp4", "empty.mp4", "half.mp4", "missing.mp4"}
    assert all(names.values())
    assert loader.failures.count == 4
    assert len(loader.failures.first) == 4
    loader.close()


def test_a_batch_may_be_empty(broken):
    dataset = VideoDataset(broken, TestReader(SPEC))
    batches = list(build_loader(dataset, LoaderSettings(batch_size=4)))
    assert [len(b.video_ids) for b in batches] == [4, 4, 4, 0]
    assert batches[3].clips.shape == (0, 3, 4, 32, 32)
    assert batches[3].labels.shape == (0,)
    assert len(batches[3].failed) == 4
    assert isinstance(dataset[13], Failed)


def some_readable(folder, name, *, bad, good_at):
    """A list of `bad` empty files with two good videos before the line `good_at`."""
    lines = []
    for i in range(bad):
        path = folder / f"empty {i}.mp4"
        path.write_bytes(b"")
        lines.append(f"{path} 0\n")
    good = folder / "good.mp4"
    write_clip(good, frames=8, size=(64, 64))
    lines[good_at:good_at] = [f"{good} 0\n"] * 2
    (folder / name).write_text("".join(lines))
    return read_manifest(folder / name)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("good_at", [0, 130], ids=["bad to the end", "bad from the start"])
def test_a_test_counts_every_unreadable_video_wherever_they_stand(tmp_path, num_workers, good_at):
    """A missing class folder is more than a hundred lines in a row; the rest is tested."""
    manifest = some_readable(tmp_path, "val.csv", bad=130, good_at=good_at)
    loader = build_loader(
        VideoDataset(manifest, TestReader(SPEC)),
        LoaderSettings(batch_size=4, num_workers=num_workers),
    )
    for _ in range(2):  # as validation does in every epoch: nothing is carried over
        batches = list(loader)
        assert sum(len(batch.video_ids) for batch in batches) == 2
        assert sum(len(batch.failed) for batch in batches) == 130
    assert loader.failures.count == 260
    loader.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_training_goes_on_while_any_video_of_a_small_list_can_be_read(tmp_path, num_workers):
    """The same bad videos come again in every epoch: a hundred in a row are no hundred videos."""
    manifest = some_readable(tmp_path, "train.csv", bad=58, good_at=0)
    # With this seed the two good videos are 107 reads apart: early in one epoch, late in the next.
    seed = next(seed for seed in range(10_000) if longest_run_of_bad(60, seed, epochs=3) > 106)
    dataset = training(manifest, PLAIN, seed=seed)
    loader = build_loader(
        dataset, LoaderSettings(batch_size=1, num_workers=num_workers, stop_step=180)
    )
    assert sum(len(batch.video_ids) for batch in loader) == 6
    loader.close()


def longest_run_of_bad(count, seed, epochs):
    order = np.concatenate([epoch_order(count, seed, epoch) for epoch in range(epochs)])
    return int(np.diff(np.flatnonzero(order < 2)).max())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_training_that_can_read_nothing_ends_with_the_reasons(tmp_path, num_workers):
    for count, message in ((300, "last 100 videos"), (7, "last 7 videos")):
        (tmp_path / "train.csv").write_text("".join(f"gone {i}.mp4 0\n" for i in range(count)))
        dataset = training(read_manifest(tmp_path))
        size = min(count, 10)
        loader = build_loader(
            dataset, LoaderSettings(batch_size=size, num_workers=num_workers, stop_step=99)
        )
        with pytest.raises(RunFailed, match=message + r" could not be read.*gone \d+.mp4: "):
            list(loader)
        assert loader.failures.count == min(count, GIVE_UP_AFTER)
        loader.close()


# ---- workers that die ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Deadly:
    """Reads as `reader` does, but for the videos that do something worse: {video id: deed}."""

    reader: TrainReader | TestReader
    deeds: dict[int, str]
    marks: str = ""
    """A folder in which deeds that are done once only leave their mark."""

    def __call__(self, sample):
        deed, _, once = self.deeds.get(sample.video_id, "").partition(" ")
        if deed and not (once and self._done_before(sample)):
            if deed == "hangs":
                time.sleep(1000)
            elif deed == "exits":
                os._exit(3)
            elif deed == "eats":
                return len(bytearray(16 << 30))
            else:
                os.kill(os.getpid(), getattr(signal, deed))
        return self.reader(sample)

    def _done_before(self, sample):
        mark = os.path.join(self.marks, str(sample.video_id))
        if os.path.exists(mark):
            return True
        open(mark, "w").close()
        return False


def deadly(manifest, deeds, tmp_path, **settings):
    dataset = training(manifest, **settings)
    dataset.reader = Deadly(dataset.reader, deeds, str(tmp_path))
    return dataset


def without(batches, lost):
    """What is left of batches of one clip a video if the videos `lost` cannot be read."""
    return [
        [
            (video, clip.sum().item())
            for video, clip in zip(b.video_ids.tolist(), b.clips, strict=True)
            if video not in lost
        ]
        for b in batches
    ]


SETTINGS = {"batch_size": 3, "stop_step": 9}  # across the ends of two epochs


WORSE = {
    1: ("SIGSEGV", r"crashed the process that read it \(SIGSEGV\)"),
    4: ("hangs", r"took longer than 5 s, twice"),
    5: ("SIGKILL", r"the process that read it was killed, .*memory, twice"),
    7: ("exits", r"crashed the process that read it \(exit code 3\)"),
    8: ("eats", r"needed more than 2\.\d GiB of memory"),
    10: ("SIGABRT", r"crashed the process that read it \(SIGABRT\)"),
}


def test_videos_that_end_their_workers_cost_those_videos(manifest, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(workers, "VIDEO_TIME_LIMIT", 5.0)
    expected = list(build_loader(training(manifest), LoaderSettings(**SETTINGS)))
    deeds = {video: deed for video, (deed, _) in WORSE.items()}
    dataset = deadly(manifest, deeds, tmp_path)
    loader = build_loader(dataset, LoaderSettings(num_workers=2, **SETTINGS))
    with caplog.at_level(logging.WARNING):
        batches = list(loader)
    loader.close()
    assert without(batches, ()) == without(expected, WORSE)
    failed = [failed for batch in batches for failed in batch.failed]
    came = [video for batch in expected for video in batch.video_ids.tolist()]
    assert sorted(f.video_id for f in failed) == sorted(v for v in came if v in WORSE)
    assert loader.failures.count == len(failed) > len(WORSE)
    for video_id, _, reason in failed:
        assert re.fullmatch(WORSE[video_id][1], reason)
    said = [r.getMessage() for r in caplog.records if "counts as unreadable" in r.getMessage()]
    assert len(said) == len(WORSE) - 1  # said once each; of too little memory no worker dies
    for video_id in dataset.unreadable:
        assert sum(f"clip {video_id}.mp4: " in line for line in said) == 1
        assert isinstance(dataset[0, video_id], Failed)  # nor are they read in this process


def test_a_test_goes_on_after_a_crash_with_every_video_once(manifest):
    dataset = VideoDataset(manifest, TestReader(SPEC, num_views=2))
    dataset.reader = Deadly(dataset.reader, {0: "SIGSEGV", 11: "SIGABRT"})
    loader = build_loader(dataset, LoaderSettings(batch_size=2, num_workers=2))
    for _ in range(2):  # the second time, by a loader that knows them
        batches = list(loader)
        assert torch.cat([b.video_ids[::2] for b in batches]).tolist() == list(range(1, 11))
        assert [f.video_id for b in batches for f in b.failed] == [0, 11]
    loader.close()


def test_a_worker_ended_for_another_reason_changes_nothing(manifest, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(workers, "VIDEO_TIME_LIMIT", 5.0)
    expected = list(build_loader(training(manifest), LoaderSettings(**SETTINGS)))
    deeds = {2: "SIGKILL once", 6: "hangs once"}
    dataset = deadly(manifest, deeds, tmp_path)
    loader = build_loader(
        dataset, LoaderSettings(num_workers=1, **SETTINGS)
    )  # of two, one may end with the other
    with caplog.at_level(logging.WARNING):
        same(list(loader), expected)
    loader.close()
    assert dataset.unreadable == {}
    said = [record.getMessage() for record in caplog.records]
    for video in deeds:
        (line,) = [line for line in said if f"clip {video}.mp4" in line]
        assert re.search("is replaced|is tried once more", line)


def test_an_idle_worker_and_the_fork_server_may_be_killed(manifest, caplog):
    expected = list(build_loader(training(manifest), LoaderSettings(**SETTINGS)))
    loader = build_loader(training(manifest), LoaderSettings(num_workers=2, **SETTINGS))
    batches = []
    for batch in loader:
        batches.append(batch)
        if len(batches) == 2:
            idle = 0
            while idle < 20:  # the workers have read ahead, and wait
                time.sleep(0.05)
                idle = idle + 1 if loader._workers.reading[0] == -1 else 0
            os.kill(loader._workers.processes[0].pid, signal.SIGTERM)
        if len(batches) == 5:
            os.kill(multiprocessing.forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    loader.close()
    same(batches, expected)
    assert loader.dataset.unreadable == {}
    # of what, depends on whether the loader looked before the server was killed as well
    assert "a data loading worker died: " in caplog.text
    assert "It is replaced" in caplog.text


def test_workers_that_die_again_and_again_end_the_run(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "MAX_DEATHS", 2)
    deeds = dict.fromkeys(range(12), "SIGKILL")
    loader = build_loader(
        deadly(manifest, deeds, tmp_path), LoaderSettings(num_workers=1, **SETTINGS)
    )
    with pytest.raises(RunFailed, match=r"worker died while it read .*: SIGKILL.*NUM_WORKERS"):
        list(loader)


def test_all_workers_ended_by_sigterm_end_the_run(manifest):
    loader = build_loader(training(manifest), LoaderSettings(num_workers=2, **SETTINGS))
    batches = iter(loader)
    next(batches)
    for process in loader._workers.processes:
        os.kill(process.pid, signal.SIGTERM)
    with pytest.raises(RunFailed, match="all data loading workers were ended by SIGTERM"):
        list(batches)
    loader.close()


@pytest.mark.parametrize("server_too", [False, True])
def test_where_other_processes_wait_workers_ended_by_sigterm_are_replaced(
    manifest, caplog, server_too
):
    """torchrun ends a process together with its workers; the step it is in must be finished."""
    settings = {**SETTINGS, "batch_size": 2, "world_size": 2}
    expected = list(build_loader(training(manifest), LoaderSettings(**settings)))
    loader = build_loader(training(manifest), LoaderSettings(num_workers=6, **settings))
    batches = iter(loader)
    read = [next(batches)]
    if server_too:
        os.kill(multiprocessing.forkserver._forkserver._forkserver_pid, signal.SIGTERM)
    for process in loader._workers.processes:
        os.kill(process.pid, signal.SIGTERM)
    same([*read, *batches], expected)
    loader.close()
    assert "all data loading workers were ended from outside. They are replaced" in caplog.text


def test_a_video_that_crashes_its_decoder_is_no_end_before_the_start(manifest, tmp_path):
    one = deadly(manifest, {0: "SIGSEGV"}, tmp_path)
    preflight.require_readable(one, what="training", guarded=True)
    every = deadly(manifest, dict.fromkeys(range(12), "SIGSEGV"), tmp_path)
    with pytest.raises(RunFailed, match=r"(?s)none of 2 training.*clip 0.mp4: crashed \(SIGSEGV"):
        preflight.require_readable(every, what="training", tries=2, guarded=True)


def test_batches_after_a_number_of_them_are_the_rest(manifest):
    dataset = training(manifest)
    plans = [
        build_loader(
            dataset, LoaderSettings(batch_size=6, grad_accum=3, start_step=1, stop_step=4)
        ),
        build_loader(
            VideoDataset(manifest, TestReader(SPEC)),
            LoaderSettings(batch_size=5, rank=1, world_size=2),
        ),
    ]
    for plan in (loader._sampler.batches for loader in plans):
        whole = list(plan)
        for count in range(len(whole) + 1):
            rest = plan.after(count)
            assert list(rest) == whole[count:]
            assert len(rest) == len(whole) - count
            assert list(rest.after(1)) == whole[count + 1 :]


# ---- sizes --------------------------------------------------------------------------------------


def test_sizes_that_do_not_fit_are_told(manifest):
    dataset = training(manifest)
    with pytest.raises(DataError, match=r"batch of 5 .*2 processes x 1 .*multiple of 2"):
        build_loader(dataset, LoaderSettings(batch_size=5, world_size=2))
    with pytest.raises(DataError, match="12 training videos are too few for 16 processes"):
        build_loader(dataset, LoaderSettings(batch_size=16, world_size=16))
    for wrong in ({"batch_size": 0}, {"batch_size": 2, "rank": 2, "world_size": 2}):
        with pytest.raises(DataError, match="at least 1"):
            build_loader(dataset, LoaderSettings(**wrong))
    with pytest.raises(DataError, match="num_temporal=0"):
        training(manifest, num_temporal=0)
    small = build_loader(dataset, LoaderSettings(batch_size=64, grad_accum=4))
    assert small.batch_size == 12
    assert small.notes == ["only 12 videos: steps of 12 instead of 64 videos"]
    assert [len(b.video_ids) for b in small] == [3, 3, 3, 3]


def test_what_a_model_needs_of_a_batch_moves_and_the_bookkeeping_stays():
    erased = Erasures(((0, 0, 0, 1, 1),), torch.zeros(3))
    zeros = torch.zeros(1)
    batch = Batch(torch.zeros(1, 3, 1, 2, 2), zeros, zeros, zeros, ("x",), erased)
    moved = batch.to("meta")
    assert all(tensor.device.type == "meta" for tensor in moved.device_tensors().values())
    assert set(moved.device_tensors()) == {"clips", "labels", "noise"}
    assert moved.video_ids.device.type == moved.views.device.type == "cpu"
    assert moved.failed == ("x",)
    assert moved.erased.boxes == erased.boxes
