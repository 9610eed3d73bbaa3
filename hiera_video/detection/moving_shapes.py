"""The embedded set with boxes: shapes that move, each in its own way, in AVA's layout.

    FOLDER/videos/train_00000.mp4 ...
    FOLDER/annotations/train.csv, val.csv, actions.pbtxt

What is in a clip
    Two or three textured shapes over a textured background, for 3.6 s at 30 frames per second. Each
    keeps to a quarter of the picture and does one of six things, twice a second or so: it stands
    still, shakes (left and right), bounces (up and down), circles, spins in place, or pulses (grows
    and shrinks). At seconds 1, 2 and 3 its tight box is annotated.

One frame tells nothing
    How a shape looks, where it is, how large it is and how it is turned are a function of the seed
    alone, also while it moves: every shape has a place on a circle, a phase of its growth and an
    angle, drawn at second 1, and its action only says which of them change from there. With the
    same seed, clips of all actions are the very same picture at second 1.

How files are found again, and how they differ between machines: see `camera_motion`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hiera_video.config.detection import AvaConfig
from hiera_video.data.synthetic.drawing import fractal_noise
from hiera_video.data.synthetic.generated_set import (
    GeneratedSet,
    GeneratedVideo,
    Parameters,
    make_set,
)
from hiera_video.data.synthetic.mp4 import encode
from hiera_video.data.synthetic.seeds import Streams
from hiera_video.data.synthetic.shapes import paste
from hiera_video.detection.files import BoxTable, LabelMap, write_annotated_boxes, write_label_map
from hiera_video.errors import UserError

NAME = "moving_shapes"
"""TRAIN.DATASET of this set."""

ACTIONS = ("stands still", "shakes", "bounces", "circles", "spins", "pulses")
LABEL_MAP = LabelMap(tuple(range(1, len(ACTIONS) + 1)), ACTIONS)

FPS, FRAMES, SECONDS = 30, 107, (1, 2, 3)

SETTINGS = AvaConfig(
    train_gt_box_lists=("train.csv",),
    test_predict_box_lists=(),
    groundtruth_file="val.csv",
    exclusion_file="",
    label_map_file="actions.pbtxt",
    full_test_on_val=True,
    video_start=0.0,
    seconds=(SECONDS[0], SECONDS[-1]),
)
"""The names of the set's files."""

RECIPE = 1
"""Version of the drawing rules; a set made by another version is not reused."""

_GRAIN_SEED = (0, 11)
_stream = Streams(
    ("labels", "place", "look", "grain", "file", "shape 0", "shape 1", "shape 2", "shape 3")
)

# ---- how shapes move ----------------------------------------------------------------------------

_LARGEST = 0.26
"""Side of a shape's sprite in picture sides, before it grows."""
_REACH = 0.47
"""What an outline reaches from the middle, in sides of its sprite, however it is turned."""
_GROWTH = 0.3
_CELL = 0.25
"""Half of the quarter of the picture that a shape keeps to."""


class Motion(NamedTuple):
    """The pose of one shape at each frame; pictures reach from -0.5 to 0.5."""

    centre: np.ndarray
    """float64 [T, 2]"""
    size: np.ndarray
    """float64 [T]"""
    angle: np.ndarray
    """float64 [T], radians clockwise."""


def motion_of(rng: np.random.Generator, cell: tuple[float, float], action: str) -> Motion:
    """Draw the motion of a shape in a quarter of the picture; its pose at second 1 is the same
    whatever the action is."""
    size = _LARGEST * rng.uniform(0.75, 1)
    across = rng.uniform(0.06, 0.085)  # radius of the circle, sides
    slack = _CELL - across - _REACH * size * math.exp(_GROWTH)
    middle = np.array(cell) + max(slack, 0) * rng.uniform(-1, 1, size=2)
    where, growth, angle = rng.uniform(0, 2 * math.pi, size=3)
    pace = rng.choice([-1, 1]) * 2 * math.pi * rng.uniform(1.4, 2.2)
    turns = pace * (np.arange(FRAMES) / FPS - SECONDS[0])
    rest = np.zeros(FRAMES)
    x = where + (turns if action in ("shakes", "circles") else rest)
    y = where + (turns if action in ("bounces", "circles") else rest)
    scale = np.exp(_GROWTH * np.sin(growth + (turns if action == "pulses" else rest)))
    return Motion(
        middle + across * np.stack([np.cos(x), np.sin(y)], 1),
        size * scale,
        angle + (turns if action == "spins" else rest),
    )


# ---- how they look ------------------------------------------------------------------------------


def _colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two colours that are told apart, of the background and of a shape: float64 [3]."""
    while True:
        ground, shape = rng.uniform(0.15, 0.85, size=(2, 3))
        if np.abs(ground - shape).max() > 0.35:
            return ground, shape


def _texture(rng: np.random.Generator, side: int, colour: np.ndarray) -> Tensor:
    """float32 [3, side, side] about a colour."""
    noise = fractal_noise(rng, side, rng.uniform(0.7, 1.4)) - 0.5
    painted = colour.astype(np.float32) + np.float32(rng.uniform(0.4, 0.9)) * noise
    return torch.from_numpy(painted.transpose(2, 0, 1)).contiguous()


def _sprite(rng: np.random.Generator, side: int, colour: np.ndarray) -> Tensor:
    """float32 [4, side, side]: a textured outline without symmetry, that touches no edge."""
    ramp = (np.arange(side) + 0.5) / side * 2 - 1
    x, y = ramp[None, :], ramp[:, None]
    theta, radius = np.arctan2(y, x), np.hypot(x, y)
    kind = rng.integers(0, 3)
    squash = rng.uniform(0.55, 0.85)
    if kind == 0:  # an ellipse
        radius, outline = np.hypot(x, y / squash), np.full_like(theta, 0.85)
    elif kind == 1:  # a box
        radius, outline = np.maximum(np.abs(x), np.abs(y) / squash), np.full_like(theta, 0.66)
    else:  # a star
        arms = rng.integers(3, 6)
        outline = 0.68 + 0.2 * np.cos(arms * theta + rng.uniform(0, 2 * math.pi))
    opacity = np.clip((outline - radius) * side / 2 + 0.5, 0, 1)
    shade = np.where(x * np.cos(squash) + y * np.sin(squash) > 0, 0.12, -0.12)
    colours = _texture(rng, side, colour) + torch.from_numpy(shade.astype(np.float32))
    return torch.cat([colours, torch.from_numpy(opacity.astype(np.float32))[None]])


# ---- one clip -----------------------------------------------------------------------------------


class _Shape(NamedTuple):
    sprite: Tensor
    motion: Motion


def actions_of(seed: int) -> list[str]:
    """Return what each shape of a clip does, all different."""
    rng = _stream(seed, "labels")
    count = int(rng.integers(2, 4))
    return [ACTIONS[n] for n in rng.permutation(len(ACTIONS))[:count]]


def _shapes(seed: int, actions: Sequence[str], size: int) -> tuple[Tensor, list[_Shape]]:
    """(float32 [3, size, size], the background; the shapes)."""
    look = _stream(seed, "look")
    ground, colour = _colours(look)
    background = _texture(look, size, ground)
    cells = _stream(seed, "place").permutation(4)
    shapes = []
    for number, action in enumerate(actions):
        cell = (cells[number] % 2 - 0.5) / 2, (cells[number] // 2 - 0.5) / 2
        motion = motion_of(_stream(seed, f"shape {number}"), cell, action)
        side = 2 * int(np.clip(0.65 * _LARGEST * size, 8, 32))  # noise has even sides
        shapes.append(_Shape(_sprite(look, side, colour), motion))
    return background, shapes


def render_clip(seed: int, actions: Sequence[str], size: int = 96) -> Tensor:
    """Render a clip of 2 to 4 shapes before compression: uint8 [FRAMES, 3, size, size], RGB."""
    background, shapes = _shapes(seed, actions, size)
    picture = background.expand(FRAMES, -1, -1, -1).clone()
    for shape in shapes:
        paste(picture, shape.sprite, **shape.motion._asdict())
    grain, count = _grain(), picture[0].numel()
    starts = _stream(seed, "grain").integers(0, len(grain) - count, size=FRAMES).tolist()
    picture += torch.stack([grain[start : start + count] for start in starts]).view_as(picture)
    return picture.mul_(255).add_(0.5).clamp_(0, 255).to(torch.uint8)


@functools.lru_cache(maxsize=1)
def _grain() -> Tensor:
    """float32 [2 ** 21] of faint noise; each frame takes a piece of it."""
    noise = np.random.default_rng(_GRAIN_SEED).standard_normal(1 << 21, dtype=np.float32)
    return torch.from_numpy(0.006 * noise)


def boxes_of(seed: int, actions: Sequence[str], size: int = 96) -> np.ndarray:
    """Return the tight box of each shape at each of SECONDS: float64 [shapes, seconds, 4].

    From the first to the last pixel that is covered by half or more, as shares of the picture.
    """
    frames = [second * FPS for second in SECONDS]
    boxes = np.zeros((len(actions), len(frames), 4))
    for number, shape in enumerate(_shapes(seed, actions, size)[1]):
        white = torch.cat([torch.ones_like(shape.sprite[:3]), shape.sprite[3:]])
        covered = torch.zeros(len(frames), 3, size, size)
        paste(covered, white, **{k: v[frames] for k, v in shape.motion._asdict().items()})
        for frame, opacity in enumerate(covered[:, 0].numpy() >= 0.5):
            rows, columns = np.flatnonzero(opacity.any(1)), np.flatnonzero(opacity.any(0))
            box = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            boxes[number, frame] = np.array(box) / size
    return boxes


# ---- the set on disk ----------------------------------------------------------------------------

_SPLITS = ("train", "val")
_SEEDS_PER_SPLIT = 10_000_000


@dataclass(frozen=True)
class ShapeSettings:
    """How many videos the set has, and of which size.

    Raises UserError for impossible numbers.
    """

    num_train: int = 192
    num_val: int = 48
    size: int = 96
    """Side of the square picture in pixels, even, at least 32."""
    seed: int = 0
    """Another seed gives another set."""

    def __post_init__(self) -> None:
        for name in ("num_train", "num_val", "seed"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise UserError(f"moving-shapes set: {name}={value!r} must be an integer >= 0")
        if not isinstance(self.size, int) or not 32 <= self.size <= 512 or self.size % 2:
            raise UserError(
                f"moving-shapes set: size={self.size!r} must be an even integer from 32 to 512"
            )
        if max(self.num_train, self.num_val) > _SEEDS_PER_SPLIT:
            raise UserError(f"moving-shapes set: at most {_SEEDS_PER_SPLIT:,} videos in a split")


def make_shapes(
    folder: str | Path,
    settings: ShapeSettings = ShapeSettings(),
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the set into a folder, or find it there; return the folder.

    `key_frames` reads it with SETTINGS. `workers`, `progress` (which counts the lists, too) and the
    errors raised are those of `make_set`.
    """
    return make_set(folder, _generated_set(settings), workers=workers, progress=progress)


def _generated_set(settings: ShapeSettings) -> GeneratedSet:
    return GeneratedSet(
        kind="moving-shapes",
        parameters={
            "num_train": settings.num_train,
            "num_val": settings.num_val,
            "size": settings.size,
            "seed": settings.seed,
            "recipe": RECIPE,
        },
        labels=ACTIONS,
        videos=_files(settings),
        write=lambda path, file: _write(path, file, settings),
        from_parameters=_set_of_parameters,
    )


def _set_of_parameters(parameters: Parameters) -> GeneratedSet:
    """The set with these stored parameters, for worker processes."""
    return _generated_set(ShapeSettings(**{k: v for k, v in parameters.items() if k != "recipe"}))


def _names_and_seeds(settings: ShapeSettings, split: str) -> list[tuple[str, int]]:
    number = _SPLITS.index(split)
    count = (settings.num_train, settings.num_val)[number]
    first = (2 * settings.seed + number) * _SEEDS_PER_SPLIT
    return [(f"{split}_{index:05d}", first + index) for index in range(count)]


def _files(settings: ShapeSettings) -> list[GeneratedVideo]:
    """All files of the set; the lists are among them, so a set without one is made again."""
    lists = ["actions.pbtxt", *(f"{split}.csv" for split in _SPLITS)]
    files = [GeneratedVideo(f"annotations/{name}", "", 0, n) for n, name in enumerate(lists)]
    for split in _SPLITS:
        for name, seed in _names_and_seeds(settings, split):
            files.append(GeneratedVideo(f"videos/{name}.mp4", "", seed, scene=seed))
    return files


def _write(path: Path, file: GeneratedVideo, settings: ShapeSettings) -> None:
    """Write one file of the set."""
    if path.suffix == ".mp4":
        clip = render_clip(file.seed, actions_of(file.seed), settings.size)
        encode(path, clip, fps=FPS, crf=int(_stream(file.seed, "file").integers(14, 22)))
    elif path.suffix == ".pbtxt":
        write_label_map(path, LABEL_MAP)
    else:
        write_annotated_boxes(path, _annotated(settings, path.stem))


def _annotated(settings: ShapeSettings, split: str) -> BoxTable:
    """The boxes of all videos of a split."""
    listed = _names_and_seeds(settings, split)
    video, second, corners, action, person = [], [], [], [], []
    for number, (_, seed) in enumerate(listed):
        actions = actions_of(seed)
        boxes = boxes_of(seed, actions, settings.size)
        for at, time in enumerate(SECONDS):
            for shape, name in enumerate(actions):
                video.append(number)
                second.append(time)
                corners.append(boxes[shape, at])
                action.append(LABEL_MAP.ids[ACTIONS.index(name)])
                person.append(shape)
    return BoxTable(
        videos=tuple(name for name, _ in listed),
        video=np.array(video, dtype=np.int32),
        second=np.array(second, dtype=np.int32),
        corners=np.array(corners, dtype=np.float64).reshape(-1, 4),
        action=np.array(action, dtype=np.int32),
        score=None,
        person=np.array(person, dtype=np.int32),
        lines=np.arange(1, len(video) + 1, dtype=np.int32),
    )
