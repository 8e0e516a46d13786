"""Event rows between arrival and commit: numbers, repeats, receipts, columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from operator import attrgetter
from typing import Any, Final, Literal, NamedTuple

import msgspec
import polars as pl
from polars.datatypes import DataType, DataTypeClass

from recloop.records import EVENT_SCHEMA, RULE, SEQ, USER_ID, Event

EVENT_COLUMNS: Final = (*EVENT_SCHEMA, RULE)
RULED_SCHEMA: Final = {**EVENT_SCHEMA, RULE: pl.String}
"""Columns of an event in log.db."""
CONTENT_COLUMNS: Final = tuple(name for name in EVENT_SCHEMA if name not in {SEQ, "timestamp", "received_at"})
"""Content sent by the client, without the timestamp."""
EventRow = tuple[Any, ...]
"""Values of EVENT_SCHEMA, in its order."""

USER_COLUMN: Final = list(EVENT_SCHEMA).index(USER_ID)
ANONYMOUS_COLUMN: Final = list(EVENT_SCHEMA).index("anonymous_id")

_content = attrgetter(*CONTENT_COLUMNS)
_values = attrgetter(*(name for name in EVENT_SCHEMA if name != SEQ))

Status = Literal["accepted", "duplicate", "conflict", "quarantined"]


class Receipt(NamedTuple):
    """Result of an event: status, seq and rule.

    A duplicate or conflict has the seq of the first row.
    """

    status: Status
    seq: int
    rule: str | None


class Arrivals(NamedTuple):
    """Received events: numbered new rows, and receipts of repeats by position."""

    rows: list[EventRow]
    repeats: dict[int, Receipt]

    def receipts(self, inserted: Sequence[Receipt]) -> list[Receipt]:
        """Merge the receipts of new events and repeats, in order of arrival."""
        if not self.repeats:
            return list(inserted)
        remaining = iter(inserted)
        total = len(self.rows) + len(self.repeats)
        return [self.repeats.get(position) or next(remaining) for position in range(total)]


def number_new(events: Sequence[Event], first_by_id: Mapping[str, Event], seq: int) -> Arrivals:
    """Number the events whose event_id is new, from ``seq`` + 1; compare the others.

    Args:
        events: Events in order of arrival; their own ``seq`` is ignored.
        first_by_id: Stored events by event_id.
    """
    ids = [event.event_id for event in events]
    n_missing = ids.count(None)
    if not first_by_id and len(set(ids)) - (n_missing > 0) == len(ids) - n_missing:
        return Arrivals([(number, *_values(event)) for number, event in enumerate(events, seq + 1)], {})
    firsts = {name: (event, event.seq) for name, event in first_by_id.items()}
    rows: list[EventRow] = []
    repeats: dict[int, Receipt] = {}
    for position, event in enumerate(events):
        first = None if event.event_id is None else firsts.get(event.event_id)
        if first is not None:
            status: Status = "duplicate" if same_content(first[0], event) else "conflict"
            repeats[position] = Receipt(status, first[1], None)
            continue
        seq += 1
        rows.append((seq, *_values(event)))
        if event.event_id is not None:
            firsts[event.event_id] = (event, seq)
    return Arrivals(rows, repeats)


def with_persons(arrivals: Arrivals, persons: Mapping[str, str]) -> Arrivals:
    """Give new rows of identified anonymous ids their user.

    Args:
        persons: User by anonymous id.
    """
    if not persons:
        return arrivals
    rows = [
        _with_person(row, persons[row[USER_COLUMN]]) if row[USER_COLUMN] in persons else row for row in arrivals.rows
    ]
    return arrivals._replace(rows=rows)


def _with_person(row: EventRow, user_id: str) -> EventRow:
    values = list(row)
    values[USER_COLUMN], values[ANONYMOUS_COLUMN] = user_id, row[USER_COLUMN]
    return tuple(values)


def event_ids(events: Iterable[Event]) -> list[str]:
    """List the distinct event_ids of these events, in order of arrival."""
    return list(dict.fromkeys(event.event_id for event in events if event.event_id is not None))


def same_content(first: Event, repeat: Event) -> bool:
    """Return True if a repeated event has the content of the first one.

    The first row of an identified anonymous id has the user and keeps the anonymous id.
    """
    if first.user_id != repeat.user_id == first.anonymous_id:
        repeat = msgspec.structs.replace(repeat, user_id=first.user_id, anonymous_id=first.anonymous_id)
    if _content(first) != _content(repeat):
        return False
    unstamped = first.timestamp == first.received_at and repeat.timestamp == repeat.received_at
    return first.timestamp == repeat.timestamp or unstamped


class EventColumns:
    """Events by seq, by column of EVENT_SCHEMA.

    A commit has few rows, for which lists cost less than a frame.
    """

    def __init__(self, columns: dict[str, Sequence[Any]], frame: pl.DataFrame | None = None) -> None:
        self._columns = columns
        self._frame = frame

    @classmethod
    def of_rows(cls, rows: Sequence[EventRow]) -> EventColumns:
        """Columns of rows."""
        values = zip(*rows, strict=True) if rows else ((),) * len(EVENT_SCHEMA)
        return cls(dict(zip(EVENT_SCHEMA, values, strict=True)))

    @classmethod
    def of_frame(cls, frame: pl.DataFrame) -> EventColumns:
        """Columns of a frame with EVENT_SCHEMA."""
        return cls({}, frame)

    def __len__(self) -> int:
        return len(self[SEQ])

    def __getitem__(self, name: str) -> Sequence[Any]:
        """Return the values of a column."""
        if self._frame is not None and name not in self._columns:
            self._columns[name] = self._frame[name].to_list()
        return self._columns[name]

    def valid(self, rules: Sequence[str | None]) -> EventColumns:
        """Return the rows without a rule."""
        if rules.count(None) == len(rules):
            return self
        is_valid = [rule is None for rule in rules]
        return EventColumns({name: list(compress(self[name], is_valid)) for name in EVENT_SCHEMA})

    @property
    def frame(self) -> pl.DataFrame:
        """The rows as a frame: EVENT_SCHEMA."""
        if self._frame is None:
            self._frame = pl.DataFrame(
                [_series(name, self._columns[name], dtype) for name, dtype in EVENT_SCHEMA.items()]
            )
        return self._frame


def _series(name: str, values: Sequence[Any], dtype: DataType | DataTypeClass) -> pl.Series:
    """Build a column; one without a value costs little."""
    if len(values) and values[0] is None and values.count(None) == len(values):
        return pl.Series(name, [None], dtype).new_from_index(0, len(values))
    return pl.Series(name, values, dtype)


def with_values(columns: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Columns of rows without those that are null in every row.

    Python's module for SQLite spends more time on a NULL parameter than on any other value.
    """
    return {name: values for name, values in columns.items() if values.count(None) < len(values)}


def object_text(attributes: Mapping[str, Any]) -> str:
    """Format a JSON object as compact text with sorted keys.

    Equal objects have equal texts.
    """
    return json.dumps(attributes, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
