"""What a training run prints and records: its description, steps, epochs, validations, pictures."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.batch import Batch, Clips, Collate
from hiera_video.data.datasets import VideoDataset, read_sample
from hiera_video.data.synthetic import mp4
from hiera_video.engine import collapse, meters, preflight, sharding, tasks
from hiera_video.engine.distributed import World
from hiera_video.engine.meters import StepTimer
from hiera_video.engine.pictures import Panels
from hiera_video.engine.run_logger import RunLogger
from hiera_video.engine.schedule import Schedule
from hiera_video.engine.step import sum_names
from hiera_video.files import explained, put_in_place, unfinished_name, write_text


def describe_run(name: str, model: nn.Module, world: World, precision: str) -> str:
    """Return a line on the model and where it is trained.

    name: objective and model. precision: TRAIN.MIXED_PRECISION.
    """
    count = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    part = f", {trained / 1e6:.2f} M of them trained" if trained != count else ""
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU"
    where = f"{world.size} process{'es' * (world.size > 1)} on {device}"
    if sharding.is_sharded(model):
        where += ", a part of the model on each"
    return f"{name}: {count / 1e6:.2f} M parameters{part}; {where}, mixed precision {precision}"


@dataclass(frozen=True)
class StepResult:
    """What one step gave."""

    sums: Sequence[float]
    """Over all processes, see `step.sum_names`."""
    lr: float
    grad_norm: float
    """Before clipping."""


@dataclass
class TrainingLog:
    """Prints and records the progress of a training run."""

    logger: RunLogger
    objective: tasks.Objective
    plan: Schedule
    device: torch.device
    period: int
    """LOG_PERIOD."""
    multi_label: bool
    clock: StepTimer

    def log_step(self, step: int, result: StepResult) -> None:
        """Show the progress of step `step` (from 1); record the first, every `period`-th and the
        last of an epoch."""
        plan, clock = self.plan, self.clock
        epoch, at = divmod(step - 1, plan.steps_per_epoch)
        sums = self._named(result.sums)
        loss = sums["loss"] / max(sums["clips"], 1)
        peak = meters.peak_memory(self.device)
        left = meters.format_duration(clock.seconds * (plan.total_steps - step))
        waiting = clock.data_seconds / max(clock.seconds, 1e-9)
        last = at + 1 == plan.steps_per_epoch or step == plan.total_steps
        due = step == 1 or step % self.period == 0 or last
        self.logger.progress(
            f"epoch {epoch + 1}/{plan.epochs}  step {at + 1}/{plan.steps_per_epoch}  "
            f"loss {loss:.4f}  lr {result.lr:.2e}  {clock.clips_per_second:.1f} clips/s  "
            f"data {waiting:.0%}  mem {meters.format_gib(peak)}  {left} left",
            due=due,
        )
        if not due:
            return
        metrics = self._metrics(sums)
        self.logger.log_stats(
            "train_iter_",
            epoch=f"{epoch + 1}/{plan.epochs}",
            iter=f"{at + 1}/{plan.steps_per_epoch}",
            step=step,
            loss=loss,
            lr=result.lr,
            grad_norm=result.grad_norm,
            clips=int(sums["clips"]),
            failed=int(sums["failed"]),
            dt=clock.seconds,
            dt_data=clock.data_seconds,
            dt_net=clock.seconds - clock.data_seconds,
            clips_per_s=clock.clips_per_second,
            eta=left,
            **{"gpu_mem" if self.device.type == "cuda" else "RAM": meters.format_gib(peak)},
            **metrics,
        )
        curves = {"loss": loss, "lr": result.lr, **metrics}
        self.logger.add_scalars(step, **{f"Train__{name}": value for name, value in curves.items()})
        self.logger.show(
            f"training: epoch {epoch + 1} of {plan.epochs}, step {at + 1} of "
            f"{plan.steps_per_epoch}, {left} left",
            now=False,
        )

    def log_epoch(self, step: int, epoch_sums: Sequence[float], *, lr: float) -> None:
        """Print and record the means over the clips of the epoch that ended with step `step`."""
        sums = self._named(epoch_sums)
        clips, failed = int(sums["clips"]), int(sums["failed"])
        epoch = f"{-(-step // self.plan.steps_per_epoch)}/{self.plan.epochs}"
        values = {"loss": sums["loss"] / max(sums["clips"], 1), **self._metrics(sums)}
        self.logger.log_stats(
            "train_epoch", epoch=epoch, step=step, lr=lr, clips=clips, failed=failed, **values
        )
        text = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        bad = f"; {failed} {self.plan.unit} could not be read" if failed else ""
        self.logger.info(f"epoch {epoch}: {text} over {clips} clips{bad}")

    def log_spread(self, step: int, spread: float) -> None:
        """Record how much the features of clips differ (see `collapse`), and warn where they do
        not."""
        epoch = f"{-(-step // self.plan.steps_per_epoch)}/{self.plan.epochs}"
        self.logger.log_stats("features", epoch=epoch, step=step, feature_spread=spread)
        self.logger.add_scalars(step, Train__feature_spread=spread)
        if warning := collapse.warning_of(spread):
            self.logger.info(warning)

    def log_validation(self, step: int, metrics: dict[str, float], best: dict[str, Any]) -> None:
        """Print accuracies and record errors, as SlowFast does in training and validation."""
        errors = {
            name.replace("_acc", "_err"): 100 - value
            for name, value in metrics.items()
            if name.endswith("_acc")
        }
        if "top1_acc" in metrics:
            errors["min_top1_err"] = 100 - best["value"]
        rest = {name: value for name, value in metrics.items() if not name.endswith("_acc")}
        epoch = f"{-(-step // self.plan.steps_per_epoch)}/{self.plan.epochs}"
        self.logger.log_stats("val_epoch", epoch=epoch, step=step, **errors, **rest)
        self.logger.add_scalars(step, **{f"Val__{k}": v for k, v in {**errors, **rest}.items()})
        shown = {"top1_acc": "top-1", "top5_acc": "top-5", "map": "mAP"}
        text = ", ".join(f"{word} {metrics[k]:.2f} %" for k, word in shown.items() if k in metrics)
        videos, failed, unit = metrics["n_videos"], metrics["n_failed"], self.plan.unit
        bad = f", {failed} of {videos} {unit} unreadable" if failed else ""
        self.logger.info(
            f"validation {epoch}: {text} on {videos - failed} {unit}{bad}; "
            f"best {best['value']:.2f} % in epoch {best['epoch']}"
        )

    def _named(self, sums: Sequence[float]) -> dict[str, float]:
        return dict(zip(sum_names(self.objective), sums, strict=True))

    def _metrics(self, sums: dict[str, float]) -> dict[str, float]:
        own = {name: sums[name] for name in self.objective.metrics}
        return self.objective.logged(own, clips=sums["clips"], multi_label=self.multi_label)


def draw_picture(
    logger: RunLogger,
    objective: tasks.Objective,
    model: nn.Module,
    dataset: VideoDataset,
    batch: Batch,
    *,
    step: int,
) -> None:
    """Write the objective's picture of the clips, and a video where it has one; of a
    sharded model every process draws, and rank 0 writes. Leaves the model in eval mode."""
    batch = batch.to(next(model.parameters()).device).normalized(dataset.spec)
    model.eval()
    how: dict[str, Any] = {"spec": dataset.spec, "seed": dataset.seed}
    with torch.no_grad():
        panels = objective.panels(model, batch, **how)
        picture = objective.picture(model, batch, **how) if panels is None else panels.as_picture()
    sharding.reshard(model)
    path = logger.add_image(objective.picture_name, picture, step)
    if panels is not None and path is not None:
        write_text(
            path.with_name(f"{objective.picture_name}.json"), json.dumps({"rows": panels.names})
        )
        if panels.pixels.shape[3] > 1:
            _write_video(path.with_suffix(".mp4"), panels, dataset.spec)


def first_clips(dataset: VideoDataset, count: int, *, guarded: bool) -> Batch | None:
    """Read a clip of each of the first `count` training videos that can be read; None where there
    is none. Videos that cannot be read are passed over, up to three for each that can.

    guarded: read them in a process of their own, as the workers of a loader do.
    """
    chosen: list[Clips] = []
    videos = range(min(4 * count, len(dataset)))
    with contextlib.closing(
        preflight.map_videos(read_sample, dataset, videos, guarded=guarded)
    ) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, Clips):
                chosen.append(outcome)
                if len(chosen) == count:
                    break
    if not chosen:
        return None
    multi_label = dataset.manifest.multi_label
    collate = Collate(dataset.spec, dataset.manifest.num_classes if multi_label else 0)
    return collate([item._replace(clips=item.clips[:1]) for item in chosen])


def _write_video(path: Path, panels: Panels, spec: ClipSpec) -> None:
    """Write panels as a video, at the speed of their clips."""
    seconds = spec.num_frames * spec.sampling_rate / spec.target_fps
    fps = max(1, round(panels.pixels.shape[3] / seconds))
    unfinished = Path(unfinished_name(path))
    try:
        with explained(path):
            mp4.encode(unfinished, panels.as_video(), fps=fps, crf=18)
        put_in_place(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
