"""EASE and ItemKNN against their formulas on random data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import scipy.sparse as sp
from moment_rows import data_of

from recloop.errors import UserError
from recloop.models import ease
from recloop.models.base import TrainData
from recloop.models.ease import EASE
from recloop.models.item_knn import ItemKNN

N_ITEMS = 30


def random_users(seed: int, n_users: int = 40) -> TrainData:
    draw = np.random.default_rng(seed)
    moments = [[draw.integers(1, N_ITEMS + 1, draw.integers(1, 4)).tolist() for _ in range(3)] for _ in range(n_users)]
    return data_of(moments, N_ITEMS)


def pairs_of(data: TrainData) -> np.ndarray:
    """(U, N) 1 for each item of a user."""
    pairs = np.zeros((data.n_users, N_ITEMS))
    pairs[data.moment_user[data.row_moment], data.items - 1] = 1
    return pairs


def rows_of(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    rows = (arrays["neighbours.weights"], arrays["neighbours.ids"], arrays["neighbours.indptr"])
    dense = sp.csr_array(rows, shape=(N_ITEMS + 1, N_ITEMS + 1)).toarray()
    assert not dense[0].any()
    assert not dense[:, 0].any()
    return np.asarray(dense[1:, 1:])


@pytest.mark.parametrize("step", [7, 512])
def test_ease_equals_the_inverse_of_the_paper(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ease, "ROWS_PER_STEP", step)
    data = random_users(0)
    pairs = pairs_of(data)
    inverse = np.linalg.inv(pairs.T @ pairs + 5.0 * np.eye(N_ITEMS))
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    np.testing.assert_allclose(rows_of(EASE(EASE.Config(l2=5.0)).fit(data)), weights, atol=1e-5)


def test_ease_keeps_the_weights_of_largest_size() -> None:
    data = random_users(1)
    whole, cut = rows_of(EASE().fit(data)), rows_of(EASE(EASE.Config(width=6)).fit(data))
    is_kept = cut != 0
    assert (is_kept.sum(axis=1) == 6).all()
    assert (np.abs(whole * is_kept).min(axis=1, initial=1, where=is_kept) >= np.abs(whole * ~is_kept).max(axis=1)).all()
    np.testing.assert_array_equal(cut[is_kept], whole[is_kept])


def test_ease_above_its_largest_catalog_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ease, "MAX_ITEMS", N_ITEMS - 1)
    with pytest.raises(UserError, match=r"ease=30 items: expected at most 29 items .*GiB"):
        EASE().fit(random_users(2))


@pytest.mark.parametrize("width", [5, 400])
def test_item_knn_equals_the_shrunk_cosine(width: int) -> None:
    data = random_users(3)
    pairs = pairs_of(data)
    counts = pairs.T @ pairs
    size = np.sqrt(np.diag(counts))
    cosine = counts / (np.outer(size, size) + 2.0)
    np.fill_diagonal(cosine, 0)
    rows = rows_of(ItemKNN(ItemKNN.Config(shrink=2.0, width=width)).fit(data))
    if width > N_ITEMS:
        np.testing.assert_allclose(rows, cosine, atol=1e-7)
    np.testing.assert_allclose(np.sort(rows, axis=1)[:, -5:], np.sort(cosine, axis=1)[:, -5:], atol=1e-7)


def test_ease_of_equal_items_and_almost_no_l2_names_it() -> None:
    equal = data_of([[[1, 2], [3]], [[1, 2], [4]], [[1, 2], [3, 4]]], 5)
    with pytest.raises(UserError, match=r"model\.l2=1e-08: expected a strength with which the matrix has an inverse"):
        EASE(EASE.Config(l2=1e-8)).fit(equal)
