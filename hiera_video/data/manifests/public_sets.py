"""Something-Something v2, UCF101 and HMDB51, as their authors distribute them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from hiera_video.data.manifests.builder import ManifestBuilder
from hiera_video.data.manifests.class_names import read_class_names
from hiera_video.data.manifests.detection import recognized_by
from hiera_video.data.manifests.listing import read_json, scan_folder
from hiera_video.data.manifests.manifest import Manifest
from hiera_video.data.manifests.source import Source
from hiera_video.data.manifests.splits import MissingSplit
from hiera_video.data.manifests.tables import text_lines
from hiera_video.errors import DataError
from hiera_video.registry import DATASET_REGISTRY

_SSV2_PREFIX = "something-something-v2-"

# ---- how they are recognised ---------------------------------------------------------------------


def _is_ssv2(path: Path) -> bool:
    if path.is_file():
        return path.suffix.lower() == ".json"
    files = (f"{_SSV2_PREFIX}labels.json", "labels.json", "labels/labels.json")
    return any(os.path.lexists(path / name) for name in files[:2]) or (path / files[2]).is_file()


def _is_ucf101(path: Path) -> bool:
    return any(os.path.lexists(path / name) for name in ("classInd.txt", "ucfTrainTestlist"))


def _is_hmdb51(path: Path) -> bool:
    names = {entry.name for entry in scan_folder(path)} if path.is_dir() else set()
    return "testTrainMulti_7030_splits" in names or any("_test_split" in name for name in names)


# ---- the readers --------------------------------------------------------------------------------


@DATASET_REGISTRY.register(name="ssv2")
@recognized_by(_is_ssv2)
def read_ssv2(source: Source) -> Manifest:
    """Read Something-Something v2: {labels,train,validation}.json and `{id}.webm` or frame folders.

    The labels are the templates without their brackets. Videos lie in `path_prefix`, else in
    20bn-something-something-v2, videos, frames or the folder itself.
    """
    base = source.path if source.path.is_dir() else source.path.parent
    wanted = {"train": ("train",), "val": ("validation", "val"), "test": ("test",)}[source.split]
    spots = [base, base / "labels", base / "annotations"]
    file = (
        source.path
        if source.path.is_file()
        else _first_file(
            spots,
            [f"{p}{name}.json" for name in wanted for p in (_SSV2_PREFIX, "")],
            "the list of videos",
        )
    )
    names, named_by = _names_of_layout(source, spots, [f"{_SSV2_PREFIX}labels.json", "labels.json"])
    entries = read_json(file)
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "id" in e for e in entries):
        raise DataError(f"{file}: expected a list of entries with 'id' and 'template'")
    ids = [str(entry["id"]) for entry in entries]
    folders = ["20bn-something-something-v2", "videos", "frames", ""]
    root, suffix = _video_folder(
        source, base, folders, ids, (".webm", ".mp4", ".avi", ".mkv", ""), file
    )
    builder = ManifestBuilder(source, file, names)
    for number, (entry, name) in enumerate(zip(entries, ids, strict=True), 1):
        template = str(entry.get("template", "")).replace("[", "").replace("]", "")
        try:
            builder.add(number, name + suffix, builder.label_of(number, template, what="entry"))
        except DataError as error:
            source.reject(number, error)
    return builder.build(
        "ssv2",
        root,
        classes_from=f"the templates of {file}, numbered by {named_by}",
        undivided=source.path.is_file(),
    )


@DATASET_REGISTRY.register(name="ucf101")
@recognized_by(_is_ucf101)
def read_ucf101(source: Source) -> Manifest:
    """Read UCF101: trainlist01.txt (`Class/v_x.avi 1`, from 1), testlist01.txt, classInd.txt.

    `fold` chooses the official split, 1 to 3. The folders name the classes of the
    test list, which has no labels.
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
    builder = ManifestBuilder(source, file, names)
    for number, line in text_lines(file):
        path = re.sub(r"\s+\d+$", "", line)
        try:
            builder.add(
                number, path, builder.label_of(number, path.replace("\\", "/").split("/")[0])
            )
        except DataError as error:
            source.reject(number, error)
    folders = ["UCF-101", "UCF101", "videos", ""]
    root, _ = _video_folder(source, base, folders, builder.first_paths(), ("",), file)
    return builder.build(
        "ucf101",
        root,
        notes=_test_as_val(source),
        classes_from=f"the folder names in {file}, numbered by {named_by}",
        undivided=source.path.is_file(),
    )


@DATASET_REGISTRY.register(name="hmdb51")
@recognized_by(_is_hmdb51)
def read_hmdb51(source: Source) -> Manifest:
    """Read HMDB51: one CLASS_test_split1.txt per class, `name.avi 1` to train, 2 to test, 0 unused.

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
    builder = ManifestBuilder(source, source.path, names)
    wanted = "1" if source.split == "train" else "2"
    for name, file in zip(names, lists, strict=True):
        builder.file = file
        for number, line in text_lines(file):
            path, _, use = line.rstrip().rpartition(" ")
            try:
                if use not in ("0", "1", "2"):
                    raise DataError(
                        f"{builder.location(number)}: {line!r} must be a file's name and 0, 1 or 2"
                    )
                if use == wanted:
                    builder.add(number, f"{name}/{path.strip()}", builder.label_of(number, name))
            except DataError as error:
                source.reject(number, error)
    builder.file = source.path
    folders = ["", "videos", "hmdb51_org", "hmdb51"]
    root, _ = _video_folder(source, source.path, folders, builder.first_paths(), ("",), lists[0])
    return builder.build(
        "hmdb51",
        root,
        notes=_test_as_val(source),
        classes_from=f"the names of the lists in {lists[0].parent}",
    )


# ---- where lists and videos lie -----------------------------------------------------------------


def _first_file(folders: Sequence[Path], names: Sequence[str], what: str) -> Path:
    """The first of these files that exists. Raises MissingSplit."""
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise MissingSplit(f"{what} is missing in {folders[0]}; expected {' or '.join(names)}")


def _names_of_layout(
    source: Source, folders: Sequence[Path], names: Sequence[str]
) -> tuple[Sequence[str], str]:
    """The class names in label order, and where they are from: the names already known, else the
    layout's own file."""
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
    """(folder, ending): the first with which one of the first 100 `paths` exists.

    `names` are the folders to try below `base`, unless `path_prefix` names one. Raises DataError.
    """
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


def _official_fold(source: Source) -> int:
    """The official split to read, 1 to 3. Raises DataError."""
    fold = 1 if source.fold is None else source.fold
    if fold not in (1, 2, 3):
        raise DataError(f"split {fold} (DATA.SPLIT) does not exist; the official splits are 1 to 3")
    return fold


def _test_as_val(source: Source) -> list[str]:
    """Notes for data whose only held-out list is used for validation and for the test."""
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
