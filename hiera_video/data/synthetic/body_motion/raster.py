"""The rasteriser: layers that move by affine maps -> pixels, and which layer each pixel shows.

Compiled by numba: drawing a clip layer by layer with whole-picture operations takes ten times as
long. Every function is plain arithmetic on one pixel after the other, so the clips of a seed are
the same on every machine, up to rounding.
"""

from __future__ import annotations

import math

import numpy as np

from hiera_video.data.synthetic.body_motion.compiled import compiled, inlined
from hiera_video.data.synthetic.body_motion.textures import PLATE_SIDE

SOFT_EDGE = 0.7
"""Width of an edge in pixels of the picture: what one sees is antialiased."""

HIDDEN = np.float32(0.004)
"""Of a pixel of which less is left, farther layers are not drawn."""

NONE, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)

# ---- maps ---------------------------------------------------------------------------------------


@inlined
def bounding_boxes(forward: np.ndarray, outline: np.ndarray, size: int) -> np.ndarray:
    """Pixels that each layer may cover: int32 [L, T, 4] (top, left, bottom, right).

    forward: float32 [L, T, 2, 3], local coordinates (-1 to 1) -> view (0 to 1). outline: int32 [L];
    below 0: a layer without an edge, which covers everything.
    """
    layers, frames = forward.shape[:2]
    boxes = np.zeros((layers, frames, 4), np.int32)
    for layer in range(layers):
        for t in range(frames):
            if outline[layer] < 0:
                boxes[layer, t, 2] = boxes[layer, t, 3] = size
                continue
            m = forward[layer, t]
            reach_x = abs(m[0, 0]) + abs(m[0, 1])
            reach_y = abs(m[1, 0]) + abs(m[1, 1])
            boxes[layer, t, 0] = max(0, math.floor((m[1, 2] - reach_y) * size - 1))
            boxes[layer, t, 1] = max(0, math.floor((m[0, 2] - reach_x) * size - 1))
            boxes[layer, t, 2] = min(size, math.ceil((m[1, 2] + reach_y) * size + 1))
            boxes[layer, t, 3] = min(size, math.ceil((m[0, 2] + reach_x) * size + 1))
    return boxes


@compiled
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


@compiled
def _centres(size: int) -> np.ndarray:
    """Where the pixels of a row are in the view: float32 [size], 0 to 1."""
    centres = np.empty(size, np.float32)
    for i in range(size):
        centres[i] = (i + 0.5) / size
    return centres


# ---- pixels -------------------------------------------------------------------------------------

MANY = 1024
"""Pixels whose colours are found together."""

# The lists are pieces of two arrays, which begin at these constants. So the compiler knows that
# they do not overlap, and handles eight pixels at a time; of separate arrays it would not know.
U, V, SHARE, SHADE, FX, FY = range(0, 6 * MANY, MANY)
RED, GREEN, BLUE = U, V, SHADE  # in place of what is no longer needed
PIXEL, T00, T01, T10, T11 = range(0, 5 * MANY, MANY)


@compiled
def draw(
    forward: np.ndarray,
    looks: np.ndarray,
    paint: np.ndarray,
    outlines: np.ndarray,
    texels: np.ndarray,
    size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the layers of a clip: pixels float32 [T, size, size, 3], near 0 to 1, and the layer that
    each pixel shows most of, int16 [T, size, size].

    Layers are ordered from the nearest to the farthest; the last one covers everything. One layer
    after the other is drawn in all frames: the pixels that show it are listed, with how much of it
    they show, and the colours of a whole list are found together.

    forward: float32 [L, T, 2, 3], local coordinates (-1 to 1) -> view (0 to 1, y down).
    looks: int32 [2, L], the outline of each layer in `outlines` float32 [O, D, D] (-1: no edge),
        and its texture in `texels` int32 [P, (S + 1) ** 2], see `textures.texels`.
    paint: float32 [L, 20]: local coordinates -> texels (6), the colours' matrix and offset (12),
        and the shading along local x and y (2).
    """
    layers, frames = forward.shape[:2]
    inverse, boxes = inverted(forward), bounding_boxes(forward, looks[0], size)
    picture = np.zeros((frames, size, size, 3), np.float32)
    owner = np.zeros((frames, size, size), np.int16)
    colours, owners = picture.reshape(-1), owner.reshape(-1)
    left, most = np.ones(owner.size, np.float32), np.zeros(owner.size, np.float32)
    lists, numbers = np.empty(6 * MANY, np.float32), np.empty(5 * MANY, np.int32)
    centres = _centres(size)
    for layer in range(layers):
        # np.int64: for a plain 0, which has a type of its own, `_colour` would be compiled again
        count, outline = np.int64(0), looks[0, layer]
        row, plate = paint[layer], texels[looks[1, layer]]
        for t in range(frames):
            top, first, bottom, end = boxes[layer, t]
            m = inverse[layer, t]
            across, down = (m[0, 0], m[1, 0]), (m[0, 1], m[1, 1])
            area = across[0] * down[1] - down[0] * across[1]
            sharpness = np.float32(size / SOFT_EDGE) / np.sqrt(abs(area))
            for y in range(top, bottom):
                for x in range(first, end):
                    # unsigned, here and below: signed numbers are checked for counting from the end
                    pixel = np.uint64((t * size + y) * size + x)
                    share = left[pixel]
                    if share < HIDDEN:
                        continue
                    u = across[0] * centres[np.uint64(x)] + down[0] * centres[y] + m[0, 2]
                    v = across[1] * centres[np.uint64(x)] + down[1] * centres[y] + m[1, 2]
                    if outline >= 0:
                        share *= _opacity(outlines, outline, u, v, sharpness)
                        if share <= 0:
                            continue
                    if share > most[pixel]:
                        most[pixel], owners[pixel] = share, layer
                    left[pixel] -= share
                    lists[U + count], lists[V + count], lists[SHARE + count] = u, v, share
                    numbers[PIXEL + count] = pixel
                    count += 1
                    if count == MANY:
                        _colour(colours, lists, numbers, count, row, plate)
                        count = np.int64(0)
        _colour(colours, lists, numbers, count, row, plate)
    return picture, owner


@inlined
def _opacity(outlines: np.ndarray, number: int, u: float, v: float, sharpness: float) -> float:
    """How much of a pixel at (u, v) lies inside an outline, from its map of signed distances.

    outlines: float32 [O, D, D], negative inside, in local units. sharpness: edges in a local unit.
    """
    side = outlines.shape[1]
    scale = np.float32(side) * HALF
    x, y = (u + ONE) * scale - HALF, (v + ONE) * scale - HALF
    if not (x >= 0 and y >= 0 and x < side - 1 and y < side - 1):
        return NONE
    i, j = np.uint64(np.int32(y)), np.uint64(np.int32(x))
    i1, j1 = i + np.uint64(1), j + np.uint64(1)
    fy, fx = y - np.float32(np.int32(y)), x - np.float32(np.int32(x))
    top = outlines[number, i, j] + fx * (outlines[number, i, j1] - outlines[number, i, j])
    low = outlines[number, i1, j]
    low += fx * (outlines[number, i1, j1] - low)
    inside = HALF - (top + fy * (low - top)) * sharpness
    return min(ONE, max(NONE, inside))


@compiled
def _colour(
    colours: np.ndarray,
    lists: np.ndarray,
    numbers: np.ndarray,
    count: int,
    paint: np.ndarray,
    plate: np.ndarray,
) -> None:
    """Add the colours of the first `count` listed pixels of a layer to `colours`, float32 [3 * N].

    lists: float32 [6 * MANY], with U, V and SHARE. numbers: int32 [5 * MANY], with PIXEL.
    paint: float32 [20] and plate: int32 [(S + 1) ** 2] of the layer, see `draw`.
    """
    _find_texels(lists, numbers, count, paint, plate)
    _mix(lists, numbers, count, paint)
    for n in range(count):
        at = 3 * np.uint64(numbers[PIXEL + n])
        colours[at] += lists[RED + n]
        colours[at + 1] += lists[GREEN + n]
        colours[at + 2] += lists[BLUE + n]


@inlined
def _find_texels(
    lists: np.ndarray, numbers: np.ndarray, count: int, paint: np.ndarray, plate: np.ndarray
) -> None:
    """Write the four texels around each listed pixel, where between them it is, and its shade."""
    xu, xv, x0, yu, yv, y0 = paint[0], paint[1], paint[2], paint[3], paint[4], paint[5]
    shade_u, shade_v = paint[18], paint[19]
    for n in range(count):
        u, v = lists[U + n], lists[V + n]
        x, y = xu * u + xv * v + x0, yu * u + yv * v + y0
        j, i = np.floor(x), np.floor(y)
        lists[FX + n], lists[FY + n] = x - j, y - i
        lists[SHADE + n] = max(NONE, ONE + shade_u * u + shade_v * v)
        i_wrapped, j_wrapped = np.int32(i) & (PLATE_SIDE - 1), np.int32(j) & (PLATE_SIDE - 1)
        numbers[T00 + n] = i_wrapped * (PLATE_SIDE + 1) + j_wrapped
    for n in range(count):
        at = np.uint64(numbers[T00 + n])
        below = at + np.uint64(PLATE_SIDE + 1)
        numbers[T00 + n], numbers[T01 + n] = plate[at], plate[at + np.uint64(1)]
        numbers[T10 + n], numbers[T11 + n] = plate[below], plate[below + np.uint64(1)]


@inlined
def _mix(lists: np.ndarray, numbers: np.ndarray, count: int, paint: np.ndarray) -> None:
    """Turn the texels of each listed pixel into its share of its colour, changed and shaded."""
    rr, rg, rb, r0 = paint[6], paint[7], paint[8], paint[9]
    gr, gg, gb, g0 = paint[10], paint[11], paint[12], paint[13]
    br, bg, bb, b0 = paint[14], paint[15], paint[16], paint[17]
    for n in range(count):
        fx, fy = lists[FX + n], lists[FY + n]
        w00, w01, w10, w11 = (ONE - fy) * (ONE - fx), (ONE - fy) * fx, fy * (ONE - fx), fy * fx
        t00, t01, t10, t11 = numbers[T00 + n], numbers[T01 + n], numbers[T10 + n], numbers[T11 + n]
        r = w00 * _byte(t00, 0) + w01 * _byte(t01, 0)
        r += w10 * _byte(t10, 0) + w11 * _byte(t11, 0)
        g = w00 * _byte(t00, 8) + w01 * _byte(t01, 8)
        g += w10 * _byte(t10, 8) + w11 * _byte(t11, 8)
        b = w00 * _byte(t00, 16) + w01 * _byte(t01, 16)
        b += w10 * _byte(t10, 16) + w11 * _byte(t11, 16)
        shade, share = lists[SHADE + n], lists[SHARE + n]
        lists[RED + n] = share * (shade * (rr * r + rg * g + rb * b + r0))
        lists[GREEN + n] = share * (shade * (gr * r + gg * g + gb * b + g0))
        lists[BLUE + n] = share * (shade * (br * r + bg * g + bb * b + b0))


@inlined
def _byte(texel: int, shift: int) -> float:
    """One colour of a texel: float32, 0 to 255."""
    return np.float32(np.int32((texel >> shift) & 255))


# ---- what is known ------------------------------------------------------------------------------


@compiled
def displacements(
    forward: np.ndarray,
    inverse: np.ndarray,
    owner: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    cell: int,
) -> np.ndarray:
    """Where what a pixel shows in frame `start` has moved to in frame `end`, in sides of the view.

    Returns float32 [4, F, H / cell, W / cell], means over cells: the displacement on the screen
    (x, y), and the displacement besides that of the last layer (the background, which moves with
    the camera alone).

    forward: float32 [L, T, 2, 3] as `draw` takes it, and its inverse. owner: int16 [T', H, W], the
    layers of frames. starts, ends: int [F]. cell: side of a cell in pixels.
    """
    size = owner.shape[1]
    side = size // cell
    centres = _centres(size)
    out = np.empty((4, len(starts), side, side), np.float32)
    share = np.float32(1.0 / (cell * cell))
    for row in range(len(starts)):
        start = starts[row]
        maps = _between(forward, inverse, start, ends[row])
        bxx, bxy, bx, byx, byy, by = maps[len(maps) - 1]  # the background's
        for i in range(side):
            for j in range(side):
                x = y = own_x = own_y = NONE
                for down in range(i * cell, (i + 1) * cell):
                    for across in range(j * cell, (j + 1) * cell):
                        px, py = centres[across], centres[down]
                        layer = owner[start, down, across]
                        qx = maps[layer, 0] * px + maps[layer, 1] * py + maps[layer, 2]
                        qy = maps[layer, 3] * px + maps[layer, 4] * py + maps[layer, 5]
                        x += share * (qx - px)
                        y += share * (qy - py)
                        own_x += share * (qx - (bxx * px + bxy * py + bx))
                        own_y += share * (qy - (byx * px + byy * py + by))
                out[0, row, i, j], out[1, row, i, j] = x, y
                out[2, row, i, j], out[3, row, i, j] = own_x, own_y
    return out


@inlined
def _between(forward: np.ndarray, inverse: np.ndarray, start: int, end: int) -> np.ndarray:
    """The map of each layer from its place in frame `start` to that in frame `end`: float32 [L, 6],
    two rows of three."""
    maps = np.empty((len(forward), 6), np.float32)
    for layer in range(len(forward)):
        m, n = inverse[layer, start], forward[layer, end]
        for row in range(2):
            for column in range(2):
                maps[layer, 3 * row + column] = n[row, 0] * m[0, column] + n[row, 1] * m[1, column]
            maps[layer, 3 * row + 2] = n[row, 0] * m[0, 2] + n[row, 1] * m[1, 2] + n[row, 2]
    return maps


@compiled
def cell_means(values: np.ndarray, owner: np.ndarray, cell: int) -> np.ndarray:
    """Mean over cells of what each pixel's layer is given: float32 [D, F, H / cell, W / cell].

    values: float32 [L, D]; owner: int16 [F, H, W].
    """
    frames, size, depth = owner.shape[0], owner.shape[1], values.shape[1]
    out = np.zeros((depth, frames, size // cell, size // cell), np.float32)
    share = np.float32(1.0 / (cell * cell))
    given = np.zeros(len(values), np.bool_)  # most layers have nothing but zeros
    for layer in range(len(values)):
        for k in range(depth):
            given[layer] |= values[layer, k] != 0
    for t in range(frames):
        for i in range(size // cell):
            for j in range(size // cell):
                for y in range(i * cell, (i + 1) * cell):
                    for x in range(j * cell, (j + 1) * cell):
                        layer = owner[t, y, x]
                        if given[layer]:
                            for k in range(depth):
                                out[k, t, i, j] += share * values[layer, k]
    return out
