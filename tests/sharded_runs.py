"""Runs of several processes whose parameters were all redrawn at random: no gradient is zero.

ended = train(tmp_path, 2, words)
"""

from __future__ import annotations

import json
from pathlib import Path

import ranks
import run_net
import tiny_runs as tiny
import torch

from hiera_video.engine import build, sharding
from hiera_video.engine import train as training

SHARDED = ("TRAIN.SHARDING", "fsdp")


def redraw(model: torch.nn.Module) -> None:
    """Draw every parameter at random: norms around 1, the rest around 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.rand(parameter.shape, generator=generator) * 2 - 1
            one = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(noise * 0.2 + 1 if one else noise * 0.15)


def with_redrawn_weights() -> None:
    """Let the runs of this process begin with such parameters."""
    real = build.training_model

    def redrawn(*args, **kwargs):
        model, identity = real(*args, **kwargs)
        redraw(model)
        return model, identity

    build.training_model = redrawn


def command(folder: Path, words: list[str]) -> int:
    """A run of tools/run_net.py; at its end each process notes the bytes that it kept."""
    with_redrawn_weights()
    end = training.TrainingRun.end

    def noting(self):
        kept = {"world": self.world.size, "bytes": kept_bytes(self.state)}
        (folder / f"kept{self.world.rank}.json").write_text(json.dumps(kept))
        return end(self)

    training.TrainingRun.end = noting
    return run_net.main(words)


def kept_bytes(state) -> dict[str, int]:
    """Bytes of the parameters, the optimizer's moments and the averaged weights of a process."""
    moments = [
        value
        for of_parameter in state.optimizer.state.values()
        for value in of_parameter.values()
        if value.ndim
    ]
    return {
        "parameters": size_of(state.model.parameters()),
        "moments": size_of(moments),
        "ema": size_of(state.ema.shadow.values()) if state.ema else 0,
    }


def size_of(tensors) -> int:
    """Bytes of the parts of these tensors that this process has."""
    parts = [sharding.local(tensor.detach()) for tensor in tensors]
    return sum(part.numel() * part.element_size() for part in parts)


def train(folder: Path, processes: int, words: list[str]) -> list[ranks.Ended]:
    """Run the command in so many processes and wait; an AssertionError unless all return 0."""
    ended = start(folder, processes, words).wait()
    assert [process.code for process in ended] == [0] * processes, ended
    return ended


def start(folder: Path, processes: int, words: list[str]) -> ranks.Ranks:
    """Start the command in so many processes."""
    words = ["--cfg", str(tiny.empty(folder)), *words]
    return ranks.start(command, processes, folder, words)
