"""Exact top-k: items and order with masks, bans and ties."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from recloop.recommend.filters import CandidateMask
from recloop.recommend.top_k import best_dense, best_listed, best_sparse


def allowed(mask: np.ndarray, banned: list[list[int]]) -> CandidateMask:
    rows = [np.array(sorted(row), dtype=np.int32) for row in banned]
    return CandidateMask(mask, rows, [frozenset()] * len(rows), "")


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 40))
def test_best_dense_equals_a_full_sort(seed: int, depth: int, items: int) -> None:
    generator = np.random.default_rng(seed)
    table = generator.integers(-2, 3, (items + 1, 2)).astype(np.float32)  # integers give many exact ties
    users = generator.integers(-2, 3, (3, 2)).astype(np.float32)
    mask = generator.random(items + 1) < 0.7
    mask[0] = False
    banned = [generator.choice(items + 1, min(items, 4), replace=False).tolist() for _ in range(4)]
    owners = np.array([0, 1, 3])
    found = best_dense(table, users, owners, 4, allowed(mask, banned), depth)
    for row, owner in enumerate(owners):
        scores = table @ users[row]
        shown = [ix for ix in range(1, items + 1) if mask[ix] and ix not in banned[owner]]
        shown.sort(key=lambda ix: (-scores[ix], ix))
        kept = found.items[owner][found.items[owner] > 0].tolist()
        assert kept == shown[:depth]
        assert np.array_equal(found.scores[owner][: len(kept)], scores[kept])
    assert not found.items[2].any()


def test_best_sparse_keeps_positive_entries_and_breaks_ties_by_rank() -> None:
    scores = sp.csr_array(np.array([[0, 2.0, 1.0, 1.0, 1.0, 0.0, -1.0]]))
    rank = np.array([9, 5, 4, 3, 0, 1, 2])
    mask = np.ones(7, dtype=bool)
    found = best_sparse(scores, allowed(mask, [[]]), rank, depth=3)
    assert found.items.tolist() == [[1, 4, 3]]
    mask[4] = False
    assert best_sparse(scores, allowed(mask, [[1]]), rank, depth=3).items.tolist() == [[3, 2, 0]]


def test_best_listed_skips_banned_items() -> None:
    mask = np.array([False, True, True, False, True])
    found = best_listed(np.array([3, 1, 4, 2], dtype=np.int32), 2, allowed(mask, [[1], []]), depth=2)
    assert found.items.tolist() == [[4, 2], [1, 4]]
