"""The sections on where curves and pictures of a run are shown: its page, and other places."""

from __future__ import annotations

from dataclasses import dataclass

from hiera_video.config.section import Section
from hiera_video.config.values import number, setting
from hiera_video.errors import ConfigError


@dataclass(frozen=True)
class PageConfig(Section):
    """OUTPUT_DIR/index.html, a page for any browser, without a server or a network."""

    prefix = "PAGE."

    enable: bool = setting(True)
    """Write it: curves, settings, data and test; again every minute while the run trains."""
    max_pictures: int = number(500, at_least=0)
    """Tested videos of which it shows a picture, errors first; 0: none."""


@dataclass(frozen=True)
class TensorboardConfig(Section):
    """Output for TensorBoard."""

    prefix = "TENSORBOARD."

    enable: bool = setting(False)
    """Also write the curves for TensorBoard; metrics.jsonl is always written."""


TRACKERS = ("wandb", "mlflow", "trackio")


@dataclass(frozen=True)
class TrackersConfig(Section):
    """Other places where curves and pictures are shown; none is imported unless it is named."""

    prefix = "TRACKERS."

    names: tuple[str, ...] = setting(())
    """wandb, mlflow, trackio: each needs its package, and its own login or variables."""
    project: str = setting("hiera_video")
    """Project (W&B, trackio) or experiment (MLflow)."""
    run_name: str = setting("")
    """Name of the run there; empty: that of OUTPUT_DIR."""

    def check(self) -> None:
        for name in self.names:
            if name not in TRACKERS:
                raise ConfigError(
                    f"TRACKERS.NAMES: {name!r} is not known; allowed are {', '.join(TRACKERS)}"
                )
