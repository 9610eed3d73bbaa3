"""The stream of camera motions: its flow is held against the pixels and against the labels."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_runs import config, run, same

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.datasets import VideoDataset
from hiera_video.data.loader import LoaderSettings, build_loader
from hiera_video.data.synthetic import camera_flow
from hiera_video.data.synthetic.body_motion.truth import GRID, TRUTH_CHANNELS
from hiera_video.data.synthetic.camera_path import LABELS, CameraPath
from hiera_video.data.synthetic.generated_streams import stream_list
from hiera_video.data.synthetic.scenes import CLIPS_PER_SCENE
from hiera_video.engine.records import read_metrics
from hiera_video.errors import UserError

SPEC = ClipSpec(num_frames=4, sampling_rate=2, target_fps=10, crop_size=32)


# ---- the flow -----------------------------------------------------------------------------------


def path(**course):
    """A camera's path of two frames, still but for `course`."""
    still = {"centre": np.zeros((2, 2)), "log_scale": np.zeros(2), "angle": np.zeros(2)}
    return CameraPath(**{**still, **course}, pivot=0)


def test_the_flow_of_simple_motions_by_hand():
    corners = np.array([[[-0.25, -0.25], [0.25, -0.25]], [[-0.25, 0.25], [0.25, 0.25]]])

    def flow(**course):
        return camera_flow.camera_flow(path(**course), 2)[0]

    # the view moves right, so the scene moves left
    pan = flow(centre=np.array([[0, 0], [0.1, 0]]))
    assert pan == pytest.approx(np.broadcast_to([-0.1, 0.0], (2, 2, 2)))
    # the view halves, so the scene doubles
    assert flow(log_scale=np.log([1, 0.5])) == pytest.approx(corners)
    # the view turns clockwise by a quarter, so the scene turns the other way
    turned = np.stack([corners[..., 1], -corners[..., 0]], axis=-1)
    assert flow(angle=np.array([0, np.pi / 2])) == pytest.approx(turned - corners)
    # both frames elsewhere and at another scale: in sides of the view as it is then
    far = {"centre": np.array([[5.0, 2], [5.2, 2]]), "log_scale": np.log([2, 2])}
    assert flow(**far) == pytest.approx(np.broadcast_to([-0.1, 0.0], (2, 2, 2)))


def test_the_flow_leads_to_where_the_pixels_went():
    spec = ClipSpec(num_frames=4, sampling_rate=2, target_fps=10, crop_size=64)
    centres = (torch.arange(GRID) + 0.5) / GRID * 2 - 1
    place = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1)
    followed, stayed = [], []
    for seed, label in enumerate(LABELS * 3):
        frames, truth = camera_flow.draw_clip(label, (1 << 44) + CLIPS_PER_SCENE * seed, spec)
        now, later = frames[2:4].float().split(1)
        there = place + 2 * truth[:2, 1].permute(1, 2, 0) / 64
        inside = (there.abs() < 0.95).all(-1)

        def sampled(picture, at):
            return F.grid_sample(picture, at[None], align_corners=False)[0]

        followed.append((sampled(later, there) - sampled(now, place)).abs()[:, inside].mean())
        stayed.append((sampled(later, place) - sampled(now, place)).abs()[:, inside].mean())
    assert np.mean(stayed) > 4
    assert np.mean(followed) < 0.4 * np.mean(stayed)


@pytest.mark.parametrize(
    ("label", "channel", "sign"),
    [("pan left", 0, 1), ("pan right", 0, -1), ("tilt up", 1, 1), ("tilt down", 1, -1)],
)
def test_the_scene_goes_against_the_camera(label, channel, sign):
    _, truth = camera_flow.draw_clip(label, 1 << 44, SPEC)
    assert truth.shape == (TRUTH_CHANNELS, 2, GRID, GRID)
    assert (sign * truth[channel]).mean() > 0.5
    assert truth[2:].count_nonzero() == 0  # no bodies


# ---- the stream ---------------------------------------------------------------------------------


def dataset(**reader):
    reader = camera_flow.CameraFlowReader(SPEC, **reader)
    return VideoDataset(stream_list("camera_flow", 8), reader, seed=1)


def test_every_epoch_has_new_clips_and_every_worker_the_same():
    data = dataset(seed=1, clips_per_video=2)
    assert same(data[0, 3], data[0, 3])
    for other in (data[1, 3], data[0, 4], dataset(seed=2, clips_per_video=2)[0, 3]):
        assert not same(data[0, 3], other)
    assert not same(*data[0, 3])

    def batches(workers):
        loader = build_loader(data, LoaderSettings(batch_size=4, num_workers=workers))
        try:
            return list(loader)
        finally:
            loader.close()

    for one, other in zip(batches(0), batches(2), strict=True):
        assert one.truth.shape == (8, TRUTH_CHANNELS, 2, GRID, GRID)
        assert same(one.clips, other.clips)
        assert same(one.truth, other.truth)


def test_all_motions_occur_and_no_scene_is_one_of_a_set(monkeypatch):
    drawn = []

    def draw(label, seed, spec):
        drawn.append((label, seed // CLIPS_PER_SCENE))
        return torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(1)

    monkeypatch.setattr(camera_flow, "draw_clip", draw)
    data = dataset(clips_per_video=8)
    for number in range(8):
        assert len(data[0, number]) == 8
    labels, scenes = zip(*drawn, strict=True)
    assert set(labels) == set(LABELS)
    assert len(set(scenes)) == 8  # one for each number
    assert min(scenes) >= 1 << 40


@pytest.mark.parametrize(
    "spec",
    [
        ClipSpec(num_frames=5, crop_size=64),
        ClipSpec(num_frames=8, crop_size=50),
        ClipSpec(num_frames=8, crop_size=64, segments=True),
    ],
)
def test_clips_that_cannot_be_drawn_are_refused(spec):
    with pytest.raises(UserError, match=r"DATA\.NUM_FRAMES, DATA\.TRAIN_CROP_SIZE"):
        camera_flow.CameraFlowReader(spec)


@pytest.mark.parametrize("task", ["motion", "pretrain"])
def test_a_run_learns_from_it_and_draws(task, tmp_path):
    name = {"motion": "motion_hiera_tiny_16x224", "pretrain": "mae_hiera_tiny_16x224"}[task]
    words = {"TASK": task, "MODEL.MODEL_NAME": name, "MODEL.DROPOUT_RATE": "None"}
    words |= {"TRAIN.DATASET": "camera_flow", "SYNTHETIC.NUM_TRAIN": 8, "TRAIN.PICTURE_PERIOD": 1}
    if task == "motion":
        kwargs = config(tmp_path, tmp_path, task=words).model.kwargs
        words["MODEL.KWARGS"] = json.dumps({**kwargs, "grid": GRID})
    else:
        words |= {"HIERA.TARGET": "flow", "AUG.MASK_RATIO": 0.5, "HIERA.DECODER_NUM_HEADS": 1}
    assert run(config(tmp_path, tmp_path, task=words)) == 0
    steps = [r for r in read_metrics(tmp_path) if "loss" in r]
    assert steps
    assert list((tmp_path / "pictures").glob("*.png"))
