"""Tests of intervals: means over users, resampling, paired differences and Holm, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from recloop.evaluation import bootstrap


def test_mean_of_a_users_moments_then_of_users() -> None:
    values = np.array([[1.0], [0.0], [0.0], [1.0], [np.nan]])
    by_user = bootstrap.user_means(values, np.array([0, 0, 0, 1, 2]), 4)
    np.testing.assert_allclose(by_user[:, 0], [1 / 3, 1, np.nan, np.nan])
    assert bootstrap.mean_over_users(by_user) == pytest.approx([2 / 3])
    assert np.isnan(bootstrap.mean_over_users(by_user[2:])).all()


def test_interval_covers_and_has_the_width_of_theory() -> None:
    random = np.random.default_rng(0)
    values = random.normal(0.3, 0.2, size=(400, 1))
    samples = bootstrap.resample(values, seed=1)
    got = bootstrap.estimate(float(values.mean()), samples[:, 0])
    theory = 2 * 1.96 * values.std() / np.sqrt(400)
    assert got.low < values.mean() < got.high
    assert got.high - got.low == pytest.approx(theory, rel=0.08)


def test_resampling_is_seeded_and_does_not_depend_on_other_columns() -> None:
    values = np.random.default_rng(2).random((50, 3))
    values[:10, 1] = np.nan
    first, again, other = (bootstrap.resample(values, seed=s, draws=200) for s in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_allclose(bootstrap.resample(values[:, 1:2], seed=5, draws=200)[:, 0], first[:, 1], atol=1e-6)
    assert first.shape == (200, 3)


def test_resampling_in_pieces_is_the_same_draw() -> None:
    values = np.random.default_rng(2).random((70_000, 1))  # two pieces or more at 2^23 weights
    whole = bootstrap.resample(values, seed=0, draws=150)
    assert whole.std() == pytest.approx(values.std() / np.sqrt(70_000), rel=0.25)
    assert len(np.unique(whole)) > 100


def test_one_user_and_no_user() -> None:
    got = bootstrap.estimate(0.5, bootstrap.resample(np.array([[0.5]]), 0)[:, 0])
    assert (got.low, got.value, got.high) == (0.5, 0.5, 0.5)
    none = bootstrap.estimate(float("nan"), bootstrap.resample(np.zeros((0, 1)), 0)[:, 0])
    assert none.to_json() == {"value": None, "low": None, "high": None}


def test_paired_difference_sees_what_two_intervals_do_not() -> None:
    random = np.random.default_rng(4)
    base = random.random(300)
    better = base + 0.01 + random.normal(0, 0.02, 300)
    got = bootstrap.difference(better, base, seed=0)
    assert got.verdict == "more"
    assert got.absolute.low > 0
    assert got.relative.value == pytest.approx(better.mean() / base.mean() - 1)
    assert got.p < 0.01
    apart = [bootstrap.estimate(x.mean(), bootstrap.resample(x[:, None], 0)[:, 0]) for x in (better, base)]
    assert apart[0].low < apart[1].high  # unpaired, they overlap
    assert bootstrap.difference(base, better, seed=0).verdict == "less"


def test_no_difference_is_exactly_none() -> None:
    base = np.random.default_rng(4).random(30)
    got = bootstrap.difference(base, base, seed=0)
    assert (got.absolute.value, got.absolute.low, got.absolute.high, got.p) == (0, 0, 0, 1.0)
    assert got.verdict == "inconclusive"


def test_difference_leaves_out_users_that_lack_one_side() -> None:
    got = bootstrap.difference(np.array([1.0, np.nan, 3.0]), np.array([0.0, 5.0, np.nan]), seed=0)
    assert got.absolute.value == 1.0
    assert got.relative.value != got.relative.value  # relative to 0: not a number, not infinite
    assert got.to_json()["relative"]["value"] is None


def test_holm_by_hand() -> None:
    assert bootstrap.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert bootstrap.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert bootstrap.holm([]) == []
