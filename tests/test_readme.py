"""Every command of the README runs, on clips made here and on models small enough to wait for."""

import re

from conftest import REPOSITORY
from pages import blocks, can_run, commands, home, run, run_python  # noqa: F401

README = REPOSITORY / "README.md"


def test_make_targets_exist(repository):
    targets = re.findall(r"^([\w-]+):", (repository / "Makefile").read_text(), flags=re.MULTILINE)
    named = [c.split()[1] for c in commands(README) if c.startswith("make ")]
    assert named == ["quickstart", "test", "test-oldest"]
    assert set(named) <= set(targets)


def test_every_python_command_runs(home):  # noqa: F811
    """In the order of the page: later commands use what earlier ones left behind."""
    ran = []
    for line in commands(README):
        if line.startswith("make ") or "benchmark.py" in line:
            continue  # `make`: continuous integration runs it; the benchmark has its own test
        if not can_run(line):
            continue
        done = run(home, line)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        ran.append(line)
    assert len(ran) >= 8
    assert (home / "labels.csv").is_file()
    assert (home / "runs/finetune_folder/checkpoints/best.pyth").is_file()


def test_python_block_runs(home):  # noqa: F811
    (block,) = blocks(README, "python")
    done = run_python(home, block)
    assert done.returncode == 0, done.stderr
    assert "CC BY-NC 4.0" in done.stderr


def test_paths_named_exist(repository):
    text = README.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:hiera_video|tools|configs|demo|docs)/[\w./]*)`", text):
        assert (repository / path).exists(), path


def test_every_room_is_in_the_picture(repository):
    """The picture of the README is the tree as built: no room is missing, none is invented."""
    text = README.read_text(encoding="utf-8")
    picture = text[text.index("## Where things are") :]
    table = picture[: picture.index("Your own model")]
    package = repository / "hiera_video"
    rooms = {folder.name for folder in package.iterdir() if (folder / "__init__.py").is_file()}
    named = set(re.findall(r"`hiera_video/(\w+)/`", table))
    assert named == rooms - {"labels"}, "labels/ holds lists of names alone"
    inner = set(re.findall(r"`(\w+)/`", table)) - {"tools", "demo", "configs"}
    for name in inner:
        assert list(package.glob(f"*/{name}/__init__.py")), name
