"""Item ids of the events of log.db, kept in memory.

An index of them would cost every insert more than the rare reads save.
"""

from __future__ import annotations

import threading
from typing import Final

from recloop.storage.database import Connection

SLICE_ROWS: Final = 100_000  # seqs per read; a longer read would keep the write-ahead log from shrinking


class LoggedItems:
    """Item ids of the events, read in slices; any thread may use it.

    Ids of deleted rows are kept: the archive holds these rows.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids: set[str] = set()
        self._seq = 0

    def has(self, connection: Connection, item_id: str) -> bool:
        """Return True if an event has this item_id."""
        with self._lock:
            if item_id not in self._ids:
                self._read(connection)
            return item_id in self._ids

    def _read(self, connection: Connection) -> None:
        """Add the ids of the events after the last read."""
        first, last = connection.execute("SELECT min(seq), max(seq) FROM events WHERE seq > ?", (self._seq,)).fetchone()
        if first is None:
            return
        for start in range(first, last + 1, SLICE_ROWS):
            end = min(start + SLICE_ROWS - 1, last)
            rows = connection.execute("SELECT DISTINCT item_id FROM events WHERE seq BETWEEN ? AND ?", (start, end))
            self._ids.update(item_id for (item_id,) in rows)
            self._seq = end
