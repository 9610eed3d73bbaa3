"""The model for boxes, against arithmetic written out."""

import math

import pytest
import torch
from torch import nn

from hiera_video.errors import UserError
from hiera_video.models import build_model
from hiera_video.models.contract import takes_boxes
from hiera_video.models.weights.file import read_checkpoint
from hiera_video.models.weights.load import load_weights

SMALL = {"input_size": (4, 64, 96), "embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)}
BOXES = torch.tensor(
    [
        [1, 0.1, 0.2, 0.65, 0.9],
        [0, 0.0, 0.0, 1.0, 1.0],
        [1, 0.5, 0.5, 0.52, 0.55],
        [0, 0.3, 0.1, 0.31, 0.99],
        [1, 0.9, 0.0, 1.0, 0.1],
    ]
)


def redrawn(model, seed=1):
    """The model with every parameter drawn anew: default values make wrong code agree."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


@pytest.fixture
def model():
    return redrawn(build_model("hiera_tiny_16x224_ava", num_classes=5, q_pool=1, **SMALL))


@pytest.fixture
def clips():
    return torch.randn(2, 3, *SMALL["input_size"], generator=torch.Generator().manual_seed(2))


def naive_bilinear(plane, y, x):
    """The value of [h, w] at a place, as RoIAlign reads it."""
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return plane.new_zeros(())
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    below, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    return (
        plane[top, left] * (1 - down) * (1 - across)
        + plane[top, right] * (1 - down) * across
        + plane[below, left] * down * (1 - across)
        + plane[below, right] * down * across
    )


def naive_region(features, box, resolution):
    """[C, h, w] and (x1, y1, x2, y2) as shares -> the largest value of each channel in the box."""
    _, height, width = features.shape
    x1, x2 = (float(v) * width - 0.5 for v in (box[0], box[2]))
    y1, y2 = (float(v) * height - 0.5 for v in (box[1], box[3]))
    cell_y, cell_x = (y2 - y1) / resolution, (x2 - x1) / resolution
    points_y, points_x = math.ceil(cell_y), math.ceil(cell_x)
    best = []
    for plane in features:
        cells = []
        for row in range(resolution):
            for column in range(resolution):
                values = [
                    naive_bilinear(
                        plane,
                        y1 + (row + (i + 0.5) / points_y) * cell_y,
                        x1 + (column + (j + 0.5) / points_x) * cell_x,
                    )
                    for i in range(points_y)
                    for j in range(points_x)
                ]
                cells.append(torch.stack(values).mean())
        best.append(torch.stack(cells).max())
    return torch.stack(best)


def naive_logits(model, clips, boxes):
    stages = model.encoder.stage_features(clips)
    tokens = nn.functional.layer_norm(
        stages[-1], stages[-1].shape[-1:], model.norm.weight, model.norm.bias, model.norm.eps
    )
    maps = tokens.mean(dim=1).permute(0, 3, 1, 2)  # time; then channels first
    rows = [naive_region(maps[int(box[0])], box[1:], model.roi_resolution) for box in boxes]
    head = model.head.projection
    return torch.stack(rows) @ head.weight.T + head.bias


@pytest.mark.numbers
def test_logits_are_those_of_arithmetic_written_out(model, clips):
    with torch.no_grad():
        expected = naive_logits(model, clips, BOXES)
        found = model(clips, BOXES)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.numbers
def test_gradients_are_those_of_arithmetic_written_out(model, clips):
    weights = torch.randn(len(BOXES), 5, generator=torch.Generator().manual_seed(3))
    (model(clips, BOXES) * weights).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    (naive_logits(model, clips, BOXES) * weights).sum().backward()
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max()
        assert scale > 0, name
        torch.testing.assert_close(found[name] / scale, parameter.grad / scale, rtol=0, atol=2e-3)


@pytest.mark.numbers
def test_a_box_depends_on_its_own_clip_and_not_on_other_boxes(model, clips):
    with torch.no_grad():
        together = model(clips, BOXES)
        for row, box in enumerate(BOXES):
            own = clips[int(box[0])][None]
            alone = model(own, torch.cat([torch.zeros(1), box[1:]])[None])
            torch.testing.assert_close(alone[0], together[row], rtol=1e-3, atol=1e-4)
        order = torch.tensor([3, 0, 4, 2, 1])
        torch.testing.assert_close(model(clips, BOXES[order]), together[order])


def test_without_boxes_the_whole_picture_of_each_clip_is_scored(model, clips):
    whole = torch.tensor([[0, 0, 0, 1, 1], [1, 0, 0, 1, 1.0]])
    with torch.no_grad():
        torch.testing.assert_close(model(clips), model(clips, whole))


def test_no_box_gives_no_row_and_zero_gradients_for_every_parameter(model, clips):
    logits = model(clips, torch.zeros(0, 5))
    assert logits.shape == (0, 5)
    logits.sum().backward()
    for name, parameter in model.named_parameters():
        # several processes wait for each of them
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("boxes", [torch.zeros(2, 4), torch.zeros(5), torch.zeros(1, 5).long()])
def test_other_boxes_are_refused(model, clips, boxes):
    with pytest.raises(UserError, match=r"floats \[N, 5\]"):
        model(clips, boxes)


def test_bf16_scores_nearly_the_same(model, clips):
    with torch.no_grad():
        exact = model(clips, BOXES)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(clips, BOXES).float()
    assert (found - exact).abs().max() < 0.1 * exact.abs().max()


def test_activation_checkpointing_changes_no_gradient(clips):
    gradients = []
    for act_checkpoint in (False, True):
        model = build_model(
            "hiera_tiny_16x224_ava", num_classes=5, act_checkpoint=act_checkpoint, **SMALL
        )
        redrawn(model).train()
        model(clips, BOXES).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_classifier_of_whole_clips_is_where_it_starts(tmp_path):
    """Its checkpoint has the same keys; all but the head are taken over."""
    start = redrawn(build_model("hiera_tiny_16x224", num_classes=7, **SMALL))
    torch.save({"model_state": start.state_dict()}, tmp_path / "k400.pth")
    model = build_model("hiera_tiny_16x224_ava", num_classes=5, **SMALL)
    report = load_weights(model, read_checkpoint(tmp_path / "k400.pth"), classes=list("abcde"))
    assert any("head" in note for note in report.notes)
    taken = model.state_dict()
    for key, value in start.state_dict().items():
        if not key.startswith("head."):
            torch.testing.assert_close(taken[key], value)
    assert 0 < model.head.projection.weight.abs().max() < 1e-3  # as a new head begins


def test_an_encoder_that_was_pretrained_is_where_it_starts_too(tmp_path):
    start = redrawn(
        build_model("mae_hiera_tiny_16x224", decoder_embed_dim=8, decoder_depth=1,
                    decoder_num_heads=1, **SMALL)
    )  # fmt: skip
    torch.save({"model_state": start.state_dict()}, tmp_path / "mae.pth")
    model = build_model("hiera_tiny_16x224_ava", num_classes=5, **SMALL)
    load_weights(model, read_checkpoint(tmp_path / "mae.pth"), classes=list("abcde"))
    torch.testing.assert_close(
        model.state_dict()["blocks.0.attn.qkv.weight"],
        start.state_dict()["blocks.0.attn.qkv.weight"],
    )


def test_layers_are_numbered_as_in_the_classifier():
    model = build_model("hiera_tiny_16x224_ava", num_classes=5, **SMALL)
    classifier = build_model("hiera_tiny_16x224", num_classes=5, **SMALL)
    assert model.num_layers == classifier.num_layers
    ids = {name: model.layer_id(f"encoder.{name}") for name, _ in model.encoder.named_parameters()}
    assert ids == {name: classifier.layer_id(name) for name in ids}
    assert model.layer_id("head.projection.weight") == model.layer_id("norm.weight") == 5
    assert model.no_weight_decay() == {f"encoder.{n}" for n in classifier.no_weight_decay()}


@pytest.mark.parametrize("encoder", ["ladder_r0_base_16x224", "hiera_tiny_224"])
def test_any_encoder_with_stages_serves(encoder):
    images = encoder.endswith("_tiny_224")
    size = (64, 96) if images else SMALL["input_size"]
    model = build_model(
        "roi_classifier", encoder=encoder, num_classes=5, **{**SMALL, "input_size": size}
    )
    redrawn(model)
    assert takes_boxes(model)
    clips = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = model(clips, BOXES)
    assert logits.shape == (5, 5)
    assert torch.isfinite(logits).all()
    assert logits.std() > 0


def test_an_encoder_without_stages_is_refused():
    with pytest.raises(UserError, match="needs the stages of a Hiera"):
        build_model("roi_classifier", encoder="slow_r50")


def test_batch_norms_keep_their_statistics():
    model = build_model("hiera_tiny_16x224_ava", num_classes=5, **SMALL)
    model.encoder.blocks.append(nn.BatchNorm1d(3))
    model.train()
    assert model.training
    assert model.encoder.blocks[0].training
    assert not model.encoder.blocks[-1].training
