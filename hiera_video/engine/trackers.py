"""Where curves and pictures of a run go beside its folder: TensorBoard, W&B, MLflow, trackio.

None is imported unless a setting names it. Each keeps to its own variables and login; offline modes
are theirs too: WANDB_MODE=offline, MLFLOW_TRACKING_URI=file:runs/mlflow. A run that is resumed goes
on in the same tracked run: its id is kept in the run's folder.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from hiera_video.errors import UserError, first_line
from hiera_video.files import explained, write_text

TENSORBOARD = "tensorboard"
IDS = "trackers.json"
"""The file in a run's folder: tracker -> id of the run there."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told about a run."""

    folder: Path
    project: str
    name: str
    """"": the name of the folder."""
    settings: str
    """The config as YAML."""

    @property
    def title(self) -> str:
        return self.name or self.folder.resolve().name

    def known_id(self, tracker: str) -> str | None:
        """Return the id that the run had in a tracker before it was interrupted."""
        try:
            found = json.loads((self.folder / IDS).read_text(encoding="utf-8")).get(tracker)
        except (OSError, ValueError, AttributeError):
            return None
        return str(found) if found else None

    def remember(self, tracker: str, run_id: str) -> None:
        """Keep the id of the run in a tracker, for `known_id`."""
        try:
            ids = dict(json.loads((self.folder / IDS).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            ids = {}
        write_text(self.folder / IDS, json.dumps({**ids, tracker: run_id}) + "\n")


class Tracker(Protocol):
    """One place where a run is shown."""

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve, such as "Train/loss"."""
        ...

    def add_image(self, name: str, image: Tensor, step: int) -> None:
        """Add an RGB picture, float [3, H, W] in [0, 1]."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "TENSORBOARD.ENABLE needs the tensorboard package: pip install tensorboard, "
                "or set TENSORBOARD.ENABLE False"
            ) from None
        self.folder = folder
        self.writer = SummaryWriter(str(folder))

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker`; raises RunFailed where the disk is full."""
        with explained(self.folder):
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def add_image(self, name: str, image: Tensor, step: int) -> None:
        """See `Tracker`; raises RunFailed where the disk is full."""
        with explained(self.folder):
            self.writer.add_image(name, image, step)

    def close(self) -> None:
        """See `Tracker`."""
        self.writer.close()


class Wandb:
    """Weights & Biases, or trackio, which has its calls."""

    def __init__(self, run: TrackedRun, library: str) -> None:
        self.wandb = _import(library)
        known = run.known_id(library)
        more: dict[str, Any] = {"id": known} if known and library == "wandb" else {}
        if library == "wandb":
            more["dir"] = str(run.folder)
        self.run = self.wandb.init(
            project=run.project,
            name=run.title,
            config=_flat(run.settings),
            resume="allow",
            **more,
        )
        if library == "wandb":
            run.remember(library, str(self.run.id))

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        self.run.log(dict(values), step=step)

    def add_image(self, name: str, image: Tensor, step: int) -> None:
        """See `Tracker`."""
        self.run.log({name: self.wandb.Image(_pixels(image))}, step=step)

    def close(self) -> None:
        """See `Tracker`."""
        self.run.finish()


class Mlflow:
    """MLflow, at MLFLOW_TRACKING_URI."""

    def __init__(self, run: TrackedRun) -> None:
        _import("mlflow")
        client = importlib.import_module("mlflow.tracking").MlflowClient
        self.client: Any = client()
        found = self.client.get_experiment_by_name(run.project)
        experiment = found.experiment_id if found else self.client.create_experiment(run.project)
        known = run.known_id("mlflow")
        if known is None:
            made = self.client.create_run(experiment, run_name=run.title)
            known = str(made.info.run_id)
            run.remember("mlflow", known)
            for key, value in _flat(run.settings).items():
                self.client.log_param(known, key, str(value)[:500])
        self.run_id = known

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self.client.log_metric(self.run_id, name, value, step=step)

    def add_image(self, name: str, image: Tensor, step: int) -> None:
        """See `Tracker`."""
        file = f"{name}_{step:07d}.png"
        self.client.log_image(self.run_id, _pixels(image), artifact_file=file)

    def close(self) -> None:
        """See `Tracker`."""
        self.client.set_terminated(self.run_id)


OPENERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "wandb": lambda run: Wandb(run, "wandb"),
    "mlflow": Mlflow,
    "trackio": lambda run: Wandb(run, "trackio"),
}
"""Name in TRACKERS.NAMES -> what opens it."""


def open_tracker(name: str, run: TrackedRun) -> Tracker:
    """Open a tracker. Raises UserError: not installed, no login, no such server."""
    try:
        return OPENERS[name](run)
    except UserError:
        raise
    except Exception as error:  # each library has its own
        raise UserError(
            f"TRACKERS.NAMES {name}: it cannot be started: {first_line(error)}. "
            f"Offline: {_OFFLINE[name]}; without it: TRACKERS.NAMES '[]'"
        ) from None


_OFFLINE = {
    "wandb": "the variable WANDB_MODE=offline",
    "mlflow": "the variable MLFLOW_TRACKING_URI=sqlite:///mlflow.db",
    "trackio": "it is always local unless a space is named",
}


class Careful:
    """A tracker that may fail without ending the run: it is left out from then on, with a warning.

    A server that is away for a minute must not cost a day of training, whose records are complete
    in metrics.jsonl.
    """

    def __init__(self, name: str, tracker: Tracker, warn: Callable[[str], None]) -> None:
        self.name, self.warn = name, warn
        self.tracker: Tracker | None = tracker

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        self._try(lambda tracker: tracker.add_scalars(values, step))

    def add_image(self, name: str, image: Tensor, step: int) -> None:
        """See `Tracker`."""
        self._try(lambda tracker: tracker.add_image(name, image, step))

    def close(self) -> None:
        """See `Tracker`."""
        self._try(lambda tracker: tracker.close())

    def _try(self, call: Callable[[Tracker], None]) -> None:
        if self.tracker is None:
            return
        try:
            call(self.tracker)
        except Exception as error:  # each library has its own
            self.tracker = None
            self.warn(
                f"warning: {self.name} gets nothing more of this run: {first_line(error)}. "
                "The run goes on; metrics.jsonl has everything"
            )


def _import(library: str) -> Any:
    try:
        return importlib.import_module(library)
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] != library:
            raise
        raise UserError(
            f"TRACKERS.NAMES {library} needs its package: pip install {library}, or leave it out"
        ) from None


def _flat(settings: str) -> dict[str, Any]:
    """A config's YAML as `SOLVER.BASE_LR: 0.001`."""
    import yaml

    flat: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = value

    add("", yaml.safe_load(settings) or {})
    return flat


def _pixels(image: Tensor) -> Any:
    """Float [3, H, W] in [0, 1] -> uint8 [H, W, 3] in NumPy."""
    return (image.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
