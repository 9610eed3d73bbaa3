"""MViTv2 as published: the functions of torchvision's and timm's models, from files of theirs."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from clips import write_clip
from randomness import redraw, relative_error

from hiera_video import build_model
from hiera_video.errors import WeightsError
from hiera_video.models.weights.file import Checkpoint, read_checkpoint
from hiera_video.models.weights.load import load_weights
from hiera_video.models.weights.other_keys import head_weight, published_model, to_published
from hiera_video.models.weights.resolve import resolve

ROOT = Path(__file__).resolve().parent.parent
TINY = {"embed_dim": 8, "num_heads": 1, "stages": (1, 2, 2, 1)}
TINY_VIDEO = {**TINY, "input_size": (4, 64, 64)}
TINY_IMAGE = {**TINY, "input_size": (64, 64)}


def torchvision_tiny(num_classes=5, size=64, frames=4):
    """torchvision's own class, as small as ours above."""
    mvit = pytest.importorskip("torchvision.models.video.mvit")
    widths, heads = (8, 8, 16, 16, 32, 32, 64), (1, 2, 2, 4, 4, 8)
    kv = (8, 4, 4, 2, 2, 1)
    firsts = (1, 3, 5)
    blocks = [
        mvit.MSBlockConfig(
            num_heads=heads[i],
            input_channels=widths[i] if i in firsts else widths[i + 1],
            output_channels=widths[i + 1],
            kernel_q=[3, 3, 3],
            kernel_kv=[3, 3, 3],
            stride_q=[1, 2, 2] if i in firsts else [1, 1, 1],
            stride_kv=[1, kv[i], kv[i]],
        )
        for i in range(6)
    ]
    return mvit.MViT(
        spatial_size=(size, size),
        temporal_size=frames,
        block_setting=blocks,
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        num_classes=num_classes,
    )


def timm_tiny(*, expand_attn=True, num_classes=5, size=64):
    timm = pytest.importorskip("timm.models.mvitv2")
    cfg = timm.MultiScaleVitCfg(
        depths=TINY["stages"], embed_dim=8, num_heads=1, expand_attn=expand_attn
    )
    return timm.MultiScaleVit(cfg, img_size=size, num_classes=num_classes)


def saved(model, path, key=None):
    state = model.state_dict()
    torch.save({key: state} if key else state, path)
    return path


def same_logits(ours, theirs, *, batch=2, tolerance=1e-5):
    clips = torch.randn(batch, 3, *ours.input_size, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return relative_error(ours.eval()(clips), theirs.eval()(clips)) <= tolerance


# ---- the functions ------------------------------------------------------------------------------


def test_small_models_equal_torchvision(tmp_path):
    theirs = redraw(torchvision_tiny())
    path = saved(theirs, tmp_path / "x.pth")
    ours = build_model("mvitv2_small_16x224", pretrained=path, num_classes=5, **TINY_VIDEO)
    assert same_logits(ours, theirs)


@pytest.mark.parametrize("size", ["base", "large"])
def test_small_models_equal_timm(size, tmp_path):
    """Large widens in the MLP, the others in attention."""
    theirs = redraw(timm_tiny(expand_attn=size != "large"))
    path = saved(theirs, tmp_path / "x.pth", "state_dict")
    ours = build_model(f"mvitv2_{size}_224", pretrained=path, num_classes=5, **TINY_IMAGE)
    assert same_logits(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_full_size_images_equal_timm(size):
    timm = pytest.importorskip("timm")
    theirs = redraw(timm.create_model(f"mvitv2_{size}", pretrained=False))
    ours = build_model(f"mvitv2_{size}_224")
    ours.load_state_dict(to_published(theirs.state_dict()), strict=True)
    assert same_logits(ours, theirs, batch=1)


@pytest.mark.slow
def test_full_size_video_equals_torchvision():
    video = pytest.importorskip("torchvision.models.video")
    theirs = redraw(video.mvit_v2_s(weights=None))
    ours = build_model("mvitv2_small_16x224")
    ours.load_state_dict(to_published(theirs.state_dict()), strict=True)
    assert same_logits(ours, theirs, batch=1)


def test_gradients_equal_torchvision():
    theirs = redraw(torchvision_tiny()).eval()
    ours = build_model("mvitv2_small_16x224", num_classes=5, **TINY_VIDEO).eval()
    ours.load_state_dict(to_published(theirs.state_dict()), strict=True)
    clips = torch.randn(2, 3, 4, 64, 64)
    for model in (ours, theirs):
        torch.nn.functional.cross_entropy(model(clips), torch.tensor([1, 4])).backward()
    expected = to_published({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        # not relative: the bias of a key's norm shifts all its scores alike, which changes nothing
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-3)


def test_blocks_with_absolute_positions_equal_pytorchvideo():
    """PyTorchVideo 0.1.5 has MViTv1's block: pools of both kinds, no residual, wider in the MLP."""
    attention = pytest.importorskip("pytorchvideo.layers.attention")
    theirs = attention.MultiScaleBlock(
        dim=16,
        dim_out=16,
        num_heads=2,
        mlp_ratio=4.0,
        qkv_bias=True,
        kernel_q=(3, 3, 3),
        kernel_kv=(3, 3, 3),
        stride_q=(1, 2, 2),
        stride_kv=(1, 2, 2),
        pool_mode="conv",
        has_cls_embed=False,
    )
    theirs = redraw(theirs).eval()
    choices = {
        "positions": "absolute",
        "final": "mean_norm",
        "q_residual": False,
        "kv_stride": (1, 2),
    }
    model = build_model(
        "ladder_r0_small_16x224",
        ablation=choices,
        embed_dim=16,
        num_heads=2,
        head_mul=1,
        dim_mul=1,
        stages=(1, 1),
        q_pool=1,
        mask_unit_attn=(False, False),
        input_size=(4, 32, 32),
    )
    ours = model.blocks[1].eval()
    state = theirs.state_dict()
    for kind in ("weight", "bias"):
        state[f"attn.qkv.{kind}"] = torch.cat([state.pop(f"attn.{x}.{kind}") for x in "qkv"])
    ours.load_state_dict(state, strict=True)
    for norm in (theirs.attn.norm_q, theirs.attn.norm_k, theirs.attn.norm_v):
        norm.eps = 1e-6  # it builds 1e-5, hard-wired
    x = torch.randn(2, 2 * 8 * 8, 16)
    with torch.inference_mode():
        expected, shape = theirs(x, (2, 8, 8))
        assert shape == [2, 4, 4]
        assert relative_error(ours(x[:, None])[:, 0], expected) <= 1e-5


# ---- names --------------------------------------------------------------------------------------


def test_published_names_are_left_alone():
    state = build_model("mvitv2_small_16x224", **TINY_VIDEO).state_dict()
    assert to_published(state) == state
    assert head_weight(state) == "head.projection.weight"
    assert {"cls_token", "blocks.0.attn.pool_q.weight", "blocks.1.attn.norm_k.bias"} <= set(state)
    assert {"blocks.0.attn.rel_pos_t", "blocks.1.proj.weight", "norm.bias"} <= set(state)


def test_slowfasts_files_load_as_they_are(tmp_path):
    source = redraw(build_model("mvitv2_large_16x224", num_classes=7, **TINY_VIDEO))
    path = saved(source, tmp_path / "x.pyth", "model_state")
    model = build_model("mvitv2_large_16x224", pretrained=path, num_classes=7, **TINY_VIDEO)
    assert same_logits(model, source, tolerance=0)


def test_timms_hiera_loads(tmp_path):
    timm = pytest.importorskip("timm.models.hiera")
    theirs = timm.Hiera(embed_dim=8, num_heads=1, stages=(1, 2, 2, 1), img_size=64, num_classes=5)
    path = saved(redraw(theirs), tmp_path / "x.pth")
    ours = build_model("hiera_tiny_224", pretrained=path, num_classes=5, **TINY_IMAGE)
    assert same_logits(ours, theirs)


@pytest.mark.parametrize("build", [torchvision_tiny, timm_tiny])
def test_the_number_of_classes_is_read_from_any_head(build, tmp_path):
    path = saved(build(num_classes=9), tmp_path / "x.pth")
    checkpoint, _ = resolve(path)
    assert checkpoint.num_classes == 9
    name = "mvitv2_small_16x224" if build is torchvision_tiny else "mvitv2_small_224"
    sizes = TINY_VIDEO if build is torchvision_tiny else TINY_IMAGE
    model = build_model(name, num_classes=4, **sizes)
    report = load_weights(model, checkpoint)
    assert report.notes == ["head replaced: 9 -> 4 classes, randomly initialised"]
    with pytest.raises(WeightsError, match="has 9 classes"):
        build_model(name, pretrained=path, **sizes)


def test_weights_of_another_depth_are_refused_with_what_differs(tmp_path):
    path = saved(timm_tiny(), tmp_path / "x.pth")
    model = build_model("mvitv2_small_224", num_classes=5, **{**TINY_IMAGE, "stages": (1, 2, 3, 1)})
    with pytest.raises(WeightsError, match=r"missing from the checkpoint") as caught:
        load_weights(model, read_checkpoint(path))
    assert "blocks.5" in str(caught.value) or "blocks.6" in str(caught.value)


class Wrapped(torch.nn.Module):
    """A user's model that says nothing of its keys."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def test_keys_are_translated_only_where_the_model_has_the_published_ones(tmp_path):
    """A model that itself wraps torchvision's keeps torchvision's names."""
    stem, head = (
        torch.nn.Conv3d(3, 8, 1),
        torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(8, 5)),
    )
    theirs = Wrapped(conv_proj=stem, head=head)
    path = saved(theirs, tmp_path / "x.pth")
    same = Wrapped(conv_proj=torch.nn.Conv3d(3, 8, 1), head=copy.deepcopy(head))
    load_weights(same, read_checkpoint(path))
    assert torch.equal(same.conv_proj.weight, stem.weight)
    published = Wrapped(
        patch_embed=Wrapped(proj=torch.nn.Conv3d(3, 8, 1)),
        head=Wrapped(projection=torch.nn.Linear(8, 5)),
    )
    load_weights(published, read_checkpoint(path))
    assert torch.equal(published.patch_embed.proj.weight, stem.weight)
    assert torch.equal(published.head.projection.weight, head[1].weight)


# ---- other sizes --------------------------------------------------------------------------------


def test_tables_of_relative_positions_are_resized_and_it_says_so(tmp_path):
    path = saved(redraw(torchvision_tiny()), tmp_path / "x.pth")
    sizes = {**TINY_VIDEO, "input_size": (8, 96, 128)}
    model = build_model("mvitv2_small_16x224", num_classes=5, **sizes)
    report = load_weights(model, read_checkpoint(path))
    (note,) = report.notes
    assert "tables of relative positions resized from" in note
    assert "31 to 47, 31 to 63" in note
    assert {"blocks.0.attn.rel_pos_h", "blocks.5.attn.rel_pos_t"} <= set(report.resized)
    table = read_checkpoint(path).state_dict["blocks.0.attn.rel_pos_w"]
    line = torch.nn.functional.interpolate(table.t()[None], size=63, mode="linear")
    assert torch.equal(model.blocks[0].attn.rel_pos_w, line[0].t())


def test_a_table_of_another_kind_is_reported_by_its_shape():
    model = build_model("mvitv2_small_16x224", num_classes=5, **TINY_VIDEO)
    state = dict(model.state_dict())
    name = "blocks.0.attn.rel_pos_h"
    state[name] = state[name].repeat(2, 1)[None]
    with pytest.raises(WeightsError, match=rf"of another shape:\n *{name}"):
        load_weights(model, Checkpoint(state_dict=state, path="given.pth"))


def test_a_resized_model_is_torchvisions_at_that_size(tmp_path):
    """torchvision resizes the same tables as it runs; ours were resized when they were loaded."""
    theirs = redraw(torchvision_tiny())
    path = saved(theirs, tmp_path / "x.pth")
    larger = torchvision_tiny(size=96, frames=8)
    for block, trained in zip(larger.blocks, theirs.blocks, strict=True):
        for name in ("rel_pos_h", "rel_pos_w", "rel_pos_t"):
            setattr(block.attn, name, getattr(trained.attn, name))
    larger.load_state_dict(theirs.state_dict(), strict=True)
    sizes = {**TINY_VIDEO, "input_size": (8, 96, 96)}
    ours = build_model("mvitv2_small_16x224", pretrained=path, num_classes=5, **sizes)
    assert same_logits(ours, larger)


# ---- images into video --------------------------------------------------------------------------


def test_a_still_clip_gives_the_images_logits(tmp_path):
    source = redraw(build_model("ladder_r0_small_224", num_classes=5, **TINY_IMAGE)).eval()
    path = saved(source, tmp_path / "x.pth")
    video = build_model("ladder_r0_small_16x224", num_classes=5, **TINY_VIDEO).eval()
    report = load_weights(video, read_checkpoint(path))
    assert "pooling kernels put in the middle" in report.notes[0]
    assert "relative positions in time start at zero" in report.notes[0]
    picture = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        # the first and last step see the padding of the stem, so frames in the middle speak
        stem = [m.patch_embed.proj for m in (source, video)]
        assert torch.allclose(stem[1].weight.sum(2), stem[0].weight, atol=1e-6)
        tokens = source.embed(picture)
        for flat, deep in zip(source.blocks, video.blocks, strict=True):
            still = deep(tokens.repeat(1, 1, 2, 1))
            tokens = flat(tokens)
            assert relative_error(still, tokens.repeat(1, 1, 2, 1)) <= 1e-5


def test_a_class_token_starts_fresh_in_video(tmp_path):
    path = saved(build_model("mvitv2_small_224", num_classes=5, **TINY_IMAGE), tmp_path / "x.pth")
    model = build_model("mvitv2_small_16x224", num_classes=5, **TINY_VIDEO)
    before = model.cls_token.clone()
    report = load_weights(model, read_checkpoint(path))
    assert "cls_token keeps its initial value" in report.notes[0]
    assert report.missing == ["cls_token"]
    assert torch.equal(model.cls_token, before)


# ---- the command line ---------------------------------------------------------------------------


@pytest.fixture
def demo(capsys):
    """`python demo/predict.py ... --json`: its results."""
    spec = importlib.util.spec_from_file_location("demo_predict", ROOT / "demo" / "predict.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments):
        assert module.main([*map(str, arguments), "--json", "--device", "cpu"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.slow
def test_the_demo_labels_with_a_file_in_torchvisions_names(demo, tmp_path):
    video = write_clip(tmp_path / "clip.mp4", frames=16)
    weights = saved(redraw(torchvision_tiny(num_classes=4)), tmp_path / "mvit.pth")
    config = tmp_path / "c.yaml"
    config.write_text(
        "MODEL: {MODEL_NAME: mvitv2_small_16x224, KWARGS: {embed_dim: 8, stages: [1, 2, 2, 1]}}\n"
        "DATA: {NUM_FRAMES: 4, SAMPLING_RATE: 2, TRAIN_CROP_SIZE: 64, TEST_CROP_SIZE: 64}\n"
    )
    (result,) = demo(video, "--weights", weights, "--views", "1x1", "--cfg", str(config))
    assert len(result["labels"]) == 4


@pytest.mark.slow
def test_the_demo_knows_the_published_models_by_their_sizes(demo, tmp_path):
    video = pytest.importorskip("torchvision.models.video")
    clip = write_clip(tmp_path / "clip.mp4", frames=16)
    weights = saved(redraw(video.mvit_v2_s(weights=None)), tmp_path / "given.pth")
    (result,) = demo(clip, "--weights", weights, "--views", "1x1")
    assert result["model"] == "mvitv2_small_16x224"


@pytest.mark.parametrize("name", ["mvitv2_tiny_224", "mvitv2_small_16x224", "mvitv2_base_32x224"])
def test_published_models_are_known_by_their_sizes(name):
    with torch.device("meta"):
        state = build_model(name).state_dict()
    assert published_model(state) == name


@pytest.mark.parametrize(
    "name", ["hiera_small_224", "ladder_r0_small_16x224", "ladder_r1_small_224"]
)
def test_other_models_are_not_taken_for_published_ones(name):
    with torch.device("meta"):
        state = build_model(name).state_dict()
    assert published_model(state) is None
