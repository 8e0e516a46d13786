"""Identities: anonymous ids and the users who were identified by them.

    row of the anonymous id before its first identify   retracted, and stored again as a row of that user
    row of the anonymous id after it                    stored as a row of the user who was identified last

So rows of a user are complete without a look at the identities, and a state at a seq knows an identity from its seq on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from recloop.records import FILE_ROW
from recloop.storage.database import Connection
from recloop.storage.event_lookup import in_size, parts

TABLE: Final = """
CREATE TABLE identities (
    seq INTEGER PRIMARY KEY, anonymous_id TEXT NOT NULL, user_id TEXT NOT NULL, received_at INTEGER NOT NULL);
CREATE INDEX identities_anonymous ON identities (anonymous_id, seq);
CREATE INDEX identities_user ON identities (user_id, seq)"""
NO_IDENTITIES: Final = """
CREATE TEMP VIEW identities AS SELECT 0 AS seq, '' AS anonymous_id, '' AS user_id, 0 AS received_at WHERE 0"""
COLUMNS: Final = "anonymous_id, user_id, received_at, seq"
IDENTIFIED: Final = "identified"
"""Rule of the retraction of a row that is stored again as a row of the user."""
MOVED: Final = "identified:"
"""Start of the event_id of a row stored again; the seq of the anonymous row follows."""
MOVED_WITHOUT_ID: Final = f"{FILE_ROW}{MOVED}"
"""As `MOVED`, if the anonymous row has no event_id of a client, so that repeats are found by content."""
NOT_MOVED: Final = f"(event_id IS NULL OR (event_id NOT LIKE '{MOVED}%' AND event_id NOT LIKE '{MOVED_WITHOUT_ID}%'))"
"""SQL condition on rows that were not stored again."""


class Identity(msgspec.Struct, frozen=True):
    """Identification of an anonymous id as a user.

    ``seq`` is 0 until the log has numbered it.
    """

    anonymous_id: str
    user_id: str
    received_at: int = 0
    seq: int = 0


class Identified(NamedTuple):
    """Result of an identify.

    Attributes:
        seq: Seq of the identity; of a duplicate that of the first one, 0 if refused.
        moved: Rows stored again as rows of the user.
        reason: Reason of a refusal.
    """

    status: Literal["accepted", "duplicate", "refused"]
    seq: int
    moved: int = 0
    reason: str = ""


class Identities:
    """Identities in memory, in seq order.

    Attributes:
        seq: Largest seq that was added.
    """

    def __init__(self, rows: Iterable[Identity] = ()) -> None:
        self.seq = 0
        self._newest: dict[str, str] = {}
        self._first_user: dict[str, str] = {}
        self._first_anonymous: dict[str, str] = {}
        self.add(rows)

    def add(self, rows: Iterable[Identity]) -> None:
        """Add identities; those up to `seq` are known already."""
        for row in rows:
            if row.seq > self.seq:
                self.seq = row.seq
                self._newest[row.anonymous_id] = row.user_id
                self._first_user.setdefault(row.anonymous_id, row.user_id)
                self._first_anonymous.setdefault(row.user_id, row.anonymous_id)

    def __contains__(self, anonymous_id: str) -> bool:
        return anonymous_id in self._newest

    def person(self, user_id: str) -> str:
        """Return the user who was identified last by an id, or the id itself."""
        return self._newest.get(user_id, user_id)

    def assigned_as(self, user_id: str) -> str:
        """Return the id that draws an arm: the first anonymous id, or the user's own."""
        return self._first_anonymous.get(user_id, user_id)

    def first_users(self) -> dict[str, str]:
        """Return the user of each anonymous id's first identify."""
        return dict(self._first_user)

    def anonymous_ids(self, users: Collection[str]) -> list[str]:
        """Return the anonymous ids whose first identify names one of these users."""
        wanted = frozenset(users)
        return [name for name, user in self._first_user.items() if user in wanted]


def read(connection: Connection, after: int = 0, until: int | None = None) -> list[Identity]:
    """Read the identities with ``after`` < seq <= ``until``, by seq."""
    query = f"SELECT {COLUMNS} FROM identities WHERE seq > ? AND seq <= coalesce(?, seq) ORDER BY seq"
    return [Identity(*row) for row in connection.execute(query, (after, until))]


def persons(connection: Connection, user_ids: Iterable[str]) -> dict[str, str]:
    """Return the user who was identified last by each of these ids.

    Ids without an identity are omitted.
    """
    if not connection.execute("SELECT EXISTS (SELECT 1 FROM identities)").fetchone()[0]:
        return {}
    users: dict[str, str] = {}
    for batch in parts(sorted(set(user_ids))):
        size = in_size(len(batch))
        query = f"""SELECT anonymous_id, user_id FROM identities
            WHERE anonymous_id IN ({", ".join("?" * size)}) ORDER BY seq"""
        users |= connection.execute(query, [*batch, *[None] * (size - len(batch))]).fetchall()
    return users


def insert(connection: Connection, rows: Sequence[Identity]) -> None:
    """Insert numbered identities."""
    values = [(row.anonymous_id, row.user_id, row.received_at, row.seq) for row in rows]
    connection.insert("identities", COLUMNS.split(", "), values)


def is_moved(event_id: str | None) -> bool:
    """Return True for the event_id of a row that was stored again."""
    return event_id is not None and event_id.startswith((MOVED, MOVED_WITHOUT_ID))


def moved_id(event_id: str | None, seq: int) -> str:
    """Build the event_id of a row that is stored again."""
    has_own_id = event_id is not None and not event_id.startswith(FILE_ROW)
    return f"{MOVED if has_own_id else MOVED_WITHOUT_ID}{seq}"
