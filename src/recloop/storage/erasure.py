"""Erasure of users in the log and in decisions.db."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec

from recloop.storage import decision_schema
from recloop.storage.decision_counts import AnswerCounter
from recloop.storage.decision_schema import FORGOTTEN
from recloop.storage.event_log import EventLog
from recloop.storage.event_lookup import parts
from recloop.storage.sqlite import BUSY_SECONDS, open_writer, transaction

DECISION_TABLES: Final = ("decisions", "last_seen")
IN_USERS: Final = "IN (SELECT value FROM json_each(:users))"
TOMBSTONE: Final = f"""
UPDATE decisions SET request_id = '{FORGOTTEN}-' || id, role = '{FORGOTTEN}', user_id = '', query = '{{}}', items = '[]',
    scores = '[]', sources = '[]', degraded = '[]', session_id = NULL, anonymous_id = NULL, positives = 0, inputs = '{{}}',
    latency_us = 0, client_request_id = NULL
WHERE user_id {IN_USERS} AND as_of_seq < :seq"""
"""Empties decisions; their number and times stay, so that `verify` counts them as removed."""


def forget_in_log(log: EventLog, users: Collection[str]) -> tuple[int, int]:
    """Delete all rows of users; later rows with their ids are of new users.

    Args:
        log: Opened for writing.

    Returns:
        The seq of the erasure, which no row has, and the number of deleted rows.
    """
    deleted = 0
    with log.commit() as writer:
        seq = log.newest_in(writer) + 1
        for names in parts(sorted(users)):
            in_users = f"IN ({', '.join('?' * len(names))})"
            for table in ("events", "users"):
                deleted += writer.execute(f"DELETE FROM {table} WHERE user_id {in_users}", names).rowcount
            for column in ("user_id", "anonymous_id"):
                writer.execute(f"DELETE FROM identities WHERE {column} {in_users}", names)
            writer.execute(f"UPDATE events SET anonymous_id = NULL WHERE anonymous_id {in_users}", names)
        log.continue_after(seq)
    return seq, deleted


def forget_in_decisions(file: Path, users: Collection[str], seq: int) -> int:
    """Empty the decisions of users that were made before a seq; return their number.

    Any process may call this. Counts by period keep the answers, without users.
    """
    names = {"users": _names(users), "seq": seq}
    writer = open_writer(
        file, decision_schema.SCHEMA, decision_schema.SCRIPT, decision_schema.PRAGMAS, decision_schema.MIGRATIONS
    )
    with closing(writer):
        AnswerCounter(writer).count_all()
        with transaction(writer):
            emptied = writer.execute(TOMBSTONE, names).rowcount
            writer.execute(f"UPDATE decisions SET anonymous_id = NULL WHERE anonymous_id {IN_USERS}", names)
            writer.execute(f"DELETE FROM last_seen WHERE user_id {IN_USERS}", names)
    return emptied


def users_in_decisions(file: Path) -> set[str]:
    """Return the distinct user ids and anonymous ids of the decisions."""
    if not file.exists():
        return set()
    with closing(sqlite3.connect(file, timeout=BUSY_SECONDS)) as connection:
        users: set[str] = set()
        for table in DECISION_TABLES:
            columns = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            for column in columns & {"user_id", "anonymous_id"}:
                users |= {user for (user,) in connection.execute(f"SELECT DISTINCT {column} FROM {table}") if user}
    return users


def _names(users: Collection[str]) -> str:
    return msgspec.json.encode(sorted(users)).decode()
