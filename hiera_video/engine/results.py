"""From the scores of a data set to its metrics, and to the files of a test.

The files are results.json, predictions.csv, confusion.csv, confusion.png and per_class.csv.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiera_video import files
from hiera_video.data.batch import Failed
from hiera_video.data.manifests.layouts import Manifest
from hiera_video.engine import metrics, plots
from hiera_video.engine.records import json_safe
from hiera_video.spreadsheet import csv_file, path_cell


@dataclass
class Scores:
    """Class scores of a list of videos, and the videos that could not be scored."""

    video_ids: Tensor
    """int64 [N], ascending."""
    rows: Tensor
    """float32 [N, C]: softmax (sigmoid) of each view, then the mean over the views."""
    failed: list[Failed] = field(default_factory=list)

    @property
    def n_videos(self) -> int:
        """Videos of the list, failed ones too."""
        return len(self.video_ids) + len(self.failed)


# ---- metrics ------------------------------------------------------------------------------------


def labels_of(manifest: Manifest, video_ids: Tensor, num_classes: int) -> Tensor:
    """Return the labels of videos: int64 [N], or multi-hot float32 [N, C] if multi-label."""
    ids = video_ids.tolist()
    if not manifest.multi_label:
        return torch.tensor([manifest.label(i) for i in ids], dtype=torch.int64)
    multi_hot = torch.zeros(len(ids), num_classes)
    for row, i in zip(multi_hot, ids, strict=True):
        row[list(label_set(manifest, i))] = 1
    return multi_hot


def compute_metrics(scores: Scores, manifest: Manifest) -> dict[str, float | int]:
    """Compute `n_videos`, `n_failed` and the metrics, in percent, of the videos with scores.

    The metrics are `top1_acc`, `top5_acc` and `mean_class_acc`, or `map` if multi-label.
    """
    counts = {"n_videos": scores.n_videos, "n_failed": len(scores.failed)}
    labels = labels_of(manifest, scores.video_ids, scores.rows.shape[1])
    if manifest.multi_label:
        return {**counts, "map": metrics.mean_average_precision(scores.rows, labels)}
    confusion = metrics.confusion_matrix(scores.rows.argmax(1), labels, scores.rows.shape[1])
    return {
        **counts,
        "top1_acc": metrics.topk_accuracy(scores.rows, labels, 1),
        "top5_acc": metrics.topk_accuracy(scores.rows, labels, 5),
        "mean_class_acc": metrics.mean_class_accuracy(confusion),
    }


def label_set(manifest: Manifest, video_id: int) -> tuple[int, ...]:
    """Return the label of a video, or all of them."""
    label = manifest.label(video_id)
    return label if isinstance(label, tuple) else (label,)


def class_names_of(manifest: Manifest, num_classes: int) -> list[str]:
    """Return the names of the classes; their numbers where they have none."""
    return list(manifest.classes or ()) or [str(i) for i in range(num_classes)]


# ---- in words -----------------------------------------------------------------------------------

_METRIC_NAMES = {
    "top1_acc": "top-1",
    "top5_acc": "top-5",
    "mean_class_acc": "mean per class",
    "map": "mAP",
}
"""Key in results.json -> name in sentences."""


def final_record(results: dict[str, Any]) -> dict[str, Any]:
    """Build the last json_stats record as SlowFast spells it: metrics as text, two decimals."""
    return {
        "n_videos": results["n_videos"],
        "n_failed": results["n_failed"],
        **{key: f"{results[key]:.2f}" for key in _METRIC_NAMES if key in results},
    }


def describe(results: dict[str, Any]) -> list[str]:
    """Describe the result in a line or two for the console."""
    values = ", ".join(f"{n} {results[k]:.2f} %" for k, n in _METRIC_NAMES.items() if k in results)
    views = results["views"]
    lines = [
        f"test: {values} on {results['n_videos'] - results['n_failed']} videos, "
        f"{views['temporal']} x {views['spatial']} views"
    ]
    if results["n_failed"]:
        lines.append(
            f"{results['n_failed']} of {results['n_videos']} videos could not be decoded and are "
            "in none of these numbers; predictions.csv lists them"
        )
    return lines


# ---- files --------------------------------------------------------------------------------------


def write_results(
    folder: Path, results: dict[str, Any], scores: Scores, manifest: Manifest
) -> None:
    """Write the files of a test into `folder`; the confusion only with one label per video.

    results: the content of results.json. Raises RunFailed where a file cannot be written.
    """
    num_classes = scores.rows.shape[1]
    names = class_names_of(manifest, num_classes)
    _write_predictions(folder / "predictions.csv", scores, manifest, names)
    if not manifest.multi_label:
        labels = labels_of(manifest, scores.video_ids, num_classes)
        confusion = metrics.confusion_matrix(scores.rows.argmax(1), labels, num_classes)
        _write_confusion(folder / "confusion.csv", confusion, names)
        _write_per_class(folder / "per_class.csv", confusion, names)
        plots.draw_confusion(confusion, names, folder / "confusion.png")
    write_json(folder, results)


def write_json(folder: Path, results: dict[str, Any]) -> None:
    """Write results.json into `folder`; RunFailed where it cannot be written."""
    text = json.dumps(json_safe(results), indent=1, ensure_ascii=False)
    # A name that is not valid UTF-8 is escaped as JSON escapes: "\udcff".
    files.write_text(folder / "results.json", text + "\n", errors="backslashreplace")


def _write_predictions(path: Path, scores: Scores, manifest: Manifest, names: list[str]) -> None:
    """Write a row per video of the list: label, the five best classes, or why it has no scores."""
    best = min(5, len(names))
    header = ["video", "label", "correct"]
    header += [f"{what}{k}" for k in range(1, best + 1) for what in ("class", "score")]
    rows: dict[int, list[Any]] = {}
    for video_id, row in zip(scores.video_ids.tolist(), scores.rows, strict=True):
        # stable, so that ties are ranked as the metrics rank them
        order = row.argsort(descending=True, stable=True)[:best].tolist()
        pairs = [x for c in order for x in (names[c], Decimal(f"{row[c].item():.6f}"))]
        labels = label_set(manifest, video_id)
        rows[video_id] = [_joined(labels, names), int(order[0] in labels), *pairs, ""]
    for failed in scores.failed:
        label = _joined(label_set(manifest, failed.video_id), names)
        rows[failed.video_id] = [label, "", *[""] * (2 * best), failed.reason]
    with csv_file(path, [*header, "error"]) as add_row:
        for video_id in sorted(rows):
            add_row([path_cell(manifest.paths[video_id]), *rows[video_id]])


def _joined(labels: Sequence[int], names: list[str]) -> str:
    return ";".join(names[label] for label in labels)


def _write_confusion(path: Path, confusion: Tensor, names: list[str]) -> None:
    with csv_file(path, ["true \\ predicted", *names]) as add_row:
        for name, row in zip(names, confusion.tolist(), strict=True):
            add_row([name, *row])


def _write_per_class(path: Path, confusion: Tensor, names: list[str]) -> None:
    accuracy = metrics.per_class_accuracy(confusion).tolist()
    counts = confusion.sum(dim=1).tolist()
    with csv_file(path, ["class", "videos", "accuracy"]) as add_row:
        for name, count, value in zip(names, counts, accuracy, strict=True):
            add_row([name, count, Decimal(f"{value:.2f}") if count else ""])
