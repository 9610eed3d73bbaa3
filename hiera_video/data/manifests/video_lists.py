"""Read a list of labelled videos, whatever the names of its columns, into a `Manifest`."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hiera_video.data.manifests.class_names import with_class_file
from hiera_video.data.manifests.label_texts import Labels, LabelTexts, resolve_labels
from hiera_video.data.manifests.listing import quoted
from hiera_video.data.manifests.manifest import (
    UNLABELLED,
    Manifest,
    PathTable,
    gather_labels,
)
from hiera_video.data.manifests.source import Source
from hiera_video.data.manifests.splits import SPLITS, MissingSplit, choose_split, split_of
from hiera_video.data.manifests.tables import Header, is_utf8, quoted_text
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
    """Read the videos of one split from a list.

    A column `split` or `fold` decides which these are; without one they are all videos, and
    `Manifest.undivided` is set.

    Args:
        source: what is asked for.
        file: the list.
        name: the layout, as registered.
        notes: for the manifest.
        of_one_split: the list is that of one split by its name (train.csv), so never undivided.

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
    columns = ListColumns(table, source)
    columns.read()
    kept, split_notes, has_splits = _rows_of_split(columns, source, of_one_split)
    labels = _resolve(columns, source)
    kept &= ~_reject_wrong(columns, labels, kept, source)
    if not kept.any():
        raise MissingSplit(f"{file}: no videos for {source.split}")
    root = _root(source, file, columns.path(int(kept.argmax())))
    manifest = _manifest(columns, labels, source, name, root)
    manifest = replace(manifest, undivided=not has_splits, sources=_sources(columns))
    if not kept.all():
        manifest = manifest.select(kept)
    return replace(manifest, notes=(*notes, *split_notes))


class ListColumns:
    """The columns of a list in flat arrays."""

    def __init__(self, table: VideoTable, source: Source) -> None:
        self.table, self.source = table, source
        self.texts = LabelTexts()
        self.blob, self.ends = bytearray(), array("q")
        self.labels, self.lines = array("i"), array("i")
        header = table.header
        self.source_column = source_column(source, header) if header else ""
        with_source = header is not None and bool(self.source_column)
        table.is_plain = table.is_plain and not self.source_column
        self.others = {
            role: ColumnValues(place)
            for role, place in {
                "split": table.places.get("split"),
                "fold": table.places.get("fold"),
                "label_id": table.places.get("label_id"),
                "source": header.place(self.source_column) if header and with_source else None,
            }.items()
            if place is not None
        }

    def __len__(self) -> int:
        return len(self.ends)

    def read(self) -> None:
        """Read the list, line by line."""
        reject, exists = self.source.reject, self.table.exists
        codes, code_of = self.texts.codes, self.texts.code
        blob, others = self.blob, list(self.others.values())
        for line, path, label, cells in self.table.rows(self.source.reject):
            if path.isascii():
                if not path or "\0" in path:
                    reject(line, DataError(f"{self.location(line)}: {path!r} is not a path"))
                    continue
                blob += path.encode()
            else:
                if not is_utf8(path) and not exists(path):
                    reject(line, DataError(f"{self.location(line)}: {_no_such_name(path)}"))
                    continue
                if "\0" in path:
                    reject(line, DataError(f"{self.location(line)}: {path!r} is not a path"))
                    continue
                blob += os.fsencode(path)
            self.ends.append(len(blob))
            code = codes.get(label)
            self.labels.append(code_of(label, line) if code is None else code)
            self.lines.append(line)
            if cells is not None:
                for values in others:
                    values.add(cells[values.place])

    def location(self, line: int) -> str:
        """File and line, as error messages name them."""
        return f"{self.table.file}:{line}"

    def name_of(self, place: int) -> str:
        """The name of a column, as the header writes it."""
        return self.table.header.names[place] if self.table.header else ""

    def path(self, row: int) -> str:
        """One path as the list writes it."""
        start = self.ends[row - 1] if row else 0
        return os.fsdecode(bytes(self.blob[start : self.ends[row]]))


class ColumnValues:
    """The values of one column; each different text is kept once."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.codes: dict[str, int] = {}
        self.rows = array("i")

    def add(self, value: str) -> None:
        """Append the value of the next row."""
        self.rows.append(self.codes.setdefault(value, len(self.codes)))

    def is_any(self, wanted: Callable[[str], bool]) -> np.ndarray:
        """bool [N]: the rows whose value is wanted."""
        return np.array([wanted(value) for value in self.codes], bool)[np.asarray(self.rows)]


def _no_such_name(path: str) -> str:
    return (
        f"{quoted_text(path)} is not UTF-8 (Latin-1?), and no file has this name; save the list as "
        "UTF-8"
    )


def source_column(source: Source, header: Header) -> str:
    """Name of the column with the source of each video; empty where there is none."""
    wanted = source.group_by or "source"
    written = [name for name in header.names if name == wanted]
    place = header.place("source") if not source.group_by else None
    return written[0] if written else header.names[place] if place is not None else ""


# ---- which rows ---------------------------------------------------------------------------------


def _rows_of_split(
    columns: ListColumns, source: Source, of_one_split: bool
) -> tuple[np.ndarray, list[str], bool]:
    """(bool [N]: the rows of the split asked for, notes, whether the list has splits)."""
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


def _rows_by_split(
    split: ColumnValues, source: Source, columns: ListColumns
) -> tuple[np.ndarray, list[str]]:
    file = columns.table.file
    column = columns.name_of(split.place)
    written = {split_of(value): value for value in split.codes}
    other = [value for value in split.codes if not split_of(value)]
    known = {name: f"{column} {written[name]!r}" for name in SPLITS if name in written}
    if not known:
        raise DataError(
            f"{file}: the column {column!r} has {quoted(list(split.codes))}; expected train, val "
            "and test"
        )
    chosen, notes = choose_split(source.split, known, kind="split", place=f"the list {file}")
    notes = [f"split as in the column {column!r} of {file.name}", *notes]
    if other:
        count = int(split.is_any(lambda value: not split_of(value)).sum())
        notes.append(f"{count} videos of {column} {quoted(other)} are in no split, and not used")
    return split.is_any(lambda value: split_of(value) == chosen), notes


# ---- labels -------------------------------------------------------------------------------------


def _resolve(columns: ListColumns, source: Source) -> Labels:
    counts = np.bincount(np.asarray(columns.labels), minlength=len(columns.texts.codes))
    numbered = "label_id" in columns.others
    numbered &= not source.multi_label and not source.ignore_labels
    number_of = _numbers_of_names(columns) if numbered else None
    file = columns.table.file
    labels = resolve_labels(columns.texts, counts, source, file=file, number_of=number_of)
    training = source.split == "train" and source.classes is None and source.need_labels
    from_one = source.id_names is not None and source.id_names_begin == 1
    if training and from_one and labels.ids is not None and labels.ids[0] >= 1:
        raise DataError(
            f"{file} has ids {labels.ids[0]} to {labels.ids[1]}, and {source.id_names_from} "
            f"numbers its classes from 1: is id 1 {(source.id_names or ('',))[0]!r} or the next "
            "class? Ids must count from 0: number both from 0"
        )
    return labels


def _numbers_of_names(columns: ListColumns) -> dict[str, str]:
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


def _reject_wrong(
    columns: ListColumns, labels: Labels, kept: np.ndarray, source: Source
) -> np.ndarray:
    """bool [N]: the kept rows whose labels cannot be read; each is rejected with its line."""
    wrong = np.zeros(len(columns.texts.codes), bool)
    wrong[list(labels.wrong)] = True
    wrong[0] |= source.need_labels and not source.ignore_labels
    bad = wrong[np.asarray(columns.labels)] & kept
    for row in np.flatnonzero(bad).tolist():
        place = columns.location(columns.lines[row])
        error = labels.wrong.get(columns.labels[row])
        if error is None:
            error = DataError(_no_label(columns, row))
        source.reject(columns.lines[row], type(error)(f"{place}: {error}"))
    return bad


def _no_label(columns: ListColumns, row: int) -> str:
    path, table = columns.path(row), columns.table
    if "label" in table.places:
        column = columns.name_of(table.places["label"])
        return f"no label in the column {column!r} for {path!r}; only pretraining works without"
    return f"{path!r} has no label; expected a line 'path label' (only pretraining works without)"


# ---- the manifest -------------------------------------------------------------------------------


def _manifest(
    columns: ListColumns, labels: Labels, source: Source, name: str, root: str
) -> Manifest:
    """The manifest of all rows of a list; rows without a label, or with a wrong one, have -1."""
    codes = np.frombuffer(columns.labels, np.int32)
    values, ends = labels.values, None
    if source.multi_label:
        counts = np.array([len(several) for several in values], np.int64)
        flat = np.array([label for several in values for label in several], np.int64)
        numbers, ends = gather_labels(flat, (np.cumsum(counts) - counts)[codes], counts[codes])
    else:
        numbers = np.array([one[0] if one else UNLABELLED for one in values], np.int64)[codes]
    classes = labels.classes
    highest = int(numbers.max(initial=UNLABELLED)) + 1
    return Manifest(
        paths=PathTable(
            root,
            np.frombuffer(columns.blob, np.uint8),
            np.frombuffer(columns.ends, np.int64),
        ),
        labels=numbers,
        label_ends=ends,
        classes=classes,
        num_classes=len(classes) if classes else source.num_classes or highest,
        name=name,
        lines=np.asarray(columns.lines, np.int64) if source.on_bad_line else None,
        classes_from=_classes_from(columns, labels, source),
    )


def _classes_from(columns: ListColumns, labels: Labels, source: Source) -> str:
    table = columns.table
    file = table.file
    of = f"of {file}"
    if "label" in table.places:
        of = f"in column {columns.name_of(table.places['label'])!r} of {file}"
    if labels.ids is None:
        return f"names {of}" if labels.classes else str(file)
    text = f"ids {labels.ids[0]} to {labels.ids[1]} {of}"
    if source.id_names:
        return f"{text}, named by {source.id_names_from}"
    return f"{text}, in the order of the names given" if source.classes else f"{text}, no names"


def _sources(columns: ListColumns) -> list[str] | None:
    """The source of each video of the list; None where no column names it."""
    sources = columns.others.get("source")
    if sources is None:
        return None
    names = list(sources.codes)
    return [names[code] for code in sources.rows]


def _root(source: Source, file: Path, first: str) -> str:
    """The folder that relative paths start from: the prefix, else the list's folder.

    It is the current folder if the first path exists only there.
    """
    if source.path_prefix:
        return source.path_prefix
    if not (file.parent / first).exists() and os.path.exists(first):
        return os.getcwd()
    return str(file.parent)
