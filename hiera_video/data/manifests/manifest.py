"""`Manifest`: the videos of one split and their labels, which every reader of a data set returns.

A manifest of a million videos is a few flat arrays, not a million Python objects.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from hiera_video.errors import first_few
from hiera_video.storage.addresses import join

UNLABELLED = -1
"""The label of a video without one."""


class PathTable(Sequence[str]):
    """Paths below one root, held as one block of bytes; both may be addresses."""

    def __init__(self, root: str, blob: np.ndarray, ends: np.ndarray) -> None:
        self.root = root
        self._blob = blob
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override] # no slices
        return join(self.root, self.relative(index))

    def moved(self, root: str) -> PathTable:
        """The same paths below another root."""
        return PathTable(root, self._blob, self._ends)

    def equals(self, other: PathTable) -> bool:
        """Whether both hold the same paths in the same order."""
        return (
            self.root == other.root
            and np.array_equal(self._ends, other._ends)
            and np.array_equal(self._blob, other._blob)
        )

    def select(self, kept: np.ndarray) -> PathTable:
        """The paths where `kept`, bool [N], is true."""
        lengths = np.diff(self._ends, prepend=0)
        blob = self._blob[: int(self._ends[-1])][np.repeat(kept, lengths)]
        return PathTable(self.root, blob, np.cumsum(lengths[kept], dtype=np.int64))

    @classmethod
    def of(cls, root: str, paths: Sequence[bytes]) -> PathTable:
        """Make a table from encoded paths."""
        blob = np.frombuffer(b"".join(paths) or b"\0", np.uint8)
        return cls(root, blob, np.cumsum([len(path) for path in paths], dtype=np.int64))

    def relative(self, index: int) -> str:
        """The path as the list writes it, below `root`."""
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
        notes: messages for the user about how the list was read.
        lines: int64 [N], the line of the list that named each video (0: none did); kept only where
            `Source.on_bad_line` is called.
        classes_from: where the labels and their names come from, in words.
        undivided: whether the data has no splits of its own, so that a share may be held out.
        sources: the recording that each video was cut from ("" where unknown), where a column or a
            folder names it.
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
    unit: ClassVar[str] = "videos"
    """What its entries are called in messages."""

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
        """The same manifest with the videos where `kept`, bool [N], is true."""
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

    # ---- for messages

    def class_names(self, labels: Iterable[int]) -> str:
        """A few of the classes, by name or else by number."""
        return first_few([self.classes[i] if self.classes else str(i) for i in labels], MOST_NAMES)

    def describe_classes(self) -> str:
        """One line that says what the classes are and where they come from."""
        used = np.flatnonzero(self.class_counts()).tolist()
        if not used:
            return f"{len(self)} videos without labels; {self.classes_from or self.name}"
        count = f"{self.num_classes} class{'es' * (self.num_classes > 1)}"
        if len(used) < self.num_classes:
            count += f", {len(used)} of them with videos"
        named = f": {self.class_names(used)}" if self.classes else ""
        return f"{count}{named}; {self.classes_from or self.name}"

    def unused_outputs(self) -> str:
        """A message about classes without a training video; empty where each has one."""
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
"""How many class names a message lists."""


def gather_labels(
    labels: np.ndarray, starts: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate the labels of each video: (int64 [sum of counts], int64 [N] ends).

    Args:
        labels: int64, runs of labels.
        starts: int64 [N], where the run of each video begins.
        counts: int64 [N], its length.
    """
    ends = np.cumsum(counts, dtype=np.int64)
    places = np.arange(int(counts.sum())) + np.repeat(starts - (ends - counts), counts)
    return labels[places], ends
