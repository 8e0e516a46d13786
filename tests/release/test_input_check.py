"""The input check: its band by hand, its alarm rate, and the effect of the window size."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.stats

from recloop.evaluation.paired import LossEstimate, window_loss
from recloop.release import gate_result, input_check


def windows(losses: list[float], queries: int = 300, spread: float = 1.5) -> list[LossEstimate]:
    return [LossEstimate(loss, queries, spread) for loss in losses]


def test_input_check_band_by_hand() -> None:
    earlier = windows([1.0, 2.0, 3.0])  # mean 2, s 1, t(2; 0.9995) = 31.599: 2 +- 31.599 * sqrt(4/3)
    reach = float(scipy.stats.t.ppf(0.9995, 2)) * math.sqrt(4 / 3)
    found = input_check.input_check(LossEstimate(2.0, 300, 1.5), earlier)
    assert (found.low, found.high) == pytest.approx((2 - reach, 2 + reach))
    assert found.ok
    assert not input_check.input_check(LossEstimate(2 + reach + 0.01, 300, 1.5), earlier).ok
    equal = input_check.input_check(LossEstimate(2.0, 300, 0), windows([2.0] * 30))  # 20 of them count, a spread of 1 %
    assert equal.high == pytest.approx(2 + scipy.stats.t.ppf(0.9995, 19) * 0.02 * math.sqrt(1.05))
    assert input_check.input_check(LossEstimate(5.0, 300, 1.5), windows([1.0, 2.0])).weak
    assert not input_check.input_check(LossEstimate(math.nan, 300, 0), earlier).ok
    assert (
        input_check.input_check(LossEstimate(9.0, 300, 1), windows([9.0] * 5 + [1.0] * 20)).ok is False
    )  # only the last 20
    json.dumps(input_check.input_check(LossEstimate(math.nan, 0, 0), []).to_json(), allow_nan=False)
    assert gate_result.verdict([input_check.input_check(LossEstimate(9.0, 300, 1), windows([1.0] * 20))]) == "blocked"


def test_input_check_band_widens_for_smaller_windows_only() -> None:
    earlier = windows([2.0] * 20, 300, 1.5)
    small = input_check.input_check(
        LossEstimate(2.0, 50, 9.0), earlier
    )  # the window's spread is not used: that of a poisoned one is unreliable
    width = math.sqrt(0.02**2 * 1.05 + 1.5**2 * (1 / 50 - 1 / 300))
    assert small.high == pytest.approx(2 + scipy.stats.t.ppf(0.9995, 19) * width)
    larger, equal = (input_check.input_check(LossEstimate(2.0, queries, 1.5), earlier).high for queries in (3_000, 300))
    assert larger == pytest.approx(equal)


def test_input_check_with_few_queries_is_a_weak_pass() -> None:
    """Five queries without a hit have a loss of 9.2 for any live bundle."""
    earlier = windows([1.6, 1.7, 1.5, 1.6], 300)
    found = input_check.input_check(window_loss(np.zeros(5)), earlier)
    assert (found.ok, found.weak, found.note) == (True, True, "weak: 5 queries, too few to judge")
    assert not input_check.input_check(window_loss(np.zeros(input_check.MIN_QUERIES)), earlier).ok


def test_window_loss_by_hand() -> None:
    found = window_loss(np.array([0.0, 0.5, np.nan, 1.0]))  # mean 0.5, standard deviation sqrt(1/6)
    assert found == pytest.approx((math.log(2), 3, math.sqrt(1 / 6) / 0.5))
    assert window_loss(np.zeros(4)).loss == pytest.approx(-math.log(1e-4))
    assert math.isnan(window_loss(np.array([np.nan])).loss)


def test_input_check_alarm_rate_is_nominal() -> None:
    random = np.random.default_rng(0)
    drawn = random.normal(3, 0.2, (4_000, 9)).tolist()
    usual = [input_check.input_check(LossEstimate(one[-1], 300, 0), windows(one[:-1])).ok for one in drawn]
    assert 0.9970 <= np.mean(usual) <= 0.9999
    drawn = random.normal(3, 0.2, (200, 9)).tolist()
    assert not any(input_check.input_check(LossEstimate(one[-1] + 4, 300, 0), windows(one[:-1])).ok for one in drawn)


@pytest.mark.parametrize("queries", [30, 60, 150])
def test_input_check_blocks_poisoned_windows_and_seldom_small_ones(queries: int) -> None:
    """One query in three has a hit; earlier windows have 300 queries."""
    random = np.random.default_rng(1)

    def window(size: int, share: float) -> LossEstimate:
        return window_loss((random.random(size) < share) * random.uniform(0.2, 1, size))

    def blocked_share(share: float) -> float:
        trials = [
            input_check.input_check(window(queries, share), [window(300, 1 / 3) for _ in range(20)]) for _ in range(200)
        ]
        return float(np.mean([not one.ok for one in trials]))

    assert blocked_share(1 / 3) <= 0.015
    if queries >= 150:
        assert blocked_share(0.02) >= 0.99
