"""Events per day and hour, histories and popularity."""

from __future__ import annotations

import polars as pl

from recloop.data.doctor.profile import Gap, profile
from recloop.records import DAY, SECOND

HOUR = 3_600 * SECOND


def test_profile_counts_days_gaps_hours_histories_and_items() -> None:
    rows = pl.DataFrame(
        {
            "user_id": ["a", "a", "a", "b", "guest:1"],
            "item_id": ["x", "x", "y", "x", "z"],
            "timestamp": [0, 23 * HOUR, 4 * DAY, 4 * DAY + HOUR, 6 * DAY],
            "label": [1, 1, 1, 1, 0],
        }
    )
    found = profile(rows, "Europe/Berlin")
    assert found is not None
    assert (found.first_day, found.per_day, found.empty_days) == ("1970-01-01", (2, 0, 0, 0, 2, 0, 1), 4)
    assert found.gaps == (Gap("1970-01-02", "1970-01-04", 3), Gap("1970-01-06", "1970-01-06", 1))
    assert found.per_hour[:3] == (1, 3, 1)  # Berlin is one hour ahead of UTC
    assert {size: users for size, users in found.histories.items() if users} == {"1": 1, "3-4": 1}
    assert found.top_items == (("x", 3), ("y", 1))
    assert found.top_share["50 %"] == 0.75
    assert found.single_items == 1


def test_profile_without_rows_is_none() -> None:
    assert profile(pl.DataFrame(schema={"user_id": pl.String, "timestamp": pl.Int64})) is None
