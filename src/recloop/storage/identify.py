"""Identify of an anonymous id inside a commit of the log.

It adds a row of identities, and moves the rows of the id to the user.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import msgspec
import polars as pl

from recloop.records import EVENT_ID, EVENT_SCHEMA, RULE, SEQ, USER_ID
from recloop.storage import identities
from recloop.storage.database import Connection
from recloop.storage.event_log import EventLog
from recloop.storage.event_lookup import newest_rules
from recloop.storage.event_rows import EVENT_COLUMNS, RULED_SCHEMA
from recloop.storage.identities import IDENTIFIED, Identified, Identity, moved_id
from recloop.storage.retractions import RESTORED, Retraction

ANONYMOUS_ID: Final = "anonymous_id"
NO_ROWS: Final = pl.DataFrame(schema=RULED_SCHEMA)


class ArchivedEvents(Protocol):
    """Archived rows of a user; see `recloop.storage.archive.Archive`."""

    @property
    def watermark(self) -> int: ...
    def has_id(self, column: str, raw_id: str) -> bool: ...
    def for_users(self, users: list[str]) -> pl.DataFrame: ...


def identify(log: EventLog, archive: ArchivedEvents, identity: Identity) -> tuple[Identified, pl.DataFrame]:
    """Number and insert an identity; move the rows of a new anonymous id to the user.

    Call it inside a `commit`.

    Returns:
        The result, and the rows stored again (EVENT_SCHEMA and rule).
    """
    with log.commit() as writer:
        name, user = identity.anonymous_id, identity.user_id
        newest = writer.execute(
            "SELECT user_id, seq FROM identities WHERE anonymous_id = ? ORDER BY seq DESC LIMIT 1", (name,)
        ).fetchone()
        if newest is not None and newest[0] == user:
            return Identified("duplicate", int(newest[1])), NO_ROWS
        if reason := _problem(writer, name, user):
            return Identified("refused", 0, reason=reason), NO_ROWS
        seq = log.newest_in(writer) + 1
        identities.insert(writer, [msgspec.structs.replace(identity, seq=seq)])
        log.continue_after(seq)
        moved = NO_ROWS if newest is not None else _move(log, writer, archive, name, user)
        return Identified("accepted", seq, len(moved)), moved


def _problem(writer: Connection, name: str, user: str) -> str:
    """Reason to refuse an identify that would make a chain; empty for none."""
    if writer.execute("SELECT 1 FROM identities WHERE anonymous_id = ? LIMIT 1", (user,)).fetchone():
        return "user_id is an identified anonymous id; expected the id of a user"
    if writer.execute("SELECT 1 FROM identities WHERE user_id = ? LIMIT 1", (name,)).fetchone():
        return "anonymous_id is a user who was identified; expected the id of a device"
    return ""


def _move(log: EventLog, writer: Connection, archive: ArchivedEvents, name: str, user: str) -> pl.DataFrame:
    """Retract the rows of an anonymous id and store them again as rows of a user.

    Quarantined rows that no update has seen are stored again too, so that its rules find the same bursts.
    """
    query = f"SELECT {', '.join(EVENT_COLUMNS)} FROM events WHERE user_id = ? ORDER BY seq"
    logged = pl.DataFrame(writer.execute(query, (name,)).fetchall(), schema=RULED_SCHEMA, orient="row")
    logged = logged.filter(pl.col(RULE).is_null() | (pl.col(SEQ) > archive.watermark))
    archived = NO_ROWS
    if archive.has_id(USER_ID, name):
        archived = archive.for_users([name]).with_columns(pl.lit(None, pl.String).alias(RULE)).select(*RULED_SCHEMA)
    rows = pl.concat([archived, logged]).unique(SEQ).sort(SEQ)
    rules = newest_rules(writer, rows[SEQ].to_list())
    retracted = pl.Series([seq for seq, rule in rules.items() if rule != RESTORED], dtype=pl.Int64)
    rows = rows.filter(~pl.col(SEQ).is_in(retracted.implode()))
    if not len(rows):
        return NO_ROWS
    first = log.newest_in(writer) + 1
    moved = [_moved(row, user, seq) for seq, row in enumerate(rows.iter_rows(named=True), first)]
    log.insert_events([row[:-1] for row in moved], [row[-1] for row in moved])
    is_valid = rows[RULE].is_null()
    log.append_retractions([Retraction(seq, IDENTIFIED) for seq in rows.filter(is_valid)[SEQ]])
    return pl.DataFrame(moved, schema=RULED_SCHEMA, orient="row")


def _moved(row: dict[str, Any], user: str, seq: int) -> tuple[Any, ...]:
    """Values of EVENT_SCHEMA and rule of a row stored again."""
    changed = {
        **row, SEQ: seq, EVENT_ID: moved_id(row[EVENT_ID], row[SEQ]), USER_ID: user, ANONYMOUS_ID: row[USER_ID],
    }  # fmt: skip
    return tuple(changed[column] for column in (*EVENT_SCHEMA, RULE))
