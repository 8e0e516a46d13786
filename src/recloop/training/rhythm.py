"""Fit the tables of `recloop.features.rhythm`."""

from __future__ import annotations

from typing import Final

import numpy as np

from recloop.features.rhythm import BINS, HAZARD_DAYS, WEEKDAYS, Rhythm, hazard_bins, weekdays_and_hours
from recloop.models.base import TrainData
from recloop.records import DAY

PRIOR_ROWS: Final = 20.0
"""Rows with the times of all items that each category has besides its own."""
PRIOR_RISKS: Final = 50.0
"""Rows at risk with the hazard of all items that each category has besides its own."""
LAST_BIN_DAYS: Final = 365.0
"""End of the last bin of the hazard."""


def fit_rhythm(data: TrainData, codes: np.ndarray, timezone: str) -> Rhythm:
    """Fit the tables on the rows of users up to ``data.cut``.

    Args:
        codes: (F, N+1) int32 category of each item.
    """
    n_codes = int(codes.max(initial=0)) + 1
    weekday, hour = (part[data.row_moment] for part in weekdays_and_hours(data.stamps, timezone))
    pairs = data.moment_user[data.row_moment].astype(np.int64) * (data.n_items + 1) + data.items
    order = np.argsort(pairs, kind="stable")  # rows of a user ascend by time
    pairs, days = pairs[order], (data.stamps[data.row_moment] / DAY)[order]
    is_last = np.append(pairs[1:] != pairs[:-1], True) if len(pairs) else np.zeros(0, dtype=bool)
    until = np.where(is_last, data.cut / DAY, np.append(days[1:], 0.0)) if len(days) else days
    bins = hazard_bins(until - days)
    times, hazard = [], []
    for of_item in codes:
        code = of_item[data.items].astype(np.int64)
        counts = np.bincount(code * BINS + weekday, minlength=n_codes * BINS)
        counts = counts + np.bincount(code * BINS + WEEKDAYS + hour, minlength=n_codes * BINS)
        counts = counts.reshape(n_codes, BINS)
        times.append(np.concatenate([_log_ratio(counts[:, :WEEKDAYS]), _log_ratio(counts[:, WEEKDAYS:])], axis=1))
        hazard.append(_log_hazard(code[order], bins, is_last, n_codes))
    shape = (len(codes), n_codes)
    return Rhythm(
        np.array(times, dtype=np.float32).reshape(*shape, BINS),
        np.array(hazard, dtype=np.float32).reshape(*shape, len(HAZARD_DAYS) + 1),
    )


def _log_ratio(counts: np.ndarray) -> np.ndarray:
    """(K, n) log of the shares of counts (K, n) over those of all rows, shrunk to 0."""
    total = counts.sum(axis=0) + 1.0
    shares = total / total.sum()
    ratio: np.ndarray = (counts + PRIOR_ROWS * shares) / (counts.sum(axis=1, keepdims=True) + PRIOR_ROWS) / shares
    return np.asarray(np.log(ratio))


def _log_hazard(code: np.ndarray, bins: np.ndarray, is_last: np.ndarray, n_codes: int) -> np.ndarray:
    """(K, bins) log of repeats a day and row at risk, shrunk to that of all items.

    Args:
        code, bins: (E,) category and bin of the days until the next row, or the cut. is_last: (E,) no next row.
    """
    n_bins = len(HAZARD_DAYS) + 1
    key = code * n_bins + bins
    ends = np.bincount(key, minlength=n_codes * n_bins).reshape(n_codes, n_bins)
    repeats = np.bincount(key[~is_last], minlength=n_codes * n_bins).reshape(n_codes, n_bins)
    at_risk = ends[:, ::-1].cumsum(axis=1)[:, ::-1]
    prior = (repeats.sum(axis=0) + 1.0) / (at_risk.sum(axis=0) + 2.0)
    days = np.diff([0.0, *HAZARD_DAYS, LAST_BIN_DAYS])
    hazard: np.ndarray = (repeats + PRIOR_RISKS * prior) / (at_risk + PRIOR_RISKS) / days
    return np.asarray(np.log(hazard))
