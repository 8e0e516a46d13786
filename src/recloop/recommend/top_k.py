"""Exact top-k items of one source for a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from recloop.recommend.filters import CandidateMask

DEPTH = 200
"""Items that a source contributes to the fusion."""
SPARED = 20
"""If at most one item in this many is excluded, scoring the whole table is cheaper than a copy."""


@dataclass(frozen=True)
class TopK:
    """Best items of one source, (B, n), by descending score.

    ``items`` are item_ix (0 = empty), ``scores`` float32 (-inf for empty entries).
    """

    items: np.ndarray
    scores: np.ndarray

    @classmethod
    def empty(cls, size: int, depth: int = DEPTH) -> TopK:
        return cls(np.zeros((size, depth), dtype=np.int32), np.full((size, depth), -np.inf, dtype=np.float32))


def best_dense(
    vectors: np.ndarray, users: np.ndarray, owners: np.ndarray, size: int, allowed: CandidateMask, depth: int = DEPTH
) -> TopK:
    """Return the largest inner products of user vectors with allowed items.

    Ties are ordered by item_ix.

    Args:
        vectors: (N+1, D) float32 item table, row 0 is padding.
        users: (b, D) float32 vectors of the queries ``owners`` (b,); the other of ``size`` queries get empty lists.
    """
    recalled = TopK.empty(size, depth)
    if not len(users):
        return recalled
    columns = np.flatnonzero(allowed.mask)
    few_out = (len(allowed.mask) - len(columns)) * SPARED < len(allowed.mask)
    if few_out:  # score all rows except padding, then mask the few
        columns, table = np.arange(1, len(vectors)), vectors[1:]
    else:  # compress first, because many -inf make the partition slow
        table = vectors[columns]
    out = np.flatnonzero(~allowed.mask[1:]) if few_out else np.zeros(0, dtype=np.int64)
    scores = users @ table.T
    for row, owner in enumerate(owners):
        banned = np.searchsorted(columns, allowed.banned[owner])
        hit = banned < len(columns)
        hit[hit] = columns[banned[hit]] == allowed.banned[owner][hit]
        scores[row, banned[hit]] = -np.inf
        scores[row, out] = -np.inf
        place = _top(scores[row], min(depth, len(columns)))
        place = place[scores[row, place] > -np.inf]
        # A float32 product depends on its batch, so the kept items are rescored alone.
        alone = table[place] @ users[row]
        order = np.lexsort((columns[place], -alone))
        recalled.items[owner, : len(place)] = columns[place][order]
        recalled.scores[owner, : len(place)] = alone[order]
    return recalled


def best_row(scores: np.ndarray, allowed: CandidateMask, b: int, depth: int = DEPTH) -> tuple[np.ndarray, np.ndarray]:
    """Return the best allowed items of query b by its (N+1,) scores.

    The result is item_ix and scores, descending, ties by item_ix.
    """
    columns = np.flatnonzero(allowed.mask)
    columns = columns[~np.isin(columns, allowed.banned[b], assume_unique=True)]
    kept = scores[columns]
    place = _top(kept, min(depth, len(columns))) if len(columns) else columns
    order = np.lexsort((columns[place], -kept[place]))
    return columns[place][order], kept[place][order]


def best_sparse(scores: sp.csr_array, allowed: CandidateMask, rank: np.ndarray, depth: int = DEPTH) -> TopK:
    """Return the largest positive entries of each row, ties by ``rank`` (N+1,).

    ``rank`` is the rank in training popularity. Entries are compared in their stored precision; returned scores are
    float32.
    """
    recalled = TopK.empty(scores.shape[0], depth)
    for row in range(scores.shape[0]):
        span = slice(scores.indptr[row], scores.indptr[row + 1])
        items, values = scores.indices[span], scores.data[span]
        keep = allowed.mask[items] & (values > 0)
        if len(allowed.banned[row]):
            keep &= ~np.isin(items, allowed.banned[row])
        items, values = items[keep], values[keep]
        if len(items) > depth:
            border = np.partition(values, len(values) - depth)[len(values) - depth]
            inside = values >= border  # all entries that tie at the border; ``rank`` breaks the ties
            items, values = items[inside], values[inside]
        order = np.lexsort((rank[items], -values))[:depth]
        recalled.items[row, : len(order)] = items[order]
        recalled.scores[row, : len(order)] = values[order]
    return recalled


def best_listed(order: np.ndarray, size: int, allowed: CandidateMask, depth: int = DEPTH) -> TopK:
    """Return the first allowed items of one shared list, scored by rank."""
    recalled = TopK.empty(size, depth)
    shown = order[allowed.mask[order]]
    for row in range(size):
        banned = allowed.banned[row]
        first = shown[: depth + len(banned)]
        if len(banned):
            first = first[~np.isin(first, banned)]
        first = first[:depth]
        recalled.items[row, : len(first)] = first
        recalled.scores[row, : len(first)] = 1.0 / np.arange(1, len(first) + 1)
    return recalled


def _top(scores: np.ndarray, depth: int) -> np.ndarray:
    """Return the indices of the ``depth`` largest scores and of ties with the last."""
    if depth >= len(scores):
        return np.arange(len(scores))
    border = np.partition(scores, len(scores) - depth)[len(scores) - depth]
    if border == -np.inf:
        return np.flatnonzero(scores > border)
    places = np.flatnonzero(scores >= border)
    if len(places) > depth:  # ties at the border: the smaller index stays
        above = places[scores[places] > border]
        places = np.concatenate([above, places[scores[places] == border][: depth - len(above)]])
    return places
