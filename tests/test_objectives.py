"""Objectives: the contract of all that are registered, and one from outside of the package."""

import math
import sys

import pytest
import torch
from test_tasks import TINY, fake_batch
from tiny_runs import (
    config,
    empty,
    final,
    interrupted,
    losses,
    run,
    run_child,
    same,
    settings,
    write_videos,
)

from hiera_video import build_model
from hiera_video.clip_spec import ClipSpec
from hiera_video.data.boxes import BatchBoxes
from hiera_video.engine import step, tasks
from hiera_video.engine.records import read_metrics
from hiera_video.errors import UserError
from hiera_video.registry import MODEL_REGISTRY, OBJECTIVE_REGISTRY, import_user_module

pytestmark = pytest.mark.usefixtures("no_curves")


# ---- the contract -------------------------------------------------------------------------------

MODELS = {
    "classify": ("hiera_tiny_16x224", {"num_classes": 4}),
    "pretrain": (
        "mae_hiera_tiny_16x224",
        {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2},
    ),
    "motion": ("motion_hiera_tiny_16x224", {"grid": 16}),
    "detect": ("hiera_tiny_16x224_ava", {"num_classes": 4}),
}
"""Objective -> name and arguments of a tiny model that it can train; each objective has one."""


@pytest.fixture(params=OBJECTIVE_REGISTRY.names())
def name(request):
    return request.param


@pytest.fixture
def model(name):
    torch.manual_seed(0)
    registered, arguments = MODELS[name]
    return build_model(registered, **arguments, **TINY)


def boxed_batch(clips=3):
    """A batch of clips with two boxes each."""
    low = torch.rand(2 * clips, 2, generator=torch.Generator().manual_seed(4)) / 2
    boxes = BatchBoxes(
        torch.arange(clips).repeat_interleave(2),
        torch.cat([low, low + 0.5], dim=1),
        torch.eye(4).repeat(clips, 1)[: 2 * clips],
        torch.arange(2 * clips),
    )
    return fake_batch(clips)._replace(boxes=boxes)


def one_clip(batch, i):
    own = batch.boxes.clips == i
    boxes = BatchBoxes(*(field[own] for field in batch.boxes))
    return batch._replace(
        **{
            field: tensor[i : i + 1]
            for field, tensor in batch._asdict().items()
            if isinstance(tensor, torch.Tensor)
        },
        boxes=boxes._replace(clips=torch.zeros_like(boxes.clips)),
    )


def test_an_objective_has_what_a_run_asks_for(name):
    objective = tasks.get(name)
    assert isinstance(objective, tasks.Objective)
    assert isinstance(objective.labelled, bool)
    assert objective.labelled or not objective.validated
    assert all(metric.isidentifier() for metric in objective.metrics)
    assert not {"loss", "clips", "failed"} & set(objective.metrics)
    assert isinstance(objective.hint("no such thing"), str)
    assert vars(objective) == {}  # no state: a resumed run makes a new one
    sums = dict.fromkeys(objective.metrics, 3.0)
    for multi_label in (False, True):
        logged = objective.logged(sums, clips=4, multi_label=multi_label)
        assert all(math.isfinite(value) for value in logged.values())


def test_a_step_gives_a_loss_with_a_gradient_and_its_metrics(name, model):
    objective, batch = tasks.get(name), boxed_batch()
    out = objective.step(model, batch, epoch=1, settings=tasks.StepSettings(seed=2))
    assert out.keys() == {"loss", *objective.metrics}
    assert out["loss"].shape == ()
    assert math.isfinite(out["loss"].item())
    out["loss"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    for metric in objective.metrics:
        assert out[metric].shape == ()
        assert not out[metric].requires_grad
    sums = step.tally(out, objective, clips=3, failed=1, device=torch.device("cpu")).tolist()
    named = dict(zip(step.sum_names(objective), sums, strict=True))
    assert named["loss"] == pytest.approx(3 * out["loss"].item())
    assert (named["clips"], named["failed"]) == (3, 1)
    assert all(named[metric] == out[metric].item() for metric in objective.metrics)


def test_a_step_depends_on_seed_epoch_and_clip_alone(name, model):
    """Not on the batch, on what was drawn before, nor on the instance."""
    model.eval()  # no dropout, which depends on the step
    batch, given = boxed_batch(), {"epoch": 1, "settings": tasks.StepSettings(seed=2)}
    with torch.no_grad():
        together = tasks.get(name).step(model, batch, **given)
        torch.rand(7)
        assert same(tasks.get(name).step(model, batch, **given), together)
        alone = [tasks.get(name).step(model, one_clip(batch, i), **given) for i in range(3)]
    mean = torch.stack([out["loss"] for out in alone]).mean()
    assert together["loss"].item() == pytest.approx(mean.item(), rel=1e-5)
    for metric in tasks.get(name).metrics:
        total = sum(out[metric] for out in alone).item()
        assert together[metric].item() == pytest.approx(total, rel=1e-5)


def test_an_objective_with_a_picture_draws_it(name, model):
    objective = tasks.get(name)
    if not objective.picture_name:
        with pytest.raises(NotImplementedError):
            tasks.Objective.picture(objective, model, None, spec=None, seed=0)
        return
    batch, spec = fake_batch(2), ClipSpec(num_frames=4, crop_size=64)
    picture = objective.picture(model.eval(), batch, spec=spec, seed=3)
    assert picture.shape[0] == 3
    assert picture.min() >= 0
    assert picture.max() <= 1


def test_a_name_that_is_not_registered_is_refused_with_its_neighbours(videos, tmp_path):
    with pytest.raises(UserError, match=r"TASK: .*'clasify'; did you mean classify\?"):
        run(config(videos, tmp_path, "TASK", "clasify"))
    with pytest.raises(
        UserError, match=r"'segment'; choose one of classify, .*motion, pretrain.*--import"
    ):
        run(config(videos, tmp_path, "TASK", "segment"))


def test_a_class_that_lacks_a_part_of_the_contract_is_refused(monkeypatch):
    monkeypatch.setattr(OBJECTIVE_REGISTRY, "_obj_map", dict(OBJECTIVE_REGISTRY._obj_map))

    @OBJECTIVE_REGISTRY.register(name="half")
    class Half:
        labelled = True

    with pytest.raises(UserError, match=r"'half' lacks a part of .*Objective"):
        tasks.get("half")


# ---- one from outside ---------------------------------------------------------------------------

TOY = '''
"""A model and an objective in one file: how bright is a clip, with some noise?"""

import torch
from torch import nn

from hiera_video.engine.tasks import Objective, stream_seed
from hiera_video.registry import MODEL_REGISTRY, OBJECTIVE_REGISTRY


@MODEL_REGISTRY.register(name="light_meter")
class LightMeter(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(3, 1)

    def forward(self, clips):
        return self.scale(clips.mean(dim=(2, 3, 4))).squeeze(1)


def noise(seed, epoch, video, view):
    generator = torch.Generator().manual_seed(stream_seed(seed, "mask", epoch, video, view))
    return torch.rand(1, generator=generator)


@OBJECTIVE_REGISTRY.register(name="brightness")
class Brightness(Objective):
    metrics = ("close",)
    picture_name = "brightness"

    def step(self, model, batch, *, epoch, settings):
        places = zip(batch.video_ids.tolist(), batch.views.tolist(), strict=True)
        drawn = torch.cat([noise(settings.seed, epoch, *place) for place in places])
        wanted = batch.clips.mean(dim=(1, 2, 3, 4)) + drawn.to(batch.clips.device)
        errors = (model(batch.clips) - wanted).abs()
        return {"loss": errors.mean(), "close": (errors.detach() < 0.5).sum()}

    def picture(self, model, batch, *, spec, seed):
        return torch.full((3, 8, 8), 0.5)
'''

TOY_SETTINGS = {
    "TASK": "brightness",
    "MODEL.MODEL_NAME": "light_meter",
    "MODEL.KWARGS": "{}",
    "MODEL.DROPOUT_RATE": "None",
    "HIERA.DROPPATH_RATE": "None",
    "TRAIN.PICTURE_PERIOD": 1,
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Eight training videos: two steps an epoch."""
    return write_videos(tmp_path_factory.mktemp("videos"), train=8, val=3)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The current folder, with a module that registers an objective and its model: toy.py."""
    for registry in (OBJECTIVE_REGISTRY, MODEL_REGISTRY):
        monkeypatch.setattr(registry, "_obj_map", dict(registry._obj_map))
    monkeypatch.delitem(sys.modules, "toy", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.py").write_text(TOY)
    return tmp_path


def test_an_objective_of_ones_own_trains_stops_and_resumes(videos, toy):
    import_user_module("toy")
    straight, broken = toy / "straight", toy / "broken"
    assert run(config(videos, straight, task=TOY_SETTINGS)) == 0
    cfg = config(videos, broken, task=TOY_SETTINGS)
    assert interrupted(cfg, after=1) == 130
    names = step.sum_names(tasks.get("brightness"))
    assert names == (*step.SUMS, "close")
    assert len(final(broken)["epoch_sums"]) == len(names)
    assert run(cfg) == 0
    for key in ("model_state", "optimizer_state", "epoch_sums", "step"):
        assert same(final(straight)[key], final(broken)[key]), key
    assert losses(straight) == losses(broken)
    assert sorted(losses(straight)) == [1, 2, 3, 4]
    records = read_metrics(straight)
    assert {r["_type"] for r in records} == {"train_iter_", "train_epoch"}  # no validation
    assert all(0 <= r["close"] <= 1 for r in records)
    assert records[-1]["close"] == sum(r["close"] for r in records[-3:-1]) / 2
    assert len(list((straight / "pictures").glob("brightness_*.png"))) == 2
    assert final(straight)["classes"] == []


def test_a_checkpoint_of_other_metrics_is_no_state_of_this_run(videos, toy, monkeypatch):
    import_user_module("toy")
    cfg = config(videos, toy / "out", task=TOY_SETTINGS)
    assert interrupted(cfg, after=1) == 130
    monkeypatch.setattr(OBJECTIVE_REGISTRY.get("brightness"), "metrics", ())
    with pytest.raises(UserError, match="sums of other metrics"):
        run(cfg)


def test_an_objective_of_ones_own_on_the_command_line(videos, toy):
    words = settings(videos, toy / "out", task=TOY_SETTINGS)
    done = run_child("--cfg", empty(toy), "--import", "toy", *words)
    assert done.returncode == 0, done.stderr
    assert "brightness light_meter: 0.00 M parameters" in done.stdout
    assert "trained: step 4 of 4" in done.stdout
    assert ", close " in done.stdout
    wrong = run_child("--cfg", empty(toy), "--import", "toy", *words, "TASK", "brightnes")
    assert wrong.returncode == 2
    assert "did you mean brightness?" in wrong.stderr
    assert "Traceback" not in wrong.stderr
