"""Newest timestamps of the users of a log, which save reads of its index.

Most new rows are later than all earlier rows of their user, so no earlier row is in their window of rule burst.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np

from recloop.records import DAY, now
from recloop.storage.database import Connection

MAX_USERS: Final = 200_000
"""Users from which the older half is forgotten."""
NO_STAMP: Final = -(2**63)


class NewestStamps:
    """Upper bounds of the timestamps in a log that one process writes.

    Args:
        before: No row of any other user than those of ``newest`` is later.
        newest: Newest timestamp of a user, or a later time.
    """

    def __init__(self, before: int, newest: Mapping[str, int]) -> None:
        self._before = before
        self._newest = dict(newest)

    @classmethod
    def read(cls, connection: Connection) -> NewestStamps:
        """Read the bounds of a log; reads the index of its rows once.

        Rows with a wrong clock must not raise the bound of all users, so users with rows after tomorrow have their own.
        """
        tomorrow = now() + DAY
        query = "SELECT max(timestamp) FROM events WHERE timestamp <= ?"
        (before,) = connection.execute(query, (tomorrow,)).fetchone()
        query = "SELECT user_id, max(timestamp) FROM events WHERE timestamp > ? GROUP BY user_id"
        later = dict(connection.execute(query, (tomorrow,)).fetchall())
        return cls(NO_STAMP if before is None else before, later)

    def may_have(self, user_id: str, after: int) -> bool:
        """Return False if the log has no row of a user after a time."""
        return after < self._before or self._newest.get(user_id, after) > after

    def add(self, rows: Iterable[tuple[str, int]]) -> None:
        """Add rows (user_id, timestamp), which may be rolled back."""
        newest, before = self._newest, self._before
        for user, stamp in rows:
            if stamp > newest.get(user, before):
                newest[user] = stamp
        if len(newest) > MAX_USERS:
            self._forget_older_half()

    def _forget_older_half(self) -> None:
        stamps = np.fromiter(self._newest.values(), np.int64, len(self._newest))
        median = int(np.partition(stamps, len(stamps) // 2)[len(stamps) // 2])
        self._before = max(self._before, median)
        self._newest = {user: stamp for user, stamp in self._newest.items() if stamp > median}
