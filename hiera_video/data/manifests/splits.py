"""The parts of a data set (train, val, test): their names, and shares where the data names none."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from hiera_video.errors import DataError

if TYPE_CHECKING:
    from hiera_video.data.manifests.manifest import Source

SPLITS = ("train", "val", "test")

SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "validate"),
    "test": ("test", "testing"),
}
"""What folders, lists and the column `split` call the parts, in any case."""

NEAR_WORDS = {
    "train": (*SPLIT_WORDS["train"], "trn"),
    "val": (*SPLIT_WORDS["val"], "validating", "dev", "eval", "evaluation"),
    "test": (*SPLIT_WORDS["test"], "tst"),
}
"""Words that make a name look like that of a part; alone they decide nothing."""

FILLERS = "dataset|data|sets?|videos?|clips?|splits?|parts?|folds?|lists?|images|frames|files"
"""Words that people write beside the name of a part: training_set, val-videos."""

STAND_IN = {"val": "test", "test": "val"}
"""Where a part does not exist, the one that stands in for it, which is said in the notes: almost
every public data set has one list of held-out videos and calls it either val or test."""


class NoSuchPart(DataError):
    """Data that has no videos for a split, and is in order otherwise."""


def split_of(name: str) -> str:
    """The part that a name stands for ("Validation" -> "val"); empty if it stands for none."""
    word = name.strip().lower()
    return next((split for split, words in SPLIT_WORDS.items() if word in words), "")


def near_split(name: str) -> tuple[str, str]:
    """(part, rest of the name) for a name like `train1`, `Test_Set` or `ucf_val`; ("", "") else.

    The rest is what is neither the word for the part nor a filler: "ucf" of the last.
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.findall(r"[^\W\d_]+", spaced.lower())
    for place, word in enumerate(words):
        bare = re.sub(rf"(?:{FILLERS})$", "", word) or word
        split = next((s for s, known in NEAR_WORDS.items() if {word, bare} & {*known}), "")
        if split:
            rest = words[:place] + words[place + 1 :]
            return split, " ".join(w for w in rest if not re.fullmatch(FILLERS, w))
    return "", ""


def choose_part(
    split: str, there: Mapping[str, str], *, kind: str, place: object
) -> tuple[str, list[str]]:
    """The part to read for `split`, and notes where another one stands in for it.

    Args:
        split: the part that is wanted.
        there: part -> what it is called there ("val" -> "Validation/").
        kind: of what the parts are: "folder", "list".
        place: where they are, for messages.

    Raises NoSuchPart: training without train, or neither val nor test.
    """
    if split in there:
        alone = split == "test" and "train" in there and "val" not in there
        return split, [f"training validates on {there[split]} too: {_CHOSEN}"] if alone else []
    other = STAND_IN.get(split, "")
    if other not in there:
        raise NoSuchPart(_missing_part(split, there, kind, place))
    note = f"no {kind} for {split} in {place}: {there[other]} stands in for it"
    if split == "val":
        note += f"; the best checkpoint is chosen on it, so a test on it is {_NOT_INDEPENDENT}"
    elif "train" in there:
        note += f"; training validates on it: {_CHOSEN}"
    return other, [note]


_NOT_INDEPENDENT = "no independent figure"
_CHOSEN = f"the best checkpoint is chosen on it, and this is {_NOT_INDEPENDENT}"


def _missing_part(split: str, there: Mapping[str, str], kind: str, place: object) -> str:
    if kind == "list":
        return (
            f"no list for {split} in {place}; expected {split}.csv with a line 'path label' for "
            "each video"
        )
    held = " and ".join(there.values())
    if split == "train":
        return (
            f"no folder for train in {place}, which has {held}: training needs train/CLASS/"
            f"video.mp4. If {held} holds videos of a class, set DATA.FORMAT class_folders"
        )
    return (
        f"{place} has a train {kind} and neither val nor test: add one, or remove the level "
        f"'train' to have a share of the videos held out"
    )


# ---- shares -------------------------------------------------------------------------------------


class Listed(NamedTuple):
    """A video before the split: path below the root, class name and what it must stay with."""

    path: str
    label: str
    group: str


def hold_out(videos: Sequence[Listed], source: Source) -> set[int]:
    """Indices of the share of `videos` that is held out for validation.

    Each class gives about `val_fraction` of its videos, in an order that is a hash of the seed and
    the group's name: the same on every machine, and hardly changed by adding videos. Videos of one
    group stay together, and a class with a single group stays in training.
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
        have = 0
        for group in groups if len(groups) > 1 else ():
            size = len(members[group])
            # Closer to the share with the group than without it; never the whole class.
            if size <= 2 * (wanted - have) and have + size < sum(len(members[g]) for g in groups):
                taken.update(members[group])
                have += size
        if have == 0 and len(groups) > 1:
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


def grouping(group_by: str) -> Callable[[str], str]:
    """A function from a path to the name of its source ("" where it has none).

    Raises DataError: `group_by` is no regular expression with a group.
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
