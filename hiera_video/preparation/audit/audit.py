"""Tells the truth about a data set before training: every file, every line, every label.

    findings = Findings()
    parts, notes = read_parts(["videos/"], settings={}, as_configured=False, findings=findings)
    with AuditMemory(default_memory_file(), warn=print) as memory:
        result = audit(parts, findings, memory, spec=ClipSpec())

Files that the memory knows in their present state cost one `stat` each; the others are decoded from
end to end in child processes, since what is wrong with a video shows nowhere else. A list of a
million videos is a few flat arrays here, and what is found lies on disk.
"""

from __future__ import annotations

import bisect
import contextlib
import math
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.preload import PRELOAD as DATA_PRELOAD
from hiera_video.preparation.audit.duplicates import find_duplicates
from hiera_video.preparation.audit.lists import UNUSED, Part
from hiera_video.preparation.audit.memory import AuditMemory, Identity, clip_key
from hiera_video.preparation.audit.records import ClipJob, Findings, Job, Seen
from hiera_video.video.guarded_pool import GuardedPool, WorkerFailure
from hiera_video.video.sampling import span

__all__ = ["Audit", "Projection", "audit"]

AT_ONCE = 1000
"""Files that the memory is asked about at once."""

CLIPS_TIMED = 16
"""Videos of which a clip is read with a watch in hand."""

PRELOAD = ("hiera_video.preparation.audit.file", *DATA_PRELOAD)
"""What all children need: seconds of imports, paid once."""

Progress = Callable[[str, int, int], None]
"""progress(what, done, total): called often; total 0 ends it."""


@dataclass(frozen=True)
class Projection:
    """How long reading takes for an epoch."""

    clips_timed: int
    seconds_per_clip: float
    """Of one core: open, decode, crop, normalise."""
    videos: int
    workers: int

    @property
    def epoch_seconds(self) -> float:
        return self.seconds_per_clip * self.videos / self.workers


class Files:
    """What is known of N files, in columns."""

    def __init__(self, count: int) -> None:
        self.usable = np.zeros(count, bool)
        self.frames = np.zeros(count, np.int64)
        self.fps = np.zeros(count, np.float64)
        self.seconds = np.zeros(count, np.float64)
        self.rotation = np.zeros(count, np.int16)
        self.content = np.zeros((count, 2), np.uint64)
        """Digest of the decoded pictures, or of the file's ends where not all were decoded."""
        self.decoded = np.zeros(count, bool)
        """Whether it is of the pictures."""
        self.left_out = np.zeros(count, bool)
        """From a cleaned list."""

    def set(self, entry: int, seen: Seen) -> None:
        self.usable[entry] = not seen.kind
        self.frames[entry] = seen.frames
        self.fps[entry] = seen.fps
        self.seconds[entry] = seen.seconds
        self.rotation[entry] = seen.rotation
        digest = seen.pictures or seen.sample
        if digest:
            self.content[entry] = np.frombuffer(digest, np.uint64)
            self.decoded[entry] = bool(seen.pictures)


@dataclass
class Audit:
    """The whole of it."""

    parts: Sequence[Part]
    findings: Findings
    files: Files
    spec: ClipSpec
    looked_at: int = 0
    remembered: int = 0
    projection: Projection | None = None
    starts: list[int] = field(default_factory=list)
    """Where the entries of each part begin in `files`."""

    def of(self, part: int) -> slice:
        """The entries of one part."""
        return slice(self.starts[part], self.starts[part] + len(self.parts[part]))

    def where(self, entry: int) -> tuple[Part, int]:
        """The part of an entry, and its place there."""
        number = bisect.bisect_right(self.starts, entry) - 1
        return self.parts[number], entry - self.starts[number]

    def path(self, entry: int) -> str:
        part, index = self.where(entry)
        return part.manifest.paths[index]

    def complain(self, kind: str, entry: int, reason: str) -> None:
        part, index = self.where(entry)
        path = part.manifest.paths[index]
        self.findings.add(kind, part.name, part.line(index), path, reason)

    def usable_counts(self, part: int) -> np.ndarray:
        """Videos of each class that can be read: int64 [num_classes]."""
        manifest = self.parts[part].manifest
        usable = self.files.usable[self.of(part)]
        if manifest.label_ends is not None:
            usable = np.repeat(usable, np.diff(manifest.label_ends, prepend=0))
        labels = manifest.labels[usable & (manifest.labels >= 0)]
        return np.bincount(labels, minlength=manifest.num_classes)


def audit(
    parts: Sequence[Part],
    findings: Findings,
    memory: AuditMemory,
    *,
    spec: ClipSpec,
    quick: bool = False,
    workers: int = 1,
    time_limit: float = 120.0,
    decoder: str = "auto",
    loader_workers: int = 1,
    progress: Progress = lambda what, done, total: None,
) -> Audit:
    """Look at every file of `parts` that `memory` does not know, and draw the conclusions.

    What is learnt is in `memory` even where this ends by an exception (Ctrl-C).

    Args:
        spec: the clips that are to be taken from the videos.
        quick: list packets and decode first frames only; damage further on goes unnoticed, and
            duplicates are told by the size and both ends of the files.
        workers: child processes.
        time_limit: seconds one file may take.
        decoder: reads the clips that the projection is made from.
        loader_workers: what the projection counts with.
    """
    result = Audit(parts, findings, Files(sum(len(part) for part in parts)), spec)
    result.starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()[:-1]
    try:
        unknown = _recall(result, memory, quick=quick, progress=progress)
        _look(
            result,
            memory,
            unknown,
            quick=quick,
            workers=workers,
            time_limit=time_limit,
            progress=progress,
        )
    finally:
        memory.commit()
    _judge_sampling(result)
    _judge_labels(result)
    find_duplicates(result)
    result.projection = _project(result, memory, decoder, loader_workers, time_limit)
    return result


# ---- every file ---------------------------------------------------------------------------------


def _recall(result: Audit, memory: AuditMemory, *, quick: bool, progress: Progress) -> array:
    """Settle all files that are missing or remembered; the entries of the others."""
    unknown = array("q")
    total = len(result.files.usable)
    for first in range(0, total, AT_ONCE):
        present: list[tuple[int, Identity]] = []
        for entry in range(first, min(first + AT_ONCE, total)):
            try:
                present.append((entry, _identify(result.path(entry))))
            except OSError as error:
                _absent(result, entry, error)
        known = memory.known([identity for _, identity in present], quick=quick)
        for entry, identity in present:
            seen = known.get(identity.path)
            if seen is None:
                unknown.append(entry)
            else:
                _settle(result, entry, seen)
        progress("files found", min(first + AT_ONCE, total), total)
    progress("", 0, 0)
    result.remembered = total - len(unknown) - result.findings.count("missing")
    return unknown


def _identify(path: str) -> Identity:
    """Raises OSError where the file is not there (any more)."""
    path = os.path.abspath(path)
    status = os.stat(path)
    return Identity(path, status.st_size, status.st_mtime_ns)


def _absent(result: Audit, entry: int, error: OSError) -> None:
    path = result.path(entry)
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        result.complain("unreadable", entry, f"cannot be opened: {error.strerror}")
    elif os.path.islink(path):
        result.complain("missing", entry, f"a link to {os.readlink(path)}, which is not there")
    else:
        result.complain("missing", entry, "no such file")


def _look(
    result: Audit,
    memory: AuditMemory,
    unknown: Sequence[int],
    *,
    quick: bool,
    workers: int,
    time_limit: float,
    progress: Progress,
) -> None:
    """Have children examine the files of the `unknown` entries."""
    if not len(unknown):
        return
    identities: dict[int, Identity] = {}

    def jobs() -> Iterator[Job]:
        for entry in unknown:
            path = os.path.abspath(result.path(entry))
            with contextlib.suppress(OSError):  # gone since: the child will say so
                identities[entry] = _identify(path)
            # Of opening, and of decoding: the child stops by itself, in time to tell what it saw.
            yield Job(entry, path, quick, 0.4 * time_limit)

    workers = min(workers, len(unknown))
    name = "hiera_video.preparation.audit.file.examine"
    with GuardedPool(name, workers=workers, time_limit=time_limit, preload=PRELOAD) as pool:
        for job, seen in pool.map(jobs()):
            if isinstance(seen, WorkerFailure):
                seen = Seen("unreadable", seen.reason)
            identity = identities.pop(job.entry, None)
            if seen.lasting and identity is not None:
                memory.keep(identity, seen, quick=quick)
            _settle(result, job.entry, seen)
            result.looked_at += 1
            progress("files looked at", result.looked_at, len(unknown))
    progress("", 0, 0)


def _settle(result: Audit, entry: int, seen: Seen) -> None:
    result.files.set(entry, seen)
    if seen.kind:
        result.complain(seen.kind, entry, seen.reason)
    for kind, text in seen.remarks:
        result.complain(kind, entry, text)


# ---- what that means ----------------------------------------------------------------------------

SLOWEST, FASTEST = 9.5, 60.5
"""Frames a second; what cameras and web sites give lies between."""


def _judge_sampling(result: Audit) -> None:
    """Clips that do not fit, rotation, frame rates."""
    files, spec = result.files, result.spec
    files.left_out |= ~files.usable
    for entry in np.flatnonzero(files.usable & (files.rotation != 0)).tolist():
        result.complain("rotated", entry, f"by {files.rotation[entry]} degrees")
    for entry in np.flatnonzero(_has_odd_rate(files)).tolist():
        result.complain("odd_rate", entry, f"{files.fps[entry]:.4g} frames a second")
    rates, which = np.unique(files.fps, return_inverse=True)
    wanted = np.array([_frames_needed(spec, fps) for fps in rates.tolist()], np.int64)[which]
    for entry in np.flatnonzero(files.usable & (files.frames < wanted)).tolist():
        if spec.segments:
            reason = f"{files.frames[entry]} frames for {spec.num_frames} segments"
        else:
            reason = (
                f"{files.frames[entry]} frames at {files.fps[entry]:.4g} fps; a clip of "
                f"{spec.num_frames}x{spec.sampling_rate} takes {wanted[entry]}"
            )
        result.complain("too_short", entry, reason)


def _has_odd_rate(files: Files) -> np.ndarray:
    outside = (files.fps < SLOWEST) | (files.fps > FASTEST)
    return files.usable & outside & (files.frames > 1)


def _frames_needed(spec: ClipSpec, fps: float) -> int:
    """Frames of a video from which a clip is made without repeating one."""
    if spec.segments:
        return spec.num_frames
    return math.floor(span(spec.num_frames, spec.sampling_rate, fps, spec.target_fps))


def _judge_labels(result: Audit) -> None:
    """Classes without a video, and videos without a class among others that have one."""
    for number, part in enumerate(result.parts):
        manifest = part.manifest
        if not manifest.num_classes:
            continue
        listed = manifest.class_counts()
        usable = result.usable_counts(number)
        for label in np.flatnonzero(usable == 0).tolist():
            reason = f"class {label}"
            if manifest.classes:
                reason += f" ({manifest.classes[label]})"
            lost = f"none of its {listed[label]} videos can be read"
            reason += f": {lost}" if listed[label] else ": no video"
            result.findings.add("unused_label", part.name, 0, "", reason)
        if manifest.multi_label:
            bare = np.diff(manifest.label_ends, prepend=0) == 0
        else:
            bare = manifest.labels < 0
        for index in np.flatnonzero(bare).tolist() if not bare.all() else ():
            entry = result.starts[number] + index
            result.files.left_out[entry] = True
            result.complain("bad_line", entry, "no label, and other videos have one")


# ---- how long an epoch takes to read ------------------------------------------------------------


def _project(
    result: Audit, memory: AuditMemory, decoder: str, loader_workers: int, time_limit: float
) -> Projection | None:
    """From a few clips of the first part, spread over its videos; None where none can be read."""
    if not result.parts or result.parts[0].name == UNUSED:
        return None
    entries = np.flatnonzero(result.files.usable[result.of(0)])
    if not len(entries):
        return None
    places = np.linspace(0, len(entries) - 1, min(CLIPS_TIMED, len(entries))).astype(np.int64)
    key = clip_key(result.spec, decoder)
    identities = {}
    for entry in entries[places].tolist():
        with contextlib.suppress(OSError):
            identities[entry] = _identify(result.path(entry))
    times = {entry: memory.clip_seconds(identity, key) for entry, identity in identities.items()}
    jobs = [
        ClipJob(entry, identities[entry].path, result.spec, decoder)
        for entry, seconds in times.items()
        if seconds is None
    ]
    if jobs:
        name = "hiera_video.preparation.audit.file.time_clip"
        with GuardedPool(name, time_limit=time_limit, preload=PRELOAD) as pool:
            for job, seconds in pool.map(jobs):
                if not isinstance(seconds, WorkerFailure):
                    times[job.entry] = seconds
                    memory.keep_clip_seconds(identities[job.entry], key, seconds)
    measured = [seconds for seconds in times.values() if seconds is not None]
    if not measured:
        return None
    mean = sum(measured) / len(measured)
    return Projection(len(measured), mean, len(entries), max(loader_workers, 1))
