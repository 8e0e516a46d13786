"""Exact top-k items of one source for a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from recloop.recommend.filters import CandidateMask

DEPTH = 200
"""Items that a source contributes to the fusion."""


@dataclass(frozen=True)
class TopK:
    """Best items of one source, (B, n), by descending score.

    ``items`` are item_ix (0 = empty), ``scores`` float32 (-inf for empty entries).
    """

    items: np.ndarray
    scores: np.ndarray

    @classmethod
    def empty(cls, size: int, depth: int = DEPTH) -> TopK:
        scores = np.empty((size, depth), dtype=np.float32)
        scores.fill(-np.inf)
        return cls(np.zeros((size, depth), dtype=np.int32), scores)

    @classmethod
    def of_one(cls, items: np.ndarray, scores: np.ndarray, depth: int) -> TopK:
        """Return the list of a batch of one, from at most ``depth`` items (int32)."""
        if len(items) == depth:
            return cls(items[None], scores.astype(np.float32, copy=False)[None])
        recalled = cls.empty(1, depth)
        recalled.put(0, items, scores)
        return recalled

    def put(self, b: int, items: np.ndarray, scores: np.ndarray) -> None:
        """Store the list of query b, at most n items."""
        self.items[b, : len(items)] = items
        self.scores[b, : len(items)] = scores


def best_row(scores: np.ndarray, allowed: CandidateMask, b: int, depth: int = DEPTH) -> tuple[np.ndarray, np.ndarray]:
    """Return the best allowed items of query b by its (N+1,) scores.

    The result is item_ix and scores, descending, ties by item_ix.
    """
    columns = np.flatnonzero(allowed.mask)
    columns = columns[~np.isin(columns, allowed.banned[b], assume_unique=True)]
    allowed_scores = scores[columns]
    best = best_rows(allowed_scores, depth)
    return columns[best], allowed_scores[best]


def best_rows(scores: np.ndarray, depth: int) -> np.ndarray:
    """Return the rows of the ``depth`` largest scores, descending, ties by row."""
    rows = _top(scores, depth)
    order = np.lexsort((rows, -scores[rows]))
    return rows[order]


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
        recalled.put(row, *best_ranked(items[keep], values[keep], rank, depth))
    return recalled


def best_ranked(
    items: np.ndarray, values: np.ndarray, rank: np.ndarray, depth: int = DEPTH
) -> tuple[np.ndarray, np.ndarray]:
    """Return the items with the largest values, descending, ties by ``rank`` (N+1,).

    Items are distinct; at most ``depth`` are returned.
    """
    if len(items) > depth:
        border = np.partition(values, len(values) - depth)[len(values) - depth]
        above_border = values >= border  # all entries that tie at the border; ``rank`` breaks the ties
        items, values = items[above_border], values[above_border]
    order = np.lexsort((rank[items], -values))[:depth]
    return items[order], values[order]


class Workspace:
    """Arrays with one entry per item_ix, reused by the sources of one thread.

    Marking the few items of a query in them is cheaper than sorting the items.

    Attributes:
        flags, is_summed: (N+1,) bool, all False between calls.
        sums: (N+1,) float64, all 0 between calls.
    """

    def __init__(self, n_rows: int) -> None:
        self.flags = np.zeros(n_rows, dtype=bool)
        self.is_summed = np.zeros(n_rows, dtype=bool)
        self.sums = np.zeros(n_rows)
        self._slots = np.zeros(n_rows, dtype=np.int64)  # written before each use

    def is_allowed(self, items: np.ndarray, allowed: CandidateMask, b: int) -> np.ndarray:
        """Return (n,) bool: the items pass the mask and are not banned in query b."""
        is_allowed: np.ndarray = allowed.mask[items]
        banned = allowed.banned[b]
        if len(banned):
            self.flags[banned] = True
            is_allowed &= ~self.flags[items]
            self.flags[banned] = False
        return is_allowed

    def totals(self, items: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the distinct items (d,) int64 and the float64 sums of their values.

        Values are added in the order of the entries.
        """
        entries = np.arange(len(items))
        items = items.astype(np.int64)
        self._slots[items] = entries  # the last entry of an item stays
        distinct = items[self._slots[items] == entries]
        self._slots[distinct] = entries[: len(distinct)]
        return distinct, np.bincount(self._slots[items], weights=values, minlength=len(distinct))


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
