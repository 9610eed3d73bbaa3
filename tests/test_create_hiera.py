"""`create_hiera`: Hiera as PyTorchVideo builds its models, equal to ours, usable in its code."""

from __future__ import annotations

import inspect

import pytest
import torch
from randomness import redraw, relative_error
from torch import nn

import hiera_video
from hiera_video.compat import pytorchvideo_module
from hiera_video.errors import UserError, WeightsError
from hiera_video.models import build_model
from hiera_video.models.baselines.create_hiera import (
    HieraHead,
    HieraStem,
    StageSpec,
    create_hiera,
    create_hiera_head,
    create_hiera_stage,
)
from hiera_video.models.tokens import TokenLayout
from hiera_video.models.weights.file import Checkpoint
from hiera_video.models.weights.load import load_weights

TINY = {"spatial_size": 64, "temporal_size": 4, "stem_dim_out": 16, "stage_depths": (1, 2, 2, 1)}
OURS = {"input_size": (4, 64, 64), "embed_dim": 16, "num_heads": 1, "stages": (1, 2, 2, 1)}


def clips(batch=2, seed=0):
    return torch.randn(batch, 3, 4, 64, 64, generator=torch.Generator().manual_seed(seed))


def held(model):
    return Checkpoint(state_dict=dict(model.state_dict()), path="given.pth")


def ptv(name):
    """Something of PyTorchVideo's, "module.name"."""
    module, _, leaf = name.rpartition(".")
    return getattr(pytorchvideo_module(f"pytorchvideo.{module}"), leaf)


@torch.no_grad()
def test_it_is_hiera_and_reads_hieras_files():
    ours = redraw(build_model("hiera_base_16x224", num_classes=5, **OURS)).eval()
    net = create_hiera(model_num_class=5, **TINY).eval()
    report = load_weights(net, held(ours))
    assert report.notes == report.missing == report.unexpected == []
    assert relative_error(net(clips()), ours(clips())) < 1e-6
    twin = create_hiera(model_num_class=5, **TINY)
    load_weights(twin, held(net))  # its own names as well
    assert torch.equal(twin.eval()(clips()), net(clips()))


@torch.no_grad()
def test_images_are_one_frame():
    ours = redraw(
        build_model("hiera_base_224", num_classes=5, **{**OURS, "input_size": (64, 64)})
    ).eval()
    net = create_hiera(model_num_class=5, **{**TINY, "temporal_size": 1}).eval()
    load_weights(net, held(ours))
    pictures = clips()[:, :, 0]
    assert relative_error(net(pictures), ours(pictures)) < 1e-6


def test_files_that_do_not_fit_are_refused_or_fitted_as_elsewhere():
    ours = redraw(build_model("hiera_base_16x224", num_classes=5, **OURS))
    net = create_hiera(model_num_class=3, **TINY)
    report = load_weights(net, held(ours))
    assert report.notes == ["head replaced: 5 -> 3 classes, randomly initialised"]
    assert net.blocks[6].proj.weight.abs().max() < 1e-3
    decoder = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}
    whole = redraw(build_model("mae_hiera_base_16x224", **OURS, **decoder))
    report = load_weights(net, held(whole))
    assert "encoder taken out of an autoencoder" in report.notes[0]
    assert torch.equal(net.blocks[2][0].attn.qkv.weight, whole.encoder.blocks[1].attn.qkv.weight)
    broken = held(ours)
    del broken.state_dict["blocks.3.norm1.weight"]
    with pytest.raises(WeightsError, match=r"blocks\.3\.0\.norm1\.weight"):
        load_weights(create_hiera(model_num_class=5, **TINY), broken)


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({"model_depth": 12}, 27_477_808),
        ({"model_depth": 16}, 34_575_664),
        ({}, 51_092_560),
        ({"stem_dim_out": 112, "num_heads": 2}, 69_392_240),
        ({"model_depth": 48, "stem_dim_out": 144, "num_heads": 2}, 213_091_600),
        ({"model_depth": 48, "stem_dim_out": 256, "num_heads": 4}, 671_627_664),
        ({"temporal_size": 1, "model_num_class": 1000}, 51_524_968),
    ],
)
def test_sizes_of_the_paper(arguments, count):
    with torch.device("meta"):
        net = create_hiera(**arguments)
    assert sum(p.numel() for p in net.parameters()) == count


def test_it_starts_as_hiera_does():
    torch.manual_seed(0)
    net = create_hiera(model_num_class=5, **TINY)
    assert net.blocks[1][0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert net.blocks[1][0].attn.qkv.bias.unique().tolist() == pytest.approx([0.02])
    assert net.blocks[0].pos_embed_spatial.std().item() == pytest.approx(0.02, rel=0.1)
    assert net.blocks[6].proj.weight.abs().max() < 1e-3  # near-equal scores
    assert net.no_weight_decay() == {"blocks.0.pos_embed_spatial", "blocks.0.pos_embed_temporal"}


def test_a_step_reaches_every_parameter():
    net = redraw(create_hiera(model_num_class=3, droppath_rate_block=0.1, **TINY)).train()
    torch.manual_seed(1)
    nn.functional.cross_entropy(net(clips()), torch.tensor([0, 2])).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


# ---- in PyTorchVideo's company ------------------------------------------------------------------


def test_arguments_and_result_are_of_pytorchvideos_kind():
    net = create_hiera(**TINY)
    assert isinstance(net, ptv("models.net.Net"))
    assert len(net.blocks) == 7
    theirs = set(inspect.signature(ptv("models.create_multiscale_vision_transformers")).parameters)
    theirs |= set(inspect.signature(ptv("models.create_resnet")).parameters)
    taken = set(inspect.signature(create_hiera).parameters)
    assert taken - theirs == {"mask_unit_attn", "stage_depths"}
    assert hiera_video.create_hiera is create_hiera


@torch.no_grad()
def test_activations_of_the_head_and_of_the_blocks():
    net = create_hiera(model_num_class=5, head_activation=nn.Softmax, **TINY).eval()
    assert torch.allclose(net(clips()).sum(dim=1), torch.ones(2), atol=1e-6)
    plain = create_hiera(model_num_class=5, **TINY).eval()
    plain.load_state_dict(net.state_dict())
    assert torch.allclose(plain(clips()).softmax(dim=1), net(clips()), atol=1e-6)
    other = create_hiera(model_num_class=5, activation=nn.ReLU, **TINY)
    assert {type(b.mlp.act) for stage in other.blocks[1:5] for b in stage} == {nn.ReLU}


@torch.no_grad()
def test_a_head_of_pytorchvideos_goes_on_the_sequence():
    net = create_hiera(model_num_class=5, head=ptv("models.head.create_vit_basic_head"), **TINY)
    assert net.eval()(clips()).shape == (2, 5)
    tokens = nn.Sequential(*net.blocks[:6])(clips())
    assert tokens.shape == (2, 8, 128)
    assert torch.allclose(net.blocks[6].proj(tokens.mean(dim=1)), net(clips()), atol=1e-6)


@torch.no_grad()
def test_without_a_head_it_ends_in_maps_for_convolutional_heads():
    ours = redraw(build_model("hiera_base_16x224", num_classes=5, **OURS)).eval()
    trunk = create_hiera(head=None, **TINY).eval()
    report = load_weights(trunk, held(ours))
    assert report.notes == ["norm and head left out: the model has none"]
    maps = trunk(clips())
    assert maps.shape == (2, 128, 2, 2, 2)
    expected = ours.stage_features(clips())[-1].movedim(-1, 1)
    assert relative_error(maps, expected) < 1e-6
    head = ptv("models.head.create_res_basic_head")(
        in_features=128, out_features=5, pool_kernel_size=(2, 2, 2)
    )
    whole = ptv("models.net.Net")(blocks=nn.ModuleList([*trunk.blocks, head])).eval()
    assert whole(clips()).shape == (2, 5)


@torch.no_grad()
def test_its_parts_make_a_net_of_ones_own():
    layout = TokenLayout(
        input_size=(4, 64, 64),
        patch_stride=(2, 4, 4),
        mask_unit_size=(1, 8, 8),
        q_stride=(1, 2, 2),
        num_pools=1,
    )
    stem = HieraStem(
        layout,
        in_channels=3,
        out_channels=16,
        conv_kernel_size=(3, 7, 7),
        conv_stride=(2, 4, 4),
    )
    stage = create_hiera_stage(StageSpec(2, 16, 32, num_heads=2, pool_factor=4))
    head = create_hiera_head(in_features=32, out_features=5)
    assert isinstance(head, HieraHead)
    net = ptv("models.net.Net")(blocks=nn.ModuleList([stem, stage, nn.Flatten(1, 2), head])).eval()
    assert net(clips()).shape == (2, 5)


def test_stochastic_depth_rises_from_the_first_block_to_the_last():
    net = create_hiera(droppath_rate_block=0.5, **TINY)
    rates = [
        getattr(block.drop_path, "drop_prob", 0.0) for stage in net.blocks[1:5] for block in stage
    ]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"model_depth": 50}, "one of 12, 16, 24, 48"),
        ({"stage_depths": (1, 2)}, "mask_unit_attn"),
        ({"stage_depths": (1, 2), "mask_unit_attn": (True, False)}, "four numbers"),
        ({"spatial_size": 100}, "multiples of"),
        ({"temporal_size": 3}, "multiples of"),
    ],
)
def test_impossible_arguments_are_refused(arguments, says):
    with pytest.raises(UserError, match=says):
        create_hiera(**arguments)
    with pytest.raises(UserError, match="no class token"):
        create_hiera_head(in_features=4, out_features=2, seq_pool_type="cls")
