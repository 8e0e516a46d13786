"""Experiment statistics: effects, CUPED, sequential bounds, sample ratio.

See docs/definitions/experiments.md. Every function is pure, works on one number per user, and is tested against known
answers and by simulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, ndtr, ndtri  # importing scipy.stats takes a second

ALPHA: Final = 0.05
MIN_USERS_PER_ARM: Final = 200
"""Fewest users per arm for the confidence sequence, which uses a normal approximation."""
TUNED_USERS: Final = 5_000
"""Number of users n* at which the confidence sequence is narrowest."""
SAMPLE_RATIO_ALARM: Final = 1_000.0
GRID_POINTS: Final = 801
BISECTION_STEPS: Final = 45
"""Bisection steps over [0, 12] for a bound."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Effect:
    """Difference of two arms, candidate - live, in the unit of the metric.

    Attributes:
        live, candidate: Mean (or pooled ratio) of each arm before CUPED.
        delta, se: Difference (after CUPED) and its standard error.
        n_live, n_candidate: Users of each arm.
        reduction: Share of the variance removed by CUPED; 0 without it.
    """

    live: float
    candidate: float
    delta: float
    se: float
    n_live: int
    n_candidate: int
    reduction: float = 0.0

    @property
    def z(self) -> float:
        """Delta / se; NaN without variance."""
        return self.delta / self.se if self.se > 0 else math.nan

    @property
    def p(self) -> float:
        """Two-sided p-value of the normal approximation."""
        return float(2 * ndtr(-abs(self.z)))

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Interval for one analysis at a fixed time: delta +- z(1 - alpha/2) * se."""
        reach = float(ndtri(1 - alpha / 2)) * self.se
        return self.delta - reach, self.delta + reach

    def sequence(self, alpha: float = ALPHA, tuned: float = TUNED_USERS) -> tuple[float, float]:
        """Confidence sequence, valid at any time; NaN below 200 users per arm.

        See `half_width`.
        """
        if min(self.n_live, self.n_candidate) < MIN_USERS_PER_ARM:
            return math.nan, math.nan
        reach = half_width(self.se, self.n_live + self.n_candidate, alpha, tuned)
        return self.delta - reach, self.delta + reach

    def is_worse(self, better: int, slack: float, absolute: bool, alpha: float, tuned: float) -> bool:
        """Return True if the whole confidence sequence is a loss of more than ``slack``.

        False below 200 users per arm.

        Args:
            better: 1 if higher is better, -1 if lower is.
            slack: Relative to live or, if ``absolute``, in the unit of the metric.
        """
        low, high = self.sequence(alpha, tuned)
        most = high if better > 0 else -low
        return most < -(slack if absolute else slack * abs(self.live))

    def is_within(self, better: int, slack: float, absolute: bool, alpha: float, tuned: float) -> bool:
        """Return True if the whole confidence sequence is within ``slack``.

        False below 200 users per arm. Arguments: see `is_worse`.
        """
        low, high = self.sequence(alpha, tuned)
        least = low if better > 0 else -high
        return least >= -(slack if absolute else slack * abs(self.live))


def effect(y: Floats, treated: NDArray[np.bool_], n: Floats | None = None, x: Floats | None = None) -> Effect:
    """Estimate the effect on the mean of y, or on the ratio sum(y) / sum(n).

    A ratio is linearized: L = y - R * n with R pooled over both arms. Each arm's mean of L divided by its mean of n is
    its ratio minus R, so their difference is the difference of the ratios. With x, CUPED is applied: V - theta *
    (X - mean X), theta = cov(V, X) / var(X) pooled; a missing X is replaced by the mean. The standard error is that of
    two independent means.

    Args:
        y: (U,) outcome of each user.
        treated: (U,) True for users of the candidate's arm.
        n: (U,) denominator of a ratio; None for a mean over users.
        x: (U,) the same outcome before the experiment; NaN if unknown.

    Raises:
        ValueError: an arm has no users.
    """
    if not treated.any() or treated.all():
        raise ValueError("an arm has no users; expected users in both arms")
    arms = (~treated, treated)
    if n is None:
        values = y.astype(np.float64)
        arm_means = [float(y[arm].mean()) for arm in arms]
    else:
        ratio = y.sum() / n.sum() if n.sum() else 0.0
        values = (y - ratio * n).astype(np.float64)
        arm_means = []
        for arm in arms:
            per_user = float(n[arm].mean())
            arm_means.append(float(y[arm].sum() / n[arm].sum()) if per_user else math.nan)
            values[arm] = values[arm] / per_user if per_user else math.nan
    variance = _variance(values, arms)
    if x is not None:
        values = cuped(values, x, arms)
    adjusted_variance = _variance(values, arms)
    reduction = 1.0 - adjusted_variance / variance if variance > 0 else 0.0
    delta = float(values[treated].mean() - values[~treated].mean())
    return Effect(
        arm_means[0],
        arm_means[1],
        delta,
        math.sqrt(adjusted_variance),
        int((~treated).sum()),
        int(treated.sum()),
        reduction,
    )


def _variance(values: Floats, arms: Sequence[NDArray[np.bool_]]) -> float:
    """Variance of the difference of two independent means; an arm of one user adds 0."""
    return sum(float(values[arm].var(ddof=1)) / int(arm.sum()) for arm in arms if arm.sum() > 1)


def cuped(values: Floats, x: Floats, arms: Sequence[NDArray[np.bool_]] = ()) -> Floats:
    """Adjust values by CUPED: V - theta * (X - mean X), theta = cov(V, X) / var(X).

    A missing X is replaced by the mean, so it changes nothing.

    Args:
        arms: Masks of the arms. theta uses each arm's deviations from its own mean of V, so that the effect itself does
            not count as covariance.
    """
    known = ~np.isnan(x)
    if not known.any():
        return values
    filled = np.where(known, x, x[known].mean())
    deviations = filled - filled.mean()
    spread = float(deviations @ deviations)
    if spread <= 0:
        return values
    centred = values.copy()
    for arm in arms:
        centred[arm] -= values[arm].mean()
    adjusted: Floats = values - float(deviations @ centred) / spread * deviations
    return adjusted


def half_width(se: float, n: int, alpha: float = ALPHA, tuned: float = TUNED_USERS) -> float:
    """Half width of the confidence sequence.

    s sqrt(n) * sqrt(2 (n rho^2 + 1) / (n rho)^2 * ln(sqrt(n rho^2 + 1) / alpha)) with the standard error s of delta and
    rho^2 = (-2 ln a + ln(1 - 2 ln a)) / n* (Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, "Time-uniform central limit
    theory and asymptotic confidence sequences", 2021; GrowthBook's "sequential").
    """
    rho2 = (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / tuned
    growth = n * rho2 + 1
    return se * math.sqrt(n) * math.sqrt(2 * growth / (n * n * rho2) * math.log(math.sqrt(growth) / alpha))


def alpha_spent(t: float, alpha: float = ALPHA) -> float:
    """Two-sided error spent by information t: 4 - 4 Phi(z(1 - alpha/4) / sqrt(t)).

    Spending function of Lan and DeMets for O'Brien and Fleming's bounds, alpha / 2 per side (Biometrika 1983).
    """
    if t <= 0:
        return 0.0
    return float(4 * ndtr(-ndtri(1 - alpha / 4) / math.sqrt(min(1.0, t))))


@lru_cache(maxsize=64)
def sequential_bounds(times: tuple[float, ...], alpha: float = ALPHA) -> tuple[float, ...]:
    """Compute the z bound of each planned look for a total error of at most alpha.

    Between looks the score B(t) is a Brownian motion. Its density inside the bounds is propagated on a grid (Armitage,
    McPherson, Rowe, 1969). Each bound is set so that the probability of crossing equals the error to spend.

    Args:
        times: Increasing shares of the planned information, the last at most 1.
    """
    if any(b <= a for a, b in zip([0.0, *times], times, strict=False)) or (times and times[-1] > 1 + 1e-9):
        raise ValueError(f"looks at {times}; expected increasing shares of the plan, above 0 and at most 1")
    bounds: list[float] = []
    grid = np.zeros(1)
    density = np.ones(1)
    previous = 0.0
    for t in times:
        budget = alpha_spent(t, alpha) - (alpha_spent(previous, alpha) if previous else 0.0)
        step = math.sqrt(t - previous)
        z = 0.0
        upper = 12.0
        for _ in range(BISECTION_STEPS):
            midpoint = (z + upper) / 2
            z, upper = (midpoint, upper) if _excess(midpoint, t, step, grid, density, budget) > 0 else (z, midpoint)
        bounds.append(z)
        # Density inside the bounds on the next grid, multiplied by the weights of Simpson's rule.
        edge = z * math.sqrt(t)
        next_grid = np.linspace(-edge, edge, GRID_POINTS)
        weights = np.full(GRID_POINTS, 2.0)
        weights[1::2] = 4.0
        weights[[0, -1]] = 1.0
        weights *= (next_grid[1] - next_grid[0]) / 3
        density = weights * (_normal((next_grid[:, None] - grid) / step) @ density) / step
        grid = next_grid
        previous = t
    return tuple(bounds)


def _normal(x: Floats) -> Floats:
    """Density of the standard normal distribution."""
    density: Floats = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return density


def _excess(z: float, t: float, step: float, grid: Floats, density: Floats, budget: float) -> float:
    """Probability of crossing the bounds +-z at this look minus the error to spend."""
    edge = z * math.sqrt(t)
    leaves = ndtr((grid - edge) / step) + ndtr((-edge - grid) / step)
    return float(density @ leaves) - budget


def sample_ratio(counts: Sequence[int], shares: Sequence[float]) -> float:
    """Compute the e-value of the multinomial e-process against the planned shares.

    e = Gamma(A) / Gamma(A + n) * product of Gamma(a_i + n_i) / (Gamma(a_i) theta_i^n_i), with Dirichlet(1, ..., 1) as
    the alternative and A = sum of a (Lindon, Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022).
    Under the planned shares it ever exceeds 1,000, the alarm, with a probability of at most 1/1,000.
    """
    n = np.asarray(counts, dtype=np.float64)
    theta = np.asarray(shares, dtype=np.float64)
    if (theta <= 0).any() or abs(theta.sum() - 1) > 1e-9:
        raise ValueError(f"shares {list(shares)}; expected shares above 0 that sum to 1")
    prior = np.ones(len(n))
    log_e = (
        gammaln(prior.sum())
        - gammaln(prior.sum() + n.sum())
        + (gammaln(prior + n) - gammaln(prior)).sum()
        - (n * np.log(theta)).sum()
    )
    return float(np.exp(min(700.0, log_e)))
