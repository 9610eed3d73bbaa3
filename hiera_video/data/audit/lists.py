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

from hiera_video.data.audit.records import Findings
from hiera_video.data.class_folders import SPLIT_FOLDERS
from hiera_video.data.listing import (
    DataError,
    LabelRangeError,
    is_video,
    scan_folder,
    videos_below,
)
from hiera_video.data.manifest_rows import UNLABELLED, Manifest, PathTable
from hiera_video.data.manifests import SPLITS, detect_format, read_manifest

PLAYLISTS = frozenset(
    (".m3u8", ".m3u", ".mpd", ".ffconcat", ".concat", ".sdp", ".pls", ".asx", ".xspf", ".ismc")
)
"""Endings of files that players open like videos and that we refuse."""

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
    if len(files) > 1 or files[0].is_file():
        parts = _read_lists(files, settings, findings)
    elif as_configured:
        parts = _read_splits(files[0], settings, findings)
    elif _is_heap(files[0]):
        heap = _table(files[0], videos_below(files[0], wanted=_pretends))
        if not len(heap):
            raise DataError(f"no videos in {files[0]} or below it")
        note = f"{files[0]} has no known layout of a data set: every video below it, no labels"
        return [Part(HEAP, heap)], [note]
    else:
        is_folder = detect_format(files[0]) == "folder"
        parts = _read_splits(files[0], {**settings, "need_labels": is_folder}, findings)
        unused = _not_listed(files[0], parts) if is_folder else []
        parts += [Part(UNUSED, unused)] if len(unused) else []
    return parts, [f"{part.name}: {note}" for part in parts for note in part.manifest.notes]


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
    return next((s for s, names in SPLIT_FOLDERS.items() if file.stem.lower() in names), file.stem)


def _read_splits(folder: Path, settings: dict[str, Any], findings: Findings) -> list[Part]:
    parts: list[Part] = []
    for split in SPLITS:
        try:
            part = _read(folder, split, settings, findings, first=parts[:1])
        except DataError:
            if not parts:
                raise
            continue  # training needs no held-out videos until it is told to validate
        if any(_same_videos(part.manifest, earlier.manifest) for earlier in parts):
            findings.forget(split)  # another split stands in for it
        else:
            parts.append(part)
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


def _is_heap(folder: Path) -> bool:
    """Whether a folder is not of a layout that training reads."""
    if detect_format(folder) != "folder" or (folder / "labels.csv").is_file():
        return False
    entries = scan_folder(folder)
    splits = {name for names in SPLIT_FOLDERS.values() for name in names}
    if any(entry.name.lower() in splits and entry.is_dir() for entry in entries):
        return False
    if any(_pretends(entry.name) and not entry.is_dir() for entry in entries):
        return True
    folders = [e for e in entries if e.is_dir() and not e.name.startswith(".")]
    # A class has its videos in its folder; where they lie deeper, the folders are something else.
    below = [folder / entry.name for entry in folders if videos_below(Path(entry.path))]
    return not below or not all(any(is_video(e.name) for e in scan_folder(f)) for f in below)


def _pretends(name: str) -> bool:
    return is_video(name) or os.path.splitext(name)[1].lower() in PLAYLISTS


def _not_listed(folder: Path, parts: Sequence[Part]) -> Manifest:
    """Files below a folder of classes that are in no class, nor in its labels.csv."""
    listed = {os.path.normpath(part.manifest.paths[i]) for part in parts for i in range(len(part))}
    names = videos_below(folder, wanted=_pretends)
    return _table(
        folder, [n for n in names if os.path.normpath(os.path.join(folder, n)) not in listed]
    )


def _table(root: Path, names: Sequence[str]) -> Manifest:
    """Files without labels."""
    encoded = [os.fsencode(name) for name in names]
    return Manifest(
        paths=PathTable(
            str(root),
            np.frombuffer(b"".join(encoded) or b"\0", np.uint8),
            np.cumsum([len(name) for name in encoded], dtype=np.int64),
        ),
        labels=np.full(len(names), UNLABELLED, np.int64),
        label_ends=None,
        classes=None,
        num_classes=0,
        name="files",
    )
