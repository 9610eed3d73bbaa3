"""Manifests from what people have: a folder of videos, or the official lists of a public set.

    prepared = gather("folder", "videos", group_by="source")
    leave_out_missing(prepared)
    write(prepared, "manifests")        # train.csv, val.csv, classnames.json, ...

The lists are read by the readers of `manifests.py`, so that what is written here is what training
on the folder itself would use; what this adds is a look at every file, splits that keep the videos
of one source together, and a check that they do. What is written is read back before it takes its
place. The same input gives the same bytes, on any machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from hiera_video.data.manifests.class_folders import predefined_split, source_lookup
from hiera_video.data.manifests.layouts import SPLITS, Manifest, Source, read_manifest
from hiera_video.data.manifests.listing import quoted
from hiera_video.data.manifests.splits import VideoEntry, hold_out
from hiera_video.data.manifests.video_table import quoted_path
from hiera_video.errors import DataError, RunFailed, UserError
from hiera_video.files import atomic_write, explained, write_text
from hiera_video.spreadsheet import path_cell, row_writer

FOLDER_LAYOUTS = ("folder", "class_folders", "group_folders")
LAYOUTS = (*FOLDER_LAYOUTS, "kinetics", "ssv2", "ucf101", "hmdb51")

SOURCE_PATTERNS = {
    "kinetics": r"([\w-]{11})_\d{6}_\d{6}(?:\.\w+)?$",  # clips of one YouTube video
    "ucf101": r"(v_\w+_g\d+)_c\d+",  # g: clips of one group share actor and place
}
"""What names the source of a video in the files of a public set, where nothing else was asked."""

VAL_FRACTION = 0.2


class Video(NamedTuple):
    """One line of a manifest to be."""

    path: str
    """Below the root."""
    label: int
    source: str
    """What it was cut from; empty where unknown."""


class LeftOut(NamedTuple):
    """A video that is in no manifest, and why."""

    path: str
    split: str
    label: int
    reason: str


@dataclass
class Prepared:
    """The splits of a data set, before they are written."""

    layout: str
    root: str
    """Absolute path of the folder that the paths start from."""
    splits: dict[str, list[Video]]
    """train, val, and test where it is another list than val's."""
    classes: tuple[str, ...] | None
    """Names in label order, where the data has them."""
    notes: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    knows_sources: bool = False
    """Whether a column or a pattern told the sources."""
    classes_line: str = ""
    """What was taken for the classes, and from where."""

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))


# ---- reading ------------------------------------------------------------------------------------


def gather(
    layout: str,
    path: str | Path,
    *,
    videos: str = "",
    group_by: str = "",
    fold: int | None = None,
    val_fraction: float | None = None,
    test_fraction: float = 0.0,
    seed: int = 0,
) -> Prepared:
    """Read a data set and split it.

    Splits that the data brings along are kept; where there are none, shares are held out, whole
    sources at a time.

    Args:
        layout: one of LAYOUTS.
        path: the folder of videos, or of the official lists.
        videos: folder of the videos, where it is not the lists'.
        group_by: column of labels.csv, or a regular expression whose first group in the path names
            the source of a video. If given, a split that the data brings along and that tears a
            source apart is an error; else it is a note.
        fold: which fold of labels.csv is held out; which official split (UCF101, HMDB51: 1 to 3).
        val_fraction: share held out for validation, 0.2 where the data has no split. Given, and
            the data has one: validation is taken out of its training list, and its own held-out
            list becomes the test list.
        test_fraction: share held out for testing, where the data has no split.
        seed: of the shares.

    Raises DataError: nothing there, an impossible line, a pattern that finds no source; UserError:
    settings that contradict the data.
    """
    _check_fractions(val_fraction, test_fraction)
    source = Source(
        path=Path(path).expanduser(),
        path_prefix=os.path.expanduser(videos),
        fold=fold,
        group_by=group_by or SOURCE_PATTERNS.get(layout, ""),
        val_fraction=VAL_FRACTION if val_fraction is None else val_fraction,
        seed=seed,
    )
    lists = _read_lists(layout, source)
    # What the readers say of one split alone is of no use where the splits are made here.
    notes = [n for n in lists["train"].notes if n in lists["val"].notes]
    root = os.path.commonpath([os.path.abspath(m.paths.root) for m in lists.values()])
    namer = source_lookup(source, layout)
    splits = {split: _videos(manifest, root, namer) for split, manifest in lists.items()}
    prepared = Prepared(layout, root, splits, lists["train"].classes, notes)
    prepared.classes_line = lists["train"].describe_classes()
    prepared.knows_sources = _name_sources(prepared, source, asked=bool(group_by))
    folders = layout in FOLDER_LAYOUTS
    own = predefined_split(source, layout) if folders else layout
    if lists["train"].undivided:
        own = ""
    if fold is not None and folders and not own.startswith("column 'fold'"):
        raise UserError(f"--fold {fold}: {source.path} has no labels.csv with a column 'fold'")
    if own and test_fraction:
        raise UserError(f"--test-fraction is for data without a split; this has one ({own})")
    if not own:
        _draw_shares(prepared, source, test_fraction)
    elif val_fraction is not None:
        _take_validation_out_of_training(prepared, source)
    else:
        said = [note for manifest in lists.values() for note in manifest.notes]
        notes += [note for note in dict.fromkeys(said) if note not in notes]
    _check_sources(prepared, asked=bool(group_by))
    return prepared


def _check_fractions(val_fraction: float | None, test_fraction: float) -> None:
    if val_fraction is not None and not 0 < val_fraction < 1:
        raise UserError(f"--val-fraction {val_fraction:g} must be between 0 and 1")
    if not 0 <= test_fraction < 1:
        raise UserError(f"--test-fraction {test_fraction:g} must be at least 0 and below 1")
    if (VAL_FRACTION if val_fraction is None else val_fraction) + test_fraction >= 1:
        raise UserError("--val-fraction and --test-fraction leave nothing to train on")


def _read_lists(layout: str, source: Source) -> dict[str, Manifest]:
    """The lists of the splits as their reader finds them."""
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
        try:  # a list that is called test stands in for it
            val = read("test", train.classes)
        except DataError:
            raise error from None
    lists = {"train": train, "val": val}
    if layout in (*FOLDER_LAYOUTS, "kinetics"):  # the others have no test list, or none with labels
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


def _videos(manifest: Manifest, root: str, namer: Callable[[str], str] | None) -> list[Video]:
    """The videos of a list, with their paths from `root`."""
    below = os.path.relpath(os.path.abspath(manifest.paths.root), root)
    found = []
    for i in range(len(manifest)):
        path = manifest.paths.relative(i)
        source = namer(path) if namer else ""
        found.append(
            Video(path if below == "." else os.path.join(below, path), manifest.label(i), source)
        )
    return found


def _name_sources(prepared: Prepared, source: Source, *, asked: bool) -> bool:
    """Say how many videos are of a known source; whether any is."""
    unnamed = [video for videos in prepared.splits.values() for video in videos if not video.source]
    if len(unnamed) < len(prepared):
        if unnamed:
            prepared.notes.append(
                f"{len(unnamed)} of {len(prepared)} videos name no source "
                f"({quoted([video.path for video in unnamed], 2)}): each counts as one of its own"
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
            "no sources known: where several videos are cut from one recording, tell which with "
            "--group-by, or accuracy will look better than it is"
        )
    return False


# ---- splitting ----------------------------------------------------------------------------------


def _draw_shares(prepared: Prepared, source: Source, test_fraction: float) -> None:
    """Split all videos anew: validation first, as the reader does, then test from the rest."""
    videos = sorted(video for videos in prepared.splits.values() for video in videos)
    train, val = _held_out(videos, prepared.classes, source)
    prepared.splits = {"train": train, "val": val}
    if test_fraction:
        rest = replace(source, val_fraction=test_fraction / (1 - source.val_fraction))
        train, test = _held_out(train, prepared.classes, rest)
        prepared.splits = {"train": train, "val": val, "test": test}
    prepared.notes.append(
        f"no split of its own: shares held out by a hash of each source (seed {source.seed})"
    )


def _take_validation_out_of_training(prepared: Prepared, source: Source) -> None:
    if "test" in prepared.splits:
        raise UserError(
            "--val-fraction: this data brings train, val and test along; leave it away to keep them"
        )
    train, val = _held_out(prepared.splits["train"], prepared.classes, source)
    if not val:
        raise UserError(f"--val-fraction {source.val_fraction:g} holds no video out of training")
    prepared.splits = {"train": train, "val": val, "test": prepared.splits["val"]}
    prepared.notes.append(
        f"val.csv is taken out of the training list (seed {source.seed}); "
        "the held-out list that the data brings along is test.csv"
    )


def _held_out(
    videos: Sequence[Video], classes: Sequence[str] | None, source: Source
) -> tuple[list[Video], list[Video]]:
    """(the rest, the share held out), whole sources at a time."""
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
    """Sources (or, where unknown, videos) that are in several splits -> those splits."""
    found: dict[str, list[str]] = defaultdict(list)
    for split, videos in splits.items():
        for key in dict.fromkeys(video.source or video.path for video in videos):
            found[key].append(split)
    return {key: names for key, names in found.items() if len(names) > 1}


def _check_sources(prepared: Prepared, *, asked: bool) -> None:
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
            f"{text}. The data brings this split along. To have it split by source, remove that "
            "(the column split or fold of labels.csv, the folders train and val); to take it as "
            "it is, leave --group-by away"
        )
    prepared.notes.append(f"{text}; the data brings this split along")


# ---- what cannot be used ------------------------------------------------------------------------


def leave_out(prepared: Prepared, reason: Callable[[str], str | None]) -> None:
    """Move the videos for which `reason(path)` is a text to `left_out`.

    Raises RunFailed where nothing is left of a split.
    """
    for split, videos in prepared.splits.items():
        kept = []
        for video in videos:
            why = reason(video.path)
            if why is None:
                kept.append(video)
            else:
                prepared.left_out.append(LeftOut(video.path, split, video.label, why))
        if not kept:
            last = prepared.left_out[-1]
            raise RunFailed(
                f"none of the {len(videos)} videos for {split} can be used; the last of them, "
                f"{os.path.join(prepared.root, last.path)}: {last.reason}"
            )
        prepared.splits[split] = kept


def leave_out_missing(prepared: Prepared) -> None:
    """Leave out what is not there, and names that no list can hold. RunFailed: nothing is left."""

    def reason(path: str) -> str | None:
        if "\n" in path or "\r" in path:
            return "its name has a line break, and a manifest is a file of lines"
        return None if os.path.exists(os.path.join(prepared.root, path)) else "no such file"

    leave_out(prepared, reason)


def use_copies(
    prepared: Prepared, folder: str | Path, made: Mapping[str, str], failed: Mapping[str, str]
) -> None:
    """Name the copies below `folder` instead of the originals; leave out those that have none."""
    leave_out(prepared, failed.get)
    prepared.root = os.path.abspath(folder)
    for split, videos in prepared.splits.items():
        prepared.splits[split] = [video._replace(path=made[video.path]) for video in videos]


# ---- writing ------------------------------------------------------------------------------------

CLASS_FILE = "classnames.json"
LEFT_OUT_FILE = "left_out.csv"
RECORD = "prepare.json"
TRAIN_LIST = "train.csv"
_OURS = (*(f"{split}.csv" for split in SPLITS), CLASS_FILE, LEFT_OUT_FILE)


def write(prepared: Prepared, out: str | Path, settings: Mapping[str, Any] | None = None) -> Path:
    """Write the manifests into the folder `out`, and return it.

    Each is a list of lines `path label` with paths from `prepared.root` (DATA.PATH_PREFIX). Beside
    them: the names of the classes, the videos left out, and prepare.json, which records `settings`
    and what was written.

    Raises UserError: files are in the way that were not written here, or were changed since.
    """
    out = Path(out)
    contents = _contents(prepared)
    check_out(out, contents)
    _read_back(prepared, contents)
    record = {
        "layout": prepared.layout,
        "root": prepared.root,
        "settings": dict(settings or {}),
        "notes": prepared.notes,
        "files": {name: _digest(content) for name, content in contents.items()},
    }
    before = {name: _digest((out / name).read_bytes()) for name in _OURS if (out / name).is_file()}
    out.mkdir(parents=True, exist_ok=True)
    # Stopped from here on, the lists may be of two calls, but then none is called train.csv; and
    # the record knows both as ours, so that the same command may finish it.
    write_text(out / RECORD, _json({**record, "replaces": before}))
    with contextlib.ExitStack() as unfinished:  # they take their places from the last to the first
        for name in sorted(contents, key=lambda name: name != TRAIN_LIST):
            file = unfinished.enter_context(atomic_write(out / name))
            file.write(contents[name])
            file.flush()  # a full disk is noticed before anything is replaced
        for name in _OURS:
            if name == TRAIN_LIST or name not in contents:
                (out / name).unlink(missing_ok=True)
    write_text(out / RECORD, _json(record))
    return out


def check_out(out: str | Path, contents: Mapping[str, bytes] | None = None) -> None:
    """UserError where writing into `out` would destroy what is not ours.

    Called before long work, too, when `contents` is not known yet.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder for the manifests")
    written: set[tuple[str, str]] = set()
    if (out / RECORD).is_file():
        try:
            record = json.loads((out / RECORD).read_text(encoding="utf-8"))
            written = {*record["files"].items(), *record.get("replaces", {}).items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            written = set()
    for name in _OURS:
        if not (out / name).is_file():
            continue
        content = (out / name).read_bytes()
        known = (name, _digest(content)) in written
        if not known and (contents or {}).get(name) != content:
            raise UserError(
                f"--out {out}: {name} is there and was not written by this command, or was changed "
                "since; name another folder, or move it away"
            )


def _contents(prepared: Prepared) -> dict[str, bytes]:
    """Name -> bytes of every file that is to be there, but for the record."""
    contents = {
        f"{split}.csv": "".join(_line(video) for video in videos).encode("utf-8", "surrogateescape")
        for split, videos in prepared.splits.items()
    }
    if prepared.classes:
        contents[CLASS_FILE] = _json(list(prepared.classes)).encode()
    if prepared.left_out:
        table = io.StringIO(newline="")
        add = row_writer(table, ["path", "split", "label", "reason"])
        for row in prepared.left_out:
            label = prepared.classes[row.label] if prepared.classes else row.label
            add([path_cell(row.path), row.split, label, row.reason])
        contents[LEFT_OUT_FILE] = table.getvalue().encode()
    return contents


def _line(video: Video) -> str:
    return f"{quoted_path(video.path)} {video.label}\n"


def _read_back(prepared: Prepared, contents: Mapping[str, bytes]) -> None:
    """RunFailed unless the readers find in the lists what was meant."""
    with tempfile.TemporaryDirectory(prefix="hiera_video_prepare_") as folder:
        for name, content in contents.items():
            with explained(os.path.join(folder, name)):
                Path(folder, name).write_bytes(content)
        for split, videos in prepared.splits.items():
            manifest = read_manifest(folder, split, path_prefix=prepared.root)
            read = [(manifest.paths.relative(i), manifest.label(i)) for i in range(len(manifest))]
            if manifest.classes != prepared.classes or read != [video[:2] for video in videos]:
                raise RunFailed(
                    f"{split}.csv does not read back as it was meant; this is a mistake of ours: "
                    "please report the names of your videos and classes"
                )


def _json(content: Any) -> str:
    # Escaped: names that are not valid UTF-8 survive.
    return json.dumps(content, indent=1) + "\n"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ---- telling ------------------------------------------------------------------------------------


def summary(prepared: Prepared) -> list[str]:
    """What was made, for people: a line a split, the notes, what was left out."""
    lines = [prepared.classes_line] if prepared.classes_line else []
    for split, videos in prepared.splits.items():
        sources = {video.source for video in videos} - {""}
        known = f", {len(sources)} sources" if prepared.knows_sources else ""
        lines.append(
            f"{split + '.csv':9} {len(videos):8,} videos{known}; {_classes(prepared, videos)}"
        )
    lines += [f"note: {note}" for note in prepared.notes]
    trained = {video.label for video in prepared.splits["train"]}
    names = prepared.classes or ()
    untrained = [name for label, name in enumerate(names) if label not in trained]
    if untrained:
        lines.append(f"note: no training video of {quoted(untrained)}")
    if prepared.left_out:
        reasons = Counter(row.reason for row in prepared.left_out).most_common(3)
        told = "; ".join(f"{count:,} x {reason}" for reason, count in reasons)
        lines.append(f"left out: {len(prepared.left_out):,} videos, see {LEFT_OUT_FILE} ({told})")
    return lines


def _classes(prepared: Prepared, videos: Sequence[Video]) -> str:
    """How many of each class, or, of many classes, from how few to how many."""
    counts = Counter(video.label for video in videos)
    if prepared.classes and len(prepared.classes) <= 8:
        return ", ".join(f"{name} {counts[i]}" for i, name in enumerate(prepared.classes))
    least, most = min(counts.values()), max(counts.values())
    return f"{len(counts)} classes, {least} to {most} videos each"
