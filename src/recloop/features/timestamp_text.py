"""Timestamp parsing of single values; files and posted rows share its rules.

A value is a number since 1970 in any unit, digits such as 20250131, a day number of a spreadsheet, or a date with an
optional time of day and zone, with numbers or names of months.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final
from zoneinfo import ZoneInfo

from recloop.config import Data
from recloop.records import DAY, EPOCH, SECOND

MAX_IMPORT_SECONDS: Final = 4_133_980_800
"""2101-01-01 in seconds; only earlier times are accepted."""
MIN_CLEAR_SECONDS: Final = 100_000_000
"""1973 in seconds; a smaller number may be in another unit."""
MICROSECONDS_PER_UNIT: Final = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
"""Microseconds of one unit."""
MAX_NUMBER: Final = 10**20
"""Larger numbers are not a time in any unit."""
DAY_NUMBER_RANGE: Final = (25_569, 73_416)
"""Spreadsheet days (since 1899-12-30) of the years 1970 to 2100."""
SPREADSHEET_DAY_1970: Final = 25_569
"""1970-01-01 as a spreadsheet day."""
PIVOT_YEAR: Final = 70
"""A year of two digits is in 1970 to 2069."""

ISO_LENGTHS: Final = (19, 23, 26)
"""Characters of ``2025-01-31T13:45:00`` without fraction, with milliseconds and with microseconds."""
ISO_SEPARATORS: Final = ("--T::", "-- ::")
"""Characters 5, 8, 11, 14 and 17 of these forms."""
CLEAR_RANGES: Final = (
    (MIN_CLEAR_SECONDS, MAX_IMPORT_SECONDS, SECOND),
    (10**12, MAX_IMPORT_SECONDS * 1_000, 1_000),
    (10**14, MAX_IMPORT_SECONDS * SECOND, 1),
)
"""Start, end and factor of whole numbers in s, ms and us that are not digits of a date."""

NUMBER_PATTERN: Final = r"^[+-]?\d+([.,]\d*)?([eE][+-]?\d+)?$"
COMPACT_PATTERN: Final = r"^(19|20)\d{2}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(([01]\d|2[0-3])[0-5]\d([0-5]\d)?)?$"
_TIME: Final = (
    r"(?P<H>\d{1,2})[:.h](?P<M>\d{2})(?:[:.](?P<S>\d{2})(?:[.,](?P<f>\d{1,9}))?)?"
    r"(?:\s*Uhr)?\s*(?P<pm>[AaPp]\.?\s?[Mm]\.?)?"
)
_ZONE: Final = (
    r"(?P<z>Z|z|(?:UTC|GMT)?[+-]\d{2}(?::?\d{2})?|UTC|GMT|EST|EDT|MST|MDT|PST|PDT|CES?T|MES?Z)"
    r"(?:\s*[(\[][^)\]]*[)\]])?"
)
CLOCK_PATTERN: Final = rf"(?:(?:\s*[T,:]\s*|\s+)(?:at\s+|um\s+)?{_TIME}\s*(?:{_ZONE})?)?"
_LETTERS: Final = r"[^\W\d_]"
_WEEKDAY: Final = rf"(?:{_LETTERS}{{2,10}}\.?,?\s+)?"
_MONTH: Final = rf"(?P<b>{_LETTERS}{{3,12}})\.?"
YEAR_FIRST_PATTERN: Final = r"^(?P<a>\d{4})[-/.年](?P<b>\d{1,2})[-/.月](?P<c>\d{1,2})日?" + CLOCK_PATTERN + "$"
YEAR_LAST_PATTERN: Final = r"^(?P<a>\d{1,2})[-/.](?P<b>\d{1,2})[-/.](?P<c>\d{4}|\d{2})" + CLOCK_PATTERN + "$"
BASIC_PATTERN: Final = (
    r"^(?P<a>\d{4})(?P<b>\d{2})(?P<c>\d{2})[T ](?P<H>\d{2}):?(?P<M>\d{2})(?::?(?P<S>\d{2})(?:[.,](?P<f>\d{1,9}))?)?"
    rf"\s*(?:{_ZONE})?$"
)
DAY_MONTH_YEAR_PATTERN: Final = (
    rf"^{_WEEKDAY}(?P<c>\d{{1,2}})(?:st|nd|rd|th|\.)?(?:\s+de)?[-/\s]*{_MONTH}(?:\s+de)?[-/\s,]*(?P<a>\d{{4}}|\d{{2}})"
    + CLOCK_PATTERN + "$"
)  # fmt: skip
MONTH_DAY_YEAR_PATTERN: Final = (
    rf"^{_WEEKDAY}{_MONTH}\s+(?P<c>\d{{1,2}})(?:st|nd|rd|th)?,?\s+(?P<a>\d{{4}})" + CLOCK_PATTERN + "$"
)
YEAR_AT_END_PATTERN: Final = (
    rf"^{_WEEKDAY}{_MONTH}\s+(?P<c>\d{{1,2}})\s+{_TIME}\s*(?:{_ZONE})?\s+(?P<a>\d{{4}})$"
)  # fmt: skip
YEAR_MONTH_DAY_PATTERN: Final = rf"^(?P<a>\d{{4}})[-/\s]{_MONTH}[-/\s](?P<c>\d{{1,2}})" + CLOCK_PATTERN + "$"
NAMED_MONTH_PATTERNS: Final = (
    DAY_MONTH_YEAR_PATTERN, MONTH_DAY_YEAR_PATTERN, YEAR_AT_END_PATTERN, YEAR_MONTH_DAY_PATTERN,
)  # fmt: skip
"""Dates with a month name: ``12-Jan-2024``, ``Nov 24, 2023``, ``Thu Aug 17 15:15:28 -0700 2017``, ``2024-Jan-12``."""

_MONTHS: Final = (
    "january jan januar jänner jän janvier janv enero ene gennaio gen januari janeiro stycznia sty ocak",
    "february feb februar février févr fév febrero febbraio februari fevereiro fev lutego lut şubat",
    "march mar märz mär maerz mrz mars marzo maart mrt março marca mart",
    "april apr avril avr abril abr aprile kwietnia kwi nisan",
    "may mai maggio mag mayo mei maio maja maj mayıs",
    "june jun juni juin junio giugno giu junho czerwca cze haziran",
    "july jul juli juillet juil julio luglio lug julho lipca lip temmuz",
    "august aug août agosto ago augustus sierpnia sie ağustos",
    "september sep sept septembre septiembre settembre set setembro września wrz eylül",
    "october oct oktober okt octobre octubre ottobre ott outubro out października paź ekim",
    "november nov novembre noviembre novembro listopada lis kasım",
    "december dec dezember dez décembre déc diciembre dic dicembre dezembro grudnia gru aralık",
)
MONTH_NUMBERS: Final = {word: number for number, words in enumerate(_MONTHS, 1) for word in words.split()}
"""Number of a month by its lower-case name or abbreviation in ten languages."""
ZONE_OFFSETS: Final = {
    "Z": "", "UTC": "", "GMT": "", "EST": "-05", "EDT": "-04", "MST": "-07", "MDT": "-06", "PST": "-08", "PDT": "-07",
    "CET": "+01", "MEZ": "+01", "CEST": "+02", "MESZ": "+02",
}  # fmt: skip
"""Offset from UTC of zone names with one meaning."""

EXPECTED_FORMS: Final = "ISO 8601 (2025-02-01T13:45:00Z), or seconds, milliseconds or microseconds since 1970"
NOT_A_STAMP: Final = "timestamp: not a stamp"
OUTSIDE: Final = "timestamp outside the years 1970 to 2100"
UNCLEAR_NUMBER: Final = "timestamp: a number that is not a time of 1973 to 2100 in any unit"
DAY_NUMBER: Final = 'timestamp: a day of a spreadsheet or another number; set data.time_unit to "days" or "s"'
AMBIGUOUS: Final = "timestamp: digits that can be a date or a number; write a date as 2025-01-31"
SHORT_YEAR: Final = "timestamp: a year of two digits; write dates as 2025-12-31"


def parse_timestamp(value: str | float, data: Data) -> int:
    """Parse one value as int64 microseconds UTC, by the rules of files.

    The unit of a number is detected from its size (the years 1973 to 2100 do not overlap between units); a smaller
    number is in ``data.time_unit``, else in seconds. A fraction such as 46027.35 is a day of a spreadsheet. Digits are a
    date only if ``data.time_unit`` is ``iso``. A date without a zone is in ``data.timezone``; an ambiguous hour is the
    first one, and a skipped hour is an error.

    Raises:
        ValueError: the value is not a stamp; the message names the reason.
    """
    if isinstance(value, bool):
        raise ValueError(NOT_A_STAMP)  # noqa: TRY004 - one kind of error for every value
    stamp = _common_form(value, data.time_unit)
    if stamp is not None:
        return stamp
    if isinstance(value, str):
        text = value.strip()
        if not re.fullmatch(NUMBER_PATTERN, text):
            return _date(text, data)
        value = int(text) if text.lstrip("+-").isdigit() else float(text.replace(",", "."))
    return _number(value, data)


def _common_form(value: str | float, time_unit: str) -> int | None:
    """Microseconds of an ISO 8601 time with a zone, or of a number with a clear unit.

    None for every other value, which the general rules read. They give the same result for these forms.
    """
    if isinstance(value, str):
        clock = value[:-1] if value.endswith("Z") else value[:-6]
        if len(clock) not in ISO_LENGTHS or value[4:17:3] not in ISO_SEPARATORS:
            return None
        if value[-1] != "Z" and (value[-6] not in "+-" or value[-3] != ":"):
            return None
        try:
            elapsed = datetime.fromisoformat(value) - EPOCH
        except ValueError:
            return None
        micros = (elapsed.days * 86_400 + elapsed.seconds) * SECOND + elapsed.microseconds
        return micros if 0 <= micros < MAX_IMPORT_SECONDS * SECOND else None
    if type(value) is int and time_unit != "order":
        for first, end, factor in CLEAR_RANGES:
            if first <= value < end:
                return value * factor
    return None


def _number(value: float, data: Data) -> int:
    if not abs(value) < float("inf"):  # NaN is not either
        raise ValueError(NOT_A_STAMP)
    if abs(value) >= MAX_NUMBER:
        raise ValueError(OUTSIDE)
    if value == int(value) and data.time_unit in ("auto", "iso") and re.fullmatch(COMPACT_PATTERN, str(int(value))):
        if data.time_unit == "auto":
            raise ValueError(AMBIGUOUS)
        return _date(spaced_digits(str(int(value))), data)
    unit = None if data.time_unit == "order" else clear_unit(value)
    if unit is None:
        if data.time_unit == "iso":
            raise ValueError(UNCLEAR_NUMBER)
        is_day = DAY_NUMBER_RANGE[0] <= value < DAY_NUMBER_RANGE[1]
        if data.time_unit == "days" or (data.time_unit == "auto" and is_day):
            return _day_number(value, data)
        unit = data.time_unit if data.time_unit in MICROSECONDS_PER_UNIT else "s"
    if isinstance(value, int):
        return _inside(value // 1000 if unit == "ns" else value * int(MICROSECONDS_PER_UNIT[unit]))
    return _inside(round(value * MICROSECONDS_PER_UNIT[unit]))


def _day_number(value: float, data: Data) -> int:
    """Microseconds of a spreadsheet day, a local time rounded to whole seconds."""
    if data.time_unit == "auto" and value == int(value):
        raise ValueError(DAY_NUMBER)
    if not DAY_NUMBER_RANGE[0] <= value < DAY_NUMBER_RANGE[1]:
        raise ValueError(OUTSIDE)
    seconds = round((value - SPREADSHEET_DAY_1970) * (DAY // SECOND))
    local = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
    return _inside((seconds - _offset(None, local, data.timezone)) * SECOND)


def spaced_digits(text: str) -> str:
    """Date with separators of digits such as ``20250131`` or ``20250131134500``."""
    date = f"{text[:4]}-{text[4:6]}-{text[6:8]}"
    clock = ":".join(text[start : start + 2] for start in range(8, len(text), 2))
    return f"{date} {clock}".strip()


def clear_unit(value: float) -> str | None:
    """Unit in which a number is a time in 1973 to 2100; None if there is none."""
    for unit, factor in MICROSECONDS_PER_UNIT.items():
        if MIN_CLEAR_SECONDS * SECOND <= value * factor < MAX_IMPORT_SECONDS * SECOND:
            return unit
    return None


def _inside(micros: int) -> int:
    if not 0 <= micros < MAX_IMPORT_SECONDS * SECOND:
        raise ValueError(OUTSIDE)
    return micros


def _date(text: str, data: Data) -> int:
    """Microseconds of a date with optional time and zone."""
    for pattern in (YEAR_FIRST_PATTERN, BASIC_PATTERN, *NAMED_MONTH_PATTERNS):
        if match := re.fullmatch(pattern, text):
            month_text = match["b"]
            month = int(month_text) if month_text.isdigit() else MONTH_NUMBERS.get(month_text.lower(), 0)
            return _instant(match, (full_year(match["a"]), month, int(match["c"])), data)
    match = re.fullmatch(YEAR_LAST_PATTERN, text)
    if not match:
        raise ValueError(NOT_A_STAMP)
    first, second, year = int(match["a"]), int(match["b"]), full_year(match["c"])
    if len(match["c"]) == 2 and second <= 12 and int(match["c"]) <= 31:
        raise ValueError(SHORT_YEAR)
    if first <= 12 and second <= 12:
        raise ValueError(f"timestamp: {text} has an ambiguous order of day and month; write dates as 2025-12-31")
    day, month = (first, second) if first > 12 else (second, first)
    return _instant(match, (year, month, day), data)


def full_year(text: str) -> int:
    """Year of two or four digits."""
    year = int(text)
    if len(text) > 2:
        return year
    return year + (1900 if year >= PIVOT_YEAR else 2000)


def _instant(match: re.Match[str], date: tuple[int, int, int], data: Data) -> int:
    """Microseconds UTC of a date with the time of day and zone of its match."""
    clock = match.groupdict()
    hour = int(clock["H"] or 0)
    if half := (clock.get("pm") or "").lower()[:1]:
        if not 1 <= hour <= 12 and not (hour == 0 and half == "a"):
            raise ValueError(NOT_A_STAMP)
        hour = hour % 12 + (half == "p") * 12
    micros = int((clock["f"] or "").ljust(9, "0")[:6])
    if date[0] < 1:
        raise ValueError(OUTSIDE)
    try:
        local = datetime(*date, hour, int(clock["M"] or 0), int(clock["S"] or 0), micros)  # noqa: DTZ001 - its zone follows
    except ValueError:
        raise ValueError(NOT_A_STAMP) from None
    elapsed = local.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    total = (elapsed.days * 86_400 + elapsed.seconds) * SECOND + elapsed.microseconds
    return _inside(total - _offset(clock["z"], local, data.timezone) * SECOND)


def _offset(zone: str | None, local: datetime, timezone: str) -> int:
    """UTC offset in seconds, from the written zone or else the project's zone."""
    if zone is not None:
        name = zone.upper()
        digits = ZONE_OFFSETS.get(name, re.sub("UTC|GMT", "", name)).replace(":", "")
        if not digits:
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
        raise ValueError(skipped_hour(local, timezone))
    return int(offset_before.total_seconds())


def skipped_hour(local: datetime, timezone: str) -> str:
    """Reject reason of a local time that the clock change skips."""
    return f"timestamp: {local:%H:%M} of {local:%Y-%m-%d} never was in {timezone}"
