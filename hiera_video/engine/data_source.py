"""The lists of videos of a run, as the DATA settings describe them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hiera_video.config.clips import DataConfig
from hiera_video.config.generated import GENERATED_SETS, SyntheticConfig
from hiera_video.config.recipes import recipe_names
from hiera_video.data.manifests.elsewhere import lies_elsewhere
from hiera_video.data.manifests.layouts import Manifest, read_manifest
from hiera_video.data.manifests.splits import MissingSplit
from hiera_video.data.synthetic.body_motion import reader as body_motion
from hiera_video.data.synthetic.generated_streams import STREAMS, stream_list
from hiera_video.engine.preflight import flat_settings
from hiera_video.errors import DataError
from hiera_video.progress import Progress
from hiera_video.storage.addresses import is_address


@dataclass(frozen=True)
class DataSource:
    """The settings that decide which videos a run reads."""

    data: DataConfig
    dataset: str
    """TRAIN.DATASET or TEST.DATASET; "synthetic" is the camera-motion set and "body_actions" the
    actions of generated figures, made where they are not there yet; "body_motion" and
    "camera_flow" are streams of generated clips without labels."""
    seed: int
    """RNG_SEED, of the split into training and validation."""
    synthetic: SyntheticConfig = dataclasses.field(default_factory=SyntheticConfig)
    """Size of the camera-motion set."""


def read_split(
    source: DataSource,
    split: str,
    *,
    num_classes: int = 0,
    need_labels: bool = True,
    hold_out: bool | None = True,
) -> Manifest:
    """Read the list of one split, "train", "val" or "test".

    Args:
        source: where the data is.
        split: which part of it.
        num_classes: labels must be below it; 0 allows any.
        need_labels: False where labels are not used: they are then not checked either.
        hold_out: where the data names no splits, give each split its share of the videos; False:
            give all of them.

    Raises DataError: data that is missing, empty or cannot be read; labels out of range.
    """
    data = source.data
    if source.dataset in STREAMS:
        return stream_list(source.dataset, source.synthetic.num_train)
    path, format = data.path_to_data_dir, source.dataset
    if source.dataset in GENERATED_SETS:
        path = str(make_synthetic(path, source.dataset, source.synthetic))
        format = "folder"
    elif not path or not (lies_elsewhere(path) or os.path.lexists(os.path.expanduser(path))):
        raise DataError(_no_data(path))
    return read_manifest(
        path,
        split,
        format=format if data.format == "auto" else data.format,
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
        seed=source.seed,
    )


def read_test_split(
    source: DataSource, *, stored_settings: str, stored_list: str, num_classes: int
) -> Manifest:
    """Read the videos to test a checkpoint on: the data's split "test", or "val".

    Where the data names no splits, these are all videos; but if the checkpoint was trained on this
    data, only those that were held out then. The manifest's notes say which.

    Args:
        source: the data of the test.
        stored_settings: settings of the training (YAML), from the checkpoint; "" where it has none.
        stored_list: fingerprint of its training videos, from the checkpoint; "" where it has none.
        num_classes: labels must be below it.

    Raises DataError, as `read_split` does.
    """
    whole = read_split(source, "test", num_classes=num_classes, hold_out=False)
    if stored_list and fingerprint(whole) == stored_list:
        note = (
            "this checkpoint was trained on these same videos: the result says nothing about "
            "other videos"
        )
        return dataclasses.replace(whole, notes=(*whole.notes, note))
    before = _settings_of(stored_settings)
    if not whole.undivided or not before:
        return whole
    split_as_trained = _split_as_trained(source, before)
    try:
        train_list = read_split(split_as_trained, "train", num_classes=num_classes)
    except MissingSplit:
        return whole  # too few videos to hold any out
    same_list = fingerprint(train_list) == stored_list
    folder = source.data.path_to_data_dir
    if not same_list and not _same_place(before.get("DATA.PATH_TO_DATA_DIR") or "", folder):
        return whole
    held_out = read_split(split_as_trained, "test", num_classes=num_classes)
    notes = [
        f"testing the {len(held_out)} of {len(whole)} videos that were held out when this "
        "checkpoint was trained; its best epoch was chosen on them"
    ]
    if not same_list:
        notes.append(f"{folder} has changed since: other videos, classes or labels than then")
    return dataclasses.replace(held_out, notes=(*whole.notes[:-1], *notes))


def _split_as_trained(source: DataSource, before: dict[str, Any]) -> DataSource:
    """Give `source` the settings of the split that the training had, from its flat settings."""
    data = dataclasses.replace(
        source.data,
        val_fraction=before.get("DATA.VAL_FRACTION", source.data.val_fraction),
        group_by=before.get("DATA.GROUP_BY", source.data.group_by),
    )
    return dataclasses.replace(source, data=data, seed=before.get("RNG_SEED", source.seed))


def _settings_of(text: str) -> dict[str, Any]:
    """Read the settings in a checkpoint; none where another program wrote something else there."""
    with contextlib.suppress(Exception):  # the file of another program may hold anything
        return flat_settings(text)
    return {}


def _same_place(one: str, other: str) -> bool:
    paths = [
        path if is_address(path) else os.path.realpath(os.path.expanduser(path))
        for path in (one, other)
        if path
    ]
    return len(paths) == 2 and paths[0] == paths[1]


def make_synthetic(folder: str, dataset: str, settings: SyntheticConfig) -> Path:
    """Make a generated set of files, unless it is there; its folder.

    folder: where; "" for the usual place. dataset: which, of GENERATED_SETS.
    """
    folder = folder or GENERATED_SETS[dataset]
    sizes = {
        "num_train": settings.num_train,
        "num_val": settings.num_val,
        "size": settings.size,
        "frames": settings.frames,
    }
    if dataset == "body_actions":
        body_motion.require_numba()
        from hiera_video.data.synthetic.body_motion import actions

        with Progress("generated", unit="clips") as progress:
            return actions.make_actions(
                folder, actions.ActionSettings(**sizes), progress=progress.report
            )
    from hiera_video.data.synthetic import camera_motion

    form = camera_motion.SetSettings(**sizes, plain=settings.plain)
    with Progress("generated", unit="clips") as progress:
        return camera_motion.make_dataset(folder, form, progress=progress.report)


def _no_data(path: str) -> str:
    """Return the message for a data folder that is not there."""
    what = (
        f"DATA.PATH_TO_DATA_DIR {path} does not exist" if path else "DATA.PATH_TO_DATA_DIR is empty"
    )
    ready = [name for name in recipe_names() if name.startswith("quickstart/")]
    without = f"\n  --cfg {ready[0]} runs without any data" if ready else ""
    return (
        f"{what}. It must be a folder with one of these layouts:\n"
        "  train.csv and val.csv, a line 'path label' for each video, or one labels.csv\n"
        "  train/CLASS/video.mp4 and val/CLASS/video.mp4, or CLASS/video.mp4 alone\n"
        "  the lists of Something-Something v2, UCF101 or HMDB51 as published"
        f"{without}\n  --dry-run 3 tries this config on generated clips"
    )


def fingerprint(manifest: Manifest) -> str:
    """Hash a list of videos: paths below its root, labels and order, but not the root itself."""
    digest = hashlib.blake2b(digest_size=16)
    for i in range(len(manifest)):
        digest.update(
            f"{manifest.paths.relative(i)}\0{manifest.label(i)}\n".encode("utf-8", "replace")
        )
    return digest.hexdigest()
