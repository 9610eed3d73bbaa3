"""Everything that can be known before the first step is checked before the first step.

A run that will fail after ten epochs must fail now: the folder, the disk, the settings of a run
that goes on, the data and its labels, one decoded batch, the starting weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hiera_video import files, scoring
from hiera_video.data.datasets import Failed, VideoDataset, try_to_read
from hiera_video.data.manifests.layouts import Manifest, read_manifest
from hiera_video.data.manifests.splits import NoSuchPart
from hiera_video.data.preload import PRELOAD
from hiera_video.engine import optim
from hiera_video.engine.distributed import World
from hiera_video.errors import DataError, RunFailed, UserError
from hiera_video.video.guarded_pool import GuardedPool, WorkerFailure

# ---- the folder of the run ----------------------------------------------------------------------


class RunFolder:
    """OUTPUT_DIR, made, tried and held: no other run can write into it meanwhile.

    A context manager; entering raises UserError where the folder cannot be written or is in use.
    """

    def __init__(self, path: str | Path, world: World):
        self.path = Path(path).expanduser()
        self.checkpoints = self.path / "checkpoints"
        self._world = world
        self._lock: Any = None

    def __enter__(self) -> RunFolder:
        self._world.run_on_main(self._open)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _open(self) -> None:
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            probe = self.checkpoints / f".probe.{os.getpid()}"
            probe.write_bytes(b"x")
            probe.unlink()
            self._lock = files.hold(self.path / ".lock")
        except OSError as error:
            raise UserError(
                f"cannot write to OUTPUT_DIR {self.path}: {error.strerror or error}; "
                "choose a folder you may write to: OUTPUT_DIR runs/my_run"
            ) from None
        if self._lock is None:
            raise UserError(
                f"another run is writing to OUTPUT_DIR {self.path}; "
                "wait for it, or choose another folder"
            )
        files.remove_leftovers(self.checkpoints)


# ---- what the run will be -----------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """The length of a run and its learning rates, worked out from settings and data."""

    videos: int
    """Training videos."""
    videos_per_step: int
    """TRAIN.BATCH_SIZE: videos of an optimizer step, over processes and accumulation."""
    clips_per_video: int
    """Clips taken from a video in an epoch (repeated sampling)."""
    steps_per_epoch: int
    total_steps: int
    warmup_steps: float
    base_lr: float
    warmup_start_lr: float
    end_lr: float
    cosine_after_warmup: bool
    steps_as_asked: bool = False
    """Whether total_steps is a setting, SOLVER.MAX_STEPS."""

    @property
    def clips_per_step(self) -> int:
        """Clips of an optimizer step, over processes and accumulation."""
        return self.videos_per_step * self.clips_per_video

    @property
    def epochs(self) -> int:
        """Epochs the run enters."""
        return -(-self.total_steps // self.steps_per_epoch)

    @property
    def dropped(self) -> int:
        """Videos that an epoch leaves out because they do not fill a step; others each epoch."""
        return self.videos - self.steps_per_epoch * self.videos_per_step

    @property
    def notes(self) -> list[str]:
        """What a user should know of a run that is too short for its schedule."""
        found = []
        if self.total_steps < FEW_STEPS and not self.steps_as_asked:
            epochs = -(-2 * FEW_STEPS // self.steps_per_epoch)
            found.append(
                "few optimizer steps teach a model little, and these are "
                f"{self.total_steps} in all ({self.steps_per_epoch} an epoch): "
                f"SOLVER.MAX_EPOCH {epochs} makes {epochs * self.steps_per_epoch} "
                "(another run, with another OUTPUT_DIR); "
                "a lower TRAIN.BATCH_SIZE makes more of each epoch"
            )
        if self.warmup_steps > self.total_steps / 2:
            found.append(
                f"the learning rate still rises for {self.warmup_steps:g} of {self.total_steps} "
                "steps; a lower SOLVER.WARMUP_EPOCHS leaves more at the full rate"
            )
        return found

    def lr_settings(self) -> dict[str, Any]:
        """The arguments of `lr_at` besides the step."""
        return {
            "base_lr": self.base_lr,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "warmup_start_lr": self.warmup_start_lr,
            "end_lr": self.end_lr,
            "cosine_after_warmup": self.cosine_after_warmup,
        }

    def __str__(self) -> str:
        dropped = f" ({self.dropped} left over, others each time)" if self.dropped else ""
        return (
            f"{self.videos} videos, {self.videos_per_step} a step x {self.clips_per_video} "
            f"clip{'s' * (self.clips_per_video > 1)} = {self.clips_per_step} clips a step; "
            f"{self.steps_per_epoch} steps an epoch{dropped}, {self.total_steps} in all; "
            f"peak lr {self.base_lr:.3g} at {self.clips_per_step} clips, "
            f"warm-up {self.warmup_steps:g} steps"
        )


def schedule(
    solver: Any, *, videos: int, videos_per_step: int, clips_per_video: int, steps_per_epoch: int
) -> Schedule:
    """The `Schedule` of SOLVER settings on a list of `videos` videos.

    Where an epoch is one step, the line of the warm-up begins one step later on its way up: at
    SOLVER.WARMUP_START_LR, which is next to nothing, a whole epoch would be lost.
    """
    scale = videos_per_step / solver.lr_batch if solver.lr_batch else 1.0
    total = solver.max_steps or steps_per_epoch * solver.max_epoch
    plan = Schedule(
        videos=videos,
        videos_per_step=videos_per_step,
        clips_per_video=clips_per_video,
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
        warmup_steps=min(solver.warmup_epochs * steps_per_epoch, total),
        base_lr=solver.base_lr * scale,
        warmup_start_lr=solver.warmup_start_lr * scale,
        end_lr=solver.cosine_end_lr * scale,
        cosine_after_warmup=solver.cosine_after_warmup,
        steps_as_asked=solver.max_steps > 0,
    )
    if steps_per_epoch > 1 or not plan.warmup_steps:
        return plan
    start, steps = plan.warmup_start_lr, plan.warmup_steps
    top = optim.lr_at(math.ceil(steps), **plan.lr_settings())
    return dataclasses.replace(plan, warmup_start_lr=start + (top - start) / (steps + 1))


FEW_STEPS = 100
"""A run of fewer optimizer steps is said to be short."""


# ---- data ---------------------------------------------------------------------------------------


def read_split(
    data: Any,
    *,
    dataset: str,
    split: str,
    seed: int,
    synthetic: Any = None,
    num_classes: int = 0,
    need_labels: bool = True,
    hold_out: bool | None = True,
) -> Manifest:
    """The list of one split as the DATA settings describe it.

    dataset: TRAIN.DATASET or TEST.DATASET; "synthetic" makes the camera-motion set first, where it
    is not there yet, from the SYNTHETIC settings. num_classes: labels must be below it (0: any).
    need_labels: False where labels play no part, so that none is wrong. hold_out: where the data
    names no parts, give train and the others their shares; False: give all of it.
    Raises DataError (missing, empty, unreadable, labels out of range).
    """
    path = data.path_to_data_dir
    if dataset == "synthetic":
        path = str(make_synthetic(path or SYNTHETIC_FOLDER, synthetic))
        dataset = "folder"
    elif not path or not os.path.lexists(os.path.expanduser(path)):
        raise DataError(_no_data(path))
    return read_manifest(
        path,
        split,
        format=dataset if data.format == "auto" else data.format,
        class_names=data.class_names,
        path_prefix=data.path_prefix,
        separator=data.path_label_separator or None,
        num_classes=num_classes or None,
        multi_label=data.multi_label,
        need_labels=need_labels,
        ignore_labels=not need_labels,
        hold_out=hold_out,
        fold=data.split,
        val_fraction=data.val_fraction,
        group_by=data.group_by,
        seed=seed,
    )


def read_test_split(
    data: Any, *, stored_settings: str, stored_list: str, seed: int, **settings: Any
) -> Manifest:
    """The videos to test a checkpoint on: the part that the data calls test, or val; where it
    names no parts, all of it, unless the checkpoint was trained on it: then what was held out.
    The manifest's notes say which.

    Args:
        data: the DATA settings of the test.
        stored_settings: those of the training (YAML), from the checkpoint; "" where it has none.
        stored_list: the fingerprint of its training videos, from the checkpoint; or "".
        seed: RNG_SEED of the test.
        settings: of `read_split`, except split and hold_out.
    """
    whole = read_split(data, split="test", seed=seed, hold_out=False, **settings)
    if stored_list and fingerprint(whole) == stored_list:
        note = "this checkpoint was trained on these very videos: the result says nothing of others"
        return dataclasses.replace(whole, notes=(*whole.notes, note))
    before = _settings_of(stored_settings)
    if not whole.undivided or not before:
        return whole
    data = dataclasses.replace(
        data,
        val_fraction=before.get("DATA.VAL_FRACTION", data.val_fraction),
        group_by=before.get("DATA.GROUP_BY", data.group_by),
    )
    shares = {"seed": before.get("RNG_SEED", seed), "hold_out": True, **settings}
    try:
        trained = fingerprint(read_split(data, split="train", **shares)) == stored_list
    except NoSuchPart:
        return whole  # too few videos to hold any out
    folder = before.get("DATA.PATH_TO_DATA_DIR") or ""
    if not trained and not _same_place(folder, data.path_to_data_dir):
        return whole
    part = read_split(data, split="test", **shares)
    notes = [
        f"testing the {len(part)} of {len(whole)} videos that were held out when this checkpoint "
        "was trained; its best epoch was chosen on them"
    ]
    if not trained:
        notes.append(
            f"{data.path_to_data_dir} has changed since: other videos, classes or labels than then"
        )
    return dataclasses.replace(part, notes=(*whole.notes[:-1], *notes))


def _settings_of(text: str) -> dict[str, Any]:
    """The settings in a checkpoint; empty for one of others that has something else there."""
    with contextlib.suppress(Exception):  # whatever a stranger's file holds
        return flat_settings(text)
    return {}


def _same_place(one: str, other: str) -> bool:
    paths = [os.path.realpath(os.path.expanduser(path)) for path in (one, other) if path]
    return len(paths) == 2 and paths[0] == paths[1]


SYNTHETIC_FOLDER = "data/camera_motion"
"""Where the camera-motion set goes if DATA.PATH_TO_DATA_DIR is empty."""


def make_synthetic(folder: str | Path, settings: Any) -> Path:
    """The camera-motion set of the SYNTHETIC settings, made if it is not there."""
    from hiera_video.data.synthetic import camera_motion as synthetic

    return synthetic.make_dataset(
        folder,
        num_train=settings.num_train,
        num_val=settings.num_val,
        size=settings.size,
        frames=settings.frames,
        plain=settings.plain,
    )


def _no_data(path: str) -> str:
    came = (
        f"DATA.PATH_TO_DATA_DIR {path} does not exist" if path else "DATA.PATH_TO_DATA_DIR is empty"
    )
    ready = sorted((Path(__file__).parents[2] / "configs" / "quickstart").glob("*.yaml"))
    without = f"\n  --cfg configs/quickstart/{ready[0].name} runs without any data" if ready else ""
    return (
        f"{came}. It must be a folder with one of these layouts:\n"
        "  train.csv and val.csv, a line 'path label' for each video, or one labels.csv\n"
        "  train/CLASS/video.mp4 and val/CLASS/video.mp4, or CLASS/video.mp4 alone\n"
        "  the lists of Something-Something v2, UCF101 or HMDB51 as published"
        f"{without}\n  --dry-run 3 tries this config on generated clips"
    )


def require_readable(
    dataset: VideoDataset, *, what: str, tries: int = 8, guarded: bool = False
) -> None:
    """Decode one video, the first of up to `tries` spread over the list that can be read.

    guarded: in a process of its own, as the loader's workers will, so that a video which crashes
    its decoder is one that cannot be read.

    RunFailed with the reasons where none can.
    """
    count = min(tries, len(dataset))
    failed = []
    videos = [i * len(dataset) // count for i in range(count)]
    with contextlib.closing(reading(try_to_read, dataset, videos, guarded=guarded)) as outcomes:
        for outcome in outcomes:
            if outcome is None:
                return
            failed.append(outcome)
    reasons = "\n  ".join(f"{f.path}: {f.reason}" for f in failed)
    raise RunFailed(f"none of {count} {what} videos tried can be read:\n  {reasons}")


def reading(
    function: Callable[[Any], Any], dataset: VideoDataset, videos: Sequence[int], *, guarded: bool
) -> Iterator[Any]:
    """`function((reader, sample))` of one video after the other, as they are asked for.

    guarded: in a process of its own, so that a video which crashes its decoder, or takes too much
    time or memory, is a `Failed`, and no end of the run.
    """
    with GuardedPool(function, preload=PRELOAD) if guarded else contextlib.nullcontext() as pool:
        for video_id in videos:
            sample = dataset.sample(video_id)
            request = (dataset.reader, sample)
            try:
                outcome = pool.call(request) if guarded else function(request)
            except WorkerFailure as failure:
                outcome = Failed(sample.video_id, sample.path, failure.reason)
            yield outcome


def class_names(manifest: Manifest, num_classes: int) -> list[str]:
    """The names of the outputs, as the checkpoint keeps them; empty where the data has none.

    UserError where MODEL.NUM_CLASSES says something else than the data.
    """
    names = list(manifest.classes or ())
    if names and num_classes and len(names) != num_classes:
        raise UserError(
            f"MODEL.NUM_CLASSES {num_classes}, but the data has {len(names)} classes; "
            f"set MODEL.NUM_CLASSES 0 to take the number from the data"
        )
    return names


def require_classes(manifest: Manifest) -> None:
    """UserError where all training videos are of one class."""
    only = manifest.only_class()
    if only:
        raise UserError(
            f"1 class ({only}): nothing to tell apart; {manifest.describe_classes()}. Training a "
            "classifier needs two classes or more; pretraining (TASK pretrain) needs none"
        )


def fingerprint(manifest: Manifest) -> str:
    """What identifies a list of videos (paths below its root, labels, order), whatever its root."""
    digest = hashlib.blake2b(digest_size=16)
    for i in range(len(manifest)):
        digest.update(
            f"{manifest.paths.relative(i)}\0{manifest.label(i)}\n".encode("utf-8", "replace")
        )
    return digest.hexdigest()


def require_fitting_clips(name: str, model: nn.Module, data: Any, *, training: bool) -> None:
    """UserError where the DATA settings make clips of another size than the model is built for."""
    try:
        scoring.require_fitting_clips(model, data.clip_spec(training=training))
    except UserError as error:
        what = "training" if training else "validation and test"
        raise UserError(
            f"{name}, {what}: {error}. DATA.NUM_FRAMES is {data.num_frames}, "
            f"DATA.TRAIN_CROP_SIZE {data.train_crop_size}, DATA.TEST_CROP_SIZE "
            f"{data.test_crop_size}: a model of one size needs equal crops. A model whose builder "
            "does not name the argument input_size is told it by MODEL.KWARGS.input_size"
        ) from None


# ---- settings of a run that goes on -------------------------------------------------------------

FREE_TO_CHANGE = (
    "OUTPUT_DIR",
    "LOG_PERIOD",
    "DEVICE",
    "NUM_THREADS",
    "IMPORTS",
    "DATA.PATH_TO_DATA_DIR",  # the list itself is compared, by its fingerprint
    "DATA.PATH_PREFIX",
    "DATA.FORMAT",  # so is what it makes of the folders
    "DATA_LOADER.",
    "TEST.",
    "TENSORBOARD.",
    "MODEL.ACT_CHECKPOINT",
    "TRAIN.ENABLE",
    "TRAIN.EVAL_PERIOD",
    "TRAIN.CHECKPOINT_PERIOD",
    "TRAIN.CHECKPOINT_STEPS",
    "TRAIN.KEEP_CHECKPOINTS",
    "TRAIN.AUTO_RESUME",
    "TRAIN.GRAD_ACCUM",
    "TRAIN.COMPILE",
    "TRAIN.PICTURE_PERIOD",
)
"""Settings that do not change what is learnt (beyond the order of additions)."""


def changed_settings(stored: str, current: str) -> list[str]:
    """Lines `KEY: stored there, current here` where two configs (YAML) learn different things."""
    before, now = flat_settings(stored), flat_settings(current)
    return [
        f"{key}: {_shown(before, key)} there, {_shown(now, key)} here"
        for key in sorted(before.keys() | now.keys())
        if _shown(before, key) != _shown(now, key) and not key.startswith(FREE_TO_CHANGE)
    ]


def _shown(settings: dict[str, Any], key: str) -> str:
    return repr(settings[key]) if key in settings else "not set"


def flat_settings(text: str) -> dict[str, Any]:
    """YAML of a config as {"SOLVER.BASE_LR": 0.1, ...}."""
    import yaml

    flat: dict[str, Any] = {}
    for name, value in yaml.safe_load(text).items():
        if isinstance(value, dict) and name.isupper():
            flat.update({f"{name}.{key}": item for key, item in value.items()})
        else:
            flat[name] = value
    return flat


def require_same_settings(path: Path, stored: str, current: str) -> None:
    """UserError naming what changed since the checkpoint at `path`, and the ways on."""
    changed = changed_settings(stored, current)
    if changed:
        shown = "\n  ".join(changed[:12] + [f"and {len(changed) - 12} more"] * (len(changed) > 12))
        raise UserError(
            f"OUTPUT_DIR holds a run with other settings ({path}):\n  {shown}\n"
            "Choose another OUTPUT_DIR for a new run, or put the settings back. To go on from that "
            "checkpoint under the new settings, choose another OUTPUT_DIR and set "
            f"TRAIN.CHECKPOINT_FILE_PATH {path} TRAIN.CHECKPOINT_EPOCH_RESET False"
        )


WITHOUT_WEIGHTS = ("head_dropout", "drop_path_rate", "mask_ratio", "decode_ratio")
"""Arguments of models that change how they train and none of their weights."""


def require_same_model(path: Path, stored: dict[str, Any], current: dict[str, Any]) -> None:
    """UserError where a checkpoint is of another model than the one built."""
    if _with_weights(stored) != _with_weights(current):
        raise UserError(
            f"{path} is a checkpoint of another model:\n"
            f"  {stored['name']} {stored['kwargs']} there\n"
            f"  {current['name']} {current['kwargs']} here\n"
            "To start from its weights, choose another OUTPUT_DIR and set "
            f"TRAIN.CHECKPOINT_FILE_PATH {path}"
        )


def _with_weights(identity: dict[str, Any]) -> dict[str, Any]:
    kwargs = {k: v for k, v in identity["kwargs"].items() if k not in WITHOUT_WEIGHTS}
    return {**identity, "kwargs": kwargs}


def require_steps_left(path: Path, step: int, plan: Schedule) -> None:
    """UserError where a checkpoint has taken more steps than the run is to have."""
    if step > plan.total_steps:
        raise UserError(
            f"{path} has taken {step} steps and this run ends after {plan.total_steps}: there is "
            "nothing to go on with. Raise SOLVER.MAX_EPOCH (or SOLVER.MAX_STEPS); to train anew "
            "from its weights, leave TRAIN.CHECKPOINT_EPOCH_RESET at True"
        )


def require_same_list(path: Path, stored: str, current: str) -> None:
    """UserError where the list of training videos has changed since the checkpoint."""
    if stored != current:
        raise UserError(
            f"the list of training videos is not the one that the run in {path.parent} began with; "
            "put it back, or choose another OUTPUT_DIR"
        )
