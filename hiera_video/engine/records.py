"""Records of a run: SlowFast's `json_stats` lines, and metrics.jsonl at full precision."""

from __future__ import annotations

import decimal
import json
import math
from pathlib import Path
from typing import Any

import simplejson

from hiera_video.files import write_text

METRICS = "metrics.jsonl"
"""The file in a run's folder: a JSON object a line."""


def json_stats(record: dict[str, Any]) -> str:
    """Format a record as SlowFast's log line: keys sorted, floats as numbers of five decimals."""
    five = {
        key: decimal.Decimal(f"{value:.5f}") if isinstance(value, float) else value
        for key, value in json_safe(record).items()
    }
    return "json_stats: " + simplejson.dumps(five, sort_keys=True, use_decimal=True)


def json_safe(record: dict[str, Any]) -> dict[str, Any]:
    """Replace nan and inf, which JSON cannot express, by the strings "nan", "inf", "-inf"."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the records of metrics.jsonl in a run's folder; none where there is no such file.

    An unfinished last line, which a killed run leaves, is skipped.
    """
    path = Path(folder) / METRICS
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def drop_records_after(folder: Path, step: int) -> None:
    """Remove the records of steps after `step`: a run resumed there writes them again."""
    kept = [r for r in read_metrics(folder) if r.get("step", 0) <= step]
    if (Path(folder) / METRICS).is_file():
        lines = [json.dumps(r, sort_keys=True) + "\n" for r in kept]
        write_text(Path(folder) / METRICS, "".join(lines))
