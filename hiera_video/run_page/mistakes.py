"""Outcome clips by class, and by what they were taken for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hiera_video.run_page.facts import Clip

MOST_IN_GROUP = 100
"""Clips that a group shows; predictions.csv has all."""

MOST_ON_PAGE = 12
"""Of the most confident, and of the hardest errors."""

MOST_IN_MATRIX = 40
"""Classes of a confusion matrix that is a table; more are shown as pairs."""

MOST_PAIRS = 100


class Pair(NamedTuple):
    """A class, and another that its videos were taken for."""

    true: int
    predicted: int
    videos: int
    share: float
    """Of the videos of the true class."""


@dataclass
class Group:
    """Clips of one class that the model gave one class."""

    anchor: str
    title: str
    clips: list[Clip]

    @property
    def shown(self) -> list[Clip]:
        """Those that the page has room for."""
        return self.clips[:MOST_IN_GROUP]


@dataclass
class ClassPage:
    """What the page of a class shows."""

    number: int
    groups: list[Group] = field(default_factory=list)
    wrongly: list[Pair] = field(default_factory=list)
    """Other classes whose videos were taken for this one."""


def sure_mistakes(clips: Sequence[Clip]) -> list[Clip]:
    """The errors with the highest scores, of the predicted class."""
    wrong = [clip for clip in clips if clip.best and not clip.is_right]
    return sorted(wrong, key=lambda clip: -clip.best[0][1])


def hardest(clips: Sequence[Clip]) -> list[Clip]:
    """The errors with the lowest scores of the true class."""
    wrong = [clip for clip in clips if clip.best and not clip.is_right]
    return sorted(wrong, key=lambda clip: clip.true_score)


def pairs_of(confusion: Sequence[Sequence[int]]) -> list[Pair]:
    """Confused pairs of (true class, predicted class, videos), the most frequent first."""
    totals: dict[int, int] = defaultdict(int)
    for true, _, count in confusion:
        totals[true] += count
    found = [Pair(t, p, count, count / totals[t]) for t, p, count in confusion if t != p]
    return sorted(found, key=lambda pair: (-pair.videos, -pair.share, pair.true, pair.predicted))


def class_pages(
    clips: Sequence[Clip], classes: Sequence[str], *, multi_label: bool
) -> list[ClassPage]:
    """The pages of all classes that a video has, or was given. Errors come first."""
    pages: dict[int, ClassPage] = {}
    for (true, predicted), found in sorted(_groups(clips, multi_label=multi_label).items()):
        page = pages.setdefault(true, ClassPage(true))
        if multi_label:
            found.sort(key=lambda clip: clip.true_score)
            page.groups.append(Group("all", "Videos with this label, the hardest first", found))
            continue
        found.sort(key=lambda clip: -clip.best[0][1])
        right = true == predicted
        title = "Recognised" if right else f"Taken for {classes[predicted]}"
        page.groups.append(Group(f"as-{predicted}", title, found))
    for page in pages.values():
        own = f"as-{page.number}"
        page.groups.sort(key=lambda group: (group.anchor == own, -len(group.clips)))
    if not multi_label:
        counts = [(t, p, len(c)) for (t, p), c in _groups(clips, multi_label=False).items()]
        for pair in pairs_of(counts):
            pages.setdefault(pair.predicted, ClassPage(pair.predicted)).wrongly.append(pair)
    return [pages[number] for number in sorted(pages)]


def _groups(clips: Sequence[Clip], *, multi_label: bool) -> dict[tuple[int, int], list[Clip]]:
    """Clips with scores by (true class, predicted class); with several labels by each label."""
    found: dict[tuple[int, int], list[Clip]] = defaultdict(list)
    for clip in clips:
        if clip.best:
            for label in clip.labels:
                found[label, -1 if multi_label else clip.predicted].append(clip)
    return found
