"""One folder per class, with or without splits, or a labels.csv instead of folders."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from hiera_video.data.manifests.builder import ManifestBuilder
from hiera_video.data.manifests.class_names import CLASS_FILES
from hiera_video.data.manifests.listing import quoted, scan_folder, videos_below
from hiera_video.data.manifests.manifest import Manifest
from hiera_video.data.manifests.source import Source
from hiera_video.data.manifests.splits import (
    SPLITS,
    VideoEntry,
    choose_split,
    group_extractor,
    similar_split,
    split_of,
)
from hiera_video.data.manifests.tables import find_header, named_rows
from hiera_video.data.manifests.video_lists import read_list, source_column
from hiera_video.errors import DataError, first_few
from hiera_video.registry import DATASET_REGISTRY
from hiera_video.video.find import VIDEO_SUFFIXES, is_video

LABELS_FILE = "labels.csv"
LIST_ENDINGS = (".csv", ".txt", ".tsv")


class AmbiguousLayout(DataError):
    """Folders that can be read in two ways."""


@DATASET_REGISTRY.register(name="folder")
def read_folder(source: Source) -> Manifest:
    """Read CLASS/video.mp4, below train, val and test or without them; or a labels.csv.

    The splits may also lie inside each class (CLASS/train/video.mp4). Without any, the data is
    undivided. A `labels.csv` beside the folders (columns path and label; optional: fold, split,
    source, label_id) replaces what the folders say.
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
    """Read CLASS/.../video.mp4: the upper folders are the classes, whatever lies in them."""
    return _read_tree(source, "class_folders")


@DATASET_REGISTRY.register(name="group_folders")
def read_group_folders(source: Source) -> Manifest:
    """Read GROUP/CLASS/video.mp4: the inner folders are the classes; the videos of a group (a
    person, a recording) stay in one split where a share is held out."""
    return _read_tree(source, "group_folders")


def labels_file(folder: Path) -> Path | None:
    """The labels.csv of a folder, in upper or lower case; None where there is none.

    Raises DataError where there are several.
    """
    entries = [e for e in scan_folder(folder) if e.name.lower() == LABELS_FILE and e.is_file()]
    names = sorted(entry.name for entry in entries)
    if len(names) > 1:
        raise DataError(f"{folder} holds {quoted(names)}; keep one of them")
    return folder / names[0] if names else None


# ---- what the folders mean ----------------------------------------------------------------------


def split_folders(
    root: Path, *, layout: str = "folder", need_labels: bool = True
) -> dict[str, str]:
    """Find the folders of splits: {split: folder of `root`}, empty where there are none.

    A folder called train (Train, training, ...) is a split if it holds folders of classes, or if
    another one beside it is a split as well: a single class may be called "train".

    Raises DataError: one split twice, folders that look like splits and cannot be taken for them.
    """
    named = {name: split_of(name) for name in _folders(root) if split_of(name)}
    named = {name: split for name, split in named.items() if not _is_empty(root / name)}
    with_classes = [name for name in named if _folders(root / name)]
    if layout != "folder":
        named = {name: named[name] for name in with_classes}
        if len(set(named.values())) < 2:
            return {}
    splits = set(named.values())
    for split in splits:
        same = [name for name in named if named[name] == split]
        if len(same) > 1:
            raise DataError(
                f"{root} holds {_and(same)}, which both name the split {split}: put them into "
                "one folder"
            )
    if layout == "folder":
        _require_clear_names(root, named)
    if len(splits) < 2 and _is_class(root, with_classes, named):
        return {}
    flat = [name for name in named if name not in with_classes]
    if flat and need_labels:
        raise DataError(
            f"{root} looks divided into {_and(list(named))}, but there are no folders of "
            f"classes in {_and(flat)}: expected {flat[0]}/CLASS/video.mp4. {_OR_CLASSES}"
        )
    return {split: name for name, split in named.items()}


_OR_CLASSES = "If these folders are the classes themselves, set DATA.FORMAT class_folders"


def _require_clear_names(root: Path, exact: dict[str, str]) -> None:
    """DataError where folders look like splits (train1, test_set) and are not called so."""
    folders = _folders(root)
    guesses = {name: similar_split(name) for name in folders if name not in exact}
    rests = {rest for _, rest in guesses.values()}
    if not all(split for split, _ in guesses.values()) or len(rests) > 1:
        guesses = {name: guess for name, guess in guesses.items() if guess[0] and not guess[1]}
    near = {name: split for name, (split, _) in guesses.items() if not _is_empty(root / name)}
    if near and len({*near.values(), *exact.values()}) > 1:
        names = sorted([*near, *exact])
        meant = " and ".join(f"{name}/ -> {split}/" for name, split in sorted(near.items()))
        raise DataError(
            f"{_and(names)} in {root} look like splits, and not all are called so: rename "
            f"{meant}. {_OR_CLASSES}"
        )


def _folders(root: Path) -> list[str]:
    """Names of the folders in a folder, hidden ones aside."""
    return sorted(e.name for e in scan_folder(root) if e.is_dir() and not e.name.startswith("."))


def _is_empty(folder: Path) -> bool:
    """Whether a folder holds neither videos nor folders."""
    return not any(
        e.is_dir() or is_video(e.name) for e in scan_folder(folder) if not e.name.startswith(".")
    )


def _is_class(root: Path, with_classes: Sequence[str], named: Collection[str]) -> bool:
    """Whether the only folder with the name of a split is a class.

    That is so if it has no folders inside; or if it has videos beside these, and there are other
    classes beside it.
    """
    if not with_classes:
        return True
    others = [n for n in _folders(root) if n not in named and not _is_empty(root / n)]
    return bool(others) and any(is_video(e.name) for e in scan_folder(root / with_classes[0]))


def _and(names: Sequence[str]) -> str:
    return " and ".join(f"{name}/" for name in names)


class Tree(NamedTuple):
    """The videos below a folder, by their upper folder."""

    root: Path
    folders: dict[str, list[str]]
    """Upper folder -> paths below `root`; folders without videos have none."""
    loose: list[str]
    """Videos that lie in `root` itself."""

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
    """Find all videos below a folder."""
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
    """Whether each class has its own splits inside: CLASS/train/video.mp4.

    Raises AmbiguousLayout: some have, and others do not.
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
        raise AmbiguousLayout(
            f"{several[0]}/ in {tree.root} holds {_and(sorted(inside[several[0]] - {''}))}, and "
            f"{whole}/ is not divided like that: give every class the same folders, or list the "
            "videos in a labels.csv with columns path, label and split"
        )
    return False


def require_unambiguous(tree: Tree) -> None:
    """AmbiguousLayout where either the upper or the inner folders may be the classes."""
    inside = {name: tree.inner(name) for name in tree.videos}
    if not inside or any("" in inner for inner in inside.values()):
        return
    owners: dict[str, list[str]] = defaultdict(list)
    for name, inner in inside.items():
        for folder in inner:
            owners[folder].append(name)
    upper, lower = list(inside), sorted(owners)
    if len(upper) == 1 and len(lower) > 1:
        raise AmbiguousLayout(
            f"{tree.root} holds videos in one folder only, {upper[0]}/, and there in "
            f"{first_few(lower, SHOWN)}. If these are the classes (or splits), name the folder "
            f"{tree.root / upper[0]}; if {upper[0]} is the class, set DATA.FORMAT class_folders"
        )
    if len(lower) > 1 and any(len(names) > 1 for names in owners.values()):
        raise AmbiguousLayout(
            f"{tree.root} can be read in two ways: with the classes {first_few(upper, SHOWN)}, or, "
            f"inside each of these, with the classes {first_few(lower, SHOWN)}. For the first set "
            "DATA.FORMAT class_folders, for the second DATA.FORMAT group_folders"
        )


SHOWN = 4
"""How many folders a message names."""


# ---- reading ------------------------------------------------------------------------------------


def _read_tree(source: Source, layout: str) -> Manifest:
    """Read the videos of one split below a folder."""
    if not source.path.is_dir():
        raise DataError(f"{source.path} is a file; expected a folder with one folder per class")
    splits = split_folders(source.path, layout=layout, need_labels=source.need_labels)
    if splits:
        return _read_splits(source, layout, splits)
    tree = read_tree(source.path)
    if layout == "folder" and splits_inside(tree, source.need_labels):
        return _read_splits_inside(source, tree)
    videos, notes = _videos_of(tree, layout, source)
    manifest = _manifest(source, source.path, videos, _classes(videos), layout)
    return replace(manifest, notes=tuple(notes), undivided=True)


def _read_splits(source: Source, layout: str, splits: dict[str, str]) -> Manifest:
    """Read one split of train/CLASS/video.mp4. The classes are those of train, if it exists."""
    root = source.path
    split, notes = choose_split(
        source.split, splits, kind="folder", place=_with_others(root, splits)
    )
    others = [n for n in _folders(root) if n not in splits.values() and not _is_empty(root / n)]
    if others:
        notes.append(f"folders beside {_and(list(splits.values()))}, ignored: {quoted(others)}")
    videos, own_notes = _videos_of(read_tree(root / splits[split]), layout, source)
    classes = _classes(videos)
    if split != "train" and "train" in splits:
        training, _ = _videos_of(read_tree(root / splits["train"]), layout, source)
        classes = _classes(training)
    manifest = _manifest(source, root / splits[split], videos, classes, layout)
    return replace(manifest, notes=(*own_notes, *notes))


def _with_others(root: Path, splits: dict[str, str]) -> str:
    """The folder, for the message that a split is missing in it; and what else lies there."""
    others = [n for n in _folders(root) if n not in splits.values() and not _is_empty(root / n)]
    return f"{root} (which also holds {first_few(others, SHOWN)})" if others else str(root)


def _read_splits_inside(source: Source, tree: Tree) -> Manifest:
    """Read one split of CLASS/train/video.mp4."""
    names: dict[str, str] = {}
    by_split: dict[str, list[VideoEntry]] = {split: [] for split in SPLITS}
    for name, paths in tree.videos.items():
        for path in paths:
            split = split_of(_inner(path))
            names.setdefault(split, _inner(path))
            by_split[split].append(VideoEntry(path, name))
    available = {split: names[split] for split in SPLITS if split in names}
    chosen, notes = choose_split(
        source.split, available, kind="folder", place=f"the classes of {tree.root}"
    )
    notes = [f"splits from the folders {_and(list(available.values()))} inside each class", *notes]
    classes = _classes(by_split["train"] or by_split[chosen])
    manifest = _manifest(source, tree.root, by_split[chosen], classes, "folder")
    return replace(manifest, notes=tuple(notes))


def _videos_of(tree: Tree, layout: str, source: Source) -> tuple[list[VideoEntry], list[str]]:
    """The videos of a tree with their classes, and notes.

    Where no labels are needed, videos that lie in no folder of a class are taken as well.
    """
    if layout == "folder" and source.need_labels:
        require_unambiguous(tree)
    videos, loose = [], list(tree.loose)
    for name, paths in tree.folders.items():
        for path in paths:
            if layout != "group_folders":
                videos.append(VideoEntry(path, name))
            elif _inner(path):
                videos.append(VideoEntry(path, _inner(path), name))
            else:
                loose.append(path)
    notes = []
    if not source.need_labels:
        videos += [VideoEntry(path, "") for path in loose]
    elif loose and videos:
        notes.append(f"ignored: {len(loose)} videos in {tree.root} outside a class folder")
    if not videos:
        raise DataError(_no_videos(tree.root, loose))
    empty = [name for name, paths in tree.folders.items() if not paths]
    if empty:
        notes.append(f"class folders without videos, ignored: {quoted(empty)} in {tree.root}")
    inner = sorted({folder for name in tree.videos for folder in tree.inner(name)} - {""})
    if inner and layout != "group_folders":
        notes.append(
            f"folders inside the classes are no classes of their own: {quoted(inner)} in "
            f"{tree.root}"
        )
    return videos, notes


def _classes(videos: Sequence[VideoEntry]) -> list[str]:
    return sorted({video.label for video in videos} - {""})


def _manifest(
    source: Source,
    root: Path,
    videos: Sequence[VideoEntry],
    classes: Sequence[str],
    layout: str,
) -> Manifest:
    """The manifest of the videos below `root`; the groups become its `sources`."""
    builder = ManifestBuilder(source, root, classes)
    groups = []
    for video in videos:
        try:
            builder.add(0, video.path, builder.label_of(0, video.label))
            groups.append(video.group)
        except DataError as error:
            source.reject(0, error)
    where = "inner folder names" if layout == "group_folders" else "folder names"
    text = f"from {where} below {root}"
    if source.id_names:
        text += f", numbered by {source.id_names_from}"
    return builder.build(
        "folder",
        str(root),
        classes_from=text,
        sources=groups if any(groups) and not source.group_by else None,
    )


def other_tables(root: Path) -> str:
    """For a message: the tables of a folder whose names are not those of lists; "" for none."""
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
        f"(train.csv){other_tables(root)}. Endings taken for videos: {endings}"
    )


# ---- for preparation ---------------------------------------------------------------------------


def predefined_split(source: Source, layout: str = "folder") -> str:
    """Describe the split that a folder brings along; empty where a share has to be held out."""
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


def source_lookup(source: Source, layout: str = "folder") -> Callable[[str], str] | None:
    """Return a function from a video's path, as its list has it, to the name of its source.

    The source is the recording that videos were cut from: videos of one source are alike and belong
    in one split. Its name comes from a column of labels.csv (`group_by`, else `source` or `group`),
    or from the first group of the regular expression `group_by` in the path. It is "" for a video
    of unknown source. Returns None where nothing names the sources.
    """
    if layout == "group_folders" and not source.group_by:
        return lambda path: path.split(os.sep)[0]
    table = labels_file(source.path) if source.path.is_dir() else None
    header = find_header(table) if table is not None else None
    column = source_column(source, header) if header is not None else ""
    if table is not None and header is not None and column:
        rows = named_rows(table, header, ("path", column), source.reject)
        names = {row["path"]: row[column] for _, row in rows}
        return lambda path: names.get(path, "")
    return group_extractor(source.group_by) if source.group_by else None
