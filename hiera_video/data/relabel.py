"""Map the labels of a list from its own classes to a model's outputs, by class name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hiera_video.classes import ClassMatch, in_order_note, match_classes
from hiera_video.data.manifests.manifest import Manifest
from hiera_video.errors import DataError, first_few


def fit_labels(
    manifest: Manifest,
    *,
    names: Sequence[str] | None,
    count: int,
    owner: str,
    guessed: str = "",
) -> Manifest:
    """Renumber the labels of a list so that they are indices of a model's outputs, and `classes` is
    `names`.

    Where one side has no names, the labels stay in order, which a note says.

    Args:
        manifest: the list with its own class names, if any.
        names: of the outputs, in order; None or empty if they have none.
        count: number of outputs.
        owner: the owner of the outputs, for messages: "best.pyth", "the training videos".
        guessed: the public list that `names` are, where that is only likely. Such names are used
            only if they cover the classes of the list.

    Raises DataError: a class with videos is none of the outputs, or its output is unknown.
    """
    own = list(manifest.classes or ())
    names = list(names or ())
    highest = int(manifest.labels.max(initial=-1))
    if highest >= (limit := len(own) or count):
        raise DataError(f"label {highest} is out of range; allowed are 0 to {limit - 1} ({owner})")
    if guessed and (not own or _unknown(manifest, match_classes(names, own))):
        names, guessed = [], ""
    if own and not names and len(own) != count:
        raise DataError(
            f"{owner} has {count} outputs without class names, and the data has {len(own)} classes "
            f"({first_few(own)}): which output is which is unknown. Set DATA.CLASS_NAMES to a "
            f"file with the names of all {count} outputs, in their order"
        )
    if not own or not names:
        note = in_order_note(owner, count, stored=names, wanted=own)
        return _renumbered(manifest, None, names or own, count, [note])
    match = match_classes(names, own)
    unknown = _unknown(manifest, match)
    if unknown:
        raise DataError(
            f"{owner} does not know {_classes(len(unknown))} of the data: {first_few(unknown)}. It "
            f"knows {first_few(names)}. Videos of other classes are always counted as wrong: leave "
            "them out of the list, or train on these classes first"
        )
    notes = [match.spelling_note()]
    if guessed:
        notes.append(
            f"{owner} has no class names; its {count} outputs are read as those of {guessed}"
        )
    if match.same_names and not match.same_order:
        notes.append(
            f"the classes of the data are in another order than those of {owner}; labels placed by "
            "name"
        )
    fitted = _renumbered(manifest, match.rows, names, count, notes)
    empty = [name for name, videos in zip(names, fitted.class_counts(), strict=True) if not videos]
    if empty:
        note = f"no videos of {_classes(len(empty))} of {owner}: {first_few(empty)}"
        fitted = replace(fitted, notes=(*fitted.notes, note))
    return fitted


def _unknown(manifest: Manifest, match: ClassMatch) -> list[str]:
    """Classes of the list that have videos and are none of the outputs."""
    present = set(manifest.labels.tolist())
    return [
        name
        for label, (name, row) in enumerate(zip(match.wanted, match.rows, strict=True))
        if row is None and label in present
    ]


def _classes(count: int) -> str:
    return f"{count} class{'es' * (count > 1)}"


def _renumbered(
    manifest: Manifest,
    rows: Sequence[int | None] | None,
    names: Sequence[str],
    count: int,
    notes: Sequence[str],
) -> Manifest:
    """The list with every label replaced by `rows[label]` (None: labels stay)."""
    labels = manifest.labels
    if rows is not None:
        # The last entry is for -1, no label.
        table = np.array([*(-1 if row is None else row for row in rows), -1], dtype=np.int64)
        labels = table[labels]
        if manifest.label_ends is not None:  # labels of a video are sorted
            counts = np.diff(manifest.label_ends, prepend=0)
            labels = labels[np.lexsort((labels, np.repeat(np.arange(len(counts)), counts)))]
    return replace(
        manifest,
        labels=labels,
        classes=tuple(names) or None,
        num_classes=count,
        notes=(*manifest.notes, *filter(None, notes)),
    )
