"""Split a read into portions, between which the time limit is checked.

torchcodec and decord cannot be interrupted inside a call, PyAV can after every packet.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hiera_video.errors import DecodeError
from hiera_video.video.info import FrameIndex, Integers

LARGEST = 1 << 32
"""Pixels decoded in one call: about 2,000 pictures of 1920x1080, some ten seconds."""


def portions(path: str, index: FrameIndex, wanted: Integers, library: str) -> Iterator[Integers]:
    """Split ascending frame indices [K] so that each part stays below LARGEST.

    Raises DecodeError where a single frame is further than that from where decoding can start.
    """
    width, height = index.size
    pixels = index.packets_to_decode(wanted) * (width * height)
    if pixels.max() > LARGEST:
        far = int(wanted[pixels.argmax()])
        raise DecodeError(
            path,
            f"frame {far} is too far from a key frame for {library}, which cannot be stopped on "
            "the way; pyav can",
        )
    part = (np.cumsum(pixels) - 1) // LARGEST
    yield from np.split(wanted, np.flatnonzero(np.diff(part)) + 1)
