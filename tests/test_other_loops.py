"""Models in other people's hands: their training loops, feature pyramids, detectors, copies, files.

The blocks of docs/other_loops.md are run as they stand; the rest is what they promise.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import pickle
import re

import pytest
import torch
from conftest import REPOSITORY
from randomness import redraw, relative_error
from torch.utils.checkpoint import checkpoint

from hiera_video import Backbone, build_model, create_hiera
from hiera_video.errors import UserError

SMALL = {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)}
VIDEO = {**SMALL, "input_size": (4, 64, 64)}
IMAGE = {**SMALL, "input_size": (64, 64)}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}

CLASSIFIERS = {
    "hiera_tiny_16x224": {**VIDEO, "num_classes": 5},
    "hiera_tiny_224": {**IMAGE, "num_classes": 5},
    "ladder_r0_small_16x224": {**VIDEO, "num_classes": 5},
}
MODELS = {
    **CLASSIFIERS,
    "hiera_tiny_16x224, recomputed": {**VIDEO, "num_classes": 5, "act_checkpoint": True},
    "hiera_tiny_16x224, readout": {**VIDEO, "num_classes": 5, "readout_stages": (1, 2)},
    "hiera_tiny_16x224, attentive": {**VIDEO, "num_classes": 5, "attentive": True},
    "mae_hiera_tiny_16x224": {**VIDEO, **DECODER},
    "motion_hiera_tiny_16x224": {**VIDEO, "grid": 16},
    "x3d_xs": {"num_classes": 5, "input_size": (4, 64, 64)},
    "mvit_base_16x4": {"num_classes": 5, "input_size": (4, 64, 64), "act_checkpoint": True},
}


def made(name):
    """A small model with parameters at random, in eval mode, and two inputs for it."""
    model = redraw(build_model(name.partition(",")[0], **MODELS[name])).eval()
    return model, torch.randn(2, 3, *model.input_size, generator=torch.Generator().manual_seed(3))


def output(model, clips):
    """One tensor of what the model says about clips; an autoencoder with masks from a seed."""
    torch.manual_seed(0)
    out = model(clips)
    return out.pred if hasattr(out, "pred") else out[0] if isinstance(out, list) else out


# ---- the page -----------------------------------------------------------------------------------

PAGE = (REPOSITORY / "docs" / "other_loops.md").read_text(encoding="utf-8")
NEEDS = {
    "Hugging Face Trainer": ("transformers", "accelerate"),
    "Lightning": ("lightning",),
}
"""Section -> packages that it needs; their test is skipped without one of them."""


def sections():
    """Title -> Python blocks of the page; the blocks before the first title are those of ""."""
    first, *rest = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    parts = {"": first, **{part.partition("\n")[0]: part for part in rest}}
    found = {
        title: re.findall(r"^```python\n(.*?)^```", part, flags=re.MULTILINE | re.DOTALL)
        for title, part in parts.items()
    }
    return {title: blocks for title, blocks in found.items() if blocks}


@pytest.fixture
def names_after(tmp_path, monkeypatch):
    """A function that runs the first block and those of a section, and returns their names."""
    monkeypatch.chdir(tmp_path)

    def run(title):
        for package in NEEDS.get(title, ()):
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{package} is not installed")
        names = {}
        for block in [*sections()[""], *sections()[title]]:
            exec(compile(block, f"docs/other_loops.md: {title}", "exec"), names)
        return names

    return run


def test_every_section_with_code_is_run():
    loops = {"PyTorch", "Hugging Face Trainer", "Lightning"}
    assert set(sections()) == {"", *loops, "Feature pyramids and detection", "torch.func"}


@pytest.mark.parametrize("title", ["PyTorch", "Hugging Face Trainer", "Lightning"])
def test_a_model_learns_a_batch_by_heart_in_a_loop(names_after, title):
    names = names_after(title)
    losses = names["losses"]
    assert len(losses) == 20
    assert losses[0] == pytest.approx(1.0986, abs=0.05)  # log 3: the fresh head tells nothing
    assert losses[-1] < 0.3
    with torch.no_grad():
        logits = names["model"].eval()(names["clips"])
    assert torch.equal(logits.argmax(1), names["labels"])
    if "trained" in names:  # what the loop saved is read as it is
        with torch.no_grad():
            assert torch.equal(names["trained"].eval()(names["clips"]), logits)
    if "metrics" in names:
        assert names["metrics"]["eval_loss"] < 0.3


def test_an_autoencoder_learns_in_a_bare_loop():
    torch.manual_seed(0)
    model = build_model("mae_hiera_tiny_16x224", **VIDEO, **DECODER, mask_ratio=0.5)
    rows = torch.linspace(0, 1, 64).view(1, 1, 1, 64, 1)
    signs = torch.tensor([-1.0, 1.0, -1.0, 1.0]).view(4, 1, 1, 1, 1)  # brighter or darker downwards
    clips = (rows * signs).expand(4, 3, 4, 64, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = model(clips).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_pyramid_and_detector_take_the_maps(names_after):
    names = names_after("Feature pyramids and detection")
    shapes = {stride: tuple(m.shape) for stride, m in names["maps"].items()}
    assert shapes == {
        "4": (12, 32, 16, 16),
        "8": (12, 32, 8, 8),
        "16": (12, 32, 4, 4),
        "32": (12, 32, 2, 2),
    }
    losses = names["detector_losses"]
    assert len(losses) == 4
    names["detector"].train()
    sum(losses.values()).backward()
    idle = [n for n, p in names["body"].named_parameters() if p.grad is None]
    assert not idle
    assert names["body"].encoder.patch_embed.proj.weight.grad.abs().max() > 0
    for found, image in zip(names["found"], names["images"], strict=True):
        assert set(found) == {"boxes", "labels", "scores"}
        height, width = image.shape[1:]
        assert (found["boxes"] <= torch.tensor([width, height, width, height])).all()


def test_the_gradients_of_each_clip_are_those_of_it_alone(names_after):
    names = names_after("torch.func")
    model, clips, labels = names["model"], names["clips"], names["labels"]
    for i in (0, 4):
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(clips[i : i + 1]), labels[i : i + 1]).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(
                names["gradients"][name][i], parameter.grad, rtol=1e-3, atol=1e-6
            )


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_clips_one_by_one_and_models_side_by_side_under_vmap(name):
    model, clips = made(name)
    expected = model(clips)
    with torch.no_grad():
        found = torch.func.vmap(lambda clip: model(clip.unsqueeze(0)).squeeze(0))(clips)
        assert relative_error(found, expected) < 1e-5
        models = [model, redraw(copy.deepcopy(model), seed=1)]
        parameters, buffers = torch.func.stack_module_state(models)

        def call(parameters, buffers):
            return torch.func.functional_call(model, (parameters, buffers), (clips,))

        found = torch.func.vmap(call)(parameters, buffers)
        for one, logits in zip(models, found, strict=True):
            assert relative_error(logits, one(clips)) < 1e-5


# ---- the maps of stages -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hiera_tiny_16x224", "ladder_r0_small_16x224"])
def test_maps_are_those_of_the_stages_channels_first(name):
    model, clips = made(name)
    with torch.no_grad():
        expected = model.stage_features(clips)
        bodies = {
            time: Backbone(copy.deepcopy(model), time=time) for time in ("keep", "mean", "fold")
        }
        found = {time: body(clips) for time, body in bodies.items()}
    body = bodies["keep"]
    assert body.feature_info.channels() == [8, 16, 32, 64]
    assert body.feature_info.reduction() == [4, 8, 16, 32]
    assert body.feature_info.time_reduction() == [2, 2, 2, 2]
    assert len(body.feature_info) == 4
    assert body.feature_info[-1].num_chs == 64
    for i, stage in enumerate(expected):  # [B, T', rows, columns, C]
        torch.testing.assert_close(found["keep"][i], stage.permute(0, 4, 1, 2, 3))
        torch.testing.assert_close(found["mean"][i], stage.mean(1).permute(0, 3, 1, 2))
        for clip in range(2):
            for t in range(2):
                torch.testing.assert_close(
                    found["fold"][i][2 * clip + t], stage[clip, t].permute(2, 0, 1)
                )
        assert all(maps[i].is_contiguous() for maps in found.values())
        strides = [s // n for s, n in zip((4, 64, 64), found["keep"][i].shape[2:], strict=True)]
        reduction = body.feature_info.reduction()[i]
        assert strides == [body.feature_info.time_reduction()[i], reduction, reduction]


def test_maps_of_images_and_of_an_encoder_inside_an_autoencoder():
    model, images = made("hiera_tiny_224")
    stages = model.stage_features(images)
    body = Backbone(model, time="mean")
    assert body.feature_info.time_reduction() == [1, 1, 1, 1]
    for found, stage in zip(body(images), stages, strict=True):
        torch.testing.assert_close(found, stage.permute(0, 3, 1, 2))
    autoencoder, clips = made("mae_hiera_tiny_16x224")
    body = Backbone(autoencoder)
    assert body.feature_info.reduction() == [4, 8, 16, 16]  # pretraining pools twice
    sizes = [tuple(found.shape[2:]) for found in body(clips)]
    assert sizes == [(2, 16, 16), (2, 8, 8), (2, 4, 4), (2, 4, 4)]


def test_chosen_stages_need_no_others():
    model, clips = made("hiera_tiny_16x224")
    expected = model.stage_features(clips)
    body = Backbone(model, out_indices=(1, 2))
    found = body(clips)
    assert [m.shape[1] for m in found] == body.feature_info.channels() == [16, 32]
    torch.testing.assert_close(found[1], expected[2].movedim(-1, 1))
    sum(m.square().mean() for m in found).backward()
    assert all(p.grad is not None for p in body.parameters())
    modules = dict(body.named_modules())
    seen = []
    modules[body.feature_info.module_name()[0]].register_forward_hook(
        lambda _module, _inputs, out: seen.append(out.shape[-1])
    )
    body(clips)
    assert seen == [16]


@pytest.mark.parametrize("kind", ["readout", "attentive"])
def test_a_backbone_of_a_readout_trains_all_that_it_returns(kind):
    body = Backbone(made(f"hiera_tiny_16x224, {kind}")[0])
    assert all(p.requires_grad for p in body.parameters())
    assert not any("head" in n or "readout" in n for n, _ in body.named_parameters())


def test_a_backbone_keeps_layers_and_published_keys(tmp_path):
    model, clips = made("hiera_tiny_16x224")
    logits = model(clips)
    body = Backbone(copy.deepcopy(model), out_indices=(0, 3))
    assert {body.layer_id(n) for n, _ in body.named_parameters()} == {0, 1, 2, 3, 4}
    assert body.no_weight_decay() <= {n for n, _ in body.named_parameters()}
    assert body.no_weight_decay()
    torch.save(body.state_dict(), tmp_path / "body.pth")
    again = build_model(
        "hiera_tiny_16x224", pretrained=tmp_path / "body.pth", **MODELS["hiera_tiny_16x224"]
    )
    again.norm, again.head = model.norm, model.head
    assert torch.equal(again.eval()(clips), logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out_indices": (2, 1)}, r"ascending numbers of stages, 0 to 3"),
        ({"out_indices": (4,)}, r"0 to 3"),
        ({"out_indices": (-1,)}, r"0 to 3"),
        ({"out_indices": ()}, r"at least one; None for all"),
        ({"time": "max"}, r"time='max' must be one of 'keep'.*'mean'.*'fold'"),
    ],
)
def test_wrong_arguments_of_a_backbone_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Backbone(made("hiera_tiny_16x224")[0], **arguments)


def test_a_model_without_stages_is_no_backbone():
    with pytest.raises(UserError, match=r"needs the stages of a Hiera, and ScorePooled has none"):
        Backbone(made("x3d_xs")[0])


# ---- copies, files, compilers -------------------------------------------------------------------


def copied_by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def saved_whole(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": copied_by_pickle, "torch.save": saved_whole}


@pytest.mark.parametrize("name", MODELS)
def test_copies_say_the_same_and_share_nothing(name):
    model, clips = made(name)
    with torch.no_grad():
        expected = output(model, clips)
    output(model.train(), clips).square().mean().backward()  # copies are made in mid-training
    model.register_forward_hook(_nothing)
    model.eval()
    for how, copied in COPIES.items():
        other = copied(model)
        with torch.no_grad():
            if not _has_batch_norm(model):  # whose statistics the training step has moved
                assert torch.equal(output(other, clips), expected), how
            assert torch.equal(output(other, clips), output(model, clips)), how
            ours = {p.data_ptr() for p in model.parameters()}
            assert ours.isdisjoint(p.data_ptr() for p in other.parameters()), how
            before = output(model, clips)
            redraw(other, seed=7)
            assert torch.equal(output(model, clips), before), how


def _nothing(*_arguments):
    """A forward hook at the top of a module, as those that can be pickled are."""


def _has_batch_norm(model):
    return any(isinstance(m, torch.nn.BatchNorm3d) for m in model.modules())


def test_a_model_in_pytorchvideos_manner_is_copied_too():
    model = redraw(
        create_hiera(stage_depths=(1, 1, 1, 1), stem_dim_out=8, spatial_size=64, temporal_size=4)
    ).eval()
    clips = torch.randn(1, 3, 4, 64, 64)
    with torch.no_grad():
        for copied in COPIES.values():
            assert torch.equal(copied(model)(clips), model(clips))


@pytest.mark.parametrize("in_place", [False, True], ids=["wrapped", "in place"])
@pytest.mark.parametrize("name", ["hiera_tiny_16x224", "ladder_r0_small_16x224", "x3d_xs"])
def test_a_compiled_model_is_copied_as_well(name, in_place):
    torch._dynamo.reset()
    model, clips = made(name)
    with torch.no_grad():
        expected = model(clips)
        compiled = torch.compile(model, backend="eager")
        if in_place:
            model.compile(backend="eager")
            compiled = model
        assert relative_error(compiled(clips), expected) < 1e-5
        for copied in COPIES.values():
            assert relative_error(copied(compiled)(clips), expected) < 1e-5


BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("time", ["keep", "fold"])
def test_a_backbone_compiles_whole(backend, time):
    torch._dynamo.reset()
    model, clips = made("hiera_tiny_16x224")
    body = Backbone(model, out_indices=(1, 3), time=time)
    compiled = torch.compile(body, fullgraph=True, backend=backend)
    for found, expected in zip(compiled(clips), body(clips), strict=True):
        assert relative_error(found, expected) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_usual_compiler_trains_as_the_model_does(name):
    torch._dynamo.reset()
    model, clips = made(name)
    compiled = torch.compile(model)
    found = []
    for run in (model, compiled):
        model.zero_grad()
        loss = run(clips).square().mean()
        loss.backward()
        found.append((loss.item(), model.patch_embed.proj.weight.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert relative_error(found[1][1], found[0][1]) < 1e-3


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_recomputed_as_a_whole_the_gradients_are_the_same(name):
    model, clips = made(name)
    gradients = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        model.zero_grad()
        run(clips).square().mean().backward()
        gradients.append(model.patch_embed.proj.weight.grad.clone())
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float16, 0.03), (torch.bfloat16, 0.2), (torch.float64, 1e-4)]
)
def test_whole_models_in_another_number_format(name, dtype, most):
    model, clips = made(name)
    with torch.no_grad():
        expected = model(clips)
        found = model.to(dtype)(clips.to(dtype))
    assert found.dtype == dtype
    assert relative_error(found.double(), expected.double()) < most
