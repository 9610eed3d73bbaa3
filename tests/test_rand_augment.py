"""RandAugment: the recipe's operations, strengths and frequencies, counted and compared."""

import collections

import pytest
import torch
import torch.nn.functional as F

from hiera_video.data.transforms import rand_augment
from hiera_video.data.transforms.rand_augment import RandAugment, parse_rand_augment
from hiera_video.errors import UserError

pytestmark = pytest.mark.numbers

RECIPE = "rand-m7-mstd0.5-inc1"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def smooth_pictures():
    """uint8 [2, 3, 64, 64] without hard edges, so that interpolation hardly matters."""
    coarse = torch.rand(2, 3, 6, 6, generator=generator()) * 200 + 20
    fine = F.interpolate(coarse, (64, 64), mode="bilinear", align_corners=True)
    return fine.to(torch.uint8)


def test_the_recipe_is_read():
    assert parse_rand_augment(RECIPE) == RandAugment(7.0, 0.5, 2, 0.5)
    assert parse_rand_augment("rand-m9-n4-inc1") == RandAugment(9.0, 0.0, 4, 0.5)
    assert parse_rand_augment("rand-inc1-p1") == RandAugment(10.0, 0.0, 2, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rand-m7-mstd0.5", "rand-m7-mstd0.5-inc1"),
        ("rand-m7-inc0", "write rand-m7-inc1"),
        ("rand-m7-w0-inc1", "not understood"),
        ("augmix-m3", "not understood"),
        ("rand-m11-inc1", "m must be 0 to 10"),
        ("rand-n0-inc1", "n at least 1"),
    ],
)
def test_what_cannot_be_done_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_rand_augment(text)


@pytest.fixture
def counted(monkeypatch):
    """The calls of each kernel, as (name, magnitudes), instead of what it does to the frames."""
    calls = []

    def record(name):
        def kernel(frames, *magnitudes, **_):
            calls.append((name, magnitudes))
            return frames

        return kernel

    spies = {name: record(name) for name in rand_augment._KERNELS}
    monkeypatch.setattr(rand_augment, "_KERNELS", spies)
    rand_augment._operations.cache_clear()
    yield calls
    rand_augment._operations.cache_clear()


def test_two_of_fifteen_operations_each_half_of_the_time(counted):
    policy, frames = parse_rand_augment(RECIPE), torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    applied, repeated = [], 0
    for seed in range(2000):
        before = len(counted)
        policy(frames, generator(seed))
        names = [name for name, _ in counted[before:]]
        applied.append(len(names))
        repeated += len(names) == 2 and names[0] == names[1]
    frequency = collections.Counter(applied)
    assert set(frequency) == {0, 1, 2}
    assert frequency[0] / 2000 == pytest.approx(0.25, abs=0.04)
    assert frequency[2] / 2000 == pytest.approx(0.25, abs=0.04)
    assert repeated > 10  # drawn with replacement: 500 / 15 expected
    by_name = collections.Counter(name for name, _ in counted)
    assert len(by_name) == 15
    assert min(by_name.values()) > 2000 / 15 * 0.7


def test_strengths_are_the_recipes(counted):
    policy, frames = parse_rand_augment("rand-m7-mstd0.5-inc1-p1"), torch.zeros(1, 3, 2, 2)
    for seed in range(3000):
        policy(frames, generator(seed))
    drawn = collections.defaultdict(list)
    for name, magnitudes in counted:
        drawn[name] += magnitudes
    # (value at magnitude 7, its change for one unit), signs apart
    scale = {
        "Rotate": (21.0, 3.0),
        "ShearX": (0.21, 0.03),
        "ShearY": (0.21, 0.03),
        "TranslateX": (0.315, 0.045),
        "TranslateY": (0.315, 0.045),
    }
    for name, (mean, unit) in scale.items():
        values = torch.tensor(drawn[name])
        assert 0.35 < (values > 0).float().mean() < 0.65
        assert values.abs().mean().item() == pytest.approx(mean, rel=0.02)
        assert values.abs().std().item() == pytest.approx(unit / 2, rel=0.25)
    for name in ("AdjustBrightness", "AdjustContrast", "AdjustSaturation", "AdjustSharpness"):
        away = (torch.tensor(drawn[name]) - 1).abs()
        assert away.mean().item() == pytest.approx(0.63, rel=0.02)
    assert torch.tensor(drawn["Solarize"]).mean().item() == pytest.approx(0.3, rel=0.05)
    assert torch.tensor(drawn["SolarizeAdd"]).float().mean().item() == pytest.approx(76.5, rel=0.02)
    assert set(drawn["Posterize"]) <= {1, 2}  # int(2.8 +- 0.2) bits fewer than four
    assert not any(drawn[name] for name in ("AutoContrast", "Equalize", "Invert"))


ARGUMENTS = {
    "Rotate": (20.0,),
    "Posterize": (2,),
    "Solarize": (0.3,),
    "AdjustSaturation": (1.6,),
    "AdjustContrast": (0.4,),
    "AdjustBrightness": (1.6,),
    "AdjustSharpness": (1.6,),
    "ShearX": (0.2,),
    "ShearY": (-0.2,),
    "TranslateX": (0.25,),
    "TranslateY": (-0.25,),
}
MIRRORED = {"Rotate", "TranslateX", "TranslateY"}
"""Turn or shift the other way than PyTorchVideo's; the sign is drawn at random."""


@pytest.mark.parametrize("name", sorted(set(rand_augment._KERNELS) - {"SolarizeAdd"}))
def test_kernels_do_what_pytorchvideos_do(name):
    frames, arguments = smooth_pictures(), ARGUMENTS.get(name, ())
    reference = rand_augment.ptv._NAME_TO_TRANSFORM_FUNC[name]
    sign = -1 if name in MIRRORED else 1
    expected = reference(frames, *(sign * a for a in arguments), fill=(128.0,) * 3)
    found = rand_augment._KERNELS[name](frames, *arguments, fill=128.0)
    assert found.dtype == torch.uint8
    difference = (found.int() - expected.int()).abs().float()
    # A border pixel of a warp may be filled by one and not by the other.
    assert (difference > 2).float().mean() < 0.01, difference.max()
    changed = (found != frames).any()
    assert changed or name == "Equalize"


@pytest.mark.parametrize(("right", "down"), [(0, 0), (13, 0), (0, -7), (-5, 4), (63, 64), (-70, 2)])
def test_a_shift_is_the_warp_by_whole_pixels(right, down):
    frames = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator())
    shifted = rand_augment._shift(frames, right, down)
    assert torch.equal(shifted, rand_augment._warp(frames, translate=[right, down]))


@pytest.mark.parametrize("threshold", [0, 1, 100, 255])
def test_solarizing_is_torchvisions(threshold):
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    expected = rand_augment.F.solarize(frames, threshold)
    assert torch.equal(rand_augment._solarize(frames, threshold), expected)


def test_solarize_add_brightens_the_dark_half():
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    found = rand_augment._KERNELS["SolarizeAdd"](frames, 77)[0, 0].flatten().tolist()
    assert found == [v + 77 if v < 128 else v for v in range(256)]
