"""Lists of key frames: what is read of AVA's files, what is refused, what is left out and noted."""

from __future__ import annotations

import numpy as np
import pytest
from ava_set import AvaSet

from hiera_video.detection.files import read_scored_boxes, write_scored_boxes
from hiera_video.detection.frame_lists import read_frame_lists
from hiera_video.detection.key_frames import read_key_frames
from hiera_video.errors import DataError

HEADER = "original_vido_id video_id frame_id path labels"


@pytest.fixture
def ava(tmp_path):
    """A set with two empty video files, a and b: nothing here opens one."""
    made = AvaSet(tmp_path / "ava")
    for name in "ab":
        (made.path / "videos" / f"{name}.mp4").touch()
    return made


def train(ava: AvaSet, *rows: str, **settings):
    ava.write("ava_train_v2.2.csv", "\n".join(rows))
    return read_key_frames(ava.path, ava.settings(**settings), "train")


# ---- boxes and labels ---------------------------------------------------------------------------


def test_lines_of_one_box_are_one_box(ava):
    frames = train(
        ava,
        "b,5,0.1,0.2,0.3,0.4,3,1",
        "a,7,0.1,0.2,0.3,0.4,1,0",
        "b,5,0.5,0.2,0.9,0.4,,0",
        "b,5,0.10,0.2,0.3,0.40,4,1",
        "b,4,0.1,0.2,0.3,0.4,1,1",
        "b,5,0.1,0.2,0.3,0.4,3,2",
    )
    assert [(frames.video_name(i), frames.second(i)) for i in range(3)] == [
        ("b", 4),
        ("b", 5),
        ("a", 7),
    ]
    assert [len(frames.boxes(i).rows) for i in range(3)] == [1, 2, 1]
    assert frames.boxes(1).rows.tolist() == [1, 2]
    np.testing.assert_allclose(frames.boxes(1).corners[0], [0.1, 0.2, 0.3, 0.4], atol=1e-7)
    # classes by their place in the list of actions: 1 stand, 3 walk, 4 sit
    assert frames.boxes(1).labels.tolist() == [[0, 1, 1], [0, 0, 0]]
    assert frames.classes == ("stand", "walk", "sit")
    assert [frames.label(i) for i in range(3)] == [(0,), (1, 2), (0,)]
    assert frames.multi_label
    assert frames.paths[0].endswith("videos/b.mp4")
    assert frames.num_boxes == 4


def test_key_frames_are_counted_from_where_the_movie_begins(ava):
    frames = train(ava, "a,902,0,0,1,1,1,0", video_start=900.0, seconds=(902, 1798))
    assert frames.centres.tolist() == [60]
    frames = train(ava, "a,902,0,0,1,1,1,0", video_start=899.5, seconds=(902, 1798))
    assert frames.centres.tolist() == [75]


def test_rows_lead_back_to_the_file(ava, tmp_path):
    rows = ["b,5,0.1,0.2,0.3,0.4,3,1", "a,7,0.123456,0.2,0.3,0.4,1,0", "b,9,0,0,1,1,,2"]
    frames = train(ava, *rows)
    table = frames.scored_boxes(np.array([2, 0, 1]))
    assert [table.videos[v] for v in table.video] == ["a", "b", "b"]
    assert table.second.tolist() == [7, 5, 9]
    assert table.corners[0].tolist() == [0.123456, 0.2, 0.3, 0.4]
    # and out to a file of detections
    scored = table.__class__(**{**vars(table), "score": np.ones(3), "action": np.ones(3, int)})
    write_scored_boxes(tmp_path / "detections.csv", scored)
    assert len(read_scored_boxes(tmp_path / "detections.csv")) == 3


def test_a_selection_keeps_its_boxes(ava):
    frames = train(
        ava,
        "a,1,0,0,0.1,1,1,0",
        "a,2,0,0,0.2,1,3,0",
        "a,2,0,0,0.3,1,4,0",
        "b,3,0,0,0.4,1,,0",
    )
    some = frames.select(np.array([False, True, True]))
    assert len(some) == 2
    assert some.num_boxes == 3
    assert some.boxes(0).corners[:, 2].tolist() == pytest.approx([0.2, 0.3])
    assert some.boxes(1).rows.tolist() == [2]
    assert [some.label(i) for i in range(2)] == [(1, 2), ()]
    assert some.video_name(1) == "b"
    assert some.scored_boxes(np.array([2])).second.tolist() == [3]


def test_boxes_of_a_detector_join_the_annotated_ones(ava):
    """Those with a high score; one with the corners of an annotated box adds its actions."""
    ava.write(
        "found.csv",
        "a,1,0.1,0.2,0.3,0.4,3,0.95\na,1,0.5,0.5,0.6,0.6,1,0.91\na,1,0,0,1,1,1,0.89\n"
        "a,3,0,0,1,1,1,0.99",
    )
    frames = train(
        ava,
        "a,1,0.1,0.2,0.3,0.4,1,0",
        train_predict_box_lists=("found.csv",),
        seconds=(0, 2),
    )
    assert frames.boxes(0).labels.tolist() == [[1, 1, 0], [1, 0, 0]]
    assert len(frames) == 1
    assert any("outside AVA.SECONDS, left out: 1 (found.csv:4)" in n for n in frames.notes)


# ---- validation and test ------------------------------------------------------------------------


@pytest.fixture
def measured(ava):
    ava.write(
        "ava_val_v2.2.csv",
        "\n".join(f"{v},{s},0.1,0.1,0.5,0.5,{1 + s % 4 or ''},0" for v in "ab" for s in range(9)),
    )
    ava.write(
        "boxes.csv",
        "\n".join(f"a,{s},0.1,0.1,0.5,0.52,,{0.5 if s == 8 else 0.95}" for s in range(9)),
    )
    ava.write("excluded.csv", "a,0004\nb,0002\n")
    return ava


def test_boxes_of_a_detector_are_scored_and_annotated_ones_measure(measured):
    settings = measured.settings(
        test_predict_box_lists=("boxes.csv",), exclusion_file="excluded.csv"
    )
    frames = read_key_frames(measured.path, settings, "test")
    assert frames.seconds.tolist() == [0, 1, 2, 3, 5, 6, 7]
    assert frames.excluded == {("a", 4), ("b", 2)}
    assert len(frames.truth) == 18
    assert frames.truth.score is None
    assert frames.boxes(0).labels.shape == (1, 0)  # a detector knows no actions
    assert frames.corners[0].tolist() == [0.1, 0.1, 0.5, 0.52]
    notes = "; ".join(frames.notes)
    assert "10 of 18 annotated seconds have none" in notes  # b's nine and a's last
    assert "boxes at seconds of excluded.csv, left out: 1" in notes


def test_validation_takes_every_fourth_second(measured):
    settings = measured.settings(test_predict_box_lists=("boxes.csv",))
    frames = read_key_frames(measured.path, settings, "val")
    assert frames.seconds.tolist() == [0, 4]
    assert sorted(set(frames.truth.second.tolist())) == [0, 4, 8]
    assert any("FULL_TEST_ON_VAL" in note for note in frames.notes)
    settings = measured.settings(test_predict_box_lists=("boxes.csv",), full_test_on_val=True)
    frames = read_key_frames(measured.path, settings, "val")
    assert frames.seconds.tolist() == list(range(8))
    assert len(frames.truth) == 18


def test_annotated_boxes_are_scored_where_there_are_no_others(measured):
    frames = read_key_frames(measured.path, measured.settings(), "test")
    assert len(frames) == 18
    assert frames.boxes(0).labels.shape == (1, 3)
    assert any("look better than it is" in note for note in frames.notes)


# ---- what is refused, and what is left out ------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a,1,0,0,1,1,1,0", "a,1,0,0,1.2,1,1,0"], r"line 2.*0,0,1.2,1"),
        (["a,1,0.5,0,0.2,1,1,0"], r"line 1"),
        (["a,1,0,0,1,1"], r"line 1"),
        (["a,1,0,0,1,1,1,0", "", "a,1,0,0,1,1,5,0"], r"csv:3: action 5 is unknown.*goes to 4"),
        (["a,2000,0,0,1,1,1,0"], r"csv:1: second 2000 is outside of 0 to 1798"),
        (["a,1,0,0,nan,1,1,0"], r"line 1"),
    ],
)
def test_wrong_lines_are_refused(ava, rows, message):
    with pytest.raises(DataError, match=message):
        train(ava, *rows)


def test_wrong_lines_of_the_truth_are_refused(ava):
    ava.write("ava_val_v2.2.csv", "a,1,0,0,1,1,1,0\na,1,0,0,1,1,99,0")
    with pytest.raises(DataError, match=r"ava_val_v2.2.csv:2: action 99 is unknown"):
        read_key_frames(ava.path, ava.settings(), "test")


def test_actions_that_do_not_count_are_counted(ava):
    """2 is an action that the list leaves out; its box stays, as one in which nothing is seen."""
    frames = train(ava, "a,1,0,0,1,1,2,0", "a,1,0,0,1,0.5,2,0", "a,1,0,0,1,0.5,1,0")
    assert frames.boxes(0).labels.tolist() == [[0, 0, 0], [1, 0, 0]]
    assert frames.notes[1:] == (
        "lines of ava_train_v2.2.csv with an action that is not among the 3 that count: 2 "
        "(actions 2); their boxes stay",
    )


def test_empty_boxes_are_left_out_and_named(ava):
    rows = ["a,1,0.2,0,0.2,1,1,0"] * 5 + ["a,1,0,0,1,1,1,0"]
    frames = train(ava, *rows)
    assert frames.num_boxes == 1
    assert frames.notes[1] == (
        "boxes without width or height, left out: 5 (ava_train_v2.2.csv:1, :2, :3 and 2 more)"
    )


def test_missing_videos_are_left_out_of_training(ava):
    frames = train(ava, "a,1,0,0,1,1,1,0", "gone,1,0,0,1,1,1,0", "gone,2,0,0,1,1,1,0")
    assert len(frames) == 1
    assert frames.notes[1].startswith("videos missing in")
    assert "1 of 2 ('gone'); key frames of them: 2, left out" in frames.notes[1]
    with pytest.raises(DataError, match=r"no key frames for train.*'gone'"):
        train(ava, "gone,1,0,0,1,1,1,0")


def test_missing_videos_stay_in_a_test(ava):
    ava.write("ava_val_v2.2.csv", "a,1,0,0,1,1,1,0\ngone,1,0,0,1,1,1,0")
    frames = read_key_frames(ava.path, ava.settings(), "test")
    assert len(frames) == 2
    notes = "; ".join(frames.notes)
    assert "1 of 2 ('gone'); key frames of them: 1, they will count as unreadable" in notes


def test_missing_files_are_named_with_their_key(ava):
    with pytest.raises(
        DataError, match=r"ava_train_v2.2.csv: no such file; AVA.TRAIN_GT_BOX_LISTS"
    ):
        read_key_frames(ava.path, ava.settings(), "train")
    ava.write("ava_val_v2.2.csv", "a,1,0,0,1,1,1,0")
    for settings, key in {
        "test_predict_box_lists": ("AVA.TEST_PREDICT_BOX_LISTS", ("no.csv",)),
        "exclusion_file": ("AVA.EXCLUSION_FILE", "no.csv"),
        "label_map_file": ("AVA.LABEL_MAP_FILE", "no.csv"),
    }.items():
        name, value = key
        with pytest.raises(DataError, match=rf"no\.csv: no such file; {name}"):
            read_key_frames(ava.path, ava.settings(**{settings: value}), "test")


# ---- layouts ------------------------------------------------------------------------------------


def listed(ava: AvaSet, *lines: str, name: str = "train.csv"):
    path = ava.path / "frame_lists" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    return path


def line(video: str, number: int, picture: str, labels: str = '""') -> str:
    return f"{video} 0 {number} {video}/{picture} {labels}"


def test_lists_of_frames_say_how_pictures_are_called(ava):
    lines = [line("a", i, f"a_{i + 1:06d}.jpg") for i in range(120)]
    lines += [line("b", i + 3, f"img{i + 95}.png", f"l{i % 2}") for i in range(20)]
    listed(ava, *lines)
    videos = read_frame_lists([str(ava.path / "frame_lists" / "train.csv")])
    assert {name: len(video.names) for name, video in videos.items()} == {"a": 120, "b": 20}
    assert list(videos["a"].names)[::119] == ["a_000001.jpg", "a_000120.jpg"]
    assert [videos["b"].names[i] for i in (4, 5, 19)] == ["img99.png", "img100.png", "img114.png"]
    assert videos["b"].folder == "b"


def test_pictures_are_read_where_there_are_lists(ava):
    for name in ("a_1.jpg", "a_100.jpg"):
        path = ava.path / "frames" / "a" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    listed(ava, *[line("a", i, f"a_{i + 1}.jpg") for i in range(100)])
    frames = train(ava, "a,1,0,0,1,1,1,0", "a,4,0,0,1,1,1,0", "b,1,0,0,1,1,1,0")
    assert frames.notes[0].startswith("reads the pictures in")
    assert "100 of 1 videos" in frames.notes[0]
    assert frames.paths[0].endswith("frames/a")
    assert frames.picture_names(0)[30] == "a_31.jpg"
    assert len(frames) == 1  # b is in no list, and second 4 is picture 120 of 100
    notes = "; ".join(frames.notes)
    assert "1 of 2 ('b'); key frames of them: 1, left out" in notes
    assert "key frames after the last picture of their video: 1 ('a 4'), left out" in notes


def test_video_files_are_read_where_there_are_no_pictures(ava):
    listed(ava, line("a", 0, "a_1.jpg"))  # lists alone do not do
    frames = train(ava, "a,1,0,0,1,1,1,0")
    assert frames.notes[0].startswith("reads the 2 video files in")
    assert frames.picture_names(0) is None
    (ava.path / "videos" / "a.webm").touch()
    with pytest.raises(DataError, match=r"both the video 'a'"):
        train(ava, "a,1,0,0,1,1,1,0")


def test_a_set_without_videos_says_what_is_looked_for(ava):
    (ava.path / "videos").rename(ava.path / "movies")
    with pytest.raises(DataError, match=r"neither .*train.csv .*AVA.FRAME_LIST_DIR.*AVA.VIDEO_DIR"):
        train(ava, "a,1,0,0,1,1,1,0")
    assert len(train(ava, "a,1,0,0,1,1,1,0", video_dir="movies")) == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [line("a", i, f"a_{i}.jpg") for i in (0, 1, 2, 5, 6, 9)],
            r"2 lines are wrong: line 5: 'a' goes from 'a_2.jpg' to 'a_5.jpg'.*line 7: .*'a_9.jpg'",
        ),
        ([line("a", i, f"a_{n}.jpg") for i, n in ((0, 1), (1, 3))], r"line 3: .*'a_3.jpg'"),
        (
            [line("a", i, f"a_{i:0{w}d}.jpg") for i, w in ((1, 1), (2, 4))],
            r"line 3: .*'a_0002.jpg'",
        ),
        (
            [line("a", 0, "a_1.jpg"), line("b", 0, "b_1.jpg"), line("a", 1, "a_2.jpg")],
            r"line 4: 'a' was listed before",
        ),
        ([line("a", 0, "a_1.jpg"), "a 0 1"], r"line 3: 'a 0 1' is no line"),
        ([line("a", 0, "picture.jpg")], r"line 2: .* is no line"),
        ([], r"lists no frames"),
    ],
)
def test_holes_in_lists_of_frames_are_refused(ava, lines, message):
    path = listed(ava, *lines)
    with pytest.raises(DataError, match=message):
        read_frame_lists([str(path)])


def test_a_list_of_frames_needs_its_header(ava):
    path = listed(ava, line("a", 0, "a_1.jpg"))
    path.write_text(path.read_text().partition("\n")[2])
    with pytest.raises(DataError, match=r"train.csv:1: the first line must be the header"):
        read_frame_lists([str(path)])


def test_a_video_in_two_lists_is_refused(ava):
    paths = [listed(ava, line("a", 0, "a_1.jpg"), name=name) for name in ("1.csv", "2.csv")]
    with pytest.raises(DataError, match=r"2.csv: 1 lines are wrong: line 2: 'a' was listed before"):
        read_frame_lists(map(str, paths))


def test_names_with_a_percent_sign_and_line_ends_of_windows(ava):
    path = listed(ava, *[line("50%d", i, f"50%d_{i:03d}.jpg") for i in range(12)])
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n").rstrip())
    videos = read_frame_lists([str(path)])
    assert videos["50%d"].names[11] == "50%d_011.jpg"
    assert len(videos["50%d"].names) == 12
