"""A dry run: a few real steps of any config, to know what it needs before it is given a day.

Model, batch, precision, loader and processes are those of the run; nothing is written. Where the
data is not there, generated clips stand in for it, real files that are really decoded. On a CPU a
recipe for GPUs is tried in small: a few clips of each step, in float32 where the CPU has nothing
faster; it says so, and times are worked out for whole steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hiera_video.engine import optim, preflight, report, tasks, train
from hiera_video.engine.distributed import World
from hiera_video.engine.prefetch import DevicePrefetcher
from hiera_video.scoring import native_on_cpu

STAND_INS = 4
"""Generated videos; a list names them over and over."""

CLIPS_ON_CPU = 4
"""Clips of a step, per process, that a CPU is tried with: of a Hiera-B, a minute."""

USUAL_SIZES = {400: 240_000, 600: 390_000, 700: 545_000, 174: 168_913}
"""Training videos of Kinetics-400/600/700 (about, copies differ) and of Something-Something v2, by
their number of classes: what a full schedule is worked out for where the data is not there."""


def run(cfg: Any, world: World, *, steps: int) -> None:
    """Do `steps` steps and print peak memory, time per step, clips per second, and how long the
    whole schedule would take at that speed."""
    voice = report.Report(None, quiet=not world.is_main)
    with contextlib.ExitStack() as stack:
        generated = world.run_on_main(_is_missing, cfg)
        if generated:
            folder = stack.enter_context(_shared_folder(world))
            world.run_on_main(_generate, cfg, folder, steps)
            cfg = _on_generated(cfg, folder)
            voice.say(f"dry run on generated clips: {generated}")
        whole = cfg.train.batch_size
        if world.device.type == "cpu":
            cfg, remarks = _in_small(cfg, world)
            for remark in remarks:
                voice.say(remark)
        part = cfg.train.batch_size / whole
        _run(cfg, world, voice, steps=steps, generated=bool(generated), part=part)


def _in_small(cfg: Any, world: World) -> tuple[Any, list[str]]:
    """What a CPU can do of a config, and a sentence for each thing that differs."""
    train_cfg, remarks = cfg.train, []
    if not native_on_cpu(tasks.PRECISION[train_cfg.mixed_precision]):
        remarks.append(
            f"this CPU emulates {train_cfg.mixed_precision}, a hundred times slower than float32: "
            "float32 in its place (TRAIN.MIXED_PRECISION off)"
        )
        train_cfg = dataclasses.replace(train_cfg, mixed_precision="off")
    per_video = cfg.aug.num_sample * cfg.data.train_crop_num_temporal
    videos = max(1, CLIPS_ON_CPU // per_video) * world.size
    if videos < train_cfg.batch_size:
        remarks.append(
            f"on a CPU: {videos} of a step's {train_cfg.batch_size} videos are taken; memory is "
            "that of these, times are worked out for all"
        )
        train_cfg = dataclasses.replace(train_cfg, batch_size=videos, grad_accum=1)
    return dataclasses.replace(cfg, train=train_cfg), remarks


def _run(
    cfg: Any,
    world: World,
    voice: report.Report,
    *,
    steps: int,
    generated: bool,
    part: float,
) -> None:
    """The steps of `cfg`, each of which is a `part` of one of the run's."""
    manifest, val_list = world.run_on_main(train.read_lists, cfg)
    if cfg.task == "classify" and not generated:
        preflight.require_classes(manifest)
    dataset = train.training_set(cfg, manifest)
    plan = train.plan_of(cfg, dataset, world)
    num_classes = cfg.model.num_classes or manifest.num_classes
    model, _ = train.build(cfg, num_classes=num_classes)
    model.to(world.device)
    if cfg.train.linear_probe:
        train.freeze_backbone(model)
    if Path(cfg.train.checkpoint_file_path).expanduser().is_file():
        # generated clips have no classes that could be compared with those of the weights
        names = None if generated else train.class_names(cfg, manifest)
        train.start_from_weights(cfg, world, model, voice.say, classes=names)
    elif cfg.train.checkpoint_file_path:
        voice.say(f"starting weights {cfg.train.checkpoint_file_path}: not fetched, random instead")
    optimizer = train.build_optimizer(cfg.solver, model, world.device)
    scaler = torch.amp.GradScaler(world.device.type, enabled=cfg.train.mixed_precision == "fp16")
    ema = optim.Ema(model, cfg.train.ema_decay) if cfg.train.ema_decay else None
    forward = train.Forward(cfg, world, model, dataset=dataset, plan=plan, num_classes=num_classes)
    loader = train.training_loader(cfg, dataset, world, start=0, end=steps)
    notes = [] if generated else train.list_notes(manifest, val_list)
    what, schedule, classes, *notes = train.introduction(
        cfg, world, model, plan, manifest.describe_classes(), [*notes, *loader.notes]
    )
    voice.say(what)
    voice.say(f"{plan.clips_per_step} clips a step" if generated else schedule)
    for line in notes if generated else [classes, *notes]:
        voice.say(line)

    trained = [p for p in model.parameters() if p.requires_grad]
    train.set_mode(model, linear_probe=cfg.train.linear_probe)
    batches, clock = DevicePrefetcher(loader, world.device, dataset.spec), report.Clock()
    seconds: list[float] = []
    for step in range(steps):
        began = time.perf_counter()
        optim.set_lr(optimizer, optim.lr_at(step, **plan.lr_settings()))
        totals = forward.backward(batches, step, scaler, clock)
        norm = train.update(
            optimizer, scaler, trained, world.all_reduce(totals), plan, cfg.solver.clip_grad_l2norm
        )
        if ema is not None:
            ema.update(model, step)
        loss = (totals[0] / totals[1].clamp(min=1)).item()  # waits for the device: the step is over
        clock.step_done(int(totals[1]))
        seconds.append(time.perf_counter() - began)
        voice.say(
            f"step {step + 1}/{steps}: loss {loss:.4f}, grad norm {norm.item():.3g}, "
            f"{seconds[-1]:.2f} s"
        )
    for line in _findings(cfg, world, plan, seconds, clock, generated=generated, part=part):
        voice.say(line)


def _findings(
    cfg: Any,
    world: World,
    plan: preflight.Schedule,
    seconds: list[float],
    clock: report.Clock,
    *,
    generated: bool,
    part: float,
) -> list[str]:
    """What whole steps cost; the first, which warms up, is left out where there are others."""
    counted = seconds[1:] or seconds
    per_step = sum(counted) / len(counted) / part
    videos_per_step = round(plan.videos_per_step / part)
    memory = max(world.gather(report.peak_memory(world.device)))
    where = "GPU memory" if world.device.type == "cuda" else "memory of the process"
    lines = [
        f"peak {where}: {report.gibibytes(memory)}iB",
        f"time per step: {per_step:.3f} s ({clock.data_seconds / clock.seconds:.0%} waiting for "
        f"data), {'without the first' if len(seconds) > 1 else 'with the warm-up of the first'}",
        f"samples per second: {videos_per_step * plan.clips_per_video / per_step:.3g} clips, "
        f"{videos_per_step / per_step:.3g} videos",
    ]
    total, videos = plan.total_steps, plan.videos
    if part < 1 and not cfg.solver.max_steps:
        total = max(1, round(total * part))
    if generated and not cfg.solver.max_steps:
        videos = USUAL_SIZES.get(cfg.model.num_classes, 0)
        total = videos // videos_per_step * cfg.solver.max_epoch
        if not videos:
            whole_run = per_step * (100_000 / videos_per_step) * cfg.solver.max_epoch
            return [
                *lines,
                f"full schedule: {cfg.solver.max_epoch} epochs; {report.duration(whole_run)} "
                "for every 100,000 training videos, validation not counted",
            ]
    guess = " (as many as the public set has)" if generated and not cfg.solver.max_steps else ""
    return [
        *lines,
        f"full schedule: {total} steps over {videos} videos{guess} at this speed: "
        f"{report.duration(per_step * total)}, validation not counted",
    ]


# ---- generated clips ----------------------------------------------------------------------------


def _is_missing(cfg: Any) -> str:
    """Why the data cannot be used, or "" where it is there."""
    if cfg.train.dataset == "synthetic":
        return ""
    path = cfg.data.path_to_data_dir
    if path and Path(path).expanduser().exists():
        return ""
    return (
        f"DATA.PATH_TO_DATA_DIR {path} does not exist" if path else "DATA.PATH_TO_DATA_DIR is empty"
    )


@contextlib.contextmanager
def _shared_folder(world: World) -> Iterator[str]:
    """A temporary folder of the main process that all processes see; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="hiera_video_dry_") as own:
        yield world.broadcast(own)
        world.barrier()


def _generate(cfg: Any, folder: str, steps: int) -> None:
    """A few camera-motion videos and lists that name them as often as `steps` steps need."""
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


def _on_generated(cfg: Any, folder: str) -> Any:
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
