"""Frame mAP: how well boxes and their actions are found, as AVA's papers report it.

    result = frame_map(truth, detections, labels, excluded)
    result.mean, result.per_class[12]

For each action by itself, all detections are sorted by score. Each is compared with the annotated
boxes of its video and second that have the action: it is right if it overlaps the one that it
overlaps most by `iou` or more (intersection over union), and no detection before it was right about
that one. The average precision is the area under the curve of precision over recall, made
non-increasing; the mean is over the actions that are annotated at least once.

Where public evaluations differ
    Two detections of one second may lie on one person. ActivityNet's script
    (get_ava_performance.py) takes the higher score first (`order="score"`); SlowFast's code takes
    the order of the file (`order="file"`). ActivityNet's script also uses only the 50 best lines of
    a second (`most_per_second=50`); SlowFast, by which papers measure, uses all. With these rules
    the numbers are those of either code, ties of scores included.

What they have in common
    Detections of a second without any annotated box that counts are wrong ones, and count.
    Detections without area (x1 = x2) are left out; annotated boxes without area count, and cannot
    be found. An action without annotated boxes has no average precision (nan); one that is
    annotated but never detected has 0.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hiera_video.detection.files import NO_ACTION, UNKNOWN_PERSON, BoxTable, LabelMap

Booleans = NDArray[np.bool_]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

ACTIVITYNET_MOST = 50
"""So many lines of a second ActivityNet's script uses."""


@dataclass(frozen=True)
class MatchingRules:
    """Where public evaluations differ; see the top of this module."""

    order: Literal["score", "file"] = "score"
    """Which of two detections of one second comes first: that of the higher score, or that of the
    earlier line."""
    most_per_second: int | None = None
    """Use only so many detections of a second, over all actions, the best; None: all."""


@dataclass(frozen=True)
class RowCounts:
    """What became of the lines of a file."""

    rows: int
    used: int
    no_action: int
    """Left out: boxes without action."""
    other_action: int
    """Left out: actions that do not count."""
    excluded: int
    """Left out: in seconds that are not measured."""
    no_area: int = 0
    """Left out: detections without width or height."""
    beyond_most: int = 0
    """Left out: more than `most_per_second`."""
    without_truth: int = 0
    """Used: detections in seconds where nothing that counts is annotated; they are wrong."""


class Curve(NamedTuple):
    """Precision over recall as detections are added, the best first."""

    recall: Floats
    precision: Floats


@dataclass(frozen=True)
class FrameMap:
    """The result of `frame_map`; dicts have the id of each action that counts, in its order."""

    truths: dict[int, int]
    """Annotated boxes that were to be found."""
    hits: dict[int, Booleans]
    """Whether each detection is right, from the highest score to the lowest."""
    truth_rows: RowCounts
    detection_rows: RowCounts
    seconds: int
    """Seconds of videos in which something that counts is annotated."""

    @functools.cached_property
    def per_class(self) -> dict[int, float]:
        """Average precision; nan where nothing is annotated."""
        return {
            action: _average_precision(self.hits[action], n) for action, n in self.truths.items()
        }

    @property
    def mean(self) -> float:
        """Mean average precision; nan if nothing is annotated."""
        known = [value for value in self.per_class.values() if not math.isnan(value)]
        return float(np.mean(known)) if known else math.nan

    def curve(self, action: int) -> Curve:
        """Return the curve of an action that is annotated at least once."""
        return _curve(self.hits[action], self.truths[action])


def frame_map(
    truth: BoxTable,
    detections: BoxTable,
    labels: LabelMap,
    excluded: Collection[tuple[str, int]] = frozenset(),
    iou: float = 0.5,
    rules: MatchingRules = MatchingRules(),
) -> FrameMap:
    """Compare detections with annotated boxes.

    Args:
        truth: annotated boxes.
        detections: boxes with scores, a line for each box and action.
        labels: the actions that count; others are left out on both sides.
        excluded: (video, second) that are left out on both sides.
        iou: least overlap of a right detection, above 0.
        rules: where public evaluations differ.
    """
    if detections.score is None:
        raise ValueError("the detections have no scores")
    if not 0 < iou <= 1:
        raise ValueError(f"iou={iou!r} must be above 0 and at most 1")
    found, wanted = _two_sides(detections, truth, labels, excluded)
    seconds = _Seconds(found, rules.most_per_second)
    measured, among_most = found.second != _EXCLUDED, seconds.among_most()
    has_area = (found.corners[:, :2] < found.corners[:, 2:]).all(axis=1)
    used = measured & among_most & has_area
    to_find = wanted.second != _EXCLUDED
    known = np.unique(wanted.second[to_find])
    result = FrameMap(
        truths={},
        hits={},
        truth_rows=_counts(truth, wanted, to_find),
        detection_rows=_counts(
            detections,
            found,
            used,
            no_area=int((measured & among_most & ~has_area).sum()),
            beyond_most=int((measured & ~among_most).sum()),
            without_truth=int((~np.isin(found.second[used], known)).sum()),
        ),
        seconds=len(known),
    )
    by_score = seconds if rules.order == "score" else None
    places = _heap_places(wanted) if by_score else np.arange(len(to_find))
    for action, mine, theirs in zip(
        labels.ids, _by_class(found, used, labels), _by_class(wanted, to_find, labels), strict=True
    ):
        theirs = theirs[np.lexsort((places[theirs], wanted.second[theirs]))]
        overlap, best = _best_overlaps(found, mine, wanted, theirs)
        result.truths[action] = len(theirs)
        result.hits[action] = _hits(found, mine, np.where(overlap >= iou, best, -1), by_score)
    return result


def _counts(table: BoxTable, side: _Side, used: Booleans, **others: int) -> RowCounts:
    no_action = int((table.action == NO_ACTION).sum())
    return RowCounts(
        rows=len(table),
        used=int(used.sum()),
        no_action=no_action,
        other_action=len(table) - no_action - len(used),
        excluded=int((side.second == _EXCLUDED).sum()),
        **others,
    )


# ---- the lines of both files that count ---------------------------------------------------------

_EXCLUDED = -1


class _Side(NamedTuple):
    """The lines of one file whose action counts, in the order of the file."""

    second: Integers
    """[N]: number of the second of a video, by first appearance among the detections, then among
    the annotated boxes; _EXCLUDED where it is not measured."""
    action: NDArray[np.int32]
    """[N]: id."""
    corners: Floats
    """[N, 4]"""
    eighth: Floats
    """[N]: the score of a detection, the person of an annotated box: what ActivityNet's script
    sorts both by."""


def _two_sides(
    detections: BoxTable,
    truth: BoxTable,
    labels: LabelMap,
    excluded: Collection[tuple[str, int]],
) -> tuple[_Side, _Side]:
    videos = {name: n for n, name in enumerate(dict.fromkeys(detections.videos + truth.videos))}
    rows, keys = [], []
    for table in (detections, truth):
        counts = np.flatnonzero(np.isin(table.action, labels.ids))
        numbers = np.array([videos[name] for name in table.videos], dtype=np.int64)
        keys.append(_key(numbers[table.video[counts]], table.second[counts]))
        rows.append(counts)
    numbers, distinct = _by_first_appearance(np.concatenate(keys))
    left_out = [_key(videos[video], second) for video, second in excluded if video in videos]
    seconds = np.where(np.isin(distinct, left_out)[numbers], _EXCLUDED, numbers)

    def side(table: BoxTable, rows: Integers, seconds: Integers) -> _Side:
        if table.score is not None:
            eighth = table.score[rows]
        elif table.person is not None:
            eighth = np.where(table.person[rows] == UNKNOWN_PERSON, 1, table.person[rows])
        else:
            eighth = np.ones(len(rows))
        return _Side(seconds, table.action[rows], table.corners[rows], eighth.astype(np.float64))

    first = len(rows[0])
    return (
        side(detections, rows[0], seconds[:first]),
        side(truth, rows[1], seconds[first:]),
    )


def _key(video: Any, second: Any) -> Any:
    """(number of a video, second) as one number."""
    return video * 2**32 + second


def _by_first_appearance(keys: Integers) -> tuple[Integers, Integers]:
    """Number equal keys alike, from 0 on in order of first appearance: (numbers, their keys)."""
    if not len(keys):
        return keys, keys
    starts = np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1])
    distinct, first, inverse = np.unique(keys[starts], return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return np.repeat(rank[inverse], np.diff(np.append(starts, len(keys)))), distinct[order]


def _by_class(side: _Side, used: Booleans, labels: LabelMap) -> list[Integers]:
    """Return the used rows of each action, ascending."""
    places = np.argsort(labels.ids)  # ids need not ascend
    rows = np.flatnonzero(used)
    found = np.searchsorted(np.sort(labels.ids), side.action[rows])
    numbers = places[found].astype(np.int32)
    rows = rows[np.argsort(numbers, kind="stable")]
    ends = np.bincount(numbers, minlength=len(labels)).cumsum()
    return np.split(rows, ends[:-1])


# ---- which annotated box a detection is on ------------------------------------------------------

_MOST_PAIRS = 1 << 21
"""So many pairs of boxes are compared at once."""


def _best_overlaps(
    found: _Side, mine: Integers, wanted: _Side, theirs: Integers
) -> tuple[Floats, Integers]:
    """Return for each detection the overlap with the annotated box of its second that it overlaps
    most, and the index of that box in `theirs`; of equal ones, the first. 0 and -1 without any.

    theirs: rows of one action, sorted by second.
    """
    overlap, best = np.zeros(len(mine)), np.full(len(mine), -1)
    seconds = wanted.second[theirs]
    low = np.searchsorted(seconds, found.second[mine], side="left")
    count = np.searchsorted(seconds, found.second[mine], side="right") - low
    some = np.flatnonzero(count)
    for part in _parts(count[some]):
        rows = some[part]
        counts = count[rows]
        starts = counts.cumsum() - counts
        place = np.arange(counts.sum())
        other = place - np.repeat(starts - low[rows], counts)
        pairs = _overlaps(
            np.repeat(found.corners[mine[rows]], counts, axis=0), wanted.corners[theirs[other]]
        )
        most = np.maximum.reduceat(pairs, starts)
        is_most = pairs == np.repeat(most, counts)
        first = np.minimum.reduceat(np.where(is_most, place, len(place)), starts)
        overlap[rows], best[rows] = most, other[first]
    return overlap, best


def _parts(counts: Integers) -> Iterator[slice]:
    """Cut a list where its sum reaches _MOST_PAIRS."""
    ends = counts.cumsum()
    start = 0
    while start < len(counts):
        done = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, done + _MOST_PAIRS, side="right")), start + 1)
        yield slice(start, stop)
        start = stop


def _overlaps(ours: Floats, others: Floats) -> Floats:
    """Intersection over union of pairs of boxes [N, 4].

    The order of the operations is that of the public code: a last digit decides whether two boxes
    that overlap by just 0.5 do.
    """
    x1, y1, x2, y2 = ours.T
    u1, v1, u2, v2 = others.T
    height = np.maximum(0, np.minimum(y2, v2) - np.maximum(y1, v1))
    width = np.maximum(0, np.minimum(x2, u2) - np.maximum(x1, u1))
    both = height * width
    return both / ((y2 - y1) * (x2 - x1) + (v2 - v1) * (u2 - u1) - both)


def _hits(found: _Side, mine: Integers, on: Integers, by_score: _Seconds | None) -> Booleans:
    """Return for each detection of one action whether it is right, the highest score first.

    on: the annotated box that it overlaps enough, or -1.
    by_score: order detections of one second by score; None: as in the file.
    """
    second, score = found.second[mine], found.eighth[mine]
    if by_score is None:
        order = np.argsort(second, kind="stable")
    else:
        order = np.lexsort((-score, second))
        order = by_score.settle_ties(mine, order, on)
    boxes = on[order]
    right = np.zeros(len(mine), dtype=bool)
    on_any = np.flatnonzero(boxes >= 0)
    right[on_any[np.unique(boxes[on_any], return_index=True)[1]]] = True
    # Just this call: which of two equal scores comes first decides digits of the result.
    return right[np.argsort(score[order])[::-1]]


# ---- ties ---------------------------------------------------------------------------------------

Entry = tuple[float, ...]


def _heap_order(entries: Sequence[Entry], most: int | None) -> list[int]:
    """Return which entries ActivityNet's script keeps of a second, in its order.

    It pushes them on a heap, drops the least when there are too many, and sorts the heap's list by
    score. So the order of equal scores is that of the heap's list.
    """
    heap: list[Entry] = []
    for entry in entries:
        if most is None or len(heap) < most:
            heapq.heappush(heap, entry)
        elif entry[0] > heap[0][0]:
            heapq.heapreplace(heap, entry)
    place = {id(entry): number for number, entry in enumerate(entries)}
    return [place[id(entry)] for entry in sorted(heap, key=lambda entry: -entry[0])]


def _entries(side: _Side, rows: Integers) -> list[Entry]:
    x1, y1, x2, y2 = side.corners[rows].T.tolist()
    scores, actions = side.eighth[rows].tolist(), side.action[rows].tolist()
    return list(zip(scores, actions, y1, x1, y2, x2, strict=True))


def _heap_places(side: _Side) -> Integers:
    """Return for each line its place in the heap order of its second."""
    places = np.zeros(len(side.second), dtype=np.int64)
    seconds = _Seconds(side, None)
    for second in np.unique(side.second[side.second != _EXCLUDED]).tolist():
        rows = seconds.rows(second)
        if len(rows) > 1:
            places[rows[_heap_order(_entries(side, rows), None)]] = np.arange(len(rows))
    return places


class _Seconds:
    """Detections by their second, for what can only be done second by second."""

    def __init__(self, side: _Side, most: int | None) -> None:
        self.side, self.most = side, most
        self._order = np.argsort(side.second, kind="stable")
        count = int(side.second.max(initial=-1)) + 1
        self._starts = np.searchsorted(side.second[self._order], np.arange(count + 1))

    def rows(self, second: int) -> Integers:
        """Return the lines of a second, in the order of the file."""
        return self._order[self._starts[second] : self._starts[second + 1]]

    def among_most(self) -> Booleans:
        """Return for each line whether it is among the `most` best of its second."""
        second, score = self.side.second, self.side.eighth
        if self.most is None:
            return np.ones(len(second), dtype=bool)
        order = np.lexsort((-score, second))
        starts = self._starts[np.maximum(second[order], 0)]
        place = np.arange(len(order)) - starts
        kept = np.zeros(len(order), dtype=bool)
        kept[order] = (place < self.most) & (second[order] != _EXCLUDED)
        last = np.flatnonzero(place[:-1] == self.most - 1)
        ours, next_one = order[last], order[last + 1]
        tied = (second[ours] == second[next_one]) & (score[ours] == score[next_one])
        for number in np.unique(second[ours[tied]]).tolist():
            if number != _EXCLUDED:
                rows = self.rows(number)
                kept[rows] = False
                kept[rows[_heap_order(_entries(self.side, rows), self.most)]] = True
        return kept

    def settle_ties(self, mine: Integers, order: Integers, on: Integers) -> Integers:
        """Return `order` with equal scores of one second as ActivityNet's script has them.

        Only where it matters: where one of them is on an annotated box.
        """
        second, score = self.side.second[mine], self.side.eighth[mine]
        left, right = order[:-1], order[1:]
        tied = (second[left] == second[right]) & (score[left] == score[right])
        if not tied.any():
            return order
        group = np.concatenate([[0], np.cumsum(~tied)])  # of equal second and score, in order
        matters = np.zeros(len(order), dtype=bool)
        matters[group[on[order] >= 0]] = True
        alone = np.bincount(group, minlength=len(order)) == 1
        matters[alone] = False
        place = np.arange(len(mine))
        for number in np.unique(second[order[matters[group]]]).tolist():
            rows = self.rows(number)
            kept = rows[_heap_order(_entries(self.side, rows), self.most)]
            rank = {row: n for n, row in enumerate(kept.tolist())}
            here = np.flatnonzero(second == number)
            place[here] = [rank[row] for row in mine[here].tolist()]
        return np.lexsort((place, -score, second))


# ---- average precision --------------------------------------------------------------------------


def _curve(hits: Booleans, truths: int) -> Curve:
    right = np.cumsum(hits)
    return Curve(right / truths, right / np.arange(1, len(hits) + 1))


def _average_precision(hits: Booleans, truths: int) -> float:
    if not truths:
        return math.nan
    precision = _curve(hits, truths).precision
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return float(highest[hits].sum() / truths)
