"""What every reader of a data set takes and gives: a `Source` in, a `Manifest` out.

A manifest of a million videos is a few flat arrays, not a million Python objects.
"""

from __future__ import annotations

import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hiera_video.data.listing import (
    DataError,
    LabelRangeError,
    csv_rows,
    read_json,
    some,
    text_lines,
)
from hiera_video.labels import known_labels, load_labels

UNLABELLED = -1

MOST_CLASSES = 1_000_000
"""A label at or above this is a mistake (an identifier, a frame count), not a class."""


class PathTable(Sequence[str]):
    """Paths below one root, held as one block of bytes."""

    def __init__(self, root: str, blob: np.ndarray, ends: np.ndarray) -> None:
        self.root = root
        self._blob = blob
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        return os.path.join(self.root, self.relative(index))

    def equals(self, other: PathTable) -> bool:
        """Whether both hold the same paths in the same order."""
        return (
            self.root == other.root
            and np.array_equal(self._ends, other._ends)
            and np.array_equal(self._blob, other._blob)
        )

    def relative(self, index: int) -> str:
        """The path as the list wrote it, below `root`."""
        index = range(len(self))[index]
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._blob[start : int(self._ends[index])].tobytes())


@dataclass(frozen=True)
class Manifest:
    """The videos of one split and their labels.

    Attributes:
        paths: [N] full paths (`paths.relative(i)` is what the list wrote).
        labels: int64, the label of every video, [N]; -1 is none. Multi-label: the labels of all
            videos one after the other, [sum of counts].
        label_ends: None, or int64 [N] where each video's labels end (multi-label).
        classes: the names in label order, or None where the data carries none.
        num_classes: how many outputs a classifier of it needs; 0 where nothing is labelled.
        name: the layout, as registered.
        notes: what a user should be told about how the list was read.
        lines: int64 [N], the line of the list that named each video (0: none did); kept only where
            `Source.on_bad_line` is there to be told of lines.
    """

    paths: PathTable
    labels: np.ndarray
    label_ends: np.ndarray | None
    classes: tuple[str, ...] | None
    num_classes: int
    name: str
    notes: tuple[str, ...] = ()
    lines: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def multi_label(self) -> bool:
        return self.label_ends is not None

    def label(self, index: int) -> int | tuple[int, ...]:
        """The label of one video, or all its labels if multi-label."""
        if self.label_ends is None:
            return int(self.labels[index])
        start = int(self.label_ends[index - 1]) if index else 0
        return tuple(self.labels[start : int(self.label_ends[index])].tolist())

    def class_counts(self) -> np.ndarray:
        """Videos of each class: int64 [num_classes]."""
        return np.bincount(self.labels[self.labels >= 0], minlength=self.num_classes)


@dataclass(frozen=True)
class Source:
    """What a reader is asked for; each uses the settings that its layout knows."""

    path: Path
    """The folder or the list that the user named."""
    split: str = "train"
    """train, val or test."""
    path_prefix: str = ""
    """Folder of the videos, where it is not the list's own."""
    separator: str | None = None
    """Between path and label in a list; None looks at the first line."""
    classes: tuple[str, ...] | None = None
    """Names in label order that the labels must fit (of the training list, of a checkpoint)."""
    num_classes: int | None = None
    """Labels must be below it; None takes what the list holds."""
    multi_label: bool = False
    """A video may have several labels."""
    need_labels: bool = True
    """False: a list without labels will do (pretraining, the audit)."""
    ignore_labels: bool = False
    """Labels play no part (pretraining): one that is no class of the data is none, and no error."""
    fold: int | None = None
    """Which official split (UCF101, HMDB51: 1 to 3) or which fold of labels.csv to hold out."""
    val_fraction: float = 0.2
    """Share of the videos held out where the data has no split of its own."""
    group_by: str = ""
    """Column of labels.csv, or a regular expression whose first group names a video's source."""
    seed: int = 0
    """Of the held-out share."""
    on_bad_line: Callable[[int, DataError], None] | None = None
    """Told of each line (its number, what is wrong) that cannot be read, which is then left out;
    None: the first of them is raised."""

    def refuse(self, line: int, error: DataError) -> None:
        """Tell of a line that cannot be read, or raise the error where nobody wants to be told."""
        if self.on_bad_line is None:
            raise error
        self.on_bad_line(line, error)

    @property
    def limit(self) -> int:
        """Labels must be below this."""
        if self.classes is not None:
            return len(self.classes)
        return self.num_classes or MOST_CLASSES


class ManifestRows:
    """Collects the videos of a list in flat arrays and checks each label as it comes."""

    def __init__(self, source: Source, file: Path) -> None:
        self.source = source
        self.file = file
        self._blob = bytearray()
        self._ends = array("q")
        self._labels = array("q")
        self._label_ends = array("q")
        self._lines = array("q")
        self._keeps_lines = source.on_bad_line is not None
        self._number_of = {n: i for i, n in enumerate(source.classes)} if source.classes else {}

    def __len__(self) -> int:
        return len(self._ends)

    def at(self, line: int) -> str:
        """The place an error names."""
        return f"{self.file}:{line}" if line else str(self.file)

    def add(self, line: int, path: str, labels: tuple[int, ...]) -> None:
        """One video; `labels` is (-1,) where it has none."""
        if not path or "\0" in path:
            raise DataError(f"{self.at(line)}: {path!r} is not a path")
        unlabelled = labels == (UNLABELLED,)
        if unlabelled and self.source.need_labels:
            raise DataError(
                f"{self.at(line)}: {path!r} has no label; expected a line 'path label' "
                f"(only pretraining does without)"
            )
        limit = self.source.limit
        if self.source.ignore_labels and not all(0 <= label < limit for label in labels):
            labels, unlabelled = (UNLABELLED,), True
        for label in () if unlabelled else labels:
            if not 0 <= label < limit:
                raise LabelRangeError(
                    f"{self.at(line)}: label {label} is out of range; allowed are 0 to {limit - 1}"
                    + (f" for {limit} classes" if limit < MOST_CLASSES else "")
                )
        self._blob += os.fsencode(path)
        self._ends.append(len(self._blob))
        self._labels.extend(() if unlabelled and self.source.multi_label else labels)
        self._label_ends.append(len(self._labels))
        if self._keeps_lines:
            self._lines.append(line)

    def named(self, line: int, name: str, what: str = "line") -> tuple[int, ...]:
        """The label of a class given by its name."""
        if name in self._number_of:
            return (self._number_of[name],)
        if self.source.ignore_labels or (not name and not self.source.need_labels):
            return (UNLABELLED,)
        if not self.source.need_labels and not self._number_of:
            return (UNLABELLED,)
        place = f"{self.file}: entry {line}" if what == "entry" else self.at(line)
        if not name:
            raise DataError(f"{place}: no label, and only pretraining does without")
        raise DataError(
            f"{place}: class {name!r} is not among the {len(self._number_of)} known classes "
            f"({some(list(self._number_of))})"
        )

    def first_path(self) -> str:
        return os.fsdecode(bytes(self._blob[: self._ends[0]])) if self._ends else ""

    def first_paths(self, count: int = 100) -> list[str]:
        """Enough paths to tell which folder they are in."""
        starts = [0, *self._ends[: count - 1]]
        return [
            os.fsdecode(bytes(self._blob[a:b]))
            for a, b in zip(starts, self._ends[:count], strict=False)
        ]

    def manifest(self, name: str, root: str, notes: Iterable[str] = ()) -> Manifest:
        if not len(self):
            raise DataError(f"{self.file}: no videos for {self.source.split}")
        labels = np.array(self._labels, dtype=np.int64)
        classes = self.source.classes
        highest = int(labels.max(initial=UNLABELLED)) + 1
        multi = self.source.multi_label
        return Manifest(
            paths=PathTable(
                root, np.frombuffer(bytes(self._blob), np.uint8), np.array(self._ends, np.int64)
            ),
            labels=labels,
            label_ends=np.array(self._label_ends, np.int64) if multi else None,
            classes=classes,
            num_classes=len(classes) if classes else self.source.num_classes or highest,
            name=name,
            notes=tuple(notes),
            lines=np.array(self._lines, np.int64) if self._keeps_lines else None,
        )


# ---- names of classes ---------------------------------------------------------------------------

CLASS_FILES = ("classnames.json", "class_names.json", "classes.txt", "class_names.txt")


def read_class_names(path: str | Path) -> list[str]:
    """Names in label order from a file, or those of a public set by its name ("kinetics400").

    JSON `{"name": 0}`, `{"0": "name"}` or `["name"]`; csv with columns id and name; text with one
    name a line, with or without its number before it (`1 ApplyEyeMakeup`).

    Raises DataError: no such file, numbers with gaps, a name twice.
    """
    path = Path(path)
    if not path.is_file():
        if str(path) in known_labels():
            return load_labels(str(path))
        raise DataError(
            f"no such file of class names: {path} (DATA.CLASS_NAMES); nor is it one of the known "
            f"lists {', '.join(known_labels())}"
        )
    if path.suffix.lower() == ".json":
        content = read_json(path)
        if isinstance(content, list):
            pairs = list(enumerate(content))
        elif isinstance(content, dict):
            turned = all(str(key).isdecimal() for key in content)
            pairs = [(k, v) if turned else (v, k) for k, v in content.items()]
        else:
            raise DataError(f"{path}: expected a list of names or an object name -> number")
    elif path.suffix.lower() == ".csv":
        pairs = [(row["id"], row["name"]) for _, row in csv_rows(path, need=("id", "name"))]
    else:
        lines = [line for _, line in text_lines(path)]
        numbered = [re.fullmatch(r"(\d+)[\s,]+(.+)", line) for line in lines]
        if lines and all(numbered):
            pairs = [match.groups() for match in numbered]
        else:
            pairs = list(enumerate(lines))
    return _in_order(pairs, path)


def _in_order(pairs: list[tuple[Any, Any]], path: Path) -> list[str]:
    try:
        by_number = {int(number): str(name).strip().strip('"') for number, name in pairs}
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: a class number is not a whole number: {error}") from error
    if not by_number:
        raise DataError(f"{path}: no class names in it")
    first = min(by_number)
    expected = range(first, first + len(pairs))
    if first not in (0, 1) or sorted(by_number) != list(expected):
        raise DataError(
            f"{path}: {len(pairs)} class names must be numbered 0 to {len(pairs) - 1} (or from 1) "
            f"without gaps; the numbers run from {first} to {max(by_number)}"
        )
    names = [by_number[number] for number in expected]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{path}: class names must differ; more than once: {some(twice)}")
    return names


def with_class_file(source: Source, folder: Path) -> Source:
    if source.classes is not None:
        return source
    for name in CLASS_FILES:
        if (folder / name).is_file():
            return replace(source, classes=tuple(read_class_names(folder / name)))
    return source
