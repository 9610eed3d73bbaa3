"""The weights that a visitor of the app may choose: by a name of a list, never by a path."""

from __future__ import annotations

import os
from dataclasses import dataclass

from hiera_video.errors import UserError
from hiera_video.models.weights.download import cached_path
from hiera_video.models.weights.published import PUBLISHED, PublishedWeights, names_for
from hiera_video.models.weights.resolve import BUNDLED_CLASSIFIER

GIVEN = "given"
"""The key of weights that have no name of their own: a file, or an address."""

MEGABYTES = {
    "hiera_base_16x224": 204,
    "hiera_base_plus_16x224": 278,
    "hiera_large_16x224": 852,
    "hiera_huge_16x224": 2687,
    "mae_hiera_base_16x224": 317,
    "mae_hiera_base_plus_16x224": 393,
    "mae_hiera_large_16x224": 974,
    "mae_hiera_huge_16x224": 2843,
}
"""Model -> size of its parameters in float32, as published. Weights of these are offered before
they are there. (Counting them takes seconds of the app's start.)"""


@dataclass(frozen=True)
class Choice:
    """One line of the list."""

    key: str
    """What a visitor sends to choose it."""
    name: str
    """For people; never a path."""
    source: str
    """What `Predictor.load` takes. Only whoever starts the app can make it a path."""
    autoencoder: bool = False
    """It reconstructs clips, and names nothing."""

    @property
    def text(self) -> str:
        """Its name, what it is for, and where it is."""
        does = "reconstructs" if self.autoencoder else "labels"
        return f"{self.name} ({does}; {self._where()})"

    def _where(self) -> str:
        if self.key == GIVEN:
            return "given"
        if self.key == BUNDLED_CLASSIFIER:
            return "bundled"
        row = _row(self.key)
        if row is None or is_cached(row):
            return "downloaded"
        size = MEGABYTES.get(row.model)
        return "to download" if size is None else f"to download: {size:,} MB or more"


def choices(*, given: str | None, autoencoder: bool, downloads: bool) -> list[Choice]:
    """Return the list: what was given, what is bundled, what is in the cache, what can be fetched.

    Args:
        given: what --weights says; None: nothing.
        autoencoder: what was given is a masked autoencoder.
        downloads: whether a visitor may choose weights that this machine does not have.
    """
    listed = [_bundled()]
    usable = [row for row in PUBLISHED.values() if _is_usable(row)]
    there = [row for row in usable if is_cached(row)]
    fetched = [row for row in usable if row not in there and row.model in MEGABYTES]
    listed += map(_choice, there + (fetched if downloads else []))
    if given is None:
        return listed
    first = given_choice(given, autoencoder=autoencoder)
    return listed if first in listed else [first, *listed]


def given_choice(given: str, *, autoencoder: bool) -> Choice:
    """Return the line of the list for what --weights says."""
    if given == BUNDLED_CLASSIFIER:
        return _bundled()
    row = _row(given)
    if row is not None:
        return _choice(row)
    return Choice(GIVEN, _name_of(given), given, autoencoder)


def first_choice(listed: list[Choice]) -> Choice:
    """Return what is chosen when the page opens and --weights says nothing: labels, and nothing
    that would have to be downloaded."""
    for choice in listed:
        row = _row(choice.key)
        if row is not None and is_cached(row) and not choice.autoencoder:
            return choice
    return listed[0]


def chosen(listed: list[Choice], key: object) -> Choice:
    """Return the choice that a visitor sent; UserError for anything that is not in the list."""
    for choice in listed:
        if choice.key == key:
            return choice
    raise UserError("no such weights; choose some of the list")


def is_cached(row: PublishedWeights) -> bool:
    """Return whether the file of published weights was downloaded."""
    return cached_path(row.url).is_file()


def _row(name: str) -> PublishedWeights | None:
    """The row of the table that "model.weights", or a model with a classifier, names."""
    owner, _, weights = name.rpartition(".")
    found = PUBLISHED.get((owner, weights))
    if found is None and not os.path.exists(name) and (named := names_for(name)):
        found = PUBLISHED[name, named[0]]
    return found if found is not None and _is_usable(found) else None


def _bundled() -> Choice:
    return Choice(BUNDLED_CLASSIFIER, BUNDLED_CLASSIFIER, BUNDLED_CLASSIFIER)


def _is_usable(row: PublishedWeights) -> bool:
    """Whether it names classes or reconstructs; an encoder alone does neither."""
    return row.num_classes is not None or _reconstructs(row)


def _reconstructs(row: PublishedWeights) -> bool:
    return row.num_classes is None and row.model.startswith("mae_")


def _choice(row: PublishedWeights) -> Choice:
    return Choice(str(row), str(row), str(row), _reconstructs(row))


def _name_of(given: str) -> str:
    """The last part of a path or an address."""
    return given.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or "weights"
