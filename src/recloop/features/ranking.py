"""Features of candidate items that the ranker scores.

Training, evaluation, serving and verification call `FeatureSpace.matrix`. It describes the candidates of one query, so
features do not depend on a batch. They are finite float32 numbers; `MISSING` marks an absent value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from recloop import jit
from recloop.features import item_statistics, rhythm
from recloop.features.encode import EncodedBatch, utc_offset
from recloop.features.item_statistics import UNKNOWN, ItemStatistics
from recloop.features.rhythm import HAZARD_DAYS, HOUR_BINS, WEEKDAYS
from recloop.features.user_profile import (
    FIELD_HALF_LIFE,
    HALF_LIVES,
    KEY_BITS,
    MAX_HALVINGS,
    MISSING,
    OWN_COLUMNS,
    QUERY_COLUMNS,
    UserProfiles,
    keys_of,
)
from recloop.records import DAY, SECOND

OWN: Final = (
    *(f"own.{name}" for name in OWN_COLUMNS[: len(HALF_LIVES)]), "own.days_since_last", "own.days_since_first",
    *(f"own.{name}" for name in OWN_COLUMNS[len(HALF_LIVES) + 2 :]), "own.due", "own.due_by_item",
)  # fmt: skip
"""Features of the user's rows with the candidate; ``due`` is the days since the last one over the usual gap."""
QUERY: Final = (
    *(f"query.{name}" for name in QUERY_COLUMNS), "query.days_since_last", "query.due", "query.hour", "query.weekday",
)  # fmt: skip
"""Features of the query alone; hour and weekday are in the time zone of the bundle."""
FIELD: Final = ("count", "days_since_last", "share", "own_share", "due")
"""Features of the user's rows with the candidate's category, for each categorical field."""
NUMBER: Final = ("value", "difference")
"""Features of each numeric field: the candidate's value, and its difference from the user's usual value."""
HALF_GAP: Final = 0.5
"""Days added to a usual gap, so that a gap of a few hours does not make every item due."""
NO_HAZARD: Final = np.float32(-30)
"""Hazard of an item that the user did not have, below the log of any."""
HOUR: Final = 3_600 * SECOND
_MIN_TOTAL: Final = np.float32(0.1)
_N_DECAYS: Final = len(HALF_LIVES)
_FIELD_DECAY: Final = HALF_LIVES.index(FIELD_HALF_LIFE)
_LAST: Final = OWN_COLUMNS.index("last")
_COUNT: Final = OWN_COLUMNS.index("count")
_GAP: Final = OWN_COLUMNS.index("gap")
_N_OWN: Final = len(OWN_COLUMNS)
_N_FACTS: Final = len(QUERY_COLUMNS)
_USUAL_GAP: Final = QUERY_COLUMNS.index("gap")
_N_ITEM: Final = len(item_statistics.NAMES)
_ITEM_GAP: Final = item_statistics.NAMES.index("gap")
_HAZARD_DAYS: Final = np.array(HAZARD_DAYS)
_MISSING: Final = np.float32(MISSING)
_HALF_GAP: Final = np.float32(HALF_GAP)
_WEEK: Final = np.float32(WEEKDAYS)
_HALF_WEEK: Final = np.float32(WEEKDAYS / 2)
_NO_RHYTHM: Final = np.zeros((0, 0, 0), dtype=np.float32)


@dataclass(frozen=True)
class Candidates:
    """Candidates of B queries, with their rank and score in each source.

    Query b owns the columns ``offsets[b]:offsets[b + 1]``; its items ascend. Ranks count from 0. A source that did not
    recall an item has rank `MISSING` and score 0.
    """

    offsets: np.ndarray  # (B+1,) int64
    items: np.ndarray  # (C,) int32 item_ix
    ranks: np.ndarray  # (S, C) float32
    scores: np.ndarray  # (S, C) float32

    @property
    def queries(self) -> np.ndarray:
        """(C,) query of each candidate, from 0."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def are_targets(self, targets: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """(C,) bool: the candidate is a target of its query.

        Args:
            targets: item_ix; query b owns ``targets[offsets[b]:offsets[b + 1]]``.
        """
        wanted = keys_of(np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), targets)
        is_target: np.ndarray = np.isin(keys_of(self.queries, self.items), wanted)
        return is_target

    def take(self, columns: np.ndarray) -> Candidates:
        """Return some of the candidates, in ascending order of ``columns``."""
        offsets = np.searchsorted(columns, self.offsets)
        return Candidates(
            offsets, self.items[columns], self.ranks.take(columns, axis=1), self.scores.take(columns, axis=1)
        )


def rhythm_names(fields: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the features of `recloop.features.rhythm`."""
    return (*rhythm.OWN, *(f"{field}.{name}" for field in fields for name in rhythm.FIELD))


class FeatureSpace:
    """Names and values of a bundle's features, with sources as in `Candidates`."""

    def __init__(self, statistics: ItemStatistics, sources: Sequence[str], timezone: str = "UTC") -> None:
        self._statistics = statistics
        self._timezone = timezone
        self.names: tuple[str, ...] = (
            *OWN,
            *QUERY,
            *(f"item.{name}" for name in item_statistics.NAMES),
            *(f"{field}.{name}" for field in statistics.fields for name in FIELD),
            *(f"{field}.{name}" for field in statistics.numbers for name in NUMBER),
            *(f"{source}.{name}" for source in sources for name in ("rank", "score")),
            *(() if statistics.rhythm is None else rhythm_names(statistics.fields)),
        )

    def matrix(self, encoded: EncodedBatch, queries: slice, candidates: Candidates, key: object = None) -> np.ndarray:
        """(C, F) float32 features of the candidates of some queries, columns as ``names``.

        The features of a candidate do not depend on the batch.

        Args:
            queries: At most `recloop.features.user_profile.MAX_QUERIES` queries.
            key: Key under which the state of a batch of one keeps its profile; None: not kept.
        """
        profiles = self._profiles(encoded, queries, key)
        now, statistics = encoded.now[queries], self._statistics
        since = np.where(profiles.has_history, (now - profiles.newest) / DAY, 0.0)
        hours = np.array([local_time(stamp, self._timezone) // HOUR for stamp in now.tolist()])
        tables = statistics.rhythm
        times, hazard = (_NO_RHYTHM, _NO_RHYTHM) if tables is None else (tables.times, tables.hazard)
        features = np.empty((len(candidates.items), len(self.names)), dtype=np.float32)
        write_features(
            features, candidates.offsets, candidates.items, candidates.ranks, candidates.scores,
            since, profiles.has_history, hours, _decays(since),
            profiles.facts, profiles.own_keys, profiles.own, profiles.field_keys, profiles.by_field, profiles.usual,
            profiles.rhythm,
            statistics.values, statistics.codes, statistics.n_codes, statistics.amounts, times, hazard,
        )  # fmt: skip
        return features

    def _profiles(self, encoded: EncodedBatch, queries: slice, key: object) -> UserProfiles:
        if key is None or len(encoded) > 1:
            return UserProfiles.of(encoded, queries, self._statistics, self._timezone)
        return encoded.states.kept(
            ("profile", key), lambda: UserProfiles.of(encoded, queries, self._statistics, self._timezone)
        )


def local_time(now: int, timezone: str) -> int:
    """Return a stamp in microseconds of local time."""
    return now if timezone == "UTC" else now + int(utc_offset(now // (900 * SECOND), timezone))


def _decays(since: np.ndarray) -> np.ndarray:
    """(half-lives, B) float32 weights after ``since`` days, by `HALF_LIVES`."""
    halvings = np.minimum(since / np.array(HALF_LIVES)[:, None], MAX_HALVINGS)
    decays: np.ndarray = np.exp2(-halvings).astype(np.float32)
    return decays


@jit.step
def _position(keys: np.ndarray, key: int) -> int:
    """Return the first position whose key is not smaller."""
    low, high = 0, len(keys)
    while low < high:
        middle = (low + high) >> 1
        if keys[middle] < key:
            low = middle + 1
        else:
            high = middle
    return low


@jit.step
def _due(days: np.float32, gap: np.float32) -> np.float32:
    """Return the days since the last row over the usual gap; `MISSING` without a gap."""
    return days / (gap + _HALF_GAP) if gap != _MISSING else _MISSING


@jit.step
def _write_own(
    row: np.ndarray, own: np.ndarray, position: int, is_own: bool, item_gap: np.float32, days: np.float32,
    decays: np.ndarray,
) -> int:  # fmt: skip
    """Write the features of the user's rows with an item; return the next column."""
    for column in range(_N_OWN):
        row[column] = own[position, column]
    for column in range(_N_DECAYS):
        row[column] *= decays[column]
    if is_own:
        row[_LAST] += days
        row[_LAST + 1] += days
    row[_N_OWN] = _due(row[_LAST], own[position, _GAP])
    row[_N_OWN + 1] = row[_LAST] / (item_gap + _HALF_GAP) if is_own else _MISSING
    return _N_OWN + 2


@jit.step
def _write_query(
    row: np.ndarray, column: int, facts: np.ndarray, query: int, since: float, has_history: bool, hours: int
) -> int:
    """Write the features of a query; return the next column."""
    for fact in range(_N_FACTS):
        row[column + fact] = facts[fact, query]
    column += _N_FACTS
    gap = facts[_USUAL_GAP, query]
    row[column] = since if has_history else MISSING
    row[column + 1] = since / (np.float64(gap) + HALF_GAP) if gap != _MISSING else MISSING
    row[column + 2] = hours % 24
    row[column + 3] = (hours // 24 + 3) % WEEKDAYS
    return column + 4


@jit.step
def _write_field(
    row: np.ndarray, column: int, by_field: np.ndarray, position: int, is_known: bool, own_count: np.float32,
    days: np.float32, decay: np.float32,
) -> int:  # fmt: skip
    """Write the features of the user's rows with a category; return the next column."""
    row[column] = by_field[position, 0] * decay
    last = by_field[position, 1]
    if is_known:
        last += days
    row[column + 1] = last
    row[column + 2] = by_field[position, 2]
    row[column + 3] = own_count / max(by_field[position, 3], _MIN_TOTAL)
    row[column + 4] = _due(last, by_field[position, 4])
    return column + 5


@jit.step
def _write_own_rhythm(
    row: np.ndarray, column: int, rhythm: np.ndarray, position: int, is_own: bool, weekday: int, hour: int
) -> int:
    """Write the features `rhythm.OWN` of an item; return the next column."""
    if not is_own:
        row[column] = row[column + 1] = row[column + 2] = _MISSING
        return column + 3
    total = row[_COUNT]
    row[column] = rhythm[position, weekday] / total
    near = rhythm[position, WEEKDAYS + (hour - 1) % HOUR_BINS] + rhythm[position, WEEKDAYS + hour]
    row[column + 1] = (near + rhythm[position, WEEKDAYS + (hour + 1) % HOUR_BINS]) / total
    row[column + 2] = abs((row[_LAST] + _HALF_WEEK) % _WEEK - _HALF_WEEK)
    return column + 3


@jit.compiled(
    None, jit.written(jit.FLOAT32_2D), jit.INT64, jit.INT32, jit.FLOAT32_2D, jit.FLOAT32_2D,
    jit.FLOAT64, jit.BOOL, jit.INT64, jit.FLOAT32_2D,
    jit.FLOAT32_2D, jit.INT64, jit.FLOAT32_2D, jit.INT64, jit.FLOAT32_2D, jit.FLOAT32_2D, jit.FLOAT32_2D,
    jit.FLOAT32_2D, jit.INT32_2D, jit.INTEGER, jit.FLOAT32_2D, jit.FLOAT32_3D, jit.FLOAT32_3D,
)  # fmt: skip
def write_features(
    features: np.ndarray,
    offsets: np.ndarray, items: np.ndarray, ranks: np.ndarray, scores: np.ndarray,
    since: np.ndarray, has_history: np.ndarray, hours: np.ndarray, decays: np.ndarray,
    facts: np.ndarray, own_keys: np.ndarray, own: np.ndarray, field_keys: np.ndarray, by_field: np.ndarray,
    usual: np.ndarray, rhythm: np.ndarray,
    item_values: np.ndarray, codes: np.ndarray, n_codes: int, amounts: np.ndarray, times: np.ndarray, hazard: np.ndarray,
) -> None:  # fmt: skip
    """Write the rows (C, F) of candidates, columns as `FeatureSpace.names`.

    Args:
        offsets, items, ranks, scores: Fields of `Candidates`.
        since: (B,) days since the newest moment. hours: (B,) local hours since 1970. decays: (4, B) weights after ``since``.
        facts, own_keys, own, field_keys, by_field, usual, rhythm: Fields of `UserProfiles`; ``rhythm`` may have no rows.
        item_values, codes, n_codes, amounts, times, hazard: Fields of `ItemStatistics`.
    """
    for query in range(len(offsets) - 1):
        days, decays_of_query = np.float32(since[query]), decays[:, query]
        weekday, hour = (hours[query] // 24 + 3) % WEEKDAYS, hours[query] % 24 // (24 // HOUR_BINS)
        for candidate in range(offsets[query], offsets[query + 1]):
            row, item = features[candidate], items[candidate]
            position = _position(own_keys, query << KEY_BITS | item)
            is_own = own_keys[position] == query << KEY_BITS | item
            if not is_own:
                position = len(own_keys) - 1
            column = _write_own(row, own, position, is_own, item_values[item, _ITEM_GAP], days, decays_of_query)
            column = _write_query(row, column, facts, query, since[query], has_history[query], hours[query])
            for number in range(_N_ITEM):
                row[column + number] = item_values[item, number]
            column += _N_ITEM
            for field in range(len(codes)):
                key = query << KEY_BITS | (codes[field, item] + n_codes * field)
                place = _position(field_keys, key)
                is_known = field_keys[place] == key
                if not is_known:
                    place = len(field_keys) - 1
                column = _write_field(
                    row, column, by_field, place, is_known, row[_COUNT], days, decays[_FIELD_DECAY, query]
                )
            for number in range(len(amounts)):
                amount = amounts[number, item]
                row[column] = amount if amount > UNKNOWN else _MISSING
                has_both = amount > UNKNOWN and usual[number, query] > UNKNOWN
                row[column + 1] = amount - usual[number, query] if has_both else np.float32(0)
                column += 2
            for source in range(len(ranks)):
                row[column] = ranks[source, candidate]
                row[column + 1] = scores[source, candidate]
                column += 2
            if not len(rhythm):
                continue
            column = _write_own_rhythm(row, column, rhythm, position, is_own, weekday, hour)
            days_bin = 0
            while days_bin < len(_HAZARD_DAYS) and _HAZARD_DAYS[days_bin] <= row[_LAST]:
                days_bin += 1
            for field in range(len(codes)):
                code = codes[field, item]
                row[column] = times[field, code, weekday]
                row[column + 1] = times[field, code, WEEKDAYS + hour]
                row[column + 2] = hazard[field, code, days_bin] if is_own else NO_HAZARD
                column += 3
