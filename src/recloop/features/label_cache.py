"""Labels of posted rows, remembered by the values that the rules read.

The values are those of `EventLabeler.label`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import polars as pl

from recloop.features.dwell import DWELL
from recloop.features.labels import EventLabeler
from recloop.features.row_cache import Columns, RowCache
from recloop.records import (
    EVENT_TYPE,
    GROUP_ID,
    GUEST_PREFIX,
    ITEM_ID,
    PAIR,
    SEQ,
    TIMESTAMP,
    UNITS,
    USE,
    USER_ID,
    WEIGHT,
)


class Meaning(NamedTuple):
    """Use, weight, pair and units of a row."""

    use: int
    weight: float
    pair: str
    units: float


class LabelCache:
    """Labels by the values of the columns that the rules read; one thread uses it."""

    def __init__(self, labeler: EventLabeler) -> None:
        self._meanings = RowCache(labeler.label_columns, partial(_meanings, labeler))

    def rows(self, valid_rows: Columns) -> list[tuple[Any, ...]] | None:
        """Return labelled rows as `recloop.features.state_delta.rows_of` does.

        The result is None if a row is a dwell, or if a rule reads a column that `RowCache` leaves out.

        Args:
            valid_rows: EVENT_SCHEMA, by seq.
        """
        if not self._meanings.is_usable or DWELL in valid_rows[EVENT_TYPE]:
            return None
        meanings = self._meanings.results(valid_rows)
        values = (valid_rows[name] for name in (USER_ID, ITEM_ID, TIMESTAMP, GROUP_ID, SEQ))
        return [
            (user, item, stamp, group, *meaning, seq)
            for user, item, stamp, group, seq, meaning in zip(*values, meanings, strict=True)
            if not user.startswith(GUEST_PREFIX)
        ]


def _meanings(labeler: EventLabeler, rows: pl.DataFrame) -> Iterator[Meaning]:
    return map(Meaning._make, labeler.label(rows).select(USE, WEIGHT, PAIR, UNITS).iter_rows())
