"""One folder per class, with or without splits, or a labels.csv that says it all."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from hiera_video.data.manifests.listing import scan_folder, some, videos_below
from hiera_video.data.manifests.manifest import CLASS_FILES, Manifest, ManifestRows, Source
from hiera_video.data.manifests.splits import SPLITS, choose_part, grouping, near_split, split_of
from hiera_video.data.manifests.tables import find_header, named_rows
from hiera_video.data.manifests.video_lists import read_list, source_column
from hiera_video.errors import DataError, first_few
from hiera_video.registry import DATASET_REGISTRY
from hiera_video.video.find import VIDEO_SUFFIXES, is_video

LABELS_FILE = "labels.csv"
LIST_ENDINGS = (".csv", ".txt", ".tsv")


class TwoReadings(DataError):
    """Folders that could mean two things."""


@DATASET_REGISTRY.register(name="folder")
def read_folder(source: Source) -> Manifest:
    """CLASS/video.mp4, below train, val and test or without them; or with a labels.csv.

    The splits may also lie inside each class (CLASS/train/video.mp4). Without any, the data is
    undivided. A `labels.csv` beside the folders (columns path and label; fold, split, source and
    label_id where it has them) decides instead of the folders.
    """
    if not source.path.is_dir():
        raise DataError(f"{source.path} is a file; expected a folder with one folder per class")
    table = labels_file(source.path)
    if table is not None:
        # DATA.PATH_LABEL_SEPARATOR is that of lists by split; this one has named columns.
        return read_list(replace(source, separator=None), table, name="folder")
    return _read_tree(source, "folder")


@DATASET_REGISTRY.register(name="class_folders")
def read_class_folders(source: Source) -> Manifest:
    """CLASS/.../video.mp4: the upper folders are the classes, whatever lies in them."""
    return _read_tree(source, "class_folders")


@DATASET_REGISTRY.register(name="group_folders")
def read_group_folders(source: Source) -> Manifest:
    """GROUP/CLASS/video.mp4: the inner folders are the classes, and a group (a person, a recording)
    is never torn apart where a share is held out."""
    return _read_tree(source, "group_folders")


def labels_file(folder: Path) -> Path | None:
    """The labels.csv of a folder, however its name is written; None where there is none."""
    entries = [e for e in scan_folder(folder) if e.name.lower() == LABELS_FILE and e.is_file()]
    names = sorted(entry.name for entry in entries)
    if len(names) > 1:
        raise DataError(f"{folder} holds {some(names)}; keep one of them")
    return folder / names[0] if names else None


# ---- what the folders are -----------------------------------------------------------------------


def split_folders(
    root: Path, *, layout: str = "folder", need_labels: bool = True
) -> dict[str, str]:
    """Split -> the folder of `root` that holds it; empty where the folders are something else.

    A folder called train (Train, training, ...) is a split if it holds folders of classes, or if
    another one beside it is a split as well: a single class may be called "train".

    Raises DataError: one split twice, folders that look like splits and cannot be taken for them.
    """
    found = {name: split_of(name) for name in _folders(root) if split_of(name)}
    found = {name: split for name, split in found.items() if _holds_something(root / name)}
    with_classes = [name for name in found if _folders(root / name)]
    if layout != "folder":
        sure = {name: found[name] for name in with_classes}
        if len(set(sure.values())) < 2:
            return {}
        found = sure
    splits = set(found.values())
    for split in splits:
        same = [name for name in found if found[name] == split]
        if len(same) > 1:
            raise DataError(
                f"{root} holds {_listed(same)}, which both name the split {split}: put them into "
                "one folder"
            )
    if layout == "folder":
        _require_clear_names(root, found)
    if len(splits) < 2 and _is_class(root, with_classes, found):
        return {}
    flat = [name for name in found if name not in with_classes]
    if flat and need_labels:
        raise DataError(
            f"{root} looks divided into {_listed(list(found))}, but there are no folders of "
            f"classes in {_listed(flat)}: expected {flat[0]}/CLASS/video.mp4. {_OR_CLASSES}"
        )
    return {split: name for name, split in found.items()}


_OR_CLASSES = "If these folders are the classes themselves, set DATA.FORMAT class_folders"


def _require_clear_names(root: Path, exact: dict[str, str]) -> None:
    """DataError where folders look like splits (train1, test_set) and are not called so."""
    folders = _folders(root)
    near = {name: near_split(name) for name in folders if name not in exact}
    rests = {rest for _, rest in near.values()}
    if not all(split for split, _ in near.values()) or len(rests) > 1:
        near = {name: (split, rest) for name, (split, rest) in near.items() if split and not rest}
    near = {name: split for name, (split, _) in near.items() if _holds_something(root / name)}
    if near and len({*near.values(), *exact.values()}) > 1:
        names = sorted([*near, *exact])
        meant = " and ".join(f"{name}/ -> {split}/" for name, split in sorted(near.items()))
        raise DataError(
            f"{_listed(names)} in {root} look like splits, and not all are called so: rename "
            f"{meant}. {_OR_CLASSES}"
        )


def _folders(root: Path) -> list[str]:
    """Names of the folders in a folder, hidden ones aside."""
    return sorted(e.name for e in scan_folder(root) if e.is_dir() and not e.name.startswith("."))


def _holds_something(folder: Path) -> bool:
    """Whether there are videos or folders in it."""
    return any(
        e.is_dir() or is_video(e.name) for e in scan_folder(folder) if not e.name.startswith(".")
    )


def _is_class(root: Path, with_classes: Sequence[str], found: Collection[str]) -> bool:
    """Whether the one folder that is called like a split is a class: there are no folders in it;
    or videos beside these, and other classes beside it."""
    if not with_classes:
        return True
    others = [n for n in _folders(root) if n not in found and _holds_something(root / n)]
    return bool(others) and any(is_video(e.name) for e in scan_folder(root / with_classes[0]))


def _listed(names: Sequence[str]) -> str:
    return " and ".join(f"{name}/" for name in names)


class Tree(NamedTuple):
    """The videos below a folder by their upper folder, and what lies in none."""

    root: Path
    folders: dict[str, list[str]]
    """Upper folder -> paths below `root`; folders without videos have none."""
    loose: list[str]

    @property
    def videos(self) -> dict[str, list[str]]:
        """The upper folders that have videos."""
        return {name: paths for name, paths in self.folders.items() if paths}

    def inner(self, name: str) -> set[str]:
        """The folders inside an upper folder that hold videos; "" is the folder itself."""
        return {_inner(path) for path in self.folders[name]}


def _inner(path: str) -> str:
    """ "b" of a/b/c.mp4 and of a/b/c/d.mp4, "" of a/c.mp4."""
    parts = path.split(os.sep)
    return parts[1] if len(parts) > 2 else ""


def read_tree(root: Path) -> Tree:
    """Walk a folder."""
    entries = sorted(scan_folder(root), key=lambda entry: entry.name)
    return Tree(
        root,
        {
            entry.name: [os.path.join(entry.name, path) for path in videos_below(root / entry.name)]
            for entry in entries
            if entry.is_dir() and not entry.name.startswith(".")
        },
        [e.name for e in entries if is_video(e.name) and not e.is_dir()],
    )


def splits_inside(tree: Tree, need_labels: bool = True) -> bool:
    """Whether each class is divided in itself: CLASS/train/video.mp4.

    Raises TwoReadings: some are, and others are not.
    """
    inside = {name: tree.inner(name) for name in tree.videos}
    if len(inside) < 2:
        return False  # one folder around the splits
    divided = [n for n, inner in inside.items() if all(split_of(folder) for folder in inner)]
    several = [n for n in inside if len({split_of(f) for f in inside[n]} - {""}) > 1]
    if len(divided) == len(inside):
        return True
    if several and need_labels:
        whole = next(name for name in inside if name not in divided)
        raise TwoReadings(
            f"{several[0]}/ in {tree.root} holds {_listed(sorted(inside[several[0]] - {''}))}, and "
            f"{whole}/ is not divided like that: give every class the same folders, or list the "
            "videos in a labels.csv with columns path, label and split"
        )
    return False


def require_one_reading(tree: Tree) -> None:
    """TwoReadings where either the upper or the inner folders may be the classes."""
    inside = {name: tree.inner(name) for name in tree.videos}
    if not inside or any("" in inner for inner in inside.values()):
        return
    owners: dict[str, list[str]] = defaultdict(list)
    for name, inner in inside.items():
        for folder in inner:
            owners[folder].append(name)
    upper, lower = list(inside), sorted(owners)
    if len(upper) == 1 and len(lower) > 1:
        raise TwoReadings(
            f"{tree.root} holds videos in one folder only, {upper[0]}/, and there in "
            f"{first_few(lower, SHOWN)}. If these are the classes (or splits), name the folder "
            f"{tree.root / upper[0]}; if {upper[0]} is the class, set DATA.FORMAT class_folders"
        )
    if len(lower) > 1 and any(len(names) > 1 for names in owners.values()):
        raise TwoReadings(
            f"{tree.root} can be read in two ways: with the classes {first_few(upper, SHOWN)}, or, "
            f"inside each of these, with the classes {first_few(lower, SHOWN)}. For the first set "
            "DATA.FORMAT class_folders, for the second DATA.FORMAT group_folders"
        )


SHOWN = 4
"""Folders that a message names of many."""


# ---- reading ------------------------------------------------------------------------------------


class Found(NamedTuple):
    """A video with its class; `group` is what it must stay with, where a folder says so."""

    path: str
    label: str
    group: str = ""


def _read_tree(source: Source, layout: str) -> Manifest:
    """The videos of one split below a folder."""
    if not source.path.is_dir():
        raise DataError(f"{source.path} is a file; expected a folder with one folder per class")
    splits = split_folders(source.path, layout=layout, need_labels=source.need_labels)
    if splits:
        return _read_splits(source, layout, splits)
    tree = read_tree(source.path)
    if layout == "folder" and splits_inside(tree, source.need_labels):
        return _read_splits_inside(source, tree)
    videos, notes = _videos_of(tree, layout, source)
    return _manifest(
        source, source.path, videos, _classes(videos), notes, layout=layout, undivided=True
    )


def _read_splits(source: Source, layout: str, splits: dict[str, str]) -> Manifest:
    """train/CLASS/video.mp4. The classes are those of train, where there is one."""
    root = source.path
    part, notes = choose_part(source.split, splits, kind="folder", place=_with_others(root, splits))
    others = [n for n in _folders(root) if n not in splits.values() and _holds_something(root / n)]
    if others:
        notes.append(f"folders beside {_listed(list(splits.values()))}, ignored: {some(others)}")
    videos, own_notes = _videos_of(read_tree(root / splits[part]), layout, source)
    classes = _classes(videos)
    if part != "train" and "train" in splits:
        training, _ = _videos_of(read_tree(root / splits["train"]), layout, source)
        classes = _classes(training)
    return _manifest(
        source, root / splits[part], videos, classes, [*own_notes, *notes], layout=layout
    )


def _with_others(root: Path, splits: dict[str, str]) -> str:
    """The folder, for the message that a split is missing in it; and what else lies there."""
    others = [n for n in _folders(root) if n not in splits.values() and _holds_something(root / n)]
    return f"{root} (which also holds {first_few(others, SHOWN)})" if others else str(root)


def _read_splits_inside(source: Source, tree: Tree) -> Manifest:
    """CLASS/train/video.mp4."""
    names: dict[str, str] = {}
    by_split: dict[str, list[Found]] = {split: [] for split in SPLITS}
    for name, paths in tree.videos.items():
        for path in paths:
            split = split_of(_inner(path))
            names.setdefault(split, _inner(path))
            by_split[split].append(Found(path, name))
    there = {split: names[split] for split in SPLITS if split in names}
    part, notes = choose_part(
        source.split, there, kind="folder", place=f"the classes of {tree.root}"
    )
    notes = [f"splits from the folders {_listed(list(there.values()))} inside each class", *notes]
    classes = _classes(by_split["train"] or by_split[part])
    return _manifest(source, tree.root, by_split[part], classes, notes, layout="folder")


def _videos_of(tree: Tree, layout: str, source: Source) -> tuple[list[Found], list[str]]:
    """The videos of a tree with their classes, and notes.

    Where no labels are needed, videos that lie in no folder of a class are taken as well.
    """
    if layout == "folder" and source.need_labels:
        require_one_reading(tree)
    found, loose = [], list(tree.loose)
    for name, paths in tree.folders.items():
        for path in paths:
            if layout != "group_folders":
                found.append(Found(path, name))
            elif _inner(path):
                found.append(Found(path, _inner(path), name))
            else:
                loose.append(path)
    notes = []
    if not source.need_labels:
        found += [Found(path, "") for path in loose]
    elif loose and found:
        notes.append(f"ignored: {len(loose)} videos in {tree.root} outside a class folder")
    if not found:
        raise DataError(_no_videos(tree.root, loose))
    empty = [name for name, paths in tree.folders.items() if not paths]
    if empty:
        notes.append(f"class folders without videos, ignored: {some(empty)} in {tree.root}")
    inner = sorted({folder for name in tree.videos for folder in tree.inner(name)} - {""})
    if inner and layout != "group_folders":
        notes.append(
            f"folders inside the classes are no classes of their own: {some(inner)} in {tree.root}"
        )
    return found, notes


def _classes(videos: Sequence[Found]) -> list[str]:
    return sorted({video.label for video in videos} - {""})


def _manifest(
    source: Source,
    root: Path,
    videos: Sequence[Found],
    classes: Sequence[str],
    notes: Sequence[str],
    *,
    layout: str,
    undivided: bool = False,
) -> Manifest:
    rows = ManifestRows(source, root, classes)
    groups = []
    for video in videos:
        try:
            rows.add(0, video.path, rows.named(0, video.label))
            groups.append(video.group)
        except DataError as error:
            source.refuse(0, error)
    where = "inner folder names" if layout == "group_folders" else "folder names"
    text = f"from {where} below {root}"
    if source.id_names:
        text += f", numbered by {source.id_names_from}"
    return rows.manifest(
        "folder",
        str(root),
        notes=notes,
        classes_from=text,
        undivided=undivided,
        sources=groups if any(groups) and not source.group_by else None,
    )


def unread_lists(root: Path) -> str:
    """For a message: tables in a folder that are not called like lists; "" where there is none."""
    names = sorted(
        e.name
        for e in scan_folder(root)
        if os.path.splitext(e.name)[1].lower() in (".csv", ".tsv")
        and e.is_file()
        and not split_of(os.path.splitext(e.name)[0])
        and e.name not in (*CLASS_FILES, LABELS_FILE)
    )
    return f". Found {first_few(names, SHOWN)}: rename it, or name the list itself" if names else ""


def _no_videos(root: Path, loose: Sequence[str]) -> str:
    if loose:
        return (
            f"{root} holds {len(loose)} videos but no folder of a class: put them in one folder "
            f"per class, or write a labels.csv with columns path and label beside them"
        )
    endings = " ".join(sorted(VIDEO_SUFFIXES))
    return (
        f"no videos in {root}; expected CLASS/video.mp4, train/CLASS/video.mp4 or a list "
        f"(train.csv){unread_lists(root)}. Endings taken for videos: {endings}"
    )


# ---- what others ask ----------------------------------------------------------------------------


def own_split(source: Source, layout: str = "folder") -> str:
    """What splits the videos of a folder, in words; empty where a share has to be held out."""
    table = labels_file(source.path) if layout == "folder" else None
    if table is not None:
        header = find_header(table)
        column = next((c for c in ("split", "fold") if header and header.place(c) is not None), "")
        return f"column {column!r} of {table.name}" if column else ""
    splits = split_folders(source.path, layout=layout, need_labels=source.need_labels)
    if splits:
        return f"folder {next(iter(splits.values()))}"
    if layout == "folder" and splits_inside(read_tree(source.path), source.need_labels):
        return "folders inside each class"
    return ""


def source_namer(source: Source, layout: str = "folder") -> Callable[[str], str] | None:
    """A function from a video's path, as its list has it, to the name of its source.

    The source is what videos were cut from: videos of one are alike, and belong in one split. Its
    name is a column of labels.csv (`group_by`, else `source` or `group`), or what the first group
    of the regular expression `group_by` finds in the path. Videos of unknown source have the name
    "". None where nothing tells the sources.
    """
    if layout == "group_folders" and not source.group_by:
        return lambda path: path.split(os.sep)[0]
    table = labels_file(source.path) if source.path.is_dir() else None
    header = find_header(table) if table is not None else None
    column = source_column(source, header) if header is not None else ""
    if column:
        rows = named_rows(table, header, ("path", column), source.refuse)
        names = {row["path"]: row[column] for _, row in rows}
        return lambda path: names.get(path, "")
    return grouping(source.group_by) if source.group_by else None
