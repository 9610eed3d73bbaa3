"""What a step computes: losses against PyTorch's, masks that depend on the clip alone."""

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video import build_model
from hiera_video.data.boxes import BatchBoxes
from hiera_video.data.synthetic.body_motion.truth import TRUTH_CHANNELS
from hiera_video.engine import tasks
from hiera_video.errors import UserError

pytestmark = pytest.mark.numbers

TINY = {
    "input_size": (4, 64, 64),
    "embed_dim": 8,
    "num_heads": 1,
    "stages": (1, 1, 1, 1),
}


class FakeBatch(NamedTuple):
    clips: Tensor
    labels: Tensor
    video_ids: Tensor
    views: Tensor
    truth: Tensor
    boxes: BatchBoxes | None = None


def fake_batch(count=3, classes=4, frames=4):
    generator = torch.Generator().manual_seed(3)
    return FakeBatch(
        clips=torch.randn(count, 3, frames, 64, 64, generator=generator),
        labels=torch.arange(count) % classes,
        video_ids=torch.arange(count) + 10,
        views=torch.zeros(count, dtype=torch.int64),
        truth=torch.randn(count, TRUTH_CHANNELS, frames // 2, 16, 16, generator=generator),
    )


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return build_model(
        "mae_hiera_tiny_16x224",
        mask_ratio=0.5,
        decoder_embed_dim=16,
        decoder_depth=1,
        decoder_num_heads=2,
        **TINY,
    )


def test_cross_entropy_with_whole_and_shared_labels():
    logits = torch.randn(5, 4)
    labels = torch.tensor([0, 1, 2, 3, 0])
    expected = F.cross_entropy(logits, labels, reduction="none")
    assert torch.allclose(tasks.class_losses(logits, labels), expected, atol=1e-6)
    mixed = torch.rand(5, 4).softmax(dim=1)
    expected = F.cross_entropy(logits, mixed, reduction="none")
    assert torch.allclose(tasks.class_losses(logits, mixed), expected, atol=1e-6)


def test_bce_is_the_mean_over_classes():
    logits, targets = torch.randn(2, 3), torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    p = logits.sigmoid()
    by_hand = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean(dim=1)
    assert torch.allclose(tasks.class_losses(logits, targets, kind="bce_logit"), by_hand, atol=1e-6)
    whole = tasks.class_losses(logits, torch.tensor([0, 2]), kind="bce_logit")
    onehot = tasks.class_losses(logits, torch.eye(3)[[0, 2]], kind="bce_logit")
    assert torch.equal(whole, onehot)


def test_class_weights_scale_each_clip_whatever_its_company():
    logits, labels = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    weights = torch.tensor([3.0, 0.5])
    alone = torch.cat(
        [
            tasks.class_losses(logits[i : i + 1], labels[i : i + 1], weights=weights)
            for i in range(4)
        ]
    )
    together = tasks.class_losses(logits, labels, weights=weights)
    assert torch.allclose(alone, together)
    plain = F.cross_entropy(logits, labels, reduction="none")
    assert torch.allclose(together, plain * weights[labels], atol=1e-6)


def test_balanced_weights():
    weights = tasks.balanced_weights(torch.tensor([8, 2, 0]))
    assert weights.tolist() == pytest.approx([10 / 16, 10 / 4, 0])
    assert (weights * torch.tensor([8, 2, 0])).sum() / 10 == pytest.approx(1)


def test_classify_returns_a_loss_with_a_graph_and_counts():
    model = build_model("hiera_tiny_16x224", num_classes=4, **TINY)
    batch = fake_batch()
    out = tasks.get("classify").step(model, batch, epoch=0, settings=tasks.StepSettings())
    out["loss"].backward()
    assert out["loss"].item() == pytest.approx(np.log(4), abs=0.01)  # the head starts near zero
    assert model.head.projection.weight.grad.abs().sum() > 0
    assert 0 <= out["top1"] <= 3
    assert out["top5"] == 3


def test_an_image_model_is_given_images():
    model = build_model("hiera_tiny_224", num_classes=4, **{**TINY, "input_size": (64, 64)})
    batch = fake_batch(frames=1)
    out = tasks.get("classify").step(model, batch, epoch=0, settings=tasks.StepSettings())
    assert torch.isfinite(out["loss"])


def test_masks_depend_on_the_clip_and_not_on_its_batch(autoencoder):
    ids, views = torch.tensor([7, 8, 7]), torch.tensor([0, 0, 1])
    together = tasks.keep_masks(autoencoder, ids, views, epoch=2, seed=5)
    alone = [
        tasks.keep_masks(autoencoder, ids[i : i + 1], views[i : i + 1], epoch=2, seed=5)
        for i in range(3)
    ]
    assert torch.equal(together, torch.cat(alone))
    assert (together.sum(dim=1) == 4).all()  # half of 2 x 2 x 2 units
    many = torch.arange(200)
    zeros = torch.zeros_like(many)
    first = tasks.keep_masks(autoencoder, many, zeros, epoch=2, seed=5)
    assert len(first.unique(dim=0)) > 50  # of 70 possible
    for changed in ({"epoch": 3, "seed": 5}, {"epoch": 2, "seed": 6}):
        other = tasks.keep_masks(autoencoder, many, zeros, **changed)
        assert (other != first).any(dim=1).float().mean() > 0.9
    other = tasks.keep_masks(autoencoder, many, zeros + 1, epoch=2, seed=5)
    assert (other != first).any(dim=1).float().mean() > 0.9
    assert (first.float().mean(dim=0) - 0.5).abs().max() < 0.15


def test_pretrain_uses_those_masks(autoencoder):
    batch, settings = fake_batch(), tasks.StepSettings(seed=5)
    with torch.no_grad():
        out = tasks.get("pretrain").step(autoencoder, batch, epoch=2, settings=settings)
        keep = tasks.keep_masks(autoencoder, batch.video_ids, batch.views, epoch=2, seed=5)
        assert out["loss"] == autoencoder(batch.clips, keep).loss
        other = tasks.get("pretrain").step(autoencoder, batch, epoch=3, settings=settings)
    assert other["loss"] != out["loss"]


def test_pretraining_a_classifier_says_what_is_needed():
    with pytest.raises(UserError, match="mae_hiera"):
        tasks.get("pretrain").step(
            nn.Linear(1, 1), fake_batch(), epoch=0, settings=tasks.StepSettings()
        )
    with pytest.raises(UserError, match=r"'segment'.*classify, .*motion, pretrain"):
        tasks.get("segment")


def test_the_picture_shows_input_hole_and_painting(autoencoder):
    clips = fake_batch(2).clips
    keep = tasks.keep_masks(
        autoencoder, torch.tensor([1, 2]), torch.zeros(2).long(), epoch=0, seed=0
    )
    panels = tasks.reconstructed(autoencoder, clips, keep, mean=[0.45] * 3, std=[0.225] * 3)
    picture = panels.as_picture()
    assert picture.shape == (3, 2 * 3 * 64, 2 * 64)  # two clips, three rows, two frames
    shown, seen, painted = picture[:, : 3 * 64].unflatten(1, (3, 64)).unbind(1)
    assert torch.allclose(shown[:, :, :64], (clips[0, :, 0] * 0.225 + 0.45).clamp(0, 1), atol=1e-6)
    grey = (seen == torch.tensor(0.45)).all(dim=0)
    assert grey.float().mean() == pytest.approx(0.5, abs=0.01)
    assert torch.allclose(painted[:, ~grey], shown[:, ~grey], atol=1e-5)
    assert not torch.allclose(painted[:, grey], shown[:, grey], atol=1e-2)


def test_unwrap_finds_the_model():
    inner = nn.Linear(1, 1)
    wrapper = nn.Module()
    wrapper.module = inner
    assert tasks.unwrap(wrapper) is inner
    assert tasks.unwrap(inner) is inner


# ---- random streams -----------------------------------------------------------------------------


def test_streams_of_different_places_never_meet():
    """SeedSequence fills up with zeros: (step 5) was the same stream as (step 5, share 0)."""
    for wrong in (("step", 5), ("step", 5, 0, 0), ("weights", 0), ("mask", 1, 2), ("colour",)):
        with pytest.raises(ValueError, match="not one of STREAMS"):
            tasks.stream_seed(3, *wrong)
    for far in (-1, 1 << 32):
        with pytest.raises(ValueError, match="not one of STREAMS"):
            tasks.stream_seed(3, "step", far, 0)
    seeds = {
        (purpose, *numbers): tasks.stream_seed(3, purpose, *numbers)
        for purpose, names in tasks.STREAMS.items()
        for numbers in itertools.product(range(4), repeat=len(names))
    }
    assert len(set(seeds.values())) == len(seeds)
    assert len({purpose[:4] for purpose in tasks.STREAMS}) == len(tasks.STREAMS)


def test_a_resumed_run_draws_from_the_streams_it_began_with():
    """Another number here changes the masks and the dropout of earlier runs."""
    assert tasks.stream_seed(3, "weights") == 4491347706911835998
    assert tasks.stream_seed(3, "step", 7, 0) == 5108708550284988180
    assert tasks.stream_seed(3, "mask", 7, 0, 0) == 3231303042424049043
    assert tasks.stream_seed(2**40, "step", 7, 0) == 8716471754078778390
