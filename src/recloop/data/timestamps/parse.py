"""Timestamp parsing for whole columns: text and numbers to int64 microseconds UTC.

Each value is read by its own form: a number by its size, a date by its pattern. The column decides what a value alone
leaves open: the order of day and month, and numbers outside 1973 to 2100 in every unit. A few values of another
form never decide; values that cannot be read get a reject reason. `recloop.features.timestamp_text` parses single values
by the same rules; a test compares both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from recloop.config import Data
from recloop.data.tables import Table
from recloop.data.timestamps.dates import (
    NAMED_MONTH,
    TextColumn,
    compose,
    read_fixed,
    spaced_dates,
    split_texts,
    to_utc,
)
from recloop.data.timestamps.numbers import (
    UNIT_NAMES,
    Numbers,
    as_numbers,
    looks_compact,
    numbers_to_micros,
    small_unit,
)
from recloop.data.timestamps.offset import read_offsets
from recloop.errors import UserError
from recloop.features.timestamp_text import (
    COMPACT_PATTERN,
    EXPECTED_FORMS,
    MAX_IMPORT_SECONDS,
    MICROSECONDS_PER_UNIT,
    NOT_A_STAMP,
    OUTSIDE,
    spaced_digits,
)
from recloop.records import SECOND

MAX_MINORITY: Final = 0.05
"""Share of dates in the other order of day and month up to which the majority decides."""
NO_TIMESTAMP: Final = "no timestamp"
OFFSET_REASON: Final = "time_offset: not a time of day"


@dataclass(frozen=True)
class ParsedTimestamps:
    """Stamps of one file.

    Attributes:
        values: int64 microseconds; null if a value cannot be read.
        reasons: Reject reason of a row without a stamp, else null.
        how: Description of the format.
    """

    values: pl.Series
    reasons: pl.Series
    how: str


@dataclass(frozen=True)
class _TimestampColumn:
    """Timestamp column of one file.

    ``texts`` is None for a column of numbers; ``offset`` and ``is_offset_wrong`` are None without ``time_offset``.
    """

    table: Table
    column: pl.Series
    numbers: Numbers
    texts: TextColumn | None
    offset: pl.Series | None
    is_offset_wrong: pl.Series | None


def parse_timestamps(
    tables: Sequence[Table], name: str, data: Data, known_order: bool | None = None
) -> list[ParsedTimestamps]:
    """Parse the stamps of all files of a log.

    All files share one order of day and month.

    Args:
        known_order: True if the day is first in earlier files of this log; None: these files must show it.

    Raises:
        UserError: an ambiguous order of day and month, numbers with two plausible units, or no stamp at all.
    """
    fixed = [parse_fixed(table, name, data) for table in tables]
    columns = [
        _classify(table, name, data) for table, stamps in zip(tables, fixed, strict=True) if stamps is None
    ]  # fmt: skip
    day_first = known_order
    if day_first is None:
        open_columns = [column for column in columns if column.texts is not None and column.texts.year_last.any()]
        day_first = _day_first(open_columns, name)
    others = [
        _typed(column, data)
        if column.column.dtype.is_temporal()
        else _parse(column, name, data, bool(day_first))
        for column in columns
    ]  # fmt: skip
    has_stamps = any(stamps.values.null_count() < len(stamps.values) for stamps in others)
    if columns and known_order is None and len(columns) == len(tables) and not has_stamps:
        _raise_unreadable(columns, others, name)
    remaining = iter(others)
    return [next(remaining) if stamps is None else stamps for stamps in fixed]


def parse_fixed(table: Table, name: str, data: Data) -> ParsedTimestamps | None:
    """Parse a text column of one frequent form; None for other forms or several."""
    column = table.frame[name]
    if column.dtype != pl.String or data.columns.time_offset:
        return None
    text = pl.select(pl.when(column != "").then(column)).to_series()
    read = read_fixed(text, data.timezone)
    if read is None:
        return None
    values, reasons, repeated, is_zoned = read
    zone = f"zone as given, else {data.timezone}" if is_zoned else data.timezone
    labels = Counter({f"ISO 8601, {zone}": len(values) - values.null_count()})
    stamps = _with_reasons(values, reasons, text.is_not_null(), _describe(labels, repeated))
    return stamps if stamps.values.null_count() < len(values) else None


def parse_alone(table: Table, name: str, data: Data) -> ParsedTimestamps | None:
    """Parse the stamps of some records; None if other records decide their form.

    Dates of one frequent form, typed times and numbers of one clear unit are read alone.
    """
    stamps = parse_fixed(table, name, data)
    if stamps is not None or data.columns.time_offset:
        return stamps
    column = _classify(table, name, data)
    if column.column.dtype.is_temporal():
        return _typed(column, data)
    if not column.numbers.single_unit or (column.texts is not None and column.texts.dated.any()):
        return None
    return _parse(column, name, data, day_first=False)


def _classify(table: Table, name: str, data: Data) -> _TimestampColumn:
    """Separate a column into numbers and dates.

    Digits such as 20250131 are dates if the settings say so.
    """
    column = table.frame[name]
    dtype = column.dtype
    offset = is_offset_wrong = None
    if data.columns.time_offset and data.columns.time_offset in table.frame.columns:
        offset, is_offset_wrong = read_offsets(table.frame[data.columns.time_offset])
    if dtype in (pl.Date, pl.Datetime):
        empty = as_numbers(pl.Series([], dtype=pl.Int64))
        return _TimestampColumn(table, column, empty, None, offset, is_offset_wrong)
    if dtype != pl.String and not dtype.is_integer() and not dtype.is_float() and dtype != pl.Null:
        raise UserError(f"data.columns.timestamp ({name})", dtype, EXPECTED_FORMS, "set data.columns.timestamp")
    if _is_compact(column, name, table, data.time_unit):
        if dtype.is_float():
            column = column.fill_nan(None).cast(pl.Int64)
        column = spaced_dates(column.cast(pl.String).str.strip_chars())
    elif dtype == pl.Null:
        column = column.cast(pl.String)
    if column.dtype != pl.String:
        return _TimestampColumn(table, column, as_numbers(column), None, offset, is_offset_wrong)
    texts = split_texts(column)
    numbers = as_numbers(pl.select(pl.when(texts.numeric).then(texts.text)).to_series())
    return _TimestampColumn(table, column, numbers, texts, offset, is_offset_wrong)


def _is_compact(column: pl.Series, name: str, table: Table, unit: str) -> bool:
    """True if digits such as 20250131 are dates according to ``data.time_unit``.

    Raises:
        UserError: the digits can be dates or numbers, and no unit is configured.
    """
    if unit not in ("auto", "iso") or not looks_compact(column):
        return False
    if unit == "auto":
        texts = column.cast(pl.Int64).cast(pl.String) if column.dtype.is_float() else column.cast(pl.String)
        sample = texts.str.strip_chars().drop_nulls()
        first = sample.filter(sample.str.contains(COMPACT_PATTERN))[0]
        date = spaced_digits(first)[:10]
        raise UserError(
            f"data.columns.timestamp ({name})", first,
            f"data.time_unit for {table.source.name}: its digits can be a date ({date}) or a number",
            'time_unit = "iso" (a date) or "s", "ms", "us" (a number) under [data]',
        )  # fmt: skip
    return True


def _parse(column: _TimestampColumn, name: str, data: Data, day_first: bool) -> ParsedTimestamps:
    """Parse a column of numbers and texts."""
    texts = column.texts
    size = len(column.column)
    n_dates = 0 if texts is None else int(texts.dated.sum())
    small = small_unit(column.numbers, n_dates, data.time_unit)
    if small == "?":
        _raise_day_numbers(column, name)
    values, reasons, repeated = numbers_to_micros(column.numbers, small, data.timezone)
    present = column.column.is_not_null() if texts is None else texts.text.is_not_null()
    if column.column.dtype.is_float():
        present = present & column.column.is_not_nan()
    labels = Counter(_number_labels(column.numbers, small, values))
    if texts is not None and n_dates:
        dates, wrong_dates, repeated_dates = compose(texts.parts, day_first, data.timezone, column.offset)
        repeated += repeated_dates
        dated = texts.dated
        values = pl.select(pl.when(dated).then(dates).otherwise(values)).to_series()
        reasons = pl.select(pl.when(dated).then(wrong_dates).otherwise(reasons)).to_series()
        labels.update(_date_labels(texts, dates, day_first, data.timezone))
    if column.offset is not None:
        in_date = texts.dated if texts is not None else pl.Series([False]).new_from_index(0, size)
        values = pl.select(pl.when(in_date).then(values).otherwise(values + column.offset)).to_series()
        reasons = _first_reason(reasons, column.is_offset_wrong, OFFSET_REASON)
        values = pl.select(pl.when(reasons.is_null()).then(values)).to_series()
    return _with_reasons(values, reasons, present, _describe(labels, repeated))


def _typed(column: _TimestampColumn, data: Data) -> ParsedTimestamps:
    """Convert a column of dates or datetimes."""
    zone = getattr(column.column.dtype, "time_zone", None)
    micros = column.column.cast(pl.Datetime("us", zone)).to_physical()
    no_reasons = pl.Series([None], dtype=pl.String).new_from_index(0, len(micros))
    reasons = no_reasons
    if column.offset is not None:
        micros = micros + column.offset
        reasons = _first_reason(reasons, column.is_offset_wrong, OFFSET_REASON)
    if zone is None:
        micros, skipped, _ = to_utc(micros, data.timezone)
        reasons = pl.select(pl.coalesce(reasons, skipped)).to_series()
    return _with_reasons(micros, reasons, column.column.is_not_null(), f"datetimes in {zone or data.timezone}")


def _with_reasons(values: pl.Series, reasons: pl.Series, present: pl.Series, how: str) -> ParsedTimestamps:
    """Keep values of 1970 to 2100, and give every other row its reject reason."""
    values = values.cast(pl.Int64)
    is_inside = values.is_between(0, MAX_IMPORT_SECONDS * SECOND - 1).fill_null(False) & reasons.is_null()
    all_reasons = pl.select(
        pl.when(~present).then(pl.lit(NO_TIMESTAMP))
        .when(is_inside).then(None)
        .when(reasons.is_not_null()).then(reasons)
        .when(values.is_not_null()).then(pl.lit(OUTSIDE))
        .otherwise(pl.lit(NOT_A_STAMP))
    ).to_series()  # fmt: skip
    return ParsedTimestamps(pl.select(pl.when(is_inside).then(values)).to_series(), all_reasons, how)


def _first_reason(reasons: pl.Series, is_wrong: pl.Series | None, reason: str) -> pl.Series:
    if is_wrong is None:
        return reasons
    return pl.select(pl.when(reasons.is_null() & is_wrong).then(pl.lit(reason)).otherwise(reasons)).to_series()


# -- order of day and month


def _day_first(columns: Sequence[_TimestampColumn], name: str) -> bool | None:
    """True if the day is first; None if the order is not needed.

    A number above 12 in any file decides for all files. A few dates in the other order are rejected as invalid.
    """
    if not columns:
        return None
    rows_above: dict[bool, list[tuple[_TimestampColumn, int]]] = {True: [], False: []}
    counts = {True: 0, False: 0}
    for column in columns:
        assert column.texts is not None
        for key, is_day_first in (("a", True), ("b", False)):
            numbers = column.texts.parts[key].cast(pl.Int32, strict=False)
            rows = ((numbers > 12) & column.texts.year_last).fill_null(False).arg_true()
            counts[is_day_first] += len(rows)
            if len(rows):
                rows_above[is_day_first].append((column, int(rows[0])))
    if min(counts.values()) <= MAX_MINORITY * max(counts.values()) and max(counts.values()):
        return counts[True] > counts[False]
    if max(counts.values()):
        day, month = (_place(*rows_above[is_day_first][0]) for is_day_first in (True, False))
        raise UserError(
            f"data.columns.timestamp ({name})", _text(*rows_above[False][0]),
            f"one order of day and month: {day} is day first, {month} is month first", "write dates as 2025-12-31",
        )  # fmt: skip
    column = columns[0]
    assert column.texts is not None
    row = int(column.texts.year_last.arg_true()[0])
    a, b, year = (column.texts.parts[key][row] for key in ("a", "b", "c"))
    year = f"20{year}" if len(year) == 2 else year
    raise UserError(
        f"data.columns.timestamp ({name})", _text(column, row),
        f"a day above 12, to decide between {year}-{b:0>2}-{a:0>2} (day first) and {year}-{a:0>2}-{b:0>2} (month first)",
        f"write dates as {year}-{b:0>2}-{a:0>2}",
    )  # fmt: skip


def _text(column: _TimestampColumn, row: int) -> str:
    return str(column.column[row])


def _place(column: _TimestampColumn, row: int) -> str:
    return f"line {column.table.line_of(row)} of {column.table.source.name} ({_text(column, row)})"


# -- descriptions and errors


def _number_labels(numbers: Numbers, small: str, values: pl.Series) -> dict[str, int]:
    """Rows by the unit of their numbers, as text."""
    small_label = {
        "order": "order numbers (one second each, not a time)",
        "days": "days of a spreadsheet",
    }.get(small, f"{UNIT_NAMES.get(small, 'seconds')} from an unknown start")
    if small == "order":
        return {small_label: numbers.value.len() - numbers.value.null_count()}
    counts = dict(numbers.unit.drop_nulls().value_counts(name="rows").iter_rows())
    labels = {f"{UNIT_NAMES[unit]} since 1970": count for unit, count in counts.items()}
    n_small = int((values.is_not_null() & numbers.unit.is_null()).sum())
    if n_small and small in MICROSECONDS_PER_UNIT and labels:
        labels[f"{UNIT_NAMES[small]} since 1970"] = labels.get(f"{UNIT_NAMES[small]} since 1970", 0) + n_small
    elif n_small:
        labels[small_label] = n_small
    return labels


def _date_labels(texts: TextColumn, dates: pl.Series, day_first: bool, timezone: str) -> dict[str, int]:
    """Rows by the form of their dates, as text."""
    is_read = dates.is_not_null()
    year_last = int((texts.year_last & is_read).sum())
    named = int(((texts.parts["form"] == NAMED_MONTH).fill_null(False) & is_read).sum())
    zoned = (texts.parts["z"].is_not_null() & is_read).any()
    zone = f"{'zone as given, else ' if zoned else ''}{timezone}"
    counts = {
        "ISO 8601": int(is_read.sum()) - year_last - named,
        "day first" if day_first else "month first": year_last,
        "named months": named,
    }
    return {f"{form}, {zone}": count for form, count in counts.items() if count}


def _describe(labels: Counter[str], repeated: int) -> str:
    """Most frequent form, with the number of rows in other forms."""
    if not labels:
        return "ISO 8601, UTC"
    (main, _), *others = labels.most_common()
    notes = [f"{count:,} rows: {label}" for label, count in others]
    if repeated:
        notes.append(f"{repeated:,} rows in a repeated hour: the first one is used")
    return f"{main} ({', '.join(notes)})" if notes else main


def _raise_day_numbers(column: _TimestampColumn, name: str) -> None:
    days = column.numbers.value.filter(column.numbers.in_day_range)
    first, last = (int(value) for value in (days.min(), days.max()) if isinstance(value, int | float))
    values, _, _ = numbers_to_micros(as_numbers(pl.Series([first, last])), "days", "UTC")
    first_day, last_day = (str(day) for day in values.cast(pl.Datetime("us")).dt.date().to_list())
    raise UserError(
        f"data.columns.timestamp ({name})", first,
        f"data.time_unit for {column.table.source.name}: {first} .. {last} can be days of a spreadsheet "
        f"({first_day} .. {last_day}) or numbers that only order the rows",
        'time_unit = "days" or "order" under [data]',
    )  # fmt: skip


def _raise_unreadable(columns: Sequence[_TimestampColumn], parsed: Sequence[ParsedTimestamps], name: str) -> None:
    """Raise the error for a log without a stamp, with the first value and its reason."""
    for column, stamps in zip(columns, parsed, strict=True):
        rows = column.column.is_not_null().arg_true()
        if len(rows):
            reason = stamps.reasons[int(rows[0])]
            detail = "" if reason in (None, NOT_A_STAMP, NO_TIMESTAMP) else f" ({reason.removeprefix('timestamp: ')})"
            raise UserError(
                f"data.columns.timestamp ({name})", str(column.column[int(rows[0])]), f"{EXPECTED_FORMS}{detail}",
                "set data.columns.timestamp or data.time_unit",
            )  # fmt: skip
    raise UserError(
        f"data.columns.timestamp ({name})", "", EXPECTED_FORMS, "set data.columns.timestamp or data.time_unit"
    )
