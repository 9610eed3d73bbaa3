"""How quantities move over time: each function draws one course, float64 [N] at the times `t`.

Times are seconds from the middle of the clip.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

Times = np.ndarray
"""float64 [N], seconds."""


# numpy's `rng.choice` takes ten times as long for one number, and draws the same one


def one_of(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Draw one of several things, each as likely as the others."""
    return options[int(rng.integers(0, len(options)))]


def how_many(rng: np.random.Generator, shares: Sequence[float]) -> int:
    """Draw a number from 0 up; `shares` are the probabilities of each, together 1."""
    return bisect.bisect_right(list(itertools.accumulate(shares[:-1])), rng.random())


def log_uniform(rng: np.random.Generator, least: float, most: float) -> float:
    """Draw a number whose logarithm is uniform."""
    low = math.log(least)
    return math.exp(low + (math.log(most) - low) * rng.random())


def smooth_step(x: np.ndarray) -> np.ndarray:
    """From 0 to 1 as x goes from 0 to 1, with no speed at either end; constant beyond."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def swing(rng: np.random.Generator, t: Times, most: float) -> np.ndarray:
    """To and fro, as limbs and branches do: amplitude up to `most`, 0.4 to 3 times a second."""
    rate, phase = 2 * math.pi * log_uniform(rng, 0.4, 3), rng.uniform(0, 2 * math.pi)
    sharp = rng.uniform(0, 0.3)  # a second harmonic: forth and back differ in speed
    wave = np.sin(rate * t + phase) + sharp * np.sin(2 * rate * t + rng.uniform(0, 6))
    return rng.uniform(0.2, 1) * most * wave


def change(rng: np.random.Generator, t: Times) -> np.ndarray:
    """One change from 0 to 1, at some time around the clip, within 0.25 to 1.5 seconds."""
    length = log_uniform(rng, 0.25, 1.5)
    start = rng.uniform(t[0] - 0.7 * length, t[-1] - 0.3 * length)
    return smooth_step((t - start) / length)


def there_and_back(rng: np.random.Generator, t: Times) -> np.ndarray:
    """From 0 to 1 and back, again and again or once."""
    rate = log_uniform(rng, 0.3, 1.6)
    return 0.5 - 0.5 * np.cos(2 * math.pi * rate * t + rng.uniform(0, 2 * math.pi))


def travel(rng: np.random.Generator, t: Times, speed: float) -> np.ndarray:
    """Distance along a path at about `speed` a second: steady, speeding up, braking, stop or go."""
    kind = rng.random()
    if kind < 0.5:
        return speed * t
    if kind < 0.8:
        return speed * (t + rng.uniform(-0.9, 0.9) * t * t / max(t[-1] - t[0], 1e-6))
    # starts or stops: the integral of a smooth step of speed
    length, start = log_uniform(rng, 0.1, 0.6), rng.uniform(t[0], t[-1])
    x = np.clip((t - start) / length, 0, 1)
    moved = length * (x**3 - x**4 / 2) + np.maximum(t - start - length, 0)
    return speed * (moved if rng.random() < 0.5 else t - moved)


def direction(rng: np.random.Generator) -> np.ndarray:
    """Draw a unit vector in the picture, float64 [2]: rather along the ground than up or down."""
    angle = rng.uniform(0, 2 * math.pi)
    vector = np.array([math.cos(angle), math.sin(angle) * rng.uniform(0.1, 1)])
    return vector / np.hypot(*vector)
