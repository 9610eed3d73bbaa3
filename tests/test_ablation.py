"""The steps of the ladder: against a slow implementation, against their neighbours, with masks.

No public code has the steps between MViTv2 and Hiera; `naive_ladder.py` is the oracle.
"""

import dataclasses
import math

import naive_ladder
import pytest
import torch
from randomness import redraw, relative_error

from hiera_video import build_model
from hiera_video.errors import UserError
from hiera_video.models.ladder.ablation import LADDER, AblationConfig, as_ablation
from hiera_video.models.ladder.layouts import LAYOUTS
from hiera_video.models.ladder.models import LadderClassifier

SMALL = {"embed_dim": 16, "num_heads": 2, "stages": (1, 2, 1, 1), "num_classes": 5}
IMAGE = {**SMALL, "input_size": (64, 96)}
VIDEO = {**SMALL, "input_size": (4, 32, 64)}
MASKABLE = [name for name in LADDER if name != "r0"]
KINDS = ("224", "16x224")


def model_of(name, kind="16x224", **overrides):
    """A step at a size that a test can afford, its parameters at random."""
    sizes = VIDEO if kind == "16x224" else IMAGE
    model = build_model(f"ladder_{name}_small_{kind}", **{**sizes, **overrides})
    return redraw(model).eval()


def clips_for(model, batch=2, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, *model.input_size, generator=generator)


def same_function(one, other, tolerance=1e-6):
    """Whether two models with the weights of `one` give the same logits."""
    other.load_state_dict(one.state_dict(), strict=True)
    clips = clips_for(one)
    with torch.inference_mode():
        expected, found = one(clips), other.eval()(clips)
    assert not torch.equal(expected, torch.zeros_like(expected))
    return relative_error(found, expected) <= tolerance


# ---- against the slow implementation ------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LADDER)
def test_every_step_equals_the_slow_implementation(name, kind):
    model = model_of(name, kind)
    clip = clips_for(model, batch=1)
    with torch.inference_mode():
        expected = naive_ladder.logits(model, clip[0])
        assert relative_error(model(clip)[0], expected) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MASKABLE)
def test_every_step_equals_the_slow_implementation_under_a_mask(name, kind):
    model = model_of(name, kind)
    clip = clips_for(model, batch=1)
    keep = model.random_keep(1, 0.5, torch.Generator().manual_seed(5))
    with torch.inference_mode():
        expected = naive_ladder.logits(model, clip[0], keep[0])
        assert relative_error(model(clip, keep)[0], expected) <= 1e-5


OPTIONS = {
    "r0": [{"kv_stride": (8, 4, 2, 1)}, {"expand": "mlp"}, {"positions": "absolute"}],
    "r1": [{"pool_kernel_t": 1}, {"pool_pad": "-inf"}, {"expand": "mlp"}, {"final": "norm_mean"}],
    "r2b": [{"pool_pad": "-inf"}, {"pool_kernel_t": 1}, {"kv_stride": (8, 4, 2, 1)}],
    "r2c": [{"pool_pad": "-inf"}, {"q_residual": False}, {"unit_attn": True}],
    "r3": [{"unit_attn": True}, {"tokens": "units"}, {"tokens": "grid"}],
    "r5": [{"q_residual": True}, {"tokens": "units"}, {"expand": "mlp"}],
}


@pytest.mark.parametrize(
    ("name", "options"), [(name, each) for name, several in OPTIONS.items() for each in several]
)
def test_every_option_equals_the_slow_implementation_and_changes_something(name, options):
    model = model_of(name, ablation=options)
    clip = clips_for(model, batch=1)
    with torch.inference_mode():
        expected = naive_ladder.logits(model, clip[0])
        assert relative_error(model(clip)[0], expected) <= 1e-5
        usual = redraw(model_of(name))(clip)[0]
    if "tokens" not in options:  # the order of tokens is no part of the function
        assert relative_error(usual, expected) > 1e-3


# ---- against each other -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_unrolled_units_and_grid_are_one_function_where_kernel_is_stride(kind):
    unrolled = model_of("r3", kind)
    for tokens in ("units", "grid"):
        assert same_function(unrolled, model_of("r3", kind, ablation={"tokens": tokens}))


@pytest.mark.parametrize("kind", KINDS)
def test_r1_with_one_unit_is_mvit_without_relative_positions(kind):
    grid = model_of("r0", kind, ablation={"positions": "absolute", "final": "mean_norm"})
    whole = model_of("r1", kind, ablation={"pool_pad": "-inf"}, mask_unit_size=grid.layout.grid)
    assert grid.layout.num_units == whole.layout.num_units == 1
    assert same_function(grid, whole)


def test_r0_with_empty_tables_is_mvit_without_relative_positions():
    relative = model_of("r0")
    absolute = model_of("r0", ablation={"positions": "absolute"})
    state = {k: v for k, v in relative.state_dict().items() if "rel_pos" not in k}
    zeros = {k: torch.zeros_like(v) for k, v in absolute.state_dict().items() if "pos_embed" in k}
    absolute.load_state_dict({**state, **zeros}, strict=True)
    clips = clips_for(relative)
    with torch.inference_mode():
        with_tables = relative(clips)
        for name, parameter in relative.named_parameters():
            if "rel_pos" in name:
                parameter.zero_()
        assert relative_error(absolute(clips), relative(clips)) <= 1e-6
        assert relative_error(with_tables, relative(clips)) > 1e-3


def test_separate_and_pad_is_another_function_than_the_whole_grid():
    units = model_of("r1")
    assert not same_function(units, model_of("r1", ablation={"tokens": "grid"}), tolerance=1e-2)


def test_in_units_the_outer_temporal_taps_see_padding_alone():
    """Units are one step long: two thirds of the 3x3x3 kernels do nothing."""
    model = model_of("r1")
    clips = clips_for(model)
    with torch.inference_mode():
        before = model(clips)
        for name, parameter in model.named_parameters():
            if ".pool_" in name:
                parameter[:, :, [0, 2]] = torch.randn_like(parameter[:, :, [0, 2]])
        assert torch.equal(model(clips), before)
        for name, parameter in model.named_parameters():
            if ".pool_q" in name:
                parameter[:, :, 1] += 1
        assert not torch.equal(model(clips), before)


def test_zero_padding_makes_max_pools_cut_off_negative_values():
    """The paper's remark on row b; a unit one step long is padded in time everywhere."""
    seen = {}
    for pad in ("zero", "-inf"):
        model = model_of("r2b", ablation={"pool_pad": pad})
        pool = model.blocks[0].attn.pool_q
        t = torch.randn(2, 3, 64, 2, 8, generator=torch.Generator().manual_seed(0))
        seen[pad] = pool(t)
        assert seen[pad].shape == t.shape
    assert seen["zero"].min() == 0
    assert seen["-inf"].min() < 0
    assert torch.equal(seen["zero"], seen["-inf"].clamp(min=0))


def test_a_class_token_is_neither_pooled_nor_positioned_nor_added():
    model = model_of("r0", ablation={"cls_token": True, "final": "cls"})
    clips = clips_for(model)
    tokens = model.embed(clips)
    assert tokens.shape[2] == 1 + math.prod(model.layout.grid)
    assert torch.equal(tokens[0, 0, 0], model.cls_token[0, 0])
    maps = model.stage_features(clips)
    assert [m.shape[1:4] for m in maps] == [model.layout.grid_shape(s) for s in range(4)]
    assert {"cls_token", "blocks.0.attn.rel_pos_t"} <= model.no_weight_decay()
    assert model.layer_id("cls_token") == 0
    with torch.inference_mode():
        before = model(clips)
        model.cls_token.copy_(torch.randn(1, 1, 16))
        assert relative_error(model(clips), before) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["unrolled", "units", "grid"])
def test_orders_of_tokens_are_undone_exactly(order, kind):
    name = {"unrolled": "r3", "units": "r1", "grid": "r0"}[order]
    layout = model_of(name, kind).layout
    assert type(layout) is LAYOUTS[order]
    raster = torch.randn(2, *layout.grid, 3)
    units = layout.to_units(raster)
    assert units.shape == (2, layout.num_units, layout.tokens_per_unit, 3)
    assert torch.equal(layout.to_raster(units, pools=0), raster)
    pictures = layout.to_unit_raster(units, pools=0)
    assert torch.equal(layout.from_unit_raster(pictures), units)
    for found, unit in zip(pictures[1], naive_ladder.cut(raster[1], layout.unit), strict=True):
        assert torch.equal(found, unit)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["r0", "r1", "r2c", "r4"])
def test_steps_compile_without_a_break(name):
    model = model_of(name)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    clips = clips_for(model)
    with torch.no_grad():
        assert torch.equal(compiled(clips), model(clips))


# ---- masks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MASKABLE)
def test_deleted_pixels_have_no_influence_at_all(name, kind):
    model = model_of(name, kind)
    clips = clips_for(model)
    keep = model.random_keep(2, 0.5, torch.Generator().manual_seed(1))
    pixels = torch.stack(
        [naive_ladder.keep_pixels(model, k, c) for k, c in zip(keep, clips, strict=True)]
    )
    disturbed = clips + 100 * torch.randn_like(clips) * (1 - pixels[:, None])
    assert not torch.equal(disturbed, clips)
    with torch.inference_mode():
        assert torch.equal(model(disturbed, keep), model(clips, keep))
        maps = model.stage_features(disturbed, keep), model.stage_features(clips, keep)
        assert all(torch.equal(a, b) for a, b in zip(*maps, strict=True))
        assert relative_error(model(disturbed), model(clips)) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MASKABLE)
def test_keeping_everything_is_the_dense_model(name, kind):
    model = model_of(name, kind)
    clips = clips_for(model)
    keep = torch.ones(2, model.num_mask_units, dtype=torch.bool)
    with torch.inference_mode():
        assert relative_error(model(clips, keep), model(clips)) <= 1e-5


def test_mvit_takes_no_mask_and_says_who_does():
    model = model_of("r0")
    keep = torch.ones(2, 1, dtype=torch.bool)
    for ask in (
        lambda: model(clips_for(model), keep),
        lambda: model.random_keep(2, 0.5),
        lambda: build_model("mae_ladder_r1_small_16x224", ablation=LADDER["r0"]),
    ):
        with pytest.raises(UserError, match=r"no mask units.*ladder_r1"):
            ask()


# ---- stages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LADDER)
def test_stage_features_are_the_slow_implementations_in_raster_order(name, kind):
    model = model_of(name, kind)
    clip = clips_for(model, batch=1)
    with torch.inference_mode():
        maps = model.stage_features(clip)
        for stage, units in enumerate(naive_ladder.stages(model, clip[0])):
            size = model.layout.grid_shape(stage)
            assert maps[stage].shape == (1, *size, 16 * 2**stage)
            unit = units[0].shape[:-1]
            for found, expected in zip(naive_ladder.cut(maps[stage][0], unit), units, strict=True):
                assert relative_error(found, expected) <= 1e-5


# ---- wrong choices ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "complaint"),
    [
        ({"tokens": "rows"}, "tokens='rows' must be one of 'unrolled', 'units', 'grid'"),
        ({"pool_kernel": 5}, "pool_kernel=5 must be one of None, 3"),
        ({"pool_kernel_t": True}, "pool_kernel_t=True must be one of 1, 3"),
        ({"kv_stride": (4, 2, 0, 1)}, "a whole number from 1"),
        ({"kv_stride": 4}, "kv_stride=4"),
        ({"positions": "relative"}, "relative.*tokens='grid', which takes no mask"),
        ({"cls_token": True, "tokens": "units"}, "cls_token=True needs tokens='grid'"),
        ({"final": "cls"}, "final='cls' needs cls_token=True"),
        ({"pool_op": "conv"}, "pool_op='conv' needs tokens='units' or 'grid'"),
        ({"pool_kernel": 3}, "pool_kernel=3 overlaps and needs tokens='units'"),
        ({"pool_stride1": True, "pool_kernel": 3}, "needs tokens='units'"),
        ({"pool_stride1": True}, "pool_stride1=True needs pool_kernel=3"),
        ({"tokens": "grid"}, "unit_attn=True needs mask units"),
        ({"pool_pad": "-inf"}, "pool_pad='-inf' has no effect"),
        ({"pool_padding": 1}, "no pool_padding; it has positions, tokens, pool_op"),
    ],
)
def test_impossible_choices_are_refused(choices, complaint):
    with pytest.raises(UserError, match=complaint):
        LadderClassifier(**IMAGE, ablation=choices)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"ablation": {"kv_stride": (4, 2)}}, "one stride per stage, 4"),
        ({"ablation": {"kv_stride": (3, 1, 1, 1)}}, r"stride \(1, 3, 3\) does not tile units"),
        ({"ablation": {"kv_stride": (4, 2, 1, 4)}}, "does not tile"),
        ({"ablation": {"kv_stride": (1, 1, 1, 4), "tokens": "units"}}, "does not tile"),
        ({"ablation": 3}, "must be an AblationConfig or a mapping"),
        ({"pool_pad": "zero"}, "pool_pad.*it takes .*ablation"),
    ],
)
def test_choices_that_do_not_fit_the_model_are_refused(arguments, complaint):
    with pytest.raises(UserError, match=complaint):
        build_model("ladder_r3_small_16x224", **VIDEO, **arguments)


def test_relative_positions_exclude_absolute_windows():
    with pytest.raises(UserError, match="abs_win=True needs absolute positions"):
        build_model("ladder_r0_small_16x224", **VIDEO, abs_win=True)


def test_choices_may_be_a_mapping_as_in_a_config():
    by_mapping = as_ablation({"kv_stride": [8, 4, 2, 1]}, base=LADDER["r1"])
    assert by_mapping == dataclasses.replace(LADDER["r1"], kv_stride=(8, 4, 2, 1))
    assert as_ablation(None) == as_ablation({}) == AblationConfig() == LADDER["r5"]
    assert as_ablation(LADDER["r2b"], base=LADDER["r1"]) == LADDER["r2b"]


def test_the_argument_keeps_its_earlier_name():
    """Configs and checkpoints of earlier versions say `rung`."""
    for name in ("ladder_r2b_small_16x224", "mvitv2_small_16x224"):
        now, before = (
            build_model(name, **VIDEO, **{argument: {"kv_stride": [2, 2, 1, 1]}})
            for argument in ("ablation", "rung")
        )
        assert now.ablation == before.ablation
        assert now.ablation.kv_stride == (2, 2, 1, 1)
    with pytest.raises(UserError, match="same argument"):
        build_model("ladder_r2b_small_224", ablation={}, rung={})


def test_the_presets_are_those_of_the_specification():
    usual = dataclasses.asdict(AblationConfig())
    pooling = {"kv_stride": (4, 2, 1, 1), "unit_attn": False}
    residual = {**pooling, "q_residual": True}
    windows = {**residual, "tokens": "units", "pool_kernel": 3}
    expected = {
        "r0": {
            **windows,
            "positions": "relative",
            "tokens": "grid",
            "pool_op": "conv",
            "pool_stride1": True,
            "final": "norm_mean",
        },
        "r1": {**windows, "pool_op": "conv", "pool_stride1": True},
        "r2b": {**windows, "pool_stride1": True},
        "r2c": windows,
        "r3": residual,
        "r4": pooling,
        "r5": {},
    }
    assert list(LADDER) == list(expected)
    for name, step in LADDER.items():
        chosen = {k: v for k, v in dataclasses.asdict(step).items() if v != usual[k]}
        assert chosen == expected[name], name
