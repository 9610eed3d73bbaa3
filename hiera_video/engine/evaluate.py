"""Test a model: K temporal views x S spatial crops -> one row of scores per video -> metrics.

Every video counts once, under any number of processes. A video that cannot be decoded is counted
in `n_failed` and never replaced: metrics are over the videos that were scored, and say how many.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hiera_video import __version__
from hiera_video.clip_spec import ClipSpec
from hiera_video.config import Config
from hiera_video.config.training import TestConfig
from hiera_video.data.batch import Batch, Failed
from hiera_video.data.datasets import TestReader, VideoDataset
from hiera_video.data.loader import Loader, LoaderSettings, build_loader
from hiera_video.data.manifests.layouts import Manifest
from hiera_video.data.relabel import fit_labels
from hiera_video.engine import checkpoint, memory, page_facts, preflight, results, sharding, tasks
from hiera_video.engine.data_source import DataSource, read_test_split
from hiera_video.engine.distributed import World
from hiera_video.engine.parts import Evaluation, Metrics
from hiera_video.engine.prefetch import DevicePrefetcher
from hiera_video.engine.results import Scores
from hiera_video.engine.run_folder import RunFolder
from hiera_video.engine.run_logger import RunLogger
from hiera_video.engine.signals import Stop
from hiera_video.engine.step import blank
from hiera_video.errors import RunFailed, UserError, first_few
from hiera_video.models import build_model
from hiera_video.models.weights.file import Checkpoint
from hiera_video.models.weights.load import load_weights
from hiera_video.models.weights.published import PublishedWeights
from hiera_video.models.weights.resolve import resolve
from hiera_video.progress import Progress
from hiera_video.run_page.facts import Clip, Outcome
from hiera_video.run_page.page import RunPage
from hiera_video.scoring import ScoreSettings, clip_scores, score_batch

# ---- scores -------------------------------------------------------------------------------------


def score_settings(cfg: Config, precision: str) -> ScoreSettings:
    """Return how the clips of a run are scored. precision: off, bf16 or fp16."""
    return ScoreSettings(
        batch_size=cfg.test.batch_size,
        dtype=tasks.PRECISION[precision],
        multi_label=cfg.sigmoid_scores,
    )


def test_settings(cfg: Config) -> ScoreSettings:
    """Return how the clips of the test are scored."""
    precision = cfg.test.mixed_precision
    return score_settings(cfg, cfg.train.mixed_precision if precision == "train" else precision)


def score_videos(
    model: nn.Module,
    loader: Loader,
    settings: ScoreSettings,
    *,
    world: World,
    stopped: Callable[[], bool] = lambda: False,
    on_video: Callable[[int], None] = lambda count: None,
) -> Scores | None:
    """Score all videos of a test loader; every process returns the scores of all.

    Returns None if any process was asked to stop.

    Args:
        model: on `world.device`; it is put into eval mode.
        loader: this process's share of the videos.
        settings: batch size, number format, softmax or sigmoid.
        stopped: whether this process was asked to stop.
        on_video: called with the number of videos that are done since the last call.

    Raises RunFailed: no video can be read, scores that are not finite, too little memory.
    """
    parts = world.gather_parts(
        lambda: _score_own(model, loader, settings, world, stopped, on_video),
        name="scored",
        stopped=stopped,
        explain=lambda error: raise_memory_error(error, settings.batch_size),
        attend=lambda: attend(model, loader, settings, world),
    )
    return None if parts is None else _merged(parts)


def attend(model: nn.Module, loader: Loader, settings: ScoreSettings, world: World) -> None:
    """Take part in the forward passes of the other processes, if the model is sharded."""
    sharding.attend(
        model,
        world,
        lambda: score_batch(model, blank(loader.dataset).clips.to(world.device), settings),
    )


def raise_memory_error(error: Exception, batch_size: int) -> None:
    """Raise RunFailed, with advice, where `error` says that memory ran out; else do nothing."""
    shortage = memory.shortage(error)
    if shortage is not None:
        raise RunFailed(
            f"{shortage}, with {batch_size} views per forward pass: lower TEST.BATCH_SIZE, which "
            "changes no result"
        ) from error


class _Part(NamedTuple):
    """The scores of one process."""

    video_ids: Tensor
    rows: Tensor | None
    """None where no video could be read."""
    failed: list[Failed]


def each_batch(
    score: Callable[[Batch, Callable[[], None]], None],
    loader: Loader,
    *,
    world: World,
    stopped: Callable[[], bool],
    on_video: Callable[[int], None],
) -> list[Failed] | None:
    """Call `score` with each batch that has clips, on the device; return what could not be read.

    score: its second argument starts to fetch the next batch, to be called once the work on this
    one is queued. The others are those of `score_videos`; None if any process was asked to stop.
    """
    failed: list[Failed] = []
    batches = DevicePrefetcher(loader, world.device, loader.dataset.spec)
    for batch in batches:
        if world.any_stopped(stopped()):
            return None
        failed += batch.failed
        if len(batch.video_ids):
            score(batch, batches.fetch)
        on_video(len(batch.failed) + len(batch.video_ids.unique()))
    return failed


def _score_own(
    model: nn.Module,
    loader: Loader,
    settings: ScoreSettings,
    world: World,
    stopped: Callable[[], bool],
    on_video: Callable[[int], None],
) -> _Part | None:
    """Score this process's share of the videos; None if any process was asked to stop."""
    model.eval()
    ids: list[Tensor] = []
    rows: list[Tensor] = []

    def score(batch: Batch, fetch: Callable[[], None]) -> None:
        views = clip_scores(model, batch.clips, settings, device=world.device, queued=fetch)
        # the views of a video are neighbours
        videos, counts = batch.video_ids.unique_consecutive(return_counts=True)
        ids.append(videos)
        rows.extend(part.mean(dim=0) for part in views.split(counts.tolist()))

    failed = each_batch(score, loader, world=world, stopped=stopped, on_video=on_video)
    if failed is None:
        return None
    return _Part(
        torch.cat(ids) if ids else torch.zeros(0, dtype=torch.int64),
        torch.stack(rows) if rows else None,
        failed,
    )


def _merged(parts: Sequence[_Part]) -> Scores:
    """Merge the scores of all processes, in the order of the list."""
    failed = sorted(f for part in parts for f in part.failed)
    scored = [(part.video_ids, part.rows) for part in parts if part.rows is not None]
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


class ClassScores:
    """The usual evaluation: class scores of whole videos."""

    def __init__(self, *, multi_label: bool) -> None:
        self.best = "map" if multi_label else "top1_acc"

    def answers(
        self,
        model: nn.Module,
        loader: Loader,
        settings: ScoreSettings,
        *,
        world: World,
        stopped: Callable[[], bool],
        on_video: Callable[[int], None],
    ) -> Scores | None:
        """Score all videos, as `score_videos` says."""
        return score_videos(
            model, loader, settings, world=world, stopped=stopped, on_video=on_video
        )

    def metrics(self, answers: Scores, manifest: Manifest) -> Metrics:
        """Compute top-1, top-5 and the mean per class, or mAP."""
        return results.compute_metrics(answers, manifest)

    def failed(self, answers: Scores) -> Sequence[Failed]:
        """Return the videos that could not be read."""
        return answers.failed

    def describe(self, content: dict[str, Any]) -> list[str]:
        """Describe the result in a line or two."""
        return results.describe(content)

    def write(
        self, folder: Path, content: dict[str, Any], answers: Scores, manifest: Manifest
    ) -> None:
        """Write predictions.csv, the confusion and the rest."""
        results.write_results(folder, content, answers, manifest)

    def page(
        self, answers: Scores, manifest: Manifest, *, lines: Sequence[str], notes: Sequence[str]
    ) -> tuple[Outcome, list[Clip]]:
        """Describe classes and videos."""
        tested = page_facts.tested_facts(answers, manifest, lines=lines, notes=notes)
        return tested, page_facts.tested_clips(answers, manifest)


def evaluation_of(cfg: Config) -> Evaluation:
    """Return what the objective of a run measures."""
    parts = tasks.get(cfg.task).parts
    if parts is not None:
        return parts.evaluation(cfg)
    return ClassScores(multi_label=cfg.data.multi_label)


class VideoProgress:
    """Progress over the videos of a loader: how many are done, videos a second, time left."""

    def __init__(self, logger: RunLogger, loader: Loader, what: str) -> None:
        total = min(len(loader) * loader.batch_size, len(loader.dataset))
        self.logger, self.progress = (
            logger,
            Progress(what, total, unit=loader.dataset.manifest.unit),
        )

    def update(self, videos: int) -> None:
        """Count so many more videos as done."""
        self.progress.add(videos)
        self.logger.progress(f"{self.progress.what}  {self.progress.facts()}")


BEST_OF_RUN = "best"
"""TEST.CHECKPOINT_FILE_PATH that means the best checkpoint of OUTPUT_DIR."""


# ---- the test -----------------------------------------------------------------------------------


def test(cfg: Config, world: World, stop: Stop) -> int:
    """Test a checkpoint as TEST says; return the exit code: 0, or `stop.exit_code` if stopped.

    Writes results.json, predictions.csv and, with one label per video, confusion.csv,
    confusion.png and per_class.csv to OUTPUT_DIR.
    Raises UserError (nothing to test, a checkpoint of another model, data missing), RunFailed (no
    video can be read).
    """
    with RunLogger(None, quiet=not world.is_main) as logger:
        weights = world.run_on_main(_find_checkpoint, cfg.test, cfg.output_dir, logger.info)
        with RunFolder(cfg.output_dir, world) as folder:
            return _test(cfg, world, stop, folder=folder.path, weights=weights, logger=logger)


def _test(
    cfg: Config,
    world: World,
    stop: Stop,
    *,
    folder: Path,
    weights: str,
    logger: RunLogger,
) -> int:
    began = time.monotonic()
    stored, _ = resolve_everywhere(world, weights, cfg.model.model_name)
    num_classes = _num_classes(stored, weights, cfg.model.num_classes)
    manifest = world.run_on_main(_read_test_list, cfg, stored, num_classes)
    loader = _build_test_loader(cfg, world, manifest)
    model = _build_tested_model(cfg, stored, num_classes).to(world.device)
    settings = test_settings(cfg)

    if world.is_main:
        logger.open(folder)
    lines, notes = _introduction(cfg, weights, stored, loader, settings)
    for line in (*lines, *(f"note: {note}" for note in notes)):
        logger.info(line)
    evaluation = evaluation_of(cfg)
    with stop:
        answers = evaluation.answers(
            model,
            loader,
            settings,
            world=world,
            stopped=lambda: stop.requested,
            on_video=VideoProgress(logger, loader, "test").update,
        )
    if answers is None:
        logger.info("the test was interrupted; nothing was written")
        return stop.exit_code(saved=False)

    content = {
        **evaluation.metrics(answers, manifest),
        "views": {"temporal": cfg.test.num_ensemble_views, "spatial": cfg.test.num_spatial_crops},
        "precision": _name_of(settings.dtype),
        "checkpoint": str(weights),
        "epoch": stored.epoch,
        "model": cfg.model.model_name,
        "failed": [{"path": f.path, "reason": f.reason} for f in evaluation.failed(answers)],
        "seconds": round(time.monotonic() - began, 1),
        "versions": {"hiera_video": __version__, "torch": str(torch.__version__)},
        "config": cfg.to_yaml(),
    }
    world.run_on_main(evaluation.write, folder, content, answers, manifest)
    result = evaluation.describe(content)
    for line in result:
        logger.info(line)
    logger.log_stats("test_final", split="test_final", **results.final_record(content))
    if cfg.page.enable:
        tested, clips = evaluation.page(answers, manifest, lines=[lines[0], *result], notes=notes)
        world.run_on_main(_show_test, cfg, logger, tested, clips)
    return 0


def _show_test(cfg: Config, logger: RunLogger, tested: Outcome, clips: Sequence[Clip]) -> None:
    """Show a test on the page of the run, and say where that is."""
    assert logger.folder is not None
    page = RunPage(logger.folder, logger.info)
    page.add_test(
        tested,
        clips,
        most_pictures=cfg.page.max_pictures,
        decoder=cfg.data.decoding_backend,
    )
    logger.add_page(page)
    logger.show(tested.lines[1], live=False)
    if page.works:
        logger.info(f"page of this run: {page.index}")


def _build_test_loader(cfg: Config, world: World, manifest: Manifest) -> Loader:
    """Build this process's share of the test videos, with all views of a video in one batch."""
    views, crops = cfg.test.num_ensemble_views, cfg.test.num_spatial_crops
    parts = tasks.get(cfg.task).parts
    if parts is not None:
        dataset = parts.test_set(cfg, manifest, crops=crops)
    else:
        reader = TestReader(
            cfg.data.clip_spec(training=False),
            num_views=views,
            num_crops=crops,
            decoder=cfg.data.decoding_backend,
        )
        dataset = VideoDataset(manifest, reader)
    return build_loader(
        dataset,
        LoaderSettings(
            batch_size=max(1, cfg.test.batch_size // (views * crops)),
            num_workers=world.loader_workers(cfg.data_loader.num_workers),
            rank=world.rank,
            world_size=world.size,
            pin_memory=cfg.data_loader.pin_memory,
        ),
    )


def _build_tested_model(cfg: Config, stored: Checkpoint, num_classes: int) -> nn.Module:
    """Build the model of the MODEL settings and load the checkpoint into it."""
    name = cfg.model.model_name
    model = build_model(name, num_classes=num_classes, **cfg.model_arguments())
    preflight.require_fitting_clips(name, model, cfg.data, training=False)
    load_weights(model, stored)
    return model


def _introduction(
    cfg: Config, weights: str, stored: Checkpoint, loader: Loader, settings: ScoreSettings
) -> tuple[list[str], list[str]]:
    """Describe in a few lines what is tested, on what; and notes."""
    manifest = loader.dataset.manifest
    lines = [
        f"testing {weights} on {len(manifest)} {manifest.unit} of "
        f"{cfg.data.path_to_data_dir or 'the set'}, "
        f"{cfg.test.num_ensemble_views} x {cfg.test.num_spatial_crops} views (clips in time x "
        f"crops), in {_name_of(settings.dtype)}",
        manifest.describe_classes(),
    ]
    notes = [*manifest.notes, *loader.notes]
    if only := manifest.only_class():
        notes.insert(0, f"all videos are of one class ({only})")
    notes += _differences(stored, loader.dataset.spec, multi_label=settings.multi_label)
    return lines, notes


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _read_test_list(cfg: Config, stored: Checkpoint, num_classes: int) -> Manifest:
    """Read the videos to test, with labels that are indices of the checkpoint's outputs."""
    parts = tasks.get(cfg.task).parts
    if parts is not None:
        manifest = parts.read_split(cfg, "test")
        return _require_same_classes(manifest, stored, num_classes)
    source = DataSource(cfg.data, cfg.test.dataset, cfg.rng_seed, cfg.synthetic)
    manifest = read_test_split(
        source,
        stored_settings=stored.settings,
        stored_list=stored.trained_on,
        num_classes=num_classes,
    )
    return fit_labels(
        manifest,
        names=stored.classes,
        count=num_classes,
        owner=stored.label,
        guessed=stored.classes_guessed,
    )


def _require_same_classes(manifest: Manifest, stored: Checkpoint, num_classes: int) -> Manifest:
    """Return a list whose labels cannot be renumbered; UserError for other classes than the
    checkpoint's, or in another order."""
    names, classes = list(stored.classes or ()), list(manifest.classes or ())
    if not names or not classes:
        if manifest.num_classes != num_classes:
            raise UserError(
                f"{stored.label} has {num_classes} outputs, the data {manifest.num_classes} classes"
            )
        note = f"{stored.label} names no classes: its outputs are taken in the order of the data"
        return replace(manifest, notes=(*manifest.notes, note))
    if names != classes:
        differing = [f"{a} / {b}" for a, b in zip(names, classes, strict=False) if a != b]
        raise UserError(
            f"{stored.label} was trained on {len(names)} classes and the data has {len(classes)}; "
            f"the first that differ (checkpoint / data): {first_few(differing) or 'the last'}. "
            "Name the list of actions that it was trained with (AVA.LABEL_MAP_FILE)"
        )
    return manifest


def _find_checkpoint(test: TestConfig, output_dir: str, log: Callable[[str], None]) -> str:
    """Return TEST.CHECKPOINT_FILE_PATH, or the newest or best checkpoint of OUTPUT_DIR."""
    folder = Path(output_dir).expanduser() / "checkpoints"
    if test.checkpoint_file_path == BEST_OF_RUN:
        return str(checkpoint.best_path(folder))
    if test.checkpoint_file_path:
        return test.checkpoint_file_path
    newest = checkpoint.latest(folder, log)
    if newest is None:
        raise UserError(
            f"nothing to test: {folder} holds no checkpoint; train first, or set "
            "TEST.CHECKPOINT_FILE_PATH to a file, an address or a published name"
        )
    return str(newest[0])


def resolve_everywhere(
    world: World, weights: str, model_name: str
) -> tuple[Checkpoint, PublishedWeights | None]:
    """Call `weights.resolve` on every process; rank 0 downloads the file first, if it must be."""
    world.run_on_main(lambda: resolve(weights, model_name) and None)
    return resolve(weights, model_name)


def _num_classes(stored: Checkpoint, weights: str, expected: int) -> int:
    """Return the classes of the checkpoint; UserError without a classifier, or for another number.

    expected: MODEL.NUM_CLASSES; 0 takes any.
    """
    if stored.num_classes is None:
        raise UserError(
            f"{weights} has no classifier to test (a pretrained model has none): "
            "fine-tune it first, with TRAIN.CHECKPOINT_FILE_PATH"
        )
    if expected and expected != stored.num_classes:
        raise UserError(
            f"{weights} has {stored.num_classes} classes, MODEL.NUM_CLASSES says {expected}"
        )
    return stored.num_classes


def _differences(stored: Checkpoint, spec: ClipSpec, *, multi_label: bool) -> list[str]:
    """Note where the test reads clips or scores in another way than the training did."""
    notes = []
    if stored.multi_label and not multi_label:
        notes.append(
            "the checkpoint was trained with several labels a video (sigmoid), and is tested with "
            "one (softmax): DATA.MULTI_LABEL False"
        )
    if stored.spec is None or stored.spec == spec:
        return notes
    theirs, ours = asdict(stored.spec), asdict(spec)
    changed = [f"{k} {theirs[k]} there, {ours[k]} here" for k in ours if theirs[k] != ours[k]]
    return [*notes, f"the checkpoint was trained with other clips: {'; '.join(changed)}"]
