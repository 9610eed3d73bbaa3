"""Which bytes of a remote MP4 or MOV file the scan of its packets needs.

Such a file has a table of its packets. FFmpeg's reader still reads every packet's content, which
would fetch the whole file for the sake of one clip. The scan looks at the content of two kinds of
packets only: the first ones, from which it decodes a frame, and the starts of key frames of H.264
(`h264.py`). All else may be zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hiera_video.storage.range_file import Range, merged
from hiera_video.video.container import OpenVideo

_CODECS = {"h264", "hevc", "mpeg4"}
"""Those of which FFmpeg's reader of MP4 passes packets on without looking into them."""

FIRST_BYTES = 1 << 20
"""Of the first packets, which are decoded."""

KEY_BYTES = 16 << 10
"""Of each key frame: the units before its first slice."""

_GAP = 64 << 10
"""Bytes between two ranges that are fetched as well, rather than asking twice."""


class FewBytes(NamedTuple):
    """The parts of a file that are read."""

    between: Range
    """All packets lie here."""
    shown: list[Range]
    """Those of them that are read as they are."""
    whole: int
    """How many of the first packets are whole."""
    packets: int

    def sufficed(
        self, packets: int, fed: int, marked: Sequence[bool], starts: Sequence[str | None]
    ) -> bool:
        """Whether a scan of these bytes saw what one of the whole file would see.

        packets: how many came. fed: how many were decoded for the first frame. marked, starts: the
        key frames by the container, and by their content.
        """
        told = all(start for key, start in zip(marked, starts, strict=True) if key)
        return packets == self.packets and fed <= self.whole and told


def plan_of(opened: OpenVideo) -> FewBytes | None:
    """The bytes to read of an open file; None where all of it is needed."""
    container, stream = opened
    if "mov" not in container.format.name.split(","):
        return None
    if stream.codec_context.codec.canonical_name not in _CODECS:
        return None
    entries = [(entry.pos, entry.size, entry.is_keyframe) for entry in stream.index_entries]
    # A file in fragments, or one with edits inside, has its table in several places.
    if not entries or len(entries) != stream.frames:
        return None
    begin = min(pos for pos, _, _ in entries)
    end = max(pos + size for pos, size, _ in entries)
    whole = read = 0
    for _, size, _ in entries:
        read += size
        if whole and read > FIRST_BYTES:
            break
        whole += 1
    ranges = [(pos, pos + size) for pos, size, _ in entries[:whole]]
    if stream.codec_context.codec.canonical_name == "h264":
        ranges += [(p, p + min(size, KEY_BYTES)) for p, size, key in entries[whole:] if key]
    return FewBytes((begin, end), merged(sorted(ranges), _GAP), whole, len(entries))
