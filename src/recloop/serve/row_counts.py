"""Counts of posted events by status, and of the rejected rows that are kept."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, Metric
from starlette.concurrency import run_in_threadpool

from recloop.client.batches import STATUSES
from recloop.storage.database import STORE_ERRORS
from recloop.storage.rejected import RejectedRow, RejectedStore, StoredSize

LOGGER = logging.getLogger(__name__)


class RowCounts:
    """Posted events by status since the start; used on the event loop only.

    Args:
        rejected: Store of rejected rows.

    Attributes:
        events: Events by status; their sum is the number of events in all answered requests.
        dropped: Rejected rows that are not kept, or no longer: the store was full or could not be written.
    """

    def __init__(self, rejected: RejectedStore) -> None:
        self._rejected = rejected
        self.events: Counter[str] = Counter(dict.fromkeys(STATUSES, 0))
        self.dropped = 0

    async def keep(self, rows: Sequence[RejectedRow]) -> None:
        """Store rejected rows before their request is answered.

        A failure is counted and logged.
        """
        if not rows:
            return
        try:
            self.dropped += await run_in_threadpool(self._rejected.put, rows)
        except STORE_ERRORS as error:
            self.dropped += len(rows)
            LOGGER.error("rejected rows were not kept: %s", type(error).__name__)  # noqa: TRY400 - its text may name a user

    def size(self) -> StoredSize:
        """Return the size of the store; 0 if it cannot be read. Not on the event loop."""
        try:
            return self._rejected.size()
        except STORE_ERRORS:
            return StoredSize(0, 0)


def row_families(events: Mapping[str, int]) -> Iterable[Metric]:
    """Build the metric family of posted events."""
    family = CounterMetricFamily(
        "recloop_event_rows",
        "Posted events by status; every event of an answered request has exactly one status",
        labels=("status",),
    )
    for status in STATUSES:
        family.add_metric((status,), events[status])
    yield family
