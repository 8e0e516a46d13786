"""Column ``time_offset``: the time of day or since the date, added to a timestamp."""

from __future__ import annotations

from typing import Final

import polars as pl

from recloop.records import DAY, SECOND

CLOCK: Final = (
    r"^(?P<H>\d{1,2})[:.h](?P<M>\d{2})(?:[:.](?P<S>\d{2})(?:[.,](?P<f>\d{1,9}))?)?\s*(?P<pm>[AaPp]\.?[Mm]\.?)?$"
)
HOUR_MINUTE: Final = r"^([01]\d|2[0-3])[0-5]\d$"
MISSING_WORDS: Final = ("", "na", "nan", "null", "none")


def read_offsets(column: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Read a column of offsets.

    A clock (``13:45``, ``1:45 PM``, ``9.37``) and four digits in every row (``1345``) are a time of day. Other numbers are
    milliseconds if one of them is a day or more in seconds, else seconds. A missing offset is 0.

    Returns:
        int64 microseconds; (n,) Boolean, true where a value cannot be read.
    """
    if column.dtype == pl.Time:
        return (column.to_physical() // 1000).fill_null(0), pl.Series([False]).new_from_index(0, len(column))
    text = column.cast(pl.String, strict=False).str.strip_chars()
    text = pl.select(pl.when(~text.str.to_lowercase().is_in(MISSING_WORDS)).then(text)).to_series()
    present = text.drop_nulls()
    if len(present) and present.str.contains(HOUR_MINUTE).all():
        text = text.str.replace(r"^(\d{2})(\d{2})$", "${1}:${2}")
    groups = text.str.extract_groups(CLOCK).struct.unnest()
    clock = groups.select(_clock_micros()).to_series()
    number = pl.select(pl.when(clock.is_null()).then(text.cast(pl.Float64, strict=False))).to_series()
    largest = number.max()
    unit = SECOND if isinstance(largest, int | float) and largest < DAY // SECOND else 1_000
    amounts = pl.select(pl.when(number.is_finite() & (number >= 0)).then(number * unit)).to_series()
    micros = pl.select(pl.coalesce(clock, amounts.round().cast(pl.Int64, strict=False))).to_series()
    return micros.fill_null(0), text.is_not_null() & micros.is_null()


def _clock_micros() -> pl.Expr:
    hour, minute, second = (pl.col(name).cast(pl.Int64, strict=False) for name in "HMS")
    half = pl.col("pm").str.to_lowercase().str.slice(0, 1)
    hour = pl.when(half.is_null()).then(hour).otherwise(hour % 12 + (half == "p") * 12)
    fraction = pl.col("f").str.pad_end(9, "0").str.slice(0, 6).cast(pl.Int64, strict=False).fill_null(0)
    micros = ((hour * 60 + minute) * 60 + second.fill_null(0)) * SECOND + fraction
    return pl.when((hour < 24) & (minute < 60) & (second.fill_null(0) < 60)).then(micros)
