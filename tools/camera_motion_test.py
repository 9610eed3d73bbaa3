"""Test how well a model of the camera-motion set recognises camera motion in unseen pictures.

    python tools/camera_motion_test.py
    python tools/camera_motion_test.py --weights runs/camera/checkpoint.pyth --json out.json

Three sets of videos are written to a temporary folder and read back as any video is:

* synthetic: held-out clips of the set itself, of scenes that no training seed reaches;
* frozen:    a crop moved over real footage that stands still (one frame, repeated);
* moving:    the same crops over the running footage, with everything that moves in it.

The real footage is for this test only: never for training or for choosing its settings. Two
controls go with every set. `one frame`: one frame of each clip, repeated to its full length; the
accuracy that is left does not come from motion. `shuffled`: the frames in random order; the axis
of a motion can still be guessed from an unordered set of frames, but not its direction. Therefore
the accuracy of the direction, among the clips whose axis was right, is reported as well (chance is
50 %).

Footage may have camera motion of its own, which makes some labels wrong. No source is excluded for
that; how far each drifts is measured and printed beside its accuracy. Where OpenCV is installed, a
robust estimate of each clip's motion (`global_motion.py`) is held against the labels: how many it
confirms, and how many of these the model gets right.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a checkout, too

from hiera_video import cli, files
from hiera_video.data.synthetic.camera_motion import CLIP_SPEC, FPS, LABELS, write_clip
from hiera_video.data.synthetic.mp4 import encode
from hiera_video.data.synthetic.real_footage import over_real_footage
from hiera_video.data.views import load_test_views
from hiera_video.errors import UserError
from hiera_video.predict import Predictor
from hiera_video.progress import Progress
from hiera_video.scoring import ScoreSettings, clip_scores
from hiera_video.video.decode import VideoReader

FOOTAGE = Path(__file__).resolve().parents[2] / "shared" / "data" / "clips"
SOURCES = {
    "hiera_dog.mp4": "a dog leaps; the camera follows it",
    "mmaction_demo_arm_wrestling.mp4": "hand-held, swings round near the end",
    "flipping_a_pancake.mkv": "fixed until somebody reaches for the camera at the end",
    "sam2_04_coffee.mp4": "slow camera, hands and a stream of coffee",
    "sam2_05_default_juggle.mp4": "a man and a ball before a fixed background",
    "tc_nasa_13013.mp4": "dark, 180 pixels high, with cuts and cross-fades",
}
"""The real footage in that folder. Its other clips are the same pictures in other formats,
test cards, a handful of frames, or (moviepy_no_duration.webm) all but black."""

FIXED_CAMERA = 2.0
"""Sources that drift less than this, in percent, count as filmed by a fixed camera."""

HELD_OUT_SEED = 1 << 40
"""First seed of the synthetic clips: far above those of any set that `make_dataset` writes."""
_FOOTAGE_SEED = 1 << 41
_FRAMES = 2 * CLIP_SPEC.num_frames


@dataclass(frozen=True)
class Clip:
    """One test clip: its file, its label and the source of its pictures."""

    path: Path
    label: str
    source: str


@dataclass
class Result:
    """The accuracies of one set of clips, in percent."""

    name: str
    clips: int
    top1: float
    one_frame: float
    shuffled: float
    shuffled_direction: float
    """Of the shuffled clips whose axis was found, those whose direction was, too."""
    by_source: dict[str, float]
    by_label: dict[str, float]
    mistakes: dict[str, int]
    """ "true -> predicted": how often, most frequent first."""
    confirmed: int | None = None
    """Clips whose label a robust estimate of their motion confirms; None without OpenCV."""
    top1_confirmed: float | None = None
    """The accuracy on these."""


# ---- making the clips -----------------------------------------------------------------------


def write_synthetic(folder: Path, count: int) -> list[Clip]:
    """Write held-out clips of the set: full files, of which the test takes the middle."""
    clips = []
    for index in range(count):
        label, seed = LABELS[index % len(LABELS)], HELD_OUT_SEED + index
        path = folder / f"{index:04d}.mp4"
        write_clip(path, label, seed)
        clips.append(Clip(path, label, "synthetic"))
        progress("synthetic", index + 1, count)
    return clips


def write_footage(folder: Path, sources: Sequence[Path], repeats: int, frozen: bool) -> list[Clip]:
    """Write every source under every label, `repeats` times with other stretches and paths."""
    clips = []
    total = len(sources) * repeats * len(LABELS)
    for index in range(total):
        source = sources[index // (repeats * len(LABELS))]
        label = LABELS[index % len(LABELS)]
        path = folder / f"{index:04d}.mp4"
        # frozen and moving clips share their seeds: same stretch, same path, same crop
        frames = over_real_footage(
            source, label, _FOOTAGE_SEED + index, frozen=frozen, frames=_FRAMES
        )
        encode(path, frames, fps=FPS, crf=18)
        clips.append(Clip(path, label, source.name))
        progress("frozen" if frozen else "moving", index + 1, total)
    return clips


# ---- the motion of the footage itself --------------------------------------------------------


def own_drift(path: Path) -> float:
    """Measure how far the background of a video moves in the 1.4 s between a clip's first and last
    frame: the median over the video, in percent of the picture's shorter side.

    Eight blocks along the border are tracked by phase correlation in steps of 0.2 s; their median
    counts as the background.
    """
    with VideoReader(path) as video:
        times = np.asarray(video.info.times)
        wanted = np.arange(times[0], times[-1], 0.2)
        grey = video.read(np.searchsorted(times, wanted + 1e-6, side="right") - 1)
    grey = grey.float().mean(1, keepdim=True)
    scale = 180 / min(grey.shape[-2:])
    grey = torch.nn.functional.interpolate(grey, scale_factor=scale, mode="area")[:, 0].numpy()
    height, width = grey.shape[1] // 3, grey.shape[2] // 3
    blocks = [(r, c) for r in range(3) for c in range(3) if (r, c) != (1, 1)]
    steps = [
        np.median(
            [_shift(a[_block(b, height, width)], z[_block(b, height, width)]) for b in blocks],
            axis=0,
        )
        for a, z in itertools.pairwise(grey)
    ]
    place = np.concatenate([[[0, 0]], np.cumsum(steps, axis=0)])
    apart = CLIP_SPEC.num_frames - 1
    return float(np.median(np.abs(place[apart:] - place[:-apart]).max(1)) / 180 * 100)


def _block(place: tuple[int, int], height: int, width: int) -> tuple[slice, slice]:
    row, column = place
    return (
        slice(row * height, (row + 1) * height),
        slice(column * width, (column + 1) * width),
    )


def _shift(first: np.ndarray, second: np.ndarray) -> tuple[int, int]:
    """Pixels (down, right) by which the content of a block moves, by phase correlation."""
    window = np.hanning(first.shape[0])[:, None] * np.hanning(first.shape[1])
    a = np.fft.fft2((first - first.mean()) * window)
    b = np.fft.fft2((second - second.mean()) * window)
    cross = a.conj() * b
    peaks = np.fft.ifft2(cross / (np.abs(cross) + 1e-2 * np.abs(cross).mean() + 1e-9)).real
    down, right = np.unravel_index(peaks.argmax(), peaks.shape)
    return (
        (int(down) + first.shape[0] // 2) % first.shape[0] - first.shape[0] // 2,
        (int(right) + first.shape[1] // 2) % first.shape[1] - first.shape[1] // 2,
    )


# ---- scoring the model ------------------------------------------------------------------------


def examine(predictor: Predictor, name: str, clips: Sequence[Clip]) -> Result:
    """Score a set of clips and its two controls."""
    pixels = torch.cat([load_test_views(clip.path, predictor.spec, 1, 1) for clip in clips])
    truth = np.array([clip.label for clip in clips])
    generator = torch.Generator().manual_seed(0)
    frames = pixels.shape[2]
    order = torch.stack([torch.randperm(frames, generator=generator) for _ in clips])
    shuffled = torch.stack([clip[:, o] for clip, o in zip(pixels, order, strict=True)])
    one = torch.stack([c[:, [o[0]] * frames] for c, o in zip(pixels, order.tolist(), strict=True)])
    answers = {
        kind: _answers(predictor, batch, f"{name}, {kind}")
        for kind, batch in (("ordered", pixels), ("shuffled", shuffled), ("one frame", one))
    }
    right = {kind: answer == truth for kind, answer in answers.items()}
    same_axis = np.array(
        [
            _axis(a) == _axis(t) and t != "static"
            for a, t in zip(answers["shuffled"], truth, strict=True)
        ]
    )
    sources = np.array([clip.source for clip in clips])
    wrong = [f"{t} -> {a}" for t, a in zip(truth, answers["ordered"], strict=True) if t != a]
    counts = sorted({w: wrong.count(w) for w in wrong}.items(), key=lambda item: -item[1])
    confirmed = confirmed_labels(clips, name)
    return Result(
        name=name,
        clips=len(clips),
        top1=_percent(right["ordered"]),
        one_frame=_percent(right["one frame"]),
        shuffled=_percent(right["shuffled"]),
        shuffled_direction=_percent(right["shuffled"][same_axis]),
        by_source={s: _percent(right["ordered"][sources == s]) for s in dict.fromkeys(sources)},
        by_label={y: _percent(right["ordered"][truth == y]) for y in LABELS},
        mistakes=dict(counts),
        confirmed=None if confirmed is None else int(confirmed.sum()),
        top1_confirmed=None if confirmed is None else _percent(right["ordered"][confirmed]),
    )


def confirmed_labels(clips: Sequence[Clip], name: str) -> np.ndarray | None:
    """Whether a robust estimate of each clip's motion, over the 1.6 s that the model sees of it,
    is its label: bool [clips]. None where OpenCV, which is optional, is not installed."""
    if importlib.util.find_spec("cv2") is None:
        return None
    from global_motion import estimated_label

    agrees = []
    for number, clip in enumerate(clips):
        with VideoReader(clip.path) as video:
            first = max(0, video.info.num_frames - _FRAMES) // 2
            frames = video.read(np.arange(first, min(first + _FRAMES, video.info.num_frames)))
        agrees.append(
            estimated_label(frames.permute(0, 2, 3, 1).contiguous().numpy()) == clip.label
        )
        progress(f"labels of {name}", number + 1, len(clips), "clips compared with an estimate")
    return np.array(agrees, dtype=bool)


def _answers(predictor: Predictor, clips: Tensor, what: str) -> np.ndarray:
    SHOWN.begin(f"answers to {what} clips", unit="")
    settings = ScoreSettings(batch_size=32, dtype=predictor.dtype)
    scores = clip_scores(predictor.model, clips, settings, device=predictor.device)
    return np.array(predictor.classes)[scores.argmax(1).numpy()]


def _axis(label: str) -> str:
    return label.split()[0]


def _or_dash(number: float | None) -> str:
    return "-" if number is None else f"{number:g}"


def _percent(right: np.ndarray) -> float:
    return round(100 * float(np.mean(right)), 1) if len(right) else float("nan")


# ---- the command line -------------------------------------------------------------------------


SHOWN = Progress("", unit="clips")


def progress(kind: str, done: int, total: int, step: str = "clips written") -> None:
    """Show how many clips of a kind a step has done."""
    what = f"{kind} {step}"
    if SHOWN.what != what:
        SHOWN.begin(what, total, unit="clips")
    SHOWN.to(done)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="camera_motion_test.py",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "--weights",
        default="camera_motion",
        help="checkpoint file; default: the one in the package",
    )
    parser.add_argument("--footage", type=Path, default=FOOTAGE, help="folder of the real clips")
    parser.add_argument("--synthetic", type=int, default=450, metavar="N", help="synthetic clips")
    parser.add_argument("--repeats", type=int, default=4, help="clips of each source and label")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="write the results here, too")
    args = parser.parse_args(argv)
    if args.synthetic < 0 or args.repeats < 1:
        raise UserError("--synthetic must be at least 0 and --repeats at least 1")
    predictor = Predictor.load(weights=args.weights, views=(1, 1), device=args.device)
    if set(predictor.classes) != set(LABELS):
        raise UserError(
            f"{predictor.weights_name}: knows {len(predictor.classes)} classes "
            f"({', '.join(predictor.classes[:4])}, ...), not the nine camera motions"
        )
    sources = [args.footage / name for name in SOURCES if (args.footage / name).is_file()]
    results = []
    with tempfile.TemporaryDirectory() as folder, SHOWN:
        for kind in ("synthetic", "frozen", "moving"):
            place = Path(folder, kind)
            place.mkdir()
            if kind == "synthetic":
                clips = write_synthetic(place, args.synthetic)
            else:
                clips = write_footage(place, sources, args.repeats, frozen=kind == "frozen")
            if clips:
                results.append(examine(predictor, kind, clips))
    print_report(predictor, results)
    if not sources:
        print(f"no real footage: none of {', '.join(SOURCES)} in {args.footage}")
    drift = {path.name: round(own_drift(path), 1) for path in sources}
    print_sources(results, drift)
    if args.json:
        report = {"weights": predictor.weights_name, "own_drift": drift}
        report["results"] = [asdict(result) for result in results]
        files.write_text(args.json, json.dumps(report, indent=1))
    return cli.DONE


def print_report(predictor: Predictor, results: Sequence[Result]) -> None:
    """Print one line for each set, then its most frequent mistakes."""
    print(f"{predictor.weights_name}: nine camera motions, chance {100 / len(LABELS):.1f} %")
    print(
        f"{'set':<10} {'clips':>6} {'top-1':>7} {'one frame':>10} {'shuffled':>9} {'direction':>10}"
        f" {'confirmed':>10} {'top-1 of these':>15}"
    )
    for r in results:
        print(
            f"{r.name:<10} {r.clips:>6} {r.top1:>7.1f} {r.one_frame:>10.1f} {r.shuffled:>9.1f} "
            f"{r.shuffled_direction:>10.1f} {_or_dash(r.confirmed):>10} "
            f"{_or_dash(r.top1_confirmed):>15}"
        )
    if any(r.confirmed is None for r in results):
        print("labels not held against an estimate: pip install opencv-python-headless")
    for r in results:
        frequent = [f"{pair} ({count})" for pair, count in list(r.mistakes.items())[:5]]
        print(f"{r.name}: {', '.join(frequent) or 'no mistakes'}")


def print_sources(results: Sequence[Result], drift: dict[str, float]) -> None:
    """Print the accuracy on each real source, beside the motion of its own camera."""
    by_name = {result.name: result for result in results}
    if not drift:
        return
    print(f"{'source':<34} {'frozen':>7} {'moving':>7} {'drift':>6}  what it shows")
    for name, travelled in drift.items():
        frozen, moving = (by_name[kind].by_source[name] for kind in ("frozen", "moving"))
        print(f"{name:<34} {frozen:>7.1f} {moving:>7.1f} {travelled:>6.1f}  {SOURCES[name]}")
    fixed = [name for name, travelled in drift.items() if travelled < FIXED_CAMERA]
    if fixed:
        # every source has as many clips: the mean of the sources is that of their clips
        moving = by_name["moving"].by_source
        mean = sum(moving[name] for name in fixed) / len(fixed)
        print(
            f"moving, the {len(fixed)} sources that drift less than {FIXED_CAMERA:g} %: {mean:.1f}"
        )
    print("drift: % of the picture that the footage's own background moves within one clip")


if __name__ == "__main__":
    cli.run(main)
