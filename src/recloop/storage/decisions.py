"""Decision log: a buffered store of responses that counts every lost row.

A request never waits for the disk. It adds a row to a buffer, and the writer thread commits every 200 ms or 1,000 rows
(``synchronous=NORMAL``). A row is dropped and counted if the buffer is full, and skipped and counted if its key exists.
Counters in a file survive killed processes, so the next process knows how many rows were lost (`recloop.storage.accepted_count`).
The writer thread also counts the committed answers by period (`recloop.storage.decision_counts`).
"""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import polars as pl

from recloop.records import Decision
from recloop.storage import accepted_count, decision_counts, decision_periods
from recloop.storage.accepted_count import AcceptedCounter
from recloop.storage.decision_counts import AnswerCounter
from recloop.storage.decision_periods import Group, GroupCounts, Key, Window, WindowReader
from recloop.storage.decision_rows import INSERT, SELECT, decision_of, in_time, row_of
from recloop.storage.decision_schema import COLUMNS, FORGOTTEN, MIGRATIONS, PRAGMAS, SCHEMA, SCRIPT, VIEWS
from recloop.storage.sqlite import ReaderPool, Store, close_writer, insert_rows, open_writer, release_space, transaction

COMMIT_SECONDS = 0.2
COUNT_SECONDS = 5.0
"""Longest time from a commit until its answers are counted."""
WRITER_NICE = 5
"""Nice value of the writer thread: a request runs first, and the writer still gets a quarter of a busy core."""
MAX_BATCH_ROWS = 1_000
MAX_BUFFERED_ROWS = 50_000  # most rows in the buffer
LISTS = {"items", "sources"}
INTEGERS = {"served_at", "as_of_seq", "generation", "n", "positives", "latency_us"}
MAX_FRAME_ROWS = 50_000
SHADOWED = "role = 'shadow' AND role <> 'answer'"
"""Condition of shadow rows; the second part lets SQLite use the partial index."""


class DecisionLog(Store):
    """Store decisions.db; see `recloop.storage.open_decisions`.

    Attributes:
        dropped: Rows dropped by a full buffer since this process opened the store.
        lost: Rows lost when earlier processes or workers ended, in total.
        repeated: Rows skipped because their key existed, since this process opened the store.
        failing: True if the last commit failed; its rows are committed again.
        forgotten: Forgotten users and the seq of their erasure; decisions made before it are not written.
    """

    def __init__(self, file: Path, write: bool) -> None:
        self.file = file
        self.dropped = self.lost = self.repeated = 0
        self.failing = False
        self.forgotten: dict[str, int] = {}
        self._buffer: list[Decision] = []
        self._wake = threading.Condition()
        self._urgent = self._closing = False
        self._is_counted = True
        self._thread: threading.Thread | None = None
        if write:
            writer = open_writer(file, SCHEMA, SCRIPT, PRAGMAS, MIGRATIONS)
            self._count_lost(writer)
            self._accepted = AcceptedCounter(accepted_count.accepted_file(file))
            counter = AnswerCounter(writer)
            counter.count_all()  # answers that a crash or a migration left uncounted
            self._thread = threading.Thread(target=self._run, args=(writer, counter), name="decisions", daemon=True)
        self._readers = ReaderPool(file, SCHEMA, SCRIPT, VIEWS)
        if self._thread is not None:
            self._thread.start()
        else:
            self.lost = int(self._readers.get().execute("SELECT lost FROM counts").fetchone()[0])

    @property
    def is_writer(self) -> bool:
        """True if this process writes the decisions."""
        return self._thread is not None

    def put(self, decision: Decision) -> bool:
        """Add a row to the buffer without waiting; False if the full buffer dropped it.

        A row whose (request_id, role, bundle) exists is skipped by the writer and counted as ``repeated``.
        """
        return self.put_many((decision,)) == 1

    def put_many(self, decisions: Sequence[Decision], of_worker: bool = False) -> int:
        """Add rows to the buffer; return how many fit.

        Args:
            of_worker: A worker accepted and counted them.
        """
        with self._wake:
            if not of_worker:
                self._accepted.add(len(decisions))
            return self._add(decisions)

    def _add(self, decisions: Sequence[Decision]) -> int:
        """Add accepted rows, under the lock."""
        free = max(0, MAX_BUFFERED_ROWS - len(self._buffer))
        kept = decisions if len(decisions) <= free else decisions[:free]
        self.dropped += len(decisions) - len(kept)
        if kept:
            was_empty = not self._buffer
            self._buffer += kept
            self._is_counted = False
            if was_empty or len(self._buffer) >= MAX_BATCH_ROWS:
                self._wake.notify_all()
        return len(kept)

    def end_worker(self, slot: int, n_received: int) -> int:
        """Count the decisions of a worker that ended, and return how many were lost.

        Args:
            slot: Slot of the worker in the file of accepted decisions.
            n_received: Decisions of it that `put_many` got.
        """
        with self._wake:
            n_lost = self._accepted.take_over(slot) - n_received
            if n_lost > 0:
                self.lost += n_lost
                self._is_counted, self._urgent = False, True  # a reader of the store knows it at once
                self._wake.notify_all()
        return max(0, n_lost)

    @property
    def full(self) -> bool:
        """True if the next row would be dropped."""
        return len(self._buffer) >= MAX_BUFFERED_ROWS

    def flush(self, seconds: float = 10.0) -> bool:
        """Wait until the buffer is committed and counted; False after a timeout."""
        with self._wake:
            if self._is_counted:
                return True
            self._urgent = True
            self._wake.notify_all()
            return self._wake.wait_for(lambda: self._is_counted, seconds)

    def close(self) -> None:
        """Commit the buffer and stop the writer thread."""
        if self._thread is not None:
            with self._wake:
                self._closing = True
                self._wake.notify_all()
            self._thread.join(10.0)
            self._thread = None
            self._accepted.close()
        self._readers.close()

    def rows(self, last: int | None = None, since: int | None = None, until: int | None = None) -> list[Decision]:
        """Last rows with ``since`` <= served_at < ``until``, in insertion order."""
        where, bounds = in_time(since, until)
        where = f"role <> '{FORGOTTEN}' AND {where}"
        limit = "" if last is None else f"LIMIT {int(last)}"
        stored_rows = self._readers.get().execute(f"{SELECT} WHERE {where} ORDER BY id DESC {limit}", bounds)
        return [decision_of(row) for row in stored_rows][::-1]

    def of_user(self, user_id: str) -> Iterator[Decision]:
        """Rows of all roles of a user or anonymous id, in insertion order."""
        statement = f"{SELECT} WHERE user_id = ? OR anonymous_id = ? ORDER BY id"
        for row in self._readers.get().execute(statement, (user_id, user_id)):
            yield decision_of(row)

    def count_forgotten(self, last: int) -> int:
        """Count emptied decisions of forgotten users among the last rows."""
        newest = "SELECT role FROM decisions ORDER BY id DESC LIMIT ?"
        statement = f"SELECT count(*) FROM ({newest}) WHERE role = '{FORGOTTEN}'"
        return int(self._readers.get().execute(statement, (last,)).fetchone()[0])

    def answered(self, request_ids: Sequence[str], role: str = "answer") -> Iterator[Decision]:
        """Stored responses to these requests, or their rows of another role."""
        for start in range(0, len(request_ids), MAX_BATCH_ROWS):
            batch = request_ids[start : start + MAX_BATCH_ROWS]
            statement = f"""{SELECT} WHERE request_id IN ({", ".join("?" * len(batch))}) AND role = ? ORDER BY id"""
            for row in self._readers.get().execute(statement, (*batch, role)):
                yield decision_of(row)

    def answers(self, columns: Sequence[str], since: int | None = None, until: int | None = None) -> pl.DataFrame:
        """Columns of the responses of a time, in insertion order.

        Rows have ``since`` <= served_at < ``until``; ``items`` and ``sources`` are lists of texts.
        """
        where, bounds = in_time(since, until)
        statement = f"SELECT {', '.join(columns)} FROM decisions WHERE role = 'answer' AND {where} ORDER BY id"
        schema = {name: pl.Int64 if name in INTEGERS else pl.String for name in columns}
        frames = [pl.DataFrame(schema=schema)]
        rows = self._readers.get().execute(statement, bounds)
        while batch := rows.fetchmany(MAX_FRAME_ROWS):
            frames.append(pl.DataFrame(batch, schema=schema, orient="row"))
        lists = [pl.col(name).str.json_decode(pl.List(pl.String)) for name in columns if name in LISTS]
        return pl.concat(frames).with_columns(lists)

    def shadowed(self, bundle: str, last: int, since: int | None = None, until: int | None = None) -> list[Decision]:
        """Last shadow lists of a bundle whose request was answered, in insertion order.

        Args:
            bundle: Empty for the bundle that was shadowed last.
            since, until: ``since`` <= served_at < ``until``.
        """
        where, bounds = in_time(since, until)
        answered = """EXISTS (SELECT 1 FROM decisions AS answer
            WHERE answer.request_id = shadow.request_id AND answer.role = 'answer')"""
        scored = f"FROM decisions AS shadow WHERE {SHADOWED} AND {where} AND {answered}"
        connection = self._readers.get()
        if not bundle:
            newest = connection.execute(f"SELECT bundle {scored} ORDER BY id DESC LIMIT 1", bounds).fetchone()
            if newest is None:
                return []
            (bundle,) = newest
        statement = f"SELECT {', '.join(COLUMNS)} {scored} AND bundle = ? ORDER BY id DESC LIMIT ?"
        return [decision_of(row) for row in connection.execute(statement, (*bounds, bundle, last))][::-1]

    def traffic(self, window_us: int) -> tuple[int, int, int]:
        """Count, first and last time of responses in ``window_us`` up to the newest.

        The window begins at a whole hour.
        """
        connection = self._readers.get()
        last = self.newest_answered_at()
        if last is None:
            return 0, 0, 0
        start = last - window_us
        count = decision_periods.answers_since(connection, start)
        first = connection.execute("SELECT min(served_at) FROM decisions WHERE served_at > ?", (start,)).fetchone()[0]
        return count, int(first), last

    def newest_seq(self, generation: int = 0) -> int:
        """Largest ``as_of_seq`` of the last `MAX_BATCH_ROWS` rows; 0 without rows.

        Args:
            generation: Rows of earlier generations do not count.
        """
        statement = f"""SELECT max(as_of_seq) FROM (SELECT as_of_seq, generation FROM decisions
            ORDER BY id DESC LIMIT {MAX_BATCH_ROWS}) WHERE generation >= ?"""
        return int(self._readers.get().execute(statement, (generation,)).fetchone()[0] or 0)

    def shadow_requests(self, bundle: str) -> int:
        """Count the requests that a bundle has scored in shadow."""
        statement = f"SELECT count(*) FROM decisions WHERE {SHADOWED} AND bundle = ?"
        return int(self._readers.get().execute(statement, (bundle,)).fetchone()[0])

    def replica_mismatches(self, bundle: str) -> int:
        """Count requests scored by ``bundle`` in shadow that live did not reproduce."""
        statement = """SELECT count(*) FROM decisions AS shadow
            JOIN decisions AS answer ON answer.request_id = shadow.request_id AND answer.role = 'answer'
            JOIN decisions AS replica ON replica.request_id = shadow.request_id AND replica.role = 'replica'
                AND replica.bundle = answer.bundle
            WHERE shadow.role = 'shadow' AND shadow.role <> 'answer' AND shadow.bundle = ?
                AND (replica.items, replica.scores) <> (answer.items, answer.scores)"""
        return int(self._readers.get().execute(statement, (bundle,)).fetchone()[0])

    def totals(self) -> dict[Group, int]:
        """Responses of all time by (variant, placement)."""
        rows = self._readers.get().execute(
            """SELECT variant, placement, sum(answers) FROM (
                SELECT variant, placement, answers FROM totals
                UNION ALL SELECT variant, placement, count(*) FROM decisions
                WHERE id > (SELECT decision_id FROM counted) AND role = 'answer' GROUP BY variant, placement)
            GROUP BY variant, placement"""
        )
        return {(variant, placement): int(answers) for variant, placement, answers in rows}

    def window(self, reader: WindowReader, end: int) -> Mapping[Group, GroupCounts]:
        """Counts of the answers in a window; see `WindowReader.read`."""
        return reader.read(self._readers.get(), end)

    def item_ids(self, after: int = 0) -> list[tuple[int, str]]:
        """Codes after ``after`` of the items that `window` counts, with their ids."""
        statement = "SELECT code, item_id FROM item_codes WHERE code > ? ORDER BY code"
        return self._readers.get().execute(statement, (after,)).fetchall()

    def events_counted_to(self) -> int:
        """Seq of the log up to which received events are counted."""
        return int(self._readers.get().execute("SELECT event_seq FROM counted").fetchone()[0])

    def received(self, window: Window, end: int) -> dict[Group, int]:
        """Events received in a window, by variant and placement of the answer they name."""
        return decision_periods.read_events(self._readers.get(), window, end)

    def add_events(self, received: Mapping[Key, int], after: int, until: int) -> None:
        """Count received events; see `decision_counts.add_events`."""
        writer = open_writer(self.file, SCHEMA, SCRIPT, PRAGMAS, MIGRATIONS)
        try:
            decision_counts.add_events(writer, received, after, until)
        finally:
            writer.close()

    def groups(self, request_ids: Iterable[str]) -> dict[str, Group]:
        """Variant and placement of the response to each request, if it was answered."""
        text = msgspec.json.encode(list(request_ids)).decode()
        rows = self._readers.get().execute(
            """SELECT request_id, variant, placement FROM json_each(?) CROSS JOIN decisions ON request_id = value
            WHERE role = 'answer'""",
            (text,),
        )
        return {request_id: (variant, placement) for request_id, variant, placement in rows}

    def newest_answered_at(self) -> int | None:
        """Newest ``served_at`` of a response; None without responses."""
        statement = "SELECT served_at FROM decisions WHERE role = 'answer' ORDER BY served_at DESC LIMIT 1"
        row = self._readers.get().execute(statement).fetchone()
        return None if row is None else int(row[0])

    def newest_served_at(self) -> int | None:
        """Newest ``served_at`` of a row; None without rows."""
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
        """Count decisions that earlier processes accepted but did not write as lost."""
        file = accepted_count.accepted_file(self.file)
        settled, lost = writer.execute("SELECT settled, lost FROM counts").fetchone()
        missing = max(0, accepted_count.total(file) - settled)
        self.lost = lost + missing
        settled += missing
        writer.execute("UPDATE counts SET settled = ?, lost = ?", (settled, self.lost))
        accepted_count.restart(file, settled)  # a crash of the machine may have lost the file's page

    def _run(self, writer: sqlite3.Connection, counter: AnswerCounter) -> None:
        if sys.platform == "linux":  # threads have priorities of their own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + WRITER_NICE)
        stored_drops = 0  # part of `dropped` that is in the store
        stored_lost = self.lost
        last_count = time.monotonic()
        while True:
            with self._wake:
                has_work = self._wake.wait_for(
                    lambda: self._buffer or self._closing or self._urgent, None if self._is_counted else COUNT_SECONDS
                )
                if has_work and not self._urgent:
                    self._wake.wait_for(
                        lambda: len(self._buffer) >= MAX_BATCH_ROWS or self._closing or self._urgent, COMMIT_SECONDS
                    )
                batch = self._buffer[:MAX_BATCH_ROWS]
                dropped = self.dropped
                lost = self.lost
                is_closing = self._closing
                is_last = (self._urgent or is_closing) and len(batch) == len(self._buffer)
            try:
                self._write(writer, batch, dropped - stored_drops, lost - stored_lost)
                stored_drops = dropped
                stored_lost = lost
                with self._wake:
                    del self._buffer[: len(batch)]
                self.failing = False
                if is_last or time.monotonic() - last_count >= COUNT_SECONDS:
                    counter.count_all()
                    last_count = time.monotonic()
                    with self._wake:
                        self._is_counted = not self._buffer
            except (sqlite3.Error, msgspec.MsgspecError):
                self.failing = True
            with self._wake:
                if self._is_counted or self.failing:
                    self._urgent = False
                self._wake.notify_all()
                if is_closing and (self.failing or not self._buffer):
                    close_writer(writer)
                    return
                if self.failing:
                    self._wake.wait(COMMIT_SECONDS)  # pause before the retry on a full disk

    def _write(self, writer: sqlite3.Connection, batch: Sequence[Decision], dropped: int, lost: int) -> None:
        """Commit rows, and the numbers of rows dropped and lost since the last commit."""
        if not batch and not dropped and not lost:
            return
        with transaction(writer):
            kept = [decision for decision in batch if decision.as_of_seq >= self.forgotten.get(decision.user_id, 0)]
            inserted = insert_rows(writer, INSERT, [row_of(decision) for decision in kept])
            repeated = len(kept) - inserted
            writer.execute(
                """UPDATE counts SET settled = settled + ?, dropped = dropped + ?, lost = lost + ?,
                repeated = repeated + ?""",
                (len(batch) + dropped + lost, dropped, lost, repeated),
            )
        self.repeated += repeated


def remove_before(file: Path, stamp: int) -> int:
    """Delete decisions before a timestamp, free disk space and return their number.

    Any process may call this: transactions are short, and a running service waits for them. `DecisionLog.totals` still
    counts the removed decisions.
    """
    writer = open_writer(file, SCHEMA, SCRIPT, PRAGMAS, MIGRATIONS)
    removed = 0
    try:
        AnswerCounter(writer).count_all()
        while True:
            with transaction(writer):
                deleted = writer.execute(
                    """DELETE FROM decisions WHERE id IN (SELECT id FROM decisions WHERE served_at < ?
                    AND id <= (SELECT decision_id FROM counted) LIMIT ?)""",
                    (stamp, MAX_BATCH_ROWS),
                ).rowcount
            removed += deleted
            if deleted < MAX_BATCH_ROWS:
                break
        decision_counts.forget_users(writer)
        release_space(writer)
    finally:
        writer.close()
    return removed
