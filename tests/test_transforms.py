"""Crops are checked on pictures whose pixels say where they come from."""

import pytest
import torch
from torch import Tensor

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.transforms.normalize import normalize, normalize_clips
from hiera_video.errors import UserError
from hiera_video.video import crops
from hiera_video.video.crops import planar, resize_short_side, spatial_crops

pytestmark = pytest.mark.numbers

COLOURS = ClipSpec(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def ramp(height: int, width: int, frames: int = 2) -> Tensor:
    """uint8 [T, 3, H, W]: channel 0 rises from left to right, channel 1 from top to bottom."""
    x = torch.linspace(0, 255, width).round().byte().expand(height, width)
    y = torch.linspace(0, 255, height).round().byte()[:, None].expand(height, width)
    return torch.stack([x, y, torch.zeros_like(x)]).expand(frames, 3, height, width).contiguous()


def middle(crop: Tensor, channel: int) -> float:
    return crop[:, channel].float().mean().item()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((240, 426), (224, 397)),
        ((426, 240), (397, 224)),
        ((224, 300), (224, 300)),
        ((100, 100), (224, 224)),
        ((720, 1281), (224, 398)),
    ],
)
def test_the_short_side_is_exact_and_the_long_one_truncated(before, after):
    resized = resize_short_side(ramp(*before), 224)
    assert resized.shape[-2:] == after
    assert resized.dtype == torch.uint8


def test_three_crops_go_from_side_to_side():
    left, centre, right = spatial_crops(ramp(64, 192), 64, 3)
    assert middle(left, 0) == pytest.approx(255 / 6, abs=2)
    assert middle(centre, 0) == pytest.approx(255 / 2, abs=2)
    assert middle(right, 0) == pytest.approx(255 * 5 / 6, abs=2)
    # The outer crops touch the borders and nothing is left out of the height.
    assert left[0, 0, 0, 0] == 0
    assert right[0, 0, 0, -1] == 255
    for crop in (left, centre, right):
        assert middle(crop, 1) == pytest.approx(255 / 2, abs=1)


def test_three_crops_of_an_upright_video_go_from_top_to_bottom():
    top, centre, bottom = spatial_crops(ramp(192, 64), 64, 3)
    for crop, place in ((top, 1 / 6), (centre, 1 / 2), (bottom, 5 / 6)):
        assert middle(crop, 1) == pytest.approx(255 * place, abs=2)
    assert all(middle(c, 0) == pytest.approx(255 / 2, abs=1) for c in (top, centre, bottom))


def test_one_crop_is_seven_eighths_of_the_short_side():
    (crop,) = spatial_crops(ramp(256, 256), 224, 1)
    # 256 is already the size that a 224 crop is cut from: pixels 16 to 240 come out untouched.
    assert torch.equal(crop, ramp(256, 256)[..., 16:240, 16:240])


def test_the_crop_of_a_right_sized_frame_is_a_copy_of_its_pixels():
    frames = torch.randint(0, 256, (2, 3, 224, 301), dtype=torch.uint8)
    left, centre, right = spatial_crops(frames, 224, 3)
    assert torch.equal(left, frames[..., :224])
    assert torch.equal(centre, frames[..., 39:263])  # SlowFast rounds the half pixel up
    assert torch.equal(right, frames[..., 77:])


@pytest.mark.parametrize("shape", [(2000, 2), (2, 4000), (1, 1), (1, 30), (3000, 1), (9, 8)])
@pytest.mark.parametrize("num_crops", [1, 3])
def test_any_shape_gives_square_crops_without_a_giant_in_between(shape, num_crops, monkeypatch):
    largest = 0
    interpolate = torch.nn.functional.interpolate

    def watched(frames, size, **kwargs):
        nonlocal largest
        largest = max(largest, size[0] * size[1])
        return interpolate(frames, size=size, **kwargs)

    monkeypatch.setattr(crops.F, "interpolate", watched)
    cut = spatial_crops(ramp(*shape), 224, num_crops)
    assert [tuple(c.shape) for c in cut] == [(2, 3, 224, 224)] * num_crops
    assert largest <= 9 * 256 * 256


def test_the_crops_of_a_strip_are_its_start_middle_and_end():
    crops = spatial_crops(ramp(16, 1600), 32, 3)
    assert [middle(c, 0) for c in crops] == pytest.approx([1.2, 127.5, 253.8], abs=0.5)
    assert middle(spatial_crops(ramp(16, 1600), 32, 1)[0], 0) == pytest.approx(127.5, abs=1)


def test_a_strip_is_cut_where_a_slightly_shorter_one_is_resized_first():
    cut = spatial_crops(ramp(50, 401), 50, 3)
    resized = spatial_crops(ramp(50, 400), 50, 3)
    for a, b in zip(cut, resized, strict=True):
        assert (a.float() - b.float()).abs().max() < 2


def test_shrinking_averages_instead_of_picking_pixels():
    stripes = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 255
    shrunk = resize_short_side(stripes, 8).float()
    assert (shrunk - 127.5).abs().max() < 8


def test_normalisation_is_per_channel_and_puts_channels_first():
    frames = torch.randint(0, 256, (5, 3, 7, 7), dtype=torch.uint8)
    clip = normalize(frames, COLOURS)
    assert clip.shape == (3, 5, 7, 7)
    assert clip.dtype == torch.float32
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        expected = (frames[:, channel].double() / 255 - mean) / std
        torch.testing.assert_close(clip[channel].double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("interleaved", [False, True])
def test_clips_normalised_together_are_bit_for_bit_those_normalised_alone(interleaved):
    frames = torch.randint(0, 256, (3, 5, 3, 7, 9), dtype=torch.uint8)  # [B, T, 3, H, W]
    if interleaved:
        frames = frames.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    clips = normalize_clips(frames.transpose(1, 2), COLOURS)
    assert clips.shape == (3, 3, 5, 7, 9)
    assert clips.is_contiguous()
    assert torch.equal(clips, torch.stack([normalize(clip, COLOURS) for clip in frames]))
    assert normalize_clips(frames[:0].transpose(1, 2), COLOURS).shape == (0, 3, 5, 7, 9)


def test_planes_are_what_contiguous_gives():
    frames = torch.randint(0, 256, (2, 7, 9, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    for view in (frames, frames.contiguous(), frames[..., 1:5, 2:8], frames.flip(-1), frames[:0]):
        planes = planar(view)
        assert planes.is_contiguous()
        assert torch.equal(planes, view)


@pytest.mark.parametrize("num_crops", [0, 2, 4, -1])
def test_other_numbers_of_crops_are_refused(num_crops):
    with pytest.raises(UserError, match=r"1 .*3"):
        spatial_crops(ramp(32, 32), 32, num_crops)
