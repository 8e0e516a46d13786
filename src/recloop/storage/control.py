"""The control store: release rows that any process may add, each by a compare-and-set on the generation; and an inbox.

The inbox holds what another process has for the one writer of the log: rows that an update takes back. They are
numbered when the writer takes them; what was taken stays as a row that says so, so that it can be handed again.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from recloop.errors import Refused
from recloop.json_object import JsonTree
from recloop.storage.event_log import RESTORED, Retraction
from recloop.storage.sqlite import Store, open_reader, open_writer, transaction

SCHEMA = 3
INBOX = """
CREATE TABLE inbox (
    id INTEGER PRIMARY KEY, of_seq INTEGER NOT NULL, rule TEXT NOT NULL, "by" TEXT NOT NULL,
    at INTEGER NOT NULL, taken INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '')"""
WITHOUT_UNIQUE = f"""
ALTER TABLE inbox RENAME TO inbox_of_schema_2;
{INBOX};
INSERT INTO inbox (id, of_seq, rule, "by", at, taken) SELECT id, of_seq, rule, "by", at, taken FROM inbox_of_schema_2;
DROP TABLE inbox_of_schema_2"""
MIGRATIONS = {1: INBOX, 2: WITHOUT_UNIQUE}
SCRIPT = f"""
CREATE TABLE releases (
    generation INTEGER PRIMARY KEY, at INTEGER NOT NULL, bundle TEXT NOT NULL, sha256 TEXT NOT NULL,
    "from" TEXT NOT NULL, "to" TEXT NOT NULL, "by" TEXT NOT NULL, reason TEXT NOT NULL, evidence TEXT NOT NULL);
{INBOX}"""
COLUMNS = 'generation, at, bundle, sha256, "from", "to", "by", reason, evidence'


class ReleaseConflict(Refused):
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
    evidence: JsonTree


@dataclass(frozen=True)
class PendingRetraction:
    """A row of the inbox that the log has not taken yet: event ``of_seq`` is taken back by ``rule``."""

    id: int
    of_seq: int
    rule: str
    by: str
    at: int

    @property
    def retraction(self) -> Retraction:
        return Retraction(self.of_seq, self.rule)


class ControlStore(Store):
    """control.db (``journal_mode=DELETE``: many writers, so no write-ahead log); see `recloop.storage.open_control`."""

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
        with self._writing() as connection:
            _compare_and_set(connection, row, expected_generation)
        return row

    def hand(self, rows: Sequence[Retraction], by: str, at: int, reason: str = "") -> int:
        """Put retractions into the inbox of the log's writer; how many of them are new.

        An event that was handed before is not handed again, unless a restoration lies between.

        Args:
            rows: ``of_seq`` and ``rule`` are read.
            by: Who hands them.
            at: int64 microseconds.
            reason: Why, in a person's words.
        """
        with self._writing() as connection:
            newest = dict(connection.execute("SELECT of_seq, rule FROM inbox ORDER BY id"))
            fresh = []
            for row in rows:
                before = newest.get(row.of_seq)
                if before is None or (before == RESTORED) != (row.rule == RESTORED):
                    newest[row.of_seq] = row.rule
                    fresh.append((row.of_seq, row.rule, by, at, reason))
            text = 'INSERT INTO inbox (of_seq, rule, "by", at, reason) VALUES (?, ?, ?, ?, ?)'
            connection.executemany(text, fresh)
        return len(fresh)

    def handed(self) -> list[PendingRetraction]:
        """What waits in the inbox, oldest first."""
        connection = open_reader(self.file, SCHEMA, SCRIPT)
        try:
            if int(connection.execute("PRAGMA user_version").fetchone()[0]) == 1:  # as it was before the inbox
                return []
            rows = connection.execute('SELECT id, of_seq, rule, "by", at FROM inbox WHERE taken = 0 ORDER BY id')
            return [PendingRetraction(*row) for row in rows]
        finally:
            connection.close()

    def taken(self, ids: Sequence[int]) -> None:
        """The log holds these rows of the inbox by now."""
        with self._writing() as connection:
            connection.executemany("UPDATE inbox SET taken = 1 WHERE id = ?", [(one,) for one in ids])

    def close(self) -> None:
        """Nothing stays open between two calls."""

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One short transaction."""
        with self._lock:
            pragmas = ("journal_mode = DELETE", "synchronous = FULL")
            connection = open_writer(self.file, SCHEMA, SCRIPT, pragmas, MIGRATIONS)
            try:
                with transaction(connection):
                    yield connection
            finally:
                connection.close()


def _release_row(row: tuple[Any, ...]) -> ReleaseRow:
    return ReleaseRow._make((*row[:-1], msgspec.json.decode(row[-1])))


def _compare_and_set(connection: sqlite3.Connection, row: ReleaseRow, expected: int) -> None:
    newest = connection.execute(f"SELECT {COLUMNS} FROM releases ORDER BY generation DESC LIMIT 1").fetchone()
    found = 0 if newest is None else int(newest[0])
    if found != expected:
        other = None if newest is None else _release_row(newest)
        who = "the table was emptied" if other is None else f"{other.by} moved {other.bundle} to {other.to}"
        raise ReleaseConflict(found, expected, who)
    values = (row.generation, row.at, row.bundle, row.sha256, row.from_, row.to, row.by, row.reason)
    connection.execute(
        f"INSERT INTO releases ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*values, msgspec.json.encode(row.evidence).decode()),
    )
