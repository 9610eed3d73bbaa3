"""Write the manifests of a prepared data set into a folder, and summarise them for people.

    write(prepared, "manifests")        # train.csv, val.csv, classnames.json, prepare.json, ...

The files are read back before they take their places. The same input gives the same bytes, on any
machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hiera_video.data.manifests.layouts import SPLITS, read_manifest
from hiera_video.data.manifests.listing import quoted
from hiera_video.data.manifests.video_table import quoted_path
from hiera_video.errors import RunFailed, UserError
from hiera_video.files import atomic_write, explained, write_text
from hiera_video.preparation.prepare import Prepared, Video
from hiera_video.spreadsheet import path_cell, row_writer

CLASS_FILE = "classnames.json"
LEFT_OUT_FILE = "left_out.csv"
RECORD = "prepare.json"
TRAIN_LIST = "train.csv"
_WRITTEN_NAMES = (*(f"{split}.csv" for split in SPLITS), CLASS_FILE, LEFT_OUT_FILE)


def write(prepared: Prepared, out: str | Path, settings: Mapping[str, Any] | None = None) -> Path:
    """Write the manifests into the folder `out`, and return it.

    Each is a list of lines `path label` with paths from `prepared.root` (DATA.PATH_PREFIX). Beside
    them: the class names, the videos left out, and prepare.json, which records `settings` and the
    files written.

    Raises UserError: the folder has files of these names that were not written here, or were
    changed since.
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
    before = {
        name: _digest((out / name).read_bytes())
        for name in _WRITTEN_NAMES
        if (out / name).is_file()
    }
    out.mkdir(parents=True, exist_ok=True)
    # A call that is killed from here on can leave lists of two calls, but then no train.csv. The
    # record names the files of both calls, so that the same command may overwrite them.
    write_text(out / RECORD, _json({**record, "replaces": before}))
    with contextlib.ExitStack() as unfinished:  # files take their places last to first
        for name in sorted(contents, key=lambda name: name != TRAIN_LIST):
            file = unfinished.enter_context(atomic_write(out / name))
            file.write(contents[name])
            file.flush()  # a full disk is noticed before anything is replaced
        for name in _WRITTEN_NAMES:
            if name == TRAIN_LIST or name not in contents:
                (out / name).unlink(missing_ok=True)
    write_text(out / RECORD, _json(record))
    return out


def check_out(out: str | Path, contents: Mapping[str, bytes] | None = None) -> None:
    """Raise UserError if writing into `out` would overwrite files that were not written here.

    Also called before long work, when `contents` is not known yet.
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
    for name in _WRITTEN_NAMES:
        if not (out / name).is_file():
            continue
        content = (out / name).read_bytes()
        known = (name, _digest(content)) in written
        if not known and (contents or {}).get(name) != content:
            raise UserError(
                f"--out {out}: {name} exists and was not written by this command, or was changed "
                "since; name another folder, or move it away"
            )


def _contents(prepared: Prepared) -> dict[str, bytes]:
    """Return name -> bytes of every file to write, except the record."""
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
    """Raise RunFailed unless the readers find in the lists what `prepared` holds."""
    with tempfile.TemporaryDirectory(prefix="hiera_video_prepare_") as folder:
        for name, content in contents.items():
            with explained(os.path.join(folder, name)):
                Path(folder, name).write_bytes(content)
        for split, videos in prepared.splits.items():
            manifest = read_manifest(folder, split, path_prefix=prepared.root)
            read = [(manifest.paths.relative(i), manifest.label(i)) for i in range(len(manifest))]
            if manifest.classes != prepared.classes or read != [video[:2] for video in videos]:
                raise RunFailed(
                    f"{split}.csv does not read back as it was written; this is a bug: please "
                    "report the names of your videos and classes"
                )


def _json(content: Any) -> str:
    # ASCII: names that are not valid UTF-8 are escaped and stay intact.
    return json.dumps(content, indent=1) + "\n"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ---- summary ------------------------------------------------------------------------------------


def summary(prepared: Prepared) -> list[str]:
    """Return lines for people: one for each split, the notes, what was left out."""
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
        text = "; ".join(f"{count:,} x {reason}" for reason, count in reasons)
        lines.append(f"left out: {len(prepared.left_out):,} videos, see {LEFT_OUT_FILE} ({text})")
    return lines


def _classes(prepared: Prepared, videos: Sequence[Video]) -> str:
    """Return the number of videos of each class; of many classes, the least and the most."""
    counts = Counter(video.label for video in videos)
    if prepared.classes and len(prepared.classes) <= 8:
        return ", ".join(f"{name} {counts[i]}" for i, name in enumerate(prepared.classes))
    least, most = min(counts.values()), max(counts.values())
    return f"{len(counts)} classes, {least} to {most} videos each"
