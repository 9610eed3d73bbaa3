"""One optimizer step: forward and backward in parts, the update, and what can go wrong in it.

Everything is queued on the device; nothing here waits for it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hiera_video.config import SolverConfig
from hiera_video.data.batch import Batch
from hiera_video.data.datasets import VideoDataset
from hiera_video.data.transforms.flips import LabelAwareFlips
from hiera_video.data.transforms.mixup import MixUpCutMix
from hiera_video.engine import memory, optim, sharding, tasks
from hiera_video.engine.compiling import (
    CompileSettings,
    compile_fault,
    compile_model,
    fallback_note,
)
from hiera_video.engine.distributed import World
from hiera_video.engine.meters import StepTimer
from hiera_video.engine.prefetch import DevicePrefetcher
from hiera_video.engine.schedule import Schedule
from hiera_video.errors import RunFailed, kind_and_line
from hiera_video.scoring import tf32_products

SUMS = ("loss", "clips", "top1", "top5", "failed")
"""Sums over the clips of a step or of an epoch that every run keeps; `failed` counts videos."""


def sum_names(objective: tasks.Objective) -> tuple[str, ...]:
    """Return the names of all sums of a run: `SUMS`, then the objective's other metrics."""
    return SUMS + tuple(name for name in objective.metrics if name not in SUMS)


# ---- forward and backward -----------------------------------------------------------------------


@dataclass(frozen=True)
class StepRecipe:
    """How a step is computed, whatever its model and data."""

    objective: tasks.Objective
    settings: tasks.StepSettings
    grad_accum: int = 1
    """Parts in which this process computes its share of a step, one after the other."""
    symmetries: LabelAwareFlips | None = None
    mixing: MixUpCutMix | None = None
    compiled: CompileSettings | None = None
    """How the model is compiled; None: it runs as it is."""


class Forward:
    """Forward and backward passes of a step; shared by training and the dry run."""

    def __init__(
        self,
        recipe: StepRecipe,
        model: nn.Module,
        world: World,
        *,
        dataset: VideoDataset,
        plan: Schedule,
        note: Callable[[str], None],
    ) -> None:
        """note: called with the line that says why the model is not compiled after all."""
        self.recipe, self.world, self.note = recipe, world, note
        self.dataset, self.plan = dataset, plan
        self.parallel = sharding.parallel(model, world)
        self.compiled: nn.Module | None = None
        if recipe.compiled is not None:
            try:
                self.compiled = compile_model(self.parallel, recipe.compiled)
            except RuntimeError as error:  # not on this system
                note(fallback_note(kind_and_line(error)))
        self.clips = plan.clips_per_step // (recipe.grad_accum * world.size)
        """Clips of a part on this process."""

    @property
    def graphs(self) -> bool:
        """Whether gradients are in the memory of a CUDA graph."""
        recorded = self.recipe.compiled is not None and self.recipe.compiled.mode != "default"
        return recorded and self.compiled is not None and self.world.device.type == "cuda"

    def backward(
        self, batches: DevicePrefetcher, step: int, scaler: torch.amp.GradScaler, clock: StepTimer
    ) -> Tensor:
        """Compute the gradients of step `step` and leave them in the parameters.

        Returns the sums of this process (`sum_names`), float64 on its device. On a GPU everything
        is queued without waiting, and the next batch is already being copied.

        Each clip has weight 1 / clips_per_step on whichever process and in whichever part it is
        computed, so the gradient depends on neither number.
        """
        parts = self.recipe.grad_accum
        names = sum_names(self.recipe.objective)
        totals = torch.zeros(len(names), dtype=torch.float64, device=self.world.device)
        for part in range(parts):
            with clock.waiting():
                batch = next(batches)
            clock.waited(batches.starved)
            totals += self._backward_part(batch, step=step, part=part, scaler=scaler)
            if self.graphs and part == 0 < parts - 1:
                leave_graph_memory(self.parallel)
            batches.fetch()
        return totals

    def _backward_part(
        self, batch: Batch, *, step: int, part: int, scaler: torch.amp.GradScaler
    ) -> Tensor:
        """Add the gradients of one part to the parameters; returns its sums."""
        recipe, epoch = self.recipe, step // self.plan.steps_per_epoch
        clips, failed = len(batch.video_ids), len(batch.failed)
        if not clips:
            # A process without a readable video still takes part: the others wait for it.
            batch = blank(self.dataset).to(self.world.device)
        share = part * self.world.size + self.world.rank
        seed = recipe.settings.seed
        if recipe.symmetries is not None:
            batch = recipe.symmetries(batch, seed=seed, epoch=epoch)
        if recipe.mixing is not None:
            batch = recipe.mixing(batch, seed=seed, step=step, part=share)
        compute = functools.partial(
            self._compute, batch=batch, clips=clips, step=step, part=part, scaler=scaler
        )
        # Compiled for one batch size: a part with fewer clips runs the plain model.
        out = self._compiled_or_plain(compute) if clips == self.clips else compute(self.parallel)
        return tally(out, recipe.objective, clips=clips, failed=failed, device=self.world.device)

    def _compiled_or_plain(
        self, compute: Callable[[nn.Module], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Call `compute` with the compiled model; with the plain one from when compiling fails.

        It fails before anything is computed, so there are no gradients of the attempt.
        """
        if self.compiled is not None:
            try:
                return compute(self.compiled)
            except Exception as error:
                reason = compile_fault(error)
                if reason is None:
                    raise
                self.compiled = None
                self.note(fallback_note(reason))
        return compute(self.parallel)

    def _compute(
        self,
        model: nn.Module,
        *,
        batch: Batch,
        clips: int,
        step: int,
        part: int,
        scaler: torch.amp.GradScaler,
    ) -> dict[str, Tensor]:
        """Run the model forward and backward; returns what the objective returns.

        clips: that count; 0 for a batch that is given no weight.
        """
        recipe, epoch = self.recipe, step // self.plan.steps_per_epoch
        # Dropout and drop path depend on the step alone, whatever was drawn before it.
        share = part * self.world.size + self.world.rank
        torch.manual_seed(tasks.stream_seed(recipe.settings.seed, "step", step, share))
        with (
            sharding.exchanging(self.parallel, part == recipe.grad_accum - 1),
            out_of_memory_explained(clips),
            tf32_products(self.world.device),
            contextlib.nullcontext() if clips else frozen_statistics(self.parallel),
        ):
            out = recipe.objective.step(model, batch, epoch=epoch, settings=recipe.settings)
            weight = clips * self.world.size / self.plan.clips_per_step
            scaler.scale(out["loss"] * weight).backward()
        return out


def leave_graph_memory(model: nn.Module) -> None:
    """Copy gradients out of the memory of a CUDA graph, which the next replay overwrites."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad = parameter.grad.clone()


def set_mode(model: nn.Module, *, linear_probe: bool) -> None:
    """Set training mode; for a linear probe in the head alone, since its features are fixed."""
    model.train(not linear_probe)
    if linear_probe:
        model.get_submodule("head").train()


def blank(dataset: VideoDataset) -> Batch:
    """Return a batch of one black clip, which is given no weight."""
    spec, manifest = dataset.spec, dataset.manifest
    one = torch.zeros(1, dtype=torch.int64)
    return Batch(
        clips=torch.zeros(1, 3, spec.num_frames, spec.crop_size, spec.crop_size),
        labels=torch.zeros(1, manifest.num_classes) if manifest.multi_label else one,
        video_ids=one,
        views=one,
    )


@contextlib.contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Freeze the running statistics of norms (BatchNorm), which a black clip must not change.
    SyncBatchNorm stays in training mode, because the other processes wait for its numbers."""
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _NormBase)
        and not isinstance(module, nn.SyncBatchNorm)
        and module.training
    ]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def tally(
    out: Mapping[str, Tensor],
    objective: tasks.Objective,
    *,
    clips: int,
    failed: int,
    device: torch.device,
) -> Tensor:
    """Return the sums (`sum_names`) of one forward pass, float64 on the device.

    Numbers get there with `fill_`: a copy from the CPU would wait for all that is queued.
    """
    names = sum_names(objective)
    sums = torch.zeros(len(names), dtype=torch.float64, device=device)
    sums[names.index("clips")].fill_(clips)
    sums[names.index("failed")].fill_(failed)
    if clips:
        sums[names.index("loss")].copy_(out["loss"].detach()).mul_(clips)
        for name in objective.metrics:
            sums[names.index(name)].copy_(out[name])
    return sums


# ---- the update ---------------------------------------------------------------------------------


def update(
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    trained: Sequence[nn.Parameter],
    totals: Tensor,
    plan: Schedule,
    max_norm: float | None,
) -> Tensor:
    """Take one optimizer step with the stored gradients and clear them.

    totals: the sums over all processes. Returns the gradients' norm before clipping, 0-d, on the
    device.
    """
    scaler.unscale_(optimizer)
    # Where videos failed there are fewer clips than planned: the mean is over those that were read.
    clips = totals[SUMS.index("clips")]
    optim.scale_gradients(trained, plan.clips_per_step / clips.clamp(min=1))
    norm = optim.clip_gradients(trained, max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return norm


class Arriving:
    """Numbers on their way from the device: the copy is queued now and waited for in `read`."""

    def __init__(self, numbers: Tensor) -> None:
        self._here = numbers
        self._event: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._here = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._here.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(numbers.device))

    def read(self) -> list[float]:
        """Return the numbers, once the device has computed them; what was queued later goes on."""
        if self._event is not None:
            self._event.synchronize()
        return self._here.tolist()


# ---- what can go wrong --------------------------------------------------------------------------


class NotToBeSaved(RunFailed):
    """What is in memory is not the state after a whole step."""


class NotFinite(NotToBeSaved):
    """A loss, a gradient or a weight is NaN or infinite."""


@contextlib.contextmanager
def out_of_memory_explained(clips: int, failure: type[RunFailed] = RunFailed) -> Iterator[None]:
    """Raise `failure` with the settings that help when the device or the machine has too little
    memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        shortage = memory.shortage(error)
        if shortage is None:
            raise
        raise failure(
            f"{shortage}, with {clips} clips at a time. Raise TRAIN.GRAD_ACCUM (the same result in "
            "more, smaller parts; auto finds out how many) or set MODEL.ACT_CHECKPOINT true: a run "
            "that has begun goes on with these. TRAIN.MIXED_PRECISION bf16 or a lower "
            "TRAIN.BATCH_SIZE make it another run, which needs another OUTPUT_DIR once a "
            "checkpoint was written"
        ) from error


@dataclass(frozen=True)
class Advice:
    """What to change after a NaN or an infinity: the same command would meet it again."""

    solver: SolverConfig
    mixed_precision: str
    folder: Path
    """OUTPUT_DIR of the run that failed."""

    def text(self, last_good: Path | None) -> str:
        """Return the advice, with the words to add to the command in its last line.

        last_good: the newest checkpoint of the run. A folder takes one run, so the words name
        another one.
        """
        last, begin = "no checkpoint was written yet", "starts again from the beginning"
        if last_good is not None:
            last, begin = f"the last good checkpoint is {last_good}", "goes on from there"
        return (
            f"The same command would meet it again; {last}. With these settings at its end it "
            f"{begin}, in smaller steps:\n  {' '.join(self._words(last_good))}"
        )

    def _words(self, last_good: Path | None) -> list[str]:
        words = ["OUTPUT_DIR", shlex.quote(unused_folder(self.folder))]
        if last_good is not None:
            words += ["TRAIN.CHECKPOINT_FILE_PATH", shlex.quote(str(last_good))]
            words += ["TRAIN.CHECKPOINT_EPOCH_RESET", "False"]
        lower = f"{self.solver.base_lr / 4:.3g}"
        words += ["SOLVER.BASE_LR", lower]
        for name in ("warmup_start_lr", "cosine_end_lr"):
            if getattr(self.solver, name) > float(lower):
                words += [f"SOLVER.{name.upper()}", lower]
        if not self.solver.clip_grad_l2norm:
            words += ["SOLVER.CLIP_GRAD_L2NORM", "1.0"]
        if self.mixed_precision == "fp16":
            words += ["TRAIN.MIXED_PRECISION", "bf16"]
        return words


def require_finite(
    loss: float, norm: float, step: int, *, scaled: bool, advice: Callable[[], str]
) -> None:
    """Raise NotFinite, with the advice, for a loss that is NaN or infinite, and for such a gradient
    norm unless gradients are `scaled`: the scaler of fp16 skips those steps by itself."""
    if math.isfinite(loss) and (scaled or math.isfinite(norm)):
        return
    what, value = ("gradient", norm) if math.isfinite(loss) else ("loss", loss)
    raise NotFinite(f"the {what} of step {step} is not finite ({value}). {advice()}")


def unused_folder(folder: Path) -> str:
    """Return `folder`_2, or the next number that is free."""
    numbered = (folder.with_name(f"{folder.name}_{number}") for number in itertools.count(2))
    return str(next(path for path in numbered if not path.exists()))
