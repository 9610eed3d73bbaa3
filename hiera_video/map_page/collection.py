"""The vectors of a table of features, all at once, and the videos that have none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hiera_video.errors import DataError
from hiera_video.features.describe import Vectors
from hiera_video.features.search import unit_rows
from hiera_video.features.settings import FeatureSettings
from hiera_video.features.table import read_batches, read_errors, read_settings
from hiera_video.files import AnyPath

MOST_POINTS = 50_000
"""Of a page: all of them are in its memory."""


@dataclass(frozen=True)
class Collection:
    """N vectors of V videos: one a video, or one a window."""

    table: str
    """The file, as it was named."""
    settings: FeatureSettings
    paths: Sequence[str]
    """[V], in the order of the table."""
    video_of: npt.NDArray[np.int64]
    """[N]: the video of each vector, 0 to V - 1."""
    spans: npt.NDArray[np.float64]
    """[N, 2]: start and end of what each vector describes, in seconds."""
    vectors: Vectors
    """float32 [N, D], scaled to length 1: near means alike by the cosine, as in a search."""
    failed: Sequence[tuple[str, str]]
    """(path, reason) of the videos that could not be described."""


def read_collection(table: AnyPath) -> Collection:
    """Read a table of features. Tokens are averaged: a vector of them has no place for itself.

    Raises DataError: no such table, no vectors in it, too many.
    """
    settings = read_settings(table)
    numbers: dict[str, int] = {}
    video_of: list[int] = []
    spans: list[tuple[float, float]] = []
    parts: list[Vectors] = []
    for batch in read_batches(table):
        video_of += [numbers.setdefault(path, len(numbers)) for path in batch.paths]
        if len(video_of) > MOST_POINTS:
            raise DataError(
                f"{table} has more than {MOST_POINTS:,} vectors, and a map shows no more; describe "
                "the videos with longer windows, or fewer of them"
            )
        spans += zip(batch.starts, batch.ends, strict=True)
        vectors = batch.vectors.reshape(len(batch.paths), -1, settings.shape[-1]).mean(axis=1)
        parts.append(unit_rows(vectors))
    failed = read_errors(table)
    if not parts:
        raise DataError(f"{table} has no vectors: all its {len(failed)} videos failed")
    return Collection(
        table=str(table),
        settings=settings,
        paths=list(numbers),
        video_of=np.asarray(video_of, dtype=np.int64),
        spans=np.asarray(spans, dtype=np.float64),
        vectors=np.concatenate(parts),
        failed=failed,
    )
