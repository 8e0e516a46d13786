"""Audit log: rows of the control store in a hash chain.

The hash of a row is SHA-256 over the hash of the row before it and the row's own content. A changed, removed or added row
breaks the chain from there on. A counter of the table shows rows that were cut off at the end. A process that can
write the store can compute a new chain, so the last hash is worth keeping elsewhere.
"""

from __future__ import annotations

import getpass
import hashlib
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from recloop.files import JsonTree
from recloop.records import iso
from recloop.storage.database import Connection

TABLE: Final = """
CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, who TEXT NOT NULL, action TEXT NOT NULL,
    subject TEXT NOT NULL, details TEXT NOT NULL, hash TEXT NOT NULL)"""
NO_AUDIT: Final = """
CREATE TEMP VIEW audit AS
SELECT 0 AS id, 0 AS at, '' AS who, '' AS action, '' AS subject, '' AS details, '' AS hash WHERE 0"""
COLUMNS: Final = "id, at, who, action, subject, details, hash"
POSTGRES_COUNTER: Final = """
CREATE TABLE audit_counter (last_id BIGINT NOT NULL);
INSERT INTO audit_counter VALUES (0);
CREATE FUNCTION count_audit() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN UPDATE audit_counter SET last_id = NEW.id; RETURN NULL; END';
CREATE TRIGGER count_audit AFTER INSERT ON audit FOR EACH ROW EXECUTE FUNCTION count_audit()"""
"""As SQLite's AUTOINCREMENT: the largest id that the table ever had."""
LAST_HASH: Final = "SELECT hash FROM audit ORDER BY id DESC LIMIT 1"


class AuditAction(StrEnum):
    """Action that writes a row."""

    KEY_ADDED = "key added"
    KEY_REVOKED = "key revoked"
    RENEWED = "token renewed"
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    REJECT = "reject"
    FORGET = "forget"
    REDACTION = "redaction"
    RESTORE = "restore"
    RELOAD = "reload"
    EXPORT_PERSON = "export person"
    CONSOLE_USER = "console user"


class AuditEntry(NamedTuple):
    """Action to record.

    Attributes:
        who: Command with the operating-system user, or route with the name of the key; never a secret.
        subject: Name of a key, bundle or backup; a person as `recloop.storage.forgotten.person_hash`; may be empty.
        details: Further facts, without ids of persons.
        at: Microseconds since 1970 UTC.
    """

    who: str
    action: AuditAction
    subject: str
    details: JsonTree
    at: int


class AuditRow(NamedTuple):
    """Stored action; ``details`` is the JSON text that the hash covers."""

    id: int
    at: int
    who: str
    action: str
    subject: str
    details: str
    hash: str

    def to_json(self) -> JsonTree:
        return {**self._asdict(), "at": iso(self.at), "details": msgspec.json.decode(self.details)}


class AuditCheck(NamedTuple):
    """Result of a check of the chain.

    Attributes:
        last: Hash of the last row; empty without a row.
        problem: First break of the chain; empty for a whole one.
    """

    rows: int
    last: str
    problem: str


def append(connection: Connection, entries: Iterable[AuditEntry]) -> None:
    """Add rows to the chain; the caller holds a transaction with an immediate lock."""
    last_id = connection.last_id("audit")
    newest = connection.execute(LAST_HASH).fetchone()
    last_hash = "" if newest is None else str(newest[0])
    for row_id, entry in enumerate(entries, last_id + 1):
        details = msgspec.json.encode(entry.details, order="sorted").decode()
        values = (row_id, entry.at, entry.who, entry.action.value, entry.subject, details)
        last_hash = chain_hash(last_hash, values)
        connection.insert("audit", COLUMNS.split(", "), [(*values, last_hash)])


def chain_hash(previous: str, values: Sequence[int | str]) -> str:
    """Hash the columns of a row before its hash, after the hash of the row before."""
    return hashlib.sha256(msgspec.json.encode([previous, *values])).hexdigest()


def check(rows: Sequence[AuditRow], last_id: int) -> AuditCheck:
    """Check ids and hashes of all rows, oldest first.

    Args:
        last_id: The largest id that the table ever had.
    """
    previous = ""
    for row_id, row in enumerate(rows, 1):
        if row.id != row_id:
            return AuditCheck(len(rows), previous, f"row {row_id} is missing")
        if row.hash != chain_hash(previous, row[:-1]):
            return AuditCheck(len(rows), previous, f"row {row_id} differs from its hash")
        previous = row.hash
    problem = f"rows {len(rows) + 1} to {last_id} are missing" if last_id > len(rows) else ""
    return AuditCheck(len(rows), previous, problem)


def command(verb: str) -> str:
    """Name a command with the user of the operating system."""
    try:
        return f"recloop {verb} ({getpass.getuser()})"
    except (KeyError, OSError, ImportError):  # the process user has no name
        return f"recloop {verb}"
