"""Bodies: figures with limbs on joints, creatures of swinging parts, and things in one piece.

A body is a list of parts, nearest first, in a space of its own: x to the right, y down, one unit
its height. `Parts.maps` takes a part's local coordinates (-1 to 1) there, at every time.

A figure is a skeleton in three dimensions (x forward, y down, z to its right), whose joints are
angles over time; it is turned about its vertical axis and seen from the front of the picture. Its
feet stay on the ground, so that bent knees lower the body: sitting, crouching and jumping follow
from the joints alone.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from hiera_video.data.synthetic.body_motion.motions import (
    Times,
    change,
    log_uniform,
    one_of,
    swing,
    there_and_back,
    travel,
)
from hiera_video.data.synthetic.body_motion.textures import BOX, CAPSULE, ELLIPSE, OUTLINES
from hiera_video.data.synthetic.body_motion.truth import BODY


@dataclass(frozen=True)
class Parts:
    """The parts of one body, from the nearest to the farthest."""

    maps: np.ndarray
    """float64 [P, N, 2, 3]: local coordinates -> the body's space."""
    outline: np.ndarray
    """int [P]: which outline."""
    look: np.ndarray
    """int [P]: parts of one number have one texture (a shirt, skin)."""
    doing: np.ndarray
    """float64 [len(BODY)]: what the body is and does as a whole; 0 for what is no figure."""


NOTHING = np.zeros(len(BODY))

# ---- figures ------------------------------------------------------------------------------------

JOINTS = (
    *("lean", "nod"),
    *("hip", "hip_out", "knee", "shoulder", "shoulder_out", "elbow"),
    *("hip2", "hip2_out", "knee2", "shoulder2", "shoulder2_out", "elbow2"),
)
"""Angles of a figure, radians: trunk and head forward; thigh, upper arm forward and sideways, knee
and elbow bent; of the right side, then of the left."""

Pose = dict[str, np.ndarray | float]
"""An angle for each of `JOINTS`; absent ones are 0."""

LIMB = {"trunk": 0.30, "head": 0.15, "upper_arm": 0.17, "lower_arm": 0.18, "thigh": 0.25}
LIMB["shin"] = 0.26
HALF_WIDTH = {"trunk": 0.095, "head": 0.07, "upper_arm": 0.037, "lower_arm": 0.03, "thigh": 0.055}
HALF_WIDTH["shin"] = 0.042
SHOULDERS, HIPS = 0.095, 0.055
"""Half the distance between the joints of the two sides."""


@dataclass(frozen=True)
class Course:
    """What a figure does over time."""

    pose: Pose
    """Angles, each a number or float64 [N]."""
    turn: np.ndarray
    """float64 [N]: about the vertical axis; 0 faces right, a quarter turn faces the viewer."""
    lift: np.ndarray
    """float64 [N]: height of the feet above the ground, in body heights."""
    path: np.ndarray
    """float64 [N]: distance walked forward, in body heights."""
    tilt: np.ndarray
    """float64 [N]: of the whole body in the picture, about its feet."""


def standing(rng: np.random.Generator, t: Times) -> Course:
    """Draw a figure that stands, in a slightly different way each time, seen from any side."""
    still = np.zeros(len(t))
    pose: Pose = dict(zip(JOINTS, rng.normal(0, 0.06, len(JOINTS)).tolist(), strict=True))
    for side in ("", "2"):
        pose[f"shoulder{side}"] = rng.normal(0, 0.25)
        pose[f"shoulder{side}_out"] = abs(rng.normal(0.12, 0.15))
        pose[f"elbow{side}"] = abs(rng.normal(0.2, 0.3))
        pose[f"knee{side}"] = abs(rng.normal(0, 0.1))
        pose[f"hip{side}_out"] = abs(rng.normal(0.06, 0.08))
    return Course(pose, still + rng.uniform(0, 2 * math.pi), still, still, still)


def any_pose(rng: np.random.Generator) -> Pose:
    """Draw a pose that a person could take: bending, sitting, kneeling, arms anywhere."""
    pose: Pose = {"lean": rng.uniform(-0.3, 1.3) * (rng.random() < 0.5), "nod": rng.normal(0, 0.3)}
    together = rng.random() < 0.6  # both legs, both arms do the same
    for kind, chance in (("legs", 0.6), ("arms", 0.7)):
        if rng.random() > chance:
            continue
        first = _any_limbs(rng, kind)
        second = first if together else _any_limbs(rng, kind)
        pose |= first | {_other_side(name): value for name, value in second.items()}
    return pose


def _any_limbs(rng: np.random.Generator, kind: str) -> Pose:
    if kind == "legs":
        hip = rng.uniform(-0.4, 1.7)
        return {"hip": hip, "knee": min(max(0.0, hip + rng.normal(0, 0.4)), 2.3)}
    return {
        "shoulder": rng.uniform(-0.7, 3.1),
        "shoulder_out": rng.uniform(0, 1.5) * (rng.random() < 0.5),
        "elbow": rng.uniform(0, 2.3) * (rng.random() < 0.6),
    }


def _other_side(name: str) -> str:
    joint, _, out = name.partition("_")
    return f"{joint}2_{out}" if out else f"{joint}2"


def move_to(course: Course, pose: Pose, share: np.ndarray) -> Course:
    """Blend a course towards a pose: `share` float64 [N], 0 to 1."""
    times = len(share)
    blended = (1 - share) * angles_of(course.pose, times) + share * angles_of(pose, times)
    return changed(course, pose=dict(zip(JOINTS, blended, strict=True)))


def add_gait(
    rng: np.random.Generator, course: Course, t: Times, *, running: bool, on_spot: bool
) -> Course:
    """Walk or run: legs and arms in turn, knees bent as a leg swings, and the body goes forward."""
    rate = 2 * math.pi * (rng.uniform(1.1, 1.9) if running else rng.uniform(0.6, 1.2))
    stride = rng.uniform(0.6, 1.0) if running else rng.uniform(0.3, 0.6)
    phase = rate * t + rng.uniform(0, 2 * math.pi)
    arms, bend = rng.uniform(0.2, 1.1) * stride, rng.uniform(0.9, 1.6) * stride
    pose = dict(course.pose)
    for side, sign in (("", 1.0), ("2", -1.0)):
        forth = sign * np.sin(phase)
        pose[f"hip{side}"] = pose.get(f"hip{side}", 0.0) + stride * forth
        pose[f"knee{side}"] = 0.1 + bend * np.maximum(0, sign * np.cos(phase))
        pose[f"shoulder{side}"] = pose.get(f"shoulder{side}", 0.0) - arms * forth
        if running:
            pose[f"elbow{side}"] = rng.uniform(0.9, 1.7)
    pose["lean"] = pose.get("lean", 0.0) + (0.2 if running else 0.05)
    # a step of both legs is about 4 * leg length * sin(stride) for one turn of the phase
    speed = 2 * 0.5 * math.sin(stride) * rate / math.pi * rng.uniform(0.8, 1.2)
    path = course.path + travel(rng, t, 0.0 if on_spot else speed)
    lift = course.lift + (0.04 * np.abs(np.sin(phase)) if running else 0)
    return changed(course, pose=pose, path=path, lift=lift)


def add_jumps(
    rng: np.random.Generator, course: Course, t: Times, *, again: bool | None = None
) -> Course:
    """Crouch, leap and land, once or again and again (None: either); arms may swing along."""
    again = bool(rng.random() < 0.7) if again is None else again
    period = rng.uniform(0.55, 1.3) if again else 10.0
    air, height = rng.uniform(0.3, 0.55), rng.uniform(0.08, 0.35)
    since = np.mod(t - rng.uniform(t[0] - 0.3, t[-1]), max(period, air + 0.2))
    flying = np.clip(since / air, 0, 1)
    lift = course.lift + height * 4 * flying * (1 - flying)
    rest = max(period, air + 0.2) - air
    down = np.clip((since - air) / min(rest, 0.5), 0, 1)
    crouch = np.where(since > air, np.sin(math.pi * down), 0)
    depth = rng.uniform(0.4, 1.1)
    bent: Pose = {"lean": 0.5 * depth}
    for side in ("", "2"):
        bent |= {f"hip{side}": depth, f"knee{side}": 1.8 * depth}
        bent[f"shoulder{side}"] = rng.uniform(-1, 0.5)
    course = move_to(course, bent, crouch)
    if rng.random() < 0.5:
        up = rng.uniform(0.5, 2.8)
        pose = dict(course.pose)
        for side in ("", "2"):
            pose[f"shoulder{side}"] = pose.get(f"shoulder{side}", 0.0) + up * 4 * flying * (
                1 - flying
            )
        course = changed(course, pose=pose)
    return changed(course, lift=lift)


def add_turn(rng: np.random.Generator, course: Course, t: Times) -> Course:
    """Turn about the vertical axis, once by a quarter to a whole turn, or on and on."""
    sign = one_of(rng, (-1.0, 1.0))
    if rng.random() < 0.7:
        angle = sign * rng.uniform(0.4, 2) * math.pi * change(rng, t)
    else:
        angle = sign * log_uniform(rng, 1.0, 7.0) * t
    return changed(course, turn=course.turn + angle)


def add_swings(rng: np.random.Generator, course: Course, t: Times) -> Course:
    """Swing some joints: wave, shake the head, kick, clap, knead."""
    pose = dict(course.pose)
    for name in rng.choice(JOINTS, size=int(rng.integers(1, 5)), replace=False):
        pose[name] = pose.get(name, 0.0) + swing(rng, t, 0.9)
    return changed(course, pose=pose)


def add_fall(rng: np.random.Generator, course: Course, t: Times) -> Course:
    """Tip over to one side, or get up again."""
    share = change(rng, t)
    share = share if rng.random() < 0.6 else 1 - share
    return changed(course, tilt=course.tilt + one_of(rng, (-1, 1)) * rng.uniform(0.6, 1.6) * share)


def random_course(rng: np.random.Generator, t: Times) -> Course:
    """Draw what a figure does: one or several of all these, or next to nothing."""
    course = standing(rng, t)
    if rng.random() < 0.35:  # begins in some other pose
        course = move_to(course, any_pose(rng), np.ones(len(t)))
    kind = rng.random()
    if kind < 0.3:
        running, on_spot = bool(rng.random() < 0.4), bool(rng.random() < 0.2)
        course = add_gait(rng, course, t, running=running, on_spot=on_spot)
    elif kind < 0.6:
        share = change(rng, t) if rng.random() < 0.7 else there_and_back(rng, t)
        course = move_to(course, any_pose(rng), share)
    elif kind < 0.72:
        course = add_jumps(rng, course, t)
    for add, chance in ((add_turn, 0.2), (add_swings, 0.4), (add_fall, 0.05)):
        if rng.random() < chance:
            course = add(rng, course, t)
    return course


def changed(course: Course, **parts: object) -> Course:
    """The course with some of its parts changed."""
    return dataclasses.replace(course, **parts)  # type: ignore[arg-type]


SWINGING = [JOINTS.index(name) for name in ("hip", "shoulder", "shoulder2", "elbow", "elbow2")]
LEAN, OTHER_HIP = JOINTS.index("lean"), JOINTS.index("hip2")


def doing(course: Course, angles: np.ndarray, hips: np.ndarray, frames: int) -> np.ndarray:
    """Sum up the first `frames` times of a course as the numbers of `BODY`.

    angles: float64 [len(JOINTS), N], of its pose. hips: float64 [N], their height above the ground,
    in body heights.
    """

    def over(values: np.ndarray) -> float:
        return float(values[frames - 1] - values[0])

    lift, swinging = course.lift[:frames], angles[SWINGING, :frames]
    swinging[0] -= angles[OTHER_HIP, :frames]  # legs: how far apart
    legs, *arms = swinging.std(axis=1).tolist()
    return np.array(
        [
            1.0,
            4 * over(hips + course.lift),
            5 * float(lift.max() - lift.min()),
            1.5 * legs,
            abs(over(course.path)),
            0.6 * abs(over(course.turn)),
            abs(over(course.tilt)),
            over(angles[LEAN]),
            2 * sum(arms) / len(arms),
        ]
    ).clip(-2, 2)


def figure(rng: np.random.Generator, course: Course, frames: int) -> tuple[Parts, np.ndarray]:
    """Draw a figure that follows a course: its parts, and where its feet are, float64 [N, 2].

    frames: how many of the times are frames of the clip.
    """
    angles = angles_of(course.pose, len(course.turn))
    points, scale, lowest = _skeleton(rng, course, angles)
    bones = [
        ("head", "neck", "crown", ELLIPSE, 0),
        ("trunk", "hips", "neck", CAPSULE if rng.random() < 0.6 else ELLIPSE, 1),
    ]
    sleeves, trousers = one_of(rng, (0, 1)), one_of(rng, (2, 2, 0, 1))
    for side in ("", "2"):
        bones += [
            ("upper_arm", f"shoulder{side}", f"elbow{side}", CAPSULE, 1),
            ("lower_arm", f"elbow{side}", f"hand{side}", CAPSULE, sleeves),
            ("thigh", f"hip{side}", f"knee{side}", CAPSULE, trousers),
            ("shin", f"knee{side}", f"foot{side}", CAPSULE, trousers),
        ]
    if rng.random() < 0.2:
        bones.append(("carried", "hand", "hand_end", int(rng.integers(1, OUTLINES)), 3))
    starts = points[[_POINT[bone[1]] for bone in bones]]
    ends = points[[_POINT[bone[2]] for bone in bones]]
    widths = [scale[bone[0]] * HALF_WIDTH.get(bone[0], 1.0) for bone in bones]
    order = np.argsort(-(starts[..., 2] + ends[..., 2]).mean(axis=1))  # the largest z is nearest
    parts = Parts(
        maps=_bones(starts, ends, np.array(widths))[order],
        outline=np.array([bone[3] for bone in bones])[order],
        look=np.array([bone[4] for bone in bones])[order],
        doing=doing(course, angles, lowest, frames),
    )
    return parts, points[_POINT["ground"], :, :2]


POINTS = (
    *("hips", "neck", "crown", "ground", "hand_end"),
    *("hip", "hip2", "knee", "knee2", "foot", "foot2"),
    *("shoulder", "shoulder2", "elbow", "elbow2", "hand", "hand2"),
)
"""Points of a skeleton: between the hips and the shoulders, the top of the head, the ground below
the hips, the end of what the right hand carries, and the joints of the right and left side."""

_POINT = {name: number for number, name in enumerate(POINTS)}


def angles_of(pose: Pose, times: int) -> np.ndarray:
    """The angles of all joints over time: float64 [len(JOINTS), times]."""
    angles = np.zeros((len(JOINTS), times))
    for row, name in enumerate(JOINTS):
        if name in pose:
            angles[row] = pose[name]
    return angles


def _skeleton(
    rng: np.random.Generator, course: Course, angles: np.ndarray
) -> tuple[np.ndarray, dict[str, float], np.ndarray]:
    """Where `POINTS` are, float64 [K, N, 3], on the screen and towards the viewer; how much wider
    than the average each limb is; and how far the hips are above the feet, float64 [N].

    angles: float64 [len(JOINTS), N], of the pose.
    """
    stout = log_uniform(rng, 0.75, 1.5)
    scale = {name: stout * log_uniform(rng, 0.85, 1.2) for name in HALF_WIDTH}
    length = {name: value * log_uniform(rng, 0.88, 1.14) for name, value in LIMB.items()}
    scale["carried"] = rng.uniform(0.03, 0.13)
    (trunk, head), thighs, shins, upper_arms, lower_arms = _limbs(angles)
    points = np.zeros((len(POINTS), angles.shape[1], 3))
    neck = -length["trunk"] * trunk
    points[1], points[2] = neck, neck - 1.1 * length["head"] * head
    # both sides at once, float64 [2, N, 3] each
    hips, knees, feet, shoulders, elbows, hands = points[5:].reshape(6, 2, -1, 3)
    sideways = np.array([[[0.0, 0.0, stout]], [[0.0, 0.0, -stout]]])
    hips[:] = HIPS * sideways
    knees[:] = hips + length["thigh"] * thighs
    feet[:] = knees + length["shin"] * shins
    shoulders[:] = neck + SHOULDERS * sideways + 0.03 * trunk
    elbows[:] = shoulders + length["upper_arm"] * upper_arms
    hands[:] = elbows + length["lower_arm"] * lower_arms
    points[4] = hands[0] + 2 * scale["carried"] * lower_arms[0]
    lowest = points[3, :, 1] = np.maximum(feet[0, :, 1], feet[1, :, 1])
    return _seen(points, course, lowest), scale, lowest


def _limbs(angles: np.ndarray) -> np.ndarray:
    """Unit vectors along trunk and head, and along both thighs, shins, upper and lower arms:
    float64 [5, 2, N, 3]. angles: float64 [len(JOINTS), N]."""
    lean, nod = angles[:2]
    sides = angles[2:].reshape(2, 6, -1).swapaxes(0, 1)
    hip, hip_out, knee, shoulder, shoulder_out, elbow = sides  # right and left, [2, N] each
    forward, outward = np.zeros((2, 5, *hip.shape))
    forward[0, 0], forward[0, 1] = -lean, -lean - nod
    forward[1], forward[2] = hip, hip - knee
    forward[3] = shoulder - lean
    forward[4] = forward[3] + elbow
    outward[1:3], outward[3:5] = hip_out, shoulder_out
    outward[:, 1] *= -1  # to the left
    return _direction(forward, outward)


def _direction(forward: np.ndarray, outward: np.ndarray) -> np.ndarray:
    """Unit vectors float64 [..., 3]: straight down, turned forward and then to the right."""
    cos = np.cos(outward)
    vectors = np.empty((*forward.shape, 3))
    vectors[..., 0], vectors[..., 1] = np.sin(forward) * cos, np.cos(forward) * cos
    vectors[..., 2] = np.sin(outward)
    return vectors


def _seen(points: np.ndarray, course: Course, lowest: np.ndarray) -> np.ndarray:
    """Put the feet on the ground (y = 0.5), lift, turn, walk and tilt points [K, N, 3]."""
    cos, sin = np.cos(course.turn), np.sin(course.turn)
    tilt_cos, tilt_sin = np.cos(course.tilt), np.sin(course.tilt)
    seen = np.empty_like(points)
    x = points[..., 0] * cos - points[..., 2] * sin
    y = points[..., 1] - (lowest + course.lift)
    seen[..., 0] = tilt_cos * x - tilt_sin * y + course.path * cos
    seen[..., 1] = tilt_sin * x + tilt_cos * y + 0.5
    seen[..., 2] = points[..., 0] * sin + points[..., 2] * cos
    return seen


def _bones(starts: np.ndarray, ends: np.ndarray, half_widths: np.ndarray) -> np.ndarray:
    """The maps of parts that reach from one joint [P, N, 2 or 3] to another: float64 [P, N, 2, 3].

    Their local y runs along the bone. A bone that points at the viewer is as short as it is wide.
    """
    along = (ends - starts)[..., :2] / 2
    length = np.maximum(np.hypot(along[..., 0], along[..., 1]), 1e-6)
    along /= length[..., None]
    wide = half_widths[:, None]
    # outlines end at about 0.9, and a limb covers its joints
    reach = np.maximum(length + 0.6 * wide, wide) / 0.9
    wide = wide / 0.9
    maps = np.empty((*length.shape, 2, 3))
    maps[..., 0, 0], maps[..., 1, 0] = along[..., 1] * wide, -along[..., 0] * wide
    maps[..., :, 1] = along * reach[..., None]
    maps[..., :, 2] = (starts + ends)[..., :2] / 2
    return maps


# ---- creatures and things -----------------------------------------------------------------------


def creature(rng: np.random.Generator, t: Times) -> Parts:
    """Draw parts that hang on one another and swing: animals, plants, machines."""
    count = int(rng.integers(2, 7))
    shared = swing(rng, t, 0.7)
    angle = [rng.uniform(0, 2 * math.pi) + swing(rng, t, 0.3) * (rng.random() < 0.5)]
    joint, length = [np.zeros((len(t), 2))], [rng.uniform(0.2, 0.5)]
    for _ in range(count - 1):
        parent = int(rng.integers(0, len(joint)))
        moves = rng.random()
        course = shared if moves < 0.3 else swing(rng, t, 1.0) if moves < 0.7 else 0 * t
        if rng.random() < 0.15:
            course = course + one_of(rng, (-1, 1)) * log_uniform(rng, 2, 12) * t  # a wheel
        at = joint[parent] + rng.uniform(0.2, 1.9) * length[parent] * _unit(angle[parent])
        joint.append(at)
        length.append(rng.uniform(0.1, 0.35))
        angle.append(angle[parent] + rng.uniform(0, 2 * math.pi) + course)
    slender = rng.uniform(0.15, 0.8, size=count)
    starts, halves = np.stack(joint), np.array(length)
    ends = starts + 2 * halves[:, None, None] * _unit(np.stack(angle))
    order = rng.permutation(count)
    return Parts(
        maps=_bones(starts, ends, halves * slender)[order],
        outline=rng.integers(0, OUTLINES, size=count),
        look=rng.integers(0, 3, size=count),
        doing=NOTHING,
    )


def thing(rng: np.random.Generator, t: Times) -> Parts:
    """Draw one piece that may turn, stretch, squeeze and grow."""
    angle = rng.uniform(0, 2 * math.pi) + 0 * t
    kind = rng.random()
    if kind < 0.25:
        angle = angle + one_of(rng, (-1, 1)) * log_uniform(rng, 0.2, 6) * t
    elif kind < 0.5:
        angle = angle + swing(rng, t, 0.6)
    squeeze = swing(rng, t, 0.3) if rng.random() < 0.25 else 0 * t
    width = rng.uniform(0.35, 1) * np.exp(-squeeze)
    height = np.exp(squeeze)
    cos, sin = np.cos(angle), np.sin(angle)
    maps = np.zeros((1, len(t), 2, 3))
    maps[0, :, 0, 0], maps[0, :, 0, 1] = 0.5 * (cos * width), 0.5 * (-sin * height)
    maps[0, :, 1, 0], maps[0, :, 1, 1] = 0.5 * (sin * width), 0.5 * (cos * height)
    outline = rng.integers(0, OUTLINES) if rng.random() < 0.7 else one_of(rng, (ELLIPSE, BOX))
    return Parts(maps, np.array([outline]), np.zeros(1, int), NOTHING)


def _unit(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)
