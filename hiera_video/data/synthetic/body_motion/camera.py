"""What light, lens, sensor and compression do to pixels, compiled; `light.py` draws how much."""

from __future__ import annotations

import numpy as np

from hiera_video.data.synthetic.body_motion.compiled import compiled, inlined


@compiled
def soften(picture: np.ndarray, side: float) -> np.ndarray:
    """Blur over neighbouring pixels, each of weight `side`: float32 [T, H, W, 3]."""
    frames, height, width, _ = picture.shape
    rows, many = picture.reshape((frames, height, 3 * width)), 3 * width
    out = np.empty_like(rows)
    middle, around = np.float32(1 - 2 * side), np.float32(side)
    row = np.empty(many + 6, np.float32)  # with a pixel more at either end
    for t in range(frames):
        for y in range(height):
            above, below = max(y - 1, 0), min(y + 1, height - 1)
            for i in range(many):
                row[i + 3] = middle * rows[t, y, i] + around * (
                    rows[t, above, i] + rows[t, below, i]
                )
            for i in range(3):  # as slices this took four seconds more to compile
                row[i], row[many + 3 + i] = row[i + 3], row[many + i]
            for i in range(many):
                out[t, y, i] = middle * row[i + 3] + around * (row[i] + row[i + 6])
    return out.reshape(picture.shape)


@compiled
def lit(gain: np.ndarray, down: np.ndarray, across: np.ndarray, spot: float) -> np.ndarray:
    """The light of a lamp or a shadow: float32 [T, S, S].

    gain: float64 [T]; down, across: float64 [T, S], 0 to 1; spot: what is added where both are 1,
    or taken from everywhere else.
    """
    frames, side = down.shape
    out = np.empty((frames, side, side), np.float32)
    less = 1.0 if spot > 0 else 0.0
    for t in range(frames):
        for y in range(side):
            for x in range(side):
                value = gain[t] * (1 + spot * (down[t, y] * across[t, x] - less))
                out[t, y, x] = max(value, 0.08)
    return out


@compiled
def expose(
    picture: np.ndarray,
    gain: np.ndarray,
    curve: np.ndarray,
    grain: np.ndarray,
    offsets: np.ndarray,
    noise: float,
) -> np.ndarray:
    """From light to the bytes of a camera: uint8 [T, H, W, 3].

    picture: float32 [T, H, W, 3]; gain: float32 [T, H, W], the light. curve: float32 [N], the byte
    (before rounding) of a brightness 0 to 1. grain: float32 [G] of unit noise, of which frame t
    takes what begins at `offsets[t]`, times `noise` bytes.
    """
    frames, height, width, _ = picture.shape
    rows, many = picture.reshape((frames, height, 3 * width)), 3 * width
    out = np.empty((frames, height, many), np.uint8)
    last = len(curve) - 1
    level, tone = np.empty(many, np.uint32), np.empty(many, np.float32)
    for t in range(frames):
        for y in range(height):
            # one row in three steps: the look-up between them can only be done one by one
            for x in range(width):
                for i in range(3 * x, 3 * x + 3):
                    value = rows[t, y, i] * gain[t, y, x]
                    level[i] = np.int32(min(1.0, max(0.0, value)) * last + 0.5)
            for i in range(many):
                tone[i] = curve[level[i]]
            at = offsets[t] + y * many
            piece = grain[at : at + many]
            for i in range(many):
                byte = tone[i] + noise * piece[i]
                out[t, y, i] = np.int32(min(255.0, max(0.0, byte)) + 0.5)
    return out.reshape(picture.shape)


@compiled
def rounded_cosines(frames: np.ndarray, bases: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Round the cosines of every block of 8 x 8 pixels to steps: uint8 [T, H, W, 3], as given.

    A strip of 8 rows is transformed at once: down, and turned over, across.

    bases: float32 [2, 8, 8], the discrete cosine transform and its inverse. steps: float32 [8, 8],
    by frequency.
    """
    count, height, width, _ = frames.shape
    many = 3 * width
    rows = frames.reshape((count, height, many))
    out = np.empty_like(rows)
    one, other = np.empty((8, many), np.float32), np.empty((8, many), np.float32)
    for t in range(count):
        for top in range(0, height, 8):
            for y in range(8):
                for i in range(many):
                    one[y, i] = rows[t, top + y, i] - 128.0
            for way in range(2):
                _product(bases[way], one, other)
                _turn(other, one)
                _product(bases[way], one, other)
                if way == 0:
                    _round(other, steps)
                _turn_back(other, one)
            for y in range(8):
                for i in range(many):
                    byte = min(255.0, max(0.0, one[y, i] + 128.5))
                    out[t, top + y, i] = np.int32(byte)
    return out.reshape(frames.shape)


@compiled
def _product(basis: np.ndarray, values: np.ndarray, out: np.ndarray) -> None:
    """Write basis @ values to `out`: float32 [8, 8], [8, M] and [8, M]."""
    for i in range(8):
        b0, b1, b2, b3 = basis[i, 0], basis[i, 1], basis[i, 2], basis[i, 3]
        b4, b5, b6, b7 = basis[i, 4], basis[i, 5], basis[i, 6], basis[i, 7]
        for m in range(values.shape[1]):
            total = b0 * values[0, m] + b1 * values[1, m] + b2 * values[2, m] + b3 * values[3, m]
            total += b4 * values[4, m]
            total += b5 * values[5, m]
            total += b6 * values[6, m]
            out[i, m] = total + b7 * values[7, m]


@inlined
def _turn(strip: np.ndarray, out: np.ndarray) -> None:
    """Exchange rows and columns of the blocks of a strip: float32 [8 rows, blocks, 8 columns, 3]
    -> [8 columns, 8 rows, blocks, 3], both as [8, M]."""
    per_row = strip.shape[1] // 8
    for y in range(8):
        for block in range(per_row // 3):
            for x in range(8):
                for c in range(3):
                    out[x, y * per_row + 3 * block + c] = strip[y, 24 * block + 3 * x + c]


@inlined
def _turn_back(turned: np.ndarray, out: np.ndarray) -> None:
    """Undo `_turn`."""
    per_row = turned.shape[1] // 8
    for y in range(8):
        for block in range(per_row // 3):
            for x in range(8):
                for c in range(3):
                    out[y, 24 * block + 3 * x + c] = turned[x, y * per_row + 3 * block + c]


@inlined
def _round(turned: np.ndarray, steps: np.ndarray) -> None:
    """Round turned cosines float32 [8, M] to steps."""
    per_row = turned.shape[1] // 8
    for x in range(8):
        for y in range(8):
            step = steps[x, y]
            for m in range(y * per_row, (y + 1) * per_row):
                turned[x, m] = np.rint(turned[x, m] / step) * step
