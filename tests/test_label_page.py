"""The page of labelled videos: what it shows, what it escapes, and how it works in a browser."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from browser import wait_until
from clips import read_indices, write_clip
from PIL import Image
from test_page import HOSTILE
from test_page import Page as Parser
from test_predict import write_checkpoint

from hiera_video.commands import predict as command
from hiera_video.errors import RunFailed, UserError
from hiera_video.explanation.explain import Explanation
from hiera_video.explanation.places import MARK as STRIP_MARK
from hiera_video.explanation.relevance import Relevance
from hiera_video.label_page import page as label_page
from hiera_video.label_page.chart import chart_of, clock
from hiera_video.label_page.folder import folder_of
from hiera_video.label_page.page import LabelPage
from hiera_video.predict import Predictor
from hiera_video.prediction import Label, Prediction, Window
from hiera_video.video.decode import probe, read_frames


class Page(Parser):
    """A page, read; its scripts are files."""

    def __init__(self, file):
        self.file = Path(file)
        super().__init__(self.file)

    def rows(self):
        """The texts of the cells of its first table's body, row by row."""
        body = self.file.read_text(encoding="utf-8").split("<tbody>")[1].split("</tbody>")[0]
        rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
        cells = (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows)
        return [[" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in row] for row in cells]

    def addresses(self):
        """All that the page opens or shows."""
        return [a[key] for _, a in self.tags for key in ("src", "href", "poster") if key in a]

    def opened(self, address):
        """The file that an address leads to."""
        path = unquote_to_bytes(address.partition("#")[0])
        return os.path.normpath(os.path.join(os.fsencode(self.file.parent), path))


def labels(*pairs):
    return [Label(name, score) for name, score in pairs]


def prediction(file, *pairs, windows=None, error=None):
    timeline = windows and [Window(a, b, tuple(labels(*found))) for a, b, *found in windows]
    return Prediction(str(file), labels(*pairs), timeline, error, "tiny", "w.pyth", "1x1")


def written(process, predictions, folder="out", **changes):
    """The index of a page, read, and the pages of its videos."""
    options = {"expected": len(predictions), "process": process, **changes}
    with LabelPage(folder, **options) as page:
        for one in predictions:
            page.add(one)
    index = Page(page.index)
    links = [a["href"] for tag, a in index.tags if tag == "a" and "aria-hidden" not in a]
    return index, [Page(Path(folder, link)) for link in links]


@pytest.fixture(scope="module")
def clips(here):
    write_clip("a.mp4", frames=60, fps=10, size=(128, 128))
    write_clip("b.avi", frames=12, fps=10, size=(400, 300), codec="mpeg4")
    return here


WINDOWS = [
    (0.0, 2.0, ("run", 0.9), ("jump", 0.1)),
    (2.0, 4.0, ("jump", 0.75), ("run", 0.25)),
    (4.0, 6.0, ("run", 0.6), ("sit", 0.4)),
]


# ---- what it shows ------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_video(clips, process):
    (clips / "worse.mp4").write_text("no video")
    index, pages = written(
        process,
        [
            prediction("./a.mp4", ("run", 0.875), ("jump", 0.125)),
            prediction("b.avi", ("jump", 1.0)),
            prediction("worse.mp4", error="it is <b>cut</b> off"),
        ],
    )
    assert index.rows() == [
        ["a.mp4 .", "", "run", "87.5 %", "0:06.0", ""],
        ["b.avi", "", "jump", "100.0 %", "0:01.2", ""],
        ["worse.mp4", "", "", "", "", "it is &lt;b&gt;cut&lt;/b&gt; off"],
    ]
    assert "3 videos, 1 with an error. Model tiny, weights w.pyth , 1x1 views" in index.text
    assert "Not complete" not in index.text
    values = [a["data-value"] for _, a in index.tags if "data-value" in a]
    assert values == ["0.875000000", "6.000", "1.000000000", "1.200", "", ""]
    assert len(pages) == 3
    assert "Error: it is <b>cut</b> off" in pages[2].text


def test_the_page_of_a_video_has_its_facts_labels_and_windows(clips, process):
    shown = prediction("a.mp4", ("run", 0.875), ("jump", 0.125), windows=WINDOWS)
    _, (page,) = written(process, [shown])
    size = (clips / "a.mp4").stat().st_size
    assert f"Size {size / 1024:.1f} KiB Duration 0:06.0 Frames 60, 10 per second" in page.text
    assert "Picture 128 x 128 Codec h264 in MP4 or MOV Model tiny, 1x1 views" in page.text
    assert page.rows() == [["run", "87.5 %"], ["jump", "12.5 %"]]
    slots = [a for tag, a in page.tags if tag == "a" and "aria-label" in a]
    assert [slot["aria-label"] for slot in slots] == [
        "0:00.0 to 0:02.0: run 90.0%, jump 10.0%",
        "0:02.0 to 0:04.0: jump 75.0%, run 25.0%",
        "0:04.0 to 0:06.0: run 60.0%, sit 40.0%",
    ]
    assert [slot["href"] for slot in slots] == [f"../../a.mp4#t={t}.000" for t in (0, 2, 4)]
    assert "0:04.0 0:06.0 run 60.0 %, sit 40.0 %" in page.text, "the chart as a table"
    pictures = [page.opened(image["src"]) for image in page.images()]
    assert read_indices([_chw(file) for file in pictures]) == [10, 30, 50]
    assert [image["alt"] for image in page.images()] == [f"Picture at 0:0{t}.0" for t in (1, 3, 5)]


def _chw(file):
    """A picture as the clip had it: what the centre crop cut off is put back, in black."""
    import numpy as np
    from PIL import Image

    with Image.open(os.fsdecode(file)) as picture:
        canvas = Image.new("RGB", (128, 128))
        canvas.paste(picture.convert("RGB").resize((112, 112)), (8, 8))
    return np.asarray(canvas).transpose(2, 0, 1)


def test_without_windows_there_are_pictures_and_no_chart(clips, process):
    _, (page,) = written(process, [prediction("a.mp4", ("run", 1.0))])
    assert len(page.images()) == label_page.PICTURES_WITHOUT_WINDOWS
    assert "Scores over time" not in page.text
    assert "With --timeline SECONDS there are scores over time" in page.text


def test_an_explanation_is_shown_and_goes_with_it(clips, process):
    cells = np.zeros((2, 4, 4), np.float32)
    cells[1, 2, 2] = 1
    found = Explanation(
        file="a.mp4",
        label="<i>run</i>",
        score=0.9,
        relevance=Relevance(cells, grey=0.5, still=1.5, clip=4.5),
        times=np.array([1.0, 1.2, 1.4, 1.6]),
        pixels=np.zeros((4, 32, 32, 3), np.uint8),
        area=(0.0, 0.0, 1.0, 1.0),
    )
    explained = replace(prediction("a.mp4", ("<i>run</i>", 0.875)), explanation=found)
    _, (page,) = written(process, [explained])
    assert "Why <i>run</i>" in page.text
    assert "logit 4.5 = 0.5 without a picture + 1.0 still picture + 3.0 motion" in page.text
    (source,) = (a["src"] for tag, a in page.tags if tag == "img" and a.get("class") == "why")
    picture = page.opened(source)
    with Image.open(picture) as opened:
        assert opened.info["comment"] == STRIP_MARK
        opened.load()
    _, (page,) = written(process, [prediction("a.mp4", ("run", 0.875))])
    assert "Why" not in page.text
    assert not os.path.exists(picture)


def test_many_windows_have_evenly_spread_pictures(clips, process):
    many = [(i / 20, (i + 1) / 20, ("run", 0.5)) for i in range(120)]
    index, (page,) = written(process, [prediction("a.mp4", ("run", 1.0), windows=many)])
    assert len(page.images()) == label_page.MOST_PICTURES
    assert f"{label_page.MOST_PICTURES} of 120 windows." in page.text
    assert len(index.images()) == label_page.IN_TABLE
    starts = [float(a["data-time"]) for _, a in page.tags if "data-time" in a][120:]
    assert starts == sorted(starts)
    assert (starts[0], starts[-1]) == (0.05, 5.9)


def test_videos_follow_each_other(clips, process):
    _, pages = written(process, [prediction(name, ("run", 1.0)) for name in ("a.mp4", "b.avi")])
    ways = [{a["rel"]: a["href"] for _, a in page.tags if a.get("rel") in ("prev", "next")}
            for page in pages]  # fmt: skip
    assert ways == [{"next": pages[1].file.name}, {"prev": pages[0].file.name}]


def test_a_chart_is_as_the_scores_are():
    shown = prediction("a.mp4", windows=[*WINDOWS, (6.0, 8.0, ("run", 0.004), ("dust", 0.001))])
    chart = chart_of(shown.timeline, 7.5)
    assert [(row.label, row.highest) for row in chart.rows] == [
        ("run", 0.9),
        ("jump", 0.75),
        ("sit", 0.4),
    ]
    assert chart.rows[1].path == "M0 100V90.0H2500V100ZM2500 100V25.0H5000V100Z"
    assert chart.end == 8.0
    assert [(slot.left, slot.width) for slot in chart.slots][1] == ("25.000%", "25.000%")
    assert [tick.words for tick in chart.ticks] == [f"0:0{t}" for t in range(8)]
    hours = chart_of(prediction("a", windows=[(0, 9000, ("run", 1))]).timeline, 0)
    assert [tick.words for tick in hours.ticks] == [
        "0:00", "30:00", "1:00:00", "1:30:00", "2:00:00",
    ]  # fmt: skip
    assert [clock(t) for t in (0, 9.96, 59.97, 3599.99, 3661.5)] == [
        "0:00.0", "0:10.0", "1:00.0", "1:00:00.0", "1:01:01.5",
    ]  # fmt: skip


# ---- names and labels of strangers --------------------------------------------------------------

NAMES = [
    HOSTILE.replace("/", "\u2215"),
    "\u202egnp.mp4",
    "שלום.mp4",
    "a\nb\x1b[31m.mp4",
    "byte \udcff.mp4",
    "100 % #1?x=y;{{ 7 * 7 }}.mp4",
    "javascript:alert(1).mp4",
    "n" * 240 + ".mp4",
]


@pytest.fixture(scope="module")
def hostile(clips):
    """Videos with the names of `NAMES`, and labels like them."""
    (clips / "strange").mkdir()
    found = []
    for name in NAMES:
        shutil.copy("a.mp4", clips / "strange" / name)
        label = (name * 300)[:300]
        windows = [(a, b, (label, 0.5)) for a, b, *_ in WINDOWS]
        found.append(prediction(f"strange/{name}", (label, 0.5), windows=windows))
    found.append(prediction(f"gone {NAMES[0]}", error=f"because {HOSTILE}"))
    return found


def test_names_and_labels_are_text_and_nothing_else(hostile, process):
    index, pages = written(process, hostile, folder="hostile out % #")
    assert f"because {HOSTILE}" in index.text
    assert len(pages) == len(hostile)
    for name, page in zip(NAMES, pages, strict=False):
        shown = label_page.printable(name)
        assert " ".join(shown.split()) in page.text
        video = next(a for tag, a in page.tags if tag == "video")
        assert page.opened(video["src"]) == os.fsencode(f"strange/{name}")
        assert video["aria-label"] == shown
    for page in (index, *pages):
        tags = [tag for tag, _ in page.tags]
        assert tags.count("script") == 1
        assert not {"iframe", "object", "b"} & set(tags)
        keys = {key for _, attributes in page.tags for key in attributes}
        assert not {key for key in keys if key.startswith("on") or key == "style"}
        content = page.file.read_text(encoding="utf-8")
        assert not re.search("[\u202e\x1b]", content)
        for address in page.addresses():
            assert not re.match(r"[a-z]+:|/", address), "relative, whatever a name begins with"
            assert os.path.exists(page.opened(address)) or b"gone" in page.opened(address)


def test_nothing_comes_from_elsewhere(hostile, process):
    _, pages = written(process, hostile)
    for file in (*Path("out").glob("*.*"), *(page.file for page in pages)):
        text = file.read_text(encoding="utf-8")
        for name in NAMES:
            text = text.replace(name, "")
        assert not re.search(r"https?://|@import|url\(", text), file


# ---- copies -------------------------------------------------------------------------------------


def test_videos_are_linked_and_one_that_browsers_do_not_play_says_so(clips, process):
    _, (good, bad) = written(process, [prediction(n, ("run", 1.0)) for n in ("a.mp4", "b.avi")])
    assert not list((clips / "out/files").iterdir())
    assert good.opened(good.addresses()[-2]) is not None
    assert "may not play" not in good.text
    assert "A browser may not play this (mpeg4 in avi); --copy adds a small copy." in bad.text


def test_copies_are_the_file_or_a_small_one_that_browsers_play(clips, process):
    both = [prediction(n, ("run", 1.0)) for n in ("a.mp4", "b.avi")]
    _, pages = written(process, both, copy=True, folder="copied")
    sources = [next(a["src"] for tag, a in page.tags if tag == "video") for page in pages]
    copies = [os.fsdecode(page.opened(src)) for page, src in zip(pages, sources, strict=True)]
    assert {Path(copy).parent.as_posix() for copy in copies} == {"copied/files"}
    assert Path(copies[0]).read_bytes() == (clips / "a.mp4").read_bytes()
    assert not os.path.samefile(copies[0], "a.mp4"), "a change of the one does not change the other"
    small = probe(copies[1])
    assert (small.codec, small.num_frames, small.width) == ("h264", 12, 400)
    assert read_indices(read_frames(copies[1], range(12))) == list(range(12))
    assert "This is a small copy: browsers do not play mpeg4" in pages[1].text
    written(process, both[:1], copy=True, folder="copied")
    assert [str(p) for p in Path("copied/files").iterdir()] == copies[:1], "others are deleted"


# ---- the folder ---------------------------------------------------------------------------------


def test_a_page_is_replaced_and_other_things_are_not(clips, process):
    written(process, [prediction(n, ("run", 1.0)) for n in ("a.mp4", "b.avi")], folder="twice")
    before = set(Path("twice").rglob("*.*"))
    Path("twice/pictures/mine.jpg").touch()
    _, (page,) = written(process, [prediction("a.mp4", ("run", 0.5))], folder="twice")
    left = set(Path("twice").rglob("*.*"))
    assert left < before | {Path("twice/pictures/mine.jpg")}
    assert Path("twice/pictures/mine.jpg") in left, "only its own are deleted"
    assert [p.name for p in Path("twice/videos").iterdir()] == [page.file.name]
    Path("album").mkdir()
    Path("album/photo.jpg").touch()
    with pytest.raises(UserError, match="album holds other things"):
        LabelPage("album", expected=1, process=process).__enter__()
    with pytest.raises(RunFailed, match=re.escape("a.mp4/out")):
        LabelPage("a.mp4/out", expected=1, process=process).__enter__()


def test_a_killed_run_leaves_a_page_that_can_be_replaced(clips, process, monkeypatch):
    started = LabelPage("killed", expected=3, process=process).__enter__()
    assert "Not complete: 0 of 3 videos" in Page("killed/index.html").text
    monkeypatch.setattr(started, "_next_index", 0.0)  # a minute has passed
    started.add(prediction("a.mp4", ("run", 1.0)))
    index = Page("killed/index.html")
    assert "Not complete: 1 of 3 videos" in index.text
    assert [row[2] for row in index.rows()] == ["run"]
    folder_of("killed").require_replaceable()
    index, _ = written(process, [prediction("a.mp4", ("jump", 1.0))], folder="killed")
    assert [row[2] for row in index.rows()] == ["jump"]


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture
def call(tmp_path_factory, tmp_path, monkeypatch, capsys):
    """Run the command in a folder of three clips: (exit code, stderr)."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a", "b", "c")):
        write_clip(f"{name}.mp4", frames=30, first_index=100 * number)
    weights = str(write_checkpoint(tmp_path_factory.mktemp("weights") / "tiny.pyth"))

    def run(*words):
        argv = [*map(str, words), "--weights", weights, "--device", "cpu", "--views", "1x1"]
        code = command.main(argv)
        return code, capsys.readouterr().err

    return run


def test_the_command_names_the_page(call, tmp_path):
    (tmp_path / "crash.mp4").write_text("no video")
    code, err = call(".", "gone.mp4", "--html", "page", "--timeline", 0.5)
    assert code == 1
    assert err.splitlines()[-1] == "wrote page/index.html"
    rows = Page("page/index.html").rows()
    assert [row[0] for row in rows] == [
        "a.mp4 .", "b.mp4 .", "c.mp4 .", "crash.mp4 .", "gone.mp4",
    ]  # fmt: skip
    assert [bool(row[-1]) for row in rows] == [False, False, False, True, True]
    assert rows[4][-1] == "no such file or folder"
    assert all(row[2] and row[3].endswith("%") for row in rows[:3])


def test_copies_are_no_videos_to_label(call):
    assert call(".", "--html", "page", "--copy")[0] == 0
    assert call(".", "--html", "page", "--copy")[0] == 0
    assert len(Page("page/index.html").rows()) == 3
    assert len(os.listdir("page/files")) == 3
    with pytest.raises(UserError, match="--html: all videos are copies in page"):
        call("page/files", "--html", "page")


@pytest.mark.parametrize("timeline", [(), ("--timeline", 0.5)], ids=["whole", "timeline"])
def test_what_was_done_before_an_interruption_is_there(call, monkeypatch, timeline):
    def interrupted(done):
        def labelled(*arguments, **options):
            for number, found in enumerate(done(*arguments, **options)):
                if number == 1:
                    raise KeyboardInterrupt
                yield found

        return labelled

    name = "timeline" if timeline else "label_files"
    monkeypatch.setattr(Predictor, name, interrupted(getattr(Predictor, name)))
    code, err = call(".", "--html", "page", *timeline)
    assert code == 130
    assert err.splitlines()[-1] == "wrote page/index.html"
    index = Page("page/index.html")
    rows = index.rows()
    assert rows[-1][-1] == "interrupted"
    assert len(rows) == (1 if timeline else 2)
    assert rows[0][2], "its labels"
    assert f"Not complete: {len(rows)} of 3 videos" in index.text
    links = [a["href"] for tag, a in index.tags if tag == "a"]
    assert all(os.path.exists(index.opened(link)) for link in links)


def test_an_interruption_while_pictures_are_read(call, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(label_page, "jpegs_at", interrupt)
    with pytest.raises(KeyboardInterrupt):
        call(".", "--html", "page")
    index = Page("page/index.html")
    assert [row[0] for row in index.rows()] == ["a.mp4 ."]
    assert index.rows()[0][2]


def test_what_cannot_be_is_said_before_any_work(call, monkeypatch, tmp_path):
    monkeypatch.setattr(Predictor, "load", None)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").touch()
    with pytest.raises(UserError, match="--html: thesis holds other things than an earlier page"):
        call("a.mp4", "--html", "thesis")
    with pytest.raises(UserError, match=r"--html: a\.mp4 is a file; name a folder"):
        call("a.mp4", "--html", "a.mp4")
    with pytest.raises(UserError, match="--copy is for the page; add --html FOLDER"):
        call("a.mp4", "--copy")
    assert os.listdir("thesis") == ["chapter.txt"]


# ---- in a browser -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(clips, process):
    """A page of 120 videos, every tenth with an error."""
    found = [
        prediction(f"v{i}.mp4", error="cut off")
        if i % 10 == 0
        else prediction(f"v{i}.mp4", ("run" if i % 3 else "jump", (i % 97) / 100))
        for i in range(120)
    ]
    written(process, found, folder="many")
    return "many/index.html"


@pytest.fixture(scope="module")
def one(clips, process):
    """The page of a video with a timeline."""
    _, (page,) = written(process, [prediction("a.mp4", *WINDOWS[0][2:], windows=WINDOWS)], "one")
    return page.file


def column(page, number):
    return page.locator(f"#videos tbody tr > :nth-child({number})").all_inner_texts()


def shown(page):
    return page.locator("#shown").inner_text()


def test_the_table_sorts(visit, many):
    page = visit(many)
    assert column(page, 1)[:2] == ["v0.mp4", "v1.mp4"]
    score = page.get_by_role("columnheader", name="Score")
    assert score.get_attribute("aria-sort") == "none"
    score.get_by_role("button").click()
    assert score.get_attribute("aria-sort") == "ascending"
    numbers = [float(text.split()[0]) for text in column(page, 4)]
    assert numbers == sorted(numbers)
    assert len(numbers) == 50
    score.get_by_role("button").press("Enter")
    assert score.get_attribute("aria-sort") == "descending"
    numbers = [float(text.split()[0]) for text in column(page, 4)]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] == 96.0
    page.get_by_role("button", name="Video").click()
    page.get_by_role("button", name="Video").click()
    assert column(page, 1)[:2] == ["v119.mp4", "v118.mp4"], "numbers in names count as numbers"
    assert score.get_attribute("aria-sort") == "none"
    page.get_by_role("button", name="Error").click()
    assert set(column(page, 6)[:12]) == {"cut off"}
    assert set(column(page, 6)[12:]) == {""}, "empty cells come last"


def test_the_table_filters_and_pages(visit, many):
    page = visit(many)
    assert shown(page) == "1 to 50 of 120"
    assert page.get_by_role("button", name="Previous").is_disabled()
    page.get_by_role("button", name="Next").click()
    page.get_by_role("button", name="Next").click()
    assert shown(page) == "101 to 120 of 120"
    assert page.get_by_role("button", name="Next").is_disabled()
    page.get_by_label("Errors").select_option(label="with error")
    assert shown(page) == "1 to 12 of 12 (of 120)"
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("Search").fill("V11")
    assert column(page, 1) == ["v11.mp4", *(f"v{i}.mp4" for i in range(110, 120))]
    page.get_by_label("Search").fill("")
    page.get_by_label("Label", exact=True).select_option(label="jump")
    page.get_by_label("Score from").fill("90")
    page.get_by_label("Score to").fill("93")
    expected = [f"v{i}.mp4" for i in range(120) if i % 3 == 0 and i % 10 and 90 <= i % 97 <= 93]
    assert column(page, 1) == expected != []
    page.get_by_label("Search").fill("nothing like it")
    assert shown(page) == "no video fits"
    page.get_by_role("button", name="Clear").click()
    wait_until(page, "document.getElementById('shown').textContent === '1 to 50 of 120'")


def time_of(page):
    return page.locator("video").evaluate("video => video.currentTime")


def test_a_click_plays_from_there(visit, one):
    page = visit(one)
    wait_until(page, "document.querySelector('video').readyState > 0")
    assert page.locator("video").evaluate("video => video.error") is None
    page.locator("video").evaluate("video => { video.play = () => Promise.resolve(); }")
    chart = page.locator("#chart").bounding_box()
    at = {"x": chart["width"] * 0.75, "y": chart["height"] / 2}
    page.locator("#chart").hover(position=at)
    assert page.locator("#pointed").inner_text().startswith("0:04.5 is in 0:04.0 to 0:06.0: run")
    page.locator("#chart").click(position=at)
    assert time_of(page) == pytest.approx(4.5, abs=0.05)
    wait_until(page, "document.getElementById('now').getAttribute('x1').startsWith('7')")
    page.get_by_role("img", name="Picture at 0:03.0").click()
    assert time_of(page) == pytest.approx(2.0, abs=0.01), "from the beginning of its window"
    slot = page.get_by_role("link", name="0:02.0 to 0:04.0")
    page.get_by_role("link", name="0:00.0 to 0:02.0").focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert slot.evaluate("slot => slot === document.activeElement")
    assert page.locator("#pointed").inner_text() == "0:02.0 to 0:04.0: jump 75.0%, run 25.0%"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert time_of(page) == pytest.approx(4.0, abs=0.01)
    assert page.url.endswith(one.name), "it stays on the page"


def test_it_plays_on_its_own(visit, one):
    page = visit(one)
    page.get_by_role("img", name="Picture at 0:03.0").click()
    wait_until(page, "document.querySelector('video').currentTime > 2.05")
    assert not page.locator("video").evaluate("video => video.paused")


def stops(page, most=60):
    """What the Tab key reaches, in order: (tag, its name or text)."""
    found = []
    for _ in range(most):
        page.keyboard.press("Tab")
        tag, words, outline = page.evaluate(
            """() => { const e = document.activeElement; const box = e.querySelector('rect') || e;
            return [e.tagName.toLowerCase(), e.getAttribute('aria-label') || e.textContent.trim()
            || e.id, getComputedStyle(e).outlineStyle + getComputedStyle(box).stroke]; }"""
        )
        if tag == "body":
            break
        assert outline != "nonenone", f"{tag} {words}: focus is not to be seen"
        if (tag, words) not in found:
            found.append((tag, words))
    return found


def test_the_keyboard_reaches_everything(visit, many, one):
    reached = stops(visit(many))
    tags = [tag for tag, _ in reached]
    assert tags[:6] == ["input", "select", "input", "input", "select", "button"]
    assert [words for tag, words in reached if tag == "button"][1:6] == [
        "Video", "Label", "Score", "Duration", "Error",
    ]  # fmt: skip
    assert ("a", "v0.mp4") in reached
    assert ("a", "v40.mp4") in reached
    reached = stops(visit(one))
    assert reached[0] == ("a", "All videos")
    assert ("video", "a.mp4") in reached
    slots = [words for tag, words in reached if " to " in words]
    assert len(slots) == 1, "one stop; arrows go on"
    assert [words for tag, words in reached if tag == "a"][-3:] == ["0:01.0", "0:03.0", "0:05.0"]
    assert reached[-1] == ("summary", "Every window as a table")


def test_without_javascript_it_is_a_plain_table(visit, many, one):
    page = visit(many, java_script_enabled=False)
    assert page.locator("#videos tbody tr:visible").count() == 120
    assert not page.locator("#filters").is_visible()
    assert not page.locator("#paging").is_visible()
    assert page.locator("thead button").count() == 0
    page = visit(one, java_script_enabled=False)
    link = page.get_by_role("link", name="0:02.0 to 0:04.0")
    assert link.get_attribute("href") == "../../a.mp4#t=2.000"
    assert page.locator(".bars path").count() == 3
    assert page.locator(".bars path").first.bounding_box()["height"] > 20
    assert page.locator("details").count() == 1


def test_strange_names_are_shown_and_do_nothing(visit, hostile, process):
    _, pages = written(process, hostile, folder="strange page")
    page = visit("strange page/index.html")
    assert page.locator("#videos tbody img").count() == 3 * len(NAMES), "pictures of windows alone"
    names = [name.split("\n")[0] for name in column(page, 1)]
    assert names == [label_page.printable(name) for name in (*NAMES, f"gone {NAMES[0]}")]
    options = page.locator("#label option").all_inner_texts()
    assert len(options) == 1 + len(NAMES)
    page.get_by_label("Label", exact=True).select_option(index=1)
    assert shown(page) == f"1 to 1 of 1 (of {len(hostile)})"
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 1200, "300 characters do not widen the page"
    for file in pages[:-1]:
        page.goto(file.file.resolve().as_uri())
        wait_until(page, "document.querySelector('video').readyState > 0")
        assert page.evaluate("document.documentElement.scrollWidth") <= 1200, file.text


def test_a_file_that_the_browser_cannot_play_says_so(visit, clips, process):
    _, (file,) = written(process, [prediction("b.avi", ("run", 1.0))], folder="avi")
    page = visit(file.file)
    page.get_by_text("This browser cannot play the file.").wait_for()
    assert page.locator("video").is_visible(), "its picture is"


def test_dark_and_light_can_be_read(visit, many, one):
    script = """selector => {
      const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
      const grey = color => {
        const [r, g, b] = color.match(/[\\d.]+/g).map(v => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const back = grey(getComputedStyle(document.body).backgroundColor);
      const text = grey(getComputedStyle(document.querySelector(selector)).color);
      return [(Math.max(back, text) + 0.05) / (Math.min(back, text) + 0.05), back]; }"""
    for scheme in ("light", "dark"):
        page = visit(many, color_scheme=scheme)
        for selector in ("body", ".quiet", "#videos a", "#videos .error", "thead button"):
            contrast, back = page.evaluate(script, selector)
            assert contrast >= 4.5, (scheme, selector)
            assert (back < 0.1) == (scheme == "dark")
