"""Rows of neighbours against dense products and sorts."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from recloop.models import neighbour_rows
from recloop.models.neighbour_rows import PairCounts, nearest

SIZE, GROUPS = 25, 40


def random_counts(seed: int, n_ordered: int) -> PairCounts:
    """Return groups of items, with weights of which many sums are equal and some are 0."""
    draw = np.random.default_rng(seed)
    groups = (draw.random((SIZE, GROUPS)) < 0.3).astype(np.float64)
    groups[[0, 7]] = 0
    weights = np.where(draw.random((GROUPS, SIZE)) < 0.4, draw.integers(0, 3, (GROUPS, SIZE)) / 2, 0.0)
    weights[:, [0, 9]] = 0
    stored = sp.csr_array(np.where(weights == 0, -1.0, weights))
    stored.data[stored.data < 0] = 0  # zeros that are stored
    return PairCounts(sp.csr_array(groups), stored, n_ordered)


def dense(counts: PairCounts) -> np.ndarray:
    groups, items = counts.groups.toarray(), counts.items.toarray()
    pairs = groups[:, counts.n_ordered :] @ items[counts.n_ordered :]
    np.fill_diagonal(pairs, 0)
    return np.asarray(groups[:, : counts.n_ordered] @ items[: counts.n_ordered] + pairs)


def assert_largest(arrays: dict[str, np.ndarray], entries: np.ndarray, width: int) -> None:
    """Compare with the ``width`` largest entries of a sort by value, then column."""
    rows = sp.csr_array((arrays["neighbours.weights"], arrays["neighbours.ids"], arrays["neighbours.indptr"]))
    assert rows.has_sorted_indices
    for row, values in enumerate(entries):
        kept = np.sort(np.argsort(-values, kind="stable")[: min(width, np.count_nonzero(values))])
        span = slice(rows.indptr[row], rows.indptr[row + 1])
        assert rows.indices[span].tolist() == kept.tolist()
        assert rows.data[span].tolist() == values[kept].astype(np.float32).tolist()


@pytest.mark.parametrize("n_ordered", [0, 15, GROUPS])
@pytest.mark.parametrize("width", [1, 6, SIZE])
@pytest.mark.parametrize("block", [1, 100, 10**9])
def test_rows_are_the_largest_counts_over_their_sum(
    width: int, n_ordered: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbour_rows, "BLOCK_PRODUCTS", block)
    for seed in range(5):
        counts = random_counts(seed, n_ordered)
        sums = dense(counts)
        assert_largest(nearest(counts, width, 20.0), sums / (sums.sum(axis=1, keepdims=True) + 20.0), width)


@pytest.mark.parametrize("width", [1, 6, SIZE])
def test_rows_are_the_largest_counts_over_the_norms_of_both_items(width: int) -> None:
    counts = random_counts(6, 0)
    norms = np.sqrt(np.arange(SIZE) % 4)
    entries = dense(counts) / (np.outer(norms, norms) + 2.0)
    assert_largest(nearest(counts, width, 2.0, norms), entries, width)


def test_rows_without_pairs_are_empty() -> None:
    arrays = nearest(PairCounts(sp.csr_array((4, 3)), sp.csr_array((3, 4))), 5, 1.0)
    assert arrays["neighbours.indptr"].tolist() == [0] * 5
    assert (len(arrays["neighbours.ids"]), len(arrays["neighbours.weights"])) == (0, 0)
