"""Timestamps in the formats of logs, against microseconds by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from recloop.config import Data
from recloop.data.sources import InputFile
from recloop.data.tables import Table, read_table
from recloop.data.timestamps.parse import parse_timestamps
from recloop.errors import UserError
from recloop.features.timestamp_text import OUTSIDE, UNCLEAR_NUMBER, parse_timestamp

NOON = 1_735_732_800_000_000  # 2025-01-01T12:00:00Z


def tables(*columns: list[object] | pl.Series) -> list[Table]:
    made = []
    for number, column in enumerate(columns):
        series = column if isinstance(column, pl.Series) else pl.Series(column, strict=False)
        source = InputFile("data.events", Path(f"{number}.csv"), f"{number}.csv")
        made.append(Table(source, "csv", "utf-8", ",", ("t",), series.alias("t").to_frame(), {}))
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


@pytest.mark.parametrize(
    "text",
    [
        "Wed Jan 01 07:00:00 -0500 2025", "Jan 1, 2025 12:00:00 PM", "Wed, 1 Jan 2025 13:00:00 +0100", "1-Jan-2025 12:00",
        "01/Jan/2025:12:00:00 +0000", "01-JAN-25 12.00.00.000000000 PM", "Wed Jan 01 2025 12:00:00 GMT+0000 (UTC)",
        "Wed Jan 1 12:00:00 UTC 2025", "1 de enero de 2025 12:00", "1. Januar 2025, 12:00 Uhr", "1 janv. 2025 12h00",
        "2025年1月1日 12:00", "20250101T120000Z", "2025-Jan-01 12:00", "2025-01-01 12.00", "1/31/25 0:00 ",
    ],
)  # fmt: skip
def test_parse_timestamps_reads_dates_with_names_of_months(text: str) -> None:
    expected = NOON if "31" not in text else NOON + (30 * 24 - 12) * 3_600_000_000
    assert micros([text]) == [expected]
    assert parse_timestamp(text, Data()) == expected


def test_parse_timestamps_year_of_two_digits_needs_a_clear_day() -> None:
    assert micros(["12/1/10 8:26", "12/13/10 8:28"])[0] == micros(["2010-12-01 08:26"])[0]
    with pytest.raises(UserError, match="two digits"):
        micros(["24/01/05", "24/01/06"])


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
    read = parse_timestamps(tables(["2025-10-26 02:30", "2025-03-30 02:30"]), "t", Data(timezone="Europe/Berlin"))[0]
    assert read.reasons[1] == "timestamp: 02:30 of 2025-03-30 never was in Europe/Berlin"
    assert read.how.endswith("(1 rows in a repeated hour: the first one is used)")
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


def test_parse_timestamps_one_date_in_another_order_is_rejected() -> None:
    texts = ["31/12/2025"] * 30 + ["12/31/2025"]
    read = parse_timestamps(tables(texts), "t", Data())[0]
    assert read.values.null_count() == 1
    assert read.reasons.to_list()[-2:] == [None, "timestamp: not a stamp"]


def test_parse_timestamps_mixed_orders_raise_with_both_rows(tmp_path: Path) -> None:
    file = tmp_path / "0.csv"
    file.write_text("t,u\n01/01/2025,a\n31/12/2025,b\n12/31/2025,c\n")
    table = read_table(InputFile("data.events", file, file.name), Data())
    with pytest.raises(UserError, match=r"line 3 of 0.csv \(31/12/2025\) is day first, line 4 of 0.csv \(12/31/2025\)"):
        parse_timestamps([table], "t", Data())


@pytest.mark.parametrize("unit", ["auto", "s"])
def test_parse_timestamps_reads_each_number_in_the_unit_of_its_size(unit: str) -> None:
    column = ["1735732800000", "1735732800", "2025-01-01T12:00:00Z", "1735732800000"]
    read = parse_timestamps(tables(column), "t", Data(time_unit=unit))[0]  # type: ignore[arg-type]
    assert read.values.to_list() == [NOON] * 4
    assert read.how == "milliseconds since 1970 (1 rows: seconds since 1970, 1 rows: ISO 8601, zone as given, else UTC)"


@pytest.mark.parametrize("unit", ["auto", "s", "iso"])
@pytest.mark.parametrize("wrong", ["0", "5", "46027"])
def test_parse_timestamps_small_number_among_times_is_rejected(wrong: str, unit: str) -> None:
    for others in (["1735732800"] * 3, ["2025-01-01"] * 3):
        read = parse_timestamps(tables([wrong, *others]), "t", Data(time_unit=unit))[0]  # type: ignore[arg-type]
        assert read.reasons.to_list() == [UNCLEAR_NUMBER, None, None, None]


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


@pytest.mark.parametrize("column", [[46027.5, 46028.0], ["46027.5", "46028"], ["46027,5", "46028"]])
def test_parse_timestamps_of_spreadsheet_days_with_fractions_are_local_times(column: list[object]) -> None:
    noon = micros(["2026-01-05T12:00:00Z"])[0]
    assert noon is not None
    read = parse_timestamps(tables(column), "t", Data())[0]
    assert (read.values[0], read.how) == (noon, "days of a spreadsheet")
    assert micros(column, timezone="Europe/Berlin")[0] == noon - 3_600_000_000
    assert micros(column, time_unit="s")[0] == 46_027_500_000


def test_parse_timestamps_of_whole_day_numbers_raises_with_both_readings() -> None:
    with pytest.raises(UserError, match=r"46027 .. 46030 can be days of a spreadsheet \(2026-01-05 .. 2026-01-08\)"):
        micros([46030, 46027])
    assert micros([46027], time_unit="days") == micros(["2026-01-05"])
    assert micros([46027], time_unit="order") == [46_027_000_000]


def test_parse_timestamps_of_order_numbers_ignores_their_size() -> None:
    read = parse_timestamps(tables([7, 1_735_732_800]), "t", Data(time_unit="order"))[0]
    assert read.values.to_list() == [7_000_000, NOON]
    assert read.how == "order numbers (one second each, not a time)"


def test_parse_timestamps_from_an_unknown_start_says_so() -> None:
    read = parse_timestamps(tables([0, 5_101_815]), "t", Data())[0]
    assert (read.values.to_list(), read.how) == ([0, 5_101_815_000_000], "seconds from an unknown start")


def test_parse_timestamps_outside_1970_to_2100_are_rejected() -> None:
    for wrong in ("1969-12-31T23:59:59Z", "2101-01-01", "-1", "99999999999"):
        read = parse_timestamps(tables(["2025-01-01", "1735732800", wrong]), "t", Data())[0]
        assert read.values.null_count() == 1
        assert read.reasons[2] in (OUTSIDE, UNCLEAR_NUMBER)


def test_parse_timestamps_of_small_integers_are_seconds() -> None:
    assert micros([0, 1, 2]) == [0, 1_000_000, 2_000_000]


def test_parse_timestamps_uses_the_configured_unit_for_small_numbers() -> None:
    assert micros(["90000000"], time_unit="ms") == [90_000_000_000]
    with pytest.raises(UserError, match=r"=5: expected ISO 8601.*is not a time of 1973"):
        micros(["5"], time_unit="iso")


def test_parse_timestamps_without_a_valid_row_raises_with_a_sample() -> None:
    with pytest.raises(UserError, match="=soon: expected ISO 8601"):
        micros(["soon", None])


@pytest.mark.parametrize(
    "day", ["1970-01-01", "1999-12-31", "2000-02-29", "2024-02-29", "2024-03-01", "2100-02-28", "2100-03-01"]
)
def test_parse_timestamps_of_dates_follows_the_calendar(day: str) -> None:
    expected = int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1_000_000)
    assert micros([day]) == [expected]


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        (["12:00", "9.30"], [12 * 60, 9 * 60 + 30]),
        (["12:00:30 PM", "1:45 AM"], [12 * 60 + 0.5, 105]),
        (["1631", "0802"], [16 * 60 + 31, 8 * 60 + 2]),
        (["60", "NA"], [1, 0]),
        ([90_000_000, 60_000], [1_500, 1]),
    ],
)
def test_parse_timestamps_adds_the_time_offset(offsets: list[object], expected: list[float]) -> None:
    frame = pl.DataFrame({"t": ["2025-01-01", "2025-01-01"], "clock": offsets}, strict=False)
    table = Table(InputFile("data.events", Path("0.csv"), "0.csv"), "csv", "utf-8", ",", ("t", "clock"), frame, {})
    data = Data(columns={"timestamp": "t", "time_offset": "clock"}, timezone="Europe/Berlin")  # type: ignore[arg-type]
    midnight = micros(["2025-01-01"], timezone="Europe/Berlin")[0]
    assert midnight is not None
    assert parse_timestamps([table], "t", data)[0].values.to_list() == [midnight + m * 60_000_000 for m in expected]


def test_parse_timestamps_with_a_wrong_time_offset_is_rejected() -> None:
    frame = pl.DataFrame({"t": ["2025-01-01"] * 2, "clock": ["12:00", "25:00"]})
    table = Table(InputFile("data.events", Path("0.csv"), "0.csv"), "csv", "utf-8", ",", ("t", "clock"), frame, {})
    data = Data(columns={"timestamp": "t", "time_offset": "clock"})  # type: ignore[arg-type]
    read = parse_timestamps([table], "t", data)[0]
    assert read.reasons.to_list() == [None, "time_offset: not a time of day"]


@pytest.mark.parametrize(
    "form", ["%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S UTC"]
)
def test_parse_timestamps_of_one_form_equals_the_parsing_of_each(form: str) -> None:
    """A text of another form in the column leaves the fast path."""
    moments = pl.datetime_range(datetime(2025, 3, 29), datetime(2025, 10, 28), "7h30m", eager=True)  # noqa: DTZ001
    texts = moments.dt.strftime(form).to_list()
    for timezone in ("UTC", "Europe/Berlin"):
        fast = parse_timestamps(tables([*texts, "", None]), "t", Data(timezone=timezone))[0]
        slow = parse_timestamps(tables([*texts, "", None, "x"]), "t", Data(timezone=timezone))[0]
        assert fast.values.to_list() == slow.values.to_list()[:-1]
        assert fast.reasons.to_list() == slow.reasons.to_list()[:-1]
        assert fast.how == slow.how
    assert micros(["2025-01-01T10:00:60Z", "2025-01-01T10:00:59Z"])[0] is None
