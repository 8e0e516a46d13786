"""Bootstrap over users: means, intervals, paired differences, Holm's adjustment.

Formulas are those of docs/definitions/ranking-metrics.md, each with a test computed by hand. U users, C columns;
NaN marks a missing value of a user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recloop.evaluation.metrics import Floats
from recloop.files import JsonTree

N_DRAWS: Final = 2_000
MAX_DRAWN_USERS: Final = 20_000
"""With more users, a draw samples `BUCKETS` random groups of users instead of users."""
BUCKETS: Final = 1_000
"""Number of groups; their sums give the standard error within about 1 / sqrt(2 * 1,000) = 2 %."""


def user_means(values: NDArray[Any], users: NDArray[Any], n_users: int) -> Floats:
    """Average (Q, C) values per user to (U, C) without NaN; NaN without a value."""
    has_value = ~np.isnan(values)
    means = np.full((n_users, values.shape[1]), np.nan)
    for column in range(values.shape[1]):
        rows = has_value[:, column]
        count = np.bincount(users[rows], minlength=n_users)
        total = np.bincount(users[rows], weights=values[rows, column], minlength=n_users)
        means[count > 0, column] = total[count > 0] / count[count > 0]
    return means


def mean_over_users(values: Floats) -> Floats:
    """Average (U, C) over users with a value to (C,); NaN without any."""
    has_value = ~np.isnan(values)
    count = has_value.sum(axis=0)
    total = np.where(has_value, values, 0.0).sum(axis=0)
    mean: Floats = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean


def resample(values: Floats, seed: int, draws: int = N_DRAWS) -> Floats:
    """Return (draws, C) means of (U, C) over users drawn with replacement.

    Each draw samples U of the U users, since a user's queries are not independent. A column's mean is over the drawn
    users that have a value in it. All columns share each draw, so the difference of two columns is a paired
    difference. Above `MAX_DRAWN_USERS`, random groups of users of equal size are drawn, so the cost of a draw does not
    depend on U. Memory: 32 MiB of weights at a time for any U.
    """
    n_users, columns = values.shape
    if n_users == 0:
        return np.full((draws, columns), np.nan)
    random = np.random.default_rng(seed)
    has_value, filled = ~np.isnan(values), np.nan_to_num(values)
    if n_users > MAX_DRAWN_USERS:
        bucket = random.permutation(n_users) % BUCKETS
        has_value, filled = (_bucket_sums(column, bucket) for column in (has_value, filled))
    counts, sums = has_value.astype(np.float32), filled.astype(np.float32)  # (units, C)
    units = len(counts)
    means = np.empty((draws, columns))
    step = max(1, min(draws, 2**23 // units))
    for start in range(0, draws, step):
        weights = _drawn_counts(random, min(step, draws - start), units)  # (step, units)
        count = weights @ counts
        means[start : start + step] = np.where(count > 0, (weights @ sums) / np.maximum(count, 1.0), np.nan)
    return means


def _drawn_counts(random: np.random.Generator, draws: int, units: int) -> NDArray[np.float32]:
    """(draws, units) times that each unit was drawn; each draw takes ``units`` units.

    1 MiB of drawn units is counted at a time.
    """
    counts = np.empty((draws, units), dtype=np.float32)
    step = max(1, 2**17 // units)
    for start in range(0, draws, step):
        drawn = random.integers(0, units, (min(step, draws - start), units))
        drawn += units * np.arange(len(drawn))[:, None]
        counts[start : start + step] = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
    return counts


def _bucket_sums(values: NDArray[Any], bucket: NDArray[np.int64]) -> Floats:
    """Sum (U, C) over users to (`BUCKETS`, C)."""
    columns = [np.bincount(bucket, weights=column, minlength=BUCKETS) for column in values.T]
    return np.column_stack(columns)


@dataclass(frozen=True)
class Estimate:
    """Mean and its 95 % CI over users."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """Return the numbers with six decimals, which do not depend on the order of sums."""
        return {"value": plain(self.value), "low": plain(self.low), "high": plain(self.high)}

    def signed_text(self) -> str:
        """Return a difference and its interval with signs and four decimals."""
        return f"{self.value:+.4f}, 95 % CI {self.low:+.4f} to {self.high:+.4f}"


def plain(value: float) -> float | None:
    """Return a number for JSON: six decimals, NaN as null."""
    return None if np.isnan(value) else round(float(value), 6)


def estimate(value: float, samples: Floats) -> Estimate:
    """Return the value with the 2.5 and 97.5 percentiles of its resampled means."""
    finite = samples[~np.isnan(samples)]
    if not len(finite):
        return Estimate(float(value), float("nan"), float("nan"))
    low, high = np.quantile(finite, (0.025, 0.975))
    return Estimate(float(value), float(low), float(high))


@dataclass(frozen=True)
class Difference:
    """Paired difference of two means over the same users, also relative to the second."""

    absolute: Estimate
    relative: Estimate
    p: float

    @property
    def verdict(self) -> str:
        """Return the verdict of the interval: ``more``, ``less`` or ``inconclusive``."""
        if self.absolute.low > 0:
            return "more"
        return "less" if self.absolute.high < 0 else "inconclusive"

    def to_json(self) -> JsonTree:
        return {**self.absolute.to_json(), "relative": self.relative.to_json(), "p": plain(self.p)}


def difference(first: Floats, second: Floats, seed: int, draws: int = N_DRAWS) -> Difference:
    """Return the paired difference of two (U,) columns over the users with both.

    value = mean(first - second); relative = mean(first) / mean(second) - 1; intervals by `resample`;
    p = two-sided bootstrap, 2 * min((1 + draws <= 0) / (1 + draws), (1 + draws >= 0) / (1 + draws)), at most 1.
    """
    has_both = ~(np.isnan(first) | np.isnan(second))
    columns = np.column_stack([first[has_both] - second[has_both], first[has_both], second[has_both]])
    means, samples = mean_over_users(columns), resample(columns, seed, draws)
    differences = samples[:, 0]
    p = 2.0 * min(1 + int((differences <= 0).sum()), 1 + int((differences >= 0).sum())) / (1 + draws)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, ratios = means[1] / means[2] - 1.0, samples[:, 1] / samples[:, 2] - 1.0
    finite = ratios[np.isfinite(ratios)]
    relative = estimate(float(ratio) if np.isfinite(ratio) else float("nan"), finite)
    return Difference(estimate(float(means[0]), differences), relative, min(1.0, p) if has_both.any() else float("nan"))


def holm(p: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjustment of m p-values.

    Sorted ascending, p'(i) = max over j <= i of min(1, (m-j+1) p(j)).
    """
    order = np.argsort(p, kind="stable")
    adjusted = [0.0] * len(p)
    highest = 0.0
    for j, position in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - j) * float(p[position])))
        adjusted[position] = highest
    return adjusted


def estimates_of(columns: Mapping[str, Floats], users: Sequence[str], seed: int) -> dict[str, Estimate]:
    """Return the mean over users of each column (Q,), with an interval.

    Args:
        users: (Q,) user of each query.
    """
    names, user = np.unique(np.array(users, dtype=object), return_inverse=True)
    by_user = user_means(np.column_stack([*columns.values()]), user, len(names))
    means, samples = mean_over_users(by_user), resample(by_user, seed)
    return {name: estimate(float(means[c]), samples[:, c]) for c, name in enumerate(columns)}
