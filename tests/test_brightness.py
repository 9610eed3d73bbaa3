"""Brightness normalisation: one map for a clip, from its own levels, kept by the checkpoint."""

import math
from dataclasses import replace

import pytest
import torch
from clips import write_clip
from test_predict import CLASSES, SPEC, tiny_model, write_checkpoint
from tiny_runs import config, run, write_videos

from hiera_video.clip_spec import ClipSpec
from hiera_video.config import load_config
from hiera_video.data.transforms import normalize as normalize_module
from hiera_video.data.transforms.normalize import GAMMAS, MEDIAN, normalize, normalize_clips
from hiera_video.data.views import load_test_views
from hiera_video.engine.evaluate import _differences
from hiera_video.models.weights.file import Checkpoint, read_checkpoint
from hiera_video.predict import Predictor
from hiera_video.scoring import ScoreSettings, view_scores

pytestmark = pytest.mark.numbers

LEVELS = ClipSpec(mean=(0, 0, 0), std=(1, 1, 1), normalize_brightness=True)
"""What comes out are the levels, 0 to 1."""


def scene(seed=0, frames=4, side=32):
    """uint8 [T, 3, S, S]: moving waves of three colours, 20 to 200, and some noise."""
    g = torch.Generator().manual_seed(seed)
    t, y, x = (torch.arange(n).float() for n in (frames, side, side))
    waves = torch.zeros(frames, 3, side, side)
    for _ in range(6):
        fx, fy, ft, *phases = (torch.rand(6, generator=g) * 2 - 1).tolist()
        phase = 0.4 * (fx * x + fy * y[:, None] + ft * t[:, None, None])
        waves += torch.stack([(phase + math.pi * p).sin() for p in phases], dim=1)
    waves += 0.1 * torch.randn(waves.shape, generator=g)
    waves = (waves - waves.min()) / (waves.max() - waves.min())
    return (20 + 180 * waves).round().byte()


def changed(frames, gain=1.0, gamma=1.0, offset=0):
    values = 255 * (frames / 255) ** gamma * gain + offset
    return values.round().clamp(0, 255).byte()


# ---- the map ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"gain": 0.35},
        {"gain": 0.6},
        {"gain": 1.25},
        {"offset": 50},
        {"gain": 0.5, "offset": 90},
        {"gamma": 0.6},
        {"gamma": 1.5},
        {"gamma": 1.4, "gain": 0.7},
    ],
)
def test_gain_offset_and_gamma_of_a_video_hardly_matter(change):
    plain = replace(LEVELS, normalize_brightness=False)
    for seed in range(3):
        frames = scene(seed)
        other = changed(frames, **change)
        apart = (normalize(other, LEVELS) - normalize(frames, LEVELS)).abs()
        before = (normalize(other, plain) - normalize(frames, plain)).abs()
        assert apart.mean() < 0.02
        assert apart.mean() < before.mean() / 5
        assert apart.max() < 0.15


def test_the_levels_are_those_of_the_definition():
    frames = scene()
    values = frames.flatten().sort().values.double()
    low, middle, high = (values[math.ceil(len(values) * p / 100) - 1] for p in (1, 50, 99))
    x = ((frames - low) / (high - low)).clamp(0, 1)
    gamma = math.log(MEDIAN) / math.log((middle - low) / (high - low))
    assert GAMMAS[0] < gamma < GAMMAS[1]
    levels = normalize(frames, LEVELS)
    torch.testing.assert_close(levels.double(), (x**gamma).transpose(0, 1), atol=1e-6, rtol=0)
    assert levels.median().item() == pytest.approx(MEDIAN, abs=1e-6)
    spec = replace(LEVELS, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    for colour, (m, s) in enumerate(zip(spec.mean, spec.std, strict=True)):
        torch.testing.assert_close(normalize(frames, spec)[colour], (levels[colour] - m) / s)


def test_flicker_and_the_ratios_of_colours_stay():
    frames = scene(frames=2)
    frames[1] = changed(frames[0], gain=0.5)
    frames[:, 2] = changed(frames[:, 1], gain=0.5)
    levels = normalize(frames, LEVELS)
    assert levels[:, 1].mean() < levels[:, 0].mean() - 0.1
    assert levels[2].mean() < levels[1].mean() - 0.1


@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_clips_of_one_value_and_of_hardly_any_range_are_finite(level):
    frames = torch.full((4, 3, 16, 16), level, dtype=torch.uint8)
    assert normalize(frames, LEVELS).unique().tolist() == [0]
    frames[:, :, ::2] = min(level + 1, 255)
    levels = normalize(frames, LEVELS)
    assert torch.isfinite(levels).all()
    # A step of one level is noise or a fade: it is stretched by no more than 1/8 ** 0.2.
    assert levels.max() - levels.min() < 0.7


def test_nearly_black_and_nearly_white_clips_are_changed_by_the_limits_of_gamma():
    dark = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    dark[:, :, :4] = 200
    bright = 255 - dark
    for frames in (dark, bright):
        levels = normalize(frames, LEVELS)
        assert levels.unique().tolist() == [0, 1]
    dark[:, :, 5] = 50
    bright[:, :, 5] = 105  # 50 above its darkest
    assert normalize(dark, LEVELS)[0, 0, 5, 0].item() == pytest.approx((50 / 200) ** GAMMAS[0])
    assert normalize(bright, LEVELS)[0, 0, 5, 0].item() == pytest.approx((50 / 200) ** GAMMAS[1])


# ---- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("at_once", [1, 3 * 4 * 32 * 32 * 2, 1 << 21])
def test_mixed_clips_together_are_bit_for_bit_those_alone(interleaved, at_once, monkeypatch):
    monkeypatch.setattr(normalize_module, "_VALUES_AT_ONCE", at_once)
    frames = [scene(0), changed(scene(1), gain=0.2), scene(2) * 0, scene(3), changed(scene(4), 1.2)]
    spec = ClipSpec(
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), normalize_brightness=True
    )
    alone = torch.stack([normalize(clip, spec) for clip in frames])
    stacked = torch.stack(frames)  # [B, T, 3, S, S]
    if interleaved:
        stacked = stacked.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    clips = stacked.transpose(1, 2)
    together = normalize_clips(clips, spec)
    assert together.is_contiguous()
    assert together.dtype == torch.float32
    assert torch.equal(together, alone)
    out = torch.empty_like(alone)
    assert normalize_clips(clips, spec, out=out) is out
    assert torch.equal(out, alone)
    out = torch.empty(5, 4, 32, 32, 3).permute(0, 4, 1, 2, 3)
    assert torch.equal(normalize_clips(clips, spec, out=out), alone)
    assert normalize_clips(clips[:0], spec).shape == (0, 3, 4, 32, 32)


def test_a_crop_of_larger_frames_and_a_single_frame_are_clips_as_any():
    frames = scene(side=48)
    crop = frames[..., 3:35, 9:41]
    assert torch.equal(normalize(crop, LEVELS), normalize(crop.contiguous(), LEVELS))
    assert normalize(crop[:1], LEVELS).median().item() == pytest.approx(MEDIAN, abs=1e-6)
    assert torch.equal(normalize(crop.flip(-1), LEVELS), normalize(crop, LEVELS).flip(-1))


def test_off_is_bit_for_bit_what_it_was():
    frames = scene()
    spec = ClipSpec()
    for colour, (m, s) in enumerate(zip(spec.mean, spec.std, strict=True)):
        expected = frames[:, colour].float().mul_(1 / (255 * s)).add_(-m / s)
        assert torch.equal(normalize(frames, spec)[colour], expected)


def test_the_counts_for_a_gpu_are_those_for_a_cpu():
    clips = torch.stack([scene(0), scene(1) * 0, scene(2)]).transpose(1, 2)
    counts = normalize_module._histograms_without_waiting(clips)
    assert torch.equal(counts, normalize_module._histograms(clips))
    assert counts.sum(1).tolist() == [clips[0].numel()] * 3


@pytest.mark.gpu
def test_a_gpu_gives_the_same_levels():
    clips = torch.stack([scene(0), changed(scene(1), gain=0.2), scene(2) * 0]).transpose(1, 2)
    there = clips.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        levels = normalize_clips(there, LEVELS)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(levels.cpu(), normalize_clips(clips, LEVELS), atol=1e-6, rtol=0)


# ---- the setting --------------------------------------------------------------------------------


def test_a_spec_says_it_only_where_it_is_on():
    on = replace(SPEC, normalize_brightness=True)
    assert "normalize_brightness" not in SPEC.to_dict()  # what older versions can read
    assert on.to_dict()["normalize_brightness"] is True
    for spec in (SPEC, on):
        assert ClipSpec.from_dict(spec.to_dict()) == spec
    assert "brightness" not in SPEC.in_words()
    assert on.in_words().endswith("std (0.225, 0.225, 0.225), brightness normalised")
    assert _differences(Checkpoint({}, "x", spec=on), SPEC, multi_label=False) == [
        "the checkpoint was trained with other clips: normalize_brightness True there, False here"
    ]


def test_the_key_reaches_the_clips_of_training_and_test():
    data = load_config(None, ["DATA.NORMALIZE_BRIGHTNESS", "true"]).data
    assert data.clip_spec(training=True).normalize_brightness
    assert data.clip_spec(training=False).normalize_brightness
    assert not load_config(None, []).data.clip_spec(training=True).normalize_brightness


def test_a_predictor_reads_it_from_the_checkpoint(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", frames=30)
    spec = replace(SPEC, normalize_brightness=True)
    weights = write_checkpoint(tmp_path / "tiny.pyth", spec=spec.to_dict())
    predictor = Predictor.load(weights, views=(2, 1), device="cpu")
    assert predictor.spec == spec
    clips = load_test_views(path, spec, 2, 1)
    assert not torch.equal(clips, load_test_views(path, SPEC, 2, 1))
    scores = view_scores(tiny_model().eval(), clips, ScoreSettings(4)).tolist()
    found = {label.label: label.score for label in predictor(path).labels}
    assert found == pytest.approx(dict(zip(CLASSES, scores, strict=True)), abs=1e-6)


def test_a_run_trains_and_tests_with_it_and_leaves_it_to_the_checkpoint(tmp_path):
    videos = write_videos(tmp_path / "videos", train=4, val=2)
    settings = ("DATA.NORMALIZE_BRIGHTNESS", "true", "SOLVER.MAX_EPOCH", 1)
    assert run(config(videos, tmp_path / "out", *settings)) == 0
    best = tmp_path / "out" / "checkpoints" / "best.pyth"
    assert read_checkpoint(best).spec.normalize_brightness
    assert Predictor.load(best, device="cpu").spec.normalize_brightness
