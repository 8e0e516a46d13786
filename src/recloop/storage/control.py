"""Control store: release rows, the audit log and the inbox of pending retractions.

Any process may add a release row by a compare-and-set on the generation. The inbox holds retractions that another
process, such as an update, submits to the single writer of the log. The writer numbers them and marks them as applied.
The rows are kept, so that an event can be retracted again after a restoration.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from recloop.errors import Refused
from recloop.files import JsonTree
from recloop.storage import audit
from recloop.storage.audit import AuditAction, AuditCheck, AuditEntry, AuditRow
from recloop.storage.database import Connection, Database, StoreSchema
from recloop.storage.event_lookup import parts
from recloop.storage.retractions import RESTORED, Retraction
from recloop.storage.sqlite import Store

SCHEMA = 5
INBOX = """
CREATE TABLE inbox (
    id INTEGER PRIMARY KEY, retracted_seq INTEGER NOT NULL, rule TEXT NOT NULL, "by" TEXT NOT NULL,
    at INTEGER NOT NULL, applied INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '')"""
INBOX_OF_SCHEMA_3 = """
CREATE TABLE inbox (
    id INTEGER PRIMARY KEY, of_seq INTEGER NOT NULL, rule TEXT NOT NULL, "by" TEXT NOT NULL,
    at INTEGER NOT NULL, taken INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '')"""
PRAGMAS = ("journal_mode = DELETE", "synchronous = FULL")
MIGRATIONS = {
    1: INBOX_OF_SCHEMA_3,
    2: f"""
ALTER TABLE inbox RENAME TO inbox_of_schema_2;
{INBOX_OF_SCHEMA_3};
INSERT INTO inbox (id, of_seq, rule, "by", at, taken) SELECT id, of_seq, rule, "by", at, taken FROM inbox_of_schema_2;
DROP TABLE inbox_of_schema_2""",
    3: """
ALTER TABLE inbox RENAME COLUMN of_seq TO retracted_seq;
ALTER TABLE inbox RENAME COLUMN taken TO applied""",
    4: audit.TABLE,
}
"""Schema 1 has no inbox; in schema 2 an event is in it once; schema 4 has no audit log."""
NO_INBOX = """
CREATE TEMP VIEW inbox AS SELECT 0 AS id, 0 AS retracted_seq, '' AS rule, '' AS "by", 0 AS at, 0 AS applied WHERE 0"""
OLD_INBOX = """
CREATE TEMP VIEW inbox AS
SELECT id, of_seq AS retracted_seq, rule, "by", at, taken AS applied FROM main.inbox"""
VIEWS = {
    1: f"{NO_INBOX};{audit.NO_AUDIT}",
    2: f"{OLD_INBOX};{audit.NO_AUDIT}",
    3: f"{OLD_INBOX};{audit.NO_AUDIT}",
    4: audit.NO_AUDIT,
}
SCRIPT = f"""
CREATE TABLE releases (
    generation INTEGER PRIMARY KEY, at INTEGER NOT NULL, bundle TEXT NOT NULL, sha256 TEXT NOT NULL,
    "from" TEXT NOT NULL, "to" TEXT NOT NULL, "by" TEXT NOT NULL, reason TEXT NOT NULL, evidence TEXT NOT NULL);
{INBOX};
{audit.TABLE}"""
CONTROL_SCHEMA = StoreSchema("control", SCHEMA, SCRIPT, PRAGMAS, MIGRATIONS, VIEWS, audit.POSTGRES_COUNTER, ("audit",))
COLUMNS = 'generation, at, bundle, sha256, "from", "to", "by", reason, evidence'


class ReleaseConflict(Refused):
    """Another process moved a release between the read and the write."""

    def __init__(self, found: int, expected: int, who: str) -> None:
        super().__init__("generation", found, expected, f"{who} meanwhile; for the new state: recloop status")


class ReleaseRow(NamedTuple):
    """Release move of ``bundle`` from state ``from_`` to state ``to``.

    ``sha256`` is the hash of the bundle's manifest.
    """

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
    """Inbox row that is not yet in the log: ``rule`` retracts event ``retracted_seq``."""

    id: int
    retracted_seq: int
    rule: str
    by: str
    at: int

    @property
    def retraction(self) -> Retraction:
        return Retraction(self.retracted_seq, self.rule)


class ControlStore(Store):
    """Store of releases, inbox and audit log; see `recloop.storage.open_control`.

    It has several writing processes, so its SQLite file uses ``journal_mode=DELETE`` instead of a write-ahead log.

    Attributes:
        name: File name or address, for messages. recovery: Advice if rows are missing.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.name = database.name
        self.recovery = database.recovery
        self._lock = threading.Lock()
        database.open_reader().close()  # refuse an unreadable store without creating one

    def releases(self) -> list[ReleaseRow]:
        """All release rows, oldest first."""
        connection = self._database.open_reader()
        try:
            rows = connection.execute(f"SELECT {COLUMNS} FROM releases ORDER BY generation").fetchall()
        finally:
            connection.close()
        return [_release_row(row) for row in rows]

    def generation(self) -> int:
        """Newest generation; 0 before the first row."""
        connection = self._database.open_reader()
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
        action: AuditAction | None = None,
    ) -> ReleaseRow:
        """Add the row of one move with generation ``expected_generation`` + 1.

        Args:
            action: Name of the move in the audit log; None: the log does not have it.

        Raises:
            ReleaseConflict: the newest generation is not ``expected_generation``; nothing was written.
        """
        generation = expected_generation + 1
        row = ReleaseRow(generation, at, bundle, sha256, from_, to, by, reason, evidence=dict(evidence))
        with self._writing() as connection:
            _compare_and_set(connection, row, expected_generation)
            if action is not None:
                details = {"from": from_, "to": to, "generation": generation}
                audit.append(connection, [AuditEntry(by, action, bundle, details, at)])
        return row

    def redact(self, bundle: str, sha256: str, *, by: str, at: int) -> None:
        """Replace the registered hash of a bundle that has forgotten users.

        It may be repeated.
        """
        with self._writing() as connection:
            query = "SELECT DISTINCT sha256 FROM releases WHERE bundle = ? AND sha256 <> ?"
            before = [str(old) for (old,) in connection.execute(query, (bundle, sha256))]
            connection.execute("UPDATE releases SET sha256 = ? WHERE bundle = ?", (sha256, bundle))
            details = ({"from": old, "to": sha256} for old in before)
            audit.append(connection, [AuditEntry(by, AuditAction.REDACTION, bundle, one, at) for one in details])

    def record(self, entries: Sequence[AuditEntry]) -> None:
        """Add rows to the audit log."""
        with self._writing() as connection:
            audit.append(connection, entries)

    def audit_rows(self, subject: str = "") -> list[AuditRow]:
        """Rows of the audit log, oldest first; with ``subject`` those of one."""
        connection = self._database.open_reader()
        try:
            query = f"SELECT {audit.COLUMNS} FROM audit WHERE ? IN ('', subject) ORDER BY id"
            return [AuditRow._make(row) for row in connection.execute(query, (subject,))]
        finally:
            connection.close()

    def check_audit(self) -> AuditCheck:
        """Check the chain of the audit log."""
        connection = self._database.open_reader()
        try:
            last_id = connection.last_id(
                "audit"
            )  # before the rows, so that a row that is added meanwhile is not missed
            rows = [AuditRow._make(row) for row in connection.execute(f"SELECT {audit.COLUMNS} FROM audit ORDER BY id")]
            return audit.check(rows, last_id)
        finally:
            connection.close()

    def submit(self, rows: Sequence[Retraction], by: str, at: int, reason: str = "") -> int:
        """Put retractions into the inbox and return the number of new ones.

        An event that was submitted before is skipped, unless it was restored since.

        Args:
            rows: Retractions; only ``retracted_seq`` and ``rule`` are read.
            by: Origin of the retractions.
            at: Time, int64 microseconds.
            reason: Reason given by the operator.
        """
        with self._writing() as connection:
            rows_by_id = connection.execute("SELECT id, retracted_seq, rule FROM inbox ORDER BY id").fetchall()
            newest = {retracted_seq: rule for _, retracted_seq, rule in rows_by_id}
            last_id = rows_by_id[-1][0] if rows_by_id else 0
            new_rows: list[tuple[Any, ...]] = []
            for row in rows:
                last_rule = newest.get(row.retracted_seq)
                if last_rule is None or (last_rule == RESTORED) != (row.rule == RESTORED):
                    newest[row.retracted_seq] = row.rule
                    new_rows.append((last_id + 1 + len(new_rows), row.retracted_seq, row.rule, by, at, reason))
            connection.insert("inbox", ("id", "retracted_seq", "rule", '"by"', "at", "reason"), new_rows)
        return len(new_rows)

    def pending(self) -> list[PendingRetraction]:
        """Pending inbox rows, oldest first."""
        connection = self._database.open_reader()
        try:
            rows = connection.execute(
                'SELECT id, retracted_seq, rule, "by", at FROM inbox WHERE applied = 0 ORDER BY id'
            )
            return [PendingRetraction(*row) for row in rows]
        finally:
            connection.close()

    def mark_applied(self, ids: Sequence[int]) -> None:
        """Mark inbox rows as written to the log."""
        with self._writing() as connection:
            for batch in parts(list(ids)):
                connection.execute(f"UPDATE inbox SET applied = 1 WHERE id IN ({', '.join('?' * len(batch))})", batch)

    def close(self) -> None:
        """Do nothing: connections are closed after each call."""

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """Open a connection for one short transaction."""
        with self._lock:
            connection = self._database.open_writer()
            try:
                with self._database.transaction(connection):
                    yield connection
            finally:
                connection.close()


def _release_row(row: tuple[Any, ...]) -> ReleaseRow:
    return ReleaseRow._make((*row[:-1], msgspec.json.decode(row[-1])))


def _compare_and_set(connection: Connection, row: ReleaseRow, expected: int) -> None:
    newest = connection.execute(f"SELECT {COLUMNS} FROM releases ORDER BY generation DESC LIMIT 1").fetchone()
    generation = 0 if newest is None else int(newest[0])
    if generation != expected:
        newest_row = None if newest is None else _release_row(newest)
        cause = (
            "the table was emptied"
            if newest_row is None
            else f"{newest_row.by} moved {newest_row.bundle} to {newest_row.to}"
        )
        raise ReleaseConflict(generation, expected, cause)
    values = (row.generation, row.at, row.bundle, row.sha256, row.from_, row.to, row.by, row.reason)
    connection.execute(
        f"INSERT INTO releases ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*values, msgspec.json.encode(row.evidence).decode()),
    )
