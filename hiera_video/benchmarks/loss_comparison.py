"""What decoding only a part of the deleted tokens costs: two short trainings, one evaluation.

A tiny autoencoder is trained on generated clips (`data/synthetic/camera_motion.py`) from the same
initial weights, on the same batches, with the same masks, once for each decode ratio; then the loss
on *all* deleted tokens of held-out clips, under the same masks, is compared. The result is a hint:
the accuracy after fine-tuning is what counts.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiera_video.benchmarks import machine, measure, tables
from hiera_video.benchmarks.steps import as_autoencoder
from hiera_video.benchmarks.tables import Column
from hiera_video.config import SolverConfig
from hiera_video.data.synthetic import camera_motion as synthetic
from hiera_video.engine import optim
from hiera_video.models import build_model

MODEL = "mae_hiera_tiny_16x224"
TINY: dict[str, Any] = {
    "input_size": (8, 64, 64),
    "mask_ratio": 0.75,
    "embed_dim": 32,
    "stages": (1, 1, 2, 1),
    "decoder_embed_dim": 128,
    "decoder_depth": 2,
    "decoder_num_heads": 4,
}
BATCH = 16
TRAINING_CLIPS, HELD_OUT_CLIPS = 512, 64
HELD_OUT_SEED = 10_000_000
"""Far from the seeds of the training clips, so that no picture is in both."""

PEAK_LR = 2e-3
MEAN, STD = 0.45, 0.225

COLUMNS = (
    Column("decoded", "decode_ratio", ".2f"),
    Column("seed", "seed"),
    Column("steps", "steps"),
    Column("held-out loss before", "loss_before", ".4f"),
    Column("after", "loss_after", ".4f"),
    Column("over decoding all", "loss_ratio", ".4f"),
    Column("training s", "seconds", ".1f"),
    Column("x decoding all", "speed_ratio", ".2f"),
)


def run(args: argparse.Namespace, device: torch.device) -> int:
    """Train, evaluate and report."""
    size = tuple(args.input_size or TINY["input_size"])
    training = clips_of(TRAINING_CLIPS, size, first_seed=0).to(device)
    held_out = clips_of(HELD_OUT_CLIPS, size, first_seed=HELD_OUT_SEED).to(device)
    facts = machine.machine_facts(device)
    with tables.Report(args, facts=facts, columns=COLUMNS) as report:
        report.record["model"] = {"name": MODEL, **TINY, "input_size": size}
        for seed in range(args.seeds):
            whole = None
            for ratio in sorted({1.0, *args.decode_ratio}, reverse=True):
                row = train_once(
                    training, held_out, decode_ratio=ratio, steps=args.compare_loss, seed=seed
                )
                whole = whole or row
                row["loss_ratio"] = row["loss_after"] / whole["loss_after"]
                row["speed_ratio"] = whole["seconds"] / row["seconds"]
                report.rows.append(row)
        report.notes.append(
            f"{TRAINING_CLIPS} generated clips of {'x'.join(map(str, size))} to train on, "
            f"{HELD_OUT_CLIPS} held out; the loss is that of all deleted tokens, whatever was "
            "decoded in training; same start, batches and masks in each pair"
        )
    return 0


def clips_of(count: int, size: tuple[int, int, int], *, first_seed: int) -> Tensor:
    """Generate clips, normalised: float32 [count, 3, T, H, W].

    Rendered at twice the size and averaged: at this size most of the loss would be sensor noise,
    which cannot be predicted.
    """
    frames, height, width = size
    clips = []
    for i in range(count):
        measure.progress("generated", i, count, "clips")
        label = synthetic.LABELS[i % len(synthetic.LABELS)]
        side = max(height, width)
        clip = synthetic.render_clip(
            label, first_seed + i, frames=frames, size=2 * side, plain=True
        )
        clip = F.avg_pool2d(clip.float() / 255, 2)[:, :, :height, :width]
        clips.append((clip.transpose(0, 1) - MEAN) / STD)
    measure.progress("")
    return torch.stack(clips)


def train_once(
    training: Tensor, held_out: Tensor, *, decode_ratio: float, steps: int, seed: int
) -> dict[str, Any]:
    """Train and evaluate once; the row of it."""
    device = training.device
    torch.manual_seed(seed)
    settings = {**TINY, "input_size": tuple(training.shape[2:])}
    model = build_model(MODEL, decode_ratio=decode_ratio, **settings).to(device)
    before = held_out_loss(model, held_out)
    groups = optim.parameter_groups(model, weight_decay=0.05)
    optimizer = optim.build_optimizer(groups, SolverConfig(betas=(0.9, 0.95)), fused=True)
    schedule = optim.LRSchedule(PEAK_LR, total_steps=steps, warmup_steps=steps / 10)
    generator = torch.Generator().manual_seed(seed)  # of batches and masks, not of what is decoded
    model.train()
    measure.wait_for(device)
    began = time.perf_counter()
    for step in range(steps):
        measure.progress(f"decoding {decode_ratio:g}, seed {seed}", step, steps, "steps")
        optim.set_lr(optimizer, optim.lr_at(step, schedule))
        chosen = torch.randint(len(training), (BATCH,), generator=generator).to(device)
        keep = as_autoencoder(model).random_keep(BATCH, generator=generator)
        optimizer.zero_grad(set_to_none=True)
        model(training[chosen], keep).loss.backward()
        optim.clip_gradients(model.parameters(), 1.0)
        optimizer.step()
    measure.wait_for(device)
    seconds = time.perf_counter() - began
    measure.progress("")
    return {
        "decode_ratio": decode_ratio,
        "seed": seed,
        "steps": steps,
        "loss_before": before,
        "loss_after": held_out_loss(model, held_out),
        "seconds": seconds,
    }


@torch.inference_mode()
def held_out_loss(model: nn.Module, clips: Tensor) -> float:
    """Mean loss on all deleted tokens, under masks that are the same for every model."""
    generator = torch.Generator().manual_seed(0)
    model.eval()
    draw = as_autoencoder(model).random_keep
    losses = [
        model(batch, draw(len(batch), generator=generator)).loss.item() * len(batch)
        for batch in clips.split(BATCH)
    ]
    return sum(losses) / len(clips)
