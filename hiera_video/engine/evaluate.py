"""K temporal views x S spatial crops -> one score per video -> metrics, predictions, confusion.

Every video counts once, under any number of processes. A video that cannot be decoded is counted
in `n_failed` and never replaced: metrics are over the videos that were scored, and say of how many.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hiera_video import __version__, files
from hiera_video.data.batch import Failed
from hiera_video.data.datasets import TestReader, VideoDataset
from hiera_video.data.loader import Loader, LoaderSettings, build_loader
from hiera_video.data.manifests.layouts import Manifest
from hiera_video.data.relabel import fit_labels
from hiera_video.engine import checkpoint, distributed, memory, metrics, preflight, report, tasks
from hiera_video.engine.prefetch import DevicePrefetcher
from hiera_video.errors import RunFailed, UserError
from hiera_video.models import build_model
from hiera_video.models.weights.load import Checkpoint, load_weights, resolve
from hiera_video.scoring import clip_scores
from hiera_video.spreadsheet import csv_file, path_cell

# ---- scores -------------------------------------------------------------------------------------


@dataclass
class Scores:
    """One row per scored video, in the order of the list, and the videos that have none."""

    video_ids: Tensor
    """int64 [N], ascending."""
    rows: Tensor
    """float32 [N, C]: softmax (sigmoid) per view, then the mean."""
    failed: list[Failed] = field(default_factory=list)

    @property
    def n_videos(self) -> int:
        """Videos of the list."""
        return len(self.video_ids) + len(self.failed)


def score_videos(
    model: nn.Module,
    loader: Loader,
    *,
    world: distributed.World,
    batch_size: int,
    precision: torch.dtype = torch.float32,
    multi_label: bool = False,
    stopped: Callable[[], bool] = lambda: False,
    on_video: Callable[[int], None] = lambda count: None,
) -> Scores | None:
    """Scores of all videos of a test loader, complete on every process; None if any was `stopped`.

    model: on `world.device`; set to eval mode here. batch_size: most views per forward pass.
    """
    mine = None
    try:
        mine = _own_scores(
            model,
            loader,
            world=world,
            batch_size=batch_size,
            precision=precision,
            multi_label=multi_label,
            stopped=stopped,
            on_video=on_video,
        )
    except Exception as error:
        # A signal to all processes ends the loader's workers too: that is no failure. Whatever
        # happened, nobody may leave before the gathering, where the others wait.
        if not world.any_stopped(stopped()):
            world.tell_failure()
            _explain_memory(error, batch_size)
            raise
    world.meet(f"scored {next(_MEETINGS)}", stopped)
    everyone = world.gather(None if world.any_stopped(stopped()) else mine)
    if any(part is None for part in everyone):
        return None
    return _merged(everyone)


def _explain_memory(error: Exception, batch_size: int) -> None:
    """RunFailed with the way out where it was memory that did not suffice."""
    wanted = memory.shortage(error)
    if wanted is not None:
        raise RunFailed(
            f"{wanted}, with {batch_size} views per forward pass: lower TEST.BATCH_SIZE, which "
            "changes no result"
        ) from error


_MEETINGS = itertools.count()
"""A number for each time that scores are gathered: every process counts the same."""


def _own_scores(
    model: nn.Module,
    loader: Loader,
    *,
    world: distributed.World,
    batch_size: int,
    precision: torch.dtype,
    multi_label: bool,
    stopped: Callable[[], bool],
    on_video: Callable[[int], None],
) -> tuple[Tensor, Tensor | None, list[Failed]] | None:
    """Video ids, rows (None for none) and failures of this process's share; None if stopped."""
    model.eval()
    ids, rows, failed = [], [], []
    batches = DevicePrefetcher(loader, world.device, loader.dataset.spec)
    for batch in batches:
        if world.any_stopped(stopped()):
            return None
        failed += batch.failed
        if len(batch.video_ids):
            views = clip_scores(
                model,
                batch.clips,
                batch_size=batch_size,
                device=world.device,
                dtype=precision,
                multi_label=multi_label,
                queued=batches.fetch,
            )
            # the views of a video are neighbours
            found, counts = batch.video_ids.unique_consecutive(return_counts=True)
            ids.append(found)
            rows += [part.mean(dim=0) for part in views.split(counts.tolist())]
        on_video(len(batch.failed) + (len(ids[-1]) if len(batch.video_ids) else 0))
    return (
        torch.cat(ids) if ids else torch.zeros(0, dtype=torch.int64),
        torch.stack(rows) if rows else None,
        failed,
    )


def score_all(
    cfg: Any,
    world: distributed.World,
    model: nn.Module,
    loader: Loader,
    *,
    precision: str,
    stop: Any,
    voice: report.Report,
    what: str,
) -> Scores | None:
    """`score_videos` as a run does it, with its progress under the name `what`.

    precision: off, bf16 or fp16.
    """
    return score_videos(
        model,
        loader,
        world=world,
        batch_size=cfg.test.batch_size,
        precision=tasks.PRECISION[precision],
        multi_label=cfg.data.multi_label,
        stopped=lambda: stop.requested,
        on_video=Counter(voice, loader, what).count,
    )


def _merged(parts: Sequence[tuple]) -> Scores:
    failed = sorted(f for part in parts for f in part[2])
    scored = [(ids, rows) for ids, rows, *_ in parts if rows is not None]
    if not scored:
        reasons = "; ".join(f"{f.path}: {f.reason}" for f in failed[:3])
        raise RunFailed(f"none of the {len(failed)} videos could be read; the first: {reasons}")
    video_ids = torch.cat([ids for ids, _ in scored])
    order = video_ids.argsort()
    video_ids = video_ids[order]
    if len(video_ids.unique()) != len(video_ids):
        raise ValueError("a video was scored twice")
    rows = torch.cat([rows for _, rows in scored])[order]
    if not torch.isfinite(rows).all():
        raise RunFailed("the model's scores are not finite: these weights are broken")
    return Scores(video_ids, rows, failed)


# ---- metrics ------------------------------------------------------------------------------------


def labels_of(manifest: Manifest, video_ids: Tensor, num_classes: int) -> Tensor:
    """int64 [N], or float32 [N, C] of zeros and ones where labels are several."""
    ids = video_ids.tolist()
    if not manifest.multi_label:
        return torch.tensor([manifest.label(i) for i in ids], dtype=torch.int64)
    hot = torch.zeros(len(ids), num_classes)
    for row, i in zip(hot, ids, strict=True):
        row[list(manifest.label(i))] = 1
    return hot


def summary(scores: Scores, manifest: Manifest) -> dict[str, float | int]:
    """`n_videos`, `n_failed` and the metrics, in percent, over the videos that were scored."""
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


# ---- the test -----------------------------------------------------------------------------------


def test(cfg: Any, world: distributed.World, stop: Any) -> int:
    """Test a checkpoint as TEST describes; the exit code: 0, or `stop.exit_code` if interrupted.

    Writes results.json, predictions.csv and, with one label per video, confusion.csv,
    confusion.png and per_class.csv to OUTPUT_DIR.
    Raises UserError (nothing to test, a checkpoint of another model, data missing), RunFailed (no
    video can be read).
    """
    with report.Report(None, quiet=not world.is_main) as voice:
        weights = world.run_on_main(_find_checkpoint, cfg, voice.say)
        with preflight.RunFolder(cfg.output_dir, world) as folder:
            return _test(cfg, world, stop, folder=folder.path, weights=weights, voice=voice)


def _test(
    cfg: Any,
    world: distributed.World,
    stop: Any,
    *,
    folder: Path,
    weights: str,
    voice: report.Report,
) -> int:
    began = time.monotonic()

    # ---- what is tested, on what ---------------------------------------------------------
    stored, _ = resolve_everywhere(world, weights, cfg.model.model_name)
    num_classes = _outputs_of(stored, weights, cfg.model.num_classes)
    manifest = world.run_on_main(read_test_list, cfg, stored, num_classes)
    spec = cfg.data.clip_spec(training=False)
    views, crops = cfg.test.num_ensemble_views, cfg.test.num_spatial_crops
    dataset = VideoDataset(
        manifest,
        TestReader(spec, num_views=views, num_crops=crops, decoder=cfg.data.decoding_backend),
    )
    loader = build_loader(
        dataset,
        LoaderSettings(
            batch_size=max(1, cfg.test.batch_size // (views * crops)),
            num_workers=cfg.data_loader.num_workers,
            rank=world.rank,
            world_size=world.size,
            pin_memory=cfg.data_loader.pin_memory,
        ),
    )

    # ---- the model ------------------------------------------------------------------------
    model = build_model(cfg.model.model_name, num_classes=num_classes, **cfg.model_arguments())
    preflight.require_fitting_clips(cfg.model.model_name, model, cfg.data, training=False)
    load_weights(model, stored)
    model.to(world.device)
    precision = cfg.test.mixed_precision
    if precision == "train":
        precision = cfg.train.mixed_precision
    number_format = str(tasks.PRECISION[precision]).removeprefix("torch.")

    # ---- scores ---------------------------------------------------------------------------
    if world.is_main:
        voice.open(folder)
    voice.say(
        f"testing {weights} on {len(manifest)} videos of {cfg.data.path_to_data_dir or 'the set'}, "
        f"{views} x {crops} views (clips in time x crops), in {number_format}"
    )
    voice.say(manifest.describe_classes())
    if only := manifest.only_class():
        voice.say(f"note: all videos are of one class ({only})")
    differences = _differences(stored, spec, multi_label=cfg.data.multi_label)
    for note in [*manifest.notes, *loader.notes, *differences]:
        voice.say(f"note: {note}")
    with stop:
        scores = score_all(
            cfg, world, model, loader, precision=precision, stop=stop, voice=voice, what="test"
        )
    if scores is None:
        voice.say("the test was interrupted; nothing was written")
        return stop.exit_code(saved=False)

    # ---- results --------------------------------------------------------------------------
    results = {
        **summary(scores, manifest),
        "views": {"temporal": views, "spatial": crops},
        "precision": number_format,
        "checkpoint": str(weights),
        "epoch": stored.epoch,
        "model": cfg.model.model_name,
        "failed": [{"path": f.path, "reason": f.reason} for f in scores.failed],
        "seconds": round(time.monotonic() - began, 1),
        "versions": {"hiera_video": __version__, "torch": str(torch.__version__)},
        "config": cfg.to_yaml(),
    }
    world.run_on_main(write_results, folder, results, scores, manifest)
    for line in describe(results):
        voice.say(line)
    voice.stats("test_final", split="test_final", **final_record(results))
    return 0


def read_test_list(cfg: Any, stored: Checkpoint, num_classes: int) -> Manifest:
    """The videos to test, with labels that are numbers of the checkpoint's outputs."""
    manifest = preflight.read_test_split(
        cfg.data,
        stored_settings=stored.settings,
        stored_list=stored.trained_on,
        dataset=cfg.test.dataset,
        seed=cfg.rng_seed,
        synthetic=cfg.synthetic,
        num_classes=num_classes,
    )
    return fit_labels(
        manifest,
        names=stored.classes,
        count=num_classes,
        owner=stored.label,
        guessed=stored.classes_guessed,
    )


def _find_checkpoint(cfg: Any, say: Callable[[str], None]) -> str:
    """What TEST.CHECKPOINT_FILE_PATH names, else the newest checkpoint of OUTPUT_DIR."""
    if cfg.test.checkpoint_file_path:
        return cfg.test.checkpoint_file_path
    folder = Path(cfg.output_dir).expanduser() / "checkpoints"
    newest = checkpoint.latest(folder, say)
    if newest is None:
        raise UserError(
            f"nothing to test: {folder} holds no checkpoint; train first, or set "
            "TEST.CHECKPOINT_FILE_PATH to a file, an address or a published name"
        )
    return str(newest[0])


def resolve_everywhere(world: distributed.World, weights: str, model_name: str) -> Any:
    """`resolve` on every process; what must be downloaded, once."""
    world.run_on_main(lambda: resolve(weights, model_name) and None)
    return resolve(weights, model_name)


def _outputs_of(stored: Checkpoint, weights: str, wanted: int) -> int:
    """Classes of the checkpoint; UserError where it has no classifier or another number."""
    if stored.num_classes is None:
        raise UserError(
            f"{weights} has no classifier to test (a pretrained autoencoder has none): "
            "fine-tune it first, with TRAIN.CHECKPOINT_FILE_PATH"
        )
    if wanted and wanted != stored.num_classes:
        raise UserError(
            f"{weights} has {stored.num_classes} classes, MODEL.NUM_CLASSES says {wanted}"
        )
    return stored.num_classes


def _differences(stored: Checkpoint, spec: Any, *, multi_label: bool) -> list[str]:
    notes = []
    if stored.multi_label and not multi_label:
        notes.append(
            "the checkpoint was trained with several labels a video (sigmoid), and is tested with "
            "one (softmax): DATA.MULTI_LABEL False"
        )
    if stored.spec is None or stored.spec == spec:
        return notes
    theirs, ours = stored.spec.to_dict(), spec.to_dict()
    changed = [f"{k} {theirs[k]} there, {ours[k]} here" for k in ours if theirs[k] != ours[k]]
    return [*notes, f"the checkpoint was trained with other clips: {'; '.join(changed)}"]


class Counter:
    """Progress over the videos of a loader: how many are done, how fast, how long yet."""

    def __init__(self, voice: report.Report, loader: Loader, what: str):
        self.voice, self.what, self.done, self.began = voice, what, 0, time.monotonic()
        self.total = min(len(loader) * loader.batch_size, len(loader.dataset))

    def count(self, videos: int) -> None:
        """So many more are done."""
        self.done += videos
        rate = self.done / max(time.monotonic() - self.began, 1e-9)
        left = report.duration((self.total - self.done) / rate) if rate else "unknown"
        self.voice.progress(
            f"{self.what}  {self.done}/{self.total} videos  {rate:.2f} videos/s  eta {left}"
        )


# ---- files --------------------------------------------------------------------------------------


def final_record(results: dict[str, Any]) -> dict[str, Any]:
    """The last json_stats line, as SlowFast spells it: accuracies with two decimals, as text."""
    keys = [key for key in ("top1_acc", "top5_acc", "mean_class_acc", "map") if key in results]
    return {
        "n_videos": results["n_videos"],
        "n_failed": results["n_failed"],
        **{key: f"{results[key]:.2f}" for key in keys},
    }


def describe(results: dict[str, Any]) -> list[str]:
    """The result in words."""
    names = {
        "top1_acc": "top-1",
        "top5_acc": "top-5",
        "mean_class_acc": "mean per class",
        "map": "mAP",
    }
    found = ", ".join(f"{word} {results[k]:.2f} %" for k, word in names.items() if k in results)
    views = results["views"]
    lines = [
        f"test: {found} on {results['n_videos'] - results['n_failed']} videos, "
        f"{views['temporal']} x {views['spatial']} views"
    ]
    if results["n_failed"]:
        lines.append(
            f"{results['n_failed']} of {results['n_videos']} videos could not be decoded and are "
            "in none of these numbers; predictions.csv says which"
        )
    return lines


def write_results(
    folder: Path,
    results: dict[str, Any],
    scores: Scores,
    manifest: Manifest,
) -> None:
    """results.json, predictions.csv, confusion.csv, confusion.png, per_class.csv."""
    num_classes = scores.rows.shape[1]
    names = list(manifest.classes or ()) or [str(i) for i in range(num_classes)]
    _write_predictions(folder / "predictions.csv", scores, manifest, names)
    if not manifest.multi_label:
        labels = labels_of(manifest, scores.video_ids, num_classes)
        confusion = metrics.confusion_matrix(scores.rows.argmax(1), labels, num_classes)
        _write_confusion(folder / "confusion.csv", confusion, names)
        _write_per_class(folder / "per_class.csv", confusion, names)
        report.draw_confusion(confusion, names, folder / "confusion.png")
    text = json.dumps(report.finite(results), indent=1, ensure_ascii=False)
    # A name that is not valid UTF-8 is escaped as JSON escapes: "\udcff".
    files.write_text(folder / "results.json", text + "\n", errors="backslashreplace")


def _write_predictions(path: Path, scores: Scores, manifest: Manifest, names: list[str]) -> None:
    """One line per video of the list: the label, the five best classes, why there is no score."""
    best = min(5, len(names))
    header = ["video", "label", "correct"]
    header += [f"{what}{k}" for k in range(1, best + 1) for what in ("class", "score")]
    rows: dict[int, list[Any]] = {}
    for video_id, row in zip(scores.video_ids.tolist(), scores.rows, strict=True):
        # stable, so that ties are ranked as the metrics rank them
        order = row.argsort(descending=True, stable=True)[:best].tolist()
        pairs = [x for c in order for x in (names[c], Decimal(f"{row[c].item():.6f}"))]
        truth = _label_of(manifest, video_id)
        rows[video_id] = [_names_of(truth, names), int(order[0] in truth), *pairs, ""]
    for failed in scores.failed:
        truth = _names_of(_label_of(manifest, failed.video_id), names)
        rows[failed.video_id] = [truth, "", *[""] * (2 * best), failed.reason]
    with csv_file(path, [*header, "error"]) as add:
        for video_id in sorted(rows):
            add([path_cell(manifest.paths[video_id]), *rows[video_id]])


def _label_of(manifest: Manifest, video_id: int) -> tuple[int, ...]:
    label = manifest.label(video_id)
    return label if isinstance(label, tuple) else (label,)


def _names_of(labels: Sequence[int], names: list[str]) -> str:
    return ";".join(names[label] for label in labels)


def _write_confusion(path: Path, confusion: Tensor, names: list[str]) -> None:
    with csv_file(path, ["true \\ predicted", *names]) as add:
        for name, row in zip(names, confusion.tolist(), strict=True):
            add([name, *row])


def _write_per_class(path: Path, confusion: Tensor, names: list[str]) -> None:
    accuracy = metrics.per_class_accuracy(confusion).tolist()
    counts = confusion.sum(dim=1).tolist()
    with csv_file(path, ["class", "videos", "accuracy"]) as add:
        for name, count, value in zip(names, counts, accuracy, strict=True):
            add([name, count, Decimal(f"{value:.2f}") if count else ""])
