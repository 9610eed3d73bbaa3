"""Project how long an epoch takes to read, from the times of a few clips."""

from __future__ import annotations

import contextlib
import time

import numpy as np

from hiera_video.preparation.audit.cache import AuditCache, FileState, clip_key
from hiera_video.preparation.audit.jobs import ClipJob
from hiera_video.preparation.audit.lists import UNUSED
from hiera_video.preparation.audit.result import AuditOptions, AuditResult, Projection
from hiera_video.video.guarded_pool import GuardedPool, WorkerFailure
from hiera_video.video.limits import imports_allowed

_CLIPS_TIMED = 16
"""Videos of which one clip is timed."""


def project_read_time(
    result: AuditResult, cache: AuditCache, options: AuditOptions
) -> Projection | None:
    """Time clips of videos spread over the first split. None if no clip can be read."""
    if not result.splits or result.splits[0].name == UNUSED:
        return None
    entries = np.flatnonzero(result.files.usable[result.entries_of(0)])
    if not len(entries):
        return None
    spread = np.linspace(0, len(entries) - 1, min(_CLIPS_TIMED, len(entries))).astype(np.int64)
    files = {}
    for entry in entries[spread].tolist():
        with contextlib.suppress(OSError):  # deleted meanwhile
            files[entry] = FileState.of(result.path(entry))
    seconds = _clip_seconds(files, cache, options)
    if not seconds:
        return None
    mean = sum(seconds) / len(seconds)
    return Projection(len(seconds), mean, len(entries), max(options.loader_workers, 1))


def _clip_seconds(
    files: dict[int, FileState], cache: AuditCache, options: AuditOptions
) -> list[float]:
    """Return the seconds that reading a clip takes, of each file where that works."""
    key = clip_key(options.clip, options.decoder)
    seconds = {entry: cache.clip_seconds(file, key) for entry, file in files.items()}
    jobs = [
        ClipJob(entry, files[entry].path, options.clip, options.decoder)
        for entry, known in seconds.items()
        if known is None
    ]
    if jobs:
        name = "hiera_video.preparation.audit.projection.time_clip"
        with GuardedPool(name, time_limit=options.time_limit) as pool:
            for job, measured in pool.map(jobs):
                if not isinstance(measured, WorkerFailure):
                    seconds[job.entry] = measured
                    cache.store_clip_seconds(files[job.entry], key, measured)
    return [known for known in seconds.values() if known is not None]


def time_clip(job: ClipJob) -> float:
    """Return the seconds of one core to open a video, decode a random clip, crop and normalise it.

    Runs in a child process. Raises DecodeError.
    """
    with imports_allowed():
        import torch

        from hiera_video.data.datasets import Sample, TrainReader
        from hiera_video.data.transforms.train import TrainTransform

    torch.set_num_threads(1)
    reader = TrainReader(TrainTransform(job.spec, flip=0.0), decoder=job.decoder)
    reader(Sample(0, job.path, 0, 0))  # not timed: reads the file from disk, imports at first use
    start = time.process_time()
    reader(Sample(0, job.path, 0, 0))
    return time.process_time() - start
