"""Event log: rows received since the import, numbered by one counter.

A ``seq`` is assigned in commit order and never used again. Rows are never changed. One connection writes (WAL,
``synchronous=FULL``), so a committed row is on disk. Readers open the file read-only and read in slices.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import msgspec
import polars as pl

from recloop.errors import UserError
from recloop.records import ITEM_SCHEMA, SEQ, TIMESTAMP, USER_ID, USER_SCHEMA, Event, Item, User
from recloop.storage import identities
from recloop.storage.database import Connection, Database, bool_as_int
from recloop.storage.event_lookup import UserWindow, by_event_id, in_windows, newest_rules, parts
from recloop.storage.event_rows import (
    EVENT_COLUMNS,
    RULED_SCHEMA,
    Arrivals,
    EventRow,
    Receipt,
    event_ids,
    number_new,
    object_text,
    with_persons,
    with_values,
)
from recloop.storage.identities import NOT_MOVED, Identity
from recloop.storage.logged_items import LoggedItems
from recloop.storage.newest_stamps import NewestStamps
from recloop.storage.retractions import RESTORED, Retraction
from recloop.storage.sliced_rows import read_slices
from recloop.storage.sqlite import Store

TABLES: Final = ("events", "items", "users", "retractions", "identities")

Row = TypeVar("Row", Item, User, Retraction)


class EventLog(Store):
    """Store of the event log; see `recloop.storage.open_log`.

    Args:
        database: Database of the tables, such as log.db.
        write: Open the single writing connection; the caller holds the writer lock.

    Attributes:
        name: File name or address, for messages. recovery: Advice if rows are missing.
        files: Files of an open SQLite store.
    """

    def __init__(self, database: Database, write: bool) -> None:
        self._database = database
        self.name = database.name
        self.recovery = database.recovery
        self.files = database.files
        self._lock = threading.RLock()
        self._depth = 0
        self._writer: Connection | None = database.open_writer() if write else None
        self._readers = database.open_readers()
        self._items = LoggedItems()
        self._newest_stamps: NewestStamps | None = None

    def close(self) -> None:
        self._readers.close()
        if self._writer is not None:
            self._database.close_writer(self._writer)
            self._writer = None

    # -- writing

    @contextmanager
    def commit(self) -> Iterator[Connection]:
        """Open a transaction, whose appends become durable and visible together.

        Nested transactions join the outermost one.
        """
        with self._lock:
            writer = self._writing()
            if self._depth and writer.in_transaction:
                yield writer
                return
            self._depth = 1
            try:
                with self._database.transaction(writer):
                    yield writer
            finally:
                self._depth = 0

    def append_events(self, events: Sequence[Event]) -> list[Receipt]:
        """Number and insert new events; repeats are not stored.

        The rows are durable when the outermost `commit` ends.

        Args:
            events: Events in order of arrival; ``seq`` is ignored; an event with a ``rule`` is quarantined.
        """
        with self.commit():
            arrivals = self.find_duplicates(events, {})
            rules = [event.rule for position, event in enumerate(events) if position not in arrivals.repeats]
            return arrivals.receipts(self.insert_events(arrivals.rows, rules))

    def find_duplicates(self, events: Sequence[Event], imported: Mapping[str, Event]) -> Arrivals:
        """Separate new events, which it numbers, from repeats of an event_id.

        Call it inside the `commit` that inserts the events. A repeat with equal content is a ``duplicate``, with other
        content a ``conflict``. A timestamp that the client omitted counts as equal, because both rows then have their
        time of receipt. A new row of an identified anonymous id gets the user who was identified last.

        Args:
            events: Events in order of arrival; ``seq`` is ignored.
            imported: Events of the import by event_id.
        """
        with self.commit() as writer:
            stored = by_event_id(writer, event_ids(events))
            arrivals = number_new(events, {**imported, **stored}, self._counter(writer))
            return with_persons(arrivals, identities.persons(writer, (event.user_id for event in events)))

    def insert_events(self, rows: Sequence[EventRow], rules: Sequence[str | None]) -> list[Receipt]:
        """Insert new events with the seqs of `find_duplicates`; a rule quarantines.

        Args:
            rules: The causal rule that removes each row, or None.

        Raises:
            RuntimeError: the seqs do not follow the newest one, because rows were appended in between.
        """
        receipts = [
            Receipt("accepted" if rule is None else "quarantined", row[0], rule)
            for row, rule in zip(rows, rules, strict=True)
        ]
        with self.commit() as writer:
            seq = self._counter(writer)
            if rows and (rows[0][0] != seq + 1 or rows[-1][0] != seq + len(rows)):
                raise RuntimeError(f"{self.name}: seq of a new event is not the newest seq {seq} plus 1")
            if rows:
                columns = dict(zip(EVENT_COLUMNS, (*zip(*rows, strict=True), tuple(rules)), strict=True))
                present = with_values(columns)
                writer.insert("events", tuple(present), zip(*present.values(), strict=True))
                if self._newest_stamps is not None:
                    self._newest_stamps.add(zip(columns[USER_ID], columns[TIMESTAMP], strict=True))
            self._set_counter(writer, seq + len(rows))
        return receipts

    def append_items(self, items: Sequence[Item]) -> list[Item]:
        """Number and insert item versions; return the stored rows."""
        columns = ("seq", "item_id", "received_at", "attributes", "hidden", "deleted")
        return self._append("items", columns, items)

    def append_users(self, users: Sequence[User]) -> list[User]:
        """Number and insert user versions; return the stored rows."""
        return self._append("users", ("seq", "user_id", "received_at", "attributes", "deleted"), users)

    def append_retractions(self, rows: Sequence[Retraction]) -> list[Retraction]:
        """Number and insert retractions; return the stored rows.

        A retraction of a retracted event, or a restoration of an event that is not retracted, is skipped. Thus a row
        that is submitted twice is stored once.
        """
        with self.commit() as writer:
            newest = newest_rules(writer, [row.retracted_seq for row in rows])
            new_rows: list[Retraction] = []
            for row in rows:
                is_retracted = newest.get(row.retracted_seq, RESTORED) != RESTORED
                if is_retracted == (row.rule == RESTORED):
                    newest[row.retracted_seq] = row.rule
                    new_rows.append(row)
            return self._append("retractions", ("seq", "retracted_seq", "rule"), new_rows)

    def _append(self, table: str, columns: tuple[str, ...], rows: Sequence[Row]) -> list[Row]:
        with self.commit() as writer:
            seq = self._counter(writer)
            stored = [msgspec.structs.replace(row, seq=seq + n) for n, row in enumerate(rows, 1)]
            values = [[getattr(row, name) for name in columns] for row in stored]
            texts = ([object_text(value) if isinstance(value, dict) else value for value in row] for row in values)
            writer.insert(table, columns, [bool_as_int(row) for row in texts])
            self._set_counter(writer, seq + len(stored))
        return stored

    def start_at(self, watermark: int) -> None:
        """Start numbering at ``watermark`` + 1, after the rows of the import.

        Raises:
            UserError: the log has rows that were numbered after another import.
        """
        with self.commit() as writer:
            counter = self._counter(writer)
            if self._count(writer) == 0:
                self._set_counter(writer, watermark)
            elif counter < watermark:
                raise UserError(
                    "watermark",
                    watermark,
                    f"at most {counter}, the last seq of {self.name}, which has rows of another import",
                    "a new project folder",
                )

    def start_again(self, watermark: int, known: Sequence[Identity]) -> None:
        """Drop all rows and start numbering after the rows of another import.

        Args:
            known: Numbered identities of that import.
        """
        with self.commit() as writer:
            for table in TABLES:
                writer.execute(f"DELETE FROM {table}")
            self._set_counter(writer, watermark)
            self.restore_identities(known)

    # -- reading

    def continue_after(self, seq: int) -> int:
        """Number the next row ``seq`` + 1 or higher; return the newest seq before.

        Waits for the end of an earlier commit whose result is unknown.
        """
        with self.commit() as writer:
            newest = self._counter(writer)
            self._set_counter(writer, max(seq, newest))
        return newest

    def last_seq(self) -> int:
        """Newest seq; the last seq of the import if the log is empty."""
        return self._counter(self._readers.get())

    def newest_in(self, commit: Connection) -> int:
        """Newest seq inside an open `commit`; it becomes `last_seq` when the commit ends."""
        return self._counter(commit)

    def is_empty(self) -> bool:
        """Return True if the log has no rows since the import."""
        return self._count(self._readers.get()) == 0

    def events(self, user_id: str | None = None, after: int = 0, until: int | None = None) -> pl.DataFrame:
        """Events with ``after`` < seq <= ``until``, of one user or all.

        Includes quarantined events: EVENT_SCHEMA + rule.
        """
        rows = self._rows("events", EVENT_COLUMNS, after, until, user_id=user_id)
        return pl.DataFrame(rows, schema=RULED_SCHEMA, orient="row")

    def items(self, after: int = 0, until: int | None = None, item_id: str | None = None) -> pl.DataFrame:
        """Item versions with ``after`` < seq <= ``until``: ITEM_SCHEMA."""
        rows = self._rows("items", tuple(ITEM_SCHEMA), after, until, item_id=item_id)
        return pl.DataFrame([(*row[:-2], bool(row[-2]), bool(row[-1])) for row in rows], ITEM_SCHEMA, orient="row")

    def users(self, after: int = 0, until: int | None = None, user_id: str | None = None) -> pl.DataFrame:
        """User versions with ``after`` < seq <= ``until``: USER_SCHEMA."""
        rows = self._rows("users", tuple(USER_SCHEMA), after, until, user_id=user_id)
        return pl.DataFrame([(*row[:-1], bool(row[-1])) for row in rows], USER_SCHEMA, orient="row")

    def identities(self, after: int = 0, until: int | None = None) -> list[Identity]:
        """Identities with ``after`` < seq <= ``until``, by seq."""
        return identities.read(self._readers.get(), after, until)

    def restore_identities(self, rows: Sequence[Identity]) -> None:
        """Insert numbered identities of an earlier log; later rows get larger seqs."""
        with self.commit() as writer:
            identities.insert(writer, rows)
            self.continue_after(max((row.seq for row in rows), default=0))

    def retractions(self, after: int = 0, until: int | None = None) -> list[Retraction]:
        """Retractions and restorations with ``after`` < seq <= ``until``, by seq."""
        return [Retraction(*row) for row in self._rows("retractions", ("retracted_seq", "rule", SEQ), after, until)]

    def event_seq(self, event_id: str) -> int | None:
        """Seq of the event with this event_id; None if the log has none."""
        row = self._readers.get().execute("SELECT seq FROM events WHERE event_id = ?", (event_id,)).fetchone()
        return None if row is None else int(row[0])

    def owners(self, seqs: Sequence[int]) -> dict[int, str]:
        """User id of each of these seqs; seqs of the import are omitted."""
        users: dict[int, str] = {}
        for batch in parts(list(seqs)):
            placeholders = ", ".join("?" * len(batch))
            query = f"SELECT seq, user_id FROM events WHERE seq IN ({placeholders})"
            users |= self._readers.get().execute(query, batch).fetchall()
        return users

    def recent(self, windows: Sequence[UserWindow]) -> pl.DataFrame:
        """Rows in any of these windows of users, by seq, for rule burst.

        Includes quarantined events: EVENT_SCHEMA + rule. Reads on the writing connection if there is one, so it includes
        rows of the open transaction.
        """
        rows = in_windows(self._newest(), windows, EVENT_COLUMNS)
        frame = pl.DataFrame(rows, schema=RULED_SCHEMA, orient="row")
        return frame.unique(SEQ).sort(SEQ) if rows else frame

    def count_recent(self, windows: Sequence[UserWindow]) -> Counter[str]:
        """Count the rows of `recent` by user, for disjoint windows; reads only the index.

        The writer reads only windows in which its users may have rows.
        """
        if self._writer is not None:
            if self._newest_stamps is None:
                self._newest_stamps = NewestStamps.read(self._writer)
            may_have = self._newest_stamps.may_have
            windows = [window for window in windows if may_have(window.user_id, window.after)]
        return Counter(user_id for (user_id,) in in_windows(self._newest(), windows, (USER_ID,)))

    def has_user(self, user_id: str) -> bool:
        """Return True if an event has this user_id."""
        cursor = self._readers.get().execute("SELECT 1 FROM events WHERE user_id = ? LIMIT 1", (user_id,))
        return cursor.fetchone() is not None

    def user_ids(self) -> set[str]:
        """User ids and anonymous ids in all rows."""
        columns = {
            "events": ("user_id", "anonymous_id"),
            "users": ("user_id",),
            "identities": ("user_id", "anonymous_id"),
        }
        queries = [f"SELECT DISTINCT {name} FROM {table}" for table, names in columns.items() for name in names]
        connection = self._readers.get()
        return {user for query in queries for (user,) in connection.execute(query) if user}

    def has_item(self, item_id: str) -> bool:
        """Return True if an event has or had this item_id.

        Reads the item ids of the events since the last call.
        """
        return self._items.has(self._readers.get(), item_id)

    def received(self, since: int, until: int) -> list[tuple[int, str | None]]:
        """Time of receipt and request id of valid events: ``since`` < time <= ``until``."""
        text = f"""SELECT received_at, request_id FROM events
            WHERE rule IS NULL AND received_at > ? AND received_at <= ? AND {NOT_MOVED}"""
        return self._readers.get().execute(text, (since, until)).fetchall()

    def received_after(self, after: int, since: int, limit: int) -> list[tuple[int, int, str | None]]:
        """First valid events after a seq that were received after a time.

        Returns:
            (seq, time of receipt, request id) by seq.
        """
        text = f"""SELECT seq, received_at, request_id FROM events
            WHERE seq > ? AND rule IS NULL AND received_at > ? AND {NOT_MOVED} ORDER BY seq LIMIT ?"""
        return self._readers.get().execute(text, (after, since, limit)).fetchall()

    def old_events(self, after: int, until: int, before: int, limit: int) -> pl.DataFrame:
        """First events with ``after`` < seq <= ``until`` that were received before a time.

        Columns: EVENT_SCHEMA + rule.
        """
        rows = self._readers.get().execute(
            f"""SELECT {", ".join(EVENT_COLUMNS)} FROM events
            WHERE seq > ? AND seq <= ? AND received_at < ? ORDER BY seq LIMIT ?""",
            (after, until, before, limit),
        )
        return pl.DataFrame(rows.fetchall(), schema=RULED_SCHEMA, orient="row")

    def newest_received(self) -> int | None:
        """Time of receipt of the newest event; None without events."""
        newest = self._readers.get().execute("SELECT received_at FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        return None if newest is None else int(newest[0])

    def delete_events(self, seqs: Sequence[int]) -> None:
        """Delete events that the caller found complete in the archive.

        Their seqs are not assigned again.
        """
        with self.commit() as writer:
            for batch in parts(list(seqs)):
                writer.execute(f"DELETE FROM events WHERE seq IN ({', '.join('?' * len(batch))})", batch)

    def release_space(self) -> None:
        """Return the free pages of deleted rows to the disk."""
        with self._lock:
            self._database.release_space(self._writing())

    def rewrite(self) -> None:
        """Write every page again; see `recloop.storage.database.Database.rewrite`."""
        self._database.rewrite()

    def size_bytes(self) -> int:
        """Bytes of the store on disk."""
        return self._database.size_bytes()

    # -- inside

    def _writing(self) -> Connection:
        if self._writer is None:
            raise RuntimeError(f"{self.name} is open for reading; expected open_log(..., write=True)")
        return self._writer

    def _newest(self) -> Connection:
        """Return the connection that sees the open transaction, if there is one."""
        return self._writer or self._readers.get()

    def _rows(
        self, table: str, columns: tuple[str, ...], after: int, until: int | None, **equal: str | None
    ) -> list[tuple[Any, ...]]:
        connection = self._readers.get()
        last = self._counter(connection) if until is None else until
        return read_slices(connection, table, columns, after, last, equal)

    @staticmethod
    def _counter(connection: Connection) -> int:
        return int(connection.execute("SELECT seq FROM counter").fetchone()[0])

    @staticmethod
    def _set_counter(connection: Connection, seq: int) -> None:
        connection.execute("UPDATE counter SET seq = ?", (seq,))

    @staticmethod
    def _count(connection: Connection) -> int:
        return sum(connection.execute(f"SELECT EXISTS (SELECT 1 FROM {table})").fetchone()[0] for table in TABLES)
