"""Readers of a project's events, items and users; unreadable rows become rejects."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import polars as pl

from recloop.config import Data
from recloop.data.attributes import object_texts
from recloop.data.csv.table import repeated_name
from recloop.data.guests import GUEST_REFUSED, fill_guests
from recloop.data.limits import INVALID_ID, is_invalid_id
from recloop.data.numbers import read_numbers
from recloop.data.rejected_rows import RejectedRow
from recloop.data.shape import input_columns, shape_log
from recloop.data.sources import InputFile, find
from recloop.data.tables import Table, read_table
from recloop.data.timestamps.parse import ParsedTimestamps, parse_alone, parse_timestamps
from recloop.errors import UserError
from recloop.project import Project
from recloop.records import (
    CONTEXT,
    DEFAULT_EVENT_TYPE,
    EVENT_ID,
    EVENT_SCHEMA,
    EVENT_TYPE,
    FILE_ROW,
    GROUP_ID,
    ITEM_ID,
    QUANTITY,
    RECEIVED_AT,
    SEQ,
    TIMESTAMP,
    USER_ID,
    VALUE,
)

REQUIRED_COLUMNS: Final = (USER_ID, ITEM_ID, TIMESTAMP)
RAW_SCHEMA: Final = {name: kind for name, kind in EVENT_SCHEMA.items() if name != SEQ}
MIN_SIMILARITY: Final = 0.6
"""Ratio of difflib from which a column is named as the nearest one."""
OPTIONAL_COLUMNS: Final = (EVENT_TYPE, VALUE, QUANTITY, GROUP_ID, EVENT_ID)


@dataclass(frozen=True)
class RawEvents:
    """Events as read from files, before cleaning.

    Attributes:
        frame: EVENT_SCHEMA without seq, in the order of file and row.
        rejects: Every row that cannot be read.
        read: Rows in the files: ``len(frame) + len(rejects) + left_out``.
        info: Summary line of files, encoding and stamp format.
        sources: The files.
        rows: Rows read by file name.
        left_out: Rows that do not meet ``data.where``.
    """

    frame: pl.DataFrame
    rejects: list[RejectedRow]
    read: int
    info: str
    sources: tuple[InputFile, ...]
    rows: Mapping[str, int] = field(default_factory=dict)
    left_out: int = 0


def read_events(project: Project) -> RawEvents:
    """Read the files of ``data.events``.

    Raises:
        UserError: a file, a column or all rows are missing, stamps are ambiguous, or a number column has no number.
    """
    return parse_events(read_log(project), project.config.data, orders=read_orders(project))


def read_log(project: Project, extra_columns: Sequence[str] = ()) -> list[Table]:
    """Read the tables of ``data.events`` with the columns of an event."""
    data = project.config.data
    columns = [*input_columns(data), *extra_columns]
    return [read_table(source, data, columns) for source in find(project.sources, data.events, "data.events")]


def read_orders(project: Project) -> list[Table]:
    """Read the files of ``data.orders``; an empty list if none is configured."""
    data = project.config.data
    if not data.orders:
        return []
    return [
        read_table(source, data, input_columns(data)) for source in find(project.sources, data.orders, "data.orders")
    ]


def parse_events(
    tables: Sequence[Table],
    data: Data,
    extra_columns: Sequence[str] = (),
    since: Mapping[str, int] | None = None,
    day_first: bool | None = None,
    orders: Sequence[Table] = (),
) -> RawEvents:
    """Parse the events of tables; see `read_events`.

    Args:
        extra_columns: Further columns of EVENT_SCHEMA, read under their schema names if a table has them.
        since: Rows to skip by file name, for files read after the import (default: none). A row without an event_id
            gets one from its file and number; a file without a readable row is allowed.
        day_first: True if 01/02/2025 is 1 February, by earlier files; None: not known.
        orders: Tables of ``data.orders``.
    """
    skip = since or {}
    counts = {table.source.name: table.n_records - skip.get(table.source.name, 0) for table in tables}
    shaped = shape_log(tables, data, orders, since)
    left_out = sum(shaped.left_out.values())
    for table in shaped.tables:
        _has_columns(table, data)
    if since is None:
        _check_rows(shaped.tables, sum(counts.values()), left_out, data)
    tables = [table for table in shaped.tables if len(table.frame) or table.broken]
    stamps = parse_timestamps(tables, data.columns.timestamp, data, day_first)
    frames = [pl.DataFrame(schema=RAW_SCHEMA)]
    rejects: list[RejectedRow] = []
    decimal_style = ""
    for table, stamp in zip(tables, stamps, strict=True):
        frame, reasons, style = _events(table, stamp, data, extra_columns)
        decimal_style = decimal_style or style
        readable = reasons.is_null()
        first_record = skip.get(table.source.name, 0)
        if since is not None:
            numbers = table.row_records
            frame = frame.with_columns(pl.coalesce(EVENT_ID, _row_ids(table, numbers)).alias(EVENT_ID))
            readable &= numbers >= first_record
        frames.append(frame.filter(readable))
        rejects += rejected_rows_of(table, reasons, first_record)
    frame = pl.concat(frames)
    if since is None and not len(frame):
        raise _all_rejected(tables, rejects, sum(counts.values()))
    info = log_info(tables, [stamp.how for stamp in stamps])
    info += f"; {decimal_style}" if decimal_style else ""
    read = len(frame) + len(rejects) + left_out
    return RawEvents(frame, rejects, read, info, tuple(table.source for table in tables), counts, left_out)


def _check_rows(tables: Sequence[Table], n_records: int, n_left_out: int, data: Data) -> None:
    """Check that an import has a row to read.

    Raises:
        UserError: the files have no row, or all are broken or left out by ``data.where``.
    """
    if any(len(table.frame) for table in tables):
        return
    key, names = tables[0].source.key, _first_names(tables)
    if n_left_out:
        expected = f"a condition that some rows meet; all {n_left_out:,} rows are left out"
        raise UserError("data.where", data.where, expected, "correct data.where in recloop.toml")
    if not n_records:
        raise UserError(key, names, "rows under the header, found none", f"set {key} to a file with rows")
    reason = next(iter(tables[0].broken.values()))
    raise UserError(key, names, f"readable rows; all {n_records:,} are broken: {reason}", "correct the file")


def _all_rejected(tables: Sequence[Table], rejects: Sequence[RejectedRow], n_records: int) -> UserError:
    """Return the error of an import whose rows were all rejected."""
    expected = f"readable rows; all {n_records:,} were rejected, the first one because of: {rejects[0].reason}"
    examples = tuple(f"{row.place}: {row.raw}" for row in rejects[:3])
    return UserError(tables[0].source.key, _first_names(tables), expected, "set [data.columns]", examples)


def _first_names(tables: Sequence[Table]) -> str:
    return ", ".join(table.source.name for table in tables[:3])


def log_info(tables: Sequence[Table], stamp_formats: Iterable[str]) -> str:
    """Summary of files, encodings and stamp formats."""
    names = [table.source.name for table in tables]
    files = ", ".join(names) if len(names) <= 3 else f"{len(names)} files, {names[0]} .. {names[-1]}"
    formats = sorted({table.how for table in tables})
    return f"{files}: {'; '.join(formats)}; stamps: {'; '.join(sorted(set(stamp_formats)))}"


@dataclass(frozen=True)
class EventBlock:
    """Events of consecutive records of one file.

    Attributes:
        frame: EVENT_SCHEMA without seq; unreadable rows included.
        reasons: (n,) reject reason or null.
        table: The records of the block after the settings of ``[data]``.
        left_out: Rows that do not meet ``data.where``.
        stamp_format: Description of the format of the stamps.
    """

    frame: pl.DataFrame
    reasons: pl.Series
    table: Table
    left_out: int
    stamp_format: str


def read_block(block: Table, data: Data) -> EventBlock | None:
    """Parse some records of a file; None if other records decide their form.

    Raises:
        UserError: as `parse_events`.
    """
    shaped = shape_log([block], data)
    table = shaped.tables[0]
    _has_columns(table, data)
    stamps = parse_alone(table, data.columns.timestamp, data)
    if stamps is None:
        return None
    frame, reasons, decimal_style = _events(table, stamps, data, ())
    if decimal_style:
        return None
    return EventBlock(frame, reasons, table, sum(shaped.left_out.values()), stamps.how)


def _row_ids(table: Table, records: pl.Series) -> pl.Series:
    """event_id of each row by file and record number.

    Further rows of one record get ``.1``, ``.2``.
    """
    ids = pl.lit(f"{FILE_ROW}{table.source.name}:") + (records + 1).cast(pl.String)
    if table.records is None:
        return pl.select(ids).to_series()
    number = pl.int_range(pl.len(), dtype=pl.Int64).over("record")
    suffix = pl.when(number > 0).then(pl.format(".{}", number)).otherwise(pl.lit(""))
    return pl.DataFrame({"record": records}).select(ids + suffix).to_series()


def _events(
    table: Table, stamps: ParsedTimestamps, data: Data, extra_columns: Sequence[str]
) -> tuple[pl.DataFrame, pl.Series, str]:
    """Rows of one file, the reject reason or null of each, and the decimal style."""
    given_columns = {
        field_name: table.frame[name]
        for field_name in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
        if (name := getattr(data.columns, field_name))
    }
    ids: dict[str, pl.Series] = {
        name: as_ids(given_columns[name], table, name)
        for name in (USER_ID, ITEM_ID, GROUP_ID, EVENT_ID, EVENT_TYPE)
        if name in given_columns
    }
    size = len(table.frame)
    reasons = pl.Series([None], dtype=pl.String).new_from_index(0, size)
    for name, texts in ids.items():
        reasons = _because(reasons, is_invalid_id(texts), f"{name}: {INVALID_ID}")
    ids[USER_ID], is_refused = fill_guests(ids[USER_ID], ids.get(GROUP_ID), data.guests)
    reasons = _because(reasons, is_refused, GUEST_REFUSED)
    for name in (USER_ID, ITEM_ID):
        reasons = _because(reasons, ids[name].is_null(), f"no {name}")
    reasons = pl.select(pl.coalesce(reasons, stamps.reasons)).to_series()
    numbers = {}
    decimal_style = ""
    for name in (VALUE, QUANTITY):
        if name in given_columns:
            numbers[name], is_wrong, style = read_numbers(given_columns[name], table.separator)
            decimal_style = decimal_style or style
            if len(is_wrong) and bool((is_wrong | given_columns[name].is_null()).all()) and is_wrong.any():
                value = given_columns[name].drop_nulls().cast(pl.String)[0]
                raise UserError(
                    f"data.columns.{name} ({given_columns[name].name})", value, "numbers", f"set data.columns.{name}"
                )
            reasons = _because(reasons, is_wrong, f"{name}: not a number")
    for name in (name for name in extra_columns if name in table.frame.columns):
        if name == CONTEXT:
            ids[name], is_wrong = object_texts(table.frame[name])
            reasons = _because(reasons, is_wrong, f"{name}: not a JSON object")
        else:
            ids[name] = as_ids(table.frame[name], table, name)
            reasons = _because(reasons, is_invalid_id(ids[name]), f"{name}: {INVALID_ID}")
    columns = {
        name: pl.Series([None], dtype=kind).new_from_index(0, size)
        for name, kind in EVENT_SCHEMA.items()
        if name != SEQ
    }
    columns |= ids | numbers | {TIMESTAMP: stamps.values, RECEIVED_AT: stamps.values}
    columns[EVENT_TYPE] = columns[EVENT_TYPE].fill_null(DEFAULT_EVENT_TYPE)
    frame = pl.DataFrame({name: column.rename(name) for name, column in columns.items()})
    return frame, reasons, decimal_style


def _because(reasons: pl.Series, is_wrong: pl.Series, text: str) -> pl.Series:
    return pl.select(pl.when(reasons.is_null() & is_wrong).then(pl.lit(text)).otherwise(reasons)).to_series()


def as_ids(column: pl.Series, table: Table, field_name: str) -> pl.Series:
    """Convert ids to text; missing ones (null, empty, blank) become null.

    Texts are kept exactly; whole numbers become their decimal text.

    Raises:
        UserError: an id is a fraction.
    """
    if column.dtype.is_float():
        present = column.fill_nan(None)
        integers = present.cast(pl.Int64, strict=False)
        if integers.null_count() > present.null_count() or (present != integers.cast(pl.Float64)).any():
            fractions = present.filter(present != present.round()).head(1).to_list()
            value = fractions[0] if fractions else str(column.dtype)
            raise UserError(
                f"data.columns.{field_name} ({column.name})",
                value,
                "texts or whole numbers",
                f"set data.columns.{field_name}",
            )
        column = integers
    if column.dtype == pl.Binary:
        column = column.cast(pl.String, strict=False)
    if column.dtype.is_nested():
        raise UserError(
            f"data.columns.{field_name} ({column.name})", column.dtype, f"one text or number per row in {table.source.name}",
            f"set data.columns.{field_name}",
        )  # fmt: skip
    text = column.cast(pl.String)
    return pl.select(pl.when(text.str.strip_chars() != "").then(text)).to_series()


def _has_columns(table: Table, data: Data) -> None:
    """Reject a table without a configured column, or with two of its name.

    A text table may lack an optional column that another file has.
    """
    for field_name in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS):
        name = getattr(data.columns, field_name)
        if not name and field_name in REQUIRED_COLUMNS:
            raise UserError(
                f"data.columns.{field_name}", "", f"the name of a column of {table.source.name}", "recloop init FILE"
            )
        is_optional = field_name in OPTIONAL_COLUMNS or table.kind != "csv" or getattr(data.fallback, field_name)
        has_column = name in table.columns or (
            name in table.frame.columns and (is_optional or _has_values(table, name))
        )
        if name and not has_column:
            no_such_column(table, f"data.columns.{field_name}", name)
        if name and table.dialect is not None and table.dialect.names.count(name) > 1:
            raise repeated_name(table.source, name)


def _has_values(table: Table, name: str) -> bool:
    return table.frame[name].null_count() < len(table.frame)


def no_such_column(table: Table, key: str, name: str) -> None:
    """Raise the error for a missing column, with the nearest name in the file."""
    lower = {column.lower(): column for column in table.columns}
    matches = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=MIN_SIMILARITY)
    listed = ", ".join(table.columns[:20]) or "no column"
    nearest = f"; nearest: {lower[matches[0]]}" if matches else ""
    headless = "; the header may be missing" if any(column.strip().isdigit() for column in table.columns) else ""
    raise UserError(
        key, name, f"a column of {table.source.name}{nearest} (it has {listed}{headless})",
        f'--set {key}="{lower[matches[0]]}"' if matches else f"set {key}",
    )  # fmt: skip


def rejected_rows_of(table: Table, reasons: pl.Series, first_record: int = 0) -> list[RejectedRow]:
    """Rejected and broken rows of one file in order, from ``first_record`` on."""
    rows = reasons.is_not_null().arg_true().to_list()
    return located_rows(table, [*zip(table.record_of(rows), reasons.gather(rows).to_list(), strict=True)], first_record)


def located_rows(table: Table, reason_of: Sequence[tuple[int, str]], first_record: int = 0) -> list[RejectedRow]:
    """Rejected rows by record and reason, and the broken records, with line and text."""
    rejected = sorted(
        (record, reason) for record, reason in [*reason_of, *table.broken.items()] if record >= first_record
    )
    records = sorted({record for record, _ in rejected})
    place_of = dict(zip(records, table.locate(records), strict=True))
    return [
        RejectedRow(table.source.name, line, reason, raw)
        for record, reason in rejected
        for line, raw in (place_of[record],)
    ]
