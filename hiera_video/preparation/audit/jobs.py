"""What travels to the child processes of an audit and back. Imports neither torch nor a decoder."""

from __future__ import annotations

from typing import NamedTuple

from hiera_video.clip_spec import ClipSpec


class FileJob(NamedTuple):
    """One file to examine."""

    entry: int
    """The caller's number for the file."""
    path: str
    quick: bool = False
    """List the packets and decode the first frame only."""
    seconds: float = 60.0
    """Time for decoding. Frames that were not reached are reported in a remark."""


class FileCheck(NamedTuple):
    """The result of examining one file."""

    kind: str = ""
    """Empty (no problem), "unreadable", "no_frames" or "fewer_frames"."""
    reason: str = ""
    frames: int = 0
    """Number of frames that can be read by index."""
    fps: float = 0.0
    """Average over the file."""
    seconds: float = 0.0
    """Duration."""
    rotation: int = 0
    """Degrees: 0, 90, 180 or 270."""
    remarks: tuple[tuple[str, str], ...] = ()
    """(kind, text) of each remark: "odd_rate", "odd_file" or "unchecked"."""
    ends_digest: bytes = b""
    """16 bytes: digest of the size and both ends of the file; empty for a folder."""
    frames_digest: bytes = b""
    """16 bytes: digest of all decoded frames; empty if not all were decoded."""
    cacheable: bool = True
    """False where another try may give another result (no permission, a failing disk)."""


class ClipJob(NamedTuple):
    """One training clip whose reading is timed."""

    entry: int
    path: str
    spec: ClipSpec
    decoder: str
