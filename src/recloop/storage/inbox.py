"""The inbox emptied where no server runs: what was handed becomes rows of the log, then is marked as taken."""

from __future__ import annotations

from recloop.storage.control import ControlStore
from recloop.storage.event_log import EventLog, Retraction


def apply_inbox(control: ControlStore, log: EventLog) -> list[Retraction]:
    """Number what waits as retractions of the log; the rows as kept.

    The two files share no transaction: killed in between, the same rows are handed again, and the log knows them.

    Args:
        log: Opened for writing; the caller holds `locks.writer_lock`.
    """
    waiting = control.handed()
    if not waiting:
        return []
    kept = log.append_retractions([one.retraction for one in waiting])
    control.taken([one.id for one in waiting])
    return kept
