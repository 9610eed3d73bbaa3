"""Folders of classes, with and without splits; what is held out stays held out, sources whole."""

import os

import pytest

from hiera_video.data.manifests.class_folders import predefined_split, source_lookup
from hiera_video.data.manifests.layouts import Source, read_manifest
from hiera_video.data.manifests.splits import FALLBACK, VideoEntry, hold_out
from hiera_video.errors import DataError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def listed(manifest):
    return [(manifest.paths.relative(i), manifest.label(i)) for i in range(len(manifest))]


def paths(manifest):
    return {manifest.paths.relative(i) for i in range(len(manifest))}


def test_splits_by_folder(tmp_path):
    touch(tmp_path, "train/b/x.mp4", "train/b/deep/er.MKV", "train/a/1.avi", "validation/a/2.mp4")
    touch(tmp_path, "train/a/notes.txt", "train/.cache/z.mp4", "train/a/.hidden.mp4")
    train = read_manifest(tmp_path, "train")
    assert train.name == "folder"
    assert train.classes == ("a", "b")
    assert listed(train) == [
        ("a/1.avi", 0),
        (os.path.join("b", "deep", "er.MKV"), 1),
        ("b/x.mp4", 1),
    ]
    val = read_manifest(tmp_path, "val")
    assert listed(val) == [("a/2.mp4", 0)]
    assert val.num_classes == 2
    test = read_manifest(tmp_path, "test")
    assert listed(test) == listed(val)
    assert "validation is used instead" in test.notes[0]
    assert set(FALLBACK) == {"val", "test"}


def test_a_split_may_not_bring_a_class_of_its_own(tmp_path):
    touch(tmp_path, "train/a/1.mp4", "val/c/2.mp4")
    with pytest.raises(DataError, match=r"class 'c' is not among the 1 known classes \('a'\)"):
        read_manifest(tmp_path, "val")


def test_train_alone_says_what_to_do(tmp_path):
    touch(tmp_path, "train/a/1.mp4")
    with pytest.raises(DataError, match=r"neither val nor test: add one, or remove the level"):
        read_manifest(tmp_path, "val")


def test_a_class_may_be_called_train(tmp_path):
    touch(tmp_path, *(f"{c}/{i}.mp4" for c in ("train", "bus") for i in range(5)))
    assert read_manifest(tmp_path, "train").classes == ("bus", "train")


def test_classes_without_videos_and_videos_without_class_are_told(tmp_path):
    touch(tmp_path, "a/1.mp4", "a/2.mp4", "docs/readme.txt", "loose.mp4")
    manifest = read_manifest(tmp_path, "train")
    assert manifest.classes == ("a",)
    assert any("'docs'" in note for note in manifest.notes)
    assert any(
        "1 videos in" in note and "outside a class folder" in note for note in manifest.notes
    )


def test_nothing_there_is_told(tmp_path):
    with pytest.raises(DataError, match=r"no videos in .*CLASS/video.mp4"):
        read_manifest(tmp_path, "train")
    touch(tmp_path, "one.mp4", "two.mp4")
    with pytest.raises(DataError, match=r"holds 2 videos but no folder of a class"):
        read_manifest(tmp_path, "train")
    assert (
        len(read_manifest(tmp_path, "train", need_labels=False))
        + len(read_manifest(tmp_path, "val", need_labels=False))
        == 2
    )


def test_links_are_followed_and_loops_are_not(tmp_path):
    touch(tmp_path / "store", "1.mp4", "2.mp4")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "again").symlink_to(tmp_path / "store")
    both = paths(read_manifest(tmp_path / "data", "train")) | paths(
        read_manifest(tmp_path / "data", "val")
    )
    assert both == {"a/1.mp4", "a/2.mp4"}


# ---- what is held out ---------------------------------------------------------------------------


def test_the_held_out_share_is_stratified_and_stable(tmp_path):
    touch(
        tmp_path,
        *(f"{c}/{i:02d}.mp4" for c, n in (("a", 20), ("b", 10), ("c", 1)) for i in range(n)),
    )
    train, val = (read_manifest(tmp_path, split, val_fraction=0.2) for split in ("train", "val"))
    assert paths(train) | paths(val) == {
        f"{c}/{i:02d}.mp4" for c, n in (("a", 20), ("b", 10), ("c", 1)) for i in range(n)
    }
    assert not paths(train) & paths(val)
    assert val.class_counts().tolist() == [4, 2, 0]  # a class of one video is for training
    assert train.classes == val.classes == ("a", "b", "c")
    assert paths(read_manifest(tmp_path, "val", seed=1)) != paths(val)
    # Written out, because another machine or version must hold out the same videos.
    assert sorted(paths(val)) == HELD_OUT


HELD_OUT = ["a/03.mp4", "a/06.mp4", "a/11.mp4", "a/19.mp4", "b/02.mp4", "b/05.mp4"]


def test_videos_of_one_source_stay_together(tmp_path):
    names = [f"{c}/{source}_{i}.mp4" for c in "ab" for source in range(8) for i in range(3)]
    touch(tmp_path, *names)
    group = r"([ab]/\d+)_\d+\.mp4"
    val = paths(read_manifest(tmp_path, "val", group_by=group, val_fraction=0.25))
    train = paths(read_manifest(tmp_path, "train", group_by=group, val_fraction=0.25))
    assert {name.rsplit("_")[0] for name in val}.isdisjoint(name.rsplit("_")[0] for name in train)
    assert len(val) == 12
    with pytest.raises(DataError, match=r"DATA.GROUP_BY.*regular expression"):
        read_manifest(tmp_path, "val", group_by="(")
    with pytest.raises(DataError, match="needs a group in brackets"):
        read_manifest(tmp_path, "val", group_by="source")


# ---- labels.csv ---------------------------------------------------------------------------------

LABELS = """path,label,label_id,source,fold
z/1 a.mp4,zebra,0,s1,0
z/2.mp4,zebra,0,s1,0
b/3.mp4,bear,1,s2,1
b/4.mp4,bear,1,s3,0
"""


def test_labels_csv_with_folds(tmp_path):
    (tmp_path / "labels.csv").write_text(LABELS)
    train, val = read_manifest(tmp_path, "train", fold=1), read_manifest(tmp_path, "val", fold=1)
    assert train.classes == ("zebra", "bear")
    assert listed(train) == [("z/1 a.mp4", 0), ("z/2.mp4", 0), ("b/4.mp4", 1)]
    assert listed(val) == [("b/3.mp4", 1)]
    assert "fold 1 of labels.csv is held out" in train.notes
    assert listed(read_manifest(tmp_path, "train")) == [
        ("b/3.mp4", 1)
    ]  # the first fold is held out
    with pytest.raises(DataError, match=r"no fold 5; it has 0, 1"):
        read_manifest(tmp_path, "val", fold=5)


def test_labels_csv_without_folds_holds_out_whole_sources(tmp_path):
    rows = [f"v{i}.mp4,{'ab'[i % 2]},s{i // 4}" for i in range(40)]
    (tmp_path / "labels.csv").write_text("path,label,source\n" + "\n".join(rows))
    train, val = (paths(read_manifest(tmp_path, split)) for split in ("train", "val"))
    sources = [{int(name[1:-4]) // 4 for name in names} for names in (train, val)]
    assert sources[0].isdisjoint(sources[1])
    assert len(train) + len(val) == 40
    assert 4 <= len(val) <= 12


def test_labels_csv_errors(tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text("path,what\na.mp4,x\n")
    with pytest.raises(DataError, match=r"no column label; its first line names the columns"):
        read_manifest(tmp_path)
    file.write_text(LABELS.replace("zebra,0,s1,0\nb", "zebra,1,s1,0\nb"))
    with pytest.raises(DataError, match=r"labels.csv:3: label 'zebra' has label_id 1, and 0"):
        read_manifest(tmp_path)
    file.write_text("path,label\n")
    with pytest.raises(DataError, match="no videos below the line"):
        read_manifest(tmp_path)
    file.write_text("path,label\na.mp4,\nb.mp4,x\nc.mp4,x\n")
    with pytest.raises(DataError, match=r"labels.csv:2: no label"):
        read_manifest(tmp_path)


def test_the_real_set_is_read_with_sources_apart(shared_data):
    folder = shared_data / "scfd_small"
    train, val = read_manifest(folder, "train", fold=2), read_manifest(folder, "val", fold=2)
    assert len(train) + len(val) == 300
    assert train.classes == ("noFight", "fight")
    assert all(os.path.exists(train.paths[i]) for i in range(0, len(train), 40))


# ---- which source a video is of -----------------------------------------------------------------


def namer(folder, group_by=""):
    return source_lookup(Source(path=folder, group_by=group_by))


def test_a_column_or_a_pattern_names_the_sources(tmp_path):
    touch(tmp_path, "a/x_1.mp4")
    assert namer(tmp_path) is None
    assert namer(tmp_path, r"(\w)_\d")("a/x_1.mp4") == "x"
    assert namer(tmp_path, r"(\w)_\d")("a/other.mp4") == ""
    (tmp_path / "labels.csv").write_text("path,label,source,film\na/x_1.mp4,a,s1,f1\nb.mp4,a,,\n")
    assert namer(tmp_path)("a/x_1.mp4") == "s1"
    assert namer(tmp_path, "film")("a/x_1.mp4") == "f1"
    assert namer(tmp_path, "film")("b.mp4") == ""
    # What is asked for is never answered with another column.
    assert namer(tmp_path, r"(\w)_\d")("a/x_1.mp4") == "x"
    with pytest.raises(DataError, match=r"'sauce' .*no column of labels.csv"):
        namer(tmp_path, "sauce")


def test_what_splits_a_folder(tmp_path):
    touch(tmp_path, "a/1.mp4")
    assert predefined_split(Source(path=tmp_path)) == ""
    for columns, told in (("fold", "column 'fold' of labels.csv"), ("source", "")):
        (tmp_path / "labels.csv").write_text(f"path,label,{columns}\na/1.mp4,a,1\n")
        assert predefined_split(Source(path=tmp_path)) == told
    touch(tmp_path / "tree", "training/a/1.mp4", "val/a/2.mp4")
    assert predefined_split(Source(path=tmp_path / "tree")) == "folder training"


def test_the_held_out_share_does_not_depend_on_the_order_of_the_list():
    """Sources with as many videos of one class as of the other included."""
    videos = [VideoEntry(f"{i}.mp4", "ab"[i % 2], f"s{i // 2}") for i in range(40)]
    source = Source(path=None)
    taken = {videos[i].path for i in hold_out(videos, source)}
    turned = videos[::-1]
    assert {turned[i].path for i in hold_out(turned, source)} == taken
    assert len(taken) == 8


# ---- what folders are taken for -----------------------------------------------------------------

SET = ("a/1.mp4", "b/2.mp4", "c/3.mp4")


@pytest.mark.parametrize(
    ("train", "val"),
    [
        *(("Train", "Validation"), ("TRAIN", "VAL"), ("Train", "Val"), ("training", "Valid")),
        ("train", "Test"),
    ],
)
def test_splits_are_recognised_whatever_the_case(tmp_path, train, val):
    touch(tmp_path, *(f"{split}/{video}" for split in (train, val) for video in SET))
    for split, name in (("train", train), ("val", val), ("test", val)):
        manifest = read_manifest(tmp_path, split)
        assert manifest.classes == ("a", "b", "c")
        assert paths(manifest) == set(SET)
        assert manifest.describe_classes() == (
            f"3 classes: a, b, c; from folder names below {tmp_path / name}"
        )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["training_set/a/1.mp4", "test_set/a/2.mp4"], r"test_set/ -> test/ and training_set/ -> "),
        (["train1/a/1.mp4", "val1/a/2.mp4"], r"train1/ and val1/ .* look like splits"),
        (["train1/1.mp4", "val1/2.mp4", "x/3.mp4"], r"train1/ and val1/ .* look like splits"),
        (["ucf_train/a/1.mp4", "ucf_val/a/2.mp4"], r"ucf_train/ -> train/ and ucf_val/ -> val/"),
        (["train/a/1.mp4", "TestData/a/2.mp4"], r"TestData/ and train/ .*rename TestData/ -> test"),
        (["train/a/1.mp4", "dev/a/2.mp4"], r"rename dev/ -> val/"),
        (["train/1.mp4", "Valid/2.mp4"], r"divided into Valid/ and train/, but .*no folders of cl"),
        (["train/a/1.mp4", "val/2.mp4"], r"no folders of classes in val/: expected val/CLASS/v"),
        (["train/a/1.mp4", "Train/b/2.mp4"], r"Train/ and train/, which both name the split train"),
        (["val/a/1.mp4", "validation/a/2.mp4", "train/a/3.mp4"], r"both name the split val"),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_folders_that_look_like_splits_and_are_none_are_named(tmp_path, names, message, split):
    touch(tmp_path, *names)
    with pytest.raises(DataError, match=message):
        read_manifest(tmp_path, split)
    with pytest.raises(DataError, match=message):
        predefined_split(Source(path=tmp_path))


@pytest.mark.parametrize(
    "classes",
    [
        *(("bus", "car", "plane", "train"), ("bus", "train1", "train2"), ("bullet train", "bus")),
        ("drive test", "test drive", "train ride"),
        ("test", "walk"),
    ],
)
def test_classes_that_are_called_like_splits_are_classes(tmp_path, classes):
    touch(tmp_path, *(f"{name}/{i}.mp4" for name in classes for i in range(4)))
    for split in ("train", "val"):
        assert read_manifest(tmp_path, split).classes == classes
    assert predefined_split(Source(path=tmp_path)) == ""
    touch(tmp_path, f"{classes[-1]}/more/9.mp4")
    assert read_manifest(tmp_path, "train").classes == classes


def test_folders_can_be_said_to_be_the_classes(tmp_path):
    touch(tmp_path, *(f"{c}/{i}.mp4" for c in ("training_set", "test_set") for i in range(4)))
    manifest = read_manifest(tmp_path, "train", format="class_folders")
    assert manifest.classes == ("test_set", "training_set")


@pytest.mark.parametrize("name", ["val", "Test"])
def test_one_held_out_part_is_a_test_set_and_no_training_set(tmp_path, name):
    touch(tmp_path, *(f"{name}/{video}" for video in SET))
    for split in ("test", "val"):
        assert paths(read_manifest(tmp_path, split)) == set(SET)
    with pytest.raises(DataError, match=rf"no folder for train in .*, which has {name}: training"):
        read_manifest(tmp_path, "train")
    touch(tmp_path, "d/4.mp4")
    with pytest.raises(DataError, match=r"no folder for train in .* \(which also holds d\)"):
        read_manifest(tmp_path, "train")
    assert any("ignored: 'd'" in note for note in read_manifest(tmp_path, "test").notes)


def test_a_part_that_stands_in_for_another_is_said_to_be_no_independent_test(tmp_path):
    touch(tmp_path, *(f"{split}/{video}" for split in ("train", "test") for video in SET))
    assert read_manifest(tmp_path, "train").notes == ()
    (note,) = read_manifest(tmp_path, "val").notes
    assert note == (
        f"no folder for val in {tmp_path}: test is used instead; the best checkpoint is chosen on "
        "it, so a test on it is no independent figure"
    )
    (note,) = read_manifest(tmp_path, "test").notes
    assert note.startswith("training validates on test too: the best checkpoint is chosen on it")
    touch(tmp_path, *(f"val/{video}" for video in SET))
    assert read_manifest(tmp_path, "val").notes == read_manifest(tmp_path, "test").notes == ()


def test_splits_inside_each_class(tmp_path):
    touch(tmp_path, *(f"{c}/{s}/{c}{s}.mp4" for c in "ab" for s in ("Train", "val")))
    train, val = read_manifest(tmp_path, "train"), read_manifest(tmp_path, "val")
    assert listed(train) == [("a/Train/aTrain.mp4", 0), ("b/Train/bTrain.mp4", 1)]
    assert listed(val) == [("a/val/aval.mp4", 0), ("b/val/bval.mp4", 1)]
    assert train.classes == val.classes == ("a", "b")
    assert "splits from the folders Train/ and val/ inside each class" in train.notes
    assert predefined_split(Source(path=tmp_path)) == "folders inside each class"
    touch(tmp_path, "c/1.mp4")
    with pytest.raises(DataError, match=r"a/ in .* holds Train/ and val/, and c/ is not divided"):
        read_manifest(tmp_path, "train")


PEOPLE = [f"{p}/{c}/{i}.mp4" for p in ("ann", "bob", "cy") for c in ("run", "walk") for i in "12"]


def test_groups_of_classes_have_two_readings(tmp_path):
    touch(tmp_path, *PEOPLE)
    message = (
        r"can be read in two ways: with the classes ann, bob, cy, or, inside each of these, with "
        r"the classes run, walk. For the first set DATA.FORMAT class_folders, for the second "
        r"DATA.FORMAT group_folders"
    )
    with pytest.raises(DataError, match=message):
        read_manifest(tmp_path, "train")
    upper = read_manifest(tmp_path, "train", format="class_folders")
    assert upper.classes == ("ann", "bob", "cy")
    train, val = (read_manifest(tmp_path, s, format="group_folders") for s in ("train", "val"))
    assert train.classes == val.classes == ("run", "walk")
    assert train.describe_classes() == (
        f"2 classes: run, walk; from inner folder names below {tmp_path}"
    )
    assert paths(train) | paths(val) == set(PEOPLE)
    people = [{path.split("/")[0] for path in paths(part)} for part in (train, val)]
    assert people[0].isdisjoint(people[1]), "a person is never in both"
    touch(tmp_path / "split", *(f"{split}/{path}" for split in ("train", "val") for path in PEOPLE))
    with pytest.raises(DataError, match=r"split/train can be read in two ways"):
        read_manifest(tmp_path / "split", "train")
    assert read_manifest(tmp_path / "split", "val", format="group_folders").classes == (
        "run",
        "walk",
    )


def test_folders_inside_a_class_that_do_not_repeat_are_ignored_aloud(tmp_path):
    touch(tmp_path, "a/s1/1.mp4", "a/s2/2.mp4", "b/s3/3.mp4", "b/4.mp4", "b/s4/5.mp4")
    for split in ("train", "val"):
        manifest = read_manifest(tmp_path, split)
        assert manifest.classes == ("a", "b")
        assert any(
            "folders inside the classes are no classes of their own: 's1', 's2', 's3', 's4'" in note
            for note in manifest.notes
        )
    touch(tmp_path / "same", *(f"{c}/clips/{i}.mp4" for c in "ab" for i in range(3)))
    assert read_manifest(tmp_path / "same", "train").classes == ("a", "b")


def test_one_folder_around_the_classes_is_named(tmp_path):
    touch(tmp_path, "videos/a/1.mp4", "videos/b/2.mp4")
    with pytest.raises(DataError, match=r"videos/, and there in a, b\. If .* folder \S*/videos"):
        read_manifest(tmp_path, "train")
    touch(tmp_path / "deep", "set/train/a/1.mp4", "set/val/a/2.mp4")
    with pytest.raises(DataError, match=r"in train, val\. If these .* name the folder \S*deep/set"):
        read_manifest(tmp_path / "deep", "train")


def test_pretraining_takes_any_folder(tmp_path):
    """Labels play no part: nothing about classes is refused."""
    touch(tmp_path / "people", *PEOPLE)
    touch(tmp_path / "flat", "train/1.mp4", "train/2.mp4", "val/3.mp4")
    settings = {"need_labels": False, "ignore_labels": True}
    assert len(read_manifest(tmp_path / "people", "train", **settings)) > 0
    assert paths(read_manifest(tmp_path / "flat", "train", **settings)) == {"1.mp4", "2.mp4"}


def test_all_of_a_folder_that_names_no_parts(tmp_path):
    touch(tmp_path, *(f"{c}/{i}.mp4" for c in "ab" for i in range(4)))
    whole = read_manifest(tmp_path, "test", hold_out=False)
    assert len(whole) == 8
    assert whole.undivided
    assert whole.notes == (f"all 8 videos of {tmp_path}: the folder has no splits",)
    rows = "\n".join(f"{c}/{i}.mp4,{c}" for c in "ab" for i in range(4))
    (tmp_path / "labels.csv").write_text(f"path,label\n{rows}\n")
    assert len(read_manifest(tmp_path, "test", hold_out=False)) == 8
    assert len(read_manifest(tmp_path, "test")) == 2
    (tmp_path / "labels.csv").write_text(f"path,label,fold\n{rows.replace(',', ',x', 1)},1\n")
    touch(tmp_path / "split", "train/a/1.mp4", "val/a/2.mp4")
    assert len(read_manifest(tmp_path / "split", "test", hold_out=False)) == 1


def test_class_names_of_the_user_order_the_folders(tmp_path):
    touch(tmp_path, *(f"{c}/{i}.mp4" for c in "ab" for i in range(4)))
    (tmp_path / "names.txt").write_text("b\na\n")
    manifest = read_manifest(tmp_path, "train", class_names=tmp_path / "names.txt")
    assert manifest.classes == ("b", "a")
    assert manifest.describe_classes().endswith(
        f"numbered by DATA.CLASS_NAMES {tmp_path}/names.txt"
    )
