"""Timestamps in the formats of logs, against microseconds by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from recloop.config import Data
from recloop.data.sources import InputFile
from recloop.data.tables import Table
from recloop.data.timestamps import OUTSIDE, parse_timestamps
from recloop.errors import UserError

NOON = 1_735_732_800_000_000  # 2025-01-01T12:00:00Z


def tables(*columns: list[object] | pl.Series, folder: Path = Path("/nowhere")) -> list[Table]:
    made = []
    for number, column in enumerate(columns):
        series = column if isinstance(column, pl.Series) else pl.Series(column, strict=False)
        frame = series.alias("t").to_frame()
        file = folder / f"{number}.csv"
        if folder.exists():
            file.write_text("t\n" + "\n".join("" if v is None else str(v) for v in series) + "\n")
        made.append(Table(InputFile("data.events", file, file.name), "csv", "utf-8", ",", ("t",), frame, {}))
    return made


def micros(column: list[object] | pl.Series, **data: str) -> list[int | None]:
    return parse_timestamps(tables(column), "t", Data(**data))[0].values.to_list()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "2025-01-01T12:00:00Z", "2025-01-01 12:00:00", "2025-01-01 12:00", "2025/1/1 12:00:00", "2025.01.01 12:00:00",
        "2025-01-01T13:00:00+01:00", "2025-01-01T07:00:00-0500", "2025-01-01T12:00:00.000 UTC", "2025-01-01 12:00 PM",
        "1735732800", "1735732800000", "1735732800000000", "1735732800000000000",
        "1735732800.0", " 2025-01-01T12:00:00Z ",
    ],
)  # fmt: skip
def test_parse_timestamps_reads_one_instant_in_many_formats(text: str) -> None:
    assert micros([text]) == [NOON]


@pytest.mark.parametrize("dtype", [pl.Int32, pl.Int64, pl.UInt64, pl.Float64])
def test_parse_timestamps_accepts_any_number_type(dtype: type[pl.DataType]) -> None:
    assert micros(pl.Series([1_735_732_800], dtype=dtype)) == [NOON]


def test_parse_timestamps_of_datetimes_keeps_precision() -> None:
    exact = datetime(2025, 1, 1, 12, 0, 0, 123456)  # noqa: DTZ001 - the test needs a column without a zone
    for unit in ("us", "ns"):
        assert micros(pl.Series([exact, None], dtype=pl.Datetime(unit))) == [NOON + 123_456, None]
    aware = pl.Series([exact.replace(tzinfo=UTC)]).dt.convert_time_zone("Asia/Tokyo")
    assert micros(aware, timezone="Europe/Berlin") == [NOON + 123_456]
    assert micros(pl.Series([exact.date()])) == [NOON - 43_200_000_000]


def test_parse_timestamps_keeps_microseconds() -> None:
    assert micros(["2025-01-01T12:00:00.123456789Z", "2025-01-01T12:00:00,5Z"]) == [NOON + 123_456, NOON + 500_000]
    assert micros(["1735732800.123456", "1735732801"]) == [NOON + 123_456, NOON + 1_000_000]
    assert micros(["1735732800000123", "1735732800000124"]) == [NOON + 123, NOON + 124]
    assert micros(pl.Series([1735732800.123456])) == [NOON + 123_456]


def test_parse_timestamps_applies_the_configured_zone() -> None:
    assert micros(["2025-01-01 13:00", "2025-01-01T12:00:00Z"], timezone="Europe/Berlin") == [NOON, NOON]
    twice, never = micros(["2025-10-26 02:30", "2025-03-30 02:30"], timezone="Europe/Berlin")
    assert twice == 1_761_438_600_000_000  # the first of the two: 00:30 UTC
    assert never is None
    with pytest.raises(UserError, match=r"data\.timezone=Mars/Base"):
        micros(["2025-01-01"], timezone="Mars/Base")


@pytest.mark.parametrize(
    ("texts", "first"),
    [
        (["01/02/2025 12:00", "31/12/2025"], "2025-02-01"),
        (["01/02/2025 12:00", "12/31/2025"], "2025-01-02"),
        (["1.2.2025 12:00", "31.12.2025"], "2025-02-01"),
    ],
)
def test_parse_timestamps_day_above_12_decides_the_order(texts: list[object], first: str) -> None:
    assert micros(texts)[0] == micros([f"{first}T12:00:00Z"])[0]


def test_parse_timestamps_order_may_follow_from_another_file() -> None:
    read = parse_timestamps(tables(["01/02/2025"], ["31/12/2025"]), "t", Data())
    assert read[0].values.to_list() == micros(["2025-02-01"])
    assert read[0].how == "day first, UTC"


def test_parse_timestamps_ambiguous_order_raises_with_both_readings() -> None:
    with pytest.raises(UserError) as caught:
        micros(["01/02/2025", "03/04/2025"])
    assert caught.value.value == "01/02/2025"
    assert "2025-02-01 (day first)" in str(caught.value)
    assert "2025-01-02 (month first)" in str(caught.value)


def test_parse_timestamps_mixed_orders_raise_with_both_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 3 of 0.csv \(31/12/2025\) is day first, line 4 of 0.csv \(12/31/2025\)"):
        parse_timestamps(tables(["01/01/2025", "31/12/2025", "12/31/2025"], folder=tmp_path), "t", Data())


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (["1735732800", "1735732801", "1735732800000"], "line 4 is in milliseconds, line 2 in seconds"),
        (["5", "1735732800000", "1735732801"], "line 4 is in seconds, line 3 in milliseconds"),
        (["2025-01-01", "x", "1735732800"], "line 4 is a number, line 2 is '2025-01-01'"),
        ([1735732800, 1735732800000000], "line 3 is in microseconds"),
    ],
)
@pytest.mark.parametrize("unit", ["auto", "s"])
def test_parse_timestamps_mixed_units_raise_with_the_row(
    tmp_path: Path, column: list[object], said: str, unit: str
) -> None:
    with pytest.raises(UserError, match=said):
        parse_timestamps(tables(column, folder=tmp_path), "t", Data(time_unit=unit))  # type: ignore[arg-type]


def test_parse_timestamps_accepts_units_per_file() -> None:
    first, second = parse_timestamps(tables([1735732800], [1735732800000]), "t", Data())
    assert first.values.to_list() == second.values.to_list() == [NOON]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("yesterday", "timestamp: not a stamp"), ("2025-02-29", "timestamp: not a stamp"), ("2025-13-01", "timestamp: not a stamp"),
        ("2025-01-01 24:00", "timestamp: not a stamp"), ("2025-01-01 13:00 PM", "timestamp: not a stamp"),
        ("0000-12-31", OUTSIDE), ("", "no timestamp"), (None, "no timestamp"),
    ],
)  # fmt: skip
def test_parse_timestamps_unreadable_text_has_a_reason(text: str | None, reason: str) -> None:
    read = parse_timestamps(tables(["2024-02-29", "2100-12-31", text]), "t", Data())[0]
    assert read.values.to_list()[2] is None
    assert read.reasons.to_list() == [None, None, reason]


@pytest.mark.parametrize(("number", "reason"), [("9999999999999999999999", OUTSIDE), ("x", "timestamp: not a stamp")])
def test_parse_timestamps_invalid_number_has_a_reason(number: str, reason: str) -> None:
    assert parse_timestamps(tables(["1735732800", number]), "t", Data())[0].reasons.to_list() == [None, reason]


@pytest.mark.parametrize("digits", ["20250101120000", "202501011200"])
def test_parse_timestamps_of_digits_as_dates_needs_the_setting(digits: str) -> None:
    """20250101 may be a date or a number, so reading it as a date needs a setting."""
    for column in ([digits], [int(digits)]):
        assert micros(column, time_unit="iso") == [NOON]
        with pytest.raises(UserError, match=r"can be a date \(2025-01-01\) or a number"):
            micros(column)
    assert micros(["20250101"], time_unit="s") == [20_250_101_000_000]


def test_parse_timestamps_of_spreadsheet_day_numbers_raises() -> None:
    """46027.35 is 5 January 2026 in a spreadsheet, but half a day of 1970 in seconds."""
    for column in ([46027.35, 46028.0], ["46027.35", "46028"]):
        with pytest.raises(UserError, match=r"=46027\.35"):
            micros(column)
    assert micros(["46027", "46028"]) == [46_027_000_000, 46_028_000_000], "integers may be order numbers"
    assert micros(["46027.35"], time_unit="s") == [46_027_350_000]


def test_parse_timestamps_before_1970_are_read() -> None:
    """The rule clock checks them, as on arrival."""
    assert micros(["1969-12-31T23:59:59Z"]) == micros(["-1"]) == micros([-1]) == [-1_000_000]
    assert micros(["2101-01-01"]) == [4_133_980_800_000_000]


def test_parse_timestamps_of_small_integers_are_seconds() -> None:
    assert micros([0, 1, 2]) == [0, 1_000_000, 2_000_000]


def test_parse_timestamps_uses_the_configured_unit() -> None:
    assert micros(["90000000000"], time_unit="ms") == [90_000_000_000_000]
    with pytest.raises(UserError, match="ISO 8601"):
        micros(["1735732800"], time_unit="iso")
    with pytest.raises(UserError, match="2025-01-01"):
        micros(["2025-01-01"], time_unit="s")


def test_parse_timestamps_without_a_valid_row_raises_with_a_sample() -> None:
    with pytest.raises(UserError, match="=soon: expected ISO 8601"):
        micros(["soon", None])


@pytest.mark.parametrize(
    "day", ["1970-01-01", "1999-12-31", "2000-02-29", "2024-02-29", "2024-03-01", "2100-02-28", "2100-03-01"]
)
def test_parse_timestamps_of_dates_follows_the_calendar(day: str) -> None:
    expected = int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1_000_000)
    assert micros([day]) == [expected]
