"""Small labelled clips for the tests of tools/evidence.py: one frame says nothing of the class."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch

from hiera_video.data.synthetic.mp4 import encode

CLASSES = {"down": (2, 0), "left": (0, -2), "right": (0, 2)}
"""Class -> how far its texture moves in a frame, in rows and columns."""

SIDE, FRAMES, FPS = 64, 18, 10


def write_video(path: Path, label: str, seed: int) -> None:
    """Write a texture that moves as its class says."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(30, 220, size=(1, 3, 16, 16))).float()
    texture = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic")[0]
    down, right = CLASSES[label]
    moved = [texture.roll((down * t, right * t), (1, 2)) for t in range(FRAMES)]
    path.parent.mkdir(parents=True, exist_ok=True)
    encode(path, torch.stack(moved).clamp(0, 255).to(torch.uint8), fps=FPS, crf=18)


def write_set(folder: Path, *, train: int, val: int, listed: bool) -> None:
    """Write train/CLASS/0.mp4, ... and val/CLASS/0.mp4, ...: the same names in both.

    train, val: videos of each class. listed: with a labels.csv, in which two neighbouring training
    videos of a class are of one scene.
    """
    rows = []
    for split, count in (("train", train), ("val", val)):
        for label in CLASSES:
            for i in range(count):
                path = f"{split}/{label}/{i}.mp4"
                write_video(folder / path, label, len(rows))
                rows.append([path, label, split, f"scene {i // 2}" if split == "train" else ""])
    if listed:
        write_labels(folder, rows)


def write_labels(folder: Path, rows: list[list[str]]) -> None:
    """Write a labels.csv: path, label, split and scene of each video."""
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "split", "scene"], *rows])
