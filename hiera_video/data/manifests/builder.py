"""`ManifestBuilder`: a reader adds its videos one by one and gets a `Manifest`."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from hiera_video.data.manifests.listing import quoted
from hiera_video.data.manifests.manifest import UNLABELLED, Manifest, PathTable
from hiera_video.data.manifests.source import Source
from hiera_video.data.manifests.splits import MissingSplit
from hiera_video.errors import DataError


class ManifestBuilder:
    """Collects the videos of a layout whose classes are known by name, in flat arrays.

    Args:
        source: what is asked for; its own class names come before `classes`.
        file: the list or folder that error messages name.
        classes: the class names that the layout has, in label order.
    """

    def __init__(self, source: Source, file: Path, classes: Sequence[str]) -> None:
        self.source = source
        self.file = file
        self.classes = tuple(source.wanted_classes or classes)
        self._blob = bytearray()
        self._ends = array("q")
        self._labels = array("q")
        self._lines = array("q")
        self._label_of = {name: i for i, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self._ends)

    def location(self, line: int) -> str:
        """File and line as error messages name them; line 0 is the file as a whole."""
        return f"{self.file}:{line}" if line else str(self.file)

    def add(self, line: int, path: str, label: int) -> None:
        """Add a video; `label` is -1 where it has none. Raises DataError for an impossible path."""
        if not path or "\0" in path:
            raise DataError(f"{self.location(line)}: {path!r} is not a path")
        self._blob += os.fsencode(path)
        self._ends.append(len(self._blob))
        self._labels.append(label)
        self._lines.append(line)

    def label_of(self, line: int, name: str, what: str = "line") -> int:
        """The label of a class given by its name, -1 where none is needed.

        Raises DataError for an unknown class, and for an empty name where labels are needed.
        """
        if name in self._label_of:
            return self._label_of[name]
        if self.source.ignore_labels or (not name and not self.source.need_labels):
            return UNLABELLED
        if not self.source.need_labels and not self._label_of:
            return UNLABELLED
        place = f"{self.file}: entry {line}" if what == "entry" else self.location(line)
        if not name:
            raise DataError(f"{place}: no label; only pretraining works without labels")
        raise DataError(
            f"{place}: class {name!r} is not among the {len(self._label_of)} known classes "
            f"({quoted(list(self._label_of))})"
        )

    def first_paths(self, count: int = 100) -> list[str]:
        """The first paths, to find out which folder they are in."""
        starts = [0, *self._ends[: count - 1]]
        return [
            os.fsdecode(bytes(self._blob[a:b]))
            for a, b in zip(starts, self._ends[:count], strict=False)
        ]

    def build(
        self,
        name: str,
        root: str,
        *,
        notes: Iterable[str] = (),
        classes_from: str,
        undivided: bool = False,
        sources: Sequence[str] | None = None,
    ) -> Manifest:
        """Build the manifest; the arguments are its attributes, `root` the folder of the paths.

        Raises MissingSplit where no video was added.
        """
        if not len(self):
            raise MissingSplit(f"{self.file}: no videos for {self.source.split}")
        labels = np.frombuffer(self._labels, np.int64)
        label_ends = None
        if self.source.multi_label:  # at most one label each: folders and templates name one class
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
