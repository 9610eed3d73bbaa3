"""Small sets of actions: which videos are trained on, which are tested, and what belongs together.

A further set is one function in `ACTION_SETS`; `split_folder` is all of it for a folder in a usual
layout. No set may be divided at random where clips of one scene would be on both sides.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from hiera_video.data.manifests.layouts import read_manifest
from hiera_video.data.manifests.manifest import Manifest
from hiera_video.errors import DataError, UserError


class Video(NamedTuple):
    """One video of a set."""

    name: str
    """Its path below the folder of the set: no other video of the set has it."""
    path: str
    size: int
    """Of the file, in bytes: a changed file has other features."""


@dataclass(frozen=True)
class Part:
    """One division of a set: a classifier learns from `train` and is counted on `test`."""

    name: str
    train: Manifest
    test: Manifest


@dataclass(frozen=True)
class ActionSet:
    """A set of labelled videos and the divisions that it is tested in.

    Raises DataError where two paths of videos have one name, or a part tests what it trains on.
    """

    name: str
    folder: Path
    """All its videos are below it, and are named by their paths from there: train and val may each
    have a `walk/0.mp4`."""
    parts: tuple[Part, ...]
    groups: Mapping[str, str]
    """Name of a video -> what it shares with others (a scene, a source). Settings are chosen with
    whole groups held out. A video that is not in it is a group of its own."""

    def __post_init__(self) -> None:
        paths: dict[str, str] = {}
        for name, path in self._named_paths():
            if paths.setdefault(name, path) != path:
                raise DataError(
                    f"{self.name}: {paths[name]} and {path} have one name, {name}: list each video "
                    "once, with one path"
                )
        for part in self.parts:
            both = set(self.names_of(part.train)) & set(self.names_of(part.test))
            if both:
                raise DataError(
                    f"{self.name}, {part.name}: {len(both)} videos are trained on and tested, such "
                    f"as {min(both)}: list each video in one of the two"
                )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        names = self.parts[0].train.classes
        assert names is not None
        return names

    @property
    def chance(self) -> float:
        """Accuracy of guessing, in percent."""
        return 100 / len(self.classes)

    @property
    def videos(self) -> list[Video]:
        """All videos of all parts, each once, in the order of their names."""
        paths = dict(self._named_paths())
        return [Video(name, path, os.path.getsize(path)) for name, path in sorted(paths.items())]

    def _named_paths(self) -> Iterator[tuple[str, str]]:
        for part in self.parts:
            for manifest in (part.train, part.test):
                yield from zip(self.names_of(manifest), manifest.paths, strict=True)

    @property
    def fingerprint(self) -> str:
        """Hash of videos, labels, groups and parts: results of other lists do not count."""
        digest = hashlib.blake2b(digest_size=8)
        for video in self.videos:
            facts = f"{video.name}\0{video.size}\0{self.groups.get(video.name)}\n"
            digest.update(facts.encode("utf-8", "surrogateescape"))
        for part in self.parts:
            for manifest in (part.train, part.test):
                for i, name in enumerate(self.names_of(manifest)):
                    fact = f"{name}\0{manifest.label(i)}\n"
                    digest.update(fact.encode("utf-8", "surrogateescape"))
            digest.update(part.name.encode())
        return digest.hexdigest()

    def names_of(self, manifest: Manifest) -> list[str]:
        """The name of each video of a manifest: its path below the folder of the set."""
        above = os.path.relpath(manifest.paths.root, self.folder)
        paths = (manifest.paths.relative(i) for i in range(len(manifest)))
        return [os.path.normpath(os.path.join(above, path)) for path in paths]

    def groups_of(self, manifest: Manifest) -> list[str]:
        """The group of each video of a manifest."""
        return [self.groups.get(name) or name for name in self.names_of(manifest)]


class MissingSet(UserError):
    """The data of a set is not on this machine."""


def read_set(name: str, data: Path) -> ActionSet:
    """Read a set by its name, from the folder of all sets. MissingSet: it is not there."""
    if name not in ACTION_SETS:
        raise UserError(f"--sets {name}: no such set; choose from {', '.join(ACTION_SETS)}")
    return ACTION_SETS[name](data)


def shortened(action_set: ActionSet) -> ActionSet:
    """The set with its first part alone."""
    return replace(action_set, parts=action_set.parts[:1])


# ---- the sets -----------------------------------------------------------------------------------


def dark_actions(data: Path) -> ActionSet:
    """Six actions filmed in the dark, in both directions of its split."""
    return split_folder("dark_actions", data / "dark_actions", group_by="scene")


def scfd(data: Path) -> ActionSet:
    """Fight or no fight, in five folds that share no source."""
    folder = _existing("scfd", data / "scfd_small")
    parts = []
    for fold in range(5):
        train = read_manifest(folder, "train", fold=fold)
        test = read_manifest(folder, "val", fold=fold, classes=train.classes)
        parts.append(Part(f"fold {fold}", train, test))
    return ActionSet("scfd", folder, tuple(parts), read_groups(folder, "source"))


def generated(data: Path) -> ActionSet:
    """Ten actions of generated figures, made in GENERATED_FOLDER unless they are there.

    Settings of recipes are chosen on this set, never on the test part of a real one.
    """
    from hiera_video.data.synthetic.body_motion.actions import make_actions

    whole = split_folder("generated", make_actions(GENERATED_FOLDER), group_by="")
    return replace(whole, parts=whole.parts[:1])


def split_folder(name: str, folder: Path, *, group_by: str) -> ActionSet:
    """A folder with a split train and val, tested on val and, the other way round, on train.

    group_by: column of its labels.csv; "" for videos that are drawn independently of each other.
    """
    folder = _existing(name, folder)
    train = read_manifest(folder, "train")
    val = read_manifest(folder, "val", classes=train.classes)
    parts = (Part("train -> val", train, val), Part("val -> train", val, train))
    return ActionSet(name, folder, parts, read_groups(folder, group_by) if group_by else {})


GENERATED_FOLDER = "data/generated_actions"
"""Below the current folder."""

ACTION_SETS: dict[str, Callable[[Path], ActionSet]] = {
    "dark_actions": dark_actions,
    "scfd": scfd,
    "generated": generated,
}
"""Name for --sets -> function that reads the set from the folder of all sets."""


def _existing(name: str, folder: Path) -> Path:
    if not folder.is_dir():
        raise MissingSet(f"{name} is left out: there is no folder {folder} (--data names another)")
    return folder


def read_groups(folder: Path, column: str) -> dict[str, str]:
    """Name of a video -> entry of a column of labels.csv, for the videos that have one.

    Raises DataError where there is no such file or column.
    """
    file = folder / "labels.csv"
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None
    if not rows or not {"path", column} <= rows[0].keys():
        raise DataError(f"{file} has no columns 'path' and {column!r}")
    return {os.path.normpath(row["path"]): row[column] for row in rows if row[column]}
