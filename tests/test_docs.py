"""The pages of docs/: commands run, what is said of the code is true, and the site builds."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec

import pytest
import torch
import yaml
from conftest import REPOSITORY
from pages import blocks, can_run, commands, complaints, home, run, run_python  # noqa: F401
from small_models import write_box_checkpoint

from hiera_video import doctor
from hiera_video.commands import COMMANDS, predict
from hiera_video.engine.state import RunRecord, TrainingState
from hiera_video.prediction import Prediction

DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.glob("*.md"))
QUICK = ("index", "label", "detect", "own_folder", "features", "api")
"""Pages whose commands run with every test; those of the others take minutes."""


def named(names):
    return [pytest.param(DOCS / f"{name}.md", id=name) for name in names]


ELSEWHERE = ("container",)
"""Its commands are those of builders: see test_container.py."""

SLOW = [p.stem for p in PAGES if p.stem not in (*QUICK, *ELSEWHERE) and commands(p)]


def text_of(name):
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def rows(text):
    """The rows of the tables of a page, as lists of cells, without headings."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", line.strip("| ")) for line in lines]
    ruled = [i for i, row in enumerate(cells) if set("".join(row)) <= set("- ")]
    heads = {*ruled, *(i - 1 for i in ruled)}
    return [[cell.strip() for cell in row] for i, row in enumerate(cells) if i not in heads]


# ---- commands -----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [*PAGES, REPOSITORY / "README.md"], ids=lambda page: page.stem)
def test_every_command_is_one_that_there_is(page):
    """Of all pages, whether the command is run or not."""
    lines = [*commands(page), *commands(page, "")]
    wrong = {line: list(complaints(line)) for line in lines if not line.startswith("docker ")}
    assert not {line: said for line, said in wrong.items() if said}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("hiera-video predict clip.mp4 --wieghts x", "no option --wieghts"),
        ("python tools/run_net.py --cfg configs/none.yaml", "no file configs/none.yaml"),
        ("hiera-video train K400/hiera_b_16x4 TRAIN.BATCHSIZE 2", "no setting TRAIN.BATCHSIZE"),
        ("make coffee", "no target coffee"),
    ],
)
def test_the_check_of_commands_finds_what_is_wrong(line, complaint):
    assert list(complaints(line)) == [complaint]


def run_all(page, home):  # noqa: F811
    """Run the blocks of a page, in its order."""
    for line in commands(page):
        if line.startswith(("make ", "docker ")) or not can_run(line):
            continue
        done = run(home, line)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    if page.stem == "features" and not (home / "features.parquet").exists():
        return
    for block in blocks(page, "python"):
        done = run_python(home, block)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"


@pytest.fixture
def furnished(home):  # noqa: F811
    """The folder, with the other files that pages name."""
    lines = [f"{c}/{i}.mp4,{c},s{i}" for c in ("jump", "wave") for i in range(3)]
    listed = "\n".join(["path,label,source", *(f"videos/{line}" for line in lines)])
    (home / "labels.csv").write_text(f"{listed}\n")
    best = home / "best.pyth"
    if not best.exists():
        shutil.copy(REPOSITORY / "hiera_video/bundled/camera_motion.pyth", best)
    boxes = home / "boxes.csv"
    if not boxes.exists():
        boxes.write_text("clip,0,0.1,0.2,0.5,0.9\nclip,1,0.2,0.2,0.6,0.9\n")
        write_box_checkpoint(home / "people.pyth")
    return home


@pytest.mark.parametrize("page", named(QUICK))
def test_the_commands_of_a_page_run(page, furnished):
    assert commands(page) or blocks(page, "python")
    run_all(page, furnished)
    if page.stem == "own_folder":
        run_folder = furnished / "runs/finetune_folder_small"
        table = text_of("formats").partition("## A run folder")[2].partition("\n## ")[0]
        for row in rows(table):
            if "take steps" in row[1]:
                continue  # here the probe was enough
            for name in re.findall(r"`([\w/]+(?:\.\w+)?/?)`", row[0]):
                there = name if "checkpoint_epoch" not in name else "checkpoints"
                assert (run_folder / there).exists(), name


@pytest.mark.slow
@pytest.mark.parametrize("page", named(SLOW))
def test_the_commands_of_a_slow_page_run(page, furnished):
    run_all(page, furnished)


# ---- what pages say of the code -----------------------------------------------------------------


def source_texts():
    """The texts of the package's source, one a string, with ... where a value is put in."""
    for path in sorted((REPOSITORY / "hiera_video").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", None) for part in node.values)
                yield "".join(part if isinstance(part, str) else " ... " for part in parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def says(text, message):
    """Whether a message, with ... for what differs, is part of a text of the source."""
    pieces = [" ".join(piece.split()) for piece in message.split("...")]
    pattern = ".*".join(re.escape(piece) for piece in pieces if piece)
    return re.search(pattern, " ".join(text.split())) is not None


def test_every_message_of_the_page_is_in_the_source():
    texts = list(source_texts())
    messages = [row[0].strip("`") for row in rows(text_of("troubleshooting"))]
    assert len(messages) > 40
    missing = [m for m in messages if not any(says(text, m) for text in texts)]
    assert not missing
    assert not says("no such file: ... (x)", "no such folder")


def test_exit_codes_are_those_of_the_commands():
    table = rows(text_of("exit_codes").partition("Those that mean")[0])
    said = {}
    for command, _, one, others in table:
        codes = {"0", *(["1"] if one else []), *re.findall(r"\d+", others)}
        said.update(dict.fromkeys(re.findall(r"`([\w-]+)`", command), codes))
    assert set(said) == {*COMMANDS, "doctor"}
    for name, codes in said.items():
        if name == "test":
            continue  # its help says that they are those of train
        module = (
            doctor
            if name == "doctor"
            else __import__(f"hiera_video.commands.{COMMANDS[name].module}", fromlist=["main"])
        )
        text = re.split("[Ee]xit codes:", module.__doc__)[1].partition("\n\n")[0]
        assert codes == {"0", *re.findall(r"(?:^|;)\s*(\d+)\s", text)}, name


def test_formats_are_those_of_the_code():
    text = text_of("formats")
    keys = set(re.findall(r"`(\w+)`", text.partition("CSV")[0].partition("`--csv`")[0]))
    assert set(Prediction("a").to_dict()) <= keys
    assert ", ".join(f"`{name}`" for name in predict.CSV_COLUMNS) in " ".join(text.split())
    record = RunRecord({}, False, {}, "", "")
    model = torch.nn.Linear(1, 1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = TrainingState(model, torch.optim.SGD(model.parameters()), scaler, torch.zeros(1))
    table = rows(text.partition("## Checkpoints")[2].partition("\n## ")[0])
    said = {key for row in table for key in re.findall(r"`(\w+)`", row[0])}
    assert said == {*record.content(state, epoch=1), "raw_state"}


def expected(recipe):
    """What the head of a recipe says it should reach; "" where it gives no number."""
    text = (REPOSITORY / "configs" / f"{recipe}.yaml").read_text(encoding="utf-8")
    found = re.search(r"^# Accuracy  (.*)$", text, re.MULTILINE)
    return found[1] if found and re.search(r"top-1|mAP", found[1]) else ""


def test_the_numbers_of_recipes_are_those_in_their_files():
    section = text_of("recipes").partition("## What they should reach")[2].partition("\n## ")[0]
    table = {row[0].strip("`"): row[1] for row in rows(section)}
    recipes = {
        path.relative_to(REPOSITORY / "configs").with_suffix("").as_posix()
        for path in (REPOSITORY / "configs").rglob("[!_]*.yaml")
    }
    assert set(table) == {name for name in recipes if expected(name)}
    for name, said in table.items():
        assert expected(name).startswith(said), name
    others = text_of("recipes").partition("## Small ones")[2]
    named = {name for row in rows(others) for name in re.findall(r"`([\w/]+)`", row[0])}
    assert named <= recipes


# ---- the site -----------------------------------------------------------------------------------


class Links(HTMLParser):
    """What a page refers to, and the alternative texts of its pictures."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.pictures = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in ("script", "img", "link", "iframe", "source", "video"):
            self.loaded.append(given.get("src") or given.get("href") or "")
        if tag == "img":
            self.pictures.append(given.get("alt"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, from a copy: a build writes beside its source."""
    if not (find_spec("zensical") and find_spec("mkdocstrings_handlers")):
        pytest.skip("zensical is not installed: pip install 'hiera_video[docs]'")
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs")
    shutil.copy(REPOSITORY / "mkdocs.yml", folder)
    (folder / "hiera_video").symlink_to(REPOSITORY / "hiera_video")
    return folder


def build(folder):
    words = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(site):
    code, said = build(site)
    assert code == 0, said
    # what mkdocstrings finds in docstrings is printed and does not count as a warning there
    assert "griffe" not in said
    built = sorted((site / "site").rglob("*.html"))
    assert len(built) >= len(PAGES)
    for page in built:
        links = Links(page.read_text(encoding="utf-8"))
        assert not [place for place in links.loaded if re.match(r"(\w+:)?//", place)], page
        assert all(links.pictures), f"{page}: a picture without an alternative text"
    api = (site / "site" / "api.html").read_text(encoding="utf-8")
    assert 'id="hiera_video.models.build_model"' in api
    (site / "docs" / "data.md").write_text("# Data\n\n[away](export.md#nowhere) [gone](gone.md)\n")
    code, said = build(site)
    assert code != 0, "a link to nowhere is an error"


def test_every_page_is_in_the_contents():
    contents = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = []
    for entry in contents["nav"]:
        ((_, value),) = entry.items()
        listed += [value] if isinstance(value, str) else value
    assert sorted(listed) == [page.name for page in PAGES]
    assert contents["theme"]["font"] is False


def test_public_names_are_in_the_api():
    import hiera_video

    text = text_of("api")
    for name in hiera_video.__all__:
        assert re.search(rf"\b{name}\b", text) or name == "__version__", name
