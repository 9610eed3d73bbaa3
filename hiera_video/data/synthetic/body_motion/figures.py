"""Bodies: figures with limbs on joints, creatures of swinging parts, and things in one piece.

A body is a list of parts, nearest first, in a space of its own: x to the right, y down, one unit
its height. `Parts.maps` takes a part's local coordinates (-1 to 1) there, at every time.

A figure is a skeleton in three dimensions (x forward, y down, z to its right), whose joints are
angles over time; it is turned about its vertical axis and seen from the front of the picture. Its
feet stay on the ground, so that bent knees lower the body: sitting, crouching and jumping follow
from the joints alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hiera_video.data.synthetic.body_motion.motions import (
    Times,
    change,
    log_uniform,
    swing,
    there_and_back,
    travel,
)
from hiera_video.data.synthetic.body_motion.truth import DOING
from hiera_video.data.synthetic.body_motion.textures import BOX, CAPSULE, ELLIPSE, OUTLINES


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
    """float64 [len(DOING)]: what the body does as a whole; 0 for what is no figure."""


NOTHING = np.zeros(len(DOING))

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
    pose: Pose = {name: rng.normal(0, 0.06) for name in JOINTS}
    for side in ("", "2"):
        pose[f"shoulder{side}"] = rng.normal(0, 0.25)
        pose[f"shoulder{side}_out"] = abs(rng.normal(0.12, 0.15))
        pose[f"elbow{side}"] = abs(rng.normal(0.2, 0.3))
        pose[f"knee{side}"] = abs(rng.normal(0, 0.1))
        pose[f"hip{side}_out"] = abs(rng.normal(0.06, 0.08))
    return Course(pose, still + rng.uniform(0, 2 * math.pi), still, still, still)


def any_pose(rng: np.random.Generator) -> Pose:
    """Draw a pose that a person could take: bending, sitting, kneeling, arms anywhere."""
    pose: Pose = {"lean": rng.uniform(-0.3, 1.3) * (rng.uniform() < 0.5), "nod": rng.normal(0, 0.3)}
    together = rng.uniform() < 0.6  # both legs, both arms do the same
    for kind, chance in (("legs", 0.6), ("arms", 0.7)):
        if rng.uniform() > chance:
            continue
        first = _any_limbs(rng, kind)
        second = first if together else _any_limbs(rng, kind)
        pose |= first | {_other_side(name): value for name, value in second.items()}
    return pose


def _any_limbs(rng: np.random.Generator, kind: str) -> Pose:
    if kind == "legs":
        hip = rng.uniform(-0.4, 1.7)
        return {"hip": hip, "knee": np.clip(hip + rng.normal(0, 0.4), 0, 2.3)}
    return {
        "shoulder": rng.uniform(-0.7, 3.1),
        "shoulder_out": rng.uniform(0, 1.5) * (rng.uniform() < 0.5),
        "elbow": rng.uniform(0, 2.3) * (rng.uniform() < 0.6),
    }


def _other_side(name: str) -> str:
    joint, _, out = name.partition("_")
    return f"{joint}2_{out}" if out else f"{joint}2"


def move_to(course: Course, pose: Pose, share: np.ndarray) -> Course:
    """Blend a course towards a pose: `share` float64 [N], 0 to 1."""
    blended = {
        name: (1 - share) * course.pose.get(name, 0.0) + share * pose.get(name, 0.0)
        for name in JOINTS
    }
    return _with(course, pose=blended)


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
    return _with(course, pose=pose, path=path, lift=lift)


def add_jumps(rng: np.random.Generator, course: Course, t: Times) -> Course:
    """Crouch, leap and land, once or again and again; arms may swing along."""
    period = rng.uniform(0.55, 1.3) if rng.uniform() < 0.7 else 10.0
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
    if rng.uniform() < 0.5:
        up = rng.uniform(0.5, 2.8)
        pose = dict(course.pose)
        for side in ("", "2"):
            pose[f"shoulder{side}"] = pose.get(f"shoulder{side}", 0.0) + up * 4 * flying * (
                1 - flying
            )
        course = _with(course, pose=pose)
    return _with(course, lift=lift)


def add_turn(rng: np.random.Generator, course: Course, t: Times) -> Course:
    """Turn about the vertical axis, once by a quarter to a whole turn, or on and on."""
    sign = rng.choice([-1.0, 1.0])
    if rng.uniform() < 0.7:
        angle = sign * rng.uniform(0.4, 2) * math.pi * change(rng, t)
    else:
        angle = sign * log_uniform(rng, 1.0, 7.0) * t
    return _with(course, turn=course.turn + angle)


def add_swings(rng: np.random.Generator, course: Course, t: Times) -> Course:
    """Swing some joints: wave, shake the head, kick, clap, knead."""
    pose = dict(course.pose)
    for name in rng.choice(JOINTS, size=int(rng.integers(1, 5)), replace=False):
        pose[name] = pose.get(name, 0.0) + swing(rng, t, 0.9)
    return _with(course, pose=pose)


def add_fall(rng: np.random.Generator, course: Course, t: Times) -> Course:
    """Tip over to one side, or get up again."""
    share = change(rng, t)
    share = share if rng.uniform() < 0.6 else 1 - share
    return _with(course, tilt=course.tilt + rng.choice([-1, 1]) * rng.uniform(0.6, 1.6) * share)


def random_course(rng: np.random.Generator, t: Times) -> Course:
    """Draw what a figure does: one or several of all these, or next to nothing."""
    course = standing(rng, t)
    if rng.uniform() < 0.35:  # begins in some other pose
        course = move_to(course, any_pose(rng), np.ones(len(t)))
    kind = rng.uniform()
    if kind < 0.3:
        running, on_spot = bool(rng.uniform() < 0.4), bool(rng.uniform() < 0.2)
        course = add_gait(rng, course, t, running=running, on_spot=on_spot)
    elif kind < 0.6:
        share = change(rng, t) if rng.uniform() < 0.7 else there_and_back(rng, t)
        course = move_to(course, any_pose(rng), share)
    elif kind < 0.72:
        course = add_jumps(rng, course, t)
    for add, chance in ((add_turn, 0.2), (add_swings, 0.4), (add_fall, 0.05)):
        if rng.uniform() < chance:
            course = add(rng, course, t)
    return course


def _with(course: Course, **changed: object) -> Course:
    return Course(**{**course.__dict__, **changed})  # type: ignore[arg-type]


def doing(course: Course, hips: np.ndarray, frames: int) -> np.ndarray:
    """Sum up the first `frames` times of a course as the numbers of `DOING`.

    hips: float64 [N], their height above the ground, in body heights.
    """

    def over(values: np.ndarray) -> float:
        return float(values[frames - 1] - values[0])

    def spread(*names: str) -> float:
        return float(np.mean([np.std(angle(name)[:frames]) for name in names]))

    def angle(name: str) -> np.ndarray:
        return np.broadcast_to(course.pose.get(name, 0.0), hips.shape)

    return np.array(
        [
            4 * over(hips + course.lift),
            5 * float(np.ptp(course.lift[:frames])),
            3 * float(np.std((angle("hip") - angle("hip2"))[:frames])),
            abs(over(course.path)),
            0.6 * abs(over(course.turn)),
            abs(over(course.tilt)),
            over(angle("lean")),
            2 * spread("shoulder", "shoulder2", "elbow", "elbow2"),
        ]
    ).clip(-2, 2)


def figure(
    rng: np.random.Generator, course: Course, frames: int
) -> tuple[Parts, np.ndarray]:
    """Draw a figure that follows a course: its parts, and where its feet are, float64 [N, 2].

    frames: how many of the times are frames of the clip.
    """
    points, scale, lowest = _skeleton(rng, course)
    bones = [
        ("head", "neck", "crown", ELLIPSE, 0),
        ("trunk", "hips", "neck", CAPSULE if rng.uniform() < 0.6 else ELLIPSE, 1),
    ]
    sleeves, trousers = int(rng.choice([0, 1])), int(rng.choice([2, 2, 0, 1]))
    for side in ("", "2"):
        bones += [
            ("upper_arm", f"shoulder{side}", f"elbow{side}", CAPSULE, 1),
            ("lower_arm", f"elbow{side}", f"hand{side}", CAPSULE, sleeves),
            ("thigh", f"hip{side}", f"knee{side}", CAPSULE, trousers),
            ("shin", f"knee{side}", f"foot{side}", CAPSULE, trousers),
        ]
    if rng.uniform() < 0.2:
        bones.append(("carried", "hand", "hand_end", int(rng.integers(1, OUTLINES)), 3))
    starts, ends = (points[[POINTS.index(bone[i]) for bone in bones]] for i in (1, 2))
    widths = [scale[bone[0]] * HALF_WIDTH.get(bone[0], 1.0) for bone in bones]
    order = np.argsort(-(starts[..., 2] + ends[..., 2]).mean(axis=1))  # the largest z is nearest
    parts = Parts(
        maps=_bones(starts, ends, np.array(widths))[order],
        outline=np.array([bone[3] for bone in bones])[order],
        look=np.array([bone[4] for bone in bones])[order],
        doing=doing(course, lowest, frames),
    )
    return parts, points[POINTS.index("ground"), :, :2]


POINTS = (
    *("hips", "neck", "crown", "hip", "knee", "foot", "shoulder", "elbow", "hand"),
    *("hip2", "knee2", "foot2", "shoulder2", "elbow2", "hand2", "hand_end", "ground"),
)
"""Points of a skeleton: between the hips and the shoulders, the top of the head, the joints of the
right and left side, the end of what the right hand carries, and the ground below the hips."""


def _skeleton(
    rng: np.random.Generator, course: Course
) -> tuple[np.ndarray, dict[str, float], np.ndarray]:
    """Where `POINTS` are, float64 [K, N, 3], on the screen and towards the viewer; how much wider
    than the average each limb is; and how far the hips are above the feet, float64 [N]."""
    count = len(course.turn)
    stout = log_uniform(rng, 0.75, 1.5)
    scale = {name: stout * log_uniform(rng, 0.85, 1.2) for name in HALF_WIDTH}
    length = {name: value * log_uniform(rng, 0.88, 1.14) for name, value in LIMB.items()}
    scale["carried"] = rng.uniform(0.03, 0.13)
    angle = np.zeros((len(JOINTS), count))
    for row, name in enumerate(JOINTS):
        angle[row] = course.pose.get(name, 0.0)
    at = dict(zip(JOINTS, angle, strict=True))
    # every bone's direction at once: trunk and head, then thigh, shin, upper and lower arm
    forward = [-at["lean"], -at["lean"] - at["nod"]]
    outward = [0 * at["lean"]] * 2
    for side, sign in (("", 1.0), ("2", -1.0)):
        raised = at[f"shoulder{side}"] - at["lean"]
        forward += [at[f"hip{side}"], at[f"hip{side}"] - at[f"knee{side}"]]
        forward += [raised, raised + at[f"elbow{side}"]]
        outward += [sign * at[f"hip{side}_out"]] * 2 + [sign * at[f"shoulder{side}_out"]] * 2
    trunk, head, *limbs = _direction(np.stack(forward), np.stack(outward))
    point = {"hips": np.zeros((count, 3)), "neck": -length["trunk"] * trunk}
    point["crown"] = point["neck"] - 1.1 * length["head"] * head
    for n, (side, sign) in enumerate((("", 1.0), ("2", -1.0))):
        thigh, shin, upper, lower = limbs[4 * n : 4 * n + 4]
        sideways = np.array([0.0, 0.0, sign * stout])
        hip = point[f"hip{side}"] = point["hips"] + HIPS * sideways
        knee = point[f"knee{side}"] = hip + length["thigh"] * thigh
        point[f"foot{side}"] = knee + length["shin"] * shin
        shoulder = point["neck"] + SHOULDERS * sideways + 0.03 * trunk
        point[f"shoulder{side}"] = shoulder
        elbow = point[f"elbow{side}"] = shoulder + length["upper_arm"] * upper
        point[f"hand{side}"] = elbow + length["lower_arm"] * lower
    point["hand_end"] = point["hand"] + 2 * scale["carried"] * limbs[3]
    lowest = np.maximum(point["foot"][:, 1], point["foot2"][:, 1])
    point["ground"] = lowest[:, None] * np.array([0.0, 1.0, 0.0])
    points = _seen(np.stack([point[name] for name in POINTS]), course, lowest)
    return points, scale, lowest


def _direction(forward: np.ndarray, outward: np.ndarray) -> np.ndarray:
    """Unit vectors float64 [..., 3]: straight down, turned forward and then to the right."""
    cos = np.cos(outward)
    return np.stack([np.sin(forward) * cos, np.cos(forward) * cos, np.sin(outward)], axis=-1)


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
    angle = [rng.uniform(0, 2 * math.pi) + swing(rng, t, 0.3) * (rng.uniform() < 0.5)]
    joint, length = [np.zeros((len(t), 2))], [rng.uniform(0.2, 0.5)]
    for _ in range(count - 1):
        parent = int(rng.integers(0, len(joint)))
        moves = rng.uniform()
        course = shared if moves < 0.3 else swing(rng, t, 1.0) if moves < 0.7 else 0 * t
        if rng.uniform() < 0.15:
            course = course + rng.choice([-1, 1]) * log_uniform(rng, 2, 12) * t  # a wheel
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
    kind = rng.uniform()
    if kind < 0.25:
        angle = angle + rng.choice([-1, 1]) * log_uniform(rng, 0.2, 6) * t
    elif kind < 0.5:
        angle = angle + swing(rng, t, 0.6)
    squeeze = swing(rng, t, 0.3) if rng.uniform() < 0.25 else 0 * t
    width = rng.uniform(0.35, 1) * np.exp(-squeeze)
    height = np.exp(squeeze)
    cos, sin = np.cos(angle), np.sin(angle)
    linear = np.stack(
        [np.stack([cos * width, -sin * height], 1), np.stack([sin * width, cos * height], 1)], 1
    )
    maps = np.concatenate([0.5 * linear, np.zeros((len(t), 2, 1))], axis=2)[None]
    outline = rng.integers(0, OUTLINES) if rng.uniform() < 0.7 else rng.choice([ELLIPSE, BOX])
    return Parts(maps, np.array([outline]), np.zeros(1, int), NOTHING)


def _unit(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)
