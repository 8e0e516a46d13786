"""Group commits of the event log, acknowledged once durable.

A commit: identify, find duplicates, apply causal rules, insert, commit, label, `after_commit`, acknowledge.
One thread writes the log. It commits all requests that queued during the last fsync in one transaction (a group commit
without a timer). Then it passes the receipts to the event loop, which does not wait for the disk.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import polars as pl

from recloop.config import Limits
from recloop.features.labels import EventLabeler
from recloop.ingest.arrival_rules import ArrivalRules
from recloop.records import RULE, Event, Item, User
from recloop.storage import EventLog, Retraction
from recloop.storage.archive import Archive
from recloop.storage.database import STORE_ERRORS
from recloop.storage.erasure import forget_in_log
from recloop.storage.event_rows import EventColumns, Receipt, event_ids
from recloop.storage.identify import identify
from recloop.storage.identities import Identified, Identity

NO_EVENTS = EventColumns.of_rows([])
LOGGER = logging.getLogger(__name__)
MAX_COMMIT_ROWS = 5_000  # most rows per commit


class LogBusyError(Exception):
    """More rows than this number are queued; the client sends the request again later."""

    def __init__(self, max_rows: int) -> None:
        super().__init__(max_rows)
        self.max_rows = max_rows


class LogUnavailableError(Exception):
    """The log cannot be written; no row of the request was stored."""


class LogFullError(Exception):
    """Too little of the disk is free; no row of the request was stored."""

    def __init__(self, min_share: float) -> None:
        super().__init__(min_share)
        self.min_share = min_share


class LogUncertainError(Exception):
    """The log failed during a commit and the next one; the rows may be stored."""


@dataclass
class WriteRequest:
    """Rows of one request, and the stored rows and receipts after its commit."""

    done: asyncio.Future[WriteRequest]
    events: Sequence[Event] = ()
    items: Sequence[Item] = ()
    users: Sequence[User] = ()
    retractions: Sequence[Retraction] = ()
    forgotten: Sequence[str] = ()
    identities: Sequence[Identity] = ()
    receipts: list[Receipt] = field(default_factory=list)
    kept_items: list[Item] = field(default_factory=list)
    kept_users: list[User] = field(default_factory=list)
    kept_retractions: list[Retraction] = field(default_factory=list)
    identified: list[Identified] = field(default_factory=list)
    erasure_seq: int = 0

    def __len__(self) -> int:
        rows = (self.events, self.items, self.users, self.retractions, self.forgotten, self.identities)
        return sum(map(len, rows))

    @property
    def kept_identities(self) -> list[Identity]:
        """Stored identities with their seqs."""
        return [
            msgspec.structs.replace(identity, seq=result.seq)
            for identity, result in zip(self.identities, self.identified, strict=True)
            if result.status == "accepted"
        ]


class NewEvents(NamedTuple):
    """Receipts of a commit's events, and its valid new rows; None without events."""

    receipts: list[Receipt]
    valid: EventColumns | None


AfterCommit = Callable[[list[WriteRequest], int, object], None]
Label = Callable[[EventColumns], object]


class Writer:
    """The only thread that writes the log.

    Args:
        log: Opened for writing.
        archive: Archived rows; their event_ids are duplicates, and the causal rules read them.
        signal: Labeler with the causal rules that decide which events are valid.
        after_commit: Called on the event loop after a commit, before its requests are acknowledged, with the requests,
            the newest seq and the result of ``label``. The rows are durable by then, so its errors are only logged.
        label: Called on this thread after a commit that got events, with its valid new ones by seq.
            `after_commit` gets its result; None without events, or if it failed, which is logged.
        max_pending_rows: Rows that may be queued; further requests are refused.
    """

    def __init__(
        self,
        log: EventLog,
        archive: Archive,
        signal: EventLabeler,
        after_commit: AfterCommit,
        label: Label = lambda _: None,
        max_pending_rows: int = Limits().queued_rows,
    ) -> None:
        self.max_pending_rows = max_pending_rows
        self._log = log
        self.archive = archive
        self._after_commit = after_commit
        self._label = label
        self._rules = ArrivalRules(signal, log)
        self._queue: queue.SimpleQueue[WriteRequest | None] = queue.SimpleQueue()
        self._waiting = 0  # queued rows; used on the event loop only
        self._pending: list[WriteRequest] = []  # used on the event loop only
        self._next: WriteRequest | None = None  # taken from the queue and not committed yet
        self.failing = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    async def write(
        self,
        events: Sequence[Event] = (),
        items: Sequence[Item] = (),
        users: Sequence[User] = (),
        retractions: Sequence[Retraction] = (),
        forgotten: Sequence[str] = (),
        identities: Sequence[Identity] = (),
    ) -> WriteRequest:
        """Store rows; return when they are durable and later reads include them.

        Args:
            forgotten: Users whose earlier rows are deleted, in a commit of its own.
            identities: Anonymous ids and their users; see `recloop.storage.identify`.

        Raises:
            LogBusyError: too many rows are queued.
            LogUnavailableError: the disk cannot be written; no row was stored.
            LogUncertainError: the disk failed during the commit; the rows may be stored.
        """
        done: asyncio.Future[WriteRequest] = asyncio.get_running_loop().create_future()
        job = WriteRequest(done, events, items, users, retractions, forgotten, identities)
        if self._waiting + len(job) > self.max_pending_rows:
            raise LogBusyError(self.max_pending_rows)
        self._waiting += len(job)
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._queue_pending)
        self._pending.append(job)
        return await job.done  # a client that disconnects cancels the future, not the commit

    def _queue_pending(self) -> None:
        """Queue the requests of one turn of the event loop, so that one commit has all."""
        for request in self._pending:
            self._queue.put(request)
        self._pending.clear()

    def close(self) -> None:
        """Write the queued rows and stop the thread."""
        self._queue_pending()
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        ending = False
        while not ending:
            request = self._queue.get() if self._next is None else self._next
            self._next = None
            if request is None:
                return
            group = [request]
            ending = self._gather(group)
            try:
                self._commit(group)
            except Exception as error:  # noqa: BLE001 - the thread lives on, and no request waits for ever
                LOGGER.error("the writer failed: %s", type(error).__name__)  # noqa: TRY400 - its text may name a user
                self._deliver(group, 0, LogUncertainError())

    def _gather(self, group: list[WriteRequest]) -> bool:
        """Add the queued requests to a group; True if the thread ends after it.

        An erasure is a group of its own, so that rows before it are deleted and rows after it are kept.
        """
        rows = len(group[0])
        while rows < MAX_COMMIT_ROWS and not group[0].forgotten:
            try:
                request = self._queue.get_nowait()
            except queue.Empty:
                break
            if request is None:
                return True
            if request.forgotten:
                self._next = request
                break
            group.append(request)
            rows += len(request)
        return False

    def _commit(self, group: list[WriteRequest]) -> None:
        """Append and commit a group, and deliver its result.

        After a failed commit, the result says whether the rows are on disk.
        """
        newest: int | None = None
        new = NewEvents([], None)
        try:
            with self._log.commit() as commit:
                new = self._append(group)
                newest = self._log.newest_in(commit)
        except Exception as error:  # noqa: BLE001 - whatever one request did must not end the thread
            self._rules.forget()
            is_stored = self._is_kept(newest, error)
            if not is_stored:
                self._not_kept(group, error, uncertain=is_stored is None)
                return
            LOGGER.error("the log failed after its commit: %s", type(error).__name__)  # noqa: TRY400 - its text may name a user
        self.failing = False
        offset = 0
        for job in group:
            job.receipts = new.receipts[offset : offset + len(job.events)]
            offset += len(job.events)
        self._deliver(group, newest or 0, None, self._labelled(new.valid))

    def _labelled(self, valid_rows: EventColumns | None) -> object:
        """Result of ``label`` for the valid new events; None if it failed."""
        if valid_rows is None:
            return None
        try:
            return self._label(valid_rows)
        except Exception as error:  # noqa: BLE001 - the rows are durable, so the requests are acknowledged
            LOGGER.error("label failed: %s", type(error).__name__)  # noqa: TRY400 - its text may name a user
            return None

    def _append(self, group: list[WriteRequest]) -> NewEvents:
        """Number and insert a group's rows in the open commit."""
        for job in group:
            if job.forgotten:
                job.erasure_seq, _ = forget_in_log(self._log, job.forgotten)
                self._rules.forget()
            job.kept_items = self._log.append_items(job.items) if job.items else []
            job.kept_users = self._log.append_users(job.users) if job.users else []
            job.kept_retractions = self._log.append_retractions(job.retractions) if job.retractions else []
        moved = [frame for job in group for frame in self._identify(job)]
        events = [event for job in group for event in job.events]
        new = self._append_events(events) if events else NewEvents([], None)
        if not moved:
            return new
        self._rules.forget()
        if new.valid is not None:
            moved.append(new.valid.frame)
        return new._replace(valid=EventColumns.of_frame(pl.concat(moved)))

    def _identify(self, job: WriteRequest) -> list[pl.DataFrame]:
        """Store the identities of a request; return the valid rows that they move."""
        results = [identify(self._log, self.archive, identity) for identity in job.identities]
        job.identified = [result for result, _ in results]
        return [rows.filter(pl.col(RULE).is_null()).drop(RULE) for _, rows in results if len(rows)]

    def _append_events(self, events: list[Event]) -> NewEvents:
        """Find duplicates, apply the causal rules and insert events in the open commit."""
        ids = event_ids(events)
        arrivals = self._log.find_duplicates(events, self.archive.known(ids) if ids else {})
        if not arrivals.rows:
            return NewEvents(arrivals.receipts([]), NO_EVENTS)
        rows = EventColumns.of_rows(arrivals.rows)
        rules = self.causal_rules(rows)
        receipts = arrivals.receipts(self._log.insert_events(arrivals.rows, rules))
        return NewEvents(receipts, rows.valid(rules))

    def _is_kept(self, newest: int | None, error: Exception) -> bool | None:
        """Return whether a failed commit is on disk; None if that is uncertain.

        A failed sync leaves the rows in SQLite's write-ahead log, where a restart would find them. The next commit
        overwrites them, so this one skips their seqs. A database server may complete a commit whose session was lost.

        Args:
            newest: Last seq that it assigned; None if it failed before all rows were appended.
        """
        if newest is None:
            return False
        try:
            if self._log.last_seq() >= newest:
                return True
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_FULL:  # a full disk has no end of the commit
                return self._log.continue_after(newest) >= newest
        except STORE_ERRORS:
            return None
        return False

    def _not_kept(self, group: list[WriteRequest], error: Exception, uncertain: bool) -> None:
        """Fail the requests of a group after a disk error; otherwise retry each alone.

        A request that fails alone gets its error.

        Args:
            uncertain: True if the rows may be stored.
        """
        if uncertain or isinstance(error, STORE_ERRORS):
            self.failing = True
            self._deliver(group, 0, LogUncertainError() if uncertain else LogUnavailableError())
        elif len(group) > 1:
            for job in group:
                self._commit([job])
        else:
            self._deliver(group, 0, error)

    def _deliver(self, group: list[WriteRequest], seq: int, error: Exception | None, labelled: object = None) -> None:
        """Deliver the result to the requests of a group, on their event loop."""

        def on_loop() -> None:
            try:
                self._waiting -= sum(map(len, group))
                if error is None:
                    self._after_commit(group, seq, labelled)
            except Exception as failed:  # noqa: BLE001 - the rows are durable, so the requests are acknowledged
                LOGGER.error("after_commit failed: %s", type(failed).__name__)  # noqa: TRY400 - its text may name a user
            finally:
                _acknowledge(group, error)

        loop = group[0].done.get_loop()
        try:
            loop.call_soon_threadsafe(on_loop)
        except RuntimeError:
            if not loop.is_closed():
                raise
            LOGGER.warning("%d requests were cancelled before their acknowledgement", len(group))

    def set_labeler(self, signal: EventLabeler) -> None:
        """Use the causal rules of a new live bundle from the next commit on."""
        self._rules = ArrivalRules(signal, self._log)

    def causal_rules(self, rows: EventColumns) -> list[str | None]:
        """Return the causal rule that quarantines each new event; None for a valid one.

        The rules read all rows of its user with a smaller seq.
        """
        return self._rules.judge(rows, self.archive)


def kept_items(requests: Sequence[WriteRequest]) -> list[Item]:
    """Return the stored item versions of these requests, by seq."""
    return sorted((item for request in requests for item in request.kept_items), key=lambda item: item.seq)


def _acknowledge(group: Sequence[WriteRequest], error: Exception | None) -> None:
    """Resolve the future of each request that still waits."""
    for job in group:
        if job.done.done():
            continue
        if error is None:
            job.done.set_result(job)
        else:
            job.done.set_exception(error)
