"""Look-ups of events in log.db by many ids at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from recloop.records import Event
from recloop.storage.database import Connection
from recloop.storage.event_rows import EVENT_COLUMNS

IN_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Lengths of the id list of a statement; few, so that few statements are compiled. Unused places are NULL."""
T = TypeVar("T")


class UserWindow(NamedTuple):
    """Rows of a user with ``after`` < timestamp <= ``until``."""

    user_id: str
    after: int
    until: int


def newest_rules(connection: Connection, seqs: list[int]) -> dict[int, str]:
    """Rule of the newest retraction of each of these events; others are omitted."""
    rules: dict[int, str] = {}
    for batch in parts(seqs):
        marks = ", ".join("?" * len(batch))
        selected = f"SELECT retracted_seq, rule FROM retractions WHERE retracted_seq IN ({marks}) ORDER BY seq"
        rules |= connection.execute(selected, batch).fetchall()
    return rules


def by_event_id(connection: Connection, ids: list[str]) -> dict[str, Event]:
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


def in_windows(connection: Connection, windows: Sequence[UserWindow], names: Sequence[str]) -> list[tuple[Any, ...]]:
    """Columns of the events in any of these windows; an event in two windows twice."""
    rows: list[tuple[Any, ...]] = []
    columns = ", ".join(f"events.{name}" for name in names)
    for batch in parts(list(windows)):
        size = in_size(len(batch))
        values = ", ".join(["(?, ?, ?)"] * size)
        padding = [None] * (3 * (size - len(batch)))
        rows += connection.execute(
            f"""WITH windows (person, first, last) AS (VALUES {values}) SELECT {columns} FROM windows CROSS JOIN events
            WHERE user_id = person AND timestamp > first AND timestamp <= last""",
            [*itertools.chain.from_iterable(batch), *padding],
        ).fetchall()
    return rows
