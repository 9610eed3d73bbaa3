"""The page of a run: what it says is what the run's other files say, and it works in a browser."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
import torch
from browser import wait_until
from test_page import Page as Parser
from tiny_runs import PRETRAIN, config, interrupted, settings, write_videos

from hiera_video.commands.train import run as train_and_test
from hiera_video.config import load_config
from hiera_video.config.origin import Recipe, read_recipe
from hiera_video.data.batch import Failed
from hiera_video.data.manifests.layouts import read_manifest
from hiera_video.engine import page_facts, plots, step
from hiera_video.engine.distributed import init
from hiera_video.engine.records import read_metrics
from hiera_video.engine.results import Scores
from hiera_video.engine.signals import Stop
from hiera_video.engine.train import train
from hiera_video.errors import RunFailed
from hiera_video.run_page import mistakes, pictures
from hiera_video.run_page.curves import HEIGHT, WIDTH, panels_of
from hiera_video.run_page.facts import Clip, Outcome, Start
from hiera_video.run_page.page import RunPage

HOSTILE = "<img src=x onerror=alert(1)>"
PICTURES = ("PAGE.MAX_PICTURES", 500)
CLASSES = [HOSTILE, "a' \"b", "still"]


@pytest.fixture(scope="module", autouse=True)
def no_curves():
    """Drawing takes longer than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "draw_curves", lambda folder: None)
        yield


class Page(Parser):
    """A page, read."""

    def __init__(self, file):
        self.file = Path(file)
        super().__init__(self.file)

    def links(self):
        return [a["href"] for tag, a in self.tags if tag == "a"]

    def opened(self, address):
        """The file that an address leads to."""
        path = unquote_to_bytes(address.partition("#")[0])
        return os.path.normpath(os.path.join(os.fsencode(self.file.parent), path))

    def ids(self):
        return {a["id"] for _, a in self.tags if "id" in a}


def rows(file):
    with open(file, encoding="utf-8-sig", newline="") as opened:
        return list(csv.reader(opened))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Nine training and six validation videos of classes with bad names; one cannot be read."""
    folder = write_videos(tmp_path_factory.mktemp("videos"), val=6)
    for split in ("train", "val"):
        for old, new in zip(("fast", "slow", "still"), CLASSES, strict=True):
            (folder / split / old).rename(folder / split / new)
    (folder / "val" / "still" / "worse.mp4").write_text("no video")
    clip = next((folder / "val" / HOSTILE).iterdir())
    clip.rename(clip.with_name("‮ <script>alert(2)'\"#?%41.mp4"))
    return folder


@pytest.fixture(scope="module")
def done(videos, tmp_path_factory):
    """The folder of a run that was trained and tested."""
    out = tmp_path_factory.mktemp("runs") / "a <b> run"
    cfg = config(videos, out, "SOLVER.MAX_EPOCH", 3, *PICTURES)
    recipe = Recipe("K400/x", load_config(None, settings(videos, out, *PICTURES)).to_yaml())
    assert train_and_test(cfg, recipe=recipe) == 0
    return out


# ---- what it says -------------------------------------------------------------------------------


def test_the_matrix_is_that_of_the_test_and_leads_to_its_clips(done):
    index = Page(done / "index.html")
    body = index.file.read_text(encoding="utf-8").split('class="confusion"')[1].split("</table>")[0]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("<tr>")[2:]]
    shown = [[int(re.sub(r"<[^>]*>", "", cell) or 0) for cell in row] for row in cells]
    assert shown == [[int(count) for count in row[1:]] for row in rows(done / "confusion.csv")[1:]]
    tested = [row for row in rows(done / "predictions.csv")[1:] if not row[-1]]
    wanted = Counter((row[1], row[3]) for row in tested)
    found = Counter()
    for address in filter(lambda link: "classes/" in link and "#" in link, index.links()):
        page = Page(os.fsdecode(index.opened(address)))
        assert address.partition("#")[2] in page.ids()
    for number, name in enumerate(CLASSES):
        page = (done / f"page/classes/{number}.html").read_text(encoding="utf-8")
        for anchor, text in re.findall(r'<section id="as-(\d+)">(.*?)</section>', page, re.DOTALL):
            found[name, CLASSES[int(anchor)]] += text.count("<li>")
    assert found == wanted


def test_every_class_has_its_counts_and_its_accuracy(done):
    index = Page(done / "index.html")
    table = (
        index.file.read_text(encoding="utf-8").split('class="sortable"')[-1].split("</table>")[0]
    )
    found = [
        [
            " ".join(re.sub(r"<[^>]*>", " ", cell).split())
            for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        ]
        for row in table.split("<tbody>")[1].split("</tr>")[:-1]
    ]
    assert [row[1:3] for row in found] == [["3", "2"], ["3", "2"], ["3", "3"]]
    wanted = [f"{float(row[2]):.1f} %" for row in rows(done / "per_class.csv")[1:]]
    assert [row[3] for row in found] == wanted


def test_it_names_result_settings_data_and_failures(done):
    text = Page(done / "index.html").text
    assert re.search(r"test: top-1 [\d.]+ %, .* on 6 videos, 2 x 1 views", text)
    assert "1 video could not be read" in text
    assert "worse.mp4" in text
    assert "Different from the recipe K400/x" in text
    changed = text.split("Setting This run Recipe")[1].split("All settings")[0]
    assert changed.split() == ["SOLVER.MAX_EPOCH", "3", "2"]
    assert "training 9 videos: 3 classes" in text
    assert "validation 7 videos: 3 classes" in text
    assert re.search(r"best validation, one view a video: top-1 [\d.]+ % after epoch \d/3", text)
    assert "videos that could not be read in the last epoch: 1 validation" in text
    assert "a <b> run" in text


def test_all_it_opens_is_there_and_nothing_else(done, videos):
    pages = [done / "index.html", *sorted((done / "page/classes").iterdir())]
    assert len(pages) == 4
    shown = set()
    for page in map(Page, pages):
        for tag, attrs in page.tags:
            assert tag != "script" or attrs.get("src", "").endswith("page.js")
            assert "style" not in attrs
            assert not [name for name in attrs if name.startswith("on")]
            for key in ("src", "href"):
                address = attrs.get(key)
                if address and not address.startswith("#"):
                    assert os.path.lexists(page.opened(address)), address
                    if page.opened(address).endswith(b".mp4"):
                        shown.add(os.fsdecode(page.opened(address)))
        assert "<img src=x" not in page.file.read_text(encoding="utf-8")
        assert "&lt;img src=x onerror" in page.file.read_text(encoding="utf-8")
    assert {os.path.realpath(path) for path in shown} == {
        str(path.resolve()) for path in (videos / "val").rglob("*.mp4") if path.stem != "worse"
    }
    pictures = {path.name for path in (done / "page/pictures").iterdir()}
    assert len(pictures) == 6


def test_a_run_that_goes_on_is_shown_as_it_goes(videos, tmp_path, monkeypatch):
    shown = []
    refresh = RunPage.refresh

    def spy(self, records, *, status, live):
        refresh(self, records, status=status, live=live)
        shown.append((len(records), status, live, self.index.read_text(encoding="utf-8")))

    monkeypatch.setattr(RunPage, "refresh", spy)
    monkeypatch.setattr("hiera_video.engine.run_logger._PAGE_SECONDS", (0, 0))
    monkeypatch.setattr("hiera_video.engine.run_logger._PAGE_SHARE", 1e9)
    assert train(config(videos, tmp_path / "out"), init("cpu"), Stop()) == 0
    counts, words, live, texts = zip(*shown, strict=True)
    assert words[0] == "training begins"
    assert words[1].startswith("training: epoch 1 of 2, step 1 of 2, ")
    assert words[-1].startswith("trained: step 4 of 4")
    assert list(live) == [True] * (len(live) - 1) + [False]
    assert list(counts) == sorted(counts)
    assert counts[-1] > counts[1] > counts[0] == 0
    assert 'data-live="30"' in texts[0]
    assert 'data-live=""' in texts[-1]


def test_how_a_run_ended_is_on_its_page(videos, tmp_path, monkeypatch):
    cfg = config(videos, tmp_path / "out")
    interrupted(cfg, after=2)
    page = Page(tmp_path / "out" / "index.html")
    assert "stopped by Ctrl-C after step 2 of 4" in page.text

    def fail(*_):
        raise RunFailed("the <disk> is gone")

    monkeypatch.setattr(step.Forward, "backward", fail)
    with pytest.raises(RunFailed, match="disk"):
        train(cfg, init("cpu"), Stop())
    page = Page(tmp_path / "out" / "index.html")
    assert "failed: the <disk> is gone; saved" in page.text
    assert ("header", {"id": "run", "data-live": ""}.items()) in [
        (tag, {k: a[k] for k in ("id", "data-live") if k in a}.items()) for tag, a in page.tags
    ]


def test_a_test_stays_until_another_run_begins(videos, tmp_path):
    out = tmp_path / "out"
    cfg = config(videos, out, "SOLVER.MAX_EPOCH", 1, "PAGE.MAX_PICTURES", 1)
    assert train_and_test(cfg) == 0
    old = list((out / "page/pictures").iterdir())
    assert len(old) == 1, "of the first error, or of the hardest clip"
    assert train(cfg, init("cpu"), Stop()) == 0  # nothing is left to train
    assert "Confusion" in Page(out / "index.html").text
    none = config(
        videos, out, "SOLVER.MAX_EPOCH", 1, "PAGE.MAX_PICTURES", 0, "TRAIN.ENABLE", "false"
    )
    assert train_and_test(none) == 0
    assert not list((out / "page/pictures").iterdir())
    assert "no picture" in Page(out / "index.html").text + Page(out / "page/classes/0.html").text
    for path in (out / "checkpoints").iterdir():
        path.unlink()
    assert train(cfg, init("cpu"), Stop()) == 0
    assert "Confusion" not in Page(out / "index.html").text


def test_pictures_that_would_take_too_long_are_left_out(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MOST_SECONDS", -1)
    cfg = config(videos, tmp_path / "out", "SOLVER.MAX_EPOCH", 1, *PICTURES)
    assert train_and_test(cfg) == 0
    assert not list((tmp_path / "out/page/pictures").iterdir())
    assert "no picture" in Page(tmp_path / "out" / "page/classes/0.html").text


def test_a_run_without_a_page_writes_none(videos, tmp_path):
    cfg = config(videos, tmp_path / "out", "SOLVER.MAX_EPOCH", 1, "PAGE.ENABLE", "false")
    assert train_and_test(cfg) == 0
    assert not {"index.html", "page"} & {path.name for path in (tmp_path / "out").iterdir()}


def test_a_page_of_somebody_else_is_left_alone(videos, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "index.html").write_text("mine")
    assert train_and_test(config(videos, out, "SOLVER.MAX_EPOCH", 1)) == 0
    assert (out / "index.html").read_text() == "mine"
    said = capsys.readouterr().out
    assert "note: the page of this run is not written" in said
    assert "index.html is not a page of ours" in said
    assert "\npage of this run" not in said


def test_a_page_that_cannot_be_written_ends_no_run(videos, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "page").write_text("a file where the folder would be")
    assert train_and_test(config(videos, out, "SOLVER.MAX_EPOCH", 1)) == 0
    assert capsys.readouterr().out.count("note: the page of this run is not written") == 2
    assert (out / "results.json").is_file()


def test_pretraining_shows_its_drawings_and_has_no_test(videos, tmp_path):
    out = tmp_path / "out"
    assert train_and_test(config(videos, out, "TRAIN.PICTURE_PERIOD", 1, task=PRETRAIN)) == 0
    page = Page(out / "index.html")
    shown = [a["src"] for tag, a in page.tags if tag in ("video", "img")]
    names = ["reconstruction_0000004", "reconstruction_0000002"]
    assert shown == [f"pictures/{n}.{end}" for n in names for end in ("mp4", "png")]
    assert "input, visible part, reconstruction" in page.text
    assert "training 9 videos: 3 classes" in page.text
    assert "Confusion" not in page.text


def test_a_recipe_is_what_its_file_says(tmp_path):
    recipe = read_recipe("configs/K400/hiera_b_16x4.yaml")
    assert recipe.name == "K400/hiera_b_16x4"
    assert read_recipe("K400/hiera_b_16x4") == recipe
    own = tmp_path / "own.yaml"
    own.write_text("LOG_PERIOD: 7\n")
    assert read_recipe(own).name == str(own)
    mine = load_config(own, ["LOG_PERIOD", "8", "MODEL.KWARGS.embed_dim", "16"]).to_yaml()
    assert page_facts.changes(mine, read_recipe(own)) == [
        ("LOG_PERIOD", "8", "7"),
        ("MODEL.KWARGS", "{'embed_dim': 16}", "{}"),
    ]
    assert page_facts.changes(mine, None) == []


# ---- its parts ----------------------------------------------------------------------------------


def test_curves_go_through_their_records():
    records = [
        {"_type": "train_iter_", "step": s, "loss": v, "lr": 0.1, "own": s}
        for s, v in ((1, 4.0), (3, 2.0), (5, "nan"), (11, 1.0))
    ] + [{"_type": "val_epoch", "step": 11, "top1_err": 30.0, "min_top1_err": 20.0}]
    found = {panel.title: panel for panel in panels_of(records)}
    assert list(found) == ["Training loss", "Learning rate", "Top-1 error, %", "own"]
    loss = found["Training loss"]
    (line,) = loss.lines
    assert [tuple(point) for point in line.points] == [(1, 4), (3, 2), (11, 1)]
    places = [tuple(map(float, place.split())) for place in line.path[1:].split("L")]
    assert (loss.first, loss.last) == (1, 11)
    ticks = {tick.words: float(tick.place[:-1]) for tick in loss.up}
    for (across, down), (step_number, value) in zip(places, line.points, strict=True):
        assert across == pytest.approx(WIDTH * (step_number - 1) / 10, abs=0.1)
        assert down == pytest.approx(HEIGHT * ticks[f"{value:g}"] / 100, abs=0.1)
    assert all(0 <= float(tick.place[:-1]) <= 100 for tick in (*loss.across, *loss.up))
    (alone,) = found["Top-1 error, %"].lines
    assert (alone.name, [tuple(point) for point in alone.points]) == ("validation", [(11, 30)])


def test_many_records_are_averaged():
    records = [{"_type": "train_iter_", "step": s, "loss": float(s % 2)} for s in range(1, 10_001)]
    (panel,) = panels_of(records)
    (line,) = panel.lines
    assert len(line.points) <= 300
    assert all(point.value == pytest.approx(0.5, abs=0.02) for point in line.points)
    assert line.points[-1].step == 10_000


def clip(name, label, *best, true=0.0):
    return Clip(f"{name}.mp4", (label,), tuple(best), true)


def test_errors_are_ranked_and_grouped():
    clips = [
        clip("right", 0, (0, 0.9), true=0.9),
        clip("sure", 0, (1, 0.8), (0, 0.2), true=0.2),
        clip("hard", 0, (1, 0.6), (2, 0.39), true=0.01),
        clip("other", 2, (1, 0.7), true=0.3),
        Clip("worse.mp4", (1,), error="cut off"),
    ]
    assert [c.path[:-4] for c in mistakes.sure_mistakes(clips)] == ["sure", "other", "hard"]
    assert [c.path[:-4] for c in mistakes.hardest(clips)] == ["hard", "sure", "other"]
    pages = mistakes.class_pages(clips, ["a", "b", "c"], multi_label=False)
    assert [page.number for page in pages] == [0, 1, 2]
    first, second, third = pages
    assert [(g.anchor, g.title, len(g.clips)) for g in first.groups] == [
        ("as-1", "Taken for b", 2),
        ("as-0", "Recognised", 1),
    ]
    assert not second.groups, "its only video could not be read"
    assert [(p.true, p.videos) for p in second.wrongly] == [(0, 2), (2, 1)]
    assert second.wrongly[0].share == pytest.approx(2 / 3)
    assert not third.wrongly


def test_several_labels_have_a_precision_and_no_matrix(tmp_path):
    lines = ["a.mp4 0,2", "b.mp4 1", "c.mp4 2", "d.mp4 1,2"]
    (tmp_path / "val.csv").write_text("\n".join(lines) + "\n")
    manifest = read_manifest(
        tmp_path, "val", format="kinetics_csv", multi_label=True, num_classes=4
    )
    scores = torch.tensor([[0.9, 0.1, 0.3, 0.2], [0.2, 0.6, 0.7, 0.0], [0.1, 0.5, 0.4, 0.0]])
    found = Scores(torch.tensor([0, 1, 2]), scores, [Failed(3, "d.mp4", "cut off")])
    tested = page_facts.tested_facts(found, manifest, lines=["one", "two"], notes=[])
    assert tested.multi_label
    assert not tested.confusion
    assert tested.per_class == pytest.approx([100, 100, 100 * (1 / 2 + 2 / 3) / 2, None])
    clips = page_facts.tested_clips(found, manifest)
    assert [c.true_score for c in clips[:3]] == pytest.approx([0.3, 0.6, 0.4])
    assert [c.is_right for c in clips[:3]] == [True, False, False]
    assert clips[3].error == "cut off"
    page = RunPage(tmp_path / "out", pytest.fail)
    add(page, tested, clips)
    page.refresh([], status="tested", live=False)
    index = Page(page.index)
    assert "Average precision" in index.text
    assert "Confusion" not in index.text
    assert "the hardest first : 2" in Page(tmp_path / "out/page/classes/2.html").text.replace(
        "first:", "first :"
    )


def add(page, tested, clips):
    page.add_test(tested, clips, most_pictures=0, decoder="auto")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A test of 400 classes with 20 videos each, a quarter of them wrong."""
    out = tmp_path_factory.mktemp("large")
    clips = [
        clip(f"{number}/{k}", number, ((number + (k % 4 == 0)) % 400, 0.5), (399 - number, 0.1))
        for number in range(400)
        for k in range(20)
    ]
    counts = Counter((c.labels[0], c.predicted) for c in clips)
    tested = Outcome(
        ["a test", "test: top-1 75.00 %"],
        [],
        [f"class {i}" for i in range(400)],
        [75.0] * 400,
        confusion=[(*pair, count) for pair, count in sorted(counts.items())],
    )
    page = RunPage(out, pytest.fail)
    classes = [f"class {i}" for i in range(400)]
    page.begin(Start(["model"], [], "", [], "A: 1\n", classes), anew=True)
    add(page, tested, clips)
    page.refresh([], status="tested", live=False)
    return out


def test_many_classes_are_shown_as_pairs(large):
    index = Page(large / "index.html")
    assert "Most confused" in index.text
    assert "The first 100 of 400 pairs" in index.text
    assert len(list((large / "page/classes").iterdir())) == 400
    assert index.file.stat().st_size < 400_000


# ---- in a browser -------------------------------------------------------------------------------


def test_curves_show_their_numbers(visit, done):
    page = visit(done / "index.html")
    panel = page.locator(".panel").filter(has_text="Training loss")
    losses = {r["step"]: r["loss"] for r in read_metrics(done) if r["_type"] == "train_iter_"}
    first, last = min(losses), max(losses)
    panel.locator(".plot").hover(position={"x": 1, "y": 20})
    assert panel.locator("output").inner_text() == f"step {first}: {losses[first]:.4g}"
    panel.locator(".plot").focus()
    page.keyboard.press("End")
    assert panel.locator("output").inner_text() == f"step {last}: {losses[last]:.4g}"
    page.keyboard.press("ArrowLeft")
    assert panel.locator("output").inner_text().startswith(f"step {last - 1}: ")
    both = page.locator(".panel").filter(has_text="Top-1 error")
    assert "validation" in both.locator("output").inner_text()


def test_a_number_of_the_matrix_opens_its_clips(visit, done):
    page = visit(done / "index.html")
    cell = page.locator(".confusion td a").first
    count = int(cell.inner_text())
    cell.click()
    anchor = page.url.partition("#")[2]
    assert page.locator(f"#{anchor} .cards li").count() == count
    image = page.locator(f"#{anchor} .cards img").first
    image.scroll_into_view_if_needed()
    wait_until(page, "document.querySelector('.cards img').naturalWidth === 192")
    page.get_by_role("link", name="The run").click()
    assert page.url.endswith("/index.html")


def test_tables_sort(visit, large):
    page = visit(large / "index.html")
    table = page.locator("table.sortable").first
    heading = table.get_by_role("button", name="True class")
    heading.click()
    names = table.locator("tbody th").all_inner_texts()
    assert names == [f"class {i}" for i in range(100)], "as numbers, not as letters"
    heading.click()
    assert table.locator("tbody th").first.inner_text() == "class 99"
    assert heading.locator("..").get_attribute("aria-sort") == "descending"


def test_an_open_page_refreshes_itself_while_the_run_goes_on(visit, tmp_path):
    page_of_run = RunPage(tmp_path / "out", pytest.fail)
    page_of_run.refresh([], status="training: epoch 1", live=True)
    text = page_of_run.index.read_text(encoding="utf-8")
    page_of_run.index.write_text(text.replace('data-live="30"', 'data-live="0.2"'))
    page = visit(page_of_run.index)
    box = page.get_by_label("refresh every 30 s")
    assert box.is_checked()
    page_of_run.refresh([], status="trained", live=False)
    page.get_by_text("trained").wait_for()
    assert not box.is_visible()


def test_the_keyboard_reaches_everything(visit, done):
    page = visit(done / "index.html")
    reached = set()
    for _ in range(200):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.outerHTML.slice(0, 300)"))
    wanted = page.evaluate(
        """[...document.querySelectorAll('a[href], button, .plot, summary')]
        .filter(e => e.checkVisibility()).map(e => e.outerHTML.slice(0, 300))"""
    )
    assert set(wanted) <= reached


def test_without_javascript_it_can_be_read(visit, done):
    page = visit(done / "index.html", java_script_enabled=False)
    assert page.get_by_role("heading", name="Confusion").is_visible()
    assert page.locator(".panel path").count() >= 5
    assert page.get_by_text("last: ").first.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_strange_names_do_nothing_and_fit(visit, done, scheme):
    for file in (done / "index.html", *sorted((done / "page/classes").iterdir())):
        page = visit(file, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= 1200
        assert page.get_by_text(HOSTILE).first.is_visible()
