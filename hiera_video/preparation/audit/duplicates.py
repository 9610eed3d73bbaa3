"""Find the same video under several names: across splits, or twice in one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from hiera_video.preparation.audit.lists import UNUSED, Split
from hiera_video.preparation.audit.result import AuditResult


def find_duplicates(result: AuditResult) -> None:
    """Add a finding for every video but the first of its content; cleaned lists leave it out.

    Held-out splits come first: of two copies, the one in the training list is left out, so that
    scores stay comparable. If the labels of two copies in one split contradict each other, both are
    left out, since nobody knows which is right.
    """
    split_of = np.repeat(np.arange(len(result.splits)), [len(split) for split in result.splits])
    for group in _groups(result):
        group = sorted(group, key=lambda entry: (split_of[entry] == 0, split_of[entry], entry))
        for entry in group[1:]:
            twin = group[0]
            across = split_of[twin] != split_of[entry]
            reason = _reason(result, entry, twin)
            if difference := _label_difference(result, entry, twin):
                reason += f"; {difference}"
                result.files.left_out[twin] |= not across
            kind = "duplicate_across" if across else "duplicate_within"
            result.add_finding(kind, entry, reason)
            result.files.left_out[entry] = True


def _groups(result: AuditResult) -> Iterator[list[int]]:
    """Yield the readable entries of equal content, two or more at a time."""
    files = result.files
    wanted = files.usable & files.digest.any(axis=1)
    for number, split in enumerate(result.splits):
        if split.name == UNUSED:
            wanted[result.entries_of(number)] = False
    entries = np.flatnonzero(wanted)
    keys = files.digest[entries]
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    keys, entries = keys[order], entries[order]
    same = (keys[1:] == keys[:-1]).all(axis=1)
    # Runs of equal neighbours: `same` rises where one begins and falls where it ends.
    edges = np.diff(np.concatenate([[0], same.view(np.int8), [0]]))
    for start, last in zip(np.flatnonzero(edges > 0), np.flatnonzero(edges < 0), strict=True):
        yield entries[start : last + 1].tolist()


def _reason(result: AuditResult, entry: int, twin: int) -> str:
    split, index = result.locate(twin)
    path, other = result.path(entry), result.path(twin)
    line = f" line {split.line(index)}" if split.line(index) else ""
    place = f"{split.name}{line}"
    if os.path.abspath(path) == os.path.abspath(other):
        return f"the same file as in {place}"
    same = "the same frames" if result.files.decoded[entry] else "the same size and both ends"
    return f"{same} as {other} (in {place})"


def _label_difference(result: AuditResult, entry: int, twin: int) -> str:
    """Describe how the labels of two videos differ; "" if they agree or one has none."""
    (split, index), (twin_split, twin_index) = result.locate(entry), result.locate(twin)
    label, twin_label = split.manifest.label(index), twin_split.manifest.label(twin_index)
    if label == twin_label or -1 in (label, twin_label) or () in (label, twin_label):
        return ""
    return f"labelled {_names(split, label)} here and {_names(twin_split, twin_label)} there"


def _names(split: Split, label: int | tuple[int, ...]) -> str:
    labels = (label,) if isinstance(label, int) else label
    return ", ".join(repr(split.label_name(one)) for one in labels)
