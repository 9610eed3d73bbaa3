"""Weights fitted to a model, or refused and the model untouched."""

import re

import pytest
import torch
import torch.nn.functional as F
from small_models import VIDEO, autoencoder, held, image, image_autoencoder, same, untouched, video

from hiera_video.errors import WeightsError
from hiera_video.models.weights.file import Checkpoint, read_checkpoint, save_published
from hiera_video.models.weights.load import load_weights

pytestmark = pytest.mark.numbers


@pytest.mark.parametrize("build", [video, image, autoencoder, image_autoencoder])
def test_a_models_own_weights_load_exactly(build, tmp_path):
    source, model = build(), build()
    path = save_published(source, tmp_path / "x.pth")
    report = load_weights(model, read_checkpoint(path))
    assert same(model, source.state_dict())
    assert report.notes == report.missing == report.unexpected == report.resized == []
    total = len(source.state_dict())
    assert str(report) == f"loaded {total} of {total} tensors from {path}"


def test_the_authors_weights_give_the_authors_scores(tmp_path):
    reference = pytest.importorskip("hiera", reason="needs hiera-transformer")
    arguments = {"q_stride": (1, 2, 2), "mask_unit_size": (1, 8, 8), "sep_pos_embed": True}
    patches = {"patch_kernel": (3, 7, 7), "patch_stride": (2, 4, 4), "patch_padding": (1, 3, 3)}
    torch.manual_seed(0)
    theirs = reference.Hiera(num_classes=400, **VIDEO, **arguments, **patches).eval()
    theirs.head.projection.weight.data.normal_()
    torch.save({"model_state": theirs.state_dict()}, tmp_path / "x.pth")
    ours = video(400, pretrained=tmp_path / "x.pth").eval()
    clips = torch.randn(2, 3, 4, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(clips).softmax(-1), theirs(clips), atol=1e-5, rtol=1e-4)


def test_another_number_of_classes_replaces_the_head_and_says_so():
    torch.manual_seed(0)
    source, model = video(400), video(12)
    with torch.no_grad():
        model.head.projection.weight.fill_(9.0)  # a head trained for something else
    report = load_weights(model, held(source))
    assert report.notes == ["head replaced: 400 -> 12 classes, randomly initialised"]
    assert report.missing == ["head.projection.bias", "head.projection.weight"]
    assert torch.equal(model.norm.weight, source.norm.weight)
    head = model.head.projection.weight
    assert 0 < head.abs().max() < 1e-3  # the published start: 0.02 x 0.001


def test_a_model_without_head_leaves_it_out():
    source, model = video(5), video(0)
    report = load_weights(model, held(source))
    assert report.notes == ["head left out (5 classes): the model has none"]
    assert torch.equal(model.norm.bias, source.norm.bias)


def test_the_encoder_is_taken_out_of_an_autoencoder():
    torch.manual_seed(0)
    source, model = autoencoder(), video()
    with torch.no_grad():
        source.encoder_norm.weight.fill_(7.0)
    fresh = {key: model.state_dict()[key].clone() for key in ("norm.weight", "norm.bias")}
    report = load_weights(model, held(source))
    for key, value in source.state_dict().items():
        if key.startswith(("blocks", "patch_embed", "pos_embed")):
            assert torch.equal(model.state_dict()[key], value)
    assert torch.equal(model.norm.weight, fresh["norm.weight"])  # encoder_norm is not norm
    assert torch.equal(model.norm.bias, fresh["norm.bias"])
    assert re.search("encoder taken out of an autoencoder.*norm and head keep", report.notes[0])
    assert "decoder_pos_embed" in report.unexpected
    assert report.missing == [
        "head.projection.bias",
        "head.projection.weight",
        "norm.bias",
        "norm.weight",
    ]


def test_a_damaged_autoencoder_is_not_let_through_as_an_encoder():
    checkpoint = held(autoencoder())
    del checkpoint.state_dict["blocks.1.norm1.weight"]
    model = video()
    with (
        untouched(model),
        pytest.raises(WeightsError, match=r"1 missing.*\n.*blocks\.1\.norm1\.we"),
    ):
        load_weights(model, checkpoint)


def test_a_classifier_goes_into_an_autoencoder_only_when_asked():
    source, model = video(), autoencoder()
    with untouched(model), pytest.raises(WeightsError, match="into_autoencoder=True"):
        load_weights(model, held(source))
    report = load_weights(model, held(source), into_autoencoder=True)
    assert torch.equal(model.encoder.blocks[2].attn.qkv.weight, source.blocks[2].attn.qkv.weight)
    assert "mask_token" in report.missing
    assert "norm.weight" in report.unexpected


def test_a_still_clip_gives_an_inflated_model_the_images_features():
    torch.manual_seed(0)
    source, model = image(), video()
    report = load_weights(model, held(source))
    assert "patch kernel repeated over 3 frames and divided by 3" in report.notes[0]
    assert "pos_embed_temporal starts at zero" in report.notes[0]
    picture = torch.randn(1, 3, 64, 64)
    still = picture.unsqueeze(2).repeat(1, 1, 4, 1, 1)
    flat = F.conv2d(picture, source.patch_embed.proj.weight, stride=4, padding=3)
    moving = F.conv3d(still, model.patch_embed.proj.weight, stride=(2, 4, 4), padding=(1, 3, 3))
    # the first time step sees a frame of padding, the second only the still frames
    torch.testing.assert_close(moving[:, :, 1], flat, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.pos_embed_spatial, source.pos_embed)
    assert not model.pos_embed_temporal.any()
    for i in range(4):
        assert torch.equal(model.blocks[i].mlp.fc1.weight, source.blocks[i].mlp.fc1.weight)


def test_inflation_can_be_refused_and_has_no_way_back():
    model = video()
    with untouched(model), pytest.raises(WeightsError, match="inflate=False"):
        load_weights(model, held(image()), inflate=False)
    model = image()
    with (
        untouched(model),
        pytest.raises(WeightsError, match="video model's and the model"),
    ):
        load_weights(model, held(video()))


def test_an_image_autoencoders_decoder_is_not_inflated():
    source, model = image_autoencoder(), autoencoder()
    pred = model.decoder_pred.weight.clone()
    assert source.decoder_pred.weight.shape == pred.shape  # it would load, and mean something else
    report = load_weights(model, held(source))
    assert torch.equal(model.decoder_pred.weight, pred)
    assert "decoder, fusion heads and encoder_norm keep their initial values" in report.notes[0]


def test_image_weights_at_another_size_inflate_and_resize():
    source, model = image(), video(input_size=(8, 96, 32))
    report = load_weights(model, held(source))
    assert any("resized from 16x16 to 24x8 tokens (bicubic)" in note for note in report.notes)
    assert model.pos_embed_spatial.shape == (1, 24 * 8, 8)


def scrambled(state):
    """Edits of a state dict and what the error must list."""
    missing = {k: v for k, v in state.items() if k != "blocks.0.norm1.bias"}
    return [
        (missing, r"1 missing from the checkpoint:\n +blocks\.0\.norm1\.bias"),
        ({**state, "extra.weight": torch.ones(1)}, r"1 not in the model:\n +extra\.weight"),
        (
            {**state, "blocks.1.norm2.weight": torch.ones(3)},
            r"1 of another shape:\n +blocks\.1\.norm2\.weight: 3 there, 16 here",
        ),
        ({f"visual.{k}": v for k, v in state.items()}, "no tensor matches"),
    ]


@pytest.mark.parametrize("case", range(4))
def test_what_does_not_fit_is_listed_and_changes_nothing(case):
    state, expected = scrambled(held(video()).state_dict)[case]
    model = video()
    with untouched(model), pytest.raises(WeightsError, match=expected):
        load_weights(model, Checkpoint(state_dict=state, path="given.pth"))


def test_long_lists_are_cut_after_ten_with_their_counts():
    model = video(embed_dim=16)
    checkpoint = held(video(), model_name="hiera_base_16x224")
    with untouched(model), pytest.raises(WeightsError) as caught:
        load_weights(model, checkpoint)
    text = str(caught.value)
    assert "1 of 62 tensors match (the checkpoint is of hiera_base_16x224)" in text
    assert re.search(r"\d\d of another shape:", text)
    assert re.search(r"\.\.\. and \d\d more", text)
    assert len(text.splitlines()) == 13


def test_without_strictness_the_rest_is_skipped_and_reported():
    source, model = video(), video()
    checkpoint = held(source)
    del checkpoint.state_dict["blocks.0.norm1.bias"]
    checkpoint.state_dict["extra"] = torch.ones(1)
    checkpoint.state_dict["blocks.1.norm2.weight"] = torch.ones(3)
    report = load_weights(model, checkpoint, strict=False)
    assert report.missing == ["blocks.0.norm1.bias", "blocks.1.norm2.weight"]
    assert report.unexpected == ["extra"]
    assert report.reshaped == ["blocks.1.norm2.weight: 3 there, 16 here"]
    assert "skipped" in str(report)
    assert torch.equal(model.blocks[3].mlp.fc2.weight, source.blocks[3].mlp.fc2.weight)
    with pytest.raises(WeightsError, match="no tensor matches"):
        load_weights(model, Checkpoint(state_dict={"x": torch.ones(1)}, path="x"), strict=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_other_precisions_are_converted_and_said(dtype):
    source, model = video(), video()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.copy_((parameter * 100).round())
    checkpoint = held(source)
    checkpoint.state_dict = {k: v.to(dtype) for k, v in checkpoint.state_dict.items()}
    report = load_weights(model, checkpoint)
    assert same(model, source.state_dict())
    name = str(dtype).removeprefix("torch.")
    assert report.notes == [f"stored as {name}, converted to the model's type"]


def test_unusual_tensors_are_converted_or_refused_before_anything_is_copied():
    source, model = video(), video()
    checkpoint = held(source)
    checkpoint.state_dict["blocks.0.attn.proj.weight"] = (
        source.blocks[0].attn.proj.weight.detach().to_sparse()
    )
    load_weights(model, checkpoint)
    assert same(model, source.state_dict())
    for odd in (torch.ones(5, dtype=torch.complex64), torch.ones(5, device="meta")):
        checkpoint = held(video())
        checkpoint.state_dict["head.projection.bias"] = odd
        with untouched(model), pytest.raises(WeightsError, match="holds no plain numbers"):
            load_weights(model, checkpoint)


def test_weights_that_are_no_numbers_are_mentioned():
    checkpoint = held(video())
    checkpoint.state_dict["norm.bias"][0] = float("nan")
    assert "norm.bias" in load_weights(video(), checkpoint).notes[0]


def test_a_model_on_meta_is_not_filled_with_nothing():
    checkpoint = held(video())
    with torch.device("meta"):
        model = video()
    with pytest.raises(WeightsError, match="meta device"):
        load_weights(model, checkpoint)


def test_wrapped_models_are_filled_and_saved_by_their_published_keys(tmp_path):
    source, model = video(), video()
    wrapped = torch.nn.DataParallel(torch.compile(model))
    load_weights(wrapped, held(source))
    assert same(model, source.state_dict())
    path = save_published(wrapped, tmp_path / "x.pth")
    assert set(torch.load(path)["model_state"]) == set(source.state_dict())
