"""Offline delivery of inbox retractions to the log, without a running server."""

from __future__ import annotations

from recloop.storage.control import ControlStore
from recloop.storage.event_log import EventLog
from recloop.storage.retractions import Retraction


def apply_inbox(control: ControlStore, log: EventLog) -> list[Retraction]:
    """Write pending retractions to the log and return the stored rows.

    The two stores do not share a transaction. After a crash in between, the same rows are delivered again and the log
    skips them.

    Args:
        log: Opened for writing; the caller holds `locks.writer_lock`.
    """
    entries = control.pending()
    if not entries:
        return []
    stored = log.append_retractions([row.retraction for row in entries])
    control.mark_applied([row.id for row in entries])
    return stored
