"""The embedded camera-motion set: what its labels mean is measured, not read from its code."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from clips import write_clip
from conftest import REPOSITORY
from motion_eye import blur, camera_seen, sample
from other_processor import avx2, other_processor

from hiera_video.data.synthetic import camera_motion as synthetic
from hiera_video.data.synthetic import mp4, scenes, shapes
from hiera_video.data.synthetic.camera_motion import CLIP_SPEC, LABELS, SetSettings
from hiera_video.data.synthetic.real_footage import over_real_footage
from hiera_video.errors import RunFailed, UserError
from hiera_video.video.decode import probe, read_frames

SMALL = {"num_train": 45, "num_val": 18, "size": 32, "frames": 6}

# ---- what the labels mean -----------------------------------------------------------------


def test_labels_are_the_nine_in_their_exact_words():
    assert LABELS == (
        "static",
        "pan left",
        "pan right",
        "tilt up",
        "tilt down",
        "zoom in",
        "zoom out",
        "roll clockwise",
        "roll counter-clockwise",
    )


def test_the_eye_of_these_tests_knows_its_directions():
    """A hand-made picture slid, enlarged and turned by index arithmetic alone."""
    rng = np.random.default_rng(0)
    scene = blur(rng.uniform(0, 255, (160, 160)), 4) * 6 - 640

    def clip(pose):
        frames = []
        for t in range(9):
            right, down, scale, angle = pose(t)
            y, x = np.mgrid[:64, :64] - 31.5
            sx = 80 + right + scale * (np.cos(angle) * x - np.sin(angle) * y)
            sy = 80 + down + scale * (np.sin(angle) * x + np.cos(angle) * y)
            frames.append(sample(scene, sx, sy))
        return torch.from_numpy(np.array(frames))[:, None].repeat(1, 3, 1, 1)

    assert camera_seen(clip(lambda t: (0, 0, 1, 0))) == "static"
    assert camera_seen(clip(lambda t: (-2 * t, 0, 1, 0))) == "pan left"
    assert camera_seen(clip(lambda t: (2 * t, 0, 1, 0))) == "pan right"
    assert camera_seen(clip(lambda t: (0, -2 * t, 1, 0))) == "tilt up"
    assert camera_seen(clip(lambda t: (0, 2 * t, 1, 0))) == "tilt down"
    assert camera_seen(clip(lambda t: (0, 0, 1 - 0.03 * t, 0))) == "zoom in"
    assert camera_seen(clip(lambda t: (0, 0, 1 + 0.03 * t, 0))) == "zoom out"
    # the view's right-hand end goes down: that is clockwise
    assert camera_seen(clip(lambda t: (0, 0, 1, 0.03 * t))) == "roll clockwise"
    assert camera_seen(clip(lambda t: (0, 0, 1, -0.03 * t))) == "roll counter-clockwise"


@pytest.mark.parametrize("label", LABELS)
def test_render_moves_as_its_label_says(label):
    seen = [camera_seen(synthetic.render_clip(label, seed)) for seed in range(3, 139, 17)]
    assert seen.count(label) >= 6, seen  # of 8


def test_files_move_as_their_folders_say(tmp_path):
    folder = synthetic.make_dataset(
        tmp_path / "set", SetSettings(num_train=27, num_val=0, seed=1), workers=1
    )
    right = []
    for path in sorted((folder / "train").glob("*/*.mp4")):
        info = probe(path)
        assert (info.num_frames, info.width, info.height) == (20, 80, 80)
        assert info.fps == pytest.approx(10)
        right.append(camera_seen(read_frames(path, range(20))) == path.parent.name)
    assert len(right) == 27
    assert sum(right) >= 22


# ---- one frame tells nothing --------------------------------------------------------------


def test_all_labels_show_the_same_picture_at_the_pivot():
    pivots = set()
    for seed in range(8):
        pivot = synthetic.camera_path("static", seed).pivot
        pivots.add(pivot)
        clips = [synthetic.render_clip(label, seed, size=32).int() for label in LABELS]
        for label, clip in zip(LABELS, clips, strict=True):
            assert (clip[pivot] - clips[0][pivot]).abs().max() <= 1, (seed, label)
            other = (pivot + 10) % 20
            if label != "static":
                assert (clip[other] - clips[0][other]).abs().max() > 1, (seed, label)
    assert len(pivots) > 3


def test_opposite_labels_are_mirror_images_about_the_pivot():
    pairs = {
        "zoom in": ("zoom out", "log_scale"),
        "roll clockwise": ("roll counter-clockwise", "angle"),
    }
    for label, (opposite, axis) in pairs.items():
        for seed in range(20):
            one, other, still = (
                getattr(synthetic.camera_path(name, seed), axis)
                for name in (label, opposite, "static")
            )
            np.testing.assert_allclose(one + other, 2 * still, atol=1e-12)


def features(frame: torch.Tensor) -> np.ndarray:
    """Sharpness at every scale and direction, brightness, contrast: all a zoom could betray."""
    grey = frame.double().mean(0).numpy() / 255
    window = np.hanning(len(grey))
    spectrum = np.abs(np.fft.fft2((grey - grey.mean()) * window[:, None] * window)) + 1e-3
    fy, fx = np.fft.fftfreq(len(grey)), np.fft.fftfreq(len(grey))
    radius, angle = np.hypot(fy[:, None], fx), np.arctan2(fy[:, None], fx) % np.pi
    rings = [np.log(spectrum[(radius > r) & (radius <= r + 0.07)]).mean() for r in np.r_[0:0.5:8j]]
    ways = [np.log(spectrum[(angle >= a) & (angle < a + 0.8)]).mean() for a in np.r_[0:2.4:4j]]
    means = frame.double().mean((1, 2)).numpy() / 255
    return np.array([*rings, *ways, *means, grey.std(), 1.0])


def probe_accuracy(inputs: np.ndarray, answers: np.ndarray) -> float:
    """Held-out accuracy of a ridge classifier; chance is one ninth."""
    half = len(inputs) // 2
    inputs = (inputs - inputs[:half].mean(0)) / (inputs[:half].std(0) + 1e-6)
    inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], 1)
    x, y = inputs[:half], np.eye(len(LABELS))[answers[:half]]
    weights = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ y)
    return float(((inputs[half:] @ weights).argmax(1) == answers[half:]).mean())


def test_a_probe_learns_nothing_from_one_frame_and_something_from_two():
    answers = np.arange(576) % 9
    clips = [
        synthetic.render_clip(LABELS[a], seed, frames=6, size=32, fps=3)
        for seed, a in enumerate(answers)
    ]
    for frame in (0, 5):
        alone = np.stack([features(clip[frame]) for clip in clips])
        assert probe_accuracy(alone, answers) < 0.19, frame
    # the same probe does learn from how well neighbouring frames match when slid by a pixel
    matches = []
    for clip in clips:
        first, second = clip[:-1].double().mean(1), clip[1:].double().mean(1)
        slides = [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)]
        errors = [(second.roll(s, dims=(1, 2)) - first).abs().mean().item() for s in slides]
        matches.append(np.array(errors[1:]) / errors[0])
    assert probe_accuracy(np.stack(matches), answers) > 0.3


# ---- determinism --------------------------------------------------------------------------


def test_a_clip_is_a_function_of_label_and_seed():
    clip = synthetic.render_clip("tilt up", 12)
    assert clip.dtype == torch.uint8
    assert clip.shape == (20, 3, 80, 80)
    synthetic.render_clip("zoom in", 400)  # other plates in between
    assert torch.equal(clip, synthetic.render_clip("tilt up", 12))
    assert not torch.equal(clip, synthetic.render_clip("tilt up", 13))
    assert not torch.equal(clip, synthetic.render_clip("tilt down", 12))


DRAW = """
import sys
import numpy as np
import torch
from hiera_video.data.synthetic import camera_motion as synthetic

torch.set_num_threads(int(sys.argv[2]))
clips = [
    synthetic.render_clip(synthetic.LABELS[n % 9], 16 * n + n, **wanted).numpy()
    for n in range(18)
    for wanted in ({"frames": 4, "fps": 2}, {"frames": 4, "size": 32, "plain": True})
]
np.savez(sys.argv[1], *clips)
"""
"""A program: 36 clips of 18 scenes into a file of arrays."""


def drawn(path, environment: dict[str, str], threads: int) -> list[np.ndarray]:
    """The clips of `DRAW`, drawn by a child process."""
    subprocess.run(
        [sys.executable, "-c", DRAW, str(path), str(threads)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        check=True,
    )
    with np.load(path) as stored:
        return list(stored.values())


def test_pictures_are_the_same_on_another_processor(tmp_path):
    """Within the rounding that the module's docstring states: 1 of 255, and in few pixels."""
    here = drawn(tmp_path / "here.npz", {}, threads=1)
    assert len({clip.tobytes() for clip in here}) == 36
    for name, environment in (("default", other_processor()), ("avx2", avx2())):
        there = drawn(tmp_path / f"{name}.npz", environment, threads=2)
        apart = [np.abs(a.astype(int) - b) for a, b in zip(here, there, strict=True)]
        assert max(each.max() for each in apart) <= 1, name
        assert np.mean(np.concatenate([each.ravel() > 0 for each in apart])) < 1e-4, name


@pytest.mark.parametrize(
    "processor", ["asm=AVX2", "asm=AVX", "asm=SSE4.2", "asm=SSSE3", "asm=SSE2", "no-asm=1"]
)
def test_the_same_pictures_are_the_same_file_on_every_processor(tmp_path, monkeypatch, processor):
    """x264 can be told, by its parameters, to use no more than such a processor has."""
    for number, name in enumerate(("zoom out", "static", "pan left")):
        clip = synthetic.render_clip(name, 77 + 16 * number, frames=8)
        mp4.encode(tmp_path / "here.mp4", clip, fps=10, crf=20)
        with monkeypatch.context() as patch:
            told = f"{mp4._CODEC['x264-params']}:{processor}"
            patch.setitem(mp4._CODEC, "x264-params", told)
            mp4.encode(tmp_path / "there.mp4", clip, fps=10, crf=20)
        assert (tmp_path / "here.mp4").read_bytes() == (tmp_path / "there.mp4").read_bytes()


def test_pictures_differ_and_shapes_cover_from_nothing_to_half():
    clips = [synthetic.render_clip("static", seed, frames=2, size=32) for seed in range(0, 640, 16)]
    brightness = np.array([clip.double().mean().item() for clip in clips])
    assert brightness.std() > 10
    covers = []
    for seed in range(60):
        drawn_shapes = shapes.foreground_shapes(seed, np.arange(20) / 10, pivot=4)
        covers.append(sum(0.6 * shape.size[4] ** 2 for shape in drawn_shapes))
    assert min(covers) == 0
    assert 0.3 < max(covers) <= shapes.MAX_COVERAGE + 1e-9


def test_unknown_label_names_the_nine():
    with pytest.raises(UserError, match=r"'pan up'.*static, pan left.*counter-clockwise"):
        synthetic.render_clip("pan up", 0)


# ---- the set on disk ----------------------------------------------------------------------


def contents(folder) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.mp4")}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "set"
    reports = []
    synthetic.make_dataset(
        folder,
        SetSettings(**SMALL),
        workers=2,
        progress=lambda done, total: reports.append((done, total)),
    )
    assert reports == [(n, 63) for n in range(1, 64)]
    return folder


def test_set_is_balanced_and_complete(made):
    for split, each in (("train", 5), ("val", 2)):
        folders = sorted(p.name for p in (made / split).iterdir())
        assert folders == sorted(LABELS)
        assert all(len(list((made / split / name).glob("*.mp4"))) == each for name in LABELS)
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["labels"] == list(LABELS)
    assert manifest["num_train"] == 45
    assert [p.name for p in made.parent.iterdir()] == ["set"]  # nothing half-made beside it


def test_train_and_val_share_no_scene():
    seen = {"train": set(), "val": set()}
    for name, _, seed, scene in synthetic._videos(SetSettings(num_train=5000, num_val=5000)):
        assert scene == seed // scenes.CLIPS_PER_SCENE
        seen[name.split("/")[0]].add(scene)
    assert not seen["train"] & seen["val"]


@pytest.mark.numbers
def test_numbers_of_workers_and_threads_change_nothing(made, tmp_path):
    for workers, threads in ((1, 1), (1, 2), (1, 4), (3, 2)):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            folder = tmp_path / f"{workers} {threads}"
            synthetic.make_dataset(folder, SetSettings(**SMALL), workers=workers)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        assert contents(folder) == contents(made), (workers, threads)


@pytest.mark.numbers
def test_a_clip_does_not_depend_on_the_threads_of_its_process():
    before = torch.get_num_threads()
    try:
        for label, seed in (("roll clockwise", 5), ("tilt up", 38), ("zoom in", 71)):
            clips = []
            for threads in (1, 2, 3, 4):
                torch.set_num_threads(threads)
                scenes.scene_pyramid.cache_clear()
                clips.append(synthetic.render_clip(label, seed))
            assert all(torch.equal(clips[0], other) for other in clips[1:])
    finally:
        torch.set_num_threads(before)


@pytest.mark.numbers
def test_labels_seeds_and_draws_are_the_same_everywhere():
    """Written out: none of these may depend on the machine, or on numpy's version."""
    videos = synthetic._videos(SetSettings(num_train=11, num_val=2, seed=3))
    assert [video[:3] for video in videos[8:]] == [
        ("train/roll counter-clockwise/00000.mp4", "roll counter-clockwise", 60_000_008),
        ("train/static/00001.mp4", "static", 60_000_009),
        ("train/pan left/00001.mp4", "pan left", 60_000_010),
        ("val/static/00000.mp4", "static", 70_000_000),
        ("val/pan left/00000.mp4", "pan left", 70_000_001),
    ]
    seeds = (0, 1, 60_000_008, 70_000_001)
    assert [synthetic.camera_path("static", seed).pivot for seed in seeds] == [10, 10, 3, 12]
    assert [synthetic._quality(seed) for seed in seeds] == [30, 30, 22, 25]
    counts = [len(shapes.foreground_shapes(seed, np.arange(20) / 10, pivot=4)) for seed in seeds]
    assert counts == [4, 3, 4, 2]


def test_colours_of_a_file_are_within_rounding_of_their_definition():
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (2, 3, 34, 48), dtype=np.uint8)
    clip[0, :, :2, :4] = np.array([0, 255])[:, None].repeat(2, 1).ravel()
    planes = mp4._to_yuv420(clip)
    assert planes.shape == (2, 51, 48)
    red, green, blue = clip.astype(float).transpose(1, 0, 2, 3)
    light = 0.299 * red + 0.587 * green + 0.114 * blue  # BT.601
    np.testing.assert_allclose(planes[:, :34], 16 + light * 219 / 255, atol=0.51)
    for number, colour in enumerate(((blue - light) / 1.772, (red - light) / 1.402)):
        half = (colour[..., 0::2] + colour[..., 1::2]) / 2
        half = np.concatenate([half[:, :1], half, half[:, -1:]], axis=1)
        half = (half[:, :-3:2] + 3 * half[:, 1:-2:2] + 3 * half[:, 2:-1:2] + half[:, 3::2]) / 8
        plane = planes[:, 34:].reshape(2, 2, 17, 24)[:, number]
        np.testing.assert_allclose(plane, 128 + half * 224 / 255, atol=0.51)


def test_decoded_file_is_the_render_but_for_compression(made):
    path = made / "train" / "pan left" / "00000.mp4"
    rendered = synthetic.render_clip("pan left", 1, frames=6, size=32).double()
    error = (read_frames(path, range(6)).double() - rendered).abs().mean()
    assert error < 12
    other = synthetic.render_clip("pan left", 17, frames=6, size=32).double()
    assert (other - rendered).abs().mean() > 2 * error


def test_complete_set_is_reused(made):
    before = {p: p.stat().st_mtime_ns for p in made.rglob("*.mp4")}
    called = []
    synthetic.make_dataset(made, SetSettings(**SMALL), progress=lambda *a: called.append(a))
    assert not called
    assert before == {p: p.stat().st_mtime_ns for p in made.rglob("*.mp4")}


def test_interrupted_making_leaves_nothing_and_is_done_anew(tmp_path):
    def interrupt(done, total):
        if done == 20:
            raise KeyboardInterrupt

    for workers in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            synthetic.make_dataset(
                tmp_path / "set", SetSettings(**SMALL), workers=workers, progress=interrupt
            )
        assert not list(tmp_path.iterdir())
    # killed outright, a run cannot clean up: the next one does, by the dead process's number
    dead = tmp_path / ".set.making-999999999"
    (dead / "train").mkdir(parents=True)
    synthetic.make_dataset(tmp_path / "set", SetSettings(**SMALL), workers=1)
    assert len(contents(tmp_path / "set")) == 63
    assert not dead.exists()


def test_set_with_missing_files_is_made_anew(tmp_path):
    parameters = {**SMALL, "num_train": 9, "num_val": 9}
    folder = synthetic.make_dataset(tmp_path / "set", SetSettings(**parameters), workers=1)
    whole = contents(folder)
    (folder / "val" / "static" / "00000.mp4").unlink()
    synthetic.make_dataset(folder, SetSettings(**parameters), workers=1)
    assert contents(folder) == whole


def test_other_parameters_are_refused_by_name(made):
    with pytest.raises(UserError, match=r"num_train=45 \(asked: 90\).*delete"):
        synthetic.make_dataset(made, SetSettings(**{**SMALL, "num_train": 90}))
    assert len(contents(made)) == 63


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "holiday.mp4").write_bytes(b"mine")
    with pytest.raises(UserError, match="no camera-motion set"):
        synthetic.make_dataset(tmp_path, SetSettings(**SMALL))
    assert (tmp_path / "holiday.mp4").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 33}, "size=33"),
        ({"num_train": -1}, "num_train=-1"),
        ({"frames": 1}, "frames=1"),
        ({"workers": 0}, "workers=0"),
    ],
)
def test_impossible_parameters(tmp_path, wrong, message):
    def make(*, workers=None, **settings):
        synthetic.make_dataset(tmp_path / "set", SetSettings(**settings), workers=workers)

    with pytest.raises(UserError, match=message):
        make(**{**SMALL, **wrong})
    assert not list(tmp_path.iterdir())


def test_dead_workers_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RunFailed, match="0 of 63"):
        synthetic.make_dataset(tmp_path / "set", SetSettings(**SMALL), workers=2)
    assert not list(tmp_path.iterdir())


# ---- over footage -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    """A file of one unmoving, detailed scene: 2.4 s at 25 fps, 256 x 192."""
    import av

    path = tmp_path_factory.mktemp("footage") / "still.mp4"
    scene = scenes.scene_pyramid(7)[0][0, :, :192, :256].mul(255).to(torch.uint8)
    picture = np.ascontiguousarray(scene.permute(1, 2, 0).numpy())
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = 256, 192, "yuv420p"
        for _ in range(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("label", LABELS)
def test_crop_over_footage_moves_as_its_label_says(footage, label):
    seen = [
        camera_seen(over_real_footage(footage, label, seed, frozen=frozen))
        for seed, frozen in ((1, False), (2, True), (3, False))
    ]
    assert seen.count(label) >= 2, seen


def test_frozen_footage_stands_and_moving_footage_moves(tmp_path):
    path = write_clip(tmp_path / "box.mp4", frames=60, fps=25, size=(128, 96))
    still = over_real_footage(path, "static", 5, frozen=True, size=48).double()
    moving = over_real_footage(path, "static", 5, frozen=False, size=48).double()
    assert still.shape == moving.shape == (2 * CLIP_SPEC.num_frames, 3, 48, 48)
    assert (still[0] - still[-1]).abs().mean() < 0.5 * (moving[0] - moving[-1]).abs().mean()


def test_footage_shorter_than_a_clip_is_refused(tmp_path):
    path = write_clip(tmp_path / "short.mp4", frames=10, fps=25, size=(128, 96))
    with pytest.raises(UserError, match=r"0\.40 s.*needs 1\.60 s"):
        over_real_footage(path, "static", 0, frozen=True)


@pytest.mark.parametrize("label", LABELS)
def test_crop_over_real_clips(shared_data, label):
    clip = shared_data / "clips" / "hiera_dog.mp4"
    seen = [camera_seen(over_real_footage(clip, label, seed, frozen=True)) for seed in (11, 12, 13)]
    assert seen.count(label) >= 2, seen
