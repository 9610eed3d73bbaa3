"""AVA's files: what is read, what is refused with its line, what is written."""

from __future__ import annotations

import codecs
import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiera_video.detection import files
from hiera_video.detection.files import (
    BoxTable,
    LabelMap,
    read_annotated_boxes,
    read_excluded,
    read_label_map,
    read_scored_boxes,
    write_annotated_boxes,
    write_excluded,
    write_label_map,
    write_scored_boxes,
)
from hiera_video.errors import DataError, RunFailed

LINE = "-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,80,1\n"


@pytest.fixture
def file(tmp_path):
    """Write a file; returns its path."""

    def write(content):
        path = tmp_path / "list.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def same(one, other):
    assert one.videos == other.videos
    for name in ("video", "second", "corners", "action", "lines"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    for name in ("score", "person"):
        ours, theirs = getattr(one, name), getattr(other, name)
        assert (ours is None) == (theirs is None)
        assert ours is None or np.array_equal(ours, theirs), name


# ---- reading ------------------------------------------------------------------------------------


def test_annotated_boxes(file):
    table = read_annotated_boxes(file(LINE + "b,1798,0,0.5,1,1,12,\n-5KQ66BBWC4,903,0,0,1,1,,7\n"))
    assert table.videos == ("-5KQ66BBWC4", "b")
    assert table.video.tolist() == [0, 1, 0]
    assert table.second.tolist() == [902, 1798, 903]
    assert table.corners[:2].tolist() == [[0.077, 0.151, 0.283, 0.811], [0, 0.5, 1, 1]]
    assert table.action.tolist() == [80, 12, 0], "an empty action is none"
    assert table.person.tolist() == [1, -1, 7], "an empty person is not known"
    assert table.lines.tolist() == [1, 2, 3]
    assert table.score is None
    assert len(table) == 3


def test_scored_boxes(file):
    table = read_scored_boxes(file("a,902,0,0,1,1,12,0.25\na,902,0,0,1,1,,-3e-2\n"))
    assert table.score.tolist() == [0.25, -0.03]
    assert table.action.tolist() == [12, 0]
    assert table.person is None


def test_types(file):
    table = read_scored_boxes(file(LINE))
    kinds = [table.video, table.second, table.corners, table.action, table.score, table.lines]
    assert [array.dtype.name for array in kinds] == [
        *("int32", "int32", "float64", "int32", "float64", "int32"),
    ]
    empty = read_annotated_boxes(file(""))
    assert empty.corners.shape == (0, 4)
    assert empty.person.dtype == np.int32
    assert empty.videos == ()


@pytest.mark.parametrize(
    "content",
    [
        LINE * 2,
        (LINE * 2).replace("\n", "\r\n"),
        (LINE * 2).rstrip("\n"),
        codecs.BOM_UTF8 + (LINE * 2).encode(),
        (LINE * 2).replace(",80", ", 80").replace("0902", " 902 "),
        (LINE * 2).replace("-5KQ66BBWC4", '"-5KQ66BBWC4"'),
    ],
    ids=["plain", "CRLF", "no last end", "BOM", "blanks", "quotes"],
)
def test_the_same_in_other_spellings(content, file):
    plain = read_annotated_boxes(file(LINE * 2))
    same(read_annotated_boxes(file(content)), plain)


def test_empty_lines_count_as_lines(file):
    assert read_annotated_boxes(file("\n" + LINE + " \n\n" + LINE)).lines.tolist() == [2, 5]


def test_lines_without_a_person_may_stand_among_others(file):
    short = LINE.replace(",1\n", "\n")
    assert read_annotated_boxes(file(short + LINE)).person.tolist() == [-1, 1]
    assert read_annotated_boxes(file(short)).person.tolist() == [-1]


def test_names_of_any_kind(file):
    """Also those that file systems allow but UTF-8 does not, and with a comma."""
    table = read_annotated_boxes(file(b'\xe9,1,0,0,1,1,3,1\n"a,""b""",1,0,0,1,1,3,1\n'))
    assert table.videos == ("\udce9", 'a,"b"')


def test_blocks_join(file, monkeypatch):
    """Large files are read piece by piece; names and lines go on."""
    content = "".join(f"v{n % 7},{n},0,0,1,1,{n % 5 or ''},{n}\n" for n in range(1, 400))
    whole = read_annotated_boxes(file(content))
    monkeypatch.setattr(files, "_BLOCK", 100)
    same(read_annotated_boxes(file(content)), whole)
    with pytest.raises(DataError, match="line 400: has 1 fields"):
        read_annotated_boxes(file(content + "oops\n"))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c d"]),
            st.sampled_from(["902", "0902", "9.5", "-1", "", "1_0", "x"]),
            st.sampled_from(["0", "0.25", ".5", "1e-3", "1", "1.5", "nan", "", "-0.1", "0_1"]),
            st.sampled_from(["1", "0", "", "-1", "80", "1.0", "-987654321", "99999999999"]),
            st.sampled_from(["1", "0.5", "", "inf", "-1", "-2", "-987654321"]),
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_the_quick_way_agrees_with_the_slow_one(lines, scored):
    """numpy may take only what the reader of single lines takes, and as the same."""
    text = [f"{v},{second},0,{y},1,1,{action},{last}" for v, second, y, action, last in lines]
    form = files._Form(scored)
    quick = files._read_quickly(1, text, form) if text else None
    problems = files._Problems("x")
    slow = files._read_slowly(1, text, form, problems)
    if quick is not None:
        assert problems.count == 0
        assert list(quick.names) == slow.names
        for ours, theirs in zip(quick[1:], slow[1:], strict=True):
            assert np.array_equal(ours, theirs)


def test_plain_files_are_read_the_quick_way(file, monkeypatch):
    """The slow one would take a minute for the detections of AVA's validation."""
    monkeypatch.setattr(files, "_read_slowly", None)
    read_annotated_boxes(file(LINE * 3))
    read_annotated_boxes(file("a,902,0,0,1,1,,\n" * 3))
    read_scored_boxes(file("a,902,0,0,1,1,,0.9\r\n" * 3))


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("v,902,0,0,1,1", "has 6 fields of video,second,x1,y1,x2,y2,action and a person's number"),
        ("v;902;0;0;1;1;3;1", "has 1 fields .*, separated by commas"),
        ("v,902.5,0,0,1,1,3,1", "the second '902.5' is no whole number"),
        ("video_id,frame_timestamp,x1,y1,x2,y2,a,p", "AVA's lists have no header"),
        ("v,902,0,-0.1,1,1,3,1", "the box 0,-0.1,1,1 is not inside 0..1"),
        ("v,902,0,0,1,1.01,3,1", "is not inside 0..1"),
        ("v,902,10,20,300,400,3,1", "divide pixels by the picture's width and height"),
        ("v,902,.5,0,.4,1,3,1", "x1 <= x2 and y1 <= y2"),
        ("v,902,0,nan,1,1,3,1", "the corner 'nan' is no number"),
        ("v,902,0,,1,1,3,1", "the corner '' is no number"),
        ("v,902,0,0,1,1,0,1", "the action '0' is no whole number from 1 on; for none, leave it"),
        ("v,902,0,0,1,1,-1,1", "the action '-1'"),
        ("v,902,0,0,1,1,walk,1", "the action 'walk'"),
        ("v,902,0,0,1,1,3,-2", "the person '-2' is no whole number"),
        (",902,0,0,1,1,3,1", "has no name of a video"),
        ("v,902,0,0,1,1,3,1,1", "has 9 fields"),
        ("\x1b[31m" + "x" * 70000, "has 70,005 letters"),
    ],
)
def test_a_wrong_annotated_line_is_named(line, message, file, tmp_path):
    with pytest.raises(DataError, match=message) as error:
        read_annotated_boxes(file(LINE + line + "\n" + LINE))
    assert str(error.value).startswith(f"{tmp_path}/list.csv: line 2: ")
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("v,902,0,0,1,1,3", "has 7 fields of .* and a score"),
        ("v,902,0,0,1,1,3,", "the score '' is no finite number"),
        ("v,902,0,0,1,1,3,inf", "the score 'inf'"),
        ("v,902,0,0,1,1,3,0.9x", "the score '0.9x'"),
    ],
)
def test_a_wrong_scored_line_is_named(line, message, file):
    with pytest.raises(DataError, match=f"line 2: .*{message}"):
        read_scored_boxes(file(LINE + line + "\n"))


def test_many_wrong_lines_are_counted(file):
    with pytest.raises(
        DataError, match=r"list.csv: 4 lines are wrong; line 1: .*; line 3: .*; ..."
    ):
        read_annotated_boxes(file("v\n" * 3 + LINE + "v\n"))
    with pytest.raises(DataError, match="1000 or more lines are wrong"):
        read_annotated_boxes(file("v\n" * 5000))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(LINE.encode()), "is compressed; unpack it first"),
        (LINE.encode("utf-16"), "is UTF-16; save it as UTF-8"),
        (b"\0" * 100, "is no text of this kind"),
        (b"x" * 100_000, "is no text of this kind"),
    ],
    ids=[
        "gzip",
        "utf-16",
        "zeros",
        "one line",
    ],  # gzip writes the time: a name of its own each second
)
def test_what_is_no_such_list_at_all(content, message, file):
    for read in (read_annotated_boxes, read_scored_boxes, read_excluded, read_label_map):
        with pytest.raises(DataError, match=message):
            read(file(content))


def test_a_missing_file_and_a_folder(tmp_path):
    for read in (read_annotated_boxes, read_scored_boxes, read_excluded, read_label_map):
        with pytest.raises(DataError, match=r"none\.csv: cannot be read: No such file"):
            read(tmp_path / "none.csv")
        with pytest.raises(DataError, match="is a folder; name a file"):
            read(tmp_path)


# ---- writing ------------------------------------------------------------------------------------


def table(names=("a", 'odd,"name"', "\udce9"), scored=True):
    rng = np.random.default_rng(0)
    count = 50
    low, high = rng.uniform(0, 0.5, (count, 2)), rng.uniform(0.5, 1, (count, 2))
    return BoxTable(
        videos=names,
        video=np.repeat(np.arange(len(names), dtype=np.int32), count)[:count],
        second=rng.integers(0, 1800, count).astype(np.int32),
        corners=np.concatenate([low, high], 1).astype(np.float32).astype(np.float64),
        action=rng.integers(0, 80, count).astype(np.int32),
        score=rng.random(count, dtype=np.float32).astype(np.float64) if scored else None,
        person=None if scored else rng.integers(-1, 9, count).astype(np.int32),
        lines=np.arange(1, count + 1, dtype=np.int32),
    )


def test_written_boxes_are_read_again(tmp_path):
    """Nine digits tell float32 apart: the order and the ties of scores stay."""
    scored = table(names=("a",))
    write_scored_boxes(tmp_path / "det.csv", scored)
    again = read_scored_boxes(tmp_path / "det.csv")
    for name in ("corners", "score"):
        ours, theirs = getattr(scored, name), getattr(again, name)
        assert np.array_equal(ours.astype(np.float32), theirs.astype(np.float32))
    annotated = table(names=("a",), scored=False)
    write_annotated_boxes(tmp_path / "gt.csv", annotated)
    again = read_annotated_boxes(tmp_path / "gt.csv")
    assert np.array_equal(again.person, annotated.person)
    assert np.array_equal(again.action, annotated.action)
    assert np.array_equal(again.second, annotated.second)


def test_the_line_that_is_written(tmp_path):
    one = BoxTable(
        videos=("odd,name", "b"),
        video=np.array([0, 1], np.int32),
        second=np.array([7, 1798], np.int32),
        corners=np.array([[0.077, 0.151, 0.283, 1], [0, 0, 1 / 3, 1]]),
        action=np.array([12, 0], np.int32),
        score=np.array([0.5, 1e-7]),
        person=None,
        lines=np.array([1, 2], np.int32),
    )
    write_scored_boxes(tmp_path / "det.csv", one)
    assert (tmp_path / "det.csv").read_bytes() == (
        b'"odd,name",0007,0.077,0.151,0.283,1,12,0.5\nb,1798,0,0,0.333333333,1,,1e-07\n'
    )
    assert read_scored_boxes(tmp_path / "det.csv").videos == one.videos


def test_names_of_any_kind_are_written(tmp_path):
    names = ("a", 'odd,"name"', "\udce9")
    odd = table(names=names)
    odd.video[:] = np.arange(len(odd)) % 3
    write_scored_boxes(tmp_path / "det.csv", odd)
    assert read_scored_boxes(tmp_path / "det.csv").videos == names


@pytest.mark.parametrize("name", ["two\nlines", ""])
def test_a_name_that_no_line_can_hold_is_refused(name, tmp_path):
    with pytest.raises(DataError, match="cannot stand in a list of boxes; rename it"):
        write_scored_boxes(tmp_path / "det.csv", table(names=(name,)))
    assert not list(tmp_path.iterdir())


def test_boxes_of_the_other_kind_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="no scores"):
        write_scored_boxes(tmp_path / "x.csv", table(scored=False))
    with pytest.raises(ValueError, match="no persons"):
        write_annotated_boxes(tmp_path / "x.csv", table())


def test_a_place_that_is_not_there(tmp_path):
    with pytest.raises(RunFailed, match="there is no folder"):
        write_scored_boxes(tmp_path / "none" / "det.csv", table())


# ---- actions and seconds ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        'item {\n  name: "bend/bow (at the waist)"\n  id: 1\n}\n'
        'item {\n  name: "a \\"b\\""\n  id: 3\n}\n',
        'label {\n  name: "bend/bow (at the waist)"\n  label_id: 1\n'
        '  label_type: PERSON_MOVEMENT\n}\nlabel {\n  name: "a \\"b\\""\n  label_id: 3\n}',
        "# a comment\nitem: { id: 1, name: 'bend/bow (at the waist)' };item{name:'a \"b\"'id:3}",
    ],
    ids=["items", "labels", "one line each"],
)
def test_label_maps(text, file):
    labels = read_label_map(file(text))
    assert labels == LabelMap((1, 3), ("bend/bow (at the waist)", 'a "b"'))
    assert len(labels) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no action"),
        ("walk\nrun\n", "line 1: expected item { or label {, found 'walk'"),
        ('item {\n  name: "a"\n}\n', "line 1: an action needs an id from 1 on, got ''"),
        ('item { name: "a" id: 0 }', "id from 1 on, got '0'"),
        ('item { name: "a" id: two }', "id from 1 on, got 'two'"),
        ("item { id: 1 }", "the action 1 has no name"),
        ('item { name: "a" id: 1 }\nitem { name: "b" id: 1 }', "line 2: the id 1 is there twice"),
        ('item { name: "a', "line 1: '\"a' does not belong in a list of actions"),
        ('item { name: "a" id: 1', "expected }, found 'the end'"),
        ("item", "expected {"),
        ('item { name "a" }', 'expected a field as name: "walk"'),
        (LINE, "line 1: expected item"),
        ("[1, 2]", "does not belong in a list of actions"),
    ],
)
def test_a_wrong_label_map_is_refused(text, message, file):
    with pytest.raises(DataError) as error:
        read_label_map(file(text))
    assert message in str(error.value)


def test_a_large_file_is_no_label_map(file, monkeypatch):
    monkeypatch.setattr(files, "_LARGEST_LABEL_MAP", 100)
    with pytest.raises(DataError, match="too large for a list of actions"):
        read_label_map(file(LINE * 10))


def test_written_label_maps_are_read_again(tmp_path):
    labels = LabelMap((3, 1), ('a "b" \\ c', "d"))
    write_label_map(tmp_path / "list.pbtxt", labels)
    assert read_label_map(tmp_path / "list.pbtxt") == labels


def test_excluded_seconds(file, tmp_path):
    found = read_excluded(file("a,0902\r\n\r\nb,1\n"))
    assert found == {("a", 902), ("b", 1)}
    write_excluded(tmp_path / "again.csv", found)
    assert (tmp_path / "again.csv").read_text() == "a,0902\nb,0001\n"
    assert read_excluded(file("")) == set()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a", "line 2: has 1 fields of video,second"),
        ("a,902,3", "has 3 fields"),
        ("a,902.5", "the second '902.5' is no whole number"),
        (",902", "has no name of a video"),
    ],
)
def test_a_wrong_excluded_line_is_named(line, message, file):
    with pytest.raises(DataError, match=message):
        read_excluded(file(f"a,902\n{line}\n"))
