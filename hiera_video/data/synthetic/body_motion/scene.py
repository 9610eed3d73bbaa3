"""The world of one clip: bodies over a background, seen by a camera, and the truth about them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hiera_video.data.synthetic.body_motion import figures, raster
from hiera_video.data.synthetic.body_motion.figures import Parts
from hiera_video.data.synthetic.body_motion.motions import (
    Times,
    change,
    direction,
    how_many,
    log_uniform,
    swing,
    travel,
)
from hiera_video.data.synthetic.body_motion.streams import stream
from hiera_video.data.synthetic.body_motion.textures import (
    PLATE_SIDE,
    PLATES,
    outlines,
    texels,
)


@dataclass(frozen=True)
class Body:
    """A body in the world, whose unit is the side of the view: y down, the view's centre at 0."""

    parts: Parts
    place: np.ndarray
    """float64 [N, 2], of the origin of its space."""
    size: np.ndarray
    """float64 [N], sides of the view for one unit of its space."""
    angle: np.ndarray
    """float64 [N], radians clockwise."""
    mirrored: bool = False


@dataclass(frozen=True)
class Scene:
    """The layers of one clip, from the nearest to the background, over all its frames."""

    forward: np.ndarray
    """float32 [L, T, 2, 3]: local coordinates -> view (0 to 1)."""
    outline: np.ndarray
    """int32 [L]; -1: the background."""
    plate: np.ndarray
    """int32 [L]."""
    paint: np.ndarray
    """float32 [L, 20], see `raster.draw`."""
    body: np.ndarray
    """int32 [L]: which body each layer is a part of; -1: the background."""
    doing: np.ndarray
    """float32 [L, D]: what the body of each layer does as a whole, see `truth.BODY`."""

    def draw(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw pixels float32 [T, size, size, 3] and the layer that each shows, int16 [T, ...]."""
        looks = np.stack([self.outline, self.plate])
        return raster.draw(self.forward, looks, self.paint, outlines(), texels(), size)

    def flow(self, owner: np.ndarray, start: int, end: int, *, cell: int = 1) -> np.ndarray:
        """Displacement of what frame `start` shows until frame `end`, in sides of the view:
        float32 [4, H / cell, W / cell], see `raster.displacements`."""
        return self.flows(owner, np.array([start]), np.array([end]), cell=cell)[:, 0]

    def flows(
        self, owner: np.ndarray, starts: np.ndarray, ends: np.ndarray, *, cell: int
    ) -> np.ndarray:
        """The same for several frames, int [F]: float32 [4, F, H / cell, W / cell]."""
        inverse = raster.inverted(self.forward)
        return raster.displacements(self.forward, inverse, owner, starts, ends, cell)

    def doing_maps(self, owner: np.ndarray, *, cell: int) -> np.ndarray:
        """What the bodies seen in frames do as a whole: float32 [D, F, H / cell, W / cell]."""
        return raster.cell_means(self.doing, owner, cell)

    def occluded(self, owner: np.ndarray, start: int, end: int) -> np.ndarray:
        """Which pixels of frame `start` are hidden or out of view in frame `end`: bool [H, W]."""
        size = owner.shape[1]
        moved = self.flow(owner, start, end)
        at = (np.arange(size) + 0.5) / size
        x = np.floor((at[None, :] + moved[0]) * size).astype(int)
        y = np.floor((at[:, None] + moved[1]) * size).astype(int)
        outside = (x < 0) | (y < 0) | (x >= size) | (y >= size)
        there = owner[end][np.clip(y, 0, size - 1), np.clip(x, 0, size - 1)]
        hidden: np.ndarray = outside | (there != owner[start])
        return hidden


# ---- a random world -----------------------------------------------------------------------------


def random_scene(seed: int, t: Times, frames: int) -> Scene:
    """Draw the world of a clip: one to five bodies, in the order in which they hide each other.

    frames: how many of the times `t` are frames of the clip.
    """
    rng = stream(seed, "bodies")
    bodies = [_random_figure(rng, t, frames) for _ in range(how_many(rng, (0.2, 0.5, 0.2, 0.1)))]
    others = how_many(rng, (0.4, 0.3, 0.2, 0.1)) + (not bodies)
    bodies += [random_other(rng, t) for _ in range(others)]
    rng.shuffle(bodies)
    return compose(bodies, camera(stream(seed, "camera"), t), stream(seed, "look"))


def _random_figure(rng: np.random.Generator, t: Times, frames: int) -> Body:
    parts, feet = figures.figure(rng, figures.random_course(rng, t), frames)
    return place_figure(rng, parts, feet, t, size=log_uniform(rng, 0.25, 1.2))


def place_figure(
    rng: np.random.Generator, parts: Parts, feet: np.ndarray, t: Times, *, size: float
) -> Body:
    """Put a figure somewhere in the view, upright with few exceptions, now and then coming nearer
    or going away. `size`: its height in sides of the view."""
    middle = feet[len(t) // 2]  # wherever it walks, it is in view in the middle of the clip
    at = np.array([rng.uniform(-0.35, 0.35) - size * middle[0], rng.uniform(-0.2, 0.2)])
    grows = rng.normal(0, 0.35) * (rng.random() < 0.25)
    upright = rng.normal(0, 0.06) if rng.random() < 0.9 else rng.uniform(0, 2 * math.pi)
    return Body(
        parts=parts,
        place=at + np.zeros((len(t), 2)),
        size=size * np.exp(grows * t),
        angle=upright + 0 * t,
        mirrored=bool(rng.random() < 0.5),
    )


def random_other(rng: np.random.Generator, t: Times) -> Body:
    """Put a creature or a thing somewhere; many of them move, and some stand in the way."""
    parts = figures.creature(rng, t) if rng.random() < 0.45 else figures.thing(rng, t)
    place = rng.uniform(-0.5, 0.5, size=2) + np.zeros((len(t), 2))
    kind = rng.random()
    if kind < 0.5:
        speed = log_uniform(rng, 0.05, 1.5)
        place = place + travel(rng, t, speed)[:, None] * direction(rng)
    elif kind < 0.65:
        place = place + swing(rng, t, 0.2)[:, None] * direction(rng)
    if rng.random() < 0.15:  # thrown, or dropped
        place = place + np.stack([0 * t, rng.uniform(0.3, 1.5) * t * t], axis=1)
    size = np.full(len(t), log_uniform(rng, 0.1, 0.8))
    if rng.random() < 0.2:
        size = size * np.exp(rng.normal(0, 0.5) * t)
    elif rng.random() < 0.1:
        size = size * np.exp(rng.normal(0, 0.5) * change(rng, t))
    return Body(parts, place, size, angle=rng.normal(0, 0.2) + 0 * t)


def camera(rng: np.random.Generator, t: Times) -> np.ndarray:
    """Draw the camera's course, world -> view (0 to 1): float64 [N, 2, 3]. Half are still."""
    centre = np.zeros((len(t), 2))
    zoom, angle = 0 * t, 0 * t
    if rng.random() < 0.5:
        if rng.random() < 0.7:
            centre = centre + travel(rng, t, log_uniform(rng, 0.02, 0.6))[:, None] * direction(rng)
        if rng.random() < 0.5:  # held by hand
            shake = rng.uniform(0.003, 0.03)
            centre = centre + np.stack([swing(rng, t, shake), swing(rng, t, shake)], axis=1)
        if rng.random() < 0.35:
            zoom = zoom + rng.normal(0, 0.25) * t
        if rng.random() < 0.25:
            angle = angle + rng.normal(0, 0.25) * t
    view = _similarity(-angle, np.exp(zoom))
    view[:, :, 2] = 0.5 - np.einsum("nij,nj->ni", view[:, :, :2], centre)
    return view


def _similarity(angle: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Affine maps that turn clockwise and scale: float64 [N, 2, 3]."""
    maps = np.zeros((len(angle), 2, 3))
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    maps[:, 0, 0], maps[:, 0, 1] = cos, -sin
    maps[:, 1, 0], maps[:, 1, 1] = sin, cos
    return maps


# ---- bodies -> layers ---------------------------------------------------------------------------


def compose(bodies: list[Body], view: np.ndarray, rng: np.random.Generator) -> Scene:
    """Put bodies, nearest first, before a background and look at them: `view` float64 [N, 2, 3]."""
    # the background is in no body's space: the last one is the world's
    still = np.zeros((1, len(view), 2, 3))
    still[:, :, [0, 1], [0, 1]] = 1.0
    spaces = np.concatenate([*(_place(one)[None] for one in bodies), still])
    numbers, counts = [*range(len(bodies)), -1], [*(len(one.parts.look) for one in bodies), 1]
    body = np.repeat(np.array(numbers, np.int32), counts)
    maps = np.concatenate([*(one.parts.maps for one in bodies), still])
    forward = _after(_after(view, spaces)[body], maps)
    # parts of one body and one look share a texture
    looks = np.concatenate([*(one.parts.look for one in bodies), [0]])
    _, texture = np.unique(body * 16 + looks, return_inverse=True)
    plate = rng.integers(0, PLATES, size=texture.max() + 1)[texture]
    doing = np.array([*(one.parts.doing for one in bodies), figures.NOTHING], np.float32)
    return Scene(
        forward=forward.astype(np.float32),
        outline=np.concatenate([*(one.parts.outline for one in bodies), [-1]]).astype(np.int32),
        plate=plate.astype(np.int32),
        paint=_paint(rng, forward, texture).astype(np.float32),
        body=body,
        doing=doing[body],
    )


def _place(body: Body) -> np.ndarray:
    """The map from a body's space to the world: float64 [N, 2, 3]."""
    maps = _similarity(body.angle, body.size)
    if body.mirrored:
        maps[:, :, 0] *= -1
    maps[:, :, 2] = body.place
    return maps


def _after(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Affine maps [..., 2, 3] after others [..., 2, 3]."""
    maps = outer[..., :2] @ inner
    maps[..., 2] += outer[..., 2]
    return maps


TEXELS = 128
"""Texels of a plate over one side of the view, at the usual scale."""


def _paint(rng: np.random.Generator, maps: np.ndarray, texture: np.ndarray) -> np.ndarray:
    """Draw how layers take their textures: float64 [L, 20], see `raster.draw`.

    maps: float64 [L, N, 2, 3], local -> view. texture: int [L]; layers of one number have the same
    colours. Texels are about as large as pixels of a view of 64 to 128, so that there is detail to
    follow and little of it is lost.
    """
    count = len(maps)
    size = np.hypot(maps[:, :, 0, :2], maps[:, :, 1, :2]).max(axis=1)  # local x and y, in views
    texels = TEXELS * np.exp(rng.uniform(math.log(0.5), math.log(1.4), size=count))
    angle = rng.uniform(0, 2 * math.pi, size=count)
    cos, sin = np.cos(angle) * texels, np.sin(angle) * texels
    paint = np.empty((count, 20))
    paint[:, 0], paint[:, 1] = cos * size[:, 0], -sin * size[:, 1]
    paint[:, 3], paint[:, 4] = sin * size[:, 0], cos * size[:, 1]
    paint[:, [2, 5]] = rng.uniform(0, PLATE_SIDE, size=(count, 2))
    paint[:, 6:18] = _colours(rng, texture.max() + 1)[texture]
    paint[:, 18:] = rng.normal(0, 0.25, size=(count, 2))
    return paint


def _colours(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw changes of colours, from bytes to 0..1: float64 [count, 12], three rows of matrix and
    offset each. Those of one clip are about equally grey: most videos have few colours."""
    grey = rng.random() ** 0.5
    order = np.argsort(rng.uniform(size=(count, 3)), axis=1)
    mix = np.eye(3)[order] + rng.normal(0, 0.15, size=(count, 3, 3))
    mix = (1 - grey) * mix + grey / 3
    mix *= np.where(rng.uniform(size=(count, 1, 1)) < 0.3, -1, 1)
    contrast = rng.uniform(0.3, 1.2, size=(count, 1, 1))
    middle = rng.normal(0.45, 0.16, size=(count, 1))
    middle = middle + (1 - grey) * rng.normal(0, 0.08, size=(count, 3))
    offset = middle - 0.5 * (contrast * mix).sum(axis=2)
    rows = np.concatenate([contrast * mix / 255, offset[:, :, None]], axis=2)
    return rows.reshape(count, 12)
