"""Generated bodies: their truth is held against the pixels, their labels against the motion."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from tiny_runs import config, final, interrupted, losses, run, same

pytest.importorskip("numba")

from hiera_video import build_model, load_config
from hiera_video.clip_spec import ClipSpec
from hiera_video.data.datasets import VideoDataset
from hiera_video.data.loader import LoaderSettings, build_loader
from hiera_video.data.synthetic.body_motion import actions, clips, figures, light, textures, truth
from hiera_video.data.synthetic.body_motion.actions import ACTIONS, ActionSettings
from hiera_video.data.synthetic.body_motion.clips import ClipSettings, draw_clip, frame_times
from hiera_video.data.synthetic.body_motion.reader import GeneratedReader
from hiera_video.data.synthetic.body_motion.scene import Body, compose, random_scene
from hiera_video.data.synthetic.body_motion.streams import stream
from hiera_video.data.synthetic.generated_streams import stream_list
from hiera_video.engine import motion, tasks
from hiera_video.errors import UserError
from hiera_video.models.weights.file import read_checkpoint
from hiera_video.models.weights.load import load_weights
from hiera_video.video.decode import probe

SETTINGS = ClipSettings()
pytestmark = pytest.mark.usefixtures("no_curves")


def scene_of(seed, settings=SETTINGS):
    """The world of a clip, its clean pixels and the layers that they show."""
    scene = random_scene(seed, frame_times(seed, settings), settings.frames)
    return scene, *clips.without_future(scene, settings).draw(settings.size)


def sampled(picture, x, y):
    """Bilinear samples of [H, W, 3] at pixel positions."""
    i, j = np.floor(y).astype(int).clip(0, 62), np.floor(x).astype(int).clip(0, 62)
    fy, fx = (y - i)[..., None], (x - j)[..., None]
    top = picture[i, j] + fx * (picture[i, j + 1] - picture[i, j])
    low = picture[i + 1, j] + fx * (picture[i + 1, j + 1] - picture[i + 1, j])
    return top + fy * (low - top)


# ---- the truth ----------------------------------------------------------------------------------


def test_the_flow_leads_to_where_the_pixels_went():
    """Sampling the next frame where the flow points gives this frame, wherever it is not hidden."""
    followed, stayed = [], []
    for seed in range(40):
        scene, picture, owner = scene_of(seed)
        flow, hidden = 64 * scene.flow(owner, 2, 3), scene.occluded(owner, 2, 3)
        y, x = np.mgrid[:64, :64]
        x, y = x + flow[0], y + flow[1]
        seen = ~hidden & (x > 1) & (y > 1) & (x < 62) & (y < 62)
        if not seen.any():
            continue
        followed.append(np.abs(sampled(picture[3], x, y) - picture[2])[seen].mean())
        stayed.append(np.abs(picture[3] - picture[2])[seen].mean())
    assert np.mean(followed) < 0.4 * np.mean(stayed)
    assert np.mean(stayed) > 0.01


def one_square(**course):
    """A textured square that covers the middle of the view, at 12 times."""
    t = (np.arange(12) - 3.5) * 0.1
    maps = np.zeros((1, 12, 2, 3))
    maps[:, :, [0, 1], [0, 1]] = 0.5
    parts = figures.Parts(maps, np.array([textures.BOX]), np.zeros(1, int), figures.NOTHING)
    given = {"place": np.zeros((12, 2)), "size": np.full(12, 0.6), "angle": np.zeros(12)}
    return t, Body(parts, **{**given, **{k: f(t) for k, f in course.items()}})


def still_camera(pan=0.0):
    t = (np.arange(12) - 3.5) * 0.1
    view = np.zeros((12, 2, 3))
    view[:, [0, 1], [0, 1]] = 1
    view[:, :, 2] = 0.5
    view[:, 0, 2] -= pan * t
    return view


@pytest.mark.parametrize("pan", [0.0, 0.3])
def test_a_square_that_slides_has_the_flow_of_its_speed(pan):
    """0.4 sides a second to the right; the camera's own motion is taken out of the last two."""
    _, body = one_square(place=lambda t: np.stack([0.4 * t, 0 * t], 1))
    scene = compose([body], still_camera(pan), stream(0, "look"))
    _, owner = scene.draw(64)
    flow = scene.flow(owner, 4, 5)
    middle = flow[:, 30:34, 30:34]
    assert middle[0] == pytest.approx(0.04 - 0.1 * pan, abs=1e-5)
    assert middle[1] == pytest.approx(0, abs=1e-5)
    assert middle[2] == pytest.approx(0.04, abs=1e-5)
    corner = flow[:, 1, 1]
    assert corner[0] == pytest.approx(-0.1 * pan, abs=1e-5)
    assert corner[2] == pytest.approx(0, abs=1e-5)


def test_a_square_that_turns_and_grows_has_the_flow_of_that():
    _, body = one_square(angle=lambda t: 0.5 * t, size=lambda t: 0.6 * np.exp(t))
    scene = compose([body], still_camera(), stream(0, "look"))
    _, owner = scene.draw(64)
    flow = scene.flow(owner, 3, 4)
    x, y = (40 + 0.5) / 64 - 0.5, (36 + 0.5) / 64 - 0.5
    grown, turn = math.exp(0.1), 0.05
    wanted = (
        grown * (math.cos(turn) * x - math.sin(turn) * y) - x,
        grown * (math.sin(turn) * x + math.cos(turn) * y) - y,
    )
    assert flow[:2, 36, 40] == pytest.approx(wanted, abs=1e-5)


def test_the_nearer_of_two_bodies_hides_the_other():
    _, first = one_square()
    _, second = one_square(place=lambda t: np.stack([0.5 * t, 0 * t], 1))
    scene = compose([first, second], still_camera(), stream(0, "look"))
    _, owner = scene.draw(64)
    assert (owner[:, 32, 32] == 0).all()
    assert scene.body.tolist() == [0, 1, -1]
    assert 1 in owner[-1]  # it has come out on the right
    hidden = scene.occluded(owner, 11, 3)
    assert hidden[owner[11] == 1].mean() > 0.9  # and was behind the first one before


def test_the_truth_of_a_clip_is_the_mean_of_cells_and_body_numbers():
    scene, _, owner = scene_of(5)
    values = clips.truth_of(scene, owner)
    assert values.shape == (truth.TRUTH_CHANNELS, 4, truth.GRID, truth.GRID)
    flow = 64 * scene.flow(owner, 2, 3)
    cells = flow.reshape(4, 16, 4, 16, 4).mean((2, 4))
    assert values[:4, 1] == pytest.approx(cells, abs=1e-4)
    doing = scene.doing[owner[2]].reshape(16, 4, 16, 4, -1).mean((1, 3))
    assert values[truth.FLOW_CHANNELS :, 1] == pytest.approx(doing.transpose(2, 0, 1), abs=1e-5)


# ---- clips --------------------------------------------------------------------------------------


def test_a_seed_gives_one_clip_and_another_seed_another():
    frames, known = draw_clip(3, SETTINGS)
    again, known_again = draw_clip(3, SETTINGS)
    assert np.array_equal(frames, again)
    assert np.array_equal(known, known_again)
    assert frames.dtype == np.uint8
    assert frames.shape == (8, 64, 64, 3)
    assert not np.array_equal(frames, draw_clip(4, SETTINGS)[0])


# Seed -> the mean byte of each quarter of the picture (upper left, upper right, lower left, lower
# right), and of the truth the mean absolute value: displacement, the part that is not the camera's,
# that over FAR frames, the share of figures, what these do.
STREAM = {
    0: ([133.4, 145.7, 168.9, 189.4], [0.332, 0.332, 1.43, 0.148, 0.019]),
    1: ([10.7, 11.8, 14.4, 14.6], [0.015, 0.015, 0.046, 0.057, 0.005]),
    2: ([112.5, 115.0, 115.3, 110.1], [2.398, 0.88, 0.916, 0.203, 0.086]),
    3: ([3.9, 3.5, 3.7, 3.3], [0.854, 0.008, 0.031, 0.023, 0.002]),
    10**12: ([131.9, 138.6, 129.3, 141.5], [0.338, 0.004, 0.018, 0.057, 0.0]),
}


@pytest.mark.parametrize("seed", STREAM)
def test_the_stream_is_what_earlier_versions_drew(seed):
    """An encoder may be trained on by a later version. Means, with room for roundings: machines
    differ in single bytes. Change the numbers only where the clips are meant to change."""
    quarters, known = STREAM[seed]
    frames, values = draw_clip(seed, SETTINGS)
    seen = frames.reshape(8, 2, 32, 2, 32, 3).mean((0, 2, 4, 5))
    assert seen.ravel() == pytest.approx(quarters, abs=0.5)
    first = truth.FLOW_CHANNELS
    groups = values[:2], values[2:4], values[4:6], values[first], values[first + 1 :]
    sizes = [np.abs(group).mean() for group in groups]
    assert sizes == pytest.approx(known, rel=0.02, abs=0.002)


def test_clips_are_dark_and_bright_still_and_moving():
    drawn = [draw_clip(seed, SETTINGS) for seed in range(120)]
    means = np.array([frames.mean() / 255 for frames, _ in drawn])
    assert (means < 0.12).mean() > 0.1
    assert (means > 0.3).mean() > 0.3
    camera = np.array([np.abs(known[:2] - known[2:4]).mean() for _, known in drawn])
    assert 0.3 < (camera < 1e-3).mean() < 0.7
    own = np.array([np.abs(known[2:4]).max() for _, known in drawn])
    assert (own > 0.5).mean() > 0.8  # something moves by half a pixel of 64


def test_the_same_picture_at_every_size():
    small, _ = draw_clip(11, ClipSettings(size=64))
    large, _ = draw_clip(11, ClipSettings(size=128))
    halved = large.reshape(8, 64, 2, 64, 2, 3).mean((2, 4))
    close = np.abs(halved.mean((0, 3)) - small.mean((0, 3)))
    assert np.median(close) < 12


def test_the_largest_pictures_can_be_drawn():
    frames, _ = draw_clip(0, ClipSettings(frames=2, size=truth.LARGEST_SIZE))
    assert frames.shape == (2, 416, 416, 3)
    assert frames.std() > 5


def test_compression_with_small_steps_changes_nothing():
    frames = np.random.default_rng(0).integers(0, 255, (2, 16, 24, 3), dtype=np.uint8)
    assert np.array_equal(light.compress(frames, step=1e-3), frames)
    lossy = light.compress(frames, step=30).astype(int)
    assert 5 < np.abs(lossy - frames).mean() < 60


# ---- figures ------------------------------------------------------------------------------------


def course(label, seed=0):
    t = (np.arange(30) - 14.5) / 15
    rng = np.random.default_rng(seed)
    walked = actions.action_course(rng, label, t)
    parts, feet = figures.figure(rng, walked, len(t))
    return dict(zip(truth.BODY, parts.doing, strict=True)), parts, feet


@pytest.mark.parametrize("seed", range(5))
def test_figures_do_what_their_labels_say(seed):
    seen = {label: course(label, seed)[0] for label in ACTIONS}
    assert all(doing.pop("figure") == 1 for doing in seen.values())
    assert all(abs(value) < 1e-6 for value in seen["stand still"].values())
    assert seen["sit down"]["rise"] < -0.3
    assert seen["stand up"]["rise"] > 0.3
    assert seen["jump"]["jump"] > 0.2
    assert all(seen[label]["jump"] < 0.3 for label in ACTIONS if label != "jump")
    assert seen["run"]["walk"] > seen["walk"]["walk"] > 0.1
    assert seen["turn"]["turn"] > 1
    assert seen["fall"]["fall"] > 1
    assert seen["bend down"]["lean"] > 0.6
    assert seen["wave"]["wave"] > 0.1


def test_feet_stay_on_the_ground_while_a_figure_sits_down():
    _, parts, feet = course("sit down", 3)
    assert feet[:, 1] == pytest.approx(0.5)  # the ground
    low = (parts.maps[..., 1, 2] + np.abs(parts.maps[..., 1, :2]).sum(-1)).max(axis=0)
    assert low.min() > 0.4
    assert low.max() < 0.7


def test_sitting_down_backwards_is_standing_up():
    """The two have each other's poses: reversed in time one gets the other's numbers."""
    down, up = course("sit down", 7)[0], course("stand up", 7)[0]
    assert down["rise"] == pytest.approx(-up["rise"], abs=0.3)


# ---- the labelled set ---------------------------------------------------------------------------


def test_the_set_is_files_of_every_action(tmp_path):
    settings = ActionSettings(num_train=20, num_val=10, size=32, frames=6)
    folder = actions.make_actions(tmp_path / "set", settings, workers=1)
    assert sorted(p.name for p in (folder / "train").iterdir()) == sorted(ACTIONS)
    files = sorted(folder.rglob("*.mp4"))
    assert len(files) == 30
    info = probe(str(files[0]))
    assert (info.num_frames, info.width, info.height, info.fps) == (6, 32, 32, 15)
    assert actions.make_actions(folder, settings) == folder  # found again
    with pytest.raises(UserError, match="body-actions set made with num_train=20"):
        actions.make_actions(folder, ActionSettings(num_train=30, num_val=10, size=32, frames=6))


def test_only_the_figure_depends_on_the_label():
    settings = ActionSettings(size=64, frames=8)
    worlds = [actions.action_scene(label, 5, settings)[0] for label in ("walk", "sit down")]
    assert worlds[0].body.max() == worlds[1].body.max()
    assert np.array_equal(worlds[0].forward[-1], worlds[1].forward[-1])  # the camera


@pytest.mark.parametrize(
    "wrong", [{"size": 50}, {"size": 8}, {"frames": 1}, {"num_train": -1}, {"fps": 0.5}]
)
def test_impossible_sets_are_refused(wrong):
    with pytest.raises(UserError, match="actions: "):
        ActionSettings(**wrong)


# ---- the stream, its reader and its loader ------------------------------------------------------

SPEC = ClipSpec(num_frames=4, sampling_rate=1, target_fps=10, crop_size=32)


def dataset(count=8, **reader):
    return VideoDataset(
        stream_list("body_motion", count), GeneratedReader(SPEC, seed=1, **reader), seed=1
    )


def test_every_epoch_has_new_clips_and_every_worker_the_same():
    data = dataset()
    first, again, next_epoch = data[0, 3], data[0, 3], data[1, 3]
    assert same(first, again)
    assert not same(first, next_epoch)

    def batches(workers):
        loader = build_loader(data, LoaderSettings(batch_size=4, num_workers=workers))
        try:
            return list(loader)
        finally:
            loader.close()

    alone, shared = batches(0), batches(2)
    assert len(alone) == 2
    for one, other in zip(alone, shared, strict=True):
        assert one.truth.shape == (4, truth.TRUTH_CHANNELS, 2, truth.GRID, truth.GRID)
        assert same(one.clips, other.clips)
        assert same(one.truth, other.truth)


def test_several_clips_of_one_number_differ():
    one, two = dataset(clips_per_video=2)[0, 0]
    assert not same(one, two)


@pytest.mark.parametrize(
    "spec",
    [
        ClipSpec(num_frames=5, crop_size=64),
        ClipSpec(num_frames=8, crop_size=50),
        ClipSpec(num_frames=8, crop_size=432),
        ClipSpec(num_frames=8, crop_size=64, segments=True),
    ],
)
def test_clips_that_cannot_be_drawn_are_refused(spec):
    with pytest.raises(UserError, match=r"DATA\.NUM_FRAMES, DATA\.TRAIN_CROP_SIZE"):
        GeneratedReader(spec)


def test_without_numba_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    with pytest.raises(UserError, match=r"pip install 'hiera_video\[generate\]'"):
        GeneratedReader(SPEC)


# ---- training on it -----------------------------------------------------------------------------

TRAINING = {
    "TASK": "motion",
    "TRAIN.DATASET": "body_motion",
    "SYNTHETIC.NUM_TRAIN": 8,
    "MODEL.MODEL_NAME": "motion_hiera_tiny_16x224",
    "MODEL.DROPOUT_RATE": "None",
    "TRAIN.PICTURE_PERIOD": 1,
}


def motion_config(out, *overrides):
    cfg = config(out / "none", out, *overrides, task=TRAINING)
    kwargs = {**cfg.model.kwargs, "grid": 16}
    return config(
        out / "none", out, *overrides, task={**TRAINING, "MODEL.KWARGS": json.dumps(kwargs)}
    )


def test_a_run_learns_draws_stops_and_resumes(tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run(motion_config(straight)) == 0
    assert interrupted(motion_config(broken), after=1) == 130
    assert run(motion_config(broken)) == 0
    assert losses(straight) == losses(broken)
    for key in ("model_state", "optimizer_state", "step"):
        assert same(final(straight)[key], final(broken)[key]), key
    assert list((straight / "pictures").glob("motion_*.png"))
    assert final(straight)["classes"] == []


def test_a_classifier_starts_from_the_encoder_of_a_run(tmp_path):
    cfg = motion_config(tmp_path)
    assert run(cfg) == 0
    (last,) = sorted((tmp_path / "checkpoints").glob("checkpoint_epoch_*.pyth"))[-1:]
    checkpoint = read_checkpoint(last)
    kwargs = {k: v for k, v in cfg.model_arguments().items() if k != "grid"}
    classifier = build_model("hiera_tiny_16x224", num_classes=3, **kwargs)
    report = load_weights(classifier, checkpoint)
    stored = final(tmp_path)["model_state"]
    for name, value in classifier.state_dict().items():
        if not name.startswith(("norm.", "head.")):
            assert same(value, stored[name]), name
    assert all(name.startswith(("norm.", "head.")) for name in report.missing)


def test_real_videos_have_no_truth_and_are_refused():
    model = build_model(
        "motion_hiera_tiny_16x224",
        grid=16,
        **{"input_size": (4, 64, 64), "embed_dim": 8, "stages": (1, 1, 1, 1)},
    )
    batch = torch.zeros(1, 3, 4, 64, 64)
    from hiera_video.data.batch import Batch

    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(UserError, match=r"TRAIN\.DATASET body_motion"):
        motion.MotionPrediction().step(
            model, Batch(batch, one, one, one), epoch=0, settings=tasks.StepSettings()
        )


def test_the_predictions_are_in_their_places():
    """A head that reads one token out gives that token's cells, and no others."""
    torch.manual_seed(0)
    model = build_model(
        "motion_hiera_tiny_16x224",
        input_size=(4, 64, 64),
        **{"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)},
        **{"grid": 16, "predict_stages": (2,), "channels": (3,)},
    )
    maps = torch.zeros(1, 2, 4, 4, 32)
    maps[0, 1, 2, 3] = torch.randn(32)
    model.encoder.stage_features = lambda clips: [None, None, maps]
    head = model.decoder_heads[0]
    torch.nn.init.normal_(head.weight)
    (out,) = model(torch.zeros(1, 3, 4, 64, 64))
    assert out.shape == (1, 3, 2, 16, 16)
    inside = torch.zeros(out.shape, dtype=torch.bool)
    inside[:, :, 1, 8:12, 12:16] = True
    assert (out[inside] != 0).all()
    assert (out[~inside] == 0).all()
    wanted = head(model.decoder_norms[0](maps[0, 1, 2, 3])).view(3, 4, 4)
    assert torch.allclose(out[0, :, 1, 8:12, 12:16], wanted)


def test_the_recipe_reads_and_its_colours_are_directions():
    cfg = load_config(REPOSITORY / "configs" / "small" / "motion_pretrain.yaml")
    assert (cfg.task, cfg.train.dataset) == ("motion", "body_motion")
    flow = torch.zeros(1, 2, 1, 1, 3)
    flow[0, 0, 0, 0] = torch.tensor([2.0, -2.0, 0.0])
    right, left, still = motion.flow_colours(flow)[0, :, 0, 0].unbind(1)
    assert right[0] == pytest.approx(1)
    assert left[0] == pytest.approx(0)
    assert still.tolist() == [0, 0, 0]


def test_clips_are_the_same_in_another_process():
    code = (
        "from hiera_video.data.synthetic.body_motion.clips import *\n"
        "print(int(draw_clip(9, ClipSettings())[0].astype(int).sum()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == int(draw_clip(9, SETTINGS)[0].astype(int).sum())
