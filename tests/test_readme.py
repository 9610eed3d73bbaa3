"""Every command of the README runs, on clips made here and on models small enough to wait for."""

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec

import pytest
from clips import write_clip
from randomness import redraw

from hiera_video import build_model
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
    "configs/baselines/x3d_m.yaml": """
        MODEL.KWARGS '{library: {width_factor: 0.5, head_dim_out: 32}}'
        DATA.NUM_FRAMES 4 DATA.TRAIN_CROP_SIZE 32 TRAIN.BATCH_SIZE 2 DATA_LOADER.NUM_WORKERS 0
    """,
}
"""What makes a README command small; nothing else about it is changed."""


RUNS_ONNX = all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
"""Without them, as with the oldest torch, the lines about ONNX are left out."""


def blocks(repository, language):
    """The fenced blocks of one language."""
    text = (repository / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(repository):
    """Every line of the bash blocks, without its comment."""
    lines = "\n".join(blocks(repository, "bash")).splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


@pytest.fixture(scope="module")
def home(tmp_path_factory, repository):
    """A folder with what the commands name, and weights where a download would have put them."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("tools", "demo", "configs", "hiera_video"):
        (folder / name).symlink_to(repository / name)
    write_clip(folder / "clip.mp4", frames=20, fps=10, size=(64, 64))
    for label in ("jump", "wave"):
        (folder / "videos" / label).mkdir(parents=True)
        for i in range(3):
            clip = folder / f"videos/{label}/{i}.mp4"
            start = 100 * i + ord(label[0])  # no two clips alike, or the audit objects
            write_clip(clip, frames=12 + i, fps=10, size=(64, 64), first_index=start)
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


def run(home, line):
    """Run one command as it stands, small settings added where it trains."""
    words = shlex.split(line)
    assert words[0] == "python", f"a README command of an unknown kind: {line}"
    for config, settings in SETTINGS.items():
        if config in words:
            place = words.index(config) + 1
            words[place:place] = shlex.split(settings)
    return subprocess.run(
        [sys.executable, *words[1:]], cwd=home, capture_output=True, text=True, timeout=600
    )


def test_make_targets_exist(repository):
    targets = re.findall(r"^([\w-]+):", (repository / "Makefile").read_text(), flags=re.MULTILINE)
    named = [c.split()[1] for c in commands(repository) if c.startswith("make ")]
    assert named == ["quickstart", "test", "test-oldest"]
    assert set(named) <= set(targets)


def test_every_python_command_runs(repository, home):
    """In the order of the page: later commands use what earlier ones left behind."""
    ran = []
    for line in commands(repository):
        if line.startswith("make ") or "benchmark.py" in line:
            continue  # `make`: continuous integration runs it; the benchmark has its own test
        if "onnx" in line and not RUNS_ONNX:
            continue
        done = run(home, line)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        ran.append(line)
    assert len(ran) >= 8
    assert (home / "labels.csv").is_file()
    assert (home / "runs/finetune_folder/checkpoints/best.pyth").is_file()


def test_python_block_runs(repository, home):
    (block,) = blocks(repository, "python")
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=home, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "CC BY-NC 4.0" in done.stderr


def test_paths_named_exist(repository):
    text = (repository / "README.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:hiera_video|tools|configs|demo|docs)/[\w./]*)`", text):
        assert (repository / path).exists(), path


def test_every_room_is_in_the_picture(repository):
    """The picture of the README is the tree as built: no room is missing, none is invented."""
    text = (repository / "README.md").read_text(encoding="utf-8")
    picture = text[text.index("## Where things are") :]
    table = picture[: picture.index("Your own model")]
    package = repository / "hiera_video"
    rooms = {folder.name for folder in package.iterdir() if (folder / "__init__.py").is_file()}
    named = set(re.findall(r"`hiera_video/(\w+)/`", table))
    assert named == rooms - {"labels"}, "labels/ holds lists of names alone"
    inner = set(re.findall(r"`(\w+)/`", table)) - {"tools", "demo", "configs"}
    for name in inner:
        assert list(package.glob(f"*/{name}/__init__.py")), name
