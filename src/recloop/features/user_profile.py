"""Profiles of users for the ranker: histories summed by item, category and amount.

Ages are measured at the newest moment, so a profile does not depend on the time of a query; its state keeps it. The
profile of a query does not depend on its batch: values are added in the order of its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from recloop import jit
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


_N_DECAYS: Final = len(HALF_LIVES)
_FIELD_DECAY: Final = HALF_LIVES.index(FIELD_HALF_LIFE)
_RECENT: Final = np.array(RECENT_MOMENTS)
_LAST: Final = OWN_COLUMNS.index("last")
_RECENT_COLUMN: Final = OWN_COLUMNS.index("last_1")
_RANK: Final = OWN_COLUMNS.index("rank")
_ABSENT_OWN: Final = (0.0,) * _N_DECAYS + (MISSING, MISSING, 0.0, 0.0, 0.0, MISSING, MISSING, 0.0, 0.0, 0.0, MISSING)
_ABSENT_FIELD: Final = (0.0, MISSING, 0.0, 0.0, MISSING)
_NO_KEY: Final = np.iinfo(np.int64).max
_MIN_DECAYED: Final = 1e-9


@dataclass(frozen=True)
class UserProfiles:
    """Histories of B queries, without the time of the query.

    The last row of ``own``, ``rhythm`` and ``by_field`` is for items and categories that the user did not have; its key is
    larger than any.

    Attributes:
        newest: (B,) stamp of the newest moment, int64 microseconds; 0 without a history.
        has_history: (B,) bool.
        facts: (5, B) float32, rows as `QUERY_COLUMNS`.
        own_keys: (P+1,) ascending, `keys_of` queries and item_ix. own: (P+1, 15) float32, columns as `OWN_COLUMNS`.
        rhythm: (P+1, 15) float32 weight of own rows by weekday, then by bin of hours (`recloop.features.rhythm`); (0, 0) without
            tables of rhythm.
        field_keys: (G+1,) ascending, `keys_of` queries and `ItemStatistics.keys`. by_field: (G+1, 5) float32, columns as
            `FIELD_COLUMNS`.
        usual: (G, B) float32 weighted mean of each numeric field; `UNKNOWN` without one.
    """

    newest: np.ndarray
    has_history: np.ndarray
    facts: np.ndarray
    own_keys: np.ndarray
    own: np.ndarray
    rhythm: np.ndarray
    field_keys: np.ndarray
    by_field: np.ndarray
    usual: np.ndarray

    @classmethod
    def of(
        cls, encoded: EncodedBatch, queries: slice, statistics: ItemStatistics, timezone: str = "UTC"
    ) -> UserProfiles:
        """Summarize the histories of at most `MAX_QUERIES` queries."""
        history = _Histories.of(encoded, queries)
        pairs = _PairSums.of(history, timezone if statistics.rhythm is not None else None)
        field_keys, by_field = _by_field(pairs, statistics)
        facts = np.empty((len(QUERY_COLUMNS), len(history.newest)), dtype=np.float32)
        usual = np.empty((len(statistics.amounts), len(history.newest)), dtype=np.float32)
        write_facts(facts, history.moment_offsets, history.item_offsets, history.ages, pairs.keys)
        write_usual(
            usual, history.moment_offsets, history.item_offsets, history.items, history.targets, statistics.amounts
        )
        return cls(
            history.newest, np.diff(history.moment_offsets) > 0, facts, pairs.keys, pairs.own, pairs.rhythm, field_keys,
            by_field, usual,
        )  # fmt: skip


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
    moment_offsets: np.ndarray  # (B+1,) from 0
    stamps: np.ndarray  # (M,)
    ages: np.ndarray  # (M,)
    item_offsets: np.ndarray  # (M+1,) from 0
    items: np.ndarray  # (E,) int32
    targets: np.ndarray  # (E,) bool

    @classmethod
    def of(cls, encoded: EncodedBatch, queries: slice) -> _Histories:
        moment_offsets = encoded.moment_offsets[queries.start : queries.stop + 1]
        first, last = int(moment_offsets[0]), int(moment_offsets[-1])
        item_offsets = encoded.item_offsets[first : last + 1]
        rows = slice(int(item_offsets[0]), int(item_offsets[-1]))
        stamps, moment_offsets = encoded.stamps[first:last], moment_offsets - first
        newest = np.zeros(len(moment_offsets) - 1, dtype=np.int64)
        has_history = moment_offsets[1:] > moment_offsets[:-1]
        newest[has_history] = stamps[moment_offsets[1:][has_history] - 1]
        ages = (newest.repeat(moment_offsets[1:] - moment_offsets[:-1]) - stamps) / DAY
        return cls(
            newest,
            moment_offsets,
            stamps,
            ages,
            item_offsets - item_offsets[0],
            encoded.items[rows],
            encoded.targets[rows],
        )

    def decays(self) -> np.ndarray:
        """(half-lives, M) weights of the moments, halved every `HALF_LIVES` days."""
        halvings = np.minimum(self.ages / np.array(HALF_LIVES)[:, None], MAX_HALVINGS)
        return np.asarray(np.exp2(-halvings))


@dataclass(frozen=True)
class _PairSums:
    """Rows of histories summed by query and item: P pairs, ascending.

    ``sums`` are the weight decayed by `FIELD_HALF_LIFE`, the ages of the newest and of the oldest row, the weight, and the rows.
    """

    keys: np.ndarray  # (P+1,) of the queries and items; the last one is larger than any
    own: np.ndarray  # (P+1, 15) float32 `OWN_COLUMNS`
    rhythm: np.ndarray  # (P+1, 15) float32, or (0, 0)
    sums: np.ndarray  # (P, 5) float64

    @classmethod
    def of(cls, history: _Histories, timezone: str | None) -> _PairSums:
        """Sum the rows; ``timezone`` is that of weekdays and hours, None leaves them out."""
        n_rows = len(history.items)
        row_keys, moments = np.empty((2, n_rows), dtype=np.int64)
        bits = n_rows.bit_length()
        write_row_keys(row_keys, moments, history.moment_offsets, history.item_offsets, history.items, bits)
        row_keys.sort()  # numpy sorts integers faster than a loop
        times, weekdays, hours = np.empty((0, 0), dtype=np.float32), history.stamps, history.stamps
        if timezone is not None:
            times = np.empty((n_rows + 1, BINS), dtype=np.float32)
            weekdays, hours = weekdays_and_hours(history.stamps, timezone)
        keys = np.empty(n_rows + 1, dtype=np.int64)
        own = np.empty((n_rows + 1, len(OWN_COLUMNS)), dtype=np.float32)
        sums = np.empty((n_rows, 5))
        n_pairs = sum_items(
            keys, own, times, sums, row_keys, bits, moments, history.targets, history.moment_offsets, history.ages,
            history.decays(), weekdays, hours,
        )  # fmt: skip
        last = n_pairs + 1
        pairs = cls(keys[:last].copy(), own[:last].copy(), times[:last].copy(), sums[:n_pairs])  # a state keeps them
        pairs._rank(len(history.newest))
        return pairs

    def _rank(self, n_queries: int) -> None:
        """Write the rank of each pair within its query.

        The largest decayed weight is first; ties keep their order.
        """
        offsets = self.keys.searchsorted(np.arange(n_queries + 1) << KEY_BITS).tolist()
        for first, stop in pairwise(offsets):
            order = np.argsort(-self.sums[first:stop, 0], kind="stable")
            self.own[first + order, _RANK] = np.arange(stop - first)


def _by_field(pairs: _PairSums, statistics: ItemStatistics) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys (G+1,) and columns (G+1, 5) of the categories of all pairs."""
    n_pairs, n_fields = len(pairs.sums), len(statistics.fields)
    bits = n_pairs.bit_length()
    group_keys = np.empty(n_fields * n_pairs, dtype=np.int64)
    write_group_keys(group_keys, pairs.keys, statistics.keys, bits)
    group_keys.sort()
    keys = np.empty(len(group_keys) + 1, dtype=np.int64)
    by_field = np.empty((len(keys), len(FIELD_COLUMNS)), dtype=np.float32)
    n_groups = sum_fields(keys, by_field, group_keys, bits, pairs.sums, statistics.n_codes)
    return keys[: n_groups + 1].copy(), by_field[: n_groups + 1].copy()


@jit.step
def _usual_gap(first: float, last: float, n_rows: float) -> float:
    """Return the usual days between two of several rows; `MISSING` for a single one."""
    return (first - last) / (n_rows - 1) if n_rows > 1 else MISSING


@jit.compiled(
    None, jit.written(jit.INT64), jit.written(jit.INT64), jit.INT64, jit.INT64, jit.INT32, jit.INTEGER
)  # fmt: skip
def write_row_keys(
    keys: np.ndarray,
    moments: np.ndarray,
    moment_offsets: np.ndarray,
    item_offsets: np.ndarray,
    items: np.ndarray,
    bits: int,
) -> None:
    """Write the key (E,) of each row, from query, item and row, and its moment (E,).

    Args:
        bits: Low bits of a key, which hold the row.
    """
    for query in range(len(moment_offsets) - 1):
        for moment in range(moment_offsets[query], moment_offsets[query + 1]):
            for row in range(item_offsets[moment], item_offsets[moment + 1]):
                keys[row] = (query << KEY_BITS | items[row]) << bits | row
                moments[row] = moment


@jit.compiled(
    jit.INTEGER, jit.written(jit.INT64), jit.written(jit.FLOAT32_2D), jit.written(jit.FLOAT32_2D),
    jit.written(jit.FLOAT64_2D), jit.INT64, jit.INTEGER, jit.INT64, jit.BOOL, jit.INT64, jit.FLOAT64, jit.FLOAT64_2D,
    jit.INT64, jit.INT64,
)  # fmt: skip
def sum_items(
    keys: np.ndarray, own: np.ndarray, rhythm: np.ndarray, sums: np.ndarray, row_keys: np.ndarray, bits: int,
    moments: np.ndarray, targets: np.ndarray, moment_offsets: np.ndarray, ages: np.ndarray, decays: np.ndarray,
    weekdays: np.ndarray, hours: np.ndarray,
) -> int:  # fmt: skip
    """Write the fields of `_PairSums`; return the number of pairs.

    Args:
        row_keys: (E,) ascending, by `write_row_keys` with ``bits``. moments: (E,) moment of each row.
        ages: (M,) days before the newest moment. decays: (4, M) weights by age. weekdays, hours: (M,).
    """
    recent, times, decayed = np.zeros(len(_RECENT)), np.zeros(BINS), np.zeros(_N_DECAYS)
    pair = entry = 0
    while entry < len(row_keys):
        key = row_keys[entry] >> bits
        query = key >> KEY_BITS
        newest_moment = moment_offsets[query + 1] - 1
        oldest = newest = moments[row_keys[entry] & (1 << bits) - 1]
        for column in range(len(times)):
            times[column] = 0.0
        for column in range(len(recent)):
            recent[column] = 0.0
        for column in range(len(decayed)):
            decayed[column] = 0.0
        count, n_rows = 0.0, 0
        while entry < len(row_keys) and row_keys[entry] >> bits == key:
            row = row_keys[entry] & (1 << bits) - 1
            newest = moments[row]
            weight = 1.0 if targets[row] else INPUT_WEIGHT
            for column in range(_N_DECAYS):
                decayed[column] += decays[column, newest] * weight
            for column in range(len(_RECENT)):
                recent[column] += weight if newest_moment - newest < _RECENT[column] else 0.0
            if len(rhythm):
                times[weekdays[newest]] += weight
                times[WEEKDAYS + hours[newest]] += weight
            count += weight
            n_rows += 1
            entry += 1
        keys[pair] = key
        sums[pair, 0], sums[pair, 1], sums[pair, 2] = decayed[_FIELD_DECAY], ages[newest], ages[oldest]
        sums[pair, 3], sums[pair, 4] = count, n_rows
        for column in range(_N_DECAYS):
            own[pair, column] = decayed[column]
        own[pair, _LAST], own[pair, _LAST + 1], own[pair, _LAST + 2] = ages[newest], ages[oldest], count
        own[pair, _LAST + 3] = count / (newest_moment + 1 - moment_offsets[query])
        own[pair, _LAST + 4] = count / (newest_moment - oldest + 1)
        own[pair, _LAST + 5] = _usual_gap(ages[oldest], ages[newest], n_rows)
        own[pair, _LAST + 6] = newest_moment - newest
        for column in range(len(recent)):
            own[pair, _RECENT_COLUMN + column] = recent[column]
        for column in range(len(times) if len(rhythm) else 0):
            rhythm[pair, column] = times[column]
        pair += 1
    keys[pair] = _NO_KEY
    for column in range(len(_ABSENT_OWN)):
        own[pair, column] = _ABSENT_OWN[column]
    for column in range(len(times) if len(rhythm) else 0):
        rhythm[pair, column] = 0.0
    return pair


@jit.compiled(None, jit.written(jit.INT64), jit.INT64, jit.INT64_2D, jit.INTEGER)
def write_group_keys(group_keys: np.ndarray, keys: np.ndarray, item_keys: np.ndarray, bits: int) -> None:
    """Write the key (F P,) of each field and pair, from query, category and pair.

    Args:
        keys: (P+1,) of the pairs. item_keys: `ItemStatistics.keys`. bits: Low bits, which hold the pair.
    """
    n_pairs = len(keys) - 1
    for field in range(len(item_keys)):
        for pair in range(n_pairs):
            query, item = keys[pair] >> KEY_BITS, keys[pair] & (1 << KEY_BITS) - 1
            group_keys[field * n_pairs + pair] = (query << KEY_BITS | item_keys[field, item]) << bits | pair


@jit.compiled(
    jit.INTEGER, jit.written(jit.INT64), jit.written(jit.FLOAT32_2D), jit.INT64, jit.INTEGER, jit.FLOAT64_2D, jit.INTEGER
)  # fmt: skip
def sum_fields(
    keys: np.ndarray, by_field: np.ndarray, group_keys: np.ndarray, bits: int, sums: np.ndarray, n_codes: int
) -> int:
    """Write the keys (G,) and columns (G, 5) of the categories; return their number.

    Args:
        group_keys: (F P,) ascending, by `write_group_keys` with ``bits``. sums: (P, 5) of the pairs.
    """
    decayed = np.zeros(len(group_keys))
    group = entry = first_group = 0
    total = 0.0  # of the categories of one field and query
    while entry < len(group_keys):
        key = group_keys[entry] >> bits
        owner = key >> KEY_BITS, (key & (1 << KEY_BITS) - 1) // n_codes
        if group > first_group:
            earlier = keys[group - 1]
            if owner != (earlier >> KEY_BITS, (earlier & (1 << KEY_BITS) - 1) // n_codes):
                for number in range(first_group, group):
                    by_field[number, 2] = decayed[number] / max(_MIN_DECAYED, total)
                first_group, total = group, 0.0
        pair = group_keys[entry] & (1 << bits) - 1
        last, first = sums[pair, 1], sums[pair, 2]
        count = n_rows = 0.0
        while entry < len(group_keys) and group_keys[entry] >> bits == key:
            pair = group_keys[entry] & (1 << bits) - 1
            decayed[group] += sums[pair, 0]
            last, first = min(last, sums[pair, 1]), max(first, sums[pair, 2])
            count += sums[pair, 3]
            n_rows += sums[pair, 4]
            entry += 1
        keys[group] = key
        by_field[group, 0], by_field[group, 1] = decayed[group], last
        by_field[group, 3], by_field[group, 4] = count, _usual_gap(first, last, n_rows)
        total += decayed[group]
        group += 1
    for number in range(first_group, group):
        by_field[number, 2] = decayed[number] / max(_MIN_DECAYED, total)
    keys[group] = _NO_KEY
    for column in range(len(_ABSENT_FIELD)):
        by_field[group, column] = _ABSENT_FIELD[column]
    return group


@jit.compiled(None, jit.written(jit.FLOAT32_2D), jit.INT64, jit.INT64, jit.FLOAT64, jit.INT64)
def write_facts(
    facts: np.ndarray, moment_offsets: np.ndarray, item_offsets: np.ndarray, ages: np.ndarray, keys: np.ndarray
) -> None:
    """Write `UserProfiles.facts` (5, B).

    Args:
        ages: (M,) of the moments. keys: (P+1,) of the pairs.
    """
    pair = 0
    for query in range(len(moment_offsets) - 1):
        first, stop = moment_offsets[query], moment_offsets[query + 1]
        n_moments, n_rows = stop - first, item_offsets[stop] - item_offsets[first]
        first_pair = pair
        while pair < len(keys) - 1 and keys[pair] >> KEY_BITS == query:
            pair += 1
        facts[0, query] = n_moments
        facts[1, query] = n_rows / n_moments if n_moments else 0.0
        facts[2, query] = item_offsets[stop] - item_offsets[stop - 1] if n_moments else 0
        facts[3, query] = (pair - first_pair) / max(n_rows, 1)
        facts[4, query] = ages[first] / (n_moments - 1) if n_moments > 1 else MISSING


@jit.compiled(None, jit.written(jit.FLOAT32_2D), jit.INT64, jit.INT64, jit.INT32, jit.BOOL, jit.FLOAT32_2D)
def write_usual(
    usual: np.ndarray, moment_offsets: np.ndarray, item_offsets: np.ndarray, items: np.ndarray, targets: np.ndarray,
    amounts: np.ndarray,
) -> None:  # fmt: skip
    """Write `UserProfiles.usual` (G, B), the weighted means of ``amounts`` (G, N+1)."""
    for number in range(len(amounts)):
        for query in range(len(moment_offsets) - 1):
            total = amount = 0.0
            for row in range(item_offsets[moment_offsets[query]], item_offsets[moment_offsets[query + 1]]):
                value = amounts[number, items[row]]
                if value > UNKNOWN:
                    weight = 1.0 if targets[row] else INPUT_WEIGHT
                    total += weight
                    amount += np.float64(value) * weight
            usual[number, query] = amount / total if total > 0 else UNKNOWN
