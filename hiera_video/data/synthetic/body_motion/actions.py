"""The labelled set: ten actions of generated figures, as real MP4 files.

One figure does what the label says, among other things that move, before a camera that may move
too, in all lights. Everything else is drawn independently of the label: one frame, the background,
the light and the file tell nothing. "sit down" and "stand up" have each other's poses in reverse.

    make_actions("data/body_actions", ActionSettings(num_train=600, num_val=200))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hiera_video.data.synthetic.body_motion import figures
from hiera_video.data.synthetic.body_motion.figures import Course
from hiera_video.data.synthetic.body_motion.light import film
from hiera_video.data.synthetic.body_motion.motions import Times, log_uniform, smooth_step
from hiera_video.data.synthetic.body_motion.scene import (
    Scene,
    camera,
    compose,
    place_figure,
    random_other,
)
from hiera_video.data.synthetic.body_motion.streams import stream
from hiera_video.data.synthetic.generated_set import (
    GeneratedSet,
    GeneratedVideo,
    Parameters,
    make_set,
)
from hiera_video.data.synthetic.mp4 import encode
from hiera_video.errors import UserError

ACTIONS = (
    *("bend down", "fall", "jump", "run", "sit down"),
    *("stand still", "stand up", "turn", "walk", "wave"),
)
RECIPE = 1
"""Version of the drawing rules; a set made by another version is not reused."""

# ---- what each action is ------------------------------------------------------------------------


def action_course(rng: np.random.Generator, label: str, t: Times) -> Course:
    """Draw a figure that does what `label`, one of `ACTIONS`, says, at the times `t`."""
    return _COURSES[label](rng, figures.standing(rng, t), t)


def _still(rng: np.random.Generator, course: Course, t: Times) -> Course:
    return course


def _walk(rng: np.random.Generator, course: Course, t: Times) -> Course:
    return figures.add_gait(rng, course, t, running=False, on_spot=False)


def _run(rng: np.random.Generator, course: Course, t: Times) -> Course:
    return figures.add_gait(rng, course, t, running=True, on_spot=False)


def _once(rng: np.random.Generator, t: Times) -> np.ndarray:
    """From 0 to 1, for certain within the clip."""
    whole = t[-1] - t[0]
    length = rng.uniform(0.4, 0.8) * whole
    return smooth_step((t - rng.uniform(t[0], t[-1] - length)) / length)


def _sitting(rng: np.random.Generator) -> figures.Pose:
    thigh = rng.uniform(1.3, 1.7)
    pose: figures.Pose = {"lean": rng.uniform(0, 0.4)}
    for side in ("", "2"):
        pose |= {f"hip{side}": thigh, f"knee{side}": thigh + rng.normal(0, 0.1)}
        pose |= {f"shoulder{side}": rng.uniform(0, 0.9), f"elbow{side}": rng.uniform(0, 1)}
    return pose


def _sit_down(rng: np.random.Generator, course: Course, t: Times) -> Course:
    return figures.move_to(course, _sitting(rng), _once(rng, t))


def _stand_up(rng: np.random.Generator, course: Course, t: Times) -> Course:
    return figures.move_to(course, _sitting(rng), 1 - _once(rng, t))


def _bend(rng: np.random.Generator, course: Course, t: Times) -> Course:
    pose: figures.Pose = {"lean": rng.uniform(0.9, 1.6)}
    knees = rng.uniform(0, 0.5)
    for side in ("", "2"):
        pose |= {f"shoulder{side}": rng.uniform(0.8, 1.8), f"knee{side}": knees}
        pose[f"hip{side}"] = 0.5 * knees
    return figures.move_to(course, pose, _once(rng, t))


def _jump(rng: np.random.Generator, course: Course, t: Times) -> Course:
    return figures.add_jumps(rng, course, t, again=True)


def _turn(rng: np.random.Generator, course: Course, t: Times) -> Course:
    angle = rng.choice([-1.0, 1.0]) * rng.uniform(0.8, 2) * np.pi
    return figures.changed(course, turn=course.turn + angle * _once(rng, t))


def _fall(rng: np.random.Generator, course: Course, t: Times) -> Course:
    angle = rng.choice([-1.0, 1.0]) * rng.uniform(1.2, 1.6)
    return figures.changed(course, tilt=course.tilt + angle * _once(rng, t) ** 2)


def _wave(rng: np.random.Generator, course: Course, t: Times) -> Course:
    rate, phase = 2 * np.pi * rng.uniform(1, 2.5), rng.uniform(0, 6)
    side = str(rng.choice(["", "2"]))
    pose = dict(course.pose)
    pose[f"shoulder{side}"] = rng.uniform(1.6, 2.9)
    pose[f"shoulder{side}_out"] = rng.uniform(0, 0.6)
    pose[f"elbow{side}"] = 0.6 + rng.uniform(0.4, 0.8) * np.sin(rate * t + phase)
    return figures.changed(course, pose=pose)


_COURSES: dict[str, Callable[[np.random.Generator, Course, Times], Course]] = {
    "bend down": _bend,
    "fall": _fall,
    "jump": _jump,
    "run": _run,
    "sit down": _sit_down,
    "stand still": _still,
    "stand up": _stand_up,
    "turn": _turn,
    "walk": _walk,
    "wave": _wave,
}


# ---- one clip -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ActionSettings:
    """How many videos the set has, and of which form.

    Raises UserError for impossible numbers.
    """

    num_train: int = 600
    num_val: int = 200
    """Numbers of videos, dealt evenly to the ten actions."""
    size: int = 96
    """Side of the square picture in pixels, a multiple of 8."""
    frames: int = 30
    fps: int = 15
    seed: int = 0
    """Another seed gives another set; train and val never share a clip's seed."""

    def __post_init__(self) -> None:
        least = {"num_train": 0, "num_val": 0, "size": 32, "frames": 2, "fps": 1, "seed": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < smallest:
                raise UserError(f"actions: {name}={value!r} must be a whole number >= {smallest}")
        if self.size % 8:
            raise UserError(f"actions: size={self.size} must be a multiple of 8")


def action_scene(label: str, seed: int, settings: ActionSettings) -> tuple[Scene, np.ndarray]:
    """Draw the world of one clip, and its times, float64 [T] in seconds."""
    t = (np.arange(settings.frames) - (settings.frames - 1) / 2) / settings.fps
    # The figure's stream is its own: what an action draws more or less changes nothing else.
    figure_rng, rng = stream(seed, "action"), stream(seed, "bodies")
    others = [random_other(rng, t) for _ in range(rng.choice(3, p=[0.5, 0.3, 0.2]))]
    size = log_uniform(rng, 0.4, 0.9)
    before = int(rng.integers(0, len(others) + 1)) if rng.uniform() < 0.3 else 0
    course = action_course(figure_rng, label, t)
    parts, feet = figures.figure(figure_rng, course, settings.frames)
    figure = place_figure(figure_rng, parts, feet, t, size=size)
    bodies = [*others[:before], figure, *others[before:]]
    return compose(bodies, camera(stream(seed, "camera"), t), stream(seed, "look")), t


def draw_action(label: str, seed: int, settings: ActionSettings) -> np.ndarray:
    """Draw one clip before compression: uint8 [T, S, S, 3]."""
    scene, t = action_scene(label, seed, settings)
    picture, _ = scene.draw(settings.size)
    return film(stream(seed, "light"), picture, t)


def write_action(path: Path, label: str, seed: int, settings: ActionSettings) -> None:
    """Draw one clip and write it as a video file."""
    clip = torch.from_numpy(draw_action(label, seed, settings)).permute(0, 3, 1, 2)
    encode(path, clip, fps=settings.fps, crf=int(stream(seed, "file").integers(16, 32)))


# ---- the set on disk ----------------------------------------------------------------------------

_SEEDS_PER_SPLIT = 10_000_000


def make_actions(
    folder: str | Path,
    settings: ActionSettings = ActionSettings(),
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the set as `folder/{train,val}/<action>/<number>.mp4`, or find it there.

    `workers`, `progress`, the folder returned and the errors raised are those of `make_set`.
    """
    return make_set(folder, _generated_set(settings), workers=workers, progress=progress)


def _generated_set(settings: ActionSettings) -> GeneratedSet:
    return GeneratedSet(
        kind="body-actions",
        parameters={**settings.__dict__, "recipe": RECIPE},
        labels=ACTIONS,
        videos=_videos(settings),
        write=lambda path, video: write_action(path, video.label, video.seed, settings),
        from_parameters=set_of_parameters,
    )


def set_of_parameters(parameters: Parameters) -> GeneratedSet:
    """The set with these stored parameters, for worker processes."""
    return _generated_set(ActionSettings(**{k: v for k, v in parameters.items() if k != "recipe"}))


def _videos(settings: ActionSettings) -> list[GeneratedVideo]:
    videos = []
    splits = (("train", settings.num_train), ("val", settings.num_val))
    for number, (split, count) in enumerate(splits):
        first = (2 * settings.seed + number) * _SEEDS_PER_SPLIT
        for index in range(count):
            label, seed = ACTIONS[index % len(ACTIONS)], first + index
            name = f"{split}/{label}/{index // len(ACTIONS):05d}.mp4"
            videos.append(GeneratedVideo(name, label, seed, scene=seed))
    return videos
