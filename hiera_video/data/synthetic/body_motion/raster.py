"""The rasteriser: layers that move by affine maps -> pixels, and which layer each pixel shows.

Compiled by numba: drawing a clip layer by layer with whole-picture operations takes ten times as
long. Every function is plain arithmetic on one pixel after the other, so the clips of a seed are
the same on every machine, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numba import njit


def _compiled(function: Callable) -> Callable:
    """Compile a function at its first call; the result is kept for other processes where it can be
    written, which a read-only installation may not allow."""
    try:
        compiled: Callable = njit(cache=True, nogil=True)(function)
    except RuntimeError:
        compiled = njit(nogil=True)(function)
    return compiled


SOFT_EDGE = 0.7
"""Width of an edge in pixels of the picture: what one sees is antialiased."""


@_compiled
def bounding_boxes(forward: np.ndarray, size: int) -> np.ndarray:
    """Pixels that each layer may cover: int32 [L, T, 4] (top, left, bottom, right).

    forward: float32 [L, T, 2, 3], local coordinates (-1 to 1) -> view (0 to 1).
    """
    layers, frames = forward.shape[:2]
    boxes = np.empty((layers, frames, 4), np.int32)
    for layer in range(layers):
        for t in range(frames):
            m = forward[layer, t]
            reach_x = abs(m[0, 0]) + abs(m[0, 1])
            reach_y = abs(m[1, 0]) + abs(m[1, 1])
            boxes[layer, t, 0] = max(0, math.floor((m[1, 2] - reach_y) * size - 1))
            boxes[layer, t, 1] = max(0, math.floor((m[0, 2] - reach_x) * size - 1))
            boxes[layer, t, 2] = min(size, math.ceil((m[1, 2] + reach_y) * size + 1))
            boxes[layer, t, 3] = min(size, math.ceil((m[0, 2] + reach_x) * size + 1))
    return boxes


@_compiled
def inverted(maps: np.ndarray) -> np.ndarray:
    """Invert affine maps, float32 [L, T, 2, 3]."""
    out = np.empty_like(maps)
    for layer in range(maps.shape[0]):
        for t in range(maps.shape[1]):
            m = maps[layer, t]
            det = m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0]
            a, b = m[1, 1] / det, -m[0, 1] / det
            c, d = -m[1, 0] / det, m[0, 0] / det
            out[layer, t, 0, 0], out[layer, t, 0, 1] = a, b
            out[layer, t, 1, 0], out[layer, t, 1, 1] = c, d
            out[layer, t, 0, 2] = -(a * m[0, 2] + b * m[1, 2])
            out[layer, t, 1, 2] = -(c * m[0, 2] + d * m[1, 2])
    return out


@njit(inline="always")
def _opacity(outlines: np.ndarray, number: int, u: float, v: float, sharpness: float) -> float:
    """How much of a pixel at (u, v) lies inside an outline, from its map of signed distances.

    outlines: float32 [O, D, D], negative inside, in local units. sharpness: edges in a local unit.
    """
    side = outlines.shape[1]
    half = np.float32(0.5)
    scale = np.float32(side) * half
    x, y = (u + np.float32(1)) * scale - half, (v + np.float32(1)) * scale - half
    if not (x >= 0 and y >= 0 and x < side - 1 and y < side - 1):
        return np.float32(0)
    i, j = np.int32(y), np.int32(x)
    fy, fx = y - np.float32(i), x - np.float32(j)
    top = outlines[number, i, j] + fx * (outlines[number, i, j + 1] - outlines[number, i, j])
    low = outlines[number, i + 1, j]
    low += fx * (outlines[number, i + 1, j + 1] - low)
    inside = half - (top + fy * (low - top)) * sharpness
    return min(np.float32(1), max(np.float32(0), inside))


@_compiled
def draw(
    forward: np.ndarray,
    looks: np.ndarray,
    paint: np.ndarray,
    outlines: np.ndarray,
    plates: np.ndarray,
    size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the layers of a clip: pixels float32 [T, size, size, 3], near 0 to 1, and the layer that
    each pixel shows most of, int16 [T, size, size].

    Layers are ordered from the nearest to the farthest; the last one covers everything.

    forward: float32 [L, T, 2, 3], local coordinates (-1 to 1) -> view (0 to 1, y down).
    looks: int32 [2, L], the outline of each layer in `outlines` float32 [O, D, D] (-1: no edge),
        and its texture in `plates` uint8 [P, S, S, 3], which wraps around.
    paint: float32 [L, 20]: local coordinates -> texels (6), the colours' matrix and offset (12),
        and the shading along local x and y (2).
    """
    layers, frames = forward.shape[:2]
    outline, plate = looks[0], looks[1]
    inverse, boxes = inverted(forward), bounding_boxes(forward, size)
    picture = np.empty((frames, size, size, 3), np.float32)
    owner = np.empty((frames, size, size), np.int16)
    active = np.empty(layers, np.int64)
    centres = ((np.arange(size) + 0.5) / size).astype(np.float32)
    area = inverse[..., 0, 0] * inverse[..., 1, 1] - inverse[..., 0, 1] * inverse[..., 1, 0]
    sharpness = (np.float32(size / SOFT_EDGE) / np.sqrt(np.abs(area))).astype(np.float32)
    for t in range(frames):
        for y in range(size):
            count = _layers_of_row(boxes, t, outline, y, active)
            for x in range(size):
                px, py = centres[x], centres[y]
                left, most = np.float32(1.0), np.float32(0.0)
                red = green = blue = np.float32(0.0)
                for k in range(count):
                    layer = active[k]
                    edge = outline[layer] >= 0
                    if edge and (x < boxes[layer, t, 1] or x >= boxes[layer, t, 3]):
                        continue
                    u = inverse[layer, t, 0, 0] * px + inverse[layer, t, 0, 1] * py
                    u += inverse[layer, t, 0, 2]
                    v = inverse[layer, t, 1, 0] * px + inverse[layer, t, 1, 1] * py
                    v += inverse[layer, t, 1, 2]
                    share = left
                    if edge:
                        share *= _opacity(outlines, outline[layer], u, v, sharpness[layer, t])
                        if share <= 0:
                            continue
                    r, g, b = _sample(plates, plate[layer], paint, layer, u, v)
                    red += share * r
                    green += share * g
                    blue += share * b
                    if share > most:
                        most = share
                        owner[t, y, x] = layer
                    left -= share
                    if left < 0.004:
                        break
                picture[t, y, x, 0] = red
                picture[t, y, x, 1] = green
                picture[t, y, x, 2] = blue
    return picture, owner


@_compiled
def _layers_of_row(
    boxes: np.ndarray, t: int, outline: np.ndarray, y: int, active: np.ndarray
) -> int:
    """Write the layers that may show in row `y` of frame `t` to `active`; return their number."""
    count = 0
    for layer in range(len(boxes)):
        if outline[layer] < 0 or boxes[layer, t, 0] <= y < boxes[layer, t, 2]:
            active[count] = layer
            count += 1
    return count


@njit(inline="always")
def _sample(
    plates: np.ndarray, plate: int, paint: np.ndarray, layer: int, u: float, v: float
) -> tuple[float, float, float]:
    """The colour of a layer at (u, v): its texture, bilinear, with changed colours and shaded.

    The side of the plates is a power of 2. Numbers, not slices of arrays: a slice is counted by
    atomic operations, which take longer than the rest.
    """
    mask = plates.shape[1] - 1
    tx = paint[layer, 0] * u + paint[layer, 1] * v + paint[layer, 2]
    ty = paint[layer, 3] * u + paint[layer, 4] * v + paint[layer, 5]
    floor_x, floor_y = np.floor(tx), np.floor(ty)
    fx, fy = tx - floor_x, ty - floor_y
    j, i = np.int32(floor_x) & mask, np.int32(floor_y) & mask
    j1, i1 = (j + 1) & mask, (i + 1) & mask
    one = np.float32(1)
    w00, w01, w10, w11 = (one - fy) * (one - fx), (one - fy) * fx, fy * (one - fx), fy * fx
    r = w00 * plates[plate, i, j, 0] + w01 * plates[plate, i, j1, 0]
    r += w10 * plates[plate, i1, j, 0] + w11 * plates[plate, i1, j1, 0]
    g = w00 * plates[plate, i, j, 1] + w01 * plates[plate, i, j1, 1]
    g += w10 * plates[plate, i1, j, 1] + w11 * plates[plate, i1, j1, 1]
    b = w00 * plates[plate, i, j, 2] + w01 * plates[plate, i, j1, 2]
    b += w10 * plates[plate, i1, j, 2] + w11 * plates[plate, i1, j1, 2]
    shade = max(np.float32(0), one + paint[layer, 18] * u + paint[layer, 19] * v)
    return (
        shade * (paint[layer, 6] * r + paint[layer, 7] * g + paint[layer, 8] * b + paint[layer, 9]),
        shade
        * (paint[layer, 10] * r + paint[layer, 11] * g + paint[layer, 12] * b + paint[layer, 13]),
        shade
        * (paint[layer, 14] * r + paint[layer, 15] * g + paint[layer, 16] * b + paint[layer, 17]),
    )


@_compiled
def displacement(
    forward: np.ndarray, owner: np.ndarray, start: int, end: int, cell: int
) -> np.ndarray:
    """Where what a pixel shows in frame `start` has moved to in frame `end`, in sides of the view.

    Returns float32 [4, H / cell, W / cell], means over cells: the displacement on the screen
    (x, y), and the displacement besides that of the last layer (the background, which moves with
    the camera alone).

    forward: float32 [L, T, 2, 3] as `draw` takes it; owner: int16 [H, W], frame `start`'s layers;
    cell: side of a cell in pixels.
    """
    size = owner.shape[0]
    inverse = inverted(forward[:, start : start + 1])
    # the map of each layer from frame `start` to frame `end`
    layers = forward.shape[0]
    maps = np.empty((layers, 6), np.float32)
    for layer in range(layers):
        m, n = inverse[layer, 0], forward[layer, end]
        for row in range(2):
            for column in range(2):
                maps[layer, 3 * row + column] = n[row, 0] * m[0, column] + n[row, 1] * m[1, column]
            maps[layer, 3 * row + 2] = n[row, 0] * m[0, 2] + n[row, 1] * m[1, 2] + n[row, 2]
    out = np.zeros((4, size // cell, size // cell), np.float32)
    back, share = maps[layers - 1], np.float32(1.0 / (cell * cell))
    for y in range(size):
        for x in range(size):
            px, py = np.float32((x + 0.5) / size), np.float32((y + 0.5) / size)
            k = owner[y, x]
            qx = maps[k, 0] * px + maps[k, 1] * py + maps[k, 2]
            qy = maps[k, 3] * px + maps[k, 4] * py + maps[k, 5]
            i, j = y // cell, x // cell
            out[0, i, j] += share * (qx - px)
            out[1, i, j] += share * (qy - py)
            out[2, i, j] += share * (qx - (back[0] * px + back[1] * py + back[2]))
            out[3, i, j] += share * (qy - (back[3] * px + back[4] * py + back[5]))
    return out


@_compiled
def cell_means(values: np.ndarray, owner: np.ndarray, cell: int) -> np.ndarray:
    """Mean over cells of what each pixel's layer is given: float32 [D, H / cell, W / cell].

    values: float32 [L, D]; owner: int16 [H, W].
    """
    size, depth = owner.shape[0], values.shape[1]
    out = np.zeros((depth, size // cell, size // cell), np.float32)
    share = np.float32(1.0 / (cell * cell))
    for y in range(size):
        for x in range(size):
            layer = owner[y, x]
            for k in range(depth):
                out[k, y // cell, x // cell] += share * values[layer, k]
    return out


@_compiled
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
    out = np.empty((frames, height, width, 3), np.uint8)
    last = len(curve) - 1
    for t in range(frames):
        at = offsets[t]
        for y in range(height):
            for x in range(width):
                for c in range(3):
                    value = picture[t, y, x, c] * gain[t, y, x]
                    value = min(1.0, max(0.0, value)) * last
                    byte = curve[int(value + 0.5)] + noise * grain[at]
                    at += 1
                    out[t, y, x, c] = int(min(255.0, max(0.0, byte)) + 0.5)
    return out


@_compiled
def rounded_cosines(frames: np.ndarray, basis: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Round the cosines of every block of 8 x 8 pixels to steps: uint8 [T, H, W, 3], as given.

    basis: float32 [8, 8], the discrete cosine transform. steps: float32 [8, 8], by frequency.
    """
    out = np.empty_like(frames)
    block, half = np.empty((8, 8), np.float32), np.empty((8, 8), np.float32)
    for t in range(frames.shape[0]):
        for top in range(0, frames.shape[1], 8):
            for left in range(0, frames.shape[2], 8):
                for channel in range(3):
                    for y in range(8):
                        for x in range(8):
                            block[y, x] = frames[t, top + y, left + x, channel] - 128.0
                    _product(basis, block, half, False)
                    _product(basis, half, block, False)
                    for y in range(8):
                        for x in range(8):
                            block[y, x] = np.rint(block[y, x] / steps[x, y]) * steps[x, y]
                    _product(basis, block, half, True)
                    _product(basis, half, block, True)
                    for y in range(8):
                        for x in range(8):
                            byte = min(255.0, max(0.0, block[y, x] + 128.5))
                            out[t, top + y, left + x, channel] = int(byte)
    return out


@_compiled
def _product(basis: np.ndarray, values: np.ndarray, out: np.ndarray, transposed: bool) -> None:
    """Write (basis @ values).T to `out`, or with the transposed basis; twice is a transform in both
    directions. All float32 [8, 8]."""
    for i in range(8):
        for j in range(8):
            total = np.float32(0)
            for k in range(8):
                total += (basis[k, i] if transposed else basis[i, k]) * values[k, j]
            out[j, i] = total
