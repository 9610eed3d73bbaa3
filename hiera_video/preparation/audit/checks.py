"""Checks of a whole set: do clips fit into the videos, are rates usual, do classes have videos."""

from __future__ import annotations

import math

import numpy as np

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.manifests.manifest import Manifest
from hiera_video.preparation.audit.findings import Finding
from hiera_video.preparation.audit.result import AuditResult, FileTable
from hiera_video.video.sampling import span

_SLOWEST, _FASTEST = 9.5, 60.5
"""Frames per second; cameras and web sites stay between these."""


def check_sampling(result: AuditResult) -> None:
    """Add findings for rotated videos, unusual frame rates and videos shorter than a clip."""
    files, clip = result.files, result.clip
    files.left_out |= ~files.usable
    for entry in np.flatnonzero(files.usable & (files.rotation != 0)).tolist():
        result.add_finding("rotated", entry, f"by {files.rotation[entry]} degrees")
    for entry in np.flatnonzero(_has_unusual_rate(files)).tolist():
        result.add_finding("odd_rate", entry, f"{files.fps[entry]:.4g} frames per second")
    rates, rate_of = np.unique(files.fps, return_inverse=True)
    needed = np.array([_frames_needed(clip, fps) for fps in rates.tolist()], np.int64)[rate_of]
    for entry in np.flatnonzero(files.usable & (files.frames < needed)).tolist():
        if clip.segments:
            reason = f"{files.frames[entry]} frames for {clip.num_frames} segments"
        else:
            reason = (
                f"{files.frames[entry]} frames at {files.fps[entry]:.4g} fps; a clip of "
                f"{clip.num_frames}x{clip.sampling_rate} needs {needed[entry]}"
            )
        result.add_finding("too_short", entry, reason)


def _has_unusual_rate(files: FileTable) -> np.ndarray:
    """Return bool [N]. A single frame has no rate."""
    outside = (files.fps < _SLOWEST) | (files.fps > _FASTEST)
    return files.usable & outside & (files.frames > 1)


def _frames_needed(clip: ClipSpec, fps: float) -> int:
    """Return the number of video frames for a clip in which no frame is repeated."""
    if clip.segments:
        return clip.num_frames
    return math.floor(span(clip.num_frames, clip.sampling_rate, fps, clip.target_fps))


def check_labels(result: AuditResult) -> None:
    """Add findings for classes without a video, and for unlabelled videos among labelled ones."""
    for number, split in enumerate(result.splits):
        manifest = split.manifest
        if not manifest.num_classes:
            continue
        listed = manifest.class_counts()
        usable = result.usable_counts(number)
        for label in np.flatnonzero(usable == 0).tolist():
            reason = f"class {label}"
            if manifest.classes:
                reason += f" ({manifest.classes[label]})"
            unreadable = f"none of its {listed[label]} videos can be read"
            reason += f": {unreadable}" if listed[label] else ": no video"
            result.findings.add(Finding("unused_label", split.name, 0, "", reason))
        unlabelled = _unlabelled(manifest)
        if unlabelled.all():
            continue
        for index in np.flatnonzero(unlabelled).tolist():
            entry = result.starts[number] + index
            result.files.left_out[entry] = True
            result.add_finding("bad_line", entry, "no label, and other videos have one")


def _unlabelled(manifest: Manifest) -> np.ndarray:
    """Return bool [N]: the videos without a label."""
    if manifest.label_ends is not None:
        return np.diff(manifest.label_ends, prepend=0) == 0
    return manifest.labels < 0
