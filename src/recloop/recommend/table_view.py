"""Table view: the catalog rows of a bundle's item table, and its cached masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from recloop.features.vocabulary import Vocabulary
from recloop.recommend.attribute_columns import Condition
from recloop.recommend.cache import ByteCache
from recloop.recommend.journal import Journal
from recloop.recommend.table_mask import TableMask
from recloop.records import Item

MAX_SINGLE_BITS: Final = 256  # above it, all bits are unpacked once


@dataclass
class PassingRows:
    """Catalog rows that are shown and pass a condition.

    Attributes:
        bits: (n/8,) uint8, packed.
        position: Position in the journal of these bits.
    """

    condition: Condition | None
    bits: np.ndarray
    position: int

    def at(self, rows: np.ndarray) -> np.ndarray:
        """(n,) bool of some catalog rows."""
        passes: np.ndarray = self.bits[rows >> 3] & (128 >> (rows & 7)) != 0
        return passes

    def set(self, passes: Mapping[int, bool], n_rows: int) -> None:
        """Set the bits of some rows of a catalog that has now ``n_rows`` rows."""
        n_new = (n_rows + 7) // 8 - len(self.bits)
        if n_new:
            self.bits = np.concatenate([self.bits, np.zeros(n_new, dtype=np.uint8)])
        if len(passes) > MAX_SINGLE_BITS:
            unpacked = np.unpackbits(self.bits)
            unpacked[list(passes)] = list(passes.values())
            self.bits = np.packbits(unpacked)
            return
        for row, is_passing in passes.items():
            bit, byte = 128 >> (row & 7), int(self.bits[row >> 3])
            self.bits[row >> 3] = byte | bit if is_passing else byte & ~bit


@dataclass(frozen=True)
class CachedMask:
    """Mask of a condition as of a position of the journal.

    ``passing`` are the catalog rows behind it.
    """

    mask: TableMask
    position: int
    passing: PassingRows


class GrowingArray:
    """(n,) int32 array with an append that costs no copy of the whole."""

    def __init__(self) -> None:
        self._buffer = np.zeros(0, dtype=np.int32)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def values(self) -> np.ndarray:
        """View of the values until the next append."""
        return self._buffer[: self._size]

    def extend(self, values: np.ndarray) -> None:
        """Append values; the buffer doubles when it is full."""
        size = self._size + len(values)
        if size > len(self._buffer):
            buffer = np.zeros(max(size, 2 * self._size), dtype=np.int32)
            buffer[: self._size] = self.values
            self._buffer = buffer
        self._buffer[self._size : size] = values
        self._size = size


class TableView:
    """Catalog seen from one item table.

    Attributes:
        item_ix: Item of each catalog row; 0 outside the table.
        outside: Catalog rows outside the table, oldest first (by first seq, ties by descending id bytes).
        outside_version: Number of updates that changed an item outside the table.
        masks: Masks by condition.
        position: Position in the journal of this view.
    """

    def __init__(self, n_table: int, cache_bytes: int) -> None:
        self._n_table = n_table
        self.item_ix = GrowingArray()
        self.outside = GrowingArray()
        self.outside_version = 0
        self.masks: ByteCache[str, CachedMask] = ByteCache(cache_bytes)
        self.position = 0

    def update(
        self,
        vocabulary: Vocabulary,
        items: Sequence[Item],
        first_seq: Sequence[int],
        journal: Journal,
        is_ordered: bool,
    ) -> None:
        """Add new catalog rows and record changes outside the table.

        Args:
            is_ordered: The first seqs of the new rows ascend and are above all earlier ones.
        """
        n_known = len(self.item_ix)
        if len(items) > n_known:
            item_ix = vocabulary.lookup((item.item_id for item in items[n_known:]), len(items) - n_known)
            self.item_ix.extend(item_ix)
            if is_ordered:
                self.outside.extend(np.flatnonzero(item_ix == 0) + n_known)
            else:
                self.outside = self._sorted_outside(items, first_seq)
        changed = journal.since(self.position)
        item_ix = self.item_ix.values
        if changed is None or not all(item_ix[row] for row in changed):
            self.outside_version += 1
        self.position = journal.end

    def new_mask(self, passes: np.ndarray, passes_unlisted: bool) -> TableMask:
        """Return the mask of the table from (n,) bool by catalog row.

        Args:
            passes_unlisted: Value of table items that the catalog lacks.
        """
        mask = np.full(self._n_table + 1, passes_unlisted)
        mask[self.item_ix.values] = passes
        mask[0] = False
        return TableMask.of(mask)

    def patched(self, mask: TableMask, rows: np.ndarray, passes: np.ndarray) -> TableMask:
        """Return a mask with new values of some catalog rows."""
        item_ix = self.item_ix.values[rows]
        in_table = item_ix > 0
        return mask.patched(item_ix[in_table], passes[in_table])

    def _sorted_outside(self, items: Sequence[Item], first_seq: Sequence[int]) -> GrowingArray:
        rows = np.flatnonzero(self.item_ix.values == 0).tolist()
        rows.sort(key=lambda row: items[row].item_id, reverse=True)
        rows.sort(key=first_seq.__getitem__)
        outside = GrowingArray()
        outside.extend(np.array(rows, dtype=np.int32))
        return outside
