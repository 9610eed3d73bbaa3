"""The state of a run: what a checkpoint holds, which one a run resumes from, how it is restored."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hiera_video import __version__
from hiera_video.config import Config, SolverConfig
from hiera_video.config.training import TrainConfig
from hiera_video.engine import checkpoint, evaluate, head_rows, optim, preflight, sharding
from hiera_video.engine.broadcast import broadcast_content
from hiera_video.engine.distributed import World
from hiera_video.engine.finite import FiniteState
from hiera_video.engine.schedule import Schedule
from hiera_video.engine.step import Advice, NotFinite
from hiera_video.errors import UserError, WeightsError
from hiera_video.models.weights.load import load_weights


@dataclass
class TrainingState:
    """What the steps of a run change."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    sums: list[float]
    """Sums over the steps of the present epoch, see `step.sum_names`."""
    classes: list[str] = field(default_factory=list)
    """Names of the model's outputs; empty where they have none."""
    ema: optim.Ema | None = None
    step: int = 0
    """Optimizer steps taken."""
    trained: list[nn.Parameter] = field(init=False)
    """The parameters that the optimizer changes."""

    def __post_init__(self) -> None:
        self.trained = [p for p in self.model.parameters() if p.requires_grad]

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Return the weights as a checkpoint holds them: `model_state` is what was validated; with
        an EMA, `raw_state` is what is trained."""
        if self.ema is None:
            return {"model_state": self.model.state_dict()}
        return {"model_state": self.ema.state_dict(), "raw_state": self.model.state_dict()}

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Let the model have the weights to validate inside a block: the averaged ones (EMA)."""
        return contextlib.nullcontext() if self.ema is None else self.ema.in_model(self.model)


@dataclass(frozen=True)
class RunRecord:
    """What a checkpoint says of its run and no step changes."""

    model: dict[str, Any]
    """{"name", "kwargs"}: enough to build the model again."""
    multi_label: bool
    spec: dict[str, Any]
    """The clips of validation and test, `ClipSpec.to_dict`."""
    settings: str
    """All settings, as YAML."""
    data: str
    """Fingerprint of the training list."""

    def content(self, state: TrainingState, *, epoch: int) -> dict[str, Any]:
        """Return what a checkpoint file holds after `epoch` whole epochs."""
        return {
            "format": checkpoint.FORMAT,
            "model": self.model,
            **state.weights(),
            "classes": state.classes,
            "multi_label": self.multi_label,
            "spec": self.spec,
            "cfg": self.settings,
            "data": self.data,
            "epoch": epoch,
            "step": state.step,
            "epoch_sums": state.sums,
            "optimizer_state": state.optimizer.state_dict(),
            "scaler_state": state.scaler.state_dict(),
            "versions": {"hiera_video": __version__, "torch": str(torch.__version__)},
        }


# ---- what is saved ------------------------------------------------------------------------------


@dataclass
class CheckpointWriter:
    """Writes the checkpoints of a run into a folder."""

    folder: Path
    record: RunRecord
    steps_per_epoch: int
    keep: int
    """TRAIN.KEEP_CHECKPOINTS."""
    numbers: FiniteState
    advice: Advice
    last_good: Path | None = None
    """The newest checkpoint whose numbers are finite."""

    def write(self, state: TrainingState) -> Path:
        """Write a checkpoint, delete those that are too old and return its path; on one process.

        Raises NotFinite, and writes nothing, where the state holds a NaN or an infinity.
        """
        epochs, rest = divmod(state.step, self.steps_per_epoch)
        path = self.folder / checkpoint.file_name(epochs, rest)
        content = self.record.content(state, epoch=epochs)
        fault = self.numbers.fault(content)
        if fault is not None:
            raise NotFinite(
                f"the state after step {state.step} was not saved, {fault}. "
                f"{self.advice.text(self.last_good)}"
            )
        checkpoint.save(content, path)
        checkpoint.prune(self.folder, keep=self.keep)
        return path

    def save(self, state: TrainingState, world: World) -> Path:
        """Write a checkpoint on the main process; if that fails, every process ends."""
        self.last_good = world.run_on_main(self.write, state)
        return self.last_good

    def finish(self, world: World) -> None:
        """Wait until what `save` has begun is on the disk: here it is as soon as it returns."""

    def read(self, path: Path, world: World) -> dict[str, Any] | str:
        """Read a checkpoint to resume from; returns its content or what is wrong, on every process.

        Only rank 0 reads the disk.
        """
        found: list[dict[str, Any]] = []

        def read() -> str:
            try:
                found.append(checkpoint.load(path))
            except UserError as error:
                return str(error)
            fault = self.numbers.fault(found[0])
            return "" if fault is None else f"{path}: {fault}"

        fault = world.run_on_main(read)
        return fault or broadcast_content(world, found[0] if found else {})


def require_space(
    checkpoints: CheckpointWriter,
    model: nn.Module,
    solver: SolverConfig,
    train: TrainConfig,
    plan: Schedule,
) -> None:
    """Raise UserError unless the disk has room for the checkpoints of the run."""
    inside_epochs = plan.total_steps // train.checkpoint_steps if train.checkpoint_steps else 0
    checkpoint.require_space(
        checkpoints.folder,
        one=checkpoint.estimated_bytes(
            model,
            optimizer_states=2 if solver.optimizing_method == "adamw" else 1,
            ema=train.ema_decay > 0,
        ),
        keep=checkpoints.keep,
        checkpoints=1 + plan.epochs // train.checkpoint_period + inside_epochs,
    )


# ---- where a run begins -------------------------------------------------------------------------


class Stored(NamedTuple):
    """A checkpoint that a run resumes from."""

    path: Path
    content: dict[str, Any]


def find_checkpoint(
    train: TrainConfig, checkpoints: CheckpointWriter, world: World, log: Callable[[str], None]
) -> Stored | None:
    """Return the checkpoint to resume from, on every process; None to start afresh.

    That is the newest of the run or, with TRAIN.CHECKPOINT_EPOCH_RESET False, the one that
    TRAIN.CHECKPOINT_FILE_PATH names. Raises UserError where none can be used: starting from scratch
    must be the user's choice.
    """
    folder = checkpoints.folder
    world.run_on_main(checkpoint.remove_unfinished, folder, log)
    paths = world.run_on_main(checkpoint.in_order, folder)
    if paths and not train.auto_resume:
        raise UserError(
            f"{folder} holds the checkpoints of a run and TRAIN.AUTO_RESUME is False; "
            "choose another OUTPUT_DIR, or move them away"
        )
    for path in reversed(paths):
        content = checkpoints.read(path, world)
        if not isinstance(content, str):
            return Stored(path, content)
        log(f"skipping a checkpoint: {content}")
    if paths:
        raise UserError(checkpoint.none_usable(folder, len(paths)))
    if train.checkpoint_file_path and not train.checkpoint_epoch_reset:
        path = Path(train.checkpoint_file_path).expanduser()
        content = checkpoints.read(path, world)
        if isinstance(content, str):
            raise UserError(f"a run cannot go on from TRAIN.CHECKPOINT_FILE_PATH: {content}")
        return Stored(path, content)
    return None


def start_from_weights(
    name: str,
    model_name: str,
    model: nn.Module,
    world: World,
    log: Callable[[str], None],
    *,
    classes: Sequence[str] | None,
) -> None:
    """Load the weights `name` (TRAIN.CHECKPOINT_FILE_PATH) into the model and log what was loaded.

    classes: the names of the model's outputs, see `load_weights`.
    Raises UserError where they cannot be found, read or fitted to the model.
    """
    try:
        stored, _ = evaluate.resolve_everywhere(world, name, model_name)
    except WeightsError as error:
        raise UserError(
            f"{error}\nTo start without them: TRAIN.CHECKPOINT_FILE_PATH '' (random weights), or "
            "--cfg small/finetune_folder (the small model of this package)"
        ) from None
    log(str(load_weights(model, stored, classes=classes)))


# ---- going on from a checkpoint -----------------------------------------------------------------


def require_same_run(stored: Stored, record: RunRecord) -> None:
    """Raise UserError where a checkpoint of OUTPUT_DIR is of other settings or another list."""
    before = same_version(stored.content["cfg"])
    preflight.require_same_settings(stored.path, before, record.settings)
    preflight.require_same_list(stored.path, stored.content["data"], record.data)


def same_version(settings: str) -> str:
    """Return stored settings as this version writes them: new settings get their defaults."""
    try:
        return Config.from_yaml(settings, source="the checkpoint's settings").to_yaml()
    except UserError:
        return settings


def restore(
    state: TrainingState,
    stored: Stored,
    record: RunRecord,
    plan: Schedule,
    *,
    classes: head_rows.ClassComparison,
) -> list[str]:
    """Take over everything that a checkpoint holds; returns notes on what starts afresh.

    classes: how the classes of the data fit those of the checkpoint.
    Raises UserError for a checkpoint of another model, or of a run that was longer than this one.
    """
    path, content = stored
    preflight.require_same_model(path, content["model"], record.model)
    preflight.require_steps_left(path, content["step"], plan)
    if len(content["epoch_sums"]) != len(state.sums):
        raise UserError(
            f"{path} has the sums of other metrics, so this run cannot go on from it; to "
            "start from its weights, choose another OUTPUT_DIR and set TRAIN.CHECKPOINT_FILE_PATH "
            f"{path}"
        )
    if classes.rows is not None:
        head_rows.place_weights(content, state.model, classes.rows)
    weights = content.get("raw_state", content["model_state"])
    state.model.load_state_dict(sharding.placed(state.model.state_dict(), weights))
    notes = restore_optimizer(state.optimizer, state.scaler, content)
    if classes.rows is not None:
        head_rows.place_moments(state.optimizer, state.model, classes.rows)
    if state.ema is not None:
        state.ema.load_state_dict(content["model_state"])
    state.step, state.sums, state.classes = content["step"], content["epoch_sums"], classes.names
    return notes


def restore_optimizer(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, content: dict[str, Any]
) -> list[str]:
    """Restore the optimizer's moments and the scaler; the settings of this run stay.

    Returns notes on moments that the checkpoint does not hold and that start afresh.
    """
    notes = optim.restore_state(optimizer, content["optimizer_state"]) if content["step"] else []
    if scaler.is_enabled() and content["scaler_state"]:  # empty for a run without fp16
        scaler.load_state_dict(content["scaler_state"])
    return notes
