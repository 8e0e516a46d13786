"""Half-steps of implicit ALS by conjugate gradients, for training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.sparse as sp

from recloop.models.als import base_gram

STEPS: Final = 3
"""Steps from the vector of the last sweep; more steps brought no better lists."""
MAX_BLOCK_NUMBERS: Final = 2**18
"""Maximum count of numbers in the (b, n, D) vectors of a block, which then fit the cache."""
MAX_PADDING: Final = 1.25
"""Ratio of the longest to the shortest row of a block."""


@dataclass(frozen=True)
class _Block:
    """Rows of similar length, padded with weight 0."""

    rows: np.ndarray  # (b,)
    columns: np.ndarray  # (b, n)
    weights: np.ndarray  # (b, n) float32


class RowBlocks:
    """Rows of the least-squares problem of `recloop.models.als.solve_rows`, in blocks.

    Takács, Pilászy & Tikk, "Applications of the Conjugate Gradient Method for Implicit Feedback Collaborative Filtering",
    RecSys 2011. A step of n items costs n D operations; the exact solution costs n D^2 + D^3.
    """

    def __init__(self, positives: sp.csr_array, rejected: sp.csr_array, dim: int) -> None:
        """Group the rows.

        Args:
            positives, rejected: (rows, N+1) weights. dim: D.
        """
        self._positives = positives.astype(np.float32)
        self._counts = np.diff(positives.indptr)
        self._blocks = list(_blocks(sp.csr_array(positives + rejected), dim))

    def improve(self, vectors: np.ndarray, table: np.ndarray, l2: float, unseen: float) -> np.ndarray:
        """Return vectors (rows, D) float32 that are closer to the minimum of each row.

        Args:
            vectors: (rows, D) vectors of the last sweep. table: (N+1, D) vectors of the other side; row 0 is padding.
        """
        gram = base_gram(table, unseen).astype(np.float32)
        scales = (l2 * (self._counts + unseen * (len(table) - 1))).astype(np.float32)
        right_sides = self._positives @ table
        improved = np.zeros_like(vectors)
        for block in self._blocks:
            system = _System(table[block.columns], block.weights, gram, scales[block.rows])
            improved[block.rows] = system.approximate(vectors[block.rows], right_sides[block.rows])
        return improved


@dataclass(frozen=True)
class _System:
    """Systems of b rows.

    A x = sum over the row's items of w (y . x) y, plus gram x, plus scale x.
    """

    taken: np.ndarray  # (b, n, D)
    weights: np.ndarray  # (b, n)
    gram: np.ndarray  # (D, D)
    scales: np.ndarray  # (b,)

    def times(self, vectors: np.ndarray) -> np.ndarray:
        """Return A x of each row, (b, D)."""
        scores = np.matmul(self.taken, vectors[:, :, None])[:, :, 0] * self.weights
        product: np.ndarray = np.matmul(scores[:, None, :], self.taken)[:, 0, :]
        product += vectors @ self.gram
        product += self.scales[:, None] * vectors
        return product

    def approximate(self, start: np.ndarray, right_sides: np.ndarray) -> np.ndarray:
        """Approximate the solutions (b, D) in `STEPS` steps from ``start``."""
        solutions = start.copy()
        residuals = right_sides - self.times(start)
        directions = residuals.copy()
        squares = np.vecdot(residuals, residuals)[:, None]
        for _ in range(STEPS):
            product = self.times(directions)
            lengths = squares / _above_zero(np.vecdot(directions, product)[:, None])
            solutions += lengths * directions
            residuals -= lengths * product
            previous, squares = squares, np.vecdot(residuals, residuals)[:, None]
            directions = residuals + squares / _above_zero(previous) * directions
        return solutions


def _above_zero(squares: np.ndarray) -> np.ndarray:
    """Return the values with 1 for 0, where the residual is 0 too."""
    return np.where(squares > 0, squares, np.float32(1))


def _blocks(weights: sp.csr_array, dim: int) -> Iterator[_Block]:
    """Yield the rows with entries, the shortest first."""
    lengths = np.diff(weights.indptr)
    order = np.argsort(lengths, kind="stable")
    order = order[np.count_nonzero(lengths == 0) :]
    ascending = lengths[order]
    start = 0
    while start < len(order):
        stop = int(np.searchsorted(ascending, ascending[start] * MAX_PADDING, side="right"))
        stop = min(stop, start + max(1, MAX_BLOCK_NUMBERS // (int(ascending[stop - 1]) * dim)))
        rows, widths = order[start:stop], ascending[start:stop, None]
        position = np.arange(int(widths[-1, 0]))
        entries = weights.indptr[rows][:, None] + np.minimum(position, widths - 1)
        is_entry = position < widths
        yield _Block(
            rows,
            np.where(is_entry, weights.indices[entries], 0),
            np.where(is_entry, weights.data[entries], 0).astype(np.float32),
        )
        start = stop
