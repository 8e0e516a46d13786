"""The control store: release rows that any process may add, each by a compare-and-set on the generation."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from recloop.backends.sqlite import open_reader, open_writer, transaction
from recloop.errors import Refused

SCHEMA = 1
SCRIPT = """
CREATE TABLE releases (
    generation INTEGER PRIMARY KEY, at INTEGER NOT NULL, bundle TEXT NOT NULL, sha256 TEXT NOT NULL,
    "from" TEXT NOT NULL, "to" TEXT NOT NULL, "by" TEXT NOT NULL, reason TEXT NOT NULL, evidence TEXT NOT NULL)"""
COLUMNS = 'generation, at, bundle, sha256, "from", "to", "by", reason, evidence'


class Moved(Refused):
    """Somebody else moved a release between the look and the move: look again, then decide."""

    def __init__(self, found: int, expected: int, who: str) -> None:
        super().__init__("generation", found, expected, f"meanwhile {who}; look again: recloop status")


class ReleaseRow(NamedTuple):
    """One move: ``bundle`` went ``from_`` one state ``to`` another; ``sha256`` is of its manifest."""

    generation: int
    at: int
    bundle: str
    sha256: str
    from_: str
    to: str
    by: str
    reason: str
    evidence: dict[str, Any]


class Control:
    """control.db (``journal_mode=DELETE``: many writers, so no write-ahead log); see `recloop.backends.open_control`."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()
        open_reader(file, SCHEMA, SCRIPT).close()  # refuses what cannot be read, makes nothing

    def releases(self) -> list[ReleaseRow]:
        """Every row, oldest first."""
        connection = open_reader(self.file, SCHEMA, SCRIPT)
        try:
            rows = connection.execute(f"SELECT {COLUMNS} FROM releases ORDER BY generation").fetchall()
        finally:
            connection.close()
        return [_release_row(row) for row in rows]

    def generation(self) -> int:
        """The newest generation, 0 before the first row."""
        connection = open_reader(self.file, SCHEMA, SCRIPT)
        try:
            return int(connection.execute("SELECT coalesce(max(generation), 0) FROM releases").fetchone()[0])
        finally:
            connection.close()

    def move(
        self,
        bundle: str,
        sha256: str,
        from_: str,
        to: str,
        *,
        by: str,
        reason: str,
        evidence: Mapping[str, Any],
        expected_generation: int,
        at: int,
    ) -> ReleaseRow:
        """Add the row of one move, numbered one past ``expected_generation``.

        Raises:
            Moved: the newest generation is another by now; nothing was written.
        """
        generation = expected_generation + 1
        row = ReleaseRow(generation, at, bundle, sha256, from_, to, by, reason, evidence=dict(evidence))
        with self._lock:
            connection = open_writer(self.file, SCHEMA, SCRIPT, ("journal_mode = DELETE", "synchronous = FULL"))
            try:
                with transaction(connection):
                    _compare_and_set(connection, row, expected_generation)
            finally:
                connection.close()
        return row

    def close(self) -> None:
        """Nothing stays open between two calls."""


def _release_row(row: tuple[Any, ...]) -> ReleaseRow:
    return ReleaseRow._make((*row[:-1], msgspec.json.decode(row[-1])))


def _compare_and_set(connection: sqlite3.Connection, row: ReleaseRow, expected: int) -> None:
    newest = connection.execute(f"SELECT {COLUMNS} FROM releases ORDER BY generation DESC LIMIT 1").fetchone()
    found = 0 if newest is None else int(newest[0])
    if found != expected:
        other = None if newest is None else _release_row(newest)
        who = "the table was emptied" if other is None else f"{other.by} moved {other.bundle} to {other.to}"
        raise Moved(found, expected, who)
    values = (row.generation, row.at, row.bundle, row.sha256, row.from_, row.to, row.by, row.reason)
    connection.execute(
        f"INSERT INTO releases ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*values, msgspec.json.encode(row.evidence).decode()),
    )
