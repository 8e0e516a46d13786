"""Warning about rows that lie years away from the rest."""

from __future__ import annotations

import polars as pl

from recloop.data.far_stamps import far_stamps
from recloop.records import DAY

START = 1_511_576_254_000_000  # 2017-11-25


def log(*others: int) -> pl.DataFrame:
    stamps = [START + hour * DAY // 24 for hour in range(200)]
    users = [f"u{number % 9}" for number in range(200)]
    return pl.DataFrame({"user_id": users + ["x"] * len(others), "timestamp": stamps + list(others)})


def test_far_stamps_names_the_distance_on_both_sides() -> None:
    far = log(0, 2_122_867_355_000_000, START + 40 * 365 * DAY)
    assert (
        far_stamps(far)
        == "2 rows lie 19 to 40 years after the rest; 1 row lies 48 years before the rest (2017-11-25 .. 2017-12-03)"
    )


def test_far_stamps_of_a_log_without_gaps_is_none() -> None:
    assert far_stamps(log()) is None
    assert far_stamps(log(START + 60 * DAY)) is None
    assert far_stamps(log().clear()) is None
