"""The camera's path for each label: pan, tilt, zoom, roll and their small companions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hiera_video.data.synthetic.seeds import Streams
from hiera_video.errors import UserError

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
"""Frames per second, frames and side in pixels of the files, where nothing else is asked for."""

stream = Streams(
    (
        *("plate", "path", "place", "colour", "shapes"),
        *("light", "sensor", "file", "footage", "grade"),
    )
)
"""The random numbers of the camera-motion set, by concern."""


def difficulty(seed: int, plain: bool) -> float:
    """How hard a clip may be, uniform from 0 to 1 whatever its label; 0 in plain sets."""
    return 0.0 if plain else float(stream(seed, "grade").uniform())


# ---- the path -----------------------------------------------------------------------------------

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
    """Draw the view's path for one label; all but direction and axis depend on the seed alone.

    `plain` leaves out the slower motions.

    Raises UserError for a label that is not one of `LABELS`.
    """
    if label not in LABELS:
        raise UserError(f"unknown camera motion {label!r}; the nine are: {', '.join(LABELS)}")
    rng = stream(seed, "path")
    seconds = np.arange(frames) / fps
    pivot = int(rng.integers(frames))
    hardness = difficulty(seed, plain)
    below_fastest = _QUICK_PART + (1 - _QUICK_PART) * hardness
    speed_quantile = 1 - below_fastest * rng.uniform()
    pace = _pace(rng, (seconds[1:] + seconds[:-1]) / 2)  # [T - 1], between frames
    drift = rng.uniform(-1, 1, size=4) * (0.1 + 0.2 * hardness) * (rng.uniform(size=4) < 0.5)
    shake = _hand_shake(rng, seconds) * (0.5 + hardness)
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
        """The sum of a rate over time, float64 [T]; 0 at the pivot."""
        total = np.concatenate([[0.0], np.cumsum(per_second * pace / fps)])
        return total - total[pivot]

    log_scale, angle = travelled(rate["zoom"]), travelled(rate["roll"])
    # the view moves along its own axes, in units of its own side
    mean_scale = np.exp((log_scale[1:] + log_scale[:-1]) / 2)
    mean_angle = (angle[1:] + angle[:-1]) / 2
    cos, sin = mean_scale * np.cos(mean_angle), mean_scale * np.sin(mean_angle)
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
