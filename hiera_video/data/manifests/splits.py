"""The splits of a data set (train, val, test): their names, and held-out shares for data without.

Raised where a split has no videos: `MissingSplit`.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from hiera_video.data.manifests.source import Source
from hiera_video.errors import DataError

SPLITS = ("train", "val", "test")

SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "validate"),
    "test": ("test", "testing"),
}
"""What folders, lists and the column `split` call the splits, in any case."""

SIMILAR_WORDS = {
    "train": (*SPLIT_WORDS["train"], "trn"),
    "val": (*SPLIT_WORDS["val"], "validating", "dev", "eval", "evaluation"),
    "test": (*SPLIT_WORDS["test"], "tst"),
}
"""Words that make a name look like that of a split; alone they decide nothing."""

FILLERS = "dataset|data|sets?|videos?|clips?|splits?|parts?|folds?|lists?|images|frames|files"
"""Words that people write beside the name of a split: training_set, val-videos."""

FALLBACK = {"val": "test", "test": "val"}
"""The split that replaces a missing one, which the notes say: almost every public data set has one
list of held-out videos and calls it either val or test."""


class MissingSplit(DataError):
    """Data that has no videos for a split, and is in order otherwise."""


def split_of(name: str) -> str:
    """The split that a name stands for ("Validation" -> "val"); empty if it stands for none."""
    word = name.strip().lower()
    return next((split for split, words in SPLIT_WORDS.items() if word in words), "")


def similar_split(name: str) -> tuple[str, str]:
    """(split, rest of the name) for a name like `train1`, `Test_Set` or `ucf_val`, else ("", "").

    The rest is what is neither the word for the split nor a filler: "ucf" of the last.
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.findall(r"[^\W\d_]+", spaced.lower())
    for place, word in enumerate(words):
        bare = re.sub(rf"(?:{FILLERS})$", "", word) or word
        split = next((s for s, known in SIMILAR_WORDS.items() if {word, bare} & {*known}), "")
        if split:
            rest = words[:place] + words[place + 1 :]
            return split, " ".join(w for w in rest if not re.fullmatch(FILLERS, w))
    return "", ""


def choose_split(
    split: str, available: Mapping[str, str], *, kind: str, place: object
) -> tuple[str, list[str]]:
    """The split to read for `split`, and notes where another one is read instead.

    Args:
        split: the split that is wanted.
        available: split -> its name in the data ("val" -> "Validation/").
        kind: what the splits are: "folder", "list".
        place: where they are, for messages.

    Raises MissingSplit: training without train, or neither val nor test.
    """
    if split in available:
        reused = split == "test" and "train" in available and "val" not in available
        notes = [f"training validates on {available[split]} too: {_CHOSEN}"] if reused else []
        return split, notes
    other = FALLBACK.get(split, "")
    if other not in available:
        raise MissingSplit(_missing_split(split, available, kind, place))
    note = f"no {kind} for {split} in {place}: {available[other]} is used instead"
    if split == "val":
        note += f"; the best checkpoint is chosen on it, so a test on it is {_NOT_INDEPENDENT}"
    elif "train" in available:
        note += f"; training validates on it: {_CHOSEN}"
    return other, [note]


_NOT_INDEPENDENT = "no independent figure"
_CHOSEN = f"the best checkpoint is chosen on it, so with several epochs this is {_NOT_INDEPENDENT}"


def _missing_split(split: str, available: Mapping[str, str], kind: str, place: object) -> str:
    if kind == "list":
        return (
            f"no list for {split} in {place}; expected {split}.csv with a line 'path label' for "
            "each video"
        )
    names = " and ".join(available.values())
    if split == "train":
        return (
            f"no folder for train in {place}, which has {names}: training needs train/CLASS/"
            f"video.mp4. If {names} holds videos of a class, set DATA.FORMAT class_folders"
        )
    return (
        f"{place} has a train {kind} and neither val nor test: add one, or remove the level "
        f"'train' to have a share of the videos held out"
    )


# ---- shares -------------------------------------------------------------------------------------


class VideoEntry(NamedTuple):
    """A video before it is in a manifest or a split."""

    path: str
    """Below the root."""
    label: str
    """Name of its class; empty for none."""
    group: str = ""
    """Videos of one group must stay in one split; empty where nothing names the group."""


def hold_out(videos: Sequence[VideoEntry], source: Source) -> set[int]:
    """Indices of the share of `videos` that is held out for validation.

    Each class gives about `source.val_fraction` of its videos, in an order that is a hash of
    `source.seed` and the group's name: the same on every machine, and hardly changed by adding
    videos. Videos of one group stay together, and a class with a single group stays in training.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index, video in enumerate(videos):
        members[video.group].append(index)
    order = sorted(members, key=lambda group: _hash(source.seed, group))
    main_class = {g: _most_common(videos[i].label for i in members[g]) for g in order}
    by_class: dict[str, list[str]] = defaultdict(list)
    for group in order:
        by_class[main_class[group]].append(group)
    taken: set[int] = set()
    for groups in by_class.values():
        wanted = max(1, round(source.val_fraction * sum(len(members[g]) for g in groups)))
        count = 0
        for group in groups if len(groups) > 1 else ():
            size = len(members[group])
            # Closer to the share with the group than without it; never the whole class.
            if size <= 2 * (wanted - count) and count + size < sum(len(members[g]) for g in groups):
                taken.update(members[group])
                count += size
        if count == 0 and len(groups) > 1:
            taken.update(members[min(groups, key=lambda g: len(members[g]))])
    return taken


def _most_common(labels: Iterable[str]) -> str:
    """The most frequent label; of several, the first by name, in whatever order they come."""
    counts = Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label))


def _hash(seed: int, text: str) -> bytes:
    return hashlib.blake2b(
        f"{seed}:{text}".encode(errors="surrogateescape"), digest_size=8
    ).digest()


def group_extractor(group_by: str) -> Callable[[str], str]:
    """Compile a regular expression into a function from a path to its first group.

    The function returns "" where the path does not match, and for every path if `group_by` is
    empty. Raises DataError: `group_by` is no regular expression with a group.
    """
    if not group_by:
        return lambda path: ""
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise DataError(
            f"group_by={group_by!r} (DATA.GROUP_BY) is neither a column of labels.csv nor a "
            f"regular expression: {error}"
        ) from error
    if pattern.groups < 1:
        raise DataError(
            f"group_by={group_by!r} (DATA.GROUP_BY) is no column of labels.csv, and as a "
            f"regular expression it needs a group in brackets that is the source's name"
        )

    def group(path: str) -> str:
        match = pattern.search(path)
        return (match.group(1) or "") if match else ""

    return group
