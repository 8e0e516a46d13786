"""Agreement of two rankings: by hand, against another implementation, edge cases."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import ranked_overlap
import scipy.stats

from recloop.evaluation import agreement


def test_overlap_by_hand() -> None:
    assert agreement.overlap(list("abcdefghij"), list("fghijklmno")) == 0.5
    assert agreement.overlap(["a"], ["a", "b"]) == 0.5
    assert agreement.overlap([], []) == 1.0
    assert agreement.overlap([], ["a"]) == 0.0


def test_rbo_by_hand() -> None:
    # abc and acb: X = 1, 1, 3; (1-p)/p * (1 p + 1/2 p^2 + 3/3 p^3) + 3/3 p^3, p = 0.9
    expected = 0.1 / 0.9 * (0.9 + 0.81 / 2 + 0.729) + 0.729
    assert agreement.rbo("abc", "acb") == pytest.approx(expected)
    # ab and a (l = 2, s = 1): X_1 = 1, X_2 = 1; extrapolated share of the short list: X_s (d-s)/(s d) = 1/2 at d = 2
    assert agreement.rbo("ab", "a") == pytest.approx(0.1 / 0.9 * (0.9 + 0.81 / 2 + 0.81 / 2) + (0 / 2 + 1) * 0.81)
    assert agreement.rbo("abc", "abc") == pytest.approx(1.0)
    assert agreement.rbo("abc", "xyz") == 0.0
    assert (agreement.rbo([], []), agreement.rbo([], "a")) == (1.0, 0.0)


def test_rbo_equals_another_implementation() -> None:
    draw = random.Random(0)
    for _ in range(200):
        size = draw.randint(1, 100)
        items = list(range(size + draw.randint(0, 60)))
        first, second = draw.sample(items, size), draw.sample(items, size)
        p = draw.choice([0.5, 0.9, 0.98])
        assert agreement.rbo(first, second, p) == pytest.approx(ranked_overlap.rbo(first, second, p))


def test_tau_b_by_hand() -> None:
    assert agreement.tau_b(np.array([5.0, 4, 3, 2, 1])) == pytest.approx(1.0)
    assert agreement.tau_b(np.array([1.0, 2, 3, 4, 5])) == pytest.approx(-1.0)
    # order 1 2 3 4, scores 4 4 2 3: pair (1,2) is tied, (3,4) discordant, four are concordant: (4 - 1) / sqrt(6 * 5)
    assert agreement.tau_b(np.array([4.0, 4, 2, 3])) == pytest.approx(3 / math.sqrt(30))
    assert math.isnan(agreement.tau_b(np.array([1.0, 1, 1])))
    assert math.isnan(agreement.tau_b(np.array([1.0])))
    scores = np.random.default_rng(0).integers(0, 4, 9).astype(float)
    assert agreement.tau_b(scores) == pytest.approx(scipy.stats.kendalltau(range(9, 0, -1), scores).statistic)


def test_mean_percentile_by_hand() -> None:
    catalogue = np.array([5.0, 3.0, 3.0, 0.0, 0.0])
    # 5: 1. 3: one above, two tied: 1 - 1.5/4. 0: three above, two tied: 1 - 3.5/4. An unknown item: 0.
    for score, expected in ((5.0, 1.0), (3.0, 0.625), (0.0, 0.125), (-np.inf, 0.0)):
        assert agreement.mean_percentile(catalogue, np.array([score])) == pytest.approx(expected)
    assert agreement.mean_percentile(catalogue, catalogue) == pytest.approx(0.5)  # of the whole catalog: chance
