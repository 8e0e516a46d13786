"""Co-visitation counts by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
from moment_rows import data_of

from recloop.models import covisitation, neighbour_rows
from recloop.models.base import GuestBaskets, TrainData
from recloop.models.covisitation import CoVisitation
from recloop.models.popular import Popular


def rows_of(data: TrainData, **options: object) -> np.ndarray:
    arrays = CoVisitation(CoVisitation.Config(**options)).fit(data)
    size = data.n_items + 1
    rows = (arrays["neighbours.weights"], arrays["neighbours.ids"], arrays["neighbours.indptr"])
    return np.asarray(sp.csr_array(rows, shape=(size, size)).todense())


def test_covisitation_counts_by_lag_and_not_within_a_moment() -> None:
    data = data_of([[[1, 2], [3], [1]], [[1], [3]]], 3)
    rows = rows_of(data)
    # c(1,3) = 1 (first user, lag 1) + 1 (second user); c(1,1) = 0.7 (lag 2); c(2,3) = 1, c(2,1) = 0.7; c(3,1) = 1.
    assert rows[1] == pytest.approx([0, 0.7 / 22.7, 0, 2 / 22.7])
    assert rows[2] == pytest.approx([0, 0.7 / 21.7, 0, 1 / 21.7])
    assert rows[3] == pytest.approx([0, 1 / 21, 0, 0])


def test_covisitation_ignores_lags_above_8_and_other_users() -> None:
    chain = [[n] for n in range(1, 11)]
    rows = rows_of(data_of([chain, [[10]]], 10))
    assert rows[1][9] == pytest.approx(0.1 / (sum(covisitation.LAG_WEIGHTS) + 20))
    assert rows[1][10] == 0
    assert not rows[10].any()


def test_covisitation_row_keeps_the_largest_and_divides_by_its_full_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of([[[1], [2, 3, 4]], [[1], [4]]], 4)
    whole = rows_of(data)
    cut = rows_of(data, width=2)
    assert np.flatnonzero(cut[1]).tolist() == [2, 4]
    assert cut[1][[2, 4]] == pytest.approx(whole[1][[2, 4]])
    monkeypatch.setattr(neighbour_rows, "BLOCK_PRODUCTS", 1)  # one row per chunk gives equal rows
    assert np.array_equal(rows_of(data, width=2), cut)


def test_covisitation_counts_512_rows_of_moments_of_5000_items() -> None:
    first, second = np.arange(1, 5_001), np.arange(5_001, 10_001)
    data = data_of([[first.tolist(), second.tolist()]], 10_000)
    arrays = CoVisitation().fit(data)
    per_row = np.diff(arrays["neighbours.indptr"])
    rows = np.flatnonzero(per_row)
    assert (len(rows), set(per_row[rows])) == (512, {200})
    assert (rows[0], np.diff(rows).min(), np.diff(rows).max()) == (1, 9, 10)
    counted = [[first[rows - 1].tolist(), second[rows - 1].tolist()]]
    for name, values in CoVisitation().fit(data_of(counted, 10_000)).items():
        assert np.array_equal(arrays[name], values)


def test_covisitation_bound_does_not_change_smaller_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of([[[1, 2, 3, 4, 5], [2, 3], [1]]], 5)
    whole = rows_of(data)
    monkeypatch.setattr(covisitation, "MAX_MOMENT_ITEMS", 3)
    bounded = rows_of(data)
    assert not bounded[4].any()  # rows 1, 3 and 5 of the first moment count
    assert bounded[2] == pytest.approx([0, 1 / 21, 0, 0, 0, 0])  # of the second moment
    assert np.array_equal(bounded[[1, 3, 5]], whole[[1, 3, 5]])


def test_covisitation_of_single_moments_is_empty() -> None:
    assert not rows_of(data_of([[[1, 2]], [[3]]], 3)).any()


def test_popular_orders_by_count_then_index() -> None:
    data = data_of([[[3], [3], [2], [4]]], 4)
    assert Popular().fit(data)["popular"].tolist() == [3, 2, 4, 1]


def test_half_life_halves_counts_of_that_age() -> None:
    """Two users with the same step, one and two half-lives before the cut."""
    day = 86_400_000_000
    data = dataclasses.replace(
        data_of([[[1], [2]], [[1], [3]], [[3], [3]]], 3),
        stamps=np.array([-5, 9, -5, 8, 7, 7]) * day,
        cut=10 * day,
    )
    rows = rows_of(data, half_life=1.0, shrink=0.0)
    assert rows[1] == pytest.approx([0, 0, 2 / 3, 1 / 3]), "0.5 and 0.25: the age is that of the following moment"
    popular = Popular(Popular.Config(half_life=1.0)).fit(data)["popular"].tolist()
    assert popular == [2, 3, 1], "1: twice, long ago; 2: once, 0.5; 3: three times, 0.25 + 0.125 + 0.125"
    assert Popular().fit(data)["popular"].tolist() == [3, 1, 2]


def test_decay_of_an_old_log_is_positive() -> None:
    data = dataclasses.replace(data_of([[[1], [2]]], 2), stamps=np.array([0, 10**15]), cut=10**18)
    assert (data.decay(7.0) > 0).all()
    assert (data.decay(None) == 1).all()


def test_covisitation_counts_pairs_of_a_guest_basket_without_the_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    baskets = GuestBaskets(
        offsets=np.array([0, 2, 5]),
        stamps=np.array([0, 1]),
        items=np.array([1, 3, 1, 2, 3], dtype=np.int32),
        targets=np.ones(5, dtype=bool),
        counts=np.array([0, 2, 1, 2]),
    )
    data = dataclasses.replace(data_of([[[1], [1]]], 3), guests=baskets)
    # c(1,1) = 1 of the user's two moments; c(1,3) = 2 baskets, c(1,2) = 1, each with weight 0.5.
    rows = rows_of(data, guests=0.5)
    assert rows[1] == pytest.approx([0, 1 / 22.5, 0.5 / 22.5, 1 / 22.5])
    assert rows[3] == pytest.approx([0, 1 / 21.5, 0.5 / 21.5, 0])
    assert rows_of(data, guests=0)[3].sum() == 0
    monkeypatch.setattr(neighbour_rows, "BLOCK_PRODUCTS", 1)
    assert np.array_equal(rows, rows_of(data, guests=0.5))


def test_covisitation_counts_pairs_of_one_moment_without_the_diagonal() -> None:
    data = data_of([[[1, 2], [1]], [[1, 2, 3]]], 3)
    rows = rows_of(data, same=0.5)
    # c(1,1) = 1 (lag 1); c(1,2) = 2 moments, c(1,3) = 1, each with weight 0.5; c(2,1) = 1 + 1.
    assert rows[1] == pytest.approx([0, 1 / 22.5, 1 / 22.5, 0.5 / 22.5])
    assert rows[2] == pytest.approx([0, 2 / 22.5, 0, 0.5 / 22.5])
    assert rows[3] == pytest.approx([0, 0.5 / 21, 0.5 / 21, 0])
