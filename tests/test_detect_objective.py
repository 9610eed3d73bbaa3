"""TASK detect: its loss, and what a run with boxes refuses."""

import dataclasses

import pytest
import torch

from hiera_video.commands import audit
from hiera_video.config import Config, ConfigError, load_config
from hiera_video.data.batch import Batch
from hiera_video.data.boxes import BatchBoxes
from hiera_video.engine import tasks
from hiera_video.engine.tasks import StepSettings
from hiera_video.errors import UserError
from hiera_video.models import build_model

SMALL = {"input_size": (2, 32, 32), "embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)}
CLASSES = 4
OWNERS = [0, 0, 0, 2, 3, 3]  # the clip of each box: one clip has none


@pytest.fixture
def model():
    generator = torch.Generator().manual_seed(1)
    built = build_model("hiera_tiny_16x224_ava", num_classes=CLASSES, q_pool=1, **SMALL)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return built.train()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(2)
    low = torch.rand(len(OWNERS), 2, generator=generator) * 0.5
    boxes = BatchBoxes(
        torch.tensor(OWNERS),
        torch.cat([low, low + 0.4], dim=1),
        (torch.rand(len(OWNERS), CLASSES, generator=generator) < 0.5).float(),
        torch.arange(len(OWNERS)),
    )
    boxes.labels[1] = 0  # a box in which nothing that counts is seen
    return Batch(
        clips=torch.randn(4, 3, *SMALL["input_size"], generator=generator),
        labels=torch.zeros(4, CLASSES),
        video_ids=torch.arange(4),
        views=torch.zeros(4, dtype=torch.int64),
        boxes=boxes,
    )


def part(batch, clips):
    """The batch of some of the clips."""
    kept = torch.isin(batch.boxes.clips, torch.tensor(clips))
    boxes = BatchBoxes(*(field[kept] for field in batch.boxes))
    places = torch.tensor([clips.index(clip) for clip in boxes.clips.tolist()], dtype=torch.int64)
    return batch._replace(
        clips=batch.clips[clips],
        labels=batch.labels[clips],
        video_ids=batch.video_ids[clips],
        views=batch.views[clips],
        boxes=boxes._replace(clips=places),
    )


def step(model, batch, **settings):
    settings = StepSettings(**{"loss_func": "bce_logit", "boxes_per_clip": 1.5, **settings})
    return tasks.get("detect").step(model, batch, epoch=0, settings=settings)


def test_the_loss_is_that_of_every_box(model, batch):
    out = step(model, batch)
    with torch.no_grad():
        logits = model(batch.clips, batch.boxes.for_model())
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, batch.boxes.labels, reduction="none"
    ).mean(dim=1)
    torch.testing.assert_close(out["loss"].detach(), losses.sum() / (1.5 * 4))
    # where a clip has as many boxes as it has on average, that is the mean over boxes
    torch.testing.assert_close(out["loss"].detach(), losses.mean())
    assert out["boxes"] == len(OWNERS)
    right = batch.boxes.labels.gather(1, logits.argmax(1, keepdim=True)).sum()
    assert out["top1"] == right


def test_cross_entropy_shares_the_weight_of_a_box_among_its_actions(model, batch):
    out = step(model, batch, loss_func="cross_entropy")
    with torch.no_grad():
        logs = model(batch.clips, batch.boxes.for_model()).log_softmax(dim=1)
    expected = 0.0
    for row, labels in zip(logs, batch.boxes.labels, strict=True):
        seen = labels.nonzero().flatten()
        if len(seen):
            expected -= row[seen].mean()
    torch.testing.assert_close(out["loss"].detach(), expected / (1.5 * 4))


@pytest.mark.numbers
@pytest.mark.parametrize("loss_func", ["bce_logit", "cross_entropy"])
def test_a_step_in_parts_has_the_gradient_of_the_whole(model, batch, loss_func):
    step(model, batch, loss_func=loss_func)["loss"].backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for clips in ([1], [0, 3], [2]):  # the first has no box
        some = part(batch, clips)
        weight = len(clips) / 4
        (step(model, some, loss_func=loss_func)["loss"] * weight).backward()
    for name, parameter in model.named_parameters():
        scale = whole[name].abs().max()
        torch.testing.assert_close(parameter.grad / scale, whole[name] / scale, rtol=0, atol=1e-4)


def test_a_batch_without_boxes_has_no_loss(model, batch):
    for boxes in (None, part(batch, [1]).boxes):
        out = step(model, part(batch, [1])._replace(boxes=boxes))
        assert out["loss"] == out["boxes"] == out["top1"] == 0
        out["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_model_without_boxes_is_refused(batch):
    model = build_model("hiera_tiny_16x224", num_classes=CLASSES, **SMALL)
    with pytest.raises(UserError, match="takes boxes"):
        step(model, batch)


def test_what_is_logged_counts_boxes():
    logged = tasks.get("detect").logged(
        {"boxes": 30.0, "top1": 12.0}, clips=10.0, multi_label=False
    )
    assert logged == {"boxes": 3.0, "top1_err": pytest.approx(60.0)}


# ---- settings -----------------------------------------------------------------------------------


def settings(**sections):
    cfg = load_config("AVA/hiera_b_16x4")
    for name, changes in sections.items():
        section = dataclasses.replace(getattr(cfg, name), **changes)
        cfg = dataclasses.replace(cfg, **{name: section})
    return cfg


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"dataset": "video"}}, "TRAIN.DATASET=video and TASK=detect do not go together"),
        ({"test": {"dataset": "ssv2"}}, "TEST.DATASET=ssv2 and TASK=detect"),
        ({"aug": {"num_sample": 2}}, "AUG.NUM_SAMPLE has no meaning with TASK=detect"),
        ({"test": {"num_ensemble_views": 5}}, "TEST.NUM_ENSEMBLE_VIEWS has no meaning"),
        ({"data": {"multi_label": True}}, "DATA.MULTI_LABEL has no meaning"),
        ({"ava": {"seconds": (9, 8)}}, r"AVA.SECONDS=\[9, 8\]"),
        ({"ava": {"video_start": 903.0}}, "AVA.VIDEO_START=903"),
    ],
)
def test_what_does_not_go_with_boxes_is_refused(sections, message):
    with pytest.raises(ConfigError, match=message):
        settings(**sections)


def test_boxes_need_the_task():
    with pytest.raises(ConfigError, match="TASK=detect needs ava or moving_shapes"):
        Config(train=dataclasses.replace(Config().train, dataset="ava"))


def test_scores_are_sigmoids_unless_the_loss_is_cross_entropy():
    assert settings().sigmoid_scores
    assert not settings(model={"loss_func": "cross_entropy"}).sigmoid_scores


def test_the_audit_says_who_checks_boxes(tmp_path):
    words = ["--cfg", "AVA/hiera_b_16x4", "DATA.PATH_TO_DATA_DIR", str(tmp_path)]
    with pytest.raises(UserError, match="which a run checks itself"):
        audit.main(words)
