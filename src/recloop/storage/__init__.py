"""Stores: event log, decisions, releases, archive, mapped arrays and locks."""

from __future__ import annotations

from pathlib import Path

from recloop.config.store_address import is_postgres, without_password
from recloop.errors import UserError
from recloop.storage.control import CONTROL_SCHEMA, ControlStore
from recloop.storage.database import Database, StoreSchema
from recloop.storage.decisions import DecisionLog
from recloop.storage.event_log import EventLog
from recloop.storage.event_schema import LOG_SCHEMA
from recloop.storage.retractions import Retraction
from recloop.storage.sqlite import locate
from recloop.storage.sqlite_database import SqliteDatabase

__all__ = [
    "CONTROL_SCHEMA", "LOG_SCHEMA", "ControlStore", "DecisionLog", "EventLog", "Retraction", "control_database",
    "log_database", "open_control", "open_decisions", "open_log",
]  # fmt: skip


def open_log(url: str, root: Path, write: bool = False) -> EventLog:
    """Open the log at ``stores.log``; ``write`` requires `locks.writer_lock`."""
    return EventLog(log_database(url, root), write)


def open_decisions(url: str, root: Path, write: bool = False) -> DecisionLog:
    """Open ``stores.decisions``; ``write`` requires `locks.writer_lock`."""
    return DecisionLog(locate("stores.decisions", url, root), write)


def open_control(url: str, root: Path) -> ControlStore:
    """Open the control store at ``stores.control``; any process may write to it."""
    return ControlStore(control_database(url, root))


def log_database(url: str, root: Path) -> Database:
    """Return the database at ``stores.log`` without opening it."""
    return _database("stores.log", url, root, LOG_SCHEMA)


def control_database(url: str, root: Path) -> Database:
    """Return the database at ``stores.control`` without opening it."""
    return _database("stores.control", url, root, CONTROL_SCHEMA)


def _database(key: str, url: str, root: Path, schema: StoreSchema) -> Database:
    """Return the database at a store's address.

    Raises:
        UserError: the address has another form, or the extra ``postgres`` is missing.
    """
    if not is_postgres(url):
        return SqliteDatabase(locate(key, url, root), schema)
    try:
        from recloop.storage.postgres import PostgresDatabase
    except ImportError:
        expected = "the extra postgres for this address"
        raise UserError(key, without_password(url), expected, 'pip install "recloop[postgres]"') from None
    return PostgresDatabase(key, url, schema)
