"""Totals and rankings of many queries in one pass, for the sources that count.

The lists are those of one query at a time: an item's values are added in the order of the entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import scipy.sparse as sp
from scipy.sparse._sparsetools import csc_matvec

from recloop.recommend.filters import CandidateMask
from recloop.recommend.score_keys import MAX_RANK, RANK_BITS, rank_keys
from recloop.recommend.top_k import TopK

QUERIES_PER_STEP = 64
"""Queries whose entries are in memory at once."""
MAX_DENSE_SCORES = 1 << 18
"""Scores of all items that are in memory at once; 2 MiB stay in the cache of a core."""
DENSE_SHARE = 0.5
"""Entries per item and query from which adding to all items is faster than a sparse product."""


def steps(n_queries: int, size: int = QUERIES_PER_STEP) -> Iterator[slice]:
    """Yield the spans of at most ``size`` queries."""
    for start in range(0, n_queries, size):
        yield slice(start, min(start + size, n_queries))


def spread(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the concatenated ranges of ``lengths`` integers from each of ``starts``."""
    ends = np.cumsum(lengths)
    n_all = int(ends[-1]) if len(ends) else 0
    positions: np.ndarray = np.arange(n_all) + np.repeat(starts - ends + lengths, lengths)
    return positions


def distinct(keys: np.ndarray) -> np.ndarray:
    """Return the distinct integers, ascending.

    Sorting is faster than the hash table of `numpy.unique`.
    """
    ascending = np.sort(keys)
    is_first = np.ones(len(keys), dtype=bool)
    np.not_equal(ascending[1:], ascending[:-1], out=is_first[1:])
    first: np.ndarray = ascending[is_first]
    return first


def totals(offsets: np.ndarray, items: np.ndarray, values: np.ndarray, n_rows: int) -> sp.csr_array:
    """Sum the values of each query's items: (B, n_rows) float64.

    Args:
        offsets: (B+1,) query b owns the entries ``offsets[b]:offsets[b + 1]``.
        items: (E,) item_ix. values: (E,) float64; an item's values are added in the order of the entries.
    """
    n_entries = len(items)
    of_query = sp.csr_array((np.ones(n_entries), np.arange(n_entries), offsets), shape=(len(offsets) - 1, n_entries))
    of_entry = sp.csr_array((values, items, np.arange(n_entries + 1)), shape=(n_entries, n_rows))
    return sp.csr_array(of_query @ of_entry)  # a factor of 1 is exact


class SummedRows:
    """Sums of stored rows over all items, for many queries with long histories.

    A product of a sparse matrix (N+1, columns) and a vector adds one column after the other. The columns of a query are its
    items' rows, in place: the entries lie in memory from the last row to the first, so that each column ends after the next
    one begins, and a column between the two is empty.

    Args:
        indptr: (N+2,) offsets of the rows. ids: (E,) int32. weights: (E,).
    """

    def __init__(self, indptr: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> None:
        self._n_rows = len(indptr) - 1
        self._stops = len(ids) - indptr.astype(np.int64)  # (N+2,) row i: stops[i + 1] to stops[i]
        self._ids = ids[::-1].astype(np.int32)
        self._weights = weights[::-1].astype(np.float64)

    def totals(self, offsets: np.ndarray, items: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the (B, N+1) float64 sums of the rows of each query's items.

        Rows are added in the order of the items.

        Args:
            offsets: (B+1,) query b owns ``items[offsets[b]:offsets[b + 1]]``, which ascend.
            items: (E,) item_ix. weights: (E,) float64.
        """
        borders = np.stack([self._stops[items + 1], self._stops[items]], axis=1).astype(np.int32).ravel()
        factors = np.stack([weights, np.zeros(len(weights))], axis=1).ravel()
        sums = np.zeros((len(offsets) - 1, self._n_rows))
        for row, (low, high) in zip(sums, pairwise((2 * offsets).tolist()), strict=True):
            if high > low:
                columns = borders[low:high], self._ids, self._weights
                csc_matvec(self._n_rows, high - low - 1, *columns, factors[low : high - 1], row)
        return sums


def put_best(
    recalled: TopK, scores: sp.csr_array, allowed: CandidateMask, rank: np.ndarray, order: np.ndarray, rows: slice
) -> None:
    """Store the best allowed items of the queries ``rows``, ties by ``rank``.

    Args:
        scores: (rows, N+1) float64 with a significand of 24 bits; only entries above 0 count.
        rank: (N+1,) rank in training popularity. order: (N,) the item_ix of each rank.
    """
    items, values = scores.indices, scores.data
    is_kept = (values > 0) & allowed.mask[items]
    for number, banned in enumerate(allowed.banned[rows]):
        if len(banned):
            span = slice(scores.indptr[number], scores.indptr[number + 1])
            is_kept[span] &= ~np.isin(items[span], banned)
    borders = _borders(values, scores.indptr, is_kept, recalled.items.shape[1])
    is_kept &= values >= np.repeat(borders, np.diff(scores.indptr))
    entries = np.flatnonzero(is_kept)
    if not len(entries):
        return
    offsets = np.searchsorted(entries, scores.indptr)
    lengths = np.diff(offsets)
    table = np.zeros((len(lengths), int(lengths.max())), dtype=np.int64)  # 0: an empty entry
    row = np.repeat(np.arange(len(lengths)), lengths)
    table[row, np.arange(len(entries)) - offsets[row]] = values[entries].view(np.int64) | rank_keys(
        rank[items[entries]]
    )
    _put_keys(recalled, table, order, rows)


def _borders(values: np.ndarray, offsets: np.ndarray, is_kept: np.ndarray, depth: int) -> np.ndarray:
    """Return the ``depth``-th largest kept value of each row, (B,); -inf without it.

    Args:
        values: (E,) float64, row after row. offsets: (B+1,). is_kept: (E,) bool.
    """
    borders = np.full(len(offsets) - 1, -np.inf)
    for number, (low, high) in enumerate(pairwise(offsets.tolist())):
        if high - low > depth:
            row = values[low:high][is_kept[low:high]]
            if len(row) > depth:
                borders[number] = np.partition(row, len(row) - depth)[len(row) - depth]
    return borders


def put_best_dense(
    recalled: TopK, scores: np.ndarray, allowed: CandidateMask, rank: np.ndarray, order: np.ndarray, rows: slice
) -> None:
    """Store the lists of `put_best` for dense scores (rows, N+1)."""
    keys = scores.view(np.int64) | rank_keys(rank)
    keys[:, 0 if allowed.is_all else ~allowed.mask] = 0
    for number, banned in enumerate(allowed.banned[rows]):
        keys[number, banned] = 0
    _put_keys(recalled, keys, order, rows)


def _put_keys(recalled: TopK, keys: np.ndarray, order: np.ndarray, rows: slice) -> None:
    """Store the items of the largest keys (rows, n).

    A key without a score has at most `RANK_BITS` bits.
    """
    depth = min(recalled.items.shape[1], keys.shape[1])
    if depth < keys.shape[1]:
        keys = np.partition(keys, keys.shape[1] - depth, axis=1)[:, keys.shape[1] - depth :]
    best = np.sort(keys, axis=1)[:, ::-1]
    is_item = best >= 1 << RANK_BITS
    ranks = MAX_RANK - (best & MAX_RANK)
    recalled.items[rows, :depth] = np.where(is_item, order[np.where(is_item, ranks, 0)], 0)
    values = (best >> RANK_BITS << RANK_BITS).view(np.float64)
    recalled.scores[rows, :depth] = np.where(is_item, values, -np.inf)
