"""Exact top-k items of one source for a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from recloop.recommend.filters import CandidateMask

DEPTH = 200
"""Items that a source contributes to the fusion."""
MIN_ITEMS_PER_EXCLUSION = 20
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
    few_excluded = (len(allowed.mask) - len(columns)) * MIN_ITEMS_PER_EXCLUSION < len(allowed.mask)
    if few_excluded:  # score all rows except padding, then mask the few
        columns, table = np.arange(1, len(vectors)), vectors[1:]
    else:  # compress first, because many -inf make the partition slow
        table = vectors[columns]
    excluded = np.flatnonzero(~allowed.mask[1:]) if few_excluded else np.zeros(0, dtype=np.int64)
    scores = users @ table.T
    for row, owner in enumerate(owners):
        banned = np.searchsorted(columns, allowed.banned[owner])
        in_table = banned < len(columns)
        in_table[in_table] = columns[banned[in_table]] == allowed.banned[owner][in_table]
        scores[row, banned[in_table]] = -np.inf
        scores[row, excluded] = -np.inf
        best = _top(scores[row], min(depth, len(columns)))
        best = best[scores[row, best] > -np.inf]
        # A float32 product depends on its batch, so the kept items are rescored alone.
        best_scores = table[best] @ users[row]
        order = np.lexsort((columns[best], -best_scores))
        recalled.items[owner, : len(best)] = columns[best][order]
        recalled.scores[owner, : len(best)] = best_scores[order]
    return recalled


def best_row(scores: np.ndarray, allowed: CandidateMask, b: int, depth: int = DEPTH) -> tuple[np.ndarray, np.ndarray]:
    """Return the best allowed items of query b by its (N+1,) scores.

    The result is item_ix and scores, descending, ties by item_ix.
    """
    columns = np.flatnonzero(allowed.mask)
    columns = columns[~np.isin(columns, allowed.banned[b], assume_unique=True)]
    allowed_scores = scores[columns]
    best = _top(allowed_scores, min(depth, len(columns))) if len(columns) else columns
    order = np.lexsort((columns[best], -allowed_scores[best]))
    return columns[best][order], allowed_scores[best][order]


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
            above_border = values >= border  # all entries that tie at the border; ``rank`` breaks the ties
            items, values = items[above_border], values[above_border]
        order = np.lexsort((rank[items], -values))[:depth]
        recalled.items[row, : len(order)] = items[order]
        recalled.scores[row, : len(order)] = values[order]
    return recalled


def best_listed(order: np.ndarray, size: int, allowed: CandidateMask, depth: int = DEPTH) -> TopK:
    """Return the first allowed items of one shared list, scored by rank."""
    recalled = TopK.empty(size, depth)
    allowed_items = order[allowed.mask[order]]
    for row in range(size):
        banned = allowed.banned[row]
        best = allowed_items[: depth + len(banned)]
        if len(banned):
            best = best[~np.isin(best, banned)]
        best = best[:depth]
        recalled.items[row, : len(best)] = best
        recalled.scores[row, : len(best)] = 1.0 / np.arange(1, len(best) + 1)
    return recalled


def _top(scores: np.ndarray, depth: int) -> np.ndarray:
    """Return the indices of the ``depth`` largest scores and of ties with the last."""
    if depth >= len(scores):
        return np.arange(len(scores))
    border = np.partition(scores, len(scores) - depth)[len(scores) - depth]
    if border == -np.inf:
        return np.flatnonzero(scores > border)
    largest = np.flatnonzero(scores >= border)
    if len(largest) > depth:  # ties at the border: the smaller index stays
        above = largest[scores[largest] > border]
        largest = np.concatenate([above, largest[scores[largest] == border][: depth - len(above)]])
    return largest
