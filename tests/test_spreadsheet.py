"""CSV files whose texts survive spreadsheets and pandas unchanged."""

import csv
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiera_video import spreadsheet
from hiera_video.spreadsheet import cell, csv_file, original, path_cell

NAMES = (
    *("jump", "é", "смех", "笑", "a b", "a,b", 'say "hi"', "two\nlines", "tab\there", " padded "),
    *("=1+1", "+x", "-x", "@x", "\t=1+1", "\r=1+1", "\n=1+1", "  =1+1", "＝1+1", "'=1+1", "'"),
    *("NA", "nan", "None", "null", "<NA>", "inf", "true", "FALSE", "none", "Nana"),
    *("0", "12", "007", "1e5", "1.50", "0x1F", "12345678901234567890"),
    *(r"C:\clips\x.mp4", r"a\xff.mp4", r"\\server\a", "nul\0", "bell\x07", "\x1b[31m", "\x7f"),
    *("caf\udce9.mp4", "\\\udce9\\", "\ud800", r"\ud800", "\u2028", "\x85", ""),
)

SIGNS = set("=+-@\t\r\n＝＋－＠")


def rows_of(path):
    """Rows of a file, read by Python's csv in strict mode."""
    with open(path, encoding="utf-8-sig", errors="strict", newline="") as file:
        return list(csv.reader(file, strict=True))


def write(path, names=NAMES):
    with csv_file(path, ["number", "name"]) as add:
        for number, name in enumerate(names):
            add([number, name])
    return path


def test_every_name_comes_back_from_strict_readers(tmp_path):
    path = write(tmp_path / "x.csv")
    content = path.read_bytes()
    assert content.startswith(b"\xef\xbb\xbfnumber,name\r\n")  # the mark that Excel looks for
    content.decode("utf-8", "strict")
    assert b"\0" not in content
    header, *rows = rows_of(path)
    assert header == ["number", "name"]
    assert [int(number) for number, _ in rows] == list(range(len(NAMES)))
    assert [original(text) for _, text in rows] == list(NAMES)


def test_no_cell_is_a_formula(tmp_path):
    for _, text in rows_of(write(tmp_path / "x.csv")):
        assert not set(text.strip(" ")[:1]) & SIGNS, ascii(text)


def test_most_names_are_written_as_they_are():
    for name in ("jump", "é", "a,b", r"C:\clips\x.mp4", "none", "Nana", "12", "0x1F", "a=b", " a"):
        assert cell(name) == name
    assert cell("=1+1") == "'=1+1"
    assert cell("007") == "'007"
    assert cell("None") == "'None"
    assert cell("caf\udce9.mp4") == r"caf\xe9.mp4"
    assert cell("\\\udce9") == r"\\\xe9"
    assert cell(r"\xe9") == r"\\xe9"
    assert cell("nul\0") == r"nul\x00"


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_comes_back(text):
    written = cell(text)
    written.encode("utf-8", "strict")
    assert original(written) == text
    assert not set(written.strip(" ")[:1]) & SIGNS


@given(st.binary(min_size=1).filter(lambda name: not set(name) & set(b"/\0")))
def test_any_file_name_comes_back_and_names_its_file(name):
    path = os.fsdecode(name)
    written = path_cell(path)
    assert os.path.normpath(written) == os.path.normpath(path)
    assert original(cell(written)) == written
    assert not cell(written).startswith("'")


def test_numbers_stay_numbers(tmp_path):
    with csv_file(tmp_path / "x.csv", ["a", "b", "c"]) as add:
        add([-1.5, 7, ""])
    assert rows_of(tmp_path / "x.csv")[1] == ["-1.5", "7", ""]


def test_names_of_columns_are_texts_too(tmp_path):
    with csv_file(tmp_path / "x.csv", ["true \\ predicted", "=1+1", "caf\udce9"]):
        pass
    assert rows_of(tmp_path / "x.csv") == [["true \\ predicted", "'=1+1", r"caf\xe9"]]


def test_pandas_reads_every_name(tmp_path):
    """With no arguments: no name is read as a number, a missing value, true or false."""
    pandas = pytest.importorskip("pandas")
    path = write(tmp_path / "x.csv", [name for name in NAMES if name])
    table = pandas.read_csv(path)
    assert list(table.columns) == ["number", "name"]
    assert [original(text) for text in table["name"]] == [name for name in NAMES if name]
    for name in NAMES:  # alone in its column, where pandas is free to guess
        if name and not name.isdigit():
            (text,) = pandas.read_csv(write(tmp_path / "one.csv", [name]))["name"]
            assert original(text) == name
    (number,) = pandas.read_csv(write(tmp_path / "one.csv", ["007"]))["name"]
    assert original(number) == "007"


def test_the_words_of_pandas_are_known():
    parsers = pytest.importorskip("pandas._libs.parsers")
    signs = tuple("+-=")
    words = {word for word in parsers.STR_NA_VALUES if word and not word.startswith(signs)}
    assert words <= spreadsheet._MISSING
