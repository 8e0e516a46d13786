"""The log that grows: what arrived since the import, numbered by one counter in the commit that writes it.

A ``seq`` is given in commit order and never used again; rows are never changed. One connection writes (WAL,
``synchronous=FULL``: what is committed is on the disk), readers open the file read-only and in slices.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
import polars as pl

from recloop.errors import UserError
from recloop.records import EVENT_SCHEMA, ITEM_SCHEMA, RULE, SEQ, USER_SCHEMA, Event, Item, User
from recloop.storage.sqlite import ReaderPool, Store, give_back, open_writer, transaction

SCHEMA = 1
SLICE = 100_000  # rows of one read: a longer one would pin the write-ahead log

SCRIPT = """
CREATE TABLE counter (one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER NOT NULL);
INSERT INTO counter VALUES (1, 0);
CREATE TABLE events (
    seq INTEGER PRIMARY KEY, event_id TEXT, user_id TEXT NOT NULL, anonymous_id TEXT, item_id TEXT NOT NULL,
    timestamp INTEGER NOT NULL, received_at INTEGER NOT NULL, event_type TEXT NOT NULL, value REAL, quantity REAL,
    group_id TEXT, session_id TEXT, placement TEXT, request_id TEXT, context TEXT, rule TEXT);
CREATE UNIQUE INDEX events_event_id ON events (event_id) WHERE event_id IS NOT NULL;
CREATE INDEX events_user ON events (user_id, seq);
CREATE INDEX events_item ON events (item_id);
CREATE TABLE items (
    seq INTEGER PRIMARY KEY, item_id TEXT NOT NULL, received_at INTEGER NOT NULL, attributes TEXT NOT NULL,
    hidden INTEGER NOT NULL, deleted INTEGER NOT NULL);
CREATE INDEX items_item ON items (item_id, seq);
CREATE TABLE users (
    seq INTEGER PRIMARY KEY, user_id TEXT NOT NULL, received_at INTEGER NOT NULL, attributes TEXT NOT NULL,
    deleted INTEGER NOT NULL);
CREATE INDEX users_user ON users (user_id, seq);
CREATE TABLE retractions (seq INTEGER PRIMARY KEY, of_seq INTEGER NOT NULL, rule TEXT NOT NULL)"""

EVENT_COLUMNS = (*EVENT_SCHEMA, RULE)
CONTENT = tuple(
    name for name in EVENT_SCHEMA if name not in {SEQ, "timestamp", "received_at"}
)  # what the client said, but for the stamp

T = TypeVar("T")
Row = TypeVar("Row", Item, User, "Retraction")
Status = Literal["accepted", "duplicate", "conflict", "quarantined"]


class Receipt(NamedTuple):
    """What became of an event: its status, its seq (of the first row for a duplicate or conflict), its rule."""

    status: Status
    seq: int
    rule: str | None


class Arrivals(NamedTuple):
    """Events as they arrived: the new ones, numbered, and the receipts of repeats by their position."""

    new: list[Event]
    repeats: dict[int, Receipt]

    def receipts(self, inserted: Sequence[Receipt]) -> list[Receipt]:
        """The receipts of all events in the order of arrival, given those of the new ones."""
        remaining = iter(inserted)
        total = len(self.new) + len(self.repeats)
        return [self.repeats.get(position) or next(remaining) for position in range(total)]


RESTORED = "restored"
"""The rule of a row of ``retractions`` that brings an event back."""


class Retraction(msgspec.Struct, frozen=True):
    """A row of the log taken back by a rule: from ``seq`` on (0 until the log has numbered it) no state holds ``of_seq``.

    With the rule `RESTORED` it is the other way round: from ``seq`` on states hold the event again.
    """

    of_seq: int
    rule: str
    seq: int = 0


def out_at(rows: Iterable[Retraction], seq: int | None = None) -> set[int]:
    """The events that these rows, in the order of their seq, have taken back at ``seq`` (None: after all of them).

    The newest row of an event decides, so retraction and restoration can follow one another any number of times.
    """
    out: set[int] = set()
    for row in rows:
        if seq is None or row.seq <= seq:
            (out.discard if row.rule == RESTORED else out.add)(row.of_seq)
    return out


class EventLog(Store):
    """log.db; see `recloop.storage.open_log`.

    Args:
        file: The SQLite file.
        write: Open the one writing connection; the caller holds the writer's lock.
    """

    def __init__(self, file: Path, write: bool) -> None:
        self.file = file
        self._lock = threading.RLock()
        self._depth = 0
        self._writer: sqlite3.Connection | None = None
        if write:
            self._writer = open_writer(file, SCHEMA, SCRIPT, (
                "auto_vacuum = INCREMENTAL", "journal_mode = WAL", "synchronous = FULL",
            ))  # fmt: skip
        self._readers = ReaderPool(file, SCHEMA, SCRIPT)

    def close(self) -> None:
        self._readers.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    # -- writing

    @contextmanager
    def commit(self) -> Iterator[sqlite3.Connection]:
        """One transaction: appends inside it become durable, and visible, together; nested ones join the outermost."""
        with self._lock:
            writer = self._writing()
            if self._depth and writer.in_transaction:
                yield writer
                return
            self._depth = 1
            try:
                with transaction(writer):
                    yield writer
            finally:
                self._depth = 0

    def append_events(self, events: Sequence[Event]) -> list[Receipt]:
        """Number and keep these events, durably once the outermost `commit` ends; a repeat is not kept.

        Args:
            events: In the order of their arrival; ``seq`` is ignored, ``rule`` filled means quarantined.
        """
        with self.commit():
            arrivals = self.find_duplicates(events, {})
            return arrivals.receipts(self.insert_events(arrivals.new))

    def find_duplicates(self, events: Sequence[Event], imported: Mapping[str, Event]) -> Arrivals:
        """Separate new events, numbered, from repeats of an event_id; inside the `commit` that inserts them.

        A repeat with equal content is a ``duplicate``, with other content a ``conflict``. A stamp that the client left
        out counts as equal (both rows then carry their arrival).

        Args:
            events: In the order of their arrival; ``seq`` is ignored.
            imported: Events of the import by event_id.
        """
        with self.commit() as writer:
            first_by_id = {**imported, **self._by_event_id(writer, event_ids(events))}
            seq = self._counter(writer)
        new: list[Event] = []
        repeats: dict[int, Receipt] = {}
        for position, event in enumerate(events):
            first = first_by_id.get(event.event_id) if event.event_id is not None else None
            if first is not None:
                status: Status = "duplicate" if same_content(first, event) else "conflict"
                repeats[position] = Receipt(status, first.seq, None)
                continue
            seq += 1
            new.append(msgspec.structs.replace(event, seq=seq))
            if event.event_id is not None:
                first_by_id[event.event_id] = new[-1]
        return Arrivals(new, repeats)

    def insert_events(self, events: Sequence[Event]) -> list[Receipt]:
        """Keep new events under the numbers of `find_duplicates`; ``rule`` filled means quarantined.

        Raises:
            RuntimeError: the numbers do not follow the newest one, so rows were appended in between.
        """
        with self.commit() as writer:
            seq = self._counter(writer)
            if any(event.seq != expected for expected, event in enumerate(events, seq + 1)):
                raise RuntimeError(f"events of {self.file.name} do not follow seq {seq}")
            writer.executemany(
                f"INSERT INTO events ({', '.join(EVENT_COLUMNS)}) VALUES ({', '.join('?' * len(EVENT_COLUMNS))})",
                [tuple(getattr(event, name) for name in EVENT_COLUMNS) for event in events],
            )
            self._set_counter(writer, seq + len(events))
        return [Receipt("quarantined" if event.rule else "accepted", event.seq, event.rule) for event in events]

    def append_items(self, items: Sequence[Item]) -> list[Item]:
        """Number and keep these versions of items; the rows as kept."""
        columns = ("seq", "item_id", "received_at", "attributes", "hidden", "deleted")
        return self._append("items", columns, items)

    def append_users(self, users: Sequence[User]) -> list[User]:
        """Number and keep these versions of users; the rows as kept."""
        return self._append("users", ("seq", "user_id", "received_at", "attributes", "deleted"), users)

    def append_retractions(self, rows: Sequence[Retraction]) -> list[Retraction]:
        """Number and keep these; the rows as kept.

        A retraction of an event that is out, or a restoration of one that is not, is left out: handed twice, it is
        there once.
        """
        with self.commit() as writer:
            newest = dict(writer.execute("SELECT of_seq, rule FROM retractions ORDER BY seq"))
            fresh: list[Retraction] = []
            for row in rows:
                is_out = newest.get(row.of_seq, RESTORED) != RESTORED
                if is_out == (row.rule == RESTORED):
                    newest[row.of_seq] = row.rule
                    fresh.append(row)
            return self._append("retractions", ("seq", "of_seq", "rule"), fresh)

    def _append(self, table: str, columns: tuple[str, ...], rows: Sequence[Row]) -> list[Row]:
        with self.commit() as writer:
            seq = self._counter(writer)
            kept = [msgspec.structs.replace(row, seq=seq + n) for n, row in enumerate(rows, 1)]
            values = [[getattr(row, name) for name in columns] for row in kept]
            writer.executemany(
                f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
                [[object_text(value) if isinstance(value, dict) else value for value in row] for row in values],
            )
            self._set_counter(writer, seq + len(kept))
        return kept

    def start_at(self, watermark: int) -> None:
        """The log goes on at ``watermark`` + 1: the import took the numbers up to it.

        Raises:
            UserError: the log holds rows that were numbered after another import.
        """
        with self.commit() as writer:
            counter = self._counter(writer)
            if self._count(writer) == 0:
                self._set_counter(writer, watermark)
            elif counter < watermark:
                raise UserError(
                    "watermark",
                    watermark,
                    f"at most {counter}, the last seq of {self.file.name}, which holds rows of another import",
                    "a new project folder",
                )

    # -- reading

    def last_seq(self) -> int:
        """The newest number given, the import's last one when nothing came since."""
        return self._counter(self._readers.get())

    def newest_in(self, commit: sqlite3.Connection) -> int:
        """The newest number given inside an open `commit`; durable, and `last_seq`, once that commit has ended."""
        return self._counter(commit)

    def is_empty(self) -> bool:
        """Whether no row of any kind came since the import."""
        return self._count(self._readers.get()) == 0

    def events(self, user_id: str | None = None, after: int = 0, until: int | None = None) -> pl.DataFrame:
        """Events with ``after`` < seq <= ``until``, of one user or all, quarantined ones too: EVENT_SCHEMA + rule."""
        where, parameters = ("AND user_id = ?", (user_id,)) if user_id is not None else ("", ())
        rows = self._sliced("events", EVENT_COLUMNS, after, until, where, parameters)
        return pl.DataFrame(rows, schema={**EVENT_SCHEMA, RULE: pl.String}, orient="row")

    def items(self, after: int = 0, until: int | None = None, item_id: str | None = None) -> pl.DataFrame:
        """Versions of items with ``after`` < seq <= ``until``: ITEM_SCHEMA."""
        where, parameters = ("AND item_id = ?", (item_id,)) if item_id is not None else ("", ())
        rows = self._sliced("items", tuple(ITEM_SCHEMA), after, until, where, parameters)
        return pl.DataFrame([(*row[:-2], bool(row[-2]), bool(row[-1])) for row in rows], ITEM_SCHEMA, orient="row")

    def users(self, after: int = 0, until: int | None = None, user_id: str | None = None) -> pl.DataFrame:
        """Versions of users with ``after`` < seq <= ``until``: USER_SCHEMA."""
        where, parameters = ("AND user_id = ?", (user_id,)) if user_id is not None else ("", ())
        rows = self._sliced("users", tuple(USER_SCHEMA), after, until, where, parameters)
        return pl.DataFrame([(*row[:-1], bool(row[-1])) for row in rows], USER_SCHEMA, orient="row")

    def retractions(self, after: int = 0, until: int | None = None) -> list[Retraction]:
        """Rows taken back by a retraction with ``after`` < seq <= ``until``, in the order of seq."""
        return [Retraction(*row) for row in self._sliced("retractions", ("of_seq", "rule", SEQ), after, until, "", ())]

    def owners(self, seqs: Sequence[int]) -> dict[int, str]:
        """Whose events have these numbers, by number; those of the import are not among them."""
        found: dict[int, str] = {}
        for part in _parts(list(seqs)):
            places = ", ".join("?" * len(part))
            found |= self._readers.get().execute(f"SELECT seq, user_id FROM events WHERE seq IN ({places})", part)
        return found

    def recent(self, users: Sequence[str], since: int) -> pl.DataFrame:
        """Events of these users that happened after the stamp ``since``, in the order of their seq: for the burst rule.

        Reads on the writing connection where there is one, so rows of the open transaction are in sight.
        """
        connection = self._writer or self._readers.get()
        rows: list[tuple[Any, ...]] = []
        columns = ", ".join(EVENT_COLUMNS)
        for part in _parts(list(users)):
            rows += connection.execute(
                f"SELECT {columns} FROM events WHERE user_id IN ({', '.join('?' * len(part))}) AND timestamp > ?",
                (*part, since),
            ).fetchall()
        return pl.DataFrame(rows, schema={**EVENT_SCHEMA, RULE: pl.String}, orient="row").sort(SEQ)

    def has_id(self, column: str, raw_id: str) -> bool:
        """Whether some event has this id in that column."""
        found = self._readers.get().execute(f"SELECT 1 FROM events WHERE {column} = ? LIMIT 1", (raw_id,))
        return found.fetchone() is not None

    def received(self, since: int, until: int) -> list[tuple[int, str | None]]:
        """When each believed event of ``since`` < received_at <= ``until`` came, and the request that it names."""
        text = "SELECT received_at, request_id FROM events WHERE rule IS NULL AND received_at > ? AND received_at <= ?"
        return self._readers.get().execute(text, (since, until)).fetchall()

    def old_events(self, after: int, until: int, before: int, limit: int) -> pl.DataFrame:
        """The first events with ``after`` < seq <= ``until`` that were received before a stamp: EVENT_SCHEMA + rule."""
        rows = self._readers.get().execute(
            f"""SELECT {", ".join(EVENT_COLUMNS)} FROM events
            WHERE seq > ? AND seq <= ? AND received_at < ? ORDER BY seq LIMIT ?""",
            (after, until, before, limit),
        )
        return pl.DataFrame(rows.fetchall(), schema={**EVENT_SCHEMA, RULE: pl.String}, orient="row")

    def newest_received(self) -> int | None:
        """When the newest event was received; None: there is none."""
        found = self._readers.get().execute("SELECT received_at FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        return None if found is None else int(found[0])

    def delete_events(self, seqs: Sequence[int]) -> None:
        """Delete events that the caller has found in the archive, whole; their numbers are not given again."""
        with self.commit() as writer:
            writer.executemany("DELETE FROM events WHERE seq = ?", [(seq,) for seq in seqs])

    def give_back(self) -> None:
        """Return the room of deleted rows to the disk."""
        with self._lock:
            give_back(self._writing())

    # -- inside

    def _writing(self) -> sqlite3.Connection:
        if self._writer is None:
            raise RuntimeError(f"{self.file} was opened for reading")
        return self._writer

    def _sliced(
        self,
        table: str,
        columns: tuple[str, ...],
        after: int,
        until: int | None,
        where: str,
        parameters: tuple[Any, ...],
    ) -> list[tuple[Any, ...]]:
        connection = self._readers.get()
        last = self._counter(connection) if until is None else until
        text = f"SELECT {', '.join(columns)} FROM {table} WHERE seq > ? AND seq <= ? {where} ORDER BY seq LIMIT {SLICE}"
        place = columns.index(SEQ)
        rows: list[tuple[Any, ...]] = []
        while True:
            part = connection.execute(text, (after, last, *parameters)).fetchall()
            rows += part
            if len(part) < SLICE:
                return rows
            after = part[-1][place]

    @staticmethod
    def _counter(connection: sqlite3.Connection) -> int:
        return int(connection.execute("SELECT seq FROM counter").fetchone()[0])

    @staticmethod
    def _set_counter(connection: sqlite3.Connection, seq: int) -> None:
        connection.execute("UPDATE counter SET seq = ?", (seq,))

    @staticmethod
    def _count(connection: sqlite3.Connection) -> int:
        tables = ("events", "items", "users", "retractions")
        return sum(connection.execute(f"SELECT EXISTS (SELECT 1 FROM {table})").fetchone()[0] for table in tables)

    @staticmethod
    def _by_event_id(connection: sqlite3.Connection, ids: list[str]) -> dict[str, Event]:
        found: dict[str, Event] = {}
        for part in _parts(ids):
            rows = connection.execute(
                f"SELECT {', '.join(EVENT_COLUMNS)} FROM events WHERE event_id IN ({', '.join('?' * len(part))})", part
            )
            for row in rows:
                event = Event(**dict(zip(EVENT_COLUMNS, row, strict=True)))
                if event.event_id is not None:
                    found[event.event_id] = event
        return found


def event_ids(events: Iterable[Event]) -> list[str]:
    """The distinct event_ids of these events, in the order of arrival."""
    return list(dict.fromkeys(event.event_id for event in events if event.event_id is not None))


def same_content(first: Event, again: Event) -> bool:
    """Whether a row sent again says what the first one said."""
    if any(getattr(first, name) != getattr(again, name) for name in CONTENT):
        return False
    unstamped = first.timestamp == first.received_at and again.timestamp == again.received_at
    return first.timestamp == again.timestamp or unstamped


def object_text(attributes: Mapping[str, Any]) -> str:
    """A JSON object as text: keys sorted, compact, so that equal objects are equal texts."""
    return json.dumps(attributes, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _parts(values: list[T], size: int = 500) -> Iterator[list[T]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
