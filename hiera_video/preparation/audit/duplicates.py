"""The same video under several names: in training and in a held-out split, or twice in one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hiera_video.preparation.audit.lists import UNUSED

if TYPE_CHECKING:
    from hiera_video.preparation.audit.audit import Audit


def find_duplicates(result: Audit) -> None:
    """Complain of every video after the first of its content, and leave it out of cleaned lists.

    Held-out splits come first: it is training that gives a video up, so that scores stay
    comparable. Where the labels of two videos of one split contradict each other, both are left
    out, since nobody knows which is right.
    """
    part_of = np.repeat(np.arange(len(result.parts)), [len(part) for part in result.parts])
    for group in _groups(result):
        group = sorted(group, key=lambda entry: (part_of[entry] == 0, part_of[entry], entry))
        for entry in group[1:]:
            twin = group[0]
            across = part_of[twin] != part_of[entry]
            reason = _reason(result, entry, twin)
            if differ := _different_labels(result, entry, twin):
                reason += f"; {differ}"
                result.files.left_out[twin] |= not across
            result.complain("duplicate_across" if across else "duplicate_within", entry, reason)
            result.files.left_out[entry] = True


def _groups(result: Audit) -> Iterator[list[int]]:
    """Entries of equal content, two or more, among the files that can be read."""
    files = result.files
    wanted = files.usable & files.content.any(axis=1)
    for number, part in enumerate(result.parts):
        if part.name == UNUSED:
            wanted[result.of(number)] = False
    entries = np.flatnonzero(wanted)
    keys = files.content[entries]
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    keys, entries = keys[order], entries[order]
    same = (keys[1:] == keys[:-1]).all(axis=1)
    # Runs of equal neighbours: `same` rises where one begins and falls where it ends.
    edges = np.diff(np.concatenate([[0], same.view(np.int8), [0]]))
    for start, last in zip(np.flatnonzero(edges > 0), np.flatnonzero(edges < 0), strict=True):
        yield entries[start : last + 1].tolist()


def _reason(result: Audit, entry: int, twin: int) -> str:
    part, index = result.where(twin)
    path, other = result.path(entry), result.path(twin)
    line = f" line {part.line(index)}" if part.line(index) else ""
    place = f"{part.name}{line}"
    if os.path.abspath(path) == os.path.abspath(other):
        return f"the same file as in {place}"
    same = "the same pictures" if result.files.decoded[entry] else "the same size and both ends"
    return f"{same} as {other} (in {place})"


def _different_labels(result: Audit, entry: int, twin: int) -> str:
    """How the labels of two videos differ; "" where they do not, or one has none."""
    (part, index), (other, place) = result.where(entry), result.where(twin)
    mine, theirs = part.manifest.label(index), other.manifest.label(place)
    if mine == theirs or -1 in (mine, theirs) or () in (mine, theirs):
        return ""
    return f"labelled {_names(part, mine)} here and {_names(other, theirs)} there"


def _names(part, label: int | tuple[int, ...]) -> str:
    labels = (label,) if isinstance(label, int) else label
    return ", ".join(repr(part.label_name(one)) for one in labels)
