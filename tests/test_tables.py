"""Lists as people write them: any separator, header and quotes; ids, names or several of them."""

import itertools
import os

import pytest

from hiera_video.data.manifests.layouts import read_class_names, read_manifest
from hiera_video.data.manifests.tables import COLUMNS, find_header
from hiera_video.errors import DataError


def write(path, content, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def read(folder, content, name="train.csv", encoding="utf-8", **settings):
    """The manifest of a list with this content."""
    return read_manifest(write(folder / name, content, encoding), **settings)


def listed(manifest):
    return [(manifest.paths.relative(i), manifest.label(i)) for i in range(len(manifest))]


def named(manifest):
    """[(path, name of its class)]; a tuple of names where a video has several."""

    def names(label):
        several = label if isinstance(label, tuple) else (label,)
        found = tuple(manifest.classes[i] for i in several)
        return found if isinstance(label, tuple) else found[0]

    return [(path, names(label)) for path, label in listed(manifest)]


# ---- separators, headers, quotes ----------------------------------------------------------------

SEPARATORS = (",", ";", "\t", " ")
ROWS = [("a.mp4", "jump"), ("clips/b c.mp4", "run fast"), ("d, e; f.mkv", "jump")]


def quoted(cell, separator):
    return f'"{cell}"' if any(sign in cell for sign in (separator, '"')) else cell


@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize(
    "header",
    [None, ("path", "label"), ("Video", "Class"), ("filename", "labels"), ("name", "label")],
)
def test_names_are_read_whatever_the_separator_and_the_header(tmp_path, separator, header):
    lines = [separator.join(quoted(cell, separator) for cell in row) for row in ROWS]
    lines = [*([separator.join(header)] if header else []), *lines]
    manifest = read(tmp_path, "\n".join(lines) + "\n")
    assert named(manifest) == ROWS
    assert manifest.classes == ("jump", "run fast")


@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize("header", [None, "path{0}label", "FILE{0}class_id"])
def test_ids_are_read_whatever_the_separator_and_the_header(tmp_path, separator, header):
    lines = [f"{path}{separator}{label}" for path, label in (("a b.mp4", 0), ("c,d;e.mp4", 2))]
    lines = [*([header.format(separator)] if header else []), *lines]
    manifest = read(tmp_path, "\r\n".join(lines))
    assert listed(manifest) == [("a b.mp4", 0), ("c,d;e.mp4", 2)]
    assert manifest.classes is None
    assert manifest.num_classes == 3


@pytest.mark.parametrize(
    "header",
    [
        *("path,label", "name,label", "video,class", "filename,labels", "file,class_name"),
        *("video_path,category", "Video ID,Label", "clip,action", "VIDEO-PATH,Class Name"),
        *("label,path", "split,video,label", "\ufefffile name,target"),
    ],
)
def test_columns_have_the_usual_names(tmp_path, header):
    cells = {"split": "train"}
    names = header.strip("\ufeff").split(",")
    video, label = ("a, b.mp4", "run")
    place = {name: find_header(write(tmp_path / "x.csv", header)).place(name) for name in COLUMNS}
    row = [cells.get(name, "") for name in names]
    row[place["path"]] = f'"{video}"'
    row[place["label"] if place["label"] is not None else place["class_name"]] = label
    manifest = read(tmp_path / "set", header + "\n" + ",".join(row) + "\n", name="labels.csv")
    assert named(manifest) == [(video, label)]


def test_a_header_that_names_no_label_says_which_names_are_known(tmp_path):
    with pytest.raises(DataError, match=r"no column label.*says video,sort\. .*label, labels, cl"):
        read(tmp_path, "video,sort\na.mp4,x\n")
    with pytest.raises(DataError, match=r"two columns for the same thing .*'class'"):
        read(tmp_path, "video,label,class\na.mp4,x,y\n")
    with pytest.raises(DataError, match=r"no column path.*says film,label\. .*path, file, filen"):
        read(tmp_path, "film,label\na.mp4,x\n")


def test_a_first_line_without_a_number_is_a_video_where_it_names_one(tmp_path):
    assert named(read(tmp_path, "video.mp4 class\nb.mp4 path\n")) == [
        ("video.mp4", "class"),
        ("b.mp4", "path"),
    ]


def test_the_first_line_does_not_decide_the_separator(tmp_path):
    rows = [f"{i} a.mp4,{i % 3}" for i in range(20)]
    with pytest.raises(DataError, match=r"csv:1: no comma in 'x 5.mp4 1', which has space"):
        read(tmp_path, "\n".join(["x 5.mp4 1", *rows]))
    manifest = read(tmp_path, "\n".join(["x 5.mp4", *rows]), need_labels=False)
    assert listed(manifest)[:2] == [("x 5.mp4", -1), ("0 a.mp4", 0)]


def test_a_line_with_another_separator_is_named(tmp_path):
    with pytest.raises(DataError, match=r"train.csv:3: no comma in 'c.mp4 2', which has space"):
        read(tmp_path, "a.mp4,0\nb.mp4,1\nc.mp4 2\nd.mp4,0\n")
    with pytest.raises(DataError, match=r"train.csv:1: no space in 'a.mp4,3', which has comma"):
        read(tmp_path, "a.mp4,3\n", separator=" ")


def test_the_setting_picks_the_separator(tmp_path):
    text = "a.mp4 1,0\nb.mp4 1,0\n"
    assert listed(read(tmp_path, text, separator=",")) == [("a.mp4 1", 0), ("b.mp4 1", 0)]


def test_quotes(tmp_path):
    text = '"a ""b"", c.mp4","run, fast"\nd.mp4,"run, fast"\n"e.mp4",120,walk\n'
    assert named(read(tmp_path, text)) == [
        ('a "b", c.mp4', "run, fast"),
        ("d.mp4", "run, fast"),
        ("e.mp4", "walk"),
    ]
    # Inside a name they are part of it, as they always were.
    text = 'say "hi".mp4 0\n"a" and "b".mp4 1\n5" disk.mp4 2\n'
    assert [path for path, _ in listed(read(tmp_path, text))] == [
        'say "hi".mp4',
        '"a" and "b".mp4',
        '5" disk.mp4',
    ]


@pytest.mark.parametrize("name", ["train.csv", "labels.csv"])
@pytest.mark.parametrize("bad", ['"b, c.mp4,walk', 'b.mp4,"walk'])
def test_a_quote_that_is_not_closed_names_its_line(tmp_path, name, bad):
    columns = "path,label,fold\n" if name == "labels.csv" else ""
    last = ",1" if columns else ""
    text = f"{columns}a.mp4,run{last}\n{bad}{last}\nd.mp4,run{last}\n"
    with pytest.raises(DataError, match=rf"{name}:{2 + bool(columns)}: .*quote.*closed"):
        read(tmp_path, text, name=name)


def test_a_row_with_too_many_columns_is_shown(tmp_path):
    with pytest.raises(DataError, match=r"csv:3: expected 3 columns .*found 4 in 'b,c.mp4,run,1'"):
        read(tmp_path, "path,label,fold\na.mp4,run,0\nb, c.mp4,run,1\n", separator=",")
    with pytest.raises(DataError, match=r"csv:1: 3 columns in 'a.mp4,run,train', and no line"):
        read(tmp_path, "a.mp4,run,train\nb.mp4,walk,val\n")


def test_empty_cells_at_the_ends_of_rows_are_nothing(tmp_path):
    text = "path;label;;\na.mp4;run;;\n;;;\nb.mp4;walk;;\n"
    assert named(read(tmp_path, text)) == [("a.mp4", "run"), ("b.mp4", "walk")]


# ---- ids or names -------------------------------------------------------------------------------


def test_names_may_hold_spaces_and_numbers(tmp_path):
    text = "my a.mp4 playing guitar\nb 2.avi take 2\nc.mp4 take 2\n"
    assert named(read(tmp_path, text)) == [
        ("my a.mp4", "playing guitar"),
        ("b 2.avi", "take 2"),
        ("c.mp4", "take 2"),
    ]
    text = "a.mp4 120 long jump\nb.mp4 7 run\n"
    assert named(read(tmp_path, text)) == [("a.mp4", "long jump"), ("b.mp4", "run")]
    text = "a.mp4 100 m sprint\nb.mp4 run\n"
    assert named(read(tmp_path, text)) == [("a.mp4", "100 m sprint"), ("b.mp4", "run")]


def test_names_that_end_in_numbers_are_told_from_ids_by_looking(tmp_path):
    """`a.mp4 take 1` is video and name where there is a video of this name."""
    text = "a.mp4 take 1\nb.mp4 take 2\n"
    for name in ("a.mp4", "b.mp4"):
        write(tmp_path / name, "")
    assert named(read(tmp_path, text)) == [("a.mp4", "take 1"), ("b.mp4", "take 2")]
    frames = "clip.mp4 left 1\nclip.mp4 right 0\n"  # folders of frames
    assert listed(read(tmp_path, frames)) == [("clip.mp4 left", 1), ("clip.mp4 right", 0)]


def test_folders_of_frames_with_names(tmp_path):
    assert named(read(tmp_path, "v1 jump\nv2 run\n")) == [("v1", "jump"), ("v2", "run")]
    with pytest.raises(DataError, match=r"csv:1: cannot tell where the path ends in 'v 1 long"):
        read(tmp_path, "v 1 long jump\nv2 run\n")
    (tmp_path / "v 1").mkdir()
    assert named(read(tmp_path, "v 1 long jump\nv2 run\n"))[0] == ("v 1", "long jump")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4 0\nb.mp4 1\nc.mp4 run\n", r"csv:3: label 'run' is not a whole number.*line 1, '0'"),
        ("a.mp4 run\nb.mp4 walk\nc.mp4 3\n", r"csv:3: label '3' is a whole number.*line 1, 'run'"),
        ("path,label\na.mp4,0\nb.mp4,run\nc.mp4,1\n", r"csv:3: label 'run'.*line 2, '0'"),
        ("a.mp4 0.0\nb.mp4 1.0\n", r"labels are decimal numbers \('0.0', '1.0'\)"),
        ("a.mp4 run\nb.mp4 \n", r"csv:2: 'b.mp4' has no label"),
        ("path,label\na.mp4,run\nb.mp4,\n", r"csv:3: no label in the column 'label' for 'b.mp4'"),
    ],
)
def test_a_label_that_does_not_fit_the_others_is_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize("line", ["a.mp4 -1", "a.mp4,x", "a.mp4 3,4", '"a.mp4" x y', "a.mp4\tx"])
def test_a_line_with_a_label_is_never_said_to_have_none(tmp_path, line):
    for separator, classes in itertools.product((None, " ", ","), (None, ("run", "walk"))):
        said = ""
        try:
            read(tmp_path, f"{line}\nb.mp4 0\n", separator=separator, classes=classes)
        except DataError as error:
            said = str(error)
        assert "no label" not in said


def test_names_have_the_order_of_the_known_classes(tmp_path):
    write(tmp_path / "classes.txt", "walk\nrun\nsit\n")
    manifest = read(tmp_path, "a.mp4,run\nb.mp4,walk\n")
    assert manifest.classes == ("walk", "run", "sit")
    assert listed(manifest) == [("a.mp4", 1), ("b.mp4", 0)]
    with pytest.raises(DataError, match=r"csv:1: class 'jump' is not among the 3 known .*'walk'"):
        read(tmp_path, "a.mp4,jump\nb.mp4,walk\n")
    val = read(tmp_path / "v", "a.mp4,run\n", name="val.csv", classes=("sit", "run"))
    assert listed(val) == [("a.mp4", 1)]


def test_classes_may_be_called_like_numbers(tmp_path):
    """Where they are known; else whole numbers are ids."""
    assert listed(read(tmp_path, "a.mp4,7\nb.mp4,3\n", classes=("3", "7"))) == [
        ("a.mp4", 1),
        ("b.mp4", 0),
    ]
    assert listed(read(tmp_path, "a.mp4,7\nb.mp4,3\n")) == [("a.mp4", 7), ("b.mp4", 3)]


def test_ids_follow_the_names_of_their_own_list(tmp_path):
    """The same ids mean other classes in a list with other names."""
    write(tmp_path / "classes.txt", "run\nwalk\n")
    manifest = read(tmp_path, "a.mp4 0\nb.mp4 1\n", classes=("walk", "sit", "run"))
    assert listed(manifest) == [("a.mp4", 2), ("b.mp4", 0)]
    with pytest.raises(DataError, match=r"csv:2: label 1 is class 'walk', which is not among"):
        read(tmp_path, "a.mp4 0\nb.mp4 1\n", classes=("sit", "run"))


def test_a_column_of_numbers_beside_the_names_gives_their_order(tmp_path):
    for header in ("path,label,label_id", "video,class_name,class", "file,class,class_id"):
        manifest = read(tmp_path, f"{header}\na.mp4,run,4\nb.mp4,walk,2\n", name="labels.csv")
        assert manifest.classes == ("walk", "run")
    with pytest.raises(DataError, match="label_id must be a whole number from 0"):
        read(tmp_path, "path,label,label_id\na.mp4,run,x\n", name="labels.csv")


# ---- several labels -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "a.mp4 0 3\nb.mp4 1\n",
        "a.mp4 0,3\nb.mp4 1\n",
        'a.mp4,"0,3"\nb.mp4,1\n',
        "a.mp4,0 3\nb.mp4,1\n",
        "a.mp4,0,3\nb.mp4,1\n",
        "a.mp4\t0;3\nb.mp4\t1\n",
        '"a.mp4" 0 3\n"b.mp4" 1\n',
        'path,labels\na.mp4,"0,3"\nb.mp4,1\n',
        'split,video,labels\ntrain,a.mp4,"0 3"\ntrain,b.mp4,1\n',
    ],
)
def test_several_ids(tmp_path, text):
    manifest = read(tmp_path, text, multi_label=True)
    assert listed(manifest) == [("a.mp4", (0, 3)), ("b.mp4", (1,))]


@pytest.mark.parametrize(
    "text",
    [
        "a.mp4,jump;run fast\nb.mp4,run fast\n",
        'a.mp4,"jump,run fast"\nb.mp4,run fast\n',
        "a.mp4 jump;run fast\nb.mp4 run fast\n",
        "a.mp4\tjump|run fast\nb.mp4\trun fast\n",
        "video,labels\na.mp4,jump; run fast\nb.mp4,run fast\n",
        "a.mp4,jump,run fast\nb.mp4,run fast\n",
    ],
)
def test_several_names(tmp_path, text):
    manifest = read(tmp_path, text, multi_label=True)
    assert named(manifest) == [("a.mp4", ("jump", "run fast")), ("b.mp4", ("run fast",))]


def test_several_names_with_commas_or_spaces_where_the_classes_are_known(tmp_path):
    classes = ("doing, things", "run", "sit")
    text = "video;labels\na.mp4;doing, things\nb.mp4;run sit\n"
    manifest = read(tmp_path, text, multi_label=True, classes=classes)
    assert named(manifest) == [("a.mp4", ("doing, things",)), ("b.mp4", ("run", "sit"))]


def test_one_label_is_asked_for_and_several_came(tmp_path):
    for line in ("a.mp4,0,3,2", "a.mp4,run,walk", '"a.mp4",run,walk', "a.mp4,0,run,walk"):
        with pytest.raises(DataError, match=r"csv:1: \d columns in .*a.mp4.*DATA.MULTI_LABEL"):
            read(tmp_path, f"{line}\nb.mp4,1\n")


# ---- encodings ----------------------------------------------------------------------------------


def test_utf8_with_or_without_a_mark(tmp_path):
    for encoding in ("utf-8", "utf-8-sig"):
        for text in ("é.mp4,café\n", "path,label\né.mp4,café\n"):
            assert named(read(tmp_path, text, encoding=encoding)) == [("é.mp4", "café")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["train.csv", "labels.csv", "kinetics.csv"])
def test_utf16_is_named(tmp_path, name, encoding):
    text = {"kinetics.csv": "label,youtube_id\nrun,abc\n"}.get(name, "path,label\na.mp4,run\n")
    with pytest.raises(DataError, match=rf"{name} is UTF-{encoding[4:6]}; save it as UTF-8"):
        read(tmp_path, text, name=name, encoding=encoding)
    with pytest.raises(DataError, match=r"classes.txt is UTF-.*; save it as UTF-8"):
        read_class_names(write(tmp_path / "classes.txt", "run\nwalk\n", encoding))


LATIN1_TABLE = "path,label,fold\nx.mp4,café,1\ny.mp4,run,0\n"


@pytest.mark.parametrize("text", ["é.mp4,1\n", "a.mp4,café\n", LATIN1_TABLE])
def test_latin1_is_named_with_its_line(tmp_path, text):
    with pytest.raises(
        DataError, match=r"train.csv:\d: .*(é.mp4|café)' is not UTF-8 \(Latin-1\?\)"
    ):
        read(tmp_path, text, encoding="latin-1")
    with pytest.raises(DataError, match=r"'café' is not UTF-8"):
        read_class_names(write(tmp_path / "classes.txt", "café\n", "latin-1"))
    with pytest.raises(DataError, match=r"classes.json is not UTF-8"):
        read_class_names(write(tmp_path / "classes.json", '["café"]', "latin-1"))


def test_bytes_that_name_a_file_are_right_whatever_they_are(tmp_path):
    name = b"caf\xe9 1.mp4"
    open(os.path.join(os.fsencode(tmp_path), name), "wb").close()
    manifest = read(tmp_path, name + b" run\nb.mp4 walk\n")
    assert os.fsencode(manifest.paths[0]).endswith(name)


def test_a_workbook_is_no_list(tmp_path):
    with pytest.raises(DataError, match=r"train.csv is an Excel workbook .*save it as CSV"):
        read(tmp_path, b"PK\x03\x04" + bytes(range(100)))


# ---- which rows ---------------------------------------------------------------------------------

PARTS = "file,class,subset\na.mp4,run,Train\nb.mp4,walk,train\nc.mp4,run,{}\nd.mp4,walk,{}\n"


@pytest.mark.parametrize("name", ["labels.csv", "mine.csv"])
def test_a_column_says_the_split_in_any_case(tmp_path, name):
    file = write(tmp_path / name, PARTS.format("VAL", "Test"))
    where = tmp_path if name == "labels.csv" else file
    read_split = {s: named(read_manifest(where, s)) for s in ("train", "val", "test")}
    assert read_split == {
        "train": [("a.mp4", "run"), ("b.mp4", "walk")],
        "val": [("c.mp4", "run")],
        "test": [("d.mp4", "walk")],
    }
    assert "split as in the column 'subset'" in read_manifest(where, "val").notes[0]


def test_a_split_that_is_missing_in_the_column(tmp_path):
    file = write(tmp_path / "labels.csv", PARTS.format("test", "test"))
    val = read_manifest(tmp_path, "val")
    assert len(val) == 2
    assert any("'test' is used instead; the best checkpoint" in note for note in val.notes)
    write(file, PARTS.format("extra", "val"))
    notes = read_manifest(tmp_path, "val").notes
    assert any("1 videos of subset 'extra' are in no split" in note for note in notes)
    write(file, PARTS.replace("Train", "A").replace("train", "B").format("A", "B"))
    with pytest.raises(DataError, match=r"column 'subset' has 'A', 'B'; expected train, val and"):
        read_manifest(tmp_path, "train")


def test_the_column_that_names_the_source_may_be_any(tmp_path):
    rows = "\n".join(f"{i}.mp4,{'ab'[i % 2]},f{i // 4}" for i in range(16))
    write(tmp_path / "labels.csv", f"path,label,film\n{rows}\n")
    val = read_manifest(tmp_path, "val", group_by="film")
    assert {int(path[:-4]) // 4 for path, _ in listed(val)} == {int(listed(val)[0][0][:-4]) // 4}
    write(tmp_path / "labels.csv", "path,label\na.mp4,x\nb.mp4,x\nc.mp4,y\n")
    assert len(read_manifest(tmp_path, "train", group_by="path")) == 2


def test_the_separator_of_lists_is_none_of_a_table(tmp_path):
    """Configs of SlowFast set a space, and labels.csv has commas."""
    text = "path,label\na b.mp4,x\nb.mp4,x\nc.mp4,y\nd.mp4,y\n"
    manifest = read_manifest(write(tmp_path / "labels.csv", text).parent, separator=" ")
    assert manifest.classes == ("x", "y")


def test_several_labels_beside_their_numbers(tmp_path):
    text = "path,label,label_id\na.mp4,x;y,0\nb.mp4,y,1\n"
    manifest = read(tmp_path, text, multi_label=True)
    assert named(manifest) == [("a.mp4", ("x", "y")), ("b.mp4", ("y",))]


def test_one_list_has_its_share_held_out_where_that_is_asked(tmp_path):
    """Training on a single list does not validate on it."""
    rows = [f"v{i:02d}.mp4,{'ab'[i % 2]},s{i // 4}" for i in range(40)]
    file = write(tmp_path / "mine.csv", "path,label,source\n" + "\n".join(rows))
    assert len(read_manifest(file, "train")) == len(read_manifest(file, "val")) == 40
    train, val = (read_manifest(file, split, hold_out=True) for split in ("train", "val"))
    both = [{path for path, _ in listed(part)} for part in (train, val)]
    assert both[0].isdisjoint(both[1])
    assert len(train) + len(val) == 40
    sources = [{int(path[1:3]) // 4 for path in part} for part in both]
    assert sources[0].isdisjoint(sources[1])


# ---- ids from 1, ids with gaps, what is said ----------------------------------------------------


def test_ids_from_one_are_said(tmp_path):
    manifest = read(tmp_path, "".join(f"{i}.mp4 {i}\n" for i in range(1, 6)))
    assert manifest.num_classes == 6
    assert manifest.unused_outputs() == (
        "6 outputs, 1 of them without a training video: 0; ids start at 0"
    )
    manifest = read(tmp_path, "a.mp4 0\nb.mp4 1\nc.mp4 7\n")
    assert "8 outputs, 5 of them without a training video: 2, 3, 4" in manifest.unused_outputs()
    assert "start at" not in manifest.unused_outputs()
    assert read(tmp_path, "a.mp4 0\nb.mp4 1\n").unused_outputs() == ""


def test_ids_from_one_and_as_many_names(tmp_path):
    write(tmp_path / "classes.txt", "run\nwalk\nsit\n")
    with pytest.raises(
        DataError, match=r"csv:3: label 3 is out of range; allowed are 0 to 2 .*run from 1 to 3: nu"
    ):
        read(tmp_path, "a.mp4 1\nb.mp4 2\nc.mp4 3\n")


def test_names_numbered_from_one_and_ids_that_may_be_either(tmp_path):
    write(tmp_path / "classes.txt", "1 run\n2 walk\n3 sit\n")
    with pytest.raises(DataError, match=r"ids 1 to 2, and classes.txt numbers its classes from 1"):
        read(tmp_path, "a.mp4 1\nb.mp4 2\n")
    assert named(read(tmp_path, "a.mp4 0\nb.mp4 2\n")) == [("a.mp4", "run"), ("b.mp4", "sit")]


def test_where_the_classes_come_from(tmp_path):
    file = tmp_path / "train.csv"
    said = read(tmp_path, "a.mp4 run\nb.mp4 walk\n").describe_classes()
    assert said == f"2 classes: run, walk; names of {file}"
    said = read(tmp_path, "video,class\na.mp4,run\nb.mp4,walk\n").describe_classes()
    assert said == f"2 classes: run, walk; names in column 'class' of {file}"
    said = read(tmp_path, "a.mp4 0\nb.mp4 2\n").describe_classes()
    assert said == f"3 classes, 2 of them with videos; ids 0 to 2 of {file}, no names"
    write(tmp_path / "classes.txt", "run\nwalk\nsit\n")
    said = read(tmp_path, "a.mp4 0\nb.mp4 2\n").describe_classes()
    assert said == (
        f"3 classes, 2 of them with videos: run, sit; ids 0 to 2 of {file}, named by classes.txt"
    )
    (tmp_path / "classes.txt").unlink()
    many = read(tmp_path, "".join(f"{i}.mp4 class_{i:03d}\n" for i in range(400)))
    assert many.describe_classes().startswith("400 classes: class_000, class_001, ")
    assert "class_007 and 392 more; names of" in many.describe_classes()


# ---- files of class names -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["id,name\n0,a b\n1,c\n", "name;id\nc;1\na b;0\n", "class_id\tclass_name\n1\tc\n0\ta b\n"],
)
def test_tables_of_class_names(tmp_path, text):
    assert read_class_names(write(tmp_path / "names.csv", text)) == ["a b", "c"]


# ---- lists in a folder --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [("Train.csv", "Validation.csv"), ("TRAIN.TXT", "VAL.TXT"), ("training.tsv", "valid.tsv")],
)
def test_lists_are_found_whatever_the_case(tmp_path, names):
    write(tmp_path / names[0], "a.mp4 0\nb.mp4 1\n")
    write(tmp_path / names[1], "c.mp4 1\n")
    assert [len(read_manifest(tmp_path, split)) for split in ("train", "val")] == [2, 1]


def test_a_second_list_of_a_split_is_not_passed_over_in_silence(tmp_path):
    write(tmp_path / "train.csv", "a.mp4 0\nb.mp4 1\n")
    write(tmp_path / "train.txt", "c.mp4 0\n")
    assert read_manifest(tmp_path, "train").notes == (
        "train.csv is read, train.txt beside it is not",
    )


def test_labels_that_play_no_part_are_never_wrong(tmp_path):
    settings = {"need_labels": False, "ignore_labels": True, "num_classes": 2}
    for text in ("a.mp4 0\nb.mp4 run\n", "a.mp4 0.5\nb.mp4 1.5\n", "a.mp4 7\nb.mp4 -3\n"):
        assert [path for path, _ in listed(read(tmp_path, text, **settings))] == ["a.mp4", "b.mp4"]
    text = "path,label,label_id\na.mp4,run,x\nb.mp4,walk,y\n"
    assert len(read(tmp_path, text, **settings)) == 2
