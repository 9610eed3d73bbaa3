"""An exported file as a torch module: clips in, logits out, for `scoring.py`.

A runtime is a library of its own with threads of its own. It gets arrays and returns arrays; that
is all that the rest of the package sees of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hiera_video.errors import RunFailed, UserError
from hiera_video.runtimes.facts import Facts

Array = np.ndarray[Any, Any]
Run = Callable[[Array], Array]
"""Calls the runtime: float32 [B, *clip_shape], contiguous -> float32 [B, num_classes]."""


class ExportedModel(nn.Module):
    """A model that another runtime computes, on the CPU.

    Args:
        facts: what the file says about itself.
        run: calls the runtime.
        runtime: its name, for messages.
    """

    def __init__(self, facts: Facts, run: Run, runtime: str) -> None:
        super().__init__()
        self.facts, self.runtime = facts, runtime
        self.num_classes = len(facts.classes)
        self.input_size = facts.clip_shape[1:]
        self._run = run
        self._process = os.getpid()
        self.eval()

    def forward(self, clips: Tensor) -> Tensor:
        """Clips [B, *clip_shape] -> logits [B, num_classes].

        A file of a fixed batch is called as often as is needed; its last call is filled up with
        copies of the last clip.

        Raises UserError for clips of another shape, RunFailed where the runtime fails.
        """
        if tuple(clips.shape[1:]) != self.facts.clip_shape or not len(clips):
            wanted = ", ".join(map(str, self.facts.clip_shape))
            raise UserError(f"input of shape {tuple(clips.shape)}; this file takes [B, {wanted}]")
        if os.getpid() != self._process:
            raise RunFailed(
                f"this process was forked from one that uses {self.runtime}, whose threads a fork "
                "does not copy; load the model after the fork, or start the process with spawn"
            )
        array = np.ascontiguousarray(clips.detach().cpu().float().numpy())
        size = self.facts.batch or len(array)
        rows = [self._call(array[i : i + size], size) for i in range(0, len(array), size)]
        return torch.from_numpy(np.concatenate(rows))

    def _call(self, clips: Array, size: int) -> Array:
        """Call the runtime with exactly `size` clips; returns the rows of those that were given."""
        missing = size - len(clips)
        if missing:
            clips = np.concatenate([clips, np.repeat(clips[-1:], missing, axis=0)])
        try:
            rows = self._run(clips)
        except Exception as error:  # each runtime has errors of its own
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            raise RunFailed(f"{self.runtime} cannot run the model: {reason[0]}") from error
        return np.array(rows[: size - missing], dtype=np.float32)
