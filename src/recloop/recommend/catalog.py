"""Catalog: item attributes as of a seq, and the items that pass a condition."""

from __future__ import annotations

import gc
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

import msgspec
import numpy as np
import polars as pl

from recloop.errors import UserError
from recloop.features.vocabulary import Vocabulary
from recloop.recommend.attribute_columns import AttributeColumns, ColumnTypes, Condition
from recloop.recommend.cache import ENTRY_BYTES, ByteCache
from recloop.recommend.journal import Journal
from recloop.recommend.table_mask import TableMask
from recloop.recommend.table_view import CachedMask, PassingRows, TableView
from recloop.records import ITEM_ID, SEQ, Item

FILTER_CACHE_BYTES = 64 * 2**20
"""Memory limit of cached condition results of all bundles; the oldest are dropped first."""
CONDITION_CACHE_BYTES: Final = 4 * 2**20
CONDITION_BYTES: Final = 2_000  # estimate for a compiled condition, without its text
DECODE_ROWS: Final = 20_000  # rows whose attributes are decoded together
MIN_CHUNK, MAX_CHUNK = 64, 65_536  # rows of one step of `latest`

Result = TypeVar("Result")


class Catalog:
    """Items by raw id; ``version`` depends only on the current items.

    An upsert changes one row. Cached results of conditions catch up with the changed rows at their next use. A catalog
    belongs to one thread; `copy` makes one for another thread.
    """

    def __init__(self) -> None:
        self._items: list[Item] = []  # by catalog row
        self._rows: dict[str, int] = {}
        self._first_seq: list[int] = []
        self._last_unordered = -1  # newest row whose first seq is not above all earlier ones
        self._max_seq = -(2**63)
        self._out: set[int] = set()  # hidden or deleted
        self._sum: int | None = None  # sum of all items' weights; None: not computed yet
        self._journal = Journal()
        self._columns = AttributeColumns(self._items, self._journal)
        self._conditions: ByteCache[str, tuple[Condition | UserError, int]] = ByteCache(
            CONDITION_CACHE_BYTES
        )  # checked at
        self._passing: ByteCache[str, PassingRows] = ByteCache(FILTER_CACHE_BYTES)
        self._views: WeakKeyDictionary[Vocabulary, TableView] = WeakKeyDictionary()  # dropped with its bundle

    @classmethod
    def from_frames(cls, frames: Sequence[pl.DataFrame | None], max_seq: int | None = None) -> Catalog:
        """Build the catalog as of a seq from frames of item versions.

        Columns: item_id, seq, attributes, hidden, deleted.
        """
        names = (ITEM_ID, SEQ, "attributes", "hidden", "deleted")
        sorted_frames = [frame.select(names).sort(SEQ, maintain_order=True) for frame in frames if frame is not None]
        catalog = cls()
        if sorted_frames:
            versions = pl.concat(sorted_frames)
            if max_seq is not None:
                versions = versions.filter(pl.col(SEQ) <= max_seq)
            newest = versions.group_by(ITEM_ID, maintain_order=True).agg(
                pl.col(SEQ).first().alias("first_seq"), *(pl.col(name).last() for name in names[1:])
            )
            catalog._append_all(_items_of(newest), newest["first_seq"].to_list())
        return catalog

    @classmethod
    def from_table(cls, ids: Sequence[str], attributes: Sequence[Mapping[str, Any]]) -> Catalog:
        """Build a catalog from a bundle's item table; no item is hidden."""
        catalog = cls()
        rows = zip(ids, attributes, strict=True)
        catalog._append_all([Item(item_id=item_id, attributes=dict(row)) for item_id, row in rows], [0] * len(ids))
        return catalog

    def copy(self) -> Catalog:
        """Return a catalog of the same items with its own caches, for another thread.

        Later upserts must be applied to both.
        """
        catalog = Catalog()
        catalog._items.extend(self._items)
        catalog._rows.update(self._rows)
        catalog._first_seq.extend(self._first_seq)
        catalog._last_unordered, catalog._max_seq = self._last_unordered, self._max_seq
        catalog._out.update(self._out)
        catalog._sum = self._sum
        return catalog

    def warm_up(self) -> None:
        """Compute the version now instead of at the first request."""
        self._weight_sum()

    def snapshot(self) -> Catalog:
        """Return the present items, for the masks that another thread makes (`adopt`).

        It shares immutable parts and has no look-up by id. The cost is a copy of some lists of references.
        """
        catalog = Catalog()
        catalog._items.extend(self._items)
        catalog._first_seq.extend(self._first_seq)
        catalog._last_unordered, catalog._out = self._last_unordered, self._out.copy()
        catalog._journal = self._journal.copy()
        catalog._columns = AttributeColumns(catalog._items, catalog._journal)
        catalog._columns.fixed = self._columns.fixed
        return catalog

    def adopt(self, snapshot: Catalog) -> None:
        """Keep the masks that were made with a `snapshot` of this catalog.

        They catch up with later changes at their next use. After very many changes they are dropped.
        """
        changed = self._journal.since(snapshot._journal.end)
        if changed is None:
            return
        self._columns.adopt(snapshot._columns, changed)
        for vocabulary, view in snapshot._views.items():
            if vocabulary in self._views:
                continue
            cached_masks = view.masks.items()
            view.masks.clear()
            self._views[vocabulary] = view
            for text, cached in cached_masks:
                self._adopt_mask(view, text, cached)

    def _adopt_mask(self, view: TableView, text: str, cached: CachedMask) -> None:
        passing = self._passing.get(text)
        if passing is None:
            passing = cached.passing
            self._cache(self._passing, text, passing, passing.bits.nbytes)
        elif not _has_same_columns(passing.condition, cached.passing.condition):
            return
        self._cache(view.masks, text, CachedMask(cached.mask, cached.position, passing), cached.mask.mask.nbytes)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._rows

    def get(self, item_id: str) -> Item | None:
        row = self._rows.get(item_id)
        return None if row is None else self._items[row]

    def row(self, row: int) -> Item:
        """Return the item of a catalog row; an item keeps its row."""
        return self._items[row]

    @property
    def position(self) -> int:
        """Number of changes so far; equal numbers mean equal items."""
        return self._journal.end

    def changed_since(self, position: int) -> Mapping[int, Item | None] | None:
        """Return the rows changed after a position; None if it is too old."""
        return self._journal.since(position)

    def first_seq(self, item_id: str) -> int:
        """Return the seq of an item's first version; 0 without one."""
        row = self._rows.get(item_id)
        return 0 if row is None else self._first_seq[row]

    def upsert(self, item: Item) -> None:
        """Apply a new version of an item, which replaces all attributes."""
        row = self._rows.get(item.item_id)
        previous = None if row is None else self._items[row]
        if self._sum is not None:
            self._sum = (self._sum + _weight(item) - (0 if previous is None else _weight(previous))) % 2**64
        if row is None:
            row = self._rows[item.item_id] = len(self._items)
            self._items.append(item)
            self._first_seq.append(item.seq)
            self._check_order(row, item.seq)
        else:
            self._items[row] = item
        if item.hidden or item.deleted:
            self._out.add(row)
        else:
            self._out.discard(row)
        self._columns.replace(previous, item)
        self._journal.add(row, previous)

    @property
    def version(self) -> str:
        """Return 8 hex digits that identify the current items."""
        return f"{self._weight_sum():016x}"[:8]

    def has_any_field(self, names: frozenset[str], rows: Iterable[int]) -> bool:
        """Return whether the items of these rows have one of these attributes."""
        return not all(names.isdisjoint(self._items[row].attributes) for row in rows)

    @property
    def columns(self) -> list[str]:
        """Return the fields that a condition may name: item_id and all attributes."""
        return self._columns.names

    def use_types(self, types: Mapping[str, ColumnTypes]) -> None:
        """Read the fields of a bundle's items in these types from now on."""
        if types is self._columns.fixed:
            return
        if types != self._columns.fixed:
            self._conditions.clear()
            self._passing.clear()
        self._columns.fixed = types

    def check(self, text: str, key: str) -> None:
        """Check a condition of a request, whose size `conditions.check_size` has checked.

        Raises:
            UserError: it does not parse or names an unknown field.
        """
        if text.strip():
            self._condition(text, key)

    @property
    def cached_bytes(self) -> int:
        """Return the bytes of cached condition results, at most `FILTER_CACHE_BYTES`."""
        return self._passing.bytes + sum(view.masks.bytes for view in self._views.values())

    def mask(self, text: str, vocabulary: Vocabulary) -> TableMask:
        """Return the shown table items that pass a condition.

        Items that the catalog lacks pass only the empty condition. The mask is immutable; it is the same object until
        an item starts or stops to pass.
        """
        view = self._view(vocabulary)
        cached = view.masks.get(text)
        if cached is not None and cached.position == self._journal.end:
            return cached.mask
        passing = self._passing_rows(text)
        is_usable = cached is not None and cached.passing is passing
        changed = self._journal.since(cached.position) if cached is not None and is_usable else None
        if cached is None or changed is None:
            is_passing = np.unpackbits(passing.bits, count=len(self._items)).view(bool)
            mask = view.new_mask(is_passing, passes_unlisted=not text.strip())
        else:
            rows = np.fromiter(changed, np.int64, len(changed))
            mask = view.patched(cached.mask, rows, passing.at(rows))
        self._cache(view.masks, text, CachedMask(mask, self._journal.end, passing), mask.mask.nbytes)
        return mask

    def latest(self, text: str, vocabulary: Vocabulary) -> Iterator[str]:
        """Yield shown items outside the table that pass a condition, newest first.

        Ties by id bytes.
        """
        outside = self._view(vocabulary).outside.values
        passing = self._passing_rows(text)
        stop, size = len(outside), MIN_CHUNK
        while stop:
            start = max(0, stop - size)
            rows = outside[start:stop][::-1]
            for row in rows[passing.at(rows)].tolist():
                yield self._items[row].item_id
            stop, size = start, min(4 * size, MAX_CHUNK)

    def shows(self, item_id: str, text: str) -> bool:
        """Return whether an item of the catalog is shown and passes a condition."""
        row = self._rows.get(item_id)
        return row is not None and bool(self._passing_rows(text).at(np.array([row]))[0])

    def outside_version(self, vocabulary: Vocabulary) -> int:
        """Return a number that changes with every change of an item outside the table."""
        return self._view(vocabulary).outside_version

    def _condition(self, text: str, key: str = "filter") -> Condition:
        end = self._journal.end
        earlier, checked_at = self._conditions.get(text) or (None, end)
        condition: Condition | UserError
        if (earlier is not None and checked_at == end) or (
            isinstance(earlier, Condition) and self._columns.is_current(earlier)
        ):
            condition = earlier
        else:
            try:
                condition = self._columns.compile(text, key)
            except UserError as error:
                condition = error
        if condition is not earlier or checked_at != end:
            self._conditions.put(text, (condition, end), CONDITION_BYTES + 20 * len(text))
        if isinstance(condition, UserError):
            raise condition.with_traceback(None)
        return condition

    def _passing_rows(self, text: str) -> PassingRows:
        """Return the catalog rows that are shown and pass a condition."""
        passing = self._passing.get(text)
        if passing is not None and passing.position == self._journal.end:
            return passing
        condition = self._condition(text) if text.strip() else None
        changed = None if passing is None else self._journal.since(passing.position)
        if passing is None or changed is None or not _has_same_columns(passing.condition, condition):
            passes = np.ones(len(self._items), dtype=bool)
            if condition is not None:
                passes = self._columns.evaluate(condition)
            passes[list(self._out)] = False
            passing = PassingRows(condition, np.packbits(passes), self._journal.end)
        else:
            passing.set(self._patch(condition, changed), len(self._items))
            passing.condition, passing.position = condition, self._journal.end
        self._cache(self._passing, text, passing, passing.bits.nbytes)
        return passing

    def _patch(self, condition: Condition | None, changed: Mapping[int, Item | None]) -> dict[int, bool]:
        """Evaluate changed rows whose result may differ; the others keep their bits."""
        passes: dict[int, bool] = {}
        for row, previous in changed.items():
            was_shown = previous is not None and not (previous.hidden or previous.deleted)
            if row in self._out or condition is None:
                passes[row] = row not in self._out
            elif not was_shown or not condition.has_same_values(previous, self._items[row]):
                passes[row] = True
        if condition is None:
            return passes
        rows = np.array([row for row, is_open in passes.items() if is_open], dtype=np.int64)
        if len(rows):
            passes.update(zip(rows.tolist(), self._columns.evaluate_rows(condition, rows).tolist(), strict=True))
        return passes

    def _view(self, vocabulary: Vocabulary) -> TableView:
        view = self._views.get(vocabulary)
        if view is None:
            view = self._views[vocabulary] = TableView(len(vocabulary), FILTER_CACHE_BYTES)
        if view.position != self._journal.end or len(view.item_ix) != len(self._items):
            is_ordered = self._last_unordered < len(view.item_ix)
            view.update(vocabulary, self._items, self._first_seq, self._journal, is_ordered)
        return view

    def _append_all(self, items: Sequence[Item], first_seq: Sequence[int]) -> None:
        """Fill an empty catalog; ids are unique."""
        self._items.extend(items)
        self._rows = {item.item_id: row for row, item in enumerate(items)}
        self._first_seq.extend(first_seq)
        self._out = {row for row, item in enumerate(items) if item.hidden or item.deleted}
        for row, seq in enumerate(first_seq):
            self._check_order(row, seq)

    def _check_order(self, row: int, seq: int) -> None:
        if seq <= self._max_seq:
            self._last_unordered = row
        self._max_seq = max(self._max_seq, seq)

    def _cache(self, cache: ByteCache[str, Result], text: str, value: Result, size: int) -> None:
        """Cache a condition's result; clients choose conditions, so the cache is bounded."""
        size += sys.getsizeof(text)
        if cache.size(text) == size:  # a patched result
            cache.put(text, value, size)
            return
        cache.pop(text)
        while self.cached_bytes + size + ENTRY_BYTES > FILTER_CACHE_BYTES and self.cached_bytes:
            caches: list[ByteCache[str, Any]] = [self._passing, *(view.masks for view in self._views.values())]
            max(caches, key=lambda results: results.bytes).drop_oldest()
        cache.put(text, value, size)

    def _weight_sum(self) -> int:
        if self._sum is None:
            self._sum = sum(map(_weight, self._items)) % 2**64
        return self._sum


def _has_same_columns(first: Condition | None, second: Condition | None) -> bool:
    """Return True if two compilations of a condition read the same column types."""
    if first is None or second is None:
        return first is second
    return first is second or first.columns == second.columns


def _weight(item: Item) -> int:
    text = msgspec.json.encode([item.item_id, item.attributes, item.hidden, item.deleted], order="sorted")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _items_of(versions: pl.DataFrame) -> list[Item]:
    """Decode item versions; blocks of rows are decoded together."""
    items: list[Item] = []
    was_enabled = gc.isenabled()
    gc.disable()  # a collection after every few hundred new objects finds nothing
    try:
        for block in versions.iter_slices(DECODE_ROWS):
            attributes = msgspec.json.decode(f"[{','.join(block['attributes'].to_list())}]", type=list[dict[str, Any]])
            columns = (block[name].to_list() for name in (ITEM_ID, SEQ, "hidden", "deleted"))
            items += [
                Item(item_id=item_id, attributes=row, hidden=hidden, deleted=deleted, seq=seq)
                for row, item_id, seq, hidden, deleted in zip(attributes, *columns, strict=True)
            ]
    finally:
        if was_enabled:
            gc.enable()
    return items
