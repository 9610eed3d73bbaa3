"""One video file under the magnifier: opened, listed, decoded to its end, and what that showed.

    seen = examine(Job(0, "clip.mp4"))
    seen.kind, seen.reason        # "fewer_frames", "38 of 50 frames decode (from frame 7 on: ...)"

It runs in a child process (`guard.GuardedPool`), since it meets files that nobody vouches for. PyAV
decodes, whatever the training uses: it is the gate that every file passes there as well.
"""

from __future__ import annotations

import hashlib
import os
import time
import zlib

import numpy as np
import torch

from hiera_video.errors import DecodeError
from hiera_video.preparation.audit.claims import irregular, oddities, unkept_claim
from hiera_video.preparation.audit.records import ClipJob, Job, Seen
from hiera_video.video.container import VideoFile, error_reason
from hiera_video.video.decode import VideoReader
from hiera_video.video.frame_folder import FrameFolder
from hiera_video.video.info import VideoInfo
from hiera_video.video.limits import TIME_LIMIT, Deadline, is_out_of_memory

_NO_FRAMES = (
    "no frame can be decoded",
    "its video stream is empty",
    "none of its frames can be shown",
    "has no video stream",
    "a folder without pictures",
)
"""How the reasons begin that mean: a file that opens, and nothing to see in it."""

_SAMPLE_BYTES = 64 << 10


def examine(job: Job) -> Seen:
    """Look at one video file, or folder of pictures. Raises only what says that memory is short."""
    try:
        if os.path.isdir(job.path):
            return _examine_folder(job)
        return _examine_video(job)
    except DecodeError as error:
        return _refused(error.reason)
    except Exception as error:
        if is_out_of_memory(error):
            raise  # the guard knows the limit, and says so
        # A mistake of ours or of a library must not end an audit of days at one file.
        text = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        return Seen("unreadable", f"cannot be read: {text}", lasting=False)


def _refused(reason: str) -> Seen:
    kind = "no_frames" if reason.startswith(_NO_FRAMES) else "unreadable"
    return Seen(kind, reason, lasting=not reason.startswith("cannot be opened"))


# ---- a video ------------------------------------------------------------------------------------


def _examine_video(job: Job) -> Seen:
    sample = sample_digest(job.path)
    with VideoReader(job.path, "pyav", time_limit=job.seconds) as reader:
        info = reader.info
    remarks = [("odd_rate", text)] if (text := irregular(info.times)) else []
    remarks += [("odd_file", text) for text in oddities(info)]
    kind = reason = ""
    pictures = b""
    if not job.quick:
        count = decode_all(info, job.seconds)
        pictures = count.digest if count.complete else b""
        if len(count.sizes) > 1:
            sizes = " and ".join(f"{w}x{h}" for w, h in sorted(count.sizes))
            remarks.append(("odd_file", f"pictures change size on the way: {sizes}"))
        if not count.complete:
            remarks.append(("unchecked", count.reached(info, job.seconds)))
        elif count.frames < info.num_frames:
            kind = "fewer_frames" if count.frames else "no_frames"
            reason = f"{count.frames} of {info.num_frames} frames decode" + count.damage()
    if not kind and (reason := unkept_claim(info)):
        kind = "fewer_frames"
    return Seen(
        kind=kind,
        reason=reason,
        frames=info.num_frames,
        fps=info.fps,
        seconds=info.duration,
        rotation=info.rotation,
        remarks=tuple(remarks),
        sample=sample,
        pictures=pictures,
    )


def sample_digest(path: str) -> bytes:
    """16 bytes from a file's size and its first and last 64 KiB."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.blake2b(str(size).encode(), digest_size=16)
        digest.update(file.read(_SAMPLE_BYTES))
        if size > _SAMPLE_BYTES:
            file.seek(max(size - _SAMPLE_BYTES, _SAMPLE_BYTES))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.digest()


class _Count:
    """What decoding from the first frame to the last came to."""

    def __init__(self) -> None:
        self.frames = 0
        self.complete = True
        """False where the time was over before the end."""
        self.error = ""
        self.error_after = 0
        self.sizes: set[tuple[int, int]] = set()
        """(width, height) of the pictures as stored."""
        self._digest = hashlib.blake2b(digest_size=16)

    @property
    def digest(self) -> bytes:
        return self._digest.digest()

    def start(self, info: VideoInfo) -> None:
        # The same pictures at another speed, or turned, are another video.
        facts = f"{info.width}x{info.height} {info.rotation} {info.fps:.3g}"
        self._digest.update(facts.encode())

    def add(self, frame) -> None:
        self.frames += 1
        self.sizes.add((frame.width, frame.height))
        for plane in range(len(frame.planes)):
            self._digest.update(plane_sum(frame, plane).to_bytes(4, "little"))

    def fail(self, error: Exception) -> None:
        if not self.error:
            self.error, self.error_after = error_reason(error), self.frames

    def damage(self) -> str:
        return f" (damage after frame {self.error_after}: {self.error})" if self.error else ""

    def reached(self, info: VideoInfo, seconds: float) -> str:
        return (
            f"{self.frames} of {info.num_frames} frames decoded in {seconds:g} s, all good; the "
            "others were not looked at"
        )


def plane_sum(frame, number: int) -> int:
    """CRC-32 of one plane of a decoded frame, without the padding at the end of its lines."""
    plane = frame.planes[number]
    lines = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
    form = frame.format
    bits = form.components[0].bits if form.is_planar else form.padded_bits_per_pixel
    width = plane.width * -(-bits // 8)
    return zlib.crc32(np.ascontiguousarray(lines[:, :width]))


def decode_all(info: VideoInfo, seconds: float) -> _Count:
    """Decode every frame once, in the file's order, going on behind damage."""
    import av

    count = _Count()
    count.start(info)
    missing = None if info.index.sequential else set(info.index.frame_pts().tolist())
    file = VideoFile(info.path)
    container, stream = file.opened(Deadline(info.path, TIME_LIMIT))
    end = time.monotonic() + seconds
    try:
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:
                # The rest cannot be read, and the index ends here as well; or a read took too long.
                count.complete = time.monotonic() <= end
                break
            if packet is None:
                break
            if time.monotonic() > end:
                count.complete = False
                break
            try:
                frames = stream.codec_context.decode(packet if packet.size else None)
            except av.FFmpegError as error:
                if not isinstance(error, EOFError):
                    count.fail(error)
                continue
            for frame in frames:
                _count_frame(frame, missing, count)
    finally:
        file.close()
    return count


def _count_frame(frame, missing: set[int] | None, count: _Count) -> None:
    if frame.is_corrupt:
        return
    if missing is None:
        count.add(frame)
    elif frame.pts in missing:
        missing.discard(frame.pts)
        count.add(frame)


# ---- a folder of pictures -----------------------------------------------------------------------

_PICTURES_AT_A_TIME = 8


def _examine_folder(job: Job) -> Seen:
    folder = FrameFolder(job.path)
    info = folder.info
    digest = hashlib.blake2b(f"{info.width}x{info.height}".encode(), digest_size=16)
    end = time.monotonic() + job.seconds
    remarks, pictures = [], b""
    for first in range(0, 0 if job.quick else info.num_frames, _PICTURES_AT_A_TIME):
        last = min(first + _PICTURES_AT_A_TIME, info.num_frames)
        digest.update(np.ascontiguousarray(folder.read(range(first, last)).numpy()))
        if time.monotonic() > end and last < info.num_frames:
            text = f"{last} of {info.num_frames} pictures read in {job.seconds:g} s, all good"
            remarks.append(("unchecked", f"{text}; the others were not looked at"))
            break
    else:
        pictures = b"" if job.quick else digest.digest()
    return Seen(
        frames=info.num_frames,
        fps=info.fps,
        seconds=info.duration,
        remarks=tuple(remarks),
        pictures=pictures,
    )


# ---- what a clip of it costs --------------------------------------------------------------------


def time_clip(job: ClipJob) -> float:
    """Seconds of one core to open a video, decode one random clip, and crop and normalise it.

    Raises DecodeError.
    """
    from hiera_video.data.datasets import Sample, TrainReader
    from hiera_video.data.transforms.train import TrainTransform

    torch.set_num_threads(1)
    reader = TrainReader(TrainTransform(job.spec, flip=0.0), decoder=job.decoder)
    reader(Sample(0, job.path, 0, 0))  # the file's own pages, and what is loaded at first use
    start = time.process_time()
    reader(Sample(0, job.path, 0, 0))
    return time.process_time() - start
