"""Top-k of sparse scores with masks, bans and ties."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from recloop.recommend.filters import CandidateMask
from recloop.recommend.table_mask import TableMask
from recloop.recommend.top_k import best_sparse


def allowed(mask: np.ndarray, banned: list[list[int]]) -> CandidateMask:
    rows = [np.array(sorted(row), dtype=np.int32) for row in banned]
    return CandidateMask(TableMask.of(mask), rows, [frozenset()] * len(rows), "")


def test_best_sparse_keeps_positive_entries_and_breaks_ties_by_rank() -> None:
    scores = sp.csr_array(np.array([[0, 2.0, 1.0, 1.0, 1.0, 0.0, -1.0]]))
    rank = np.array([9, 5, 4, 3, 0, 1, 2])
    mask = np.ones(7, dtype=bool)
    found = best_sparse(scores, allowed(mask, [[]]), rank, depth=3)
    assert found.items.tolist() == [[1, 4, 3]]
    mask[4] = False
    assert best_sparse(scores, allowed(mask, [[1]]), rank, depth=3).items.tolist() == [[3, 2, 0]]
