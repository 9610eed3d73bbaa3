"""TRAIN.GRAD_ACCUM auto: the largest part of a step that fits into memory, found by trying.

The batch of the recipe stays, and with it order, learning rate and loss; only the number of parts
in which it is computed follows from the memory. A try is a real step of the run's own model, data
and optimizer on a copy that is thrown away. The processes try at the same time and take what fits
all of them; in a try none waits for another, so that one may run out of memory.

On a GPU a part that does not fit is an error that can be caught. On a CPU the system would kill the
process, or the machine would stand still: there a child process takes steps of one and of two
videos, a line through their memory says how many fit, and the child confirms it under a limit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from hiera_video.config import Config
from hiera_video.data.batch import Batch
from hiera_video.data.boxes import BatchBoxes
from hiera_video.engine import build, memory, meters, optim
from hiera_video.engine.distributed import World
from hiera_video.engine.meters import StepTimer
from hiera_video.engine.prefetch import DevicePrefetcher
from hiera_video.engine.step import blank, set_mode, update
from hiera_video.errors import RunFailed, UserError
from hiera_video.registry import import_user_module
from hiera_video.video.limits import limit_memory
from hiera_video.video.processes import end_with_parent, fork_server

GPU_ROOM = 0.1
"""Share of the GPU's free memory that a part leaves: other clips, DistributedDataParallel and
torch.compile need other amounts than a try."""

CPU_ROOM = 0.3
"""The same of the machine's memory, in which workers and the validation have to live as well."""

MOST_VIDEOS_TO_FIND_ONE = 8
"""Videos that are read until one can be."""

PRELOAD = ("hiera_video.data.worker_imports",)


class Trial(Protocol):
    """Tells whether a part of so many videos fits into memory on this process."""

    what: str
    """The memory in question."""

    def fits(self, videos: int) -> bool:
        """Whether a step with parts of so many videos fits."""


def choose(
    cfg: Config, data: build.TrainingData, world: World, note: Callable[[str], None]
) -> tuple[Config, list[str]]:
    """Return the settings with a number for TRAIN.GRAD_ACCUM, and a note on what was found.

    note: called with what is being done, which takes a while.
    Raises UserError where parts would change the result, RunFailed where not one video fits.
    """
    solver = cfg.solver
    if cfg.train.grad_accum:
        return cfg, []
    if not solver.max_epoch and not solver.max_steps:  # the probe alone: there are no steps
        return _with_parts(cfg, 1), []
    choices = part_sizes(cfg.train.batch_size, world.size, len(data.dataset))
    if not choices:
        return _with_parts(cfg, 1), []  # the loader says why no number of parts would do
    if build.is_sharded_run(cfg, world):
        raise UserError(
            "TRAIN.GRAD_ACCUM auto tries whole models, and TRAIN.SHARDING fsdp leaves a part "
            "of one on each process: set TRAIN.GRAD_ACCUM to a number"
        )
    _require_no_batch_norm(cfg, data)
    note("TRAIN.GRAD_ACCUM auto: trying how many videos fit into memory at a time")
    batch = one_video(cfg, data, world)
    with _trial(cfg, data, world, batch) as trial:
        for parts, videos in choices.items():
            if all(world.all_gather(trial.fits(videos))):
                return _with_parts(cfg, parts), [_found(choices, parts, world, trial.what)]
    raise RunFailed(
        f"not one video at a time fits {trial.what}. MODEL.ACT_CHECKPOINT true takes less, and so "
        "do TRAIN.MIXED_PRECISION bf16 (on a GPU), smaller clips (DATA.NUM_FRAMES, "
        "DATA.TRAIN_CROP_SIZE), fewer clips of a video (AUG.NUM_SAMPLE) or a smaller model"
    )


def part_sizes(batch_size: int, processes: int, videos: int) -> dict[int, int]:
    """Return how a step can be cut: number of parts -> videos of a part on a process, the largest
    first. Every cut has the same videos in a step; empty where none is possible.

    videos: of the whole list, which is fewer than `batch_size` for a small set.
    """
    whole = min(batch_size, videos // processes * processes)
    if batch_size % processes or not whole:
        return {}
    share = batch_size // processes
    return {
        parts: whole // (processes * parts)
        for parts in range(1, share + 1)
        if share % parts == 0 and whole % (processes * parts) == 0
    }


def _with_parts(cfg: Config, parts: int) -> Config:
    return dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, grad_accum=parts))


def _found(choices: dict[int, int], parts: int, world: World, what: str) -> str:
    """Return the line that says what was found and chosen."""
    sizes = list(choices.values())
    place = sizes.index(choices[parts])
    larger = f", and {sizes[place - 1]} do not" if place else ""
    several = f"{world.size} processes x " if world.size > 1 else ""
    return (
        f"TRAIN.GRAD_ACCUM auto: {choices[parts]} video{'s' * (choices[parts] > 1)} at a time fit "
        f"{what}{larger}; a step is {parts} part{'s' * (parts > 1)} x {several}{choices[parts]}, "
        f"TRAIN.GRAD_ACCUM {parts}"
    )


def _require_no_batch_norm(cfg: Config, data: build.TrainingData) -> None:
    with torch.device("meta"):
        model, _ = build.training_model(cfg, num_classes=data.num_classes)
    if not cfg.train.linear_probe and any(isinstance(m, _BatchNorm) for m in model.modules()):
        raise UserError(
            f"TRAIN.GRAD_ACCUM auto would change what {cfg.model.model_name} learns, whose batch "
            "norm sees one part of a step at a time: set TRAIN.GRAD_ACCUM to a number"
        )


# ---- what is tried ------------------------------------------------------------------------------


def one_video(cfg: Config, data: build.TrainingData, world: World) -> Batch:
    """Return the clips of one training video of this process; black ones where the first ones
    cannot be read."""
    train = dataclasses.replace(cfg.train, batch_size=world.size, grad_accum=1)
    steps = min(MOST_VIDEOS_TO_FIND_ONE, len(data.dataset) // world.size)
    loader = build.training_loader(
        dataclasses.replace(cfg, train=train), data.dataset, world, end=steps
    )
    try:
        for batch in loader:
            if len(batch.video_ids):
                return batch
    finally:
        loader.close()
    return repeated(blank(data.dataset), data.dataset.clips_per_video)


def repeated(batch: Batch, times: int) -> Batch:
    """Return a batch with the clips of `batch` several times."""

    def again(tensor: Tensor) -> Tensor:
        return torch.cat([tensor] * times)

    boxes = batch.boxes
    if boxes is not None:
        count = len(batch.video_ids)
        clips = torch.cat([boxes.clips + i * count for i in range(times)])
        boxes = BatchBoxes(clips, *(again(tensor) for tensor in boxes[1:]))
    return batch._replace(
        clips=again(batch.clips),
        labels=again(batch.labels),
        video_ids=again(batch.video_ids),
        views=again(batch.views),
        truth=None if batch.truth is None else again(batch.truth),
        boxes=boxes,
    )


class Rehearsal:
    """Steps of a run on a copy of its model, on this process alone."""

    def __init__(
        self, cfg: Config, data: build.TrainingData, batch: Batch, device: torch.device
    ) -> None:
        # Two parts: from the second one on, gradients take memory beside the activations.
        train = dataclasses.replace(cfg.train, compile=False, grad_accum=2, batch_size=2)
        self._cfg = dataclasses.replace(cfg, train=train)
        self._batch, self._device, self._spec = batch, device, data.dataset.spec
        alone = World(device=device)
        model, _ = build.initial_model(self._cfg, data)
        self._state = build.initial_state(self._cfg, data, model, alone)
        self._plan = build.plan_of(self._cfg, data.dataset, alone)
        self._forward = build.forward_passes(
            self._cfg, self._state.model, alone, data, self._plan, lambda line: None
        )
        set_mode(self._state.model, linear_probe=train.linear_probe)

    def take(self, videos: int) -> None:
        """Take a step whose second part has so many videos; raises what running out of memory
        raises."""
        state, many = self._state, repeated(self._batch, videos)
        # a third batch waits on the device meanwhile
        optim.set_lr(state.optimizer, self._cfg.solver.base_lr)
        batches = DevicePrefetcher([self._batch, many, many], self._device, self._spec)
        totals = self._forward.backward(batches, 0, state.scaler, StepTimer())
        limit = self._cfg.solver.clip_grad_l2norm
        update(state.optimizer, state.scaler, state.trained, totals, self._plan, limit)
        if state.ema is not None:
            state.ema.update(state.model, 0)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def fits(self, videos: int) -> bool:
        """Take a step; returns whether there was memory for it."""
        try:
            self.take(videos)
        except (RuntimeError, MemoryError) as error:
            if not _ran_out(error):
                raise
        else:
            return True
        self._state.optimizer.zero_grad(set_to_none=True)
        return False


def _ran_out(error: BaseException) -> bool:
    """Whether an error, or what it explains, is too little memory.

    oneDNN cannot make its kernel, a "primitive", where a limit leaves no memory for it.
    """
    causes = [error, *filter(None, [error.__cause__])]
    return any(
        memory.shortage(cause) is not None or "could not create a primitive" in str(cause)
        for cause in causes
    )


@contextlib.contextmanager
def _trial(cfg: Config, data: build.TrainingData, world: World, batch: Batch) -> Iterator[Trial]:
    if world.device.type == "cuda":
        with _gpu_limited(world.device):
            yield GpuTrial(cfg, data, batch, world.device)
    else:
        with CpuTrial(cfg, data, batch, world.local_size) as trial:
            yield trial


# ---- on a GPU -----------------------------------------------------------------------------------


class GpuTrial:
    """Tries in this process; a part that does not fit raises, and nothing of it stays."""

    def __init__(
        self, cfg: Config, data: build.TrainingData, batch: Batch, device: torch.device
    ) -> None:
        self._rehearsal = Rehearsal(cfg, data, batch, device)
        self._ready = self._rehearsal.fits(1)  # from now on the optimizer's moments are there
        self.what = f"the GPU with {GPU_ROOM:.0%} of its free memory left"

    def fits(self, videos: int) -> bool:
        """Take a step with a part of so many videos."""
        found = self._ready and self._rehearsal.fits(videos)
        gc.collect()
        torch.cuda.empty_cache()
        return found


@contextlib.contextmanager
def _gpu_limited(device: torch.device) -> Iterator[None]:
    """Leave `GPU_ROOM` of the free memory to others; afterwards all is as before."""
    free, total = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device)
    share = (free * (1 - GPU_ROOM) + held) / total
    torch.cuda.set_per_process_memory_fraction(min(share, 1.0), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


# ---- on a CPU -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """Peak memory of a step over the videos of its parts."""

    of_one: int
    """Bytes of a part of one video."""
    slope: int
    """Bytes of each further video."""

    def at(self, videos: int) -> int:
        """Return the bytes of a part of so many videos."""
        return self.of_one + (videos - 1) * self.slope


class CpuTrial:
    """Tries in a child process, whose memory is measured and limited. A context manager.

    sharing: processes of the run on this machine, which divide its memory.
    """

    def __init__(self, cfg: Config, data: build.TrainingData, batch: Batch, sharing: int) -> None:
        free = memory.available()
        if math.isinf(free):
            raise UserError(
                "TRAIN.GRAD_ACCUM auto cannot tell how much memory is free on this system: set a "
                "number"
            )
        self._budget = int(free * (1 - CPU_ROOM)) // sharing
        self.what = (
            f"the {meters.format_gib(self._budget)}iB that this process may take (of what is free, "
            f"{CPU_ROOM:.0%} is left)"
        )
        context = fork_server(PRELOAD)
        self._connection, theirs = multiprocessing.Pipe()
        order = (cfg, data, batch, self._budget, torch.get_num_threads())
        self._child = context.Process(target=_try_in_child, args=(theirs, *order), daemon=True)
        self._child.start()
        theirs.close()
        self._peaks: dict[int, int | None] = {}

    def __enter__(self) -> CpuTrial:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._child.kill()
        self._child.join()

    def fits(self, videos: int) -> bool:
        """Whether the line through parts of one and two videos says so, and a try does as well."""
        if not self._within(1):
            return False
        if videos == 1:
            return True
        if not self._within(2):
            return False
        one, two = self._peak(1), self._peak(2)
        assert one is not None
        assert two is not None
        line = Line(one, max(0, two - one))
        return line.at(videos) <= self._budget and self._within(videos)

    def _within(self, videos: int) -> bool:
        peak = self._peak(videos)
        return peak is not None and peak <= self._budget

    def _peak(self, videos: int) -> int | None:
        """Return the child's peak memory with such a part; None where it ran out of memory."""
        if videos not in self._peaks:
            try:
                self._connection.send(videos)
                answer = self._connection.recv()
            except (EOFError, OSError):  # it was killed
                answer = None
            if isinstance(answer, Exception):
                raise answer
            self._peaks[videos] = answer
        return self._peaks[videos]


def _try_in_child(
    connection: Connection,
    cfg: Config,
    data: build.TrainingData,
    batch: Batch,
    *limits: int,
) -> None:
    """Answer numbers of videos with the peak memory of this process in bytes, None where memory ran
    out, or an error. limits: bytes that may be allocated, and threads."""
    end_with_parent()
    budget, threads = limits
    torch.set_num_threads(threads)
    limit_memory(budget)
    rehearsal = None
    with contextlib.suppress(EOFError, OSError):
        while videos := connection.recv():
            try:
                if rehearsal is None:
                    for name in cfg.imports:
                        import_user_module(name)
                    rehearsal = Rehearsal(cfg, data, batch, torch.device("cpu"))
                    rehearsal.fits(1)  # from now on the optimizer's moments are there
                connection.send(memory.peak_of_process() if rehearsal.fits(videos) else None)
            except Exception as error:
                connection.send(None if _ran_out(error) else RunFailed(f"a try failed: {error}"))
