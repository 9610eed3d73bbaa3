"""Clips -> H.264 files whose bytes do not depend on the processor."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from torch import Tensor

_CODEC = {"preset": "veryfast", "threads": "1", "x264-params": "cpu-independent=1"}
"""Settings of x264, which otherwise chooses algorithms by the instructions of the processor."""


def encode(path: Path, clip: Tensor, *, fps: int, crf: int) -> None:
    """Write uint8 [T, 3, H, W], H and W even, as H.264 in MP4.

    The same clip gives the same bytes on every processor, for one version of PyAV. `crf` is
    x264's: 18 looks lossless, 34 is visibly compressed.
    """
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf), **_CODEC})
        stream.height, stream.width = clip.shape[-2:]
        stream.pix_fmt = "yuv420p"
        for planes in _to_yuv420(clip.numpy()):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode())


# BT.601 with levels 16 to 235 (colour: 16 to 240), as players assume where a file does not say
_YUV_BITS = 16
_TO_YUV = np.array([[16829, 33039, 6416], [-9714, -19070, 28784], [28784, -24103, -4681]])
"""int64 [YUV, RGB], in units of 2 ** -_YUV_BITS. Grey has no colour: those rows add up to 0."""


def _to_yuv420(clip: np.ndarray) -> np.ndarray:
    """uint8 [T, 3, H, W] RGB -> uint8 [T, H * 3 / 2, W]: the planes Y, U, V below each other.

    In integers: FFmpeg's own conversion depends on the processor. Colour is halved as FFmpeg does
    it: by pairs across, by 1, 3, 3, 1 eighths down.
    """
    frames, _, height, width = clip.shape
    clip = clip.astype(np.int64)

    def weighted(rows: slice, picture: np.ndarray, level: int, bits: int) -> np.ndarray:
        """Weighted sums of the channels of [T, 3, h, w], rounded: uint8 [T, rows, h, w]."""
        summed = np.einsum("oc,tchw->tohw", _TO_YUV[rows], picture)
        half = 1 << (bits - 1)
        return ((summed + (level << bits) + half) >> bits).astype(np.uint8)

    light = weighted(slice(0, 1), clip, 16, _YUV_BITS)
    pairs = clip[..., 0::2] + clip[..., 1::2]
    pairs = np.concatenate([pairs[:, :, :1], pairs, pairs[:, :, -1:]], axis=2)
    outer, inner = pairs[:, :, :-3:2] + pairs[:, :, 3::2], pairs[:, :, 1:-2:2] + pairs[:, :, 2:-1:2]
    colour = weighted(slice(1, 3), outer + 3 * inner, 128, _YUV_BITS + 4)
    return np.concatenate(
        [light.reshape(frames, height, width), colour.reshape(frames, height // 2, width)], axis=1
    )
