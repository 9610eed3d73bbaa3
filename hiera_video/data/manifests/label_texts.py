"""Labels as lists write them, ids or names, one or several: texts -> label numbers.

Whether the labels are ids or names is decided for a list as a whole: all whole numbers are ids,
anything else are names. A mixture of both is an error, unless the class names are known and every
label is one of them.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hiera_video.data.manifests.listing import quoted
from hiera_video.data.manifests.manifest import UNLABELLED
from hiera_video.data.manifests.source import Source
from hiera_video.data.manifests.tables import SEVERAL_NUMBERS, WHOLE_NUMBER, is_utf8, quoted_text
from hiera_video.errors import DataError, LabelRangeError

MOST_CLASSES = 1_000_000
"""A label at or above this is a mistake (an identifier, a frame count), not a class."""

_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


class LabelTexts:
    """The texts of a column of labels, numbered; each different one is kept once.

    `resolve_labels` then finds the labels that each text stands for.
    """

    def __init__(self) -> None:
        self.codes: dict[str, int] = {"": 0}
        self.lines = array("q", [0])
        """The line in which each text is first seen."""

    def code(self, text: str, line: int) -> int:
        """The number of a text; a new one where it is seen first."""
        code = self.codes.get(text)
        if code is None:
            code = self.codes[text] = len(self.codes)
            self.lines.append(line)
        return code


@dataclass(frozen=True)
class Labels:
    """The meaning of the texts of a list.

    Attributes:
        values: the labels that each text stands for; () for none.
        wrong: number of a text -> why its rows cannot be read, without file and line.
        classes: the names in label order, or None where the list has ids and nothing names them.
        are_ids: whether the texts are numbers of classes.
        ids: the lowest and the highest id, where the texts are ids.
    """

    values: list[tuple[int, ...]]
    wrong: dict[int, DataError]
    classes: tuple[str, ...] | None
    are_ids: bool
    ids: tuple[int, int] | None = None


def resolve_labels(
    texts: LabelTexts,
    counts: np.ndarray,
    source: Source,
    *,
    file: object,
    number_of: Mapping[str, str] | None = None,
) -> Labels:
    """Find the labels that the texts of a list stand for.

    Args:
        texts: as collected.
        counts: rows of each text, int64 [texts].
        source: `classes` are the wanted names, in order; `id_names` those of the list's own ids.
        file: for messages.
        number_of: name -> its number, from a column `label_id`, which gives the order of the names.

    Raises DataError: ids and names mixed, decimal numbers; only where every row is wrong by it.
    """
    wrong = {
        i: DataError(f"label {quoted_text(text)} is not UTF-8 (Latin-1?); save the file as UTF-8")
        for i, text in enumerate(texts.codes)
        if not is_utf8(text)
    }
    parts = _split(list(texts.codes), source)
    known = source.classes or source.id_names
    named = bool(number_of) or (known is not None and _atoms(parts, wrong) <= set(known))
    if not named:
        wrong |= _mixed_kinds(texts, parts, counts, wrong)
    atoms = _atoms(parts, wrong)
    decimals = bool(atoms) and all(_DECIMAL.fullmatch(atom) for atom in atoms)
    if decimals and not named and not source.ignore_labels:
        raise DataError(
            f"{file}: the labels are decimal numbers ({quoted(sorted(atoms), 3)}); expected whole "
            "numbers from 0, or names"
        )
    are_ids = not named and bool(atoms) and all(WHOLE_NUMBER.fullmatch(atom) for atom in atoms)
    read = _read_ids if are_ids else _read_names
    labels = read(parts, wrong, source, number_of)
    return replace(labels, wrong={}) if source.ignore_labels else labels


def _atoms(parts: Sequence[Sequence[str]], wrong: Mapping[int, DataError]) -> set[str]:
    """The different labels of the texts that are right so far."""
    return {atom for i, atoms in enumerate(parts) if i not in wrong for atom in atoms}


def _split(texts: Sequence[str], source: Source) -> list[tuple[str, ...]]:
    """The labels in each text. Several names are separated by one sign in the whole list."""
    if not source.multi_label:
        return [(text,) if text else () for text in texts]
    known = set(source.classes or source.id_names or ())
    names = [t for t in texts if t and t not in known and not SEVERAL_NUMBERS.fullmatch(t)]
    sign = next((sign for sign in ";|," if any(sign in name for name in names)), None)
    if sign is None and names and all(set(name.split()) <= known for name in names):
        sign = " "

    def split(text: str) -> Iterable[str]:
        if text in known:
            return [text]
        if SEVERAL_NUMBERS.fullmatch(text):
            return re.split(r"[,; \t]+", text)
        return text.split(sign) if sign else [text]

    return [tuple(atom.strip() for atom in split(text) if atom.strip()) for text in texts]


def _mixed_kinds(
    texts: LabelTexts,
    parts: Sequence[Sequence[str]],
    counts: np.ndarray,
    wrong: Mapping[int, DataError],
) -> dict[int, DataError]:
    """Errors for numbers among names, or names among numbers; whichever are fewer."""
    kinds = {
        i: {bool(WHOLE_NUMBER.fullmatch(atom)) for atom in atoms}
        for i, atoms in enumerate(parts)
        if atoms and i not in wrong
    }
    if len(set().union(*kinds.values())) < 2:
        return {}
    written = list(texts.codes)
    numbers = [i for i, kind in kinds.items() if kind == {True}]
    names = [i for i, kind in kinds.items() if kind != {True}]
    more_numbers = counts[numbers].sum() - counts[names].sum()
    # As many of each: the first line decides.
    first = min(kinds, key=lambda i: texts.lines[i])
    usual, odd = (names, numbers)
    if numbers and (more_numbers > 0 or (more_numbers == 0 and first in numbers)):
        usual, odd = numbers, names
    if not usual or not odd:  # one text holds both
        usual, odd = [], list(kinds)
    example = min(usual, key=lambda i: texts.lines[i]) if usual else None
    errors = {}
    for i in odd:
        if example is None:
            other = "holds numbers and names"
        else:
            there = f"that of line {texts.lines[example]}, {written[example]!r}"
            other = f"is {'not ' * (usual is numbers)}a whole number, and {there}, is"
            other += " not" * (usual is names)
        errors[i] = DataError(
            f"label {written[i]!r} {other}; expected whole numbers from 0 in every line, or names "
            "in every line"
        )
    return errors


def _read_names(
    parts: Sequence[Sequence[str]],
    wrong: dict[int, DataError],
    source: Source,
    number_of: Mapping[str, str] | None,
) -> Labels:
    classes = source.classes or source.id_names
    if classes is None:
        names = _atoms(parts, wrong)
        classes = tuple(sorted(names, key=lambda n: int(number_of[n]) if number_of else n))
    place = {name: i for i, name in enumerate(classes)}
    values: list[tuple[int, ...]] = []
    for i, atoms in enumerate(parts):
        unknown = [atom for atom in atoms if atom not in place]
        values.append(() if unknown else tuple(sorted({place[atom] for atom in atoms})))
        if unknown and i not in wrong:
            wrong[i] = DataError(
                f"class {unknown[0]!r} is not among the {len(classes)} known classes "
                f"({quoted(classes)})"
            )
    return Labels(values, wrong, classes or None, are_ids=False)


def _read_ids(
    parts: Sequence[Sequence[str]],
    wrong: dict[int, DataError],
    source: Source,
    number_of: Mapping[str, str] | None,
) -> Labels:
    """Ids as they are; where the list's own names are other than those wanted, by their names."""
    own = source.id_names or source.classes
    limit = len(own) if own else source.num_classes or MOST_CLASSES
    numbers = [[int(a) for a in atoms] if i not in wrong else [] for i, atoms in enumerate(parts)]
    # -1 is how some lists write that there is no label
    none = [[] if ids == [UNLABELLED] and not source.need_labels else ids for ids in numbers]
    every = [number for ids in none for number in ids]
    lowest, highest = min(every, default=0), max(every, default=0)
    values: list[tuple[int, ...]] = []
    table = _own_to_wanted(source)
    for i, ids in enumerate(none):
        outside = [number for number in ids if not 0 <= number < limit]
        values.append(() if outside else tuple(sorted(set(ids))))
        if outside:
            wrong[i] = _out_of_range(outside[0], limit, lowest, highest)
        elif table is not None:
            missing = [number for number in ids if number not in table]
            values[i] = () if missing else tuple(sorted(table[number] for number in values[i]))
            if missing:
                wrong[i] = _not_wanted(missing[0], source)
    return Labels(values, wrong, source.classes or own, are_ids=True, ids=(lowest, highest))


def _own_to_wanted(source: Source) -> dict[int, int] | None:
    """Own id -> wanted id of the same name; None where there is nothing to translate."""
    if not source.id_names or not source.classes or source.id_names == source.classes:
        return None
    place = {name: i for i, name in enumerate(source.classes)}
    return {i: place[name] for i, name in enumerate(source.id_names) if name in place}


def _not_wanted(label: int, source: Source) -> DataError:
    own, wanted = source.id_names or (), source.classes or ()
    return DataError(
        f"label {label} is class {own[label]!r}, which is not among the {len(wanted)} known "
        f"classes ({quoted(wanted)})"
    )


def _out_of_range(label: int, limit: int, lowest: int, highest: int) -> LabelRangeError:
    allowed = f"allowed are 0 to {limit - 1}" + (
        f" for {limit} classes" if limit < MOST_CLASSES else ""
    )
    hint = ""
    if lowest == 1 and label == highest == limit:
        hint = f". The ids of this list run from 1 to {limit}: number them from 0"
    return LabelRangeError(f"label {label} is out of range; {allowed}{hint}")
