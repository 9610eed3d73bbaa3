"""Lists in every layout; wrong ones are refused with the file, the line, and what is allowed."""

import json
import os
import pickle

import numpy as np
import pytest

from hiera_video.data.manifests.detection import recognized_by
from hiera_video.data.manifests.layouts import (
    Source,
    detect_format,
    read_class_names,
    read_manifest,
)
from hiera_video.errors import DataError
from hiera_video.registry import DATASET_REGISTRY, UnknownNameError


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def touch(root, *names):
    for name in names:
        write(root / name, "")


def listed(manifest):
    return [(manifest.paths.relative(i), manifest.label(i)) for i in range(len(manifest))]


# ---- SlowFast's csv -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a.mp4 3", ("a.mp4", 3)),
        ("my holiday video.mp4 3", ("my holiday video.mp4", 3)),
        ("a.mp4 120 3", ("a.mp4", 3)),
        ("my video.mp4 120 3", ("my video.mp4", 3)),
        ("take 2.mp4 3", ("take 2.mp4", 3)),
        ("a.mp4,3", ("a.mp4", 3)),
        ("one, two.mp4,300,3", ("one, two.mp4", 3)),
        ('"one, two.mp4",3', ("one, two.mp4", 3)),
        ('"say ""hi"".mp4",3', ('say "hi".mp4', 3)),
        ("a b\t3", ("a b", 3)),
        ("a;3", ("a", 3)),
        ("видео (1).mp4 3", ("видео (1).mp4", 3)),
        ("a.mp4  3 ", ("a.mp4", 3)),
    ],
)
def test_lines_are_split_from_the_right(tmp_path, line, expected):
    file = write(tmp_path / "train.csv", f"{line}\r\n\n{line}\n")
    assert listed(read_manifest(file)) == [expected, expected]


def test_a_path_that_ends_in_a_number_is_told_from_a_frame_count_by_looking(tmp_path):
    file = write(tmp_path / "train.csv", "take 7 3\n")
    assert listed(read_manifest(file)) == [("take", 3)]
    (tmp_path / "take 7").mkdir()
    assert listed(read_manifest(file)) == [("take 7", 3)]


def test_one_column_lists_are_for_pretraining_only(tmp_path):
    file = write(tmp_path / "train.csv", "a.mp4\nmy video.mp4\nb c.webm\n")
    manifest = read_manifest(file, need_labels=False)
    assert listed(manifest) == [("a.mp4", -1), ("my video.mp4", -1), ("b c.webm", -1)]
    assert manifest.num_classes == 0
    with pytest.raises(DataError, match=r"train.csv:1: 'a.mp4' has no label.*pretraining"):
        read_manifest(file)


def test_a_header_and_a_byte_order_mark_are_no_videos(tmp_path):
    file = tmp_path / "train.csv"
    file.write_bytes(b"\xef\xbb\xbfpath,label\na.mp4,1\n")
    assert listed(read_manifest(file)) == [("a.mp4", 1)]


@pytest.mark.parametrize("name", ["video 1.mp4", "path,to.mp4", "File clips/a.mp4"])
def test_a_first_video_that_starts_like_a_header_is_a_video(tmp_path, name):
    file = write(tmp_path / "train.csv", f"{name} 1\nb.mp4 0\n")
    assert listed(read_manifest(file)) == [(name, 1), ("b.mp4", 0)]
    file = write(tmp_path / "bare.csv", f"{name}\nb.mp4\n")
    assert len(read_manifest(file, need_labels=False)) == 2


def test_names_that_are_not_utf8_survive(tmp_path):
    file = tmp_path / "train.csv"
    file.write_bytes(b"caf\xe9.mp4 1\n")
    open(os.fsencode(tmp_path) + b"/caf\xe9.mp4", "wb").close()
    assert os.fsencode(read_manifest(file).paths[0]).endswith(b"caf\xe9.mp4")


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("a.mp4 0\nb.mp4 x\n", {}, r"train.csv:2: label 'x' is not a whole number"),
        ("a.mp4 0\nb.mp4 1.5\n", {}, r"train.csv:2: label '1.5' is not a whole number"),
        ("a.mp4 0\n\nb.mp4 10\n", {"num_classes": 10}, r"csv:3: label 10 is out of range.* 0 to 9"),
        ("a.mp4 -1\n", {}, r"train.csv:1: label -1 is out of range|has no label"),
        ("a.mp4 99999999999\n", {}, r"train.csv:1: label 99999999999 is out of range"),
        ("a.mp4 2\n", {"classes": ("x", "y")}, r"label 2 is out of range.* for 2 classes"),
        ("a.mp4,3\n", {"separator": " "}, r"train.csv:1: .*DATA.PATH_LABEL_SEPARATOR"),
        ("a.mp4 0\nb.mp4\n", {}, r"train.csv:2: 'b.mp4' has no label"),
        ("a\0b.mp4 0\n", {}, r"train.csv:1: .* is not a path"),
        ("", {}, r"train.csv: the list is empty; expected a line 'path label'"),
        ("\n \n", {}, r"the list is empty"),
        ("path label\n", {}, r"the list is empty"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, text, settings, message):
    file = write(tmp_path / "train.csv", text)
    with pytest.raises(DataError, match=message):
        read_manifest(file, **settings)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no such file or folder: .*nowhere"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no videos in .*train.csv"):
        read_manifest(tmp_path)
    touch(tmp_path, "a.mp4")
    with pytest.raises(DataError, match=r"is a video; name a list"):
        read_manifest(tmp_path / "a.mp4")
    with pytest.raises(DataError, match="split='dev' is not known"):
        read_manifest(tmp_path, "dev")
    with pytest.raises(UnknownNameError, match="kinetics_csv"):
        read_manifest(tmp_path, format="kinetics_cvs")


def test_paths_start_at_the_prefix_else_at_the_list_else_here(tmp_path, monkeypatch):
    file = write(tmp_path / "lists" / "train.csv", "v/a.mp4 0\n/abs/b.mp4 1\n")
    assert read_manifest(file).paths[0] == str(tmp_path / "lists" / "v/a.mp4")
    assert read_manifest(file).paths[1] == "/abs/b.mp4"
    assert read_manifest(file, path_prefix="/videos").paths[0] == "/videos/v/a.mp4"
    touch(tmp_path, "v/a.mp4")
    monkeypatch.chdir(tmp_path)
    assert os.path.exists(read_manifest(file).paths[0])


def test_a_split_without_a_list_of_its_own_borrows_and_says_so(tmp_path):
    write(tmp_path / "train.csv", "a.mp4 0\nb.mp4 1\n")
    with pytest.raises(DataError, match=r"no list for val .* expected val.csv"):
        read_manifest(tmp_path, "val")
    write(tmp_path / "val.csv", "c.mp4 1\n")
    assert read_manifest(tmp_path, "val").notes == ()
    test = read_manifest(tmp_path, "test")
    assert listed(test) == [("c.mp4", 1)]
    assert "val.csv is used instead" in test.notes[0]


def test_a_list_of_another_name_is_named(tmp_path):
    touch(tmp_path, "training_list.csv")
    with pytest.raises(DataError, match=r"no videos in .* Found training_list.csv: rename it"):
        read_manifest(tmp_path)
    write(tmp_path / "train.csv", "a.mp4 0\n")
    with pytest.raises(DataError, match=r"no list for val .* Found training_list.csv: rename it"):
        read_manifest(tmp_path, "val")


def test_class_names_beside_the_list_are_taken(tmp_path):
    write(tmp_path / "train.csv", "a.mp4 0\n")
    assert read_manifest(tmp_path).classes is None
    assert read_manifest(tmp_path, num_classes=5).num_classes == 5
    write(tmp_path / "classnames.json", '{"jump": 1, "\\"run fast\\"": 0}')
    manifest = read_manifest(tmp_path)
    assert manifest.classes == ("run fast", "jump")
    assert manifest.num_classes == 2


def test_several_labels_per_video(tmp_path):
    for text in (
        "my a.mp4 3 0 1\nb.mp4 2\n",
        "my a.mp4,3 0 1\nb.mp4,2\n",
        "my a.mp4 3,0,1\nb.mp4 2\n",
    ):
        manifest = read_manifest(write(tmp_path / "train.csv", text), multi_label=True)
        assert listed(manifest) == [("my a.mp4", (0, 1, 3)), ("b.mp4", (2,))]
        assert manifest.multi_label
        assert manifest.num_classes == 4
        assert manifest.class_counts().tolist() == [1, 1, 1, 1]
    write(tmp_path / "train.csv", "a.mp4 0\nb.mp4 1,7\n")
    with pytest.raises(DataError, match=r"train.csv:2: label 7 is out of range"):
        read_manifest(tmp_path, multi_label=True, num_classes=4)
    write(tmp_path / "train.csv", "a.mp4 0\nb.mp4 x\n")
    with pytest.raises(DataError, match=r"train.csv:2: label 'x' is not a whole number"):
        read_manifest(tmp_path, multi_label=True)


def test_a_long_list_stays_small(tmp_path):
    count = 20_000
    lines = (f"some/folder/of/videos/video_{i:08d}.mp4 {i % 400}\n" for i in range(count))
    manifest = read_manifest(write(tmp_path / "train.csv", "".join(lines)))
    assert len(manifest) == count
    assert manifest.paths.relative(count - 1) == f"some/folder/of/videos/video_{count - 1:08d}.mp4"
    assert manifest.paths[-1] == manifest.paths[count - 1]
    assert manifest.class_counts().tolist() == [count // 400] * 400
    with pytest.raises(IndexError):
        manifest.paths[count]
    assert len(pickle.dumps(manifest)) < count * 60


# ---- official Kinetics --------------------------------------------------------------------------

OFFICIAL = """label,youtube_id,time_start,time_end,split
"doing, things",-abc_DEF012,10,20,train
archery,zzzzzzzzzzz,0,10,train
archery,yyyyyyyyyyy,123456,123466,validate
"""


def test_official_kinetics_finds_the_files_by_name(tmp_path):
    write(tmp_path / "kinetics.csv", OFFICIAL)
    touch(tmp_path / "videos", "x/-abc_DEF012_000010_000020.mp4", "yyyyyyyyyyy_123456_123466.mkv")
    settings = {"path_prefix": str(tmp_path / "videos")}
    assert detect_format(tmp_path / "kinetics.csv") == "kinetics_official"
    train = read_manifest(tmp_path / "kinetics.csv", "train", format="kinetics", **settings)
    assert train.classes == ("archery", "doing, things")
    assert listed(train) == [
        (os.path.join("x", "-abc_DEF012_000010_000020.mp4"), 1),
        ("zzzzzzzzzzz_000000_000010.mp4", 0),
    ]
    assert "1 of the 2 videos" in train.notes[0]
    val = read_manifest(tmp_path / "kinetics.csv", "val", classes=train.classes, **settings)
    assert listed(val) == [("yyyyyyyyyyy_123456_123466.mkv", 0)]
    with pytest.raises(
        DataError, match=r"kinetics.csv:4: class 'archery' is not among the 1 known"
    ):
        read_manifest(tmp_path / "kinetics.csv", "val", classes=("doing, things",), **settings)


def test_official_kinetics_without_videos_or_with_wrong_lines(tmp_path):
    file = write(tmp_path / "train.csv", OFFICIAL)
    with pytest.raises(DataError, match=r"none of the 2 videos .*-abc_DEF012_000010_000020.mp4"):
        read_manifest(tmp_path, "train")
    touch(tmp_path, "zzzzzzzzzzz_000000_000010.mp4")
    write(file, OFFICIAL.replace(",0,10,", ",zero,10,"))
    with pytest.raises(DataError, match=r"train.csv:3: time_start 'zero'"):
        read_manifest(tmp_path, "train")
    write(file, OFFICIAL + "one,column\n")
    with pytest.raises(DataError, match=r"train.csv:5: expected 5 columns"):
        read_manifest(tmp_path, "train")


# ---- Something-Something v2 ---------------------------------------------------------------------


@pytest.fixture
def ssv2(tmp_path):
    labels = {"Pushing something left": "1", "Holding something": "0"}
    train = [
        {"id": "7", "template": "Pushing [something] left", "label": "pushing a cup left"},
        {"id": "12", "template": "Holding [something]"},
    ]
    write(tmp_path / "something-something-v2-labels.json", json.dumps(labels))
    write(tmp_path / "something-something-v2-train.json", json.dumps(train))
    write(tmp_path / "something-something-v2-validation.json", json.dumps(train[1:]))
    write(tmp_path / "something-something-v2-test.json", '[{"id": "9"}]')
    return tmp_path


def test_ssv2_with_videos(ssv2):
    touch(ssv2 / "20bn-something-something-v2", "7.webm", "12.webm")
    train = read_manifest(ssv2, "train")
    assert train.name == "ssv2"
    assert train.classes == ("Holding something", "Pushing something left")
    assert listed(train) == [("7.webm", 1), ("12.webm", 0)]
    assert listed(read_manifest(ssv2, "val")) == [("12.webm", 0)]
    assert train.paths[0] == str(ssv2 / "20bn-something-something-v2" / "7.webm")


def test_ssv2_with_folders_of_frames(ssv2):
    touch(ssv2 / "frames", "7/000001.jpg", "12/000001.jpg")
    assert listed(read_manifest(ssv2, "train")) == [("7", 1), ("12", 0)]


def test_ssv2_errors(ssv2):
    with pytest.raises(DataError, match=r"none of the first 2 videos .* looked for 7.webm"):
        read_manifest(ssv2, "train")
    touch(ssv2 / "videos", "7.mp4", "9.mp4")
    with pytest.raises(DataError, match=r"test.json: entry 1: no label"):
        read_manifest(ssv2, "test")
    assert len(read_manifest(ssv2, "test", need_labels=False)) == 1
    write(ssv2 / "something-something-v2-train.json", '[{"id": "7", "template": "Eating"}]')
    with pytest.raises(DataError, match=r"entry 1: class 'Eating' is not among the 2 known"):
        read_manifest(ssv2, "train")
    write(ssv2 / "something-something-v2-train.json", '[{"id": ')
    with pytest.raises(DataError, match=r"train.json is not valid JSON"):
        read_manifest(ssv2, "train")
    (ssv2 / "something-something-v2-train.json").unlink()
    with pytest.raises(
        DataError, match=r"list of videos is missing .*something-something-v2-train"
    ):
        read_manifest(ssv2, "train")


# ---- UCF101 and HMDB51 --------------------------------------------------------------------------


def test_ucf101(tmp_path):
    lists = tmp_path / "ucfTrainTestlist"
    write(lists / "classInd.txt", "1 ApplyEyeMakeup\r\n2 Archery\r\n")
    write(lists / "trainlist01.txt", "ApplyEyeMakeup/v_a_g08.avi 1\r\nArchery/v_b.avi 2\r\n")
    write(lists / "testlist01.txt", "Archery/v_c.avi\r\n")
    write(lists / "trainlist02.txt", "Archery/v_c.avi 2\n")
    touch(tmp_path / "UCF-101", "ApplyEyeMakeup/v_a_g08.avi", "Archery/v_b.avi", "Archery/v_c.avi")
    train = read_manifest(tmp_path, "train")
    assert train.name == "ucf101"
    assert train.classes == ("ApplyEyeMakeup", "Archery")
    assert listed(train) == [("ApplyEyeMakeup/v_a_g08.avi", 0), ("Archery/v_b.avi", 1)]
    assert os.path.exists(train.paths[0])
    assert listed(read_manifest(tmp_path, "val")) == [("Archery/v_c.avi", 1)]
    for split in ("val", "test"):
        assert "no independent figure" in read_manifest(tmp_path, split).notes[0]
    assert listed(read_manifest(tmp_path, "train", fold=2)) == [("Archery/v_c.avi", 1)]
    with pytest.raises(DataError, match=r"split 4 .*1 to 3"):
        read_manifest(tmp_path, "train", fold=4)
    with pytest.raises(DataError, match=r"trainlist03.txt"):
        read_manifest(tmp_path, "train", fold=3)


def test_hmdb51(tmp_path):
    lists = tmp_path / "testTrainMulti_7030_splits"
    write(lists / "wave_test_split1.txt", "a wave.avi 1 \nb.avi 2 \nc.avi 0 \n")
    write(lists / "brush_hair_test_split1.txt", "d.avi 1 \n")
    touch(tmp_path, "wave/a wave.avi", "brush_hair/d.avi", "wave/b.avi")
    train = read_manifest(tmp_path, "train")
    assert train.name == "hmdb51"
    assert train.classes == ("brush_hair", "wave")
    assert listed(train) == [("brush_hair/d.avi", 0), ("wave/a wave.avi", 1)]
    assert listed(read_manifest(tmp_path, "test")) == [("wave/b.avi", 1)]
    write(lists / "wave_test_split1.txt", "a.avi 3\n")
    with pytest.raises(DataError, match=r"wave_test_split1.txt:1: 'a.avi 3' must be"):
        read_manifest(tmp_path, "train")
    with pytest.raises(DataError, match=r"no CLASS_test_split2.txt"):
        read_manifest(tmp_path, "train", fold=2)


# ---- names of classes, and a reader of one's own ------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"x y": 0, "z": 1}'),
        ("a.json", '{"0": "x y", "1": "z"}'),
        ("a.json", '["x y", "z"]'),
        ("a.txt", "x y\nz\n"),
        ("a.txt", "1 x y\r\n2 z\r\n"),
        ("a.csv", "id,name\n1,z\n0,x y\n"),
    ],
)
def test_class_names_in_every_form(tmp_path, name, text):
    assert read_class_names(write(tmp_path / name, text)) == ["x y", "z"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"x": 0, "y": 2}', "numbered 0 to 1"),
        ("a.json", '{"x": 0, "y": 0}', "numbered 0 to 1"),
        ("a.json", '{"x": "first"}', "not a whole number"),
        ("a.json", "3", "expected a list of names"),
        ("a.txt", "x\nx\n", "more than once: 'x'"),
        ("a.txt", "", "no class names"),
        ("a.csv", "number,name\n", "no column id"),
    ],
)
def test_wrong_class_names(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        read_class_names(write(tmp_path / name, text))


def test_missing_class_names(tmp_path):
    with pytest.raises(DataError, match=r"no such file of class names: .*DATA.CLASS_NAMES"):
        read_class_names(tmp_path / "none.txt")


def test_every_layout_is_registered_and_a_new_one_joins(tmp_path):
    names = {"kinetics_csv", "kinetics_official", "ssv2", "folder", "ucf101", "hmdb51", "video"}
    assert names <= set(DATASET_REGISTRY.names())

    def read_mine(source: Source):
        return source.split

    DATASET_REGISTRY.register(name="mine_for_a_test")(read_mine)
    assert read_manifest(tmp_path, "val", format="mine_for_a_test") == "val"


def test_labels_are_numbers_that_torch_takes(tmp_path):
    manifest = read_manifest(write(tmp_path / "train.csv", "a.mp4 0\nb.mp4 1\n"))
    assert manifest.labels.dtype == np.int64
    assert type(manifest.label(0)) is int


# ---- recognising a layout -----------------------------------------------------------------------


def test_a_reader_from_outside_is_asked_before_the_package_s_own(tmp_path, monkeypatch):
    write(tmp_path / "train.csv", "a.mp4 0\n")
    assert detect_format(tmp_path) == "kinetics_csv"
    monkeypatch.setattr(DATASET_REGISTRY, "_obj_map", dict(DATASET_REGISTRY))
    is_mine = recognized_by(lambda path: (path / "mine.toy").is_file())
    DATASET_REGISTRY.register(name="mine")(is_mine(lambda source: source.split))
    assert detect_format(tmp_path) == "kinetics_csv"
    write(tmp_path / "mine.toy", "")
    assert detect_format(tmp_path) == "mine"
    assert read_manifest(tmp_path, "val") == "val"


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (["train.csv", "labels.json"], "kinetics_csv"),  # a list decides before all else
        (["labels.json"], "ssv2"),
        (["classInd.txt"], "ucf101"),
        (["run_test_split1.txt"], "hmdb51"),
        (["a.mp4"], "folder"),
    ],
)
def test_the_layout_of_a_folder_is_told_by_its_files(tmp_path, names, layout):
    for name in names:
        write(tmp_path / name, "")
    assert detect_format(tmp_path) == layout
