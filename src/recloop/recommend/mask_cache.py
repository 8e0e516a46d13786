"""Bounded cache of what a source derives from a table mask."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from recloop.recommend.table_mask import TableMask

Derived = TypeVar("Derived")


class MaskCache(Generic[Derived]):
    """Results of one function of a table mask, for the last versions.

    The cache does not keep the function: its owner's method would hold the owner, and memory of an earlier bundle stays
    taken as long as objects hold each other (`recloop.serve.reload.gc_paused`).

    Args:
        size: Largest sum of the weights of the kept results; the newest result is always kept.
        weigh: Weight of a result; each weighs 1 by default.
    """

    def __init__(self, size: int, weigh: Callable[[Derived], int] = lambda _: 1) -> None:
        self._size = size
        self._weigh = weigh
        self._weight = 0
        self._entries: OrderedDict[int, Derived] = OrderedDict()

    def get(self, table: TableMask, derive: Callable[[TableMask], Derived]) -> Derived:
        """Return the result for a mask."""
        if table.version in self._entries:
            self._entries.move_to_end(table.version)
            return self._entries[table.version]
        derived = self._entries[table.version] = derive(table)
        self._weight += self._weigh(derived)
        while self._weight > self._size and len(self._entries) > 1:
            self._weight -= self._weigh(self._entries.popitem(last=False)[1])
        return derived
