"""Other libraries' models behind this package's contract, held against the libraries themselves."""

from __future__ import annotations

import copy
import functools
import re
import subprocess
import sys

import pytest
import torch
from randomness import redraw, relative_error
from torch import nn

from hiera_video.compat import pytorchvideo_module
from hiera_video.engine.build import freeze_backbone
from hiera_video.engine.optim import parameter_groups
from hiera_video.errors import UserError
from hiera_video.models import build_model, list_models
from hiera_video.models.baselines.pytorchvideo import CONVOLUTIONAL, slow_frames

PARAMETERS = {
    "c2d_r50": 24_327_632,
    "csn_r101": 22_213_776,
    "i3d_r50": 28_043_472,
    "mvit_base_16x4": 36_610_672,
    "mvit_base_32x3": 36_611_440,
    "r2plus1d_r50": 28_107_600,
    "slow_r50": 32_454_096,
    "slowfast_16x8_r101_50_50": 53_774_808,
    "slowfast_r101": 62_826_968,
    "slowfast_r50": 34_566_488,
    "torchvision_mvit_v1_b": 36_610_672,
    "torchvision_mvit_v2_s": 34_537_744,
    "x3d_l": 6_153_384,
    "x3d_m": 3_794_274,
    "x3d_s": 3_794_274,
    "x3d_xs": 3_794_274,
}
"""Those of PyTorchVideo's model zoo (24.33 M, 22.21 M, ...) and torchvision's `num_params`."""

SMALL = {
    "slow_r50": {"stem_dim_out": 8},
    "c2d_r50": {"stem_dim_out": 8},
    "i3d_r50": {"stem_dim_out": 8},
    "csn_r101": {"stem_dim_out": 8},
    "r2plus1d_r50": {"stem_dim_out": 8},
    "slowfast_r50": {"stem_dim_outs": (16, 2)},
    "x3d_xs": {"width_factor": 0.5, "head_dim_out": 64},
}
"""What makes a model narrow, in the words of PyTorchVideo's builders."""

MVIT = {"patch_embed_dim": 8, "depth": 4, "embed_dim_mul": [[1, 2.0]], "atten_head_mul": [[1, 2.0]]}
MVIT |= {"pool_q_stride_size": [[1, 1, 2, 2]]}


def hub(name):
    """PyTorchVideo's own builder of a name."""
    return getattr(pytorchvideo_module("pytorchvideo.models.hub"), name)


def small(name, num_classes=7, **arguments):
    """A narrow model of ours."""
    return build_model(name, num_classes=num_classes, library=SMALL[name], **arguments)


def train_statistics(model, seed=0):
    """Batch norms whose running statistics are not those they are built with."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


def pair(name):
    """(ours, theirs) for pictures of 64x64, the same parameters drawn at random in both.

    The hub's model pools 7x7 or 5x5 places at the end, for larger pictures: here there are 2x2.
    """
    theirs = redraw(hub(name)(model_num_class=7, **SMALL[name]))
    theirs = train_statistics(theirs).eval()
    for module in theirs.modules():
        if isinstance(module, nn.AvgPool3d):
            module.kernel_size = (int(module.kernel_size[0]), 2, 2)
    ours = small(name, input_size=(CONVOLUTIONAL[name].input_size[0], 64, 64)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@functools.cache
def on_meta(name):
    """A model at its full size, without values; not to be changed."""
    with torch.device("meta"):
        return build_model(name)


def clips_for(model, batch=1, side=None, seed=1):
    frames, height, width = model.input_size
    size = (batch, 3, frames, side or height, side or width)
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


FAST = ("slow_r50", "slowfast_r50", "x3d_xs", "mvit_base_16x4")


def slow(name):
    """A name whose tests are for `make slow`: the others stand for it."""
    return pytest.param(name, marks=pytest.mark.slow)


# ---- what they compute --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["slow_r50", slow("c2d_r50"), "i3d_r50", slow("csn_r101")])
@torch.no_grad()
def test_a_single_pathway_gives_the_librarys_logits(name):
    ours, theirs = pair(name)
    clips = clips_for(ours)
    assert relative_error(ours(clips), theirs(clips)) < 1e-5
    larger = clips_for(ours, side=96)  # several places to average, as in the published tests
    assert relative_error(ours(larger), theirs(larger)) < 1e-5


@pytest.mark.parametrize("name", ["x3d_xs", slow("r2plus1d_r50")])
@torch.no_grad()
def test_a_head_that_ends_in_a_softmax_gives_logits_of_the_same_scores(name):
    ours, theirs = pair(name)
    clips = clips_for(ours, batch=2)
    assert (theirs(clips).sum(dim=1) - 1).abs().max() < 1e-5  # the library's are probabilities
    assert relative_error(ours(clips).softmax(dim=1), theirs(clips)) < 1e-5
    larger = clips_for(ours, side=91)  # ends in 3x3 places: the head averages 2x2 of them
    assert relative_error(ours(larger).softmax(dim=1), theirs(larger)) < 1e-5
    head = ours.network.blocks[5]
    assert head.activation is None
    raw = ours.network(clips).flatten(1)
    assert torch.equal(raw, ours(clips))  # one place: what the linear layer gives, unchanged
    ours.train()
    assert not torch.allclose(ours(clips).exp().sum(dim=1), torch.ones(2))


@torch.no_grad()
def test_the_two_pathways_are_cut_out_of_one_clip():
    ours, theirs = pair("slowfast_r50")
    clips = clips_for(ours)
    picked = [0, 4, 8, 13, 17, 22, 26, 31]
    assert relative_error(ours(clips), theirs([clips[:, :, picked], clips])) < 1e-5
    assert slow_frames(32, 4).tolist() == picked
    assert slow_frames(64, 4).tolist()[:4] == [0, 4, 8, 12]
    assert "picked" not in ours.state_dict()
    seen = []
    ours.network.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    ours(clips)
    assert torch.equal(seen[0], clips[:, :, picked])


@torch.no_grad()
def test_another_ratio_of_the_pathways_follows_from_the_fusion():
    model = build_model(
        "slowfast_r50",
        num_classes=3,
        input_size=(16, 64, 64),
        library={**SMALL["slowfast_r50"], "slowfast_fusion_conv_stride": (8, 1, 1)},
    ).eval()
    assert model.picked.tolist() == [0, 15]
    assert model(clips_for(model)).shape == (1, 3)
    with pytest.raises(UserError, match=r"multiples of \(8, 1, 1\)"):
        build_model(
            "slowfast_r50",
            input_size=(12, 64, 64),
            library={"slowfast_fusion_conv_stride": (8, 1, 1)},
        )


@torch.no_grad()
def test_mvit_gives_the_librarys_logits():
    theirs = hub("mvit_base_16x4")(
        spatial_size=64, temporal_size=4, head_num_classes=7, **copy.deepcopy(MVIT)
    )
    redraw(theirs).eval()
    ours = build_model("mvit_base_16x4", num_classes=7, input_size=(4, 64, 64), library=MVIT)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    clips = clips_for(ours, batch=2)
    assert relative_error(ours.eval()(clips), theirs(clips)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(CONVOLUTIONAL) | {"mvit_base_16x4", "mvit_base_32x3"}))
@torch.no_grad()
def test_full_size_equals_the_hub(name):
    theirs = train_statistics(redraw(hub(name)())).eval()
    ours = build_model(name).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    clips = clips_for(ours)
    inputs = [clips[:, :, slow_frames(clips.shape[2], 4)], clips] if "slowfast" in name else clips
    expected, logits = theirs(inputs), ours(clips)
    if isinstance(getattr(theirs.blocks[-1], "activation", None), nn.Softmax):
        logits = logits.softmax(dim=1)
    assert relative_error(logits, expected) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mvit_v1_b", "mvit_v2_s"])
@torch.no_grad()
def test_torchvisions_mvit_gives_torchvisions_logits(name):
    from torchvision.models import video

    theirs = redraw(getattr(video, name)()).eval()
    ours = build_model(f"torchvision_{name}").eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    clips = clips_for(ours)
    assert torch.equal(ours(clips), theirs(clips))


@pytest.mark.parametrize("name", ["mvit_v1_b", slow("mvit_v2_s")])
def test_torchvisions_mvit_has_its_keys_and_one_size(name):
    from torchvision.models import video

    with torch.device("meta"):
        theirs = getattr(video, name)()
    ours = on_meta(f"torchvision_{name}")
    shapes = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == shapes
    with pytest.raises(UserError, match=r"for \(16, 224, 224\) alone"):
        build_model(f"torchvision_{name}", input_size=(16, 112, 112))


# ---- the contract -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_the_published_sizes(name):
    model = on_meta(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert model.num_classes == 400
    assert model.head.weight.is_meta


@pytest.mark.parametrize(
    "name", [name if name in FAST else slow(name) for name in [*SMALL, "mvit_base_16x4"]]
)
def test_a_training_step_reaches_every_parameter(name):
    frames = 4 if name.startswith(("x3d", "mvit")) else CONVOLUTIONAL[name].input_size[0]
    size = (frames, 32, 32)
    library = MVIT if name.startswith("mvit") else SMALL[name]
    model = redraw(build_model(name, num_classes=3, input_size=size, library=library)).train()
    logits = model(clips_for(model, batch=2))
    assert logits.shape == (2, 3)
    nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    assert sum(p.grad.abs().sum() > 0 for p in model.parameters()) > 0.9 * len(
        list(model.parameters())
    )


def test_the_head_goes_by_one_name_whatever_the_library_calls_it():
    for name, key in (("slow_r50", "blocks.5.proj"), ("slowfast_r50", "blocks.6.proj")):
        model = small(name, num_classes=5)
        names = [name for name, _ in model.named_parameters()]
        assert names[:2] == ["head.weight", "head.bias"]
        assert len(names) == len(set(names))
        assert model.state_dict()[f"{key}.weight"] is not None
        assert not [k for k in model.state_dict() if k.startswith(("head.", "network."))]
        freeze_backbone(model)
        assert {n for n, p in model.named_parameters() if p.requires_grad} == set(names[:2])
        before = model.network.get_submodule(key).weight.clone()
        model.reset_head()
        assert not torch.equal(model.network.get_submodule(key).weight, before)
        assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.2)


def test_a_copy_is_independent_and_loads_its_own_state():
    model = small("x3d_xs", input_size=(4, 64, 64))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.head.weight.fill_(3.0)
    assert not (twin.network.blocks[5].proj.weight == 3.0).any()
    twin.load_state_dict(model.state_dict())
    assert (twin.network.blocks[5].proj.weight == 3.0).all()
    with pytest.raises(RuntimeError, match=r"blocks\.5\.proj\.weight"):
        twin.load_state_dict(small("x3d_xs", num_classes=3, input_size=(4, 64, 64)).state_dict())


@torch.no_grad()
def test_recomputing_blocks_changes_nothing_but_memory():
    arguments = {"num_classes": 3, "input_size": (4, 64, 64), "library": MVIT, "head_dropout": 0.0}
    plain = redraw(build_model("mvit_base_16x4", **arguments))
    again = build_model("mvit_base_16x4", act_checkpoint=True, **arguments)
    again.load_state_dict(plain.state_dict())
    clips = clips_for(plain)
    gradients = []
    for model in (plain, again, copy.deepcopy(again)):
        with torch.enable_grad():
            model.train()(clips).square().sum().backward()
        gradients.append(model.network.blocks[0].attn.q.weight.grad)
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])  # the copy's blocks are its own
    with pytest.raises(UserError, match="'act_checkpoint'"):
        build_model("x3d_xs", act_checkpoint=True)


def test_layers_of_transformers_are_numbered_and_positions_spared():
    mvit, vision = on_meta("mvit_base_16x4"), on_meta("torchvision_mvit_v2_s")
    for model, positions in ((mvit, 4), (vision, 1)):
        assert model.num_layers == 17
        ids = {model.layer_id(name) for name, _ in model.named_parameters()}
        assert ids == set(range(18))
        assert model.layer_id("head.weight") == 17
        assert len(model.no_weight_decay()) == positions
        groups = parameter_groups(model, weight_decay=0.1, layer_decay=0.5)
        assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    assert mvit.layer_id("network.blocks.3.attn.q.weight") == 4
    assert mvit.layer_id("network.patch_embed.patch_model.weight") == 0
    with pytest.raises(UserError, match=r"LAYER_DECAY"):
        parameter_groups(on_meta("x3d_xs"), weight_decay=0.1, layer_decay=0.5)


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("x3d_xs", (1, 3, 5, 160, 160), "[B, 3, 4, 160 or more, 160 or more]"),
        ("x3d_xs", (1, 3, 4, 128, 160), "160 or more"),
        ("x3d_xs", (3, 4, 160, 160), "160 or more"),
        ("mvit_base_16x4", (1, 3, 16, 256, 256), "[B, 3, 16, 224, 224]"),
    ],
)
def test_clips_of_another_size_are_refused(name, shape, says):
    with pytest.raises(UserError, match=re.escape(says)):
        on_meta(name)(torch.zeros(shape, device="meta"))


@pytest.mark.parametrize(
    ("name", "size", "says"),
    [
        ("x3d_xs", (4, 160), "frames, height, width"),
        ("x3d_xs", (4, 160, 192), "must be square"),
        ("slowfast_r50", (30, 224, 224), "multiples of (4, 1, 1)"),
        ("c2d_r50", (7, 224, 224), "multiples of (2, 1, 1)"),
        ("mvit_base_16x4", (16, 225, 224), "multiples of (2, 32, 32)"),
        ("slow_r50", (8.0, 224, 224), "frames, height, width"),
    ],
)
def test_impossible_sizes_are_refused(name, size, says):
    with pytest.raises(UserError, match=re.escape(says)):
        build_model(name, input_size=size)


def test_unknown_arguments_are_answered_with_the_known():
    with pytest.raises(UserError, match=r"'width'.*head_dropout, input_size, library, num_classes"):
        build_model("x3d_xs", width=3)
    with pytest.raises(UserError, match="'widht_factor'"):
        build_model("x3d_xs", library={"widht_factor": 1.0})


def test_listing_models_imports_none_of_their_libraries():
    code = (
        "import sys; from hiera_video import list_models; names = list_models();"
        "heavy = ('transformers', 'torchvision', 'pytorchvideo.models');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stdout + done.stderr
    assert set(PARAMETERS) <= set(list_models())
    assert list_models("*videomae_base*") == ["mae_videomae_base_16x224", "videomae_base_16x224"]
