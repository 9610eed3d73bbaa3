"""Validation and test of boxes: scores of every box -> frame mAP, and the files of a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from hiera_video.data.batch import Batch, Failed
from hiera_video.data.loader import Loader
from hiera_video.data.manifests.manifest import Manifest
from hiera_video.detection.average_precision import FrameMap, frame_map
from hiera_video.detection.files import BoxTable, write_excluded, write_scored_boxes
from hiera_video.detection.key_frames import KeyFrameList
from hiera_video.detection.precision_curves import draw_curves, write_per_class
from hiera_video.engine import results
from hiera_video.engine.distributed import World
from hiera_video.engine.evaluate import attend, each_batch, raise_memory_error
from hiera_video.engine.parts import Metrics
from hiera_video.errors import RunFailed
from hiera_video.run_page.facts import Clip, Outcome
from hiera_video.scoring import ScoreSettings, takes_images


class BoxAnswers(NamedTuple):
    """The scores of boxes."""

    rows: Tensor
    """int64 [N], ascending: rows of the list of boxes, see `KeyFrameList`."""
    scores: Tensor
    """float32 [N, K]; the mean over the crops that hold a box."""
    failed: list[Failed]
    """Key frames that could not be read."""


class FrameMapEvaluation:
    """Frame mAP at IoU 0.5 (`average_precision`), with the actions of the list of labels."""

    best = "map"

    def answers(
        self,
        model: nn.Module,
        loader: Loader,
        settings: ScoreSettings,
        *,
        world: World,
        stopped: Callable[[], bool],
        on_video: Callable[[int], None],
    ) -> BoxAnswers | None:
        """Score the boxes of all key frames; every process returns those of all."""
        parts = world.gather_parts(
            lambda: _score_own(model, loader, settings, world, stopped, on_video),
            name="scored",
            stopped=stopped,
            explain=lambda error: raise_memory_error(error, settings.batch_size),
            attend=lambda: attend(model, loader, settings, world),
        )
        return None if parts is None else _merged(parts)

    def metrics(self, answers: BoxAnswers, manifest: Manifest) -> Metrics:
        """Compute frame mAP in percent."""
        found = measured(answers, manifest)
        return {
            "n_videos": len(manifest),
            "n_failed": len(answers.failed),
            "map": 100 * found.mean,
            "n_boxes": len(answers.rows),
            "n_classes": sum(value == value for value in found.per_class.values()),
        }

    def failed(self, answers: BoxAnswers) -> Sequence[Failed]:
        """Return the key frames that could not be read."""
        return answers.failed

    def describe(self, content: dict[str, Any]) -> list[str]:
        """Describe the result, and what it leaves out."""
        read, crops = content["n_videos"] - content["n_failed"], content["views"]["spatial"]
        lines = [
            f"test: frame mAP {content['map']:.2f} % (IoU 0.5) over {content['n_classes']} "
            f"actions, {content['n_boxes']} boxes of {read} key frames, "
            f"{'the centre crop' if crops == 1 else f'{crops} crops'}"
        ]
        if content["n_failed"]:
            lines.append(
                f"{content['n_failed']} of {content['n_videos']} key frames could not be decoded "
                "and are in none of these numbers; excluded.csv lists them"
            )
        return lines

    def write(
        self, folder: Path, content: dict[str, Any], answers: BoxAnswers, manifest: Manifest
    ) -> None:
        """Write detections.csv, excluded.csv, per_class.csv, precision_recall.png and
        results.json."""
        found = measured(answers, manifest)
        write_scored_boxes(folder / "detections.csv", detections(answers, manifest))
        write_excluded(folder / "excluded.csv", excluded(answers, manifest))
        labels = as_key_frames(manifest).label_map
        write_per_class(folder / "per_class.csv", found, labels)
        draw_curves(found, labels, folder / "precision_recall.png")
        results.write_json(folder, content)

    def page(
        self, answers: BoxAnswers, manifest: Manifest, *, lines: Sequence[str], notes: Sequence[str]
    ) -> tuple[Outcome, list[Clip]]:
        """Describe the actions; the page has no pictures of key frames."""
        found = measured(answers, manifest)
        values = [found.per_class[number] for number in as_key_frames(manifest).label_map.ids]
        outcome = Outcome(
            lines=lines,
            notes=notes,
            classes=list(manifest.classes or ()),
            per_class=[None if value != value else 100 * value for value in values],
            multi_label=True,
        )
        return outcome, []


# ---- from scores to the metric ------------------------------------------------------------------


def as_key_frames(manifest: Manifest) -> KeyFrameList:
    """Return the list as what the readers of AVA gave."""
    return cast(KeyFrameList, manifest)


def measured(answers: BoxAnswers, manifest: Manifest) -> FrameMap:
    """Compute the metric over the key frames that could be read."""
    frames = as_key_frames(manifest)
    return frame_map(
        frames.truth, detections(answers, manifest), frames.label_map, excluded(answers, manifest)
    )


def excluded(answers: BoxAnswers, manifest: Manifest) -> set[tuple[str, int]]:
    """Return the (video, second) that are not measured: those of the list, and the unreadable."""
    frames = as_key_frames(manifest)
    unread = {(frames.video_name(f.video_id), frames.second(f.video_id)) for f in answers.failed}
    return set(frames.excluded) | unread


def detections(answers: BoxAnswers, manifest: Manifest) -> BoxTable:
    """Return a row for each box and action, as the official results file has them."""
    frames = as_key_frames(manifest)
    rows, ids = answers.rows.numpy(), np.asarray(frames.label_map.ids, np.int32)
    boxes = frames.scored_boxes(rows)
    times = len(ids)
    return BoxTable(
        videos=boxes.videos,
        video=np.repeat(boxes.video, times),
        second=np.repeat(boxes.second, times),
        corners=np.repeat(boxes.corners, times, axis=0),
        action=np.tile(ids, len(rows)),
        score=answers.scores.double().numpy().reshape(-1),
        person=None,
        lines=np.zeros(len(rows) * times, np.int32),
    )


# ---- scores -------------------------------------------------------------------------------------


def _score_own(
    model: nn.Module,
    loader: Loader,
    settings: ScoreSettings,
    world: World,
    stopped: Callable[[], bool],
    on_video: Callable[[int], None],
) -> BoxAnswers | None:
    """Score this process's share of the key frames; None if any process was asked to stop."""
    model.eval()
    rows: list[Tensor] = []
    scores: list[Tensor] = []

    def score(batch: Batch, fetch: Callable[[], None]) -> None:
        if batch.boxes is not None and len(batch.boxes.rows):
            found = box_scores(model, batch, settings)
            fetch()
            rows.append(batch.boxes.rows.cpu())
            scores.append(found.cpu())

    failed = each_batch(score, loader, world=world, stopped=stopped, on_video=on_video)
    if failed is None:
        return None
    classes = int(cast(Any, model).num_classes)
    return BoxAnswers(
        torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64),
        torch.cat(scores) if scores else torch.zeros(0, classes),
        failed,
    )


@torch.inference_mode()
def box_scores(model: nn.Module, batch: Batch, settings: ScoreSettings) -> Tensor:
    """Score the boxes of a batch: float32 [N, K], on its device."""
    assert batch.boxes is not None
    clips = settings.prepare(batch.clips)
    if takes_images(model):
        clips = clips.squeeze(2)
    enabled = settings.dtype != torch.float32
    with torch.autocast(clips.device.type, dtype=settings.dtype, enabled=enabled):
        logits: Tensor = model(clips, batch.boxes.for_model()).float()
    return logits.sigmoid() if settings.multi_label else logits.softmax(dim=1)


def _merged(parts: Sequence[BoxAnswers]) -> BoxAnswers:
    """Merge the answers of all processes; a box in several crops gets the mean of its scores."""
    failed = sorted(f for part in parts for f in part.failed)
    rows = torch.cat([part.rows for part in parts])
    if not len(rows):
        reasons = "; ".join(f"{f.path}: {f.reason}" for f in failed[:3])
        raise RunFailed(
            f"none of the boxes could be scored; {len(failed)} key frames could not be read"
            f"{'; the first: ' if reasons else ''}{reasons}"
        )
    scores = torch.cat([part.scores for part in parts])
    if not torch.isfinite(scores).all():
        raise RunFailed("the model's scores are not finite: these weights are broken")
    boxes, places, counts = rows.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(boxes), scores.shape[1], dtype=torch.float64)
    sums.index_add_(0, places, scores.double())
    return BoxAnswers(boxes, (sums / counts[:, None]).float(), failed)
