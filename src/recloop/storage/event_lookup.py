"""Look-ups of events in log.db by many ids at once."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Final, TypeVar

from recloop.records import Event
from recloop.storage.event_rows import EVENT_COLUMNS

IN_SIZES: Final = (1, 8, 64, 512)
"""Numbers of placeholders, so that few statements are compiled."""
T = TypeVar("T")


def newest_rules(connection: sqlite3.Connection, seqs: list[int]) -> dict[int, str]:
    """Rule of the newest retraction of each of these events; others are omitted."""
    rules: dict[int, str] = {}
    for batch in parts(seqs):
        marks = ", ".join("?" * len(batch))
        selected = f"SELECT retracted_seq, rule FROM retractions WHERE retracted_seq IN ({marks}) ORDER BY seq"
        rules |= dict(connection.execute(selected, batch))
    return rules


def by_event_id(connection: sqlite3.Connection, ids: list[str]) -> dict[str, Event]:
    """Stored events with one of these event_ids, by event_id."""
    events: dict[str, Event] = {}
    for batch in parts(ids):
        size = in_size(len(batch))
        rows = connection.execute(
            f"SELECT {', '.join(EVENT_COLUMNS)} FROM events WHERE event_id IN ({', '.join('?' * size)})",
            [*batch, *[None] * (size - len(batch))],
        )
        for row in rows:
            event = Event(**dict(zip(EVENT_COLUMNS, row, strict=True)))
            if event.event_id is not None:
                events[event.event_id] = event
    return events


def in_size(count: int) -> int:
    """Smallest number of placeholders for a number of values."""
    return next(size for size in IN_SIZES if size >= count)


def parts(values: list[T], size: int = IN_SIZES[-1]) -> Iterator[list[T]]:
    """Yield the values in lists of at most ``size``."""
    for start in range(0, len(values), size):
        yield values[start : start + size]
