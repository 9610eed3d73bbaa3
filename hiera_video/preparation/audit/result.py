"""The options of an audit and its result: a few flat arrays, also for a million videos."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hiera_video.clip_spec import ClipSpec
from hiera_video.preparation.audit.findings import Finding, Findings
from hiera_video.preparation.audit.jobs import FileCheck
from hiera_video.preparation.audit.lists import Split


@dataclass(frozen=True)
class AuditOptions:
    """How an audit examines files."""

    clip: ClipSpec
    """The clips that training takes from the videos."""
    quick: bool = False
    """List the packets and decode the first frame only. Damage after it goes unnoticed, and
    duplicates are found by the size and both ends of the files."""
    workers: int = 1
    """Child processes."""
    time_limit: float = 120.0
    """Seconds for one file."""
    decoder: str = "auto"
    """Decoder of the clips that are timed for the projection."""
    loader_workers: int = 1
    """Loader processes that the projection assumes."""


@dataclass(frozen=True)
class Projection:
    """How long an epoch takes to read."""

    clips_timed: int
    seconds_per_clip: float
    """Seconds of one core to open a video, decode a clip, crop and normalise it."""
    videos: int
    workers: int

    @property
    def epoch_seconds(self) -> float:
        return self.seconds_per_clip * self.videos / self.workers


class FileTable:
    """The results for N files, as columns."""

    def __init__(self, count: int) -> None:
        self.usable = np.zeros(count, bool)
        self.frames = np.zeros(count, np.int64)
        self.fps = np.zeros(count, np.float64)
        self.seconds = np.zeros(count, np.float64)
        self.rotation = np.zeros(count, np.int16)
        self.digest = np.zeros((count, 2), np.uint64)
        """Digest of the decoded frames, or of the file's ends if not all were decoded."""
        self.decoded = np.zeros(count, bool)
        """True where `digest` is that of the decoded frames."""
        self.left_out = np.zeros(count, bool)
        """True where cleaned lists leave the file out."""

    def set(self, entry: int, check: FileCheck) -> None:
        """Store the result of one file."""
        self.usable[entry] = not check.kind
        self.frames[entry] = check.frames
        self.fps[entry] = check.fps
        self.seconds[entry] = check.seconds
        self.rotation[entry] = check.rotation
        digest = check.frames_digest or check.ends_digest
        if digest:
            self.digest[entry] = np.frombuffer(digest, np.uint64)
            self.decoded[entry] = bool(check.frames_digest)


class AuditResult:
    """The result of an audit. The entries of all splits are numbered one after the other."""

    def __init__(self, splits: Sequence[Split], findings: Findings, clip: ClipSpec) -> None:
        self.splits = splits
        self.findings = findings
        self.clip = clip
        self.files = FileTable(sum(len(split) for split in splits))
        self.num_examined = 0
        self.num_cached = 0
        self.projection: Projection | None = None
        self.starts: list[int] = np.cumsum([0, *(len(split) for split in splits)]).tolist()[:-1]
        """The first entry of each split."""

    def entries_of(self, number: int) -> slice:
        """Return the entries of one split."""
        return slice(self.starts[number], self.starts[number] + len(self.splits[number]))

    def locate(self, entry: int) -> tuple[Split, int]:
        """Return the split of an entry and its index there."""
        number = bisect.bisect_right(self.starts, entry) - 1
        return self.splits[number], entry - self.starts[number]

    def path(self, entry: int) -> str:
        """Return the path of an entry."""
        split, index = self.locate(entry)
        return split.manifest.paths[index]

    def add_finding(self, kind: str, entry: int, reason: str) -> None:
        """Add a finding about one file."""
        split, index = self.locate(entry)
        path = split.manifest.paths[index]
        self.findings.add(Finding(kind, split.name, split.line(index), path, reason))

    def set(self, entry: int, check: FileCheck) -> None:
        """Store the result of one file and add its findings."""
        self.files.set(entry, check)
        if check.kind:
            self.add_finding(check.kind, entry, check.reason)
        for kind, text in check.remarks:
            self.add_finding(kind, entry, text)

    def usable_counts(self, number: int) -> np.ndarray:
        """Return the number of readable videos of each class: int64 [num_classes]."""
        manifest = self.splits[number].manifest
        usable = self.files.usable[self.entries_of(number)]
        if manifest.label_ends is not None:
            usable = np.repeat(usable, np.diff(manifest.label_ends, prepend=0))
        labels = manifest.labels[usable & (manifest.labels >= 0)]
        return np.bincount(labels, minlength=manifest.num_classes)
