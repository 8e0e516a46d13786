"""Journal of changed catalog rows, which cached results read to catch up."""

from __future__ import annotations

from typing import Final

import numpy as np

MAX_ENTRIES: Final = 65_536
"""Entries that are kept, or a quarter of the rows; results older than the journal are computed again."""


class Journal:
    """Rows in the order of their changes; a position in it is a state of the catalog.

    Attributes:
        start: Position of the oldest entry that is kept.
    """

    def __init__(self) -> None:
        self.start = 0
        self._rows: list[int] = []
        self._n_rows = 0

    @property
    def end(self) -> int:
        """Position after the newest change."""
        return self.start + len(self._rows)

    def add(self, row: int) -> None:
        """Record a change of a row."""
        self._rows.append(row)
        self._n_rows = max(self._n_rows, row + 1)
        if len(self._rows) > max(MAX_ENTRIES, self._n_rows // 4):
            n_dropped = len(self._rows) // 2
            del self._rows[:n_dropped]
            self.start += n_dropped

    def since(self, position: int) -> np.ndarray | None:
        """(n,) distinct rows changed after a position; None if it is too old."""
        if position < self.start:
            return None
        changed = self._rows[position - self.start :]
        return np.array(changed, dtype=np.int64) if len(changed) < 2 else np.unique(changed)
