"""Rows of neighbours: sparse products, cut to the largest entries of a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.sparse as sp

BLOCK_PRODUCTS = 30_000_000  # multiply-adds per block; bounds memory
THREADS = 2
"""Threads that compute blocks; scipy's products release the GIL."""
STEP_ENTRIES = 2**20  # entries that are compared with their row's border at a time


def in_blocks(
    n_products: np.ndarray, rows_of: Callable[[slice], sp.csr_array], threads: int = THREADS
) -> dict[str, np.ndarray]:
    """Compute blocks of rows in threads; return the arrays of all rows.

    Args:
        n_products: (rows,) multiply-adds of each row, `products`.
        rows_of: Function of the rows start to stop that returns them; a row must not depend on its block.
    """
    work = np.concatenate([[0], np.cumsum(n_products)])
    spans: list[slice] = []
    start = 0
    while start < len(n_products):
        end = int(np.searchsorted(work, work[start] + BLOCK_PRODUCTS, side="right"))
        spans.append(slice(start, max(start + 1, end - 1)))
        start = spans[-1].stop
    with ThreadPoolExecutor(threads) as pool:
        return to_arrays(list(pool.map(rows_of, spans)))


def narrow(matrix: sp.csr_array) -> sp.csr_array:
    """Return a matrix with int32 indices, if they suffice, for faster products."""
    if matrix.nnz < 2**31 and max(matrix.shape) < 2**31:
        matrix.indices, matrix.indptr = matrix.indices.astype(np.int32), matrix.indptr.astype(np.int32)
    return matrix


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


def products(left: sp.csr_array, right: sp.csr_array) -> np.ndarray:
    """(rows,) multiply-adds for each row of ``left @ right``."""
    lengths = np.diff(right.indptr)
    return np.asarray(
        np.add.reduceat(np.append(lengths[left.indices], 0), left.indptr[:-1]) * (np.diff(left.indptr) > 0)
    )


def largest(block: sp.csr_array, width: int, divisors: np.ndarray) -> sp.csr_array:
    """``width`` largest entries of each row over its divisor (rows,), by column."""
    borders = _borders(block, width)
    lengths = np.zeros(block.shape[0], dtype=np.int64)
    columns, weights = [], []
    start = 0
    while start < block.shape[0]:
        end = np.searchsorted(block.indptr, block.indptr[start] + STEP_ENTRIES, side="right")
        rows = slice(start, max(start + 1, int(end) - 1))
        span = slice(block.indptr[rows.start], block.indptr[rows.stop])
        row = np.repeat(np.arange(rows.start, rows.stop), np.diff(block.indptr[rows.start : rows.stop + 1]))
        kept = _kept(row, block.indices[span], block.data[span], borders, width)
        lengths[rows] = np.bincount(row[kept] - rows.start, minlength=rows.stop - rows.start)
        columns.append(block.indices[span][kept])
        weights.append(block.data[span][kept] / divisors[row[kept]])
        start = rows.stop
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    largest = sp.csr_array((np.concatenate(weights), np.concatenate(columns), indptr), shape=block.shape)
    largest.sort_indices()
    return largest


def _borders(block: sp.csr_array, width: int) -> np.ndarray:
    """Return the ``width``-th largest entry per row, (rows,) float64; -inf if shorter."""
    borders = np.full(block.shape[0], -np.inf)
    for row in np.flatnonzero(np.diff(block.indptr) > width).tolist():
        values = block.data[block.indptr[row] : block.indptr[row + 1]]
        borders[row] = np.partition(values, len(values) - width)[len(values) - width]
    return borders


def _kept(row: np.ndarray, columns: np.ndarray, values: np.ndarray, borders: np.ndarray, width: int) -> np.ndarray:
    """Indices of the ``width`` largest entries of each row, ties by column.

    Args:
        row, columns, values: (E,) entries, ``row`` ascending.
    """
    border = borders[row]
    is_kept = values > border
    ties = np.flatnonzero(values == border)
    if len(ties):
        tied_row = row[ties]
        order = np.lexsort((columns[ties], tied_row))
        ties = ties[order]  # tied_row ascends already
        n_free = width - np.bincount(row[is_kept], minlength=len(borders))[tied_row]
        place = np.arange(len(ties)) - np.searchsorted(tied_row, tied_row)
        is_kept[ties[place < n_free]] = True
    return np.flatnonzero(is_kept)
