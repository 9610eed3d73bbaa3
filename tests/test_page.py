"""The page of neighbours: what it shows, what it escapes, and which folders it replaces."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from clips import read_index, write_clip
from PIL import Image
from test_features import SETTINGS, model, weights  # noqa: F401
from test_guarded_video import serve_or_worse

from hiera_video.commands import features as features_command
from hiera_video.commands import search as command
from hiera_video.errors import RunFailed, UserError
from hiera_video.features import page
from hiera_video.features.page import Answer, Moment, PageWriter
from hiera_video.features.search import Neighbour
from hiera_video.pages import moments
from hiera_video.video.guarded_pool import GuardedPool

VOID = {"meta", "img", "link", "br", "input"}


class Page(HTMLParser):
    """Reads a page: its tags in order, its text, and whether every tag is closed."""

    def __init__(self, file):
        super().__init__(convert_charrefs=True)
        self.tags, self.words, self.open = [], [], []
        self.feed(file.read_text(encoding="utf-8"))
        self.close()
        assert not self.open, "tags that are not closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def images(self):
        return [attrs for tag, attrs in self.tags if tag == "img"]


def found(path, start=0.0, end=2.0, score=0.5):
    return Neighbour(score, str(path), start, end)


def written(process, answers, table="f.parquet", folder="out"):
    """The page of answers, read."""
    return Page(Path(PageWriter(folder, process)(answers, SETTINGS, table)))


def answer(path, *neighbours, span=(0.0, 2.0)):
    return Answer(str(path), Moment(str(path), *span), neighbours)


def test_pictures_are_of_the_middle_of_the_window(here, process):
    write_clip("a.mp4", frames=90, fps=30, size=(128, 128))
    write_clip("b.mp4", frames=90, fps=30, size=(128, 128), first_index=1000)
    answers = [answer("a.mp4", found("b.mp4", 1, 2, 0.9876), found("b.mp4", 2, 9), span=(0, 3))]
    shown = written(process, answers)
    files = [here / "out" / image["src"] for image in shown.images()]
    numbers = []
    for file in files:
        with Image.open(file) as picture:
            assert (picture.format, picture.size) == ("JPEG", (moments.SIDE, moments.SIDE))
            whole = picture.convert("RGB").resize((128, 128))
        # the centre crop has 7/8 of each side: what was cut off is put back, in black
        canvas = Image.new("RGB", (128, 128))
        canvas.paste(whole.resize((112, 112)), (8, 8))
        numbers.append(read_index(_chw(canvas)))
    assert numbers == [45, 1045, 1089], "of the last window only its beginning is in the file"
    assert "1. similarity 0.9876 1.0 to 2.0 s b.mp4" in shown.text
    assert shown.images()[1]["alt"] == "Neighbour 1: b.mp4 at 1.5 s"
    assert all(image["alt"] for image in shown.images())


def _chw(picture):
    import numpy as np

    return np.asarray(picture).transpose(2, 0, 1)


HOSTILE = '<script>alert("1")</script>&"\'><img src=x onerror=y>.mp4'


@pytest.mark.parametrize(
    ("name", "shown_as"),
    [
        (HOSTILE.replace("/", "\u2215"), HOSTILE.replace("/", "\u2215")),
        ("\u202egnp.mp4", "\\u202egnp.mp4"),  # would turn the text after it
        ("שלום.mp4", "שלום.mp4"),
        ("a\nb\x1b[31m.mp4", "a\\nb\\x1b[31m.mp4"),
        ("byte \udcff.mp4", "byte \\udcff.mp4"),
        ("{{ 7 * 7 }}.mp4", "{{ 7 * 7 }}.mp4"),
    ],
)
def test_names_are_text_and_nothing_else(name, shown_as, here, process):
    write_clip("plain.mp4", frames=4, size=(64, 64))
    (here / "plain.mp4").rename(here / name)
    shown = written(process, [answer(name, found(name), found(f"gone {name}"))], table=name)
    assert shown.text.count(shown_as) >= 4
    assert [image["alt"] for image in shown.images()] == [
        f"Query: {shown_as} at 1.0 s",
        f"Neighbour 1: {shown_as} at 1.0 s",
    ]
    tags = {tag for tag, _ in shown.tags}
    assert not tags & {"script", "link", "iframe", "a", "object"}
    assert {key for _, attrs in shown.tags for key in attrs}.isdisjoint({"onerror", "onload"})
    inside = [attrs for tag, attrs in shown.tags if tag == "bdi"]
    assert len(inside) == 5, "table, weights, query and two neighbours turn nothing around them"


def test_nothing_is_fetched_and_every_file_is_there(here, process):
    for name in "ab":
        write_clip(f"{name}.mp4", frames=4, size=(64, 64), first_index=ord(name))
    shown = written(process, [answer("a.mp4", found("b.mp4"), found("a.mp4"))])
    sources = {image["src"] for image in shown.images()}
    on_disk = {str(p.relative_to("out")) for p in (here / "out").relative_to(here).glob("*/*")}
    assert sources == on_disk
    assert len(sources) == 2, "one picture is there once"
    text = (here / "out" / "index.html").read_text()
    assert not re.search(r"https?:|url\(|@import|<script|//", text)
    assert "prefers-color-scheme: dark" in text


def test_what_cannot_be_read_says_why(here, process):
    (here / "crash.mp4").write_text("worse")
    (here / "none.mp4").write_text("not a <b>video</b>")
    neighbours = [found("crash.mp4"), found("none.mp4", 0, 1), found("none.mp4", 1, 2)]
    shown = written(process, [Answer("bad.mp4", None, [], "it is <b>cut</b> off")])
    assert "It could not be described: it is <b>cut</b> off" in shown.text
    shown = written(process, [answer("gone.mp4", *neighbours)])
    assert not shown.images()
    assert shown.text.count("No picture: ") == 4
    assert "No picture: reading it in a process of its own: crashed (SIGSEGV)" in shown.text
    assert not list((here / "out" / "pictures").iterdir())


def test_an_earlier_page_is_replaced_and_other_things_are_not(here, process):
    write_clip("a.mp4", frames=4, size=(64, 64))
    write_clip("b.mp4", frames=4, size=(64, 64), first_index=77)
    written(process, [answer("a.mp4")], folder="twice")
    (old,) = (here / "twice" / "pictures").iterdir()
    shown = written(process, [answer("b.mp4")], folder="twice")
    assert not old.exists()
    assert len(list((here / "twice" / "pictures").iterdir())) == 1
    assert "b.mp4" in shown.text
    (here / "twice" / "index.html").write_text("<title>mine</title>")
    with pytest.raises(UserError, match="twice holds other things than an earlier page"):
        written(process, [answer("a.mp4")], folder="twice")
    assert (here / "twice" / "index.html").read_text() == "<title>mine</title>"
    (here / "album" / "pictures").mkdir(parents=True)
    photo = here / "album" / "pictures" / "holiday.jpg"
    photo.touch()
    with pytest.raises(UserError, match="album holds other things"):
        written(process, [answer("a.mp4")], folder="album")
    assert photo.exists()
    photo.rename(photo.with_name(f"{'0' * 20}.jpg"))  # as an interrupted one leaves them
    written(process, [answer("a.mp4")], folder="album")
    assert len(list(photo.parent.iterdir())) == 1
    photo.touch()
    written(process, [answer("a.mp4")], folder="album")
    assert photo.exists(), "only its own pictures are deleted"
    (here / "file").touch()
    with pytest.raises(UserError, match="file is a file; name a folder"):
        page.require_replaceable("file")
    with pytest.raises(RunFailed, match="file"):
        PageWriter("file/out", process)([answer("a.mp4")], SETTINGS, "f.parquet")


def test_the_command_writes_a_page_beside_its_table(here, weights, monkeypatch, capsys):  # noqa: F811
    (here / "in").mkdir()
    for i in range(3):
        write_clip(f"in/{i}.mp4", frames=20, first_index=100 * i)
    guarded = lambda: GuardedPool(serve_or_worse)  # noqa: E731
    for module in (features_command, command):
        monkeypatch.setattr(module, "decoding_process", guarded)
    words = ["in", "--weights", weights, "--device", "cpu", "--out", "f.parquet"]
    assert features_command.main(words) == 0
    (here / "none.mp4").write_text("no video")
    capsys.readouterr()
    query = ["f.parquet", "in/1.mp4", "none.mp4", "--device", "cpu", "--top", "2"]
    assert command.main(query) == 1
    table = capsys.readouterr().out
    assert command.main([*query, "--html", "similar"]) == 1
    out, err = capsys.readouterr()
    assert out == table
    assert "wrote similar/index.html" in err
    shown = Page(here / "similar" / "index.html")
    assert len(shown.images()) == 3
    assert shown.images()[0]["alt"].startswith("Query: in/1.mp4 at 0.")
    assert shown.images()[1]["src"] == shown.images()[0]["src"], "itself is its first neighbour"
    assert "It could not be described" in shown.text
    (here / "taken").mkdir()
    (here / "taken" / "thesis.txt").touch()
    with pytest.raises(UserError, match="taken holds other things"):
        command.main([*query, "--html", "taken"])
    with pytest.raises(UserError, match="--html is a page of neighbours"):
        command.main(["f.parquet", "--probe", "in", "--html", "similar"])


def test_a_picture_is_small():
    """Hundreds of neighbours fit in a page: a noisy picture is a few tens of kilobytes."""
    import numpy as np
    import torch

    side = moments.SIDE
    noise = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)

    class Video:
        info = type("Info", (), {"times": np.array([0.0, 1.0])})

        def read_crops(self, indices, side, crops):
            assert (indices, side, crops) == ([1], moments.SIDE, 1)
            return [torch.from_numpy(noise).permute(2, 0, 1)[None]]

    jpeg = moments.jpeg_at(Video(), 7.0)
    assert len(jpeg) < 40_000
    assert Image.open(io.BytesIO(jpeg)).size == (moments.SIDE, moments.SIDE)
