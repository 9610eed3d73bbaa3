"""An independent eye for camera motion: least-squares similarity flow between frames."""

from __future__ import annotations

import numpy as np
import torch


def blur(picture: np.ndarray, times: int) -> np.ndarray:
    for _ in range(times):
        for axis in (0, 1):
            ends = [np.take(picture, [0], axis), picture, np.take(picture, [-1], axis)]
            wide = np.concatenate(ends, axis)
            low, high = (wide[:-2], wide[2:]) if axis == 0 else (wide[:, :-2], wide[:, 2:])
            picture = (low + 2 * picture + high) / 4
    return picture


def sample(picture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x.clip(0, picture.shape[1] - 1.001), y.clip(0, picture.shape[0] - 1.001)
    column, row = x.astype(int), y.astype(int)
    fx, fy = x - column, y - row
    top = picture[row, column] * (1 - fx) + picture[row, column + 1] * fx
    bottom = picture[row + 1, column] * (1 - fx) + picture[row + 1, column + 1] * fx
    return top * (1 - fy) + bottom * fy


def flow_between(first: np.ndarray, second: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """Motion of the content (right, down, growth, clockwise turn), robust to moving minorities."""
    side = first.shape[0]
    y, x = np.mgrid[:side, :side].astype(float)
    u, v = (x - (side - 1) / 2) / side, (y - (side - 1) / 2) / side
    motion = guess.copy()
    for softness, rounds in ((6, 8), (1, 6)):
        a, b = blur(first, softness), blur(second, softness)
        gy, gx = np.gradient(b)
        for _ in range(rounds):
            right, down, growth, turn = motion
            dx = (right + growth * u - turn * v) * side
            dy = (down + growth * v + turn * u) * side
            inside = (x + dx > 0) & (x + dx < side - 1) & (y + dy > 0) & (y + dy < side - 1)
            error = sample(b, x + dx, y + dy) - a
            sx, sy = sample(gx, x + dx, y + dy) * side, sample(gy, x + dx, y + dy) * side
            columns = np.stack([sx, sy, sx * u + sy * v, sy * u - sx * v], -1)[inside]
            error = error[inside] - np.median(error[inside])
            weight = 1 / (1 + (error / (1.5 * np.median(np.abs(error)) + 0.5)) ** 2)
            normal = (columns * weight[:, None]).T @ columns + 1e-3 * np.eye(4)
            motion = motion - np.linalg.solve(normal, columns.T @ (weight * error))
    return motion


def camera_seen(clip: torch.Tensor) -> str:
    """The camera motion of uint8 [T, 3, H, W], from what its content does."""
    grey = torch.nn.functional.avg_pool2d(clip.double().mean(1), 2).numpy()
    total, step = np.zeros(4), np.zeros(4)
    for first, second in zip(grey[:-2:2], grey[2::2], strict=False):
        step = flow_between(first, second, guess=step.clip(-0.15, 0.15))
        total += step
    # on the scale of the mean displacement: growth and turn move a square's mean point by 0.383
    size = total * np.array([1, 1, 0.383, 0.383])
    axis = int(np.abs(size).argmax())
    if abs(size[axis]) < 0.02:
        return "static"
    content = (
        ("pan right", "pan left"),  # content to the left: the view to the right
        ("tilt down", "tilt up"),
        ("zoom out", "zoom in"),
        ("roll clockwise", "roll counter-clockwise"),
    )
    return content[axis][int(size[axis] > 0)]
