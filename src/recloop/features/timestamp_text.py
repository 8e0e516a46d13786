"""Timestamp parsing of single values; files and posted rows share its rules."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final
from zoneinfo import ZoneInfo

from recloop.config import Data
from recloop.records import SECOND

MAX_IMPORT_SECONDS: Final = 4_133_980_800
"""2101-01-01 in seconds: an import accepts only earlier times."""
MIN_CLEAR_SECONDS: Final = 100_000_000
"""1973 in seconds; a smaller number may be in another unit."""
MIN_MICROSECONDS: Final = -62_135_596_800 * SECOND
"""0001-01-01 in microseconds."""
MAX_MICROSECONDS: Final = 253_402_300_800 * SECOND - 1
"""The last microsecond of the year 9999."""
MICROSECONDS_PER_UNIT: Final = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
"""Microseconds of one unit."""
DAY_NUMBER_RANGE: Final = (20_000, 80_000)
"""Spreadsheet days (since 1899-12-30) of the years 1954 to 2119."""

NUMBER_PATTERN: Final = r"^[+-]?\d+(\.\d*)?([eE][+-]?\d+)?$"
COMPACT_PATTERN: Final = r"^(19|20)\d{2}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(([01]\d|2[0-3])[0-5]\d([0-5]\d)?)?$"
CLOCK_PATTERN: Final = (
    r"(?:[T ]\s*(?P<H>\d{1,2}):(?P<M>\d{2})(?::(?P<S>\d{2})(?:[.,](?P<f>\d{1,9}))?)?\s*(?P<pm>[AaPp]\.?[Mm]\.?)?"
    r"\s*(?P<z>Z|z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)?)?"
)
YEAR_FIRST_PATTERN: Final = r"^(?P<a>\d{4})[-/.](?P<b>\d{1,2})[-/.](?P<c>\d{1,2})" + CLOCK_PATTERN + "$"
YEAR_LAST_PATTERN: Final = r"^(?P<a>\d{1,2})[-/.](?P<b>\d{1,2})[-/.](?P<c>\d{4})" + CLOCK_PATTERN + "$"

EXPECTED_FORMS: Final = "ISO 8601 (2025-02-01T13:45:00Z), or seconds, milliseconds or microseconds since 1970"
NOT_A_STAMP: Final = "timestamp: not a stamp"
OUTSIDE: Final = "timestamp outside the years 1 to 9999"
DAY_NUMBER: Final = "timestamp: a day number of a spreadsheet; write it as ISO 8601"
AMBIGUOUS: Final = "timestamp: digits that can be a date or a number; write a date as 2025-01-31"


def parse_timestamp(value: str | float, data: Data) -> int:
    """Parse one value as int64 microseconds UTC, by the rules of files.

    The unit of a number is detected from its size (the years 1973 to 2100 do not overlap between units); a smaller
    number is in ``data.time_unit``, else in seconds. Digits are never a date. A date without a zone is in
    ``data.timezone``; an ambiguous hour is the first one, and a skipped hour is an error.

    Raises:
        ValueError: the value is not a stamp; the message names the reason.
    """
    if isinstance(value, str):
        text = value.strip()
        if not re.fullmatch(NUMBER_PATTERN, text):
            return _date(text, data)
        value = int(text) if text.lstrip("+-").isdigit() else float(text)
    return _number(value, data)


def _number(value: float, data: Data) -> int:
    declared = data.time_unit in MICROSECONDS_PER_UNIT
    if not declared and isinstance(value, int) and re.fullmatch(COMPACT_PATTERN, str(value)):
        raise ValueError(AMBIGUOUS)
    if not abs(value) < float("inf"):  # NaN is not either
        raise ValueError(NOT_A_STAMP)
    if abs(value) > MAX_MICROSECONDS * 1000:
        raise ValueError(OUTSIDE)
    unit = clear_unit(value)
    if unit is None:
        unit = data.time_unit if declared else "s"
        if not declared and value != int(value) and DAY_NUMBER_RANGE[0] <= value < DAY_NUMBER_RANGE[1]:
            raise ValueError(DAY_NUMBER)
    if isinstance(value, int):
        return _inside(value // 1000 if unit == "ns" else value * int(MICROSECONDS_PER_UNIT[unit]))
    return _inside(round(value * MICROSECONDS_PER_UNIT[unit]))


def clear_unit(value: float) -> str | None:
    """Unit in which a number is a time in 1973 to 2100, or as long before 1970.

    None if it is outside that range in every unit.
    """
    for unit, factor in MICROSECONDS_PER_UNIT.items():
        if MIN_CLEAR_SECONDS * SECOND <= abs(value) * factor < MAX_IMPORT_SECONDS * SECOND:
            return unit
    return None


def _inside(micros: int) -> int:
    if not MIN_MICROSECONDS <= micros <= MAX_MICROSECONDS:
        raise ValueError(OUTSIDE)
    return micros


def _date(text: str, data: Data) -> int:
    """Microseconds of a date with optional time and zone."""
    match = re.fullmatch(YEAR_FIRST_PATTERN, text)
    if match:
        year, month, day = (int(match[name]) for name in "abc")
    else:
        match = re.fullmatch(YEAR_LAST_PATTERN, text)
        if not match:
            raise ValueError(NOT_A_STAMP)
        first, second, year = (int(match[name]) for name in "abc")
        if first <= 12 and second <= 12:
            raise ValueError(f"timestamp: {text} has an ambiguous order of day and month; write dates as 2025-12-31")
        day, month = (first, second) if first > 12 else (second, first)
    hour = int(match["H"] or 0)
    if half := (match["pm"] or "").lower()[:1]:
        if not 1 <= hour <= 12:
            raise ValueError(NOT_A_STAMP)
        hour = hour % 12 + (half == "p") * 12
    micros = int((match["f"] or "").ljust(9, "0")[:6])
    try:
        local = datetime(year, month, day, hour, int(match["M"] or 0), int(match["S"] or 0), micros)  # noqa: DTZ001 - its zone follows
    except ValueError:
        raise ValueError(NOT_A_STAMP) from None
    elapsed = local.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    total = (elapsed.days * 86_400 + elapsed.seconds) * SECOND + elapsed.microseconds
    return _inside(total - _offset(match["z"], local, data.timezone) * SECOND)


def _offset(zone: str | None, local: datetime, timezone: str) -> int:
    """UTC offset in seconds, from the written zone or else the project's zone."""
    if zone is not None:
        digits = zone.replace(":", "")
        if not digits[1:].isdigit():
            return 0
        minutes = int(digits[1:3]) * 60 + int(digits[3:] or 0)
        return (-60 if digits[0] == "-" else 60) * minutes
    if timezone == "UTC":
        return 0
    time_zone = ZoneInfo(timezone)
    offset_before, offset_after = (time_zone.utcoffset(local.replace(fold=fold)) for fold in (0, 1))
    assert offset_before is not None
    assert offset_after is not None
    if offset_before < offset_after:  # skipped hour: the clocks went forward
        raise ValueError(NOT_A_STAMP)
    return int(offset_before.total_seconds())
