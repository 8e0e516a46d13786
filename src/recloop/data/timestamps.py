"""Timestamp parsing for whole columns: text and numbers to int64 microseconds UTC.

Accepted are numbers since 1970 in any unit, ISO 8601, and dates with day or month first. The unit is detected from the
size of the numbers, the order of day and month from a day above 12. Ambiguous columns and mixed formats in one file are
errors that name the row. `recloop.features.timestamp_text` parses single values by the same rules; a test compares both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from recloop.config import Data
from recloop.data.tables import Table
from recloop.errors import UserError
from recloop.features.timestamp_text import (
    COMPACT_PATTERN,
    DAY_NUMBER,
    DAY_NUMBER_RANGE,
    EXPECTED_FORMS,
    MAX_IMPORT_SECONDS,
    MAX_MICROSECONDS,
    MICROSECONDS_PER_UNIT,
    MIN_CLEAR_SECONDS,
    MIN_MICROSECONDS,
    NOT_A_STAMP,
    NUMBER_PATTERN,
    OUTSIDE,
    YEAR_FIRST_PATTERN,
    YEAR_LAST_PATTERN,
)
from recloop.records import DAY, SECOND

UNIT_NAMES: Final = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds", "iso": "ISO 8601"}


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
    """Timestamp column of one file, separated into numbers and texts."""

    table: Table
    text: pl.Series
    numeric: pl.Series  # (n,) Boolean
    parts: pl.DataFrame  # a b c H M S f pm z, null for rows that are not text stamps
    day_last: pl.Series  # (n,) Boolean: the year is last, so the order of day and month is open


def parse_timestamps(
    tables: Sequence[Table], name: str, data: Data, known_order: bool | None = None
) -> list[ParsedTimestamps]:
    """Parse the stamps of all files of a log.

    All files share one order of day and month.

    Args:
        known_order: True if the day is first in earlier files of this log; None: these files must show it.

    Raises:
        UserError: two units or formats in one file, an ambiguous order of day and month, or no stamp at all.
    """
    text_columns = [_sort(table, name) if table.frame.schema[name] == pl.String else None for table in tables]
    day_first = known_order
    if day_first is None:
        undecided = [column for column in text_columns if column is not None and column.day_last.any()]
        day_first = _day_first(undecided, name)
    parsed = []
    for table, text_column in zip(tables, text_columns, strict=True):
        if text_column is None:
            parsed.append(_typed(table, name, data))
        else:
            parsed.append(_texts(text_column, name, data, day_first))
    if tables and known_order is None and all(stamps.values.null_count() == len(stamps.values) for stamps in parsed):
        samples = [
            sample for table in tables for sample in table.frame[name].cast(pl.String).drop_nulls().head(1).to_list()
        ]
        value = samples[0] if samples else ""
        raise UserError(
            f"data.columns.timestamp ({name})", value, EXPECTED_FORMS, "set data.columns.timestamp or data.time_unit"
        )
    return parsed


# -- numbers


def _typed(table: Table, name: str, data: Data) -> ParsedTimestamps:
    column = table.frame[name]
    if column.dtype.is_temporal() and column.dtype in (pl.Date, pl.Datetime):
        zone = getattr(column.dtype, "time_zone", None)
        micros = column.cast(pl.Datetime("us", zone)).to_physical()
        if zone is None:
            micros = _local(micros, data.timezone)
        description = f"datetimes in {zone or data.timezone}"
        return _with_reasons(micros, column.is_not_null(), description)
    if column.dtype.is_integer() or column.dtype.is_float():
        digits = column.cast(pl.Int64).cast(pl.String) if column.dtype.is_integer() else None
        if digits is not None and _is_compact(table, name, digits, data.time_unit):
            text_column = _sort(Table(table.source, table.kind, "", "", table.columns, digits.to_frame(name), {}), name)
            return _texts(text_column, name, data, None)
        unit = _unit(table, column.cast(pl.Float64), data.time_unit, name)
        return _numbers(column, unit, data.time_unit)
    raise UserError(f"data.columns.timestamp ({name})", column.dtype, EXPECTED_FORMS, "set data.columns.timestamp")


def _numbers(column: pl.Series, unit: str, configured: str) -> ParsedTimestamps:
    """Parse numbers since 1970; day numbers are rejected.

    Whole numbers are exact; fractions are rounded to the nearest microsecond.
    """
    value = column.cast(pl.Float64, strict=False)
    is_in_range = (value * MICROSECONDS_PER_UNIT[unit]).is_between(MIN_MICROSECONDS, MAX_MICROSECONDS)
    numbers = pl.select(pl.when(is_in_range).then(column)).to_series()
    integers = numbers.cast(pl.Int64, strict=False) if column.dtype == pl.String or column.dtype.is_integer() else None
    micros = (numbers.cast(pl.Float64, strict=False) * MICROSECONDS_PER_UNIT[unit]).round().cast(pl.Int64, strict=False)
    if integers is not None:
        scaled = integers // 1000 if unit == "ns" else integers * int(MICROSECONDS_PER_UNIT[unit])
        micros = pl.select(pl.coalesce(scaled, micros)).to_series()
    present = column.is_not_null()
    stamps = _with_reasons(
        micros, present, f"{UNIT_NAMES[unit]} since 1970", pl.Series(value.is_finite().fill_null(False))
    )
    if configured in MICROSECONDS_PER_UNIT or not _are_day_numbers(value):
        return stamps
    reasons = pl.select(pl.when(value.is_not_null()).then(pl.lit(DAY_NUMBER)).otherwise(stamps.reasons)).to_series()
    return ParsedTimestamps(stamps.values.clear(len(stamps.values)), reasons, stamps.how)


def _are_day_numbers(value: pl.Series) -> bool:
    """True if numbers are spreadsheet days since 1899-12-30, such as 46027.35."""
    present = value.drop_nulls()
    is_in_range = (present >= DAY_NUMBER_RANGE[0]) & (present < DAY_NUMBER_RANGE[1])
    return bool(len(present) and is_in_range.all() and (present != present.floor()).any())


def _unit(table: Table, value: pl.Series, configured: str, name: str) -> str:
    """Unit of a file's numbers, detected by their size.

    The ranges of the units for the years 1973 to 2100 do not overlap.
    """
    unit_of = pl.Series([None], dtype=pl.String).new_from_index(0, len(value))
    for unit, factor in MICROSECONDS_PER_UNIT.items():
        is_in_range = (value.abs() * factor >= MIN_CLEAR_SECONDS * SECOND) & (
            value.abs() * factor < MAX_IMPORT_SECONDS * SECOND
        )
        unit_of = pl.select(pl.when(is_in_range).then(pl.lit(unit)).otherwise(unit_of)).to_series()
    units = unit_of.drop_nulls()
    if len(units):
        main_unit = units[0]
        other_rows = (unit_of != units[0]).fill_null(False).arg_true()
        if len(other_rows):
            other_row = int(other_rows[0])
            first_row = int(unit_of.is_not_null().arg_true()[0])
            raise UserError(
                f"data.columns.timestamp ({name})", _plain(value[other_row]),
                f"one unit in {table.source.name}: line {table.line_of(other_row)} is in {UNIT_NAMES[unit_of[other_row]]}, "
                f"line {table.line_of(first_row)} in {UNIT_NAMES[main_unit]}", "write all stamps in one unit",
            )  # fmt: skip
        if configured == "auto":
            return str(main_unit)
    return "s" if configured in ("auto", "iso") else configured


def _plain(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


# -- texts


def _sort(table: Table, name: str) -> _TimestampColumn:
    text = table.frame[name].str.strip_chars()
    text = pl.select(pl.when(text != "").then(text)).to_series().alias(name)
    numeric = text.str.contains(NUMBER_PATTERN).fill_null(False)
    if numeric.all() or (numeric | text.is_null()).all():
        empty = text.new_from_index(0, 0) if len(text) else text
        parts = pl.DataFrame({key: pl.Series([None] * len(empty), dtype=pl.String) for key in _PARTS})
        return _TimestampColumn(table, text, numeric, parts, pl.Series([], dtype=pl.Boolean))
    groups = text.str.extract_groups(YEAR_FIRST_PATTERN).struct.unnest()
    year_first = groups["a"].is_not_null()
    day_last = pl.Series([False]).new_from_index(0, len(text))
    if not (year_first | numeric | text.is_null()).all():
        year_last = text.str.extract_groups(YEAR_LAST_PATTERN).struct.unnest()
        day_last = year_last["a"].is_not_null()
        groups = groups.select(
            pl.when(year_first).then(groups[key]).otherwise(year_last[key]).alias(key) for key in _PARTS
        )
    return _TimestampColumn(table, text, numeric, groups, day_last)


_PARTS: Final = ("a", "b", "c", "H", "M", "S", "f", "pm", "z")


def _day_first(columns: Sequence[_TimestampColumn], name: str) -> bool | None:
    """True if the day is first; None if the order is not needed.

    A day above 12 in any file decides for all files.
    """
    if not columns:
        return None
    proofs: dict[bool, tuple[_TimestampColumn, int]] = {}
    for column in columns:
        for key, is_day_first in (("a", True), ("b", False)):
            rows_above = ((column.parts[key].cast(pl.Int32) > 12) & column.day_last).fill_null(False).arg_true()
            if len(rows_above):
                proofs.setdefault(is_day_first, (column, int(rows_above[0])))
    if len(proofs) == 1:
        return next(iter(proofs))
    if proofs:
        rows = [
            f"line {proof.table.line_of(row)} of {proof.table.source.name} ({proof.text[row]})"
            for proof, row in proofs.values()
        ]
        raise UserError(
            f"data.columns.timestamp ({name})", proofs[False][0].text[proofs[False][1]],
            f"one order of day and month: {rows[0]} is day first, {rows[1]} is month first" if True in proofs else "",
            "write dates as 2025-12-31",
        )  # fmt: skip
    column = columns[0]
    row = int(column.day_last.arg_true()[0])
    a, b, year = (column.parts[key][row] for key in ("a", "b", "c"))
    raise UserError(
        f"data.columns.timestamp ({name})", column.text[row],
        f"a day above 12, to decide between {year}-{b:0>2}-{a:0>2} (day first) and {year}-{a:0>2}-{b:0>2} (month first)",
        f"write dates as {year}-{b:0>2}-{a:0>2}",
    )  # fmt: skip


def _is_compact(table: Table, name: str, text: pl.Series, unit: str) -> bool:
    """True if digits such as 20250131 are dates according to ``data.time_unit``.

    Raises:
        UserError: the digits can be dates or numbers, and no unit is configured.
    """
    if unit not in ("auto", "iso") or not looks_compact(text):
        return False
    if unit == "auto":
        sample = text.drop_nulls()[0]
        raise UserError(
            f"data.columns.timestamp ({name})", sample,
            f"data.time_unit for {table.source.name}: its digits can be a date ({sample[:4]}-{sample[4:6]}-{sample[6:8]}) or a number",
            'time_unit = "iso" (a date) or "s", "ms", "us" (a number) under [data]',
        )  # fmt: skip
    return True


def looks_compact(column: pl.Series) -> bool:
    """True if all values have the form 20250131 or 20250131134500."""
    if not (column.dtype == pl.String or column.dtype.is_integer()):
        return False
    texts = column.cast(pl.String).str.strip_chars().drop_nulls()
    texts = texts.filter(texts != "")
    return len(texts) > 0 and bool(texts.str.contains(COMPACT_PATTERN).all())


def _texts(column: _TimestampColumn, name: str, data: Data, day_first: bool | None) -> ParsedTimestamps:
    table, text = column.table, column.text
    if column.numeric.any() and _is_compact(table, name, text, data.time_unit):
        digits = text.str.replace(
            r"^(\d{4})(\d{2})(\d{2})(\d{2})?(\d{2})?(\d{2})?$", "${1}-${2}-${3}T${4}:${5}:${6}"
        ).str.strip_chars_end(":T")
        return _composed(digits.str.extract_groups(YEAR_FIRST_PATTERN).struct.unnest(), None, digits, data, False)
    numbers = pl.select(pl.when(column.numeric).then(text)).to_series()
    dated = column.parts["a"].is_not_null() if len(column.parts) == len(text) else column.numeric.new_from_index(0, 0)
    if column.numeric.any() and not (len(dated) and dated.any()):
        if data.time_unit == "iso":
            return _with_reasons(pl.Series([None] * len(text), dtype=pl.Int64), text.is_not_null(), "ISO 8601")
        unit = _unit(table, numbers.cast(pl.Float64), data.time_unit, name)
        stamps = _numbers(numbers, unit, data.time_unit)
        reasons = pl.select(pl.when(column.numeric).then(stamps.reasons).otherwise(_none_of(text))).to_series()
        return ParsedTimestamps(stamps.values, reasons, stamps.how)
    if column.numeric.any():
        row = int(column.numeric.arg_true()[0])
        dated_row = int(dated.arg_true()[0])
        raise UserError(
            f"data.columns.timestamp ({name})", text[row],
            f"one format in {table.source.name}: line {table.line_of(row)} is a number, "
            f"line {table.line_of(dated_row)} is {text[dated_row]!r}", "write all stamps in one format",
        )  # fmt: skip
    if data.time_unit not in ("auto", "iso"):
        return _with_reasons(
            pl.Series([None] * len(text), dtype=pl.Int64), text.is_not_null(), UNIT_NAMES[data.time_unit]
        )
    return _composed(column.parts, column.day_last, text, data, bool(day_first))


def _composed(
    parts: pl.DataFrame, day_last: pl.Series | None, text: pl.Series, data: Data, day_first: bool
) -> ParsedTimestamps:
    """Compose microseconds from date and clock parts; invalid dates are null."""
    is_day_last = pl.lit(False) if day_last is None else pl.lit(day_last)
    year, month, day = _year_month_day(is_day_last, day_first)
    frame = parts.select(
        year=year,
        month=month,
        day=day,
        hour=_hour_of_day(),
        minute=_whole("M").fill_null(0),
        second=_whole("S").fill_null(0),
        fraction=pl.col("f").str.pad_end(9, "0").str.slice(0, 6).cast(pl.Int64, strict=False).fill_null(0),
        offset=_zone_minutes(),
        zoned=pl.col("z").is_not_null(),
    )
    minutes = pl.col("hour") * 60 + pl.col("minute") - pl.col("offset")
    clock = (minutes * 60 + pl.col("second")) * SECOND + pl.col("fraction")
    micros = pl.when(_is_valid_time()).then(_days_since_1970() * DAY + clock)
    values = frame.select(micros.alias("micros"), "zoned")
    if data.timezone != "UTC" and not values["zoned"].all():
        local_micros = _local(values["micros"], data.timezone)
        values = values.with_columns(pl.when("zoned").then("micros").otherwise(local_micros).alias("micros"))
    zoned = values["zoned"].any()
    order = "ISO 8601" if day_last is None or not day_last.any() else ("day first" if day_first else "month first")
    return _with_reasons(
        values["micros"], text.is_not_null(), f"{order}, {'zone as given, else ' if zoned else ''}{data.timezone}"
    )


def _whole(group: str) -> pl.Expr:
    """Group of the regular expression as a whole number; null if it did not match."""
    return pl.col(group).cast(pl.Int64, strict=False)


def _year_month_day(is_day_last: pl.Expr, day_first: bool) -> tuple[pl.Expr, pl.Expr, pl.Expr]:
    """Year, month and day from the groups a, b and c.

    A date that does not start with the year uses the order of day and month.
    """
    first, second, third = _whole("a"), _whole("b"), _whole("c")
    day, month = (first, second) if day_first else (second, first)
    return (
        pl.when(is_day_last).then(third).otherwise(first),
        pl.when(is_day_last).then(month).otherwise(second),
        pl.when(is_day_last).then(day).otherwise(third),
    )


def _hour_of_day() -> pl.Expr:
    """Hour from 0 to 23.

    With am or pm, an hour outside 1 to 12 becomes the invalid hour 99.
    """
    hour = _whole("H").fill_null(0)
    half = pl.col("pm").str.to_lowercase().str.slice(0, 1)
    return (
        pl.when(half.is_null())
        .then(hour)
        .when(hour.is_between(1, 12))
        .then(hour % 12 + (half == "p") * 12)
        .otherwise(99)
    )


def _zone_minutes() -> pl.Expr:
    """Offset of a written zone from UTC in minutes; 0 for Z and without a zone."""
    zone = pl.col("z").str.replace_all(":", "", literal=True)
    sign = pl.when(zone.str.starts_with("-")).then(-1).otherwise(1)
    hours = zone.str.slice(1, 2).cast(pl.Int64, strict=False)
    minutes = zone.str.slice(3, 2).cast(pl.Int64, strict=False).fill_null(0)
    return sign * (hours * 60 + minutes).fill_null(0)


def _is_valid_time() -> pl.Expr:
    """True if the date and the time of day exist."""
    year, month = pl.col("year"), pl.col("month")
    is_leap = ((year % 4 == 0) & (year % 100 != 0)) | (year % 400 == 0)
    february = 28 + is_leap.cast(pl.Int64)
    month_length = pl.when(month == 2).then(february).when(month.is_in([4, 6, 9, 11])).then(30).otherwise(31)
    is_day = month.is_between(1, 12) & pl.col("day").is_between(1, month_length)
    return is_day & (pl.col("hour") < 24) & (pl.col("minute") < 60) & (pl.col("second") < 60)


def _days_since_1970() -> pl.Expr:
    """Days from 1970-01-01 to a date.

    Years begin in March here, so that the leap day is the last day of its year.
    """
    month = pl.col("month")
    year = pl.col("year") - (month <= 2).cast(pl.Int64)
    days_before_year = 365 * year + year // 4 - year // 100 + year // 400
    months_since_march = month + pl.when(month > 2).then(-3).otherwise(9)
    day_of_year = (153 * months_since_march + 2) // 5 + pl.col("day") - 1
    return days_before_year + day_of_year - 719_468


def _local(micros: pl.Series, timezone: str) -> pl.Series:
    """Convert local time to UTC microseconds.

    An ambiguous hour is the first of the two; a skipped hour is null.
    """
    if timezone == "UTC":
        return micros.cast(pl.Int64)
    local = micros.cast(pl.Int64).cast(pl.Datetime("us"))
    return local.dt.replace_time_zone(timezone, ambiguous="earliest", non_existent="null").to_physical()


def _none_of(text: pl.Series) -> pl.Series:
    """Reject reason of each text among numbers."""
    missing = text.is_null()
    return pl.select(pl.when(missing).then(pl.lit("no timestamp")).otherwise(pl.lit(NOT_A_STAMP))).to_series()


def _with_reasons(
    values: pl.Series, present: pl.Series, description: str, readable: pl.Series | None = None
) -> ParsedTimestamps:
    """Keep values of the years 1 to 9999, and give every other row its reject reason."""
    values = values.cast(pl.Int64)
    is_in_range = values.is_between(MIN_MICROSECONDS, MAX_MICROSECONDS)
    is_readable = values.is_not_null() if readable is None else readable
    reasons = pl.select(
        pl.when(~present).then(pl.lit("no timestamp"))
        .when(is_in_range.fill_null(False)).then(None)
        .when(is_readable.fill_null(False)).then(pl.lit(OUTSIDE))
        .otherwise(pl.lit(NOT_A_STAMP))
    ).to_series()  # fmt: skip
    return ParsedTimestamps(pl.select(pl.when(is_in_range).then(values)).to_series(), reasons, description)
