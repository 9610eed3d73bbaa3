"""Decomposed relative positions (MViTv2, arXiv 2112.01526), added to the attention scores.

Each axis has a table of one vector per distance between a query and a key. A score gets the dot
product of its query with the vectors of its distances along time, rows and columns:

    E[q, k] = Q[q] . (R_t[t_q, t_k] + R_h[y_q, y_k] + R_w[x_q, x_k])

Where keys are pooled coarser than queries, or the other way round, distances are counted on the
finer of the two grids. The tables belong to a block and are shared by its heads.

Shapes: B batch, h heads, d channels of a head, Nq queries, Nk keys.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

AXES = {1: "w", 2: "hw", 3: "thw"}
"""Letters of the axes by the number of dimensions; a table is called rel_pos_ and its letter."""

_LETTERS = "xyz"


def table_length(queries: int, keys: int) -> int:
    """Return the number of distances between `queries` and `keys` positions along one axis."""
    return 2 * max(queries, keys) - 1


def distance_index(queries: int, keys: int) -> Tensor:
    """Return the row of an axis' table for each pair of positions: int64 [queries, keys]."""
    per_query, per_key = max(keys / queries, 1.0), max(queries / keys, 1.0)
    at_query = torch.arange(queries)[:, None] * per_query
    at_key = torch.arange(keys)[None, :] * per_key
    return (at_query - at_key + (keys - 1) * per_key).long()


def relative_bias(
    queries: Tensor, tables: Sequence[Tensor], indices: Sequence[Tensor], *, cls: bool
) -> Tensor:
    """Return what relative positions add to the attention scores, from unscaled queries.

    Args:
        queries: [B, h, Nq, d], in raster order; a class token before them if `cls`.
        tables: one [L, d] for each axis, slowest axis first.
        indices: for each axis, `distance_index` of its length in queries and in keys.
        cls: whether the first query and the first key are a class token, which has no position.

    Returns:
        [B, h, Nq, Nk], zero for the class token.
    """
    q = queries[:, :, 1:] if cls else queries
    q = q.unflatten(2, [index.shape[0] for index in indices])
    axes = _LETTERS[: len(tables)]
    parts = []
    for i, (table, index) in enumerate(zip(tables, indices, strict=True)):
        part = torch.einsum(f"bh{axes}c,{axes[i]}kc->bh{axes}k", q, table[index])
        # (B, h, *queries, *keys), of length 1 along the other axes' keys
        parts.append(part.unflatten(-1, [-1 if j == i else 1 for j in range(len(tables))]))
    bias = functools.reduce(torch.add, parts)
    bias = bias.flatten(2 + len(tables)).flatten(2, -2)
    return F.pad(bias, (1, 0, 1, 0)) if cls else bias
