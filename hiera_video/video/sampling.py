"""Choose the frames of a video that a model sees: numbers in, indices out, no file is touched.

A *clip* is T = `spec.num_frames` indices. Two ways of choosing them (`ClipSpec.segments`):

* **dense**: the clip spans `num_frames * sampling_rate / target_fps` seconds. At 30 frames a
  second the usual 16x4 spans 64 frames, of which both ends are taken and the rest truncated to
  whole frames: 0 4 8 12 16 21 25 29 33 37 42 46 50 54 58 63. That is SlowFast's reading of "16x4";
  it is not an exact stride of 4. At 60 frames a second the same clip spans 128 frames.
* **segments** (Something-Something): the whole video is cut into T equal parts and one frame is
  taken from each, however long the video is.

Decisions that are easy to get wrong:

* A video shorter than the span starts at frame 0 and its last frame is repeated (SlowFast's
  choice: motion keeps its speed, and the end stands still).
* With a variable frame rate the *average* rate is used and clips are counted in frames, as in
  SlowFast; only the windows of a timeline are cut by the frames' real times.
* The arithmetic is exact. Rates are read as fractions, so that a probe that says 29.9999999 gives
  the indices of 30, whichever decoder said so.
* A clip of one frame (an image model) spans that one frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from hiera_video.clip_spec import ClipSpec
from hiera_video.errors import UserError

Indices = NDArray[np.int64]

# 30000/1001 and its relatives are exact at this denominator; noise in the seventh digit is not.
_LARGEST_DENOMINATOR = 1001

# Frame times are sums of container ticks; a microsecond early still counts as on the boundary.
_TIME_NOISE = 1e-6


def span(num_frames: int, sampling_rate: int, fps: float, target_fps: float) -> Fraction:
    """Source frames that a dense clip stretches over, at least 1; not always a whole number.

    `fps` is the video's average rate. A rate that is not known (0, negative, nan, infinite: a
    still picture, a file without times) counts as `target_fps`.
    """
    if num_frames == 1:
        return Fraction(1)
    target = Fraction(target_fps).limit_denominator(_LARGEST_DENOMINATOR)
    known = math.isfinite(fps) and fps > 0
    rate = Fraction(fps).limit_denominator(_LARGEST_DENOMINATOR) if known else target
    return max(Fraction(1), num_frames * sampling_rate * rate / target)


def dense_clip(start: int, clip_span: Fraction, num_frames: int, video_frames: int) -> Indices:
    """`num_frames` indices from `start` to `start + clip_span - 1`, truncated: int64 [T].

    Indices past the end of the video become its last frame.
    """
    step = (clip_span - 1) / max(num_frames - 1, 1)
    chosen = [start + math.floor(step * i) for i in range(num_frames)]
    return np.minimum(np.asarray(chosen, dtype=np.int64), video_frames - 1)


def training_clip(
    video_frames: int,
    fps: float,
    spec: ClipSpec,
    u: float | Sequence[float],
    speed: float = 1.0,
) -> Indices:
    """One clip at a random place: int64 [T].

    `u` holds numbers in [0, 1) drawn by the caller: one number for a dense clip (every whole
    start from the first to the last possible one is equally likely); for segments one number per
    segment, or one for all of them.

    A dense clip of `speed` 2 shows the video twice as fast: it spans twice the frames, or as many
    as there are, since a clip that is longer than its video would end standing still.
    """
    _check_not_empty(video_frames)
    if spec.segments:
        return segment_clip(video_frames, spec, u)
    (position,) = np.atleast_1d(np.asarray(u, dtype=np.float64)).tolist()
    clip_span = span(spec.num_frames, spec.sampling_rate, fps, spec.target_fps)
    if spec.num_frames > 1:
        most = max(clip_span, Fraction(video_frames))
        clip_span = max(Fraction(1), min(clip_span * Fraction(speed), most))
    starts = _last_start(video_frames, clip_span) + 1
    start = min(int(position * starts), starts - 1)
    return dense_clip(start, clip_span, spec.num_frames, video_frames)


def uniform_views(video_frames: int, fps: float, spec: ClipSpec, num_views: int) -> Indices:
    """`num_views` clips spread evenly over the video, for testing: int64 [K, T].

    Dense clips start at the first possible frame, at the last possible one, and evenly between
    them; a single view is the middle one (SlowFast's offset sampling, whose later starts can fall
    short of the last by rounding; these cannot). Segments: see `segment_views`.
    """
    _check_not_empty(video_frames)
    _check_views(num_views)
    if spec.segments:
        return segment_views(video_frames, spec, num_views)
    clip_span = span(spec.num_frames, spec.sampling_rate, fps, spec.target_fps)
    starts = _spread(_last_start(video_frames, clip_span), num_views)
    return np.stack([dense_clip(s, clip_span, spec.num_frames, video_frames) for s in starts])


def segment_clip(video_frames: int, spec: ClipSpec, u: float | Sequence[float]) -> Indices:
    """One frame from each of T equal parts, at a random place in its part: int64 [T].

    `u`: numbers in [0, 1), one per segment or one for all. The parts touch: a frame on a boundary
    belongs to both, as in SlowFast.
    """
    _check_not_empty(video_frames)
    first, last = _segments(video_frames, spec.num_frames)
    offsets = np.broadcast_to(np.asarray(u, dtype=np.float64), (spec.num_frames,))
    sizes = last - first + 1
    return first + np.minimum((offsets * sizes).astype(np.int64), sizes - 1)


def segment_views(video_frames: int, spec: ClipSpec, num_views: int) -> Indices:
    """`num_views` different samples of one frame per segment, for testing: int64 [K, T].

    One view takes the middle of each segment (SlowFast's test frames). K views take the middles
    of the K equal pieces of each segment, so that a second view shows other frames than the first.
    """
    _check_not_empty(video_frames)
    _check_views(num_views)
    first, last = _segments(video_frames, spec.num_frames)
    view = np.arange(num_views, dtype=np.int64)[:, None]
    return first + (last - first) * (2 * view + 1) // (2 * num_views)


@dataclass(frozen=True)
class WindowClips:
    """One window of a timeline: its times in seconds and its clips."""

    start: float
    end: float
    views: Indices
    """int64 [K, T]; K is 1 where the window is no longer than one clip."""


def window_clips(
    times: NDArray[np.float64],
    fps: float,
    spec: ClipSpec,
    seconds: float,
    num_views: int = 1,
) -> Iterator[WindowClips]:
    """Cut a video into windows of `seconds` and choose the clips of each, in order.

    `times` are the frames' times, [num_frames], in seconds and non-decreasing (`VideoInfo.times`).
    Windows start at 0, `seconds`, 2 * `seconds`, ...; the last one ends with the video. A window
    in which no frame begins is left out, so that a jump of hours in the clock of a damaged file
    does not give thousands of empty windows.

    A window longer than a clip gets `num_views` clips spread over it as in `uniform_views`. A
    shorter one gets a single clip around its middle, which looks a little past its borders: the
    model sees motion at the speed it was trained on.

    Raises UserError if `seconds` is not above 0.
    """
    check_window(seconds)
    _check_not_empty(len(times))
    _check_views(num_views)
    clip_span = span(spec.num_frames, spec.sampling_rate, fps, spec.target_fps)
    frame_period = 1 / fps if math.isfinite(fps) and fps > 0 else 1 / spec.target_fps
    video_end = float(times[-1]) + frame_period

    window_of_frame = np.floor((np.asarray(times) + _TIME_NOISE) / seconds).astype(np.int64)
    numbers, firsts = np.unique(window_of_frame, return_index=True)
    borders = [*firsts.tolist(), len(times)]
    for number, first, stop in zip(numbers.tolist(), borders, borders[1:], strict=False):
        views = window_views(range(first, stop), len(times), clip_span, spec, num_views)
        end = min((number + 1) * seconds, video_end)
        yield WindowClips(start=number * seconds, end=end, views=views)


def stretch_views(
    times: NDArray[np.float64],
    fps: float,
    spec: ClipSpec,
    stretch: tuple[float | None, float | None],
    num_views: int,
) -> Indices:
    """The clips of a video from `stretch[0]` to `stretch[1]` seconds: int64 [K, T].

    They are those of a window of `window_clips` with these borders. None: the video's own border;
    with two of them the clips are those of `uniform_views`. Raises ValueError where no frame begins
    in the stretch.
    """
    start, end = stretch
    if start is None and end is None:
        return uniform_views(len(times), fps, spec, num_views)
    _check_views(num_views)
    borders = [-math.inf if start is None else start, math.inf if end is None else end]
    first, stop = np.searchsorted(np.asarray(times) + _TIME_NOISE, borders).tolist()
    if stop <= first:
        last = (
            f"the last one of this video is at {times[-1]:.6g} s" if len(times) else "it has none"
        )
        raise ValueError(f"no frame begins from {borders[0]:g} s to {borders[1]:g} s; {last}")
    clip_span = span(spec.num_frames, spec.sampling_rate, fps, spec.target_fps)
    return window_views(range(first, stop), len(times), clip_span, spec, num_views)


def window_number(time: float, seconds: float) -> int:
    """Which window of `seconds` the frame at `time` lies in, counted from 0."""
    return math.floor((time + _TIME_NOISE) / seconds)


def window_views(
    frames: range, video_frames: int, clip_span: Fraction, spec: ClipSpec, num_views: int
) -> Indices:
    """The clips of the window that holds `frames`: int64 [K, T]; see `window_clips`."""
    first, stop = frames.start, frames.stop
    if spec.segments:
        return first + segment_views(stop - first, spec, num_views)
    if stop - first > clip_span:
        starts = _spread(_last_start(stop - first, clip_span), num_views)
        clips = [dense_clip(first + s, clip_span, spec.num_frames, video_frames) for s in starts]
        return np.stack(clips)
    start = min(_start_around(frames, clip_span), _last_start(video_frames, clip_span))
    return dense_clip(start, clip_span, spec.num_frames, video_frames)[None]


def frames_until_views(frames: range, clip_span: Fraction, spec: ClipSpec) -> int:
    """How long a video must be so that more frames do not change the `window_views` of `frames`."""
    if spec.segments or len(frames) > clip_span:
        return frames.stop
    return max(frames.stop, math.ceil(_start_around(frames, clip_span) + clip_span))


def _start_around(frames: range, clip_span: Fraction) -> int:
    """Where a clip begins that has `frames` in its middle."""
    return max(math.floor((frames.start + frames.stop - clip_span) / 2), 0)


def check_window(seconds: float) -> None:
    """Raise UserError unless a timeline can have windows of `seconds`."""
    if not (math.isfinite(seconds) and seconds > 0):
        raise UserError(f"a timeline window of {seconds!r} seconds is not possible; give above 0")


def _last_start(video_frames: int, clip_span: Fraction) -> int:
    return max(math.floor(video_frames - clip_span), 0)


def _spread(last: int, count: int) -> list[int]:
    """`count` whole numbers from 0 to `last`, both included; the middle if only one."""
    if count == 1:
        return [last // 2]
    return [last * k // (count - 1) for k in range(count)]


def _segments(video_frames: int, num_frames: int) -> tuple[Indices, Indices]:
    """First and last frame of each of `num_frames` equal parts of a video: two int64 [T]."""
    borders = [round(Fraction((video_frames - 1) * i, num_frames)) for i in range(num_frames + 1)]
    return np.asarray(borders[:-1], dtype=np.int64), np.asarray(borders[1:], dtype=np.int64)


def _check_not_empty(video_frames: int) -> None:
    if video_frames < 1:
        raise ValueError(f"video_frames={video_frames} must be at least 1: nothing to sample from")


def _check_views(num_views: int) -> None:
    if num_views < 1:
        raise UserError(f"num_views={num_views} (temporal views) must be at least 1")
