"""Kinetics: SlowFast's lists `path label`, as any data set may have, and DeepMind's own csv."""

from __future__ import annotations

import os
from pathlib import Path

from hiera_video.data.manifests.builder import ManifestBuilder
from hiera_video.data.manifests.class_folders import LIST_ENDINGS, other_tables
from hiera_video.data.manifests.detection import recognized_by
from hiera_video.data.manifests.listing import scan_folder, videos_below
from hiera_video.data.manifests.manifest import Manifest
from hiera_video.data.manifests.source import Source
from hiera_video.data.manifests.splits import (
    SPLIT_WORDS,
    SPLITS,
    MissingSplit,
    choose_split,
    split_of,
)
from hiera_video.data.manifests.tables import find_header, named_rows, text_lines
from hiera_video.data.manifests.video_lists import read_list
from hiera_video.errors import DataError
from hiera_video.registry import DATASET_REGISTRY

# ---- which of the two ---------------------------------------------------------------------------


def _first_list(path: Path) -> Path | None:
    """The list that decides what a folder or a file is; None where there is none."""
    if path.is_file():
        return None if path.suffix.lower() == ".json" else path
    lists = _find_lists(path)
    return next(iter(lists.values()))[0] if lists else None


def _is_official(path: Path) -> bool:
    """Whether a folder or a file is DeepMind's csv, by its column youtube_id."""
    file = _first_list(path)
    return file is not None and find_header(file, "youtube_id") is not None


def _is_list(path: Path) -> bool:
    return _first_list(path) is not None


@DATASET_REGISTRY.register(name="kinetics")
def read_kinetics(source: Source) -> Manifest:
    """Read SlowFast's or DeepMind's csv, whichever it is."""
    file, _ = _list_file(source)
    official = find_header(file, "youtube_id") is not None
    return read_kinetics_official(source) if official else read_kinetics_csv(source)


# ---- the readers --------------------------------------------------------------------------------


@DATASET_REGISTRY.register(name="kinetics_official")
@recognized_by(_is_official)
def read_kinetics_official(source: Source) -> Manifest:
    """Read DeepMind's csv: columns label, youtube_id, time_start, time_end, split.

    The files are `{id}_{start:06d}_{end:06d}.mp4` (or `{id}.mp4`), anywhere below `path_prefix`,
    else below the folder named. Videos that are not there stay in the list and are counted.
    """
    file, notes = _list_file(source)
    base = source.path if source.path.is_dir() else file.parent
    root = Path(source.path_prefix) if source.path_prefix else base
    rows, has_splits = _official_rows(source, file)
    where_is = _files_by_stem(root)
    classes = sorted({row.get("label", "") for _, row in rows} - {""})
    builder = ManifestBuilder(source, file, classes)
    found = 0
    for number, row in rows:
        try:
            stem = _clip_stem(row, builder.location(number))
            path = where_is.get(stem) or where_is.get(row["youtube_id"])
            found += path is not None
            label = builder.label_of(number, row.get("label", ""))
            builder.add(number, path or f"{stem}.mp4", label)
        except DataError as error:
            source.reject(number, error)
    if rows and not found:
        raise DataError(
            f"none of the {len(rows)} videos of {file} is below {root}; expected files such as "
            f"{_clip_stem(rows[0][1], file.name)}.mp4 (DATA.PATH_PREFIX names their folder)"
        )
    if found < len(rows):
        notes = [*notes, f"{len(rows) - found} of the {len(rows)} videos of {file} are missing"]
    return builder.build(
        "kinetics_official",
        str(root),
        notes=notes,
        classes_from=f"names in column 'label' of {file}",
        undivided=source.path.is_file() and not has_splits,
    )


def _official_rows(source: Source, file: Path) -> tuple[list[tuple[int, dict[str, str]]], bool]:
    """(line, cells) of the videos of the split asked for; whether the file has several splits."""
    header = find_header(file, "youtube_id")
    if header is None:
        first = next(text_lines(file), (1, ""))[1]
        raise DataError(f"{file}: no column youtube_id; its first line is {first!r}")
    if source.need_labels and header.place("label") is None:
        raise DataError(f"{file}: no column 'label'; a test list without labels cannot be scored")
    columns = ("youtube_id", "label", "time_start", "time_end", "split")
    rows = list(named_rows(file, header, columns, source.reject))
    if not rows:
        raise DataError(f"{file}: no videos below the line of column names")
    has_splits = len({split_of(row.get("split", "")) for _, row in rows}) > 1
    if has_splits:
        rows = [item for item in rows if split_of(item[1]["split"]) == source.split]
    return rows, has_splits


@DATASET_REGISTRY.register(name="kinetics_csv")
@recognized_by(_is_list)
def read_kinetics_csv(source: Source) -> Manifest:
    """Read a list: one line `path`, `path label` or `path frames label` per video, or named
    columns.

    Without named columns, lines are split from the right, so that paths may contain the separator.
    Labels are ids (all whole numbers) or names. Relative paths start at `path_prefix`, else at the
    list's folder, else (where the first file is only there) at the current folder. Names of ids
    come from a file beside the list, if there is one.
    """
    file, notes = _list_file(source)
    of_one_split = source.path.is_dir()
    return read_list(source, file, name="kinetics_csv", notes=notes, of_one_split=of_one_split)


def _clip_stem(row: dict[str, str], where: str) -> str:
    """The name, without ending, that the usual download scripts give to the clip of a row."""
    start, end = row.get("time_start"), row.get("time_end")
    if not start or not end:
        return row["youtube_id"]
    try:
        return f"{row['youtube_id']}_{int(float(start)):06d}_{int(float(end)):06d}"
    except (ValueError, OverflowError) as error:
        raise DataError(
            f"{where}: time_start {start!r} and time_end {end!r} must be seconds"
        ) from error


# ---- where lists and videos lie -----------------------------------------------------------------


def _find_lists(folder: Path) -> dict[str, list[Path]]:
    """Split -> its lists (train.csv, Validation.txt, ...) in a folder or its annotations; of
    several, the one that is read comes first."""
    found: dict[str, list[tuple[tuple[int | bool | str, ...], Path]]] = {}
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
    """The list of the split asked for, and notes if another is used instead or there are two."""
    if source.path.is_file():
        return source.path, []
    lists = _find_lists(source.path)
    names = {split: files[0].name for split, files in lists.items()}
    place = source.path
    try:
        split, notes = choose_split(source.split, names, kind="list", place=place)
    except MissingSplit as error:
        raise MissingSplit(f"{error}{other_tables(place)}") from None
    first, *others = lists[split]
    if others:
        notes.append(f"{first.name} is read, {', '.join(f.name for f in others)} beside it is not")
    return first, notes


def _files_by_stem(root: Path) -> dict[str, str]:
    """File name without ending -> path below `root`."""
    if not root.is_dir():
        raise DataError(f"no such folder of videos: {root} (DATA.PATH_PREFIX)")
    return {os.path.splitext(os.path.basename(path))[0]: path for path in videos_below(root)}
