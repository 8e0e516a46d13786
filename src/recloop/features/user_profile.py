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
    """Columns over the ascending keys of a history; the last position is for others."""

    keys: np.ndarray  # (P,)
    columns: np.ndarray  # (columns, P+1) float32

    def at(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the (columns, n) values of keys, and (n,) bool: the key is known."""
        if not len(self.keys):
            return self.columns[:, np.zeros(len(keys), dtype=np.int64)], np.zeros(len(keys), dtype=bool)
        position = self.keys.searchsorted(keys)
        position[position == len(self.keys)] = 0
        is_known = self.keys[position] == keys
        position[~is_known] = len(self.keys)
        return self.columns[:, position], is_known


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
        sums = _ItemSums.of(history)
        return cls(
            newest=int(encoded.stamps[encoded.moment_offsets[b + 1] - 1]) if len(history.moment_ages) else None,
            facts=_facts(history, sums),
            own=_own(history, sums),
            by_field=tuple(_by_code(sums, codes) for codes in statistics.codes),
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

    def decayed(self) -> np.ndarray:
        """(half-lives, E) weights of the rows, halved every `HALF_LIVES` days."""
        halvings = np.minimum(self.moment_ages / np.array(HALF_LIVES)[:, None], MAX_HALVINGS)
        weights: np.ndarray = np.repeat(np.exp2(-halvings), self.sizes, axis=1) * self.weights
        return weights


@dataclass(frozen=True)
class _ItemSums:
    """Rows of a history summed by item: P items, ascending."""

    items: np.ndarray  # (P,)
    decayed: list[np.ndarray]  # (P,) for each half-life
    last: np.ndarray  # (P,) age of the newest row
    first: np.ndarray  # (P,) age of the oldest row
    n_rows: np.ndarray  # (P,)
    count: np.ndarray  # (P,) weight of the rows
    recent: list[np.ndarray]  # (P,) weight of the rows in the newest moments
    last_moment: np.ndarray  # (P,) position of the newest moment with the item
    first_moment: np.ndarray  # (P,)
    by_newest: np.ndarray  # (P,) order of the newest rows, oldest first
    by_oldest: np.ndarray  # (P,) order of the oldest rows, newest first

    @classmethod
    def of(cls, history: _History) -> _ItemSums:
        items, slots = np.unique(history.items, return_inverse=True)
        size = len(items)
        oldest = np.empty(size, dtype=np.int64)
        newest = np.empty(size, dtype=np.int64)
        rows = np.arange(len(slots))
        newest[slots] = rows  # rows ascend by time, and the last one written stays
        oldest[slots[::-1]] = rows[::-1]

        def total(weights: np.ndarray | None = None) -> np.ndarray:
            return np.bincount(slots, weights=weights, minlength=size)

        return cls(
            items,
            [total(weights) for weights in history.decayed()],
            history.ages[newest],
            history.ages[oldest],
            total(),
            total(history.weights),
            [_newest_total(history, slots, size, n) for n in RECENT_MOMENTS],
            history.rank[newest],
            history.rank[oldest],
            newest.argsort(),
            oldest.argsort()[::-1],
        )


def _newest_total(history: _History, slots: np.ndarray, size: int, n: int) -> np.ndarray:
    """(P,) weight of the rows in the newest ``n`` moments."""
    start = len(slots) - int(history.sizes[-n:].sum())
    return np.bincount(slots[start:], weights=history.weights[start:], minlength=size)


def _facts(history: _History, sums: _ItemSums) -> np.ndarray:
    n_moments, n_rows = len(history.moment_ages), len(history.items)
    if not n_moments:
        return np.array([0.0, 0.0, 0.0, 0.0, MISSING], dtype=np.float32)
    gap = history.moment_ages[0] / (n_moments - 1) if n_moments > 1 else MISSING
    facts = [n_moments, n_rows / n_moments, history.sizes[-1], len(sums.items) / n_rows, gap]
    return np.array(facts, dtype=np.float32)


def _own(history: _History, sums: _ItemSums) -> RowsByKey:
    order = np.argsort(-sums.decayed[HALF_LIVES.index(FIELD_HALF_LIFE)], kind="stable")
    rank = np.empty(len(order))
    rank[order] = np.arange(len(order))
    columns = [
        *sums.decayed,
        sums.last,
        sums.first,
        sums.count,
        sums.count / max(1, len(history.moment_ages)),
        sums.count / (sums.first_moment + 1),
        _gap(sums.first, sums.last, sums.n_rows),
        sums.last_moment,
        *sums.recent,
        rank,
    ]
    absent = [0.0] * len(HALF_LIVES) + [MISSING, MISSING, 0.0, 0.0, 0.0, MISSING, MISSING]
    return _table(sums.items, columns, [*absent, *(0.0 for _ in RECENT_MOMENTS), MISSING])


def _by_code(sums: _ItemSums, codes: np.ndarray) -> RowsByKey:
    keys, slots = np.unique(codes[sums.items], return_inverse=True)
    size = len(keys)
    decayed = np.bincount(slots, weights=sums.decayed[HALF_LIVES.index(FIELD_HALF_LIFE)], minlength=size)
    n_rows = np.bincount(slots, weights=sums.n_rows, minlength=size)
    last, first = np.empty(size), np.empty(size)
    last[slots[sums.by_newest]] = sums.last[sums.by_newest]  # the last one written stays
    first[slots[sums.by_oldest]] = sums.first[sums.by_oldest]
    count = np.bincount(slots, weights=sums.count, minlength=size)
    share = decayed / max(1e-9, float(decayed.sum()))
    columns = [decayed, last, share, count, _gap(first, last, n_rows)]
    return _table(keys, columns, [0.0, MISSING, 0.0, 0.0, MISSING])


def _gap(first: np.ndarray, last: np.ndarray, n_rows: np.ndarray) -> np.ndarray:
    """Usual days between two of several rows; `MISSING` for a single one."""
    return np.where(n_rows > 1, (first - last) / np.maximum(1, n_rows - 1), MISSING)


def _table(keys: np.ndarray, columns: list[np.ndarray], absent: list[float]) -> RowsByKey:
    """Join columns; ``absent`` is the value of each for other keys."""
    table = np.empty((len(columns), len(keys) + 1), dtype=np.float32)
    for number, column in enumerate(columns):
        table[number, :-1] = column
    table[:, -1] = absent
    return RowsByKey(keys, table)


def _usual(history: _History, amounts: np.ndarray) -> float:
    values = amounts[history.items]
    weights = history.weights * (values > UNKNOWN)
    total = float(weights.sum())
    return float((np.where(values > UNKNOWN, values, 0.0) * weights).sum()) / total if total else float(UNKNOWN)
