"""Rows of neighbours: sparse products, cut to the largest entries of a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.sparse as sp
from scipy.sparse._sparsetools import csr_matmat

BLOCK_PRODUCTS = 8_000_000  # multiply-adds per block; bounds memory
THREADS = 2
"""Threads that compute blocks; scipy's products release the GIL."""


Factors = tuple[sp.csr_array, sp.csr_array]
"""Two matrices (rows, k) and (k, columns) that are multiplied."""


def in_blocks(
    factors: Sequence[Factors], rows_of: Callable[[slice, list[sp.csr_array]], sp.csr_array], threads: int = THREADS
) -> dict[str, np.ndarray]:
    """Multiply factors by blocks of rows in threads; return the arrays of all rows.

    Args:
        rows_of: Function of the rows start to stop and of their products, one for each of ``factors``. It returns the final
            rows; a row must not depend on its block.
    """
    n_products = [products(left, right) for left, right in factors]
    work = np.concatenate([[0], np.cumsum(np.sum(n_products, axis=0))])
    spans: list[slice] = []
    start = 0
    while start < len(work) - 1:
        end = int(np.searchsorted(work, work[start] + BLOCK_PRODUCTS, side="right"))
        spans.append(slice(start, max(start + 1, end - 1)))
        start = spans[-1].stop

    def block(rows: slice) -> sp.csr_array:
        multiplied = zip(factors, n_products, strict=True)
        return rows_of(rows, [product(left[rows], right, int(n[rows].sum())) for (left, right), n in multiplied])

    with ThreadPoolExecutor(threads) as pool:
        return to_arrays(list(pool.map(block, spans)))


def narrow(matrix: sp.csr_array) -> sp.csr_array:
    """Return a matrix with int32 indices, if they suffice, for faster products."""
    if matrix.nnz < 2**31 and max(matrix.shape) < 2**31:
        matrix.indices, matrix.indptr = matrix.indices.astype(np.int32), matrix.indptr.astype(np.int32)
    return matrix


def product(left: sp.csr_array, right: sp.csr_array, bound: int) -> sp.csr_array:
    """Return ``left @ right`` with at most ``bound`` entries (`products`).

    The product of scipy counts its entries first, which is a third of its time. Memory that is not written costs nothing.
    """
    if not left.indices.dtype == right.indices.dtype == left.indptr.dtype == right.indptr.dtype == np.int32:
        return sp.csr_array(left @ right)
    shape = (left.shape[0], right.shape[1])
    bound = min(bound, shape[0] * shape[1])
    indptr, columns = np.empty(shape[0] + 1, np.int32), np.empty(bound, np.int32)
    values = np.empty(bound)
    factors = (left.indptr, left.indices, left.data, right.indptr, right.indices, right.data)
    csr_matmat(*shape, *factors, indptr, columns, values)
    return sp.csr_array((values[: indptr[-1]], columns[: indptr[-1]], indptr), shape=shape)


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

    Of equal entries at the end of a row the smaller columns are kept. Only kept entries are put in order.
    """
    lengths = np.diff(block.indptr)
    long_rows = np.flatnonzero(lengths > width)
    columns, values, indptr = block.indices, block.data, block.indptr
    if len(long_rows):
        is_kept = np.ones(len(values), dtype=bool)
        for start, stop in zip(indptr[long_rows].tolist(), indptr[long_rows + 1].tolist(), strict=True):
            _mark_largest(is_kept[start:stop], values[start:stop], columns[start:stop], width)
        columns, values = columns[is_kept], values[is_kept]
        lengths = np.minimum(lengths, width)
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(indptr.dtype)
    kept = sp.csr_array((values / np.repeat(divisors, lengths), columns, indptr), shape=block.shape)
    return kept.tocsc().tocsr()  # two passes that count are faster than a sort of each row


def _mark_largest(is_kept: np.ndarray, values: np.ndarray, columns: np.ndarray, width: int) -> None:
    """Mark the ``width`` largest values, of equal ones those of the smallest columns.

    Args:
        is_kept: (n,) bool, written. values: (n,), more than ``width``. columns: (n,).
    """
    n_others = len(values) - width
    ordered = values.copy()
    ordered.partition(n_others)
    border = ordered[n_others]
    np.greater_equal(values, border, out=is_kept)
    n_more = np.count_nonzero(ordered[:n_others] == border)
    if n_more:
        ties = (values == border).nonzero()[0]
        is_kept[ties[columns[ties].argpartition(len(ties) - n_more)[len(ties) - n_more :]]] = False
