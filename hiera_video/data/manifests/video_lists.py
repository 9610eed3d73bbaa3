"""A list of labelled videos, whatever its columns are called -> a `Manifest`."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hiera_video.data.manifests.label_texts import UNLABELLED, Labels, LabelTexts, resolve
from hiera_video.data.manifests.listing import some
from hiera_video.data.manifests.manifest import (
    Manifest,
    PathTable,
    Source,
    gather,
    with_class_file,
)
from hiera_video.data.manifests.splits import SPLITS, NoSuchPart, choose_part, split_of
from hiera_video.data.manifests.tables import Header, is_utf8, shown
from hiera_video.data.manifests.video_table import VideoTable
from hiera_video.errors import DataError


def read_list(
    source: Source,
    file: Path,
    *,
    name: str,
    notes: Sequence[str] = (),
    of_one_split: bool = False,
) -> Manifest:
    """The videos of one split that a list names.

    A column `split` or `fold` says which these are; without one they are all videos, and
    `Manifest.undivided` says so.

    Args:
        source: what is asked for.
        file: the list.
        name: the layout, as registered.
        notes: for the manifest.
        of_one_split: the list's name says what it holds (train.csv): not undivided, whatever else.

    Raises DataError: no text, no videos, a line that cannot be read.
    """
    source = with_class_file(source, file.parent)
    base = source.path_prefix or str(file.parent)
    table = VideoTable(
        file,
        separator=source.separator,
        multi_label=source.multi_label,
        need_labels=source.need_labels,
        exists=lambda path: os.path.exists(os.path.join(base, path)) or os.path.exists(path),
    )
    columns = Columns(table, source)
    columns.read()
    kept, split_notes, divided = _rows_of_split(columns, source, of_one_split)
    labels = _resolved(columns, source)
    kept &= ~_refused(columns, labels, kept, source)
    if not kept.any():
        raise NoSuchPart(f"{file}: no videos for {source.split}")
    root = _root(source, file, columns.path(int(kept.argmax())))
    manifest = _manifest(columns, labels, source, name, root)
    if not divided:
        manifest = _undivided(manifest, columns)
    if not kept.all():
        manifest = manifest.select(kept)
    return replace(manifest, notes=(*notes, *split_notes))


class Columns:
    """The columns of a list in flat arrays."""

    def __init__(self, table: VideoTable, source: Source) -> None:
        self.table, self.source = table, source
        self.texts = LabelTexts()
        self.blob, self.ends = bytearray(), array("q")
        self.labels, self.lines = array("i"), array("i")
        header = table.header
        self.source_column = source_column(source, header) if header else ""
        table.is_plain = table.is_plain and not self.source_column
        self.others = {
            role: Values(place)
            for role, place in {
                "split": table.places.get("split"),
                "fold": table.places.get("fold"),
                "label_id": table.places.get("label_id"),
                "source": header.place(self.source_column) if self.source_column else None,
            }.items()
            if place is not None
        }

    def __len__(self) -> int:
        return len(self.ends)

    def read(self) -> None:
        """Read the list, line by line."""
        refuse, exists = self.source.refuse, self.table.exists
        codes, code_of = self.texts.codes, self.texts.code
        blob, others = self.blob, list(self.others.values())
        for line, path, label, cells in self.table.rows(self.source.refuse):
            if path.isascii():
                if not path or "\0" in path:
                    refuse(line, DataError(f"{self.at(line)}: {path!r} is not a path"))
                    continue
                blob += path.encode()
            else:
                if not is_utf8(path) and not exists(path):
                    refuse(line, DataError(f"{self.at(line)}: {_no_such_name(path)}"))
                    continue
                if "\0" in path:
                    refuse(line, DataError(f"{self.at(line)}: {path!r} is not a path"))
                    continue
                blob += os.fsencode(path)
            self.ends.append(len(blob))
            code = codes.get(label)
            self.labels.append(code_of(label, line) if code is None else code)
            self.lines.append(line)
            for values in others:
                values.add(cells[values.place])

    def at(self, line: int) -> str:
        return f"{self.table.file}:{line}"

    def path(self, row: int) -> str:
        """One path, as the list has it."""
        start = self.ends[row - 1] if row else 0
        return os.fsdecode(bytes(self.blob[start : self.ends[row]]))


class Values:
    """The values of one column, each different one kept once."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.codes: dict[str, int] = {}
        self.rows = array("i")

    def add(self, value: str) -> None:
        self.rows.append(self.codes.setdefault(value, len(self.codes)))

    def is_any(self, wanted: Callable[[str], bool]) -> np.ndarray:
        """Rows whose value is wanted: bool [N]."""
        return np.array([wanted(value) for value in self.codes], bool)[np.asarray(self.rows)]


def _no_such_name(path: str) -> str:
    return (
        f"{shown(path)} is not UTF-8 (Latin-1?), and no file is called so; save the list as UTF-8"
    )


def source_column(source: Source, header: Header) -> str:
    """The column that names what videos were cut from; empty where there is none."""
    wanted = source.group_by or "source"
    written = [name for name in header.names if name == wanted]
    place = header.place("source") if not source.group_by else None
    return written[0] if written else header.names[place] if place is not None else ""


# ---- which rows ---------------------------------------------------------------------------------


def _rows_of_split(
    columns: Columns, source: Source, of_one_split: bool
) -> tuple[np.ndarray, list[str], bool]:
    """Which rows are of the split asked for (bool [N]), notes, whether the list divides them."""
    split, fold = columns.others.get("split"), columns.others.get("fold")
    file = columns.table.file
    if split is not None and (not of_one_split or len(set(map(split_of, split.codes))) > 1):
        return *_rows_by_split(split, source, columns), True
    if fold is not None and not of_one_split:
        folds = sorted(fold.codes)
        held_out = folds[0] if source.fold is None else str(source.fold)
        if held_out not in folds:
            raise DataError(f"{file}: no fold {held_out}; it has {', '.join(folds)}")
        train = source.split == "train"
        kept = fold.is_any(lambda value: (value != held_out) == train)
        return kept, [f"fold {held_out} of {file.name} is held out"], True
    return np.ones(len(columns), bool), [], of_one_split


def _rows_by_split(split: Values, source: Source, columns: Columns) -> tuple[np.ndarray, list[str]]:
    file = columns.table.file
    column = columns.table.header.names[split.place]
    there = {split_of(value): value for value in split.codes}
    other = [value for value in split.codes if not split_of(value)]
    known = {part: f"{column} {there[part]!r}" for part in SPLITS if part in there}
    if not known:
        raise DataError(
            f"{file}: the column {column!r} says {some(list(split.codes))}; expected train, val "
            "and test"
        )
    part, notes = choose_part(source.split, known, kind="split", place=f"the list {file}")
    notes = [f"split as in the column {column!r} of {file.name}", *notes]
    if other:
        count = int(split.is_any(lambda value: not split_of(value)).sum())
        notes.append(f"{count} videos of {column} {some(other)} are in no split, and not used")
    return split.is_any(lambda value: split_of(value) == part), notes


# ---- labels -------------------------------------------------------------------------------------


def _resolved(columns: Columns, source: Source) -> Labels:
    counts = np.bincount(np.asarray(columns.labels), minlength=len(columns.texts.codes))
    numbered = "label_id" in columns.others
    numbered &= not source.multi_label and not source.ignore_labels
    number_of = _numbers_of_names(columns) if numbered else None
    file = columns.table.file
    labels = resolve(columns.texts, counts, source, file=file, number_of=number_of)
    training = source.split == "train" and source.classes is None and source.need_labels
    if training and labels.are_ids and source.id_names_begin == 1 and labels.ids[0] >= 1:
        raise DataError(
            f"{file} has ids {labels.ids[0]} to {labels.ids[1]}, and {source.id_names_from} "
            f"numbers its classes from 1: is id 1 {source.id_names[0]!r} or the next class? Ids "
            "count from 0 here: number both from 0"
        )
    return labels


def _numbers_of_names(columns: Columns) -> dict[str, str]:
    """Name -> number, from a column of numbers beside the names.

    The numbers may have gaps, as in the part of a table that lacks a class.
    """
    file, ids = columns.table.file, columns.others["label_id"]
    names, numbers = list(columns.texts.codes), list(ids.codes)
    first: dict[str, tuple[str, int]] = {}
    pairs = zip(columns.labels, ids.rows, columns.lines, strict=True)
    for label, number, line in pairs:
        name, text = names[label], numbers[number]
        if not name:
            continue
        known, _ = first.setdefault(name, (text, line))
        if known != text:
            raise DataError(
                f"{file}:{line}: label {name!r} has label_id {text}, and {known} further up"
            )
    written = [text for text, _ in first.values()]
    if not all(text.isdecimal() for text in written) or len(set(map(int, written))) < len(first):
        raise DataError(f"{file}: label_id must be a whole number from 0, each for one label")
    return {name: text for name, (text, _) in first.items()}


def _refused(columns: Columns, labels: Labels, kept: np.ndarray, source: Source) -> np.ndarray:
    """Rows, of those kept, whose labels cannot be read (bool [N]); each is refused by its line."""
    wrong = np.zeros(len(columns.texts.codes), bool)
    wrong[list(labels.wrong)] = True
    wrong[0] |= source.need_labels and not source.ignore_labels
    bad = wrong[np.asarray(columns.labels)] & kept
    for row in np.flatnonzero(bad).tolist():
        place = columns.at(columns.lines[row])
        error = labels.wrong.get(columns.labels[row])
        if error is None:
            error = DataError(_no_label(columns, row))
        source.refuse(columns.lines[row], type(error)(f"{place}: {error}"))
    return bad


def _no_label(columns: Columns, row: int) -> str:
    path, table = columns.path(row), columns.table
    if table.header is not None and "label" in table.places:
        column = table.header.names[table.places["label"]]
        return f"no label in the column {column!r} for {path!r}; only pretraining does without"
    return f"{path!r} has no label; expected a line 'path label' (only pretraining does without)"


# ---- the manifest -------------------------------------------------------------------------------


def _manifest(columns: Columns, labels: Labels, source: Source, name: str, root: str) -> Manifest:
    """All rows of a list; those without a label, or with a wrong one, have -1."""
    codes = np.frombuffer(columns.labels, np.int32)
    values, ends = labels.values, None
    if source.multi_label:
        counts = np.array([len(several) for several in values], np.int64)
        flat = np.array([label for several in values for label in several], np.int64)
        found, ends = gather(flat, (np.cumsum(counts) - counts)[codes], counts[codes])
    else:
        found = np.array([one[0] if one else UNLABELLED for one in values], np.int64)[codes]
    classes = labels.classes
    highest = int(found.max(initial=UNLABELLED)) + 1
    return Manifest(
        paths=PathTable(
            root,
            np.frombuffer(columns.blob, np.uint8),
            np.frombuffer(columns.ends, np.int64),
        ),
        labels=found,
        label_ends=ends,
        classes=classes,
        num_classes=len(classes) if classes else source.num_classes or highest,
        name=name,
        lines=np.asarray(columns.lines, np.int64) if source.on_bad_line else None,
        classes_from=_classes_from(columns, labels, source),
    )


def _classes_from(columns: Columns, labels: Labels, source: Source) -> str:
    table = columns.table
    file = table.file
    of = f"of {file}"
    if table.header is not None and "label" in table.places:
        of = f"in column {table.header.names[table.places['label']]!r} of {file}"
    if not labels.are_ids:
        return f"names {of}" if labels.classes else str(file)
    text = f"ids {labels.ids[0]} to {labels.ids[1]} {of}"
    if source.id_names:
        return f"{text}, named by {source.id_names_from}"
    return f"{text}, in the order of the names given" if source.classes else f"{text}, no names"


def _undivided(manifest: Manifest, columns: Columns) -> Manifest:
    """Marked as such, with what the videos were cut from."""
    sources = columns.others.get("source")
    if sources is None:
        return replace(manifest, undivided=True)
    names = list(sources.codes)
    return replace(manifest, undivided=True, sources=[names[code] for code in sources.rows])


def _root(source: Source, file: Path, first: str) -> str:
    """Where relative paths start: the prefix, the list's folder, or, if only there, this folder."""
    if source.path_prefix:
        return source.path_prefix
    if not (file.parent / first).exists() and os.path.exists(first):
        return os.getcwd()
    return str(file.parent)
