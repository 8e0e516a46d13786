"""Look-ups of ids in log and archive, for threads because they read files."""

from __future__ import annotations

from recloop.records import ITEM_ID, USER_ID
from recloop.storage import EventLog
from recloop.storage.archive import Archive
from recloop.storage.identities import moved_id


def item_exists(log: EventLog, archive: Archive, item_id: str) -> bool:
    """Return True if an event names this item."""
    return log.has_item(item_id) or archive.has_id(ITEM_ID, item_id)


def user_exists(log: EventLog, archive: Archive, user_id: str) -> bool:
    """Return True if an event names this user."""
    return log.has_user(user_id) or archive.has_id(USER_ID, user_id)


def event_seq(log: EventLog, archive: Archive, event_id: str) -> int | None:
    """Seq of the event with this event_id, quarantined or not; None if there is none.

    A row that moved from an anonymous id to a user has the seq of the user's row.
    """
    seq = _stored_seq(log, archive, event_id)
    moved = None if seq is None else _stored_seq(log, archive, moved_id(event_id, seq))
    return seq if moved is None else moved


def _stored_seq(log: EventLog, archive: Archive, event_id: str) -> int | None:
    seq = log.event_seq(event_id)
    if seq is None and (event := archive.known([event_id]).get(event_id)) is not None:
        seq = event.seq
    return seq
