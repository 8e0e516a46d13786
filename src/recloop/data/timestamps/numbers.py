"""Times of a numeric column.

The numbers count from 1970 in any unit, are days of a spreadsheet, or only order the rows.
The unit of a number follows from its size, because the units do not overlap in 1973 to 2100. The column decides only
about numbers that are not a time of these years in any unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import polars as pl

from recloop.data.timestamps.dates import to_utc
from recloop.features.timestamp_text import (
    COMPACT_PATTERN,
    DAY_NUMBER_RANGE,
    MAX_IMPORT_SECONDS,
    MAX_NUMBER,
    MICROSECONDS_PER_UNIT,
    MIN_CLEAR_SECONDS,
    OUTSIDE,
    SPREADSHEET_DAY_1970,
    UNCLEAR_NUMBER,
    clear_unit,
)
from recloop.records import DAY, SECOND

UNIT_NAMES: Final = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
MAJORITY: Final = 0.9
"""Share of the values of a column from which a form is that of the column."""
RELATIVE_SECONDS: Final = 15 * 365 * 86_400
"""Times whose median is before 1985 count from an unknown start."""


@dataclass(frozen=True)
class Numbers:
    """Numbers of a column.

    Attributes:
        value: (n,) Float64; null for other rows.
        integer: (n,) Int64; null for fractions and other rows.
        unit: (n,) String, unit in which the number is a time of 1973 to 2100, else null.
        single_unit: The unit if all numbers have the same one, else "".
    """

    value: pl.Series
    integer: pl.Series
    unit: pl.Series
    single_unit: str = ""

    @property
    def in_day_range(self) -> pl.Series:
        """(n,) Boolean: the number can be a day of a spreadsheet."""
        low, high = DAY_NUMBER_RANGE
        return ((self.value >= low) & (self.value < high)).fill_null(False)


def as_numbers(column: pl.Series) -> Numbers:
    """Convert a column of numbers, or of texts that are numbers; NaN becomes null."""
    if column.dtype == pl.String:
        integer = column.cast(pl.Int64, strict=False)
        value = column.str.replace(",", ".", literal=True).cast(pl.Float64, strict=False)
    else:
        value = column.cast(pl.Float64).fill_nan(None)
        integer = column.cast(pl.Int64, strict=False) if column.dtype.is_integer() else value.clear(len(value))
        integer = integer.cast(pl.Int64)
    low, high = value.min(), value.max()
    if (
        isinstance(low, float)
        and isinstance(high, float)
        and (single := clear_unit(low))
        and single == clear_unit(high)
    ):
        units = pl.select(pl.when(value.is_not_null()).then(pl.lit(single))).to_series()
        return Numbers(value, integer, units, single)
    unit = pl.lit(None, pl.String)
    for name, factor in MICROSECONDS_PER_UNIT.items():
        micros = pl.lit(value) * factor
        is_clear = (micros >= MIN_CLEAR_SECONDS * SECOND) & (micros < MAX_IMPORT_SECONDS * SECOND)
        unit = pl.when(is_clear).then(pl.lit(name)).otherwise(unit)
    return Numbers(value, integer, pl.select(unit).to_series())


def looks_compact(column: pl.Series) -> bool:
    """True if nearly all values have the form 20250131 or 20250131134500."""
    if column.dtype.is_float():
        whole = column.fill_nan(None)
        column = whole.cast(pl.Int64, strict=False) if (whole == whole.round()).all() else column
    if not (column.dtype == pl.String or column.dtype.is_integer()):
        return False
    texts = column.cast(pl.String).str.strip_chars().drop_nulls()
    texts = texts.filter(texts != "")
    return len(texts) > 0 and int(texts.str.contains(COMPACT_PATTERN).sum()) >= MAJORITY * len(texts)


def small_unit(numbers: Numbers, n_other: int, configured: str) -> str:
    """Unit of the numbers that are not a time of 1973 to 2100 in any unit.

    Args:
        n_other: Rows that are dates.
        configured: ``data.time_unit``.

    Returns:
        A value of ``data.time_unit``; ``""``: such numbers are rejected; ``"?"``: they may be spreadsheet days.
    """
    if configured in ("days", "order"):
        return configured
    is_small = numbers.value.is_not_null() & numbers.unit.is_null()
    n_small = int(is_small.sum())
    n_numbers = numbers.value.len() - numbers.value.null_count()
    if not n_small or n_other >= n_small or configured == "iso":
        return ""
    if configured == "auto" and int(numbers.in_day_range.sum()) >= MAJORITY * n_numbers:
        days = numbers.value.filter(numbers.in_day_range)
        return "days" if (days != days.floor()).any() else "?"
    if n_small < n_numbers and _median_seconds(numbers) >= RELATIVE_SECONDS:
        return ""
    return configured if configured in MICROSECONDS_PER_UNIT else "s"


def _median_seconds(numbers: Numbers) -> float:
    """Median of the times in seconds; a number of unknown unit counts as 0."""
    seconds = pl.lit(0.0)
    for name, factor in MICROSECONDS_PER_UNIT.items():
        seconds = (
            pl.when(pl.lit(numbers.unit) == name).then(pl.lit(numbers.value) * (factor / SECOND)).otherwise(seconds)
        )
    known = pl.select(pl.when(numbers.value.is_not_null()).then(seconds)).to_series()
    median = known.median()
    return float(median) if isinstance(median, int | float) else 0.0


def numbers_to_micros(numbers: Numbers, small: str, timezone: str) -> tuple[pl.Series, pl.Series, int]:
    """Convert numbers to int64 microseconds UTC.

    Whole numbers are exact, fractions are rounded to the nearest microsecond, spreadsheet days to the nearest second.

    Args:
        small: Unit of numbers that are not a time of 1973 to 2100; ``""``: they are rejected.
        timezone: Zone of spreadsheet days, which are local times.

    Returns:
        Microseconds; reject reason or null; rows in a repeated hour.
    """
    known_unit = numbers.unit
    if small == "order":  # the size of such a number says nothing
        known_unit = known_unit.clear(len(known_unit))
    default_unit = small if small in MICROSECONDS_PER_UNIT else ("s" if small == "order" else None)
    unit = pl.lit(known_unit).fill_null(pl.lit(default_unit, pl.String))
    micros = pl.lit(None, pl.Int64)
    names = MICROSECONDS_PER_UNIT if small == "order" or not numbers.single_unit else (numbers.single_unit,)
    for name in names:
        factor = MICROSECONDS_PER_UNIT[name]
        is_possible = (numbers.value.abs() * factor < MAX_IMPORT_SECONDS * SECOND).fill_null(False)
        integer = pl.select(pl.when(is_possible).then(numbers.integer)).to_series()
        exact = integer // 1000 if name == "ns" else integer * int(factor)
        product = pl.when(is_possible).then(pl.lit(numbers.value) * factor)
        rounded = product.round(mode="half_to_even").cast(pl.Int64, strict=False)
        micros = pl.when(unit == name).then(pl.coalesce(pl.lit(exact), rounded)).otherwise(micros)
    frame = pl.select(micros=micros, unit=unit)
    values = frame["micros"]
    small_reason = UNCLEAR_NUMBER if small == "" else OUTSIDE
    is_large = (numbers.value.abs() >= MAX_NUMBER).fill_null(False)
    reasons = pl.select(
        pl.when(numbers.value.is_null()).then(None)
        .when(frame["unit"].is_null() & ~is_large).then(pl.lit(small_reason))
        .when(values.is_null() | (values < 0)).then(pl.lit(OUTSIDE))
    ).to_series()  # fmt: skip
    repeated = 0
    if small == "days":
        is_day = known_unit.is_null() & numbers.in_day_range
        seconds = ((numbers.value - SPREADSHEET_DAY_1970) * (DAY / SECOND)).round(mode="half_to_even")
        local = pl.select(pl.when(is_day).then(seconds.cast(pl.Int64, strict=False) * SECOND)).to_series()
        utc, skipped, repeated = to_utc(local, timezone)
        values = pl.select(pl.when(is_day).then(utc).otherwise(values)).to_series()
        reasons = pl.select(pl.when(is_day).then(skipped).otherwise(reasons)).to_series()
    return values, reasons, repeated
