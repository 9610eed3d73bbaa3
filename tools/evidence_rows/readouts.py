"""Classifiers on features, with settings that are chosen inside the training videos.

Which block of features is read and with which settings is decided by cross-validation on the
training videos, whole groups (scenes, sources) held out at a time. The test videos are seen once,
by the classifier that was chosen.

Shapes: N videos, S samples of each (its windows), D numbers, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evidence_rows.feature_files import Array, Blocks
from hiera_video.features import readouts

Settings = dict[str, float]
Scorer = Callable[[Array], Array]
"""Features [M, D] -> scores [M, K], higher is likelier."""


@dataclass(frozen=True)
class Readout:
    """One kind of classifier."""

    name: str
    fit: Callable[[Array, Array, Settings], Scorer]
    """Features [M, D], labels [M] and settings -> a scorer for the classes that occur."""
    grid: tuple[Settings, ...]
    """The settings to choose from."""
    needs: tuple[str, ...] = ()
    """Modules that must be installed."""


# ---- the kinds ----------------------------------------------------------------------------------


def fit_svm(features: Array, labels: Array, settings: Settings) -> Scorer:
    """A support vector machine with a Gaussian kernel; its width is relative to the features'."""
    from sklearn.svm import SVC

    gamma = settings["width"] / (features.shape[1] * max(float(features.var()), 1e-12))
    svm = SVC(C=settings["C"], gamma=gamma, class_weight="balanced")
    svm.fit(features, labels)

    def scores(queries: Array) -> Array:
        values = svm.decision_function(queries)
        return np.stack([-values, values], axis=1) if values.ndim == 1 else values

    return scores


def fit_linear(features: Array, labels: Array, settings: Settings) -> Scorer:
    """Logistic regression: a linear probe."""
    from sklearn.linear_model import LogisticRegression

    probe = LogisticRegression(C=settings["C"], max_iter=2000, class_weight="balanced")
    with readouts.one_thread():
        probe.fit(features, labels)
    return probe.predict_proba


def fit_neighbours(features: Array, labels: Array, settings: Settings) -> Scorer:
    """The share of each class among the k nearest training samples, by the cosine."""
    known, places = np.unique(labels, return_inverse=True)
    return readouts.fit_neighbours(features, places, len(known), settings["k"])


SVM = Readout(
    "SVM",
    fit_svm,
    tuple({"C": c, "width": w} for c in (1.0, 10.0) for w in (0.3, 1.0, 3.0)),
    needs=("sklearn",),
)
LINEAR = Readout(
    "linear", fit_linear, tuple({"C": c} for c in (1e-2, 1e-1, 1.0, 10.0)), needs=("sklearn",)
)
NEIGHBOURS = Readout("k-NN", fit_neighbours, tuple({"k": k} for k in (1, 3, 5, 10, 20, 40)))
READOUTS = (SVM, LINEAR, NEIGHBOURS)


# ---- standardised principal components ----------------------------------------------------------


@dataclass(frozen=True)
class Projection:
    """Standardises features and takes their principal components, as the training set has them."""

    mean: Array
    scale: Array
    axes: Array | None
    """[D, P]; None keeps all numbers."""

    @classmethod
    def of(cls, features: Array, components: int | None) -> Projection:
        """The projection of training features [M, D]; components=None: standardise alone."""
        mean, scale = features.mean(axis=0), features.std(axis=0)
        # what hardly varies would only be noise if it were scaled up
        scale = np.maximum(scale, 1e-3 * float(scale.max()) + 1e-12)
        if components is None or components >= min(features.shape):
            return cls(mean, scale, None)
        standard = torch.from_numpy((features - mean) / scale)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # svd_lowrank starts from random vectors
            _, sizes, axes = torch.svd_lowrank(standard, q=components + 10, niter=4)
        # the first component gets variance 1: what is strong stays strong, and a strength of
        # regularisation means the same for any number of features
        deviation = max(float(sizes[0]) / len(features) ** 0.5, 1e-12)
        return cls(mean, scale, axes[:, :components].numpy() / deviation)

    def __call__(self, features: Array) -> Array:
        """Features [..., D] -> [..., P]."""
        standard = (features - self.mean) / self.scale
        return standard if self.axes is None else standard @ self.axes


# ---- videos -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VideoClassifier:
    """A readout that was trained on the samples of videos."""

    projection: Projection
    scorer: Scorer
    classes: Array
    """int [K], the labels that the scores are of."""

    @classmethod
    def fit(
        cls, readout: Readout, features: Array, labels: Array, components: int | None
    ) -> Callable[[Settings], VideoClassifier]:
        """Project features [N, S, D]; the result trains on them with given settings.

        components: principal components to keep; None for all numbers.
        """
        projection = Projection.of(features.reshape(-1, features.shape[-1]), components)
        samples = projection(features).reshape(features.shape[0] * features.shape[1], -1)
        repeated = np.repeat(labels, features.shape[1])

        def with_settings(settings: Settings) -> VideoClassifier:
            return cls(projection, readout.fit(samples, repeated, settings), np.unique(labels))

        return with_settings

    def predict(self, features: Array) -> Array:
        """Labels int [N] of videos [N, S, D]: the highest mean of the scores of the samples."""
        samples = self.projection(features)
        scores = self.scorer(samples.reshape(-1, samples.shape[-1]))
        return self.classes[scores.reshape(*features.shape[:2], -1).mean(axis=1).argmax(axis=1)]


# ---- choosing inside the training set -----------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """What cross-validation chose."""

    block: str
    settings: Settings
    accuracy: float
    """In cross-validation, percent; chosen for being high, so no estimate of anything."""


def choose(
    readout: Readout,
    blocks: Blocks,
    labels: Array,
    held_out: Sequence[Array],
    components: int | None,
) -> Choice:
    """Try every block with all settings on the folds of the training videos; take the best.

    held_out: `grouped_folds` of the training videos. Of equals the first counts, so the simplest
    settings come first in a grid.
    """
    tried = [
        Choice(block, settings, accuracy)
        for block, features in blocks.items()
        for settings, accuracy in _tried_settings(readout, features, labels, held_out, components)
    ]
    return max(tried, key=lambda choice: choice.accuracy)


def _tried_settings(
    readout: Readout,
    features: Array,
    labels: Array,
    held_out: Sequence[Array],
    components: int | None,
) -> list[tuple[Settings, float]]:
    right = np.zeros(len(readout.grid))
    for held in held_out:
        if len(np.unique(labels[~held])) < 2:
            continue  # nothing to tell apart
        train = VideoClassifier.fit(readout, features[~held], labels[~held], components)
        for i, settings in enumerate(readout.grid):
            right[i] += (train(settings).predict(features[held]) == labels[held]).sum()
    return list(zip(readout.grid, (100 * right / len(labels)).tolist(), strict=True))
