"""Vectors as points of a plane, and how much of them the plane keeps.

PCA turns the cloud of vectors and looks at it from the side on which it is widest: it is exact, and
the same on every machine but for rounding. UMAP places points so that neighbours stay neighbours,
and pays with everything else.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

from hiera_video.errors import UserError
from hiera_video.features.describe import Vectors

METHODS = ("pca", "umap")
_NEEDS = {"pca": ("sklearn", "scikit-learn"), "umap": ("umap", "umap-learn")}
"""Method -> the module that computes it, and its package."""

UMAP_NEIGHBOURS = 15
_LEAST_FOR_UMAP = 4

NEAREST = 10
_ASKED = 500
"""Points whose neighbours are compared."""

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Projection:
    """A point for each vector."""

    method: str
    """Of METHODS."""
    points: Points
    """[N, 2]"""
    shares: tuple[float, float] | None
    """Of the variance, what each axis holds, 0 to 1. Only PCA has such axes."""
    nearest: int
    """How many nearest vectors of each were looked for."""
    kept: float
    """How many of these are among the nearest points, too; a mean."""


def check_method(method: str) -> None:
    """Raise UserError for an unknown method, and where what computes it is not installed."""
    if method not in METHODS:
        raise UserError(f"--map-method {method}: choose one of {', '.join(METHODS)}")
    module, package = _NEEDS[method]
    if find_spec(module) is None:
        raise UserError(f"--map-method {method} needs a library: pip install {package}")


def project(vectors: Vectors, method: str = "pca") -> Projection:
    """Place vectors [N, D] on a plane.

    Raises UserError: an unknown method, UMAP where it is not installed or has too few vectors.
    """
    check_method(method)
    shares = None
    if method == "pca":
        points, shares = pca(vectors)
    else:
        points = _umap(vectors)
    nearest = min(NEAREST, len(vectors) - 1)
    return Projection(method, points, shares, nearest, neighbours_kept(vectors, points, nearest))


def pca(vectors: Vectors) -> tuple[Points, tuple[float, float]]:
    """Return the first two principal components [N, 2], and the share of the variance of each.

    Along each axis, the number of the vectors that counts most for it grows.
    """
    from sklearn.decomposition import PCA

    count, length = vectors.shape
    points, shares = np.zeros((count, 2)), [0.0, 0.0]
    if count < 2 or not np.ptp(vectors, axis=0).any():  # one place for all
        return points, (0.0, 0.0)
    rows = vectors.astype(np.float64)
    # exact; other solvers draw at random, or came after the oldest release that is supported
    fitted = PCA(n_components=min(2, count, length), svd_solver="full").fit(rows)
    found = zip(fitted.components_, fitted.explained_variance_ratio_, strict=True)
    for axis, (direction, share) in enumerate(found):
        if share <= 1e-12:  # the vectors do not differ in this direction
            continue
        side = np.sign(direction[np.abs(direction).argmax()])
        points[:, axis] = (rows - fitted.mean_) @ (direction * side)
        shares[axis] = float(share)
    return points, (shares[0], shares[1])


def _umap(vectors: Vectors) -> Points:
    import umap

    if len(vectors) < _LEAST_FOR_UMAP:
        raise UserError(
            f"--map-method umap needs {_LEAST_FOR_UMAP} vectors at least, here are {len(vectors)}; "
            "use pca"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how it computes: nothing that a user can change
        found: Points = umap.UMAP(
            n_components=2,
            n_neighbors=min(UMAP_NEIGHBOURS, len(vectors) - 1),
            metric="cosine",
            random_state=0,
            n_jobs=1,  # with a seed it cannot be more
        ).fit_transform(vectors)
    return found.astype(np.float64)


def neighbours_kept(vectors: Vectors, points: Points, nearest: int) -> float:
    """Of the `nearest` vectors of each, how many are among its nearest points: a mean.

    vectors [N, D] have length 1. Of many, some are asked, evenly spread.
    """
    if nearest < 1:
        return 0.0
    asked = np.unique(np.linspace(0, len(points) - 1, _ASKED).astype(int))
    shared = 0
    for one in asked:
        by_cosine = vectors @ vectors[one]
        by_place = -((points - points[one]) ** 2).sum(axis=1)
        for near in (by_cosine, by_place):
            near[one] = -np.inf
        both = [np.argpartition(-near, nearest - 1)[:nearest] for near in (by_cosine, by_place)]
        shared += len(np.intersect1d(both[0], both[1]))
    return shared / len(asked)
