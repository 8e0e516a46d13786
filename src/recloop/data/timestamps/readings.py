"""Plausible readings of a column as time, from its values alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import polars as pl

from recloop.data.timestamps.dates import NAMED_MONTH, TextColumn, compose, spaced_dates, split_texts
from recloop.data.timestamps.numbers import UNIT_NAMES, Numbers, as_numbers, looks_compact, numbers_to_micros
from recloop.features.timestamp_text import MAX_IMPORT_SECONDS
from recloop.records import DAY, SECOND, max_int

MAX_SAMPLE_ROWS: Final = 50_000
MIN_READABLE: Final = 0.5
"""Share of readable values below which a reading is not plausible."""
LIKELY_MICROSECONDS: Final = (788_918_400 * SECOND, 2_208_988_800 * SECOND)
"""1995 to 2039: logs are from these years; ids of 10 or 13 digits often are not."""


@dataclass(frozen=True)
class Reading:
    """One way to read a column as time.

    Attributes:
        unit: Value of ``data.time_unit`` that reads it: ``iso``, ``s``, ``ms``, ``us``, ``ns``, ``days`` or ``order``.
        form: The form in words.
        share: Share of the filled values that are readable.
        first, last: Earliest and latest time, int64 microseconds UTC.
        has_clock: True if a value has a time of day.
        is_absolute: False for numbers from an unknown start and numbers that only order the rows.
        is_likely: True if the median is in 1995 to 2039.
        day_first: Order of day and month of dates that end with the year, else None.
        why: Reason for the report of `recloop init`.
    """

    unit: str
    form: str
    share: float
    first: int
    last: int
    has_clock: bool
    is_absolute: bool
    is_likely: bool
    day_first: bool | None
    why: str


def plausible_readings(column: pl.Series, timezone: str = "UTC") -> list[Reading]:
    """Return the ways in which a column can be read as time, most plausible first.

    No reading: the column is not a time. Two readings of one share: the values leave it open, such as 01/02/2025 (day or
    month first), 46027 (days of a spreadsheet or order numbers), or 20250131 (a date or a number).
    Columns of more than 50,000 rows are sampled evenly.

    Args:
        column: Values of any type; blank texts count as missing.
        timezone: Zone of local times.
    """
    if column.dtype in (pl.Date, pl.Datetime):
        zone = getattr(column.dtype, "time_zone", None)
        micros = column.drop_nulls().cast(pl.Datetime("us", zone)).to_physical()
        return _readings([_reading("iso", "datetimes", micros, len(micros))])
    if not (column.dtype == pl.String or column.dtype.is_integer() or column.dtype.is_float()):
        return []
    values = _sample(column)
    if not len(values):
        return []
    if looks_compact(values):
        digits = (
            values.cast(pl.Int64, strict=False).cast(pl.String) if values.dtype.is_float() else values.cast(pl.String)
        )
        texts = split_texts(spaced_dates(digits))
        micros = compose(texts.parts, day_first=True, timezone=timezone)[0]
        dates = [_reading("iso", "digits of a date", micros, len(values))]
        return _readings(dates + _numeric(as_numbers(values), len(values), timezone))
    if values.dtype != pl.String:
        return _readings(_numeric(as_numbers(values), len(values), timezone))
    texts = split_texts(values)
    numbers = as_numbers(pl.select(pl.when(texts.numeric).then(texts.text)).to_series())
    return _readings(_dated(texts, timezone) + _numeric(numbers, len(values), timezone))


def _sample(column: pl.Series) -> pl.Series:
    """Filled values, at most `MAX_SAMPLE_ROWS` of them, evenly spaced."""
    values = column.drop_nulls()
    if len(values) > MAX_SAMPLE_ROWS:
        values = values.gather_every(-(-len(values) // MAX_SAMPLE_ROWS))
    if column.dtype == pl.String:
        values = values.str.strip_chars()
        return values.filter(values != "")
    return values.filter(values.is_finite()) if column.dtype.is_float() else values


def _readings(candidates: list[Reading | None]) -> list[Reading]:
    """Readings with enough readable values, most plausible first."""
    readings = [reading for reading in candidates if reading is not None and reading.share >= MIN_READABLE]
    return sorted(readings, key=lambda reading: (not reading.is_absolute, not reading.is_likely, -reading.share))


def _reading(
    unit: str, form: str, micros: pl.Series, size: int, is_absolute: bool = True, day_first: bool | None = None,
    why: str = "",
) -> Reading | None:  # fmt: skip
    """Reading of these microseconds; None if no value is in 1970 to 2100."""
    stamps = micros.drop_nulls()
    stamps = stamps.filter(stamps.is_between(0, MAX_IMPORT_SECONDS * SECOND - 1)).sort()
    if not len(stamps):
        return None
    share = len(stamps) / size
    median = int(stamps[len(stamps) // 2])
    low, high = LIKELY_MICROSECONDS
    return Reading(
        unit=unit,
        form=form,
        share=share,
        first=int(stamps[0]),
        last=int(stamps[-1]),
        has_clock=bool((stamps % DAY != 0).any()),
        is_absolute=is_absolute,
        is_likely=is_absolute and low <= median < high,
        day_first=day_first,
        why=f"{share:.1%} of the values are {form}" + (f"; {why}" if why else ""),
    )


def _dated(texts: TextColumn, timezone: str) -> list[Reading | None]:
    """Readings of texts with dates: one, or two if the order of day and month is open."""
    size = len(texts.text)
    year_last = texts.year_last
    forms = texts.parts["form"]
    if int(year_last.sum()) * 2 < int(texts.dated.sum()):
        form = "dates with a month name" if (forms == NAMED_MONTH).sum() * 2 > len(forms) else "ISO 8601 dates"
        return [_reading("iso", form, compose(texts.parts, day_first=True, timezone=timezone)[0], size)]
    if not year_last.any():
        return []
    candidates = []
    for day_first, words in ((True, "dates with the day first"), (False, "dates with the month first")):
        micros = compose(texts.parts, day_first, timezone)[0]
        candidates.append(_reading("iso", words, micros, size, day_first=day_first))
    shares = [0.0 if candidate is None else candidate.share for candidate in candidates]
    if shares[0] != shares[1]:  # a day above 12 decides
        return [max(candidates, key=lambda candidate: 0.0 if candidate is None else candidate.share)]
    return list(candidates)


def _numeric(numbers: Numbers, size: int, timezone: str) -> list[Reading | None]:
    """Readings of numbers: by size, as spreadsheet days, from an unknown start."""
    n_numbers = numbers.value.len() - numbers.value.null_count()
    n_clear = numbers.unit.len() - numbers.unit.null_count()
    if not n_numbers:
        return []
    if n_clear * 2 >= n_numbers:
        unit = str(numbers.unit.drop_nulls().mode().sort()[0])
        micros = numbers_to_micros(numbers, "", timezone)[0]
        return [_reading(unit, f"{UNIT_NAMES[unit]} since 1970", micros, size)]
    present = numbers.value.drop_nulls()
    is_whole = bool((present == present.floor()).all())
    candidates = []
    if int(numbers.in_day_range.sum()) * 2 >= n_numbers:
        micros = numbers_to_micros(numbers, "days", timezone)[0]
        candidates.append(_reading("days", "days of a spreadsheet", micros, size))
        if not is_whole:
            return candidates
    if int((present >= 0).sum()) * 2 < n_numbers:
        return candidates
    micros = numbers_to_micros(numbers, "s", timezone)[0]
    seconds = _reading("s", "seconds from an unknown start", micros, size, is_absolute=False)
    order = _reading("order", "numbers that order the rows", micros, size, is_absolute=False)
    is_short = max_int(micros.drop_nulls()) < DAY
    return [*candidates, *((order, seconds) if is_short and is_whole else (seconds, order))]
