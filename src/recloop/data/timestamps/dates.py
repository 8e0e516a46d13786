"""Dates of a text column: their parts, composed to int64 microseconds UTC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import polars as pl

from recloop.features.timestamp_text import (
    BASIC_PATTERN,
    COMPACT_PATTERN,
    MONTH_NUMBERS,
    NAMED_MONTH_PATTERNS,
    NUMBER_PATTERN,
    PIVOT_YEAR,
    SHORT_YEAR,
    YEAR_FIRST_PATTERN,
    YEAR_LAST_PATTERN,
    ZONE_OFFSETS,
    skipped_hour,
)
from recloop.records import DAY, SECOND

PARTS: Final = ("a", "b", "c", "H", "M", "S", "f", "pm", "z")
"""Groups of the date patterns: three of the date, hour, minute, second, fraction, am or pm, zone."""
YEAR_LAST: Final = "year last"
NAMED_MONTH: Final = "named month"
YEAR_FIRST: Final = "year first"
PATTERNS: Final = (
    (YEAR_FIRST, YEAR_FIRST_PATTERN),
    (YEAR_LAST, YEAR_LAST_PATTERN),
    (YEAR_FIRST, BASIC_PATTERN),
    *((NAMED_MONTH, pattern) for pattern in NAMED_MONTH_PATTERNS),
)
"""Form and pattern of dates, most frequent first."""


FIXED_FORMS: Final[dict[object, tuple[str, ...]]] = {
    (10, 10): ("%Y-%m-%d",),
    (16, 16): ("%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"),
    (19, 19): ("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S"),
    (20, 20): ("%Y-%m-%dT%H:%M:%SZ",),
    (23, 23): ("%Y-%m-%d %H:%M:%S UTC",),
}
"""Frequent forms of ISO 8601 by the smallest and largest length of the texts."""


@dataclass(frozen=True)
class TextColumn:
    """Timestamp column as text, separated into numbers and dates.

    Attributes:
        text: (n,) String without blanks around it; null if empty.
        numeric: (n,) Boolean, true for a number.
        parts: (n,) PARTS of the dates, and their form; null for other rows.
    """

    text: pl.Series
    numeric: pl.Series
    parts: pl.DataFrame

    @property
    def dated(self) -> pl.Series:
        """(n,) Boolean: the value has the form of a date."""
        return self.parts["form"].is_not_null()

    @property
    def year_last(self) -> pl.Series:
        """(n,) Boolean: the order of day and month is open."""
        return (self.parts["form"] == YEAR_LAST).fill_null(False)


def split_texts(column: pl.Series) -> TextColumn:
    """Separate a text column into numbers and parts of dates."""
    text = column.str.strip_chars()
    text = pl.select(pl.when(text != "").then(text)).to_series().rename(column.name)
    numeric = text.str.contains(NUMBER_PATTERN).fill_null(False)
    return TextColumn(text, numeric, split_dates(text, ~numeric & text.is_not_null()))


def read_fixed(text: pl.Series, timezone: str) -> tuple[pl.Series, pl.Series, int, bool] | None:
    """Read a column of one frequent form of ISO 8601, faster than by patterns.

    Returns:
        Microseconds UTC; reject reason of a skipped hour, else null; rows in a repeated hour; True if the texts have a
        zone. None: the texts have another form, or several.
    """
    lengths = text.str.len_bytes()
    form = FIXED_FORMS.get((lengths.min(), lengths.max()))
    if form is None or text.str.contains(":60", literal=True).any():  # a leap second is not a time of day here
        return None
    for pattern in form:
        local = text.str.to_datetime(pattern, time_unit="us", strict=False).to_physical()
        if local.null_count() == text.null_count():
            is_zoned = pattern.endswith(("Z", "UTC"))
            return *to_utc(local, "UTC" if is_zoned else timezone), is_zoned
    return None


def split_dates(text: pl.Series, is_open: pl.Series) -> pl.DataFrame:
    """Split dates into PARTS and their form.

    Rows outside ``is_open`` and other texts have nulls.
    """
    schema = dict.fromkeys((*PARTS, "form"), pl.String) | {"row": pl.Int64}
    rows = is_open.arg_true()
    if not len(rows):
        empty = pl.Series([None], dtype=pl.String).new_from_index(0, len(text))
        return pl.DataFrame(dict.fromkeys((*PARTS, "form"), empty))
    frames = [pl.DataFrame(schema=schema)]
    for form, pattern in PATTERNS:
        values = text if len(rows) == len(text) else text.gather(rows)
        groups = values.str.extract_groups(pattern).struct.unnest()
        matches = groups["a"].is_not_null()
        if not matches.any():
            continue
        missing = [pl.lit(None, pl.String).alias(name) for name in PARTS if name not in groups.columns]
        groups = groups.with_columns(*missing).select(*PARTS, form=pl.lit(form), row=rows.cast(pl.Int64))
        if len(rows) == len(text) and matches.all():
            return groups.drop("row")
        frames.append(groups.filter(matches))
        rows = rows.filter(~matches)
        if not len(rows):
            break
    found = pl.concat(frames)
    if len(found) == len(text):
        return found.sort("row").drop("row")
    numbers = pl.DataFrame({"row": pl.int_range(len(text), dtype=pl.Int64, eager=True)})
    return numbers.join(found, on="row", how="left", maintain_order="left").drop("row")


def spaced_dates(text: pl.Series) -> pl.Series:
    """Write digits such as 20250131134500 as dates with separators; keep other texts."""
    pattern = r"^(\d{4})(\d{2})(\d{2})(\d{2})?(\d{2})?(\d{2})?$"
    dates = text.str.replace(pattern, "${1}-${2}-${3} ${4}:${5}:${6}").str.strip_chars_end(": ")
    return pl.select(pl.when(text.str.contains(COMPACT_PATTERN)).then(dates).otherwise(text)).to_series()


def compose(
    parts: pl.DataFrame, day_first: bool, timezone: str, offset: pl.Series | None = None
) -> tuple[pl.Series, pl.Series, int]:
    """Compose int64 microseconds UTC from PARTS.

    Args:
        day_first: Order of a date that ends with the year.
        timezone: Zone of a date without one. A repeated hour is the first of the two.
        offset: (n,) microseconds to add to the local time.

    Returns:
        Microseconds, null for invalid dates; reject reason of a skipped hour or unclear year, else null; rows in a
        repeated hour.
    """
    year, month, day = _year_month_day(parts, day_first)
    frame = parts.select(
        year=year,
        month=month,
        day=day,
        hour=_hour_of_day(),
        minute=_whole("M").fill_null(0),
        second=_whole("S").fill_null(0),
        fraction=pl.col("f").str.pad_end(9, "0").str.slice(0, 6).cast(pl.Int64, strict=False).fill_null(0),
        zone_minutes=_zone_minutes(),
        zoned=pl.col("z").is_not_null(),
        added=pl.lit(0, pl.Int64) if offset is None else offset,
    )
    minutes = pl.col("hour") * 60 + pl.col("minute") - pl.col("zone_minutes")
    clock = (minutes * 60 + pl.col("second")) * SECOND + pl.col("fraction") + pl.col("added")
    unclear = unclear_years(parts)
    micros = pl.when(_is_valid_time() & ~pl.lit(unclear)).then(_days_since_1970() * DAY + clock)
    values = frame.select(micros.alias("micros"), "zoned")
    wrong_years = pl.select(pl.when(unclear).then(pl.lit(SHORT_YEAR, pl.String))).to_series()
    if timezone == "UTC" or values["zoned"].all():
        return values["micros"], wrong_years, 0
    local = pl.select(pl.when(~values["zoned"]).then(values["micros"])).to_series()
    utc, reasons, repeated = to_utc(local, timezone)
    instants = pl.select(pl.when(values["zoned"]).then(values["micros"]).otherwise(utc)).to_series()
    return instants, pl.select(pl.coalesce(wrong_years, reasons)).to_series(), repeated


def unclear_years(parts: pl.DataFrame) -> pl.Series:
    """(n,) Boolean: a year of two digits that may be the day, as in 24/01/05.

    The last number is the year if the middle one is above 12, if it is above 31, or if it has fewer different values than
    the first one.
    """
    short = ((parts["form"] == YEAR_LAST) & (parts["c"].str.len_chars() == 2)).fill_null(False)
    if not short.any():
        return short
    first, middle, last = (parts[name].filter(short).cast(pl.Int64) for name in "abc")
    is_clear = bool((middle > 12).any()) or bool((last > 31).any()) or last.n_unique() < first.n_unique()
    return short & False if is_clear else short


def to_utc(local: pl.Series, timezone: str) -> tuple[pl.Series, pl.Series, int]:
    """Convert local microseconds to UTC.

    Returns:
        Microseconds, null for a skipped hour; its reject reason, else null; rows in a repeated hour (the first is used).
    """
    local = local.cast(pl.Int64)
    no_reasons = pl.Series([None], dtype=pl.String).new_from_index(0, len(local))
    if timezone == "UTC":
        return local, no_reasons, 0
    datetimes = local.cast(pl.Datetime("us"))
    utc = datetimes.dt.replace_time_zone(timezone, ambiguous="null", non_existent="null").to_physical()
    n_open = utc.null_count() - local.null_count()
    if not n_open:
        return utc, no_reasons, 0
    utc = datetimes.dt.replace_time_zone(timezone, ambiguous="earliest", non_existent="null").to_physical()
    skipped = utc.is_null() & local.is_not_null()
    repeated = n_open - int(skipped.sum())
    if not skipped.any():
        return utc, no_reasons, repeated
    rows = skipped.arg_true()
    moments = datetimes.gather(rows).unique().to_list()
    texts = {moment: skipped_hour(moment, timezone) for moment in moments}
    reasons = pl.select(
        pl.when(skipped).then(
            pl.lit(datetimes).replace_strict(texts, default=None, return_dtype=pl.String)
        )
    ).to_series()  # fmt: skip
    return utc, reasons, repeated


def _whole(group: str) -> pl.Expr:
    """Group of the regular expression as a whole number; null if it did not match."""
    return pl.col(group).cast(pl.Int64, strict=False)


def _year_month_day(parts: pl.DataFrame, day_first: bool) -> tuple[pl.Expr, pl.Expr, pl.Expr]:
    """Year, month and day.

    They are the groups a, b, c, unless the date ends with the year.
    """
    is_year_last = (pl.col("form") == YEAR_LAST).fill_null(False)
    first, second = _whole("a"), _whole("b")
    if (parts["form"] == NAMED_MONTH).any():
        named = pl.col("b").str.to_lowercase().replace_strict(MONTH_NUMBERS, default=None, return_dtype=pl.Int64)
        second = pl.coalesce(second, named)
    day, month = (first, second) if day_first else (second, first)
    return (
        pl.when(is_year_last).then(_year("c")).otherwise(_year("a")),
        pl.when(is_year_last).then(month).otherwise(second),
        pl.when(is_year_last).then(day).otherwise(_whole("c")),
    )


def _year(group: str) -> pl.Expr:
    """Year of two or four digits."""
    year = _whole(group)
    century = pl.when(year >= PIVOT_YEAR).then(1900).otherwise(2000)
    return pl.when(pl.col(group).str.len_chars() == 2).then(year + century).otherwise(year)


def _hour_of_day() -> pl.Expr:
    """Hour from 0 to 23.

    With am or pm, an hour that no 12-hour clock shows becomes the invalid hour 99.
    """
    hour = _whole("H").fill_null(0)
    half = pl.col("pm").str.to_lowercase().str.slice(0, 1)
    return (
        pl.when(half.is_null())
        .then(hour)
        .when(hour.is_between(1, 12) | ((hour == 0) & (half == "a")))
        .then(hour % 12 + (half == "p") * 12)
        .otherwise(99)
    )


def _zone_minutes() -> pl.Expr:
    """Offset of a written zone from UTC in minutes; 0 for Z and without a zone."""
    zone = pl.col("z").str.to_uppercase().replace(ZONE_OFFSETS)
    zone = zone.str.replace("UTC|GMT", "").str.replace_all(":", "", literal=True)
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
