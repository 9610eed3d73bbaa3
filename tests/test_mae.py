"""The masked autoencoder: sizes, equality with the reference, targets, pictures."""

import pytest
import torch
from randomness import redraw, relative_error
from test_hiera import (
    SMALL_IMAGE,
    SMALL_VIDEO,
    clips_for,
    kept_pixels,
    reference_package,
    reference_video_arguments,
)
from torch.utils.flop_counter import FlopCounterMode

from hiera_video import build_model, list_models
from hiera_video.data.synthetic import camera_motion as synthetic
from hiera_video.data.synthetic.camera_motion import LABELS
from hiera_video.errors import UserError
from hiera_video.models.tokens import unit_ids, units_to_raster

PARAMETERS = {
    "mae_hiera_tiny_224": 55_020_896,
    "mae_hiera_small_224": 62_118_752,
    "mae_hiera_base_224": 78_635_648,
    "mae_hiera_base_plus_224": 97_584_064,
    "mae_hiera_large_224": 242_875_808,
    "mae_hiera_base_16x224": 79_367_104,
    "mae_hiera_base_plus_16x224": 98_320_352,
    "mae_hiera_large_16x224": 243_621_760,
    "mae_hiera_huge_16x224": 710_861_568,
}
# multiply-adds (G) of one forward pass at mask ratio 0.9: encoder with fusion, and all
FORWARD_GMACS = {
    "mae_hiera_base_16x224": (11.06, 71.34),
    "mae_hiera_base_plus_16x224": (14.76, 75.05),
    "mae_hiera_large_16x224": (41.14, 101.45),
}
SMALL_DECODER = {"decoder_embed_dim": 32, "decoder_depth": 2, "decoder_num_heads": 4}


def small_mae(name: str, **overrides):
    sizes = SMALL_VIDEO if "16x" in name else SMALL_IMAGE
    return build_model(name, **{**sizes, **SMALL_DECODER, "mask_ratio": 0.5, **overrides})


def deleted_tokens_in_raster_order(model, pred, keep):
    """[B, U - k, n, P] -> [deleted tokens, P] in the order of the reference: raster per clip."""
    layout, batch, units = model.encoder.layout, keep.shape[0], model.num_mask_units
    whole = pred.new_zeros(batch * units, *pred.shape[2:])
    whole[unit_ids(~keep, units - int(keep[0].sum()))] = pred.flatten(0, 1)
    raster = units_to_raster(whole.view(batch, units, *model.final_unit, -1), layout.unit_grid)
    hidden = (~keep).view(batch, units, *[1] * layout.dims, 1)
    hidden = hidden.expand(batch, units, *model.final_unit, 1)
    return raster[units_to_raster(hidden, layout.unit_grid).squeeze(-1)]


def test_every_autoencoder_is_registered():
    sizes = ("tiny", "small", "base", "base_plus", "large", "huge")
    expected = {f"mae_hiera_{size}_{kind}" for size in sizes for kind in ("224", "16x224")}
    assert set(list_models("mae_hiera_*")) == expected


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    with torch.device("meta"):
        model = build_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", FORWARD_GMACS)
def test_deleted_units_cost_nothing_in_the_encoder(name):
    """At most the multiply-adds of the sparse encoder; the reference also runs the whole stem."""
    encoder_gmacs, all_gmacs = FORWARD_GMACS[name]
    with torch.device("meta"):
        model = build_model(name).eval()
        clips = torch.empty(1, 3, *model.input_size)
        keep = torch.empty(1, 392, dtype=torch.bool)
        visible = torch.empty(39, dtype=torch.int64)
        deleted = torch.empty(353, dtype=torch.int64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        latent = model.encode_units(clips, keep, visible)
    encoder = counter.get_total_flops() / 2e9
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.decode_units(latent, visible, deleted)
    # ours convolves the visible units alone: 353 of 392 units of the stem are saved
    stem = 8 * 56 * 56 * 3 * 7 * 7 * 3 * model.encoder.patch_embed.proj.out_channels / 1e9
    saved = stem * 353 / 392
    assert encoder == pytest.approx(encoder_gmacs - saved, rel=0.005)
    assert encoder + counter.get_total_flops() / 2e9 <= all_gmacs * 1.005


# ---- equality with the reference ------------------------------------------------------------


def reference_mae(name: str, **overrides):
    reference_package()
    if "16x" in name:  # the reference's video builder takes no other input size
        from hiera.hiera_mae import MaskedAutoencoderHiera

        arguments = {"input_size": (16, 224, 224), "q_pool": 2, **reference_video_arguments()}
        theirs = MaskedAutoencoderHiera(**{**arguments, **overrides})
    else:
        theirs = getattr(reference_package(), name)(pretrained=False, **overrides)
    redraw(theirs).eval()
    ours = build_model(name, **overrides).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def check_against_reference(ours, theirs) -> None:
    clips = clips_for(ours)
    keep = ours.random_keep(2, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        loss, pred, label, _ = theirs(clips, mask=keep)
        out = ours(clips, keep)
    assert relative_error(out.loss, loss) <= 1e-5
    assert relative_error(deleted_tokens_in_raster_order(ours, out.pred, keep), pred) <= 1e-5
    deleted = unit_ids(~keep, keep.shape[1] - int(keep[0].sum()))
    targets = ours.targets(clips, deleted)
    assert relative_error(deleted_tokens_in_raster_order(ours, targets, keep), label) <= 1e-5


def test_image_loss_and_predictions_equal_the_reference():
    check_against_reference(*reference_mae("mae_hiera_tiny_224", decoder_depth=2))


@pytest.mark.numbers
def test_video_loss_and_predictions_equal_the_reference():
    sizes = {"input_size": (4, 96, 64), "stages": (1, 2, 2, 1), "decoder_depth": 2}
    check_against_reference(*reference_mae("mae_hiera_base_16x224", **sizes))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mae_hiera_base_224", "mae_hiera_base_16x224"])
def test_full_size_autoencoders_equal_the_reference(name):
    check_against_reference(*reference_mae(name))


def test_gradients_equal_the_reference():
    sizes = {"input_size": (4, 64, 64), "embed_dim": 24, "stages": (1, 1, 2, 1)}
    ours, theirs = reference_mae("mae_hiera_base_16x224", **sizes, decoder_depth=1)
    clips = clips_for(ours)
    keep = ours.random_keep(2, 0.5, torch.Generator().manual_seed(0))
    ours(clips, keep).loss.backward()
    theirs(clips, mask=keep)[0].backward()
    reference = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        expected = reference[name.removeprefix("encoder.")].grad
        assert relative_error(parameter.grad, expected) <= 1e-4, name


def test_decoder_heads_are_a_choice_that_changes_the_function_not_the_shapes():
    model = redraw(small_mae("mae_hiera_tiny_16x224")).eval()
    other = small_mae("mae_hiera_tiny_16x224", decoder_num_heads=8).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    clips = clips_for(model)
    keep = model.random_keep(2)
    with torch.no_grad():
        assert relative_error(other(clips, keep).pred, model(clips, keep).pred) > 1e-4


# ---- keys -----------------------------------------------------------------------------------


def test_state_dict_speaks_the_flat_published_keys():
    model = small_mae("mae_hiera_tiny_16x224")
    keys = set(model.state_dict())
    assert not any(key.startswith("encoder.") for key in keys)
    assert {"blocks.0.attn.qkv.weight", "pos_embed_temporal", "encoder_norm.weight"} <= keys
    assert {"decoder_blocks.1.norm1.bias", "mask_token", "multi_scale_fusion_heads.1.bias"} <= keys
    assert len(keys) == len(list(model.named_parameters()))


def test_state_dict_goes_round_as_a_part_of_something_larger():
    holder = torch.nn.ModuleDict({"mae": redraw(small_mae("mae_hiera_tiny_224"))})
    other = torch.nn.ModuleDict({"mae": small_mae("mae_hiera_tiny_224")})
    state = holder.state_dict()
    assert "mae.blocks.0.attn.qkv.weight" in state
    other.load_state_dict(state, strict=True)
    for a, b in zip(holder.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_missing_key_is_still_an_error():
    model = small_mae("mae_hiera_tiny_224")
    state = model.state_dict()
    del state["blocks.1.norm1.weight"]
    with pytest.raises(RuntimeError, match=r"blocks\.1\.norm1\.weight"):
        model.load_state_dict(state, strict=True)


# ---- targets and pictures ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mae_hiera_tiny_224", "mae_hiera_tiny_16x224"])
def test_pixels_go_to_tokens_and_back(name):
    model = small_mae(name)
    clips = clips_for(model)
    expected = clips[:, :, ::2] if clips.dim() == 5 else clips
    assert torch.equal(model.pixels_from_tokens(model.pixel_tokens(clips)), expected)


def test_video_targets_are_channel_last_and_image_targets_channel_first():
    video = small_mae("mae_hiera_tiny_16x224")
    clip = clips_for(video)
    token = video.pixel_tokens(clip)[1, 0, 1]  # first unit, second token: columns 16-31
    assert torch.equal(token, clip[1, :, 0, :16, 16:32].permute(1, 2, 0).flatten())
    image = small_mae("mae_hiera_tiny_224")
    picture = clips_for(image)
    token = image.pixel_tokens(picture)[1, 0, 1]
    assert torch.equal(token, picture[1, :, :16, 16:32].flatten())


@pytest.mark.numbers
@pytest.mark.parametrize("name", ["mae_hiera_tiny_224", "mae_hiera_tiny_16x224"])
def test_perfect_predictions_reconstruct_the_input(name):
    model = small_mae(name)
    clips = clips_for(model)
    keep = model.random_keep(2)
    deleted = unit_ids(~keep, keep.shape[1] - int(keep[0].sum()))
    picture = model.reconstruct(clips, model.targets(clips, deleted), keep)
    expected = clips[:, :, ::2] if clips.dim() == 5 else clips
    assert torch.allclose(picture, expected, atol=1e-4)


def test_deleted_pixels_never_reach_the_encoder():
    model = redraw(small_mae("mae_hiera_tiny_16x224")).eval()
    clips = clips_for(model)
    keep = model.random_keep(2)
    pixels = kept_pixels(keep, model.encoder.layout, model.input_size)
    disturbed = torch.where(pixels, clips, clips + 100 * torch.randn_like(clips))
    with torch.inference_mode():
        assert torch.equal(model.encode(disturbed, keep), model.encode(clips, keep))


@pytest.mark.numbers
@pytest.mark.parametrize("name", ["mae_hiera_tiny_224", "mae_hiera_tiny_16x224"])
def test_a_few_steps_lower_the_loss(name):
    torch.manual_seed(0)
    model = small_mae(name)
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.randn(4, 3, *[4] * len(model.input_size), generator=generator), model.input_size
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    keep = model.random_keep(4, generator=generator)
    losses = []
    for _ in range(30):
        out = model(smooth, keep)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_mask_is_drawn_at_the_models_ratio_and_returned():
    model = small_mae("mae_hiera_tiny_16x224", mask_ratio=0.75)
    torch.manual_seed(0)
    out = model(clips_for(model))
    assert out.keep.sum(1).tolist() == [3, 3]  # 12 units
    assert out.pred.shape == (2, 9, 4, 768)
    assert out.loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio=1.0"),
        ({"decoder_num_heads": 5}, "decoder_num_heads=5"),
        ({"decoder_heads": 8}, "decoder_num_heads"),
        ({"num_classes": 10}, "num_classes"),
    ],
)
def test_wrong_arguments_are_named(arguments, complaint):
    with pytest.raises(UserError, match=complaint):
        build_model("mae_hiera_tiny_16x224", **arguments)


def test_a_mask_that_deletes_nothing_is_refused():
    model = small_mae("mae_hiera_tiny_224")
    keep = torch.ones(2, model.num_mask_units, dtype=torch.bool)
    with pytest.raises(UserError, match="nothing to predict"):
        model(clips_for(model), keep)


def test_with_a_contrast_stem_the_encoder_starts_as_a_classifier_and_predicts_the_mean():
    size = {"input_size": (8, 64, 64), "embed_dim": 32, "num_heads": 1, "stages": (1, 1, 2, 1)}
    plain = build_model("mae_hiera_tiny_16x224", decoder_embed_dim=64, decoder_num_heads=2, **size)
    model = build_model(
        "mae_hiera_tiny_16x224",
        decoder_embed_dim=64,
        decoder_num_heads=2,
        contrast_stem=True,
        **size,
    )
    xavier = (2 / (32 + 96)) ** 0.5
    assert plain.encoder.blocks[0].attn.qkv.weight.std().item() == pytest.approx(xavier, rel=0.1)
    assert model.encoder.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    clips = torch.randn(2, 3, 8, 64, 64)
    assert model(clips).pred.abs().max() < 0.1 < plain(clips).pred.abs().max()
    assert model(clips).loss.item() == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_it_learns_32_clips_by_heart():
    """Half of the pixels' variance explained, under masks that change at every step."""
    clips = [
        synthetic.render_clip(LABELS[i % 9], i, frames=8, size=32, fps=5, plain=True)
        for i in range(32)
    ]
    clips = (torch.stack(clips).transpose(1, 2) / 255 - 0.45) / 0.225
    torch.manual_seed(0)
    model = build_model(
        "mae_hiera_tiny_16x224",
        input_size=(8, 32, 32),
        **{"embed_dim": 32, "num_heads": 1, "stages": (1, 1, 2, 1), "mask_ratio": 0.5},
        **{"decoder_embed_dim": 128, "decoder_depth": 2, "decoder_num_heads": 4},
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95))
    losses = []
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 30)
        loss = model(clips).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if sum(losses[-10:]) / 10 < 0.5 and step > 10:
            return
    pytest.fail(f"the loss is still {losses[-1]:.3f} after {len(losses)} steps")


# ---- decoding a part of the deleted units ----------------------------------------------------


def partial_mae(ratio: float):
    return redraw(small_mae("mae_hiera_tiny_16x224", decode_ratio=ratio))


def test_partial_decoding_takes_its_loss_on_the_units_it_drew():
    torch.manual_seed(0)
    model = partial_mae(0.25).train()
    clips, keep = clips_for(model), model.random_keep(2)
    deleted = int((~keep[0]).sum())
    out = model(clips, keep)
    assert not (out.decoded & keep).any()
    assert out.decoded.sum(dim=1).tolist() == [max(1, round(deleted / 4))] * 2
    wanted = unit_ids(out.decoded, int(out.decoded[0].sum()))
    assert out.pred.shape[:2] == (2, len(wanted) // 2)
    expected = (out.pred - model.targets(clips, wanted)).square().mean()
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_partial_decoding_draws_anew_and_repeats_with_the_seed():
    model = partial_mae(0.25).train()
    clips, keep = clips_for(model), model.random_keep(2)
    drawn = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        drawn.append(model(clips, keep).decoded)
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_evaluation_decodes_every_deleted_unit():
    model, whole = partial_mae(0.25).eval(), partial_mae(1.0).eval()
    whole.load_state_dict(model.state_dict())
    clips, keep = clips_for(model), model.random_keep(2)
    assert torch.equal(model(clips, keep).pred, whole(clips, keep).pred)
    assert torch.equal(whole.train()(clips, keep).decoded, ~keep)


def test_units_that_are_not_decoded_have_no_influence():
    model = partial_mae(0.25).eval()
    clips, keep = clips_for(model)[:1], model.random_keep(1)
    visible = unit_ids(keep, int(keep.sum()))
    wanted = unit_ids(~keep, int((~keep).sum()))
    latent = model.encode(clips, keep)
    with torch.no_grad():
        some = model.decode_units(latent, visible, wanted[:2])
        every = model.decode_units(latent, visible, wanted)
        grid = model.decoder_pos_embed.unflatten(1, model.encoder.layout.grid_shape(2))
        grid += 0  # a view: what follows changes the parameter
        absent = wanted[2:]
        units = model.encoder.layout.unit_grid
        for unit in absent.tolist():
            at = [int(i) for i in torch.unravel_index(torch.tensor(unit), units)]
            t, y, x = at
            grid[0, t, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] += 100
        again = model.decode_units(latent, visible, wanted[:2])
        other = model.decode_units(latent, visible, wanted)
    assert torch.equal(some, again)
    assert not torch.allclose(every[:, :2], other[:, :2])


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.5])
def test_impossible_decode_ratios_are_named(ratio):
    with pytest.raises(UserError, match="decode_ratio"):
        small_mae("mae_hiera_tiny_16x224", decode_ratio=ratio)


def test_activations_are_not_overwritten_where_gradients_need_them():
    """Without gradients the GELU works in place: in training it must not."""
    model = redraw(small_mae("mae_hiera_tiny_16x224")).eval()
    clips, keep = clips_for(model), model.random_keep(2)
    with torch.no_grad():
        quiet = model(clips, keep).loss
    loud = model(clips, keep).loss
    assert torch.equal(quiet, loud)
    loud.backward()
    reference = redraw(small_mae("mae_hiera_tiny_16x224")).eval()
    for block in [*reference.encoder.blocks, *reference.decoder_blocks]:
        block.mlp.act = torch.nn.GELU()
    reference(clips, keep).loss.backward()
    for mine, plain in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(mine.grad, plain.grad)


def test_the_last_decoder_block_leaves_out_the_visible_units_only():
    model = redraw(small_mae("mae_hiera_tiny_16x224")).eval()
    block = model.decoder_blocks[-1]
    tokens = torch.randn(2, 7, 4, block.dim_out)
    assert relative_error(block(tokens, skip=3), block(tokens)[:, 3:]) < 1e-6
    clips = clips_for(model)
    keep = model.random_keep(len(clips))
    outputs = []
    block.register_forward_hook(lambda _, args, out: outputs.append(out))
    model(clips, keep)
    assert outputs[0].shape[1] == int((~keep[0]).sum())
