"""Read what is to be audited, a folder, lists or the data of a config, into splits.

Lists are read as training reads them, except that a line that cannot be read becomes a finding and
the reading goes on. A folder without a known layout (videos at different depths, playlists among
them) is walked, and every file that is a video or has the name of one is taken.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
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
from hiera_video.preparation.audit.findings import Finding, Findings
from hiera_video.video.find import PLAYLIST_SUFFIXES, is_video

NO_LAYOUT = "files"
"""The name of the single split of a folder without a known layout."""

UNUSED = "unused"
"""The name of the split of files that lie in a folder of classes and belong to no class."""


@dataclass(frozen=True)
class Split:
    """The videos of one split, or of one list."""

    name: str
    manifest: Manifest

    def __len__(self) -> int:
        return len(self.manifest)

    def line(self, index: int) -> int:
        """Return the line of the list that names a video; 0 if none does."""
        lines = self.manifest.lines
        return int(lines[index]) if lines is not None and len(lines) else 0

    def label_name(self, label: int) -> str:
        """Return the name of a class, or its number if the data has no names."""
        classes = self.manifest.classes
        return classes[label] if classes else str(label)


def read_splits(
    paths: Sequence[str | Path],
    *,
    settings: Mapping[str, Any],
    as_configured: bool,
    findings: Findings,
) -> tuple[list[Split], list[str]]:
    """Return the splits to audit, and notes on how they were read. `train` comes first.

    Args:
        paths: a folder, or one or more lists.
        settings: arguments of `read_manifest`, except path and split.
        as_configured: read a folder as the settings say, even if it looks different.
        findings: receives a finding for each line that cannot be read.

    Raises DataError: no such path, or no videos there.
    """
    files = [Path(path).expanduser() for path in paths]
    missing = [file for file in files if not os.path.lexists(file)]
    if len(missing) == len(files):
        shown = ", ".join(map(str, missing))
        raise DataError(f"no such file or folder: {shown}; name a folder of videos or a list")
    for file in missing:
        findings.add(Finding("missing_list", "", 0, str(file), "no such file or folder"))
    files = [file for file in files if file not in missing]
    only = files[0]
    if len(files) > 1 or (only.is_file() and not _has_split_column(only)):
        splits = _read_lists(files, settings, findings)
    elif only.is_file() or as_configured or settings.get("format", "auto") != "auto":
        splits = _read_all_splits(only, settings, findings)
    elif (reason := _why_no_layout(only)) is not None:
        videos = _unlabelled(only, videos_below(only, wanted=_is_named_like_video))
        if not len(videos):
            raise DataError(f"no videos in {only} or below it")
        note = f"{only} has no known layout of a data set: every video below it, no labels"
        return [Split(NO_LAYOUT, videos)], [note + (f" ({reason})" if reason else "")]
    else:
        is_folder = detect_format(only) == "folder"
        splits = _read_all_splits(only, {**settings, "need_labels": is_folder}, findings)
        if is_folder and len(unused := _not_listed(only, splits)):
            splits.append(Split(UNUSED, unused))
    return splits, [f"{split.name}: {note}" for split in splits for note in _notes_of(split)]


def _notes_of(split: Split) -> list[str]:
    """Return where the classes of a split come from, and the notes of its reader."""
    known = split.name != UNUSED and len(split)
    return [*([split.manifest.describe_classes()] if known else []), *split.manifest.notes]


# ---- lists and splits ---------------------------------------------------------------------------


def _read_lists(
    files: Sequence[Path], settings: Mapping[str, Any], findings: Findings
) -> list[Split]:
    """Read each list as one split, named after its file. Training lists come first."""
    names = [split_of(file.stem) or file.stem for file in files]
    if len(set(names)) < len(names):
        names = [str(file) for file in files]
    splits: list[Split] = []
    for i in sorted(range(len(files)), key=lambda i: names[i] != "train"):
        splits.append(_read(files[i], names[i], settings, findings, first=splits[:1]))
    return splits


def _has_split_column(file: Path) -> bool:
    """Return whether a list has a column that says which split each video is in."""
    if file.suffix.lower() == ".json" or is_video(file.name):
        return False
    header = find_header(file) or find_header(file, "youtube_id")
    return header is not None and any(header.place(c) is not None for c in ("split", "fold"))


def _read_all_splits(path: Path, settings: Mapping[str, Any], findings: Findings) -> list[Split]:
    """Read train, val and test of one data set, as far as they exist."""
    splits: list[Split] = []
    missing: list[MissingSplit] = []
    for name in SPLITS:
        try:
            split = _read(path, name, settings, findings, first=splits[:1])
        except MissingSplit as error:
            missing.append(error)  # not a problem here: a run reports the split that it needs
            continue
        if any(_same_videos(split.manifest, earlier.manifest) for earlier in splits):
            findings.discard_split(name)  # another split stands in for it
        else:
            splits.append(split)
    if not splits:
        raise missing[0]
    return splits


def _read(
    path: Path,
    name: str,
    settings: Mapping[str, Any],
    findings: Findings,
    *,
    first: Sequence[Split],
) -> Split:
    """Read one split. Labels must fit the classes of the first split, as they must in training."""

    def on_bad_line(line: int, error: DataError) -> None:
        kind = "label_out_of_range" if isinstance(error, LabelRangeError) else "bad_line"
        findings.add(Finding(kind, name, line, "", str(error)))

    settings = dict(settings)
    for split in first:
        if split.manifest.classes and not settings.get("class_names"):
            settings["classes"] = split.manifest.classes
        settings["num_classes"] = settings.get("num_classes") or split.manifest.num_classes or None
    before = findings.problems
    try:
        part = name if name in SPLITS else "train"
        manifest = read_manifest(path, part, on_bad_line=on_bad_line, **settings)
    except DataError:
        if findings.problems == before:
            raise
        manifest = _unlabelled(path.parent, [])  # none of its lines can be read
    return Split(name, manifest)


def _same_videos(a: Manifest, b: Manifest) -> bool:
    return len(a) > 0 and a.paths.equals(b.paths)


# ---- folders ------------------------------------------------------------------------------------


def _why_no_layout(folder: Path) -> str | None:
    """Return None for a folder whose layout training reads; else why not, or "".

    Raises DataError: folder names that look like splits and are not, as in training.
    """
    if detect_format(folder) != "folder" or labels_file(folder) is not None:
        return None
    if split_folders(folder):
        return None
    entries = scan_folder(folder)
    if any(_is_named_like_video(entry.name) and not entry.is_dir() for entry in entries):
        return ""
    tree = read_tree(folder)
    try:
        if splits_inside(tree):
            return None
        require_unambiguous(tree)
    except AmbiguousLayout as error:
        return str(error)
    # The videos of a class are in its folder. If they lie deeper, the folders are not classes.
    inside = [tree.inner(name) for name in tree.videos]
    return None if inside and all("" in inner for inner in inside) else ""


def _is_named_like_video(name: str) -> bool:
    """Return whether a name is that of a video, or of a playlist, which decoders could open."""
    return is_video(name) or os.path.splitext(name)[1].lower() in PLAYLIST_SUFFIXES


def _not_listed(folder: Path, splits: Sequence[Split]) -> Manifest:
    """Return the files below a folder that are in none of its splits."""
    listed = {os.path.normpath(path) for split in splits for path in split.manifest.paths}
    names = videos_below(folder, wanted=_is_named_like_video)
    return _unlabelled(
        folder, [n for n in names if os.path.normpath(os.path.join(folder, n)) not in listed]
    )


def _unlabelled(root: Path, names: Sequence[str]) -> Manifest:
    """Return a manifest of files without labels."""
    return Manifest(
        paths=PathTable.of(str(root), [os.fsencode(name) for name in names]),
        labels=np.full(len(names), UNLABELLED, np.int64),
        label_ends=None,
        classes=None,
        num_classes=0,
        name="files",
    )
