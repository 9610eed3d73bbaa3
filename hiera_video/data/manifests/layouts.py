"""Lists of labelled videos, in every layout people have them: files on disk -> one `Manifest`.

    train = read_manifest("kinetics", split="train")            # looks and says what it found
    val = read_manifest("kinetics", split="val", classes=train.classes)

Each layout is one reader, a function `reader(source) -> Manifest` registered by name in
`DATASET_REGISTRY`; a new data set is one more such function (folders of classes are in
`class_folders.py`). Nothing here opens a video, so a list may name files that do not exist: they
are counted when they are read (`datasets.py`), and found beforehand by the audit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hiera_video.data.manifests.class_folders import LIST_ENDINGS, read_folder, unread_lists
from hiera_video.data.manifests.listing import read_json, scan_folder, videos_below
from hiera_video.data.manifests.manifest import (
    Manifest,
    ManifestRows,
    Source,
    numbered_class_names,
    read_class_names,
)
from hiera_video.data.manifests.splits import (
    SPLIT_WORDS,
    SPLITS,
    Listed,
    NoSuchPart,
    choose_part,
    grouping,
    hold_out,
    split_of,
)
from hiera_video.data.manifests.tables import find_header, named_rows, text_lines
from hiera_video.data.manifests.video_lists import read_list
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
        path: a folder or a list (csv, json, txt).
        split: "train", "val" or "test". A list named directly that names no parts is read whole,
            unless `hold_out` says otherwise.
        format: a name in `DATASET_REGISTRY`, or "auto", which looks.
        class_names: a file with the names of the classes (see `read_class_names`).
        settings: the other fields of `Source`.

    Raises DataError: nothing there, nothing in it, a line that cannot be read, a label that is not
    a number or out of range; UnknownNameError: no such format.
    """
    path = Path(path).expanduser()
    if split not in SPLITS:
        raise DataError(f"split={split!r} is not known; choose one of {', '.join(SPLITS)}")
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
    manifest = DATASET_REGISTRY.get(format)(source)
    if getattr(manifest, "undivided", False):
        return _divided(manifest, source)
    return manifest


def _divided(manifest: Manifest, source: Source) -> Manifest:
    """Of data that names no parts, the share of a split, or all of it; a note says which."""
    what = "folder" if source.path.is_dir() else "list"
    if not (source.path.is_dir() if source.hold_out is None else source.hold_out):
        if source.hold_out is None:
            return replace(manifest, sources=None)
        note = f"all {len(manifest)} videos of {source.path}: the {what} names no parts"
        return replace(manifest, sources=None, notes=(*manifest.notes, note))
    held_out = hold_out(_listed(manifest, source), source)
    wanted = source.split != "train"
    kept = np.full(len(manifest), not wanted)
    kept[list(held_out)] = wanted
    if not kept.any():
        raise NoSuchPart(f"{source.path}: too few videos to hold any out for {source.split}")
    note = (
        f"no split of its own: {kept.sum()} of {len(manifest)} videos are {source.split} "
        f"(val_fraction {source.val_fraction:g}, seed {source.seed})"
    )
    return replace(manifest.select(kept), sources=None, notes=(*manifest.notes, note))


def _listed(manifest: Manifest, source: Source) -> list[Listed]:
    """The videos with what decides which are held out: class and source."""
    group = grouping("" if manifest.sources else source.group_by)
    videos = []
    for i in range(len(manifest)):
        path, label = manifest.paths.relative(i), manifest.label(i)
        several = label if isinstance(label, tuple) else (label,) if label >= 0 else ()
        names = [manifest.classes[n] if manifest.classes else str(n) for n in several]
        cut_from = manifest.sources[i] if manifest.sources else group(path)
        videos.append(Listed(path, ";".join(names), cut_from or path))
    return videos


def detect_format(path: Path) -> str:
    """The layout of a folder or list, by the files that give it away."""
    if path.is_file():
        if path.suffix.lower() in VIDEO_SUFFIXES:
            raise DataError(f"{path} is a video; name a list of videos or a folder of them")
        if path.suffix.lower() == ".json":
            return "ssv2"
        return _csv_kind(path)
    inside = {entry.name for entry in scan_folder(path)}
    lists = _find_lists(path)
    if lists:
        return _csv_kind(next(iter(lists.values()))[0])
    if (
        inside & {"something-something-v2-labels.json", "labels.json"}
        or (path / "labels" / "labels.json").is_file()
    ):
        return "ssv2"
    if "classInd.txt" in inside or "ucfTrainTestlist" in inside:
        return "ucf101"
    if any("_test_split" in name for name in inside) or "testTrainMulti_7030_splits" in inside:
        return "hmdb51"
    return "folder"


@DATASET_REGISTRY.register(name="video")
def read_any(source: Source) -> Manifest:
    """Whatever layout is there."""
    return DATASET_REGISTRY.get(detect_format(source.path))(source)


@DATASET_REGISTRY.register(name="kinetics")
def read_kinetics(source: Source) -> Manifest:
    """SlowFast's name for its own csv; the official csv is told by its columns."""
    file, _ = _list_file(source)
    return DATASET_REGISTRY.get(_csv_kind(file))(source)


# ---- lists: path and label ----------------------------------------------------------------------


@DATASET_REGISTRY.register(name="kinetics_csv")
def read_kinetics_csv(source: Source) -> Manifest:
    """A list: one line `path`, `path label` or `path frames label` per video, or named columns.

    Without named columns, lines are split from the right, so that paths may contain the separator.
    Labels are ids (all whole numbers) or names. Relative paths start at `path_prefix`, else at the
    list's folder, else (where the first file is only there) at the current folder. Names of ids
    come from a file beside the list, if there is one.
    """
    file, notes = _list_file(source)
    of_one_split = source.path.is_dir()
    return read_list(source, file, name="kinetics_csv", notes=notes, of_one_split=of_one_split)


@DATASET_REGISTRY.register(name="kinetics_official")
def read_kinetics_official(source: Source) -> Manifest:
    """DeepMind's csv: columns label, youtube_id, time_start, time_end, split.

    The files are `{id}_{start:06d}_{end:06d}.mp4` (or `{id}.mp4`), anywhere below `path_prefix`,
    else below the folder named. Videos that are not there stay in the list and are counted.
    """
    file, notes = _list_file(source)
    base = source.path if source.path.is_dir() else file.parent
    root = Path(source.path_prefix) if source.path_prefix else base
    header = find_header(file, "youtube_id")
    if header is None:
        first = next(text_lines(file), (1, ""))[1]
        raise DataError(f"{file}: no column youtube_id; its first line is {first!r}")
    if source.need_labels and header.place("label") is None:
        raise DataError(f"{file}: no column 'label'; a test list without labels cannot be scored")
    columns = ("youtube_id", "label", "time_start", "time_end", "split")
    table = list(named_rows(file, header, columns, source.refuse))
    if not table:
        raise DataError(f"{file}: no videos below the line of column names")
    splits = {split_of(row.get("split", "")) for _, row in table}
    if len(splits) > 1:
        table = [item for item in table if split_of(item[1]["split"]) == source.split]
    where_is = _files_by_stem(root)
    rows = ManifestRows(source, file, sorted({row.get("label", "") for _, row in table} - {""}))
    found = 0
    for number, row in table:
        try:
            stem = _clip_stem(row, rows.at(number))
            path = where_is.get(stem) or where_is.get(row["youtube_id"])
            found += path is not None
            rows.add(number, path or f"{stem}.mp4", rows.named(number, row.get("label", "")))
        except DataError as error:
            source.refuse(number, error)
    if table and not found:
        raise DataError(
            f"none of the {len(table)} videos of {file} is below {root}; expected files such as "
            f"{_clip_stem(table[0][1], file.name)}.mp4 (DATA.PATH_PREFIX names their folder)"
        )
    if found < len(table):
        notes = [*notes, f"{len(table) - found} of the {len(table)} videos of {file} are missing"]
    return rows.manifest(
        "kinetics_official",
        str(root),
        notes=notes,
        classes_from=f"names in column 'label' of {file}",
        undivided=source.path.is_file() and len(splits) == 1,
    )


# ---- Something-Something v2, UCF101, HMDB51 -----------------------------------------------------


@DATASET_REGISTRY.register(name="ssv2")
def read_ssv2(source: Source) -> Manifest:
    """Something-Something v2: {labels,train,validation}.json and `{id}.webm` or frame folders.

    The labels are the templates without their brackets. Videos lie in `path_prefix`, else in
    20bn-something-something-v2, videos, frames or the folder itself.
    """
    base = source.path if source.path.is_dir() else source.path.parent
    prefix = "something-something-v2-"
    wanted = {"train": ("train",), "val": ("validation", "val"), "test": ("test",)}[source.split]
    spots = [base, base / "labels", base / "annotations"]
    file = (
        source.path
        if source.path.is_file()
        else _first_file(
            spots,
            [f"{p}{name}.json" for name in wanted for p in (prefix, "")],
            "the list of videos",
        )
    )
    names, named_by = _names_of_layout(source, spots, [f"{prefix}labels.json", "labels.json"])
    entries = read_json(file)
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "id" in e for e in entries):
        raise DataError(f"{file}: expected a list of entries with 'id' and 'template'")
    ids = [str(entry["id"]) for entry in entries]
    folders = ["20bn-something-something-v2", "videos", "frames", ""]
    root, suffix = _video_folder(
        source, base, folders, ids, (".webm", ".mp4", ".avi", ".mkv", ""), file
    )
    rows = ManifestRows(source, file, names)
    for number, (entry, name) in enumerate(zip(entries, ids, strict=True), 1):
        template = str(entry.get("template", "")).replace("[", "").replace("]", "")
        try:
            rows.add(number, name + suffix, rows.named(number, template, what="entry"))
        except DataError as error:
            source.refuse(number, error)
    return rows.manifest(
        "ssv2",
        root,
        classes_from=f"the templates of {file}, numbered by {named_by}",
        undivided=source.path.is_file(),
    )


@DATASET_REGISTRY.register(name="ucf101")
def read_ucf101(source: Source) -> Manifest:
    """UCF101: trainlist01.txt (`Class/v_x.avi 1`, from 1), testlist01.txt, classInd.txt.

    `fold` chooses the official split, 1 to 3. The test list has no labels: the folder says.
    """
    base = source.path if source.path.is_dir() else source.path.parent
    spots = [base, base / "ucfTrainTestlist", base / "splits", base / "annotations"]
    kind = "train" if source.split == "train" else "test"
    file = (
        source.path
        if source.path.is_file()
        else _first_file(
            spots, [f"{kind}list{_official_fold(source):02d}.txt"], "the list of videos"
        )
    )
    names, named_by = _names_of_layout(source, [file.parent, *spots], ["classInd.txt"])
    rows = ManifestRows(source, file, names)
    for number, line in text_lines(file):
        path = re.sub(r"\s+\d+$", "", line)
        try:
            rows.add(number, path, rows.named(number, path.replace("\\", "/").split("/")[0]))
        except DataError as error:
            source.refuse(number, error)
    folders = ["UCF-101", "UCF101", "videos", ""]
    root, _ = _video_folder(source, base, folders, rows.first_paths(), ("",), file)
    return rows.manifest(
        "ucf101",
        root,
        notes=_test_as_val(source),
        classes_from=f"the folder names in {file}, numbered by {named_by}",
        undivided=source.path.is_file(),
    )


@DATASET_REGISTRY.register(name="hmdb51")
def read_hmdb51(source: Source) -> Manifest:
    """HMDB51: one CLASS_test_split1.txt per class, `name.avi 1` to train, 2 to test, 0 unused.

    `fold` chooses the official split, 1 to 3. Videos are CLASS/name.avi.
    """
    fold = _official_fold(source)
    spots = [source.path, source.path / "testTrainMulti_7030_splits", source.path / "splits"]
    lists = sorted(f for spot in spots for f in spot.glob(f"*_test_split{fold}.txt"))
    if not lists:
        raise DataError(
            f"no CLASS_test_split{fold}.txt in {source.path}; HMDB51 comes with one such list per "
            f"class for each of its splits 1 to 3"
        )
    names = [file.name[: -len(f"_test_split{fold}.txt")] for file in lists]
    rows = ManifestRows(source, source.path, names)
    wanted = "1" if source.split == "train" else "2"
    for name, file in zip(names, lists, strict=True):
        rows.file = file
        for number, line in text_lines(file):
            path, _, use = line.rstrip().rpartition(" ")
            try:
                if use not in ("0", "1", "2"):
                    raise DataError(
                        f"{rows.at(number)}: {line!r} must be a file's name and 0, 1 or 2"
                    )
                if use == wanted:
                    rows.add(number, f"{name}/{path.strip()}", rows.named(number, name))
            except DataError as error:
                source.refuse(number, error)
    rows.file = source.path
    folders = ["", "videos", "hmdb51_org", "hmdb51"]
    root, _ = _video_folder(source, source.path, folders, rows.first_paths(), ("",), lists[0])
    return rows.manifest(
        "hmdb51",
        root,
        notes=_test_as_val(source),
        classes_from=f"the names of the lists in {lists[0].parent}",
    )


# ---- where lists and videos lie ----------------------------------------------------------------


def _find_lists(folder: Path) -> dict[str, list[Path]]:
    """Split -> its lists (train.csv, Validation.txt, ...) in a folder or its annotations; of
    several, the one that is read comes first."""
    found: dict[str, list[tuple[tuple, Path]]] = {}
    for place, spot in enumerate((folder, folder / "annotations")):
        for entry in scan_folder(spot) if spot.is_dir() else ():
            stem, ending = os.path.splitext(entry.name)
            split = split_of(stem)
            if split and ending.lower() in LIST_ENDINGS and entry.is_file():
                word = SPLIT_WORDS[split].index(stem.lower())
                order = (place, word, LIST_ENDINGS.index(ending.lower()), stem != stem.lower())
                found.setdefault(split, []).append(((*order, entry.name), spot / entry.name))
    return {split: [file for _, file in sorted(found[split])] for split in SPLITS if split in found}


def _list_file(source: Source) -> tuple[Path, list[str]]:
    """The list of the split asked for, and notes: another stands in for it, or there are two."""
    if source.path.is_file():
        return source.path, []
    lists = _find_lists(source.path)
    names = {split: files[0].name for split, files in lists.items()}
    place = source.path
    try:
        split, notes = choose_part(source.split, names, kind="list", place=place)
    except NoSuchPart as error:
        raise NoSuchPart(f"{error}{unread_lists(place)}") from None
    first, *others = lists[split]
    if others:
        notes.append(f"{first.name} is read, {', '.join(f.name for f in others)} beside it is not")
    return first, notes


def _csv_kind(file: Path) -> str:
    return "kinetics_official" if find_header(file, "youtube_id") else "kinetics_csv"


def _files_by_stem(root: Path) -> dict[str, str]:
    """File name without ending -> path below `root`."""
    if not root.is_dir():
        raise DataError(f"no such folder of videos: {root} (DATA.PATH_PREFIX)")
    return {os.path.splitext(os.path.basename(path))[0]: path for path in videos_below(root)}


def _first_file(folders: Sequence[Path], names: Sequence[str], what: str) -> Path:
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise NoSuchPart(f"{what} is missing in {folders[0]}; expected {' or '.join(names)}")


def _names_of_layout(
    source: Source, folders: Sequence[Path], names: Sequence[str]
) -> tuple[Sequence[str], str]:
    """The classes in order, and where they are from: from the layout's own file, unless the order
    is known."""
    if source.wanted_classes:
        return source.wanted_classes, source.id_names_from or "the names given"
    file = _first_file(folders, names, "the list of classes")
    return read_class_names(file), str(file)


def _video_folder(
    source: Source,
    base: Path,
    names: Sequence[str],
    paths: Sequence[str],
    suffixes: Sequence[str],
    file: Path,
) -> tuple[str, str]:
    """The first folder and ending with which one of the first 100 `paths` exists."""
    folders = [Path(source.path_prefix)] if source.path_prefix else [base / name for name in names]
    for folder in folders:
        for suffix in suffixes:
            if any((folder / (path + suffix)).exists() for path in paths[:100]):
                return str(folder), suffix
    looked = ", ".join(str(folder) for folder in folders)
    example = (paths[0] if paths else "?") + suffixes[0]
    raise DataError(
        f"none of the first {min(len(paths), 100)} videos of {file} is there: looked for {example} "
        f"and the others in {looked} (DATA.PATH_PREFIX names their folder)"
    )


def _clip_stem(row: dict[str, str], where: str) -> str:
    start, end = row.get("time_start"), row.get("time_end")
    if not start or not end:
        return row["youtube_id"]
    try:
        return f"{row['youtube_id']}_{int(float(start)):06d}_{int(float(end)):06d}"
    except (ValueError, OverflowError) as error:
        raise DataError(
            f"{where}: time_start {start!r} and time_end {end!r} must be seconds"
        ) from error


def _official_fold(source: Source) -> int:
    fold = 1 if source.fold is None else source.fold
    if fold not in (1, 2, 3):
        raise DataError(f"split {fold} (DATA.SPLIT) does not exist; the official splits are 1 to 3")
    return fold


def _test_as_val(source: Source) -> list[str]:
    chosen = "the best checkpoint is chosen on it"
    return {
        "train": [],
        "val": [
            f"the official test list is used for validation, and {chosen}: a test on it is no "
            "independent figure"
        ],
        "test": [
            f"training validates on the official test list too: {chosen}, and this is no "
            "independent figure"
        ],
    }[source.split]
