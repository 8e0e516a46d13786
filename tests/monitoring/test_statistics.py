"""Statistics of experiments: known values, values by hand, and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from recloop.monitoring import statistics
from recloop.monitoring.statistics import effect


def arms(n: int) -> np.ndarray:
    return np.arange(n) % 2 == 1


def test_effect_of_a_mean_by_hand() -> None:
    found = effect(np.array([1.0, 2, 3, 6]), np.array([False, False, True, True]))
    # means 1.5 and 4.5; variances 0.5 and 4.5, two users each: se = sqrt(0.25 + 2.25)
    assert (found.live, found.candidate, found.delta) == (1.5, 4.5, 3.0)
    assert found.se == pytest.approx(math.sqrt(2.5))
    assert found.interval() == pytest.approx((3 - 1.959964 * math.sqrt(2.5), 3 + 1.959964 * math.sqrt(2.5)))


def test_effect_of_a_mean_equals_welch() -> None:
    draw = np.random.default_rng(0)
    y, treated = draw.exponential(2, 501), draw.random(501) < 0.4
    found = effect(y, treated)
    assert found.z == pytest.approx(scipy.stats.ttest_ind(y[treated], y[~treated], equal_var=False).statistic)


def test_effect_of_a_ratio_by_hand() -> None:
    # live: (1 + 0) / (2 + 2) = 0.25; candidate: (1 + 2) / (1 + 3) = 0.75; R = 4/8 = 0.5
    y, n, treated = np.array([1.0, 0, 1, 2]), np.array([2.0, 2, 1, 3]), np.array([False, False, True, True])
    found = effect(y, treated, n)
    assert (found.live, found.candidate, found.delta) == pytest.approx((0.25, 0.75, 0.5))
    # L = 0, -1 | 0.5, 0.5; divided by the arm's mean n of 2: 0, -0.5 | 0.25, 0.25; se^2 = 0.125/2 + 0
    assert found.se == pytest.approx(math.sqrt(0.0625))


def test_effect_of_a_ratio_with_equal_denominators_is_a_mean() -> None:
    draw = np.random.default_rng(1)
    y = draw.normal(3, 1, 100)
    ratio, mean = effect(y, arms(100), np.full(100, 2.0)), effect(y / 2, arms(100))
    assert (ratio.delta, ratio.se) == pytest.approx((mean.delta, mean.se))


def test_cuped_by_hand() -> None:
    # x - mean: -1.5, 0.5, -0.5, 1.5; theta from deviations within the arms: y - arm mean = -1, 1, -1, 1: 4 / 5 = 0.8
    y, x = np.array([1.0, 3, 5, 7]), np.array([0.0, 2, 1, 3])
    treated = np.array([False, False, True, True])
    assert statistics.cuped(y, x, (~treated, treated)) == pytest.approx(y - 0.8 * (x - 1.5))
    assert statistics.cuped(y, np.full(4, np.nan)) is y
    assert statistics.cuped(y, np.ones(4)) is y
    missing = statistics.cuped(np.array([1.0, 2, 9]), np.array([0.0, 1, np.nan]))
    assert missing[2] == 9.0  # a user without a covariate is not adjusted


def test_cuped_removes_the_variance_that_the_covariate_explains() -> None:
    draw = np.random.default_rng(2)
    x = draw.normal(0, 1, 40_000)
    y = 0.8 * x + 0.6 * draw.normal(0, 1, 40_000)
    treated = arms(40_000)
    found = effect(y + 0.1 * treated, treated, x=x)
    assert found.reduction == pytest.approx(0.64, abs=0.01)
    assert found.delta == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("ratio", [False, True])
def test_effect_interval_has_nominal_coverage(ratio: bool) -> None:
    draw, covered = np.random.default_rng(3), 0
    for _ in range(1_000):
        users = 400
        treated = draw.random(users) < 0.5
        taste = draw.beta(2, 6, users)
        n = 1.0 + draw.poisson(2, users)
        y = draw.binomial(n.astype(int), np.clip(taste + 0.05 * treated, 0, 1)).astype(float)
        x = draw.binomial(20, taste) / 20.0
        found = effect(y, treated, n, x) if ratio else effect(y / n, treated, x=x)
        low, high = found.interval()
        covered += low <= 0.05 <= high
    assert 0.935 <= covered / 1_000 <= 0.965


def test_confidence_sequence_by_hand() -> None:
    rho2 = (-2 * math.log(0.05) + math.log(1 - 2 * math.log(0.05))) / 5_000
    n, se = 2_000, 0.01
    expected = (
        se * math.sqrt(n) * math.sqrt(2 * (n * rho2 + 1) / (n**2 * rho2) * math.log(math.sqrt(n * rho2 + 1) / 0.05))
    )
    assert statistics.half_width(se, n) == pytest.approx(expected)
    widths = [statistics.half_width(1 / math.sqrt(n), n) * math.sqrt(n) for n in (500, 5_000, 50_000)]
    assert min(widths) == widths[1]  # in units of the standard error it is narrowest near n*
    assert 2.5 < widths[1] < 3.5
    assert math.isnan(statistics.Effect(0, 0, 0, 1, 199, 5_000).sequence()[0])


def test_confidence_sequence_covers_the_truth_at_all_times() -> None:
    """Over 400 experiments at most 5 % ever exclude the truth."""
    draw, left = np.random.default_rng(4), 0
    for _ in range(400):
        y = draw.exponential(1.0, 4_000)
        treated = arms(4_000)
        y = y + 0.1 * treated
        n = np.arange(1, 2_001)
        mean = [np.cumsum(y[arm]) / n for arm in (~treated, treated)]
        square = [np.cumsum(y[arm] ** 2) / n for arm in (~treated, treated)]
        looks = np.arange(200, 2_001, 25) - 1
        for k in looks:
            var = sum((square[a][k] - mean[a][k] ** 2) / k for a in (0, 1))
            one = statistics.Effect(mean[0][k], mean[1][k], mean[1][k] - mean[0][k], math.sqrt(var), k + 1, k + 1)
            low, high = one.sequence()
            if not low <= 0.1 <= high:
                left += 1
                break
    assert left / 400 <= 0.05


@pytest.mark.parametrize(
    ("looks", "known"),
    [
        (2, [2.9626, 1.9686]),
        (3, [3.7103, 2.5114, 1.9930]),
        (4, [4.3326, 2.9631, 2.3590, 2.0141]),
        (5, [4.8769, 3.3569, 2.6803, 2.2898, 2.0310]),
    ],
)
def test_sequential_bounds_equal_published_tables(looks: int, known: list[float]) -> None:
    """Lan-DeMets bounds with O'Brien-Fleming spending, two-sided 0.05."""
    assert statistics.sequential_bounds(tuple((k + 1) / looks for k in range(looks))) == pytest.approx(known, abs=2e-4)


def test_sequential_bounds_of_one_analysis_is_1_96_and_bad_times_raise() -> None:
    assert statistics.sequential_bounds((1.0,)) == pytest.approx([1.959964], abs=1e-5)
    assert statistics.alpha_spent(1.0) == pytest.approx(0.05)
    for wrong in ([0.5, 0.5], [0.0, 1.0], [0.5, 1.2]):
        with pytest.raises(ValueError, match="increasing"):
            statistics.sequential_bounds(tuple(wrong))


def test_sequential_bounds_have_the_nominal_error() -> None:
    draw = np.random.default_rng(5)
    times = [0.25, 0.5, 0.75, 1.0]
    steps = draw.normal(0, 0.5, (40_000, 4))
    z = np.cumsum(steps, axis=1) / np.sqrt(times)
    wrong = (np.abs(z) > statistics.sequential_bounds(tuple(times))).any(axis=1).mean()
    assert wrong == pytest.approx(0.05, abs=0.004)
    assert (np.abs(z) > 1.96).any(axis=1).mean() > 0.12  # the error of four analyses at one bound


def test_sample_ratio_by_hand() -> None:
    assert statistics.sample_ratio([0, 0], [0.5, 0.5]) == pytest.approx(1.0)
    # two users in one arm: Gamma(2)/Gamma(4) * Gamma(3) / 0.25 = (1/6) * 2 * 4
    assert statistics.sample_ratio([2, 0], [0.5, 0.5]) == pytest.approx(4 / 3)
    # three arms, one user each: Gamma(3)/Gamma(6) * 27
    assert statistics.sample_ratio([1, 1, 1], [1 / 3] * 3) == pytest.approx(2 / 120 * 27)
    assert statistics.sample_ratio([0, 10_000], [0.5, 0.5]) > 1e100
    with pytest.raises(ValueError, match="sum to 1"):
        statistics.sample_ratio([1, 1], [0.5, 0.4])


def test_sample_ratio_detects_a_leak_with_few_false_alarms() -> None:
    """An e-process exceeds 1/a with probability at most a over all checks."""
    draw, passed = np.random.default_rng(6), 0
    for _ in range(300):
        counts = np.cumsum(draw.random(3_000) < 0.3)
        looks = [statistics.sample_ratio([n - counts[n - 1], counts[n - 1]], [0.7, 0.3]) for n in range(50, 3_001, 50)]
        passed += max(looks) > 20
    assert passed / 300 <= 0.05
    assert statistics.sample_ratio([5_000, 4_500], [0.5, 0.5]) > statistics.SAMPLE_RATIO_ALARM


def test_effect_of_an_empty_arm_raises() -> None:
    with pytest.raises(ValueError, match="an arm has no user"):
        effect(np.ones(3), np.ones(3, dtype=bool))
    alone = effect(np.array([1.0, 2.0]), np.array([False, True]))
    assert math.isnan(alone.z)
