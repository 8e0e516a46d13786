"""Filters: conditions, hidden items, exclusions, dislikes and seen items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import polars as pl

from recloop.errors import UserError
from recloop.features.encode import EncodedBatch, digest
from recloop.features.state import StateBatch
from recloop.features.vocabulary import Vocabulary
from recloop.recommend.catalog import Catalog
from recloop.recommend.table_mask import TableMask
from recloop.records import Query

FILTER: Final = "filter"
"""Name of a placement's condition in ``degraded``."""
NO_ITEMS = np.zeros(0, dtype=np.int32)
NO_IDS: frozenset[str] = frozenset()


@dataclass(frozen=True)
class CandidateMask:
    """Filters of B queries: a shared table mask and the banned items of each query.

    Query b must not show the table items ``banned[b]`` (ascending item_ix) or the raw ids ``banned_ids[b]``. ``text`` is
    the whole condition, for items outside the table. ``degraded`` holds `FILTER` if the condition of the placement cannot
    be evaluated; the list then ignores it. ``unavailable`` are the items outside the table that no list shows now.
    """

    table: TableMask
    banned: list[np.ndarray]
    banned_ids: list[frozenset[str]]
    text: str
    degraded: tuple[str, ...] = ()
    unavailable: frozenset[str] = NO_IDS

    def allows_id(self, b: int, item_id: str) -> bool:
        """Return True if query b may show an item outside the table."""
        return item_id not in self.banned_ids[b] and item_id not in self.unavailable

    @property
    def mask(self) -> np.ndarray:
        """(N+1,) bool: table items that pass the condition."""
        return self.table.mask

    @property
    def is_all(self) -> bool:
        """True if every table item passes the condition."""
        return self.table.is_all

    @property
    def n_allowed(self) -> int:
        """Number of table items that pass the condition."""
        return self.table.n_allowed

    @property
    def version(self) -> int:
        """Number of the table mask, unique in the process."""
        return self.table.version

    @property
    def digest(self) -> bytes:
        """8 bytes that identify the table mask in every process."""
        return self.table.digest

    def input(self, b: int) -> str:
        """Return 8 hex digits that identify the filters of query b."""
        banned, banned_ids = self.banned[b], self.banned_ids[b]
        parts = self.digest + (banned.astype("<i4", copy=False).tobytes() if len(banned) else b"")
        return digest(parts + "\0".join(sorted(banned_ids)).encode() if banned_ids else parts)


@lru_cache(maxsize=1_000)
def joined(filters: tuple[str, ...]) -> str:
    """Return one condition that holds if all do; empty conditions hold.

    A single one is returned as it is, so that it is parsed once.
    """
    given = [condition for condition in filters if condition.strip()]
    return given[0] if len(given) == 1 else " AND ".join(f"({condition})" for condition in given)


def candidate_mask(
    catalog: Catalog,
    vocabulary: Vocabulary,
    encoded: EncodedBatch,
    queries: Sequence[Query],
    filters: tuple[str, str],
    filter_seen: bool,
) -> CandidateMask:
    """Evaluate the filters of queries that share a placement and a condition.

    Args:
        filters: The conditions of the placement and of the query; an item must pass both.
        filter_seen: Exclude every item of the history that was a target.

    Raises:
        UserError: the condition of the query is not valid.
    """
    text = joined(filters)
    degraded: tuple[str, ...] = ()
    try:
        table = catalog.mask(text, vocabulary)
    except (UserError, pl.exceptions.PolarsError):
        if not filters[0].strip():
            raise
        text, degraded = joined(filters[1:]), (FILTER,)
        table = catalog.mask(text, vocabulary)
    banned = [_banned(vocabulary, encoded, b, query, filter_seen) for b, query in enumerate(queries)]
    banned_ids = [_banned_ids(encoded, vocabulary, b, query, filter_seen) for b, query in enumerate(queries)]
    return CandidateMask(table, banned, banned_ids, text, degraded)


def _banned(vocabulary: Vocabulary, encoded: EncodedBatch, b: int, query: Query, filter_seen: bool) -> np.ndarray:
    """(n,) ascending item_ix that query b must not show."""
    bans = []
    low, high = encoded.negative_offsets[b], encoded.negative_offsets[b + 1]
    if high > low:
        bans.append(encoded.negatives[low:high])
    if query.exclude:
        bans.append(vocabulary.lookup(query.exclude))
    if filter_seen and len(encoded) == 1:
        bans.append(_seen(vocabulary, encoded))
    elif filter_seen:
        first, last = encoded.moment_offsets[b], encoded.moment_offsets[b + 1]
        rows = slice(encoded.item_offsets[first], encoded.item_offsets[last])
        bans.append(encoded.items[rows][encoded.targets[rows]])
    if not bans:
        return NO_ITEMS
    if len(bans) == 1 and filter_seen and len(encoded) == 1:
        return bans[0]
    banned = np.unique(bans[0] if len(bans) == 1 else np.concatenate(bans))
    return banned[1:] if len(banned) and banned[0] == 0 else banned


def _seen(vocabulary: Vocabulary, encoded: EncodedBatch) -> np.ndarray:
    """(n,) ascending item_ix of the targets of a batch of one; its state keeps them."""
    return encoded.states.kept(("seen", vocabulary.serial), lambda: np.unique(encoded.items[encoded.targets]))


def _banned_ids(
    encoded: EncodedBatch, vocabulary: Vocabulary, b: int, query: Query, filter_seen: bool
) -> frozenset[str]:
    """Raw ids that query b must not show; seen ones only outside the table."""
    states = encoded.states
    excluded = _excluded_ids(states, b, query)
    if not filter_seen:
        return excluded
    first, last = states.moment_offsets[b], states.moment_offsets[b + 1]
    rows = slice(states.item_offsets[first], states.item_offsets[last])
    if rows.stop - rows.start == encoded.row_offsets[b + 1] - encoded.row_offsets[b]:
        return excluded
    seen = set(states.names[states.items[rows][states.targets[rows]]].tolist())
    return excluded.union(item_id for item_id in seen if not vocabulary.index(item_id))


def _excluded_ids(states: StateBatch, b: int, query: Query) -> frozenset[str]:
    """Raw ids of disliked items and those that the query excludes."""
    low, high = states.negative_offsets[b], states.negative_offsets[b + 1]
    if high > low:
        return frozenset(query.exclude).union(states.names[states.negatives[low:high]].tolist())
    return frozenset(query.exclude) if query.exclude else NO_IDS
