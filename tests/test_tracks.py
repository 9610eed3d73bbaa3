"""Tracks: boxes of one person keep one number, whoever passes, hides or leaves."""

from __future__ import annotations

import numpy as np
import pytest

from hiera_video.detection.tracks import LEAST_OVERLAP, Tracks, overlap


def box(x, y=0.2, width=0.2, height=0.6):
    return [x, y, x + width, y + height]


def numbers(*key_frames, step=1.0):
    """The numbers of the boxes of each key frame."""
    tracks = Tracks(step)
    boxes = [np.array(frame, float).reshape(-1, 4) for frame in key_frames]
    return [tracks.add(number * step, corners) for number, corners in enumerate(boxes)]


def test_a_person_keeps_the_number_and_a_new_one_gets_the_next():
    walk = [[box(0.1)], [box(0.18)], [box(0.7), box(0.26)], [box(0.34), box(0.72)]]
    assert numbers(*walk) == [[1], [1], [2, 1], [1, 2]]


def test_people_who_cross_keep_their_numbers():
    right, left = [0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.41, 0.32, 0.23, 0.14]
    there, here = (np.array([box(x)]) for x in (right[2], right[3]))
    other = np.array([box(left[3])])
    assert overlap(there, other) > overlap(there, here), "where they meet, overlap alone is wrong"
    found = numbers(*([box(a), box(b)] for a, b in zip(right, left, strict=True)))
    assert found == [[1, 2]] * 5
    # the order of the boxes in a key frame says nothing
    turned = [[box(a), box(b)] for a, b in zip(right, left, strict=True)]
    turned[1::2] = [boxes[::-1] for boxes in turned[1::2]]
    assert numbers(*turned) == [[1, 2], [2, 1], [1, 2], [2, 1], [1, 2]]


def test_one_missed_key_frame_is_bridged_and_two_are_not():
    assert numbers([box(0.1)], [], [box(0.12)]) == [[1], [], [1]]
    assert numbers([box(0.1)], [], [], [box(0.1)]) == [[1], [], [], [2]]
    # half a second between key frames: what counts is how many were missed
    assert numbers([box(0.1)], [], [box(0.12)], step=0.5) == [[1], [], [1]]
    assert numbers([box(0.1)], [], [], [box(0.1)], step=0.5) == [[1], [], [], [2]]


def test_who_walks_behind_somebody_is_found_again():
    """For one key frame the person behind is not seen, and reappears where the speed leads."""
    found = numbers(
        [box(0.0), box(0.4)],
        [box(0.12), box(0.4)],
        [box(0.4)],
        [box(0.36), box(0.4)],
    )
    assert found == [[1, 2], [1, 2], [2], [1, 2]]


def test_a_jump_is_another_person():
    assert numbers([box(0.0)], [box(0.5)]) == [[1], [2]]


def test_an_empty_video_has_no_tracks():
    tracks = Tracks(1.0)
    assert tracks.add(0.0, np.zeros((0, 4))) == []
    assert tracks.count == 0


def test_no_two_boxes_of_a_key_frame_share_a_number():
    rng = np.random.default_rng(0)
    tracks = Tracks(1.0)
    for time in range(50):
        lower = rng.uniform(0, 0.7, (6, 2))
        corners = np.concatenate([lower, lower + rng.uniform(0.1, 0.3, (6, 2))], axis=1)
        people = tracks.add(float(time), corners)
        assert len(set(people)) == 6
        assert min(people) >= 1
    assert tracks.count < 300, "no track was ever continued"


def test_the_overlap_is_that_of_the_boxes_areas():
    first = np.array([[0.0, 0.0, 0.5, 1.0], [0.2, 0.2, 0.2, 0.2]])
    second = np.array([[0.25, 0.0, 0.75, 1.0], [0.6, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0]])
    assert overlap(first, second)[0] == pytest.approx([1 / 3, 0.0, 1.0])
    assert overlap(first, second)[1].tolist() == [0.0, 0.0, 0.0], "an empty box overlaps nothing"
    assert 0 < LEAST_OVERLAP < 0.5
