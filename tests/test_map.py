"""The map of a collection: where its points lie, what its page shows, and how it works."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import wait_until
from clips import read_indices, write_clip
from test_features import SETTINGS, described
from test_label_page import NAMES, Page, _chw
from test_page import HOSTILE

from hiera_video.cli import printable
from hiera_video.commands import search as command
from hiera_video.errors import DataError, UserError
from hiera_video.features.search import unit_rows
from hiera_video.features.table import TableWriter, stored_path
from hiera_video.map_page import collection as collection_module
from hiera_video.map_page import page as map_page
from hiera_video.map_page.collection import Collection, read_collection
from hiera_video.map_page.labels import MOST_GROUPS, Labels, labels_of, legend_of
from hiera_video.map_page.page import MapContent, MapWriter
from hiera_video.map_page.projection import Projection, neighbours_kept, pca, project

pytest.importorskip("pyarrow")


# ---- where the points lie -----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(200, 12), (10, 40), (5000, 6)], ids=["tall", "wide", "many"])
def test_the_axes_are_principal_components(shape):
    draw = np.random.default_rng(0)
    rows = (draw.normal(size=shape) * np.linspace(3, 1, shape[1]) + 5).astype(np.float32)
    points, shares = pca(rows)
    centred = rows.astype(np.float64) - rows.astype(np.float64).mean(axis=0)
    values, axes = np.linalg.eigh(centred.T @ centred)
    expected = centred @ axes[:, [-1, -2]]
    signs = np.sign((points * expected).sum(axis=0))
    assert np.allclose(points, expected * signs, atol=1e-4)
    assert np.allclose(shares, values[[-1, -2]] / values.sum(), atol=1e-6)
    loadings = rows.T @ points
    assert (loadings[np.abs(loadings).argmax(axis=0), [0, 1]] > 0).all() or len(rows) < 100
    turned, _ = pca(rows[::-1].copy())
    assert np.allclose(turned[::-1], points, atol=1e-4), "the order of the rows does not flip it"


def test_vectors_that_do_not_differ_have_one_place():
    for rows in (np.ones((1, 3)), np.ones((7, 3)), np.ones((4, 1))):
        points, shares = pca(rows.astype(np.float32))
        assert (points.shape, shares) == ((len(rows), 2), (0.0, 0.0))
        assert not points.any()
    line = np.outer(np.arange(5), [3, 4]).astype(np.float32)
    points, shares = pca(line)
    assert np.allclose(points[:, 0], [-10, -5, 0, 5, 10])
    assert shares == (pytest.approx(1), 0)


def test_what_a_plane_keeps_of_neighbourhoods_is_counted():
    draw = np.random.default_rng(0)
    angles = draw.uniform(0, np.pi, size=60)
    flat = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert neighbours_kept(flat.astype(np.float32), flat, 5) == 5
    rows = unit_rows(draw.normal(size=(60, 30))).astype(np.float32)
    found = project(rows)
    cosines = rows @ rows.T
    far = ((found.points[:, None] - found.points) ** 2).sum(axis=2)
    for table, worst in ((cosines, -np.inf), (far, np.inf)):
        np.fill_diagonal(table, worst)
    pairs = zip(np.argsort(-cosines)[:, :10], np.argsort(far)[:, :10], strict=True)
    shared = [len(set(a) & set(b)) for a, b in pairs]
    assert (found.nearest, found.kept) == (10, pytest.approx(np.mean(shared)))
    assert project(rows[:1]).nearest == 0


def test_umap_keeps_groups_together_and_is_the_same_each_time():
    pytest.importorskip("umap", reason="needs umap-learn")
    draw = np.random.default_rng(0)
    centres = np.repeat(draw.normal(size=(3, 16)), 20, axis=0)
    rows = unit_rows(centres + 0.1 * draw.normal(size=(60, 16))).astype(np.float32)
    found = project(rows, "umap")
    places = found.points.reshape(3, 20, 2)
    middles = places.mean(axis=1)
    width = np.linalg.norm(places - middles[:, None], axis=2).max()
    apart = np.linalg.norm(middles[:, None] - middles, axis=2)[np.triu_indices(3, 1)].min()
    assert apart > 2 * width
    assert found.shares is None
    assert np.array_equal(project(rows, "umap").points, found.points)
    with pytest.raises(UserError, match="umap needs 4 vectors at least, here are 3; use pca"):
        project(rows[:3], "umap")


# ---- the table and the labels -------------------------------------------------------------------


def table_of(file, *rows, settings=SETTINGS):
    """A table: (path, vectors) or (path, error) for each video."""
    with TableWriter(file, settings, afresh=True) as writer:
        for path, content in rows:
            if isinstance(content, str):
                writer.add_error(path, content)
            else:
                found = described(0)
                vectors = np.asarray(content, dtype=np.float32)
                starts = [2.0 * k for k in range(len(vectors))]
                ends = [start + 2 for start in starts]
                writer.add(path, replace(found, starts=starts, ends=ends, vectors=vectors))
        writer.finish()
    return str(file)


def test_a_table_is_read_whole(tmp_path, monkeypatch):
    file = table_of(
        tmp_path / "f.parquet",
        ("a.mp4", [[2, 0, 0, 0], [0, 3, 0, 0]]),
        ("bad.mp4", "cut off"),
        ("b.mp4", [[0, 0, 0, 0]]),
    )
    found = read_collection(file)
    assert found.paths == ["a.mp4", "b.mp4"]
    assert found.video_of.tolist() == [0, 0, 1]
    assert found.spans.tolist() == [[0, 2], [2, 4], [0, 2]]
    assert found.vectors.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert found.failed == [("bad.mp4", "cut off")]
    monkeypatch.setattr(collection_module, "MOST_POINTS", 2)
    with pytest.raises(DataError, match="more than 2 vectors"):
        read_collection(file)
    none = table_of(tmp_path / "none.parquet", ("bad.mp4", "cut off"))
    with pytest.raises(DataError, match="has no vectors: all its 1 videos failed"):
        read_collection(none)


def test_tokens_are_averaged(tmp_path):
    settings = replace(SETTINGS, shape=(2, 1, 1, 2), pool="tokens")
    file = table_of(tmp_path / "t.parquet", ("a.mp4", [[0, 0, 0, 2]]), settings=settings)
    assert read_collection(file).vectors.tolist() == [[0, 1]]


def test_labels_are_folders_where_these_group_the_videos(tmp_path):
    paths = [f"v/{label}/{i}.mp4" for label in ("run", "sit") for i in range(2)]
    assert list(labels_of(paths, None).of) == ["run", "run", "sit", "sit"]
    assert (
        labels_of(paths, None).source == "Labels are the names of the folders that hold the videos."
    )
    for one_each in (["a/1.mp4", "b/1.mp4", "c/1.mp4"], ["a/1.mp4", "a/2.mp4"]):
        found = labels_of(one_each, None)
        assert set(found.of) == {None}
        assert "the folders of the videos do not group them" in found.source
        assert list(labels_of(one_each, "folders").of) == [p.split("/")[0] for p in one_each]
    assert set(labels_of(paths, "none").of) == {None}


def test_labels_are_read_as_training_reads_them(tmp_path):
    listed = tmp_path / "labels.csv"
    listed.write_text("path,label\n1.mp4,jump\n2.mp4,wave\n3.mp4,wave\n")
    paths = [str(tmp_path / "1.mp4"), "moved/3.mp4", "other.mp4"]
    found = labels_of(paths, str(listed))
    assert found.of == ["jump", "wave", None]
    assert found.source == f"Labels are those of {listed}, which has 2 of the 3 videos."
    with pytest.raises(DataError, match="no video is both on the map"):
        labels_of(["other.mp4"], str(listed))
    with pytest.raises(DataError, match="no such file or folder"):
        labels_of(paths, str(tmp_path / "gone.csv"))


def test_the_legend_says_what_it_puts_together():
    labels = [f"l{i:02}" for i in range(30) for _ in range(30 - i)] + [None, None]
    groups = legend_of(labels)
    assert [g.name for g in groups[:MOST_GROUPS]] == [f"l{i:02}" for i in range(MOST_GROUPS)]
    assert [g.mark for g in groups] == [*range(MOST_GROUPS), MOST_GROUPS, -1]
    rest, without = groups[-2:]
    assert (rest.name, list(rest.names), rest.points) == (
        "other: 6 labels",
        [f"l{i}" for i in range(24, 30)],
        21,
    )
    assert (without.name, without.points) == ("no label", 2)
    assert [g.name for g in legend_of(["b", "a", "b"])] == ["a", "b"]


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(here):
    """Videos in two folders, one that is gone, one that is none, and one that failed before."""
    for label in ("run", "sit"):
        Path("v", label).mkdir(parents=True)
        for i in range(2):
            first = 60 * i + 256 * (label == "sit")
            write_clip(f"v/{label}/{i}.mp4", frames=60, fps=10, size=(128, 128), first_index=first)
    Path("v/run/text.mp4").write_text("no video")
    draw = np.random.default_rng(0)
    files = ["v/run/0.mp4", "v/run/1.mp4", "v/sit/0.mp4", "v/sit/1.mp4", "v/sit/gone.mp4"]
    rows = [(file, draw.normal(size=(2, 4))) for file in (*files, "v/run/text.mp4")]
    windows = replace(SETTINGS, every=2.0)
    table_of("f.parquet", *rows, ("v/<b>bad</b>.mp4", "cut <i>off</i>"), settings=windows)
    return here


def json_of(page):
    text = page.file.read_text(encoding="utf-8")
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1]
    )


def test_the_command_writes_a_page_and_says_what_it_holds(clips, capsys):
    assert command.main(["f.parquet", "--map", "map"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "6 videos on the map (12 vectors); 1 failed and are not on it"
    assert lines[1] == "Labels are the names of the folders that hold the videos."
    assert re.fullmatch(r"PCA: the axes hold [\d.]+% and [\d.]+% of the variance", lines[2])
    assert err.splitlines()[-1] == "wrote map/index.html"
    page = Page("map/index.html")
    assert "6 videos, 12 windows of 2.0 s, of f.parquet" in page.text
    assert "1 video could not be described and is not here." in page.text
    assert "v/<b>bad</b>.mp4 : cut <i>off</i>" in page.text
    found = json_of(page)
    assert [video["name"] for video in found["videos"]][-2:] == ["v/sit/gone.mp4", "v/run/text.mp4"]
    troubles = [video["trouble"] for video in found["videos"]]
    assert troubles[:5] == ["", "", "", "", "missing: it has moved, or was deleted"]
    assert troubles[5], "the reason why it has no picture"
    assert [bool(video["link"]) for video in found["videos"]] == [True] * 4 + [False, True]
    assert found["labels"] == ["run", "sit"]
    assert found["label"] == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0]
    shown = [_chw(Path("map", name)) for name in found["picture"] if name]
    assert read_indices(shown) == [10, 30, 70, 90, 266, 286, 326, 346]


def test_the_command_in_json(clips, capsys):
    words = ["f.parquet", "--map", "map", "--json", "--labels", "none"]
    assert command.main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["videos"], said["vectors"], said["labels"]) == (6, 12, 0)
    assert said["failed"] == [{"path": "v/<b>bad</b>.mp4", "error": "cut <i>off</i>"}]
    assert 0 < said["variance"][1] <= said["variance"][0] < 1


def test_many_windows_share_pictures(clips, process, monkeypatch):
    monkeypatch.setattr(map_page, "MOST_PICTURES", 2)
    content = content_of(
        [[i, 0] for i in range(6)], paths=["v/run/0.mp4"], spans=[[i, i + 1] for i in range(6)]
    )
    page = written(process, content, "few")
    names = json_of(page)["picture"]
    assert read_indices(
        [_chw(Path("few", name)) for name in sorted(set(names), key=names.index)]
    ) == [15, 45]
    assert len(list(Path("few/pictures").iterdir())) == 2


def test_what_is_there_when_it_is_interrupted_is_a_page(clips, monkeypatch, capsys):
    done = MapWriter._pictures_at

    def interrupted(writer, path, times):
        if path == "v/sit/0.mp4":
            raise KeyboardInterrupt
        return done(writer, path, times)

    monkeypatch.setattr(MapWriter, "_pictures_at", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command.main(["f.parquet", "--map", "stopped"])
    assert capsys.readouterr().err.splitlines()[-1] == "wrote stopped/index.html"
    found = json_of(Page("stopped/index.html"))
    assert [bool(name) for name in found["picture"]] == [True] * 4 + [False] * 8
    assert found["videos"][3]["trouble"] == "not read: interrupted"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["v/run/0.mp4", "--map", "m"], "name either videos to search for"),
        (["--map", "m", "--probe", "labels.csv"], "or a folder for a map of all"),
        (["--map", "m", "--html", "p"], "--html is a page of neighbours"),
        (["--map", "m", "--map-method", "tsne"], "--map-method tsne: choose one of pca, umap"),
        (["v/run/0.mp4", "--labels", "none"], "add --map FOLDER"),
        (["--map", "v"], "v holds other things than an earlier page"),
        (["--map", "m", "--labels", "gone.csv"], r"no such file or folder: gone\.csv"),
    ],
)
def test_what_cannot_be_is_refused(clips, words, message):
    with pytest.raises(UserError, match=message):
        command.main(["f.parquet", *words])
    assert not Path("m").exists()


def test_umap_that_is_missing_is_named(clips, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match="needs a library: pip install umap-learn"):
        command.main(["f.parquet", "--map", "m", "--map-method", "umap"])


# ---- in a browser -------------------------------------------------------------------------------


def content_of(points, *, paths, labels=None, spans=None, video_of=None, failed=()):
    """A map with points at given places: one a video, or several of few videos."""
    count = len(points)
    windows = count > len(paths)
    collection = Collection(
        table="f.parquet",
        settings=replace(SETTINGS, every=1.0 if windows else None),
        paths=paths,
        video_of=np.arange(count) % len(paths) if video_of is None else np.asarray(video_of),
        spans=np.asarray(spans if spans is not None else [[0.0, 2.0]] * count, dtype=float),
        vectors=np.ones((count, 4), np.float32),
        failed=failed,
    )
    of = Labels(labels or [None] * len(paths), "Labels are made up.")
    places = np.asarray(points, dtype=float)
    return MapContent(collection, of, Projection("pca", places, (0.5, 0.25), 10, 5.0))


def written(process, content, folder):
    writer = MapWriter(folder, process)
    writer(content)
    return Page(writer.index)


POINTS = [[0, 0], [10, 0], [0, 10], [10, 10], [5, 5], [6.5, 8.2]]
PATHS = ["v/run/0.mp4", "v/run/1.mp4", "v/sit/0.mp4", "v/sit/1.mp4", "gone.mp4", "far.mp4"]
LABELS = ["run", "run", "sit", "sit", None, "far"]


@pytest.fixture(scope="module")
def small(clips, process):
    """Four points at the corners of a square and two in it, of which the videos are gone."""
    return written(process, content_of(POINTS, paths=PATHS, labels=LABELS), "small")


class Drawn:
    """The map of a page in the browser: where its points are, and what it lists."""

    def __init__(self, page, data):
        self.page = page
        self.box = page.locator("#canvas").bounding_box()
        x, y = np.asarray(data["x"]), np.asarray(data["y"])
        width, height, edge = self.box["width"], self.box["height"], 34
        scale = min((width - 2 * edge) / x.max(), (height - 2 * edge) / y.max())
        self.x = self.box["x"] + (width - x.max() * scale) / 2 + x * scale
        self.y = self.box["y"] + (height - y.max() * scale) / 2 + y * scale

    def drag(self, *corners, keys=()):
        mouse = self.page.mouse
        for key in keys:
            self.page.keyboard.down(key)
        mouse.move(*corners[0])
        mouse.down()
        for corner in corners[1:]:
            mouse.move(*corner, steps=4)
        mouse.up()
        for key in keys:
            self.page.keyboard.up(key)

    def around(self, *points, by=15, keys=()):
        """A box round some points."""
        x, y = self.x[list(points)], self.y[list(points)]
        left, right, top, bottom = x.min() - by, x.max() + by, y.min() - by, y.max() + by
        self.drag((left, top), (right, top), (right, bottom), (left, bottom), keys=keys)

    def hover(self, point):
        self.page.mouse.move(self.x[point] + 2, self.y[point] + 1)

    def listed(self):
        return [text.split("\n")[0] for text in self.page.locator("#listed li").all_inner_texts()]


@pytest.fixture
def drawn(visit, small):
    return Drawn(visit(small.file), json_of(small))


def test_a_lasso_lists_exactly_the_points_inside(drawn):
    page = drawn.page
    assert page.locator("#count").inner_text().startswith("Nothing yet")
    drawn.around(0, 2)
    assert drawn.listed() == ["v/run/0.mp4", "v/sit/0.mp4"]
    assert page.locator("#count").inner_text() == "2 videos"
    drawn.around(1, keys=["Shift"])
    assert drawn.listed() == ["v/run/0.mp4", "v/run/1.mp4", "v/sit/0.mp4"]
    drawn.around(2, keys=["Alt"])
    assert drawn.listed() == ["v/run/0.mp4", "v/run/1.mp4"]
    # a triangle over three corners, which leaves out the upper right and what is above its side
    drawn.drag(
        (drawn.x[2] - 9, drawn.y[2] - 9),
        (drawn.x[0] - 9, drawn.y[0] + 9),
        (drawn.x[1] + 30, drawn.y[1] + 9),
    )
    assert drawn.listed() == ["gone.mp4", "v/run/0.mp4", "v/run/1.mp4", "v/sit/0.mp4"]
    page.get_by_role("button", name="Clear list").click()
    assert drawn.listed() == []


def test_the_list_is_copied_and_saved(drawn, visit):
    drawn.around(0, 1)
    drawn.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    drawn.page.get_by_role("button", name="Copy list").click()
    drawn.page.get_by_text("Copied", exact=True).wait_for()
    expected = "v/run/0.mp4\nv/run/1.mp4\n"
    assert drawn.page.evaluate("navigator.clipboard.readText()") == expected
    with drawn.page.expect_download() as download:
        drawn.page.get_by_role("button", name="Save list").click()
    assert download.value.suggested_filename == "videos.txt"
    assert Path(download.value.path()).read_text() == expected


def test_a_point_shows_its_video_and_a_click_opens_it(drawn):
    page = drawn.page
    assert not page.locator("#card").is_visible()
    drawn.hover(3)
    assert page.locator("#card").inner_text().split("\n") == [
        *("v/sit/1.mp4", "", "sit", "", "0.0 to 2.0 s"),
    ]
    wait_until(page, "document.getElementById('picture').naturalWidth === 192")
    drawn.hover(4)
    assert "No picture: missing" in page.locator("#card").inner_text()
    assert not page.locator("#picture").is_visible()
    with page.expect_popup() as opened:
        page.mouse.click(drawn.x[3], drawn.y[3])
    assert opened.value.url == Path("v/sit/1.mp4").resolve().as_uri()
    page.mouse.move(drawn.box["x"] + 200, drawn.box["y"] + 5)
    assert not page.locator("#card").is_visible()


def test_labels_and_words_filter(drawn):
    page = drawn.page
    assert page.locator("#legend button").all_inner_texts() == [
        *("far\n1", "run\n2", "sit\n2", "no label\n1"),
    ]
    sit = page.get_by_role("button", name="sit 2")
    sit.click()
    assert sit.get_attribute("aria-pressed") == "true"
    drawn.around(0, 1, 2, 3)
    assert drawn.listed() == ["v/sit/0.mp4", "v/sit/1.mp4"], "what is faint is not listed"
    page.get_by_role("button", name="no label 1").click()
    page.get_by_role("button", name="List the 3 shown").click()
    assert drawn.listed() == ["gone.mp4", "v/sit/0.mp4", "v/sit/1.mp4"]
    page.get_by_label("Find").fill("SIT/1")
    page.get_by_role("button", name="List the 1 shown").click()
    assert drawn.listed() == ["v/sit/1.mp4"]
    page.get_by_role("button", name="Show everything").click()
    assert page.get_by_role("button", name="List the 6 shown").is_enabled()
    assert sit.get_attribute("aria-pressed") == "false"


def test_the_keyboard_does_it_all(drawn):
    page = drawn.page
    said = page.locator("#said")
    page.locator("#whole").focus()
    page.keyboard.press("Tab")
    assert (
        said.inner_text()
        == "gone.mp4, no label, 0.0 to 2.0 s, no picture: missing: it has moved, or was deleted"
    )
    page.keyboard.press("ArrowUp")
    assert said.inner_text().startswith("far.mp4, far, 0.0 to 2.0 s")
    page.keyboard.press("ArrowLeft")
    assert said.inner_text() == "v/sit/0.mp4, sit, 0.0 to 2.0 s"
    assert "v/sit/0.mp4" in page.locator("#card").inner_text()
    page.keyboard.press("Space")
    assert said.inner_text().endswith(", listed")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    assert drawn.listed() == ["v/sit/0.mp4", "v/sit/1.mp4"]
    page.keyboard.press("Space")
    assert drawn.listed() == ["v/sit/0.mp4"]
    with page.expect_popup() as opened:
        page.keyboard.press("Enter")
    assert opened.value.url.endswith("v/sit/1.mp4")
    page.bring_to_front()
    page.get_by_label("Find").press("Tab")
    reached = []
    for _ in range(12):
        if page.evaluate("document.activeElement === document.body"):
            break
        reached.append(page.evaluate("document.activeElement.textContent.trim()"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        page.keyboard.press("Tab")
    assert [
        text for text in reached if text.startswith(("List", "Copy", "Save", "Clear", "v/"))
    ] == [
        *("List the 6 shown", "Copy list", "Save list", "Clear list", "v/sit/0.mp4"),
    ]


def test_the_view_zooms_and_moves(drawn):
    page = drawn.page
    middle = drawn.box["x"] + drawn.box["width"] / 2, drawn.box["y"] + drawn.box["height"] / 2
    page.get_by_role("button", name="Zoom in").click()
    drawn.around(0, 1, 2, 3)
    assert drawn.listed() == ["far.mp4", "gone.mp4"], "the corners are outside now"
    page.get_by_label("move").check()
    drawn.drag(middle, (middle[0] + 150, middle[1]))
    page.mouse.move(drawn.x[4] + 150, drawn.y[4])
    assert "gone.mp4" in page.locator("#card").inner_text()
    page.get_by_role("button", name="Whole map").click()
    page.get_by_label("lasso").check()
    drawn.around(0)
    assert drawn.listed() == ["v/run/0.mp4"]
    page.mouse.move(drawn.x[0], drawn.y[0])
    page.mouse.wheel(0, -600)
    page.mouse.move(drawn.x[0] + 1, drawn.y[0])
    assert "v/run/0.mp4" in page.locator("#card").inner_text(), "what is pointed at stays"


def test_windows_are_points_of_their_own(visit, clips, process):
    spans = [[0, 1], [0, 1], [1, 2], [1, 2]]
    content = content_of(POINTS[:4], paths=PATHS[:2], spans=spans, labels=["run", "run"])
    page = written(process, content, "windows")
    drawn = Drawn(visit(page.file), json_of(page))
    drawn.around(0, 2)
    assert drawn.listed() == ["v/run/0.mp4"]
    assert drawn.page.locator("#count").inner_text() == "1 video (2 windows)"
    assert "0.0 to 1.0 s, 1.0 to 2.0 s" in drawn.page.locator("#listed").inner_text()
    link = drawn.page.locator("#listed a").get_attribute("href")
    assert link == "../v/run/0.mp4#t=0"
    with drawn.page.expect_popup() as opened:
        drawn.page.mouse.click(drawn.x[2], drawn.y[2])
    assert opened.value.url.endswith("v/run/0.mp4#t=1")


def test_strange_names_and_labels_are_text(visit, clips, process):
    Path("strange").mkdir()
    names = [stored_path(f"strange/{name}") for name in NAMES]
    for name in NAMES:
        shutil.copy("v/run/0.mp4", Path("strange", name))
    names.append(f"gone {HOSTILE}")
    labels = [(name * 300)[:300] for name in names]
    failed = [(name, f"because {HOSTILE}") for name in names]
    points = [[i, i % 3] for i in range(len(names))]
    content = content_of(points, paths=names, labels=labels, failed=failed)
    file = written(process, content, "strange map % #")
    assert f"because {HOSTILE}" in file.text
    text = file.file.read_text(encoding="utf-8")
    assert text.count("<script") == 2
    assert not re.search("[\u202e\x1b]", text)
    keys = {key for _, attributes in file.tags for key in attributes}
    assert not {key for key in keys if key.startswith("on") or key == "style"}
    for address in file.addresses():
        assert not re.match(r"[a-z]+:|/", address), "relative, whatever a name begins with"
    for name in (*names, *labels):
        text = text.replace(name, "")
    parts = ("map.js", "base.css", "style.css")
    scripts = "".join(Path("strange map % #", part).read_text() for part in parts)
    assert not re.search(r"https?://|@import|url\(", text + scripts)

    drawn = Drawn(visit(file.file), json_of(file))
    page = drawn.page
    page.get_by_role("button", name=f"List the {len(names)} shown").click()
    assert sorted(drawn.listed()) == sorted(printable(name) for name in names)
    for point, name in enumerate(names):
        drawn.hover(point)
        assert page.locator("#name").text_content() == printable(name)
        assert page.locator("#label").text_content() == printable(labels[point])
    assert page.locator("#listed img").count() == page.locator("main img").count() - 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200
    assert page.locator("script").count() == 2


def test_without_javascript_it_is_a_table(visit, small):
    page = visit(small.file, java_script_enabled=False)
    assert not page.locator("#app").is_visible()
    rows = page.locator("tbody tr")
    assert rows.count() == len(PATHS)
    assert page.locator("tbody img").count() == 4
    texts = [" ".join(text.split()) for text in rows.all_inner_texts()]
    assert texts[1] == "v/run/1.mp4 run 0.0 to 2.0 s 10.0000, 0.0000"
    assert "missing: it has moved, or was deleted" in texts[4]
    link = page.get_by_role("link", name="v/run/1.mp4")
    assert link.get_attribute("href") == "../v/run/1.mp4"
    assert page.get_by_role("link", name="gone.mp4").count() == 0


def test_more_labels_than_colours(visit, clips, process):
    count = 30
    labels = [f"label {i:02}" for i in range(count)]
    paths = [f"{i}.mp4" for i in range(count)]
    file = written(
        process, content_of([[i, i] for i in range(count)], paths=paths, labels=labels), "l"
    )
    assert "24 most common labels have a colour and a shape of their own" in file.text
    page = visit(file.file)
    legend = page.locator("#legend button")
    assert legend.count() == MOST_GROUPS + 1
    assert legend.last.inner_text() == "other: 6 labels\n6"
    legend.last.click()
    page.get_by_role("button", name="List the 6 shown").click()
    assert page.locator("#count").inner_text() == "6 videos"
    pictures = legend.locator("svg").evaluate_all(
        "all => all.map(one => one.innerHTML + getComputedStyle(one).fill)"
    )
    assert len(set(pictures)) == MOST_GROUPS + 1, "no two look alike"


def test_many_points(visit, here, process):
    draw = np.random.default_rng(0)
    points = draw.normal(size=(20_000, 2))
    paths = [f"many/{i}.mp4" for i in range(len(points))]
    labels = [f"label {i % 12}" for i in range(len(points))]
    file = written(process, content_of(points, paths=paths, labels=labels), "many")
    drawn = Drawn(visit(file.file), json_of(file))
    page = drawn.page
    page.get_by_role("button", name="List the 20,000 shown").wait_for()
    centre = drawn.box["x"] + 250, drawn.box["y"] + 200
    drawn.drag(centre, (centre[0] + 200, centre[1]), (centre[0], centre[1] + 180))
    x, y = drawn.x - centre[0], drawn.y - centre[1]
    inside = (x > 0) & (y > 0) & (x / 200 + y / 180 < 1)
    assert page.locator("#count").inner_text() == f"{inside.sum():,} videos"
    assert page.locator("#listed li").count() == 100, "the rest on demand"
    page.locator("#more").click()
    assert page.locator("#listed li").count() == 200
    assert page.locator("table").count() == 0, "the table is for those without JavaScript"


def test_dark_and_light_can_be_read(visit, small):
    script = """() => {
      const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
      const grey = color => {
        const [r, g, b] = color.match(/[\\d.]+/g).map(v => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const back = grey(getComputedStyle(document.body).backgroundColor);
      const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      const against = color => ratio(back, grey(color));
      const fill = name => {
        const made = document.createElement("span");
        made.style.color = `var(--${name})`;
        document.body.append(made);
        return getComputedStyle(made).color;
      };
      const names = ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "plain"];
      const marks = names.map(fill).map(against);
      const texts = ["text", "quiet", "accent", "bad"].map(fill).map(against);
      return [back, Math.min(...marks), Math.min(...texts)]; }"""
    for scheme in ("light", "dark"):
        page = visit(small.file, color_scheme=scheme)
        back, marks, texts = page.evaluate(script)
        assert (back < 0.1) == (scheme == "dark")
        assert marks >= 3, scheme
        assert texts >= 4.5, scheme
