"""Features of candidate items that the ranker scores.

Training, evaluation, serving and verification call `FeatureSpace.matrix`. It describes the candidates of one query, so
features do not depend on a batch. They are finite float32 numbers; `MISSING` marks an absent value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from recloop.features import item_statistics, rhythm
from recloop.features.encode import EncodedBatch, utc_offset
from recloop.features.item_statistics import GAP, UNKNOWN, ItemStatistics
from recloop.features.user_profile import (
    FIELD_HALF_LIFE,
    HALF_LIVES,
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
MIN_TOTAL: Final = np.float32(0.1)
COUNT: Final = OWN_COLUMNS.index("count")
FIELD_DECAY: Final = HALF_LIVES.index(FIELD_HALF_LIFE)
AGES: Final = slice(len(HALF_LIVES), len(HALF_LIVES) + 2)
"""Rows of the ages of an item in `UserProfiles.own`."""


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

    def are_within(self, depths: Sequence[int]) -> np.ndarray:
        """(C,) bool: the candidate is among the first items of a source.

        Args:
            depths: (S,) first items of each source.
        """
        is_within: np.ndarray = ((self.ranks != MISSING) & (self.ranks < np.array(depths)[:, None])).any(axis=0)
        return is_within

    def take(self, columns: np.ndarray) -> Candidates:
        """Return some of the candidates, in ascending order of ``columns``."""
        offsets = np.searchsorted(columns, self.offsets)
        return Candidates(offsets, self.items[columns], self.ranks[:, columns], self.scores[:, columns])


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
        now, items = encoded.now[queries], candidates.items
        since = np.where(profiles.has_history, (now - profiles.newest) / DAY, 0.0)
        is_one = len(now) == 1  # its facts are broadcast
        query: np.ndarray | int = 0 if is_one else candidates.queries
        of_candidate: np.ndarray | slice = slice(None) if is_one else candidates.queries
        days = since.astype(np.float32)[of_candidate]
        values = self._statistics.values.take(items, axis=0).T
        position, is_own = profiles.own.find(keys_of(query, items))
        own = profiles.own.columns.take(position, axis=1)
        features = np.empty((len(self.names), len(items)), dtype=np.float32)
        decays = _decays(since)[:, of_candidate]
        row = _put_own(features, own, is_own, values[GAP], days, decays)
        row = _put_query(features, row, profiles, now, self._timezone, since, of_candidate)
        features[row : row + len(values)] = values
        row += len(values)
        of_fields = profiles.by_field.at(keys_of(query, self._statistics.keys[:, items]))
        row = _put_fields(features, row, *of_fields, own[COUNT], days, decays[FIELD_DECAY])
        for amounts, usual in zip(self._statistics.amounts, profiles.usual, strict=True):
            row = _put(features, row, *_number_features(amounts[items], usual[of_candidate]))
        end = row + 2 * len(candidates.ranks)
        features[row:end:2] = candidates.ranks
        features[row + 1 : end : 2] = candidates.scores
        if profiles.rhythm is not None:
            self._put_rhythm(features, end, now, query, items, profiles.rhythm, position, is_own)
        return np.ascontiguousarray(features.T)

    def _put_rhythm(
        self, features: np.ndarray, row: int, now: np.ndarray, query: np.ndarray | int, items: np.ndarray,
        counts: np.ndarray, position: np.ndarray, is_own: np.ndarray,
    ) -> None:  # fmt: skip
        """Write the features of `rhythm_names`.

        Args:
            counts: (15, P+1) weights of own rows by weekday and hour. position: (C,) column of each candidate.
        """
        tables = self._statistics.rhythm
        assert tables is not None
        last, total = features[AGES.start], features[COUNT]
        weekday, hour = (part[query] for part in rhythm.weekdays_and_hours(now, self._timezone))
        shares = rhythm.own_weights(counts, position, weekday, hour) / np.where(is_own, total, 1)
        own = np.where(is_own, [*shares, rhythm.week_lag(last)], MISSING)
        row = _put(features, row, *own)
        bins = rhythm.hazard_bins(last)
        for codes, times, hazard in zip(self._statistics.codes, tables.times, tables.hazard, strict=True):
            code = codes.take(items)
            at_risk = np.where(is_own, hazard[code, bins], NO_HAZARD)
            row = _put(features, row, times[code, weekday], times[code, rhythm.WEEKDAYS + hour], at_risk)

    def _profiles(self, encoded: EncodedBatch, queries: slice, key: object) -> UserProfiles:
        if key is None or len(encoded) > 1:
            return UserProfiles.of(encoded, queries, self._statistics, self._timezone)
        return encoded.states.kept(
            ("profile", key), lambda: UserProfiles.of(encoded, queries, self._statistics, self._timezone)
        )


def _put(features: np.ndarray, row: int, *values: np.ndarray | float) -> int:
    """Write rows of (F, C) from ``row`` on; return the next free one."""
    for number, value in enumerate(values):
        features[row + number] = value
    return row + len(values)


def _decays(since: np.ndarray) -> np.ndarray:
    """(half-lives, B) float32 weights after ``since`` days, by `HALF_LIVES`."""
    halvings = np.minimum(since / np.array(HALF_LIVES)[:, None], MAX_HALVINGS)
    decays: np.ndarray = np.exp2(-halvings).astype(np.float32)
    return decays


def _put_own(
    features: np.ndarray,
    own: np.ndarray,
    is_own: np.ndarray,
    item_gap: np.ndarray,
    days: np.ndarray,
    decays: np.ndarray,
) -> int:
    """Write the features `OWN`; return the next free row.

    Args:
        days: (C,) or (1,) float32 days since the newest moment. decays: (H, C) or (H, 1) float32 weights after them.
    """
    n = len(own)
    features[:n] = own
    features[: len(HALF_LIVES)] *= decays
    features[AGES] += days * is_own
    last = features[AGES.start]
    features[n] = _due(last, own[OWN_COLUMNS.index("gap")])
    features[n + 1] = np.where(is_own, last / (item_gap + HALF_GAP), MISSING)
    return n + 2


def _due(days: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Days since the last row over the usual gap; `MISSING` without a gap."""
    has_gap = gap != MISSING
    return np.where(has_gap, days / np.where(has_gap, gap + HALF_GAP, 1), MISSING)


def local_time(now: int, timezone: str) -> int:
    """Return a stamp in microseconds of local time."""
    return now if timezone == "UTC" else now + int(utc_offset(now // (900 * SECOND), timezone))


def _put_query(
    features: np.ndarray,
    row: int,
    profiles: UserProfiles,
    now: np.ndarray,
    timezone: str,
    since: np.ndarray,
    of_candidate: np.ndarray | slice,
) -> int:
    """Write the features `QUERY`; return the next free row."""
    gap = profiles.facts[QUERY_COLUMNS.index("gap")].tolist()
    queries = zip(now.tolist(), since.tolist(), profiles.has_history.tolist(), gap, strict=True)
    times = [_times(local_time(stamp, timezone), *facts) for stamp, *facts in queries]
    n_facts, n_rows = len(QUERY_COLUMNS), len(QUERY)
    features[row : row + n_facts] = profiles.facts[:, of_candidate]
    features[row + n_facts : row + n_rows] = np.array(times, dtype=np.float32).T[:, of_candidate]
    return row + n_rows


def _times(now: int, since: float, has_history: bool, gap: float) -> tuple[float, float, int, int]:
    """Return `QUERY` after `QUERY_COLUMNS` of a query: days, due, hour and weekday.

    Args:
        now: Local time. gap: Usual days between two moments, or `MISSING`.
    """
    due = since / (gap + HALF_GAP) if gap != MISSING else MISSING
    hours = now // (3_600 * SECOND)
    return since if has_history else MISSING, due, hours % 24, (hours // 24 + 3) % 7


def _put_fields(
    features: np.ndarray, row: int, values: np.ndarray, is_known: np.ndarray, own_count: np.ndarray, days: np.ndarray,
    decay: np.ndarray,
) -> int:  # fmt: skip
    """Write the features `FIELD` of each field; return the next free row.

    Args:
        values: (5, F, C), `FIELD_COLUMNS` of the candidates' categories. is_known: (F, C) bool.
    """
    decayed, last, share, total, gap = values
    n_rows = len(FIELD) * len(is_known)
    written = features[row : row + n_rows].reshape(len(is_known), len(FIELD), len(own_count))  # a view
    written[:, 0] = decayed * decay
    written[:, 1] = last + days * is_known
    written[:, 2] = share
    written[:, 3] = own_count / np.maximum(total, MIN_TOTAL)
    written[:, 4] = _due(written[:, 1], gap)
    return row + n_rows


def _number_features(amounts: np.ndarray, usual: np.ndarray) -> list[np.ndarray]:
    """Return the features `NUMBER` of candidates with these amounts."""
    is_known = amounts > UNKNOWN
    has_difference = is_known & (usual > UNKNOWN)
    return [np.where(is_known, amounts, MISSING), np.where(has_difference, amounts - usual, 0.0)]
