"""Read the list of videos of a data set, whatever its layout: files on disk -> one `Manifest`.

    train = read_manifest("kinetics", split="train")            # recognises the layout
    val = read_manifest("kinetics", split="val", classes=train.classes)

Each layout has one reader, a function `reader(source) -> Manifest` registered by name in
`DATASET_REGISTRY`: `class_folders.py`, `kinetics.py` (and with it every list `path label`),
`public_sets.py`. A new data set is one more such function; in a module of your own it is registered
with `--import my_module`. What readers share: `tables.py` (CSV and its like), `video_table.py` and
`video_lists.py` (lists of videos), `label_texts.py` (labels as texts), `builder.py`.

Nothing here opens a video, so a list may name files that do not exist: they are counted when they
are read (`datasets.py`), and reported beforehand by the audit.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

# The imports register the readers; detection asks them in this order.
from hiera_video.data.manifests import class_folders, kinetics, public_sets  # noqa: F401
from hiera_video.data.manifests.class_folders import read_folder
from hiera_video.data.manifests.class_names import numbered_class_names, read_class_names
from hiera_video.data.manifests.detection import detect_format
from hiera_video.data.manifests.elsewhere import brought_here, lies_elsewhere
from hiera_video.data.manifests.manifest import Manifest
from hiera_video.data.manifests.source import Source
from hiera_video.data.manifests.splits import (
    SPLITS,
    MissingSplit,
    VideoEntry,
    group_extractor,
    hold_out,
)
from hiera_video.errors import DataError
from hiera_video.registry import DATASET_REGISTRY
from hiera_video.video.find import VIDEO_SUFFIXES

__all__ = [
    "SPLITS",
    "VIDEO_SUFFIXES",
    "DataError",
    "Manifest",
    "Source",
    "detect_format",
    "read_class_names",
    "read_folder",
    "read_manifest",
    "video_groups",
]


def read_manifest(
    path: str | Path,
    split: str = "train",
    *,
    format: str = "auto",
    class_names: str | Path = "",
    **settings: Any,
) -> Manifest:
    """Read one split of a data set.

    Args:
        path: a folder or a list (csv, json, txt, parquet), or tar shards; or the address of one
            (`elsewhere.py`).
        split: "train", "val" or "test". A list that is named directly and has no splits is read
            whole, unless `hold_out` says otherwise.
        format: a name in `DATASET_REGISTRY`, or "auto", which recognises the layout.
        class_names: a file with the names of the classes (see `read_class_names`).
        settings: the other fields of `Source`.

    Raises DataError: nothing there, nothing in it, a line that cannot be read, a label that is not
    a number or out of range; UnknownNameError: no such format.
    """
    if split not in SPLITS:
        raise DataError(f"split={split!r} is not known; choose one of {', '.join(SPLITS)}")
    place = os.path.expanduser(path)
    if lies_elsewhere(place):
        with brought_here(place, split, settings) as here:
            own_format = "kinetics_csv" if here.is_table else format
            return here.moved(_read(here.path, split, own_format, class_names, here.settings))
    return _read(Path(place), split, format, class_names, settings)


def _read(
    path: Path, split: str, format: str, class_names: str | Path, settings: dict[str, Any]
) -> Manifest:
    """`read_manifest` of a file or folder of this machine."""
    if not os.path.lexists(path):
        raise DataError(f"no such file or folder: {path} (the data to read, DATA.PATH_TO_DATA_DIR)")
    source = Source(path=path, split=split, **settings)
    if class_names:
        names, first = numbered_class_names(class_names)
        source = replace(
            source,
            id_names=tuple(names),
            id_names_from=f"DATA.CLASS_NAMES {class_names}",
            id_names_begin=first,
        )
    if format == "auto":
        format = detect_format(path)
    manifest: Manifest = DATASET_REGISTRY.get(format)(source)
    if getattr(manifest, "undivided", False):
        return _share_of_split(manifest, source)
    return manifest


@DATASET_REGISTRY.register(name="video")
def read_any(source: Source) -> Manifest:
    """Read whatever layout is there."""
    manifest: Manifest = DATASET_REGISTRY.get(detect_format(source.path))(source)
    return manifest


# ---- a split for data that has none -------------------------------------------------------------


def _share_of_split(manifest: Manifest, source: Source) -> Manifest:
    """The share of a split in data without splits, or all of it; a note says which."""
    is_folder = source.path.is_dir()
    if not (is_folder if source.hold_out is None else source.hold_out):
        if source.hold_out is None:
            return manifest
        kind = "folder" if is_folder else "list"
        note = f"all {len(manifest)} videos of {source.path}: the {kind} has no splits"
        return replace(manifest, notes=(*manifest.notes, note))
    held_out = hold_out(_entries(manifest, source), source)
    wanted = source.split != "train"
    kept = np.full(len(manifest), not wanted)
    kept[list(held_out)] = wanted
    if not kept.any():
        raise MissingSplit(f"{source.path}: too few videos to hold any out for {source.split}")
    note = (
        f"no split of its own: {kept.sum()} of {len(manifest)} videos are {source.split} "
        f"(val_fraction {source.val_fraction:g}, seed {source.seed})"
    )
    return replace(manifest.select(kept), notes=(*manifest.notes, note))


def _entries(manifest: Manifest, source: Source) -> list[VideoEntry]:
    """The videos with what decides which are held out: class and group."""
    groups = video_groups(manifest, source.group_by)
    entries = []
    for i in range(len(manifest)):
        path, label = manifest.paths.relative(i), manifest.label(i)
        labels = label if isinstance(label, tuple) else (label,) if label >= 0 else ()
        names = [manifest.classes[n] if manifest.classes else str(n) for n in labels]
        entries.append(VideoEntry(path, ";".join(names), groups[i]))
    return entries


def video_groups(manifest: Manifest, group_by: str) -> list[str]:
    """The group of each video, whose videos must not be divided; of an unknown one its path.

    group_by: DATA.GROUP_BY; as a regular expression it counts only where the data does not name the
    recordings itself. Raises DataError where it is neither that nor a column of the data.
    """
    paths = [manifest.paths.relative(i) for i in range(len(manifest))]
    sources = manifest.sources or map(group_extractor(group_by), paths)
    return [source or path for source, path in zip(sources, paths, strict=True)]
