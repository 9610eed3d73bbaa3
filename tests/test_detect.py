"""The people of a video: boxes given or found, the clip around each, rows, and the drawn copy."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from clips import read_indices, write_audio_only, write_clip
from conftest import REPOSITORY
from small_models import BOX_CLASSES, BOX_SPEC, video, write_box_checkpoint

from hiera_video import Predictor
from hiera_video.commands import detect
from hiera_video.detection import people
from hiera_video.detection.drawing import COLOURS, DrawnTrack, PeopleDrawing, drawing_of
from hiera_video.detection.given_boxes import GivenBoxes
from hiera_video.detection.label_people import (
    LabelSettings,
    PeopleLabeller,
    key_moments,
    moment_at,
    squares_of,
)
from hiera_video.detection.reading import MomentRequest, read_moments, reading_process
from hiera_video.detection.rows import PersonRow
from hiera_video.detection.score_people import BoxScorer, ModelChoice
from hiera_video.errors import DataError, UserError, WeightsError
from hiera_video.labelled_video.write import write_drawn_video
from hiera_video.models.weights import download
from hiera_video.video.decode import probe, read_frames

SPEC = BOX_SPEC


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint of a model for boxes, as the trainer writes it."""
    return write_box_checkpoint(tmp_path_factory.mktemp("weights") / "boxes.pyth")


@pytest.fixture(scope="module")
def process():
    with reading_process() as started:
        yield started


def bright_box_clip(path, corners, *, size=(160, 96), seconds=3, fps=10, **changes):
    """A dark video with a white rectangle: corners(time) says where, as shares of the picture."""
    width, height = size
    frames = []
    for index in range(seconds * fps):
        frame = np.full((height, width, 3), 20, np.uint8)
        x1, y1, x2, y2 = corners(index / fps)
        rows = slice(round(y1 * height), round(y2 * height))
        frame[rows, round(x1 * width) : round(x2 * width)] = 235
        frames.append(frame)
    return write_clip(path, frames=frames, fps=fps, size=size, **changes)


class Brightness:
    """A scorer whose score is how bright a box is, so that a box off its place is seen."""

    spec, classes = SPEC, ["bright", "dark"]

    def __init__(self):
        self.clips = []

    def __call__(self, clips, boxes):
        self.clips.append(len(clips))
        scores = []
        for clip, *corners in boxes.tolist():
            x1, y1, x2, y2 = (round(value * SPEC.crop_size) for value in corners)
            part = clips[int(clip), :, :, y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
            scores.append([float(part.float().mean() / 255)])
        bright = torch.tensor(scores)
        return torch.cat([bright, 1 - bright], dim=1)


# ---- boxes that are given -----------------------------------------------------------------------


def given(tmp_path, text, **settings):
    path = tmp_path / "boxes.csv"
    path.write_text(text, encoding="utf-8")
    return GivenBoxes(str(path), **settings)


@pytest.mark.parametrize(
    ("text", "person", "score"),
    [
        ("a,1,0.1,0.2,0.3,0.4\n", None, None),
        ("a,0001,0.1,0.2,0.3,0.4,12\n\n", None, None),
        ("a,1,0.1,0.2,0.3,0.4,12,7\n", 7, None),
        ("a,1,0.1,0.2,0.3,0.4,,0.75\n", None, 0.75),
        ("a,1,0.1,0.2,0.3,0.4,,\n", None, None),
        ("second,video,x2,y2,x1,y1,other\n1.0,a,0.3,0.4,0.1,0.2,zzz\n", None, None),
        ("file,second,person,x1,y1,x2,y2,person_score\na,1,3,0.1,0.2,0.3,0.4,0.9\n", 3, 0.9),
    ],
    ids=["plain", "action", "person", "score", "empty", "header", "own"],
)
def test_every_layout_is_read(tmp_path, text, person, score):
    boxes = given(tmp_path, text)
    (row,) = boxes.rows
    assert (row.video, row.second, row.corners) == ("a", 1.0, (0.1, 0.2, 0.3, 0.4))
    assert (row.person, row.score) == (person, score)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("a,b\n", ":1: 2 fields; rows are video,second,x1,y1,x2,y2 or second,x1,y1,x2,y2"),
        ("0,0.1,0.2,0.3,0.4\n1,0.1,0.2,0.3\n", ":2: 4 fields, and the first row has 5"),
        ("0,0.1,0.2,x,0.4\n", ":1: x2 'x' is no number"),
        ("0,0.1,0.2,nan,0.4\n", ":1: x2 'nan' is no number"),
        ("0,0.5,0.2,0.3,0.4\n", ":1: 0.5,0.2,0.3,0.4 is no box"),
        ("0,-0.5,0.2,0.3,0.4\n", ":1: -0.5,0.2,0.3,0.4 is no box"),
        ("-1,0.1,0.2,0.3,0.4\n", ":1: second -1 is before"),
        ("0,0.1,0.2,0.3,0.4\n0,10,20,300,40\n", ":2: the corner 300 looks like pixels"),
        ("second,x1,y1,x2\n0,0.1,0.2,0.3\n", "its header has no y2"),
    ],
)
def test_what_is_no_box_is_named_with_its_line(tmp_path, text, said):
    with pytest.raises(DataError) as error:
        given(tmp_path, text)
    assert said in str(error.value)
    assert "boxes.csv" in str(error.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "boxes.csv").write_bytes(b"0,0.1,\xff,0.3,0.4\n")
    with pytest.raises(DataError, match=r"no CSV file in UTF-8"):
        GivenBoxes(str(tmp_path / "boxes.csv"))
    with pytest.raises(DataError, match=r"cannot read .*gone\.csv"):
        GivenBoxes(str(tmp_path / "gone.csv"))


def test_pixels_become_shares_of_the_upright_picture(tmp_path):
    boxes = given(tmp_path, "0,10,20,40,50\n", pixels=True)
    (frame,) = boxes.frames(boxes.rows, (100, 50))
    assert frame.corners.tolist() == [[0.1, 0.4, 0.4, 1.0]]
    with pytest.raises(DataError, match=r":1: a corner lies outside .* 100x40 pixels"):
        boxes.frames(boxes.rows, (100, 40))


def test_rows_of_several_actions_are_one_box(tmp_path):
    row = "v,1,0.1,0.2,0.3,0.4"
    boxes = given(tmp_path, f"{row},12,5\nv,1,0.5,0.2,0.7,0.4,12,6\n{row},80,5\nv,0,0,0,1,1,1,5\n")
    first, second = boxes.frames(boxes.rows, (1, 1))
    assert (first.second, first.people) == (0.0, [5])
    assert second.corners.tolist() == [[0.1, 0.2, 0.3, 0.4], [0.5, 0.2, 0.7, 0.4]]
    assert second.people == [5, 6]


def test_a_video_is_called_by_its_path_its_name_or_its_stem(tmp_path):
    box = "1,0.1,0.2,0.3,0.4"
    boxes = given(tmp_path, f"a/one.mp4,{box}\ntwo.mp4,{box}\nthree,{box}\nfour,{box}\n")
    files = ["./a/one.mp4", "b/two.mp4", "c/three.mkv", "d/five.mp4"]
    chosen = boxes.by_file(files)
    assert [len(chosen[file]) for file in files] == [1, 1, 1, 0]
    assert boxes.left_over(files) == ["four"]
    with pytest.raises(UserError, match=r"boxes of three, and x/three\.mp4, y/three\.mp4 are"):
        boxes.by_file(["x/three.mp4", "y/three.mp4"])
    assert len(boxes.by_file(["a/one.mp4", "b/one.mp4"])["a/one.mp4"]) == 1, "the path is clear"


def test_a_file_without_videos_is_for_one_video(tmp_path):
    boxes = given(tmp_path, "1,0.1,0.2,0.3,0.4\n")
    assert len(boxes.by_file(["a.mp4"])["a.mp4"]) == 1
    with pytest.raises(UserError, match=r"it is for one video, and there are 2"):
        boxes.by_file(["a.mp4", "b.mp4"])


# ---- what is read -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"frames": 60, "fps": 30},
        {"frames": 50, "fps": 25, "rotation": 90},
        {"frames": 3, "fps": 30},
        {"frames": 6, "times": [0, 0.5, 0.6, 1.4, 1.5, 3.0]},
    ],
    ids=["plain", "rotated", "short", "variable"],
)
def test_clips_and_pictures_are_those_of_their_key_frames(tmp_path, process, changes):
    path = str(write_clip(tmp_path / "v.mp4", size=(64, 64), **changes))
    info = probe(path)
    moments = [moment_at(info, one.time, SPEC) for one in key_moments(info, 0.5)]
    read = list(read_moments(path, moments, MomentRequest(64, 1000), process))
    assert len(read) == len(moments)
    for moment, found in zip(moments, read, strict=True):
        assert found.clips.shape == (3, 3, 4, 64, 64)
        for crop in found.clips:  # of a square video all three show everything
            assert read_indices(crop.transpose(0, 1)) == moment.clip.tolist()
        assert read_indices(found.picture.transpose(2, 0, 1)[None]) == [moment.frame]
        shown = info.times[moment.frame]
        assert moment.clip.min() <= moment.frame <= moment.clip.max() or shown in info.times


def test_the_clip_of_a_key_frame_is_around_it(tmp_path):
    info = probe(str(write_clip(tmp_path / "v.mp4", frames=90, fps=30)))
    moment = moment_at(info, 1.0, SPEC)
    assert (moment.frame, moment.clip.tolist()) == (30, [26, 28, 30, 32])
    assert moment_at(info, 0.0, SPEC).clip.tolist() == [0, 0, 0, 2]
    fast = probe(str(write_clip(tmp_path / "w.mp4", frames=90, fps=60)))
    assert moment_at(fast, 1.0, SPEC).clip.tolist() == [52, 56, 60, 64], "the same seconds"


def test_key_frames_come_every_second_and_never_twice(tmp_path):
    info = probe(str(write_clip(tmp_path / "v.mp4", frames=25, fps=10)))
    assert [one.time for one in key_moments(info, 1.0)] == [0.0, 1.0, 2.0]
    assert [one.time for one in key_moments(info, 100)] == [0.0]
    assert len(key_moments(info, 1e-4)) == 25
    single = probe(str(write_clip(tmp_path / "w.mp4", frames=1)))
    assert [one.time for one in key_moments(single, 1.0)] == [0.0]


def test_many_key_frames_are_read_in_several_parts(tmp_path, process, monkeypatch):
    from hiera_video.detection import reading

    path = str(write_clip(tmp_path / "v.mp4", frames=40, fps=10, size=(64, 64)))
    info = probe(path)
    moments = [moment_at(info, one.time, SPEC) for one in key_moments(info, 0.5)]
    whole = list(read_moments(path, moments, MomentRequest(64, 0), process))
    monkeypatch.setattr(reading, "PART_BYTES", 1)
    single = list(read_moments(path, moments, MomentRequest(64, 0), process))
    assert len(whole) == len(single) == 8
    for one, other in zip(whole, single, strict=True):
        assert torch.equal(one.clips, other.clips)
        assert one.picture is None


def test_a_large_picture_is_made_smaller_for_the_detector(tmp_path, process):
    path = str(write_clip(tmp_path / "v.mp4", frames=2, size=(320, 160)))
    info = probe(path)
    moments = [moment_at(info, 0.0, SPEC)]
    (found,) = read_moments(path, moments, MomentRequest(64, 100), process)
    assert found.picture.shape == (50, 100, 3)
    assert read_indices(found.picture.transpose(2, 0, 1)[None]) == [0]


# ---- what the model sees ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(160, 96), (96, 160), (96, 96), (200, 64)], ids=str)
def test_a_box_shows_the_same_in_the_square_as_in_the_picture(tmp_path, process, size):
    """White rectangles drawn anywhere: the box that the scorer gets is bright, all of it."""
    rng = np.random.default_rng(0)
    for number in range(6):
        low = rng.uniform(0, 0.7, 2)
        box = [*low, *(low + rng.uniform(0.2, 0.3, 2))]
        path = str(
            bright_box_clip(tmp_path / f"{number}.mp4", lambda _, b=box: b, size=size, seconds=1)
        )
        info = probe(path)
        (read,) = read_moments(path, [moment_at(info, 0, SPEC)], MomentRequest(64, 0), process)
        (place,), seen = squares_of(np.array([box]), info, 64)
        boxes = torch.from_numpy(np.column_stack([[0], seen])).float()
        ((score, _),) = Brightness()(read.clips[place][None], boxes).tolist()
        assert score > 0.75, (box, place, seen)
        x1, y1, x2, y2 = seen[0]
        beside = [0, x2, y1, 1, y2] if 1 - x2 > x1 else [0, 0, y1, x1, y2]
        if beside[3] - beside[1] > 0.1:
            ((dark, _),) = Brightness()(read.clips[place][None], torch.tensor([beside])).tolist()
            assert dark < 0.35


def test_the_middle_square_is_taken_where_it_shows_the_whole_box(tmp_path):
    info = probe(str(write_clip(tmp_path / "v.mp4", frames=1, size=(192, 96))))
    boxes = np.array([[0.4, 0.1, 0.6, 0.9], [0.0, 0.1, 0.2, 0.9], [0.8, 0.1, 1.0, 0.9]])
    places, seen = squares_of(boxes, info, 64)
    assert places.tolist() == [1, 0, 2]
    assert seen[0] == pytest.approx([0.3, 0.1, 0.7, 0.9], abs=0.02)
    assert seen[1] == pytest.approx([0.0, 0.1, 0.4, 0.9], abs=0.02)
    assert seen[2] == pytest.approx([0.6, 0.1, 1.0, 0.9], abs=0.02)


def moving(time):
    return 0.1 + 0.15 * time, 0.2, 0.3 + 0.15 * time, 0.8


def test_rows_of_given_boxes_follow_what_moves(tmp_path, process):
    path = str(bright_box_clip(tmp_path / "v.mp4", moving))
    lines = [f"{t},{','.join(map(str, moving(t)))}\n{t},0.75,0,0.95,0.15\n" for t in (0, 1, 2)]
    boxes = given(tmp_path, "".join(lines))
    scorer = Brightness()
    labeller = PeopleLabeller(scorer, None, process, LabelSettings(top_k=1))
    info = labeller.open(path)
    shares = []
    rows = list(labeller(info, boxes.frames(boxes.rows, (160, 96)), on_progress=shares.append))
    assert [(row.second, row.person, row.labels[0][0]) for row in rows] == [
        (second, person, label)
        for second in (0.0, 1.0, 2.0)
        for person, label in ((1, "bright"), (2, "dark"))
    ]
    assert all(row.labels[0][1] > 0.7 for row in rows)
    assert shares == pytest.approx([1 / 3, 2 / 3, 1])
    assert len(scorer.clips) == 3, "one forward pass for each key frame"


def test_found_people_are_numbered_by_their_tracks(tmp_path, process):
    path = str(bright_box_clip(tmp_path / "v.mp4", moving))

    def detector(picture):
        """What is bright in the picture, and a person who is never seen again."""
        rows, columns = np.nonzero(picture.mean(axis=2) > 128)
        height, width = picture.shape[:2]
        box = [
            columns.min() / width,
            rows.min() / height,
            columns.max() / width,
            rows.max() / height,
        ]
        first = abs(box[0] - 0.1) < 0.03
        found = [[0.8, 0.7, 0.9, 0.9], box] if first else [box]
        return np.array(found), np.linspace(0.9, 0.8, len(found))

    labeller = PeopleLabeller(Brightness(), detector, process, LabelSettings(threshold=0.5))
    rows = list(labeller(labeller.open(path)))
    assert [(row.time, row.person) for row in rows] == [(0, 1), (0, 2), (1, 2), (2, 2)]
    assert rows[0].person_score == pytest.approx(0.9)
    for row in rows[1:]:
        assert row.corners == pytest.approx(moving(row.time), abs=0.02)
        assert [name for name, _ in row.labels] == ["bright"], "the threshold leaves one"


def test_moments_that_the_video_does_not_have_are_refused(tmp_path, process):
    path = str(write_clip(tmp_path / "v.mp4", frames=20, fps=10))
    boxes = given(tmp_path, "902,0.1,0.2,0.3,0.4\n")
    labeller = PeopleLabeller(Brightness(), None, process)
    info = labeller.open(path)
    frames = boxes.frames(boxes.rows, (96, 64))
    with pytest.raises(DataError, match=r"boxes\.csv:1: second 902 is not in .*--boxes-start"):
        list(labeller(info, frames))
    (row,) = labeller(info, frames, begin=901)
    assert (row.second, row.time) == (902, 1)


@pytest.mark.parametrize(
    "wrong", [{"every": 0}, {"every": float("nan")}, {"top_k": 0}, {"threshold": 1.5}], ids=str
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UserError, match="--"):
        LabelSettings(**wrong)


def test_without_boxes_the_whole_picture_is_labelled_and_a_line_says_so(weights):
    said = []
    predictor = Predictor.load(weights=weights, warn=said.append)
    assert predictor.classes == BOX_CLASSES
    assert any("the whole picture is taken as one" in line for line in said)


def test_a_model_without_boxes_is_refused():
    model = video(num_classes=3)
    with pytest.raises(UserError, match=r"labels whole clips.*hiera-video predict"):
        BoxScorer(model, SPEC, BOX_CLASSES)


# ---- people are found ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everybody(tmp_path_factory):
    """Weights of the quick detector, random, with which it takes most things for a person."""
    torch.manual_seed(0)
    network = people.build(people.QUICK)
    with torch.no_grad():
        network.roi_heads.box_predictor.cls_score.bias[people.PERSON] = 6.0
    path = tmp_path_factory.mktemp("person") / "everybody.pth"
    # as torchvision's file has them: with frozen statistics, which count no batches
    state = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    torch.save(state, path)
    return str(path)


def test_the_detector_is_torchvisions(everybody):
    """Our input and output around its network, against torchvision's own use of it."""
    from PIL import Image
    from torchvision.models import get_model_weights

    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(0, 255, (12, 16, 3)), np.ones((10, 10, 1))).astype(np.uint8)
    device = torch.device("cpu")
    detector = people.PersonDetector.load(
        people.DetectorSource(file=everybody, threshold=0.3), device
    )
    corners, scores = detector(picture)

    network = people.build(people.QUICK, threshold=0.3).eval()
    network.load_state_dict(torch.load(everybody, weights_only=True), strict=False)
    prepare = get_model_weights(people.QUICK)["COCO_V1"].transforms()
    with torch.inference_mode():
        (found,) = network([prepare(Image.fromarray(picture))])
    persons = found["labels"] == people.PERSON
    expected = found["boxes"][persons] / torch.tensor([160, 120, 160, 120])
    assert len(corners) == int(persons.sum()) > 3
    np.testing.assert_allclose(corners, expected, atol=1e-5)
    np.testing.assert_allclose(scores, found["scores"][persons], atol=1e-6)
    assert (np.diff(scores) <= 0).all()


def test_only_people_are_kept_inside_the_picture():
    found = {
        "boxes": torch.tensor([[0, 0, 50, 50], [-9, 5, 120, 40], [1, 1, 9, 9], [7, 7, 7, 9.0]]),
        "labels": torch.tensor([3, 1, 1, 1]),
        "scores": torch.tensor([0.99, 0.85, 0.5, 0.9]),
    }
    corners, scores = people.people_of(found, (100, 50), 0.8)
    assert corners.tolist() == [[0.0, 0.1, 1.0, 0.8]]
    assert scores == pytest.approx([0.85])
    nothing = {key: value[:0] for key, value in found.items()}
    corners, scores = people.people_of(nothing, (100, 50), 0.8)
    assert corners.shape == (0, 4)


@pytest.mark.parametrize("name", people.ARGUMENTS)
def test_the_public_weights_have_an_address_with_their_digits(name):
    url = people.address(name)
    assert url.startswith("https://")
    expected = url.rsplit("-", 1)[1].removesuffix(".pth")
    assert len(expected) == 8
    int(expected, 16)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def unreachable(url):
        raise OSError(111, "Connection refused")

    monkeypatch.setattr(download, "_open", unreachable)
    return tmp_path / "torch"


@pytest.mark.parametrize("offline", [False, True])
def test_without_weights_it_says_what_to_fetch_and_where_to_put_it(cache, offline):
    network = download.without_network() if offline else contextlib.nullcontext()
    with pytest.raises(WeightsError) as error, network:
        people.find_weights(people.DetectorSource())
    said = str(error.value)
    assert ("--offline" if offline else "Connection refused") in said
    assert people.address(people.QUICK) in said
    assert str(cache / "hiera_video" / "fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth") in said
    assert "--person-weights FILE" in said
    assert "--boxes FILE" in said
    assert not download.is_offline()


@pytest.mark.parametrize("folder", ["hiera_video", "hub/checkpoints"])
def test_weights_in_a_cache_are_used_if_their_digits_are_right(cache, monkeypatch, folder):
    content = b"whatever the file holds"
    digits = hashlib.sha256(content).hexdigest()[:8]
    monkeypatch.setattr(people, "address", lambda name: f"https://host/models/net-{digits}.pth")
    place = cache / folder / f"net-{digits}.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    said = []
    found = people.find_weights(people.DetectorSource(warn=said.append))
    assert found == str(place)
    assert "BSD-3-Clause" in said[0]
    place.write_text("<!DOCTYPE html><html>sign in</html>")
    with pytest.raises(WeightsError, match=rf"is not what https://host.*not {digits}.*Delete it"):
        people.find_weights(people.DetectorSource())


def test_files_that_are_no_detector_are_refused(tmp_path, weights):
    network = people.build(people.QUICK)
    page = tmp_path / "page.pth"
    page.write_text("<!DOCTYPE html><html>sign in</html>")
    with pytest.raises(WeightsError, match="web page"):
        people.load_state(network, str(page))
    with pytest.raises(WeightsError, match=r"does not hold the weights of the person detector"):
        people.load_state(network, weights)
    with pytest.raises(WeightsError, match="no such weights file"):
        people.load_state(network, str(tmp_path / "gone.pth"))
    with pytest.raises(UserError, match=r"--person-model yolo: choose fasterrcnn_mobilenet"):
        people.check_name("yolo")


# ---- drawing ------------------------------------------------------------------------------------


def track(times, boxes, person=1):
    lines = tuple((f"person {person}", f"label {i}") for i in range(len(times)))
    return DrawnTrack(person, np.array(times, float), np.array(boxes, float), lines)


def test_a_box_moves_evenly_between_key_frames():
    one = track([1, 2, 5], [[0, 0, 0.2, 0.2], [0.4, 0, 0.6, 0.2], [0.8, 0.8, 1, 1]])
    box, lines = one.at(1.25, 1.0)
    assert box == pytest.approx([0.1, 0, 0.3, 0.2])
    assert lines == ("person 1", "label 0")
    box, lines = one.at(1.75, 1.0)
    assert box == pytest.approx([0.3, 0, 0.5, 0.2])
    assert lines[1] == "label 1"
    assert one.at(0.6, 1.0)[0] == pytest.approx([0, 0, 0.2, 0.2])
    assert one.at(0.4, 1.0) is None
    assert one.at(2.4, 1.0)[0] == pytest.approx([0.4, 0, 0.6, 0.2])
    assert one.at(3.5, 1.0) is None, "a gap of three seconds is no movement"
    assert one.at(4.6, 1.0) is not None
    assert one.at(5.6, 1.0) is None


def test_rows_become_tracks():
    def row(second, person, labels):
        return PersonRow(second, second - 900, person, (0.1, 0.1, 0.5, 0.5), labels, None)

    drawn = drawing_of(
        [row(900, 1, (("a", 0.9), ("b", 0.02))), row(900, 2, ()), row(900.5, 1, (("b", 0.5),))], 1.0
    )
    assert drawn.step == 0.5
    assert [one.person for one in drawn.tracks] == [1, 2]
    assert drawn.tracks[0].lines == (("person 1", "a 90%"), ("person 1", "b 50%"))
    assert drawn.tracks[1].lines == (("person 2",),)
    assert pickle.loads(pickle.dumps(drawn)).tracks[1].person == 2
    assert drawing_of([], 1.0).tracks == ()


@pytest.mark.parametrize("size", [(160, 96), (96, 160), (640, 480)], ids=str)
def test_the_box_is_drawn_where_it_is(size):
    width, height = size
    picture = np.full((height, width, 3), 100, np.uint8)
    PeopleDrawing((track([0], [[0.25, 0.5, 0.75, 1.0]]),), 1.0).put(picture, 0.2)
    coloured = (picture == COLOURS[0]).all(axis=2)
    rows, columns = np.nonzero(coloured)
    assert columns.min() == round(0.25 * width)
    assert columns.max() == round(0.75 * width) - 1
    assert rows.max() == height - 1
    before = picture.copy()
    PeopleDrawing((track([0], [[0.25, 0.5, 0.75, 1.0]]),), 1.0).put(picture, 9.0)
    assert (picture == before).all(), "nobody is there"


@pytest.mark.parametrize("size", [(20, 16), (300, 8), (2, 2)], ids=str)
def test_the_smallest_picture_can_be_drawn_on(size):
    picture = np.full((size[1], size[0], 3), 100, np.uint8)
    boxes = [[0.99, 0.99, 1.0, 1.0], [0.0, 0.0, 0.01, 0.01]]
    drawn = (track([0], boxes[:1]), track([0], boxes[1:], person=23))
    PeopleDrawing(drawn, 1.0).put(picture, 0.0)
    assert (picture != 100).any()


def test_the_copy_has_the_boxes_at_their_times(tmp_path):
    """Key frames at 0 and 1: halfway the box is halfway; sound and times stay."""
    path = bright_box_clip(tmp_path / "v.mp4", moving, size=(320, 192), audio=True)
    target = tmp_path / "out.mp4"
    boxes = [list(moving(time)) for time in (0, 1)]
    write_drawn_video(path, target, PeopleDrawing((track([0, 1], boxes),), 1.0))
    info = probe(target)
    np.testing.assert_allclose(info.times, probe(path).times, atol=2e-3)
    import av

    with av.open(str(target)) as container:
        assert [stream.codec_context.name for stream in container.streams.audio] == ["aac"]
    frames = read_frames(target, [0, 5, 10, 20]).float()
    yellow = (frames[:, 0] > 150) & (frames[:, 1] > 110) & (frames[:, 2] < 90)
    for index, time in ((0, 0.0), (1, 0.5), (2, 1.0)):
        lower = yellow[index, 100:].any(dim=0).nonzero()[:, 0]
        assert lower.min() / 320 == pytest.approx(moving(time)[0], abs=0.02)
        assert lower.max() / 320 == pytest.approx(moving(time)[2], abs=0.02)
    assert not yellow[3].any(), "a second after the last key frame nobody is shown"


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder: a clip, its boxes, and files that are no video."""
    bright_box_clip(tmp_path / "clip ü.mp4", moving)
    write_audio_only(tmp_path / "sound.mp4")
    (tmp_path / "bad.mp4").write_text("not a video")
    lines = [f"clip ü,{t},{','.join(map(str, moving(t)))}\n" for t in (0, 1, 2)]
    (tmp_path / "boxes.csv").write_text("".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(weights, capsys):
    """Run the command on the CPU: (exit code, stdout, stderr)."""

    def run(*arguments):
        argv = ["--weights", weights, "--device", "cpu", *map(str, arguments)]
        try:
            code = detect.main(argv)
        except UserError as error:  # cli.run makes this exit code 2
            code = 2
            print(f"error: {error}", file=sys.stderr)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def rows_of(path):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_the_whole_command_in_a_process_of_its_own(folder, weights):
    words = ["clip ü.mp4", "--boxes", "boxes.csv", "--weights", weights, "--top-k", "2"]
    outputs = ["--json", "-", "--csv", "people.csv", "--video", "out.mp4", "--device", "cpu"]
    script = str(REPOSITORY / "demo" / "detect.py")
    done = subprocess.run(
        [sys.executable, script, *words, *outputs], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (one,) = json.loads(done.stdout)
    assert (one["file"], one["error"], one["model"]) == (
        "clip ü.mp4",
        None,
        "hiera_tiny_16x224_ava",
    )
    assert [(row["second"], row["person"]) for row in one["people"]] == [(0, 1), (1, 1), (2, 1)]
    rows = rows_of("people.csv")
    assert list(rows[0]) == detect.columns(2)
    for row, entry in zip(rows, one["people"], strict=True):
        assert row["file"] == "clip ü.mp4"
        assert float(row["x1"]) == entry["x1"]
        assert len(entry["labels"]) == 2
        assert float(row["score1"]) == entry["labels"][0]["score"]
        assert row["label1"].lstrip("'") == entry["labels"][0]["label"]
    assert probe("out.mp4").num_frames == 30
    assert "wrote out.mp4" in done.stderr

    # the scores are those of the model on the clip and the box
    scorer = BoxScorer.load(ModelChoice(weights, device="cpu"), print)
    info = probe("clip ü.mp4")
    places, seen = squares_of(np.array([moving(1)]), info, 64)
    with reading_process() as process:
        (read,) = read_moments(
            "clip ü.mp4", [moment_at(info, 1.0, SPEC)], MomentRequest(64, 0), process
        )
    boxes = torch.from_numpy(np.column_stack([[0], seen])).float()
    (expected,) = scorer(read.clips[places], boxes)
    best = expected.topk(2)
    assert [label["score"] for label in one["people"][1]["labels"]] == pytest.approx(
        best.values.tolist(), abs=1e-5
    )


def test_the_csv_can_be_given_as_boxes_again(folder, call):
    assert call("clip ü.mp4", "bad.mp4", "--boxes", "boxes.csv", "--csv", "a.csv")[0] == 1
    code, _, err = call("clip ü.mp4", "--boxes", "a.csv", "--csv", "b.csv")
    assert code == 0, err
    first = [row for row in rows_of("a.csv") if not row["error"]]
    assert first == rows_of("b.csv")
    assert len(first) == 3


def test_a_bad_file_is_reported_and_the_rest_is_labelled(folder, call):
    code, out, err = call(".", "gone.mp4", "--boxes", "boxes.csv", "--json", "all.json")
    assert code == 1
    assert "person 1" in out
    assert "error: ./bad.mp4: " in err
    assert "3 of 4 files could not be labelled" in err
    content = {one["file"]: one for one in json.loads((folder / "all.json").read_text("utf-8"))}
    assert "only audio" in content["./sound.mp4"]["error"]
    assert content["gone.mp4"]["error"] == "no such file or folder"
    assert content["./clip ü.mp4"]["error"] is None
    assert len(content["./clip ü.mp4"]["people"]) == 3


def test_people_are_found_with_real_weights_of_the_architecture(folder, call, everybody):
    """Of random values: that they are people is not true, but that they are found is."""
    code, _, err = call(
        *("clip ü.mp4", "--person-weights", everybody, "--person-threshold", "0.4"),
        *("--every", "2", "--json", "found.json", "--video", "found.mp4"),
    )
    assert code == 0, err
    (one,) = json.loads((folder / "found.json").read_text("utf-8"))
    assert {row["second"] for row in one["people"]} == {0, 2}
    assert all(row["person_score"] >= 0.4 for row in one["people"])
    assert one["person_model"] == people.QUICK
    assert (folder / "found.mp4").exists()


def test_nobody_is_no_error(folder, call, everybody):
    code, out, _ = call(
        *("clip ü.mp4", "--person-weights", everybody, "--person-threshold", "1"),
        *("--csv", "none.csv", "--video", "none.mp4", "--every", "5"),
    )
    assert code == 0
    assert "nobody is found in it" in out
    assert rows_of("none.csv") == []
    assert probe("none.mp4").num_frames == 30


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["clip ü.mp4", "--boxes", "boxes.csv", "--csv", "x.mp4"], "named like a video"),
        (["clip ü.mp4", "--boxes", "boxes.csv", "--json", "clip ü.mp4"], "named like a video"),
        (["clip ü.mp4", "--boxes", "boxes.csv", "--csv", "no/x.csv"], "--csv: cannot write"),
        (["clip ü.mp4", "--boxes", "boxes.csv", "--json", "no/x.json"], "--json: cannot write"),
        (["clip ü.mp4", "--boxes", "boxes.csv", "--video", "x.avi"], "--video: x.avi"),
        (["clip ü.mp4", "--boxes", "boxes.csv", "--video", "clip ü.mp4"], "is the video that"),
        ([".", "--boxes", "boxes.csv", "--video", "x.mp4"], "3 videos are labelled"),
        (["clip ü.mp4", "--boxes", "boxes.csv", "--every", "2"], "--every is for looking"),
        (["clip ü.mp4", "--pixels"], "--pixels is about boxes"),
        (["bad.mp4", "--boxes", "boxes.csv"], "has boxes of clip ü, and none of bad.mp4"),
        (["clip ü.mp4", "--boxes", "gone.csv"], "cannot read gone.csv"),
        (["gone.mp4"], "no such file"),
        (["clip ü.mp4", "--person-model", "yolo"], "--person-model yolo: choose"),
        (["clip ü.mp4", "--person-threshold", "2"], "--person-threshold 2"),
        (["clip ü.mp4", "--boxes", "boxes.csv", "--threshold", "7"], "--threshold 7"),
    ],
)
def test_what_is_not_possible_is_refused_before_the_work(folder, call, words, said):
    code, out, err = call(*words)
    assert code == 2
    assert said in err
    assert out == ""
    assert not {p.name for p in folder.iterdir()} - {
        "clip ü.mp4",
        "boxes.csv",
        "bad.mp4",
        "sound.mp4",
    }


def test_weights_must_be_named():
    with pytest.raises(UserError, match=r"--weights W.*hiera-video train quickstart/detect"):
        detect.main(["clip.mp4"])


def test_ctrl_c_keeps_what_is_done(folder, call, monkeypatch):
    real = BoxScorer.__call__
    done = []

    def interrupted(self, clips, boxes):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return real(self, clips, boxes)

    monkeypatch.setattr(BoxScorer, "__call__", interrupted)
    words = ("--csv", "a.csv", "--json", "a.json", "--video", "a.mp4")
    code, _, err = call("clip ü.mp4", "--boxes", "boxes.csv", *words)
    assert code == 130
    assert "interrupted after 0 of 1 files" in err
    rows = rows_of("a.csv")
    assert [row["second"] for row in rows] == ["0.0", "1.0", ""]
    assert rows[-1]["error"] == "interrupted"
    (one,) = json.loads((folder / "a.json").read_text("utf-8"))
    assert len(one["people"]) == 2
    assert not (folder / "a.mp4").exists()


def test_a_hostile_file_costs_its_own_labels_alone(folder, call, repository):
    hostile = repository.parent / "shared" / "data" / "hostile"
    if not hostile.is_dir():
        pytest.skip("../shared/data/hostile is not there")
    names = ["bomb_16000x16000_2frames.mkv", "playlist_local_file.m3u8", "moov_missing.mp4"]
    files = [str(hostile / name) for name in names]
    code, _, err = call("clip ü.mp4", *files, "--boxes", "boxes.csv", "--json", "a.json")
    assert code == 1, err
    content = json.loads((folder / "a.json").read_text("utf-8"))
    assert [one["error"] is None for one in content] == [True, False, False, False]
