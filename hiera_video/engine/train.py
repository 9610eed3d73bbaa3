"""Training from top to bottom: `train(cfg, world, stop)` is the story, on one or many processes.

A run is a function of its settings, its data and the step: the order of the videos, clips, crops,
masks, mixing, dropout and the learning rate all follow from the step number. A run that stops
anywhere, in the middle of an epoch too, therefore resumes as if it had not stopped.
"""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from hiera_video import files
from hiera_video.config import Config
from hiera_video.config.origin import Recipe
from hiera_video.data.batch import Batch
from hiera_video.data.loader import Loader
from hiera_video.engine import (
    attentive,
    auto_batch,
    build,
    checkpoint,
    collapse,
    evaluate,
    head_rows,
    optim,
    page_facts,
    probe,
    sharding,
    tasks,
    trackers,
)
from hiera_video.engine.distributed import World
from hiera_video.engine.finite import FiniteState
from hiera_video.engine.log import StepResult, TrainingLog, describe_run, draw_picture, first_clips
from hiera_video.engine.meters import StepTimer
from hiera_video.engine.parts import Evaluation
from hiera_video.engine.prefetch import DevicePrefetcher
from hiera_video.engine.records import drop_records_after, read_metrics
from hiera_video.engine.run_folder import RunFolder
from hiera_video.engine.run_logger import RunLogger
from hiera_video.engine.schedule import Schedule
from hiera_video.engine.signals import Stop
from hiera_video.engine.state import (
    CheckpointWriter,
    Stored,
    TrainingState,
    find_checkpoint,
    require_same_run,
    require_space,
    restore,
    start_from_weights,
)
from hiera_video.engine.step import (
    Arriving,
    Forward,
    NotToBeSaved,
    out_of_memory_explained,
    require_finite,
    set_mode,
    update,
)
from hiera_video.errors import RunFailed
from hiera_video.run_page.facts import Start
from hiera_video.run_page.page import RunPage


def train(cfg: Config, world: World, stop: Stop, recipe: Recipe | None = None) -> int:
    """Train as `cfg` says, from where OUTPUT_DIR stands.

    recipe: what `cfg` was made of, for the page of the run, which shows how they differ.
    Returns the exit code: 0 after the last step; after Ctrl-C or SIGTERM `stop.exit_code`, with the
    state saved and `stop.obeyed` true on every process.
    Raises UserError for what can be known to be wrong before the first step, RunFailed for what
    fails later; the message says what is left on disk.
    """
    with (
        RunFolder(cfg.output_dir, world) as folder,
        RunLogger(None, quiet=not world.is_main) as logger,
    ):
        # ---- build ------------------------------------------------------------------------
        data = build.training_data(cfg, world)
        cfg, choices = build.choose_by_size(cfg, data)
        build.require_usable(data, world, guarded=cfg.data_loader.num_workers != 0)
        cfg, found = auto_batch.choose(cfg, data, world, logger.info)
        plan = build.plan_of(cfg, data.dataset, world)
        model, identity = build.initial_model(cfg, data)
        build.require_probe(cfg, data, model)
        checkpoints = build.checkpoint_writer(cfg, data, plan, model, identity, world)
        val_loader = build.validation_loader(cfg, data, world)
        world.run_on_main(require_space, checkpoints, model, cfg.solver, cfg.train, plan)

        # ---- resume -----------------------------------------------------------------------
        stored = find_start(cfg, checkpoints, model, world, data.classes, logger.info)
        state = build.initial_state(cfg, data, model, world)
        run = TrainingRun(
            cfg, world, stop, folder, logger, data, plan, state, checkpoints, val_loader
        )
        notes = [*choices, *found, *sharding.note_of(cfg.train.sharding, world)]
        notes += run.resume(stored)
        loader = build.training_loader(
            cfg, data.dataset, world, start=state.step, end=plan.total_steps
        )
        run.log_start(loader.notes, notes, recipe)
        forward = build.forward_passes(cfg, state.model, world, data, plan, logger.info)

        # ---- loop -------------------------------------------------------------------------
        with stop:
            fitted = cfg.train.fits_probe and not run.resumed
            if fitted and not run.fit_probe():
                return run.end_unsaved()
            with run.saved_on_failure():
                if fitted or run.validation_is_missing():
                    run.finish_epoch()
                batches = DevicePrefetcher(loader, world.device, data.dataset.spec)
                run.start_training()
                while state.step < plan.total_steps and not run.stopping:
                    run.take_step(forward, batches)
                    if run.at_end_of_epoch:
                        run.log_epoch()
                        run.finish_epoch()  # save, validate, keep the best, draw
                        run.start_training()
                    elif is_due(cfg.train.checkpoint_steps, state.step):
                        run.save()
                        run.clock.restart()
                if run.stopping:
                    run.save()
                checkpoints.finish(world)
            return run.end()


def find_start(
    cfg: Config,
    checkpoints: CheckpointWriter,
    model: nn.Module,
    world: World,
    classes: Sequence[str],
    log: Callable[[str], None],
) -> Stored | None:
    """Return the checkpoint that the run resumes from; for none, load the weights that the user
    names into the model.

    classes: the names of the model's outputs.
    """
    stored = find_checkpoint(cfg.train, checkpoints, world, log)
    weights = cfg.train.checkpoint_file_path
    if stored is None and weights:
        start_from_weights(weights, cfg.model.model_name, model, world, log, classes=classes)
        checkpoints.numbers = FiniteState(model, weights)
    return stored


def is_due(period: int, count: int, last: bool = False) -> bool:
    """Return whether something is due every `period` epochs or steps (0: never), or at the end."""
    return last or (period > 0 and count % period == 0)


STEPS_AHEAD = {"cpu": 0, "cuda": 1}
"""Kind of device -> steps that are queued before the numbers of the first are read. On a GPU the
next step is queued while one is computed, so that it never runs out of work."""


class QueuedStep(NamedTuple):
    """A step that the device may still be computing."""

    number: int
    """From 1."""
    lr: float
    numbers: Arriving
    """Its sums, the votes to stop and the gradients' norm."""


@dataclass
class TrainingRun:
    """A run in progress: what `train` has built, and the actions that `train` calls in order."""

    cfg: Config
    world: World
    stop: Stop
    folder: RunFolder
    logger: RunLogger
    data: build.TrainingData
    plan: Schedule
    state: TrainingState
    checkpoints: CheckpointWriter
    val_loader: Loader | None
    """None where the objective is not validated."""
    stopping: bool = False
    """Whether the run ends early because a process received a signal."""
    resumed: bool = False
    """Whether the run goes on from a checkpoint, its own or another's."""
    queued: deque[QueuedStep] = field(default_factory=deque)
    """Steps whose numbers were not read yet."""
    clock: StepTimer = field(default_factory=StepTimer)
    watched: Batch | None = None
    """Clips that show whether an encoder still tells clips apart; read when first needed."""
    objective: tasks.Objective = field(init=False)
    evaluation: Evaluation = field(init=False)
    log: TrainingLog = field(init=False)

    def __post_init__(self) -> None:
        self.objective = tasks.get(self.cfg.task)
        self.evaluation = evaluate.evaluation_of(self.cfg)
        self.log = TrainingLog(
            self.logger,
            self.objective,
            self.plan,
            self.world.device,
            period=self.cfg.log_period,
            multi_label=self.cfg.data.multi_label,
            clock=self.clock,
        )

    # ---- before the first step --------------------------------------------------------------

    def resume(self, stored: Stored | None) -> list[str]:
        """Resume from a checkpoint, if there is one.

        Returns notes on what it does not hold. Raises UserError where it does not fit.
        """
        state, checkpoints = self.state, self.checkpoints
        self.resumed = stored is not None
        if stored is None:
            return []
        same_run = stored.path.parent == checkpoints.folder
        if same_run:
            require_same_run(stored, checkpoints.record)
        classes = head_rows.NO_CLASSES
        if self.objective.labelled:
            classes = head_rows.compare_classes(
                stored.path,
                stored.content.get("classes"),
                self.data.classes,
                outputs=self.data.num_classes,
                same_run=same_run,
            )
        notes = restore(state, stored, checkpoints.record, self.plan, classes=classes)
        checkpoints.last_good = stored.path
        if state.step:  # a run that is stopped again before its next step writes the same state
            optim.set_lr(state.optimizer, self._lr_of(state.step - 1))
        if classes.note:
            self.logger.info(classes.note)
        return notes

    def _add_trackers(self) -> None:
        """Send curves and pictures where the settings say."""
        cfg, path = self.cfg, self.folder.path
        if cfg.tensorboard.enable:
            self.logger.add_tracker(trackers.TensorBoard(path / trackers.TENSORBOARD))
        title = (cfg.trackers.project, cfg.trackers.run_name)
        run = trackers.TrackedRun(path, *title, cfg.to_yaml())
        for name in cfg.trackers.names:
            tracker = trackers.open_tracker(name, run)
            self.logger.add_tracker(trackers.Careful(name, tracker, self.logger.info))

    def log_start(
        self, loader_notes: Sequence[str], notes: Sequence[str], recipe: Recipe | None
    ) -> None:
        """Write the settings, open the logs, and log what the run is and where it begins."""
        cfg, world, state, path = self.cfg, self.world, self.state, self.folder.path
        world.run_on_main(drop_records_after, path, state.step)
        world.run_on_main(files.write_text, path / "config.yaml", cfg.to_yaml())
        if world.is_main:
            self.logger.open(path)
            self._add_trackers()
        name = f"{cfg.task} {cfg.model.model_name}"
        lines = [
            describe_run(name, state.model, world, cfg.train.mixed_precision),
            str(self.plan),
            self.data.train_list.describe_classes(),
        ]
        known = [*self.data.notes, *loader_notes, *self.plan.notes]
        for line in (*lines, *(f"note: {note}" for note in known)):
            self.logger.info(line)
        if state.step:
            self.logger.info(
                f"going on from {self.checkpoints.last_good}, after step {state.step} of "
                f"{self.plan.total_steps}"
            )
        for note in notes:
            self.logger.info(f"note: {note}")
        if cfg.page.enable and world.is_main:
            self._begin_page(lines[:2], [*known, *notes], recipe)

    def _begin_page(
        self, lines: Sequence[str], notes: Sequence[str], recipe: Recipe | None
    ) -> None:
        """Write the page of the run for the first time, and say where it is."""
        settings = self.cfg.to_yaml()
        lists = {"training": self.data.train_list, "validation": self.data.val_list}
        start = Start(
            lines=lines,
            notes=list(dict.fromkeys(notes)),
            recipe=recipe.name if recipe else "",
            changed=page_facts.changes(settings, recipe),
            settings=settings,
            classes=self.data.classes,
            splits=[page_facts.split_facts(name, found) for name, found in lists.items() if found],
        )
        page = RunPage(self.folder.path, self.logger.info)
        page.begin(start, anew=not self.state.step)
        self.logger.add_page(page)
        self.logger.show("training begins")
        if page.works:
            self.logger.info(f"page of this run: {page.index}")

    def validation_is_missing(self) -> bool:
        """Return whether the run stopped between the end of an epoch and its validation."""
        step, last = self.state.step, self.state.step == self.plan.total_steps
        if self.val_loader is None or not self.at_end_of_epoch:
            return False
        if not step and not self.cfg.train.fits_probe:
            return False  # a random head is not worth it
        if not is_due(self.cfg.train.eval_period, self.epoch, last):
            return False
        return not self.world.run_on_main(_is_validated, self.folder.path, step)

    def fit_probe(self) -> bool:
        """Fit the head to the frozen encoder; returns False where a signal interrupted it."""
        cfg, world, state = self.cfg, self.world, self.state
        loader = build.probe_loader(cfg, self.data, world)
        precision = tasks.PRECISION[cfg.train.mixed_precision]
        features = probe.read_features(
            state.model,
            loader,
            tasks.StepSettings(device=world.device, precision=precision),
            batch_size=cfg.test.batch_size,
            world=world,
            stopped=lambda: self.stop.requested,
        )
        loader.close()
        if features is None:
            return False
        labels = build.probe_labels(cfg, self.data, features.video_ids)
        if cfg.train.probe == "attentive":
            words = attentive.fit_on_main(
                state.model,
                features,
                labels,
                seed=cfg.rng_seed,
                world=world,
                stopped=lambda: self.stop.requested,
            )
            if words is None:
                return False
        else:
            found = world.run_on_main(probe.fit, features.rows, labels, seed=cfg.rng_seed)
            probe.write(state.model, found)
            words = str(found)
        if state.ema is not None:
            state.ema = optim.Ema(state.model, cfg.train.ema_decay)
        self.logger.info(words)
        return True

    # ---- one step ---------------------------------------------------------------------------

    def start_training(self) -> None:
        """Set the model's mode and start the clock, after whatever was done between steps."""
        set_mode(self.state.model, linear_probe=self.cfg.train.linear_probe)
        self.clock.restart()

    def take_step(self, forward: Forward, batches: DevicePrefetcher) -> None:
        """Queue one optimizer step, and log the last one that `STEPS_AHEAD` does not hold back.

        Raises NotFinite for a loss or a gradient that is NaN or infinite.
        """
        state, world = self.state, self.world
        lr = self._lr_of(state.step)
        optim.set_lr(state.optimizer, lr)
        totals = forward.backward(batches, state.step, state.scaler, self.clock)
        vote = totals.new_full((1,), self.stop.requested)  # filled on the device: a copy would wait
        world.all_reduce(totals)
        world.all_reduce(vote)
        with out_of_memory_explained(forward.clips, NotToBeSaved):
            norm = update(
                state.optimizer,
                state.scaler,
                state.trained,
                totals,
                self.plan,
                self.cfg.solver.clip_grad_l2norm,
            )
        if state.ema is not None:
            state.ema.update(state.model, state.step)

        state.step += 1
        numbers = torch.cat([totals, vote, norm[None].double()])
        self.queued.append(QueuedStep(state.step, lr, Arriving(numbers)))
        self.finish_steps(leave=STEPS_AHEAD[world.device.type])

    def finish_steps(self, leave: int = 0) -> None:
        """Read the numbers of all queued steps but the last `leave`, and log them.

        Raises NotFinite for a loss or a gradient that is NaN or infinite.
        """
        state = self.state
        while len(self.queued) > leave:
            step = self.queued.popleft()
            # The only point where the CPU waits for the GPU, and on a GPU a step later.
            *sums, votes, grad_norm = step.numbers.read()
            self.stopping = self.stopping or votes > 0
            require_finite(
                sums[0],
                grad_norm,
                step.number,
                scaled=state.scaler.is_enabled(),
                advice=functools.partial(self.checkpoints.advice.text, self.checkpoints.last_good),
            )
            state.sums = [a + b for a, b in zip(state.sums, sums, strict=True)]
            self.clock.step_done(int(sums[1]))
            self.log.log_step(step.number, StepResult(sums, step.lr, grad_norm))

    def log_epoch(self) -> None:
        """Log the epoch that has ended and begin to sum up the next."""
        self.finish_steps()
        state = self.state
        self.log.log_epoch(state.step, state.sums, lr=self._lr_of(state.step - 1))
        state.sums = [0.0] * len(state.sums)

    def _lr_of(self, step: int) -> float:
        return optim.lr_at(step, self.plan.lr)

    # ---- between steps ----------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The epoch that the last step belongs to, from 1."""
        return -(-self.state.step // self.plan.steps_per_epoch)

    @property
    def at_end_of_epoch(self) -> bool:
        """Whether the last step ended an epoch, or the run."""
        step = self.state.step
        return step % self.plan.steps_per_epoch == 0 or step == self.plan.total_steps

    def save(self) -> Path:
        """Write a checkpoint; returns its path on every process."""
        self.finish_steps()
        return self.checkpoints.save(self.state, self.world)

    def finish_epoch(self) -> None:
        """Save, validate, keep the best checkpoint and draw, as far as each is due.

        A signal during the validation sets `stopping` and leaves out the rest.
        """
        cfg, step = self.cfg, self.state.step
        last = step >= self.plan.total_steps
        due = is_due(cfg.train.checkpoint_period, self.epoch, last)
        path = self.save() if due or is_due(cfg.train.checkpoint_steps, step, last) else None
        if self.val_loader is not None and is_due(cfg.train.eval_period, self.epoch, last):
            metrics = self._validate(self.val_loader)
            if metrics is None:
                self.stopping = True
                return
            self._keep_best(metrics, path)
        if collapse.is_watched(self.state.model):
            self._watch_features()
        if self.objective.picture_name and is_due(cfg.train.picture_period, self.epoch):
            self._draw()
        self.logger.draw_curves(last=last)
        self.logger.show(f"training: epoch {self.epoch} of {self.plan.epochs} is done", now=False)

    def _watch_features(self) -> None:
        """Record whether the encoder tells clips apart, and warn where it does not. Not for a model
        whose parts are on several processes: its encoder does not run by itself."""
        world, state = self.world, self.state
        if not world.is_main or sharding.is_sharded(state.model):
            return
        if self.watched is None:
            found = self._first_clips(collapse.CLIPS)
            if found is None or len(found.clips) < 2:
                return
            self.watched = found.to(world.device).normalized(self.data.dataset.spec)
        precision = tasks.PRECISION[self.cfg.train.mixed_precision]
        with tasks.StepSettings(device=world.device, precision=precision).autocast():
            spread = collapse.feature_spread(state.model, self.watched)
        if spread is None:
            self.logger.info(f"note: {collapse.NO_MEMORY}")
        else:
            self.log.log_spread(state.step, spread)

    def _first_clips(self, count: int) -> Batch | None:
        guarded = self.cfg.data_loader.num_workers != 0
        return first_clips(self.data.dataset, count, guarded=guarded)

    def _draw(self) -> None:
        """Draw what the model does with clips."""
        world, model, dataset = self.world, self.state.model, self.data.dataset
        clips = self._first_clips(2) if world.is_main else None
        if sharding.is_sharded(model):  # its passes take all processes
            clips = world.broadcast(clips)
        if clips is not None:
            step = self.state.step
            draw_picture(self.logger, self.objective, model, dataset, clips, step=step)

    def _validate(self, loader: Loader) -> dict[str, float] | None:
        """Score one view of every validation video; None after a signal to any process."""
        with self.state.averaged():
            answers = self.evaluation.answers(
                self.state.model,
                loader,
                evaluate.score_settings(self.cfg, self.cfg.train.mixed_precision),
                world=self.world,
                stopped=lambda: self.stop.requested,
                on_video=evaluate.VideoProgress(self.logger, loader, "val").update,
            )
        if answers is None:
            return None
        return self.evaluation.metrics(answers, loader.dataset.manifest)

    def _keep_best(self, metrics: dict[str, float], path: Path | None) -> None:
        """Keep the checkpoint as the best one if it is, and log the validation.

        path: the checkpoint after the last step, if it is written already.
        """
        # The best one is in place before the record says that this epoch was validated: a run that
        # is killed in between validates again when it resumes.
        best = self.world.broadcast(checkpoint.best_record(self.checkpoints.folder))
        name = self.evaluation.best
        if best is None or metrics[name] > best["value"]:
            best = {"metric": name, "value": metrics[name], "epoch": self.epoch}
            path = path or self.save()
            self.checkpoints.finish(self.world)
            self.world.run_on_main(checkpoint.keep_best, path, best)
        self.log.log_validation(self.state.step, metrics, best)

    # ---- the end ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def saved_on_failure(self) -> Iterator[None]:
        """Save the state when the loop fails, and end it quietly after a signal.

        Only `update` changes parameters, so the state after `step` steps is whole, unless the error
        is a NotToBeSaved. Of several processes the failure of one ends all, unsaved.
        """
        try:
            yield
        except NotToBeSaved:
            raise
        except Exception as error:
            if self.stop.requested and self.world.is_main:
                # A signal to all processes ends those that read videos for them, too; what fails
                # for that reason is not a failure of the run.
                self.stopping = True
                self.finish_steps()
                self.checkpoints.write(self.state)
                if self.world.size > 1:  # the others wait for what this process will not do
                    raise SystemExit(self.end()) from None
            elif isinstance(error, RunFailed) and self.world.size == 1 and self.state.step > 0:
                self.finish_steps()
                path = self.checkpoints.write(self.state)
                raise RunFailed(
                    f"{error}; saved {path}, from where the same command goes on"
                ) from error
            else:
                raise

    def end_unsaved(self) -> int:
        """Log that the probe was interrupted; returns the exit code."""
        self.stop.obeyed = True
        self._say_last(
            f"stopped by {self.stop.name} in the probe; nothing was saved. The same command begins "
            "again"
        )
        return self.stop.exit_code(saved=False)

    def end(self) -> int:
        """Log how the run ended; returns the exit code."""
        step, total, folder = self.state.step, self.plan.total_steps, self.checkpoints.folder
        if self.stopping:
            self.stop.obeyed = True
            self._say_last(
                f"stopped by {self.stop.name} after step {step} of {total}, which is saved in "
                f"{folder}. The same command goes on from there"
            )
            return self.stop.exit_code(saved=True)
        self._say_last(f"trained: step {step} of {total}; checkpoints in {folder}")
        return 0

    def _say_last(self, text: str) -> None:
        """Log how the run has ended, on its page too."""
        self.logger.info(text)
        self.logger.show(text, live=False)


def _is_validated(folder: Path, step: int) -> bool:
    """Return whether the records hold a validation after `step` steps."""
    return any(
        record["step"] == step for record in read_metrics(folder) if record["_type"] == "val_epoch"
    )
