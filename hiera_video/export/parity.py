"""Is the exported file the model? Both get the same clips, and their logits are compared.

The file is run by a process of its own. Two runtimes in one process keep each other's threads
waiting (three times slower, measured), and a runtime that crashes ends its process and no more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hiera_video.errors import RunFailed
from hiera_video.files import atomic_write
from hiera_video.runtimes.exported import Array
from hiera_video.runtimes.load import open_exported

LARGEST_RELATIVE = 1e-4
"""fp32: largest difference of a logit over the largest logit."""

LARGEST_OF_SPREAD = 0.01
"""fp32: largest difference over what tells the clips apart. A model whose outputs hardly depend on
the clip would pass the first bound whatever was exported."""

LEAST_AGREEMENT = 0.9
"""Other dtypes: clips whose highest class is that of float32."""

BATCH = 4
"""Clips in one call, after a first call with one clip: a file for any batch must take both."""


@dataclass(frozen=True)
class Parity:
    """How far the logits of a file are from those of the model."""

    clips: int
    largest: float
    """Largest difference of a logit."""
    magnitude: float
    """Largest logit of the model."""
    spread: float
    """Most that a logit of the model differs between two of the clips."""
    agreement: float
    """Fraction of the clips with the same highest class."""
    classes_seen: int
    """How many classes are the highest of a clip."""

    @property
    def relative(self) -> float:
        """Largest difference over the largest logit."""
        return self.largest / self.magnitude if self.magnitude else float("inf")

    def failure(self, dtype: str) -> str | None:
        """Why a file of this dtype is not the model; None if it is."""
        if not np.isfinite(self.largest):
            return "its outputs are not finite"
        if dtype != "fp32":
            if self.agreement < LEAST_AGREEMENT:
                return (
                    f"the highest class agrees for {self.agreement:.0%} of the clips, "
                    f"{LEAST_AGREEMENT:.0%} are required"
                )
            return None
        if self.relative > LARGEST_RELATIVE:
            return f"the relative difference is above {LARGEST_RELATIVE:g}"
        if self.largest >= LARGEST_OF_SPREAD * self.spread:  # both are 0 where nothing differs
            return (
                f"outputs differ by {self.spread:.1e} between clips, too little to compare with "
                f"{self.largest:.1e}: is the model trained?"
            )
        return None

    def in_words(self) -> str:
        """For people: one line."""
        return (
            f"{self.clips} clips: largest difference {self.largest:.1e} of logits up to "
            f"{self.magnitude:.1e} (relative {self.relative:.1e}), highest class agrees for "
            f"{round(self.agreement * self.clips)} of {self.clips} "
            f"({self.classes_seen} classes among them)"
        )


def compare(expected: Array, found: Array) -> Parity:
    """Compare logits [N, classes] of the model and of the file."""
    return Parity(
        clips=len(expected),
        largest=float(np.abs(expected - found).max()),
        magnitude=float(np.abs(expected).max()),
        spread=float((expected.max(axis=0) - expected.min(axis=0)).max()),
        agreement=float((expected.argmax(axis=1) == found.argmax(axis=1)).mean()),
        classes_seen=len(np.unique(expected.argmax(axis=1))),
    )


def pieces(count: int) -> list[slice]:
    """The clips of each call: one, then `BATCH` at a time."""
    starts = [0, *range(1, count, BATCH)]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], count], strict=True)]


@torch.inference_mode()
def logits_of(model: nn.Module, clips: Tensor) -> Array:
    """Logits of a model in eval mode in this process: float32 [N, classes]."""
    rows = [model(clips[piece]).float() for piece in pieces(len(clips))]
    return np.asarray(torch.cat(rows).numpy())


def logits_of_file(path: Path, runtime: str, clips: Tensor) -> Array:
    """Logits of an exported file, run by a process of its own: float32 [N, classes].

    Raises RunFailed where it does not run there.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "clips.npy"), Path(folder, "logits.npy")
        with atomic_write(given) as file:
            np.save(file, clips.numpy())
        words = [os.fspath(path), runtime, str(given), str(found), torch.get_num_threads()]
        root = str(Path(__file__).resolve().parents[2])
        code = f"import sys; sys.path.insert(0, {root!r}); from {__name__} import child; child()"
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(words)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
        )
        if done.returncode or not found.is_file():
            said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise RunFailed(f"the exported file does not run: {said[0]}")
        return np.asarray(np.load(found))


def child() -> None:
    """What the process of `logits_of_file` does."""
    path, runtime, given, found, threads = json.loads(sys.argv[1])
    torch.set_num_threads(threads)
    try:
        rows = logits_of(open_exported(path, runtime), torch.from_numpy(np.load(given)))
    except (RunFailed, ValueError) as error:  # UserError and WeightsError are ValueErrors
        sys.exit(str(error).replace("\n", " "))
    with atomic_write(found) as file:
        np.save(file, rows)
