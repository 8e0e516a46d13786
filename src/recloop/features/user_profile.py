"""Profiles of users for the ranker: histories summed by item, category and amount.

Ages are measured at the newest moment, so a profile does not depend on the time of a query; its state keeps it. The
profile of a query does not depend on its batch: values are added in the order of its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from recloop.features.encode import EncodedBatch
from recloop.features.item_statistics import UNKNOWN, ItemStatistics
from recloop.features.rhythm import BINS, WEEKDAYS, weekdays_and_hours
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
"""Columns of `UserProfiles.own`; ``last`` and ``first`` are ages in days."""
FIELD_COLUMNS: Final = ("count", "last", "share", "total", "gap")
"""Columns of `UserProfiles.by_field`; ``total`` counts the rows of the category without decay."""
QUERY_COLUMNS: Final = ("moments", "moment_size", "last_size", "distinct", "gap")
"""Columns of `UserProfiles.facts`."""
KEY_BITS: Final = 32
"""Low bits of a key, which hold an item_ix or a code; the high bits hold the query."""
MAX_QUERIES: Final = 64
"""Most queries of one batch of profiles: key and row together fit into 63 bits for 2^24 rows."""


@dataclass(frozen=True)
class RowsByKey:
    """Columns over the ascending keys of histories; the last position is for others."""

    keys: np.ndarray  # (P+1,) int64, `keys_of`; the last one is larger than any key
    columns: np.ndarray  # (columns, P+1) float32

    def at(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the (columns, n) values of keys, and (n,) bool: the key is known.

        ``keys`` may have more axes than (n,).
        """
        position, is_known = self.find(keys)
        return self.columns.take(position, axis=1), is_known

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions of keys, and (n,) bool: the key is known."""
        position = self.keys.searchsorted(keys)
        is_known = self.keys.take(position) == keys
        position[~is_known] = len(self.keys) - 1
        return position, is_known


@dataclass(frozen=True)
class UserProfiles:
    """Histories of B queries, without the time of the query.

    Attributes:
        newest: (B,) stamp of the newest moment, int64 microseconds; 0 without a history.
        has_history: (B,) bool.
        facts: (5, B) float32, rows as `QUERY_COLUMNS`.
        own: Rows by item_ix, columns as `OWN_COLUMNS`.
        rhythm: (15, P+1) float32 weight of own rows by weekday, then by bin of hours, at the positions of ``own``
            (`recloop.features.rhythm`); None without tables of rhythm.
        by_field: Rows by category (`ItemStatistics.keys`), columns as `FIELD_COLUMNS`.
        usual: (G, B) float32 weighted mean of each numeric field; `UNKNOWN` without one.
    """

    newest: np.ndarray
    has_history: np.ndarray
    facts: np.ndarray
    own: RowsByKey
    by_field: RowsByKey
    usual: np.ndarray
    rhythm: np.ndarray | None

    @classmethod
    def of(
        cls, encoded: EncodedBatch, queries: slice, statistics: ItemStatistics, timezone: str = "UTC"
    ) -> UserProfiles:
        """Summarize the histories of at most `MAX_QUERIES` queries."""
        history = _Histories.of(encoded, queries)
        sums = _ItemSums.of(history)
        usual = [_usual(history, amounts) for amounts in statistics.amounts]
        return cls(
            newest=history.newest,
            has_history=history.n_moments > 0,
            facts=_facts(history, sums),
            own=_own(history, sums),
            rhythm=None if statistics.rhythm is None else _rhythm(history, sums, timezone),
            by_field=_by_field(history, sums, statistics),
            usual=np.array(usual, dtype=np.float32).reshape(len(usual), len(history.newest)),
        )


def keys_of(queries: np.ndarray | int, values: np.ndarray) -> np.ndarray:
    """(n,) int64 keys of the values (item_ix or codes) of queries."""
    if isinstance(queries, int) and not queries:
        return values
    keys: np.ndarray = np.asarray(queries, dtype=np.int64) << KEY_BITS | values
    return keys


@dataclass(frozen=True)
class _Histories:
    """Rows of B queries, oldest first; ages in days at the newest moment of the query."""

    newest: np.ndarray  # (B,) stamps
    n_moments: np.ndarray  # (B,)
    n_rows: np.ndarray  # (B,)
    spans: np.ndarray  # (B,) days between the oldest and the newest moment
    last_sizes: np.ndarray  # (B,) rows of the newest moment
    stamps: np.ndarray  # (M,)
    moment_ages: np.ndarray  # (M,)
    query: np.ndarray  # (E,)
    moment: np.ndarray  # (E,)
    items: np.ndarray  # (E,)
    rank: np.ndarray  # (E,) position of the row's moment; 0 is the newest
    weights: np.ndarray  # (E,)

    @classmethod
    def of(cls, encoded: EncodedBatch, queries: slice) -> _Histories:
        moment_offsets = encoded.moment_offsets[queries.start : queries.stop + 1]
        first, last = int(moment_offsets[0]), int(moment_offsets[-1])
        moment_offsets = moment_offsets - first
        offsets = encoded.item_offsets[first : last + 1]
        rows = slice(int(offsets[0]), int(offsets[-1]))
        sizes, n_moments = np.diff(offsets), np.diff(moment_offsets)
        moment_query = np.repeat(np.arange(len(n_moments)), n_moments)
        stamps = encoded.stamps[first:last]
        newest, spans = np.zeros(len(n_moments), dtype=np.int64), np.zeros(len(n_moments))
        last_sizes = np.zeros(len(n_moments), dtype=np.int64)
        has_history = n_moments > 0
        ends = moment_offsets[1:][has_history] - 1
        newest[has_history] = stamps[ends]
        last_sizes[has_history] = sizes[ends]
        moment_ages = (newest[moment_query] - stamps) / DAY
        spans[has_history] = moment_ages[moment_offsets[:-1][has_history]]
        row_offsets = (offsets - offsets[0])[moment_offsets]
        moment = np.repeat(np.arange(len(stamps)), sizes)
        rank = moment_offsets[1:][moment_query] - 1 - np.arange(len(stamps))
        return cls(
            newest, n_moments, np.diff(row_offsets), spans, last_sizes, stamps, moment_ages, moment_query[moment], moment,
            encoded.items[rows], rank[moment], np.where(encoded.targets[rows], 1.0, INPUT_WEIGHT),
        )  # fmt: skip

    def decayed(self) -> np.ndarray:
        """(half-lives, M) weights of the moments, halved every `HALF_LIVES` days."""
        halvings = np.minimum(self.moment_ages / np.array(HALF_LIVES)[:, None], MAX_HALVINGS)
        return np.asarray(np.exp2(-halvings))


class _Groups:
    """Entries with equal keys: P groups, ascending by key; a group keeps the order.

    Args:
        keys: (E,) or (F, E); the rows of the latter share no key, and their columns are the entries.
    """

    def __init__(self, keys: np.ndarray) -> None:
        bits = keys.shape[-1].bit_length()
        packed = np.sort((keys.astype(np.int64) << bits | np.arange(keys.shape[-1])).ravel())  # faster than indices
        ascending = packed >> bits
        is_first = np.ones(len(ascending), dtype=bool)
        np.not_equal(ascending[1:], ascending[:-1], out=is_first[1:])
        self.entries = packed & (1 << bits) - 1  # (E,) or (F E,) the entries, group after group
        self.starts = np.flatnonzero(is_first)  # (P,)
        self.keys = ascending[self.starts]  # (P,)
        self.slots = np.cumsum(is_first) - 1  # (E,) group of each of `entries`

    @property
    def first(self) -> np.ndarray:
        """(P,) first entry of each group."""
        return np.asarray(self.entries[self.starts])

    @property
    def last(self) -> np.ndarray:
        """(P,) last entry of each group."""
        return np.asarray(self.entries[self.starts + self.sizes - 1])

    @property
    def sizes(self) -> np.ndarray:
        """(P,) entries of each group."""
        return np.diff(self.starts, append=len(self.entries))

    def total(self, values: np.ndarray) -> np.ndarray:
        """(P,) sums of the values of ``entries``, added in their order."""
        return np.bincount(self.slots, weights=values, minlength=len(self.starts))


@dataclass(frozen=True)
class _ItemSums:
    """Rows of histories summed by query and item: P pairs, ascending."""

    keys: np.ndarray  # (P,)
    query: np.ndarray  # (P,)
    items: np.ndarray  # (P,)
    decayed: list[np.ndarray]  # (P,) for each half-life
    last: np.ndarray  # (P,) age of the newest row
    first: np.ndarray  # (P,) age of the oldest row
    n_rows: np.ndarray  # (P,)
    count: np.ndarray  # (P,) weight of the rows
    recent: list[np.ndarray]  # (P,) weight of the rows in the newest moments
    last_moment: np.ndarray  # (P,) position of the newest moment with the item
    first_moment: np.ndarray  # (P,)
    pair: np.ndarray  # (E,) pair of each row

    @classmethod
    def of(cls, history: _Histories) -> _ItemSums:
        groups = _Groups(keys_of(history.query, history.items))
        oldest, newest = groups.first, groups.last
        moments, weights = history.moment[groups.entries], history.weights[groups.entries]
        rank = history.rank[groups.entries]
        pair = np.empty(len(groups.entries), dtype=np.int64)
        pair[groups.entries] = groups.slots
        return cls(
            keys=groups.keys,
            query=history.query[oldest],
            items=history.items[oldest],
            decayed=[groups.total(by_moment[moments] * weights) for by_moment in history.decayed()],
            last=history.moment_ages[history.moment[newest]],
            first=history.moment_ages[history.moment[oldest]],
            n_rows=groups.sizes,
            count=groups.total(weights),
            recent=[groups.total(np.where(rank < n, weights, 0.0)) for n in RECENT_MOMENTS],
            last_moment=history.rank[newest],
            first_moment=history.rank[oldest],
            pair=pair,
        )


def _facts(history: _Histories, sums: _ItemSums) -> np.ndarray:
    """(5, B) float32 `QUERY_COLUMNS`."""
    has_history, n_moments = history.n_moments > 0, history.n_moments
    n_rows = np.maximum(history.n_rows, 1)
    gap = np.where(n_moments > 1, history.spans / np.maximum(n_moments - 1, 1), MISSING)
    distinct = np.bincount(sums.query, minlength=len(n_moments)) / n_rows
    sizes = np.where(has_history, history.n_rows / np.maximum(n_moments, 1), 0.0)
    return np.array([n_moments, sizes, history.last_sizes, distinct, gap], dtype=np.float32)


def _rhythm(history: _Histories, sums: _ItemSums, timezone: str) -> np.ndarray:
    """(15, P+1) float32 weight of own rows on each weekday, then in each bin of hours."""
    weekday, hour = (of_moment[history.moment] for of_moment in weekdays_and_hours(history.stamps, timezone))
    width = len(sums.keys) + 1
    counts = np.bincount(weekday * width + sums.pair, weights=history.weights, minlength=BINS * width)
    counts += np.bincount((WEEKDAYS + hour) * width + sums.pair, weights=history.weights, minlength=BINS * width)
    return counts.reshape(BINS, width).astype(np.float32)


def _own(history: _Histories, sums: _ItemSums) -> RowsByKey:
    rank = _ranks(sums.decayed[HALF_LIVES.index(FIELD_HALF_LIFE)], np.cumsum(np.bincount(sums.query))[:-1])
    columns = [
        *sums.decayed,
        sums.last,
        sums.first,
        sums.count,
        sums.count / np.maximum(1, history.n_moments)[sums.query],
        sums.count / (sums.first_moment + 1),
        _gap(sums.first, sums.last, sums.n_rows),
        sums.last_moment,
        *sums.recent,
        rank,
    ]
    absent = [0.0] * len(HALF_LIVES) + [MISSING, MISSING, 0.0, 0.0, 0.0, MISSING, MISSING]
    return _table(sums.keys, columns, [*absent, *(0.0 for _ in RECENT_MOMENTS), MISSING])


def _ranks(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(P,) rank of each value in its part, the largest first; ties in their order.

    Args:
        starts: First positions of all parts but the first. Sorting each part is faster than sorting all by two keys.
    """
    ranks = np.empty(len(values), dtype=np.int64)
    for part, rank in zip(np.split(-values, starts), np.split(ranks, starts), strict=True):
        rank[np.argsort(part, kind="stable")] = np.arange(len(part))
    return ranks


def _by_field(history: _Histories, sums: _ItemSums, statistics: ItemStatistics) -> RowsByKey:
    item_keys = statistics.keys[:, sums.items]  # (F, P)
    groups = _Groups(keys_of(sums.query, item_keys))
    pairs = groups.entries
    fields = (groups.keys & (1 << KEY_BITS) - 1) // statistics.n_codes  # (P,)
    decayed = groups.total(sums.decayed[HALF_LIVES.index(FIELD_HALF_LIFE)][pairs])
    n_rows, count = groups.total(sums.n_rows[pairs]), groups.total(sums.count[pairs])
    last = np.minimum.reduceat(sums.last[pairs], groups.starts) if len(pairs) else sums.last[pairs]
    first = np.maximum.reduceat(sums.first[pairs], groups.starts) if len(pairs) else sums.first[pairs]
    owner = fields * len(history.newest) + sums.query[groups.first]  # (P,) field and query of each group
    share = decayed / np.maximum(1e-9, np.bincount(owner, weights=decayed))[owner]
    columns = [decayed, last, share, count, _gap(first, last, n_rows)]
    return _table(groups.keys, columns, [0.0, MISSING, 0.0, 0.0, MISSING])


def _gap(first: np.ndarray, last: np.ndarray, n_rows: np.ndarray) -> np.ndarray:
    """Usual days between two of several rows; `MISSING` for a single one."""
    return np.where(n_rows > 1, (first - last) / np.maximum(1, n_rows - 1), MISSING)


def _table(keys: np.ndarray, columns: list[np.ndarray], absent: list[float]) -> RowsByKey:
    """Join columns; ``absent`` is the value of each for other keys."""
    table = np.empty((len(columns), len(keys) + 1), dtype=np.float32)
    for number, column in enumerate(columns):
        table[number, :-1] = column
    table[:, -1] = absent
    return RowsByKey(np.append(keys, np.iinfo(np.int64).max), table)


def _usual(history: _Histories, amounts: np.ndarray) -> np.ndarray:
    """(B,) weighted mean of the amounts of each history; `UNKNOWN` without one."""
    values = amounts[history.items]
    is_known = values > UNKNOWN
    weights = history.weights * is_known
    n_queries = len(history.newest)
    total = np.bincount(history.query, weights=weights, minlength=n_queries)
    amount = np.bincount(history.query, weights=np.where(is_known, values, 0.0) * weights, minlength=n_queries)
    return np.where(total > 0, amount / np.where(total > 0, total, 1.0), UNKNOWN)
