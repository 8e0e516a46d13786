"""Weighted least squares for implicit ALS: training and user fold-in."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

MAX_SYSTEM_NUMBERS = 2_000_000
"""Maximum count of numbers in the (rows, D, D) systems that are solved at once."""


def base_gram(table: np.ndarray, unseen: float) -> np.ndarray:
    """(D, D) float64 Gram matrix of the table, weighted for unobserved pairs."""
    wide = table.astype(np.float64)
    gram: np.ndarray = unseen * (wide.T @ wide)
    return gram


def solve_rows(
    table: np.ndarray, gram: np.ndarray, positives: sp.csr_array, l2: float, unseen: float, rejected: sp.csr_array
) -> np.ndarray:
    """Solve for each row x, (rows, D) float32, that minimizes:

        sum over positive j of w_j (x . y_j - 1)^2 + sum over rejected j of v_j (x . y_j)^2
        + unseen sum over all j of (x . y_j)^2 + l2 (n + unseen N) |x|^2,

    where n is the number of positive items and N the length of the table. This is Hu, Koren & Volinsky 2008 with the
    scaled L2 of Rendle et al. 2021; rejected items have target 0 with a higher confidence. Rows are independent.

    Args:
        table: (N+1, D) vectors y; row 0 is padding. gram: `base_gram` of the table.
        positives: (rows, N+1) weights w. rejected: (rows, N+1) weights v.
    """
    size = positives.shape[0]
    dim = table.shape[1]
    vectors = table.astype(np.float64)
    scales = l2 * (np.diff(positives.indptr) + unseen * (len(table) - 1))
    has_rejected = np.diff(rejected.indptr) > 0
    diagonal = np.arange(dim)
    solutions = np.zeros((size, dim), dtype=np.float32)
    step = max(1, MAX_SYSTEM_NUMBERS // dim**2)
    for start in range(0, size, step):
        rows = range(start, min(start + step, size))
        systems = np.empty((len(rows), dim, dim))
        right_sides = np.empty((len(rows), dim, 1))
        for n, row in enumerate(rows):
            ids, weights = _entries(positives, row)
            taken = vectors[ids]
            np.matmul(taken.T, taken * weights[:, None], out=systems[n])
            np.matmul(weights, taken, out=right_sides[n, :, 0])
            if has_rejected[row]:
                ids, weights = _entries(rejected, row)
                refused = vectors[ids]
                systems[n] += refused.T @ (refused * weights[:, None])
        systems += gram
        systems[:, diagonal, diagonal] += scales[start : rows.stop, None]
        solutions[start : rows.stop] = np.linalg.solve(systems, right_sides)[:, :, 0]
    return solutions


def _entries(matrix: sp.csr_array, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and float64 values of a row."""
    span = slice(matrix.indptr[row], matrix.indptr[row + 1])
    return matrix.indices[span], matrix.data[span].astype(np.float64, copy=False)


def confidence(total: np.ndarray) -> np.ndarray:
    """Confidence of an item by its total count or weight: 1 + ln(total), at least 1."""
    weight: np.ndarray = 1.0 + np.log(np.maximum(total, 1.0))
    return weight
