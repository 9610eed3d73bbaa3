"""Randomness as arithmetic: generators that are functions of whole numbers.

There is no state to save: (seed, epoch, video, view) says all about a clip, on any worker, in any
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


def generator_for(*numbers: int) -> Generator:
    """A generator that is a function of whole numbers, such as (seed, epoch, video, view)."""
    digest = hashlib.blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def epoch_order(num_videos: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the videos in an epoch: int64 [num_videos], a permutation."""
    return torch.randperm(num_videos, generator=generator_for(seed, epoch)).numpy()


def uniform(generator: Generator, count: int) -> list[float]:
    """`count` numbers in [0, 1)."""
    return torch.rand(count, generator=generator, dtype=torch.float64).tolist()


def draw_seed(generator: Generator) -> int:
    """A seed for code that brings its own generator."""
    return int(torch.randint(2**62, (), generator=generator))


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Lend a seed to code that draws from torch's global CPU generator, and put it back."""
    state = torch.get_rng_state()
    # Not torch.manual_seed: that would reseed the GPUs too, and their state would stay changed.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
