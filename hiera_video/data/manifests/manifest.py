"""What every reader of a data set takes and gives: a `Source` in, a `Manifest` out.

A manifest of a million videos is a few flat arrays, not a million Python objects.
"""

from __future__ import annotations

import itertools
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hiera_video.data.manifests.label_texts import UNLABELLED
from hiera_video.data.manifests.listing import read_json, some
from hiera_video.data.manifests.splits import NoSuchPart
from hiera_video.data.manifests.tables import find_header, require_utf8, table_rows, text_lines
from hiera_video.errors import DataError, first_few
from hiera_video.labels import known_labels, load_labels


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

    def select(self, kept: np.ndarray) -> PathTable:
        """Some of the paths: bool [N]."""
        lengths = np.diff(self._ends, prepend=0)
        blob = self._blob[: int(self._ends[-1])][np.repeat(kept, lengths)]
        return PathTable(self.root, blob, np.cumsum(lengths[kept], dtype=np.int64))

    @classmethod
    def of(cls, root: str, paths: Sequence[bytes]) -> PathTable:
        """From encoded paths."""
        blob = np.frombuffer(b"".join(paths) or b"\0", np.uint8)
        return cls(root, blob, np.cumsum([len(path) for path in paths], dtype=np.int64))

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
            `Source.on_bad_line` is called.
        classes_from: where the labels and their names come from, in words.
        undivided: whether the data names no parts, so that it is for the reader to hold any out.
        sources: what each video was cut from ("" where unknown), where a column or a folder says
            so; kept only where the data is undivided.
    """

    paths: PathTable
    labels: np.ndarray
    label_ends: np.ndarray | None
    classes: tuple[str, ...] | None
    num_classes: int
    name: str
    notes: tuple[str, ...] = ()
    lines: np.ndarray | None = None
    classes_from: str = ""
    undivided: bool = False
    sources: Sequence[str] | None = None

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

    def select(self, kept: np.ndarray) -> Manifest:
        """Some of the videos (bool [N]); everything else stays."""
        labels, ends = self.labels, self.label_ends
        if ends is None:
            labels = labels[kept]
        else:
            counts = np.diff(ends, prepend=0)
            labels, ends = labels[np.repeat(kept, counts)], np.cumsum(counts[kept], dtype=np.int64)
        return replace(
            self,
            paths=self.paths.select(kept),
            labels=labels,
            label_ends=ends,
            lines=None if self.lines is None else self.lines[kept],
            sources=None if self.sources is None else list(itertools.compress(self.sources, kept)),
        )

    # ---- in words

    def class_names(self, labels: Iterable[int]) -> str:
        """A few of the classes, by name or else by number."""
        return first_few([self.classes[i] if self.classes else str(i) for i in labels], MOST_NAMES)

    def describe_classes(self) -> str:
        """One line on what was taken for the classes, and from where."""
        used = np.flatnonzero(self.class_counts()).tolist()
        if not used:
            return f"{len(self)} videos without labels; {self.classes_from or self.name}"
        count = f"{self.num_classes} class{'es' * (self.num_classes > 1)}"
        if len(used) < self.num_classes:
            count += f", {len(used)} of them with videos"
        named = f": {self.class_names(used)}" if self.classes else ""
        return f"{count}{named}; {self.classes_from or self.name}"

    def unused_outputs(self) -> str:
        """What training should be told of classes without a video; empty where each has one."""
        counts = self.class_counts()
        unused = np.flatnonzero(counts == 0).tolist()
        if not unused or len(unused) == len(counts):
            return ""
        text = (
            f"{self.num_classes} outputs, {len(unused)} of them without a training video: "
            f"{self.class_names(unused)}"
        )
        return text + ("; ids start at 0" if self.classes is None and unused[0] == 0 else "")

    def only_class(self) -> str:
        """The name (or number) of the class of all videos; empty where there are several."""
        used = np.flatnonzero(self.class_counts()).tolist()
        return self.class_names(used) if len(used) == 1 else ""


MOST_NAMES = 8
"""Classes that a line shows of a long list."""


def gather(
    labels: np.ndarray, starts: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(labels, where those of each video end) from runs of `labels`, one a video."""
    ends = np.cumsum(counts, dtype=np.int64)
    places = np.arange(int(counts.sum())) + np.repeat(starts - (ends - counts), counts)
    return labels[places], ends


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
    """Between path and label in a list; None takes the one that fits most lines."""
    classes: tuple[str, ...] | None = None
    """Names in label order that the labels must fit (of the training list, of a checkpoint)."""
    id_names: tuple[str, ...] | None = None
    """What the ids of the list itself mean (DATA.CLASS_NAMES, a file beside the list); the order of
    the classes where `classes` says nothing else."""
    id_names_from: str = ""
    """Where those names are from, in words."""
    id_names_begin: int = 0
    """The number that the file gives to the first of them: 0, or 1."""
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
    hold_out: bool | None = None
    """Where the data names no parts (a plain folder of classes, a labels.csv without split or fold,
    a single list): True gives train and val their shares, False all of it to whoever asks; None
    does the one for a folder and the other for a list."""
    on_bad_line: Callable[[int, DataError], None] | None = None
    """Called with each line (its number, what is wrong) that cannot be read, which is then left
    out; None: the first of them is raised."""

    def refuse(self, line: int, error: DataError) -> None:
        """Call `on_bad_line` for a line that cannot be read, or raise the error."""
        if self.on_bad_line is None:
            raise error
        self.on_bad_line(line, error)

    @property
    def wanted_classes(self) -> tuple[str, ...] | None:
        """Names in label order, where they are known before the list is read."""
        return self.classes or self.id_names


class ManifestRows:
    """Collects the videos of a layout whose classes are known by name, in flat arrays."""

    def __init__(self, source: Source, file: Path, classes: Sequence[str]) -> None:
        self.source = source
        self.file = file
        self.classes = tuple(source.wanted_classes or classes)
        self._blob = bytearray()
        self._ends = array("q")
        self._labels = array("q")
        self._lines = array("q")
        self._number_of = {name: i for i, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self._ends)

    def at(self, line: int) -> str:
        """The place an error names."""
        return f"{self.file}:{line}" if line else str(self.file)

    def add(self, line: int, path: str, label: int) -> None:
        """One video; `label` is -1 where it has none."""
        if not path or "\0" in path:
            raise DataError(f"{self.at(line)}: {path!r} is not a path")
        self._blob += os.fsencode(path)
        self._ends.append(len(self._blob))
        self._labels.append(label)
        self._lines.append(line)

    def named(self, line: int, name: str, what: str = "line") -> int:
        """The label of a class given by its name."""
        if name in self._number_of:
            return self._number_of[name]
        if self.source.ignore_labels or (not name and not self.source.need_labels):
            return UNLABELLED
        if not self.source.need_labels and not self._number_of:
            return UNLABELLED
        place = f"{self.file}: entry {line}" if what == "entry" else self.at(line)
        if not name:
            raise DataError(f"{place}: no label, and only pretraining does without")
        raise DataError(
            f"{place}: class {name!r} is not among the {len(self._number_of)} known classes "
            f"({some(list(self._number_of))})"
        )

    def first_paths(self, count: int = 100) -> list[str]:
        """Enough paths to tell which folder they are in."""
        starts = [0, *self._ends[: count - 1]]
        return [
            os.fsdecode(bytes(self._blob[a:b]))
            for a, b in zip(starts, self._ends[:count], strict=False)
        ]

    def manifest(
        self,
        name: str,
        root: str,
        *,
        notes: Iterable[str] = (),
        classes_from: str,
        undivided: bool = False,
        sources: Sequence[str] | None = None,
    ) -> Manifest:
        if not len(self):
            raise NoSuchPart(f"{self.file}: no videos for {self.source.split}")
        labels = np.frombuffer(self._labels, np.int64)
        label_ends = None
        if self.source.multi_label:  # one class each, where folders or templates say it
            label_ends = np.cumsum(labels >= 0, dtype=np.int64)
            labels = labels[labels >= 0]
        return Manifest(
            paths=PathTable(
                root, np.frombuffer(self._blob, np.uint8), np.frombuffer(self._ends, np.int64)
            ),
            labels=labels,
            label_ends=label_ends,
            classes=self.classes or None,
            num_classes=len(self.classes) or self.source.num_classes or 0,
            name=name,
            notes=tuple(notes),
            lines=np.frombuffer(self._lines, np.int64) if self.source.on_bad_line else None,
            classes_from=classes_from,
            undivided=undivided,
            sources=sources,
        )


# ---- names of classes ---------------------------------------------------------------------------

CLASS_FILES = ("classnames.json", "class_names.json", "classes.txt", "class_names.txt")


def read_class_names(path: str | Path) -> list[str]:
    """Names in label order from a file, or those of a public set by its name ("kinetics400").

    JSON `{"name": 0}`, `{"0": "name"}` or `["name"]`; csv with columns id and name; text with one
    name a line, with or without its number before it (`1 ApplyEyeMakeup`).

    Raises DataError: no such file, numbers with gaps, a name twice.
    """
    return numbered_class_names(path)[0]


def numbered_class_names(path: str | Path) -> tuple[list[str], int]:
    """`read_class_names`, and the number that the file gives to the first class: 0, or 1."""
    path = Path(path)
    if not path.is_file():
        if str(path) in known_labels():
            return load_labels(str(path)), 0
        raise DataError(
            f"no such file of class names: {path} (DATA.CLASS_NAMES); nor is it one of the known "
            f"lists {', '.join(known_labels())}"
        )
    if path.suffix.lower() == ".json":
        pairs = _pairs_of_json(path)
    elif path.suffix.lower() in (".csv", ".tsv"):
        pairs = _pairs_of_table(path)
    else:
        lines = [line for _, line in text_lines(path)]
        numbered = [re.fullmatch(r"(\d+)[\s,]+(.+)", line) for line in lines]
        if lines and all(numbered):
            pairs = [match.groups() for match in numbered]
        else:
            pairs = list(enumerate(lines))
    return _in_order(pairs, path)


def _pairs_of_json(path: Path) -> list[tuple[Any, Any]]:
    content = read_json(path)
    if isinstance(content, list):
        return list(enumerate(content))
    if isinstance(content, dict):
        turned = all(str(key).isdecimal() for key in content)
        return [(k, v) if turned else (v, k) for k, v in content.items()]
    raise DataError(f"{path}: expected a list of names or an object name -> number")


ID_COLUMNS = ("id", "label_id", "index")
NAME_COLUMNS = ("name", "class_name", "label")


def _pairs_of_table(path: Path) -> list[tuple[str, str]]:
    """A table with a column for the numbers and one for the names."""
    found = {}
    for what, names in (("id", ID_COLUMNS), ("name", NAME_COLUMNS)):
        for name in names:
            header = find_header(path, name)
            if header is not None and header.place(name) not in found.values():
                found[what] = header.place(name)
                break
        else:
            first = next(text_lines(path), (1, ""))[1]
            raise DataError(
                f"{path}: no column {what}; its first line must name the columns (id,name) and "
                f"says {first!r}"
            )
    return [(row[found["id"]], row[found["name"]]) for _, row in table_rows(path, header)]


def _in_order(pairs: list[tuple[Any, Any]], path: Path) -> tuple[list[str], int]:
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
    for name in names:
        require_utf8(name, str(path))
    return names, first


def with_class_file(source: Source, folder: Path) -> Source:
    """With the names that a file beside the list gives to its ids, where nothing else does."""
    if source.id_names is not None:
        return source
    for name in CLASS_FILES:
        if (folder / name).is_file():
            names, first = numbered_class_names(folder / name)
            return replace(source, id_names=tuple(names), id_names_from=name, id_names_begin=first)
    return source
