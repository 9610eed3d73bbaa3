"""What an audit is about: a folder, lists or the data of a config -> the videos of each split.

Lists are read as training reads them, but past the lines that do not parse: each of those is a
finding. A folder that is no data set (videos at different depths, playlists among them) is walked,
and every file that is a video or pretends to be one is taken.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hiera_video.data.manifests.class_folders import (
    AmbiguousLayout,
    labels_file,
    read_tree,
    require_unambiguous,
    split_folders,
    splits_inside,
)
from hiera_video.data.manifests.layouts import SPLITS, detect_format, read_manifest
from hiera_video.data.manifests.listing import scan_folder, videos_below
from hiera_video.data.manifests.manifest import UNLABELLED, Manifest, PathTable
from hiera_video.data.manifests.splits import MissingSplit, split_of
from hiera_video.data.manifests.tables import find_header
from hiera_video.errors import DataError, LabelRangeError
from hiera_video.preparation.audit.records import Findings
from hiera_video.video.find import PLAYLIST_SUFFIXES, is_video

HEAP = "files"
"""The name of the one part of a folder that is no data set."""

UNUSED = "unused"
"""The name of the part of what lies in a folder of classes and is in no class."""


@dataclass(frozen=True)
class Part:
    """The videos of one split, or of one list."""

    name: str
    manifest: Manifest

    def __len__(self) -> int:
        return len(self.manifest)

    def line(self, index: int) -> int:
        """The line that named a video; 0 where none did."""
        lines = self.manifest.lines
        return int(lines[index]) if lines is not None and len(lines) else 0

    def label_name(self, label: int) -> str:
        classes = self.manifest.classes
        return classes[label] if classes else str(label)


def read_parts(
    paths: Sequence[str | Path],
    *,
    settings: dict[str, Any],
    as_configured: bool,
    findings: Findings,
) -> tuple[list[Part], list[str]]:
    """The splits to audit and notes about how they were read; held-out splits come after `train`.

    Args:
        paths: a folder, or one or more lists.
        settings: of `read_manifest`, except path and split.
        as_configured: read a folder as the settings say, whatever it looks like.
        findings: where each line goes that cannot be read.

    Raises DataError: nothing there, nothing in it.
    """
    files = [Path(path).expanduser() for path in paths]
    missing = [file for file in files if not os.path.lexists(file)]
    if len(missing) == len(files):
        shown = ", ".join(map(str, missing))
        raise DataError(f"no such file or folder: {shown}; name a folder of videos or a list")
    for file in missing:
        findings.add("missing_list", "", 0, str(file), "no such file or folder")
    files = [file for file in files if file not in missing]
    if len(files) == 1 and files[0].is_file() and _names_splits(files[0]):
        parts = _read_splits(files[0], settings, findings)
    elif len(files) > 1 or files[0].is_file():
        parts = _read_lists(files, settings, findings)
    elif as_configured or settings.get("format", "auto") != "auto":
        parts = _read_splits(files[0], settings, findings)
    elif (reason := _why_heap(files[0])) is not None:
        heap = _table(files[0], videos_below(files[0], wanted=_pretends))
        if not len(heap):
            raise DataError(f"no videos in {files[0]} or below it")
        note = f"{files[0]} has no known layout of a data set: every video below it, no labels"
        return [Part(HEAP, heap)], [note + (f" ({reason})" if reason else "")]
    else:
        is_folder = detect_format(files[0]) == "folder"
        parts = _read_splits(files[0], {**settings, "need_labels": is_folder}, findings)
        unused = _not_listed(files[0], parts) if is_folder else []
        parts += [Part(UNUSED, unused)] if len(unused) else []
    return parts, [f"{part.name}: {note}" for part in parts for note in _said(part)]


def _said(part: Part) -> list[str]:
    """What was taken for the classes of a part, and how it was read."""
    known = part.name != UNUSED and len(part)
    return [*([part.manifest.describe_classes()] if known else []), *part.manifest.notes]


# ---- lists and splits ---------------------------------------------------------------------------


def _read_lists(files: Sequence[Path], settings: dict[str, Any], findings: Findings) -> list[Part]:
    names = [_split_of(file) for file in files]
    if len(set(names)) < len(names):
        names = [str(file) for file in files]
    parts: list[Part] = []
    for i in sorted(range(len(files)), key=lambda i: names[i] != "train"):
        parts.append(_read(files[i], names[i], settings, findings, first=parts[:1]))
    return parts


def _split_of(file: Path) -> str:
    """train, val or test where a list's name says so; else its name."""
    return split_of(file.stem) or file.stem


def _names_splits(file: Path) -> bool:
    """Whether a list has a column that says which split each video is in."""
    if file.suffix.lower() == ".json" or is_video(file.name):
        return False
    header = find_header(file) or find_header(file, "youtube_id")
    return header is not None and any(header.place(c) is not None for c in ("split", "fold"))


def _read_splits(folder: Path, settings: dict[str, Any], findings: Findings) -> list[Part]:
    parts: list[Part] = []
    missing: list[MissingSplit] = []
    for split in SPLITS:
        try:
            part = _read(folder, split, settings, findings, first=parts[:1])
        except MissingSplit as error:
            missing.append(error)  # what is there is audited; a run says what it needs
            continue
        if any(_same_videos(part.manifest, earlier.manifest) for earlier in parts):
            findings.forget(split)  # another split stands in for it
        else:
            parts.append(part)
    if not parts:
        raise missing[0]
    return parts


def _read(
    path: Path,
    name: str,
    settings: dict[str, Any],
    findings: Findings,
    *,
    first: Sequence[Part],
) -> Part:
    """One split. Labels must fit the classes of the first part, as they must in training."""

    def on_bad_line(line: int, error: DataError) -> None:
        kind = "label_out_of_range" if isinstance(error, LabelRangeError) else "bad_line"
        findings.add(kind, name, line, "", str(error))

    settings = dict(settings)
    for part in first:
        if part.manifest.classes and not settings.get("class_names"):
            settings["classes"] = part.manifest.classes
        settings["num_classes"] = settings.get("num_classes") or part.manifest.num_classes or None
    before = findings.problems
    try:
        split = name if name in SPLITS else "train"
        manifest = read_manifest(path, split, on_bad_line=on_bad_line, **settings)
    except DataError:
        if findings.problems == before:
            raise
        manifest = _table(path.parent, [])  # no line of it parses
    return Part(name, manifest)


def _same_videos(a: Manifest, b: Manifest) -> bool:
    return len(a) > 0 and a.paths.equals(b.paths)


# ---- folders ------------------------------------------------------------------------------------


def _why_heap(folder: Path) -> str | None:
    """None for a folder of a layout that training reads; else why it is none, or "".

    Raises DataError: folders that look like splits, as training does.
    """
    if detect_format(folder) != "folder" or labels_file(folder) is not None:
        return None
    if split_folders(folder):
        return None
    if any(_pretends(entry.name) and not entry.is_dir() for entry in scan_folder(folder)):
        return ""
    tree = read_tree(folder)
    try:
        if splits_inside(tree):
            return None
        require_unambiguous(tree)
    except AmbiguousLayout as error:
        return str(error)
    # A class has its videos in its folder; where they lie deeper, the folders are something else.
    inside = [tree.inner(name) for name in tree.videos]
    return None if inside and all("" in inner for inner in inside) else ""


def _pretends(name: str) -> bool:
    return is_video(name) or os.path.splitext(name)[1].lower() in PLAYLIST_SUFFIXES


def _not_listed(folder: Path, parts: Sequence[Part]) -> Manifest:
    """Files below a folder of classes that are in no class, nor in its labels.csv."""
    listed = {os.path.normpath(part.manifest.paths[i]) for part in parts for i in range(len(part))}
    names = videos_below(folder, wanted=_pretends)
    return _table(
        folder, [n for n in names if os.path.normpath(os.path.join(folder, n)) not in listed]
    )


def _table(root: Path, names: Sequence[str]) -> Manifest:
    """Files without labels."""
    return Manifest(
        paths=PathTable.of(str(root), [os.fsencode(name) for name in names]),
        labels=np.full(len(names), UNLABELLED, np.int64),
        label_ends=None,
        classes=None,
        num_classes=0,
        name="files",
    )
