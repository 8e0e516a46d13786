"""Plausible readings of columns as time."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from recloop.config import Data
from recloop.data.sources import InputFile
from recloop.data.tables import Table
from recloop.data.timestamps.parse import parse_timestamps
from recloop.data.timestamps.readings import plausible_readings


@pytest.mark.parametrize(
    ("values", "units"),
    [
        ([1_767_636_639] * 2, ["s"]),
        (["1767636639000", "", None, "x"], ["ms"]),
        ([46027.5, 46028.0], ["days"]),
        ([46027, 46028], ["days", "order", "s"]),
        ([20250131, 20250201], ["iso", "s", "order"]),
        (["Nov 24, 2023 3:15:22 PM"], ["iso"]),
        (["01/02/2025", "03/04/2025"], ["iso", "iso"]),
        (["01/02/2025", "03/31/2025"], ["iso"]),
        ([0, 5_101_815, 26_000_000], ["s", "order"]),
        (["u1", "u2"], []),
        ([None, ""], []),
        ([True, False], []),
    ],
)
def test_plausible_readings_lists_the_units_most_plausible_first(values: list[object], units: list[str]) -> None:
    assert [reading.unit for reading in plausible_readings(pl.Series(values, strict=False))] == units


def test_plausible_readings_of_an_open_day_give_both_orders() -> None:
    day, month = plausible_readings(pl.Series(["01/02/2025", "03/04/2025"]))
    assert (day.day_first, month.day_first) == (True, False)
    assert (day.first, month.first) == (1_738_368_000_000_000, 1_735_776_000_000_000)


def test_plausible_readings_of_product_numbers_are_not_likely() -> None:
    """13 digits of a product are a time of 2096 in milliseconds."""
    assert [reading.is_likely for reading in plausible_readings(pl.Series([4_006_381_330_032]))] == [False]


def test_plausible_readings_equal_the_parsed_column() -> None:
    column = ["2025-01-01 10:00", "", "2025-03-01 12:00", "x"]
    reading = plausible_readings(pl.Series(column))[0]
    source = InputFile("data.events", Path("log.csv"), "log.csv")
    table = Table(source, "csv", "utf-8", ",", ("t",), pl.DataFrame({"t": column}), {})
    stamps = parse_timestamps([table], "t", Data())[0].values.drop_nulls()
    assert (reading.first, reading.last, reading.has_clock) == (stamps.min(), stamps.max(), True)
    assert reading.why == "66.7% of the values are ISO 8601 dates"
