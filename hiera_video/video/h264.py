"""Tell whether decoding of H.264 may start at a packet that the container calls a key frame.

Containers mark three different things so: a true restart (IDR); a whole picture whose followers may
still refer to what came before it (open picture group); and the start of a refresh that takes
many frames to build a whole picture. After a seek to the last kind, decoders return wrong pictures
without an error. Numbers: ITU-T H.264, tables 7-1 (NAL unit types) and D.1.8 (recovery point).
"""

from __future__ import annotations

from collections.abc import Iterator

_SLICE, _IDR, _SEI = 1, 5, 6
_RECOVERY_POINT = 6


def starting_point(packet: bytes, extradata: bytes | None) -> str | None:
    """Return "idr", "recovery" (whole, but followers may look back) or None (cannot start here)."""
    found = None
    for kind, unit in _units(packet, extradata or b""):
        if kind == _IDR:
            return "idr"
        if kind == _SLICE:
            return found
        if kind == _SEI and _recovers_at_once(unit):
            found = "recovery"
    return None


def _units(packet: bytes, extradata: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, payload) of each NAL unit."""
    position, end = 0, len(packet)
    if extradata[:1] == b"\x01":  # as in MP4: each unit after its length
        width = (extradata[4] & 3) + 1 if len(extradata) > 4 else 4
        while position + width < end:
            length = int.from_bytes(packet[position : position + width], "big")
            position += width
            yield packet[position] & 31, packet[position + 1 : position + length]
            position += length
        return
    position = packet.find(b"\0\0\1")  # as in MPEG-TS: each unit after a start code
    while position >= 0 and position + 3 < end:
        after = packet.find(b"\0\0\1", position + 3)
        unit = packet[position + 3 : after if after >= 0 else end]
        if unit:
            yield unit[0] & 31, unit[1:]
        position = after


def _recovers_at_once(sei: bytes) -> bool:
    """True where the messages in `sei` hold a recovery point of zero frames."""
    position = 0
    while position + 2 < len(sei):
        kind = length = 0
        while position < len(sei) and sei[position] == 255:
            kind, position = kind + 255, position + 1
        kind, position = kind + sei[position] if position < len(sei) else -1, position + 1
        while position < len(sei) and sei[position] == 255:
            length, position = length + 255, position + 1
        length, position = length + sei[position] if position < len(sei) else 0, position + 1
        if kind == _RECOVERY_POINT and position < len(sei):
            return bool(sei[position] & 0x80)  # Exp-Golomb zero is the single bit 1
        position += length
    return False
