"""Real video files for tests, written with PyAV; every frame carries its own index in its pixels.

    from clips import read_index, write_clip

    path = write_clip(tmp_path / "a.mp4", frames=30, fps=25, size=(96, 64))
    read_index(frames[3])  # frames: uint8 RGB [N, 3, H, W] from any decoder -> 3

The picture of frame `i`: the top half is a code of 2 x 8 black or white blocks, the sixteen bits
of `i`, most significant first; the bottom half is a red-to-blue ramp (red at the left) under a
bright box that travels to the right. A picture turned or mirrored by mistake therefore reads as
another index or fails `is_upright`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CODE_ROWS, CODE_COLUMNS = 2, 8
BLACK, WHITE = 30, 220
TICKS = 60_000
"""Time base of the files, in ticks a second: whole for 24, 25, 30, 50, 120 and 30/1.001 fps."""


def picture(index: int, size: tuple[int, int]) -> np.ndarray:
    """The upright picture of frame `index`: uint8 RGB [H, W, 3] for `size` = (W, H)."""
    width, height = size
    bits = [(index >> (15 - k)) & 1 for k in range(CODE_ROWS * CODE_COLUMNS)]
    code = np.where(np.array(bits).reshape(CODE_ROWS, CODE_COLUMNS), WHITE, BLACK)
    rgb = np.empty((height, width, 3), np.uint8)

    code_height = height // 2
    rows = np.arange(code_height) * CODE_ROWS // code_height
    columns = np.arange(width) * CODE_COLUMNS // width
    rgb[:code_height] = code[rows][:, columns, None]

    ramp = np.linspace(200, 40, width)
    rgb[code_height:] = np.stack([ramp, np.full(width, 60.0), ramp[::-1]], axis=-1)
    side = max(height // 8, 2)
    left = (index * side // 2) % max(width - side, 1)
    top = code_height + (height - code_height) // 2
    rgb[top : top + side, left : left + side] = (240, 240, 60)
    return rgb


def read_index(frame) -> int:
    """The index written into one upright frame, uint8 RGB [3, H, W] (tensor or array)."""
    grey = np.asarray(frame, dtype=np.float64).mean(axis=0)
    height, width = grey.shape
    block_height, block_width = height // 2 / CODE_ROWS, width / CODE_COLUMNS
    index = 0
    for row in range(CODE_ROWS):
        for column in range(CODE_COLUMNS):
            # The middle of the block only: its edges are blurred by chroma and by resizing.
            y0, y1 = (int((row + part) * block_height) for part in (0.3, 0.7))
            x0, x1 = (int((column + part) * block_width) for part in (0.3, 0.7))
            block = grey[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
            index = index * 2 + int(block.mean() > (BLACK + WHITE) / 2)
    return index


def read_indices(frames) -> list[int]:
    """`read_index` of every frame of [N, 3, H, W]."""
    return [read_index(frame) for frame in frames]


def is_upright(frame) -> bool:
    """True where the ramp of the bottom half runs from red at the left to blue at the right."""
    red, _, blue = np.asarray(frame, dtype=np.float64)[:, -frame.shape[1] // 8 :]
    third = red.shape[1] // 3
    left, right = slice(0, third), slice(-third, None)
    return bool(
        red[:, left].mean() > blue[:, left].mean() + 30
        and blue[:, right].mean() > red[:, right].mean() + 30
    )


def write_clip(
    path: str | Path,
    *,
    frames: int | Iterable[np.ndarray] = 64,
    fps: float | Fraction = 30,
    size: tuple[int, int] = (96, 64),
    times: Sequence[float] | None = None,
    start: float = 0.0,
    rotation: int = 0,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    b_frames: int = 0,
    options: dict[str, str] | None = None,
    format: str | None = None,
    audio: bool = False,
    first_index: int = 0,
) -> Path:
    """Write a video file and return its path.

    Args:
        frames: how many coded pictures (see `picture`), or the pictures themselves, uint8 RGB
            [H, W, 3] in presentation order.
        fps: frames a second; ignored where `times` says when each frame is shown.
        size: (width, height) as shown, i.e. upright, whatever `rotation` is.
        times: presentation time of each frame in seconds, ascending (variable frame rate).
        start: seconds added to every time (a file whose first frame is not at zero).
        rotation: 0, 90, 180 or 270: the pictures are stored turned, and the file says by how many
            degrees counter-clockwise a player must turn them to be upright.
        gop: frames between key frames.
        b_frames: consecutive B-frames (the packets are then not in presentation order).
        options: further encoder options, e.g. {"crf": "30"}.
        format: container, where the name's ending does not say it.
        audio: add a silent AAC track.
        first_index: the index coded into the first picture.
    """
    path = Path(path)
    if isinstance(frames, int):
        frames = (picture(first_index + i, size) for i in range(frames))
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, options=_encoder_options(codec, options))
        stream.pix_fmt = pix_fmt
        turned = rotation % 180 == 90
        stream.width, stream.height = size[::-1] if turned else size
        # AVI counts frames and has no other clock.
        tick = 1 / rate if container.format.name == "avi" else Fraction(1, TICKS)
        stream.time_base = stream.codec_context.time_base = tick
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream("aac", rate=16_000, layout="mono") if audio else None
        last = 0.0
        for i, rgb in enumerate(frames):
            last = times[i] if times is not None else float(i / rate)
            # The player turns by `rotation` counter-clockwise, so what is stored is turned back.
            stored = np.ascontiguousarray(np.rot90(rgb, -rotation // 90))
            frame = av.VideoFrame.from_ndarray(stored, format="rgb24")
            frame.time_base = tick
            frame.pts = round((start + last) / tick)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            _write_silence(container, sound, seconds=last + 1 / float(rate))
    return path


def cut_clip(source: str | Path, path: str | Path, *, seconds: float) -> Path:
    """Copy `source` from `seconds` on, packets as they are, as editors "trim without re-encoding".

    Packets from the key frame before on are kept, with negative times; into MP4 an edit list is
    written that hides them.
    """
    path = Path(path)
    with av.open(str(source)) as whole, av.open(str(path), "w") as trimmed:
        stream = whole.streams.video[0]
        twin = trimmed.add_stream_from_template(stream)
        shift = round(seconds / stream.time_base)
        whole.seek(shift, stream=stream)
        for packet in whole.demux(stream):
            if packet.size:
                packet.pts -= shift
                packet.dts -= shift
                packet.stream = twin
                trimmed.mux(packet)
    return path


def write_two_streams(path: str | Path, *, first: str | Path, second: str | Path) -> Path:
    """Write one file holding the video streams of two files, packets as they are."""
    path = Path(path)
    with av.open(str(path), "w") as both, av.open(str(first)) as a, av.open(str(second)) as b:
        sources = [(a.streams.video[0], a), (b.streams.video[0], b)]
        twins = [both.add_stream_from_template(stream) for stream, _ in sources]
        for (stream, container), twin in zip(sources, twins, strict=True):
            for packet in container.demux(stream):
                if packet.size:
                    packet.stream = twin
                    both.mux(packet)
    return path


def write_audio_only(path: str | Path, *, seconds: float = 1.0) -> Path:
    """Write a file with one silent AAC track and no video."""
    path = Path(path)
    with av.open(str(path), "w") as container:
        _write_silence(container, container.add_stream("aac", rate=16_000, layout="mono"), seconds)
    return path


def _encoder_options(codec: str, options: dict[str, str] | None) -> dict[str, str]:
    fast = {}
    if codec == "libx264":
        # Scene cuts would put key frames elsewhere than `gop` says.
        fast = {"preset": "veryfast", "crf": "18", "sc_threshold": "0", "threads": "1"}
        fast["x264-params"] = "cpu-independent=1"  # else it chooses by what the processor has
    return fast | (options or {})


def _write_silence(container, stream, seconds: float) -> None:
    samples = 1024
    for start in range(0, max(int(seconds * 16_000), samples), samples):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, samples), np.float32), "fltp", "mono")
        frame.sample_rate = 16_000
        frame.pts = start
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
