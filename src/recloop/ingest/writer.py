"""Group commits of the event log, acknowledged once durable.

A commit: find duplicates, apply causal rules, insert, commit, `after_commit`, acknowledge.
One thread writes the log. It commits all requests that queued during the last fsync in one transaction (a group commit
without a timer), then hands the receipts to the event loop, which never waits for a disk.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import polars as pl

from recloop.config import Clean
from recloop.features.labels import EventLabeler
from recloop.records import EVENT_SCHEMA, RECEIVED_AT, RULE, SECOND, SEQ, TIMESTAMP, Event, Item, User
from recloop.storage import EventLog, Retraction
from recloop.storage.archive import Archive
from recloop.storage.event_log import Receipt, event_ids

LOGGER = logging.getLogger(__name__)
MAX_COMMIT_ROWS = 5_000  # rows of one commit at most
MAX_PENDING_ROWS = 100_000  # rows that wait at most


class LogBusyError(Exception):
    """More rows wait for the disk than there is room for: send them again later."""


class LogUnavailableError(Exception):
    """The log cannot be written; nothing of the request was kept."""


class LogUncertainError(Exception):
    """The log failed while it committed and cannot be read back: the rows of the request may be kept or not."""


@dataclass
class WriteRequest:
    """The rows of one request, and what became of them once it is settled."""

    done: asyncio.Future[WriteRequest]
    events: Sequence[Event] = ()
    items: Sequence[Item] = ()
    users: Sequence[User] = ()
    retractions: Sequence[Retraction] = ()
    receipts: list[Receipt] = field(default_factory=list)
    kept_items: list[Item] = field(default_factory=list)
    kept_users: list[User] = field(default_factory=list)
    kept_retractions: list[Retraction] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.events) + len(self.items) + len(self.users) + len(self.retractions)


class Writer:
    """The one thread that writes the log.

    Args:
        log: Opened for writing.
        archive: What was archived: its event_ids are known, its rows count for the causal rules.
        signal: Judges what is believed.
        after_commit: Called on the event loop after a commit, before its requests are acknowledged: with the jobs and
            the newest seq. The rows are kept by then, so an error of it is logged and the requests are acknowledged.
    """

    def __init__(
        self,
        log: EventLog,
        archive: Archive,
        signal: EventLabeler,
        burst_seconds: float,
        after_commit: Callable[[list[WriteRequest], int], None],
    ) -> None:
        self._log, self.archive, self._after_commit = log, archive, after_commit
        self._judge = signal, round(burst_seconds * SECOND)
        self._queue: queue.SimpleQueue[WriteRequest | None] = queue.SimpleQueue()
        self._waiting = 0  # rows; touched by the event loop's thread alone
        self.failing = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    async def write(
        self,
        events: Sequence[Event] = (),
        items: Sequence[Item] = (),
        users: Sequence[User] = (),
        retractions: Sequence[Retraction] = (),
    ) -> WriteRequest:
        """Keep these rows; back when they are durable and every later read knows them.

        Raises:
            LogBusyError: too many rows wait already.
            LogDownError: the disk refuses; nothing was kept.
            LogUncertainError: the disk failed while it committed; the rows may be kept.
        """
        job = WriteRequest(asyncio.get_running_loop().create_future(), events, items, users, retractions)
        if self._waiting + len(job) > MAX_PENDING_ROWS:
            raise LogBusyError
        self._waiting += len(job)
        self._queue.put(job)
        return await asyncio.shield(job.done)  # a client that hangs up takes nothing back

    def close(self) -> None:
        """Write what waits, end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        ending = False
        while not ending:
            first = self._queue.get()
            if first is None:
                return
            group, rows = [first], len(first)
            while rows < MAX_COMMIT_ROWS:
                try:
                    more = self._queue.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    ending = True
                    break
                group.append(more)
                rows += len(more)
            try:
                self._commit(group)
            except Exception as error:  # noqa: BLE001 - the thread lives on, and no request waits for ever
                LOGGER.error("the writer failed: %s", type(error).__name__)  # noqa: TRY400 - its text may name a user
                self._deliver(group, 0, LogUncertainError())

    def _commit(self, group: list[WriteRequest]) -> None:
        """Append and commit a group, and hand back what became of it: the answer says what the disk holds."""
        newest: int | None = None
        receipts: list[Receipt] = []
        try:
            with self._log.commit() as commit:
                receipts = self._append(group)
                newest = self._log.newest_in(commit)
        except Exception as error:  # noqa: BLE001 - whatever one request did must not end the thread
            kept = self._is_kept(newest)
            if not kept:
                self._not_kept(group, error, uncertain=kept is None)
                return
            LOGGER.error("the log failed after its commit: %s", type(error).__name__)  # noqa: TRY400 - its text may name a user
        self.failing = False
        place = 0
        for job in group:
            job.receipts = receipts[place : place + len(job.events)]
            place += len(job.events)
        self._deliver(group, newest or 0, None)

    def _append(self, group: list[WriteRequest]) -> list[Receipt]:
        """The rows of a group, numbered inside the open commit; the receipts of its events, in their order."""
        for job in group:
            job.kept_items = self._log.append_items(job.items) if job.items else []
            job.kept_users = self._log.append_users(job.users) if job.users else []
            job.kept_retractions = self._log.append_retractions(job.retractions) if job.retractions else []
        events = [event for job in group for event in job.events]
        return self._append_events(events) if events else []

    def _append_events(self, events: list[Event]) -> list[Receipt]:
        """Find duplicates, apply the causal rules to the new events, insert these; inside the open commit."""
        ids = event_ids(events)
        arrivals = self._log.find_duplicates(events, self.archive.known(ids) if ids else {})
        if not arrivals.new:
            return arrivals.receipts([])
        rules = self.causal_rules(arrivals.new)
        ruled = [msgspec.structs.replace(event, rule=rule) for event, rule in zip(arrivals.new, rules, strict=True)]
        return arrivals.receipts(self._log.insert_events(ruled))

    def _is_kept(self, newest: int | None) -> bool | None:
        """Whether a commit that raised is on the disk; None: the log cannot be read.

        Args:
            newest: The last number that it gave; None: it failed before all rows were appended.
        """
        if newest is None:
            return False
        try:
            return self._log.last_seq() >= newest
        except sqlite3.Error:
            return None

    def _not_kept(self, group: list[WriteRequest], error: Exception, uncertain: bool) -> None:
        """Nothing of this group is on the disk, or nobody can say: one request alone is told, of several each is tried."""
        if uncertain or isinstance(error, sqlite3.Error):
            self.failing = True
            self._deliver(group, 0, LogUncertainError() if uncertain else LogUnavailableError())
        elif len(group) > 1:
            for job in group:
                self._commit([job])
        else:
            self._deliver(group, 0, error)

    def _deliver(self, group: list[WriteRequest], seq: int, error: Exception | None) -> None:
        """Tell the requests of a group, on their event loop, what became of them."""

        def on_loop() -> None:
            try:
                self._waiting -= sum(map(len, group))
                if error is None:
                    self._after_commit(group, seq)
            except Exception as failed:  # noqa: BLE001 - the rows are kept, whatever comes after
                LOGGER.error("after a commit: %s", type(failed).__name__)  # noqa: TRY400 - its text may name a user
            finally:
                _acknowledge(group, error)

        loop = group[0].done.get_loop()
        try:
            loop.call_soon_threadsafe(on_loop)
        except RuntimeError:
            if not loop.is_closed():
                raise
            LOGGER.warning("%d requests ended before they were answered", len(group))

    def set_labeler(self, signal: EventLabeler, burst_seconds: float) -> None:
        """Another bundle is live: from the next commit on its rules decide what is believed."""
        self._judge = signal, round(burst_seconds * SECOND)

    def causal_rules(self, events: Sequence[Event]) -> list[str | None]:
        """The causal rule that takes each new event, given all its user's rows of smaller seq."""
        signal, width = self._judge
        frame = frame_of(events)
        users = frame["user_id"].unique().to_list()
        stamps = frame.filter(~signal.wrong_clock(frame))[TIMESTAMP].to_list() or [frame[RECEIVED_AT][0]]
        after, until = min(stamps) - width, max(stamps)  # a stamp of the year 5 asks for no row of the archive
        earlier = [self.archive.between(users, after, until), self._log.recent(users, after)]
        known = pl.concat(earlier).unique(SEQ).sort(SEQ)  # what an update archived stands in the log as well
        rules: list[str | None] = signal.causal_rule(frame, known).to_list()
        return rules


def _acknowledge(group: Sequence[WriteRequest], error: Exception | None) -> None:
    """End the wait of each request that still waits."""
    for job in group:
        if job.done.done():
            continue
        if error is None:
            job.done.set_result(job)
        else:
            job.done.set_exception(error)


def frame_of(events: Sequence[Event]) -> pl.DataFrame:
    """Events as columns: EVENT_SCHEMA and rule."""
    schema = {**EVENT_SCHEMA, RULE: pl.String}
    return pl.DataFrame([[getattr(event, name) for name in schema] for event in events], schema=schema, orient="row")


def burst_seconds(clean: Clean) -> float:
    """Seconds of earlier rows that the causal rules look at."""
    return 0.0 if clean.burst == "off" else clean.burst.seconds
