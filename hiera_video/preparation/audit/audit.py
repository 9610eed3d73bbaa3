"""Audit a data set before training: every file, every line, every label.

    findings = Findings()
    splits, notes = read_splits(["videos/"], settings={}, as_configured=False, findings=findings)
    with AuditCache(default_cache_file(), warn=print) as cache:
        result = audit(splits, findings, cache, AuditOptions(clip=ClipSpec()))

Files that the cache knows in their present state cost one `stat` each. The others are decoded to
their end in child processes, since damage inside a video shows nowhere else.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Callable, Iterator, Sequence

from hiera_video.data.preload import PRELOAD
from hiera_video.preparation.audit.cache import AuditCache, FileState
from hiera_video.preparation.audit.checks import check_labels, check_sampling
from hiera_video.preparation.audit.duplicates import find_duplicates
from hiera_video.preparation.audit.findings import Findings
from hiera_video.preparation.audit.jobs import FileCheck, FileJob
from hiera_video.preparation.audit.lists import Split
from hiera_video.preparation.audit.projection import project_read_time
from hiera_video.preparation.audit.result import AuditOptions, AuditResult
from hiera_video.video.guarded_pool import GuardedPool, WorkerFailure

__all__ = ["AuditOptions", "AuditResult", "Progress", "audit"]

_LOOKUP_FILES = 1000
"""Files that are looked up in the cache at a time."""

_PRELOAD = ("hiera_video.preparation.audit.examine", *PRELOAD)
"""Modules that the fork server imports once for all children; they take seconds."""

_OPEN_SHARE = 0.4
"""Share of a file's time limit for opening it, and again for decoding it. The rest lets the child
stop by itself and report what it found, before the pool kills it."""

Progress = Callable[[str, int, int], None]
"""progress(what, done, total): called often; total 0 ends a phase."""


def _no_progress(what: str, done: int, total: int) -> None:
    pass


def audit(
    splits: Sequence[Split],
    findings: Findings,
    cache: AuditCache,
    options: AuditOptions,
    progress: Progress = _no_progress,
) -> AuditResult:
    """Examine every file of `splits` that `cache` does not know, then check the whole set.

    Results are in `cache` even if an exception ends this (Ctrl-C). `findings` holds those of
    reading the lists; the others are added to it.
    """
    result = AuditResult(splits, findings, options.clip)
    try:
        unknown = _look_up_files(result, cache, options, progress)
        _examine_files(unknown, result, cache, options, progress)
    finally:
        cache.commit()
    check_sampling(result)
    check_labels(result)
    find_duplicates(result)
    result.projection = project_read_time(result, cache, options)
    return result


def _look_up_files(
    result: AuditResult, cache: AuditCache, options: AuditOptions, progress: Progress
) -> Sequence[int]:
    """Fill in all files that are missing or cached. Returns the entries of the others."""
    unknown = array("q")
    total = len(result.files.usable)
    for first in range(0, total, _LOOKUP_FILES):
        present: list[tuple[int, FileState]] = []
        for entry in range(first, min(first + _LOOKUP_FILES, total)):
            try:
                present.append((entry, FileState.of(result.path(entry))))
            except OSError as error:
                _add_missing(result, entry, error)
        cached = cache.lookup([file for _, file in present], quick=options.quick)
        for entry, file in present:
            check = cached.get(file.path)
            if check is None:
                unknown.append(entry)
            else:
                result.set(entry, check)
        progress("looked up", min(first + _LOOKUP_FILES, total), total)
    progress("", 0, 0)
    result.num_cached = total - len(unknown) - result.findings.count("missing")
    return unknown


def _add_missing(result: AuditResult, entry: int, error: OSError) -> None:
    """Add the finding for a file on which `stat` failed."""
    path = result.path(entry)
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        result.add_finding("unreadable", entry, f"cannot be opened: {error.strerror}")
    elif os.path.islink(path):
        result.add_finding("missing", entry, f"a link to {os.readlink(path)}, which does not exist")
    else:
        result.add_finding("missing", entry, "no such file")


def _examine_files(
    unknown: Sequence[int],
    result: AuditResult,
    cache: AuditCache,
    options: AuditOptions,
    progress: Progress,
) -> None:
    """Examine the files of the `unknown` entries in child processes."""
    if not len(unknown):
        return
    states: dict[int, FileState] = {}

    def jobs() -> Iterator[FileJob]:
        for entry in unknown:
            path = os.path.abspath(result.path(entry))
            with contextlib.suppress(OSError):  # deleted meanwhile: the child reports it
                states[entry] = FileState.of(path)
            yield FileJob(entry, path, options.quick, _OPEN_SHARE * options.time_limit)

    pool = GuardedPool(
        # By name: this process need not import the decoders.
        "hiera_video.preparation.audit.examine.examine",
        workers=min(options.workers, len(unknown)),
        time_limit=options.time_limit,
        preload=_PRELOAD,
    )
    with pool:
        for job, check in pool.map(jobs()):
            if isinstance(check, WorkerFailure):
                check = FileCheck("unreadable", check.reason)
            state = states.pop(job.entry, None)
            if check.cacheable and state is not None:
                cache.store(state, check, quick=options.quick)
            result.set(job.entry, check)
            result.num_examined += 1
            progress("examined", result.num_examined, len(unknown))
    progress("", 0, 0)
