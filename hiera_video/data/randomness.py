"""Randomness as arithmetic: generators that are functions of whole numbers.

There is no state to save: (seed, epoch, video, view) determines a clip, on any worker, in any
process, before and after a restart.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Generator

PURPOSES: dict[str, tuple[str, ...]] = {
    "order": ("epoch",),
    "mixing": ("step", "part"),
    "place": ("epoch", "video", "clip"),
    "augment": ("epoch", "video", "clip", "repeat"),
    "symmetries": ("epoch", "video", "view"),
    "generated": ("epoch", "video", "clip"),
}
"""Purpose of random numbers -> the whole numbers that they depend on besides the seed.

Every purpose has its own streams: see `_ENDINGS`."""

_ENDINGS: dict[str, tuple[int, ...]] = {
    "symmetries": (0x53594D, 0),
    "generated": (0x47454E, 0, 0),
}
"""Purpose -> numbers that are hashed after its own.

The hash is over the numbers and their count, so no two purposes may have the same count. Changing
this changes the clips of every run."""


def generator_for(purpose: str, seed: int, *numbers: int) -> Generator:
    """Make a generator that is a function of the seed and of the numbers that `PURPOSES` names.

    Raises ValueError for a purpose that is not listed, and for another count of numbers, which
    could give the stream of another purpose.
    """
    if len(numbers) != len(PURPOSES.get(purpose, (*numbers, ""))):
        raise ValueError(f"stream {purpose!r} with {len(numbers)} numbers is not in PURPOSES")
    hashed = (seed, *numbers, *_ENDINGS.get(purpose, ()))
    digest = hashlib.blake2b(struct.pack(f"<{len(hashed)}q", *hashed), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def epoch_order(num_videos: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the videos in an epoch: int64 [num_videos], a permutation."""
    return torch.randperm(num_videos, generator=generator_for("order", seed, epoch)).numpy()


def uniform(generator: Generator, count: int) -> list[float]:
    """Draw `count` numbers in [0, 1)."""
    return torch.rand(count, generator=generator, dtype=torch.float64).tolist()


def log_uniform(u: float, least: float, most: float) -> float:
    """Turn u, uniform in [0, 1), into a number whose logarithm is uniform from least to most."""
    return least * (most / least) ** u


def draw_seed(generator: Generator) -> int:
    """Draw a seed for code that has its own generator."""
    return int(torch.randint(2**62, (), generator=generator))


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator inside the block; restore its state afterwards."""
    state = torch.get_rng_state()
    # Not torch.manual_seed: it seeds the GPUs as well, whose state is not restored here.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
