"""Fallback ``attributes`` without towers: items by the affinity of their fields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

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
from recloop.recommend.catalog import Catalog
from recloop.recommend.filters import CandidateMask
from recloop.recommend.mask_cache import MaskCache
from recloop.recommend.outside_items import OutsideItems
from recloop.recommend.table_mask import TableMask
from recloop.recommend.top_k import DEPTH, best_rows

MAX_CANDIDATES: Final = 20_000
"""Most popular allowed items of the table that are scored."""
CACHED_MASKS: Final = 64
COLD_STRENGTHS: Final = np.ones(2, dtype=np.float32)
"""Strengths of user fields and of recent items in the order of items without a row."""
NEW_FIRST: Final = 1e6
"""Score that is added to items posted after the training rows."""
OUTSIDE_EVERY: Final = 10
"""One slot in so many of this stage shows an item without a row, as long as there is one."""


class AttributeLists:
    """Lists of a bundle's affinities; belongs to one thread."""

    def __init__(self, bundle: Bundle, affinity: AttributeAffinity) -> None:
        self._bundle = bundle
        self._affinity = affinity
        self._users, self._items = (FieldColumns.of(side, bundle.spec, bundle.fields) for side in ("user", "item"))
        self._slots, self._shares = bundle.shared("attribute_slots", self._table_slots)
        self._candidates: MaskCache[np.ndarray] = MaskCache(self._most_popular, CACHED_MASKS)
        self._outside = OutsideItems(bundle, self._outside_slots)
        self._order: tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None  # by features

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
        """Yield the items of the table with one item outside it every ten slots."""
        ids = self._bundle.items.ids.ids
        table = iter(self._best_of_table(profile, allowed, b).tolist())
        outside = iter(self._best_outside(profile, catalog, allowed, b))
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

    def _profile(self, encoded: EncodedBatch, b: int, strengths: np.ndarray | None = None) -> np.ndarray:
        """(1+V,) profile of query b by its user fields and recent items."""
        affinity = self._affinity
        codes = encoded.context[b : b + 1, user_code_columns(encoded.context_names)]
        user_slots = affinity.user_slots[self._users.numbers(codes)]
        recent = recent_items(encoded, b)
        return affinity.profile(
            user_slots[0], self._users.shares(user_slots)[0], self._slots[recent], self._shares[recent], strengths
        )

    def _best_of_table(self, profile: np.ndarray, allowed: CandidateMask, b: int) -> np.ndarray:
        items = self._candidates.get(allowed.table)
        banned = allowed.banned[b]
        if len(banned):
            items = items[~np.isin(items, banned)]
        scores = self._affinity.prior[items] + scores_of(profile, self._slots[items], self._shares[items])
        best: np.ndarray = items[best_rows(scores, DEPTH)]
        return best

    def _best_outside(self, profile: np.ndarray, catalog: Catalog, allowed: CandidateMask, b: int) -> Sequence[str]:
        """Return items outside the table, those posted after training first.

        Then they are ordered by score, then the newest first, then by id bytes.
        """
        ids, features = self._outside.select(catalog, allowed.text)
        if not ids:
            return ids
        newest, prior, is_new = self._outside_order(catalog, ids, features)
        slots, shares = np.split(features[newest], 2, axis=1)
        scores = (prior + scores_of(profile, slots.astype(np.int64), shares)).astype(np.float64)
        best = best_rows(scores + is_new * NEW_FIRST, DEPTH + len(allowed.banned_ids[b]) + len(allowed.unavailable))
        return [ids[row] for row in newest[best].tolist()]

    def _outside_order(
        self, catalog: Catalog, ids: Sequence[str], features: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rows of the outside items, the newest first.

        Beside them their prior, and whether they were posted after the training rows.
        """
        if self._order is None or self._order[0] is not features:
            first_seq = np.fromiter((catalog.first_seq(item_id) for item_id in ids), np.int64, len(ids))
            newest = np.argsort(-first_seq, kind="stable")
            slots, shares = np.split(features[newest], 2, axis=1)
            prior = self._affinity.outside_prior(slots.astype(np.int64), shares)
            self._order = features, (newest, prior, first_seq[newest] > self._bundle.learned.until_seq)
        return self._order[1]

    def _most_popular(self, table: TableMask) -> np.ndarray:
        """Return the most popular items that a mask allows, ascending."""
        order = self._bundle.arrays["popular"]
        items: np.ndarray = np.sort(order[table.mask[order]][:MAX_CANDIDATES])
        return items

    def _table_slots(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the slots (N+1, C) and shares of the table's items; row 0 is missing."""
        bundle = self._bundle
        codes = attribute_codes("item", bundle.spec, bundle.fields, [None, *bundle.items.attributes])[0]
        slots = self._affinity.item_slots[self._items.numbers(codes)]
        return slots, self._items.shares(slots)

    def _outside_slots(self, codes: np.ndarray) -> np.ndarray:
        """(n, 2C) float32: slots and shares of field codes (n, C)."""
        slots = self._affinity.item_slots[self._items.numbers(codes)]
        return np.concatenate([slots.astype(np.float32), self._items.shares(slots)], axis=1)
