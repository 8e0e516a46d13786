"""Rows of the event log, read in slices by seq."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recloop.records import SEQ
from recloop.storage.database import Connection

MAX_SLICE_ROWS = 100_000  # rows per read; a longer read would keep the write-ahead log from shrinking


def read_slices(
    connection: Connection,
    table: str,
    columns: tuple[str, ...],
    after: int,
    until: int,
    equal: Mapping[str, str | None],
) -> list[tuple[Any, ...]]:
    """Read the rows with ``after`` < seq <= ``until``, in order of seq.

    Args:
        equal: Columns and the value of each; None: any value.
    """
    wanted = {column: value for column, value in equal.items() if value is not None}
    conditions = ["seq > ?", "seq <= ?", *(f"{column} = ?" for column in wanted)]
    selected = f"SELECT {', '.join(columns)} FROM {table} WHERE {' AND '.join(conditions)}"
    statement = f"{selected} ORDER BY seq LIMIT {MAX_SLICE_ROWS}"
    seq_column = columns.index(SEQ)
    rows: list[tuple[Any, ...]] = []
    while True:
        slice_rows = connection.execute(statement, (after, until, *wanted.values())).fetchall()
        rows += slice_rows
        if len(slice_rows) < MAX_SLICE_ROWS:
            return rows
        after = slice_rows[-1][seq_column]
