"""Frame indices are written out, so that a change of the arithmetic shows."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiera_video.clip_spec import ClipSpec
from hiera_video.errors import UserError
from hiera_video.video.sampling import (
    segment_clip,
    segment_views,
    span,
    training_clip,
    uniform_views,
    window_clips,
)

SPEC = ClipSpec()
SEGMENTS = ClipSpec(segments=True)
# SlowFast's linspace(0, 63, 16), truncated.
SIXTEEN_BY_FOUR = [0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 63]


# ---- dense clips ----


def test_16x4_takes_slowfasts_frames():
    assert uniform_views(64, 30.0, SPEC, 1).tolist() == [SIXTEEN_BY_FOUR]


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (30, 64),
        (15, 32),
        (60, 128),
        (120, 256),
        (25, Fraction(160, 3)),
        (30000 / 1001, Fraction(64000, 1001)),
        (0.1, 1),  # a frame every ten seconds: the clip is one frame, never less
        (29.9999999, 64),  # a probe's noise in the last digit
        (30.0000001, 64),
        (0.0, 64),  # not known
        (math.nan, 64),
        (math.inf, 64),
    ],
)
def test_span_is_counted_at_the_target_rate(fps, expected):
    assert span(16, 4, fps, 30.0) == expected


def test_a_clip_covers_the_same_seconds_at_any_rate():
    at_15 = uniform_views(32, 15.0, SPEC, 1)[0]
    at_60 = uniform_views(128, 60.0, SPEC, 1)[0]
    assert at_15.tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 31]
    assert at_60[[0, 1, 7, 15]].tolist() == [0, 8, 59, 127]


def test_noise_in_the_rate_does_not_move_a_frame():
    exact = uniform_views(300, 30.0, SPEC, 5)
    for fps in (29.9999999, 30.0000001):
        assert np.array_equal(uniform_views(300, fps, SPEC, 5), exact)


def test_views_reach_from_the_first_to_the_last_start():
    views = uniform_views(300, 30.0, SPEC, 5)
    assert views[:, 0].tolist() == [0, 59, 118, 177, 236]
    assert views[-1, -1] == 299
    assert (views - views[:, :1]).tolist() == [SIXTEEN_BY_FOUR] * 5


def test_one_view_is_the_middle():
    assert uniform_views(300, 30.0, SPEC, 1)[0, 0] == 118


def test_a_short_video_repeats_its_last_frame():
    assert uniform_views(20, 30.0, SPEC, 2).tolist() == [[0, 4, 8, 12, 16] + [19] * 11] * 2
    assert uniform_views(1, 30.0, SPEC, 3).tolist() == [[0] * 16] * 3


def test_a_very_slow_video_repeats_each_frame():
    # 1 frame a second: 2.13 s are 2.13 frames.
    assert uniform_views(5, 1.0, SPEC, 1).tolist() == [[1] * 14 + [2] * 2]


def test_an_image_model_gets_single_frames_over_the_whole_video():
    image = ClipSpec(num_frames=1)
    assert uniform_views(10, 30.0, image, 3).tolist() == [[0], [4], [9]]
    assert uniform_views(11, 30.0, image, 1).tolist() == [[5]]


def test_training_clips_start_anywhere_a_test_clip_can():
    starts = {int(training_clip(70, 30.0, SPEC, u / 100)[0]) for u in range(100)}
    assert starts == set(range(7))
    assert training_clip(70, 30.0, SPEC, 0.0).tolist() == SIXTEEN_BY_FOUR
    last = training_clip(70, 30.0, SPEC, np.nextafter(1.0, 0.0))
    assert last.tolist() == uniform_views(70, 30.0, SPEC, 2)[1].tolist()


def test_a_faster_clip_takes_frames_further_apart_from_the_same_video():
    spec = ClipSpec(num_frames=4, sampling_rate=4)
    assert training_clip(100, 30.0, spec, 0.0).tolist() == [0, 5, 10, 15]
    assert training_clip(100, 30.0, spec, 0.0, 1.0).tolist() == [0, 5, 10, 15]
    assert training_clip(100, 30.0, spec, 0.0, 2.0).tolist() == [0, 10, 20, 31]
    assert training_clip(100, 30.0, spec, 0.0, 0.5).tolist() == [0, 2, 4, 7]
    assert training_clip(100, 30.0, spec, 0.999, 2.0).tolist() == [68, 78, 88, 99]
    assert training_clip(100, 30.0, spec, 0.0, 0.01).tolist() == [0, 0, 0, 0]
    # No faster than fits: the end would stand still.
    assert training_clip(22, 30.0, spec, 0.5, 2.0).tolist() == [0, 7, 14, 21]
    assert (
        training_clip(10, 30.0, spec, 0.5, 2.0).tolist()
        == training_clip(10, 30.0, spec, 0.5).tolist()
    )
    image = ClipSpec(num_frames=1)
    assert training_clip(10, 30.0, image, 0.95, 3.0).tolist() == [9]


@given(
    video_frames=st.integers(1, 3000),
    fps=st.floats(0.01, 1000),
    num_frames=st.sampled_from([1, 2, 8, 16, 32]),
    speed=st.floats(0.01, 100),
    u=st.floats(0, 1, exclude_max=True),
)
def test_no_speed_leads_out_of_the_video_or_to_an_end_that_stands_still(
    video_frames, fps, num_frames, speed, u
):
    spec = ClipSpec(num_frames=num_frames)
    plain = training_clip(video_frames, fps, spec, u)
    clip = training_clip(video_frames, fps, spec, u, speed)
    assert clip.shape == (num_frames,)
    assert 0 <= clip.min() <= clip.max() < video_frames
    assert (np.diff(clip) >= 0).all()
    if speed >= 1:
        assert np.ptp(clip) >= np.ptp(plain) - 1
        assert (clip == video_frames - 1).sum() <= max(1, (plain == video_frames - 1).sum())
    else:
        assert np.ptp(clip) <= np.ptp(plain) + 1


@given(
    video_frames=st.integers(1, 3000),
    fps=st.floats(0.01, 1000),
    num_frames=st.sampled_from([1, 2, 8, 16, 32]),
    rate=st.integers(1, 8),
    views=st.integers(1, 10),
    segments=st.booleans(),
    u=st.floats(0, 1, exclude_max=True),
)
def test_indices_exist_and_never_go_back(video_frames, fps, num_frames, rate, views, segments, u):
    spec = ClipSpec(num_frames=num_frames, sampling_rate=rate, segments=segments)
    test = uniform_views(video_frames, fps, spec, views)
    train = training_clip(video_frames, fps, spec, u)
    assert test.shape == (views, num_frames)
    assert train.shape == (num_frames,)
    assert test.dtype == train.dtype == np.int64
    for clip in [*test, train]:
        assert clip.min() >= 0
        assert clip.max() < video_frames
        assert (np.diff(clip) >= 0).all()
    assert (np.diff(test[:, 0]) >= 0).all()


# ---- segments ----


def test_segments_take_slowfasts_middle_frames():
    # 33 frames: segments of 2 frames, borders 0 2 4 ... 32.
    assert segment_views(33, SEGMENTS, 1).tolist() == [list(range(1, 33, 2))]
    assert uniform_views(33, 30.0, SEGMENTS, 1).tolist() == [list(range(1, 33, 2))]
    # 50 frames: borders 0 3 6 9 12 15 18 21 24 (24.5, to the even) 28 31 34 37 40 43 46 49.
    middles = [1, 4, 7, 10, 13, 16, 19, 22, 26, 29, 32, 35, 38, 41, 44, 47]
    assert segment_views(50, SEGMENTS, 1).tolist() == [middles]


def test_a_second_segment_view_shows_other_frames():
    views = segment_views(161, SEGMENTS, 2)  # segments of 10 frames
    assert views[0].tolist() == list(range(2, 161, 10))
    assert views[1].tolist() == list(range(7, 161, 10))


def test_training_segments_cover_each_segment_and_stay_inside():
    spec = ClipSpec(num_frames=4, segments=True)
    assert segment_clip(41, spec, 0.0).tolist() == [0, 10, 20, 30]
    assert segment_clip(41, spec, 0.999).tolist() == [10, 20, 30, 40]
    assert segment_clip(41, spec, [0.0, 0.5, 0.999, 0.1]).tolist() == [0, 15, 30, 31]
    assert training_clip(41, 30.0, spec, [0.0, 0.5, 0.999, 0.1]).tolist() == [0, 15, 30, 31]


def test_segments_of_a_short_video_repeat_frames():
    assert segment_views(1, SEGMENTS, 2).tolist() == [[0] * 16] * 2
    assert set(segment_views(3, SEGMENTS, 1)[0]) == {0, 1, 2}


# ---- windows of a timeline ----


def test_windows_touch_and_end_with_the_video():
    windows = list(window_clips(np.arange(310) / 30.0, 30.0, SPEC, 4.0, 2))
    assert [w.start for w in windows] == [0.0, 4.0, 8.0]
    assert [w.end for w in windows] == pytest.approx([4.0, 8.0, 310 / 30])
    # 4 s hold 120 frames and a clip 64: first and last start inside the window.
    assert windows[0].views[:, 0].tolist() == [0, 56]
    assert windows[1].views[:, 0].tolist() == [120, 176]
    assert windows[1].views[-1, -1] == 239


def test_a_window_shorter_than_a_clip_gets_the_clip_around_its_middle():
    windows = list(window_clips(np.arange(300) / 30.0, 30.0, SPEC, 1.0, 5))
    assert len(windows) == 10
    assert all(w.views.shape == (1, 16) for w in windows)
    assert [int(w.views[0, 0]) for w in windows] == [0, 13, 43, 73, 103, 133, 163, 193, 223, 236]
    assert windows[-1].views[0, -1] == 299


def test_no_empty_window_after_a_whole_number_of_seconds():
    for fps in (24000 / 1001, 25, 30000 / 1001, 30, 60):
        times = np.arange(int(10 * fps)) / fps
        windows = list(window_clips(times, fps, SPEC, 2.0))
        assert len(windows) == 5
        assert windows[-1].end == pytest.approx(len(times) / fps)


def test_a_jump_of_ten_hours_is_not_walked():
    times = np.concatenate([np.arange(50) / 25, 36000 + np.arange(50) / 25])
    windows = list(window_clips(times, 25.0, SPEC, 1.0))
    assert [w.start for w in windows] == [0, 1, 36000, 36001]


def test_windows_follow_the_times_of_a_variable_frame_rate():
    # 2 s at 30 frames a second, then 3 s at 6.
    times = np.concatenate([np.arange(60) / 30, 2 + np.arange(18) / 6])
    image = ClipSpec(num_frames=1)
    windows = list(window_clips(times, 78 / 5, image, 1.0))
    assert [int(w.views[0, 0]) for w in windows] == [14, 44, 62, 68, 74]


def test_windows_of_segments_stay_inside_the_window():
    spec = ClipSpec(num_frames=4, segments=True)
    first, second = window_clips(np.arange(60) / 30.0, 30.0, spec, 1.0, 2)
    assert first.views.shape == second.views.shape == (2, 4)
    assert first.views.max() < 30 <= second.views.min()


@given(
    gaps=st.lists(st.floats(0, 3), min_size=1, max_size=200),
    seconds=st.floats(0.05, 20),
    fps=st.floats(0.1, 240),
)
def test_every_window_holds_frames_and_lies_after_the_one_before(gaps, seconds, fps):
    times = np.cumsum([0.0, *gaps])
    windows = list(window_clips(times, fps, SPEC, seconds, 3))
    assert windows[0].start == 0
    assert windows[-1].end >= times[-1]
    for before, after in pairwise(windows):
        assert before.start < before.end <= after.start
    for window in windows:
        assert window.views.min() >= 0
        assert window.views.max() < len(times)


# ---- wrong use ----


@pytest.mark.parametrize("seconds", [0, -1.0, math.nan, math.inf])
def test_impossible_windows_are_refused(seconds):
    with pytest.raises(UserError, match="seconds"):
        list(window_clips(np.arange(3) / 30, 30.0, SPEC, seconds))


def test_no_views_and_no_frames_are_refused():
    with pytest.raises(UserError, match="num_views=0"):
        uniform_views(10, 30.0, SPEC, 0)
    with pytest.raises(ValueError, match="at least 1"):
        uniform_views(0, 30.0, SPEC, 1)
