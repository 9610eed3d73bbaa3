"""transformers' VideoMAE under this package's contract: classifier, autoencoder, tubes, weights."""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import re

import pytest
import torch
from randomness import redraw, relative_error
from torch import nn

from hiera_video.data.batch import Batch
from hiera_video.engine import tasks
from hiera_video.engine.optim import parameter_groups
from hiera_video.errors import UserError, WeightsError
from hiera_video.models import build_model, list_models
from hiera_video.models.baselines import videomae
from hiera_video.models.weights.file import read_checkpoint
from hiera_video.models.weights.load import load_weights

transformers = pytest.importorskip("transformers")
modeling_videomae = importlib.import_module("transformers.models.videomae.modeling_videomae")

CLASSIFIER, AUTOENCODER = "videomae_base_16x224", "mae_videomae_base_16x224"
SIZE = (4, 48, 64)
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "decoder_hidden_size": 16,
    "decoder_intermediate_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
}


def classifier(num_classes=7, **arguments):
    return build_model(
        CLASSIFIER, num_classes=num_classes, input_size=SIZE, library=TINY, **arguments
    )


def autoencoder(**arguments):
    return build_model(AUTOENCODER, input_size=SIZE, library=TINY, **arguments)


def library(kind, **settings):
    """transformers' own model of the tiny size, its parameters redrawn."""
    config = transformers.VideoMAEConfig(
        **TINY, num_frames=SIZE[0], image_size=list(SIZE[1:]), **settings
    )
    return redraw(getattr(transformers, kind)(config)).eval()


def clips(batch=2, seed=0):
    return torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def published(state):
    """A state dict as the files on the hub have it: biases of Q and V beside their layers."""
    renames = {"query.bias": "q_bias", "value.bias": "v_bias"}
    pattern = re.compile("(query|value).bias$")
    return {pattern.sub(lambda m: renames[m[0]], key): value for key, value in state.items()}


# ---- the classifier -----------------------------------------------------------------------------


@torch.no_grad()
def test_the_classifier_gives_the_librarys_logits():
    theirs = library("VideoMAEForVideoClassification", num_labels=7)
    ours = classifier().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = clips()
    expected = theirs(x.transpose(1, 2)).logits
    assert relative_error(ours(x), expected) < 1e-6
    assert relative_error(ours.train()(x), expected) < 1e-6  # logits in training too
    assert ours.num_classes == 7
    with pytest.raises(UserError, match=r"takes \[B, 3, 4, 48, 64\]"):
        ours(x.transpose(1, 2))


def test_a_step_reaches_every_parameter_of_the_classifier():
    model = redraw(classifier(3)).train()
    nn.functional.cross_entropy(model(clips()), torch.tensor([0, 2])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_layers_are_numbered():
    model = classifier()
    assert model.num_layers == 3
    assert {model.layer_id(name) for name, _ in model.named_parameters()} == {0, 1, 2, 3}
    assert model.layer_id("network.videomae.encoder.layer.1.attention.output.dense.bias") == 2
    assert model.layer_id("network.fc_norm.weight") == model.layer_id("head.bias") == 3
    assert len(parameter_groups(model, weight_decay=0.1, layer_decay=0.5)) == 8


@torch.no_grad()
def test_dropout_before_the_head_is_off_in_evaluation_of_a_copy_too():
    model = redraw(classifier(head_dropout=0.5)).train()
    judged = copy.deepcopy(model).eval()
    x = clips()
    assert torch.equal(judged(x), judged(x))  # while the original trains
    torch.manual_seed(0)
    assert not torch.equal(model(x), model(x))
    plain = classifier().eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(judged(x), plain(x))


def test_recomputing_gives_the_same_gradients():
    x = clips()
    for build, read in ((classifier, lambda m: m(x)), (autoencoder, lambda m: m(x, keep(m)).loss)):
        plain, again = redraw(build()), redraw(build(act_checkpoint=True))
        for model in (plain, again):
            read(model.train()).square().sum().backward()
        for (name, one), (_, other) in zip(
            plain.named_parameters(), again.named_parameters(), strict=True
        ):
            assert torch.allclose(one.grad, other.grad, atol=1e-7), name


# ---- the autoencoder ----------------------------------------------------------------------------


def keep(model, batch=2, seed=5):
    return model.random_keep(batch, 0.6, torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_the_autoencoder_gives_the_librarys_loss_for_the_same_tubes():
    theirs = library("VideoMAEForPreTraining", use_mean_pooling=False)
    ours = autoencoder().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, mask = clips(), keep(ours)
    deleted = torch.cat([~mask, ~mask], dim=1)  # two times, the same tubes in both
    expected = theirs(x.transpose(1, 2), bool_masked_pos=deleted)
    out = ours(x, mask)
    assert torch.equal(out.loss, expected.loss)
    assert torch.equal(out.pred, expected.logits)
    assert torch.equal(out.keep, mask)


@torch.no_grad()
def test_deleted_pixels_are_seen_by_the_loss_alone():
    model = redraw(autoencoder()).eval()
    x, mask = clips(), keep(model)
    pixels = mask.view(2, 1, 1, 3, 4).repeat_interleave(16, 3).repeat_interleave(16, 4)
    other = torch.where(pixels, x, 100 * torch.randn_like(x))
    before, after = model(x, mask), model(other, mask)
    assert torch.equal(before.pred, after.pred)
    assert before.loss != after.loss


def test_tubes_are_counted_as_published():
    model = build_on_meta(AUTOENCODER)
    assert (model.num_mask_units, model.mask_ratio) == (196, 0.9)
    assert videomae.tubes_kept(196, 0.9) == 20  # 176 deleted: int(0.9 * 196)
    assert videomae.tubes_kept(196, 0.75) == 49
    tiny = autoencoder(mask_ratio=0.5)
    masks = tiny.random_keep(64)
    assert masks.dtype == torch.bool
    assert masks.sum(dim=1).tolist() == [6] * 64
    assert len({tuple(row) for row in masks.tolist()}) > 50
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(
        tiny.random_keep(2, 0.5, generator),
        tiny.random_keep(2, 0.5, torch.Generator().manual_seed(3)),
    )


@functools.cache
def build_on_meta(name):
    """A model at its full size, without values; not to be changed."""
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        # the table of fixed positions takes the library seconds, number by number
        patch.setattr(
            modeling_videomae,
            "get_sinusoid_encoding_table",
            lambda tokens, width: torch.zeros(1, tokens, width),
        )
        return build_model(name)


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_ratios_out_of_range_are_refused(ratio):
    with pytest.raises(UserError, match="mask_ratio"):
        autoencoder(mask_ratio=ratio)


def test_unusable_masks_are_refused():
    model, x = autoencoder(), clips()
    with pytest.raises(UserError, match="nothing to predict"):
        model(x, torch.ones(2, 12, dtype=torch.bool))
    with pytest.raises(UserError, match=r"\(2, 12\)"):
        model(x, torch.ones(2, 24, dtype=torch.bool))
    uneven = keep(model)
    uneven[0] = True
    with pytest.raises(UserError, match="between"):
        model(x, uneven)
    with pytest.raises(UserError, match=r"takes \[B, 3, 4, 48, 64\]"):
        model(x[:, :, :2])


def test_a_step_of_pretraining_reaches_every_parameter_and_depends_on_the_clip_alone():
    model = redraw(autoencoder(mask_ratio=0.75)).train()
    ids, views = torch.tensor([4, 9]), torch.zeros(2, dtype=torch.int64)
    batch = Batch(clips=clips(), labels=ids, video_ids=ids, views=views)
    out = tasks.get("pretrain").step(model, batch, epoch=1, settings=tasks.StepSettings(seed=2))
    out["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    masks = tasks.keep_masks(model, ids, views, epoch=1, seed=2)
    assert masks.sum(dim=1).tolist() == [3, 3]
    assert torch.equal(masks[1:], tasks.keep_masks(model, ids[1:], views[1:], epoch=1, seed=2))


@torch.no_grad()
def test_a_perfect_prediction_reconstructs_the_clip():
    model = autoencoder()
    x, mask = clips(), keep(model)
    cubes = model._cubes(x)[torch.cat([~mask, ~mask], dim=1)]
    scale = (cubes.var(1, keepdim=True) + 1e-6).sqrt()
    pred = ((cubes - cubes.mean(1, keepdim=True)) / scale).reshape(2, -1, 1536)
    assert torch.allclose(model.reconstruct(x, pred, mask), x, atol=1e-5)
    blank = model.reconstruct(x, torch.zeros_like(pred), mask)
    same = (blank == x).all(dim=1)  # what was visible is as it was, in every frame
    shown = mask.view(2, 1, 3, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
    assert torch.equal(same, shown.expand(2, 4, 48, 64))
    panels = tasks.reconstructed(model, x, mask, mean=(0.485, 0.456, 0.406), std=(0.2,) * 3)
    picture = panels.as_picture()
    assert picture.shape == (3, 2 * 3 * 48, 4 * 64)


@torch.no_grad()
def test_targets_are_the_librarys(monkeypatch):
    """`_cubes` cuts as the library's loss does: a decoder that paints them has no loss."""
    model = autoencoder().eval()
    x, mask = clips(), keep(model)
    deleted = torch.cat([~mask, ~mask], dim=1)
    statistics = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    cubes = (model._cubes(x) * statistics[1] + statistics[0])[deleted]
    target = (cubes - cubes.mean(1, keepdim=True)) / (cubes.var(1, keepdim=True).sqrt() + 1e-6)
    answer = type(model.network.decoder(torch.zeros(2, 24, 16), 4))(
        logits=target.reshape(2, -1, 1536)
    )
    monkeypatch.setattr(model.network.decoder, "forward", lambda *_: answer)
    assert model(x, mask).loss < 1e-9


# ---- weights ------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_files_of_the_hub_load(tmp_path, ending):
    theirs = library("VideoMAEForVideoClassification", num_labels=7)
    path = tmp_path / f"pytorch_model.{ending}"
    state = published(theirs.state_dict())
    assert "videomae.encoder.layer.0.attention.attention.q_bias" in state
    if ending == "bin":
        torch.save(state, path)
    else:
        from safetensors.torch import save_file

        save_file(state, path)
    model = classifier().eval()
    report = load_weights(model, read_checkpoint(path))
    assert report.missing == report.unexpected == report.notes == []
    x = clips()
    assert torch.equal(model(x), theirs(x.transpose(1, 2)).logits)
    other = classifier(num_classes=3)
    report = load_weights(other, read_checkpoint(path))
    assert report.notes == ["head replaced: 7 -> 3 classes, randomly initialised"]
    assert torch.equal(other.network.fc_norm.weight, theirs.fc_norm.weight)


@torch.no_grad()
def test_the_encoder_is_taken_out_of_the_autoencoder(tmp_path):
    theirs = library("VideoMAEForPreTraining", use_mean_pooling=False)
    path = tmp_path / "videomae-base.bin"
    torch.save(published(theirs.state_dict()), path)
    model = classifier()
    report = load_weights(model, read_checkpoint(path))
    assert "decoder and last norm are left out; fc_norm and classifier keep" in report.notes[0]
    assert report.missing == [
        "classifier.bias",
        "classifier.weight",
        "fc_norm.bias",
        "fc_norm.weight",
    ]
    assert "videomae.layernorm.weight" in report.unexpected
    key = "videomae.encoder.layer.1.attention.attention.query.bias"
    assert torch.equal(model.state_dict()[key], theirs.state_dict()[key])
    whole = autoencoder()
    assert load_weights(whole, read_checkpoint(path)).notes == []
    x, mask = clips(), keep(whole)
    deleted = torch.cat([~mask, ~mask], dim=1)
    assert torch.equal(whole.eval()(x, mask).pred, theirs(x.transpose(1, 2), deleted).logits)
    torch.save(library("VideoMAEForVideoClassification").state_dict(), path)
    with pytest.raises(WeightsError, match="into_autoencoder=True"):
        load_weights(whole, read_checkpoint(path))


# ---- sizes, and a missing library ---------------------------------------------------------------

PARAMETERS = {"videomae_base_16x224": 86_534_800, "mae_videomae_base_16x224": 94_210_944}
LARGE = {
    "videomae_small_16x224": 22_033_936,
    "videomae_large_16x224": 304_270_736,
    "mae_videomae_small_16x224": 27_586_752,
    "mae_videomae_large_16x224": 342_996_992,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_at_full_size(name):
    model = build_on_meta(name)
    count = sum(p.numel() for p in model.parameters())
    assert count == PARAMETERS[name]
    # the files on the hub: 346 and 377 MB of float32
    assert round(4 * count / 1e6) == {"v": 346, "m": 377}[name[0]]


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_parameters_of_the_other_sizes(name):
    assert sum(p.numel() for p in build_on_meta(name).parameters()) == LARGE[name]


def test_without_transformers_the_names_stay_and_say_what_to_install(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "transformers" else find_spec(name, *rest),
    )
    assert CLASSIFIER in list_models()
    for name in (CLASSIFIER, AUTOENCODER):
        with pytest.raises(UserError, match=r"not installed.*pip install transformers"):
            build_model(name)


@pytest.mark.parametrize("size", [(16, 224), (15, 224, 224), (16, 230, 224)])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(UserError, match=r"multiples of \(2, 16, 16\)"):
        build_model(CLASSIFIER, input_size=size)
