"""Examine one video file: open it, list its packets, decode it to its end.

    check = examine(FileJob(0, "clip.mp4"))
    check.kind, check.reason      # "fewer_frames", "38 of 50 frames decode (damage ..."

Runs in a child process (`GuardedPool`), since it opens files that nobody has checked. PyAV decodes,
whichever decoder the training uses: training opens every file with PyAV first as well.
"""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from typing import TYPE_CHECKING

import numpy as np

from hiera_video.errors import DecodeError
from hiera_video.preparation.audit.jobs import FileCheck, FileJob
from hiera_video.preparation.audit.metadata import (
    metadata_mismatch,
    uneven_frame_times,
    unusual_properties,
)
from hiera_video.preparation.pyav_files import plane_bytes, scan_file
from hiera_video.video.container import choose_stream, error_reason, open_container, prepare_decoder
from hiera_video.video.frame_folder import FrameFolder
from hiera_video.video.info import FrameIndex, VideoInfo
from hiera_video.video.limits import TIME_LIMIT, Deadline, is_out_of_memory

if TYPE_CHECKING:
    from av import VideoFrame

_NO_FRAMES = (
    "no frame can be decoded",
    "its video stream is empty",
    "none of its frames can be shown",
    "has no video stream",
    "a folder without pictures",
)
"""First words of the decoder's reasons that mean: the file opens, but has no frame."""

_END_BYTES = 64 << 10


def examine(job: FileJob) -> FileCheck:
    """Check one video file, or folder of pictures. Raises only errors that mean "out of memory"."""
    try:
        if os.path.isdir(job.path):
            return _examine_folder(job)
        return _examine_video(job)
    except DecodeError as error:
        return _refused(error.reason)
    except Exception as error:
        if is_out_of_memory(error):
            raise  # the pool knows the limit and reports it
        # A bug, here or in a library, must not end an audit of days at one file.
        text = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        return FileCheck("unreadable", f"cannot be read: {text}", cacheable=False)


def _refused(reason: str) -> FileCheck:
    kind = "no_frames" if reason.startswith(_NO_FRAMES) else "unreadable"
    return FileCheck(kind, reason, cacheable=not reason.startswith("cannot be opened"))


# ---- a video ------------------------------------------------------------------------------------


def _examine_video(job: FileJob) -> FileCheck:
    ends_digest = file_ends_digest(job.path)
    info, index = scan_file(job.path, job.seconds)
    remarks = [("odd_rate", text)] if (text := uneven_frame_times(info.times)) else []
    remarks += [("odd_file", text) for text in unusual_properties(info, index)]
    kind = reason = ""
    frames_digest = b""
    if not job.quick:
        decoded = decode_all(info, index, job.seconds)
        frames_digest = decoded.digest if decoded.complete else b""
        if len(decoded.sizes) > 1:
            sizes = " and ".join(f"{w}x{h}" for w, h in sorted(decoded.sizes))
            remarks.append(("odd_file", f"the picture size changes: {sizes}"))
        if not decoded.complete:
            text = f"{decoded.frames} of {info.num_frames} frames"
            remarks.append(("unchecked", _out_of_time(text, job.seconds)))
        elif decoded.frames < info.num_frames:
            kind = "fewer_frames" if decoded.frames else "no_frames"
            reason = f"{decoded.frames} of {info.num_frames} frames decode" + decoded.damage()
    if not kind and (reason := metadata_mismatch(info, index)):
        kind = "fewer_frames"
    return FileCheck(
        kind=kind,
        reason=reason,
        frames=info.num_frames,
        fps=info.fps,
        seconds=info.duration,
        rotation=info.rotation,
        remarks=tuple(remarks),
        ends_digest=ends_digest,
        frames_digest=frames_digest,
    )


def _out_of_time(text: str, seconds: float) -> str:
    return f"{text} decoded in {seconds:g} s without an error; the others were not checked"


def file_ends_digest(path: str) -> bytes:
    """Return 16 bytes from a file's size and its first and last 64 KiB."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.blake2b(str(size).encode(), digest_size=16)
        digest.update(file.read(_END_BYTES))
        if size > _END_BYTES:
            file.seek(max(size - _END_BYTES, _END_BYTES))
            digest.update(file.read(_END_BYTES))
    return digest.digest()


class DecodedFrames:
    """Counts and digests the frames of one video while they are decoded."""

    def __init__(self, info: VideoInfo) -> None:
        self.frames = 0
        self.complete = True
        """False if the time ended before the video."""
        self.sizes: set[tuple[int, int]] = set()
        """(width, height) of the pictures as stored."""
        self._error = ""
        self._frames_before_error = 0
        # The same pictures at another rate, or turned, are another video.
        facts = f"{info.width}x{info.height} {info.rotation} {info.fps:.3g}"
        self._digest = hashlib.blake2b(facts.encode(), digest_size=16)

    @property
    def digest(self) -> bytes:
        """16 bytes that depend on every decoded frame."""
        return self._digest.digest()

    def add(self, frame: VideoFrame) -> None:
        """Count one decoded frame."""
        self.frames += 1
        self.sizes.add((frame.width, frame.height))
        for plane in range(len(frame.planes)):
            self._digest.update(plane_checksum(frame, plane).to_bytes(4, "little"))

    def add_error(self, error: Exception) -> None:
        """Keep the first error of the decoder."""
        if not self._error:
            self._error, self._frames_before_error = error_reason(error), self.frames

    def damage(self) -> str:
        """Describe the first error of the decoder; "" if there was none."""
        if not self._error:
            return ""
        return f" (damage after frame {self._frames_before_error}: {self._error})"


def plane_checksum(frame: VideoFrame, number: int) -> int:
    """Return the CRC-32 of one plane of a decoded frame, without the padding of its lines."""
    plane = frame.planes[number]
    pixel_format = frame.format
    if pixel_format.is_planar:
        bits = pixel_format.components[0].bits
    else:
        bits = pixel_format.padded_bits_per_pixel
    width = plane.width * -(-bits // 8)
    return zlib.crc32(np.ascontiguousarray(plane_bytes(plane)[:, :width]).data)


def decode_all(info: VideoInfo, index: FrameIndex, seconds: float) -> DecodedFrames:
    """Decode every frame once, in the file's order, and go on after damage."""
    import av

    decoded = DecodedFrames(info)
    missing = None if index.sequential else set(index.frame_pts().tolist())
    container = open_container(info.path, Deadline(info.path, TIME_LIMIT))
    end = time.monotonic() + seconds
    try:
        stream = choose_stream(info.path, container)
        prepare_decoder(stream)
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:
                # The rest cannot be read, and the index ends here as well; or a read took too long.
                decoded.complete = time.monotonic() <= end
                break
            if packet is None:
                break
            if time.monotonic() > end:
                decoded.complete = False
                break
            try:
                frames = stream.codec_context.decode(packet if packet.size else None)
            except av.FFmpegError as error:
                if not isinstance(error, EOFError):
                    decoded.add_error(error)
                continue
            for frame in frames:
                _add_frame(frame, missing, decoded)
    finally:
        container.close()
    return decoded


def _add_frame(frame: VideoFrame, missing: set[int] | None, decoded: DecodedFrames) -> None:
    """Add a frame that is intact and, where the frame times are known, among those to be shown."""
    if frame.is_corrupt:
        return
    if missing is None:
        decoded.add(frame)
    elif frame.pts in missing:
        missing.discard(frame.pts)
        decoded.add(frame)


# ---- a folder of pictures -----------------------------------------------------------------------

_PICTURES_AT_A_TIME = 8


def _examine_folder(job: FileJob) -> FileCheck:
    folder = FrameFolder(job.path)
    info = folder.info
    digest = hashlib.blake2b(f"{info.width}x{info.height}".encode(), digest_size=16)
    end = time.monotonic() + job.seconds
    remarks, frames_digest = [], b""
    for first in range(0, 0 if job.quick else info.num_frames, _PICTURES_AT_A_TIME):
        last = min(first + _PICTURES_AT_A_TIME, info.num_frames)
        digest.update(np.ascontiguousarray(folder.read(range(first, last)).numpy()).data)
        if time.monotonic() > end and last < info.num_frames:
            text = f"{last} of {info.num_frames} pictures"
            remarks.append(("unchecked", _out_of_time(text, job.seconds)))
            break
    else:
        frames_digest = b"" if job.quick else digest.digest()
    return FileCheck(
        frames=info.num_frames,
        fps=info.fps,
        seconds=info.duration,
        remarks=tuple(remarks),
        frames_digest=frames_digest,
    )
