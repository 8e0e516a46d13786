"""Labels of rows that equal earlier ones in all columns that the rules read.

A posted commit has few rows, for which operations on columns cost more than the rows do. The values are those of
`EventLabeler.label`.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import polars as pl

from recloop.features.dwell import DWELL
from recloop.features.labels import EventLabeler
from recloop.records import (
    EVENT_SCHEMA,
    EVENT_TYPE,
    GROUP_ID,
    GUEST_PREFIX,
    ITEM_ID,
    PAIR,
    QUANTITY,
    SEQ,
    TIMESTAMP,
    UNITS,
    USE,
    USER_ID,
    VALUE,
    WEIGHT,
)

KEY_COLUMNS: Final = (EVENT_TYPE, QUANTITY, VALUE, "placement")
"""Columns that rules may read; values of other columns rarely repeat."""
MAX_KEYS: Final = 10_000
Key = tuple[Any, ...]


class Meaning(NamedTuple):
    """Use, weight, pair and units of a row."""

    use: int
    weight: float
    pair: str
    units: float


class LabelCache:
    """Labels by the values of the columns that the rules read; one thread uses it."""

    def __init__(self, labeler: EventLabeler) -> None:
        self._labeler = labeler
        self._columns = tuple(name for name in KEY_COLUMNS if name in labeler.label_columns)
        self._is_usable = labeler.label_columns <= set(KEY_COLUMNS)
        self._meanings: dict[Key, Meaning] = {}

    def rows(self, valid_rows: pl.DataFrame) -> list[tuple[Any, ...]] | None:
        """Return labelled rows as `recloop.features.state_delta.rows_of` does.

        The result is None if a row is a dwell, or if a rule reads a column outside `KEY_COLUMNS`.

        Args:
            valid_rows: EVENT_SCHEMA, by seq.
        """
        if not self._is_usable:
            return None
        columns = [valid_rows[name].to_list() for name in self._columns]
        if DWELL in columns[0]:
            return None
        keys = list(zip(*columns, strict=True))
        self._learn(set(keys))
        meanings = [self._meanings[key] for key in keys]
        values = (valid_rows[name].to_list() for name in (USER_ID, ITEM_ID, TIMESTAMP, GROUP_ID, SEQ))
        return [
            (user, item, stamp, group, *meaning, seq)
            for user, item, stamp, group, seq, meaning in zip(*values, meanings, strict=True)
            if not user.startswith(GUEST_PREFIX)
        ]

    def _learn(self, keys: set[Key]) -> None:
        """Label the keys that are not known yet."""
        unknown = list(keys - self._meanings.keys())
        if not unknown:
            return
        if len(self._meanings) + len(unknown) > MAX_KEYS:
            self._meanings.clear()
            unknown = list(keys)
        row = dict.fromkeys(EVENT_SCHEMA) | {USER_ID: "", ITEM_ID: "", TIMESTAMP: 0}
        rows = [row | dict(zip(self._columns, key, strict=True)) for key in unknown]
        labelled = self._labeler.label(pl.DataFrame(rows, schema=EVENT_SCHEMA))
        for key, values in zip(unknown, labelled.select(USE, WEIGHT, PAIR, UNITS).iter_rows(), strict=True):
            self._meanings[key] = Meaning(*values)
