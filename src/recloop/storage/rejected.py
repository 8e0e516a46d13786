"""Store of rejected rows, until they are replayed, dropped or too old.

store = RejectedStore(file, max_bytes=64 << 20); store.put([RejectedRow("event", "POST /v1/events", at, reason, raw)])
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from recloop.storage.sqlite import open_reader, open_writer, transaction

FILE_NAME: Final = "rejected.db"
SCHEMA: Final = 1
SCRIPT: Final = """
CREATE TABLE rejected (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, route TEXT NOT NULL, at INTEGER NOT NULL, reason TEXT NOT NULL,
    raw TEXT NOT NULL, user_id TEXT NOT NULL, anonymous_id TEXT NOT NULL, repeat TEXT UNIQUE, size INTEGER NOT NULL);
CREATE TABLE total (one INTEGER PRIMARY KEY CHECK (one = 1), n_rows INTEGER NOT NULL, n_bytes INTEGER NOT NULL);
INSERT INTO total VALUES (1, 0, 0)"""
PRAGMAS: Final = ("journal_mode = DELETE", "synchronous = FULL", "secure_delete = ON", "auto_vacuum = INCREMENTAL")
COLUMNS: Final = "kind, route, at, reason, raw, user_id, anonymous_id, id"
INSERT: Final = (
    "INSERT INTO rejected (kind, route, at, reason, raw, user_id, anonymous_id, repeat, size)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
ROW_BYTES: Final = 200
"""Bytes that a row takes besides its text."""
IMPERSONAL_KEYS: Final = ("item_id", "event_type", "timestamp", "value", "quantity", "placement")
KEPT_SHARE: Final = 0.9
"""Share of the bound that is left when the oldest rows are dropped, so that not every row scans the table."""


class RejectedRow(NamedTuple):
    """A row that a request named and that was not stored.

    Attributes:
        kind: ``event``, ``item`` or ``user``.
        route: Method and path of the request.
        at: Time of receipt, int64 microseconds.
        raw: JSON of the row, or the text of a line that is not JSON.
        user_id, anonymous_id: Ids of the row in the form of the project; empty if it has none.
        id: Number in the store; 0 before it is stored.
    """

    kind: str
    route: str
    at: int
    reason: str
    raw: str
    user_id: str = ""
    anonymous_id: str = ""
    id: int = 0

    @property
    def tree(self) -> Any:
        """The decoded row; None if it is not JSON."""
        try:
            return json.loads(self.raw)
        except ValueError:
            return None


class StoredSize(NamedTuple):
    """Rows in the store and their bytes."""

    rows: int
    bytes: int


class RejectedStore:
    """Store rejected.db; any process may write to it, and it keeps no file open.

    Args:
        file: Created with mode 0600 by the first row.
        max_bytes: Size from which the oldest rows are dropped.
    """

    def __init__(self, file: Path, max_bytes: int) -> None:
        self.file = file
        self._max_bytes = max_bytes

    def put(self, rows: Sequence[RejectedRow]) -> int:
        """Store rows and return how many of the oldest were dropped for them.

        A row with an event_id that is stored already, with the same text, gets the new time and reason.
        """
        with self._writing() as connection:
            for row in rows:
                repeat = _repeat(row)
                is_known = "UPDATE rejected SET at = ?, reason = ? WHERE repeat = ?"
                if repeat is not None and connection.execute(is_known, (row.at, row.reason, repeat)).rowcount:
                    continue
                size = len(row.raw.encode()) + len(row.reason.encode()) + ROW_BYTES
                connection.execute(INSERT, (*row[:-1], repeat, size))
                _count(connection, 1, size)
            return self._drop_oldest(connection)

    def rows(self, ids: Sequence[int] = (), kind: str = "") -> list[RejectedRow]:
        """Return rows by ascending id.

        Args:
            ids: Only these; empty for all.
            kind: Only this kind; empty for all.
        """
        chosen = {"ids": json.dumps(list(ids)), "kind": kind, "all": not ids}
        with self._reading() as connection:
            found = connection.execute(
                f"SELECT {COLUMNS} FROM rejected WHERE (:all OR id IN (SELECT value FROM json_each(:ids)))"
                " AND (:kind = '' OR kind = :kind) ORDER BY id",
                chosen,
            )
            return [RejectedRow(*row) for row in found]

    def of_user(self, user_id: str) -> list[RejectedRow]:
        """Return the rows that name a user, also under a key that a row does not have."""
        with self._reading() as connection:
            ids = _ids_naming(connection, [user_id])
        return self.rows(ids) if ids else []

    def size(self) -> StoredSize:
        """Return the number of rows and their bytes."""
        with self._reading() as connection:
            return StoredSize(*connection.execute("SELECT n_rows, n_bytes FROM total").fetchone())

    def set_reasons(self, reasons: Mapping[int, str]) -> None:
        """Replace the reasons of rows by id."""
        with self._writing() as connection:
            connection.executemany(
                "UPDATE rejected SET reason = ? WHERE id = ?", [(reason, row_id) for row_id, reason in reasons.items()]
            )

    def delete(self, ids: Collection[int]) -> int:
        """Delete rows by id and return how many there were."""
        if not ids or not self.file.exists():
            return 0
        with self._writing() as connection:
            return _delete(connection, "id IN (SELECT value FROM json_each(?))", json.dumps(sorted(ids)))

    def delete_before(self, at: int, dry_run: bool = False) -> StoredSize:
        """Delete the rows that were received before a time; return their number and bytes."""
        with self._reading() as connection:
            old = StoredSize(
                *connection.execute(
                    "SELECT count(*), coalesce(sum(size), 0) FROM rejected WHERE at < ?", (at,)
                ).fetchone()
            )
        if old.rows and not dry_run:
            with self._writing() as connection:
                _delete(connection, "at < ?", at)
        return old

    def forget(self, users: Collection[str]) -> int:
        """Delete the rows that name users; return how many there were.

        `recloop.storage.erasure.rewrite` removes their bytes from the file.
        """
        with self._reading() as connection:
            ids = _ids_naming(connection, users)
        return self.delete(ids)

    def _drop_oldest(self, connection: sqlite3.Connection) -> int:
        """Delete the oldest rows if the store is above its bound."""
        (n_bytes,) = connection.execute("SELECT n_bytes FROM total").fetchone()
        if n_bytes <= self._max_bytes:
            return 0
        newer = "SELECT id, sum(size) OVER (ORDER BY id DESC) AS newer FROM rejected"
        return _delete(connection, f"id IN (SELECT id FROM ({newer}) WHERE newer > ?)", KEPT_SHARE * self._max_bytes)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with closing(open_writer(self.file, SCHEMA, SCRIPT, PRAGMAS)) as connection, transaction(connection):
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with closing(open_reader(self.file, SCHEMA, SCRIPT)) as connection:
            yield connection


def _repeat(row: RejectedRow) -> str | None:
    """Key of a row that its sender may send again.

    None for an event without an id, which may occur twice.
    """
    tree = row.tree
    has_id = isinstance(tree, dict) and (row.kind != "event" or tree.get("event_id"))
    return hashlib.sha256(f"{row.kind}\n{row.raw}".encode()).hexdigest() if has_id else None


def _count(connection: sqlite3.Connection, n_rows: int, n_bytes: int) -> None:
    connection.execute("UPDATE total SET n_rows = n_rows + ?, n_bytes = n_bytes + ?", (n_rows, n_bytes))


def _delete(connection: sqlite3.Connection, condition: str, value: Any) -> int:
    """Delete the rows that meet a condition and return how many there were."""
    sizes = [size for (size,) in connection.execute(f"DELETE FROM rejected WHERE {condition} RETURNING size", (value,))]
    _count(connection, -len(sizes), -sum(sizes))
    return len(sizes)


def _ids_naming(connection: sqlite3.Connection, users: Collection[str]) -> list[int]:
    """Return the ids of rows that name one of these users."""
    if not users:
        return []
    words = re.compile("|".join(rf"(?<![\w-]){re.escape(user)}(?![\w-])" for user in sorted(users)))
    rows = connection.execute(f"SELECT {COLUMNS} FROM rejected")
    return [row.id for row in map(RejectedRow._make, rows) if _names(row, set(users), words)]


def _names(row: RejectedRow, users: set[str], words: re.Pattern[str]) -> bool:
    """Return True if a row names a user.

    It does under any key, or as a word of a line that is not JSON.
    """
    if row.user_id in users or row.anonymous_id in users:
        return True
    tree = row.tree
    if not isinstance(tree, dict):
        return words.search(row.raw) is not None
    if row.kind == "item":
        return False
    return any(text in users for key, value in tree.items() if key not in IMPERSONAL_KEYS for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts and whole numbers of a value, as texts."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
    elif isinstance(value, str | int):
        yield str(value)
