"""Seeds of synthetic clips: one independent stream of random numbers for each concern."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Streams:
    """Independent generators by name: drawing more numbers in one leaves the others alone.

    A name's place in `names` decides its numbers, so new names go to the end.
    """

    names: tuple[str, ...]

    def __call__(self, seed: int, name: str) -> np.random.Generator:
        """The generator of a seed for one concern."""
        return np.random.default_rng([seed, self.names.index(name)])
