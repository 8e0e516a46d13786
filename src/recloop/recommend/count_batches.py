"""Sums by item of many queries, and the best of them, for the sources that count.

The lists are those of one query at a time: an item's values are added in the order of the entries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from recloop import jit
from recloop.recommend.filters import CandidateMask
from recloop.recommend.top_k import TopK, Workspace

QUERIES_PER_STEP = 64
"""Queries whose entries are in memory at once."""


def steps(n_queries: int) -> Iterator[slice]:
    """Yield the spans of at most `QUERIES_PER_STEP` queries."""
    for start in range(0, n_queries, QUERIES_PER_STEP):
        yield slice(start, min(start + QUERIES_PER_STEP, n_queries))


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


def put_best_totals(
    recalled: TopK, queries: slice, offsets: np.ndarray, items: np.ndarray, values: np.ndarray, allowed: CandidateMask,
    rank: np.ndarray, workspace: Workspace,
) -> None:  # fmt: skip
    """Store the allowed items of some queries by the sum of their values.

    Sums are rounded to 24 bits; only those above 0 count. Ties are ordered by ``rank``.

    Args:
        offsets: (B+1,) query b owns the entries ``offsets[b]:offsets[b + 1]``.
        items: (E,) int32 item_ix. values: (E,) float64.
        rank: (N+1,) int32 rank in training popularity.
    """
    banned, banned_offsets = joined(allowed.banned[queries])
    write_totals(
        recalled.items[queries], recalled.scores[queries], offsets, items, values, allowed.mask, banned, banned_offsets, rank,
        workspace.flags, workspace.sums, workspace.is_summed,
    )  # fmt: skip


def joined(banned: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the banned items (int32) of all queries, and their offsets (B+1,)."""
    return np.concatenate(banned), np.cumsum([0, *map(len, banned)])


@jit.step
def _is_worse(items: np.ndarray, scores: np.ndarray, one: int, other: int, rank: np.ndarray) -> bool:
    """Return whether a slot of a list is behind another.

    Its score is lower, or the same with a later rank.
    """
    if scores[one] != scores[other]:
        return bool(scores[one] < scores[other])
    return bool(rank[items[one]] > rank[items[other]])


@jit.step
def _swap(items: np.ndarray, scores: np.ndarray, one: int, other: int) -> None:
    items[one], items[other] = items[other], items[one]
    scores[one], scores[other] = scores[other], scores[one]


@jit.step
def _sift_down(items: np.ndarray, scores: np.ndarray, size: int, rank: np.ndarray) -> None:
    """Move the root of a heap, whose worst item is the root, down to its place."""
    slot = 0
    while 2 * slot + 1 < size:
        child = 2 * slot + 1
        if child + 1 < size and _is_worse(items, scores, child + 1, child, rank):
            child += 1
        if not _is_worse(items, scores, child, slot, rank):
            return
        _swap(items, scores, slot, child)
        slot = child


@jit.step
def push(items: np.ndarray, scores: np.ndarray, size: int, item: int, score: float, rank: np.ndarray) -> int:
    """Add an item to a heap of the best items; return its size.

    A full heap drops its worst item.
    """
    if size == len(items):
        if score < scores[0] or (score == scores[0] and rank[item] > rank[items[0]]):
            return size
        items[0], scores[0] = item, score
        _sift_down(items, scores, size, rank)
        return size
    slot = size
    items[slot], scores[slot] = item, score
    while slot and _is_worse(items, scores, slot, (slot - 1) // 2, rank):
        _swap(items, scores, slot, (slot - 1) // 2)
        slot = (slot - 1) // 2
    return size + 1


@jit.step
def sort_heap(items: np.ndarray, scores: np.ndarray, size: int, rank: np.ndarray) -> None:
    """Order the items of a heap, the best first."""
    while size > 1:
        size -= 1
        _swap(items, scores, 0, size)
        _sift_down(items, scores, size, rank)


@jit.compiled(
    None, jit.written(jit.INT32_2D), jit.written(jit.FLOAT32_2D), jit.INT64, jit.INT32, jit.FLOAT64, jit.BOOL, jit.INT32,
    jit.INT64, jit.INT32, jit.written(jit.BOOL), jit.written(jit.FLOAT64), jit.written(jit.BOOL),
)  # fmt: skip
def write_totals(
    lists: np.ndarray, scores: np.ndarray, offsets: np.ndarray, items: np.ndarray, values: np.ndarray, mask: np.ndarray,
    banned: np.ndarray, banned_offsets: np.ndarray, rank: np.ndarray, flags: np.ndarray, sums: np.ndarray,
    is_summed: np.ndarray,
) -> None:  # fmt: skip
    """Write the lists (B, k) of `put_best_totals`.

    Args:
        flags, sums, is_summed: Attributes of `Workspace`.
    """
    touched, best = np.empty(len(sums) + 1, dtype=np.int32), np.empty(lists.shape[1])
    for query in range(len(offsets) - 1):
        of_query, listed = banned[banned_offsets[query] : banned_offsets[query + 1]], lists[query]
        for item in of_query:
            flags[item] = True
        n_touched = size = 0
        for entry in range(offsets[query], offsets[query + 1]):
            item = items[entry]
            sums[item] += values[entry]
            touched[n_touched] = item
            n_touched += not is_summed[item]  # no branch, which the processor could not predict
            is_summed[item] = True
        for number in range(n_touched):
            item = touched[number]
            mantissa, exponent = math.frexp(sums[item])
            score = math.ldexp(np.float64(np.float32(mantissa)), exponent)
            sums[item], is_summed[item] = 0.0, False
            if score > 0 and mask[item] and not flags[item] and (size < len(best) or score >= best[0]):
                size = push(listed, best, size, item, score, rank)
        sort_heap(listed, best, size, rank)
        for slot in range(size):
            scores[query, slot] = best[slot]
        for item in of_query:
            flags[item] = False


@jit.step
def sum_rows(
    items: np.ndarray, weights: np.ndarray, indptr: np.ndarray, ids: np.ndarray, row_weights: np.ndarray, touched: np.ndarray,
    sums: np.ndarray, is_summed: np.ndarray,
) -> int:  # fmt: skip
    """Add the stored rows of some items, each times its weight.

    Returns the number of neighbours, which are in ``touched``.
    """
    n_touched = 0
    for entry in range(len(items)):
        weight = weights[entry]
        for place in range(indptr[items[entry]], indptr[items[entry] + 1]):
            item = ids[place]
            sums[item] += row_weights[place] * weight
            touched[n_touched] = item
            n_touched += not is_summed[item]  # no branch, which the processor could not predict
            is_summed[item] = True
    return n_touched


@jit.compiled(
    None, jit.written(jit.INT32_2D), jit.written(jit.FLOAT32_2D), jit.INT64, jit.INT64, jit.FLOAT64, jit.INT64, jit.INT32,
    jit.FLOAT32, jit.BOOL, jit.INT32, jit.INT64, jit.INT32, jit.written(jit.BOOL), jit.written(jit.FLOAT64),
    jit.written(jit.BOOL),
)  # fmt: skip
def write_neighbours(
    lists: np.ndarray, scores: np.ndarray, offsets: np.ndarray, items: np.ndarray, weights: np.ndarray, indptr: np.ndarray,
    ids: np.ndarray, row_weights: np.ndarray, mask: np.ndarray, banned: np.ndarray, banned_offsets: np.ndarray,
    rank: np.ndarray, flags: np.ndarray, sums: np.ndarray, is_summed: np.ndarray,
) -> None:  # fmt: skip
    """Write the lists (B, k) of neighbours by the sum of their weights.

    Sums are rounded to float32; only those above 0 count.

    Args:
        items: (E,) ascending items of each query. weights: (E,). indptr, ids, row_weights: The stored rows.
    """
    touched, best = np.empty(len(sums) + 1, dtype=np.int32), np.empty(lists.shape[1])
    for query in range(len(offsets) - 1):
        of_query, listed = banned[banned_offsets[query] : banned_offsets[query + 1]], lists[query]
        for item in of_query:
            flags[item] = True
        size = 0
        first, stop = offsets[query], offsets[query + 1]
        n_touched = sum_rows(items[first:stop], weights[first:stop], indptr, ids, row_weights, touched, sums, is_summed)
        for number in range(n_touched):
            item = touched[number]
            score = np.float64(np.float32(sums[item]))
            sums[item], is_summed[item] = 0.0, False
            if score > 0 and item > 0 and mask[item] and not flags[item] and (size < len(best) or score >= best[0]):
                size = push(listed, best, size, item, score, rank)
        sort_heap(listed, best, size, rank)
        for slot in range(size):
            scores[query, slot] = best[slot]
        for item in of_query:
            flags[item] = False


@jit.compiled(
    jit.INTEGER, jit.written(jit.INT32), jit.written(jit.FLOAT64), jit.INT64, jit.FLOAT64, jit.INT64, jit.INT32, jit.FLOAT32,
    jit.written(jit.FLOAT64), jit.written(jit.BOOL),
)  # fmt: skip
def write_scores(
    neighbours: np.ndarray, scores: np.ndarray, items: np.ndarray, weights: np.ndarray, indptr: np.ndarray, ids: np.ndarray,
    row_weights: np.ndarray, sums: np.ndarray, is_summed: np.ndarray,
) -> int:  # fmt: skip
    """Write all neighbours of some items; return their number.

    Scores are those of `write_neighbours`.
    """
    n_touched = sum_rows(items, weights, indptr, ids, row_weights, neighbours, sums, is_summed)
    n_written = 0
    for number in range(n_touched):
        item = neighbours[number]
        score = np.float64(np.float32(sums[item]))
        sums[item], is_summed[item] = 0.0, False
        if score > 0 and item > 0:
            neighbours[n_written], scores[n_written] = item, score
            n_written += 1
    return n_written
