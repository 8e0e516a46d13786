"""Results for rows that equal earlier ones in the columns that decide them.

A posted commit has few rows, for which operations on columns cost more than the rows do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar

import polars as pl

from recloop.records import EVENT_SCHEMA, EVENT_TYPE, ITEM_ID, QUANTITY, TIMESTAMP, USER_ID, VALUE

KEY_COLUMNS: Final = (EVENT_TYPE, QUANTITY, VALUE, "placement")
"""Columns that may decide; values of other columns rarely repeat."""
MAX_KEYS: Final = 10_000
Key = tuple[Any, ...]
Result = TypeVar("Result")


class Columns(Protocol):
    """Rows by column; see `recloop.storage.event_rows.EventColumns`."""

    def __getitem__(self, name: str, /) -> Sequence[Any]:
        """Return the values of a column."""
        ...


class RowCache(Generic[Result]):
    """Results by the values of the columns that decide them; one thread uses it.

    Args:
        columns: Columns that decide.
        compute: Result of each row of a frame (EVENT_SCHEMA).

    Attributes:
        is_usable: False if another column than `KEY_COLUMNS` decides, or none; `results` must not be called then.
    """

    def __init__(self, columns: Collection[str], compute: Callable[[pl.DataFrame], Iterable[Result]]) -> None:
        self._columns = tuple(name for name in KEY_COLUMNS if name in columns)
        self.is_usable = 0 < len(self._columns) == len(columns)
        self._compute = compute
        self._results: dict[Key, Result] = {}

    def results(self, rows: Columns) -> list[Result]:
        """Return the result of each row."""
        keys = list(zip(*(rows[name] for name in self._columns), strict=True))
        self._learn(set(keys))
        return [self._results[key] for key in keys]

    def _learn(self, keys: set[Key]) -> None:
        """Compute the results of the keys that are not known yet."""
        unknown = list(keys - self._results.keys())
        if not unknown:
            return
        if len(self._results) + len(unknown) > MAX_KEYS:
            self._results.clear()
            unknown = list(keys)
        row = dict.fromkeys(EVENT_SCHEMA) | {USER_ID: "", ITEM_ID: "", TIMESTAMP: 0}
        rows = [row | dict(zip(self._columns, key, strict=True)) for key in unknown]
        self._results |= zip(unknown, self._compute(pl.DataFrame(rows, schema=EVENT_SCHEMA)), strict=True)
