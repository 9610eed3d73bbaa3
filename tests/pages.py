"""The commands of README and docs/: found in a page, run on small things, checked against help.

    from pages import commands, home, run

A block marked `bash` holds commands that are run as they stand, line by line, and later ones use
what earlier ones left behind. A block without a mark records a command that takes hours, with its
result: it is checked and not run.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from clips import write_clip
from conftest import REPOSITORY
from randomness import redraw

from hiera_video import build_model
from hiera_video.config import Config
from hiera_video.models.weights.download import cached_path
from hiera_video.models.weights.file import save_published
from hiera_video.models.weights.published import PUBLISHED

TINY = """
    MODEL.KWARGS '{embed_dim: 16, num_heads: 1, stages: [1, 1, 1, 1]}'
    DATA.NUM_FRAMES 4 DATA.TRAIN_CROP_SIZE 32 DATA.TEST_CROP_SIZE 32
    TRAIN.BATCH_SIZE 2 TRAIN.GRAD_ACCUM 1 DATA_LOADER.NUM_WORKERS 0 TRAIN.CHECKPOINT_FILE_PATH ''
    SOLVER.MAX_EPOCH 1 SOLVER.WARMUP_EPOCHS 0
"""
SETTINGS = {
    "configs/finetune_folder.yaml": f"{TINY} TEST.NUM_ENSEMBLE_VIEWS 1 TEST.NUM_SPATIAL_CROPS 1",
    "configs/K400/mae_hiera_b_16x4.yaml": (
        f"{TINY} HIERA.DECODER_EMBED_DIM 32 HIERA.DECODER_DEPTH 1 AUG.MASK_RATIO 0.5"
    ),
    "configs/K400/hiera_b_16x4.yaml": TINY,
    "K400/hiera_b_16x4": TINY,
    "configs/AVA/hiera_b_16x4.yaml": TINY,
    "AVA/hiera_b_16x4": TINY,
    "small/finetune_folder": "DATA_LOADER.NUM_WORKERS 0 TEST.NUM_ENSEMBLE_VIEWS 1",
    "configs/baselines/x3d_m.yaml": """
        MODEL.KWARGS '{library: {width_factor: 0.5, head_dim_out: 32}}'
        DATA.NUM_FRAMES 4 DATA.TRAIN_CROP_SIZE 32 TRAIN.BATCH_SIZE 2 DATA_LOADER.NUM_WORKERS 0
    """,
}
"""What makes a command small; nothing else about it is changed."""

NEEDS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "m.onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "int8": ("nncf",),
    "features": ("pyarrow",),
    "search": ("pyarrow", "sklearn"),
    "label_dataset": ("ray", "pyarrow"),
    "tools/label_dataset.py": ("ray", "pyarrow"),
    "app": ("gradio",),
    "demo/app.py": ("gradio",),
}
"""Word of a command -> what it needs; it is left out where that is absent, as with the oldest
torch."""

# ---- finding ------------------------------------------------------------------------------------


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language; "" is for those without a mark."""
    found: list[str] = []
    inside: str | None = None
    for line in page.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.startswith("```"):
            if inside == language:
                found[-1] += line
        elif inside is not None:
            inside = None
        else:
            inside = line[3:].strip()
            if inside == language:
                found.append("")
    return found


def commands(page: Path, language: str = "bash") -> list[str]:
    """Every command of the blocks of one language, without its comment."""
    text = "".join(blocks(page, language)).replace("\\\n", " ")
    lines = [line.split("  #")[0].strip() for line in text.splitlines() if line.strip()]
    if language:
        return lines
    return [line for line in lines if line.split()[0] in ("python", "hiera-video", "make")]


# ---- running ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with what the commands name, and weights where a download would have put them."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("tools", "demo", "configs", "hiera_video"):
        (folder / name).symlink_to(REPOSITORY / name)
    write_clip(folder / "clip.mp4", frames=20, fps=10, size=(64, 64))
    for label in ("jump", "wave"):
        (folder / "videos" / label).mkdir(parents=True)
        for i in range(3):
            clip = folder / f"videos/{label}/{i}.mp4"
            start = 100 * i + ord(label[0])  # no two clips alike, or the audit objects
            write_clip(clip, frames=12 + i, fps=10, size=(64, 64), first_index=start)
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards/000.tar", "w") as shard:
        shard.add(folder / "clip.mp4", "0000.mp4")
    os.environ["TORCH_HOME"] = str(folder / "torch")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    row = PUBLISHED["hiera_base_16x224", "mae_k400_ft_k400"]
    path = cached_path(row.url)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_published(redraw(build_model("hiera_base_16x224")), path)
    x3d = cached_path(PUBLISHED["x3d_xs", "k400"].url)
    save_published(redraw(build_model("x3d_xs")), x3d)
    yield folder
    del os.environ["TORCH_HOME"], os.environ["XDG_CACHE_HOME"]


def can_run(line: str) -> bool:
    """Whether the libraries that a command needs are here."""
    return all(find_spec(name) for word in shlex.split(line) for name in NEEDS.get(word, ()))


def started(words: list[str]) -> list[str]:
    """The program of a command and its arguments; `hiera-video` is that of this checkout."""
    if words[0] == "hiera-video":
        return [sys.executable, "-m", "hiera_video", *words[1:]]
    assert words[0] == "python", f"a command of an unknown kind: {' '.join(words)}"
    return [sys.executable, *words[1:]]


def run(home: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Run one command as it stands, small settings added where it trains."""
    words = shlex.split(line)
    for config, settings in SETTINGS.items():
        if config in words:
            place = words.index(config) + 1
            words[place:place] = shlex.split(settings)
    return subprocess.run(started(words), cwd=home, capture_output=True, text=True, timeout=600)


def run_python(home: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run a block of Python."""
    words = [sys.executable, "-c", code]
    return subprocess.run(words, cwd=home, capture_output=True, text=True, timeout=600)


# ---- checking without running -------------------------------------------------------------------


def complaints(line: str) -> Iterator[str]:
    """What is wrong with a command: its options, settings, recipes and files of the checkout."""
    words = shlex.split(line)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        yield from (f"no target {word}" for word in words[1:] if word not in targets)
        return
    if words[1:2] == ["-c"]:
        return
    said = _help(*_program(words))
    for word in words[1:]:
        if word.startswith("--") and len(word) > 2:
            option = word.partition("=")[0]
            if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", said):
                yield f"no option {option}"
        elif re.fullmatch(r"[A-Z_]+\.[A-Z_0-9]+", word) and word not in _settings():
            yield f"no setting {word}"
        elif re.match(r"(configs|tools|demo)/", word) and not (REPOSITORY / word).exists():
            yield f"no file {word}"


def _program(words: list[str]) -> list[str]:
    """The words that name a program, and one of its parts, without arguments."""
    first = 3 if words[:3] == ["python", "-m", "hiera_video"] else 1
    parts = ("tools/benchmark.py", "prepare", "tools/prepare_data.py")
    return words[: first + 1 + (words[first] in parts)]


@functools.cache
def _help(*words: str) -> str:
    done = subprocess.run(
        [*started(list(words)), "--help"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(words)} --help\n{done.stderr}"
    return done.stdout


@functools.cache
def _settings() -> frozenset[str]:
    found = []
    for section in dataclasses.fields(Config):
        value = getattr(Config(), section.name)
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
            found += [f"{section.name}.{name}".upper() for name in names]
    return frozenset(found)
