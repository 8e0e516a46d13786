"""Fallback ``attributes`` without towers: items by the affinity of their fields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from recloop.bundle import Bundle
from recloop.features.attribute_affinity import (
    AttributeAffinity,
    FieldColumns,
    recent_items,
    scores_of,
    user_code_columns,
)
from recloop.features.encode import EncodedBatch, attribute_codes
from recloop.recommend.attribute_groups import GroupedItems, group_numbers
from recloop.recommend.catalog import Catalog
from recloop.recommend.filters import NO_ITEMS, CandidateMask
from recloop.recommend.mask_cache import MaskCache
from recloop.recommend.outside_items import OutsideItems, Selected
from recloop.recommend.table_mask import TableMask
from recloop.recommend.top_k import DEPTH, best_rows

MAX_CANDIDATES: Final = 20_000
"""Most popular allowed items of the table that are scored."""
CANDIDATE_BYTES: Final = 32 * 2**20
"""Memory of the scored items of recent filters."""
COLD_STRENGTHS: Final = np.ones(2, dtype=np.float32)
"""Strengths of user fields and of recent items in the order of items without a row."""
NEW_FIRST: Final = 1e6
"""Score that is added to items posted after the training rows."""
NO_SLOTS: Final = np.zeros((0, 0), dtype=np.int64)
NO_SHARES: Final = np.zeros((0, 0), dtype=np.float32)
FIRST_BATCH_ITEMS: Final = 32
"""First items of the table that are computed for a list; the others only if it reads more."""
OUTSIDE_EVERY: Final = 10
"""One slot in so many of this stage shows an item without a row, as long as there is one."""


class _Table(NamedTuple):
    """Fields of the items of the table, by item_ix; row 0 is missing.

    Attributes:
        slots, shares: (N+1, C). groups: (N+1,) int32, equal for items with equal slots.
    """

    slots: np.ndarray
    shares: np.ndarray
    groups: np.ndarray


class _OutsideOrder(NamedTuple):
    """Items outside the table, the newest first.

    Attributes:
        newest: (n,) rows of the selected items. slots, shares: (n, C).
        prior: (n,) float32. is_new: (n,) bool: posted after the training rows.
    """

    newest: np.ndarray
    slots: np.ndarray
    shares: np.ndarray
    prior: np.ndarray
    is_new: np.ndarray


class AttributeLists:
    """Lists of a bundle's affinities; belongs to one thread."""

    def __init__(self, bundle: Bundle, affinity: AttributeAffinity) -> None:
        self._bundle = bundle
        self._affinity = affinity
        self._key = ("attributes", bundle.items.ids.serial, bundle.id)
        self._users, self._items = (FieldColumns.of(side, bundle.spec, bundle.fields) for side in ("user", "item"))
        self._candidates: MaskCache[GroupedItems] = MaskCache(CANDIDATE_BYTES, GroupedItems.nbytes)
        self._outside = OutsideItems(bundle)

    def best(self, catalog: Catalog, encoded: EncodedBatch, allowed: CandidateMask, b: int) -> Iterator[str]:
        """Return raw ids for query b, best first; empty for a query without a known value.

        Ties: items of the table by item_ix; others newest first, then by id bytes.
        """
        profile = self._profile(encoded, b)
        if not profile.any():
            return iter(())
        return self._merged(profile, catalog, allowed, b)

    def cold_items(self, catalog: Catalog, encoded: EncodedBatch, allowed: CandidateMask, b: int) -> Sequence[str]:
        """Return the items outside the table for query b, best first.

        Both strengths are 1.
        """
        return self._best_outside(self._profile(encoded, b, COLD_STRENGTHS), catalog, allowed, b)

    def is_first(self, encoded: EncodedBatch, b: int) -> bool:
        """Return whether query b gets this list first.

        It does if it has no history and its user a field with an affinity.
        """
        has_history = (
            len(encoded.items) > 0 if len(encoded) == 1 else encoded.row_offsets[b] < encoded.row_offsets[b + 1]
        )
        if has_history:
            return False
        return bool(self._profile(encoded, b).any())

    def _merged(self, profile: np.ndarray, catalog: Catalog, allowed: CandidateMask, b: int) -> Iterator[str]:
        """Yield the items of the table with one item outside it every ten slots.

        Most lists have fewer free slots, so the items outside the table are ordered when one is due.
        """
        ids = self._bundle.items.ids.ids
        table = self._best_of_table(profile, allowed, b)
        outside = self._due_outside(profile, catalog, allowed, b)
        n_slots = 0
        while True:
            n_slots += 1
            item_id = next(outside, None) if n_slots % OUTSIDE_EVERY == 0 else None
            if item_id is None:
                item_ix = next(table, None)
                item_id = next(outside, None) if item_ix is None else ids[item_ix - 1]
            if item_id is None:
                return
            yield item_id

    def _due_outside(self, profile: np.ndarray, catalog: Catalog, allowed: CandidateMask, b: int) -> Iterator[str]:
        yield from self._best_outside(profile, catalog, allowed, b)

    def _profile(self, encoded: EncodedBatch, b: int, strengths: np.ndarray | None = None) -> np.ndarray:
        """(1+V,) profile of query b by its user fields and recent items."""
        key = (self._key, b, strengths is None)
        return encoded.states.kept(key, lambda: self._new_profile(encoded, b, strengths))

    def _new_profile(self, encoded: EncodedBatch, b: int, strengths: np.ndarray | None) -> np.ndarray:
        affinity = self._affinity
        codes = encoded.context[b : b + 1, user_code_columns(tuple(encoded.context_names))]
        user_slots = affinity.user_slots[self._users.numbers(codes)]
        uses_recent = (affinity.strengths if strengths is None else strengths)[1] > 0
        recent = recent_items(encoded, b) if uses_recent else NO_ITEMS
        slots, shares = self._table[:2] if len(recent) else (NO_SLOTS, NO_SHARES)
        return affinity.profile(
            user_slots[0], self._users.shares(user_slots)[0], slots[recent], shares[recent], strengths
        )

    def _best_of_table(self, profile: np.ndarray, allowed: CandidateMask, b: int) -> Iterator[int]:
        """Yield the best `DEPTH` items of the table.

        Most lists read few, so the first are computed alone.
        """
        candidates = self._candidates.get(allowed.table, self._most_popular)
        first = candidates.best(profile, FIRST_BATCH_ITEMS, allowed.banned[b])
        yield from first.tolist()
        if len(first) == FIRST_BATCH_ITEMS:
            yield from candidates.best(profile, DEPTH, allowed.banned[b])[FIRST_BATCH_ITEMS:].tolist()

    def _best_outside(self, profile: np.ndarray, catalog: Catalog, allowed: CandidateMask, b: int) -> Sequence[str]:
        """Return items outside the table, those posted after training first.

        Then they are ordered by score, then the newest first, then by id bytes.
        """
        outside = self._outside.select(catalog, allowed.text, self._outside_slots)
        if not outside.ids:
            return outside.ids
        order = outside.derived(lambda: self._outside_order(catalog, outside))
        scores = (order.prior + scores_of(profile, order.slots, order.shares)).astype(np.float64)
        best = best_rows(
            scores + order.is_new * NEW_FIRST, DEPTH + len(allowed.banned_ids[b]) + len(allowed.unavailable)
        )
        return [outside.ids[row] for row in order.newest[best].tolist()]

    def _outside_order(self, catalog: Catalog, outside: Selected) -> _OutsideOrder:
        first_seq = np.fromiter((catalog.first_seq(item_id) for item_id in outside.ids), np.int64, len(outside.ids))
        newest = np.argsort(-first_seq, kind="stable")
        slots, shares = np.split(outside.features[newest], 2, axis=1)
        slots = slots.astype(np.int64)
        prior = self._affinity.outside_prior(slots, shares)
        return _OutsideOrder(newest, slots, shares, prior, first_seq[newest] > self._bundle.learned.until_seq)

    def _most_popular(self, table: TableMask) -> GroupedItems:
        """Return the most popular items that a mask allows."""
        order = self._bundle.arrays["popular"]
        items = np.sort(order[table.mask[order]][:MAX_CANDIDATES])
        fields = self._table
        return GroupedItems.of(items, fields.groups, self._affinity.prior, fields.slots, fields.shares)

    @property
    def _table(self) -> _Table:
        """Fields of the table's items, computed at their first use."""
        table: _Table = self._bundle.shared("attribute_slots", self._fields_of_table)
        return table

    def warm_up(self) -> None:
        """Compute what a list needs now instead of at the first one."""
        self._bundle.shared("attribute_slots", self._fields_of_table)

    def _fields_of_table(self) -> _Table:
        bundle = self._bundle
        codes = attribute_codes("item", bundle.spec, bundle.fields, [None, *bundle.items.attributes])[0]
        slots = self._affinity.item_slots[self._items.numbers(codes)]
        return _Table(slots, self._items.shares(slots), group_numbers(slots, len(self._affinity.value_prior)))

    def _outside_slots(self, codes: np.ndarray) -> np.ndarray:
        """(n, 2C) float32: slots and shares of field codes (n, C)."""
        slots = self._affinity.item_slots[self._items.numbers(codes)]
        return np.concatenate([slots.astype(np.float32), self._items.shares(slots)], axis=1)
