"""Read a folder of videos, or the official lists of a public set, and split it for training.

    prepared = gather("folder", "videos", SplitOptions(group_by="source"))
    leave_out_missing(prepared)
    write(prepared, "manifests")        # of manifest_files.py: train.csv, val.csv, ...

The readers of `data/manifests` read the input, so that the result is what training on the folder
itself would use. Added here: missing files are left out, and the videos of one source stay in one
split, which is checked.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from hiera_video.data.manifests.class_folders import predefined_split, source_lookup
from hiera_video.data.manifests.layouts import Manifest, Source, read_manifest
from hiera_video.data.manifests.listing import quoted
from hiera_video.data.manifests.splits import VideoEntry, hold_out
from hiera_video.errors import DataError, RunFailed, UserError

FOLDER_LAYOUTS = ("folder", "class_folders", "group_folders")
LAYOUTS = (*FOLDER_LAYOUTS, "kinetics", "ssv2", "ucf101", "hmdb51")

SOURCE_PATTERNS = {
    "kinetics": r"([\w-]{11})_\d{6}_\d{6}(?:\.\w+)?$",  # clips of one YouTube video
    "ucf101": r"(v_\w+_g\d+)_c\d+",  # g: clips of one group share actor and place
}
"""Layout -> pattern of the source in a file's name, if `group_by` is not given."""

DEFAULT_VAL_FRACTION = 0.2


class Video(NamedTuple):
    """One line of a manifest."""

    path: str
    """Below the root."""
    label: int
    source: str
    """The recording that the clip was cut from; empty if unknown."""


class LeftOut(NamedTuple):
    """A video that is in no manifest, and why."""

    path: str
    split: str
    label: int
    reason: str


@dataclass(frozen=True)
class SplitOptions:
    """How a data set is split. Raises UserError for fractions that are out of range."""

    videos: str = ""
    """Folder of the videos, if it is not that of the lists."""
    group_by: str = ""
    """Column of labels.csv, or a regular expression whose first group in the path names the source
    of a video. If given, a split of the data that tears a source apart is an error; else a note."""
    fold: int | None = None
    """Which fold of labels.csv is held out; which official split (UCF101, HMDB51: 1 to 3)."""
    val_fraction: float | None = None
    """Fraction held out for validation; None is 0.2 for data without a split. If given and the data
    has a split, validation is taken from its training list and its held-out list is for testing."""
    test_fraction: float = 0.0
    """Fraction held out for testing, for data without a split."""
    seed: int = 0
    """Seed of the held-out fractions."""

    def __post_init__(self) -> None:
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise UserError(f"--val-fraction {self.val_fraction:g} must be between 0 and 1")
        if not 0 <= self.test_fraction < 1:
            raise UserError(
                f"--test-fraction {self.test_fraction:g} must be at least 0 and below 1"
            )
        if self.val_fraction_or_default + self.test_fraction >= 1:
            raise UserError("--val-fraction and --test-fraction leave nothing to train on")

    @property
    def val_fraction_or_default(self) -> float:
        return DEFAULT_VAL_FRACTION if self.val_fraction is None else self.val_fraction


@dataclass
class Prepared:
    """The splits of a data set, before they are written."""

    layout: str
    root: str
    """Absolute path of the folder that the paths start from."""
    splits: dict[str, list[Video]]
    """train, val, and test if it is another list than val's."""
    classes: tuple[str, ...] | None
    """Names in label order, if the data has them."""
    notes: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    knows_sources: bool = False
    """Whether a column or a pattern named the sources."""
    classes_line: str = ""
    """One line: the classes and where they come from."""

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))


# ---- reading ------------------------------------------------------------------------------------


def gather(layout: str, path: str | Path, options: SplitOptions | None = None) -> Prepared:
    """Read a data set and split it.

    A split of the data's own is kept. Otherwise fractions are held out, whole sources at a time.

    Args:
        layout: one of LAYOUTS.
        path: the folder of videos, or of the official lists.

    Raises DataError: no such path, a line that cannot be read, a pattern that finds no source;
    UserError: options that contradict the data.
    """
    options = options or SplitOptions()
    source = Source(
        path=Path(path).expanduser(),
        path_prefix=os.path.expanduser(options.videos),
        fold=options.fold,
        group_by=options.group_by or SOURCE_PATTERNS.get(layout, ""),
        val_fraction=options.val_fraction_or_default,
        seed=options.seed,
    )
    lists = _read_lists(layout, source)
    prepared = _prepared(layout, source, lists)
    prepared.knows_sources = _check_source_names(prepared, source, asked=bool(options.group_by))
    own = "" if lists["train"].undivided else _own_split(layout, source)
    _check_options(layout, source, options, own)
    if not own:
        _draw_fractions(prepared, source, options.test_fraction)
    elif options.val_fraction is not None:
        _take_validation_from_training(prepared, source)
    else:
        notes = [note for manifest in lists.values() for note in manifest.notes]
        prepared.notes += [note for note in dict.fromkeys(notes) if note not in prepared.notes]
    _check_torn_sources(prepared, asked=bool(options.group_by))
    return prepared


def _read_lists(layout: str, source: Source) -> dict[str, Manifest]:
    """Return split -> manifest, as the reader of the layout finds them."""
    settings: dict[str, Any] = {
        "path_prefix": source.path_prefix,
        "fold": source.fold,
        "group_by": source.group_by,
        "val_fraction": source.val_fraction,
        "seed": source.seed,
        "hold_out": True,
    }

    def read(split: str, classes: tuple[str, ...] | None = None) -> Manifest:
        return read_manifest(source.path, split, format=layout, classes=classes, **settings)

    train = read("train")
    try:
        val = read("val", train.classes)
    except DataError as error:
        try:  # a list named test stands in for it
            val = read("test", train.classes)
        except DataError:
            raise error from None
    lists = {"train": train, "val": val}
    if layout in (
        *FOLDER_LAYOUTS,
        "kinetics",
    ):  # the others have no test list, or one without labels
        try:
            test = read("test", train.classes)
        except DataError as error:
            lists["val"] = replace(val, notes=(*val.notes, f"no test.csv: {error}"))
        else:
            if not _same(test, val):
                lists["test"] = test
    return lists


def _same(one: Manifest, other: Manifest) -> bool:
    return (
        one.paths.root == other.paths.root
        and one.labels.tolist() == other.labels.tolist()
        and all(one.paths.relative(i) == other.paths.relative(i) for i in range(len(one)))
    )


def _prepared(layout: str, source: Source, lists: Mapping[str, Manifest]) -> Prepared:
    """Return the lists with their paths from one common root."""
    train, val = lists["train"], lists["val"]
    root = os.path.commonpath([os.path.abspath(m.paths.root) for m in lists.values()])
    namer = source_lookup(source, layout)
    return Prepared(
        layout,
        root,
        {split: _videos(manifest, root, namer) for split, manifest in lists.items()},
        train.classes,
        # A note of one reader alone is about its split, and the splits may still change.
        notes=[note for note in train.notes if note in val.notes],
        classes_line=train.describe_classes(),
    )


def _videos(manifest: Manifest, root: str, namer: Callable[[str], str] | None) -> list[Video]:
    """Return the videos of a list, with their paths from `root`."""
    below = os.path.relpath(os.path.abspath(manifest.paths.root), root)
    videos = []
    for i in range(len(manifest)):
        path, label = manifest.paths.relative(i), manifest.label(i)
        if not isinstance(label, int):
            raise TypeError(f"{path}: several labels, and the lists were read for one")
        source = namer(path) if namer else ""
        videos.append(Video(path if below == "." else os.path.join(below, path), label, source))
    return videos


def _check_source_names(prepared: Prepared, source: Source, *, asked: bool) -> bool:
    """Note how many videos have a known source. Returns whether any has."""
    unnamed = [video for videos in prepared.splits.values() for video in videos if not video.source]
    if len(unnamed) < len(prepared):
        if unnamed:
            prepared.notes.append(
                f"{len(unnamed)} of {len(prepared)} videos name no source "
                f"({quoted([video.path for video in unnamed], 2)}): each counts as its own source"
            )
        return True
    if asked:
        raise DataError(
            f"--group-by {source.group_by!r} finds no source for any of the {len(prepared)} "
            f"videos ({quoted([video.path for video in unnamed], 3)}); name a column of labels.csv "
            r"or a regular expression such as '(.+)_\d+\.mp4' whose group is the source"
        )
    if prepared.layout in FOLDER_LAYOUTS:
        prepared.notes.append(
            "no sources known: if several videos are cut from one recording, name the recording "
            "with --group-by, or the accuracy will be too high"
        )
    return False


def _own_split(layout: str, source: Source) -> str:
    """Describe the split that the data has; "" if it has none."""
    return predefined_split(source, layout) if layout in FOLDER_LAYOUTS else layout


def _check_options(layout: str, source: Source, options: SplitOptions, own: str) -> None:
    """Raise UserError for options that the data cannot fulfil."""
    in_folder = layout in FOLDER_LAYOUTS
    if options.fold is not None and in_folder and not own.startswith("column 'fold'"):
        raise UserError(
            f"--fold {options.fold}: {source.path} has no labels.csv with a column 'fold'"
        )
    if own and options.test_fraction:
        raise UserError(f"--test-fraction is for data without a split; this has one ({own})")


# ---- splitting ----------------------------------------------------------------------------------


def _draw_fractions(prepared: Prepared, source: Source, test_fraction: float) -> None:
    """Split all videos: validation first, as the readers do, then test from the rest."""
    videos = sorted(video for videos in prepared.splits.values() for video in videos)
    train, val = _held_out(videos, prepared.classes, source)
    prepared.splits = {"train": train, "val": val}
    if test_fraction:
        rest = replace(source, val_fraction=test_fraction / (1 - source.val_fraction))
        train, test = _held_out(train, prepared.classes, rest)
        prepared.splits = {"train": train, "val": val, "test": test}
    prepared.notes.append(
        f"no split of its own: fractions held out by a hash of each source (seed {source.seed})"
    )


def _take_validation_from_training(prepared: Prepared, source: Source) -> None:
    """Hold out validation videos of the training list; the held-out list is for testing."""
    if "test" in prepared.splits:
        raise UserError(
            "--val-fraction: this data has train, val and test; drop the option to keep them"
        )
    train, val = _held_out(prepared.splits["train"], prepared.classes, source)
    if not val:
        raise UserError(f"--val-fraction {source.val_fraction:g} holds out no video")
    prepared.splits = {"train": train, "val": val, "test": prepared.splits["val"]}
    prepared.notes.append(
        f"val.csv is taken from the training list (seed {source.seed}); "
        "the data's own held-out list is test.csv"
    )


def _held_out(
    videos: Sequence[Video], classes: Sequence[str] | None, source: Source
) -> tuple[list[Video], list[Video]]:
    """Return (the rest, the fraction held out), whole sources at a time."""
    listed = [
        VideoEntry(
            video.path,
            classes[video.label] if classes else str(video.label),
            video.source or video.path,
        )
        for video in videos
    ]
    taken = hold_out(listed, source)
    rest = [video for i, video in enumerate(videos) if i not in taken]
    return rest, [video for i, video in enumerate(videos) if i in taken]


def torn_sources(splits: Mapping[str, Sequence[Video]]) -> dict[str, list[str]]:
    """Return source (or video, if its source is unknown) -> its splits, if it is in several."""
    splits_of: dict[str, list[str]] = defaultdict(list)
    for split, videos in splits.items():
        for key in dict.fromkeys(video.source or video.path for video in videos):
            splits_of[key].append(split)
    return {key: names for key, names in splits_of.items() if len(names) > 1}


def _check_torn_sources(prepared: Prepared, *, asked: bool) -> None:
    """Note the sources that are in several splits, or raise UserError if --group-by was given."""
    torn = torn_sources(prepared.splits)
    if not torn:
        return
    first = next(iter(torn))
    text = (
        f"{len(torn)} sources are in more than one split: {quoted(list(torn), 3)} "
        f"({first!r} in {' and '.join(torn[first])})"
    )
    if asked:
        raise UserError(
            f"{text}. This split is in the data. To split by source instead, remove it (the column "
            "split or fold of labels.csv, the folders train and val); to keep it, drop --group-by"
        )
    prepared.notes.append(f"{text}; this split is in the data")


# ---- videos that cannot be used -----------------------------------------------------------------


def leave_out(prepared: Prepared, reason: Callable[[str], str | None]) -> None:
    """Move the videos for which `reason(path)` is not None to `left_out`.

    Raises RunFailed if a split has no video left.
    """
    for split, videos in prepared.splits.items():
        kept = []
        for video in videos:
            text = reason(video.path)
            if text is None:
                kept.append(video)
            else:
                prepared.left_out.append(LeftOut(video.path, split, video.label, text))
        if not kept:
            last = prepared.left_out[-1]
            raise RunFailed(
                f"none of the {len(videos)} videos for {split} can be used; the last of them, "
                f"{os.path.join(prepared.root, last.path)}: {last.reason}"
            )
        prepared.splits[split] = kept


def leave_out_missing(prepared: Prepared) -> None:
    """Leave out missing files and names that no list can hold. Raises RunFailed as `leave_out`."""

    def reason(path: str) -> str | None:
        if "\n" in path or "\r" in path:
            return "its name has a line break, which a list cannot hold"
        return None if os.path.exists(os.path.join(prepared.root, path)) else "no such file"

    leave_out(prepared, reason)


def use_copies(
    prepared: Prepared, folder: str | Path, made: Mapping[str, str], failed: Mapping[str, str]
) -> None:
    """Replace the videos by their copies below `folder`; leave out those without a copy.

    Args:
        made: path -> path of its copy.
        failed: path -> why it has no copy.
    """
    leave_out(prepared, failed.get)
    prepared.root = os.path.abspath(folder)
    for split, videos in prepared.splits.items():
        prepared.splits[split] = [video._replace(path=made[video.path]) for video in videos]
