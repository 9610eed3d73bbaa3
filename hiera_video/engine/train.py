"""Training from top to bottom: `train(cfg, world)` is the story, on a laptop or under torchrun.

A run is a function of its settings, its data and the step: the order of the videos, clips, crops,
masks, mixing, dropout and the learning rate are all worked out from the step number. So a run that
stops anywhere, in the middle of an epoch too, goes on as if it had not.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import math
import os
import shlex
import signal
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video import __version__, files
from hiera_video.data.batch import Batch, Clips
from hiera_video.data.datasets import TestReader, TrainReader, VideoDataset, read_sample
from hiera_video.data.loader import Loader, LoaderSettings, build_loader
from hiera_video.data.manifests.layouts import Manifest
from hiera_video.data.relabel import fit_labels
from hiera_video.data.transforms.flips import LabelAwareFlips
from hiera_video.data.transforms.mixup import MixUpCutMix
from hiera_video.data.transforms.train import TrainTransform
from hiera_video.engine import (
    checkpoint,
    evaluate,
    head_rows,
    memory,
    optim,
    preflight,
    report,
    tasks,
)
from hiera_video.engine.distributed import World
from hiera_video.engine.finite import FiniteState
from hiera_video.engine.prefetch import DevicePrefetcher
from hiera_video.errors import RunFailed, UserError, WeightsError
from hiera_video.models import build_model
from hiera_video.models.weights.load import load_weights

SUMS = ("loss", "clips", "top1", "top5", "failed")
"""What is summed over the clips of a step and of an epoch; `failed` counts videos."""


def train(cfg: Any, world: World, stop: Stop) -> int:
    """Train as `cfg` says, from where OUTPUT_DIR stands.

    Returns the exit code: 0 when trained to the end; after Ctrl-C or SIGTERM `stop.exit_code`, the
    state being saved and `stop.obeyed` true on every process.
    Raises UserError for what can be known to be wrong before the first step, RunFailed for what
    goes wrong later; the message says what is left on disk.
    """
    with (
        preflight.RunFolder(cfg.output_dir, world) as folder,
        report.Report(None, quiet=not world.is_main) as voice,
    ):
        return _train(cfg, world, stop, folder, voice)


def _train(
    cfg: Any, world: World, stop: Stop, folder: preflight.RunFolder, voice: report.Report
) -> int:
    # ---- data -----------------------------------------------------------------------------
    train_list, val_list = world.run_on_main(read_lists, cfg)
    if cfg.task == "classify":
        preflight.require_classes(train_list)
    dataset, validation = training_set(cfg, train_list), validation_set(cfg, val_list)
    guarded = cfg.data_loader.num_workers > 0
    world.run_on_main(preflight.require_readable, dataset, what="training", guarded=guarded)
    if validation is not None:
        world.run_on_main(
            preflight.require_readable, validation, what="validation", guarded=guarded
        )
    plan = plan_of(cfg, dataset, world)
    data_id = preflight.fingerprint(train_list)
    names = class_names(cfg, train_list)

    # ---- model and optimizer --------------------------------------------------------------
    num_classes = cfg.model.num_classes or train_list.num_classes
    model, identity = build(cfg, num_classes=num_classes)
    model.to(world.device)
    if cfg.train.linear_probe:
        freeze_backbone(model)
    optimizer = build_optimizer(cfg.solver, model, world.device)
    scaler = torch.amp.GradScaler(world.device.type, enabled=cfg.train.mixed_precision == "fp16")
    world.run_on_main(
        checkpoint.require_space,
        folder.checkpoints,
        one=checkpoint.estimated_bytes(
            model,
            optimizer_states=2 if cfg.solver.optimizing_method == "adamw" else 1,
            ema=cfg.train.ema_decay > 0,
        ),
        keep=cfg.train.keep_checkpoints,
        checkpoints=number_of_checkpoints(cfg.train, plan),
    )

    # ---- begin, or go on ------------------------------------------------------------------
    ema = None
    step, sums, afresh = 0, [0.0] * len(SUMS), []
    numbers = FiniteState(model, "a fresh model")
    source, state = find_state(cfg, world, folder.checkpoints, voice.say, numbers)
    last_good = source
    if state is None and cfg.train.checkpoint_file_path:
        start_from_weights(cfg, world, model, voice.say, classes=names)
        numbers = FiniteState(model, cfg.train.checkpoint_file_path)
    if cfg.train.ema_decay:
        ema = optim.Ema(model, cfg.train.ema_decay)
    if state is not None:
        if source.parent == folder.checkpoints:
            preflight.require_same_settings(source, same_version(state["cfg"], cfg), cfg.to_yaml())
            preflight.require_same_list(source, state["data"], data_id)
        rows, note = None, ""
        if cfg.task == "classify":
            names, rows, note = head_rows.compared(
                source,
                state.get("classes"),
                names,
                outputs=num_classes,
                same_run=source.parent == folder.checkpoints,
            )
        preflight.require_same_model(source, state["model"], identity)
        preflight.require_steps_left(source, state["step"], plan)
        if note:
            voice.say(note)
        if rows is not None:
            head_rows.place_weights(state, model, rows)
        model.load_state_dict(state.get("raw_state", state["model_state"]))
        afresh = restore_optimizer(optimizer, scaler, state)
        if rows is not None:
            head_rows.place_moments(optimizer, model, rows)
        step, sums = state["step"], state["epoch_sums"]
        if ema is not None:
            ema.load_state_dict(state["model_state"])
    del state

    # ---- what the run says, and writes ----------------------------------------------------
    world.run_on_main(report.forget_after, folder.path, step)
    world.run_on_main(files.write_text, folder.path / "config.yaml", cfg.to_yaml())
    loader = training_loader(cfg, dataset, world, start=step, end=plan.total_steps)
    val_loader = validation_loader(cfg, validation, world) if validation is not None else None
    if world.is_main:
        voice.open(folder.path, tensorboard=cfg.tensorboard.enable)
    notes = [*list_notes(train_list, val_list), *loader.notes, *plan.notes]
    for line in introduction(cfg, world, model, plan, train_list.describe_classes(), notes):
        voice.say(line)
    if step:
        voice.say(f"going on from {source}, after step {step} of {plan.total_steps}")
    for note in afresh:
        voice.say(f"note: {note}")

    def write() -> Path:
        """Write the state after `step` steps and delete what is too old; the path."""
        epochs, rest = divmod(step, plan.steps_per_epoch)
        path = folder.checkpoints / checkpoint.file_name(epochs, rest)
        content = {
            "format": checkpoint.FORMAT,
            "model": identity,
            **weights_to_save(model, ema),
            "classes": names,
            "multi_label": cfg.data.multi_label,
            "spec": cfg.data.clip_spec(training=False).to_dict(),
            "cfg": cfg.to_yaml(),
            "data": data_id,
            "epoch": epochs,
            "step": step,
            "epoch_sums": sums,
            "optimizer_state": optimizer.state_dict(),
            "scaler_state": scaler.state_dict(),
            "versions": {"hiera_video": __version__, "torch": str(torch.__version__)},
        }
        fault = numbers.fault(content)
        if fault is not None:
            raise NotFinite(
                f"the state after step {step} was not saved, {fault}. "
                f"{way_on(cfg, folder.path, last_good)}"
            )
        checkpoint.save(content, path)
        checkpoint.prune(folder.checkpoints, keep=cfg.train.keep_checkpoints)
        return path

    def save() -> Path:
        """`write` on the main process; if that fails, every process ends."""
        nonlocal last_good
        last_good = world.run_on_main(write)
        return last_good

    def finish_epoch() -> bool:
        """Save, validate, keep the best, draw: what is due after `step` steps. False if stopped."""
        epoch, last = -(-step // plan.steps_per_epoch), step >= plan.total_steps
        due = is_due(cfg.train.checkpoint_period, epoch, last)
        path = save() if due or is_due(cfg.train.checkpoint_steps, step, last) else None
        if val_loader is not None and is_due(cfg.train.eval_period, epoch, last):
            judged = averaged(model, ema)
            found = validate(cfg, world, judged, val_loader, stop, voice)
            if found is None:
                return False
            # The best is in place before the record says that this epoch was validated: killed
            # in between, the resumed run validates again.
            best = world.broadcast(checkpoint.best_record(folder.checkpoints))
            metric = "map" if cfg.data.multi_label else "top1_acc"
            if best is None or found[metric] > best["value"]:
                path = path or save()
                best = {"metric": metric, "value": found[metric], "epoch": epoch}
                world.run_on_main(checkpoint.keep_best, path, best)
            say_validation(voice, found, best, step=step, epoch=epoch, epochs=plan.epochs)
        if cfg.task == "pretrain" and is_due(cfg.train.picture_period, epoch, last=False):
            world.run_on_main(draw_reconstruction, cfg, voice, model, dataset, step)
        voice.curves(last=last)
        return True

    # ---- the loop -------------------------------------------------------------------------
    forward = Forward(cfg, world, model, dataset=dataset, plan=plan, num_classes=num_classes)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    clock = report.Clock()
    stopping = False

    with stop:
        try:
            if validation_was_missed(cfg, world, folder.path, plan, step):
                stopping = not finish_epoch()
            batches = DevicePrefetcher(loader, world.device, dataset.spec)
            set_mode(model, linear_probe=cfg.train.linear_probe)
            clock.restart()
            while step < plan.total_steps and not stopping:
                lr = optim.lr_at(step, **plan.lr_settings())
                optim.set_lr(optimizer, lr)
                totals = forward.backward(batches, step, scaler, clock)
                vote = totals.new_full((1,), stop.requested)  # no copy, for which it would wait
                world.all_reduce(totals)
                world.all_reduce(vote)

                with out_of_memory_explained(forward.clips, NotToBeSaved):
                    norm = update(
                        optimizer, scaler, trained, totals, plan, cfg.solver.clip_grad_l2norm
                    )
                if ema is not None:
                    ema.update(model, step)

                # The one point of a step where the CPU waits for the GPU: everything is queued.
                *here, votes, norm = torch.cat([totals, vote, norm[None].double()]).tolist()
                step += 1
                stopping = votes > 0
                require_finite(
                    here[0],
                    norm,
                    step,
                    scaled=scaler.is_enabled(),
                    way_on=functools.partial(way_on, cfg, folder.path, last_good),
                )
                sums = [a + b for a, b in zip(sums, here, strict=True)]
                clock.step_done(int(here[1]))
                say_step(cfg, voice, clock, plan, here, step=step, lr=lr, norm=norm, world=world)

                if step % plan.steps_per_epoch == 0 or step == plan.total_steps:
                    say_epoch(cfg, voice, plan, sums, step=step, lr=lr)
                    sums = [0.0] * len(SUMS)
                    stopping = not finish_epoch() or stopping
                    set_mode(model, linear_probe=cfg.train.linear_probe)
                    clock.restart()
                elif cfg.train.checkpoint_steps and step % cfg.train.checkpoint_steps == 0:
                    save()
                    clock.restart()
            if stopping:
                save()
        except NotToBeSaved:
            raise
        except Exception as error:
            # Parameters change in `update` alone: what `step` steps have learnt is whole.
            if stop.requested:
                # A signal to all processes ends the loader's workers and the other processes in
                # any order; what fails for that reason is no failure.
                stopping = True
                if world.is_main:
                    write()
            elif isinstance(error, RunFailed) and world.size == 1 and step > 0:
                raise RunFailed(
                    f"{error}; saved {write()}, from where the same command goes on"
                ) from error
            else:
                raise
        if stopping:
            stop.obeyed = True
            voice.say(
                f"stopped by {stop.name} after step {step} of {plan.total_steps}, which is saved "
                f"in {folder.checkpoints}. The same command goes on from there"
            )
            return stop.exit_code(saved=True)
        voice.say(
            f"trained: step {step} of {plan.total_steps}; checkpoints in {folder.checkpoints}"
        )
    return 0


# ---- one step -----------------------------------------------------------------------------------


class Forward:
    """Forward and backward of the parts of a step: what training and a dry run have in common."""

    def __init__(
        self,
        cfg: Any,
        world: World,
        model: nn.Module,
        *,
        dataset: VideoDataset,
        plan: preflight.Schedule,
        num_classes: int,
    ):
        self.seed, self.parts, self.world = cfg.rng_seed, cfg.train.grad_accum, world
        self.dataset, self.plan = dataset, plan
        self.step_fn = tasks.get(cfg.task)
        self.settings = tasks.StepSettings(
            seed=cfg.rng_seed,
            loss_func=cfg.model.loss_func,
            class_weights=class_weights(cfg, dataset.manifest, num_classes, world.device),
            device=world.device,
            precision=tasks.PRECISION[cfg.train.mixed_precision],
        )
        self.symmetries = symmetries_of(cfg, dataset.manifest)
        self.mixing = mixing_of(cfg.mixup, num_classes)
        self.parallel = world.parallel(model)
        self.model, self.graphs = self.parallel, False
        if cfg.train.compile:
            mode = cfg.train.compile_mode
            self.model = torch.compile(self.parallel, mode=mode, dynamic=False)
            self.graphs = mode != "default" and world.device.type == "cuda"
        self.clips = plan.clips_per_step // (self.parts * world.size)

    def backward(
        self, batches: DevicePrefetcher, step: int, scaler: Any, clock: report.Clock
    ) -> Tensor:
        """Leave the gradients of step `step` in the parameters; the `SUMS` of this process,
        float64 on its device. All is queued and nothing waited for, on a GPU; and the batch that
        comes next is on its way.

        A clip counts 1 / clips_per_step wherever it is computed, so neither the number of
        processes nor that of the parts changes the gradient.
        """
        epoch = step // self.plan.steps_per_epoch
        totals = torch.zeros(len(SUMS), dtype=torch.float64, device=self.world.device)
        for part in range(self.parts):
            with clock.waiting():
                batch = next(batches)
            clock.waited(batches.starved)
            clips, failed = len(batch.video_ids), len(batch.failed)
            # A process without a readable video still takes part: the others wait for it.
            batch = batch if clips else blank(self.dataset).to(self.world.device)
            share = part * self.world.size + self.world.rank
            if self.symmetries is not None:
                batch = self.symmetries(batch, seed=self.seed, epoch=epoch)
            if self.mixing is not None:
                batch = self.mixing(batch, seed=self.seed, step=step, part=share)
            # Dropout and drop path follow from the step alone, whatever happened before it.
            torch.manual_seed(tasks.stream_seed(self.seed, "step", step, share))
            # Compiled for one size: a part that lacks videos which failed is computed without.
            model = self.model if clips == self.clips else self.parallel
            with (
                self._gradients_kept_here(part < self.parts - 1),
                out_of_memory_explained(clips),
                contextlib.nullcontext() if clips else frozen_statistics(self.parallel),
            ):
                out = self.step_fn(model, batch, epoch=epoch, settings=self.settings)
                weight = clips * self.world.size / self.plan.clips_per_step
                scaler.scale(out["loss"] * weight).backward()
            totals += tally(out, clips=clips, failed=failed, device=self.world.device)
            if self.graphs and part == 0 < self.parts - 1:
                leave_graph_memory(self.parallel)
            batches.fetch()
        return totals

    def _gradients_kept_here(self, yes: bool) -> contextlib.AbstractContextManager:
        """Processes exchange gradients once a step, with its last part."""
        if yes and self.world.size > 1:
            return self.parallel.no_sync()
        return contextlib.nullcontext()


def leave_graph_memory(model: nn.Module) -> None:
    """Gradients in memory of their own, to be added to: what a CUDA graph returned is overwritten
    when it is replayed."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad = parameter.grad.clone()


@contextlib.contextmanager
def out_of_memory_explained(clips: int, failure: type[RunFailed] = RunFailed) -> Iterator[None]:
    """`failure` with the ways out where the memory of the device, or of the machine, does not
    suffice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        wanted = memory.shortage(error)
        if wanted is None:
            raise
        raise failure(
            f"{wanted}, with {clips} clips at a time. Raise TRAIN.GRAD_ACCUM (the same result in "
            "more, smaller parts) or set MODEL.ACT_CHECKPOINT true: a run that has begun goes on "
            "with these. TRAIN.MIXED_PRECISION bf16 or a lower TRAIN.BATCH_SIZE make it another "
            "run, which needs another OUTPUT_DIR once a checkpoint was written"
        ) from error


def update(
    optimizer: torch.optim.Optimizer,
    scaler: Any,
    trained: Sequence[nn.Parameter],
    totals: Tensor,
    plan: preflight.Schedule,
    max_norm: float | None,
) -> Tensor:
    """One optimizer step from the stored gradients; their norm before clipping, on the device.

    totals: the `SUMS` over all processes.
    """
    scaler.unscale_(optimizer)
    # Fewer clips than planned where videos failed: the mean is over those there are.
    optim.scale_gradients(trained, plan.clips_per_step / totals[1].clamp(min=1))
    norm = optim.clip_gradients(trained, max_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return norm


def tally(out: dict[str, Any], *, clips: int, failed: int, device: torch.device) -> Tensor:
    """The `SUMS` of one forward pass, float64 on the device.

    Numbers become tensors there by filling: a copy would wait for all that is queued.
    """
    here = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
    here[1].fill_(clips)
    here[4].fill_(failed)
    if clips:
        here[0].copy_(out["loss"].detach()).mul_(clips)
        for place, name in ((2, "top1"), (3, "top5")):
            if name in out:
                here[place].copy_(out[name])
    return here


def blank(dataset: VideoDataset) -> Batch:
    """One black clip, to be given no weight."""
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
    """Norms with running statistics (BatchNorm) use them and leave them alone: a black clip must
    not count. SyncBatchNorm stays as it is, for the other processes wait for its numbers."""
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
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


class NotToBeSaved(RunFailed):
    """What is in memory is not the state after a whole step."""


class NotFinite(NotToBeSaved):
    """The weights are not finite."""


def require_finite(
    loss: float, norm: float, step: int, *, scaled: bool, way_on: Callable[[], str]
) -> None:
    """NotFinite on a loss that is not finite, or a gradient (which fp16's scaler may skip)."""
    if math.isfinite(loss) and (scaled or math.isfinite(norm)):
        return
    what, value = ("gradient", norm) if math.isfinite(loss) else ("loss", loss)
    raise NotFinite(f"the {what} of step {step} is not finite ({value}). {way_on()}")


def way_on(cfg: Any, folder: Path, last_good: Path | None) -> str:
    """What to change after a step that gave no numbers: the same command would come to it again.

    The settings can be typed as they stand; a folder takes one run, so they name another.
    """
    words = ["OUTPUT_DIR", shlex.quote(unused_folder(folder))]
    if last_good is not None:
        words += ["TRAIN.CHECKPOINT_FILE_PATH", shlex.quote(str(last_good))]
        words += ["TRAIN.CHECKPOINT_EPOCH_RESET", "False"]
    lower = cfg.solver.base_lr / 4
    words += ["SOLVER.BASE_LR", f"{lower:.3g}"]
    for name in ("warmup_start_lr", "cosine_end_lr"):
        if getattr(cfg.solver, name) > float(f"{lower:.3g}"):
            words += [f"SOLVER.{name.upper()}", f"{lower:.3g}"]
    if not cfg.solver.clip_grad_l2norm:
        words += ["SOLVER.CLIP_GRAD_L2NORM", "1.0"]
    if cfg.train.mixed_precision == "fp16":
        words += ["TRAIN.MIXED_PRECISION", "bf16"]
    last, begin = "no checkpoint was written yet", "starts anew"
    if last_good is not None:
        last, begin = f"the last good checkpoint is {last_good}", "goes on from there"
    return (
        f"The same command would come to it again; {last}. With these settings at its end it "
        f"{begin}, in smaller steps:\n  {' '.join(words)}"
    )


def unused_folder(folder: Path) -> str:
    """`folder`_2, or the next number that is free."""
    numbered = (folder.with_name(f"{folder.name}_{number}") for number in itertools.count(2))
    return str(next(path for path in numbered if not path.exists()))


# ---- parts of a run -----------------------------------------------------------------------------


def read_lists(cfg: Any) -> tuple[Manifest, Manifest | None]:
    """The lists of training and validation videos; none of the latter when pretraining."""
    labelled = cfg.task == "classify"
    shared = {
        "dataset": cfg.train.dataset,
        "seed": cfg.rng_seed,
        "synthetic": cfg.synthetic,
    }
    train_list = preflight.read_split(
        cfg.data,
        split="train",
        num_classes=cfg.model.num_classes if labelled else 0,
        need_labels=labelled,
        hold_out=True if labelled else None,
        **shared,
    )
    if not labelled:
        return train_list, None
    names = class_names(cfg, train_list)
    num_classes = cfg.model.num_classes or train_list.num_classes
    val_list = preflight.read_split(cfg.data, split="val", num_classes=num_classes, **shared)
    if names or val_list.classes:
        val_list = fit_labels(val_list, names=names, count=num_classes, owner="the training list")
    return train_list, val_list


def class_names(cfg: Any, manifest: Manifest) -> list[str]:
    """The names of the outputs, as the checkpoint keeps them; empty where the data has none, or
    where labels play no part."""
    if cfg.task != "classify":
        return []
    return preflight.class_names(manifest, cfg.model.num_classes)


def training_set(cfg: Any, manifest: Manifest) -> VideoDataset:
    """Random clips, as DATA and AUG describe them."""
    spec = cfg.data.clip_spec(training=True)
    transform = TrainTransform(
        spec,
        area=cfg.data.train_jitter_scales_relative,
        aspect=cfg.data.train_jitter_aspect_relative,
        flip=0.5 if cfg.data.random_flip else 0.0,
        rand_augment=cfg.aug.aa_type,
        erase_prob=cfg.aug.re_prob,
        erase_mode=cfg.aug.re_mode,
        erase_count=cfg.aug.re_count,
    )
    return VideoDataset(
        manifest,
        TrainReader(
            transform,
            num_temporal=cfg.data.train_crop_num_temporal,
            num_augment=cfg.aug.num_sample,
            decoder=cfg.data.decoding_backend,
            seed=cfg.rng_seed,
        ),
        labelled=cfg.task == "classify",
    )


def validation_set(cfg: Any, manifest: Manifest | None) -> VideoDataset | None:
    """The middle clip, centre crop: the same in every epoch and every run."""
    if manifest is None:
        return None
    spec = cfg.data.clip_spec(training=False)
    return VideoDataset(manifest, TestReader(spec, decoder=cfg.data.decoding_backend))


def training_loader(
    cfg: Any, dataset: VideoDataset, world: World, *, start: int, end: int | None
) -> Loader:
    """The batches of this process, from step `start` to before step `end` of the run."""
    return build_loader(
        dataset,
        LoaderSettings(
            batch_size=cfg.train.batch_size,
            num_workers=cfg.data_loader.num_workers,
            rank=world.rank,
            world_size=world.size,
            grad_accum=cfg.train.grad_accum,
            start_step=start,
            stop_step=end,
            pin_memory=cfg.data_loader.pin_memory,
        ),
    )


def validation_loader(cfg: Any, dataset: VideoDataset, world: World) -> Loader:
    """Every validation video once, over all processes."""
    return build_loader(
        dataset,
        LoaderSettings(
            batch_size=cfg.test.batch_size,
            num_workers=cfg.data_loader.num_workers,
            rank=world.rank,
            world_size=world.size,
            pin_memory=cfg.data_loader.pin_memory,
        ),
    )


def plan_of(cfg: Any, dataset: VideoDataset, world: World) -> preflight.Schedule:
    """Steps, epochs and learning rates of the run; UserError where the batch does not divide."""
    loader = training_loader(cfg, dataset, world, start=0, end=None)
    return preflight.schedule(
        cfg.solver,
        videos=len(dataset),
        videos_per_step=loader.batch_size,
        clips_per_video=dataset.clips_per_video,
        steps_per_epoch=loader.steps_per_epoch,
    )


def build(cfg: Any, *, num_classes: int) -> tuple[nn.Module, dict[str, Any]]:
    """The model with its first weights, a function of RNG_SEED, and what a checkpoint says of it
    ({"name", "kwargs"}, enough to build it again)."""
    arguments = cfg.model_arguments()
    if cfg.task == "classify":
        if num_classes < 1:
            raise UserError("the number of classes is unknown: set MODEL.NUM_CLASSES")
        arguments["num_classes"] = num_classes
    torch.manual_seed(tasks.stream_seed(cfg.rng_seed, "weights"))
    try:
        model = build_model(cfg.model.model_name, **arguments)
    except UserError as error:
        raise UserError(f"{error}{_other_task(cfg.task, str(error))}") from error
    preflight.require_fitting_clips(cfg.model.model_name, model, cfg.data, training=True)
    if cfg.task == "classify":
        preflight.require_fitting_clips(cfg.model.model_name, model, cfg.data, training=False)
    arguments.pop("act_checkpoint", None)  # how it is computed, not what it is
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}
    return model, {"name": cfg.model.model_name, "kwargs": plain}


def _other_task(task: str, error: str) -> str:
    """A hint where the model's builder does not know what belongs to the task."""
    if task == "pretrain" and "'mask_ratio'" in error:
        return ". TASK pretrain needs a masked autoencoder: MODEL.MODEL_NAME mae_hiera_..."
    if task == "classify" and ("'num_classes'" in error or "'head_dropout'" in error):
        return ". TASK classify needs a classifier: a MODEL.MODEL_NAME without mae_"
    return ""


def build_optimizer(solver: Any, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer of the SOLVER settings over what trains."""
    groups = optim.parameter_groups(
        model, weight_decay=solver.weight_decay, layer_decay=solver.layer_decay
    )
    return optim.build_optimizer(
        groups,
        method=solver.optimizing_method,
        betas=solver.betas,
        momentum=solver.momentum,
        nesterov=solver.nesterov,
        fused=device.type == "cuda",
    )


def restore_optimizer(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, state: dict[str, Any]
) -> list[str]:
    """Take what a checkpoint's optimizer had learnt, and keep this run's settings. Returns what a
    user should know: what the checkpoint has nothing for, and so starts afresh."""
    notes = optim.restore_state(optimizer, state["optimizer_state"]) if state["step"] else []
    if scaler.is_enabled() and state["scaler_state"]:  # empty: a run without fp16 scales nothing
        scaler.load_state_dict(state["scaler_state"])
    return notes


def number_of_checkpoints(settings: Any, plan: preflight.Schedule) -> int:
    """How many a whole run writes, about."""
    inside = plan.total_steps // settings.checkpoint_steps if settings.checkpoint_steps else 0
    return 1 + plan.epochs // settings.checkpoint_period + inside


def freeze_backbone(model: nn.Module) -> None:
    """Leave only the parameters of `head` trainable. UserError for a model without one."""
    names = [name for name, _ in model.named_parameters() if name.startswith("head.")]
    if not names:
        raise UserError(
            f"TRAIN.LINEAR_PROBE needs a model with a head; {type(model).__name__} has none"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def set_mode(model: nn.Module, *, linear_probe: bool) -> None:
    """Training mode; of a linear probe the head's alone, for its features are to stand still."""
    model.train(not linear_probe)
    if linear_probe:
        model.head.train()


def class_weights(
    cfg: Any, manifest: Manifest, num_classes: int, device: torch.device
) -> Tensor | None:
    """TRAIN.CLASS_WEIGHTS as a tensor on the device; None for none, or without labels."""
    if cfg.train.class_weights != "balanced" or cfg.task != "classify":
        return None
    counts = torch.zeros(num_classes, dtype=torch.int64)
    found = torch.from_numpy(manifest.class_counts())
    counts[: len(found)] = found
    return tasks.balanced_weights(counts).to(device)


def symmetries_of(cfg: Any, manifest: Manifest) -> LabelAwareFlips | None:
    """AUG.SYMMETRIES for the classes of the data, or None where it is off."""
    return LabelAwareFlips(manifest.classes or ()) if cfg.aug.symmetries else None


def mixing_of(mixup: Any, num_classes: int) -> MixUpCutMix | None:
    """The MIXUP settings, or None where they are off."""
    if not mixup.enable:
        return None
    return MixUpCutMix(
        num_classes=num_classes,
        mixup_alpha=mixup.alpha,
        cutmix_alpha=mixup.cutmix_alpha,
        prob=mixup.prob,
        switch_prob=mixup.switch_prob,
        label_smoothing=mixup.label_smooth_value,
    )


def is_due(period: int, count: int, last: bool) -> bool:
    """Every `period` epochs or steps (0: never) and after the last."""
    return last or (period > 0 and count % period == 0)


# ---- where to start -----------------------------------------------------------------------------


def find_state(
    cfg: Any, world: World, checkpoints: Path, say: Any, numbers: FiniteState
) -> tuple[Path | None, dict | None]:
    """The checkpoint to go on from, and its content: the newest of OUTPUT_DIR, or, with
    TRAIN.CHECKPOINT_EPOCH_RESET False, the one TRAIN.CHECKPOINT_FILE_PATH names; else None."""

    def choose() -> Path | None:
        if cfg.train.auto_resume:
            newest = checkpoint.latest(checkpoints, say, content_fault=numbers.fault)
            if newest is not None:
                return newest[0]
        elif checkpoint.in_order(checkpoints):
            raise UserError(
                f"{checkpoints} holds the checkpoints of a run and TRAIN.AUTO_RESUME is False; "
                "choose another OUTPUT_DIR, or move them away"
            )
        if cfg.train.checkpoint_file_path and not cfg.train.checkpoint_epoch_reset:
            path = Path(cfg.train.checkpoint_file_path).expanduser()
            fault = numbers.fault(checkpoint.load(path))
            if fault is not None:
                raise UserError(f"a run cannot go on from {path}, {fault}; name an earlier one")
            return path
        return None

    path = world.run_on_main(choose)
    return (None, None) if path is None else (path, checkpoint.load(path))


def same_version(stored: str, cfg: Any) -> str:
    """A stored config as this version writes it: settings that are new get their defaults."""
    try:
        return type(cfg).from_yaml(stored, source="the checkpoint's settings").to_yaml()
    except UserError:
        return stored


def start_from_weights(
    cfg: Any, world: World, model: nn.Module, say: Any, *, classes: Sequence[str] | None
) -> None:
    """Load TRAIN.CHECKPOINT_FILE_PATH into the model and say what was loaded and what was not.

    classes: the names of the model's outputs, see `load_weights`.
    """
    name = cfg.train.checkpoint_file_path
    try:
        stored, _ = evaluate.resolve_everywhere(world, name, cfg.model.model_name)
    except WeightsError as error:
        raise UserError(
            f"{error}\nTo start without them: TRAIN.CHECKPOINT_FILE_PATH '' (random weights), or "
            "--cfg configs/small/finetune_folder.yaml (the small model of this package)"
        ) from None
    say(str(load_weights(model, stored, classes=classes)))


def validation_was_missed(
    cfg: Any, world: World, folder: Path, plan: preflight.Schedule, step: int
) -> bool:
    """Whether the run stopped between the end of an epoch and the validation that was due."""
    at_end = step > 0 and (step % plan.steps_per_epoch == 0 or step == plan.total_steps)
    epoch = -(-step // plan.steps_per_epoch)
    if cfg.task != "classify" or not at_end:
        return False
    if not is_due(cfg.train.eval_period, epoch, last=step == plan.total_steps):
        return False

    def missing() -> bool:
        done = [r["step"] for r in report.read_metrics(folder) if r["_type"] == "val_epoch"]
        return step not in done

    return world.run_on_main(missing)


# ---- what is judged and kept --------------------------------------------------------------------


def weights_to_save(model: nn.Module, ema: optim.Ema | None) -> dict[str, dict[str, Tensor]]:
    """`model_state` is what was validated; with an EMA, `raw_state` is what is trained."""
    if ema is None:
        return {"model_state": model.state_dict()}
    return {"model_state": ema.state_dict(), "raw_state": model.state_dict()}


def averaged(model: nn.Module, ema: optim.Ema | None) -> nn.Module:
    """The model to validate: the trained one, or a copy with the averaged weights."""
    if ema is None:
        return model
    judged = copy.deepcopy(model)
    judged.load_state_dict(ema.state_dict())
    return judged


def validate(
    cfg: Any, world: World, model: nn.Module, loader: Loader, stop: Stop, voice: report.Report
) -> dict[str, float] | None:
    """One view per video, all videos; None if somebody asked to stop meanwhile."""
    scores = evaluate.score_all(
        cfg,
        world,
        model,
        loader,
        precision=cfg.train.mixed_precision,
        stop=stop,
        voice=voice,
        what="val",
    )
    return None if scores is None else evaluate.summary(scores, loader.dataset.manifest)


def draw_reconstruction(
    cfg: Any, voice: report.Report, model: nn.Module, dataset: VideoDataset, step: int
) -> None:
    """A picture of two training videos: input, what the encoder saw, reconstruction.

    They are read as the loader reads them: in a process of their own, where it has workers.
    """
    chosen = []
    guarded = cfg.data_loader.num_workers > 0
    videos = range(min(8, len(dataset)))
    with contextlib.closing(
        preflight.reading(read_sample, dataset, videos, guarded=guarded)
    ) as read:
        for item in read:
            if isinstance(item, Clips):
                chosen.append(item)
                if len(chosen) == 2:
                    break
    if not chosen:
        return
    ids = torch.tensor([item.video_id for item in chosen])
    clips = torch.stack([item.clips[0].normalized(dataset.spec) for item in chosen])
    clips = clips.to(next(model.parameters()).device)
    keep = tasks.keep_masks(model, ids, torch.zeros_like(ids), epoch=0, seed=cfg.rng_seed)
    keep = keep.to(clips.device)
    model.eval()
    picture = tasks.reconstruction(model, clips, keep, mean=cfg.data.mean, std=cfg.data.std)
    voice.picture("reconstruction", picture, step)


# ---- what is said -------------------------------------------------------------------------------


def list_notes(train_list: Manifest, val_list: Manifest | None) -> list[str]:
    """What a user should know of the lists; of the outputs, only where labels play a part."""
    labelled = val_list is not None
    unused = train_list.unused_outputs() if labelled else ""
    notes = [*([unused] if unused else []), *train_list.notes]
    return list(dict.fromkeys([*notes, *(val_list.notes if labelled else ())]))


def introduction(
    cfg: Any,
    world: World,
    model: nn.Module,
    plan: preflight.Schedule,
    classes: str,
    notes: Sequence[str],
) -> list[str]:
    """What the run is, in a few lines. `classes`: what was taken for them."""
    count = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    part = f", {trained / 1e6:.2f} M of them trained" if trained != count else ""
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU"
    return [
        f"{cfg.task} {cfg.model.model_name}: {count / 1e6:.2f} M parameters{part}; "
        f"{world.size} process{'es' * (world.size > 1)} on {device}, "
        f"mixed precision {cfg.train.mixed_precision}",
        str(plan),
        classes,
        *(f"note: {note}" for note in notes),
    ]


def say_step(
    cfg: Any,
    voice: report.Report,
    clock: report.Clock,
    plan: preflight.Schedule,
    here: Sequence[float],
    *,
    step: int,
    lr: float,
    norm: float,
    world: World,
) -> None:
    """Progress of every step; a record of the first, of every LOG_PERIOD and of an epoch's last."""
    loss_sum, clips, top1, top5, failed = here
    epoch, at = divmod(step - 1, plan.steps_per_epoch)
    loss = loss_sum / max(clips, 1)
    peak = report.peak_memory(world.device)
    left = report.duration(clock.seconds * (plan.total_steps - step))
    waiting = clock.data_seconds / max(clock.seconds, 1e-9)
    due = (
        step == 1
        or step % cfg.log_period == 0
        or at + 1 == plan.steps_per_epoch
        or step == plan.total_steps
    )
    voice.progress(
        f"epoch {epoch + 1}/{plan.epochs}  step {at + 1}/{plan.steps_per_epoch}  loss {loss:.4f}  "
        f"lr {lr:.2e}  {clock.clips_per_second:.1f} clips/s  data {waiting:.0%}  "
        f"mem {report.gibibytes(peak)}  eta {left}",
        due=due,
    )
    if not due:
        return
    errors = {}
    if cfg.task == "classify" and not cfg.data.multi_label:
        errors = {"top1_err": wrong(top1, clips), "top5_err": wrong(top5, clips)}
    voice.stats(
        "train_iter_",
        epoch=f"{epoch + 1}/{plan.epochs}",
        iter=f"{at + 1}/{plan.steps_per_epoch}",
        step=step,
        loss=loss,
        lr=lr,
        grad_norm=norm,
        clips=int(clips),
        failed=int(failed),
        dt=clock.seconds,
        dt_data=clock.data_seconds,
        dt_net=clock.seconds - clock.data_seconds,
        clips_per_s=clock.clips_per_second,
        eta=left,
        **{"gpu_mem" if world.device.type == "cuda" else "RAM": report.gibibytes(peak)},
        **errors,
    )
    voice.scalars(
        step, Train__loss=loss, Train__lr=lr, **{f"Train__{k}": v for k, v in errors.items()}
    )


def say_epoch(
    cfg: Any,
    voice: report.Report,
    plan: preflight.Schedule,
    sums: Sequence[float],
    *,
    step: int,
    lr: float,
) -> None:
    """The means of an epoch, over its clips."""
    loss_sum, clips, top1, top5, failed = sums
    epoch = -(-step // plan.steps_per_epoch)
    values = {"loss": loss_sum / max(clips, 1)}
    if cfg.task == "classify" and not cfg.data.multi_label:
        values |= {"top1_err": wrong(top1, clips), "top5_err": wrong(top5, clips)}
    voice.stats(
        "train_epoch",
        epoch=f"{epoch}/{plan.epochs}",
        step=step,
        lr=lr,
        clips=int(clips),
        failed=int(failed),
        **values,
    )
    text = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    bad = f"; {int(failed)} videos could not be read" if failed else ""
    voice.say(f"epoch {epoch}/{plan.epochs}: {text} over {int(clips)} clips{bad}")


def say_validation(
    voice: report.Report,
    found: dict[str, float],
    best: dict[str, Any],
    *,
    step: int,
    epoch: int,
    epochs: int,
) -> None:
    """Errors in the records (SlowFast's habit for training and validation), accuracy in words."""
    errors = {k.replace("_acc", "_err"): 100 - v for k, v in found.items() if k.endswith("_acc")}
    if "top1_acc" in found:
        errors["min_top1_err"] = 100 - best["value"]
    rest = {k: v for k, v in found.items() if not k.endswith("_acc")}
    voice.stats("val_epoch", epoch=f"{epoch}/{epochs}", step=step, **errors, **rest)
    voice.scalars(step, **{f"Val__{k}": v for k, v in {**errors, **rest}.items()})
    shown = {"top1_acc": "top-1", "top5_acc": "top-5", "map": "mAP"}
    text = ", ".join(f"{word} {found[k]:.2f} %" for k, word in shown.items() if k in found)
    bad = f", {found['n_failed']} of {found['n_videos']} videos unreadable" * bool(
        found["n_failed"]
    )
    voice.say(
        f"validation {epoch}/{epochs}: {text} on {found['n_videos'] - found['n_failed']} videos"
        f"{bad}; best {best['value']:.2f} % in epoch {best['epoch']}"
    )


def wrong(correct: float, clips: float) -> float:
    """Error in percent."""
    return 100.0 * (1 - correct / max(clips, 1))


# ---- being asked to stop ------------------------------------------------------------------------


class Stop:
    """Ctrl-C or SIGTERM asks for a stop after the current step; a second Ctrl-C does not wait.

    A context manager: outside of it, where there is nothing to save yet, the signals do what they
    did before.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.obeyed = False
        """Whether the work was left undone for it; true in processes that were not asked, too."""
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    @property
    def requested(self) -> bool:
        """Whether somebody asked."""
        return self.signal is not None

    @property
    def name(self) -> str:
        """`Ctrl-C`, `SIGTERM`, or that another process was asked."""
        names = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
        return names.get(self.signal, "a signal to another process")

    def exit_code(self, *, saved: bool) -> int:
        """0 for SIGTERM once the state is saved: a scheduler asked, and it was done. Else 128 + the
        signal, as shells report it: 130 for Ctrl-C, 143 for SIGTERM.

        A process that was not asked itself gives 0 too, and leaves the answer to the one that was.
        """
        if saved and self.signal != signal.SIGINT:
            return 0
        return 128 + int(self.signal or signal.SIGINT)

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _ask(self, number: int, frame: types.FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker: not the one that was meant
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif number == signal.SIGINT and self.requested:
            raise KeyboardInterrupt
        else:
            self.signal = number
