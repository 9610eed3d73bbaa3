"""Checks before the first step, so that no run fails after ten epochs for a reason that was known.

They cover the labels, whether videos decode, the size of the clips, and the settings of a run that
is resumed. `run_folder` checks the folder, `checkpoint.require_space` the disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hiera_video import scoring
from hiera_video.config import DataConfig
from hiera_video.data.batch import Failed
from hiera_video.data.datasets import VideoDataset, try_to_read
from hiera_video.data.manifests.layouts import Manifest
from hiera_video.data.preload import PRELOAD
from hiera_video.engine.schedule import Schedule
from hiera_video.errors import RunFailed, UserError, hide_secrets
from hiera_video.video.guarded_pool import GuardedPool, WorkerFailure

# ---- data ---------------------------------------------------------------------------------------


def require_readable(
    dataset: VideoDataset, *, what: str, tries: int = 8, guarded: bool = False
) -> None:
    """Decode one video: the first that can be read of up to `tries`, spread over the list.

    Args:
        dataset: the videos.
        what: their name in messages, "training" or "validation".
        tries: most videos to try.
        guarded: decode in a child process, as the loader's workers will. A video that crashes its
            decoder then counts as one that cannot be read.

    Raises RunFailed, with the reasons, where none can be read.
    """
    count = min(tries, len(dataset))
    failed: list[Failed] = []
    videos = [i * len(dataset) // count for i in range(count)]
    with contextlib.closing(map_videos(try_to_read, dataset, videos, guarded=guarded)) as outcomes:
        for outcome in outcomes:
            if outcome is None:
                return
            failed.append(outcome)
    reasons = "\n  ".join(f"{f.path}: {f.reason}" for f in failed)
    raise RunFailed(f"none of {count} {what} videos tried can be read:\n  {reasons}")


def map_videos(
    function: Callable[[Any], Any], dataset: VideoDataset, videos: Sequence[int], *, guarded: bool
) -> Generator[Any, None, None]:
    """Yield `function((dataset.reader, sample))` for the videos at these indices, one by one.

    guarded: call it in a child process. A video that crashes its decoder, or takes too much time or
    memory, then yields a `Failed` and does not end the run.
    """
    with GuardedPool(function, preload=PRELOAD) if guarded else contextlib.nullcontext() as pool:
        for video_id in videos:
            sample = dataset.sample(video_id)
            request = (dataset.reader, sample)
            try:
                outcome = function(request) if pool is None else pool.call(request)
            except WorkerFailure as failure:
                outcome = Failed(sample.video_id, hide_secrets(sample.path), failure.reason)
            yield outcome


def class_names(manifest: Manifest, num_classes: int) -> list[str]:
    """Return the class names of the data, which the checkpoint keeps; empty where it has none.

    UserError where `num_classes` (MODEL.NUM_CLASSES) is set and is another number.
    """
    names = list(manifest.classes or ())
    if names and num_classes and len(names) != num_classes:
        raise UserError(
            f"MODEL.NUM_CLASSES {num_classes}, but the data has {len(names)} classes; "
            f"set MODEL.NUM_CLASSES 0 to take the number from the data"
        )
    return names


def require_classes(manifest: Manifest) -> None:
    """Raise UserError where all training videos are of one class."""
    only = manifest.only_class()
    if only:
        raise UserError(
            f"1 class ({only}): a classifier needs two classes or more; "
            f"{manifest.describe_classes()}. Pretraining (TASK pretrain) needs no classes"
        )


def require_fitting_clips(name: str, model: nn.Module, data: DataConfig, *, training: bool) -> None:
    """Raise UserError where the DATA settings make clips of another size than the model takes.

    name: of the model, for the message. training: check the clips of training, else of the test.
    """
    try:
        scoring.require_fitting_clips(model, data.clip_spec(training=training))
    except UserError as error:
        what = "training" if training else "validation and test"
        raise UserError(
            f"{name}, {what}: {error}. DATA.NUM_FRAMES is {data.num_frames}, "
            f"DATA.TRAIN_CROP_SIZE {data.train_crop_size}, DATA.TEST_CROP_SIZE "
            f"{data.test_crop_size}: a model of one size needs equal crops. For a model whose "
            "builder does not name the argument input_size, set MODEL.KWARGS.input_size"
        ) from None


# ---- resuming a run -----------------------------------------------------------------------------

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
    "PAGE.",
    "TENSORBOARD.",
    "TRACKERS.",
    "MODEL.ACT_CHECKPOINT",
    "TRAIN.ENABLE",
    "TRAIN.EVAL_PERIOD",
    "TRAIN.CHECKPOINT_PERIOD",
    "TRAIN.CHECKPOINT_STEPS",
    "TRAIN.KEEP_CHECKPOINTS",
    "TRAIN.AUTO_RESUME",
    "TRAIN.GRAD_ACCUM",
    "TRAIN.SHARDING",
    "TRAIN.COMPILE",
    "TRAIN.PICTURE_PERIOD",
)
"""Keys, or beginnings of keys, that a resumed run may change: they do not change what is learnt,
beyond the rounding of sums."""


def changed_settings(stored: str, current: str) -> list[str]:
    """List the settings in which two configs (YAML) learn different things.

    A line each: `KEY: value there, value here`, there being the stored config.
    """
    before, now = flat_settings(stored), flat_settings(current)
    return [
        f"{key}: {_shown(before, key)} there, {_shown(now, key)} here"
        for key in sorted(before.keys() | now.keys())
        if _shown(before, key) != _shown(now, key) and not key.startswith(FREE_TO_CHANGE)
    ]


def _shown(settings: dict[str, Any], key: str) -> str:
    return repr(settings[key]) if key in settings else "not set"


def flat_settings(text: str) -> dict[str, Any]:
    """Flatten the YAML of a config into {"SOLVER.BASE_LR": 0.1, ...}."""
    import yaml

    flat: dict[str, Any] = {}
    for name, value in yaml.safe_load(text).items():
        if isinstance(value, dict) and name.isupper():
            flat.update({f"{name}.{key}": item for key, item in value.items()})
        else:
            flat[name] = value
    return flat


def require_same_settings(path: Path, stored: str, current: str) -> None:
    """Raise UserError where settings have changed since the checkpoint at `path`.

    stored, current: two configs (YAML). The message names the settings, and what can be done.
    """
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
"""Arguments of models that change how they train, and no shape or meaning of a weight."""


def require_same_model(path: Path, stored: dict[str, Any], current: dict[str, Any]) -> None:
    """Raise UserError where the checkpoint at `path` is of another model than the one built.

    stored, current: {"name": registered name, "kwargs": arguments of the builder}.
    """
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
    """Raise UserError where the checkpoint at `path` has more steps than the whole run."""
    if step > plan.total_steps:
        raise UserError(
            f"{path} has taken {step} steps and this run ends after {plan.total_steps}: no steps "
            "are left. Raise SOLVER.MAX_EPOCH (or SOLVER.MAX_STEPS); to train anew "
            "from its weights, leave TRAIN.CHECKPOINT_EPOCH_RESET at True"
        )


def require_same_list(path: Path, stored: str, current: str) -> None:
    """Raise UserError where the training videos have changed since the checkpoint at `path`.

    stored, current: fingerprints of the two lists.
    """
    if stored != current:
        raise UserError(
            f"the list of training videos has changed since the run in {path.parent} began; "
            "put it back, or choose another OUTPUT_DIR"
        )
