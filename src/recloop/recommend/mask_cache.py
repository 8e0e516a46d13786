"""Bounded cache of what a source derives from a table mask."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from recloop.recommend.table_mask import TableMask

Derived = TypeVar("Derived")


class MaskCache(Generic[Derived]):
    """Results of a function of a table mask, for the last ``size`` versions."""

    def __init__(self, derive: Callable[[TableMask], Derived], size: int) -> None:
        self._derive = derive
        self._size = size
        self._entries: OrderedDict[int, Derived] = OrderedDict()

    def get(self, table: TableMask) -> Derived:
        """Return the result for a mask."""
        if table.version in self._entries:
            self._entries.move_to_end(table.version)
            return self._entries[table.version]
        derived = self._entries[table.version] = self._derive(table)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)
        return derived
