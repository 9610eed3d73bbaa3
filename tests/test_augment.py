"""Training transforms: one choice per clip, from the generator given, within the ranges given."""

import math

import pytest
import torch

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.transforms.normalize import normalize
from hiera_video.data.transforms.train import (
    ERASED_AREA,
    Crop,
    TrainTransform,
    directional_classes,
    draw_erasures,
    flip_is_safe,
    random_box,
    random_erase,
)
from hiera_video.errors import UserError
from hiera_video.video.crops import resize

pytestmark = pytest.mark.numbers

SPEC = ClipSpec(num_frames=4, crop_size=32)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed))


def still(height=48, width=64, frames=4):
    """The same noisy picture in every frame."""
    return noise(1, 3, height, width).expand(frames, -1, -1, -1)


# ---- crop ---------------------------------------------------------------------------------------


def test_boxes_keep_to_area_aspect_and_picture():
    area, aspect = (0.08, 1.0), (3 / 4, 4 / 3)
    shares, ratios = [], []
    g = generator()
    for _ in range(2000):
        top, left, height, width = random_box(240, 320, area, aspect, g)
        assert 0 <= top <= top + height <= 240
        assert 0 <= left <= left + width <= 320
        shares.append(height * width / (240 * 320))
        ratios.append(math.log(width / height))
    assert min(shares) == pytest.approx(0.08, abs=0.02)
    assert max(shares) > 0.95
    assert max(map(abs, ratios)) <= math.log(4 / 3) + 0.02
    square = [random_box(256, 256, (0.08, 0.3), aspect, g) for _ in range(2000)]
    ratios = [math.log(width / height) for _, _, height, width in square]
    assert sum(ratios) / len(ratios) == pytest.approx(0, abs=0.02)  # neither wide nor tall
    shares = [height * width / 256**2 for _, _, height, width in square]
    assert sum(shares) / len(shares) == pytest.approx(0.19, abs=0.01)  # uniform in area


def test_where_no_box_fits_the_largest_allowed_in_the_centre_is_taken():
    # 0.9 of a 10:1 strip cannot be had at an aspect below 4/3.
    box = random_box(20, 200, (0.9, 1.0), (3 / 4, 4 / 3), generator())
    assert box == (0, (200 - 27) // 2, 20, 27)
    assert random_box(200, 20, (0.9, 1.0), (3 / 4, 4 / 3), generator()) == (86, 0, 27, 20)
    assert random_box(1, 1, (0.08, 1.0), (3 / 4, 4 / 3), generator()) == (0, 0, 1, 1)


def test_the_crop_is_what_resizing_the_box_gives():
    frames = noise(4, 3, 48, 64)
    crop = Crop(5, 7, 24, 40, flip=False)
    assert torch.equal(crop.cut(frames, 32), resize(frames[..., 5:29, 7:47], 32, 32))
    assert torch.equal(crop._replace(flip=True).cut(frames, 32), crop.cut(frames, 32).flip(-1))
    whole = Crop(0, 0, 48, 64, flip=False)
    assert whole.cut(frames, 32).dtype == torch.uint8


def test_memory_layout_does_not_matter():
    frames = noise(4, 3, 48, 64)
    transform = TrainTransform(SPEC)
    interleaved = frames.contiguous(memory_format=torch.channels_last)
    assert torch.equal(transform(frames, generator(3)), transform(interleaved, generator(3)))


# ---- the whole ----------------------------------------------------------------------------------


def test_a_clip_is_a_function_of_the_generator():
    transform = TrainTransform(SPEC, rand_augment="rand-m7-mstd0.5-inc1", erase_prob=0.5)
    frames = noise(4, 3, 48, 64)
    state = torch.get_rng_state()
    first = [transform(frames, generator(seed)) for seed in range(8)]
    torch.rand(5)
    again = [transform(frames, generator(seed)) for seed in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({clip.sum().item() for clip in first}) == 8
    assert first[0].shape == (3, 4, 32, 32)
    assert first[0].dtype == torch.float32
    assert first[0].is_contiguous()
    torch.set_rng_state(state)
    transform(frames, generator())
    assert torch.equal(torch.get_rng_state(), state)


def test_all_frames_of_a_clip_are_treated_alike():
    transform = TrainTransform(SPEC, rand_augment="rand-m7-mstd0.5-inc1-p1")
    for seed in range(12):
        clip = transform(still(), generator(seed))
        assert (clip == clip[:, :1]).all()


def test_the_input_is_left_as_it_was():
    frames = noise(4, 3, 32, 32)
    before = frames.clone()
    # A whole-picture crop is a view of the frames: nothing may be done to it in place.
    transform = TrainTransform(
        SPEC, area=(1, 1), aspect=(1, 1), flip=0, rand_augment="rand-m10-inc1-p1", erase_prob=1
    )
    for seed in range(30):
        transform(frames, generator(seed))
    assert torch.equal(frames, before)


def test_with_everything_off_it_is_the_test_transform():
    frames = noise(4, 3, 32, 32)
    transform = TrainTransform(SPEC, area=(1, 1), aspect=(1, 1), flip=0)
    assert torch.equal(transform(frames, generator()), normalize(frames, SPEC))


def test_half_of_the_clips_are_mirrored_and_none_if_flip_is_off():
    frames = noise(1, 3, 32, 32)
    plain = normalize(frames, SPEC)
    for flip, least, most in ((0.5, 70, 130), (0.0, 0, 0), (1.0, 200, 200)):
        transform = TrainTransform(SPEC, area=(1, 1), aspect=(1, 1), flip=flip)
        clips = [transform(frames, generator(seed)) for seed in range(200)]
        assert all(torch.equal(c, plain) or torch.equal(c, plain.flip(-1)) for c in clips)
        assert least <= sum(torch.equal(c, plain.flip(-1)) for c in clips) <= most


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"area": (0.0, 1.0)}, "area"),
        ({"area": (0.5, 1.5)}, "area"),
        ({"area": (0.9, 0.5)}, "area"),
        ({"aspect": (0, 1)}, "aspect"),
        ({"flip": 1.5}, "flip=1.5"),
        ({"erase_prob": -0.1}, "erase_prob=-0.1"),
        ({"erase_mode": "blur"}, "erase_mode='blur'"),
        ({"rand_augment": "rand-m7-x3"}, "rand-m7-mstd0.5-inc1"),
    ],
)
def test_wrong_settings_are_told(settings, message):
    with pytest.raises(UserError, match=message):
        TrainTransform(SPEC, **settings)


# ---- erasing ------------------------------------------------------------------------------------


def test_erasing_takes_one_box_of_all_frames_with_noise_of_its_own_in_each():
    for seed in range(20):
        clip = torch.full((3, 4, 64, 64), 9.0)
        random_erase(clip, generator(seed), prob=1.0)
        erased = clip != 9.0
        assert (erased == erased[:1, :1]).all()
        rows, columns = erased[0, 0].any(1).nonzero(), erased[0, 0].any(0).nonzero()
        height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
        assert height * width == erased[0, 0].sum()  # a full rectangle
        share = (height * width / 64**2).item()
        assert ERASED_AREA[0] * 0.8 <= share <= ERASED_AREA[1] * 1.1
        inside = clip[erased]
        assert abs(inside.mean()) < 0.3
        assert 0.8 < inside.std() < 1.2
        assert not torch.equal(clip[:, 0], clip[:, 1])


def test_erasing_happens_as_often_as_asked_and_to_all_frames_for_several_boxes():
    def count(**settings):
        clips = [torch.full((3, 2, 16, 16), 9.0) for _ in range(300)]
        done = [random_erase(c, generator(i), **settings) for i, c in enumerate(clips)]
        assert all(((c[0, 0] != 9) == (c[0, 1] != 9)).all() for c in done)
        return sum(bool((c != 9).any()) for c in done)

    assert count(prob=0.0) == 0
    assert 50 <= count(prob=0.25) <= 100
    assert count(prob=1.0, most=3, mode="const") == 300


@pytest.mark.parametrize("mode", ["pixel", "const"])
def test_what_is_drawn_to_be_erased_is_what_is_erased_in_place(mode):
    for seed in range(10):
        settings = {"prob": 0.8, "mode": mode, "most": 3}
        clip = noise(4, 3, 32, 32, seed=seed).transpose(0, 1).float()
        drawn = draw_erasures(clip.shape, generator(seed), **settings)
        later = clip.clone()
        for erasure in drawn:
            erasure.erase(later)
        g = generator(seed)
        now = random_erase(clip.clone(), g, **settings)
        assert torch.equal(now, later)
        # and the numbers after it are the same: a clip's stream does not depend on when it is done
        other = generator(seed)
        draw_erasures(clip.shape, other, **settings)
        assert torch.rand(1, generator=g) == torch.rand(1, generator=other)


def test_pixels_become_the_clip_of_the_transform():
    transform = TrainTransform(SPEC, rand_augment="rand-m7-mstd0.5-inc1", erase_prob=0.5)
    for seed in range(8):
        frames = noise(4, 3, 32, 32, seed=seed)
        pixels = transform.augment(frames, generator(seed))
        assert pixels.frames.dtype == torch.uint8
        clip = transform.finish(frames, generator(seed))
        assert torch.equal(pixels.normalized(SPEC), clip)


# ---- directions ---------------------------------------------------------------------------------


def test_directions_are_found_as_whole_words():
    directed = [
        "pan left",
        "Turn_Right",
        "TurnLeft",
        "roll clockwise",
        "roll counter-clockwise",
        "anticlockwise",
        "swipe leftwards",
        "Pulling something from left to right",
        "left-handed throw",
        "rotate ccw",
    ]
    harmless = ["bright light", "CleanAndJerk", "upright bass", "copyright", "cleft", "tilt up", ""]
    assert directional_classes(directed + harmless) == directed
    assert flip_is_safe(harmless)
    assert not flip_is_safe(["walk", "pan left"])
