"""An audit as people read it (a table), as programs do (JSON) and as training does (lists)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from hiera_video.data.manifests.video_table import quoted_path
from hiera_video.errors import DataError
from hiera_video.files import atomic_write, write_text
from hiera_video.preparation.audit.audit import Audit
from hiera_video.preparation.audit.lists import UNUSED, Part
from hiera_video.preparation.audit.findings import PROBLEMS, REMARKS, Finding
from hiera_video.video.find import is_video

MOST_CLASSES_SHOWN = 30
"""Rows of the histogram on the terminal; beyond them its two ends are shown."""

# ---- a table for people -------------------------------------------------------------------------


def table(result: Audit, notes: Sequence[str], most: int | None) -> Iterator[str]:
    """Lines for a terminal; at most `most` problems of each kind, half as many remarks."""
    yield from (f"note: {note}" for note in notes)
    yield from _splits(result)
    yield from _histogram(result)
    for title, kinds in (("PROBLEMS", PROBLEMS), ("REMARKS", REMARKS)):
        if any(result.findings.count(kind) for kind in kinds):
            yield ""
            yield title
        for kind, meaning in kinds.items():
            rows = most if title == "PROBLEMS" or most is None else -(-most // 2)
            yield from _findings(result, kind, meaning, rows)
    yield ""
    yield from _conclusion(result)


def _splits(result: Audit) -> Iterator[str]:
    rows = [("split", "videos", "usable", "hours", "frames", "frames/s", "classes")]
    for number in range(len(result.parts)):
        facts = split_facts(result, number)
        rates = f"{facts['fps_median']:.4g}" if facts["usable"] else "-"
        rows.append(
            (
                facts["split"],
                f"{facts['videos']:,}",
                f"{facts['usable']:,}",
                f"{facts['hours']:,.2f}",
                f"{facts['frames']:,}",
                rates,
                f"{facts['num_classes']:,}" if facts["num_classes"] else "-",
            )
        )
    yield from aligned(rows)


def split_facts(result: Audit, number: int) -> dict[str, Any]:
    """The sums of one part."""
    part, entries = result.parts[number], result.of(number)
    usable = result.files.usable[entries]
    rates = result.files.fps[entries][usable]
    return {
        "split": part.name,
        "videos": len(part),
        "usable": int(usable.sum()),
        "hours": float(result.files.seconds[entries][usable].sum() / 3600),
        "frames": int(result.files.frames[entries][usable].sum()),
        "fps_median": float(np.median(rates)) if len(rates) else 0.0,
        "num_classes": part.manifest.num_classes,
    }


def _histogram(result: Audit) -> Iterator[str]:
    """Usable videos of each class, one column a split."""
    labelled = [n for n, part in enumerate(result.parts) if part.manifest.num_classes]
    if not labelled:
        return
    classes = max(result.parts[n].manifest.num_classes for n in labelled)
    counts = np.zeros((classes, len(labelled)), np.int64)
    for column, number in enumerate(labelled):
        one = result.usable_counts(number)
        counts[: len(one), column] = one
    named = result.parts[labelled[0]]
    shown = np.arange(classes)
    if classes > MOST_CLASSES_SHOWN:
        shown = np.argsort(-counts[:, 0], kind="stable")
        half = MOST_CLASSES_SHOWN // 2
        shown = np.concatenate([shown[:half], [-1], shown[-half:]])
    rows = [("class", *(result.parts[n].name for n in labelled))]
    for label in shown.tolist():
        if label < 0:
            rows.append((f"... {classes - MOST_CLASSES_SHOWN} more", *("" for _ in labelled)))
        else:
            rows.append((class_name(named, label), *(f"{n:,}" for n in counts[label])))
    yield ""
    yield from aligned(rows)
    first = counts[:, 0]
    yield (
        f"{classes:,} classes; videos of a class in {named.name}: {first.min():,} at the least, "
        f"{int(np.median(first)):,} as a rule, {first.max():,} at the most"
    )


def class_name(part: Part, label: int) -> str:
    classes = part.manifest.classes
    return f"{label} {classes[label]}" if classes and label < len(classes) else str(label)


def _findings(result: Audit, kind: str, meaning: str, most: int | None) -> Iterator[str]:
    count = result.findings.count(kind)
    if not count:
        return
    yield f"{count:,} {meaning}"
    for finding in result.findings.of(kind, most):
        yield f"  {_place(finding)}{finding.reason}"
    if most is not None and count > most:
        yield f"  ... and {count - most:,} more (--json has them all, --most 0 shows them)"


def _place(finding: Finding) -> str:
    if finding.file:
        line = f" (line {finding.line})" if finding.line else ""
        return f"{finding.file}{line}: "
    return "" if finding.line else f"{finding.part}: "


def _conclusion(result: Audit) -> Iterator[str]:
    projection = result.projection
    if projection is not None:
        yield (
            f"an epoch of {projection.videos:,} videos takes "
            f"{duration(projection.epoch_seconds)} to read with {projection.workers} workers "
            f"({projection.seconds_per_clip * 1000:.0f} ms a clip on one core, measured on "
            f"{projection.clips_timed}); the model's time comes on top: tools/run_net.py --dry-run"
        )
    hours = result.files.seconds[result.files.usable].sum() / 3600
    yield (
        f"{len(result.files.usable):,} videos, {hours:,.2f} hours: "
        f"{result.looked_at:,} looked at, {result.remembered:,} remembered"
    )
    problems, remarks = result.findings.problems, result.findings.remarks
    yield f"{problems:,} problems, {remarks:,} remarks" if problems or remarks else "all clean"


def duration(seconds: float) -> str:
    """`1 day, 4:10:00`; below a minute, seconds."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    return str(timedelta(seconds=round(seconds)))


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of words as lines, the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for first, *others in rows:
        numbers = (c.rjust(width) for c, width in zip(others, widths[1:], strict=True))
        cells = [first.ljust(widths[0]), *numbers]
        yield "  ".join(cells).rstrip()


# ---- JSON for programs --------------------------------------------------------------------------


def write_json(result: Audit, notes: Sequence[str], file: Path) -> None:
    """Everything, as one JSON object.

    Names that are not valid UTF-8 keep their bytes as Python writes them (`\\udcff`).
    """
    with atomic_write(file, text=True) as out:
        head = {
            "exit_code": 1 if result.findings.problems else 0,
            "notes": list(notes),
            "clip": result.spec.to_dict(),
            "files": {"looked_at": result.looked_at, "remembered": result.remembered},
            "splits": [
                {**split_facts(result, number), "classes": _class_rows(result, number)}
                for number in range(len(result.parts))
            ],
            "counts": {k: result.findings.count(k) for k in (*PROBLEMS, *REMARKS)},
            "projection": _projection(result),
        }
        text = json.dumps(head, indent=1)
        out.write(text.removesuffix("\n}"))
        for name, kinds in (("problems", PROBLEMS), ("remarks", REMARKS)):
            out.write(f',\n "{name}": [')
            separator = "\n  "
            for kind in kinds:
                for found in result.findings.of(kind):
                    row = {"kind": kind, "split": found.part, "line": found.line or None}
                    row |= {"file": found.file or None, "reason": found.reason}
                    out.write(separator + json.dumps(row))
                    separator = ",\n  "
            out.write("\n ]")
        out.write("\n}\n")


def _class_rows(result: Audit, number: int) -> list[dict[str, Any]]:
    part = result.parts[number]
    if not part.manifest.num_classes:
        return []
    names = part.manifest.classes
    listed, usable = part.manifest.class_counts(), result.usable_counts(number)
    return [
        {
            "label": label,
            "name": names[label] if names else None,
            "videos": int(n),
            "usable": int(u),
        }
        for label, (n, u) in enumerate(zip(listed, usable, strict=True))
    ]


def _projection(result: Audit) -> dict[str, Any] | None:
    projection = result.projection
    if projection is None:
        return None
    return {
        "videos": projection.videos,
        "workers": projection.workers,
        "clips_timed": projection.clips_timed,
        "seconds_per_clip": projection.seconds_per_clip,
        "epoch_seconds": projection.epoch_seconds,
    }


# ---- lists for training -------------------------------------------------------------------------


def write_lists(result: Audit, target: Path) -> list[str]:
    """Write what may stay, in SlowFast's form: `target`/SPLIT.csv and the names of the classes.

    A `target` that ends like a list (.csv, .txt) is the file itself; there must be one split then.
    Returns what was written, in words. Raises DataError: a list that was read would be replaced.
    """
    numbers = [n for n, part in enumerate(result.parts) if part.name != UNUSED]
    if is_list(target):
        if len(numbers) != 1:
            raise DataError(
                f"--write {target} names one list, and there are {len(numbers)} splits; name a "
                "folder"
            )
        files = {numbers[0]: target}
    else:
        target.mkdir(parents=True, exist_ok=True)
        files = {n: target / f"{Path(result.parts[n].name).stem}.csv" for n in numbers}
    said = [_write_list(result, number, file) for number, file in files.items()]
    classes = result.parts[numbers[0]].manifest.classes
    if classes:
        names = files[numbers[0]].parent / "classnames.json"
        write_text(names, json.dumps({name: i for i, name in enumerate(classes)}, indent=1))
        said.append(f"wrote {names}")
    return said


def is_list(target: Path) -> bool:
    """Whether a name is that of one list, and not of a folder for several."""
    return target.suffix.lower() in (".csv", ".txt")


def _write_list(result: Audit, number: int, file: Path) -> str:
    part = result.parts[number]
    manifest, written, unwritable = part.manifest, 0, 0
    folder = os.path.abspath(file.parent)
    root = os.path.abspath(manifest.paths.root)
    # Relative names where they lie below the list, whole ones elsewhere.
    below = os.path.commonpath([folder, root]) == folder
    # Names that are not valid UTF-8 keep their bytes, as the readers of lists want them.
    with atomic_write(file, text=True, errors="surrogateescape") as out:
        for index in np.flatnonzero(~result.files.left_out[result.of(number)]).tolist():
            path = os.path.join(root, manifest.paths.relative(index))
            path = os.path.relpath(path, folder) if below else os.path.normpath(path)
            line = list_line(path, manifest.label(index))
            if line is None:
                unwritable += 1
                continue
            out.write(line + "\n")
            written += 1
    left = len(part) - written
    said = f"wrote {file}: {written:,} videos, {left:,} of {len(part):,} left out"
    return said + (f" ({unwritable:,} for a line break in their name)" if unwritable else "")


def list_line(path: str, label: int | tuple[int, ...]) -> str | None:
    """The line of one video in SlowFast's list; None for a name that no line can hold."""
    if "\n" in path or "\r" in path or path != path.strip():
        return None
    path = quoted_path(path)
    if isinstance(label, tuple):
        return f"{path} {','.join(map(str, label))}" if label else None
    if label < 0:
        return path if is_video(path) or " " not in path else None
    return f"{path},{label}"
