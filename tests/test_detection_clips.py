"""Clips of key frames: boxes move with their pixels, frames are those of the extraction."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from ava_set import AvaSet, at_30_a_second, drawn, found
from clips import read_index, read_indices, write_clip
from PIL import Image

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.batch import Failed
from hiera_video.data.datasets import read_clips
from hiera_video.data.loader import LoaderSettings, build_loader
from hiera_video.data.transforms.photometric import Photometric
from hiera_video.data.transforms.train import Crop, TrainTransform
from hiera_video.detection import box_moves
from hiera_video.detection.box_moves import Window
from hiera_video.detection.clips import (
    LEAST_SEEN,
    KeyFrameDataset,
    TestKeyFrames,
    TrainKeyFrames,
    square_crops,
)
from hiera_video.detection.key_frames import read_key_frames
from hiera_video.detection.movie_frames import (
    Movie,
    NumberedNames,
    at_grid,
    clip_places,
)
from hiera_video.errors import DecodeError, UserError
from hiera_video.video.decode import probe

SPEC = ClipSpec(num_frames=4, sampling_rate=2, crop_size=64)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Two movies whose pictures carry their number; the second also as pictures, with lists."""
    ava = AvaSet(tmp_path_factory.mktemp("numbered"))
    ava.movie("a", seconds=3, fps=25, size=(128, 96))
    ava.movie("b", seconds=3, fps=30, size=(128, 96))
    rows = ["a,1,0.1,0.1,0.5,0.9,1,0", "a,2,0.2,0.1,0.6,0.9,3,0", "b,1,0.1,0.1,0.5,0.9,,0"]
    ava.write("ava_train_v2.2.csv", "\n".join(rows))
    ava.write("ava_val_v2.2.csv", "\n".join(rows))
    return ava


# ---- boxes move with their pixels ---------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_a_drawn_rectangle_stays_where_its_box_says(seed):
    """Any chain of crops, mirrorings and scales, on the picture and on its box."""
    rng = np.random.default_rng(seed)
    width, height = (int(n) for n in rng.integers(90, 260, 2))
    corners = np.sort(rng.uniform(0, 1, (2, 2)), axis=0).reshape(1, 4)
    sides = np.array([width, height, width, height])
    corners = np.round(corners * sides) / sides
    picture = torch.from_numpy(drawn(tuple(corners[0]), (width, height))).permute(2, 0, 1)[None]
    for _ in range(int(rng.integers(1, 4))):
        rows, columns = picture.shape[-2:]
        high = int(rng.integers(rows // 2, rows + 1))
        wide = int(rng.integers(columns // 2, columns + 1))
        place = int(rng.integers(0, rows - high + 1)), int(rng.integers(0, columns - wide + 1))
        crop = Crop(*place, high, wide, flip=bool(rng.integers(2)))
        window = Window.of_pixels(crop[:4], (rows, columns), flip=crop.flip)
        picture = crop.cut(picture, int(rng.integers(80, 200)))
        corners = box_moves.seen_through(corners, window)
    assert_drawn_at(picture[0], box_moves.clipped(corners)[0])


def assert_drawn_at(picture: torch.Tensor, corners: np.ndarray, pixels: float = 1.0) -> None:
    """The rectangle seen in uint8 [3, S, S] is where `corners` say, within so many pixels."""
    rows, columns = picture.shape[-2:]
    expected = np.asarray(corners, np.float64) * [columns, rows, columns, rows]
    seen = found(picture)
    if seen is None:  # too narrow to be seen at half its brightness
        assert min(expected[2:] - expected[:2]) <= 1.5
    else:
        assert np.abs(np.array(seen) - expected).max() <= pixels + 0.5


@pytest.mark.parametrize("size", [(160, 96), (96, 160), (120, 120)])
@pytest.mark.parametrize("scales", [None, (80, 110)])
def test_boxes_of_training_clips_are_where_they_are_drawn(tmp_path, size, scales):
    ava = AvaSet(tmp_path)
    box = (0.25, 0.25, 0.75, 0.5)
    ava.drawn_movie("a", box, size)
    ava.write("ava_train_v2.2.csv", f"a,0,{','.join(map(str, box))},1,0")
    frames = read_key_frames(tmp_path, ava.settings(), "train")
    transform = TrainTransform(SPEC, area=(0.2, 1.0))
    dataset = KeyFrameDataset(frames, TrainKeyFrames(transform, seed=5, scales=scales))
    seen = 0
    for epoch in range(12):
        (pixels,) = read_clips(dataset.reader, dataset.sample(0, epoch)).clips
        assert pixels.frames.shape == (4, 3, 64, 64)
        assert pixels.boxes is not None
        for corners in pixels.boxes.corners.numpy():
            seen += 1
            for picture in pixels.frames:
                assert_drawn_at(picture, corners)
    assert seen >= 6


def test_jittered_boxes_stay_near_what_is_drawn(tmp_path):
    """Each side within its share of the drawn box, after crop, mirroring and scale too."""
    ava = AvaSet(tmp_path)
    box, size, jitter = (0.3, 0.25, 0.7, 0.75), (160, 96), 0.2
    ava.drawn_movie("a", box, size)
    ava.write("ava_train_v2.2.csv", f"a,0,{','.join(map(str, box))},1,0")
    frames = read_key_frames(tmp_path, ava.settings(), "train")
    reader = TrainKeyFrames(TrainTransform(SPEC, area=(1.0, 1.0), aspect=(5 / 3, 5 / 3)), seed=2)
    reader = dataclasses.replace(reader, box_jitter=jitter)
    dataset, moved = KeyFrameDataset(frames, reader), []
    for epoch in range(20):
        (pixels,) = read_clips(reader, dataset.sample(0, epoch)).clips
        seen = np.array(found(pixels.frames[0])) / 64
        width, height = seen[2:] - seen[:2]
        apart = (pixels.boxes.corners[0].numpy() - seen) / [width, height, width, height]
        moved.append(apart)
    assert np.abs(moved).max() <= jitter + 1 / (0.4 * 64)
    assert np.abs(moved).max() > jitter / 2
    assert (np.std(moved, axis=0) > jitter / 4).all()  # each side by itself


def test_jitter_moves_each_side_by_a_share_of_the_box():
    corners = np.array([[0.2, 0.2, 0.4, 0.6]])
    moved = box_moves.jittered(corners, np.array([[0.0, 0.5, 1.0, 0.25]]), 0.1)
    np.testing.assert_allclose(moved, [[0.18, 0.2, 0.42, 0.58]])
    draws = np.random.default_rng(0).uniform(size=(1000, 4))
    many = box_moves.jittered(np.repeat(corners, 1000, axis=0), draws, 0.9)
    assert (many[:, :2] <= many[:, 2:]).all()


def test_boxes_nearly_outside_are_dropped_and_the_others_stay(tmp_path):
    """The share of a box that a crop shows decides; a box never takes another one with it."""
    ava = AvaSet(tmp_path)
    ava.drawn_movie("a", (0.0, 0.0, 0.1, 1.0), (192, 64))
    rows = ["a,0,0,0,0.1,1,1,0", "a,0,0.45,0.1,0.55,0.9,3,1", "a,0,0.9,0,1,1,4,2"]
    ava.write("ava_train_v2.2.csv", "\n".join(rows))
    frames = read_key_frames(tmp_path, ava.settings(), "train")
    reader = TrainKeyFrames(TrainTransform(SPEC, flip=0.0), seed=1, scales=(64, 64))
    dataset = KeyFrameDataset(frames, reader)
    kept = []
    for epoch in range(30):
        (pixels,) = read_clips(reader, dataset.sample(0, epoch)).clips
        corners, labels, rows = pixels.boxes
        assert (corners >= 0).all()
        assert (corners <= 1).all()
        assert (corners[:, 2:] > corners[:, :2]).all()
        assert labels.argmax(dim=1).equal(rows)  # each box kept its own label
        kept.append(tuple(rows.tolist()))
    assert {0, 2} & set().union(*kept)
    assert (0, 1, 2) not in kept
    assert {row for rows in kept for row in rows} == {0, 1, 2}


def test_least_share_of_a_box():
    corners = np.array([[-0.9, 0, 0.1, 1], [-0.91, 0, 0.089, 1], [0, 0, 1, 1], [2, 2, 3, 3]])
    shares = box_moves.shares_inside(corners)
    assert (shares >= LEAST_SEEN - 1e-9).tolist() == [True, False, True, False]
    assert box_moves.shares_inside(np.array([[0.5, 0.5, 0.5, 0.5]])).tolist() == [0]


@pytest.mark.parametrize("scales", [None, (64, 66)])
def test_clips_are_mirrored_half_of_the_time(numbered, scales):
    frames = read_key_frames(numbered.path, numbered.settings(), "train")

    def upright(flip: float) -> list[bool]:
        transform = TrainTransform(SPEC, area=(0.9, 1.0), flip=flip)
        dataset = KeyFrameDataset(frames, TrainKeyFrames(transform, scales=scales))
        clips = [dataset.reader(dataset.sample(0, epoch))[0] for epoch in range(16)]
        lowest = [clip.frames[0, 0, -4:].float() for clip in clips]  # red falls from left to right
        return [bool(red[:, :20].mean() > red[:, -20:].mean()) for red in lowest]

    assert all(upright(0.0))
    assert 2 <= sum(upright(0.5)) <= 14


def test_the_same_epoch_gives_the_same_clip(numbered):
    frames = read_key_frames(numbered.path, numbered.settings(), "train")
    transform = TrainTransform(
        SPEC, erase_prob=1.0, photometric=Photometric(gamma=(0.5, 2), noise=0.1)
    )
    dataset = KeyFrameDataset(frames, TrainKeyFrames(transform, seed=3, box_jitter=0.2))
    one, again, other = (
        read_clips(dataset.reader, dataset.sample(0, epoch)).clips[0] for epoch in (1, 1, 2)
    )
    assert torch.equal(one.frames, again.frames)
    assert torch.equal(one.boxes.corners, again.boxes.corners)
    assert one.erased
    assert torch.equal(one.erased[0].noise, again.erased[0].noise)
    assert not torch.equal(one.frames, other.frames)


def test_what_cannot_carry_boxes_along_is_refused():
    with pytest.raises(UserError, match="AA_TYPE"):
        TrainKeyFrames(TrainTransform(SPEC, rand_augment="rand-m7-mstd0.5-inc1"))
    with pytest.raises(UserError, match="TARGET_FPS"):
        TestKeyFrames(dataclasses.replace(SPEC, target_fps=15.0))
    with pytest.raises(UserError, match="ascend"):
        TrainKeyFrames(TrainTransform(SPEC), scales=(40, 80))
    with pytest.raises(UserError, match="3"):
        TestKeyFrames(SPEC, num_crops=2)


# ---- test crops ---------------------------------------------------------------------------------


def test_each_box_is_scored_once_in_the_crop_that_shows_most_of_it(tmp_path):
    ava = AvaSet(tmp_path)
    ava.drawn_movie("a", (0.0, 0.0, 0.25, 1.0), (192, 64))
    boxes = [(0, 0, 0.25, 1), (0.4, 0.2, 0.6, 0.8), (0.7, 0, 1, 1), (0.3, 0.1, 0.35, 0.2)]
    rows = [f"a,0,{','.join(map(str, box))},1,{i}" for i, box in enumerate(boxes)]
    ava.write("ava_val_v2.2.csv", "\n".join(rows))
    frames = read_key_frames(tmp_path, ava.settings(), "test")
    dataset = KeyFrameDataset(frames, TestKeyFrames(SPEC, num_crops=3))
    clips = read_clips(dataset.reader, dataset.sample(0)).clips
    assert sorted(torch.cat([c.boxes.rows for c in clips]).tolist()) == [0, 1, 2, 3]
    by_rows = {tuple(c.boxes.rows.tolist()): c for c in clips}
    assert set(by_rows) == {(1,), (0, 3), (2,)}  # centre, start, end
    start = by_rows[0, 3]
    assert_drawn_at(start.frames[0], start.boxes.corners[0].numpy())

    (centre,) = read_clips(
        TestKeyFrames(SPEC), KeyFrameDataset(frames, TestKeyFrames(SPEC)).sample(0)
    ).clips
    assert centre.boxes.rows.tolist() == [0, 1, 2, 3]
    sides = centre.boxes.corners[:, 2:] - centre.boxes.corners[:, :2]
    assert (sides >= 1 / 64 - 1e-6).all()
    assert centre.boxes.corners[0, 0] == 0
    assert centre.boxes.corners[2, 2] == 1
    assert (centre.boxes.corners >= 0).all()
    assert (centre.boxes.corners <= 1).all()


def test_crops_without_a_box_are_not_read(numbered):
    frames = read_key_frames(numbered.path, numbered.settings(), "test")
    dataset = KeyFrameDataset(frames, TestKeyFrames(SPEC, num_crops=3))
    assert len(read_clips(dataset.reader, dataset.sample(0)).clips) == 1


@pytest.mark.parametrize("size", [(100, 160), (160, 100), (101, 160), (64, 64)])
def test_square_crops_reach_both_ends(size):
    centre, start, end = square_crops(*size, 3)
    side = min(size)
    assert {c.height for c in (centre, start, end)} == {side}
    assert (start.top, start.left) == (0, 0)
    assert (end.top + side, end.left + side) == size
    assert square_crops(*size, 1) == [centre]


# ---- which frames -------------------------------------------------------------------------------


def test_a_clip_has_its_key_frame_in_the_middle():
    """As SlowFast: from half the clip before the key frame on."""
    assert clip_places(100, 4, 3).tolist() == [94, 97, 100, 103]
    assert clip_places(60, 16, 4).tolist() == list(range(28, 92, 4))
    assert clip_places(0, 3, 1).tolist() == [-1, 0, 1]
    assert clip_places(7, 1, 1).tolist() == [7]


RATES = [25, Fraction(30000, 1001), 24, Fraction(24000, 1001), 30, 50, 60, 15]


def variable_times(count: int, seed: int) -> list[float]:
    times = np.cumsum(np.random.default_rng(seed).uniform(0.004, 0.11, count))
    return (times - times[0]).tolist()


@pytest.fixture(scope="module")
def movies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("movies")
    paths = {
        str(fps): write_clip(folder / f"r{i}.mp4", frames=150, fps=fps, b_frames=2 * (i % 2))
        for i, fps in enumerate(RATES)
    }
    for seed in (1, 2):
        times = variable_times(150, seed)
        paths[f"variable {seed}"] = write_clip(
            folder / f"v{seed}.mkv", frames=150, times=times, b_frames=seed
        )
    return paths


@pytest.mark.parametrize("name", [*map(str, RATES), "variable 1", "variable 2"])
def test_the_file_gives_the_frames_of_the_extraction(movies, name):
    """Against FFmpeg's own filter, for every picture that it extracts."""
    path = movies[name]
    expected = [
        read_index(frame.to_ndarray(format="rgb24").transpose(2, 0, 1))
        for frame in at_30_a_second(path)
    ]
    shown = at_grid(probe(path).times, np.arange(len(expected)))
    assert shown.tolist() == expected


@pytest.mark.parametrize(
    "name", ["derived_vfr_dog.mp4", "moviepy_no_duration.webm", "mmaction_demo_arm_wrestling.mp4"]
)
def test_real_files_give_the_frames_of_the_extraction(shared_data, name):
    """Which frame is shown, by its pixels: both come from the same decoder."""
    path = shared_data / "clips" / name
    with av.open(str(path)) as container:
        frames = [thumbnail(frame) for frame in container.decode(video=0)]
    extracted = [thumbnail(frame) for frame in at_30_a_second(path)]
    shown = at_grid(probe(path).times, np.arange(len(extracted)))
    for place, picture in zip(shown.tolist(), extracted, strict=True):
        assert np.array_equal(picture, frames[place])


def thumbnail(frame: av.VideoFrame) -> np.ndarray:
    return frame.to_ndarray(format="rgb24")[::9, ::9]


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="no ffmpeg program on this machine")
def test_a_movie_that_begins_late(tmp_path):
    """The program counts from the first frame, whatever its time is."""
    path = write_clip(tmp_path / "late.mkv", frames=60, fps=25, start=0.513)
    folder = tmp_path / "frames"
    folder.mkdir()
    extract(path, folder, "-vf", "fps=30")
    extracted = read_pictures(folder)
    shown = at_grid(probe(path).times, np.arange(len(extracted)))
    assert shown.tolist() == extracted.tolist()


def extract(path, folder, *rate: str) -> None:
    subprocess.run(
        ["ffmpeg", "-loglevel", "error", "-i", path, *rate, folder / "%06d.png"],
        check=True,
        stdin=subprocess.DEVNULL,
    )


def read_pictures(folder) -> np.ndarray:
    pictures = [Image.open(path).convert("RGB") for path in sorted(folder.iterdir())]
    return np.array([read_index(np.asarray(p).transpose(2, 0, 1)) for p in pictures])


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="no ffmpeg program on this machine")
@pytest.mark.parametrize("name", ["25", "24", "30000/1001", "30", "variable 1"])
@pytest.mark.parametrize("how", ["fps filter", "-r 30"])
def test_against_the_program_that_extracts(movies, tmp_path, name, how):
    """`-r 30` places some frames one picture earlier or later, unless the rate is close to 30."""
    rate = ["-vf", "fps=30"] if how == "fps filter" else ["-r", "30"]
    extract(movies[name], tmp_path, *rate)
    extracted = read_pictures(tmp_path)
    shown = at_grid(probe(movies[name]).times, np.arange(len(extracted)))
    exact = how == "fps filter" or name in ("30000/1001", "30")
    assert np.abs(extracted - shown).max() <= (0 if exact else 2)
    assert exact or (extracted != shown).any()  # else the text that says so is wrong


def test_pictures_and_video_file_give_the_same_clip(tmp_path):
    """SlowFast's layout and the video files: the same frames, the same boxes, the same labels."""
    ava = AvaSet(tmp_path)
    for name, fps in {"a": 25, "b": Fraction(24000, 1001)}.items():
        ava.movie(name, seconds=3, fps=fps, size=(128, 96))
        ava.extract(name)
    rows = [f"{v},{s},0.1,0.1,0.5,0.9,{a},0" for v in "ab" for s, a in ((0, 1), (1, 3), (2, 4))]
    ava.write("ava_train_v2.2.csv", "\n".join(rows))
    from_files = read_key_frames(tmp_path, ava.settings(), "train")
    ava.list_frames("train.csv", "a", "b")
    from_pictures = read_key_frames(tmp_path, ava.settings(), "train")
    assert "video files" in from_files.notes[0]
    assert "pictures" in from_pictures.notes[0]
    assert from_pictures.paths[0] != from_files.paths[0]
    reader = TestKeyFrames(ClipSpec(num_frames=8, sampling_rate=4, crop_size=96))
    for i in range(6):
        one, other = (
            read_clips(reader, KeyFrameDataset(frames, reader).sample(i))
            for frames in (from_files, from_pictures)
        )
        (one_clip,), (other_clip,) = one.clips, other.clips
        assert (one_clip.frames.int() - other_clip.frames.int()).abs().float().mean() < 3
        assert one.label == other.label
        assert all(map(torch.equal, one_clip.boxes, other_clip.boxes))


def test_frames_around_the_key_frame(numbered):
    """Frames before the start are the first one, and each place shows what is due at its time."""
    with Movie(str(numbered.path / "videos" / "b.mp4")) as movie:
        frames = movie.frames_of(clip_places(30, 4, 20), 30)
        assert frames.tolist() == [0, 10, 30, 50]
        assert read_indices(movie.reader.read(frames)) == [0, 10, 30, 50]
        assert movie.frames_of(clip_places(80, 4, 10), 80).tolist() == [60, 70, 80, 89]
    with Movie(str(numbered.path / "videos" / "a.mp4")) as movie:
        # 42 is shown at 50.4, 43 at 51.6 thirtieths: place 51 still shows 42.
        assert movie.frames_of(clip_places(60, 3, 6), 60).tolist() == [42, 47, 52]


def test_a_movie_that_ends_before_its_key_frame(numbered):
    with (
        Movie(str(numbered.path / "videos" / "a.mp4")) as movie,
        pytest.raises(DecodeError, match=r"ends after 3\.00 s, before the key frame at 3\.00 s"),
    ):
        movie.frames_of(clip_places(90, 4, 2), 90)


def test_the_folder_of_a_movie_is_not_listed(tmp_path, monkeypatch):
    ava = AvaSet(tmp_path)
    ava.movie("a", seconds=1, size=(96, 64))
    folder = ava.extract("a")
    monkeypatch.setattr("os.listdir", None)
    names = NumberedNames("a_", 1, 6, ".jpg", 30)
    with Movie(str(folder), names) as movie:
        assert read_indices(movie.reader.read([0, 7, 29])) == [0, 7, 29]


# ---- the data set -------------------------------------------------------------------------------


def test_batches_carry_boxes(numbered):
    """Through a worker process: every clip with its boxes, labels and rows."""
    frames = read_key_frames(numbered.path, numbered.settings(), "train")
    reader = TrainKeyFrames(TrainTransform(SPEC, area=(0.9, 1.0)))
    loader = build_loader(
        KeyFrameDataset(frames, reader), LoaderSettings(batch_size=3, num_workers=1)
    )
    try:
        (batch,) = loader
    finally:
        loader.close()
    assert not batch.failed
    assert batch.clips.shape == (3, 3, 4, 64, 64)
    assert batch.boxes.rows.sort().values.tolist() == [0, 1, 2]
    for clip, row, labels in zip(
        batch.boxes.clips, batch.boxes.rows, batch.boxes.labels, strict=True
    ):
        assert batch.video_ids[clip] == row  # one box in each key frame here
        assert labels.tolist() == frames.box_labels[row].tolist()
        assert batch.labels[clip].tolist() == labels.tolist()


def test_samples_are_small(numbered):
    """They go through a pipe, one for each clip: without the list."""
    frames = read_key_frames(numbered.path, numbered.settings(), "train")
    sample = KeyFrameDataset(frames, TestKeyFrames(SPEC)).sample(0)
    assert len(pickle.dumps(sample)) < 2000


def test_a_missing_movie_fails_and_names_itself(tmp_path):
    ava = AvaSet(tmp_path)
    ava.movie("a", seconds=1)
    ava.write("ava_val_v2.2.csv", "gone,0,0.1,0.1,0.5,0.9,1,0")
    frames = read_key_frames(tmp_path, ava.settings(), "test")
    dataset = KeyFrameDataset(frames, TestKeyFrames(SPEC))
    failed = read_clips(dataset.reader, dataset.sample(0))
    assert isinstance(failed, Failed)
    assert "gone" in failed.path
    assert failed.reason == "no such file"
