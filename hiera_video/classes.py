"""Match two lists of class names: which output of a head belongs to which class.

    match = match_classes(stored=["run", "jump"], wanted=["jump", "swim"])
    match.rows     # (1, None): "jump" is output 1 of the stored head, "swim" is not one of them

Classes are compared by name: an equal number of classes, or an equal index, proves nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hiera_video.errors import first_few


@dataclass(frozen=True)
class ClassMatch:
    """Positions of the wanted classes among the stored ones; made by `match_classes`."""

    stored: tuple[str, ...]
    wanted: tuple[str, ...]
    rows: tuple[int | None, ...]
    """For each wanted class the index of its name in `stored`, or None."""

    @property
    def known(self) -> list[str]:
        """Wanted classes that are among the stored ones."""
        return [name for name, row in zip(self.wanted, self.rows, strict=True) if row is not None]

    @property
    def new(self) -> list[str]:
        """Wanted classes that are not among the stored ones."""
        return [name for name, row in zip(self.wanted, self.rows, strict=True) if row is None]

    @property
    def left_out(self) -> list[str]:
        """Stored classes that are not wanted."""
        taken = set(self.rows)
        return [name for row, name in enumerate(self.stored) if row not in taken]

    @property
    def same_names(self) -> bool:
        """Whether both lists hold the same classes, in any order."""
        return len(self.stored) == len(self.wanted) and None not in self.rows

    @property
    def same_order(self) -> bool:
        """Whether both lists hold the same classes in the same order."""
        return self.same_names and self.rows == tuple(range(len(self.stored)))

    @property
    def respelled(self) -> list[tuple[str, str]]:
        """Pairs (wanted, stored) of classes that are spelled in two ways."""
        pairs = zip(self.wanted, self.rows, strict=True)
        return [(n, self.stored[r]) for n, r in pairs if r is not None and n != self.stored[r]]

    def spelling_note(self) -> str:
        """A sentence about classes that are spelled in two ways; empty if there are none."""
        pairs = [f"{wanted!r} is {stored!r}" for wanted, stored in self.respelled]
        if not pairs:
            return ""
        return f"class names compared regardless of case, '_' and '-': {first_few(pairs, 3)}"


def match_classes(stored: Sequence[str], wanted: Sequence[str]) -> ClassMatch:
    """Find each wanted class among the stored ones, by its name.

    Names are compared exactly. The remaining ones are compared regardless of case, with `_`, `-`
    and spaces taken as equal (a folder `riding_a_bike` is the class `riding a bike`), and match
    only if there is exactly one such name in each list. A name that appears twice in a list
    matches nothing, unless both lists are equal.
    """
    stored, wanted = tuple(stored), tuple(wanted)
    if stored == wanted:
        return ClassMatch(stored, wanted, tuple(range(len(stored))))
    exact = _unique_indices(stored, wanted)
    respelled = _unique_indices(list(map(_normalized, stored)), list(map(_normalized, wanted)))
    taken = set(exact) - {None}
    rows = [
        other if row is None and other not in taken else row
        for row, other in zip(exact, respelled, strict=True)
    ]
    return ClassMatch(stored, wanted, tuple(rows))


def _unique_indices(stored: Sequence[str], wanted: Sequence[str]) -> list[int | None]:
    """Index in `stored` of each wanted name that appears exactly once in both lists."""
    in_stored, in_wanted = Counter(stored), Counter(wanted)
    indices = {name: index for index, name in enumerate(stored) if in_stored[name] == 1}
    return [indices.get(name) if in_wanted[name] == 1 else None for name in wanted]


def _normalized(name: str) -> str:
    """Remove differences of spelling from a name.

    Unicode has two spellings of é, and macOS uses the less common one for folders. A minus at the
    start stays: -1 is not 1.
    """
    composed = unicodedata.normalize("NFC", name).casefold()
    return re.sub(r"(?!^-)[\s_-]+", " ", composed).strip()


def in_order_note(owner: str, count: int, *, stored: Sequence[str], wanted: Sequence[str]) -> str:
    """A note for the case that one side or both have no names, and outputs are taken in order.

    Args:
        owner: what has the outputs, such as the file of a checkpoint.
        count: number of outputs.
        stored: names of the outputs; empty if there are none.
        wanted: names of the data's classes; empty if there are none.
    """
    if stored:
        meaning = first_few([f"{label} = {name}" for label, name in enumerate(stored)])
        return (
            f"the data has no class names: its labels are taken as the outputs of {owner}, "
            f"{meaning}; if that is wrong, name the classes in label order with DATA.CLASS_NAMES"
        )
    if wanted:
        return (
            f"{owner} has no class names: its {count} outputs are taken in order for "
            f"{first_few(list(wanted))}; if that is wrong, name the classes in the order of its "
            "outputs with DATA.CLASS_NAMES"
        )
    return (
        f"neither {owner} nor the data has class names: the data's labels are taken as its "
        f"{count} outputs in order"
    )
