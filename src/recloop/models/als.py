"""Weighted least squares for implicit ALS: training and user fold-in."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

CHUNK = 2_000_000
"""Maximum count of numbers in the (rows, D, D) systems that are solved at once."""


def base_gram(table: np.ndarray, unseen: float) -> np.ndarray:
    """(D, D) float64 Gram matrix of the table, weighted for unobserved pairs."""
    wide = table.astype(np.float64)
    gram: np.ndarray = unseen * (wide.T @ wide)
    return gram


def solve_rows(
    table: np.ndarray, gram: np.ndarray, taken: sp.csr_array, l2: float, unseen: float, refused: sp.csr_array
) -> np.ndarray:
    """Solve for each row x, (rows, D) float32, that minimizes:

        sum over taken j of w_j (x . y_j - 1)^2 + sum over refused j of v_j (x . y_j)^2
        + unseen sum over all j of (x . y_j)^2 + l2 (n + unseen N) |x|^2,

    where n is the number of items taken and N the length of the table. This is Hu, Koren & Volinsky 2008 with the
    scaled L2 of Rendle et al. 2021; refused items have target 0 with a higher confidence. Rows are independent.

    Args:
        table: (N+1, D) vectors y; row 0 is padding. gram: `base_gram` of the table.
        taken: (rows, N+1) weights w. refused: (rows, N+1) weights v.
    """
    size, dim = taken.shape[0], table.shape[1]
    made = np.zeros((size, dim), dtype=np.float32)
    step = max(1, CHUNK // dim**2)
    spread = np.eye(dim)
    for start in range(0, size, step):
        rows = range(start, min(start + step, size))
        left, right = np.empty((len(rows), dim, dim)), np.empty((len(rows), dim, 1))
        for place, row in enumerate(rows):
            span = slice(taken.indptr[row], taken.indptr[row + 1])
            own, weights = table[taken.indices[span]].astype(np.float64), taken.data[span].astype(np.float64)
            scale = l2 * (len(own) + unseen * (len(table) - 1))
            left[place] = gram + own.T @ (own * weights[:, None]) + scale * spread
            span = slice(refused.indptr[row], refused.indptr[row + 1])
            if span.stop > span.start:
                turned, costs = table[refused.indices[span]].astype(np.float64), refused.data[span].astype(np.float64)
                left[place] += turned.T @ (turned * costs[:, None])
            right[place, :, 0] = weights @ own
        made[start : rows.stop] = np.linalg.solve(left, right)[:, :, 0]
    return made


def confidence(total: np.ndarray) -> np.ndarray:
    """Confidence of an item by its total count or weight: 1 + ln(total), at least 1."""
    weight: np.ndarray = 1.0 + np.log(np.maximum(total, 1.0))
    return weight
