"""How well classes can be told from vectors: cross-validation by groups, with an interval.

The videos of one group (a recording, a room, a person) are held out together, or the accuracy is
that of recognising the room. The strength of a classifier is chosen inside the training part of
each fold, so that the accuracy is one of videos that nothing was chosen by.

Shapes: N videos, R vectors of them (windows), D numbers, K classes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hiera_video.data.manifests.layouts import read_manifest, video_groups
from hiera_video.data.manifests.splits import SPLITS, MissingSplit
from hiera_video.engine.folds import grouped_folds
from hiera_video.errors import DataError
from hiera_video.features.describe import Vectors
from hiera_video.features.parquet import stored_path
from hiera_video.features.readouts import READOUTS, Labels, Readout
from hiera_video.features.table import Batch
from hiera_video.storage.addresses import absolute

MOST_BYTES = 4 << 30
"""Of vectors, which are all needed at once."""

_INNER_FOLDS = 4


# ---- the videos ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelledVideo:
    """What a list says about a video."""

    label: str
    group: str


@dataclass(frozen=True)
class LabelledList:
    """A list of labelled videos."""

    file: str
    videos: dict[str, LabelledVideo]
    """By absolute path."""
    grouped: bool
    """Whether something names the videos that belong together."""


@dataclass(frozen=True)
class LabelledVectors:
    """Videos that have both vectors and a label."""

    vectors: Vectors
    """float32 [R, D]."""
    video_of: Labels
    """int64 [R]: the video of each vector, 0 to N - 1."""
    labels: Labels
    """int64 [N]."""
    groups: Sequence[str]
    """[N]"""
    classes: Sequence[str]
    """[K]"""
    grouped: bool

    def rows(self, videos: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """The vectors, bool [R], of some videos, bool [N]."""
        return videos[self.video_of]


def read_labels(file: str, group_by: str = "") -> LabelledList:
    """Read a list with labels (labels.csv and all that training reads), all its splits together.

    group_by: the column of the group, or a regular expression whose first group is cut from the
    path. Empty: the column "source" or "group" where there is one, else each video by itself.

    Raises DataError: no such file, no labels, several labels a video, no such column.
    """
    videos: dict[str, LabelledVideo] = {}
    missing: list[MissingSplit] = []
    grouped = False
    for split in SPLITS:
        try:
            manifest = read_manifest(file, split, group_by=group_by, hold_out=False)
        except MissingSplit as error:
            missing.append(error)
            continue
        if manifest.multi_label:
            raise DataError(f"{file}: one class of a video is needed, and these have several")
        groups = video_groups(manifest, group_by)
        for i, group in enumerate(groups):
            number = int(manifest.labels[i])
            label = manifest.classes[number] if manifest.classes else str(number)
            grouped = grouped or group != manifest.paths.relative(i)
            if number >= 0:
                videos[absolute(manifest.paths[i])] = LabelledVideo(label, group)
    if not videos:
        raise missing[0] if missing else DataError(f"{file}: none of its videos has a label")
    return LabelledList(file, videos, grouped)


def join(batches: Iterable[Batch], listed: LabelledList, table: str) -> LabelledVectors:
    """Bring vectors and labels together, by the paths of the videos.

    Paths are compared as absolute ones; where the videos have moved since, by their names, if no
    two videos of the list share one. table: for messages.

    Raises DataError: no video in common, one class or one group alone, too many vectors.
    """
    find = finder_of(listed)
    parts: list[Vectors] = []
    video_of: list[int] = []
    numbers: dict[str, int] = {}
    example = ""
    for batch in batches:
        owners = [find(path) for path in batch.paths]
        example = example or batch.paths[0]
        kept = [i for i, owner in enumerate(owners) if owner is not None]
        parts.append(batch.vectors[kept])
        video_of += [numbers.setdefault(owner, len(numbers)) for owner in owners if owner]
        if len(video_of) * batch.vectors.shape[1] * 4 > MOST_BYTES:
            raise DataError(
                f"{table} has more than {MOST_BYTES >> 30} GiB of vectors with labels, and a probe "
                "holds them all; use --pool mean and longer windows"
            )
    if not numbers:
        raise DataError(
            f"no video is both in {table} (such as {example or 'none'}) and in {listed.file} (such "
            f"as {next(iter(listed.videos))})"
        )
    known = [listed.videos[path] for path in numbers]
    classes = sorted({video.label for video in known})
    found = LabelledVectors(
        vectors=np.concatenate(parts),
        video_of=np.asarray(video_of, dtype=np.int64),
        labels=np.asarray([classes.index(video.label) for video in known], dtype=np.int64),
        groups=[video.group for video in known],
        classes=classes,
        grouped=listed.grouped,
    )
    _require_something_to_tell(found, listed.file)
    return found


def finder_of(listed: LabelledList) -> Callable[[str], str | None]:
    """Return a function from a path in a table to the path in the list, None where it has none.

    Paths are compared as absolute ones; where the videos have moved since, by their names, if no
    two videos of the list share one.
    """
    exact = {stored_path(path): path for path in listed.videos}
    names: dict[str, list[str]] = {}
    for path in listed.videos:
        names.setdefault(stored_path(os.path.basename(path)), []).append(path)
    unique = all(len(paths) == 1 for paths in names.values())

    def find(path: str) -> str | None:
        found = exact.get(absolute(path))
        if found is None and unique:
            (found,) = names.get(os.path.basename(path), [None])
        return found

    return find


def _require_something_to_tell(found: LabelledVectors, file: str) -> None:
    if len(found.classes) < 2:
        raise DataError(
            f"all {len(found.labels)} videos of {file} with vectors are {found.classes[0]!r}: a "
            "probe needs two classes"
        )
    if len(set(found.groups)) < 2:
        raise DataError(
            f"all {len(found.labels)} videos of {file} with vectors are of one group "
            f"({found.groups[0]}): nothing can be held out; name another column with --group"
        )


# ---- cross-validation ---------------------------------------------------------------------------


@dataclass(frozen=True)
class ProbeResult:
    """What one kind of classifier reaches."""

    name: str
    accuracy: float
    """Share of the videos, 0 to 1, each predicted when its group was held out."""
    low: float
    high: float
    """The interval of 95 %."""
    chosen: dict[str, list[float]]
    """The setting in words -> its value in each fold."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain strings and numbers, for JSON."""
        return {
            "classifier": self.name,
            "accuracy": self.accuracy,
            "interval95": [self.low, self.high],
            "chosen": self.chosen,
        }


def cross_validate(
    data: LabelledVectors,
    readout: Readout,
    *,
    folds: int = 5,
    seed: int = 0,
    on_fold: Callable[[int, int], None] = lambda done, total: None,
) -> ProbeResult:
    """Hold out each fold of groups once, and predict its videos.

    A video is predicted by the mean of the scores of its windows. on_fold: called with (folds done,
    all folds).
    """
    held_out = grouped_folds(data.labels.tolist(), data.groups, folds=folds, seed=seed)
    right = np.zeros(len(data.labels), dtype=bool)
    chosen = []
    for number, held in enumerate(held_out):
        on_fold(number, len(held_out))
        value = _chosen_value(data, readout, ~held, seed)
        right[held] = _right(data, readout, value, train=~held, test=held)
        chosen.append(value)
    low, high = interval(right, data.groups)
    return ProbeResult(readout.name, float(right.mean()), low, high, {readout.setting: chosen})


def most_common(data: LabelledVectors) -> float:
    """Share of the most common class, which an answer without looking reaches."""
    return float(np.bincount(data.labels).max() / len(data.labels))


def _chosen_value(
    data: LabelledVectors, readout: Readout, train: npt.NDArray[np.bool_], seed: int
) -> float:
    """The value of the setting with which most training videos are right, held out by groups."""
    places = np.flatnonzero(train).tolist()
    groups = [data.groups[place] for place in places]
    labels = [int(data.labels[place]) for place in places]
    scores = np.zeros(len(readout.values))
    for part in grouped_folds(labels, groups, folds=_INNER_FOLDS, seed=seed):
        test = np.zeros(len(train), dtype=bool)
        test[np.asarray(places)[part]] = True
        if not (train & ~test).any():
            return readout.values[len(readout.values) // 2]  # one group: nothing to choose by
        for i, value in enumerate(readout.values):
            scores[i] += _right(data, readout, value, train=train & ~test, test=test).sum()
    return readout.values[int(scores.argmax())]


def _right(
    data: LabelledVectors,
    readout: Readout,
    value: float,
    *,
    train: npt.NDArray[np.bool_],
    test: npt.NDArray[np.bool_],
) -> npt.NDArray[np.bool_]:
    """Whether each video of `test` is predicted rightly, bool [its videos]."""
    rows, queries = data.rows(train), data.rows(test)
    labels = data.labels[data.video_of[rows]]
    scorer = readout.fit(data.vectors[rows], labels, len(data.classes), value)
    totals = np.zeros((len(data.labels), len(data.classes)))
    owners = data.video_of[queries]
    np.add.at(totals, owners, scorer(data.vectors[queries]))
    means = totals[test] / np.bincount(owners, minlength=len(totals))[test, None]
    right: npt.NDArray[np.bool_] = means.argmax(axis=1) == data.labels[test]
    return right


def interval(right: npt.NDArray[np.bool_], groups: Sequence[str]) -> tuple[float, float]:
    """The interval of 95 % of an accuracy (Wilson's), for videos that come in groups.

    Videos of a group are right or wrong together, so they count as fewer: their number is divided
    by how many times larger the variance between groups is than it would be of single videos. They
    never count as fewer than there are groups.
    """
    share, count = float(right.mean()), len(right)
    _, group_of = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(group_of, weights=right - share)
    clusters = len(sums)
    effective = float(clusters)
    if 0 < share < 1:
        variance = clusters / max(clusters - 1, 1) * float((sums**2).sum()) / count**2
        effective = min(max(share * (1 - share) / max(variance, 1e-12), clusters), count)
    return _wilson(share, effective)


def _wilson(share: float, count: float, z: float = 1.959964) -> tuple[float, float]:
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    spread = (
        z
        / (1 + z * z / count)
        * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    )
    return max(middle - spread, 0.0), min(middle + spread, 1.0)


def probe(
    data: LabelledVectors,
    *,
    folds: int = 5,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[ProbeResult]:
    """Cross-validate every kind of classifier.

    on_progress: called with (folds done, all folds), of all classifiers together.
    """

    def of(number: int) -> Callable[[int, int], None]:
        return lambda done, total: on_progress(number * total + done, len(READOUTS) * total)

    return [
        cross_validate(data, readout, folds=folds, on_fold=of(number))
        for number, readout in enumerate(READOUTS)
    ]


def without_tokens(data: LabelledVectors, shape: Sequence[int]) -> LabelledVectors:
    """The same with the mean over the tokens, where vectors of this shape are tokens."""
    if len(shape) == 1:
        return data
    vectors = data.vectors.reshape(len(data.vectors), -1, shape[-1]).mean(axis=1)
    return replace(data, vectors=vectors)
