"""Make small copies of videos, which decode faster: H.264 MP4 with a short side of 320.

    options = TranscodeOptions(workers=8)
    result = transcode(["jump/a.mkv", "jump/b.mp4"], "videos", "videos_320", options)
    result.made["jump/a.mkv"]        # "jump/a.mp4", below the folder
    result.failed                    # path -> reason, of videos that cannot be decoded to their end

PyAV does all of it: no ffmpeg program is needed. A copy has every frame that `read_frames` gives,
at its time, upright; sound is dropped; smaller pictures keep their size. Each file is made in a
child process (`GuardedPool`) and appears whole or not at all. The same call again continues an
interrupted one: a copy that has the time of its source is kept.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hiera_video.errors import DataError, DecodeError, RunFailed, UserError
from hiera_video.files import explained, hold, put_in_place, write_text
from hiera_video.video.guarded_pool import GuardedPool, WorkerFailure
from hiera_video.video.processes import usable_cores

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import OutputContainer
    from av.video.reformatter import VideoReformatter
    from av.video.stream import VideoStream

    from hiera_video.video.info import FrameIndex, VideoInfo

RECIPE = 1
"""Version of the encoder settings below. Copies of another version are not mixed with these."""
_ENCODER = {"preset": "veryfast", "threads": "1"}
_TICKS = 90_000
"""Ticks per second of the copy's clock."""
_KEY_FRAME_EVERY = 48
"""At most so many frames between key frames: a clip of 16 x 4 frames starts near one."""

_SETTINGS = "transcode.json"
_UNFINISHED = ".unfinished"
_LOCK = ".lock"

Progress = Callable[[int, int, int], None]
"""progress(videos done, failed ones among them, all videos)"""


@dataclass(frozen=True)
class TranscodeOptions:
    """How copies are made. Raises UserError for values that are out of range."""

    short_side: int = 320
    """Pixels, an even number: the shorter side of larger pictures is reduced to it. The Kinetics
    recipes read 320; a crop of 224 leaves room to vary its scale."""
    crf: int = 23
    """x264's constant quality, from 0 (lossless) to 51 (worst); 23 is x264's own default."""
    workers: int | None = None
    """Child processes; None for one per CPU core."""
    time_limit: float = 1800.0
    """Seconds for one file."""

    def __post_init__(self) -> None:
        if self.short_side < 32 or self.short_side % 2:
            raise UserError(
                f"--short-side {self.short_side} must be an even number of pixels, at least 32"
            )
        if not 0 <= self.crf <= 51:
            raise UserError(f"--crf {self.crf} must be 0 (lossless) to 51 (worst); 23 is usual")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers {self.workers} must be at least 1")
        if not self.time_limit > 0:
            raise UserError(f"--time-limit {self.time_limit:g} must be above 0 seconds")


@dataclass
class Transcoded:
    """The result of `transcode`."""

    made: dict[str, str] = field(default_factory=dict)
    """Path below the root -> path of its copy below the folder."""
    failed: dict[str, str] = field(default_factory=dict)
    """Path below the root -> why it has no copy."""
    kept: int = 0
    """How many of `made` are from an earlier call."""


def transcode(
    paths: Sequence[str],
    root: str | Path,
    folder: str | Path,
    options: TranscodeOptions | None = None,
    progress: Progress | None = None,
) -> Transcoded:
    """Make copies of the videos `paths` below `root`, in `folder`.

    Args:
        folder: absent, empty, or made by an earlier call with the same options; outside `root`.

    Raises UserError: a folder that holds something else; RunFailed: the disk is full or cannot be
    written (the same call continues later), or another process fills the folder.
    """
    root, folder = Path(root), Path(folder)
    options = options or TranscodeOptions()
    settings = {"short_side": options.short_side, "crf": options.crf, "recipe": RECIPE}
    _require_encoder()
    _check_folder(folder, root, settings)
    names = copy_names(paths)
    result = Transcoded()

    def report() -> None:
        if progress is not None:
            progress(len(result.made) + len(result.failed), len(result.failed), len(names))

    def add(job: TranscodeJob, failure: WorkerFailure | None) -> None:
        if failure is None:
            result.made[job.path] = job.name
        else:
            result.failed[job.path] = failure.reason
        report()

    with _locked(folder):
        _remove_unfinished(folder)
        write_text(folder / _SETTINGS, json.dumps(settings) + "\n")
        (folder / _UNFINISHED).mkdir()
        todo = []
        for number, (path, name) in enumerate(names.items()):
            job = TranscodeJob(
                path=path,
                name=name,
                source=os.path.join(root, path),
                target=os.path.join(folder, name),
                # With the process id: a child of a killed call may still be writing, and must not
                # write into a file of this call.
                unfinished=os.path.join(folder, _UNFINISHED, f"{os.getpid()}-{number}.mp4"),
                options=options,
            )
            if _is_made(job):
                result.made[path] = name
            else:
                todo.append(job)
        result.kept = len(result.made)
        report()
        try:
            _transcode_all(todo, options, add)
        except RunFailed as error:
            raise RunFailed(
                f"{error}. {len(result.made)} of {len(names)} videos are made and stay; the same "
                "command again continues from there"
            ) from error
        finally:
            _remove_unfinished(folder)
    return result


def copy_names(paths: Sequence[str]) -> dict[str, str]:
    """Return path -> path of its copy: a.avi -> a.mp4, or a.avi.mp4 where a.mp4 is another's copy.

    Raises DataError for a path outside the root.
    """
    for path in paths:
        if os.path.isabs(path) or os.path.normpath(path).split(os.sep)[0] == os.pardir:
            raise DataError(f"{path!r} is not below the videos' folder")
    wanted = {path: os.path.splitext(path)[0] + ".mp4" for path in dict.fromkeys(paths)}
    # Videos that are named .mp4 already keep their names.
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
    jobs: Sequence[TranscodeJob],
    options: TranscodeOptions,
    on_done: Callable[[TranscodeJob, WorkerFailure | None], None],
) -> None:
    """Call `on_done` with each job when it is done, and with its failure or None."""
    if not jobs:
        return
    workers = min(options.workers or usable_cores(), len(jobs))
    # `transcode_file` checks the time itself; the pool ends a child that no longer does.
    with GuardedPool(transcode_file, workers=workers, time_limit=options.time_limit + 30) as pool:
        for job, failure in pool.map(jobs):
            on_done(job, failure)


# ---- one file -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TranscodeJob:
    """One file to copy."""

    path: str
    """Below the root, as the list has it."""
    name: str
    """Path of the copy below the folder."""
    source: str
    target: str
    unfinished: str
    """The file while it is written, on the same disk as `target`."""
    options: TranscodeOptions


def transcode_file(job: TranscodeJob) -> None:
    """Make `job.target` from `job.source`, whole or not at all.

    Raises DecodeError: the source cannot be decoded to its end, or cannot be encoded; RunFailed:
    the copy cannot be written.
    """
    modified = _modified(job.source)
    try:
        with explained(job.target):
            _check_copy(job, _encode(job))
            Path(job.target).parent.mkdir(parents=True, exist_ok=True)
            if modified is None:
                raise DecodeError(job.source, "was deleted while it was read")
            os.utime(job.unfinished, ns=(modified, modified))
            put_in_place(job.unfinished, job.target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(job.unfinished)


def _check_copy(job: TranscodeJob, frames: int) -> None:
    """Raise OSError unless the copy has all frames: not every failed write is reported."""
    import av

    count = 0
    with contextlib.suppress(av.FFmpegError), av.open(job.unfinished) as container:
        count = sum(packet.size > 0 for packet in container.demux(video=0))
    if count != frames:
        reason = f"only {count} of {frames} frames of a copy were written (a full disk?)"
        raise OSError(errno.EIO, reason, job.target)


def _encode(job: TranscodeJob) -> int:
    """Write the video stream of `job.source` to `job.unfinished`. Returns the number of frames."""
    import av

    from hiera_video.preparation.pyav_files import scan_file

    info, index = scan_file(job.source, job.options.time_limit)
    size = _reduced_size(index.size, job.options.short_side)  # as stored, not yet turned
    converter = av.video.reformatter.VideoReformatter()
    written = 0
    try:
        with av.open(
            job.unfinished, "w", format="mp4", options={"movflags": "+faststart"}
        ) as container:
            stream = None
            last = -1
            for seconds, frame in _frames(job, info, index):
                small = _turned(_resized(converter, frame, size), index.quarter_turns)
                if stream is None:
                    stream = _add_stream(container, small, frame, fps=info.fps, crf=job.options.crf)
                # The reader's times never fall but may repeat; the encoder's must rise.
                last = max(last + 1, round(seconds * _TICKS))
                small.pts, small.time_base = last, Fraction(1, _TICKS)
                container.mux(stream.encode(small))
                written += 1
            if stream is not None:
                container.mux(stream.encode(None))
    except av.FFmpegError as error:
        if error.errno is not None and error.errno in _DISK_ERRORS:
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


def _frames(
    job: TranscodeJob, info: VideoInfo, index: FrameIndex
) -> Iterator[tuple[float, VideoFrame]]:
    """Yield (seconds from the first, decoded frame) of each frame that `read_frames` gives."""
    from hiera_video.video.container import VideoFile, frames_from_start
    from hiera_video.video.limits import Deadline

    deadline = Deadline(job.source, job.options.time_limit)
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


def _reduced_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Return (width, height) with a short side of at most `short_side`. 4:2:0 needs even sides."""
    shorter = min(size)
    target = min(short_side, shorter)
    width, height = (max(2, side * target // shorter // 2 * 2) for side in size)
    return width, height


def _resized(converter: VideoReformatter, frame: VideoFrame, size: tuple[int, int]) -> VideoFrame:
    """Return the frame as yuv420p of `size`, in its own colour range and matrix."""
    from av.video.reformatter import ColorRange

    full_range = frame.format.name.startswith("yuvj") or (
        frame.color_range == ColorRange.JPEG and not frame.format.is_rgb
    )
    color_range = ColorRange.JPEG if full_range else ColorRange.MPEG
    return converter.reformat(
        frame,
        width=size[0],
        height=size[1],
        format="yuv420p",
        interpolation="BICUBIC",
        src_color_range=color_range,
        dst_color_range=color_range,
        threads=1,
    )


def _turned(frame: VideoFrame, quarter_turns: int) -> VideoFrame:
    """Return a yuv420p frame turned counter-clockwise, plane by plane: no colour is converted."""
    if not quarter_turns:
        return frame
    import av

    from hiera_video.preparation.pyav_files import plane_bytes

    width, height = frame.width, frame.height
    turned = av.VideoFrame(
        *((height, width) if quarter_turns % 2 else (width, height)), format="yuv420p"
    )
    for source, target in zip(frame.planes, turned.planes, strict=True):
        pixels = plane_bytes(source)[:, : source.width]
        plane_bytes(target)[:, : target.width] = np.rot90(pixels, quarter_turns)
    turned.colorspace, turned.color_range = frame.colorspace, frame.color_range
    return turned


def _add_stream(
    container: OutputContainer, small: VideoFrame, source: VideoFrame, *, fps: float, crf: int
) -> VideoStream:
    """Add the H.264 stream for frames like `small`, which was made of `source`."""
    rate = Fraction(min(max(fps, 1.0), 1000.0)).limit_denominator(1001)
    options = {**_ENCODER, "crf": str(crf), "x264-params": "b-pyramid=none"}
    stream = container.add_stream("libx264", rate=rate, options=options)
    stream.width, stream.height, stream.pix_fmt = small.width, small.height, "yuv420p"
    context = stream.codec_context
    stream.time_base = context.time_base = Fraction(1, _TICKS)
    context.gop_size = _KEY_FRAME_EVERY
    context.color_range = small.color_range
    if not source.format.is_rgb:  # RGB has no matrix; the conversion used the default one
        context.colorspace = source.colorspace
        context.color_primaries, context.color_trc = source.color_primaries, source.color_trc
    return stream


# ---- the folder of copies -----------------------------------------------------------------------


def _require_encoder() -> None:
    import av

    if "libx264" not in av.codecs_available:
        raise UserError(
            "this PyAV cannot write H.264 (its FFmpeg has no libx264); its wheels can: "
            'pip install --force-reinstall "av>=17.1"'
        )


def _check_folder(folder: Path, root: Path, settings: Mapping[str, int]) -> None:
    """Raise UserError for a folder in which files of the user could be overwritten or mixed in."""
    inside = Path(os.path.realpath(folder))
    if inside.is_relative_to(os.path.realpath(root)):
        raise UserError(
            f"--transcode {folder} lies inside the videos' folder {root}, where the copies would "
            "be read as videos of the set; name a folder beside it"
        )
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"--transcode {folder} is a file; name a folder for the copies")
    stored = folder / _SETTINGS
    if not stored.is_file():
        if any(entry.name not in (_UNFINISHED, _LOCK) for entry in folder.iterdir()):
            raise UserError(
                f"--transcode {folder} holds files, and no {_SETTINGS} says that this command made "
                "them; name an empty or a new folder"
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
            "delete it to make it again"
        )


def _is_made(job: TranscodeJob) -> bool:
    """Return whether the copy exists and has the modification time of its source."""
    made, source = _modified(job.target), _modified(job.source)
    # Some file systems keep times in steps of two seconds.
    return made is not None and source is not None and abs(made - source) < 2_000_000_000


def _modified(path: str) -> int | None:
    """Return the modification time in ns; None if the file does not exist or is empty."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns if status.st_size else None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Create the folder and lock it. Raises RunFailed if another process holds the lock."""
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
