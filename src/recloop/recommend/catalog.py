"""Catalog: item attributes as of a seq, and the items that pass a condition."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import msgspec
import numpy as np
import polars as pl

from recloop.features import conditions
from recloop.features.categories import as_categories
from recloop.features.vocabulary import Vocabulary, as_text
from recloop.recommend.cache import ENTRY_BYTES, ByteCache
from recloop.records import ITEM_ID, SEQ, Item

FILTER_CACHE_BYTES = 64 * 2**20
"""Memory limit of cached condition results of all bundles; the oldest are dropped first."""

Result = TypeVar("Result")


class _View:
    """Catalog rows of the items of one table, with cached condition results.

    Attributes:
        rows: (N,) int32 catalog row of each item, -1 if the catalog lacks it.
        masks, latest: Results of `Catalog.mask` and `Catalog.latest`, by condition.
    """

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows
        self.masks: ByteCache[str, np.ndarray] = ByteCache(FILTER_CACHE_BYTES)
        self.latest: ByteCache[str, list[str]] = ByteCache(FILTER_CACHE_BYTES)

    @property
    def bytes(self) -> int:
        return self.masks.bytes + self.latest.bytes

    def add(self, item_ix: int, row: int) -> None:
        """Add a new catalog item to the view."""
        if item_ix:
            self.rows[item_ix - 1] = row

    def clear(self) -> None:
        self.masks.clear()
        self.latest.clear()


class Catalog:
    """Items by raw id; ``version`` depends only on the current items."""

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}
        self._first_seq: dict[str, int] = {}
        self._out: set[str] = set()  # hidden or deleted
        self._sum: int | None = None  # sum of all items' weights; None: not computed yet
        self._frame: pl.DataFrame | None = None
        self._passing: ByteCache[str, np.ndarray] = ByteCache(FILTER_CACHE_BYTES)  # bits of `_passes`, by condition
        self._views: WeakKeyDictionary[Vocabulary, _View] = WeakKeyDictionary()  # a view is dropped with its bundle

    @classmethod
    def from_frames(cls, frames: Sequence[pl.DataFrame | None], max_seq: int | None = None) -> Catalog:
        """Build the catalog as of a seq from frames of item versions.

        Columns: item_id, seq, attributes, hidden, deleted.
        """
        catalog = cls()
        for frame in frames:
            if frame is None:
                continue
            rows = frame.sort(SEQ)
            if max_seq is not None:
                rows = rows.filter(pl.col(SEQ) <= max_seq)
            for item_id, seq, text, hidden, deleted in rows.select(
                ITEM_ID, SEQ, "attributes", "hidden", "deleted"
            ).iter_rows():
                catalog.upsert(
                    Item(item_id=item_id, attributes=msgspec.json.decode(text), hidden=hidden, deleted=deleted, seq=seq)
                )
        catalog._weight_sum()  # computed here instead of at the first request
        return catalog

    @classmethod
    def from_table(cls, ids: Sequence[str], attributes: Sequence[Mapping[str, Any]]) -> Catalog:
        """Build a catalog from a bundle's item table; no item is hidden."""
        catalog = cls()
        rows = zip(ids, attributes, strict=True)
        catalog._items = {item_id: Item(item_id=item_id, attributes=dict(row)) for item_id, row in rows}
        catalog._first_seq = dict.fromkeys(catalog._items, 0)
        return catalog

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._items

    def get(self, item_id: str) -> Item | None:
        return self._items.get(item_id)

    def first_seq(self, item_id: str) -> int:
        """Return the seq of an item's first version; 0 without one."""
        return self._first_seq.get(item_id, 0)

    def upsert(self, item: Item) -> None:
        """Apply a new version of an item, which replaces all attributes."""
        previous = self._items.get(item.item_id)
        if self._sum is not None:
            self._sum = (self._sum + _weight(item) - (0 if previous is None else _weight(previous))) % 2**64
        self._items[item.item_id] = item
        if previous is None:
            for vocabulary, view in self._views.items():
                view.add(vocabulary.index(item.item_id), len(self._items) - 1)
        self._first_seq.setdefault(item.item_id, item.seq)
        if item.hidden or item.deleted:
            self._out.add(item.item_id)
        else:
            self._out.discard(item.item_id)
        self._invalidate_conditions()

    @property
    def version(self) -> str:
        """Return 8 hex digits that identify the current items."""
        return f"{self._weight_sum():016x}"[:8]

    @property
    def fields(self) -> set[str]:
        """Return the attributes that at least one item has."""
        return set().union(*(item.attributes for item in self._items.values()))

    @property
    def columns(self) -> list[str]:
        """Return the fields that a condition may name: item_id and all attributes."""
        return self._table().columns

    def check(self, text: str, key: str) -> None:
        """Raise UserError if a condition does not parse or names an unknown field."""
        if text.strip():
            conditions.parse(text, self._table().schema, key)

    @property
    def cached_bytes(self) -> int:
        """Return the bytes of cached condition results, at most `FILTER_CACHE_BYTES`."""
        return self._passing.bytes + sum(view.bytes for view in self._views.values())

    def mask(self, text: str, vocabulary: Vocabulary) -> np.ndarray:
        """Return (N+1,) bool: shown table items that pass a condition; row 0 is False."""
        view = self._view(vocabulary)
        mask = view.masks.get(text)
        if mask is None:
            mask = np.ones(len(vocabulary) + 1, dtype=bool)
            if text.strip():
                in_catalog = view.rows >= 0
                mask[1:] = in_catalog
                mask[1:][in_catalog] = self._passes(text)[view.rows[in_catalog]]
            for item_id in self._out:
                mask[vocabulary.index(item_id)] = False
            mask[0] = False
            self._cache(view.masks, text, mask, mask.nbytes)
        return mask

    def latest(self, text: str, vocabulary: Vocabulary) -> list[str]:
        """Return shown items outside the table that pass a condition, newest first.

        Ties by id bytes.
        """
        view = self._view(vocabulary)
        latest = view.latest.get(text)
        if latest is None:
            is_candidate = self._passes(text).copy()
            is_candidate[view.rows[view.rows >= 0]] = False
            latest = sorted(
                compress(self._items, is_candidate), key=lambda item_id: (-self._first_seq[item_id], item_id)
            )
            self._cache(view.latest, text, latest, sys.getsizeof(latest))
        return latest

    def _passes(self, text: str) -> np.ndarray:
        """Return (n,) bool by catalog row: the item is shown and passes a condition."""
        packed = self._passing.get(text)
        if packed is not None:
            return np.unpackbits(packed, count=len(self._items)).view(bool)
        passes = np.array([item_id not in self._out for item_id in self._items], dtype=bool)
        if text.strip():
            table = self._table()
            rule = conditions.parse(text, table.schema, "filter")
            passes &= table.select(rule.expr.fill_null(False)).to_series().to_numpy()  # a constant applies to all rows
        packed = np.packbits(passes)
        self._cache(self._passing, text, packed, packed.nbytes)
        return passes

    def _view(self, vocabulary: Vocabulary) -> _View:
        view = self._views.get(vocabulary)
        if view is None:
            row_of = {item_id: row for row, item_id in enumerate(self._items)}
            rows = np.fromiter((row_of.get(item_id, -1) for item_id in vocabulary.ids), np.int32, len(vocabulary))
            view = self._views[vocabulary] = _View(rows)
        return view

    def _cache(self, cache: ByteCache[str, Result], text: str, value: Result, size: int) -> None:
        """Cache a condition's result; clients choose conditions, so the cache is bounded."""
        size += sys.getsizeof(text)
        while self.cached_bytes + size + ENTRY_BYTES > FILTER_CACHE_BYTES and self.cached_bytes:
            view_caches = (results for view in self._views.values() for results in (view.masks, view.latest))
            max((self._passing, *view_caches), key=lambda results: results.bytes).drop_oldest()
        cache.put(text, value, size)

    def _weight_sum(self) -> int:
        if self._sum is None:
            self._sum = sum(_weight(item) for item in self._items.values()) % 2**64
        return self._sum

    def _invalidate_conditions(self) -> None:
        """Invalidate cached condition results after an item changed."""
        self._frame = None
        self._passing.clear()
        for view in self._views.values():
            view.clear()

    def _table(self) -> pl.DataFrame:
        """Return item attributes as columns for conditions; mixed types become text."""
        if self._frame is None:
            names = sorted({name for item in self._items.values() for name in item.attributes} - {ITEM_ID})
            columns = {ITEM_ID: pl.Series(list(self._items), dtype=pl.String)}
            for name in names:
                columns[name] = _column([item.attributes.get(name) for item in self._items.values()])
            self._frame = pl.DataFrame(columns)
        return self._frame


def _weight(item: Item) -> int:
    text = msgspec.json.encode([item.item_id, item.attributes, item.hidden, item.deleted], order="sorted")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _column(values: list[Any]) -> pl.Series:
    present = [value for value in values if value is not None]
    if any(isinstance(value, list) for value in present):  # an empty list is missing
        return pl.Series([as_categories(value) for value in values], dtype=pl.List(pl.String))
    if all(isinstance(value, bool) for value in present):
        return pl.Series(values, dtype=pl.Boolean)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in present):
        return pl.Series([None if value is None else float(value) for value in values], dtype=pl.Float64)
    return pl.Series([None if value is None else as_text(value) for value in values], dtype=pl.String)
