"""Rows of a file for bulk ingest, read like the import plus service-only columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import polars as pl

from recloop.config import Columns, Data
from recloop.data.read import OPTIONAL_COLUMNS, REQUIRED_COLUMNS, RawEvents, parse_events
from recloop.data.shape import COUNT_COLUMN, LABEL_COLUMN, input_columns, join_columns
from recloop.data.sources import find
from recloop.data.tables import Table, read_table
from recloop.features import conditions
from recloop.ingest.client import iso
from recloop.records import TIMESTAMP

EXTRA_COLUMNS: Final = ("anonymous_id", "session_id", "placement", "request_id", "context")
"""Event columns that an import does not have, read under recloop's names."""


def read_arrivals(root: Path, file: str, data: Data, received_at: int) -> RawEvents:
    """Read the rows of a file, glob or folder, sorted by time (ties in file order).

    Each column is found by its name in ``[data.columns]``, otherwise by recloop's name. As in ``POST /v1/events``, a row
    without a timestamp (null, or no such column) has the time of arrival.

    Args:
        root: Folder to search if ``file`` does not exist in the current folder.
        received_at: Time of arrival, int64 microseconds.

    Raises:
        UserError: as for the import: missing file, rows or column, or ambiguous timestamps.
    """
    sources = find(Path() if Path(file).exists() else root, file, "FILE")
    names = {
        name
        for column in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
        for name in (column, getattr(data.columns, column))
        if name
    }
    wanted = sorted(names | set(EXTRA_COLUMNS) | set(input_columns(data)))
    tables = [read_table(source, data, wanted) for source in sources]
    data = _present_layout(tables, data)
    orders = (
        [read_table(source, data, wanted) for source in find(root, data.orders, "data.orders")] if data.orders else []
    )
    columns = found_columns([*tables, *orders] if orders else tables, data.columns, bool(orders))
    if not orders and not any(columns.timestamp in table.columns for table in tables):
        columns = columns.model_copy(update={TIMESTAMP: TIMESTAMP})
    if not orders and not data.carry:
        tables = [with_arrival(table, columns.timestamp, received_at) for table in tables]
    raw = parse_events(tables, data.model_copy(update={"columns": columns}), EXTRA_COLUMNS, orders=orders)
    return RawEvents(raw.frame.sort(TIMESTAMP, maintain_order=True), raw.rejects, raw.read, raw.info, raw.sources)


def with_arrival(table: Table, name: str, received_at: int) -> Table:
    """Fill missing timestamps with the time of arrival; a blank text is not missing."""
    arrival = pl.lit(iso(received_at))
    if name not in table.frame.columns:
        return replace(table, frame=table.frame.with_columns(arrival.alias(name)))
    if not table.frame[name].null_count():
        return table
    column = pl.col(name)
    dtype = table.frame.schema[name]
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
        column = column.dt.convert_time_zone("UTC").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
    filled = column.cast(pl.String).fill_null(arrival)
    return replace(table, frame=table.frame.with_columns(filled.alias(name)))


def _present_layout(tables: Sequence[Table], data: Data) -> Data:
    """Settings of ``[data]`` without those whose columns the files lack.

    A file in recloop's own column names has one event per row.
    """
    present = set.intersection(*(set(table.columns) for table in tables))
    update: dict[str, str] = {}
    if data.orders and join_columns(data.on)[0] not in present:
        update |= {"orders": "", "on": ""}
    fields = conditions.field_names(data.where, "data.where") if data.where else set()
    joined = bool(data.orders) and not update
    if fields - present - {LABEL_COLUMN, COUNT_COLUMN} and not joined:
        update["where"] = ""
    return data.model_copy(update=update)


def found_columns(tables: Sequence[Table], columns: Columns, joined: bool = False) -> Columns:
    """Replace mapped columns that the files lack by recloop's columns that they have.

    With ``joined``, a column may be in the log or in the orders.
    """
    names_of = [set(table.columns) for table in tables]
    shared = set.union(*names_of) if joined else set.intersection(*names_of)
    names: tuple[str, ...] = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
    replacements = {name: name for name in names if getattr(columns, name) not in shared and name in shared}
    return columns.model_copy(update=replacements)
