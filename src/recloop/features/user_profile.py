"""Profile of a user for the ranker: a history summed by item, category and amount.

Ages are measured at the newest moment, so a profile does not depend on the time of a query; its state keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from recloop.features.encode import EncodedBatch
from recloop.features.item_statistics import UNKNOWN, ItemStatistics
from recloop.records import DAY

HALF_LIVES: Final = (7.0, 30.0, 90.0, 365.0)
"""Half-lives in days of the decayed counts."""
FIELD_HALF_LIFE: Final = 90.0
"""Half-life in days of the counts by category."""
RECENT_MOMENTS: Final = (1, 3, 10)
"""Numbers of newest moments whose rows are counted."""
INPUT_WEIGHT: Final = 0.2
"""Weight of a row that is only an input, relative to a target."""
MISSING: Final = -1.0
"""Value of a feature that a candidate does not have."""
MAX_HALVINGS: Final = 100.0

OWN_COLUMNS: Final = (
    *(f"count_{days:g}d" for days in HALF_LIVES), "last", "first", "count", "share", "share_since_first", "gap",
    "moments_since_last", *(f"last_{n}" for n in RECENT_MOMENTS), "rank",
)  # fmt: skip
"""Columns of `UserProfile.own`; ``last`` and ``first`` are ages in days."""
FIELD_COLUMNS: Final = ("count", "last", "share", "total", "gap")
"""Columns of `UserProfile.by_field`; ``total`` counts the rows of the category without decay."""
QUERY_COLUMNS: Final = ("moments", "moment_size", "last_size", "distinct", "gap")
"""Columns of `UserProfile.facts`."""


@dataclass(frozen=True)
class RowsByKey:
    """A table over the ascending distinct keys of a history; its last row is for other keys."""

    keys: np.ndarray  # (P,)
    table: np.ndarray  # (P+1, columns) float32

    def at(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the (n, columns) rows of some keys, and (n,) bool: the history has the key."""
        if not len(self.keys):
            return self.table[np.zeros(len(keys), dtype=np.int64)], np.zeros(len(keys), dtype=bool)
        position = np.searchsorted(self.keys, keys)
        position[position == len(self.keys)] = 0
        is_known = self.keys[position] == keys
        position[~is_known] = len(self.keys)
        return self.table[position], is_known


@dataclass(frozen=True)
class UserProfile:
    """History of one query, without the time of the query.

    Attributes:
        newest: Stamp of the newest moment, int64 microseconds; None without a history.
        facts: (5,) float32, columns as `QUERY_COLUMNS`.
        own: Rows by item_ix, columns as `OWN_COLUMNS`.
        by_field: Rows by code for each categorical field, columns as `FIELD_COLUMNS`.
        usual: (G,) float32 weighted mean of each numeric field; `UNKNOWN` without one.
    """

    newest: int | None
    facts: np.ndarray
    own: RowsByKey
    by_field: tuple[RowsByKey, ...]
    usual: np.ndarray

    @classmethod
    def of(cls, encoded: EncodedBatch, b: int, statistics: ItemStatistics) -> UserProfile:
        """Summarize the history of query b."""
        history = _History.of(encoded, b)
        return cls(
            newest=int(encoded.stamps[encoded.moment_offsets[b + 1] - 1]) if len(history.moment_ages) else None,
            facts=_facts(history),
            own=_own(history),
            by_field=tuple(_by_code(history, codes) for codes in statistics.codes),
            usual=np.array([_usual(history, amounts) for amounts in statistics.amounts], dtype=np.float32),
        )


@dataclass(frozen=True)
class _History:
    """Rows of one query, oldest first; ages in days at the newest moment."""

    items: np.ndarray  # (E,)
    rank: np.ndarray  # (E,) position of the row's moment; 0 is the newest
    ages: np.ndarray  # (E,)
    weights: np.ndarray  # (E,)
    moment_ages: np.ndarray  # (M,)
    sizes: np.ndarray  # (M,)

    @classmethod
    def of(cls, encoded: EncodedBatch, b: int) -> _History:
        first, last = encoded.moment_offsets[b : b + 2].tolist()
        offsets = encoded.item_offsets[first : last + 1]
        rows = slice(int(offsets[0]), int(offsets[-1]))
        sizes = np.diff(offsets)
        stamps = encoded.stamps[first:last]
        moment_ages = (stamps[-1] - stamps) / DAY if len(stamps) else np.zeros(0)
        return cls(
            encoded.items[rows],
            np.repeat(np.arange(last - first - 1, -1, -1), sizes),
            np.repeat(moment_ages, sizes),
            np.where(encoded.targets[rows], 1.0, INPUT_WEIGHT),
            moment_ages,
            sizes,
        )

    def decayed(self, days: float) -> np.ndarray:
        """(E,) weights of the rows, halved every ``days``."""
        decay = np.exp2(-np.minimum(self.moment_ages / days, MAX_HALVINGS))
        weights: np.ndarray = np.repeat(decay, self.sizes) * self.weights
        return weights


def _facts(history: _History) -> np.ndarray:
    n_moments, n_rows = len(history.moment_ages), len(history.items)
    if not n_moments:
        return np.array([0.0, 0.0, 0.0, 0.0, MISSING], dtype=np.float32)
    gap = history.moment_ages[0] / (n_moments - 1) if n_moments > 1 else MISSING
    n_distinct = len(np.unique(history.items))
    return np.array([n_moments, n_rows / n_moments, history.sizes[-1], n_distinct / n_rows, gap], dtype=np.float32)


class _Groups:
    """Rows of a history grouped by a key; sums over them."""

    def __init__(self, history: _History, row_keys: np.ndarray) -> None:
        self.keys, self._slots = np.unique(row_keys, return_inverse=True)
        self._history = history

    def sum(self, weights: np.ndarray | None = None) -> np.ndarray:
        """(P,) sums of row weights; without weights the number of rows."""
        return np.bincount(self._slots, weights=weights, minlength=len(self.keys)).astype(np.float64)

    def newest(self, values: np.ndarray) -> np.ndarray:
        """(P,) value of the newest row of each key."""
        out = np.zeros(len(self.keys))
        out[self._slots] = values
        return out

    def oldest(self, values: np.ndarray) -> np.ndarray:
        """(P,) value of the oldest row of each key."""
        out = np.zeros(len(self.keys))
        out[self._slots[::-1]] = values[::-1]
        return out

    def table(self, columns: list[np.ndarray], missing: list[float]) -> RowsByKey:
        """Join columns; ``missing`` is the row of other keys."""
        table = np.empty((len(self.keys) + 1, len(columns)), dtype=np.float32)
        table[:-1] = np.stack(columns, axis=1)
        table[-1] = missing
        return RowsByKey(self.keys, table)


def _own(history: _History) -> RowsByKey:
    groups = _Groups(history, history.items)
    decayed = [groups.sum(history.decayed(days)) for days in HALF_LIVES]
    last, first = groups.newest(history.ages), groups.oldest(history.ages)
    n_rows, count = groups.sum(), groups.sum(history.weights)
    order = np.argsort(-decayed[HALF_LIVES.index(FIELD_HALF_LIFE)], kind="stable")
    rank = np.empty(len(order))
    rank[order] = np.arange(len(order))
    columns = [
        *decayed,
        last,
        first,
        count,
        count / max(1, len(history.moment_ages)),
        count / (groups.oldest(history.rank) + 1),
        np.where(n_rows > 1, (first - last) / np.maximum(1, n_rows - 1), MISSING),
        groups.newest(history.rank),
        *(groups.sum(history.weights * (history.rank < n)) for n in RECENT_MOMENTS),
        rank,
    ]
    absent = [0.0] * len(HALF_LIVES) + [MISSING, MISSING, 0.0, 0.0, 0.0, MISSING, MISSING]
    return groups.table(columns, [*absent, *(0.0 for _ in RECENT_MOMENTS), MISSING])


def _by_code(history: _History, codes: np.ndarray) -> RowsByKey:
    groups = _Groups(history, codes[history.items])
    decayed = groups.sum(history.decayed(FIELD_HALF_LIFE))
    n_rows = groups.sum()
    last = groups.newest(history.ages)
    gap = np.where(n_rows > 1, (groups.oldest(history.ages) - last) / np.maximum(1, n_rows - 1), MISSING)
    share = decayed / max(1e-9, float(decayed.sum()))
    return groups.table([decayed, last, share, groups.sum(history.weights), gap], [0.0, MISSING, 0.0, 0.0, MISSING])


def _usual(history: _History, amounts: np.ndarray) -> float:
    values = amounts[history.items]
    weights = history.weights * (values > UNKNOWN)
    total = float(weights.sum())
    return float((np.where(values > UNKNOWN, values, 0.0) * weights).sum()) / total if total else float(UNKNOWN)
