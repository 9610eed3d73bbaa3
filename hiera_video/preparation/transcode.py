"""Videos made small once, so that every epoch decodes little: H.264 MP4 of short side 320.

    done = transcode(["jump/a.mkv", "jump/b.mp4"], root="videos", folder="videos_320")
    done.made["jump/a.mkv"]          # "jump/a.mp4", below the folder
    done.failed                      # path -> reason, of those that cannot be decoded to their end

PyAV alone does it: no ffmpeg program is needed. Every frame that `read_frames` would give is in the
copy, at its time, upright; sound is dropped; smaller pictures keep their size. Each file is made in
a process of its own (`guarded_pool.py`) and appears whole or not at all, so the same call again
goes on where one was interrupted: what is there, and as old as its source, is not made again.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from hiera_video.errors import DataError, RunFailed, UserError
from hiera_video.files import explained, hold, put_in_place, write_text
from hiera_video.video.guarded_pool import GuardedPool, WorkerFailure

SHORT_SIDE = 320
"""Pixels: what the Kinetics recipes read; a 224 crop leaves room to vary its scale."""
CRF = 23
"""x264's constant quality, its own default: 0 is lossless, 51 the worst."""
TIME_LIMIT = 1800.0
"""Seconds for one file."""

RECIPE = 1
"""Number of the encoder settings below; copies made by others are not taken for these."""
_ENCODER = {"preset": "veryfast", "threads": "1"}
_TICKS = 90_000
"""Of the copy's clock, a second."""
_KEY_EVERY = 48
"""Frames between key frames, at most: a clip of 16 x 4 frames starts near one."""

_SETTINGS = "transcode.json"
_UNFINISHED = ".unfinished"
_LOCK = ".lock"

Progress = Callable[[int, int, int], None]
"""progress(files looked at, of them failed, files in all)"""


@dataclass
class Transcoded:
    """What `transcode` did."""

    made: dict[str, str] = field(default_factory=dict)
    """Path below the root -> path of its copy below the folder, of all that have one now."""
    failed: dict[str, str] = field(default_factory=dict)
    """Path below the root -> why it has none."""
    kept: int = 0
    """Of those made, how many were there from an earlier call."""


def transcode(
    paths: Sequence[str],
    *,
    root: str | Path,
    folder: str | Path,
    short_side: int = SHORT_SIDE,
    crf: int = CRF,
    workers: int | None = None,
    time_limit: float = TIME_LIMIT,
    progress: Progress | None = None,
) -> Transcoded:
    """Copies below `folder` of the videos `paths` below `root`.

    Args:
        folder: absent, empty, or made by an earlier call with the same settings; outside `root`.
        short_side: even number of pixels that the shorter side of a picture is reduced to.
        crf: quality, 0 (lossless) to 51.
        workers: processes; None for one per CPU core.
        time_limit: seconds for one file.

    Raises UserError: impossible settings, a folder that holds something else; RunFailed: the disk
    is full or cannot be written (the same call goes on later), or another process fills the folder.
    """
    root, folder = Path(root), Path(folder)
    settings = {"short_side": short_side, "crf": crf, "recipe": RECIPE}
    _check_settings(short_side, crf, workers, time_limit)
    _require_encoder()
    _check_folder(folder, root, settings)
    names = copy_names(paths)
    result = Transcoded()
    with _held(folder):
        _remove_unfinished(folder)
        write_text(folder / _SETTINGS, json.dumps(settings) + "\n")
        (folder / _UNFINISHED).mkdir()
        todo = []
        for number, path in enumerate(names):
            job = Job(
                path=path,
                source=os.path.join(root, path),
                target=os.path.join(folder, names[path]),
                # The number of the process: one left over from a call that was killed may still
                # be writing, and finds its file gone.
                unfinished=os.path.join(folder, _UNFINISHED, f"{os.getpid()}-{number}.mp4"),
                short_side=short_side,
                crf=crf,
                time_limit=time_limit,
            )
            if _is_made(job):
                result.made[path] = names[path]
            else:
                todo.append(job)
        result.kept = len(result.made)
        report = _reporter(progress, len(names), result)
        report()
        try:
            _transcode_all(todo, names, workers, time_limit, result, report)
        finally:
            _remove_unfinished(folder)
    return result


def copy_names(paths: Sequence[str]) -> dict[str, str]:
    """Path -> path of its copy: a.avi -> a.mp4, or a.avi.mp4 where a.mp4 is another's.

    Raises DataError for a path that leaves the root: its copy would have no place.
    """
    for path in paths:
        if os.path.isabs(path) or os.path.normpath(path).split(os.sep)[0] == os.pardir:
            raise DataError(f"{path!r} is not below the videos' folder; its copy has no place")
    wanted = {path: os.path.splitext(path)[0] + ".mp4" for path in dict.fromkeys(paths)}
    # One that is called .mp4 already has the first right to its name.
    order = sorted(wanted, key=lambda path: (path != wanted[path], path))
    taken: set[str] = set()
    for path in order:
        name = wanted[path]
        for tail in itertools.count(1):
            if name not in taken:
                break
            name = path + ".mp4" * tail
        taken.add(name)
        wanted[path] = name
    return wanted


def _transcode_all(
    todo: Sequence[Job],
    names: Mapping[str, str],
    workers: int | None,
    time_limit: float,
    result: Transcoded,
    report: Callable[[], None],
) -> None:
    if not todo:
        return
    workers = min(workers or usable_cores(), len(todo))
    # The copying itself looks at the clock; the pool ends what does not come to look.
    pool = GuardedPool(transcode_file, workers=workers, time_limit=time_limit + 30)
    try:
        with pool:
            for job, outcome in pool.map(todo):
                if isinstance(outcome, WorkerFailure):
                    result.failed[job.path] = outcome.reason
                else:
                    result.made[job.path] = names[job.path]
                report()
    except RunFailed as error:
        raise RunFailed(
            f"{error}. {len(result.made)} of {len(names)} videos are made and stay; the same "
            "command again goes on from there"
        ) from error


def usable_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# ---- one file -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One file to copy."""

    path: str
    """Below the root, as the list has it."""
    source: str
    target: str
    unfinished: str
    """Where it grows, on the same disk as `target`."""
    short_side: int = SHORT_SIDE
    crf: int = CRF
    time_limit: float = TIME_LIMIT


def transcode_file(job: Job) -> None:
    """Make `job.target` from `job.source`, whole or not at all.

    Raises DecodeError: the source cannot be decoded to its end, or not be encoded; RunFailed: the
    copy cannot be written.
    """
    from hiera_video.errors import DecodeError

    modified = _modified(job.source)
    try:
        with explained(job.target):
            _check_copy(job, _encode(job))
            Path(job.target).parent.mkdir(parents=True, exist_ok=True)
            if modified is None:
                raise DecodeError(job.source, "vanished while it was read")
            os.utime(job.unfinished, ns=(modified, modified))
            put_in_place(job.unfinished, job.target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(job.unfinished)


def _check_copy(job: Job, frames: int) -> None:
    """OSError unless all of the copy is there: not every failed write is told of."""
    import av

    count = 0
    with contextlib.suppress(av.FFmpegError), av.open(job.unfinished) as container:
        count = sum(packet.size > 0 for packet in container.demux(video=0))
    if count != frames:
        reason = f"only {count} of {frames} frames of a copy arrived there (a full disk?)"
        raise OSError(errno.EIO, reason, job.target)


def _encode(job: Job) -> int:
    """Write the video stream of `job.source` to `job.unfinished`; the number of its frames."""
    import av

    from hiera_video.errors import DecodeError
    from hiera_video.video.decode import VideoReader

    with VideoReader(job.source, "pyav", time_limit=job.time_limit) as reader:
        info = reader.info
    turns = info.index.quarter_turns
    size = _reduced(*info.index.size, job.short_side)  # as stored, not yet turned
    convert = av.video.reformatter.VideoReformatter()
    written = 0
    try:
        with av.open(
            job.unfinished, "w", format="mp4", options={"movflags": "+faststart"}
        ) as container:
            stream = None
            last = -1
            for seconds, frame in _frames(job, info):
                small = _turned(_small(convert, frame, size), turns)
                if stream is None:
                    stream = _add_stream(container, small, frame, fps=info.fps, crf=job.crf)
                # The reader's times never fall, but they may stand still; the encoder's may not.
                last = max(last + 1, round(seconds * _TICKS))
                small.pts, small.time_base = last, Fraction(1, _TICKS)
                container.mux(stream.encode(small))
                written += 1
            if stream is not None:
                container.mux(stream.encode(None))
    except av.FFmpegError as error:
        if error.errno in _DISK_ERRORS:
            raise OSError(error.errno, os.strerror(error.errno), job.target) from None
        raise DecodeError(job.source, f"cannot be written as H.264 ({error.strerror})") from None
    if written != info.num_frames:
        raise DecodeError(
            job.source, f"damaged video ({info.num_frames - written} frames cannot be decoded)"
        )
    return written


_DISK_ERRORS = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "EACCES", "EPERM", "ENOENT", "EMFILE")
    if hasattr(errno, name)
}


def _frames(job: Job, info) -> Iterator[tuple[float, object]]:
    """(seconds from the first, decoded frame) of each frame that `read_frames` would give."""
    from hiera_video.video.container import VideoFile, frames_from_start
    from hiera_video.video.limits import Deadline

    deadline = Deadline(job.source, job.time_limit)
    index = info.index
    with contextlib.closing(VideoFile(job.source)) as file:
        decoded = frames_from_start(file, deadline)
        if index.sequential:
            yield from zip(info.times.tolist(), decoded, strict=False)
            return
        times = dict(zip(index.frame_pts().tolist(), info.times.tolist(), strict=True))
        for frame in decoded:
            seconds = times.pop(frame.pts, None)
            if seconds is not None:  # else: outside the file's edit list
                yield seconds, frame


def _reduced(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Size with a short side of at most `short_side`, both sides even, as 4:2:0 has them."""
    shorter = min(width, height)
    part = min(short_side, shorter)
    return tuple(max(2, side * part // shorter // 2 * 2) for side in (width, height))


def _small(convert, frame, size: tuple[int, int]):
    """The frame as yuv420p of `size`, in its own range and with its own matrix."""
    from av.video.reformatter import ColorRange

    full = frame.format.name.startswith("yuvj") or (
        frame.color_range == ColorRange.JPEG and not frame.format.is_rgb
    )
    kept = ColorRange.JPEG if full else ColorRange.MPEG
    return convert.reformat(
        frame,
        width=size[0],
        height=size[1],
        format="yuv420p",
        interpolation="BICUBIC",
        src_color_range=kept,
        dst_color_range=kept,
        threads=1,
    )


def _turned(frame, quarter_turns: int):
    """A yuv420p frame turned counter-clockwise, plane by plane: no colour is converted."""
    if not quarter_turns:
        return frame
    import av

    width, height = frame.width, frame.height
    size = (height, width) if quarter_turns % 2 else (width, height)
    turned = av.VideoFrame(*size, "yuv420p")
    for source, target in zip(frame.planes, turned.planes, strict=True):
        lines = np.frombuffer(source, np.uint8).reshape(source.height, source.line_size)
        into = np.frombuffer(target, np.uint8).reshape(target.height, target.line_size)
        into[:, : target.width] = np.rot90(lines[:, : source.width], quarter_turns)
    turned.colorspace, turned.color_range = frame.colorspace, frame.color_range
    return turned


def _add_stream(container, small, source, *, fps: float, crf: int):
    """The H.264 stream of pictures like `small`, which was made of `source`."""
    rate = Fraction(min(max(fps, 1.0), 1000.0)).limit_denominator(1001)
    options = {**_ENCODER, "crf": str(crf), "x264-params": "b-pyramid=none"}
    stream = container.add_stream("libx264", rate=rate, options=options)
    stream.width, stream.height, stream.pix_fmt = small.width, small.height, "yuv420p"
    context = stream.codec_context
    stream.time_base = context.time_base = Fraction(1, _TICKS)
    context.gop_size = _KEY_EVERY
    context.color_range = small.color_range
    if not source.format.is_rgb:  # else its matrix is "none": what the conversion took is usual
        context.colorspace = source.colorspace
        context.color_primaries, context.color_trc = source.color_primaries, source.color_trc
    return stream


# ---- the folder of copies -----------------------------------------------------------------------


def _check_settings(short_side: int, crf: int, workers: int | None, time_limit: float) -> None:
    if short_side < 32 or short_side % 2:
        raise UserError(f"--short-side {short_side} must be an even number of pixels, at least 32")
    if not 0 <= crf <= 51:
        raise UserError(f"--crf {crf} must be 0 (lossless) to 51 (worst); 23 is usual")
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers} must be at least 1")
    if not time_limit > 0:
        raise UserError(f"--time-limit {time_limit:g} must be above 0 seconds")


def _require_encoder() -> None:
    import av

    if "libx264" not in av.codecs_available:
        raise UserError(
            "this PyAV cannot write H.264 (its FFmpeg has no libx264); its wheels can: "
            'pip install --force-reinstall "av>=17.1"'
        )


def _check_folder(folder: Path, root: Path, settings: Mapping[str, int]) -> None:
    """Refuse a folder in which files that are not ours could be overwritten or taken for videos."""
    inside = Path(os.path.realpath(folder))
    if inside.is_relative_to(os.path.realpath(root)):
        raise UserError(
            f"--transcode {folder} lies inside the videos' folder {root}, where the copies would "
            "be taken for videos of their own; name a folder beside it"
        )
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"--transcode {folder} is a file; name a folder for the copies")
    stored = folder / _SETTINGS
    if not stored.is_file():
        if any(entry.name not in (_UNFINISHED, _LOCK) for entry in folder.iterdir()):
            raise UserError(
                f"--transcode {folder} holds files, and no {_SETTINGS} says that they are copies "
                "made by this command; name an empty or a new folder"
            )
        return
    try:
        before = json.loads(stored.read_text(encoding="utf-8"))
        different = [key for key in settings if before.get(key) != settings[key]]
    except (ValueError, AttributeError):
        raise UserError(
            f"{stored} cannot be read; delete {folder}, or name another folder"
        ) from None
    if different:
        was = ", ".join(f"{key} {before.get(key)}" for key in different)
        now = ", ".join(f"{key} {settings[key]}" for key in different)
        raise UserError(
            f"--transcode {folder} was made with {was}, not {now}; name another folder, or "
            "delete it to make it anew"
        )


def _is_made(job: Job) -> bool:
    """Whether the copy is there and is of this very source (it has its time)."""
    made, source = _modified(job.target), _modified(job.source)
    # Some file systems keep whole seconds, and even ones only.
    return made is not None and source is not None and abs(made - source) < 2_000_000_000


def _modified(path: str) -> int | None:
    """Time of modification in ns; None where there is no such file, or nothing in it."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns if status.st_size else None


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The folder, made if need be, for this process alone. RunFailed where another has it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = hold(folder / _LOCK)
    if lock is None:
        raise RunFailed(
            f"another process is filling {folder}; wait for it, then run the same command"
        )
    with lock:
        yield


def _remove_unfinished(folder: Path) -> None:
    shutil.rmtree(folder / _UNFINISHED, ignore_errors=True)


def _reporter(progress: Progress | None, total: int, result: Transcoded) -> Callable[[], None]:
    if progress is None:
        return lambda: None

    def report() -> None:
        progress(len(result.made) + len(result.failed), len(result.failed), total)

    return functools.partial(report)
