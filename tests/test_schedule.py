"""The length of a run and its learning rates, from settings and the size of the data."""

import dataclasses

import pytest
from conftest import REPOSITORY

from hiera_video.config import SolverConfig, load_config
from hiera_video.engine import optim
from hiera_video.engine.schedule import build_schedule

pytestmark = pytest.mark.numbers


def plan(videos, batch, solver, clips=1):
    batch = min(batch, videos)
    return build_schedule(
        solver,
        videos=videos,
        videos_per_step=batch,
        clips_per_video=clips,
        steps_per_epoch=videos // batch,
    )


def rates(plan, steps=None):
    return [optim.lr_at(step, plan.lr) for step in range(steps or plan.total_steps)]


def test_where_an_epoch_is_one_step_no_epoch_is_lost_at_next_to_nothing():
    """Eight videos and twelve epochs: 12 steps, the first of which warms up."""
    solver = SolverConfig(base_lr=5e-4, warmup_epochs=1, max_epoch=12)
    first, second, *_ = rates(plan(8, 16, solver))
    assert first == pytest.approx(solver.base_lr / 2, rel=1e-3)
    assert second == solver.base_lr
    longer = dataclasses.replace(solver, warmup_epochs=3)
    assert rates(plan(8, 16, longer), 4) == pytest.approx(
        [solver.base_lr * part for part in (0.25, 0.5, 0.75, 1)], rel=1e-3
    )
    alone = dataclasses.replace(solver, warmup_epochs=1, max_epoch=1)
    assert rates(plan(8, 16, alone)) == pytest.approx([solver.base_lr / 2], rel=1e-3)
    spanning = dataclasses.replace(solver, warmup_epochs=2, cosine_after_warmup=False)
    early = rates(plan(8, 16, spanning), 3)
    assert early[:2] == pytest.approx([early[2] / 3, early[2] * 2 / 3], rel=1e-3)
    halved = load_config(REPOSITORY / "configs/finetune_folder.yaml").solver  # for 16 videos a step
    assert max(rates(plan(8, 16, halved))) == pytest.approx(halved.base_lr / 2)


@pytest.mark.parametrize(
    ("recipe", "videos", "batch"),
    [
        ("K400/hiera_b_16x4", 240_000, 256),
        ("K400/mae_hiera_b_16x4", 240_000, 512),
        ("SSv2/hiera_l_16", 168_913, 256),
        ("baselines/x3d_m", 240_000, 1024),
        ("ladder/r3_small", 240_000, 64),
        ("small/finetune_folder", 32, 16),
    ],
)
def test_recipes_at_their_sizes_rise_from_the_start_that_they_name(recipe, videos, batch):
    solver = load_config(REPOSITORY / f"configs/{recipe}.yaml").solver
    made = plan(videos, batch, solver)
    scale = batch / solver.lr_batch if solver.lr_batch else 1
    assert rates(made, 1) == [solver.warmup_start_lr * scale]
    assert made.lr.warmup_steps == solver.warmup_epochs * (videos // batch)
    assert made.notes == [] or recipe == "small/finetune_folder"


def test_a_run_that_is_too_short_is_said_to_be():
    solver = SolverConfig(base_lr=1e-3, max_epoch=12, warmup_epochs=1)
    (note,) = plan(8, 16, solver).notes
    assert "these are 12 in all (1 an epoch)" in note
    assert "SOLVER.MAX_EPOCH 200 makes 200" in note
    (note,) = plan(50, 16, solver).notes
    assert "these are 36 in all (3 an epoch)" in note
    assert "SOLVER.MAX_EPOCH 67 makes 201" in note
    assert plan(640, 16, solver).notes == []
    asked = dataclasses.replace(solver, max_steps=10)
    assert plan(16, 16, asked).notes == []
    (note,) = plan(640, 16, asked).notes  # the warm-up of a whole schedule in a run cut short
    assert "warms up for 10 of 10 steps; a lower SOLVER.WARMUP_EPOCHS" in note
