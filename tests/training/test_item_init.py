"""Initial item embeddings: co-occurring items are close for any table size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from recloop.models.base import TrainData
from recloop.training import item_init

Arrays = Callable[..., TrainData]


def communities(arrays: Arrays, n_items: int = 40) -> TrainData:
    """Users with items of one of two halves; the last item is not seen."""
    rng = np.random.default_rng(0)
    half = (n_items - 1) // 2
    walks = [1 + (user % 2) * half + rng.integers(0, half, 12) for user in range(300)]
    return arrays([[[int(item)] for item in walk] for walk in walks], n_items)


@pytest.mark.parametrize("core", [2048, 10])
def test_init_item_embeddings_of_co_occurring_items_are_close(
    arrays: Arrays, core: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all items in the core, and with most of them outside it."""
    monkeypatch.setattr(item_init, "CORE_ITEMS", core)
    data = communities(arrays)
    vectors = item_init.init_item_embeddings(data, 8, seed=0)
    assert vectors.shape == (41, 8)
    assert vectors.dtype == np.float32
    assert not vectors[0].any()
    seen = vectors[1:39]
    unit = seen / np.linalg.norm(seen, axis=1, keepdims=True)
    cosine = unit @ unit.T
    same = np.arange(38)[:, None] // 19 == np.arange(38) // 19
    assert cosine[same].mean() > 0.5
    assert cosine[~same].mean() < 0.2
    assert seen.std() == pytest.approx(item_init.ITEM_STD, rel=0.25)


def test_positive_pmi_of_a_small_catalog_by_hand(arrays: Arrays) -> None:
    """The positive PMI matrix equals one counted by hand."""
    data = arrays([[[1], [2], [1]], [[3], [1]], [[2], [3], [3]]], 3)
    weight = {1: 1.0, 2: 0.7}
    counts = np.zeros((4, 4))
    for history in ([1, 2, 1], [3, 1], [2, 3, 3]):
        for m, a in enumerate(history):
            for n, b in enumerate(history):
                if m != n:
                    counts[a, b] += weight[abs(m - n)]
    chance = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
    pmi = np.zeros((4, 4))
    pmi[counts > 0] = np.maximum(np.log(counts[counts > 0] / chance[counts > 0]), 0)
    np.testing.assert_allclose(item_init._positive_pmi(data, np.array([1, 2, 3])).toarray(), pmi[:, 1:], atol=1e-6)


@pytest.mark.parametrize("part_moments", [1, 30, 3_600])
def test_pair_counts_in_parts_equal_those_of_all_moments(
    arrays: Arrays, part_moments: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, core = communities(arrays), np.arange(1, 41)
    whole = item_init._pair_counts(data, core).toarray()
    assert whole.any()
    monkeypatch.setattr(item_init, "PART_MOMENTS", part_moments)
    np.testing.assert_allclose(item_init._pair_counts(data, core).toarray(), whole, rtol=1e-5)


def test_init_item_embeddings_with_one_seed_are_equal(arrays: Arrays) -> None:
    data = communities(arrays)
    np.testing.assert_array_equal(
        item_init.init_item_embeddings(data, 8, 5), item_init.init_item_embeddings(data, 8, 5)
    )


@pytest.mark.parametrize("histories", [[[[1]]], [[[1], [1]]], [[[1], [2]]], [[[1, 2]], []]])
def test_init_item_embeddings_of_a_tiny_log_are_finite(arrays: Arrays, histories: list[list[list[int]]]) -> None:
    vectors = item_init.init_item_embeddings(arrays(histories, 2), 8, seed=0)
    assert vectors.shape == (3, 8)
    assert np.isfinite(vectors).all()
    assert vectors[1:].std() > 0
