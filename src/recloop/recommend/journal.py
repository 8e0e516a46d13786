"""Journal of changed catalog rows, which cached results read to catch up."""

from __future__ import annotations

from typing import Final

from recloop.records import Item

MAX_ENTRIES: Final = 65_536
"""Entries that are kept, or a quarter of the rows; results older than the journal are computed again."""


class Journal:
    """Rows in the order of their changes; a position in it is a state of the catalog.

    Attributes:
        start: Position of the oldest entry that is kept.
        end: Position after the newest change.
    """

    def __init__(self) -> None:
        self.start = self.end = 0
        self._changes: list[tuple[int, Item | None]] = []
        self._n_rows = 0

    def copy(self) -> Journal:
        """Return a journal of the same changes and positions; later ones are not in it."""
        journal = Journal()
        journal.start, journal.end, journal._n_rows = self.start, self.end, self._n_rows
        journal._changes = self._changes.copy()
        return journal

    def add(self, row: int, previous: Item | None) -> None:
        """Record a change of a row and its version before."""
        self._changes.append((row, previous))
        self.end += 1
        self._n_rows = max(self._n_rows, row + 1)
        if len(self._changes) > max(MAX_ENTRIES, self._n_rows // 4):
            n_dropped = len(self._changes) // 2
            del self._changes[:n_dropped]
            self.start += n_dropped

    def since(self, position: int) -> dict[int, Item | None] | None:
        """Return the rows changed after a position, with their versions at it.

        A new row has None. The result is None if the position is too old.
        """
        if position < self.start:
            return None
        versions: dict[int, Item | None] = {}
        for row, previous in self._changes[position - self.start :]:
            versions.setdefault(row, previous)
        return versions
