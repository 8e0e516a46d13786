"""Rows of neighbours: counts of pairs of items, cut to the largest of a row."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

import numpy as np
import scipy.sparse as sp

from recloop import jit

BLOCK_PRODUCTS = 8_000_000
"""Multiply-adds of one block of rows; bounds the memory of its entries."""
THREADS: Final = 2
"""Threads that compute blocks; loops run beside each other."""


class PairCounts(NamedTuple):
    """Counts of pairs of items: ``groups @ items``.

    Attributes:
        groups: (N+1, G) the groups of each item: moments, baskets or users. Its values are 1.
        items: (G, N+1) weights of the items that count for a group, at least 0.
        n_ordered: The first groups whose pairs have an order, so that an item may be its own neighbour.
    """

    groups: sp.csr_array
    items: sp.csr_array
    n_ordered: int = 0


def nearest(counts: PairCounts, width: int, shrink: float, norms: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return the three ``neighbours.*`` arrays of the largest entries of each row.

    A row keeps ``width`` entries. An entry is a count divided by (the sum of its row + ``shrink``), or, with ``norms`` (N+1,), by (the product of the
    norms of both items + ``shrink``). Of equal entries at the end of a row the smaller columns are kept. Entries of a row
    are in the order of their columns.
    """
    groups, items = counts.groups, counts.items
    items.eliminate_zeros()
    n_products = products(groups, items)
    arrays = (
        groups.indptr.astype(np.int64), groups.indices.astype(np.int32, copy=False),
        items.indptr.astype(np.int64), items.indices.astype(np.int32, copy=False), items.data,
        np.zeros(0) if norms is None else norms,
    )  # fmt: skip

    def block(rows: slice) -> sp.csr_array:
        bound = int(np.minimum(n_products[rows], width).sum())
        lengths = np.empty(rows.stop - rows.start, dtype=np.int32)
        ids, weights = np.empty(bound, dtype=np.int32), np.empty(bound, dtype=np.float32)
        size = write_rows(lengths, ids, weights, rows.start, width, shrink, counts.n_ordered, *arrays)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        entries = sp.csr_array((weights[:size], ids[:size], offsets), shape=(len(lengths), items.shape[1]))
        return sp.csr_array(entries.tocsc().tocsr())  # two passes that count are faster than a sort of each row

    with ThreadPoolExecutor(THREADS) as pool:
        return to_arrays(list(pool.map(block, _blocks(n_products))))


def to_arrays(blocks: Sequence[sp.csr_array]) -> dict[str, np.ndarray]:
    """Return the three ``neighbours.*`` arrays of the rows of all blocks.

    These are ``indptr`` (N+2,) int32 (int64 from 2^31 entries), ``ids`` int32 and ``weights`` float32.
    """
    rows = sp.csr_array(sp.vstack(blocks, format="csr"))
    return {
        "neighbours.indptr": rows.indptr.astype(np.int32 if rows.nnz < 2**31 else np.int64),
        "neighbours.ids": rows.indices.astype(np.int32),
        "neighbours.weights": rows.data.astype(np.float32),
    }


def _blocks(n_products: np.ndarray) -> list[slice]:
    """Divide rows into blocks of at most `BLOCK_PRODUCTS`, or of one row."""
    work = np.concatenate([[0], np.cumsum(n_products)])
    blocks: list[slice] = []
    start = 0
    while start < len(n_products):
        stop = int(np.searchsorted(work, work[start] + BLOCK_PRODUCTS, side="right")) - 1
        blocks.append(slice(start, max(start + 1, stop)))
        start = blocks[-1].stop
    return blocks


def products(groups: sp.csr_array, items: sp.csr_array) -> np.ndarray:
    """(rows,) multiply-adds for each row of ``groups @ items``."""
    lengths = np.diff(items.indptr)
    return np.asarray(
        np.add.reduceat(np.append(lengths[groups.indices], 0), groups.indptr[:-1]) * (np.diff(groups.indptr) > 0)
    )


@jit.compiled(
    jit.INTEGER, jit.written(jit.INT32), jit.written(jit.INT32), jit.written(jit.FLOAT32), jit.INTEGER, jit.INTEGER,
    jit.REAL, jit.INTEGER, jit.INT64, jit.INT32, jit.INT64, jit.INT32, jit.FLOAT64, jit.FLOAT64,
)  # fmt: skip
def write_rows(
    lengths: np.ndarray, ids: np.ndarray, weights: np.ndarray, first: int, width: int, shrink: float, n_ordered: int,
    group_offsets: np.ndarray, groups: np.ndarray, item_offsets: np.ndarray, items: np.ndarray, counts: np.ndarray,
    norms: np.ndarray,
) -> int:  # fmt: skip
    """Write rows from ``first`` on, as many as ``lengths``; return their entries.

    The entries of a row are in any order.
    """
    n_items = len(group_offsets) - 1
    sums, values = np.zeros(n_items), np.empty(n_items)
    found, ties = np.empty(n_items + 1, dtype=np.int32), np.empty(n_items, dtype=np.int32)
    size = 0
    for row in range(first, first + len(lengths)):
        n_found = 0
        for group in groups[group_offsets[row] : group_offsets[row + 1]]:
            left_out = -1 if group < n_ordered else row
            for entry in range(item_offsets[group], item_offsets[group + 1]):
                item = items[entry]
                if item != left_out:
                    known = sums[item]
                    found[n_found] = item
                    n_found += known == 0.0  # a branch would be mispredicted
                    sums[item] = known + counts[entry]
        total = 0.0
        for item in found[:n_found][::-1]:
            total += sums[item]
        divisor = total + shrink
        if len(norms):
            divisor = 1.0
            for item in found[:n_found]:
                sums[item] /= norms[row] * norms[item] + shrink
        n_kept = keep_largest(ids[size:], ties, values, found[:n_found], sums, width)
        for place in range(size, size + n_kept):
            weights[place] = np.float32(sums[ids[place]] / divisor)
        for item in found[:n_found]:
            sums[item] = 0.0
        lengths[row - first] = n_kept
        size += n_kept
    return size


@jit.step
def keep_largest(
    kept: np.ndarray, ties: np.ndarray, values: np.ndarray, found: np.ndarray, sums: np.ndarray, width: int
) -> int:
    """Write the items with the largest sums, at most ``width``; return how many.

    Of equal ones the smallest are written.
    """
    n_found, n_kept, n_ties = len(found), 0, 0
    if n_found <= width:
        kept[:n_found] = found
        return n_found
    for place in range(n_found):
        values[place] = sums[found[place]]
    border = ranked(values[:n_found], n_found - width)
    for item in found:
        if sums[item] > border:
            kept[n_kept] = item
            n_kept += 1
        elif sums[item] == border:
            ties[n_ties] = item
            n_ties += 1
    if n_kept + n_ties > width:
        ties[:n_ties].sort()
    kept[n_kept:width] = ties[: width - n_kept]
    return width


@jit.step
def ranked(values: np.ndarray, rank: int) -> float:
    """Return the value of a rank, counted from 0 at the smallest.

    Reorders the values.

    numpy's partition, as numba compiles it, takes twice as long: it expects NaN.
    """
    first, last = 0, len(values) - 1
    while first < last:
        pivot = values[(first + last) // 2]
        low, high = first, last
        while low <= high:
            while values[low] < pivot:
                low += 1
            while values[high] > pivot:
                high -= 1
            if low <= high:
                values[low], values[high] = values[high], values[low]
                low += 1
                high -= 1
        if rank <= high:
            last = high
        elif rank >= low:
            first = low
        else:
            break
    return float(values[rank])
