"""The embedded data set: nine camera motions over procedural pictures, as real MP4 files.

Labels say what the camera does, so the picture's content does the opposite: for `pan left` the
view moves left over the scene and the content slides right; for `zoom in` the view shrinks and the
content grows; for `roll clockwise` the view turns clockwise and the content counter-clockwise.

What is in a clip
    A scene (dead leaves, 1/f noise, gradients) seen through a moving view, under up to
    half a picture of foreground shapes that move on their own: some belong to the scene, some are
    carried along with the camera, some swing like limbs. `static` clips have them too. On top come
    drifting light, sensor noise, softness, hand shake, and H.264 at a drawn quality.
    Clips are graded: an evenly drawn difficulty bounds how much the shapes cover, how restless
    the light is and how slow the camera may be. Networks learn motion from the easy clips first;
    given hard ones alone, a small Hiera stayed at chance for as long as it was watched.

One frame tells nothing
    Everything but the camera's path is a function of the seed alone. At one frame, the pivot,
    drawn uniformly, the view has the same pose whatever the label: with the same seed, all nine
    clips show the very same picture there. Opposite labels run through mirrored offsets from it.

What a clip means in time
    Files have 20 frames at 10 frames per second. `CLIP_SPEC` takes 8 frames 0.2 s apart: a clip
    spans 1.6 s of any video, whatever its frame rate (48 frames at 30 fps), so a file of 10 s is a
    timeline of six clips. Speeds are drawn log-uniformly: pan and tilt 3-50 % of the view's side
    per second, zoom 8-60 % per second, roll 5-60 degrees per second, the slower part of each range
    only in harder clips. The slowest moves the content by some 3 % of the side per second on
    average: two pixels in a clip of 64 x 64.

The same set everywhere
    Labels, seeds, the list of files and every drawn number that decides something are the same on
    every machine. Pictures before compression differ between processors by at most 1 of 255, in
    some two pixels of a million: sines, exponentials, Fourier transforms and bilinear sampling
    round their last digit differently. A last digit could also move the edge of a painted leaf by
    a pixel, but only where it lies within 1e-7 of the pixel's centre; it was never seen.
    Pictures are compressed by integer arithmetic alone: the same pictures give the same bytes on
    every processor. On one machine, files do not depend on the number of processes and threads.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F

from hiera_video.clip_spec import ClipSpec
from hiera_video.errors import RunFailed, UserError
from hiera_video.files import explained, put_in_place, write_text
from hiera_video.video import decode

LABELS = (
    "static",
    "pan left",
    "pan right",
    "tilt up",
    "tilt down",
    "zoom in",
    "zoom out",
    "roll clockwise",
    "roll counter-clockwise",
)

FPS = 10
FRAMES = 20
SIZE = 80
CLIP_SPEC = ClipSpec(num_frames=8, sampling_rate=2, target_fps=float(FPS), crop_size=64)
"""How a model of this set looks at any video: 8 frames, 0.2 s apart, 64 x 64."""

RECIPE = 3
"""Number of the drawing rules below; a set made by other rules is not reused."""

# ---- the camera's path --------------------------------------------------------------------

# axis: (slowest, fastest) per second, and how many view sides one unit moves the mean pixel
PAN_SPEED = (0.03, 0.5)  # view sides
ZOOM_SPEED = (0.08, 0.6)  # natural logarithm of the view's side
ROLL_SPEED = (math.radians(5), math.radians(60))
_QUICK_PART = 0.4  # the easiest clips keep to this part of the range, from its upper end
_MEAN_RADIUS = 0.383  # mean distance of a unit square's points from its centre

_AXES = ("x", "y", "zoom", "roll")
_MOTION = {  # label: axis and sign of the view's motion; x right, y down, angles clockwise
    "pan left": ("x", -1),
    "pan right": ("x", 1),
    "tilt up": ("y", -1),
    "tilt down": ("y", 1),
    "zoom in": ("zoom", -1),
    "zoom out": ("zoom", 1),
    "roll clockwise": ("roll", 1),
    "roll counter-clockwise": ("roll", -1),
}
_SPEED = {"x": PAN_SPEED, "y": PAN_SPEED, "zoom": ZOOM_SPEED, "roll": ROLL_SPEED}
_FLOW = {"x": 1.0, "y": 1.0, "zoom": _MEAN_RADIUS, "roll": _MEAN_RADIUS}


@dataclass(frozen=True)
class CameraPath:
    """Pose of the view at every frame, relative to its pose at frame `pivot`.

    A point `u` of the picture (x right, y down, in [-0.5, 0.5]) shows the scene at
    `centre + exp(log_scale) * R(angle) u`, in sides of the pivot's view.
    """

    centre: np.ndarray
    """float64 [T, 2], sides of the pivot's view."""
    log_scale: np.ndarray
    """float64 [T]; falling is zooming in."""
    angle: np.ndarray
    """float64 [T], radians clockwise on the screen."""
    pivot: int
    """Frame at which the pose is the identity."""


def camera_path(
    label: str, seed: int, frames: int = FRAMES, fps: float = FPS, *, plain: bool = False
) -> CameraPath:
    """The view's path for one label; all but direction and axis depend on the seed alone.

    `plain` leaves out the slower motions.

    Raises UserError for a label that is not one of `LABELS`.
    """
    if label not in LABELS:
        raise UserError(f"unknown camera motion {label!r}; the nine are: {', '.join(LABELS)}")
    rng = _stream(seed, "path")
    seconds = np.arange(frames) / fps
    pivot = int(rng.integers(frames))
    difficulty = _difficulty(seed, plain)
    below_fastest = _QUICK_PART + (1 - _QUICK_PART) * difficulty
    speed_quantile = 1 - below_fastest * rng.uniform()
    pace = _pace(rng, (seconds[1:] + seconds[:-1]) / 2)  # [T - 1], between frames
    drift = rng.uniform(-1, 1, size=4) * (0.1 + 0.2 * difficulty) * (rng.uniform(size=4) < 0.5)
    shake = _hand_shake(rng, seconds) * (0.5 + difficulty)
    shake -= shake[pivot]

    rate = dict.fromkeys(_AXES, 0.0)
    if label in _MOTION:
        axis, sign = _MOTION[label]
        slow, fast = _SPEED[axis]
        rate[axis] = sign * slow * (fast / slow) ** speed_quantile
        # people do not hold one axis exactly: a little of the others goes along
        flow = abs(rate[axis]) * _FLOW[axis]
        for other, part in zip(_AXES, drift, strict=True):
            if other != axis:
                rate[other] = part * flow / _FLOW[other]

    def travelled(per_second: np.ndarray | float) -> np.ndarray:
        total = np.concatenate([[0.0], np.cumsum(per_second * pace / fps)])
        return total - total[pivot]

    log_scale, angle = travelled(rate["zoom"]), travelled(rate["roll"])
    # the view moves along its own axes, in units of its own side
    here_scale = np.exp((log_scale[1:] + log_scale[:-1]) / 2)
    here_angle = (angle[1:] + angle[:-1]) / 2
    cos, sin = here_scale * np.cos(here_angle), here_scale * np.sin(here_angle)
    centre = np.stack(
        [
            travelled(cos * rate["x"] - sin * rate["y"]),
            travelled(sin * rate["x"] + cos * rate["y"]),
        ],
        axis=1,
    )
    return CameraPath(
        centre=centre + np.exp(log_scale)[:, None] * shake[:, :2],
        log_scale=log_scale + shake[:, 2],
        angle=angle + shake[:, 3],
        pivot=pivot,
    )


def _pace(rng: np.random.Generator, seconds: np.ndarray) -> np.ndarray:
    """Speed over time as a factor near 1: uneven hands, and in some clips a start from rest."""
    period, phase = rng.uniform(0.8, 4.0), rng.uniform(0, 2 * math.pi)
    pace = 1 + rng.uniform(0, 0.35) * np.sin(2 * math.pi * seconds / period + phase)
    start = rng.uniform(0.1, 0.6)
    if rng.uniform() < 0.3:
        pace = pace * np.clip(seconds / start, 0, 1)
    return pace


def _hand_shake(rng: np.random.Generator, seconds: np.ndarray) -> np.ndarray:
    """float64 [T, 4]: x, y (view sides), log scale, angle; small, and going nowhere."""
    size = rng.uniform(0, 1) ** 2 * np.array([0.008, 0.008, 0.003, 0.005])
    frequency = rng.uniform(0.7, 4.0, size=(3, 4))
    phase = rng.uniform(0, 2 * math.pi, size=(3, 4))
    waves = np.sin(2 * math.pi * frequency * seconds[:, None, None] + phase)  # [T, 3, 4]
    return waves.mean(axis=1) * size * math.sqrt(6)


_STREAMS = (
    "plate",
    "path",
    "place",
    "colour",
    "shapes",
    "light",
    "sensor",
    "file",
    "footage",
    "grade",
)


def _stream(seed: int, name: str) -> np.random.Generator:
    """An independent generator for each concern: drawing more in one leaves the others alone."""
    return np.random.default_rng([seed, _STREAMS.index(name)])


def _difficulty(seed: int, plain: bool) -> float:
    """How hard a clip may be, evenly from 0 to 1, whatever its label; 0 in plain sets."""
    return 0.0 if plain else float(_stream(seed, "grade").uniform())


# ---- scenes -------------------------------------------------------------------------------

_PLATE_SIDE = 512
_CLIPS_PER_PLATE = 16
"""So many consecutive seeds look at one plate, each at another place, scale, angle and colour."""


@functools.lru_cache(maxsize=4)
def _plate(number: int) -> tuple[torch.Tensor, ...]:
    """One procedural scene as a pyramid: float32 [1, 3, S, S] in [0, 1], S = 512, 256, 128, 64."""
    rng = _stream(number, "plate")
    # the noise wraps around, so a tile of it does for the whole plate
    plate = np.tile(_fractal_noise(rng, _PLATE_SIDE // 2, rng.uniform(0.8, 1.6)), (2, 2, 1))
    plate = 0.5 + (plate - 0.5) * rng.uniform(0.3, 1.0) + _gradient(rng, _PLATE_SIDE)
    if rng.uniform() < 0.85:
        _paint_leaves(rng, plate)
    levels = [torch.from_numpy(np.clip(plate, 0, 1).transpose(2, 0, 1)[None].astype(np.float32))]
    for _ in range(3):
        levels.append(F.avg_pool2d(levels[-1], 2))
    return tuple(levels)


def _fractal_noise(rng: np.random.Generator, side: int, exponent: float) -> np.ndarray:
    """float32 [side, side, 3] near [0, 1] with amplitude 1 / frequency ** exponent."""
    fy, fx = np.fft.fftfreq(side), np.fft.rfftfreq(side)
    radius = np.hypot(fy[:, None], fx[None])
    radius[0, 0] = 1
    spectrum = rng.standard_normal((3, side, len(fx), 2)).astype(np.float32)
    field = np.fft.irfft2((spectrum[..., 0] + 1j * spectrum[..., 1]) / radius**exponent)
    field /= field.std(axis=(1, 2), keepdims=True)
    grey = rng.uniform(0, 1)  # from grey texture to three unrelated channels
    field = grey * field[:1] + (1 - grey) * field
    return (0.5 + 0.18 * field).transpose(1, 2, 0).astype(np.float32)


def _gradient(rng: np.random.Generator, side: int) -> np.ndarray:
    """float32 [side, side, 3]: a slope of light over the scene."""
    ramp = np.linspace(-0.5, 0.5, side, dtype=np.float32)
    slope = rng.normal(0, 0.25, size=(2, 3)).astype(np.float32)
    return ramp[:, None, None] * slope[0] + ramp[None, :, None] * slope[1]


def _paint_leaves(rng: np.random.Generator, plate: np.ndarray) -> None:
    """Dead leaves: overlapping discs, ellipses and boxes with radii of a power law, in place."""
    side = len(plate)
    exponent = rng.uniform(1.4, 2.4)  # density r ** -(1 + exponent); 2 looks the same at all scales
    smallest, largest = math.exp(rng.uniform(math.log(2.5), math.log(12))), rng.uniform(60, 180)
    cover = rng.uniform(0.3, 2.0)
    radii = _power_law(rng, 2000, exponent, smallest, largest)
    count = int(np.searchsorted(np.cumsum(2.5 * radii**2), cover * side * side)) + 1
    radii = radii[:count]
    if rng.uniform() < 0.5:  # big ones behind, or any order
        radii = np.sort(radii)[::-1]
    boxes, flat, grain = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0, 0.5)
    texture = _fractal_noise(rng, 256, exponent=rng.uniform(0.5, 1.2)) - 0.5
    texture = np.tile(texture, (3, 3, 1))  # it wraps around: any window of up to 512 is a slice
    palette = rng.uniform(0, 1, size=(rng.integers(3, 12), 3)).astype(np.float32)
    coordinates = np.arange(side, dtype=np.float32)
    for radius, draws in zip(radii, rng.uniform(size=(len(radii), 8)).tolist(), strict=True):
        radius = float(radius)
        cx, cy, angle = draws[0] * side, draws[1] * side, draws[2] * math.pi
        squash, is_box, shade, ox, oy = 0.25 + 0.75 * draws[3], *draws[4:]
        x0, x1 = max(0, int(cx - radius)), min(side, int(cx + radius) + 2)
        y0, y1 = max(0, int(cy - radius)), min(side, int(cy + radius) + 2)
        dx, dy = coordinates[None, x0:x1] - cx, coordinates[y0:y1, None] - cy
        cos, sin = math.cos(angle) / radius, math.sin(angle) / radius
        along, across = cos * dx + sin * dy, (cos * dy - sin * dx) * (1 / squash)
        if is_box < boxes:
            inside = np.maximum(np.abs(along), np.abs(across)) < 0.7
        else:
            inside = along * along + across * across < 1
        colour = palette[int(shade * len(palette))] + np.float32(0.15 * (ox - 0.5))
        piece = plate[y0:y1, x0:x1]
        if radius < 8 or shade > 1 - flat * 0.5:
            piece[inside] = colour
            continue
        ty, tx = int(oy * 256), int(ox * 256)
        fill = grain * texture[ty : ty + y1 - y0, tx : tx + x1 - x0] + colour
        fill += ((ox - 0.5) * 0.6 * along)[..., None]
        np.copyto(piece, fill, where=inside[..., None])


def _power_law(
    rng: np.random.Generator, count: int, exponent: float, smallest: float, largest: float
) -> np.ndarray:
    """float64 [count] of density r ** -(1 + exponent) between the two ends."""
    low, high = smallest**-exponent, largest**-exponent
    return (low + rng.uniform(size=count) * (high - low)) ** (-1 / exponent)


# ---- looking at a scene -------------------------------------------------------------------


def _rotation(angle: np.ndarray) -> np.ndarray:
    """float64 [..., 2, 2]: turns clockwise on the screen, where y points down."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def _pixel_centres(size: int) -> torch.Tensor:
    """float32 [size]: pixel centres over the picture's side, -0.5 to 0.5."""
    return (torch.arange(size, dtype=torch.float32) + 0.5) / size - 0.5


def _affine_grid(linear: np.ndarray, offset: np.ndarray, rows: torch.Tensor, columns: torch.Tensor):
    """float32 [T, H, W, 2]: `linear[t] @ (x, y) + offset[t]` at every pixel."""
    a = torch.from_numpy(np.ascontiguousarray(linear, dtype=np.float32))
    b = torch.from_numpy(np.ascontiguousarray(offset, dtype=np.float32))
    across = a[:, None, :, 0] * columns[None, :, None] + b[:, None]  # [T, W, 2]
    down = a[:, None, :, 1] * rows[None, :, None]  # [T, H, 2]
    return across[:, None] + down[:, :, None]


def _look(levels: tuple[torch.Tensor, ...], grid: torch.Tensor, step: np.ndarray) -> torch.Tensor:
    """Pictures float32 [T, 3, H, W] of a pyramid at `grid` [T, H, W, 2] (-1 to 1, mirrored beyond).

    `step` [T] is the distance of neighbouring grid points in pixels of the pyramid's first level;
    the two nearest levels are blended, so that far views do not flicker. Levels hold one picture
    for all frames, or one for each.
    """
    level = np.clip(np.log2(np.maximum(step, 1e-6)) - 0.25, 0, len(levels) - 1.001)
    picture = None
    for number, pixels in enumerate(levels):
        weight = np.clip(1 - np.abs(level - number), 0, 1)
        chosen = np.flatnonzero(weight)
        if not len(chosen):
            continue
        some = torch.from_numpy(chosen)
        sample = functools.partial(F.grid_sample, padding_mode="reflection", align_corners=False)
        if len(pixels) == 1:  # one scene: all frames as one tall picture, nothing is copied
            tall = grid[some].flatten(0, 1)[None]
            seen = sample(pixels, tall)[0].unflatten(1, (len(chosen), grid.shape[1]))
            seen = seen.transpose(0, 1)
        else:
            seen = sample(pixels[some], grid[some])
        seen = seen * torch.from_numpy(weight[chosen]).float()[:, None, None, None]
        if picture is None and len(chosen) == len(grid):
            picture = seen
        else:
            if picture is None:
                picture = seen.new_zeros(len(grid), *seen.shape[1:])
            picture.index_add_(0, some, seen)
    return picture


# ---- foreground shapes --------------------------------------------------------------------

_SPRITE_SIDE = 64
MAX_COVERAGE = 0.5
"""Shapes together cover at most this part of the picture (by area, at the pivot)."""


@dataclass(frozen=True)
class _Shape:
    """One foreground shape: its picture, and its pose over time."""

    sprite: torch.Tensor
    """float32 [4, S, S]: RGB and opacity."""
    centre: np.ndarray
    """float64 [T, 2], view sides."""
    size: np.ndarray
    """float64 [T], its longer side in view sides."""
    angle: np.ndarray
    """float64 [T], radians clockwise."""
    with_camera: bool
    """True: carried along with the view; False: part of the scene."""


def _shapes(seed: int, seconds: np.ndarray, pivot: int) -> list[_Shape]:
    """The foreground of one clip; nothing in it depends on the label."""
    rng = _stream(seed, "shapes")
    if rng.uniform() < 0.15:
        return []
    count = int(rng.integers(1, 8))
    sizes = np.exp(rng.uniform(math.log(0.1), math.log(0.75), size=count))
    area = float((0.6 * sizes**2).sum())
    sizes *= math.sqrt(min(1.0, MAX_COVERAGE * _difficulty(seed, plain=False) / area))
    # traffic and crowds: what moves often moves the same way
    stream = rng.uniform(0, 2 * math.pi) if rng.uniform() < 0.35 else None
    carried = rng.uniform() * (rng.uniform() < 0.7)
    since = seconds - seconds[pivot]
    return [
        _shape(rng, seed, seconds, since, size=size, stream=stream, carried=carried)
        for size in sizes
    ]


def _shape(rng, seed, seconds, since, *, size, stream, carried) -> _Shape:
    direction = rng.uniform(0, 2 * math.pi) if stream is None else stream + rng.normal(0, 0.15)
    speed = math.exp(rng.uniform(math.log(0.02), math.log(0.8)))
    velocity = speed * np.array([math.cos(direction), math.sin(direction)])
    start = rng.uniform(-0.55, 0.55, size=2)
    growth = rng.normal(0, 0.2) * (rng.uniform() < 0.5)
    spin = rng.normal(0, 0.8) * (rng.uniform() < 0.6)
    angle = rng.uniform(0, 2 * math.pi) + spin * since
    centre = start + velocity * since[:, None]
    if rng.uniform() < 0.5:  # swings about a point, as limbs and branches do
        rate, phase = 2 * math.pi * rng.uniform(0.3, 2.5), rng.uniform(0, 2 * math.pi)
        wave = np.sin(rate * seconds + phase)
        swing, hinge = rng.uniform(0.1, 0.9) * wave, rng.uniform(0, 0.5) * size
        angle = angle + swing
        centre = centre + hinge * np.stack([np.cos(angle), np.sin(angle)], 1)
        centre = centre + rng.uniform(0, 0.1) * wave[:, None] * rng.normal(size=2)
    return _Shape(
        sprite=_sprite(rng, seed, pixels=size * SIZE),
        centre=centre,
        size=size * np.exp(np.clip(growth * since, -1, 1)),
        angle=angle,
        with_camera=bool(rng.uniform() < carried),
    )


def _sprite(rng: np.random.Generator, seed: int, pixels: float) -> torch.Tensor:
    """float32 [4, S, S]: a ragged, squashed outline filled from the scene's own plate."""
    side = int(np.clip(pixels * 1.4, 12, _SPRITE_SIDE))
    ramp = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
    x, y = ramp[None, :], ramp[:, None] / rng.uniform(0.3, 1.0)
    theta, radius = np.arctan2(y, x), np.hypot(x, y)
    outline = np.full_like(theta, 0.8)
    if rng.uniform() < 0.3:  # a box
        radius = np.maximum(np.abs(x), np.abs(y))
    else:
        for wave in range(2, 7):
            outline += np.float32(rng.normal(0, 0.18 / wave)) * np.cos(
                wave * theta + rng.uniform(0, 2 * math.pi)
            )
    softness = rng.uniform(0.3, 2.0)
    opacity = np.clip((outline - radius) * side / 2 / softness + 0.5, 0, 1)
    levels = _plate(seed // _CLIPS_PER_PLATE)
    level = int(rng.integers(0, 2))
    source = levels[level][0]
    top, left = rng.integers(0, source.shape[1] - side, size=2)
    colour = source[:, top : top + side, left : left + side]
    colour = _recolour(rng, colour[None])[0]
    return torch.cat([colour, torch.from_numpy(opacity.astype(np.float32))[None]])


def _lay_over(picture: torch.Tensor, shape: _Shape, path: CameraPath) -> None:
    """Draw one shape into `picture` [T, 3, H, W], in place."""
    centre, size, angle = shape.centre, shape.size, shape.angle
    if not shape.with_camera:
        turn = _rotation(-path.angle) / np.exp(path.log_scale)[:, None, None]
        centre = np.einsum("tij,tj->ti", turn, centre - path.centre)
        size, angle = size / np.exp(path.log_scale), angle - path.angle
    reach = 0.72 * size[:, None]  # half the diagonal of its box
    pixels = picture.shape[-1]
    low = np.floor(((centre - reach).min(axis=0) + 0.5) * pixels).clip(0, pixels).astype(int)
    high = np.ceil(((centre + reach).max(axis=0) + 0.5) * pixels).clip(0, pixels).astype(int)
    if (low >= high).any():
        return  # never in the picture
    linear = _rotation(-angle) * (2 / size)[:, None, None]
    offset = -np.einsum("tij,tj->ti", linear, centre)
    axis = _pixel_centres(pixels)
    rows, columns = axis[low[1] : high[1]], axis[low[0] : high[0]]
    grid = _affine_grid(linear, offset, rows, columns).flatten(0, 1)[None]
    drawn = F.grid_sample(shape.sprite[None], grid, align_corners=False)[0]
    drawn = drawn.unflatten(1, (len(picture), len(rows))).transpose(0, 1)  # [T, 4, h, w]
    window = picture[:, :, low[1] : high[1], low[0] : high[0]]
    # beyond the sprite both colour and opacity fade to 0: only opacity may weigh, so divide it out
    opacity = drawn[:, 3:]
    window += opacity * (drawn[:, :3] - window)


# ---- colour, light, sensor ----------------------------------------------------------------


def _recolour(rng: np.random.Generator, picture: torch.Tensor) -> torch.Tensor:
    """Mix channels, shift contrast and brightness of [N, 3, H, W]."""
    mix = np.eye(3)[rng.permutation(3)] + rng.normal(0, 0.15, size=(3, 3))
    grey = rng.uniform(0, 1) ** 2
    mix = (1 - grey) * mix + grey * np.full((3, 3), 1 / 3)
    if rng.uniform() < 0.3:
        mix = -mix
    contrast, brightness = rng.uniform(0.5, 1.3), rng.normal(0.45, 0.12)
    red, green, blue = (picture - 0.5).unbind(1)
    # no matrix product: its sums depend on the processor, and on how many threads share them
    weights = (contrast * mix).astype(np.float32).tolist()
    mixed = [red * r + green * g + blue * b for r, g, b in weights]
    return torch.stack(mixed, 1) + float(brightness)


def _light(seed: int, picture: torch.Tensor, seconds: np.ndarray) -> torch.Tensor:
    """Exposure that drifts and flickers, and in some clips a shadow or glow that wanders."""
    rng, much = _stream(seed, "light"), _difficulty(seed, plain=False)
    middle = seconds - seconds.mean()
    gain = 1 + much * rng.normal(0, 0.15) * middle
    if rng.uniform() < 0.3:
        gain = gain + much * rng.uniform(0, 0.12) * np.sin(
            2 * math.pi * rng.uniform(0.5, 5) * seconds + rng.uniform(0, 6)
        )
    if rng.uniform() < 0.3:
        gain = gain + much * rng.normal(0, 0.05, size=len(seconds))
    field = torch.from_numpy(gain.astype(np.float32))[:, None, None]
    if rng.uniform() < 0.3:
        axis = _pixel_centres(picture.shape[-1]).numpy()
        place = rng.uniform(-0.5, 0.5, size=2) + rng.normal(0, 0.25, size=2) * middle[:, None]
        width = rng.uniform(0.1, 0.5)
        across = np.exp(-0.5 * ((axis[None] - place[:, :1]) / width) ** 2)  # [T, W]
        down = np.exp(-0.5 * ((axis[None] - place[:, 1:]) / width) ** 2)
        spot = much * rng.uniform(-0.7, 0.7) * down[:, :, None] * across[:, None]
        field = field * torch.from_numpy((1 + spot).astype(np.float32))
    return picture * field[:, None]


@functools.lru_cache(maxsize=1)
def _grain() -> torch.Tensor:
    """float32 [2 ** 20] of unit noise; frames read it from drawn offsets."""
    return torch.from_numpy(_stream(0, "sensor").standard_normal(1 << 20).astype(np.float32))


def _sensor(rng: np.random.Generator, picture: torch.Tensor) -> torch.Tensor:
    """Softness, grain and rounding: uint8 [T, 3, H, W]."""
    frames, channels, height, width = picture.shape
    if rng.uniform() < 0.4:
        side = rng.uniform(0.05, 0.3)
        for axis in (2, 3):
            ends = picture.narrow(axis, 0, 1), picture.narrow(axis, picture.shape[axis] - 1, 1)
            wide = torch.cat([ends[0], picture, ends[1]], axis)
            around = wide.narrow(axis, 0, height) + wide.narrow(axis, 2, height)
            picture = (1 - 2 * side) * picture + side * around
    noise = math.exp(rng.uniform(math.log(0.001), math.log(0.04)))
    grain, count = _grain(), channels * height * width
    if count < len(grain):
        starts = rng.integers(0, len(grain) - count, size=frames)
        picture = picture + noise * torch.stack([grain[s : s + count] for s in starts]).view_as(
            picture
        )
    if rng.uniform() < 0.1:  # black bars, as films in another format have
        bar = int(rng.uniform(0.04, 0.14) * height)
        if rng.uniform() < 0.7:
            picture[:, :, :bar] = picture[:, :, height - bar :] = 0
        else:
            picture[..., :bar] = picture[..., width - bar :] = 0
    return picture.mul(255).add(0.5).clamp(0, 255).to(torch.uint8)


# ---- one clip -----------------------------------------------------------------------------


def render_clip(
    label: str,
    seed: int,
    *,
    frames: int = FRAMES,
    size: int = SIZE,
    fps: float = FPS,
    plain: bool = False,
) -> torch.Tensor:
    """One clip of the set before compression: uint8 [frames, 3, size, size], RGB.

    The same (label, seed) gives the same clip; with the same seed, clips of all labels are the
    same picture at frame `camera_path(...).pivot` (a different one for each seed). A `plain` clip
    has no foreground, steady light and a quick camera: what a small model learns in minutes.
    Raises UserError for an unknown label.
    """
    path = camera_path(label, seed, frames=frames, fps=fps, plain=plain)
    seconds = np.arange(frames) / fps
    rng = _stream(seed, "place")
    side = _PLATE_SIDE * math.exp(rng.uniform(math.log(0.18), math.log(0.6)))  # plate pixels
    place, turn = rng.uniform(-0.7, 0.7, size=2), rng.uniform(0, 2 * math.pi)
    # picture -> scene -> plate, in the -1..1 that grid_sample wants
    to_plate = _rotation(np.array(turn)) * (2 * side / _PLATE_SIDE)
    scale = np.exp(path.log_scale)
    linear = np.einsum("ij,tjk->tik", to_plate, _rotation(path.angle)) * scale[:, None, None]
    offset = place + np.einsum("ij,tj->ti", to_plate, path.centre)
    axis = _pixel_centres(size)
    grid = _affine_grid(linear, offset, axis, axis)
    picture = _look(_plate(seed // _CLIPS_PER_PLATE), grid, step=side * scale / size)
    picture = _recolour(_stream(seed, "colour"), picture)
    if not plain:
        for shape in _shapes(seed, seconds, path.pivot):
            _lay_over(picture, shape, path)
        picture = _light(seed, picture, seconds)
    return _sensor(_stream(seed, "sensor"), picture)


# ---- the set on disk ----------------------------------------------------------------------

MANIFEST = "manifest.json"
_SPLITS = ("train", "val")
_SEEDS_PER_SPLIT = 10_000_000  # a multiple of _CLIPS_PER_PLATE: train and val share no plate


def make_dataset(
    folder: str | Path,
    *,
    num_train: int = 1800,
    num_val: int = 450,
    seed: int = 0,
    size: int = SIZE,
    frames: int = FRAMES,
    fps: int = FPS,
    plain: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the set as `folder/{train,val}/<label>/<number>.mp4` (H.264), or find it there.

    The same parameters give the same files on one machine, whatever `workers` is and however many
    threads there are; how near they are on another machine, see the top of this module. The set is
    made beside the folder and moved into place when complete, so an interrupted run leaves no half
    set: the next call makes it again, as it does when files of a set are missing.

    Args:
        folder: where the set is, or is to be. It must be absent, empty or such a set.
        num_train, num_val: numbers of videos, dealt evenly to the nine labels.
        seed: another seed, another set; train and val never share a scene.
        size: side of the square picture in pixels, even, at least 32.
        frames, fps: length and speed of every video.
        plain: the easier set, see `render_clip`.
        workers: processes; None for one per CPU core.
        progress: called as progress(videos written, videos in all).

    Returns the folder. Raises UserError for impossible parameters, for a folder that holds a set
    made with other parameters and for one that holds something else; RunFailed when a worker dies.
    """
    folder = Path(folder)
    parameters = {
        "num_train": num_train,
        "num_val": num_val,
        "seed": seed,
        "size": size,
        "frames": frames,
        "fps": fps,
        "plain": bool(plain),
        "recipe": RECIPE,
    }
    _check_parameters(parameters, workers)
    if _is_complete(folder, parameters):
        return folder
    _remove_abandoned(folder)
    making = folder.with_name(f".{folder.name}.making-{os.getpid()}")
    try:
        with explained(folder):
            making.mkdir(parents=True)
            _write_videos(making, parameters, workers or os.cpu_count() or 1, progress)
            write_text(making / MANIFEST, json.dumps({**parameters, "labels": LABELS}, indent=1))
            _put_in_place(making, folder, parameters)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder


def _check_parameters(parameters: dict[str, int], workers: int | None) -> None:
    for name, least in {"num_train": 0, "num_val": 0, "seed": 0, "frames": 2, "fps": 1}.items():
        value = parameters[name]
        if not isinstance(value, int) or value < least:
            raise UserError(f"camera-motion set: {name}={value!r} must be an integer >= {least}")
    size = parameters["size"]
    if not isinstance(size, int) or size < 32 or size % 2:
        raise UserError(f"camera-motion set: size={size!r} must be an even integer >= 32")
    if max(parameters["num_train"], parameters["num_val"]) > _SEEDS_PER_SPLIT:
        raise UserError(f"camera-motion set: at most {_SEEDS_PER_SPLIT:,} videos in a split")
    if workers is not None and workers < 1:
        raise UserError(f"camera-motion set: workers={workers!r} must be at least 1")


def _videos(parameters: dict[str, int]) -> list[tuple[str, str, int]]:
    """(path within the set, label, seed) of every video."""
    videos = []
    for number, split in enumerate(_SPLITS):
        first = (2 * parameters["seed"] + number) * _SEEDS_PER_SPLIT
        for index in range(parameters[f"num_{split}"]):
            # consecutive seeds share a plate: so every label gets every plate
            label = LABELS[index % len(LABELS)]
            name = f"{split}/{label}/{index // len(LABELS):05d}.mp4"
            videos.append((name, label, first + index))
    return videos


def _is_complete(folder: Path, parameters: dict[str, int]) -> bool:
    """Whether `folder` is this very set; another set or foreign files there are the user's."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder for the camera-motion set")
    manifest = folder / MANIFEST
    if not manifest.is_file():
        if any(folder.iterdir()):
            raise UserError(
                f"{folder}: holds files but no camera-motion set ({MANIFEST} is missing); name an "
                "empty or new folder, or delete this one"
            )
        return False
    try:
        stored = json.loads(manifest.read_text())
        different = [k for k, v in parameters.items() if stored.get(k) != v]
    except (ValueError, AttributeError):
        raise UserError(
            f"{manifest}: is not readable as a camera-motion set's; delete {folder} to make it anew"
        ) from None
    if different:
        was = ", ".join(f"{k}={stored.get(k)!r} (asked: {parameters[k]!r})" for k in different)
        raise UserError(
            f"{folder}: holds a camera-motion set made with {was}; name another folder, ask for "
            "the same, or delete it"
        )
    return all((folder / name).is_file() for name, _, _ in _videos(parameters))


def _remove_abandoned(folder: Path) -> None:
    """Delete what interrupted runs left beside `folder`; running ones are left alone."""
    for left in folder.parent.glob(f".{folder.name}.making-*"):
        pid = left.name.rpartition("-")[2]
        if not (pid.isdigit() and _is_running(int(pid))):
            shutil.rmtree(left, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _put_in_place(making: Path, folder: Path, parameters: dict[str, int]) -> None:
    """Move a finished set to `folder`; if another process was first, its set is as good."""
    if folder.exists() and _is_complete(folder, parameters):
        return
    if folder.exists():  # empty, or this set with files missing
        shutil.rmtree(folder)
    try:
        put_in_place(making, folder)
    except RunFailed:
        if not _is_complete(folder, parameters):
            raise


def _write_videos(folder, parameters, workers, progress) -> None:
    """Render and encode everything into `folder`, in `workers` processes."""
    videos = _videos(parameters)
    for name, _, _ in videos:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    workers = min(workers, max(1, len(videos) // 16))
    if workers == 1:
        with _one_thread():
            for done, _ in enumerate(_write_some(folder, parameters, 0, 1), 1):
                if progress:
                    progress(done, len(videos))
        return
    # Plain child processes, not forks: nothing of the caller's threads or its main module is
    # needed, and each holds PyTorch to one thread.
    package_root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join([package_root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    code = "from hiera_video.data.synthetic import camera_motion; camera_motion._worker()"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder), json.dumps(parameters), str(n), str(workers)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(workers)
    ]
    try:
        done = 0
        # they advance at one pace: a line from each in turn
        waiting = list(children)
        while waiting:
            for child in list(waiting):
                if child.stdout.readline():
                    done += 1
                    if progress:
                        progress(done, len(videos))
                else:
                    waiting.remove(child)
        codes = [child.wait() for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
            child.stdout.close()
    if any(codes) or done != len(videos):
        raise RunFailed(
            f"making the camera-motion set failed after {done} of {len(videos)} videos (exit "
            f"codes {codes}); its messages are above; nothing was left behind"
        )


@contextlib.contextmanager
def _one_thread():
    """PyTorch held to one thread, as in the child processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write_some(folder: Path, parameters: dict[str, int], part: int, parts: int):
    """Write every `parts`-th plate's videos and yield each one's name."""
    drawn = {key: parameters[key] for key in ("frames", "size", "fps", "plain")}
    for name, label, seed in _videos(parameters):
        if (seed // _CLIPS_PER_PLATE) % parts != part:
            continue  # whole plates: drawing one costs as much as ten clips
        write_clip(folder / name, label, seed, **drawn)
        yield name


def _worker() -> None:
    """A child process of `_write_videos`: one line on stdout for each video written."""
    folder, parameters, part, parts = sys.argv[1:]
    torch.set_num_threads(1)
    try:
        with explained(folder):
            for name in _write_some(Path(folder), json.loads(parameters), int(part), int(parts)):
                print(name, flush=True)
    except RunFailed as error:
        sys.exit(f"error: {error}")


def write_clip(
    path: Path,
    label: str,
    seed: int,
    *,
    frames: int = FRAMES,
    size: int = SIZE,
    fps: int = FPS,
    plain: bool = False,
) -> None:
    """Render one clip of the set and write it as a video file, at a quality the seed draws."""
    clip = render_clip(label, seed, frames=frames, size=size, fps=fps, plain=plain)
    encode(path, clip, fps=fps, crf=_quality(seed))


def _quality(seed: int) -> int:
    """x264's crf of a clip's file."""
    return int(_stream(seed, "file").integers(16, 34))


_CODEC = {"preset": "veryfast", "threads": "1", "x264-params": "cpu-independent=1"}
"""Settings of x264. It chooses between algorithms by what the processor has, unless forbidden."""


def encode(path: Path, clip: torch.Tensor, *, fps: int, crf: int) -> None:
    """Write uint8 [T, 3, H, W], H and W even, as H.264 in MP4.

    The same clip gives the same bytes on every processor, for one version of PyAV. `crf` is
    x264's: 18 looks untouched, 34 is plainly compressed.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf), **_CODEC})
        stream.height, stream.width = clip.shape[-2:]
        stream.pix_fmt = "yuv420p"
        for planes in _to_yuv420(clip.numpy()):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode())


# BT.601 with levels 16 to 235 (colour: 16 to 240), as players take a file that says nothing
_YUV_BITS = 16
_TO_YUV = np.array([[16829, 33039, 6416], [-9714, -19070, 28784], [28784, -24103, -4681]])
"""int64 [YUV, RGB], in units of 2 ** -_YUV_BITS. Grey has no colour: those rows add up to 0."""


def _to_yuv420(clip: np.ndarray) -> np.ndarray:
    """uint8 [T, 3, H, W] RGB -> uint8 [T, H * 3 / 2, W]: the planes Y, U, V below each other.

    In integers. FFmpeg's own conversion gives other levels with other processors. Colour is
    halved as there: by pairs across, by 1, 3, 3, 1 eighths down.
    """
    frames, _, height, width = clip.shape
    clip = clip.astype(np.int64)

    def weigh(rows, picture, level, bits):
        """Weighted sums of the channels of [T, 3, h, w], rounded: uint8 [T, rows, h, w]."""
        summed = np.einsum("oc,tchw->tohw", _TO_YUV[rows], picture)
        half = 1 << (bits - 1)
        return ((summed + (level << bits) + half) >> bits).astype(np.uint8)

    light = weigh(slice(0, 1), clip, 16, _YUV_BITS)
    pairs = clip[..., 0::2] + clip[..., 1::2]
    pairs = np.concatenate([pairs[:, :, :1], pairs, pairs[:, :, -1:]], axis=2)
    outer, inner = pairs[:, :, :-3:2] + pairs[:, :, 3::2], pairs[:, :, 1:-2:2] + pairs[:, :, 2:-1:2]
    colour = weigh(slice(1, 3), outer + 3 * inner, 128, _YUV_BITS + 4)
    return np.concatenate(
        [light.reshape(frames, height, width), colour.reshape(frames, height // 2, width)], axis=1
    )


# ---- the same motions over real footage: for tests only -----------------------------------


def over_real_footage(
    video_path: str | Path,
    label: str,
    seed: int,
    *,
    frozen: bool,
    frames: int = 2 * CLIP_SPEC.num_frames,
    size: int = SIZE,
    fps: float = FPS,
    decoder: str = "auto",
) -> torch.Tensor:
    """Camera motion made by moving a crop over a real video: uint8 [frames, 3, size, size].

    A stretch of the video that starts at a drawn time is read at `fps` in real time. Moving
    (`frozen=False`), its own motion goes on inside the crop; frozen, one frame of it stands still.
    The path, its speed and the crop's size and place follow from (label, seed); the crop never
    leaves the picture. For measuring how far a model carries over: never train on it.

    Raises UserError if the label is unknown or the video is shorter than `frames / fps` seconds,
    DecodeError if it cannot be read.
    """
    path = camera_path(label, seed, frames=frames, fps=fps)
    rng = _stream(seed, "footage")
    start, still, fill, px, py = rng.uniform(size=5)
    with decode.VideoReader(video_path, decoder=decoder) as video:
        times = np.asarray(video.info.times)
        span = frames / fps
        if video.info.duration < span:
            raise UserError(
                f"{video_path}: lasts {video.info.duration:.2f} s; a clip of {frames} frames at "
                f"{fps:g} fps needs {span:.2f} s: choose a longer video or fewer frames"
            )
        wanted = times[0] + start * (video.info.duration - span) + np.arange(frames) / fps
        shown = np.searchsorted(times, wanted + 1e-6, side="right").clip(1) - 1  # on screen then
        source = video.read(shown[[int(still * frames)]] if frozen else shown)
    height, width = source.shape[-2:]
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    scale = np.exp(path.log_scale)
    linear = _rotation(path.angle) * scale[:, None, None]
    reached = path.centre[:, None] + np.einsum("tij,cj->tci", linear, corners)
    low, high = reached.min(axis=(0, 1)), reached.max(axis=(0, 1))
    room = np.array([width, height])
    side = float((room / (high - low)).min()) * (0.75 + 0.25 * fill)  # pixels of the pivot's view
    place = np.array([px, py]) * (room - side * (high - low)) - side * low
    # pixels -> the -1..1 that grid_sample wants
    to_source = np.diag(2 / room)
    axis = _pixel_centres(size)
    grid = _affine_grid(
        to_source @ linear * side, (place + side * path.centre) @ to_source - 1, axis, axis
    )
    levels = [source.float() / 255]
    while len(levels) < 4 and min(levels[-1].shape[-2:]) >= 4:
        levels.append(F.avg_pool2d(levels[-1], 2))
    picture = _look(tuple(levels), grid, step=side * scale / size)
    return picture.mul(255).add(0.5).clamp(0, 255).to(torch.uint8)
