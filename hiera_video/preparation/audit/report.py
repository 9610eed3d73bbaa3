"""Report an audit: a table for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hiera_video.files import atomic_write
from hiera_video.preparation.audit.findings import PROBLEMS, REMARKS, Finding
from hiera_video.preparation.audit.lists import Split
from hiera_video.preparation.audit.result import AuditResult, Projection
from hiera_video.progress import duration

MOST_CLASSES_SHOWN = 30
"""Rows of the histogram on the terminal. Of more classes, the largest and smallest are shown."""

# ---- a table for people -------------------------------------------------------------------------


def table(result: AuditResult, notes: Sequence[str], most: int | None) -> Iterator[str]:
    """Yield lines for a terminal: at most `most` problems of each kind, half as many remarks."""
    yield from (f"note: {note}" for note in notes)
    yield from _split_table(result)
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


def _split_table(result: AuditResult) -> Iterator[str]:
    rows = [("split", "videos", "usable", "hours", "frames", "frames/s", "classes")]
    for number in range(len(result.splits)):
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


def split_facts(result: AuditResult, number: int) -> dict[str, Any]:
    """Return the totals of one split, with the keys of the JSON report."""
    split, entries = result.splits[number], result.entries_of(number)
    usable = result.files.usable[entries]
    rates = result.files.fps[entries][usable]
    return {
        "split": split.name,
        "videos": len(split),
        "usable": int(usable.sum()),
        "hours": float(result.files.seconds[entries][usable].sum() / 3600),
        "frames": int(result.files.frames[entries][usable].sum()),
        "fps_median": float(np.median(rates)) if len(rates) else 0.0,
        "num_classes": split.manifest.num_classes,
    }


def _histogram(result: AuditResult) -> Iterator[str]:
    """Yield a table of the usable videos of each class, with a column for each split."""
    labelled = [n for n, split in enumerate(result.splits) if split.manifest.num_classes]
    if not labelled:
        return
    classes = max(result.splits[n].manifest.num_classes for n in labelled)
    counts = np.zeros((classes, len(labelled)), np.int64)
    for column, number in enumerate(labelled):
        usable = result.usable_counts(number)
        counts[: len(usable), column] = usable
    named = result.splits[labelled[0]]
    shown = np.arange(classes)
    if classes > MOST_CLASSES_SHOWN:
        shown = np.argsort(-counts[:, 0], kind="stable")
        half = MOST_CLASSES_SHOWN // 2
        shown = np.concatenate([shown[:half], [-1], shown[-half:]])
    rows = [("class", *(result.splits[n].name for n in labelled))]
    for label in shown.tolist():
        if label < 0:
            rows.append((f"... {classes - MOST_CLASSES_SHOWN} more", *("" for _ in labelled)))
        else:
            rows.append((class_name(named, label), *(f"{n:,}" for n in counts[label])))
    yield ""
    yield from aligned(rows)
    first = counts[:, 0]
    yield (
        f"{classes:,} classes; videos of a class in {named.name}: minimum {first.min():,}, "
        f"median {int(np.median(first)):,}, maximum {first.max():,}"
    )


def class_name(split: Split, label: int) -> str:
    """Return the number of a class, and its name if it has one."""
    classes = split.manifest.classes
    return f"{label} {classes[label]}" if classes and label < len(classes) else str(label)


def _findings(result: AuditResult, kind: str, meaning: str, most: int | None) -> Iterator[str]:
    count = result.findings.count(kind)
    if not count:
        return
    yield f"{count:,} {meaning}"
    for finding in result.findings.of(kind, most):
        yield f"  {_place(finding)}{finding.reason}"
    if most is not None and count > most:
        yield f"  ... and {count - most:,} more (--json writes them all, --most 0 shows them)"


def _place(finding: Finding) -> str:
    if finding.file:
        line = f" (line {finding.line})" if finding.line else ""
        return f"{finding.file}{line}: "
    return "" if finding.line else f"{finding.split}: "


def _conclusion(result: AuditResult) -> Iterator[str]:
    projection = result.projection
    if projection is not None:
        yield (
            f"an epoch of {projection.videos:,} videos takes "
            f"{duration(projection.epoch_seconds)} to read with {projection.workers} workers "
            f"({projection.seconds_per_clip * 1000:.0f} ms a clip on one core, measured on "
            f"{projection.clips_timed}); the model needs time as well: "
            "hiera-video train --cfg FILE --dry-run 3"
        )
    hours = result.files.seconds[result.files.usable].sum() / 3600
    yield (
        f"{len(result.files.usable):,} videos, {hours:,.2f} hours: "
        f"{result.num_examined:,} examined, {result.num_cached:,} from the cache"
    )
    problems, remarks = result.findings.problems, result.findings.remarks
    yield f"{problems:,} problems, {remarks:,} remarks" if problems or remarks else "all clean"


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the rows of a table as lines: the first column aligned left, the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for first, *others in rows:
        numbers = (c.rjust(width) for c, width in zip(others, widths[1:], strict=True))
        cells = [first.ljust(widths[0]), *numbers]
        yield "  ".join(cells).rstrip()


# ---- JSON for programs --------------------------------------------------------------------------


def write_json(result: AuditResult, notes: Sequence[str], file: Path) -> None:
    """Write the whole report as one JSON object.

    Names that are not valid UTF-8 keep their bytes as Python writes them (`\\udcff`).
    """
    with atomic_write(file, text=True) as out:
        head = {
            "exit_code": 1 if result.findings.problems else 0,
            "notes": list(notes),
            "clip": result.clip.to_dict(),
            "files": {"looked_at": result.num_examined, "remembered": result.num_cached},
            "splits": [
                {**split_facts(result, number), "classes": _class_rows(result, number)}
                for number in range(len(result.splits))
            ],
            "counts": {k: result.findings.count(k) for k in (*PROBLEMS, *REMARKS)},
            "projection": _projection(result.projection),
        }
        text = json.dumps(head, indent=1)
        out.write(text.removesuffix("\n}"))
        for name, kinds in (("problems", PROBLEMS), ("remarks", REMARKS)):
            out.write(f',\n "{name}": [')
            separator = "\n  "
            for kind in kinds:
                for finding in result.findings.of(kind):
                    row = {"kind": kind, "split": finding.split, "line": finding.line or None}
                    row |= {"file": finding.file or None, "reason": finding.reason}
                    out.write(separator + json.dumps(row))
                    separator = ",\n  "
            out.write("\n ]")
        out.write("\n}\n")


def _class_rows(result: AuditResult, number: int) -> list[dict[str, Any]]:
    manifest = result.splits[number].manifest
    if not manifest.num_classes:
        return []
    names = manifest.classes
    listed, usable = manifest.class_counts(), result.usable_counts(number)
    return [
        {
            "label": label,
            "name": names[label] if names else None,
            "videos": int(n),
            "usable": int(u),
        }
        for label, (n, u) in enumerate(zip(listed, usable, strict=True))
    ]


def _projection(projection: Projection | None) -> dict[str, Any] | None:
    if projection is None:
        return None
    return {
        "videos": projection.videos,
        "workers": projection.workers,
        "clips_timed": projection.clips_timed,
        "seconds_per_clip": projection.seconds_per_clip,
        "epoch_seconds": projection.epoch_seconds,
    }
