"""Vectors as points of a plane, and how much of them the plane keeps.

PCA turns the cloud of vectors and looks at it from the side on which it is widest: it is exact, and
the same on every machine but for rounding. UMAP places points so that neighbours stay neighbours,
and pays with everything else.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hiera_video.errors import UserError
from hiera_video.features.describe import Vectors

METHODS = ("pca", "umap")

UMAP_NEIGHBOURS = 15
_LEAST_FOR_UMAP = 4

NEAREST = 10
_ASKED = 500
"""Points whose neighbours are compared."""

_AT_ONCE = 4096
"""Vectors that are held as float64."""

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
    if method == "umap":
        try:
            import umap  # noqa: F401
        except ImportError:
            raise UserError(
                "--map-method umap needs a library: pip install umap-learn (pca does without)"
            ) from None


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
    mean = vectors.mean(axis=0, dtype=np.float64)
    count, length = vectors.shape
    small = count < length
    # the same axes follow from the products of vectors, where these are fewer
    products = _gram(vectors - mean) if small else _covariance(vectors, mean)
    values, sides = np.linalg.eigh(products)
    total = float(np.trace(products))
    order = np.argsort(values)[::-1][:2]
    points = np.zeros((count, 2))
    shares = [0.0, 0.0]
    for axis, place in enumerate(order):
        value = float(values[place])
        if value <= total * 1e-12:  # the vectors do not differ in this direction
            continue
        direction = (vectors - mean).T @ sides[:, place] if small else sides[:, place]
        direction = direction / np.linalg.norm(direction)
        direction *= np.sign(direction[np.abs(direction).argmax()])
        points[:, axis] = vectors @ direction - mean @ direction
        shares[axis] = value / total
    return points, (shares[0], shares[1])


def _covariance(vectors: Vectors, mean: Points) -> Points:
    found = np.zeros((vectors.shape[1],) * 2)
    for first in range(0, len(vectors), _AT_ONCE):
        part = vectors[first : first + _AT_ONCE] - mean
        found += part.T @ part
    return found


def _gram(centred: Points) -> Points:
    found: Points = centred @ centred.T
    return found


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
