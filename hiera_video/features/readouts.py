"""Classifiers on vectors, to judge the vectors by: logistic regression and nearest neighbours.

Shapes: M vectors of D numbers, K classes. Labels are numbers 0 to K - 1, of which a training set
may have some only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hiera_video.errors import UserError
from hiera_video.features.describe import Vectors
from hiera_video.features.search import unit_rows

Labels = npt.NDArray[np.int64]
Scorer = Callable[[Vectors], Vectors]
"""Vectors [M, D] -> scores [M, K], higher is likelier; 0 for classes without training vectors."""


@dataclass(frozen=True)
class Readout:
    """One kind of classifier."""

    name: str
    setting: str
    """What is chosen, in words."""
    values: tuple[float, ...]
    """To choose from; of equally good ones, the first."""
    fit: Callable[[Vectors, Labels, int, float], Scorer]
    """Vectors [M, D], labels [M], K and a value of the setting -> a scorer."""


def fit_logistic(vectors: Vectors, labels: Labels, classes: int, strength: float) -> Scorer:
    """Logistic regression on standardised vectors of unit length, on the average.

    strength: of L2; the loss is the mean over the vectors plus L2 / 2 times the squares of the
    weights, as in `engine/probe.py`.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise UserError("probes need scikit-learn: pip install scikit-learn") from None
    mean, deviation = vectors.mean(axis=0), vectors.std(axis=0)
    # what hardly varies would only be noise if it were scaled up
    deviation = np.maximum(deviation, 1e-3 * float(deviation.max()) + 1e-12)
    scale = deviation * vectors.shape[1] ** 0.5

    def standardised(rows: Vectors) -> Vectors:
        return ((rows - mean) / scale).astype(np.float64)

    known = np.unique(labels)
    if len(known) == 1:
        return lambda rows: _spread(np.ones((len(rows), 1)), known, classes)
    model = LogisticRegression(C=1 / (strength * len(labels)), max_iter=1000)
    with one_thread():
        model.fit(standardised(vectors), labels)
    return lambda rows: _spread(model.predict_proba(standardised(rows)), known, classes)


def one_thread() -> contextlib.AbstractContextManager[object]:
    """Keep scikit-learn's products of matrices on one thread.

    They are so small that several threads gain nothing, and where other work has the cores, each
    thread waits for the slowest: six to eleven times as long, measured on 2 cores.
    """
    from threadpoolctl import threadpool_limits  # scikit-learn needs it

    return threadpool_limits(1, user_api="blas")


def fit_neighbours(vectors: Vectors, labels: Labels, classes: int, k: float) -> Scorer:
    """The share of each class among the k nearest vectors by the cosine; near ones weigh more."""
    unit = unit_rows(vectors)
    one_hot = np.eye(classes)[labels]
    count = min(int(k), len(vectors))

    def scores(rows: Vectors) -> Vectors:
        cosines = unit_rows(rows) @ unit.T
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        weights = np.take_along_axis(cosines, order, axis=1) + 1  # never negative
        votes: Vectors = (one_hot[order] * weights[..., None]).sum(axis=1) / count
        return votes

    return scores


def _spread(scores: npt.NDArray[Any], known: Labels, classes: int) -> Vectors:
    """Scores of the `known` classes [M, k] -> [M, K]."""
    wide = np.zeros((len(scores), classes))
    wide[:, known] = scores
    return wide


READOUTS = (
    Readout("logistic regression", "L2", (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4), fit_logistic),
    Readout("nearest neighbours", "k", (1, 3, 5, 10, 20), fit_neighbours),
)
