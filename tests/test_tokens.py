"""The token layout against plain pooling and against hand-written orders."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hiera_video.errors import UserError
from hiera_video.models.tokens import (
    TokenLayout,
    count_kept,
    keep_from_noise,
    max_pool,
    num_kept,
    pick_units,
    raster_to_units,
    unit_ids,
    units_to_raster,
)

LAYOUTS = {
    "1d": {"input_size": (64,), "patch_stride": (4,), "mask_unit_size": (8,), "q_stride": (2,)},
    "2d": {
        "input_size": (64, 96),
        "patch_stride": (4, 4),
        "mask_unit_size": (8, 8),
        "q_stride": (2, 2),
    },
    "3d": {
        "input_size": (6, 64, 32),
        "patch_stride": (2, 4, 4),
        "mask_unit_size": (1, 8, 8),
        "q_stride": (1, 2, 2),
    },
    "units longer than their pools": {
        "input_size": (8, 128, 64),
        "patch_stride": (2, 4, 4),
        "mask_unit_size": (2, 16, 8),
        "q_stride": (1, 2, 2),
    },
}
POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def layout_of(name: str, num_pools: int = 3) -> TokenLayout:
    return TokenLayout(num_pools=num_pools, **LAYOUTS[name])


def raster_of(layout: TokenLayout, batch: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.randn(batch, *layout.grid, channels, generator=torch.Generator().manual_seed(0))


def test_order_inside_a_unit_is_the_documented_one():
    """The 4x4 example of the module's docstring."""
    layout = TokenLayout(
        input_size=(4, 4), patch_stride=(1, 1), mask_unit_size=(4, 4), q_stride=(2, 2), num_pools=2
    )
    units = layout.to_units(torch.arange(16).view(1, 4, 4, 1))
    assert units.flatten().tolist() == [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15]


def test_units_are_numbered_in_raster_order():
    layout = layout_of("2d")
    unit_of = torch.arange(6).view(2, 3).repeat_interleave(8, 0).repeat_interleave(8, 1)
    units = layout.to_units(unit_of.view(1, 16, 24, 1))
    assert (units[0, :, :, 0] == torch.arange(6).unsqueeze(1)).all()


@pytest.mark.parametrize("name", LAYOUTS)
def test_to_raster_undoes_to_units(name):
    layout = layout_of(name)
    raster = raster_of(layout)
    assert torch.equal(layout.to_raster(layout.to_units(raster), pools=0), raster)


@pytest.mark.parametrize("name", LAYOUTS)
def test_from_unit_raster_undoes_to_unit_raster(name):
    layout = layout_of(name)
    units = layout.to_units(raster_of(layout))
    assert torch.equal(layout.from_unit_raster(layout.to_unit_raster(units, pools=0)), units)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("pools", [1, 2, 3])
def test_pooling_the_leading_axis_is_max_pooling_of_the_grid(name, pools):
    layout = layout_of(name)
    raster = raster_of(layout)
    units = layout.to_units(raster)
    for _ in range(pools):
        units = max_pool(units, layout.pool_factor)
    kernel = tuple(s**pools for s in layout.q_stride)
    expected = POOL[layout.dims](raster.movedim(-1, 1), kernel).movedim(1, -1)
    assert torch.equal(layout.to_raster(units, pools), expected)
    assert units.shape[2] == torch.Size(layout.unit_shape(pools)).numel()


@pytest.mark.parametrize("name", LAYOUTS)
def test_unit_raster_is_the_crop_of_the_grid(name):
    layout = layout_of(name)
    raster = raster_of(layout)
    rows = layout.to_unit_raster(layout.to_units(raster), pools=0)
    first = tuple(slice(0, size) for size in layout.unit)
    assert torch.equal(rows[:, 0], raster[(slice(None), *first)])


def test_raster_and_units_of_maps_are_inverse():
    x = torch.randn(2, 4, 6, 10, 5)
    assert torch.equal(units_to_raster(raster_to_units(x, (2, 3, 5)), (2, 3, 5)), x)


@pytest.mark.parametrize(
    ("units", "ratio", "kept"),
    [
        (392, 0.5, 196),
        (392, 0.6, 156),
        (392, 0.75, 98),
        (392, 0.9, 39),
        (392, 0.95, 19),
        (49, 0.6, 19),
    ],
)
def test_kept_units_are_those_of_the_paper(units, ratio, kept):
    assert num_kept(units, ratio) == kept


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 7])
def test_mask_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(UserError, match="mask_ratio"):
        num_kept(392, ratio)


def test_keep_takes_the_units_of_smallest_noise():
    noise = torch.tensor([[0.3, 0.1, 0.9, 0.2], [0.5, 0.6, 0.1, 0.0]])
    expected = [[False, True, False, True], [False, False, True, True]]
    assert keep_from_noise(noise, 0.5).tolist() == expected


@settings(max_examples=50, deadline=None)
@given(batch=st.integers(1, 4), units=st.integers(1, 40), seed=st.integers(0, 9), data=st.data())
def test_ids_pick_exactly_the_kept_units_in_order(batch, units, seed, data):
    kept = data.draw(st.integers(1, units))
    noise = torch.rand(batch, units, generator=torch.Generator().manual_seed(seed))
    keep = torch.zeros(batch, units, dtype=torch.bool)
    keep.scatter_(1, noise.argsort(1)[:, :kept], True)
    tokens = torch.randn(batch, units, 3)
    assert count_kept(keep, batch=batch, num_units=units) == kept
    picked = pick_units(tokens, unit_ids(keep, kept))
    assert torch.equal(picked, tokens[keep].view(batch, kept, 3))


@pytest.mark.parametrize(
    ("keep", "complaint"),
    [
        (torch.ones(2, 6), "torch.float32"),
        (torch.ones(2, 5, dtype=torch.bool), r"\(2, 5\)"),
        (torch.zeros(2, 6, dtype=torch.bool), "at least one"),
        (torch.tensor([[True] * 6, [True] * 5 + [False]]), "between 5 and 6"),
    ],
)
def test_unusable_masks_are_refused(keep, complaint):
    with pytest.raises(UserError, match=complaint):
        count_kept(keep, batch=2, num_units=6)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"input_size": (6, 64, 40)}, r"multiples of \(2, 32, 32\)"),
        ({"input_size": (5, 64, 64)}, r"multiples of \(2, 32, 32\)"),
        ({"input_size": (64, 64)}, "2 dimensions"),
        ({"mask_unit_size": (1, 4, 4)}, r"multiples of \(1, 8, 8\)"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(change, complaint):
    with pytest.raises(UserError, match=complaint):
        TokenLayout(num_pools=3, **{**LAYOUTS["3d"], **change})
