"""What becomes of a row, and what a process that makes it works with. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from hiera_video.prediction import Label
    from hiera_video.video.view_crops import VideoFacts


class Outcome(NamedTuple):
    """What became of a row: labels, a vector or an error."""

    labels: list[Label] | None = None
    vector: Any = None
    """float32 [D]."""
    facts: VideoFacts | None = None
    """None for a file that could not be read."""
    error: str | None = None


@dataclass(frozen=True)
class Equipment:
    """What a process works with: nothing of it changes a result but for rounding."""

    device: str = "cpu"
    batch_size: int | None = None
    """Most clips of a forward pass; None: the usual number."""
    threads: int = 1
    """That the model computes with, on a CPU."""
    readers: int = 1
    """Processes that read videos."""
    imports: tuple[str, ...] = ()
    """Modules of the user."""
    maker: str = "hiera_video.scale.labelling:make_labeller"
    """Makes the function from rows to outcomes, of a job and its equipment: "module:function"."""
