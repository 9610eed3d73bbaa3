"""One folder per class, with or without splits, or a labels.csv that says it all."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from hiera_video.data.listing import (
    VIDEO_SUFFIXES,
    DataError,
    csv_rows,
    is_video,
    scan_folder,
    some,
    videos_below,
)
from hiera_video.data.manifest_rows import Manifest, ManifestRows, Source
from hiera_video.registry import DATASET_REGISTRY

LABELS_FILE = "labels.csv"
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "validate"),
    "test": ("test", "testing"),
}
# Where a split does not exist, the one that stands in for it, which is said in the notes: almost
# every public data set has one list of held-out videos and calls it either val or test.
STAND_IN = {"val": "test", "test": "val"}


@DATASET_REGISTRY.register(name="folder")
def read_folder(source: Source) -> Manifest:
    """CLASS/video.mp4, below train, val and test or without them; or with a labels.csv.

    Without splits of its own a share of the videos is held out (`hold_out`). A `labels.csv` beside
    the folders (columns path and label; fold, split, source and label_id where it has them) decides
    instead of the folders.
    """
    if not source.path.is_dir():
        raise DataError(f"{source.path} is a file; expected a folder with one folder per class")
    if (source.path / LABELS_FILE).is_file():
        return _read_labels_csv(source, source.path / LABELS_FILE)
    train_folder = _split_folder(source.path, "train")
    if train_folder is None:
        root = source.path
        videos, found, notes = _class_folders(root, source)
        keep, note = _share(videos, source)
        videos, notes = [videos[i] for i in keep], [*notes, note]
        if not videos:
            raise DataError(f"{root}: too few videos to hold any out for {source.split}")
    else:
        _, found, notes = _class_folders(train_folder, source)
        root, stand_in = _split_or_stand_in(source)
        videos, _, _ = _class_folders(root, source)
        notes = [*notes, *stand_in]
    rows = ManifestRows(replace(source, classes=source.classes or tuple(found) or None), root)
    for video in videos:
        try:
            rows.add(0, video.path, rows.named(0, video.label))
        except DataError as error:
            source.refuse(0, error)
    return rows.manifest("folder", str(root), notes=notes)


class Listed(NamedTuple):
    """A video before the split: path below the root, class name and what it must stay with."""

    path: str
    label: str
    group: str


def hold_out(videos: Sequence[Listed], source: Source) -> set[int]:
    """Indices of the share of `videos` that is held out for validation.

    Each class gives about `val_fraction` of its videos, in an order that is a hash of the seed and
    the group's name: the same on every machine, and hardly changed by adding videos. Videos of one
    group stay together, and a class with a single group stays in training.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index, video in enumerate(videos):
        members[video.group].append(index)
    order = sorted(members, key=lambda group: _hash(source.seed, group))
    main_class = {g: _most_common(videos[i].label for i in members[g]) for g in order}
    by_class: dict[str, list[str]] = defaultdict(list)
    for group in order:
        by_class[main_class[group]].append(group)
    taken: set[int] = set()
    for groups in by_class.values():
        wanted = max(1, round(source.val_fraction * sum(len(members[g]) for g in groups)))
        have = 0
        for group in groups if len(groups) > 1 else ():
            size = len(members[group])
            # Closer to the share with the group than without it; never the whole class.
            if size <= 2 * (wanted - have) and have + size < sum(len(members[g]) for g in groups):
                taken.update(members[group])
                have += size
        if have == 0 and len(groups) > 1:
            taken.update(members[min(groups, key=lambda g: len(members[g]))])
    return taken


def _most_common(labels: Iterable[str]) -> str:
    """The most frequent label; of several, the first by name, in whatever order they come."""
    counts = Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label))


def own_split(source: Source) -> str:
    """What splits the videos of a folder, in words; empty where a share has to be held out."""
    table = source.path / LABELS_FILE
    if table.is_file():
        columns = next(csv_rows(table, need=("path",)), (0, {}))[1]
        column = next((name for name in ("split", "fold") if name in columns), "")
        return f"column {column!r} of {table.name}" if column else ""
    folder = _split_folder(source.path, "train")
    return f"folder {folder.name}" if folder else ""


def source_namer(source: Source) -> Callable[[str], str] | None:
    """A function from a video's path, as its list has it, to the name of its source.

    The source is what videos were cut from: videos of one are alike, and belong in one split. Its
    name is a column of labels.csv (`group_by`, else `source` or `group`), or what the first group
    of the regular expression `group_by` finds in the path. Videos of unknown source have the name
    "". None where nothing tells the sources.
    """
    table = source.path / LABELS_FILE
    if source.path.is_dir() and table.is_file():
        rows = [row for _, row in csv_rows(table, need=("path",), refuse=source.on_bad_line)]
        column = _source_column(source, rows[0].keys() if rows else ())
        if column:
            names = {row["path"]: row[column] for row in rows}
            return lambda path: names.get(path, "")
    return _grouping(source) if source.group_by else None


def _source_column(source: Source, columns: Collection[str]) -> str:
    """The column of labels.csv that names the sources; empty where there is none."""
    wanted = (source.group_by,) if source.group_by else ("source", "group")
    return next((name for name in wanted if name in columns), "")


def _share(videos: Sequence[Listed], source: Source) -> tuple[list[int], str]:
    """Indices of the videos of the split asked for, and a note that says how they were chosen."""
    held_out = hold_out(videos, source)
    wanted = source.split != "train"
    keep = [i for i in range(len(videos)) if (i in held_out) == wanted]
    return keep, (
        f"no split of its own: {len(keep)} of {len(videos)} videos are {source.split} "
        f"(val_fraction {source.val_fraction:g}, seed {source.seed})"
    )


def _read_labels_csv(source: Source, file: Path) -> Manifest:
    need = ("path", "label") if source.need_labels else ("path",)
    table = list(csv_rows(file, need, refuse=source.on_bad_line))
    if not table:
        raise DataError(f"{file}: no videos below the line of column names")
    columns = table[0][1].keys()
    group_column = _source_column(source, columns)
    group = None if group_column else _grouping(source)
    videos = [
        Listed(
            row["path"],
            row.get("label", ""),
            (group(row["path"]) if group else row[group_column]) or row["path"],
        )
        for _, row in table
    ]
    if "split" in columns:
        keep = [i for i, (_, row) in enumerate(table) if split_name(row["split"]) == source.split]
        note = f"split as in the column 'split' of {file.name}"
    elif "fold" in columns:
        folds = sorted({row["fold"] for _, row in table})
        fold = folds[0] if source.fold is None else str(source.fold)
        if fold not in folds:
            raise DataError(f"{file}: no fold {fold}; it has {', '.join(folds)}")
        train = source.split == "train"
        keep = [i for i, (_, row) in enumerate(table) if (row["fold"] != fold) == train]
        note = f"fold {fold} of {file.name} is held out"
    else:
        keep, note = _share(videos, source)
    try:
        classes = source.classes or _classes_of_table(table, file)
    except DataError:
        if not source.ignore_labels:
            raise
        classes = None
    rows = ManifestRows(replace(source, classes=classes), file)
    for i in keep:
        line = table[i][0]
        try:
            rows.add(line, videos[i].path, rows.named(line, videos[i].label))
        except DataError as error:
            source.refuse(line, error)
    return rows.manifest("folder", source.path_prefix or str(file.parent), notes=[note])


def _classes_of_table(
    table: list[tuple[int, dict[str, str]]], file: Path
) -> tuple[str, ...] | None:
    """Names in the order of the column label_id, else in alphabetical order.

    The numbers may have gaps, as in the part of a table that lacks a class.
    """
    names = sorted({row["label"] for _, row in table if row.get("label")})
    if not names or "label_id" not in table[0][1]:
        return tuple(names) or None
    ids: dict[str, str] = {}
    for number, row in table:
        if ids.setdefault(row["label"], row["label_id"]) != row["label_id"]:
            raise DataError(
                f"{file}:{number}: label {row['label']!r} has label_id {row['label_id']}, "
                f"and {ids[row['label']]} further up"
            )
    numbers = list(ids.values())
    if not all(text.isdecimal() for text in numbers) or len(set(map(int, numbers))) < len(names):
        raise DataError(f"{file}: label_id must be a whole number from 0, each for one label")
    return tuple(sorted(names, key=lambda name: int(ids[name])))


def _class_folders(root: Path, source: Source) -> tuple[list[Listed], list[str], list[str]]:
    """Videos below each folder of `root`, the names of those folders, and notes.

    Where no labels are needed, videos that lie in no folder are taken as well.
    """
    group = _grouping(source)
    entries = sorted(scan_folder(root), key=lambda entry: entry.name)
    loose = [e.name for e in entries if is_video(e.name) and not e.is_dir()]
    found = {
        entry.name: [os.path.join(entry.name, path) for path in videos_below(root / entry.name)]
        for entry in entries
        if entry.is_dir() and not entry.name.startswith(".")
    }
    videos = [
        Listed(path, name, group(path) or path) for name, paths in found.items() for path in paths
    ]
    if not source.need_labels:
        videos += [Listed(path, "", group(path) or path) for path in loose]
    if not videos:
        raise DataError(_no_videos(root, loose))
    empty = [name for name, paths in found.items() if not paths]
    notes = [f"no class, for want of videos: {some(empty)} in {root}"] if empty else []
    if loose and source.need_labels:
        notes.append(f"not used, for want of a class: {len(loose)} videos directly in {root}")
    return videos, [name for name, paths in found.items() if paths], notes


def _no_videos(root: Path, loose: Sequence[str]) -> str:
    if loose:
        return (
            f"{root} holds {len(loose)} videos but no folder of a class: put them in one folder "
            f"per class, or write a labels.csv with columns path and label beside them"
        )
    return (
        f"no videos in {root}; expected CLASS/video.mp4, train/CLASS/video.mp4 or a list "
        f"(train.csv). Endings taken for videos: {' '.join(sorted(VIDEO_SUFFIXES))}"
    )


def _grouping(source: Source) -> Callable[[str], str]:
    """A function from a path to the name of its source ("" where it has none)."""
    if not source.group_by:
        return lambda path: ""
    try:
        pattern = re.compile(source.group_by)
    except re.error as error:
        raise DataError(
            f"group_by={source.group_by!r} (DATA.GROUP_BY) is neither a column of labels.csv nor a "
            f"regular expression: {error}"
        ) from error
    if pattern.groups < 1:
        raise DataError(
            f"group_by={source.group_by!r} (DATA.GROUP_BY) is no column of labels.csv, and as a "
            f"regular expression it needs a group in brackets that is the source's name"
        )

    def group(path: str) -> str:
        match = pattern.search(path)
        return (match.group(1) or "") if match else ""

    return group


def _split_folder(root: Path, split: str) -> Path | None:
    """`root`/train or the like, if it holds folders of classes (a class may be called "train")."""
    for name in SPLIT_FOLDERS[split]:
        folder = root / name
        if folder.is_dir() and any(e.is_dir() for e in scan_folder(folder)):
            return folder
        if (
            folder.is_dir()
            and split == "train"
            and any(_split_folder(root, s) for s in ("val", "test"))
        ):
            return folder
    return None


def _split_or_stand_in(source: Source) -> tuple[Path, list[str]]:
    folder = _split_folder(source.path, source.split)
    if folder is not None:
        return folder, []
    other = _split_folder(source.path, STAND_IN.get(source.split, source.split))
    if other is None:
        raise DataError(
            f"{source.path} has a train folder and neither val nor test: add one, or remove the "
            f"level 'train' to have a share of the videos held out"
        )
    return other, [f"no folder {source.split} in {source.path}: {other.name} stands in for it"]


def split_name(text: str) -> str:
    """train, val or test for any of their spellings; another text as it is."""
    text = text.strip().lower()
    return next((split for split, names in SPLIT_FOLDERS.items() if text in names), text)


def _hash(seed: int, text: str) -> bytes:
    return hashlib.blake2b(
        f"{seed}:{text}".encode(errors="surrogateescape"), digest_size=8
    ).digest()
