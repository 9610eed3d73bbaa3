"""What an objective may build in its own way: its lists, its clips, and what it measures.

Most objectives have videos with labels, which `build` and `evaluate` know. One that has something
else (boxes in clips) gives a run these parts in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from hiera_video.config import Config
from hiera_video.data.datasets import VideoDataset
from hiera_video.data.loader import Loader
from hiera_video.data.manifests.manifest import Manifest
from hiera_video.engine.distributed import World
from hiera_video.run_page.facts import Clip, Outcome
from hiera_video.scoring import ScoreSettings

Metrics = dict[str, float | int]


class Evaluation(Protocol):
    """What a model answers to the clips of a loader, and what follows from the answers.

    `Any` is the type of the answers, which only this object looks into.
    """

    @property
    def best(self) -> str:
        """The metric by which the best checkpoint is kept, higher is better."""
        ...

    def answers(
        self,
        model: nn.Module,
        loader: Loader,
        settings: ScoreSettings,
        *,
        world: World,
        stopped: Callable[[], bool],
        on_video: Callable[[int], None],
    ) -> Any:
        """Score the clips of a loader; every process returns the answers of all. None if any
        process was asked to stop.

        model: on `world.device`; it is put into eval mode. stopped: whether this process was asked
        to stop. on_video: called with the number of videos that are done since the last call.
        Raises RunFailed: no video can be read, scores that are not finite, too little memory.
        """
        ...

    def metrics(self, answers: Any, manifest: Manifest) -> Metrics:
        """Compute `n_videos`, `n_failed` and the metrics, in percent."""
        ...

    def failed(self, answers: Any) -> Sequence[Any]:
        """The videos (`Failed`) that could not be read."""
        ...

    def describe(self, content: dict[str, Any]) -> list[str]:
        """Describe results.json in a line or more for the console; the first is the result."""
        ...

    def write(
        self, folder: Path, content: dict[str, Any], answers: Any, manifest: Manifest
    ) -> None:
        """Write the files of a test into `folder`; content: of results.json. RunFailed where a file
        cannot be written."""
        ...

    def page(
        self, answers: Any, manifest: Manifest, *, lines: Sequence[str], notes: Sequence[str]
    ) -> tuple[Outcome, list[Clip]]:
        """Describe a test for the page of the run. lines: what was tested and the result."""
        ...


class Parts(Protocol):
    """The parts of a run that an objective builds itself."""

    def read_split(self, cfg: Config, split: str) -> Manifest:
        """Read the list of "train", "val" (while training) or "test". Raises DataError."""
        ...

    def training_set(self, cfg: Config, manifest: Manifest) -> VideoDataset:
        """Build the data set of random clips."""
        ...

    def test_set(self, cfg: Config, manifest: Manifest, *, crops: int) -> VideoDataset:
        """Build the data set of fixed clips, with 1 or 3 crops."""
        ...

    def evaluation(self, cfg: Config) -> Evaluation:
        """Build what is measured in validation and test."""
        ...

    def boxes_per_clip(self, manifest: Manifest) -> float:
        """How many boxes a clip of the list has on average."""
        ...

    def stand_in(self, cfg: Config, folder: Path, clips: int) -> Config:
        """Write at least so many clips into `folder`, for a dry run without data; returns the
        settings that read them."""
        ...
