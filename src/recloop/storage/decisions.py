"""Decision log: a buffered store of responses that counts every lost row.

A request never waits for the disk. It adds a row to a buffer, and the writer thread commits every 200 ms or 1,000 rows
(``synchronous=NORMAL``). A row is dropped and counted if the buffer is full, and skipped and counted if its key exists.
A counter in a memory-mapped file survives a killed process, so the next process knows how many rows were lost.
"""

from __future__ import annotations

import mmap
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from recloop.records import Decision
from recloop.storage.sqlite import ReaderPool, Store, open_writer, release_space, transaction

SCHEMA = 4
COMMIT_SECONDS = 0.2
MAX_BATCH_ROWS = 1_000
MAX_BUFFERED_ROWS = 50_000  # most rows in the buffer

REMOVED_TABLE = """
CREATE TABLE removed (
    variant TEXT NOT NULL, placement TEXT NOT NULL, answers INTEGER NOT NULL, PRIMARY KEY (variant, placement))"""
SCRIPT = f"""
CREATE TABLE decisions (
    id INTEGER PRIMARY KEY, request_id TEXT NOT NULL, role TEXT NOT NULL, user_id TEXT NOT NULL,
    served_at INTEGER NOT NULL, as_of_seq INTEGER NOT NULL, bundle TEXT NOT NULL, generation INTEGER NOT NULL,
    variant TEXT NOT NULL, placement TEXT NOT NULL, n INTEGER NOT NULL, query TEXT NOT NULL, items TEXT NOT NULL,
    scores TEXT NOT NULL, sources TEXT NOT NULL, degraded TEXT NOT NULL, session_id TEXT, anonymous_id TEXT,
    positives INTEGER NOT NULL, inputs TEXT NOT NULL, latency_us INTEGER NOT NULL, client_request_id TEXT,
    assigned TEXT NOT NULL DEFAULT 'live', UNIQUE (request_id, role, bundle));
CREATE INDEX decisions_served_at ON decisions (served_at);
CREATE TABLE counts (one INTEGER PRIMARY KEY CHECK (one = 1), settled INTEGER NOT NULL, dropped INTEGER NOT NULL,
    lost INTEGER NOT NULL, repeated INTEGER NOT NULL DEFAULT 0);
INSERT INTO counts VALUES (1, 0, 0, 0, 0);
{REMOVED_TABLE}"""
INPUTS_OF_SCHEMA_3 = (
    """replace(replace(replace(inputs, '"request.hour":', '"context.hour":'), """
    """'"request.weekday":', '"context.weekday":'), '"request.gap":', '"context.days_since_last":')"""
)
"""Inputs of a decision with the present names of the context features."""
MIGRATIONS = {
    1: """
ALTER TABLE decisions ADD COLUMN client_request_id TEXT;
ALTER TABLE decisions ADD COLUMN assigned TEXT NOT NULL DEFAULT 'live';
UPDATE decisions SET assigned = 'candidate' WHERE variant = 'candidate';
ALTER TABLE counts ADD COLUMN repeated INTEGER NOT NULL DEFAULT 0""",
    2: REMOVED_TABLE,
    3: f"""
ALTER TABLE decisions RENAME COLUMN at TO served_at;
ALTER TABLE decisions RENAME COLUMN as_of TO as_of_seq;
ALTER TABLE decisions RENAME COLUMN micros TO latency_us;
ALTER TABLE decisions RENAME COLUMN n TO id;
ALTER TABLE decisions RENAME COLUMN k TO n;
ALTER TABLE decisions DROP COLUMN propensities;
DROP INDEX decisions_at;
CREATE INDEX decisions_served_at ON decisions (served_at);
UPDATE decisions SET role = 'replica', variant = 'replica' WHERE role = 'twin';
UPDATE decisions SET inputs = {INPUTS_OF_SCHEMA_3}""",
}
"""Schema 1 does not record the assigned arm: a row keeps the arm that answered."""

PRAGMAS = ("auto_vacuum = INCREMENTAL", "journal_mode = WAL", "synchronous = NORMAL")
COLUMNS = Decision.__struct_fields__
JSON_COLUMNS = {"query", "items", "scores", "sources", "degraded", "inputs"}
SELECT = f"SELECT {', '.join(COLUMNS)} FROM decisions"
INSERT = f"INSERT OR IGNORE INTO decisions ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"


def _view(expressions: Mapping[str, str]) -> str:
    """Build the view of an older schema's table with the columns of this schema."""
    columns = ", ".join(f"{expressions.get(name, name)} AS {name}" for name in ("id", *COLUMNS))
    return f"CREATE TEMP VIEW decisions AS SELECT {columns} FROM main.decisions"


NAMES_OF_SCHEMA_3 = {
    "id": "n",
    "n": "k",
    "served_at": "at",
    "as_of_seq": "as_of",
    "latency_us": "micros",
    "role": "CASE role WHEN 'twin' THEN 'replica' ELSE role END",
    "variant": "CASE variant WHEN 'twin' THEN 'replica' ELSE variant END",
    "inputs": INPUTS_OF_SCHEMA_3,
}
COLUMNS_AFTER_SCHEMA_1 = {
    "client_request_id": "NULL",
    "assigned": "CASE variant WHEN 'candidate' THEN 'candidate' ELSE 'live' END",
}
NONE_REMOVED = "CREATE TEMP VIEW removed AS SELECT '' AS variant, '' AS placement, 0 AS answers WHERE 0"
VIEWS = {
    1: f"{_view(NAMES_OF_SCHEMA_3 | COLUMNS_AFTER_SCHEMA_1)}; {NONE_REMOVED}",
    2: f"{_view(NAMES_OF_SCHEMA_3)}; {NONE_REMOVED}",
    3: _view(NAMES_OF_SCHEMA_3),
}


class DecisionLog(Store):
    """Store decisions.db; see `recloop.storage.open_decisions`.

    Attributes:
        dropped: Rows dropped by a full buffer since this process opened the store.
        lost: Rows lost when earlier processes ended, in total.
        repeated: Rows skipped because their key existed, since this process opened the store.
        failing: True if the last commit failed; its rows are committed again.
    """

    def __init__(self, file: Path, write: bool) -> None:
        self.file = file
        self.dropped = self.lost = self.repeated = 0
        self.failing = False
        self._buffer: list[Decision] = []
        self._wake = threading.Condition()
        self._urgent = self._closing = False
        self._thread: threading.Thread | None = None
        if write:
            writer = open_writer(file, SCHEMA, SCRIPT, PRAGMAS, MIGRATIONS)
            self._taken = _MappedCounter(file.with_suffix(".taken"))
            self._count_lost(writer)
            self._thread = threading.Thread(target=self._run, args=(writer,), name="decisions", daemon=True)
        self._readers = ReaderPool(file, SCHEMA, SCRIPT, VIEWS)
        if self._thread is not None:
            self._thread.start()
        else:
            self.lost = int(self._readers.get().execute("SELECT lost FROM counts").fetchone()[0])

    def put(self, decision: Decision) -> bool:
        """Add a row to the buffer without waiting; False if the full buffer dropped it.

        A row whose (request_id, role, bundle) exists is skipped by the writer and counted as ``repeated``.
        """
        with self._wake:
            self._taken.add(1)
            if len(self._buffer) >= MAX_BUFFERED_ROWS:
                self.dropped += 1
                return False
            self._buffer.append(decision)
            if len(self._buffer) == 1 or len(self._buffer) >= MAX_BATCH_ROWS:
                self._wake.notify_all()
        return True

    def lose(self, n_rows: int) -> None:
        """Count rows as lost that another process took and did not deliver."""
        with self._wake:
            self._taken.add(n_rows)  # never settled, so the next process counts them in the store
            self.lost += n_rows

    @property
    def full(self) -> bool:
        """True if the next row would be dropped."""
        return len(self._buffer) >= MAX_BUFFERED_ROWS

    def flush(self, seconds: float = 10.0) -> bool:
        """Wait until the buffer is committed; False after a timeout or a failed commit."""
        with self._wake:
            self._urgent = True
            self._wake.notify_all()
            return self._wake.wait_for(lambda: not self._buffer, seconds)

    def close(self) -> None:
        """Commit the buffer and stop the writer thread."""
        if self._thread is not None:
            with self._wake:
                self._closing = True
                self._wake.notify_all()
            self._thread.join(10.0)
            self._thread = None
            self._taken.close()
        self._readers.close()

    def rows(self, last: int | None = None, since: int | None = None, until: int | None = None) -> list[Decision]:
        """Last rows with ``since`` <= served_at < ``until``, in insertion order."""
        bounds = (("served_at >= ?", since), ("served_at < ?", until))
        tests = [(text, stamp) for text, stamp in bounds if stamp is not None]
        where = f"WHERE {' AND '.join(text for text, _ in tests)}" if tests else ""
        limit = "" if last is None else f"LIMIT {int(last)}"
        stored_rows = self._readers.get().execute(
            f"{SELECT} {where} ORDER BY id DESC {limit}", [stamp for _, stamp in tests]
        )
        return [_decision(row) for row in stored_rows][::-1]

    def answered(self, request_ids: Sequence[str]) -> Iterator[Decision]:
        """Stored responses to these requests."""
        for start in range(0, len(request_ids), MAX_BATCH_ROWS):
            batch = request_ids[start : start + MAX_BATCH_ROWS]
            statement = f"""{SELECT} WHERE role = 'answer'
                AND request_id IN ({", ".join("?" * len(batch))}) ORDER BY id"""
            for row in self._readers.get().execute(statement, batch):
                yield _decision(row)

    def traffic(self, window_us: int) -> tuple[int, int, int]:
        """Count, first and last time of responses in ``window_us`` up to the newest."""
        statement = """SELECT count(*), min(served_at), max(served_at) FROM decisions
            WHERE role = 'answer' AND served_at > (SELECT max(served_at) FROM decisions WHERE role = 'answer') - ?"""
        count, first, last = self._readers.get().execute(statement, (window_us,)).fetchone()
        return int(count), int(first or 0), int(last or 0)

    def shadow_requests(self, bundle: str) -> int:
        """Count the requests that a bundle has scored in shadow."""
        statement = "SELECT count(*) FROM decisions WHERE role = 'shadow' AND bundle = ?"
        return int(self._readers.get().execute(statement, (bundle,)).fetchone()[0])

    def replica_mismatches(self, bundle: str) -> int:
        """Count requests scored by ``bundle`` in shadow that live did not reproduce."""
        statement = """SELECT count(*) FROM decisions AS shadow
            JOIN decisions AS answer ON answer.request_id = shadow.request_id AND answer.role = 'answer'
            JOIN decisions AS replica ON replica.request_id = shadow.request_id AND replica.role = 'replica'
                AND replica.bundle = answer.bundle
            WHERE shadow.role = 'shadow' AND shadow.bundle = ?
                AND (replica.items, replica.scores) <> (answer.items, answer.scores)"""
        return int(self._readers.get().execute(statement, (bundle,)).fetchone()[0])

    def totals(self) -> dict[tuple[str, str], int]:
        """Responses of all time by (variant, placement)."""
        connection = self._readers.get()
        text = "SELECT variant, placement, COUNT(*) FROM decisions WHERE role = 'answer' GROUP BY variant, placement"
        totals = {(variant, placement): int(count) for variant, placement, count in connection.execute(text)}
        for variant, placement, count in connection.execute("SELECT variant, placement, answers FROM removed"):
            totals[variant, placement] = totals.get((variant, placement), 0) + int(count)
        return totals

    def newest_served_at(self) -> int | None:
        """Newest ``served_at`` of a response; None without responses."""
        newest = self._readers.get().execute("SELECT max(served_at) FROM decisions").fetchone()[0]
        return None if newest is None else int(newest)

    def count_before(self, stamp: int) -> tuple[int, int]:
        """Count the rows before a timestamp, and all rows."""
        text = "SELECT (SELECT count(*) FROM decisions WHERE served_at < ?), (SELECT count(*) FROM decisions)"
        count, total = self._readers.get().execute(text, (stamp,)).fetchone()
        return int(count), int(total)

    def is_empty(self) -> bool:
        """True if the store has no decisions."""
        return self._readers.get().execute("SELECT 1 FROM decisions LIMIT 1").fetchone() is None

    def _count_lost(self, writer: sqlite3.Connection) -> None:
        """Count decisions that a previous process accepted but did not write as lost."""
        settled, lost = writer.execute("SELECT settled, lost FROM counts").fetchone()
        missing = max(0, self._taken.value - settled)
        self.lost = lost + missing
        settled += missing
        self._taken.set(settled)  # a crash of the machine may have lost the counter's page
        writer.execute("UPDATE counts SET settled = ?, lost = ?", (settled, self.lost))

    def _run(self, writer: sqlite3.Connection) -> None:
        counted_drops = 0  # part of `dropped` that is in the store
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._buffer or self._closing or self._urgent)
                if not self._urgent:
                    self._wake.wait_for(
                        lambda: len(self._buffer) >= MAX_BATCH_ROWS or self._closing or self._urgent, COMMIT_SECONDS
                    )
                batch = self._buffer[:MAX_BATCH_ROWS]
                dropped = self.dropped
                is_closing = self._closing
            try:
                if batch or dropped > counted_drops:
                    with transaction(writer):
                        inserted = writer.executemany(INSERT, [_row(decision) for decision in batch]).rowcount
                        repeated = len(batch) - max(0, inserted)
                        writer.execute(
                            "UPDATE counts SET settled = settled + ?, dropped = dropped + ?, repeated = repeated + ?",
                            (len(batch) + dropped - counted_drops, dropped - counted_drops, repeated),
                        )
                    self.repeated += repeated
                counted_drops = dropped
                self.failing = False
            except sqlite3.Error:
                self.failing = True
            with self._wake:
                if not self.failing:
                    del self._buffer[: len(batch)]
                if not self._buffer or self.failing:
                    self._urgent = False
                self._wake.notify_all()
                if is_closing and (self.failing or not self._buffer):
                    writer.close()
                    return
                if self.failing:
                    self._wake.wait(COMMIT_SECONDS)  # pause before the retry on a full disk


def remove_before(file: Path, stamp: int) -> int:
    """Delete decisions before a timestamp, free disk space and return their number.

    Any process may call this: transactions are short, and a running service waits for them. `DecisionLog.totals` still
    counts the removed decisions.
    """
    writer = open_writer(file, SCHEMA, SCRIPT, PRAGMAS, MIGRATIONS)
    removed = 0
    try:
        while True:
            with transaction(writer):
                rows = writer.execute(
                    "SELECT id FROM decisions WHERE served_at < ? LIMIT ?", (stamp, MAX_BATCH_ROWS)
                ).fetchall()
                condition = f"id IN ({', '.join(str(number) for (number,) in rows)})"
                writer.execute(
                    f"""INSERT INTO removed SELECT variant, placement, count(*) FROM decisions
                    WHERE role = 'answer' AND {condition} GROUP BY variant, placement
                    ON CONFLICT (variant, placement) DO UPDATE SET answers = answers + excluded.answers"""
                )
                writer.execute(f"DELETE FROM decisions WHERE {condition}")
            removed += len(rows)
            if len(rows) < MAX_BATCH_ROWS:
                break
        release_space(writer)
    finally:
        writer.close()
    return removed


class _MappedCounter:
    """Counter in a memory-mapped file that survives the end of the process."""

    def __init__(self, file: Path) -> None:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if os.fstat(handle).st_size != 8:
                os.ftruncate(handle, 8)
            self._bytes = mmap.mmap(handle, 8)
        finally:
            os.close(handle)
        self.value = int.from_bytes(self._bytes[:8], "little")

    def add(self, n: int) -> None:
        self.set(self.value + n)

    def set(self, value: int) -> None:
        self.value = value
        self._bytes[:8] = value.to_bytes(8, "little")

    def close(self) -> None:
        self._bytes.close()


def _row(decision: Decision) -> tuple[Any, ...]:
    values = []
    for name in COLUMNS:
        value = getattr(decision, name)
        if name in JSON_COLUMNS and value is not None:
            value = msgspec.json.encode(value).decode()
        values.append(value)
    return tuple(values)


def _decision(row: Sequence[Any]) -> Decision:
    values = dict(zip(COLUMNS, row, strict=True))
    for name in JSON_COLUMNS:
        if values[name] is not None:
            values[name] = msgspec.json.decode(values[name])
    return Decision(**values)
