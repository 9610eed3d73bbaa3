"""The dry run: a few real steps of any config, to measure what the whole run needs.

Model, batch, precision, loader and processes are those of the run; nothing is written. Where the
data is missing, generated clips are used in its place: real files that are really decoded. On a CPU
a recipe for GPUs is tried with fewer clips in a step, and in float32 where the CPU emulates its
number format; the dry run says so, and the times it prints are scaled to whole steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from hiera_video.config import Config
from hiera_video.config.generated import GENERATED_SETS
from hiera_video.data.synthetic.generated_streams import STREAMS
from hiera_video.engine import auto_batch, build, meters, optim, preflight, sharding, tasks
from hiera_video.engine.distributed import World
from hiera_video.engine.log import describe_run
from hiera_video.engine.meters import StepTimer
from hiera_video.engine.prefetch import DevicePrefetcher
from hiera_video.engine.run_logger import RunLogger
from hiera_video.engine.schedule import Schedule
from hiera_video.engine.state import TrainingState, start_from_weights
from hiera_video.engine.step import Forward, set_mode, update
from hiera_video.models.weights.resolve import bundled
from hiera_video.scoring import native_on_cpu
from hiera_video.video.processes import usable_cores

STAND_INS = 4
"""Generated videos; the lists name them again and again."""

MOST_WAITING = 0.15
"""Share of the time that steps may wait for data before the loader is said to be the limit."""

CLIPS_ON_CPU = 4
"""Clips of a step, per process, on a CPU: a minute for Hiera-B."""

USUAL_SIZES = {400: 240_000, 600: 390_000, 700: 545_000, 174: 168_913, 60: 211_000}
"""Number of classes -> training videos of Kinetics-400/600/700 (about; copies differ) and
Something-Something v2, key frames of AVA (about): the full schedule is computed for these where the
data is missing."""


@dataclass(frozen=True)
class DryRun:
    """What is tried, and how it differs from the run."""

    cfg: Config
    steps: int
    generated: bool
    """Whether generated clips are used in place of the data."""
    part: float
    """Videos in a step, as a share of the run's."""


def run(cfg: Config, world: World, *, steps: int) -> None:
    """Take `steps` steps and print peak memory, time per step, clips per second, and how long the
    whole schedule would take at that speed."""
    logger = RunLogger(None, quiet=not world.is_main)
    with contextlib.ExitStack() as stack:
        missing = world.run_on_main(_missing_data, cfg)
        if missing:
            folder = stack.enter_context(_shared_folder(world))
            parts = tasks.get(cfg.task).parts
            if parts is not None:
                clips = cfg.train.batch_size * steps
                cfg = world.run_on_main(parts.stand_in, cfg, Path(folder), clips)
            else:
                world.run_on_main(_generate, cfg, folder, steps)
                cfg = _on_generated(cfg, folder)
            logger.info(f"dry run on generated clips: {missing}")
        batch_size = cfg.train.batch_size
        if world.device.type == "cpu":
            cfg, differences = _scaled_down(cfg, world)
            for difference in differences:
                logger.info(difference)
        part = cfg.train.batch_size / batch_size
        _measure(DryRun(cfg, steps, bool(missing), part), world, logger)


def _scaled_down(cfg: Config, world: World) -> tuple[Config, list[str]]:
    """Return what a CPU can do of a config, and a sentence for each thing that differs."""
    settings, differences = cfg.train, []
    if not native_on_cpu(tasks.PRECISION[settings.mixed_precision]):
        differences.append(
            f"this CPU emulates {settings.mixed_precision}, a hundred times slower than float32: "
            "float32 in its place (TRAIN.MIXED_PRECISION off)"
        )
        settings = dataclasses.replace(settings, mixed_precision="off")
    per_video = cfg.aug.num_sample * cfg.data.train_crop_num_temporal
    videos = max(1, CLIPS_ON_CPU // per_video) * world.size
    if videos < settings.batch_size:
        differences.append(
            f"on a CPU: {videos} of a step's {settings.batch_size} videos are taken; memory is "
            "measured with these, times are scaled to all"
        )
        settings = dataclasses.replace(settings, batch_size=videos, grad_accum=1)
    return dataclasses.replace(cfg, train=settings), differences


def _measure(dry: DryRun, world: World, logger: RunLogger) -> None:
    """Build the run, take its steps and print what they cost."""
    data = build.training_data(dry.cfg, world)
    choices: list[str] = []
    if not dry.generated:
        cfg, choices = build.choose_by_size(dry.cfg, data)
        dry = dataclasses.replace(dry, cfg=cfg)
    cfg, found = auto_batch.choose(dry.cfg, data, world, logger.info)
    dry, choices = dataclasses.replace(dry, cfg=cfg), [*choices, *found]
    if data.labelled and not dry.generated:
        preflight.require_classes(data.train_list)
    plan = build.plan_of(cfg, data.dataset, world)
    model, _ = build.initial_model(cfg, data)
    _load_weights(dry, model, data, world, logger)
    state = build.initial_state(cfg, data, model, world)
    forward = build.forward_passes(cfg, state.model, world, data, plan, logger.info)
    loader = build.training_loader(cfg, data.dataset, world, end=dry.steps)
    name = f"{cfg.task} {cfg.model.model_name}"
    logger.info(describe_run(name, state.model, world, cfg.train.mixed_precision))
    if dry.generated:
        logger.info(f"{plan.clips_per_step} clips a step")
    else:
        logger.info(str(plan))
        logger.info(data.train_list.describe_classes())
    for note in [
        *([] if dry.generated else data.notes),
        *loader.notes,
        *choices,
        *sharding.note_of(cfg.train.sharding, world),
    ]:
        logger.info(f"note: {note}")

    set_mode(state.model, linear_probe=cfg.train.linear_probe)
    batches = DevicePrefetcher(loader, world.device, data.dataset.spec)
    clock = StepTimer(window=1)  # of each step by itself
    seconds: list[float] = []
    waits: list[float] = []
    for number in range(1, dry.steps + 1):
        began = time.perf_counter()
        loss, norm = _take_step(cfg, state, forward, batches, clock)
        seconds.append(time.perf_counter() - began)
        waits.append(clock.data_seconds)
        logger.info(
            f"step {number}/{dry.steps}: loss {loss:.4f}, grad norm {norm:.3g}, {seconds[-1]:.2f} s"
        )
    for line in _costs(dry, world, plan, seconds, waits):
        logger.info(line)


def _load_weights(
    dry: DryRun,
    model: nn.Module,
    data: build.TrainingData,
    world: World,
    logger: RunLogger,
) -> None:
    """Load the weights that the run starts from, if they are a file; nothing is downloaded."""
    weights = dry.cfg.train.checkpoint_file_path
    if weights in bundled() or Path(weights).expanduser().is_file():
        # The classes of generated clips cannot be compared with those of the weights.
        classes = None if dry.generated else data.classes
        name = dry.cfg.model.model_name
        start_from_weights(weights, name, model, world, logger.info, classes=classes)
    elif weights:
        logger.info(f"starting weights {weights}: not fetched, random instead")


def _take_step(
    cfg: Config,
    state: TrainingState,
    forward: Forward,
    batches: DevicePrefetcher,
    clock: StepTimer,
) -> tuple[float, float]:
    """Take one optimizer step and wait for its end; returns its loss and gradient norm."""
    plan, world = forward.plan, forward.world
    optim.set_lr(state.optimizer, optim.lr_at(state.step, plan.lr))
    totals = world.all_reduce(forward.backward(batches, state.step, state.scaler, clock))
    norm = update(
        state.optimizer, state.scaler, state.trained, totals, plan, cfg.solver.clip_grad_l2norm
    )
    if state.ema is not None:
        state.ema.update(state.model, state.step)
    loss = (totals[0] / totals[1].clamp(min=1)).item()  # waits for the device: the step is over
    clock.step_done(int(totals[1]))
    state.step += 1
    return loss, norm.item()


def _costs(
    dry: DryRun,
    world: World,
    plan: Schedule,
    seconds: list[float],
    waits: list[float],
) -> list[str]:
    """Return what whole steps cost; the first, which warms up, is left out if there are others.

    seconds, waits: of each step, and of them until its data was there.
    """
    counted = seconds[1:] or seconds
    per_step = sum(counted) / len(counted) / dry.part
    videos_per_step = round(plan.videos_per_step / dry.part)
    memory = max(world.all_gather(meters.peak_memory(world.device)))
    where = "GPU memory" if world.device.type == "cuda" else "memory of the process"
    waiting = sum(waits[1:] or waits) / sum(counted)
    return [
        f"peak {where}: {meters.format_gib(memory)}iB",
        f"time per step: {per_step:.3f} s ({waiting:.0%} waiting for "
        f"data), {'without the first' if len(seconds) > 1 else 'with the warm-up of the first'}",
        f"samples per second: {videos_per_step * plan.clips_per_video / per_step:.3g} clips, "
        f"{videos_per_step / per_step:.3g} videos",
        _limit(dry, world, waiting),
        f"full schedule: {_full_schedule(dry, plan, per_step, videos_per_step)}",
    ]


def _limit(dry: DryRun, world: World, waiting: float) -> str:
    """Return what would have to be faster for faster steps: the loader or the device."""
    workers = world.loader_workers(dry.cfg.data_loader.num_workers)
    if waiting > MOST_WAITING:
        return (
            f"limit: the loader, with {workers} worker processes on {usable_cores()} cores: more "
            "of both (DATA_LOADER.NUM_WORKERS), or smaller videos (hiera-video prepare)"
        )
    return f"limit: the model on this {world.device.type.upper().replace('CUDA', 'GPU')}"


def _full_schedule(dry: DryRun, plan: Schedule, per_step: float, videos_per_step: int) -> str:
    """Return how many steps the run has and how long they take."""
    solver = dry.cfg.solver
    if not solver.max_epoch and not solver.max_steps:
        views = dry.cfg.train.probe_views
        return f"no steps, the probe alone: {views} clips of each training video, forward only"
    total, videos, guess = plan.total_steps, plan.videos, ""
    if dry.part < 1 and not solver.max_steps:
        total = max(1, round(total * dry.part))
    if dry.generated and not solver.max_steps:
        guess = " (as many as the public set has)"
        videos = USUAL_SIZES.get(dry.cfg.model.num_classes, 0)
        total = videos // videos_per_step * solver.max_epoch
        if not videos:
            whole_run = per_step * (100_000 / videos_per_step) * solver.max_epoch
            return (
                f"{solver.max_epoch} epochs; {meters.format_duration(whole_run)} "
                "for every 100,000 training videos, validation not counted"
            )
    return (
        f"{total} steps over {videos} videos{guess} at this speed: "
        f"{meters.format_duration(per_step * total)}, validation not counted"
    )


# ---- generated clips ----------------------------------------------------------------------------


def _missing_data(cfg: Config) -> str:
    """Return why the data cannot be used; "" where it is there."""
    if cfg.train.dataset in (*GENERATED_SETS, *STREAMS):
        return ""
    path = cfg.data.path_to_data_dir
    if path and Path(path).expanduser().exists():
        return ""
    return (
        f"DATA.PATH_TO_DATA_DIR {path} does not exist" if path else "DATA.PATH_TO_DATA_DIR is empty"
    )


@contextlib.contextmanager
def _shared_folder(world: World) -> Iterator[str]:
    """Make a temporary folder on the main process and name it to all; deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="hiera_video_dry_") as own:
        yield world.broadcast(own)
        world.barrier()


def _generate(cfg: Config, folder: str, steps: int) -> None:
    """Write a few camera-motion videos, and lists that name them as often as `steps` steps need."""
    from hiera_video.data.synthetic.camera_motion import SetSettings, make_dataset

    side = -(-max(cfg.data.train_crop_size, 32) * 8 // 7)
    span = cfg.data.num_frames * (1 if cfg.data.segments else cfg.data.sampling_rate)
    form = SetSettings(
        num_train=STAND_INS,
        num_val=0,
        size=side + side % 2,
        frames=max(span, 2),
        fps=max(1, round(cfg.data.target_fps)),
    )
    videos = make_dataset(Path(folder) / "videos", form, workers=1)
    files = sorted(str(path) for path in videos.rglob("*.mp4"))
    classes = cfg.model.num_classes or STAND_INS
    lines = [
        f"{files[i % len(files)]} {i % classes}\n" for i in range(cfg.train.batch_size * steps)
    ]
    for split in ("train", "val"):
        (Path(folder) / f"{split}.csv").write_text("".join(lines), encoding="utf-8")


def _on_generated(cfg: Config, folder: str) -> Config:
    """Return the config with the generated lists in place of its data."""
    data = dataclasses.replace(
        cfg.data,
        path_to_data_dir=folder,
        path_prefix="",
        format="kinetics_csv",
        path_label_separator=" ",
        class_names="",
    )
    model = dataclasses.replace(cfg.model, num_classes=cfg.model.num_classes or STAND_INS)
    return dataclasses.replace(cfg, data=data, model=model)
