"""What `generate` times: clips drawn stage by stage, and by several processes. Needs numba."""

from __future__ import annotations

import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier

import numpy as np
import torch

from hiera_video.benchmarks.measure import Candidate
from hiera_video.benchmarks.stopwatch import Stopwatch
from hiera_video.data.preload import PRELOAD
from hiera_video.data.synthetic.body_motion.clips import (
    ClipSettings,
    draw_clip,
    frame_times,
    truth_of,
    without_future,
)
from hiera_video.data.synthetic.body_motion.light import film
from hiera_video.data.synthetic.body_motion.scene import random_scene
from hiera_video.data.synthetic.body_motion.streams import stream
from hiera_video.video.processes import end_with_parent, fork_server

WARM_UP = 20
"""Clips that a process draws first: among them are all kinds, so that everything is compiled."""

TOGETHER = 4
"""Clips that a process takes at once: few, so that all processes end at about the same time."""


# ---- by stage -----------------------------------------------------------------------------------


def draw_in_stages(
    seed: int, settings: ClipSettings, watch: Stopwatch
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the clip of `draw_clip` and its truth, and time the stages, `generate.STAGES`."""
    with watch("scene"):
        t = frame_times(seed, settings)
        scene = random_scene(seed, t, settings.frames)
    with watch("drawing"):
        picture, owner = without_future(scene, settings).draw(settings.size)
    with watch("film"):
        frames = film(stream(seed, "light"), picture, t[: settings.frames])
    with watch("truth"):
        truth = truth_of(scene, owner)
    return frames, truth


def in_stages(clips: int, settings: ClipSettings) -> Candidate:
    """A candidate whose call draws `clips` clips in this process, with the CPU time by stage."""
    watch = Stopwatch()

    def draw() -> None:
        watch.reset()
        for seed in range(clips):
            draw_in_stages(seed, settings, watch)

    warm_up(settings)
    facts = {"table": "stages", "frames": settings.frames, "size": settings.size}
    # CPU time: other work on the machine adds little to it
    parts = lambda: dict(watch.cpu_seconds)  # noqa: E731
    return Candidate(facts, run=draw, samples=clips, parts=parts)


# ---- by several processes -----------------------------------------------------------------------


def processes(count: int, settings: ClipSettings) -> ProcessPoolExecutor:
    """Processes that draw clips, started by the first call; none draws before all are warm."""
    context = fork_server(PRELOAD)  # as a loader's workers are started
    return ProcessPoolExecutor(
        count, context, initializer=_start, initargs=(context.Barrier(count), settings)
    )


def in_processes(
    pool: ProcessPoolExecutor, count: int, clips: int, settings: ClipSettings
) -> Candidate:
    """A candidate whose call draws `clips` clips for each of the pool's `count` processes."""

    def draw() -> list[int]:
        seeds = range(count * clips)
        return list(pool.map(_drawn_bytes, seeds, [settings] * len(seeds), chunksize=TOGETHER))

    return Candidate({"table": "processes", "processes": count}, run=draw, samples=count * clips)


def warm_up(settings: ClipSettings) -> None:
    """Compile, and make the textures that all clips share."""
    for seed in range(WARM_UP):
        draw_clip(seed, settings)


def _start(barrier: Barrier, settings: ClipSettings) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to report
    end_with_parent()
    torch.set_num_threads(1)
    warm_up(settings)
    barrier.wait()


def _drawn_bytes(seed: int, settings: ClipSettings) -> int:
    """Draw a clip and its truth; returns their bytes, which stay in the process."""
    frames, truth = draw_clip(seed, settings)
    return frames.nbytes + truth.nbytes
