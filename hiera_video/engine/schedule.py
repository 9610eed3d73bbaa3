"""The length of a run and its learning rates, from the SOLVER settings and the size of the data."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from hiera_video.config import SolverConfig
from hiera_video.engine.optim import LRSchedule, lr_at

FEW_STEPS = 100
"""A run of fewer optimizer steps gets a note that it is short."""


@dataclass(frozen=True)
class Schedule:
    """How many videos, clips, steps and epochs a run has, and its learning rates."""

    videos: int
    """Training videos."""
    videos_per_step: int
    """TRAIN.BATCH_SIZE: videos of an optimizer step, over processes and accumulation."""
    clips_per_video: int
    """Clips taken from a video in an epoch (repeated sampling)."""
    steps_per_epoch: int
    """Optimizer steps."""
    lr: LRSchedule
    """The learning rate of each step, scaled to the batch."""
    max_steps_set: bool = False
    """Whether SOLVER.MAX_STEPS sets the number of steps."""
    unit: str = "videos"
    """What the videos are called in messages."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.lr.total_steps

    @property
    def clips_per_step(self) -> int:
        """Clips of an optimizer step, over processes and accumulation."""
        return self.videos_per_step * self.clips_per_video

    @property
    def epochs(self) -> int:
        """Epochs that the run starts; the last one may be cut short by SOLVER.MAX_STEPS."""
        return -(-self.total_steps // self.steps_per_epoch)

    @property
    def dropped(self) -> int:
        """Videos that an epoch leaves out because they do not fill a step; others each epoch."""
        return self.videos - self.steps_per_epoch * self.videos_per_step

    @property
    def notes(self) -> list[str]:
        """Notes for the user of a run that is too short for its schedule."""
        notes = []
        if 0 < self.total_steps < FEW_STEPS and not self.max_steps_set:
            epochs = -(-2 * FEW_STEPS // self.steps_per_epoch)
            notes.append(
                "a model learns little from few optimizer steps, and these are "
                f"{self.total_steps} in all ({self.steps_per_epoch} an epoch): "
                f"SOLVER.MAX_EPOCH {epochs} makes {epochs * self.steps_per_epoch} "
                "(another run, with another OUTPUT_DIR); "
                "a lower TRAIN.BATCH_SIZE makes more of each epoch"
            )
        if self.lr.warmup_steps > self.total_steps / 2:
            notes.append(
                f"the learning rate warms up for {self.lr.warmup_steps:g} of {self.total_steps} "
                "steps; a lower SOLVER.WARMUP_EPOCHS leaves more at the full rate"
            )
        return notes

    def __str__(self) -> str:
        dropped = f" ({self.dropped} left over, others each time)" if self.dropped else ""
        return (
            f"{self.videos} {self.unit}, {self.videos_per_step} a step x {self.clips_per_video} "
            f"clip{'s' * (self.clips_per_video > 1)} = {self.clips_per_step} clips a step; "
            f"{self.steps_per_epoch} steps an epoch{dropped}, {self.total_steps} in all; "
            f"peak lr {self.lr.base_lr:.3g} at {self.clips_per_step} clips, "
            f"warm-up {self.lr.warmup_steps:g} steps"
        )


def build_schedule(
    solver: SolverConfig,
    *,
    videos: int,
    videos_per_step: int,
    clips_per_video: int,
    steps_per_epoch: int,
) -> Schedule:
    """Build the `Schedule` of the SOLVER settings for a list of `videos` videos.

    Learning rates are scaled by videos_per_step / SOLVER.LR_BATCH, where that is set.
    """
    scale = videos_per_step / solver.lr_batch if solver.lr_batch else 1.0
    total = solver.max_steps or steps_per_epoch * solver.max_epoch
    lr = LRSchedule(
        base_lr=solver.base_lr * scale,
        total_steps=total,
        warmup_steps=min(solver.warmup_epochs * steps_per_epoch, total),
        warmup_start_lr=solver.warmup_start_lr * scale,
        end_lr=solver.cosine_end_lr * scale,
        cosine_after_warmup=solver.cosine_after_warmup,
    )
    return Schedule(
        videos=videos,
        videos_per_step=videos_per_step,
        clips_per_video=clips_per_video,
        steps_per_epoch=steps_per_epoch,
        lr=_started_later(lr) if steps_per_epoch == 1 else lr,
        max_steps_set=solver.max_steps > 0,
    )


def _started_later(lr: LRSchedule) -> LRSchedule:
    """Move the start of the warm-up one step up its line, for runs whose epochs are one step.

    At SOLVER.WARMUP_START_LR, which is nearly zero, such a run would lose a whole epoch.
    """
    if not lr.warmup_steps:
        return lr
    top = lr_at(math.ceil(lr.warmup_steps), lr)
    rise = (top - lr.warmup_start_lr) / (lr.warmup_steps + 1)
    return dataclasses.replace(lr, warmup_start_lr=lr.warmup_start_lr + rise)
