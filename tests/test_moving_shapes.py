"""The embedded set with boxes: the truth is true, one frame tells nothing, files come out whole."""

from __future__ import annotations

import hashlib
import json
import math
import shutil

import numpy as np
import pytest
import torch

from hiera_video.detection import moving_shapes
from hiera_video.detection.files import read_annotated_boxes, read_label_map
from hiera_video.detection.moving_shapes import (
    ACTIONS,
    FPS,
    FRAMES,
    LABEL_MAP,
    SECONDS,
    ShapeSettings,
    actions_of,
    boxes_of,
    make_shapes,
    motion_of,
    render_clip,
)
from hiera_video.errors import UserError
from hiera_video.video.decode import read_frames

TINY = ShapeSettings(num_train=3, num_val=2, size=64)


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("shapes") / "set", TINY, workers=1)


# ---- the truth ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_a_shape_is_in_its_box_and_fills_it(seed, monkeypatch):
    """The pixels that a shape changes are those of its box, up to soft edges."""
    monkeypatch.setattr(moving_shapes, "_grain", lambda: torch.zeros(1 << 21))
    actions, size = actions_of(seed), 96
    boxes = boxes_of(seed, actions, size)
    alone = [render_clip(seed, actions[:n], size).int() for n in range(len(actions) + 1)]
    for number in range(len(actions)):
        changed = (alone[number + 1] - alone[number]).abs().amax(1) > 12
        for at, second in enumerate(SECONDS):
            rows, columns = np.nonzero(changed[second * FPS].numpy())
            drawn = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert np.abs(drawn - boxes[number, at] * size).max() <= 1, (number, second)
            assert changed[second * FPS].sum() > 30


def test_boxes_are_inside_and_apart():
    for seed in range(60):
        boxes = boxes_of(seed, actions_of(seed))
        assert boxes.min() >= 0
        assert boxes.max() <= 1
        assert (boxes[..., 2:] - boxes[..., :2]).min() > 0.04
        for one in range(len(boxes)):
            for other in range(one):
                low = np.maximum(boxes[one, :, :2], boxes[other, :, :2])
                high = np.minimum(boxes[one, :, 2:], boxes[other, :, 2:])
                assert ((high - low).min(axis=-1) <= 0).all(), "shapes keep to their quarters"


@pytest.mark.parametrize("action", ACTIONS)
def test_each_action_moves_as_it_says(action):
    changes = {"shakes": "x", "bounces": "y", "circles": "xy", "spins": "a", "pulses": "s"}
    for seed in range(20):
        motion = motion_of(np.random.default_rng(seed), (0.25, -0.25), action)
        spans = {
            "x": np.ptp(motion.centre[:, 0]),
            "y": np.ptp(motion.centre[:, 1]),
            "s": np.ptp(motion.size),
            "a": np.ptp(motion.angle),
        }
        moving = {name for name, span in spans.items() if span > 0}
        assert moving == set(changes.get(action, ""))
        assert all(span > 0.03 for span in spans.values() if span)


def test_a_motion_is_whole_within_a_clip():
    """16 frames, every second one, show at least a whole turn."""
    clip = 2 * np.arange(16)
    for seed in range(50):
        angle = motion_of(np.random.default_rng(seed), (0.25, 0.25), "spins").angle[clip]
        assert abs(angle[-1] - angle[0]) >= 2 * math.pi


# ---- one frame tells nothing --------------------------------------------------------------------


def test_clips_of_all_actions_are_the_same_picture_at_second_1():
    for seed in (3, 8):
        clips = [render_clip(seed, [action, action], 64) for action in ACTIONS]
        for clip in clips[1:]:
            assert torch.equal(clip[FPS], clips[0][FPS])
            assert (clip[FPS + 8].int() - clips[0][FPS + 8].int()).abs().max() > 60
        boxes = [boxes_of(seed, [action, action], 64)[:, 0] for action in ACTIONS]
        assert all(np.array_equal(one, boxes[0]) for one in boxes)


def features(clip, box, frames):
    """What is in a box: 12 x 12 pixels of each of these frames, its place and its size."""
    size = clip.shape[-1]
    x1, y1, x2, y2 = (box * size).round().astype(int)
    grown = slice(max(y1 - 8, 0), y2 + 8), slice(max(x1 - 8, 0), x2 + 8)
    cut = clip[frames][:, :, grown[0], grown[1]].float() / 255
    small = torch.nn.functional.interpolate(cut, (12, 12), mode="area").mean(1)
    return small.flatten().numpy(), np.array([*box, x2 - x1, y2 - y1])


def accuracy(train, test):
    """Of the nearest neighbour; rows are (label, vector)."""
    vectors = np.stack([vector for _, vector in train])
    scale = vectors.std(axis=0) + 1e-6
    right = 0
    for label, vector in test:
        nearest = (((vectors - vector) / scale) ** 2).sum(axis=1).argmin()
        right += train[nearest][0] == label
    return right / len(test)


def test_one_frame_is_near_chance_and_motion_is_not():
    """Nearest neighbours by pixels, place and size of one frame; and by how much pixels change."""
    still, moving = [], []
    for seed in range(110):
        actions = actions_of(seed)
        clip, boxes = render_clip(seed, actions, 64), boxes_of(seed, actions, 64)
        for action, box in zip(actions, boxes[:, 1], strict=True):
            middle = SECONDS[1] * FPS
            pixels, place = features(clip, box, [middle])
            still.append((action, np.concatenate([pixels, 5 * place])))
            around, _ = features(clip, box, list(range(middle - 16, middle + 16, 2)))
            frames = around.reshape(16, 12, 12)
            spread = frames.std(axis=0)
            moving.append((action, np.concatenate([spread.mean(0), spread.mean(1)])))
    half = len(still) // 2
    assert accuracy(still[:half], still[half:]) < 0.27, "chance is 0.17"
    assert accuracy(moving[:half], moving[half:]) > 0.6


# ---- the files ----------------------------------------------------------------------------------


def test_the_layout(made):
    names = set(digests(made))
    assert names == {
        *(f"videos/train_{n:05d}.mp4" for n in range(3)),
        *(f"videos/val_{n:05d}.mp4" for n in range(2)),
        *("annotations/train.csv", "annotations/val.csv", "annotations/actions.pbtxt"),
        "manifest.json",
    }
    assert read_label_map(made / "annotations/actions.pbtxt") == LABEL_MAP
    for split, count in (("train", 3), ("val", 2)):
        table = read_annotated_boxes(made / f"annotations/{split}.csv")
        assert table.videos == tuple(f"{split}_{n:05d}" for n in range(count))
        assert set(table.second.tolist()) == set(SECONDS)
        for number, name in enumerate(table.videos):
            here = (table.video == number) & (table.second == 1)
            assert here.sum() in (2, 3)
            assert len(set(table.action[here].tolist())) == here.sum(), "each its own"
            assert name in str(sorted(names))


def test_the_settings_name_its_files(made):
    ava = moving_shapes.SETTINGS
    ava.check()
    lists = (*ava.train_gt_box_lists, ava.groundtruth_file, ava.label_map_file)
    assert all((made / ava.annotation_dir / name).is_file() for name in lists)
    assert (made / ava.video_dir).is_dir()
    assert not ava.exclusion_file
    assert not ava.test_predict_box_lists
    assert ava.seconds == (SECONDS[0], SECONDS[-1])


def test_a_file_shows_what_was_drawn(made):
    """In its order and at its times: each frame is nearest to the one that was drawn for it."""
    drawn = render_clip(0, actions_of(0), TINY.size).float().mean(1)
    frames = [0, FPS, 2 * FPS + 7, 3 * FPS, FRAMES - 1]
    read = read_frames(made / "videos/train_00000.mp4", frames).float().mean(1)
    away = (read[:, None] - drawn[None]).abs().mean((-1, -2))
    assert away.argmin(1).tolist() == frames
    assert away.amin(1).max() < 6


def test_the_same_files_again(made, tmp_path):
    assert digests(make_shapes(tmp_path / "again", TINY, workers=2)) == digests(made)
    other = make_shapes(tmp_path / "other", ShapeSettings(1, 1, size=64, seed=1), workers=1)
    assert digests(other)["videos/train_00000.mp4"] != digests(made)["videos/train_00000.mp4"]


def test_a_set_that_lacks_a_file_is_made_again(made, tmp_path):
    folder = tmp_path / "set"
    for lost in ("annotations/val.csv", "videos/val_00001.mp4"):
        shutil.copytree(made, folder, dirs_exist_ok=True)
        (folder / lost).unlink()
        assert digests(make_shapes(folder, TINY, workers=1)) == digests(made)


def test_an_interrupted_run_leaves_nothing_and_the_next_is_whole(made, tmp_path, monkeypatch):
    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path / "set", TINY, workers=1, progress=stop)
    assert not list(tmp_path.iterdir())
    counts = []
    make_shapes(tmp_path / "set", TINY, workers=1, progress=lambda *count: counts.append(count))
    assert digests(tmp_path / "set") == digests(made)
    assert counts[-1] == (8, 8)
    monkeypatch.setattr(moving_shapes, "_write", None)
    make_shapes(tmp_path / "set", TINY)  # is there: nothing is written


def test_another_set_is_not_replaced(made):
    with pytest.raises(UserError, match=r"num_train=3 \(asked: 4\)"):
        make_shapes(made, ShapeSettings(num_train=4, num_val=2, size=64))
    assert json.loads((made / "manifest.json").read_text())["num_train"] == 3


@pytest.mark.parametrize(
    "wrong", [{"num_train": -1}, {"num_val": 1.5}, {"size": 33}, {"size": 16}, {"size": 2000}]
)
def test_impossible_numbers_are_refused(wrong):
    with pytest.raises(UserError, match=f"moving-shapes set: {next(iter(wrong))}="):
        ShapeSettings(**wrong)
