"""Folds for cross-validation on small sets of videos: what belongs together stays together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class CrossValidated:
    """What cross-validation chose by, for a head that was fitted to the clips of videos."""

    accuracy: float | None
    """In cross-validation, percent; None where there was none."""
    folds: int
    videos: int
    clips: int
    """Of each video."""
    grouped: bool
    """Whether something names videos that belong together."""

    @property
    def chosen(self) -> str:
        """How the settings were chosen, in words."""
        if self.accuracy is None:
            return "not cross-validated: the videos are of one group"
        text = f"{self.accuracy:.1f} % by {self.folds}-fold cross-validation"
        if self.grouped:
            return text
        return (
            f"{text}, too high where videos share a room, a person or a recording: name it with "
            "DATA.GROUP_BY"
        )


def grouped_folds(
    labels: Sequence[int], groups: Sequence[str], *, folds: int, seed: int
) -> list[npt.NDArray[np.bool_]]:
    """Divide videos into folds that share no group and have the classes alike, as far as possible.

    Returns bool [N] for each fold, True = held out. Groups are placed from the largest to the
    smallest, each in the fold where the classes are then the most even; equals in random order.
    Fewer groups than folds give as many folds as there are groups.
    """
    labels_of = np.asarray(labels)
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    folds = min(folds, len(names))
    counts = np.zeros((len(names), int(labels_of.max()) + 1))
    np.add.at(counts, (group_of, labels_of), 1)
    wanted = counts.sum(axis=0) / folds
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    held = np.zeros((folds, counts.shape[1]))
    fold_of_group = np.zeros(len(names), dtype=int)
    for group in order:
        # the sum of squares of what each fold then has too much or too little of each class
        change = ((held + counts[group] - wanted) ** 2 - (held - wanted) ** 2).sum(axis=1)
        fold = int(change.argmin())
        fold_of_group[group] = fold
        held[fold] += counts[group]
    return [fold_of_group[group_of] == fold for fold in range(folds) if held[fold].any()]
