"""Rows of neighbours: sparse products, cut to the largest entries of a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.sparse as sp

BLOCK_PRODUCTS = 30_000_000  # multiply-adds per block; bounds memory
THREADS = 2
"""Threads that compute blocks; scipy's products release the GIL."""


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
    """``width`` largest entries of each row over its divisor (rows,), by column.

    Of equal entries at the end of a row the smaller columns are kept.
    """
    ordered = block.tocsc().tocsr()  # two passes that count are faster than a sort of each row
    lengths = np.diff(ordered.indptr)
    long_rows = np.flatnonzero(lengths > width)
    columns, values = ordered.indices, ordered.data
    if len(long_rows):
        is_kept = np.ones(ordered.nnz, dtype=bool)
        for row in long_rows.tolist():
            span = slice(ordered.indptr[row], ordered.indptr[row + 1])
            is_kept[span] = _largest_of_row(values[span], width)
        columns, values = columns[is_kept], values[is_kept]
        lengths = np.minimum(lengths, width)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return sp.csr_array((values / np.repeat(divisors, lengths), columns, indptr), shape=block.shape)


def _largest_of_row(values: np.ndarray, width: int) -> np.ndarray:
    """(n,) True for the ``width`` largest of n values, the first of equal ones."""
    border = np.partition(values, len(values) - width)[len(values) - width]
    is_kept: np.ndarray = values > border
    ties = np.flatnonzero(values == border)
    is_kept[ties[: width - np.count_nonzero(is_kept)]] = True
    return is_kept
