"""The clock and the text of a timestamp."""

from __future__ import annotations

import time

import polars as pl
import pytest

from recloop.records import DAY, SECOND, iso, max_int, now, utc_minute


def test_now_is_microseconds_since_1970() -> None:
    before, stamp, after = time.time(), now(), time.time()
    assert int(before * SECOND) - 1 <= stamp <= after * SECOND + 1


@pytest.mark.parametrize(
    ("stamp", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_514_764_800 * SECOND + 1, "2018-01-01T00:00:00.000001Z"),
        (-SECOND, "1969-12-31T23:59:59Z"),
        (10**18, "1000000000000000000"),
    ],
)
def test_iso_any_stamp_is_utc_with_z_or_its_number(stamp: int, text: str) -> None:
    assert iso(stamp) == text


def test_utc_minute_drops_seconds() -> None:
    assert utc_minute(DAY + 3_659 * SECOND + 999_999) == "1970-01-02 01:00"


def test_max_int_empty_or_null_column_is_0() -> None:
    assert max_int(pl.Series([3, None, 7], dtype=pl.Int64)) == 7
    assert max_int(pl.Series([], dtype=pl.Int64)) == max_int(pl.Series([None], dtype=pl.Int64)) == 0
