"""Fallback: stages that fill the free slots of a list."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from recloop.bundle import Bundle
from recloop.features.encode import EncodedBatch
from recloop.features.value_text import as_text
from recloop.recommend import similar_items
from recloop.recommend.catalog import Catalog
from recloop.recommend.filters import CandidateMask
from recloop.recommend.mask_cache import MaskCache
from recloop.recommend.table_mask import TableMask

SEGMENT_PREFIX = "segment."
"""Prefix of the arrays that hold a segment's popular list: ``segment.VALUE``."""


MIN_BLOCK, MAX_BLOCK = 64, 65_536
"""Items of an ordered list that are read at once: few first, because most queries need few."""
KEPT_ITEMS_PER_MASK = 64
"""First items of an ordered list that are kept for each of the last `CACHED_MASKS` masks."""
CACHED_MASKS = 200


@dataclass(frozen=True)
class FallbackQuery:
    """Query ``b`` of a batch, as input of the fallback stages.

    Attributes:
        item_id: Query item of a list of similar items.
        list: Kind of list of the placement.
    """

    encoded: EncodedBatch
    allowed: CandidateMask
    b: int
    item_id: str
    list: str

    @cached_property
    def banned(self) -> set[int]:
        """Return the item_ix that this query must not show."""
        return set(self.allowed.banned[self.b].tolist())


class OrderedItems:
    """Ordered list of item_ix, read through masks.

    The first allowed items of recent masks are kept.
    """

    def __init__(self, order: np.ndarray) -> None:
        self._order = order
        self._first: MaskCache[tuple[list[int], int]] = MaskCache(CACHED_MASKS)

    def shown(self, query: FallbackQuery) -> Iterator[int]:
        """Yield the items that a query may show, in order."""
        banned = query.banned
        first, start = self._first.get(query.allowed.table, self._first_items)
        yield from (item_ix for item_ix in first if item_ix not in banned)
        for positions in self._allowed_positions(query.allowed.mask, start):
            yield from (item_ix for item_ix in self._order[positions].tolist() if item_ix not in banned)

    def _first_items(self, table: TableMask) -> tuple[list[int], int]:
        """Return the first items that a mask allows, and the position after them."""
        first: list[int] = []
        for allowed in self._allowed_positions(table.mask, 0):
            positions = allowed[: KEPT_ITEMS_PER_MASK - len(first)]
            first += self._order[positions].tolist()
            if len(first) == KEPT_ITEMS_PER_MASK:
                return first, int(positions[-1]) + 1
        return first, len(self._order)

    def _allowed_positions(self, mask: np.ndarray, start: int) -> Iterator[np.ndarray]:
        """Yield the positions of allowed items from ``start``, block by block."""
        size = MIN_BLOCK
        while start < len(self._order):
            yield start + np.flatnonzero(mask[self._order[start : start + size]])
            start, size = start + size, min(4 * size, MAX_BLOCK)


class FallbackStage(Protocol):
    """Stage of the fallback; its name in the policy is the source of its slots."""

    def items(self, query: FallbackQuery) -> Iterator[str]:
        """Return raw ids for a query, best first, filtered; duplicates are allowed."""
        ...


class AttributeRanking(Protocol):
    """Ranking of items by the attributes of a query's user."""

    def best(self, catalog: Catalog, encoded: EncodedBatch, allowed: CandidateMask, b: int) -> Iterator[str]:
        """Return raw ids for query b, best first, filtered; empty without a known value."""
        ...

    def cold_items(self, catalog: Catalog, encoded: EncodedBatch, allowed: CandidateMask, b: int) -> Sequence[str]:
        """Return raw ids of items without a row for query b, best first.

        They pass the condition; banned ids may be among them.
        """
        ...


class AttributesStage:
    """Items with attributes that resemble the query item or match the user."""

    def __init__(self, catalog: Catalog, ranking: AttributeRanking | None, similar: similar_items.SimilarItems) -> None:
        self._catalog = catalog
        self._ranking = ranking
        self._similar = similar

    def items(self, query: FallbackQuery) -> Iterator[str]:
        if query.list == similar_items.LIST_KIND:
            return self._similar.by_attributes(self._catalog, query.item_id, query.allowed, query.b)
        if self._ranking is None:
            return iter(())
        return self._ranking.best(self._catalog, query.encoded, query.allowed, query.b)


class SegmentStage:
    """Popular items of the user's segment; none for a user without a segment."""

    def __init__(self, bundle: Bundle) -> None:
        self._field = bundle.spec.segment
        self._ids = bundle.items.ids.ids
        self._orders = {
            name: OrderedItems(order) for name, order in bundle.arrays.items() if name.startswith(SEGMENT_PREFIX)
        }

    def items(self, query: FallbackQuery) -> Iterator[str]:
        value = (query.encoded.states.attributes[query.b] or {}).get(self._field)
        order = None if value is None else self._orders.get(SEGMENT_PREFIX + as_text(value))
        return iter(()) if order is None else (self._ids[item_ix - 1] for item_ix in order.shown(query))


class PopularStage:
    """Popular items of all users."""

    def __init__(self, bundle: Bundle) -> None:
        self._ids = bundle.items.ids.ids
        self._order = OrderedItems(bundle.arrays["popular"])

    def items(self, query: FallbackQuery) -> Iterator[str]:
        return (self._ids[item_ix - 1] for item_ix in self._order.shown(query))


class LatestStage:
    """Newest items: all items in a list ``latest``, else those outside the table."""

    def __init__(self, bundle: Bundle, catalog: Catalog) -> None:
        self._bundle = bundle
        self._catalog = catalog

    def items(self, query: FallbackQuery) -> Iterator[str]:
        if query.list == "latest":
            return self._all(query)
        return self._catalog.latest(query.allowed.text, self._bundle.items.ids)

    def _all(self, query: FallbackQuery) -> Iterator[str]:
        """Return all items, newest first.

        Table items by their first positive, others by their first version's seq. Ties: the table first, by item_ix,
        then id bytes.
        """
        ids = self._bundle.items.ids
        first_seq = self._bundle.items.first_seq
        table = (
            (-int(first_seq[item_ix - 1]), 0, item_ix, ids.ids[item_ix - 1])
            for item_ix in self._newest_items.shown(query)
        )
        outside = (
            (-self._catalog.first_seq(item_id), 1, rank, item_id)
            for rank, item_id in enumerate(self._catalog.latest(query.allowed.text, ids))
        )
        for *_, item_id in heapq.merge(table, outside):
            yield item_id

    @cached_property
    def _newest_items(self) -> OrderedItems:
        """All items by descending first seq, ties by item_ix."""
        return OrderedItems(np.argsort(-self._bundle.items.first_seq, kind="stable") + 1)


def fill_fallback(
    stages: Iterable[tuple[str, FallbackStage]],
    query: FallbackQuery,
    used_ids: Iterable[str],
    n_free: int,
    is_further_variant: Callable[[str], bool] = lambda _: False,
) -> list[tuple[str, str]]:
    """Return (item_id, source) of the next ``n_free`` slots, without duplicates.

    Args:
        stages: Names and stages in order; a stage runs only if earlier ones leave slots free.
        is_further_variant: True for an item whose group the list has; it remembers the groups of the others.
    """
    slots: list[tuple[str, str]] = []
    allowed = query.allowed
    excluded = {*used_ids} | allowed.banned_ids[query.b]
    for source, stage in stages:
        for item_id in stage.items(query):
            if len(slots) == n_free:
                return slots
            if item_id not in excluded and item_id not in allowed.unavailable and not is_further_variant(item_id):
                excluded.add(item_id)
                slots.append((item_id, source))
    return slots


def segment_lists(
    users: Sequence[str | None], user_ix: np.ndarray, items: np.ndarray, weights: np.ndarray, size: int, length: int
) -> dict[str, np.ndarray]:
    """Compute each segment's popular items, ``segment.VALUE`` -> (length,) int32.

    Lists may be shorter; ties by item_ix.

    Args:
        users: Segment of each user; None for users without a segment.
        user_ix, items, weights: (E,) user, item and weight of the training rows.
    """
    values = sorted({value for value in users if value is not None})
    code_of = {value: code for code, value in enumerate(values)}
    codes = np.array([-1 if value is None else code_of[value] for value in users], dtype=np.int64)[user_ix]
    by_segment = np.argsort(codes, kind="stable")  # rows of a segment keep their order, so float sums do too
    borders = np.searchsorted(codes[by_segment], np.arange(len(values) + 1))
    lists: dict[str, np.ndarray] = {}
    for code, value in enumerate(values):
        rows = by_segment[borders[code] : borders[code + 1]]
        counts = np.bincount(items[rows], weights=weights[rows], minlength=size)
        order = np.argsort(-counts[1:], kind="stable")[:length] + 1
        lists[SEGMENT_PREFIX + value] = order[counts[order] > 0].astype(np.int32)
    return lists
