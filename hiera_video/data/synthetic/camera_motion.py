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
    trained on hard ones alone, a small Hiera stayed at chance.

One frame tells nothing
    Everything but the camera's path is a function of the seed alone. At one frame, the pivot,
    drawn uniformly, the view has the same pose whatever the label: with the same seed, all nine
    clips show the very same picture there. Opposite labels have mirrored paths from there.

How long a clip lasts
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

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from hiera_video.clip_spec import ClipSpec
from hiera_video.data.synthetic.camera_path import (
    FPS,
    FRAMES,
    LABELS,
    SIZE,
    CameraPath,
    camera_path,
    difficulty,
    stream,
)
from hiera_video.data.synthetic.drawing import (
    affine_grid,
    light,
    pixel_centres,
    recolour,
    rotation,
    sample_pyramid,
    sensor,
)
from hiera_video.data.synthetic.generated_set import (
    GeneratedSet,
    GeneratedVideo,
    Parameters,
    make_set,
)
from hiera_video.data.synthetic.mp4 import encode
from hiera_video.data.synthetic.scenes import CLIPS_PER_SCENE, SCENE_SIDE, scene_pyramid
from hiera_video.data.synthetic.shapes import draw_over, foreground_shapes
from hiera_video.errors import UserError

__all__ = [
    "CLIP_SPEC",
    "FPS",
    "FRAMES",
    "LABELS",
    "RECIPE",
    "SIZE",
    "CameraPath",
    "ClipSettings",
    "SetSettings",
    "camera_path",
    "make_dataset",
    "render_clip",
    "write_clip",
]

CLIP_SPEC = ClipSpec(num_frames=8, sampling_rate=2, target_fps=float(FPS), crop_size=64)
"""The clip that a model of this set takes from any video: 8 frames, 0.2 s apart, 64 x 64."""

RECIPE = 3
"""Version of the drawing rules; a set made by another version is not reused."""

# ---- one clip -----------------------------------------------------------------------------------


def render_clip(
    label: str,
    seed: int,
    *,
    frames: int = FRAMES,
    size: int = SIZE,
    fps: float = FPS,
    plain: bool = False,
) -> Tensor:
    """Render one clip of the set before compression: uint8 [frames, 3, size, size], RGB.

    The same (label, seed) gives the same clip; with the same seed, clips of all labels are the
    same picture at frame `camera_path(...).pivot` (a different one for each seed). A `plain` clip
    has no foreground, steady light and a quick camera: a small model learns it in minutes.

    Raises UserError for an unknown label.
    """
    path = camera_path(label, seed, frames=frames, fps=fps, plain=plain)
    seconds = np.arange(frames) / fps
    rng = stream(seed, "place")
    side = SCENE_SIDE * math.exp(rng.uniform(math.log(0.18), math.log(0.6)))  # scene pixels
    place, turn = rng.uniform(-0.7, 0.7, size=2), rng.uniform(0, 2 * math.pi)
    # picture -> the view's own axes -> scene, in the -1..1 that grid_sample wants
    to_scene = rotation(np.array(turn)) * (2 * side / SCENE_SIDE)
    scale = np.exp(path.log_scale)
    linear = np.einsum("ij,tjk->tik", to_scene, rotation(path.angle)) * scale[:, None, None]
    offset = place + np.einsum("ij,tj->ti", to_scene, path.centre)
    axis = pixel_centres(size)
    grid = affine_grid(linear, offset, axis, axis)
    picture = sample_pyramid(scene_pyramid(seed // CLIPS_PER_SCENE), grid, step=side * scale / size)
    picture = recolour(stream(seed, "colour"), picture)
    if not plain:
        for shape in foreground_shapes(seed, seconds, path.pivot):
            draw_over(picture, shape, path)
        strength = difficulty(seed, plain=False)
        picture = light(stream(seed, "light"), picture, seconds, strength)
    return sensor(stream(seed, "sensor"), picture)


@dataclass(frozen=True)
class ClipSettings:
    """The form of the clips; see `render_clip`."""

    size: int = SIZE
    """Side of the square picture in pixels, even, at least 32."""
    frames: int = FRAMES
    fps: int = FPS
    plain: bool = False
    """Whether the clips are the easier ones."""


def write_clip(path: Path, label: str, seed: int, settings: ClipSettings = ClipSettings()) -> None:
    """Render one clip and write it as a video file, at a quality that the seed draws."""
    clip = render_clip(
        label,
        seed,
        frames=settings.frames,
        size=settings.size,
        fps=settings.fps,
        plain=settings.plain,
    )
    encode(path, clip, fps=settings.fps, crf=_quality(seed))


def _quality(seed: int) -> int:
    """x264's crf of a clip's file."""
    return int(stream(seed, "file").integers(16, 34))


# ---- the set on disk ----------------------------------------------------------------------------

_SPLITS = ("train", "val")
_SEEDS_PER_SPLIT = 10_000_000  # a multiple of CLIPS_PER_SCENE: train and val share no scene


@dataclass(frozen=True)
class SetSettings(ClipSettings):
    """How many videos a set has, and of which form.

    Raises UserError for impossible numbers.
    """

    num_train: int = 1800
    num_val: int = 450
    """Numbers of videos, dealt evenly to the nine labels."""
    seed: int = 0
    """Another seed gives another set; train and val never share a scene."""

    def __post_init__(self) -> None:
        for name, least in {"num_train": 0, "num_val": 0, "seed": 0, "frames": 2, "fps": 1}.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UserError(
                    f"camera-motion set: {name}={value!r} must be an integer >= {least}"
                )
        if not isinstance(self.size, int) or self.size < 32 or self.size % 2:
            raise UserError(f"camera-motion set: size={self.size!r} must be an even integer >= 32")
        if max(self.num_train, self.num_val) > _SEEDS_PER_SPLIT:
            raise UserError(f"camera-motion set: at most {_SEEDS_PER_SPLIT:,} videos in a split")


def make_dataset(
    folder: str | Path,
    settings: SetSettings = SetSettings(),
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the set as `folder/{train,val}/<label>/<number>.mp4` (H.264), or find it there.

    The same settings give the same files on one machine, whatever `workers` is and however many
    threads there are; for other machines, see the top of this module. `workers`, `progress`, the
    folder returned and the errors raised are those of `make_set`.
    """
    return make_set(folder, _generated_set(settings), workers=workers, progress=progress)


def _generated_set(settings: SetSettings) -> GeneratedSet:
    return GeneratedSet(
        kind="camera-motion",
        parameters={
            "num_train": settings.num_train,
            "num_val": settings.num_val,
            "seed": settings.seed,
            "size": settings.size,
            "frames": settings.frames,
            "fps": settings.fps,
            "plain": bool(settings.plain),
            "recipe": RECIPE,
        },
        labels=LABELS,
        videos=_videos(settings),
        write=lambda path, video: write_clip(path, video.label, video.seed, settings),
        from_parameters=_set_of_parameters,
    )


def _set_of_parameters(parameters: Parameters) -> GeneratedSet:
    """The set with these stored parameters, for worker processes."""
    return _generated_set(SetSettings(**{k: v for k, v in parameters.items() if k != "recipe"}))


def _videos(settings: SetSettings) -> list[GeneratedVideo]:
    videos = []
    for number, (split, count) in enumerate(
        zip(_SPLITS, (settings.num_train, settings.num_val), strict=True)
    ):
        first = (2 * settings.seed + number) * _SEEDS_PER_SPLIT
        for index in range(count):
            # Consecutive seeds share a scene: so every label gets every scene.
            label, seed = LABELS[index % len(LABELS)], first + index
            name = f"{split}/{label}/{index // len(LABELS):05d}.mp4"
            videos.append(GeneratedVideo(name, label, seed, scene=seed // CLIPS_PER_SCENE))
    return videos
