"""Lists of labelled videos, in every layout people have them: files on disk -> one `Manifest`.

    train = read_manifest("kinetics", split="train")            # looks and says what it found
    val = read_manifest("kinetics", split="val", classes=train.classes)

Each layout is one reader, a function `reader(source) -> Manifest` registered by name in
`DATASET_REGISTRY`; a new data set is one more such function (folders of classes are in
`class_folders.py`). Nothing here opens a video, so a list may name files that do not exist: they
are counted when they are read (`datasets.py`), and found beforehand by the audit.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hiera_video.data.class_folders import SPLIT_FOLDERS, STAND_IN, read_folder, split_name
from hiera_video.data.listing import (
    VIDEO_SUFFIXES,
    DataError,
    csv_rows,
    is_video,
    read_json,
    scan_folder,
    text_lines,
    videos_below,
)
from hiera_video.data.manifest_rows import (
    UNLABELLED,
    Manifest,
    ManifestRows,
    Source,
    read_class_names,
    with_class_file,
)
from hiera_video.registry import DATASET_REGISTRY

__all__ = [
    "VIDEO_SUFFIXES",
    "DataError",
    "Manifest",
    "Source",
    "detect_format",
    "read_class_names",
    "read_folder",
    "read_manifest",
]

SPLITS = ("train", "val", "test")


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
        split: "train", "val" or "test". A list named directly is read whole.
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
        source = replace(source, classes=tuple(read_class_names(class_names)))
    if format == "auto":
        format = detect_format(path)
    return DATASET_REGISTRY.get(format)(source)


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
        return _csv_kind(lists[0])
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
    """SlowFast's list: one line `path`, `path label` or `path frames label` per video.

    Split from the right, so that paths may contain the separator. Relative paths start at
    `path_prefix`, else at the list's folder, else (where the first file is only there) at the
    current folder. Names of classes come from a file beside the list, if there is one.
    """
    file, notes = _list_file(source)
    lines = text_lines(file)
    first = next(lines, None)
    if first is not None and _is_header(first[1]):
        first = next(lines, None)
    if first is None:
        raise DataError(f"{file}: the list is empty; expected a line 'path label' for each video")
    separator = source.separator or _find_separator(first[1], source.multi_label)
    source = with_class_file(source, file.parent)
    rows = ManifestRows(source, file)
    parse = _split_many if source.multi_label else _split_line
    for number, line in itertools.chain([first], lines):
        try:
            path, labels = parse(line, separator, rows.at(number), source)
            rows.add(number, path, labels)
        except DataError as error:
            source.refuse(number, error)
    root = _root_of_list(source, file.parent, rows.first_path())
    return rows.manifest("kinetics_csv", root, notes=notes)


@DATASET_REGISTRY.register(name="kinetics_official")
def read_kinetics_official(source: Source) -> Manifest:
    """DeepMind's csv: columns label, youtube_id, time_start, time_end, split.

    The files are `{id}_{start:06d}_{end:06d}.mp4` (or `{id}.mp4`), anywhere below `path_prefix`,
    else below the folder named. Videos that are not there stay in the list and are counted.
    """
    file, notes = _list_file(source)
    base = source.path if source.path.is_dir() else file.parent
    root = Path(source.path_prefix) if source.path_prefix else base
    table = list(csv_rows(file, need=("youtube_id",), refuse=source.on_bad_line))
    if source.need_labels and table and "label" not in table[0][1]:
        raise DataError(f"{file}: no column 'label'; a test list without labels cannot be scored")
    splits = {split_name(row.get("split", "")) for _, row in table}
    if len(splits) > 1:
        table = [item for item in table if split_name(item[1].get("split", "")) == source.split]
    classes = source.classes or tuple(sorted({row.get("label", "") for _, row in table} - {""}))
    where_is = _files_by_stem(root)
    rows = ManifestRows(replace(source, classes=classes or None), file)
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
    return rows.manifest("kinetics_official", str(root), notes=notes)


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
    if source.classes is None:
        names = _first_file(spots, [f"{prefix}labels.json", "labels.json"], "the list of classes")
        source = replace(source, classes=tuple(read_class_names(names)))
    entries = read_json(file)
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "id" in e for e in entries):
        raise DataError(f"{file}: expected a list of entries with 'id' and 'template'")
    ids = [str(entry["id"]) for entry in entries]
    folders = ["20bn-something-something-v2", "videos", "frames", ""]
    root, suffix = _video_folder(
        source, base, folders, ids, (".webm", ".mp4", ".avi", ".mkv", ""), file
    )
    rows = ManifestRows(source, file)
    for number, (entry, name) in enumerate(zip(entries, ids, strict=True), 1):
        template = str(entry.get("template", "")).replace("[", "").replace("]", "")
        try:
            rows.add(number, name + suffix, rows.named(number, template, what="entry"))
        except DataError as error:
            source.refuse(number, error)
    return rows.manifest("ssv2", root)


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
    if source.classes is None:
        names = _first_file([file.parent, *spots], ["classInd.txt"], "the list of classes")
        source = replace(source, classes=tuple(read_class_names(names)))
    rows = ManifestRows(source, file)
    for number, line in text_lines(file):
        path = re.sub(r"\s+\d+$", "", line)
        try:
            rows.add(number, path, rows.named(number, path.replace("\\", "/").split("/")[0]))
        except DataError as error:
            source.refuse(number, error)
    folders = ["UCF-101", "UCF101", "videos", ""]
    root, _ = _video_folder(source, base, folders, rows.first_paths(), ("",), file)
    return rows.manifest("ucf101", root, notes=_test_as_val(source))


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
    rows = ManifestRows(replace(source, classes=source.classes or tuple(names)), source.path)
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
    return rows.manifest("hmdb51", root, notes=_test_as_val(source))


# ---- lines of a list ----------------------------------------------------------------------------

_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")
_SEPARATORS = (",", "\t", ";", " ")


def _split_line(
    line: str, separator: str, where: str, source: Source
) -> tuple[str, tuple[int, ...]]:
    """`path`, `path label` or `path frames label` -> path and label."""
    path, found, last = line.rpartition(separator)
    path, last = path.strip(), last.strip()
    if not found or is_video(_unquoted(last)):
        if hint := _other_separator(line, separator):
            raise DataError(f"{where}: no {separator!r} before the label in {line!r}; {hint}")
        return _unquoted(line.strip()), (UNLABELLED,)
    if not _WHOLE_NUMBER.fullmatch(last):
        raise DataError(
            f"{where}: label {last!r} is not a whole number (in {line!r}); expected a line "
            f"'path{separator}label', labels from 0. {_other_separator(line, separator)}".rstrip()
        )
    # A number in the middle is the column of frame counts, unless a path simply ends in a number.
    head, found, frames = path.rpartition(separator)
    if found and _WHOLE_NUMBER.fullmatch(frames.strip()) and not is_video(path):
        base = source.path_prefix or str(
            source.path if source.path.is_dir() else source.path.parent
        )
        if not os.path.exists(os.path.join(base, _unquoted(path))):
            path = head.strip()
    return _unquoted(path), (int(last),)


def _split_many(
    line: str, separator: str, where: str, source: Source
) -> tuple[str, tuple[int, ...]]:
    """`path 3,7,12` or `path,3 7 12` or `path 3 7 12` -> path and sorted labels."""
    match = _many_labels(separator).fullmatch(line)
    if match is None:
        if not source.need_labels:
            return _unquoted(line), (UNLABELLED,)
        raise DataError(
            f"{where}: no labels at the end of {line!r}; expected 'path{separator}3,7,12' with "
            f"whole numbers from 0. {_other_separator(line, separator)}".rstrip()
        )
    labels = {int(text) for text in re.split(r"[,; \t]+", match["labels"])}
    return _unquoted(match["path"].strip()), tuple(sorted(labels))


@functools.lru_cache(maxsize=8)
def _many_labels(separator: str) -> re.Pattern[str]:
    numbers = r"-?[0-9]{1,18}(?:[,; \t]+-?[0-9]{1,18})*"
    return re.compile(rf"(?P<path>.*?){re.escape(separator)}\s*\"?(?P<labels>{numbers})\"?")


def _find_separator(line: str, multi_label: bool) -> str:
    """The separator of a list by its first line; a list of bare paths gets a space."""
    fits = {}
    for separator in _SEPARATORS:
        if multi_label:
            match = _many_labels(separator).fullmatch(line)
            path = match["path"] if match else ""
        else:
            path, _, last = line.rpartition(separator)
            path = path if _WHOLE_NUMBER.fullmatch(last.strip()) else ""
        if path.strip():
            fits[separator] = len(path)
    # Of several labels, the separator before them all leaves the shortest path.
    return min(fits, key=fits.get) if multi_label and fits else next(iter(fits), " ")


def _other_separator(line: str, separator: str) -> str:
    for other in _SEPARATORS:
        path, found, last = line.rpartition(other)
        if other != separator and found and path and _WHOLE_NUMBER.fullmatch(last.strip()):
            return f"The separator looks like {other!r}: set DATA.PATH_LABEL_SEPARATOR to it"
    return ""


def _is_header(line: str) -> bool:
    """A first line of column names: `path,label`."""
    words = [word.strip().strip('"').lower() for word in re.split(r"[,;\t ]", line)]
    if _WHOLE_NUMBER.fullmatch(words[-1]) or is_video(words[-1]):
        return False  # a file called "video 1.mp4"
    return len(words) > 1 and words[0] in ("path", "file", "filename", "video", "video_path")


def _unquoted(path: str) -> str:
    if len(path) > 1 and path[0] == path[-1] == '"':
        return path[1:-1].replace('""', '"')
    return path


# ---- where lists and videos lie ----------------------------------------------------------------


def _find_lists(folder: Path) -> list[Path]:
    """train.csv, val.csv, ... in the folder or its annotations, training first."""
    spots = [folder, folder / "annotations"]
    names = [name for split in SPLITS for name in SPLIT_FOLDERS[split]]
    return [
        spot / f"{name}{suffix}"
        for spot in spots
        for name in names
        for suffix in (".csv", ".txt")
        if (spot / f"{name}{suffix}").is_file()
    ]


def _list_file(source: Source) -> tuple[Path, list[str]]:
    """The list of the split asked for, and a note where another stands in for it."""
    if source.path.is_file():
        return source.path, []
    lists = _find_lists(source.path)
    for split in (source.split, STAND_IN.get(source.split)):
        for file in lists:
            if split and file.stem in SPLIT_FOLDERS[split]:
                note = f"no {source.split} list in {source.path}: {file.name} stands in for it"
                return file, [] if split == source.split else [note]
    raise DataError(
        f"no list for {source.split} in {source.path}; expected {source.split}.csv with a line "
        f"'path label' for each video"
    )


def _csv_kind(file: Path) -> str:
    first = next(text_lines(file), (1, ""))[1]
    return "kinetics_official" if "youtube_id" in first else "kinetics_csv"


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
    raise DataError(f"{what} is missing in {folders[0]}; expected {' or '.join(names)}")


def _root_of_list(source: Source, folder: Path, first: str) -> str:
    if source.path_prefix:
        return source.path_prefix
    if not (folder / first).exists() and os.path.exists(first):
        return os.getcwd()
    return str(folder)


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
    return ["the official test list is used for validation"] if source.split == "val" else []
