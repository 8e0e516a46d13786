"""Least-recently-used cache bounded by bytes."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
ENTRY_BYTES = 200
"""Overhead of an entry: two dictionary slots, the tuple around the value and the header of its key."""


class ByteCache(Generic[Key, Value]):
    """Values by key with at most ``limit`` bytes in total; not thread-safe.

    Attributes:
        bytes: Sum of the given sizes plus `ENTRY_BYTES` per entry.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._entries: OrderedDict[Key, tuple[Value, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def get(self, key: Key) -> Value | None:
        """Return the value and mark it as most recently used; None if absent."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def items(self) -> list[tuple[Key, Value]]:
        """Return keys and values, least recently used first."""
        return [(key, value) for key, (value, _) in self._entries.items()]

    def size(self, key: Key) -> int:
        """Return the given size of a stored value; -1 if absent."""
        entry = self._entries.get(key)
        return -1 if entry is None else entry[1] - ENTRY_BYTES

    def put(self, key: Key, value: Value, size: int) -> None:
        """Store a value of ``size`` bytes; a value larger than the limit is not stored."""
        self.pop(key)
        size += ENTRY_BYTES
        if size > self.limit:
            return
        while self.bytes + size > self.limit:
            self.drop_oldest()
        self._entries[key] = (value, size)
        self.bytes += size

    def pop(self, key: Key) -> None:
        """Drop an entry if it exists."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= entry[1]

    def drop_oldest(self) -> None:
        """Drop the least recently used entry.

        Raises:
            KeyError: the cache is empty.
        """
        self.bytes -= self._entries.popitem(last=False)[1][1]

    def clear(self) -> None:
        """Drop all entries."""
        self._entries.clear()
        self.bytes = 0


def tree_bytes(tree: Any) -> int:
    """Return the memory of a JSON value in bytes."""
    size = sys.getsizeof(tree)
    if isinstance(tree, Mapping):
        return size + sum(tree_bytes(key) + tree_bytes(value) for key, value in tree.items())
    return size + sum(map(tree_bytes, tree)) if isinstance(tree, list | tuple) else size
