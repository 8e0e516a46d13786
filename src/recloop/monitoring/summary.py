"""Health summary of a project for status, `/metrics`, the report and the console.

HealthCache(project).get(bundle, now).windows["day"]["live"]["home"]["entropy"]
curl http://127.0.0.1:8088/metrics         # recloop_entropy{window="day",variant="live",placement="home"} 0.83

The service reads the counts that the decision log keeps by period, so the cost does not grow with the traffic. A report of
any period reads the responses of that period (`summarize`). Both use `recloop.monitoring.health.health_numbers`.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import polars as pl

from recloop.bundle import Bundle
from recloop.monitoring import last_update
from recloop.monitoring.health import COLUMNS, Exposures, HealthReference, exposure_health, reference, stored_health
from recloop.monitoring.last_update import LastUpdate
from recloop.monitoring.verify import last_result
from recloop.project import Project
from recloop.recommend.catalog import Catalog
from recloop.records import DAY, ITEM_ID, RECEIVED_AT, SEQ
from recloop.storage import DecisionLog, EventLog
from recloop.storage.decision_periods import WINDOWS, Group, WindowReader, period_of

LOGGER = logging.getLogger(__name__)

CACHE_SECONDS: Final = 10.0
"""Seconds for which a summary is cached, so that a scrape and a page share it."""
FLUSH_SECONDS: Final = 1.0
"""Longest wait for the answers that are being written."""
MAX_COUNTED_EVENTS: Final = 10_000
"""Events of one transaction."""
WEEK: Final = 7 * DAY
HOUR: Final = DAY // 24

Windows = dict[str, dict[str, dict[str, dict[str, Any]]]]


@dataclass(frozen=True)
class HealthSummary:
    """Health of the last hour, day and week.

    Attributes:
        windows: Numbers by window, variant and placement, as ``health`` of ``GET /v1/status``.
        totals: Responses of all time by variant and placement.
        received: Valid events received, by window, with or without a request id.
        proven: ``at``, ``checked``, ``unexplained`` of the last `recloop verify`; None if it never ran.
        updated: The last `recloop update`; None if none has finished.
    """

    windows: Windows
    totals: dict[Group, int]
    received: dict[str, int]
    proven: dict[str, int] | None
    updated: LastUpdate | None


@dataclass(frozen=True)
class PeriodSummary:
    """Health ``numbers`` of `health.health` for any period, and their sources.

    Attributes:
        first, last: Time of the first and last response, int64 microseconds; None without responses.
        proven: See `HealthSummary`.
    """

    numbers: dict[str, Any]
    first: int | None
    last: int | None
    bundle: Bundle
    catalogue: Catalog
    proven: dict[str, int] | None

    @property
    def windows(self) -> Windows:
        """Numbers by window, variant and placement."""
        return {name: self.numbers[name] for name in WINDOWS}


def summarize(
    project: Project,
    since: int | None = None,
    until: int | None = None,
    learned: pl.DataFrame | None = None,
) -> PeriodSummary:
    """Read the logged responses of a period and compute their health.

    Args:
        since, until: Responses with ``since`` <= at <= ``until`` count; windows end at ``until`` or the newest response.
        learned: Labelled rows for the reference window; without them novelty and tail ratio are unknown.

    Raises:
        UserError: no bundle is live yet.
        BundleError: the live bundle's files differ from the registered ones.
    """
    bundle = project.load_bundle()
    with project.open_log() as log, project.open_decisions() as store:
        posted = log.items()
        answers = store.answers([*COLUMNS, "request_id"], since, None if until is None else until + 1)
        first, last = answers.select(pl.min("served_at"), pl.max("served_at").alias("last")).row(0)
        end = until if until is not None else last or 0
        received = log.received(end - WEEK - HOUR if since is None else min(since, end - WEEK - HOUR), end)
    if until is not None:
        posted = posted.filter(pl.col(RECEIVED_AT) <= until)
    catalogue = Catalog.from_frames([project.open_archive().items(), posted])
    hidden = [raw for raw in posted[ITEM_ID] if (item := catalogue.get(raw)) and (item.hidden or item.deleted)]
    against = reference(bundle, posted[ITEM_ID], hidden, learned)
    groups = {row[0]: (row[1], row[2]) for row in answers.select("request_id", "variant", "placement").iter_rows()}
    numbers = exposure_health(Exposures.from_frame(answers, against), against, groups, until, received)
    return PeriodSummary(numbers, first, last, bundle, catalogue, last_result(project))


def count_received(log: EventLog, store: DecisionLog) -> None:
    """Count the events received since the last call by the response that they name."""
    newest = log.newest_received()
    if newest is None:
        return
    after = store.events_counted_to()
    while rows := log.received_after(after, newest - WEEK - DAY, MAX_COUNTED_EVENTS):
        groups = store.groups({request_id for _, _, request_id in rows if request_id})
        counts = Counter(
            (period_of(received_at), *groups.get(request_id or "", ("", ""))) for _, received_at, request_id in rows
        )
        store.add_events(counts, after, rows[-1][0])
        after = rows[-1][0]


class ItemFlags:
    """Flags of a bundle's items by code of the decision log, and the available items.

    Each call of `update` reads only new rows.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle.id
        self._reference = reference(bundle)
        self._tail = self._new = np.zeros(1, dtype=bool)  # (codes + 1,)
        self._last_seq = 0
        self._posted: set[str] = set()  # items that are not in the table
        self._hidden: set[str] = set()

    def update(self, log: EventLog, store: DecisionLog) -> None:
        """Read the codes and item versions that are new."""
        added = store.item_ids(after=len(self._tail) - 1)
        if added:
            numbers = np.array([self._reference.ids.get(raw, 0) for _, raw in added])
            self._tail = np.concatenate([self._tail, self._reference.tail[numbers] | (numbers == 0)])
            self._new = np.concatenate([self._new, numbers == 0])
        items = log.items(after=self._last_seq)
        if items.is_empty():
            return
        for raw, is_hidden in items.select(ITEM_ID, pl.col("hidden") | pl.col("deleted")).iter_rows():
            if raw not in self._reference.ids:
                self._posted.add(raw)
            (self._hidden.add if is_hidden else self._hidden.discard)(raw)
        self._last_seq = items[SEQ][-1]

    @property
    def against(self) -> HealthReference:
        """Reference by item code with the items that are available now."""
        n_items = len(self._reference.ids) + len(self._posted) - len(self._hidden)
        return replace(self._reference, n_items=n_items, tail=self._tail, new=self._new)


class HealthCache:
    """Thread-safe cache of a service's summary, recomputed after `CACHE_SECONDS`.

    Args:
        decisions: The service's decision log; None to open the project's log for reading. In that case, the answers of
            the last seconds and events may not be counted yet.
    """

    def __init__(self, project: Project, decisions: DecisionLog | None = None) -> None:
        self._project = project
        self._decisions = decisions
        self._lock = threading.Lock()
        self._seen: tuple[float, str, HealthSummary] | None = None
        self._items: ItemFlags | None = None
        self._readers = {name: WindowReader(window) for name, window in WINDOWS.items()}

    def get(self, bundle: Bundle, now: int) -> HealthSummary:
        """Summarize the windows up to ``now``, or up to the newest replayed request.

        Args:
            bundle: The live bundle of this process.
        """
        with self._lock:
            if self._seen is not None:
                cached_at, name, summary = self._seen
                if name == bundle.id and time.monotonic() - cached_at < CACHE_SECONDS:
                    return summary
            started = time.monotonic()
            with ExitStack() as stack:
                log = stack.enter_context(self._project.open_log())
                store = self._decisions or stack.enter_context(self._project.open_decisions())
                summary = self._read(bundle, log, store, now)
            self._seen = started, bundle.id, summary
            return summary

    def _read(self, bundle: Bundle, log: EventLog, store: DecisionLog, now: int) -> HealthSummary:
        if store.is_writer:
            store.flush(FLUSH_SECONDS)
            try:
                count_received(log, store)
            except (OSError, sqlite3.Error) as error:  # the next reading counts them
                LOGGER.warning("received events were not counted: %s", type(error).__name__)
        end = (store.newest_answered_at() or 0) if self._project.config.serve.allow_time_header else now
        counts = {name: store.window(reader, end) for name, reader in self._readers.items()}
        events = {name: store.received(window, end) for name, window in WINDOWS.items()}
        if self._items is None or self._items.bundle != bundle.id:
            self._items = ItemFlags(bundle)
        self._items.update(log, store)
        against = self._items.against
        named = {name: {key: n for key, n in groups.items() if any(key)} for name, groups in events.items()}
        return HealthSummary(
            {name: stored_health(counts[name], against, named[name]) for name in WINDOWS},
            store.totals(),
            {name: sum(groups.values()) for name, groups in events.items()},
            last_result(self._project),
            last_update.read(self._project),
        )
