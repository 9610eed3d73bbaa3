"""What a run tells its page: how it begins, and the videos of a test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hiera_video.config.origin import Recipe
from hiera_video.data.manifests.manifest import Manifest
from hiera_video.engine import metrics
from hiera_video.engine.preflight import flat_settings
from hiera_video.engine.results import Scores, class_names_of, label_set, labels_of
from hiera_video.run_page.facts import Change, Clip, Outcome, Split

MOST_BEST = 5
"""Classes of a tested video that are told, the highest score first."""


def changes(settings: str, recipe: Recipe | None) -> list[Change]:
    """Return the settings (YAML) that are not as the recipe has them."""
    if recipe is None:
        return []
    now, before = flat_settings(settings), flat_settings(recipe.settings)
    return [
        Change(key, _shown(now.get(key)), _shown(before.get(key)))
        for key in sorted(now.keys() | before.keys())
        if now.get(key) != before.get(key)
    ]


def _shown(value: Any) -> str:
    return "" if value is None else str(value)


def split_facts(name: str, manifest: Manifest) -> Split:
    """Describe a list of videos."""
    counts = [] if manifest.num_classes == 0 else manifest.class_counts().tolist()
    words = manifest.describe_classes()
    return Split(name, len(manifest), words, counts, manifest.notes, manifest.unit)


def tested_clips(scores: Scores, manifest: Manifest) -> list[Clip]:
    """Describe each video of a test, in the order of the list."""
    found: dict[int, Clip] = {}
    best = min(MOST_BEST, scores.rows.shape[1])
    for video, row in zip(scores.video_ids.tolist(), scores.rows, strict=True):
        labels = label_set(manifest, video)
        # stable, so that ties are ranked as the metrics rank them
        order = row.argsort(descending=True, stable=True)[:best]
        pairs = zip(order.tolist(), row[order].tolist(), strict=True)
        true = row[list(labels)].min().item() if labels else 0.0
        found[video] = Clip(manifest.paths[video], labels, tuple(pairs), true)
    for failed in scores.failed:
        labels = label_set(manifest, failed.video_id)
        path = manifest.paths[failed.video_id]
        found[failed.video_id] = Clip(path, labels, error=failed.reason)
    return [found[video] for video in sorted(found)]


def tested_facts(
    scores: Scores, manifest: Manifest, *, lines: Sequence[str], notes: Sequence[str]
) -> Outcome:
    """Describe a test. lines: what was tested and the result, in words."""
    num_classes = scores.rows.shape[1]
    labels = labels_of(manifest, scores.video_ids, num_classes)
    told: dict[str, Any] = {
        "lines": lines,
        "notes": notes,
        "classes": class_names_of(manifest, num_classes),
        "multi_label": manifest.multi_label,
    }
    if manifest.multi_label:
        positives = labels > 0.5
        found = [
            metrics.average_precision(scores.rows[:, c], positives[:, c])
            for c in range(num_classes)
        ]
        return Outcome(**told, per_class=[_percent_or_none(100 * value) for value in found])
    confusion = metrics.confusion_matrix(scores.rows.argmax(1), labels, num_classes)
    accuracy = metrics.per_class_accuracy(confusion).tolist()
    return Outcome(
        **told,
        per_class=[_percent_or_none(value) for value in accuracy],
        confusion=_counts(confusion),
    )


def _percent_or_none(value: float) -> float | None:
    return None if value != value else value  # nan: no video


def _counts(confusion: Tensor) -> list[tuple[int, int, int]]:
    places = torch.nonzero(confusion)
    values = confusion[places[:, 0], places[:, 1]]
    pairs = zip(places.tolist(), values.tolist(), strict=True)
    return [(true, predicted, count) for (true, predicted), count in pairs]
