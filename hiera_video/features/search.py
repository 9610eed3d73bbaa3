"""Find the vectors of a table that are nearest to others, by the cosine.

Every vector of the table is compared: the result is exact. faiss does it where it is installed
(`pip install faiss-cpu`), numpy otherwise; both read the table piece by piece.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hiera_video.errors import UserError
from hiera_video.features.describe import Vectors
from hiera_video.features.table import Batch

ENGINES = ("auto", "exact", "faiss")


@dataclass(frozen=True)
class Neighbour:
    """One row of a table that is near a query."""

    score: float
    """Cosine, -1 to 1."""
    path: str
    start: float
    end: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain strings and numbers, for JSON."""
        return {"score": self.score, "path": self.path, "start": self.start, "end": self.end}


def nearest(
    batches: Iterable[Batch], queries: Vectors, *, top: int, engine: str = "auto"
) -> list[list[Neighbour]]:
    """Return the `top` nearest rows for each of the queries [Q, D], the nearest first.

    Of equals, the first in the table comes first. A vector of zeros has the cosine 0 to all.
    Raises UserError for an unknown engine, or faiss where it is not installed.
    """
    best_of = _engine(engine)
    if top < 1:
        raise UserError(f"top {top} must be at least 1")
    wanted = unit_rows(np.asarray(queries, dtype=np.float32))
    found: list[list[Neighbour]] = [[] for _ in wanted]
    for batch in batches:
        scores, rows = best_of(unit_rows(batch.vectors), wanted, min(top, len(batch.paths)))
        for query, neighbours in enumerate(found):
            new = sorted(zip(-scores[query], rows[query], strict=True))
            for minus, row in new:
                place = batch.paths[row], batch.starts[row], batch.ends[row]
                neighbours.append(Neighbour(float(-minus), *place))
            neighbours.sort(key=lambda one: -one.score)  # stable: equals stay in their order
            del neighbours[top:]
    return found


def unit_rows(rows: Vectors) -> Vectors:
    """Scale rows [..., D] to length 1; zeros stay."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


Best = Callable[[Vectors, Vectors, int], tuple[Vectors, "np.ndarray[Any, Any]"]]
"""Rows [R, D], queries [Q, D], k -> scores and row numbers [Q, k], in any order."""


def _engine(name: str) -> Best:
    if name not in ENGINES:
        raise UserError(f"engine {name!r}; choose {', '.join(ENGINES)}")
    installed = importlib.util.find_spec("faiss") is not None
    if name == "faiss" and not installed:
        raise UserError("faiss is not installed: pip install faiss-cpu; or use the engine exact")
    return _best_by_faiss if installed and name != "exact" else _best_by_numpy


def _best_by_numpy(rows: Vectors, queries: Vectors, k: int) -> tuple[Vectors, Any]:
    scores = queries @ rows.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


def _best_by_faiss(rows: Vectors, queries: Vectors, k: int) -> tuple[Vectors, Any]:
    import faiss

    scores, order = faiss.knn(
        np.ascontiguousarray(queries, dtype=np.float32),
        np.ascontiguousarray(rows, dtype=np.float32),
        k,
        metric=faiss.METRIC_INNER_PRODUCT,
    )
    return scores, order
