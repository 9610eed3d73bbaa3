"""The ladder's registered models: names, counts, what Hiera costs, pretraining."""

import collections
import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from randomness import redraw
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from hiera_video import build_model, list_models, load_config
from hiera_video.errors import UserError
from hiera_video.models import Hiera
from hiera_video.models.ladder.ablation import LADDER, AblationConfig
from hiera_video.models.layers import Block, MaskUnitAttention

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "ladder"
SIZES = ("small", "base", "large")
KINDS = ("224", "16x224")
SMALL = {"embed_dim": 16, "num_heads": 1, "stages": (1, 2, 2, 1)}
SMALL_IMAGE = {**SMALL, "input_size": (64, 64)}
SMALL_VIDEO = {**SMALL, "input_size": (4, 64, 64)}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}

# parameters and multiply-adds (G) of matrix products and convolutions
COUNTS = {
    "ladder_r0_small_224": (34_870_216, 6.96),
    "ladder_r0_base_224": (51_472_744, 10.10),
    "ladder_r0_large_224": (213_635_368, 41.76),
    "ladder_r1_small_224": (35_058_760, 6.91),
    "ladder_r1_base_224": (51_601_000, 10.03),
    "ladder_r1_large_224": (213_853_960, 41.57),
    "ladder_r2b_small_224": (35_008_072, 6.87),
    "ladder_r2b_base_224": (51_524_968, 9.97),
    "ladder_r2b_large_224": (213_739_912, 41.41),
    "ladder_r5_small_224": (35_008_072, 6.41),
    "ladder_r5_base_224": (51_524_968, 9.38),
    "ladder_r5_large_224": (213_739_912, 40.27),
    "ladder_r0_small_16x224": (34_543_024, 104.40),
    "ladder_r0_base_16x224": (51_198_544, 148.24),
    "ladder_r0_large_16x224": (213_224_368, 501.30),
    "ladder_r1_small_16x224": (34_709_296, 103.92),
    "ladder_r1_base_16x224": (51_293_008, 147.52),
    "ladder_r1_large_16x224": (213_392_272, 499.36),
    "ladder_r2b_small_16x224": (34_575_664, 102.97),
    "ladder_r2b_base_16x224": (51_092_560, 146.18),
    "ladder_r2b_large_16x224": (213_091_600, 495.63),
    "ladder_r5_small_16x224": (34_575_664, 69.51),
    "ladder_r5_base_16x224": (51_092_560, 101.73),
    "ladder_r5_large_16x224": (213_091_600, 412.13),
    "mvitv2_tiny_224": (24_173_320, 4.68),
    "mvitv2_small_224": (34_870_216, 6.96),
    "mvitv2_base_224": (51_472_744, 10.10),
    "mvitv2_large_224": (217_992_952, 43.71),
    "mvitv2_small_16x224": (34_537_744, 64.22),
    "mvitv2_base_32x224": (51_230_128, 224.47),
    "mvitv2_large_16x224": (217_578_064, 376.82),
}
# with a class token, which the ladder leaves out; the strides of the released large model
WITH_CLS = {"ablation": {"cls_token": True, "final": "cls"}}
STRIDES_8421 = {"ablation": {"kv_stride": (8, 4, 2, 1)}}
VARIANTS = [
    ("ladder_r0_small_16x224", WITH_CLS, 34_543_120, 104.49),
    ("ladder_r0_base_16x224", WITH_CLS, 51_198_640, 148.36),
    ("ladder_r0_large_16x224", WITH_CLS, 213_224_512, 501.70),
    (
        "ladder_r0_large_16x224",
        {"ablation": {**WITH_CLS["ablation"], **STRIDES_8421["ablation"]}},
        213_220_480,
        361.21,
    ),
    ("ladder_r0_large_16x224", STRIDES_8421, 213_220_336, 360.87),
    ("ladder_r1_large_16x224", STRIDES_8421, 213_392_272, 359.67),
    ("ladder_r2b_large_16x224", STRIDES_8421, 213_091_600, 357.55),
    ("mvitv2_large_16x224", {"ablation": {"kv_stride": (4, 2, 1, 1)}}, 217_582_096, 517.31),
]
# multiply-adds of sparse encoders with the last Q pool off, at the paper's mask ratios (G)
ENCODERS = {
    "ladder_r1_large_224": 18.92,
    "ladder_r2c_large_224": 18.86,
    "ladder_r3_large_224": 18.86,
    "ladder_r5_large_224": 18.73,
    "ladder_r1_base_224": 4.77,
    "ladder_r3_base_224": 4.75,
    "ladder_r5_base_224": 4.68,
    "ladder_r1_large_16x224": 41.62,
    "ladder_r3_large_16x224": 41.22,
    "ladder_r5_large_16x224": 40.52,
    "ladder_r1_base_16x224": 11.30,
    "ladder_r3_base_16x224": 11.15,
    "ladder_r5_base_16x224": 10.79,
}


def slow_but(names, fast):
    """Parameters of a test of which all but a few are slow: meta tensors take their time, too."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


def on_meta(name, **overrides):
    with torch.device("meta"):
        return build_model(name, **overrides).eval()


def small(name, **overrides):
    sizes = SMALL_IMAGE if name.endswith("_224") else SMALL_VIDEO
    return build_model(name, **{**sizes, **overrides})


def clips_for(model, batch=2, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, *model.input_size, generator=generator)


def gmacs(function, *arguments):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*arguments)
    return counter.get_total_flops() / 2e9


def parameters_of(model):
    return sum(p.numel() for p in model.parameters())


# ---- names and counts ---------------------------------------------------------------------------


def test_every_step_is_registered_in_every_size():
    steps = ("r0", "r1", "r2b", "r2c", "r3", "r4", "r5")
    names = {f"ladder_{r}_{size}_{kind}" for r in steps for size in SIZES for kind in KINDS}
    assert set(list_models("ladder_*")) == names
    maskable = {f"mae_{name}" for name in names if "_r0_" not in name}
    assert set(list_models("mae_ladder_*")) == maskable
    assert set(list_models("mvitv2_*")) == {name for name in COUNTS if "mvitv2" in name}


@pytest.mark.parametrize(
    "name", slow_but(COUNTS, {name for name in COUNTS if "small" in name or "large_16x" in name})
)
def test_parameters(name):
    assert parameters_of(on_meta(name)) == COUNTS[name][0]


@pytest.mark.parametrize("name", slow_but(COUNTS, {"ladder_r0_small_224", "ladder_r1_small_224"}))
def test_multiply_adds(name):
    model = on_meta(name)
    clip = torch.empty(1, 3, *model.input_size, device="meta")
    assert gmacs(model, clip) == pytest.approx(COUNTS[name][1], abs=0.0051)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", slow_but(SIZES, {"small"}))
def test_pooling_by_maxima_has_no_parameters(size, kind):
    """From r2b on all steps have Hiera's keys."""
    expected = {key: t.shape for key, t in on_meta(f"hiera_{size}_{kind}").state_dict().items()}
    for step in ("r2b", "r2c", "r3", "r4"):
        model = on_meta(f"ladder_{step}_{size}_{kind}")
        assert {key: t.shape for key, t in model.state_dict().items()} == expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_steps_between_convolutions_and_units_cost_the_same_multiply_adds(size, kind):
    counts = set()
    for step in ("r2b", "r2c", "r3", "r4"):
        model = on_meta(f"ladder_{step}_{size}_{kind}")
        counts.add(gmacs(model, torch.empty(1, 3, *model.input_size, device="meta")))
    assert counts.pop() == pytest.approx(COUNTS[f"ladder_r2b_{size}_{kind}"][1], abs=0.0051)
    assert not counts


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes", "parameters", "expected"), VARIANTS)
def test_counts_of_the_forms_between_the_steps_and_the_released_models(
    name, changes, parameters, expected
):
    model = on_meta(name, **changes)
    assert parameters_of(model) == parameters
    clip = torch.empty(1, 3, *model.input_size, device="meta")
    assert gmacs(model, clip) == pytest.approx(expected, abs=0.0051)


@pytest.mark.parametrize("name", slow_but(ENCODERS, {"ladder_r3_base_224"}))
def test_multiply_adds_of_sparse_encoders(name):
    model = on_meta(name, q_pool=2)
    clip = torch.empty(1, 3, *model.input_size, device="meta")
    kept = int(model.num_mask_units * (0.1 if "16x" in name else 0.4))
    tokens = torch.empty(1, kept, model.layout.tokens_per_unit, model.stage_dims[0], device="meta")
    # the published count convolves the whole picture, whose deleted pixels are zero
    stem = gmacs(model.patch_embed, clip, model.layout)
    assert stem + gmacs(model.forward_stages, tokens) == pytest.approx(ENCODERS[name], abs=0.0051)


def test_what_each_step_gives_up_adds_up_by_hand():
    """Large, head dimension 72; tables of 111 | 55, 5x 55 | 55, 35x 27 | 27, 3x 13 distances."""
    r0, r1, r2b = (COUNTS[f"ladder_{step}_large_224"][0] for step in ("r0", "r1", "r2b"))
    tables = 72 * 2 * (2 * 111 + 6 * 55 + 55 + 35 * 27 + 27 + 3 * 13)
    assert r1 - r0 == 3136 * 144 - tables == 218_592
    assert r1 - r2b == 48 * 3 * 72 * (9 + 2) == 114_048
    r1, r2b = (COUNTS[f"ladder_{step}_large_16x224"][0] for step in ("r1", "r2b"))
    assert r1 - r2b == 48 * 3 * 72 * (27 + 2) == 300_672


# ---- the last step is Hiera ---------------------------------------------------------------------


class OperatorCount(TorchDispatchMode):
    """Counts the operators that compute, views apart."""

    def __init__(self):
        super().__init__()
        self.count = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.count[func.overloadpacket.__name__.rstrip("_")] += 1
        return func(*args, **(kwargs or {}))


def operators_of(module, x):
    with torch.inference_mode(), OperatorCount() as counter:
        module(x)
    return counter.count


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_step_builds_what_hiera_builds(kind):
    hiera, last = small(f"hiera_small_{kind}"), small(f"ladder_r5_small_{kind}")
    assert type(last) is type(hiera) is Hiera
    assert str(last) == str(hiera)
    assert list(last.state_dict()) == list(hiera.state_dict())
    assert {type(block) for block in last.blocks} == {Block}
    assert {type(block.attn) for block in last.blocks} == {MaskUnitAttention}
    last.load_state_dict(redraw(hiera).state_dict())
    clips = clips_for(hiera)
    with torch.inference_mode():
        assert torch.equal(last.eval()(clips), hiera.eval()(clips))


@pytest.mark.parametrize("name", ["hiera_small_16x224", "ladder_r5_small_16x224"])
def test_a_block_of_hiera_computes_nothing_that_it_need_not(name):
    model = small(name).eval()
    plain = {"layer_norm": 2, "linear": 4, "scaled_dot_product_attention": 1, "add": 2, "gelu": 1}
    with torch.inference_mode():
        x = model.embed(clips_for(model))
        for block in model.blocks:
            first = block.proj is not None
            entering = {**plain, "linear": 5, "amax": 2}
            assert operators_of(block, x) == (entering if first else plain)
            x = block(x)


def test_each_step_computes_what_the_paper_takes_away_on_the_next():
    """Operators of a middle block of stage 2, where K and V are pooled and Q is not."""
    plain = {"layer_norm": 2, "linear": 4, "scaled_dot_product_attention": 1, "add": 2, "gelu": 1}
    expected = {
        # five norms; three tables looked up, multiplied, summed (2); the residual
        "r0": {**plain, "layer_norm": 5, "conv3d": 3, "index": 3, "einsum": 3, "add": 5},
        "r1": {**plain, "layer_norm": 5, "conv3d": 3, "add": 3},
        "r2b": {**plain, "max_pool3d": 3, "pad": 3, "add": 3},
        "r2c": {**plain, "max_pool3d": 2, "pad": 2, "add": 3},
        "r3": {**plain, "amax": 2, "add": 3},
        "r4": {**plain, "amax": 2},
        "r5": plain,
    }
    for name, operators in expected.items():
        model = small(f"ladder_{name}_small_16x224").eval()
        with torch.inference_mode():
            x = model.blocks[1](model.blocks[0](model.embed(clips_for(model))))
        assert operators_of(model.blocks[2], x) == operators, name


# ---- the contract of every model ----------------------------------------------------------------


@pytest.mark.parametrize("step", LADDER)
@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_backward_reach_every_parameter(step, kind):
    model = small(
        f"ladder_{step}_small_{kind}", num_classes=5, drop_path_rate=0.1, act_checkpoint=True
    )
    logits = model.train()(clips_for(model))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    names = dict(model.named_parameters())
    assert model.no_weight_decay() <= set(names)
    assert all(0 <= model.layer_id(name) <= model.num_layers for name in names)
    with torch.no_grad():
        clips = clips_for(model)
        model = redraw(model.eval())
        evaluated = model(clips)
        model.train()
        for block in model.blocks:
            block.drop_path.eval()
        assert torch.equal(model(clips), evaluated)


@pytest.mark.parametrize("name", [name for name in COUNTS if name.startswith("mvitv2")])
def test_published_models_train(name):
    model = small(name, num_classes=5).train()
    model(clips_for(model)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_every_parameter_is_initialised_as_published():
    """Poison the parameters, initialise, and find the forgotten layer."""
    model = small("ladder_r0_small_16x224", ablation={"cls_token": True, "final": "cls"})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    model.patch_embed.proj.bias.data.zero_()  # convolution biases keep torch's own start
    model.reset_parameters()
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
    attention = model.blocks[0].attn
    for parameter in (attention.rel_pos_h, attention.pool_k.weight, attention.rel_pos_t):
        assert parameter.std().item() == pytest.approx(0.02, rel=0.25)
    assert attention.norm_k.bias.eq(0.02).all()
    assert attention.norm_k.weight.eq(1).all()
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.5)


def test_arguments_of_a_step_are_named_where_one_is_wrong():
    for name in ("ladder_r3_small_224", "mae_ladder_r3_small_224", "mvitv2_small_224"):
        with pytest.raises(UserError, match=r"it takes ablation, .*drop_path_rate.*mask_unit_size"):
            build_model(name, drop_path=0.1)


@pytest.mark.parametrize("size", [(2, 36, 52), (4, 72, 40)])
def test_mvit_takes_grids_that_do_not_halve(size):
    model = redraw(small("ladder_r0_small_16x224", input_size=size, num_classes=3)).eval()
    maps = model.stage_features(clips_for(model))
    sides = [(size[1] // 4, size[2] // 4)]
    for _ in range(3):
        sides.append(tuple(math.ceil(side / 2) for side in sides[-1]))
    assert [m.shape[2:4] for m in maps] == sides
    assert model(clips_for(model)).isfinite().all()
    with pytest.raises(UserError, match=r"multiples of \(2, 4, 4\) \(one patch"):
        small("ladder_r0_small_16x224", input_size=(4, 64, 66))
    with pytest.raises(UserError, match=r"multiples of \(2, 32, 32\) \(one mask unit"):
        small("ladder_r1_small_16x224", input_size=size)


# ---- pretraining --------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [name for name in LADDER if name != "r0"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_autoencoder_learns_on_every_step_that_takes_masks(step, kind):
    torch.manual_seed(0)
    model = small(f"mae_ladder_{step}_small_{kind}", **DECODER, mask_ratio=0.5).train()
    assert getattr(model.encoder, "ablation", AblationConfig()) == LADDER[step]
    assert len(model.multi_scale_fusion_heads) == 2
    clips = clips_for(model)
    keep = model.random_keep(2, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(clips, keep).loss
        loss.backward()
        if not losses:
            assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]


def test_fused_features_are_those_of_the_unrolled_order():
    """Fusion sees units as pictures; in r3 and its twin with raster units they are the same."""
    names = ("mae_ladder_r3_small_16x224",) * 2
    unrolled, raster = (
        redraw(small(name, **DECODER, ablation=ablation)).eval()
        for name, ablation in zip(names, ({}, {"tokens": "units"}), strict=True)
    )
    clips = clips_for(unrolled)
    keep = unrolled.random_keep(2, 0.5, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(unrolled.encode(clips, keep), raster.encode(clips, keep))
        one, other = unrolled(clips, keep), raster(clips, keep)
        torch.testing.assert_close(one.pred, other.pred, atol=1e-5, rtol=1e-5)


# ---- recipes ------------------------------------------------------------------------------------


def test_recipes_differ_in_the_step_alone():
    recipes = {step: load_config(CONFIGS / f"{step}_small.yaml") for step in LADDER}
    for step, cfg in recipes.items():
        assert cfg.model.model_name == f"ladder_{step}_small_16x224"
        assert cfg.output_dir == f"runs/ladder/{step}_small"
        model = dataclasses.replace(cfg.model, model_name="")
        plain = dataclasses.replace(cfg, model=model, output_dir="")
        first = dataclasses.replace(recipes["r0"], model=model, output_dir="")
        assert plain == first
        assert cfg.model_arguments()["input_size"] == (16, 224, 224)
    pretraining = load_config(CONFIGS / "mae_r3_small.yaml")
    assert pretraining.model.model_name == "mae_ladder_r3_small_16x224"
    assert pretraining.model_arguments()["mask_ratio"] == 0.9


def test_a_choice_of_a_step_is_a_setting():
    words = ["MODEL.KWARGS.ablation", "{pool_pad: -inf, kv_stride: [8, 4, 2, 1]}"]
    cfg = load_config(CONFIGS / "r2b_small.yaml", words)
    with torch.device("meta"):
        model = build_model(cfg.model.model_name, **cfg.model_arguments())
    assert model.ablation == dataclasses.replace(
        LADDER["r2b"], pool_pad="-inf", kv_stride=(8, 4, 2, 1)
    )


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["r0_small", "r3_small", "mae_r3_small"])
def test_recipes_run_dry_without_data(recipe):
    settings = "TRAIN.BATCH_SIZE 1 AUG.NUM_SAMPLE 2 DATA.TRAIN_CROP_SIZE 64 DATA.TEST_CROP_SIZE 64"
    command = [sys.executable, "tools/run_net.py", "--cfg", f"configs/ladder/{recipe}.yaml"]
    command += [*settings.split(), "TRAIN.MIXED_PRECISION", "off", "DATA_LOADER.NUM_WORKERS", "0"]
    command += ["DEVICE", "cpu", "--dry-run", "2"]
    done = subprocess.run(
        command, cwd=CONFIGS.parent.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "step 2/2: loss" in done.stdout
