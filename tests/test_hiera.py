"""Hiera: sizes of the paper, equality with the reference, masks, other sizes, contract."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from randomness import redraw, relative_error
from torch.utils.flop_counter import FlopCounterMode

from hiera_video import build_model, list_models
from hiera_video.errors import UserError
from hiera_video.models import layers
from hiera_video.models.tokens import unit_ids

# exact parameters and measured multiply-adds (G): paper Table 2 and counts of the reference
CLASSIFIERS = {
    "hiera_tiny_224": (27_910_216, 4.90),
    "hiera_small_224": (35_008_072, 6.41),
    "hiera_base_224": (51_524_968, 9.38),
    "hiera_base_plus_224": (69_896_616, 12.64),
    "hiera_large_224": (213_739_912, 40.27),
    "hiera_huge_224": (672_779_752, 124.73),
    "hiera_tiny_16x224": (27_477_808, 50.85),
    "hiera_small_16x224": (34_575_664, 69.51),
    "hiera_base_16x224": (51_092_560, 101.73),
    "hiera_base_plus_16x224": (69_392_240, 132.30),
    "hiera_large_16x224": (213_091_600, 412.13),
    "hiera_huge_16x224": (671_627_664, 1157.80),
}
SMALL = {"embed_dim": 16, "num_heads": 1, "stages": (1, 2, 2, 1)}
SMALL_IMAGE = {**SMALL, "input_size": (64, 96)}
SMALL_VIDEO = {**SMALL, "input_size": (4, 64, 96)}


def small(name: str, **overrides):
    """The registered model at a size that a test can afford."""
    sizes = SMALL_VIDEO if "16x" in name else SMALL_IMAGE
    return build_model(name, **{**sizes, **overrides})


def clips_for(model, batch: int = 2, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, *model.input_size, generator=generator)


def reference_package():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("hiera")


def reference_twin(name: str, **overrides):
    """The reference model and ours with the same random weights; the reference speaks logits."""
    package = reference_package()
    theirs = redraw(getattr(package, name)(pretrained=False, **overrides)).eval()
    theirs.head.act_func = lambda x: x
    ours = build_model(name, **overrides).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


# ---- sizes --------------------------------------------------------------------------------


def test_every_published_classifier_is_registered():
    classifiers = {name for name in list_models("hiera_*") if not name.endswith("_ava")}
    assert classifiers == set(CLASSIFIERS)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_parameters_and_multiply_adds_are_those_of_the_paper(name):
    parameters, gmacs = CLASSIFIERS[name]
    with torch.device("meta"):
        model = build_model(name).eval()
        clip = torch.empty(1, 3, *model.input_size)
    assert sum(p.numel() for p in model.parameters()) == parameters
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        logits = model(clip)
    assert logits.shape == (1, model.num_classes)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.005)


def test_state_dict_of_the_large_ssv2_model_has_the_published_size():
    with torch.device("meta"):
        model = build_model("hiera_large_16x224", num_classes=174)
    assert sum(p.numel() for p in model.parameters()) == 212_831_022


# ---- equality with the reference ------------------------------------------------------------


def test_image_logits_and_features_equal_the_reference():
    check_against_reference(*reference_twin("hiera_tiny_224"), mask_ratio=0.6)


@pytest.mark.numbers
def test_video_logits_and_features_equal_the_reference():
    """Full depth at a smaller picture, so that the suite stays short."""
    sizes = {"input_size": (4, 64, 96)}
    package = reference_package()
    theirs = package.Hiera(**reference_video_arguments(), **sizes)
    theirs = redraw(theirs).eval()
    theirs.head.act_func = lambda x: x
    ours = build_model("hiera_base_16x224", **sizes).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    check_against_reference(ours, theirs, mask_ratio=0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mask_ratio"),
    [
        ("hiera_base_plus_224", 0.6),
        ("hiera_large_224", 0.6),
        ("hiera_base_16x224", 0.9),
        ("hiera_base_plus_16x224", 0.9),
    ],
)
def test_full_size_models_equal_the_reference(name, mask_ratio):
    check_against_reference(*reference_twin(name), mask_ratio=mask_ratio)


def reference_video_arguments() -> dict:
    return {
        "num_classes": 400,
        "q_stride": (1, 2, 2),
        "mask_unit_size": (1, 8, 8),
        "patch_kernel": (3, 7, 7),
        "patch_stride": (2, 4, 4),
        "patch_padding": (1, 3, 3),
        "sep_pos_embed": True,
    }


def check_against_reference(ours, theirs, *, mask_ratio: float) -> None:
    clips = clips_for(ours)
    keep = ours.random_keep(2, mask_ratio, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, expected_stages = theirs(clips, return_intermediates=True)
        _, expected_kept = theirs(clips, mask=keep, return_intermediates=True)
        assert relative_error(ours(clips), expected) <= 1e-5
        for mine, reference in zip(ours.stage_features(clips), expected_stages, strict=True):
            assert mine.shape == reference.shape
            assert relative_error(mine, reference) <= 1e-5
        for mine, reference in zip(ours.stage_features(clips, keep), expected_kept, strict=True):
            assert mine.shape == reference.shape
            assert relative_error(mine, reference) <= 1e-5


def test_gradients_equal_the_reference():
    package = reference_package()
    sizes = {"input_size": (4, 64, 64), "embed_dim": 24, "stages": (1, 2, 3, 1)}
    theirs = redraw(package.Hiera(**reference_video_arguments(), **sizes)).train()
    ours = build_model("hiera_base_16x224", **sizes).train()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    clips = clips_for(ours)
    labels = torch.tensor([3, 399])
    for model in (ours, theirs):
        torch.nn.functional.cross_entropy(model(clips), labels).backward()
    reference = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert relative_error(parameter.grad, reference[name].grad) <= 1e-4, name


@pytest.mark.numbers
def test_image_logits_equal_timm():
    timm = pytest.importorskip("timm")
    theirs = redraw(timm.create_model("hiera_tiny_224", pretrained=False)).eval()
    ours = build_model("hiera_tiny_224").eval()
    keys = {
        f"{their_name}.{kind}": f"{our_name}.{kind}"
        for their_name, our_name in (("head.fc", "head.projection"), ("head.norm", "norm"))
        for kind in ("weight", "bias")
    }
    ours.load_state_dict({keys.get(k, k): v for k, v in theirs.state_dict().items()}, strict=True)
    clips = clips_for(ours, batch=1)
    with torch.inference_mode():
        assert relative_error(ours(clips), theirs(clips)) <= 1e-5


def kept_pixels(keep, layout, input_size) -> torch.Tensor:
    """Keep mask [B, U] -> bool [B, 1, *input_size], written apart from the model's own."""
    pixels = keep.view(keep.shape[0], 1, *layout.unit_grid)
    for d, units in enumerate(layout.unit_grid):
        pixels = pixels.repeat_interleave(input_size[d] // units, dim=2 + d)
    return pixels


# ---- masks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("contrast", [False, True])
@pytest.mark.parametrize("name", ["hiera_tiny_224", "hiera_tiny_16x224"])
def test_deleted_pixels_have_no_influence_at_all(name, contrast):
    model = redraw(small(name, contrast_stem=contrast)).eval()
    clips = clips_for(model)
    keep = model.random_keep(2, 0.5, torch.Generator().manual_seed(1))
    pixels = kept_pixels(keep, model.layout, model.input_size)
    disturbed = torch.where(pixels, clips, clips + 100 * torch.randn_like(clips))
    assert not torch.equal(disturbed, clips)
    with torch.inference_mode():
        assert torch.equal(model(disturbed, keep), model(clips, keep))
        for a, b in zip(
            model.stage_features(disturbed, keep), model.stage_features(clips, keep), strict=True
        ):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["hiera_tiny_224", "hiera_tiny_16x224"])
def test_keeping_everything_is_the_dense_model(name):
    model = redraw(small(name)).eval()
    clips = clips_for(model)
    keep = torch.ones(2, model.num_mask_units, dtype=torch.bool)
    with torch.inference_mode():
        assert relative_error(model(clips, keep), model(clips)) <= 1e-5


def test_visible_stem_equals_the_whole_stem_on_zeroed_pixels():
    """The halo around each visible unit reproduces the full convolution's overlap."""
    model = redraw(small("hiera_tiny_16x224"))
    clips = clips_for(model)
    keep = model.random_keep(2, 0.5, torch.Generator().manual_seed(1))
    pixels = kept_pixels(keep, model.layout, model.input_size)
    whole = model.patch_embed(clips * pixels, model.layout)
    ids = unit_ids(keep, int(keep[0].sum()))
    visible = model.patch_embed.visible(clips, model.layout, keep, ids)
    assert relative_error(visible.flatten(0, 1), whole.flatten(0, 1)[ids]) <= 1e-6


# ---- the contract of every classifier --------------------------------------------------------


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_forward_backward_and_masked(name):
    model = small(name, num_classes=5, drop_path_rate=0.1, head_dropout=0.1).train()
    clips = clips_for(model)
    logits = model(clips)
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    keep = model.random_keep(2, 0.5)
    assert model(clips, keep).shape == (2, 5)


@pytest.mark.parametrize("name", ["hiera_tiny_224", "hiera_tiny_16x224"])
def test_logits_in_training_and_evaluation_alike(name):
    model = redraw(small(name))
    clips = clips_for(model)
    with torch.no_grad():
        assert torch.equal(model.train()(clips), model.eval()(clips))
        assert not torch.allclose(model(clips).sum(1), torch.ones(2))


def test_every_parameter_is_initialised_as_published():
    """Poison the parameters, initialise, and find the forgotten layer."""
    model = build_model("hiera_tiny_16x224", **SMALL_VIDEO, num_classes=400)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    model.patch_embed.proj.bias.data.zero_()  # convolution biases keep torch's own start
    model.reset_parameters()
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
    assert model.blocks[0].attn.qkv.bias.eq(0.02).all()
    assert model.norm.bias.eq(0.02).all()
    assert model.norm.weight.eq(1).all()
    assert model.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.head.projection.bias.tolist() == pytest.approx([2e-5] * 400)
    assert model.head.projection.weight.std().item() == pytest.approx(2e-5, rel=0.1)


@pytest.mark.parametrize(
    ("name", "size"), [("hiera_tiny_224", (64, 96)), ("hiera_tiny_16x224", (8, 64, 64))]
)
def test_contrast_stem_is_blind_to_brightness_whatever_it_learns(name, size):
    model = small(name, contrast_stem=True, input_size=size)
    assert model.patch_embed.proj.weight.std().item() == pytest.approx(0.12, rel=0.1)
    redraw(model, seed=3)
    model.patch_embed.proj.weight.data += 1.0
    clips = torch.randn(2, 3, *model.input_size)
    colour = torch.randn(2, 3, *[1] * len(model.input_size))
    grid = model.layout.grid
    dark, bright = (
        model.layout.to_raster(model.patch_embed(x, model.layout), 0)
        for x in (clips, clips + colour)
    )
    inner = (slice(None), *[slice(1, length - 1) for length in grid])  # the rest sees the padding
    assert (dark[inner] - bright[inner]).abs().max() < 1e-3
    assert (dark - bright).abs().max() > 0.1
    keep = torch.ones(2, model.layout.num_units, dtype=torch.bool)
    ids = keep.flatten().nonzero().squeeze(1)
    visible = model.patch_embed.visible(clips, model.layout, keep, ids)
    assert torch.allclose(visible, model.patch_embed(clips, model.layout), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "size"), [("hiera_tiny_224", (128, 160)), ("hiera_tiny_16x224", (8, 128, 128))]
)
def test_contrast_stem_is_blind_to_brightness_beside_deleted_units_too(name, size):
    """Zeros in their place would be edges as high as the picture is bright."""
    model = redraw(small(name, contrast_stem=True, input_size=size), seed=3)
    embed, layout = model.patch_embed, model.layout
    clips = torch.randn(2, 3, *size)
    colour = torch.randn(2, 3, *[1] * len(size))
    keep = model.random_keep(2, 0.5, torch.Generator().manual_seed(2))
    ids = unit_ids(keep, int(keep[0].sum()))
    dark, bright = (embed.visible(x, layout, keep, ids) for x in (clips, clips + colour))
    grid = torch.stack(torch.meshgrid(*map(torch.arange, layout.grid), indexing="ij"), dim=-1)
    last = torch.tensor(layout.grid) - 1
    inner = ((grid > 0) & (grid < last)).all(dim=-1)  # the rest sees the padding of the clip
    inner = layout.to_units(inner[None, ..., None]).expand(2, -1, -1, -1).flatten(0, 1)[ids, :, 0]
    assert inner.any()
    assert not inner.all()
    change = (dark - bright).abs().amax(dim=-1).flatten(0, 1)
    assert change[inner].max() < 1e-3
    assert change[~inner].max() > 0.1


def test_attention_lags_by_one_block_and_drop_path_rises():
    with torch.device("meta"):
        model = build_model("hiera_base_16x224", drop_path_rate=0.2)
    assert [block.attn.local for block in model.blocks] == [True] * 6 + [False] * 18
    assert [i for i, block in enumerate(model.blocks) if block.q_pool == 4] == [2, 5, 21]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.2 * i / 23 for i in range(24)])


def test_activation_checkpointing_changes_memory_not_gradients():
    plain = redraw(small("hiera_tiny_16x224", num_classes=4, drop_path_rate=0.3)).train()
    saving = copy.deepcopy(plain)
    saving.act_checkpoint = True
    clips = clips_for(plain)
    for model in (plain, saving):
        torch.manual_seed(0)  # drop path draws
        model(clips).square().mean().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


def test_layer_ids_rise_from_the_stem_to_the_head():
    model = small("hiera_tiny_16x224")
    ids = {name: model.layer_id(name) for name, _ in model.named_parameters()}
    assert {ids["patch_embed.proj.weight"], ids["pos_embed_temporal"]} == {0}
    assert ids["blocks.0.norm1.weight"] == 1
    assert ids["blocks.5.mlp.fc2.bias"] == 6
    assert {ids["norm.weight"], ids["head.projection.bias"]} == {model.num_layers} == {7}
    assert model.no_weight_decay() == {"pos_embed_spatial", "pos_embed_temporal"}


def test_zero_classes_give_normed_features():
    model = small("hiera_tiny_224", num_classes=0).eval()
    features = model(clips_for(model))
    assert features.shape == (2, 128)
    assert "head.projection.weight" not in model.state_dict()


# ---- other sizes ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 224, 224), (32, 64, 64), (2, 32, 32), (16, 96, 160)])
def test_other_clip_sizes(size):
    model = build_model("hiera_tiny_16x224", **{**SMALL, "input_size": size}, num_classes=3)
    maps = model.stage_features(torch.randn(1, 3, *size))
    frames, height, width = size
    assert [tuple(m.shape[1:4]) for m in maps] == [
        (frames // 2, height // (4 * 2**s), width // (4 * 2**s)) for s in range(4)
    ]
    assert model(torch.randn(1, 3, *size)).shape == (1, 3)


def test_one_dimension_from_the_same_lines():
    model = build_model(
        "hiera_tiny_224",
        **{**SMALL, "input_size": (256,)},
        in_chans=2,
        q_stride=(2,),
        mask_unit_size=(8,),
        patch_kernel=(7,),
        patch_stride=(4,),
        patch_padding=(3,),
        num_classes=3,
    )
    signal = torch.randn(2, 2, 256)
    assert model(signal).shape == (2, 3)
    assert model(signal, model.random_keep(2, 0.5)).shape == (2, 3)
    assert [m.shape[1] for m in model.stage_features(signal)] == [64, 32, 16, 8]


@pytest.mark.parametrize("name", ["hiera_tiny_224", "hiera_tiny_16x224"])
def test_absolute_window_positions_are_a_tiled_part_and_a_resized_part(name):
    model = redraw(small(name, abs_win=True))
    grid = model.layout.grid[-2:]
    channels = 16
    positions = model.layout.to_raster(model.positions(), pools=0)
    whole = model.pos_embed_spatial if model.sep_pos_embed else model.pos_embed
    whole = torch.nn.functional.interpolate(whole, size=grid, mode="bicubic")
    y, x = grid[0] - 1, grid[1] - 3
    expected = whole[0, :, y, x] + model.pos_embed_window[0, :, y % 8, x % 8]
    if model.sep_pos_embed:
        expected = expected + model.pos_embed_temporal[0, 1]
        found = positions[0, 1, y, x]
    else:
        found = positions[0, y, x]
    assert found.shape == (channels,)
    assert torch.allclose(found, expected, atol=1e-6)
    assert "pos_embed_window" in model.no_weight_decay()
    assert model.layer_id("pos_embed_window") == 0


# ---- wrong use ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"input_size": (15, 224, 224)}, r"multiples of \(2, 32, 32\)"),
        ({"input_size": (16, 225, 224)}, r"multiples of \(2, 32, 32\)"),
        ({"input_size": (224, 224)}, "2 dimensions"),
        ({"stages": (1, 0, 1, 1)}, "stages="),
        ({"q_pool": 4}, "q_pool=4 must be 0 to 3"),
        ({"mask_unit_attn": (True,)}, "mask_unit_attn"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"colour": 1}, "colour.*drop_path_rate"),
        ({"drop_path": 0.1}, "drop_path_rate"),
    ],
)
def test_wrong_arguments_are_named_with_what_is_allowed(arguments, complaint):
    with pytest.raises(UserError, match=complaint):
        build_model("hiera_tiny_16x224", **arguments)


def test_a_near_name_is_suggested():
    with pytest.raises(UserError, match="hiera_base_16x224"):
        build_model("hiera_base_16x24")


@pytest.mark.parametrize("shape", [(1, 3, 8, 224, 224), (3, 4, 64, 96), (1, 4, 4, 64, 96)])
def test_clips_of_another_size_are_refused(shape):
    model = small("hiera_tiny_16x224")
    with pytest.raises(UserError, match=r"takes \[B, 3, 4, 64, 96\]"):
        model(torch.zeros(shape))


# ---- attention ----------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 5, 7, 64])
@pytest.mark.parametrize(
    "name", ["hiera_base_16x224", "mae_hiera_base_16x224", "ladder_r3_base_16x224"]
)
def test_more_sequences_than_one_call_takes_change_nothing(monkeypatch, name, most):
    """CUDA ends at 65,535, which a CPU test cannot reach: the limit is lowered instead."""
    model = redraw(small(name)).eval()
    clips = clips_for(model)
    arguments = (model.random_keep(2),) if name.startswith("mae") else ()
    calls = []

    def result():
        out = model(clips, *arguments)
        out = out.loss if hasattr(out, "loss") else out
        model.zero_grad()
        out.square().sum().backward()
        return [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    whole = result()
    original = F.scaled_dot_product_attention

    def counted(q, *args, **kwargs):
        calls.append(q.shape[0])
        return original(q, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    monkeypatch.setitem(layers.MOST_SEQUENCES, "cpu", most)
    parts = result()
    assert max(calls) <= most
    assert len(parts) == len(whole)
    for part, one in zip(parts, whole, strict=True):
        assert relative_error(part, one) < 1e-5


def test_the_limit_of_cuda_is_known_and_only_for_cuda():
    assert layers.MOST_SEQUENCES == {"cuda": 65_535}


def test_local_blocks_in_groups_of_units_change_nothing(monkeypatch):
    # a limit below the hidden layer of one unit: one unit at a time
    for name, limit in (("hiera_tiny_16x224", 1), ("hiera_tiny_224", 2**16)):
        model = redraw(small(name, num_classes=4)).eval()
        clips = clips_for(model)
        with torch.inference_mode():
            whole = model.stage_features(clips)
            monkeypatch.setattr(layers, "PIECE_BYTES", limit)
            groups = count_calls(monkeypatch, model.blocks[0])
            divided = model.stage_features(clips)
        assert len(groups) > 1, name
        assert sum(units for _, units, _, _ in groups) == len(clips) * model.num_mask_units
        assert all(relative_error(a, b) < 1e-5 for a, b in zip(divided, whole, strict=True))
        monkeypatch.undo()


def test_blocks_with_gradients_and_global_blocks_are_not_divided(monkeypatch):
    model = redraw(small("hiera_tiny_224", num_classes=4)).eval()
    monkeypatch.setattr(layers, "PIECE_BYTES", 1)
    clips = clips_for(model)
    local, last = (count_calls(monkeypatch, model.blocks[i]) for i in (0, -1))
    model(clips)
    with torch.inference_mode():
        model(clips)
    assert [len(last), last[0][0]] == [2, len(clips)]
    assert local[0][:2] == (len(clips), model.num_mask_units)
    assert len(local) == 1 + len(clips) * model.num_mask_units


def count_calls(monkeypatch, block):
    """Record the shapes that a block computes at once."""
    shapes, computed = [], block.whole

    def whole(x):
        shapes.append(tuple(x.shape))
        return computed(x)

    monkeypatch.setattr(block, "whole", whole)
    return shapes
