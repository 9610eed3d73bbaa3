"""The gate: open a video file safely with PyAV and choose its stream.

PyAV does this for all three decoders, because it alone takes FFmpeg's white lists of formats and
protocols: torchcodec and decord see a file only after it has passed here.

    file = VideoFile("clip.mp4")                     # refuses what is not a regular file
    container, stream = file.opened(deadline)        # opens it once; the same container from now on
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hiera_video.errors import DecodeError, RunFailed
from hiera_video.storage.addresses import is_stored
from hiera_video.storage.retries import StorageError
from hiera_video.video.limits import MAX_PIXELS, Deadline, check_size, imports_allowed

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from hiera_video.storage.range_file import RangeFile
    from hiera_video.storage.stored import StoredVideo

CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,ivf,flv,asf,ogg,gif,nut,mxf,dv"
)
"""The formats that may be opened. None of them follows a name inside the file to another file or
address, as playlists do (hls, dash, concat, sdp, image sequences)."""

# Of still pictures; beside a moving stream they are a cover, whatever the file says of them.
_PICTURE_CODECS = {"mjpeg", "png", "bmp", "gif", "webp", "tiff"}


class OpenVideo(NamedTuple):
    """PyAV's container, and the stream in it that is read."""

    container: InputContainer
    stream: VideoStream


class VideoFile:
    """A video file, opened at most once for the scan of its packets and for all reads.

    It may lie at an address or inside a tar shard (`storage/`): it is then read in ranges, or from
    a copy on this machine where `use_copy` has made one.

    Raises DecodeError for what is not a regular file with content; `opened` does for a file that is
    not a video.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.stored = find_video(path)
        """Where it lies, if it is no plain file."""
        self.identity = check_file(path) if self.stored is None else self.stored.identity
        """(size, modification time in ns); of a stored one, a negative number that changes with
        it."""
        self.copy = None if self.stored is None else self.stored.known_copy()
        """The copy of a stored video on this machine, if there is one."""
        self._open: OpenVideo | None = None

    def source(self) -> str | RangeFile:
        """What a library is to open: a path of this machine, or a file object."""
        if self.copy is not None:
            return str(self.copy)
        return os.path.abspath(self.path) if self.stored is None else self.stored.another_file()

    def use_copy(self, deadline: Deadline) -> str:
        """Read the whole file from this machine from now on; its path. Raises DecodeError."""
        if self.stored is None:
            return os.path.abspath(self.path)
        if self.copy is None:
            self.close()
            self.watch(deadline)
            with storage_errors(self.path):
                self.copy = self.stored.copy()
        return str(self.copy)

    def watch(self, deadline: Deadline) -> None:
        """Tell a new deadline of the storage, and the storage how much time is left."""
        if self.stored is not None:
            deadline.watch(self.stored)
            self.stored.limit(deadline.left)

    def opened(self, deadline: Deadline) -> OpenVideo:
        """The open container and its stream, at whatever place the last use left it."""
        if self._open is None:
            self.watch(deadline)
            reads_ranges = self.stored is not None and self.copy is None
            source = self.stored.file if reads_ranges and self.stored else self.source()
            container = open_container(self.path, deadline, source)
            try:
                stream = choose_stream(self.path, container)
                prepare_decoder(stream)
            except BaseException:
                container.close()
                raise
            self._open = OpenVideo(container, stream)
        return self._open

    def from_start(self, deadline: Deadline) -> OpenVideo:
        """The container at its first packet: opened anew if it was in use.

        A seek to the start does not do: some formats then leave out the packets before the first
        key frame.
        """
        self.close()
        return self.opened(deadline)

    @property
    def is_open(self) -> bool:
        return self._open is not None

    def close(self) -> None:
        """Close the container; the next use opens it again."""
        if self._open is not None:
            self._open.container.close()
            self._open = None


# ---- what may be opened ----


def check_file(path: str) -> tuple[int, int]:
    """Return (size, modification time in ns) of a file; DecodeError unless it is one, with content.

    It must be a regular file: reading from a pipe or a device might never end.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise DecodeError(path, "no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise DecodeError(path, f"cannot be opened: {_os_reason(error)}") from None
    if stat.S_ISDIR(status.st_mode):
        raise DecodeError(path, "is a folder, not a video file")
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError(path, "is a pipe or a device, not a video file")
    if status.st_size == 0:
        raise DecodeError(path, "is empty (0 bytes)")
    return status.st_size, status.st_mtime_ns


def find_video(path: str) -> StoredVideo | None:
    """The video at an address or inside a shard; None for a plain file. Raises DecodeError."""
    if not is_stored(path):
        return None
    # Imported here: local files need none of it.
    from hiera_video.storage.stored import StoredVideo

    with storage_errors(path), imports_allowed():
        return StoredVideo(path)


@contextlib.contextmanager
def storage_errors(path: str) -> Iterator[None]:
    """Turn what a storage fails with into a DecodeError of the video."""
    try:
        yield
    except StorageError as error:
        raise DecodeError(path, error.reason) from None
    except RunFailed as error:  # a copy that cannot be written
        raise DecodeError(path, str(error)) from None


def open_container(
    path: str, deadline: Deadline, source: str | RangeFile | None = None
) -> InputContainer:
    """Open `path` for reading with the white lists on.

    source: what is opened: a path of this machine, or a file object; None finds it.

    Raises DecodeError for anything that is not one of CONTAINERS.
    """
    import av

    if source is None:
        source = VideoFile(path).source()
    with storage_errors(path):
        head = _head(path, source)
    # Every allowed container is binary, every playlist is text. So text is refused here, before a
    # library guesses the format from the content or from the ending of the name.
    kind = text_kind(head)
    if kind:
        raise DecodeError(path, kind)
    try:
        return av.open(
            source,  # no leading dash, no "protocol:" prefix
            mode="r",
            options={
                "format_whitelist": CONTAINERS,
                # a file object needs none, and nothing inside the file may name another one
                "protocol_whitelist": "file" if isinstance(source, str) else "none",
                "max_pixels": str(MAX_PIXELS),
            },
            metadata_errors="replace",
            timeout=deadline.seconds,
        )
    except (av.FFmpegError, StorageError) as error:
        deadline.check()
        if isinstance(error, StorageError):
            raise DecodeError(path, error.reason) from None
        raise DecodeError(path, _open_reason(error, head)) from None


def choose_stream(path: str, container: InputContainer) -> VideoStream:
    """The first video stream that is not a cover picture; DecodeError where there is none."""
    from av.stream import Disposition

    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        others = sorted({s.type for s in container.streams} - {"video"})
        raise DecodeError(
            path, "has no video stream" + (f" (only {', '.join(others)})" if others else "")
        )
    decodable = [s for s in streams if s.codec_context is not None]
    if not decodable:
        raise DecodeError(path, "its video codec has no decoder in PyAV's FFmpeg")
    moving = [s for s in decodable if s.codec_context.codec.name not in _PICTURE_CODECS]
    stream = (moving or decodable)[0]
    check_size(path, stream.codec_context.width, stream.codec_context.height)
    return stream


def prepare_decoder(stream: VideoStream) -> None:
    """Set up PyAV's decoder, before its first packet.

    One thread: two gave nothing on clips of 256 to 720 lines once unneeded frames are skipped, and
    FFmpeg's threads beside a DataLoader's fork can hang for ever.
    """
    from av.stream import Discard

    context = stream.codec_context
    context.options = {"max_pixels": str(MAX_PIXELS)}
    context.thread_type = "SLICE"
    context.thread_count = 1
    for other in stream.container.streams:
        if other.index != stream.index:
            other.discard = Discard.all  # not even read from the disk


# ---- packets and frames ----


def demux(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    """The packets of `stream`, and one without content at the end; av.FFmpegError at damage.

    Broadcast files and FLV may announce further streams in mid-file. PyAV raises IndexError at the
    first packet of such a stream. It is never of `stream`, so it is passed over.
    """
    while True:
        try:
            yield from container.demux(stream)
        except IndexError:
            continue
        return


def frames_from_start(file: VideoFile, deadline: Deadline) -> Iterator[VideoFrame]:
    """Every frame of the stream as it comes out of the decoder; DecodeError at damage.

    Frames that lack data before the first whole one belong to a picture group whose start was cut
    off; they are left out.
    """
    import av

    container, stream = file.from_start(deadline)
    whole = False
    try:
        for packet in demux(container, stream):
            deadline.check()
            for frame in stream.codec_context.decode(packet if packet.size else None):
                whole = whole or not frame.is_corrupt
                if frame.is_corrupt and whole:
                    raise DecodeError(file.path, "damaged video (a frame lacks data)")
                if whole:
                    yield frame
    except (av.FFmpegError, MemoryError) as error:
        deadline.check()
        raise DecodeError(file.path, f"damaged video ({error_reason(error)})") from None


# ---- reasons ----


def error_reason(error: BaseException) -> str:
    """The informative part of a library's error message, on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = text.strip().splitlines()[0]
    # Libraries put the time and their own source line first.
    text = re.sub(r"^\[[\d:]+\] ", "", text)
    text = re.sub(r"^.*\.(cc|cpp|h):\d+[:,] ", "", text)
    return re.sub(r"^Check failed: ", "", text).rstrip(".")


def _os_reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


def _open_reason(error: av.FFmpegError, head: bytes) -> str:
    if isinstance(error, PermissionError) and not head:
        return "cannot be opened: permission denied"
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide"):
        return f"damaged or unfinished MP4 file ({error_reason(error)})"
    return f"not a video file of a known kind ({error_reason(error)})"


def _head(path: str, source: str | RangeFile) -> bytes:
    """The first 512 bytes."""
    if not isinstance(source, str):
        source.seek(0)
        head = source.read(512)
        source.seek(0)
        return head
    try:
        with Path(source).open("rb") as file:
            return file.read(512)
    except OSError as error:
        raise DecodeError(path, f"cannot be opened: {_os_reason(error)}") from None


def text_kind(head: bytes) -> str | None:
    """What kind of text a file holds, as a reason for users; None for binary files."""
    if any(byte < 32 and byte not in b"\t\n\f\r\x1b" for byte in head):
        return None
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the video itself (git lfs pull fetches it)"
    if text.startswith((b"<!doctype html", b"<html")):
        return "is a web page, not a video (a download that failed?)"
    if text.startswith((b"#extm3u", b"ffconcat", b"v=0", b"<?xml")):
        return "is a playlist; playlists are not opened, since they name other files"
    return "is a text file, not a video"
