"""What the points of a map are coloured by: a list of labels, or the folders of the videos."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hiera_video.errors import DataError
from hiera_video.features.probe import finder_of, read_labels

FOLDERS = "folders"
"""As `labels_of` takes it: the names of the folders, however many there are."""

NONE = "none"
"""As `labels_of` takes it: no labels."""


@dataclass(frozen=True)
class Labels:
    """One label, or none, of each video."""

    of: Sequence[str | None]
    """[V]"""
    source: str
    """A sentence that says what was taken for labels."""


def labels_of(paths: Sequence[str], file: str | None) -> Labels:
    """Return the labels of videos.

    file: a list with labels (whatever training reads); "folders" or "none"; None: the names of the
    folders that hold the videos, if these divide them into groups.

    Raises DataError for a list that cannot be read, or that has no video of these.
    """
    if file == NONE:
        return Labels([None] * len(paths), "There are no labels.")
    if file not in (None, FOLDERS):
        return _listed(paths, file)
    folders = [os.path.basename(os.path.dirname(os.path.abspath(path))) for path in paths]
    kinds = len(set(folders))
    if file is None and not 2 <= kinds <= len(paths) / 2:
        return Labels(
            [None] * len(paths),
            "There are no labels: the folders of the videos do not group them (see --labels).",
        )
    return Labels(list(folders), "Labels are the names of the folders that hold the videos.")


def _listed(paths: Sequence[str], file: str) -> Labels:
    listed = read_labels(file)
    find = finder_of(listed)
    owners = [find(path) for path in paths]
    found = [None if owner is None else listed.videos[owner].label for owner in owners]
    known = sum(label is not None for label in found)
    if not known:
        raise DataError(
            f"no video is both on the map (such as {paths[0]}) and in {file} (such as "
            f"{next(iter(listed.videos))}); --labels folders takes the names of folders"
        )
    of_all = "" if known == len(paths) else f", which has {known} of the {len(paths)} videos"
    return Labels(found, f"Labels are those of {file}{of_all}.")


# ---- the legend ---------------------------------------------------------------------------------

COLOURS, SHAPES = 8, 3
MOST_GROUPS = COLOURS * SHAPES
"""Labels with a colour and a shape of their own."""


@dataclass(frozen=True)
class Group:
    """A line of the legend: what is drawn alike."""

    names: Sequence[str]
    """The labels; one, but for the group of the rest. Empty: videos without a label."""
    points: int
    mark: int
    """0 to MOST_GROUPS - 1: the colour and the shape; MOST_GROUPS: the rest; -1: no label."""

    @property
    def name(self) -> str:
        """As the legend says it."""
        if self.mark < 0:
            return "no label"
        return self.names[0] if self.mark < MOST_GROUPS else f"other: {len(self.names)} labels"


def legend_of(labels: Sequence[str | None]) -> list[Group]:
    """Return the groups of the labels of points: the most common ones each, the rest as one.

    Groups are in the order of their names, then the rest, then those without a label.
    """
    counts = Counter(label for label in labels if label is not None)
    common = sorted(counts, key=lambda name: (-counts[name], name))
    own = sorted(common[:MOST_GROUPS], key=str.casefold)
    groups = [Group([name], counts[name], mark) for mark, name in enumerate(own)]
    if rest := sorted(common[MOST_GROUPS:], key=str.casefold):
        groups.append(Group(rest, sum(counts[name] for name in rest), MOST_GROUPS))
    if without := sum(label is None for label in labels):
        groups.append(Group([], without, -1))
    return groups
