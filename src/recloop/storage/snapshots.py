"""State snapshots: encoded user states at one seq, immutable after publication."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from recloop.errors import UserError
from recloop.files import replacing
from recloop.storage.sqlite import Store, open_reader, transaction

SCHEMA = 3  # 2: a reused or ended group_id starts a new moment; 3: acts with use, pair, weight, units
SCRIPT = """
CREATE TABLE facts (seq INTEGER NOT NULL, key TEXT NOT NULL);
CREATE TABLE states (user_id TEXT PRIMARY KEY, state BLOB NOT NULL) WITHOUT ROWID"""


def name(seq: int, key: str) -> str:
    """File name of the snapshot at ``seq`` for state key ``key`` (8 hex digits)."""
    return f"snapshots-{seq}-{key}.db"


def forget(store: Path, watermark: int) -> None:
    """Remove snapshots of earlier watermarks; open ones stay readable."""
    for file in store.glob("snapshots-*.db"):
        if int(file.name.split("-")[1]) < watermark:
            file.unlink(missing_ok=True)


def write(path: Path, states: Iterable[tuple[str, bytes]], seq: int, key: str) -> None:
    """Write a snapshot of all states durably and atomically."""
    with replacing(path) as temporary:
        connection = sqlite3.connect(temporary, isolation_level=None)
        try:
            # Not visible before the rename, so it needs neither a journal nor more than one fsync.
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")
            with transaction(connection):
                for statement in SCRIPT.split(";"):
                    connection.execute(statement)
                connection.execute("INSERT INTO facts VALUES (?, ?)", (seq, key))
                connection.executemany("INSERT INTO states VALUES (?, ?)", states)
                connection.execute(f"PRAGMA user_version = {SCHEMA}")
        finally:
            connection.close()


def current(path: Path) -> Snapshot | None:
    """Open a snapshot; None if it is missing or has another schema."""
    try:
        return Snapshot(path)
    except UserError:
        return None


class Snapshot(Store):
    """Snapshot opened for reading, with its ``seq`` and ``key``.

    Raises:
        UserError: the file is missing or is not a valid snapshot.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise UserError("snapshot", path, "a file written by `recloop prepare`", "recloop prepare")
        self.path = path
        self._connection = open_reader(path, SCHEMA, SCRIPT, immutable=True)
        file_version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if file_version != SCHEMA:
            self._connection.close()
            raise UserError(
                "snapshot", f"schema {file_version}", f"schema {SCHEMA}", "recloop serve, which rebuilds it"
            )
        row = self._connection.execute("SELECT seq, key FROM facts").fetchone()
        if row is None:
            self._connection.close()
            raise UserError("snapshot", path, "an undamaged snapshot", "recloop prepare")
        self.seq = int(row[0])
        self.key = str(row[1])

    def get(self, user_id: str) -> bytes | None:
        """Encoded state of a user; None without a state."""
        row = self._connection.execute("SELECT state FROM states WHERE user_id = ?", (user_id,)).fetchone()
        return None if row is None else bytes(row[0])

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        yield from self._connection.execute("SELECT user_id, state FROM states ORDER BY user_id")

    def __len__(self) -> int:
        return int(self._connection.execute("SELECT count(*) FROM states").fetchone()[0])

    def close(self) -> None:
        self._connection.close()
