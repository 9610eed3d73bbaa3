"""What is known of a video before its pictures are decoded: `VideoInfo`, and its `FrameIndex`."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]
Seconds = NDArray[np.float64]

NO_TIME = int(np.iinfo(np.int64).min)
"""Stands for a time stamp that the file does not give."""


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """What a video file holds, without its pictures."""

    path: str
    num_frames: int
    """Frames that `read_frames` can index, in the order they are shown."""
    fps: float
    """Average over the whole file."""
    duration: float
    """Seconds: num_frames / fps."""
    width: int
    """Of the upright picture, in pixels as stored (pixels may not be square)."""
    height: int
    rotation: int
    """Degrees by which the stored pictures are turned counter-clockwise: 0, 90, 180 or 270."""
    codec: str
    decoder: str
    """The library that decodes (where "auto" meets a file it fails on, the next one does)."""
    times: Seconds = field(repr=False)
    """float64 [num_frames]: seconds from the first frame, never falling."""
    container: str = ""
    """FFmpeg's name of the format, "mov,mp4,m4a,3gp,3g2,mj2"; empty for a folder of pictures."""
    index: FrameIndex | None = field(default=None, repr=False)
    """Where each frame lies in the file, so that `read_frames` need not scan it again."""


@dataclass(frozen=True, eq=False)
class FrameIndex:
    """Every packet of the chosen stream in decode order, and which of them can be read as frames.

    Arrays of P packets; `shown` has N <= P entries, one per frame, in the order they are shown.
    """

    identity: tuple[int, int]
    """Size and modification time of the file: another file under the same name is noticed."""
    container: str
    """FFmpeg's name of the format, "mov,mp4,m4a,3gp,3g2,mj2"."""
    stream: int
    num_video_streams: int
    size: tuple[int, int]
    """(width, height) of the first frame as stored, before it is turned upright."""
    quarter_turns: int
    """Counter-clockwise, 0 to 3: what makes the stored pictures upright."""
    time_base: Fraction
    pts: Integers = field(repr=False)
    """int64 [P] presentation times in ticks of `time_base`; NO_TIME where there is none."""
    dts: Integers = field(repr=False)
    """int64 [P] decode times, for seeking; NO_TIME where the file has none."""
    key: Mask = field(repr=False)
    """bool [P]: decoding can start here, and is right from this frame's time on."""
    closed: Mask = field(repr=False)
    """bool [P]: a key frame whose followers never refer to what comes before it."""
    plain: bool
    """True where the file's own key-frame marks are the closed keys: any library can seek."""
    hidden: Mask = field(repr=False)
    """bool [P]: decoded but not shown (outside the file's edit list)."""
    shown: Integers = field(repr=False)
    """int64 [N]: the packet of each frame."""
    sequential: bool
    """True where packet times are missing or repeated: frames are then counted as they come out of
    the decoder, from the first one on."""

    @property
    def format(self) -> str:
        """The first of the container's names: "mov", "matroska", "mpegts"."""
        return self.container.split(",")[0]

    def frame_pts(self) -> Integers:
        """int64 [N]: presentation time of each readable frame, in ticks."""
        return self.pts[self.shown]

    def cut_off(self) -> Mask:
        """bool [P]: packets before the first frame that refer to what the file does not hold."""
        before = self.pts < self.pts[self.shown[0]]
        start = int(self.key.argmax())
        undecodable = (np.arange(len(self.pts)) < start) | (self.pts < self.pts[start])
        return before & (~self.hidden | undecodable)

    def packets_to_decode(self, wanted: Integers) -> Integers:
        """int64 [K]: packets that a library decodes for each of the ascending frames [K].

        They are those from the last closed key, or from the frame before, to the frame: what is
        decoded between two checks of the deadline.
        """
        packets = self.shown[wanted]
        closed = np.flatnonzero(self.closed)
        keys = closed[np.searchsorted(closed, packets, side="right") - 1]
        since = np.maximum(keys, np.concatenate([[-1], np.maximum.accumulate(packets)[:-1]]))
        return np.maximum(packets - since, 1)

    def ranks(self, counted: Mask) -> Integers:
        """int64 [N]: the place of each frame among the `counted` packets (bool [P]) by time.

        Libraries that list the packets on their own know a frame by this number.
        """
        order = np.flatnonzero(counted)[np.argsort(self.pts[counted], kind="stable")]
        rank = np.full(len(self.pts), -1, np.int64)
        rank[order] = np.arange(len(order))
        return rank[self.shown]
