"""The rows that read features out, and what every row of the table is."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from evidence_rows.action_sets import Part
from evidence_rows.controls import CONTROLS, PLAIN
from evidence_rows.encoders import (
    RANDOM,
    StageFeatures,
    encoder_controls,
    fresh_encoder,
    load_encoder,
)
from evidence_rows.feature_files import Describer, FeatureStore
from evidence_rows.pictures import PictureFeatures
from evidence_rows.readouts import READOUTS, SVM, Readout, VideoClassifier, choose
from evidence_rows.results import Job
from hiera_video.engine.folds import grouped_folds

COMPONENTS = 60
"""Principal components of a stage's features that are read."""

FOLDS = 4
"""Of the cross-validation inside the training videos."""

INSTALL = {"sklearn": "scikit-learn", "cv2": "opencv-python-headless"}
"""Module -> the package to install."""


@dataclass(frozen=True)
class Answers:
    """What a row says about the test videos of a job."""

    predicted: dict[str, list[int]]
    """"plain", and each control -> a label for each video."""
    chosen: str = ""


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str
    kind: str
    """Rows of one kind are asked for together, and take about as long."""
    what: str
    run: Callable[[Job], Answers]
    settings: Callable[[int], dict[str, Any]]
    """Seed -> all that its results depend on, besides the videos."""
    needs: tuple[str, ...] = ()
    """Modules that must be installed."""
    check: Callable[[], None] = lambda: None
    """Raises UserError where the row would fail whatever the videos are; takes seconds at most."""
    twin: Callable[[Part], str] = lambda part: ""
    """Name of the row that does the very same on a part, so that it need not be done twice."""

    @property
    def missing(self) -> list[str]:
        """The packages to install before it can run."""
        absent = [module for module in self.needs if importlib.util.find_spec(module) is None]
        return [INSTALL[module] for module in absent]


# ---- reading features out -----------------------------------------------------------------------


@dataclass(frozen=True)
class FeatureRow:
    """Trains a readout on the features of a describer."""

    readout: Readout
    describer: Callable[[int], Describer]
    """Seed -> what describes the videos."""
    store: FeatureStore
    blocks: tuple[str, ...] | None = None
    """The blocks that may be read; None for all."""
    components: int | None = None

    def settings(self, seed: int) -> dict[str, Any]:
        return {
            "features": self.describer(seed).settings,
            "blocks": self.blocks,
            "readout": [self.readout.name, self.readout.grid],
            "components": self.components,
            "folds": FOLDS,
        }

    def run(self, job: Job) -> Answers:
        """Choose, train and test."""
        describer, videos = self.describer(job.seed), job.action_set.videos
        place = {video.name: i for i, video in enumerate(videos)}
        train = [place[name] for name in job.action_set.names_of(job.part.train)]
        test = [place[name] for name in job.action_set.names_of(job.part.test)]
        labels = np.asarray(job.part.train.labels)
        found = self.store.plain(describer, videos)
        blocks = {k: v[train] for k, v in found.items() if self.blocks is None or k in self.blocks}
        groups = job.action_set.groups_of(job.part.train)
        folds = grouped_folds(labels.tolist(), groups, folds=FOLDS, seed=job.seed)

        choice = choose(self.readout, blocks, labels, folds, self.components)
        fit = VideoClassifier.fit(self.readout, blocks[choice.block], labels, self.components)
        classifier = fit(choice.settings)
        predicted = {}
        for control in describer.controls:
            shown = found[choice.block]
            if control != PLAIN:
                shown = self.store.block(describer, videos, control=control, block=choice.block)
            predicted[control] = classifier.predict(shown[test]).tolist()
        chosen = ", ".join(f"{key} {value:g}" for key, value in choice.settings.items())
        return Answers(predicted, f"{choice.block}, {chosen} ({choice.accuracy:.0f} % in CV)")


def _row(name: str, kind: str, what: str, reading: FeatureRow, needs: Sequence[str] = ()) -> Row:
    needed = tuple(dict.fromkeys([*reading.readout.needs, *needs]))
    return Row(name, kind, what, reading.run, reading.settings, needed)


# ---- the rows -----------------------------------------------------------------------------------

HAND_MADE = {
    "one frame": "the middle frame: its greys, colours and edges",
    "mean frame": "the mean of 8 frames, described alike",
    "motion energy": "where the frames change: their mean absolute difference",
}


def hand_made_rows(store: FeatureStore) -> list[Row]:
    """Hand-made features and a support vector machine."""
    controls = (PLAIN, *CONTROLS)
    rows = [
        _row(
            name,
            "hand-made",
            what,
            FeatureRow(SVM, lambda seed: PictureFeatures(controls), store, blocks=(name,)),
        )
        for name, what in HAND_MADE.items()
    ]
    flow = FeatureRow(SVM, lambda seed: _flow_features(controls), store)
    what = "histograms of motion in space and time"
    return [*rows, _row("optical flow", "hand-made", what, flow, needs=("cv2",))]


def _flow_features(controls: tuple[str, ...]) -> Describer:
    from evidence_rows.optical_flow import FlowFeatures  # needs OpenCV, which is optional

    return FlowFeatures(controls)


def frozen_rows(store: FeatureStore, encoders: Sequence[str], views: tuple[int, int]) -> list[Row]:
    """Frozen features of each encoder, read out in three ways.

    encoders: names or files of weights. "random" is fresh weights, by seed, for the model that the
    first of the others is of.
    """
    rows = []
    for weights in encoders:
        describer = _stage_features(weights, _architecture(encoders), views)
        for readout in READOUTS:
            reading = FeatureRow(readout, describer, store, components=COMPONENTS)
            what = "stages of the frozen model; stage and settings from cross-validation"
            rows.append(_row(f"frozen {weights}: {readout.name}", "frozen", what, reading))
    return rows


def _architecture(encoders: Sequence[str]) -> str:
    named = [weights for weights in encoders if weights != RANDOM]
    return named[0] if named else "camera_motion"


def _stage_features(
    weights: str, architecture: str, views: tuple[int, int]
) -> Callable[[int], Describer]:
    controls = encoder_controls(weights, tuple(CONTROLS))

    @lru_cache(maxsize=4)
    def describer(seed: int) -> Describer:
        random = weights == RANDOM
        encoder = fresh_encoder(architecture, seed) if random else _loaded(weights)
        return StageFeatures(encoder, *views, controls)

    return describer


_loaded = lru_cache(maxsize=8)(load_encoder)
