"""The light of training clips: each change does what it says, as often as asked, once per clip."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_augment import SPEC, generator, noise, still

from hiera_video.config import load_config
from hiera_video.data.manifests.layouts import read_manifest
from hiera_video.data.transforms.photometric import (
    Photometric,
    blurred,
    exposed,
    with_noise,
    without_colour,
)
from hiera_video.data.transforms.train import TrainTransform
from hiera_video.engine.build import training_set
from hiera_video.errors import UserError

pytestmark = pytest.mark.numbers

ALL = Photometric(gamma=(0.5, 2.0), gain=(0.3, 1.5), noise=0.1, blur=0.5, grey=0.3)


def ramp():
    """uint8 [1, 3, 16, 16]: every value once per channel."""
    return torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)


# ---- each change --------------------------------------------------------------------------------


def test_exposure_is_a_power_and_a_factor_in_bytes():
    assert torch.equal(exposed(ramp(), gamma=1, gain=1), ramp())
    dark = exposed(ramp(), gamma=2.0, gain=0.5)
    assert dark[0, 0].flatten()[[0, 64, 128, 255]].tolist() == [0, 8, 32, 128]
    assert len(exposed(ramp(), gamma=1, gain=0.3).unique()) == 77  # the other levels are lost
    bright = exposed(ramp(), gamma=0.5, gain=2.0)
    assert bright[0, 0].flatten()[[0, 16, 64, 128]].tolist() == [0, 128, 255, 255]


def test_the_blur_is_the_binomial_one_with_the_border_repeated():
    frames = noise(2, 3, 9, 7)
    kernel = torch.tensor([1.0, 2.0, 1.0])
    kernel = (kernel[:, None] * kernel / 16).expand(3, 1, 3, 3)
    padded = F.pad(frames.float(), (1, 1, 1, 1), mode="replicate")
    expected = F.conv2d(padded, kernel, groups=3)
    assert (blurred(frames).float() - expected).abs().max() <= 0.5
    flat = torch.full((1, 3, 1, 1), 200, dtype=torch.uint8)
    assert torch.equal(blurred(flat), flat)


def test_grey_is_the_luma_in_three_channels():
    frames = noise(2, 3, 9, 7)
    grey = without_colour(frames)
    assert (grey == grey[:, :1]).all()
    red, green, blue = frames.double().unbind(1)
    expected = 0.299 * red + 0.587 * green + 0.114 * blue
    assert (grey[:, 0].double() - expected).abs().max() <= 0.501
    assert torch.equal(without_colour(ramp()), ramp())


def test_noise_has_the_spread_asked_for_in_every_pixel_of_every_frame():
    frames = torch.full((4, 3, 32, 32), 128, dtype=torch.uint8)
    noisy = with_noise(frames, 0.05, generator()).float()
    assert noisy.mean().item() == pytest.approx(128, abs=0.5)
    assert noisy.std().item() == pytest.approx(0.05 * 255, rel=0.05)
    assert not torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[:, 0], noisy[:, 1])
    ends = with_noise(torch.tensor([[0, 255]], dtype=torch.uint8).repeat(500, 1), 0.2, generator())
    assert (ends[:, 0] < 128).float().mean() > 0.95  # cut off, not wrapped round
    assert (ends[:, 1] > 128).float().mean() > 0.95


# ---- what is drawn ------------------------------------------------------------------------------


def means(light, level=100, clips=400):
    """The mean of each of many clips of one level."""
    frames = torch.full((2, 3, 8, 8), level, dtype=torch.uint8)
    return [light(frames, generator(i)).float().mean().item() for i in range(clips)]


def test_gain_and_gamma_are_log_uniform():
    gains = [math.log(mean / 100) for mean in means(Photometric(gain=(0.5, 2.0)))]
    assert min(gains) == pytest.approx(-math.log(2), abs=0.03)
    assert max(gains) == pytest.approx(math.log(2), abs=0.03)
    assert sum(gains) / len(gains) == pytest.approx(0, abs=0.06)
    base = math.log(100 / 255)
    gammas = [math.log(math.log(m / 255) / base) for m in means(Photometric(gamma=(0.5, 2.0)))]
    assert min(gammas) == pytest.approx(-math.log(2), abs=0.03)
    assert max(gammas) == pytest.approx(math.log(2), abs=0.03)
    assert sum(gammas) / len(gammas) == pytest.approx(0, abs=0.06)
    assert set(means(Photometric(gain=(0.5, 0.5)), clips=20)) == {50.0}


def test_the_noise_is_of_any_strength_up_to_the_largest():
    frames = torch.full((2, 3, 32, 32), 128, dtype=torch.uint8)
    light = Photometric(noise=0.1)
    spreads = [light(frames, generator(i)).float().std().item() / 255 for i in range(200)]
    assert min(spreads) < 0.01
    assert 0.09 < max(spreads) < 0.105
    assert sum(spreads) / len(spreads) == pytest.approx(0.05, abs=0.006)


def test_blur_and_grey_happen_as_often_as_asked():
    frames = noise(2, 3, 16, 16)
    done = {"blur": blurred(frames), "grey": without_colour(frames)}
    for name, change in done.items():
        light = Photometric(**{name: 0.3})
        clips = [light(frames, generator(i)) for i in range(400)]
        assert all(torch.equal(c, frames) or torch.equal(c, change) for c in clips)
        assert 90 <= sum(torch.equal(c, change) for c in clips) <= 150


def test_what_is_switched_on_leaves_the_draws_of_the_others_alone():
    frames = noise(2, 3, 16, 16)
    for seed in range(20):
        alone = Photometric(gain=(0.3, 1.0))(frames, generator(seed))
        both = Photometric(gain=(0.3, 1.0), grey=1.0)(frames, generator(seed))
        assert both.float().mean().item() == pytest.approx(alone.float().mean().item(), rel=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": (0, 1)}, r"gamma=\(0, 1\)"),
        ({"gain": (2, 1)}, r"gain=\(2, 1\)"),
        ({"noise": -0.1}, "noise=-0.1"),
        ({"blur": 1.5}, "blur=1.5"),
        ({"grey": 2}, "grey=2"),
    ],
)
def test_wrong_settings_are_told(settings, message):
    with pytest.raises(UserError, match=message):
        Photometric(**settings)


# ---- in the training transform ------------------------------------------------------------------


def test_off_draws_nothing_and_returns_the_frames_themselves():
    g, other = generator(), generator()
    frames = noise(4, 3, 16, 16)
    assert Photometric()(frames, g) is frames
    assert torch.rand(1, generator=g) == torch.rand(1, generator=other)


def test_crop_policy_and_boxes_are_the_same_in_any_light():
    """Draws of the light come last: a recipe that switches it on keeps its other clips."""
    plain = TrainTransform(SPEC, rand_augment="rand-m7-mstd0.5-inc1", erase_prob=0.7)
    lit = replace(plain, photometric=ALL)
    for seed in range(10):
        frames = noise(4, 3, 32, 32, seed=seed)
        g, expected = generator(seed), plain.augment(frames, generator(seed))
        pixels = lit.augment(frames, g)
        assert [e[:4] for e in pixels.erased] == [e[:4] for e in expected.erased]
        for box, other in zip(pixels.erased, expected.erased, strict=True):
            assert torch.equal(box.noise, other.noise)
        assert pixels.frames.dtype == torch.uint8
        assert pixels.frames.shape == expected.frames.shape
        assert not torch.equal(pixels.frames, expected.frames)


def test_a_clip_is_a_function_of_the_generator_and_not_of_the_layout():
    transform = TrainTransform(SPEC, photometric=ALL, erase_prob=0.5)
    frames = noise(4, 3, 48, 64)
    before = frames.clone()
    interleaved = frames.contiguous(memory_format=torch.channels_last)
    clips = [transform(frames, generator(seed)) for seed in range(12)]
    again = [transform(interleaved, generator(seed)) for seed in range(12)]
    assert all(torch.equal(a, b) for a, b in zip(clips, again, strict=True))
    assert len({clip.sum().item() for clip in clips}) == 12
    assert torch.equal(frames, before)


def test_all_frames_of_a_clip_are_in_the_same_light():
    transform = TrainTransform(SPEC, photometric=replace(ALL, noise=0))
    for seed in range(12):
        clip = transform(still(), generator(seed))
        assert (clip == clip[:, :1]).all()


def test_settings_reach_the_transform_and_the_reader(tmp_path):
    (tmp_path / "train.csv").write_text("a.mp4 0\n")
    manifest = read_manifest(tmp_path)
    words = "AUG.GAMMA [0.5,2] AUG.GAIN [0.3,1.5] AUG.NOISE 0.1 AUG.BLUR 0.5 AUG.GREY 0.3"
    cfg = load_config(None, [*words.split(), "AUG.SPEED", "[0.5,2]"])
    reader = training_set(cfg, manifest).reader
    assert reader.transform.photometric == ALL
    assert reader.speed == (0.5, 2.0)
    reader = training_set(load_config(None, []), manifest).reader
    assert reader.transform.photometric == Photometric()
    assert reader.speed == (1.0, 1.0)
