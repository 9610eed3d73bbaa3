"""A generated set of videos on disk: written once, by worker processes, found again afterwards.

generated = GeneratedSet(kind="camera-motion", parameters=..., videos=..., ...)
folder = make_set("data/camera_motion", generated, workers=8)
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hiera_video.errors import RunFailed, UserError
from hiera_video.files import explained, put_in_place, write_text

MANIFEST = "manifest.json"

Parameters = dict[str, Any]
Progress = Callable[[int, int], None]


class GeneratedVideo(NamedTuple):
    """One file of a set."""

    name: str
    """Path below the set's folder."""
    label: str
    seed: int
    scene: int
    """Videos of one scene are written by one process: drawing a scene may cost as much as ten
    clips."""


@dataclass(frozen=True)
class GeneratedSet:
    """What is to be written.

    `from_parameters` must be a function of a module: worker processes call it to get the same set.
    """

    kind: str
    """For messages: "camera-motion"."""
    parameters: Parameters
    """All that the files depend on; stored beside them as JSON."""
    labels: Sequence[str]
    videos: Sequence[GeneratedVideo]
    write: Callable[[Path, GeneratedVideo], None]
    """Writes one video to a path."""
    from_parameters: Callable[[Parameters], GeneratedSet]


def make_set(
    folder: str | Path,
    generated: GeneratedSet,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a set into `folder`, or find it there; return the folder.

    The set is made beside the folder and moved into place when complete, so an interrupted run
    leaves no half set: the next call makes it again, as it does when files of a set are missing.

    Args:
        folder: where the set is, or is to be. It must be absent, empty or such a set.
        generated: the set.
        workers: processes; None for one per CPU core.
        progress: called as progress(videos written, videos in all).

    Raises UserError for a folder that holds a set made with other parameters, or something else;
    RunFailed when a worker dies or a file cannot be written.
    """
    folder = Path(folder)
    if workers is not None and workers < 1:
        raise UserError(f"{generated.kind} set: workers={workers!r} must be at least 1")
    if _is_complete(folder, generated):
        return folder
    _remove_abandoned(folder)
    making = folder.with_name(f".{folder.name}.making-{os.getpid()}")
    try:
        with explained(folder):
            making.mkdir(parents=True)
            _write_videos(making, generated, workers or os.cpu_count() or 1, progress)
            stored = {**generated.parameters, "labels": generated.labels}
            write_text(making / MANIFEST, json.dumps(stored, indent=1))
            _move_into_place(making, folder, generated)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder


# ---- what is on disk ----------------------------------------------------------------------------


def _is_complete(folder: Path, generated: GeneratedSet) -> bool:
    """Whether `folder` holds this very set. Raises UserError for another set and for other files,
    which are the user's."""
    kind = generated.kind
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder for the {kind} set")
    manifest = folder / MANIFEST
    if not manifest.is_file():
        if any(folder.iterdir()):
            raise UserError(
                f"{folder}: holds files but no {kind} set ({MANIFEST} is missing); name an empty "
                "or new folder, or delete this one"
            )
        return False
    parameters = generated.parameters
    try:
        stored = json.loads(manifest.read_text())
        different = [k for k, v in parameters.items() if stored.get(k) != v]
    except (ValueError, AttributeError):
        raise UserError(
            f"{manifest}: is not readable as that of a {kind} set; delete {folder} to make it again"
        ) from None
    if different:
        was = ", ".join(f"{k}={stored.get(k)!r} (asked: {parameters[k]!r})" for k in different)
        raise UserError(
            f"{folder}: holds a {kind} set made with {was}; name another folder, ask for the same, "
            "or delete it"
        )
    return all((folder / video.name).is_file() for video in generated.videos)


def _remove_abandoned(folder: Path) -> None:
    """Delete what interrupted runs left beside `folder`, but nothing of runs still going on."""
    for left in folder.parent.glob(f".{folder.name}.making-*"):
        pid = left.name.rpartition("-")[2]
        if not (pid.isdigit() and _is_running(int(pid))):
            shutil.rmtree(left, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _move_into_place(making: Path, folder: Path, generated: GeneratedSet) -> None:
    """Move a finished set to `folder`; if another process was faster, keep its set."""
    if folder.exists() and _is_complete(folder, generated):
        return
    if folder.exists():  # empty, or this set with files missing
        shutil.rmtree(folder)
    try:
        put_in_place(making, folder)
    except RunFailed:
        if not _is_complete(folder, generated):
            raise


# ---- writing the videos -------------------------------------------------------------------------


def _write_videos(
    folder: Path, generated: GeneratedSet, workers: int, progress: Progress | None
) -> None:
    """Write all videos into `folder`, in at most `workers` processes."""
    total = len(generated.videos)
    for video in generated.videos:
        (folder / video.name).parent.mkdir(parents=True, exist_ok=True)
    workers = min(workers, max(1, total // 16))
    if workers == 1:
        with _one_thread():
            for done, _ in enumerate(_write_share(folder, generated, 0, 1), 1):
                if progress:
                    progress(done, total)
        return
    children = [_start_worker(folder, generated, n, workers) for n in range(workers)]
    try:
        done = 0
        # The workers advance at one pace, so a line is read from each in turn.
        waiting = list(children)
        while waiting:
            for child in list(waiting):
                if child.stdout is not None and child.stdout.readline():
                    done += 1
                    if progress:
                        progress(done, total)
                else:
                    waiting.remove(child)
        codes = [child.wait() for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
    if any(codes) or done != total:
        raise RunFailed(
            f"making the {generated.kind} set failed after {done} of {total} videos (exit codes "
            f"{codes}); the messages above say why; nothing was left behind"
        )


def _start_worker(
    folder: Path, generated: GeneratedSet, share: int, shares: int
) -> subprocess.Popen[str]:
    """Start a child process that writes one share of the videos.

    A new interpreter, not a fork: it needs nothing of the caller's threads or main module, and it
    holds PyTorch to one thread.
    """
    package_root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join([package_root, *filter(None, [os.environ.get("PYTHONPATH")])])
    make = generated.from_parameters
    arguments = [
        str(folder),
        f"{make.__module__}:{make.__name__}",
        json.dumps(generated.parameters),
        *(str(share), str(shares)),
    ]
    return subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import worker; worker()", *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


def worker() -> None:
    """Run in a child process: write a share of the videos, one line on stdout for each."""
    folder, maker, parameters, share, shares = sys.argv[1:]
    torch.set_num_threads(1)
    module, _, name = maker.partition(":")
    generated: GeneratedSet = getattr(importlib.import_module(module), name)(json.loads(parameters))
    try:
        with explained(folder):
            for written in _write_share(Path(folder), generated, int(share), int(shares)):
                print(written, flush=True)
    except RunFailed as error:
        sys.exit(f"error: {error}")


def _write_share(folder: Path, generated: GeneratedSet, share: int, shares: int) -> Iterator[str]:
    """Write the videos of every `shares`-th scene and yield each one's name."""
    for video in generated.videos:
        if video.scene % shares == share:
            generated.write(folder / video.name, video)
            yield video.name


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Hold PyTorch to one thread, as in the child processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
