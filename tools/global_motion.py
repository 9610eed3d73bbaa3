"""The camera motion of a clip by classical means: what a label over running footage can be held
against.

Dense optical flow between neighbouring frames (DIS), a similarity (shift, scale, turn) that most of
it follows (RANSAC), and the sum of these over the clip. Needs OpenCV.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

SMALLEST = 0.02
"""Least motion in a clip, as a part of the picture's side, that is not "static". It was chosen on
generated clips and on frozen footage."""

RADIUS = 1 / math.sqrt(6)
"""How far a picture's points are from its centre, in sides, as a root mean square: times the angle,
or the logarithm of the scale, it is how far a turn or a zoom moves them."""

_STEP = 3
"""Pixels between the places at which flow is taken."""

_LARGEST_ERROR = 0.3
"""Pixels by which flow may differ from a similarity that it is to support."""

_DIRECTIONS = (
    ("pan right", "pan left"),
    ("tilt down", "tilt up"),
    ("zoom out", "zoom in"),
    ("roll clockwise", "roll counter-clockwise"),
)
"""Of what `motion_of` measures: the camera motion that makes it negative, and positive."""


def estimated_label(frames: Sequence[np.ndarray]) -> str:
    """Return the camera motion of frames uint8 [H, W, 3] (RGB): the largest of its four parts."""
    motion = motion_of(frames)
    largest = int(np.abs(motion).argmax())
    if abs(motion[largest]) < SMALLEST:
        return "static"
    return _DIRECTIONS[largest][int(motion[largest] > 0)]


def motion_of(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Measure how far the content of frames uint8 [H, W, 3] moves from the first to the last.

    Returns [4], each as a part of the picture's side: to the right, down, outwards, clockwise.
    """
    greys = [
        cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (0, 0), 0.8) for frame in frames
    ]
    return np.sum([_between(a, b) for a, b in itertools.pairwise(greys)], axis=0)


def _between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`motion_of` two grey frames; zeros where no similarity is found."""
    method: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = method.calc(first, second, None)
    height, width = first.shape
    rows, columns = np.mgrid[2 : height - 2 : _STEP, 2 : width - 2 : _STEP]
    places = np.stack([columns - (width - 1) / 2, rows - (height - 1) / 2], axis=-1)
    places = places.reshape(-1, 2).astype(np.float32)
    moved = places + flow[rows, columns].reshape(-1, 2)
    found, _ = cv2.estimateAffinePartial2D(
        places, moved, ransacReprojThreshold=_LARGEST_ERROR, maxIters=1000, confidence=0.999
    )
    if found is None:
        return np.zeros(4)
    scale = math.hypot(found[0, 0], found[1, 0])
    angle = math.atan2(found[1, 0], found[0, 0])
    across, down = found[0, 2] / width, found[1, 2] / height
    return np.array([across, down, math.log(scale) * RADIUS, angle * RADIUS])
