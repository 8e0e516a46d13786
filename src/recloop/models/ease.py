"""EASE: a linear autoencoder over the items of a user, in closed form."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pydantic
import scipy.linalg
import scipy.sparse as sp

from recloop.errors import UserError
from recloop.models.base import ModelConfig, TrainData, user_items
from recloop.models.neighbour_rows import to_arrays
from recloop.models.search_space import Choice, Range, SearchSpace

MAX_ITEMS = 20_000
"""Largest catalog; memory grows with its square and time with its cube."""
ROWS_PER_STEP = 512
"""Rows of the dense matrix that are computed or cut at a time."""


class EASE:
    """Linear item-item weights with a zero diagonal.

    Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019 (arXiv 1905.03375). With X the users' distinct
    items as 0 and 1, and P = (X'X + l2 I)^-1, the weights are B = P / -diag(P) by column, and 0 on the diagonal. A user's
    scores are the sum of the rows of B of the items in the history.

    Difference to the paper: a row keeps its ``width`` weights of largest size.
    """

    class Config(ModelConfig):
        """Options.

        ``l2``: strength of the regularization. ``width``: weights that a row keeps.
        """

        l2: float = pydantic.Field(300.0, gt=0)
        width: int = pydantic.Field(400, ge=1)

    search_space: ClassVar[SearchSpace] = {
        "model.l2": Range(10.0, 3000.0, log=True),
        "model.width": Choice((200, 400, 800)),
    }

    kind: ClassVar[str] = "neighbours"
    source: ClassVar[str] = "ease"

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()

    def fit(self, data: TrainData) -> dict[str, np.ndarray]:
        """Fit the three ``neighbours.*`` arrays of a CSR matrix (N+1, N+1).

        Raises:
            UserError: the catalog has more than `MAX_ITEMS` items, or ``l2`` is too small for float32.
        """
        if data.n_items > MAX_ITEMS:
            expected = f"at most {MAX_ITEMS:,} items (this catalog needs {memory_text(data.n_items)})"
            raise UserError("ease", f"{data.n_items:,} items", expected, 'name = "item_knn", or extra = ["item_knn"]')
        inverse = _inverse(user_items(data), self.config.l2)
        scale = -1.0 / np.diag(inverse)
        blocks = [sp.csr_array((1, data.n_items + 1))]  # row 0 is padding
        for start in range(0, data.n_items, ROWS_PER_STEP):
            weights = inverse[start : start + ROWS_PER_STEP] * scale
            rows = np.arange(len(weights))
            weights[rows, start + rows] = 0
            blocks.append(_cut(weights, self.config.width))
        return to_arrays(blocks)


def memory_text(n_items: int) -> str:
    """Return the memory that a fit needs at its peak: two dense float32 matrices."""
    return f"{2 * 4 * n_items**2 / 2**30:.1f} GiB of memory"


def _inverse(pairs: sp.csr_array, l2: float) -> np.ndarray:
    """Return (X'X + l2 I)^-1, (N, N) float32, without the padding of X (U, N+1)."""
    users = sp.csr_array(pairs[:, 1:].astype(np.float32))
    items = sp.csr_array(users.T)
    n_items = items.shape[0]
    matrix = np.empty((n_items, n_items), dtype=np.float32, order="F")
    for start in range(0, n_items, ROWS_PER_STEP):
        block = slice(start, start + ROWS_PER_STEP)
        matrix[:, block] = (items[block] @ users).toarray().T  # symmetric
    matrix[np.diag_indices(n_items)] += np.float32(l2)
    factor, failed_column = scipy.linalg.lapack.spotrf(matrix, lower=1, overwrite_a=1)
    if failed_column:
        raise UserError("model.l2", l2, "a strength with which the matrix has an inverse", "--set model.l2=300")
    inverse, _ = scipy.linalg.lapack.spotri(factor, lower=1, overwrite_c=1)
    for start in range(0, n_items, ROWS_PER_STEP):  # LAPACK computes the lower triangle
        block, below = slice(start, start + ROWS_PER_STEP), slice(start + ROWS_PER_STEP, None)
        corner = np.tril(inverse[block, block])
        inverse[block, block] = corner + np.tril(corner, -1).T
        inverse[block, below] = inverse[below, block].T
    return np.asarray(inverse)


def _cut(weights: np.ndarray, width: int) -> sp.csr_array:
    """Return the ``width`` weights of largest size per row, with a column 0."""
    n_rows, n_items = weights.shape
    if width < n_items:
        columns = np.sort(np.argpartition(-np.abs(weights), width - 1, axis=1)[:, :width], axis=1)
    else:
        columns = np.tile(np.arange(n_items), (n_rows, 1))
    values = np.take_along_axis(weights, columns, axis=1)
    indptr = np.arange(n_rows + 1) * columns.shape[1]
    return sp.csr_array((values.ravel(), columns.ravel() + 1, indptr), shape=(n_rows, n_items + 1))
