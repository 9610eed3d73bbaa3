"""Write lists for training without the videos that an audit found to be unusable."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from hiera_video.data.manifests.video_table import quoted_path
from hiera_video.errors import DataError
from hiera_video.files import atomic_write, write_text
from hiera_video.preparation.audit.lists import UNUSED
from hiera_video.preparation.audit.result import AuditResult
from hiera_video.video.find import is_video


def write_lists(result: AuditResult, target: Path) -> list[str]:
    """Write `target`/SPLIT.csv in SlowFast's format and the class names. Returns lines for people.

    A `target` named like a list (.csv, .txt) is the file itself; there must be one split then.
    Raises DataError if there are several.
    """
    numbers = [n for n, split in enumerate(result.splits) if split.name != UNUSED]
    if is_list(target):
        if len(numbers) != 1:
            raise DataError(
                f"--write {target} names one list, and there are {len(numbers)} splits; name a "
                "folder"
            )
        files = {numbers[0]: target}
    else:
        target.mkdir(parents=True, exist_ok=True)
        files = {n: target / f"{Path(result.splits[n].name).stem}.csv" for n in numbers}
    lines = [_write_list(result, number, file) for number, file in files.items()]
    classes = result.splits[numbers[0]].manifest.classes
    if classes:
        names = files[numbers[0]].parent / "classnames.json"
        write_text(names, json.dumps({name: i for i, name in enumerate(classes)}, indent=1))
        lines.append(f"wrote {names}")
    return lines


def is_list(target: Path) -> bool:
    """Return whether a name is that of one list, not of a folder for several."""
    return target.suffix.lower() in (".csv", ".txt")


def _write_list(result: AuditResult, number: int, file: Path) -> str:
    split = result.splits[number]
    manifest, written, unwritable = split.manifest, 0, 0
    folder = os.path.abspath(file.parent)
    root = os.path.abspath(manifest.paths.root)
    # Paths below the list are relative, others absolute.
    below = os.path.commonpath([folder, root]) == folder
    # Names that are not valid UTF-8 keep their bytes, as the readers of lists expect.
    with atomic_write(file, text=True, errors="surrogateescape") as out:
        for index in np.flatnonzero(~result.files.left_out[result.entries_of(number)]).tolist():
            path = os.path.join(root, manifest.paths.relative(index))
            path = os.path.relpath(path, folder) if below else os.path.normpath(path)
            line = list_line(path, manifest.label(index))
            if line is None:
                unwritable += 1
                continue
            out.write(line + "\n")
            written += 1
    left = len(split) - written
    text = f"wrote {file}: {written:,} videos, {left:,} of {len(split):,} left out"
    return text + (f" ({unwritable:,} for a line break in their name)" if unwritable else "")


def list_line(path: str, label: int | tuple[int, ...]) -> str | None:
    """Return the line of one video in SlowFast's format; None if no line can hold its name."""
    if "\n" in path or "\r" in path or path != path.strip():
        return None
    path = quoted_path(path)
    if isinstance(label, tuple):
        return f"{path} {','.join(map(str, label))}" if label else None
    if label < 0:
        return path if is_video(path) or " " not in path else None
    return f"{path},{label}"
