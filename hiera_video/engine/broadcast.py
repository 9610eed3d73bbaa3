"""Send what rank 0 has read to all processes: a checkpoint is read once, from one disk."""

from __future__ import annotations

import io
from typing import Any

import torch
import torch.distributed as dist

from hiera_video.engine.distributed import World

CHUNK = 64 << 20
"""Bytes sent at a time: what a GPU needs for it besides the model."""


def broadcast_content(world: World, content: dict[str, Any]) -> dict[str, Any]:
    """Send the content of a checkpoint from rank 0, and return it on every process, on the CPU.

    content: tensors and plain values; that of other ranks is not used.
    """
    if world.size == 1:
        return content
    data = _pack(content) if world.is_main else torch.empty(0, dtype=torch.uint8)
    size = world.broadcast(len(data))
    device = world.device if dist.get_backend() == "nccl" else torch.device("cpu")
    received = data if world.is_main else torch.empty(size, dtype=torch.uint8)
    for start in range(0, size, CHUNK):
        part = received[start : start + CHUNK]
        travelling = part.to(device)
        dist.broadcast(travelling, src=0)
        if not world.is_main:
            part.copy_(travelling)
    return content if world.is_main else _unpack(received)


def _pack(content: dict[str, Any]) -> torch.Tensor:
    file = io.BytesIO()
    torch.save(content, file)
    return torch.frombuffer(file.getbuffer(), dtype=torch.uint8)


def _unpack(data: torch.Tensor) -> dict[str, Any]:
    file = io.BytesIO(data.numpy().data)
    content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return content
