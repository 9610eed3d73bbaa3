"""Whole runs in seconds: a model of a few thousand parameters on clips the test writes itself.

videos = write_videos(tmp_path / "videos")
code = run(config(videos, tmp_path / "out", "SOLVER.MAX_EPOCH", 2))
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import write_clip
from conftest import REPOSITORY

from hiera_video.config import load_config
from hiera_video.engine import checkpoint, distributed, train
from hiera_video.engine.records import read_metrics
from hiera_video.engine.signals import Stop
from hiera_video.engine.step import Forward

CLASSES = ("fast", "slow", "still")
FRAMES, SIDE = 8, 64

TINY = {
    "DEVICE": "cpu",
    "MODEL.MODEL_NAME": "hiera_tiny_16x224",
    "MODEL.KWARGS": "{embed_dim: 8, num_heads: 1, stages: [1, 1, 1, 1]}",
    "MODEL.DROPOUT_RATE": 0.1,
    "HIERA.DROPPATH_RATE": 0.1,
    "DATA.NUM_FRAMES": 4,
    "DATA.SAMPLING_RATE": 2,
    "DATA.TARGET_FPS": 10,
    "DATA.TRAIN_CROP_SIZE": 64,
    "DATA.TEST_CROP_SIZE": 64,
    "DATA.RANDOM_FLIP": "false",
    "DATA.TRAIN_JITTER_SCALES_RELATIVE": "[0.5, 1.0]",
    "DATA_LOADER.NUM_WORKERS": 0,
    "TRAIN.BATCH_SIZE": 4,
    "TEST.BATCH_SIZE": 4,
    "TEST.NUM_ENSEMBLE_VIEWS": 2,
    "TEST.NUM_SPATIAL_CROPS": 1,
    "SOLVER.BASE_LR": 5e-3,
    "SOLVER.WARMUP_EPOCHS": 0.5,
    "SOLVER.MAX_EPOCH": 2,
    "LOG_PERIOD": 1,
    "PAGE.MAX_PICTURES": 0,  # they are read in a process that takes a second to start
}

DETECT = {
    "TASK": "detect",
    "MODEL.MODEL_NAME": "hiera_tiny_16x224_ava",
    "MODEL.LOSS_FUNC": "bce_logit",
    "DATA.TARGET_FPS": 30,
    "DATA.SAMPLING_RATE": 4,
    "TRAIN.DATASET": "moving_shapes",
    "TEST.DATASET": "moving_shapes",
    "TEST.NUM_ENSEMBLE_VIEWS": 1,
    "SYNTHETIC.NUM_TRAIN": 4,
    "SYNTHETIC.NUM_VAL": 3,
    "SYNTHETIC.SIZE": 64,
    "SOLVER.MAX_EPOCH": 1,
}
"""What is done in boxes, on four generated videos."""

PRETRAIN = {
    "TASK": "pretrain",
    "MODEL.MODEL_NAME": "mae_hiera_tiny_16x224",
    "MODEL.DROPOUT_RATE": "None",
    "HIERA.DECODER_EMBED_DIM": 16,
    "HIERA.DECODER_DEPTH": 1,
    "HIERA.DECODER_NUM_HEADS": 2,
    "AUG.MASK_RATIO": 0.5,
}

HEAVY = (
    "MIXUP.ENABLE", "true",
    "AUG.AA_TYPE", "rand-m7-mstd0.5-inc1",
    "AUG.RE_PROB", 0.5,
    "AUG.GAMMA", "[0.7, 1.5]",
    "AUG.GAIN", "[0.5, 1.5]",
    "AUG.NOISE", 0.05,
    "AUG.BLUR", 0.5,
    "AUG.GREY", 0.5,
    "AUG.SPEED", "[0.5, 2]",
    "AUG.NUM_SAMPLE", 2,
    "TRAIN.EMA_DECAY", 0.9,
    "SOLVER.LAYER_DECAY", 0.8,
    "SOLVER.CLIP_GRAD_L2NORM", 1.0,
)  # fmt: skip
"""Everything random at once."""


def write_videos(folder: Path, *, train: int = 9, val: int = 3, tinted: bool = False) -> Path:
    """`folder/{train,val}/CLASS/N.mp4`: a bar of the class's speed over a dim texture.

    tinted: with a colour of the class, which is learnt in a few steps.
    """
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            name = CLASSES[i % len(CLASSES)]
            path = folder / split / name / f"{i:02d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            seed = i + (0 if split == "train" else 1000)
            frames = pictures(name, seed)
            if tinted:
                for frame in frames:
                    frame[..., CLASSES.index(name)] |= 128
            write_clip(path, frames=frames, fps=10, size=(SIDE, SIDE))
    return folder


def pictures(name: str, seed: int) -> list[np.ndarray]:
    """The frames of one video."""
    rng = np.random.default_rng(seed)
    speed = {"fast": 7, "slow": 3, "still": 0}[name]
    start, texture = rng.integers(0, SIDE), rng.integers(0, 60, size=(SIDE, SIDE, 1))
    frames = []
    for t in range(FRAMES):
        frame = np.repeat(texture, 3, axis=2).astype(np.uint8)
        columns = (np.arange(8) + start + speed * t) % SIDE
        frame[:, columns] = 220
        frames.append(frame)
    return frames


def settings(videos: Path, out: Path, *overrides: object, task: dict | None = None) -> list[str]:
    """KEY VALUE words of a tiny run."""
    chosen = {**TINY, **(task or {})}
    chosen |= {"DATA.PATH_TO_DATA_DIR": videos, "OUTPUT_DIR": out}
    words = [str(word) for pair in chosen.items() for word in pair]
    return words + [str(word) for word in overrides]


def empty(folder):
    """Write an empty config file: the settings follow on the command line."""
    path = folder / "empty.yaml"
    path.write_text("{}\n")
    return path


def config(videos: Path, out: Path, *overrides: object, task: dict | None = None):
    """The Config of a tiny run."""
    return load_config(None, settings(videos, out, *overrides, task=task))


def run(cfg) -> int:
    """Train in this process; returns the exit code."""
    return train.train(cfg, distributed.init("cpu"), Stop())


def interrupted(cfg, *, after: int) -> int:
    """Train in this process until a Ctrl-C in step `after` (from 1); returns the exit code."""
    stop, backward = Stop(), Forward.backward

    def ask(self, batches, step, *rest):
        if step + 1 == after:
            stop.signal = signal.SIGINT
        return backward(self, batches, step, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Forward, "backward", ask)
        return train.train(cfg, distributed.init("cpu"), stop)


def environment() -> dict[str, str]:
    """Return the environment of child processes: this checkout, and as many threads as in this
    process, since sums over another number of threads differ in their last digit."""
    threads = str(torch.get_num_threads())
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": threads}


def command(*words: object, processes: int = 0) -> list[str]:
    """The command line of tools/run_net.py, under torchrun for `processes`."""
    launcher = [sys.executable]
    if processes:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += [f"--nproc-per-node={processes}"]
    return [*launcher, str(REPOSITORY / "tools" / "run_net.py"), *map(str, words)]


def start_child(*words: object) -> subprocess.Popen:
    """Start tools/run_net.py in its own session, with its output piped."""
    return subprocess.Popen(
        command(*words),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_child(*words: object, processes: int = 0, timeout: int = 200):
    """Run tools/run_net.py to its end."""
    return subprocess.run(
        command(*words, processes=processes),
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(),
    )


# ---- what a run has written ---------------------------------------------------------------------


def final(out):
    """The newest checkpoint of a run."""
    return checkpoint.latest(out / "checkpoints")[1]


def losses(out):
    """Step -> training loss, from the records."""
    return {r["step"]: r["loss"] for r in read_metrics(out) if r["_type"] == "train_iter_"}


def same(a, b):
    """Whether two nested states are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
