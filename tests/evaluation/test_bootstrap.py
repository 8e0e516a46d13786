"""Intervals by hand: means over users, resampling, paired differences and Holm."""

from __future__ import annotations

import numpy as np
import pytest

from recloop.evaluation import bootstrap


def test_user_means_average_moments_per_user() -> None:
    values = np.array([[1.0], [0.0], [0.0], [1.0], [np.nan]])
    by_user = bootstrap.user_means(values, np.array([0, 0, 0, 1, 2]), 4)
    np.testing.assert_allclose(by_user[:, 0], [1 / 3, 1, np.nan, np.nan])
    assert bootstrap.mean_over_users(by_user) == pytest.approx([2 / 3])
    assert np.isnan(bootstrap.mean_over_users(by_user[2:])).all()


def test_estimate_interval_has_the_theoretical_width() -> None:
    random = np.random.default_rng(0)
    values = random.normal(0.3, 0.2, size=(400, 1))
    samples = bootstrap.resample(values, seed=1)
    got = bootstrap.estimate(float(values.mean()), samples[:, 0])
    theory = 2 * 1.96 * values.std() / np.sqrt(400)
    assert got.low < values.mean() < got.high
    assert got.high - got.low == pytest.approx(theory, rel=0.08)


def test_resample_with_one_seed_is_equal_per_column() -> None:
    values = np.random.default_rng(2).random((50, 3))
    values[:10, 1] = np.nan
    first, again, other = (bootstrap.resample(values, seed=s, draws=200) for s in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_allclose(bootstrap.resample(values[:, 1:2], seed=5, draws=200)[:, 0], first[:, 1], atol=1e-6)
    assert first.shape == (200, 3)


def test_resample_in_chunks_gives_one_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "MAX_DRAWN_USERS", 70_000)
    values = np.random.default_rng(2).random((70_000, 1))  # at least two chunks at 2^23 weights
    whole = bootstrap.resample(values, seed=0, draws=150)
    assert whole.std() == pytest.approx(values.std() / np.sqrt(70_000), rel=0.25)
    assert len(np.unique(whole)) > 100


def test_resample_of_groups_has_the_width_of_drawn_users(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.clip(np.random.default_rng(3).normal(0.1, 0.2, size=(4_000, 2)), 0, 1)
    values[:1_500, 1] = np.nan
    means = bootstrap.mean_over_users(values)
    drawn = bootstrap.resample(values, seed=0)
    monkeypatch.setattr(bootstrap, "MAX_DRAWN_USERS", 3_999)
    in_groups = bootstrap.resample(values, seed=0)
    assert not np.array_equal(drawn, in_groups)
    np.testing.assert_allclose(in_groups.mean(axis=0), means, atol=3e-4)
    np.testing.assert_allclose(in_groups.std(axis=0), drawn.std(axis=0), rtol=0.08)


def test_estimate_of_one_user_has_no_width_and_of_none_is_null() -> None:
    got = bootstrap.estimate(0.5, bootstrap.resample(np.array([[0.5]]), 0)[:, 0])
    assert (got.low, got.value, got.high) == (0.5, 0.5, 0.5)
    none = bootstrap.estimate(float("nan"), bootstrap.resample(np.zeros((0, 1)), 0)[:, 0])
    assert none.to_json() == {"value": None, "low": None, "high": None}


def test_difference_of_pairs_detects_what_two_intervals_miss() -> None:
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


def test_difference_of_equal_values_is_0() -> None:
    base = np.random.default_rng(4).random(30)
    got = bootstrap.difference(base, base, seed=0)
    assert (got.absolute.value, got.absolute.low, got.absolute.high, got.p) == (0, 0, 0, 1.0)
    assert got.verdict == "inconclusive"


def test_difference_excludes_users_without_both_values() -> None:
    got = bootstrap.difference(np.array([1.0, np.nan, 3.0]), np.array([0.0, 5.0, np.nan]), seed=0)
    assert got.absolute.value == 1.0
    assert got.relative.value != got.relative.value  # relative to 0: NaN, not infinite
    assert got.to_json()["relative"]["value"] is None


def test_holm_by_hand() -> None:
    assert bootstrap.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert bootstrap.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert bootstrap.holm([]) == []
